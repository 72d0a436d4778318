"""H.264 on gray references.

The filters of prediction sum to one (6 taps to 32, of chroma to 64), the mean of two equal
predictions is the same again, and implicit weights sum to 64: prediction from a gray picture is
gray (ITU-T H.264, 8.4.2). Nor does parsing a slice depend on any other picture. So the decoder is
given

- a gray IDR picture, written for the stream's own parameters in CAVLC (`gray_slice`);
- the stream's parameters and slice headers, written anew: without explicit weights, whose offsets
  would be added to gray, and without the loop filter, which would smear the residual.

For a direct residual, the frame is no reference, and the gray picture is all that its lists have.
For residuals since a frame, pictures keep their numbers, so that each is predicted from those that
it was predicted from; up to that frame, gray ones stand for the references.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cfer.codec.format import CodecError, Format, Sent
from cfer.codec.h264_syntax import (
    IDR_SLICE,
    MOST_REFERENCES,
    PPS,
    SLICE,
    SPS,
    START_CODE,
    B,
    I,
    Operation,
    P,
    PictureParameters,
    SequenceParameters,
    SliceHeader,
    Weights,
    gray_slice,
    is_intra_slice,
)

Change = Callable[[SliceHeader], SliceHeader]

_START = re.compile(b"\x00\x00\x01")
_NO_DEBLOCKING = (1, 0, 0)
_PURE: dict[str, Any] = {"weights": None, "deblocking": _NO_DEBLOCKING}
_RESTART, _TO_LONG, _CURRENT_TO_LONG = 5, 3, 6  # commands of reference marking (table 7-9)


@dataclass(frozen=True)
class ParameterSets:
    """Those that are in force: of each id, what it says; and the NAL units that they came in."""

    sps: dict[int, SequenceParameters]
    pps: dict[int, PictureParameters]
    nals: dict[tuple[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture of the bitstream.

    Attributes:
        slices: the headers of its slices.
        sets: the number of the parameter sets that they refer to.
        period: how many IDR pictures came before the next one.
        poc: its place in the order of display, within the period (8.2.1).
    """

    slices: list[SliceHeader]
    sets: int
    period: int
    poc: int


class Reference(NamedTuple):
    """A picture that is kept: its frame number in the bitstream, and its long-term index."""

    frame: int
    long: int | None


class H264(Format):
    """The frames of an H.264 video (see `Format`).

    Args:
        extradata: parameter sets, as the container has them: in an avcC record (ISO/IEC 14496-15),
            and the packets then have lengths; or with start codes (Annex B), or none.
        packets: each with a picture, or with parameters for the next one.
        name: what messages call the video.

    Raises:
        CodecError: a coding tool whose residuals are not proven exact, or damage.
    """

    decoder = "h264"
    header = b""
    keeps_gray = True
    # `strict`: wait for as many pictures as may be shown earlier; else FFmpeg guesses, and drops
    # some. `output_corrupt`: a bitstream may begin at an I-frame that is no IDR picture.
    decoder_options: ClassVar = {
        "err_detect": "explode",
        "strict": "strict",
        "flags": "+output_corrupt",
    }

    def __init__(self, extradata: bytes, packets: list[bytes], name: str) -> None:
        self.name = name
        self.packets: list[bytes] = []
        self.sources: list[int] = []
        self.frames: list[Frame] = []
        self._length_size = _length_size(extradata)
        self._sets = [ParameterSets({}, {}, {})]
        self._known: dict[bytes, SequenceParameters | PictureParameters] = {}
        self._where = ""
        self._poc_before = (0, 0)
        try:
            self._take_sets(_in_avcc(extradata) if self._length_size else _with_codes(extradata))
            waiting = b""
            for number, packet in enumerate(packets):
                slices = self._headers(packet)
                if not slices:
                    waiting += packet
                elif slices[0].first_macroblock:
                    self._continue(slices)
                    self.packets[-1] += waiting + packet
                    waiting = b""
                else:
                    self.frames.append(self._frame(slices))
                    self.packets.append(waiting + packet)
                    self.sources.append(number)
                    waiting = b""
        except ValueError as error:
            raise CodecError(
                f"{name}: {self._where}{error}, so its residuals cannot be read exactly; "
                "re-encode it (cfer encode)"
            ) from error
        if not self.frames:
            raise CodecError(f"{name}: there is no frame in it")
        first = self.frames[0].slices[0].sps
        self.width, self.height = first.width, first.height
        kinds = ({header.kind for header in frame.slices} for frame in self.frames)
        self.frame_types = "".join("B" if B in k else "P" if P in k else "I" for k in kinds)
        self._grays: dict[tuple[int, int], list[bytes]] = {}

    @cached_property
    def display_order(self) -> Sequence[int]:
        def place(number: int) -> tuple[int, int]:
            return self.frames[number].period, self.frames[number].poc

        return sorted(range(len(self.frames)), key=place)

    @cached_property
    def orphans(self) -> set[int]:
        """The frames that are predicted from what the file lacks: those shown before its first
        I-frame. In their place that I-frame is shown."""
        first = self.frames[0]
        if first.slices[0].is_idr:
            return set()
        same = (n for n, frame in enumerate(self.frames) if frame.period == first.period)
        return {n for n in same if self.frames[n].poc < first.poc}

    def whole(self, frames: range) -> list[Sent]:
        first = frames[0]
        while first and not self.frames[first].slices[0].is_idr:
            first -= 1
        if first == 0 and self.orphans:
            every = self.with_references(range(frames.stop), set())
            return [(data, n if n in frames else None) for data, n, _ in every]
        sent = [(self._annex_b(n), n if n in frames else None) for n in range(first, frames.stop)]
        return [(self.alone(first), sent[0][1]), *sent[1:]]

    def alone(self, i_frame: int) -> bytes:
        return self._sets_of(i_frame) + self._annex_b(i_frame)

    def direct(self, frame: int) -> tuple[list[bytes], bytes]:
        header = self.frames[frame].slices[0]
        key = self.frames[frame].sets, header.sps.id
        if key not in self._grays:
            start = self._parameters(frame, header.sps, with_weights=False)
            gray = gray_slice(header.sps, self._gray_pps(header.sps), kind=I, is_idr=True)
            self._grays[key] = [header.sps.written(0) + start + gray]
        return self._grays[key], self._rewritten(frame, _on_gray)

    def on_offsets(self, frame: int) -> list[Sent]:
        """As `direct`, with an explicit weight of one and an offset for each index that a block may
        refer to. Index i of list 0 adds 2 (i + 1) to U, and that of list 1 to V; of a block that
        uses both lists, the mean with the other's zero is i + 1 in both planes (8.4.2.3.2)."""
        header = self.frames[frame].slices[0]
        sets = self._sets[self.frames[frame].sets].pps.values()
        weighted = (replace(pps, weighted_pred=1, weighted_bipred_idc=1) for pps in sets)
        parameters = b"".join(
            pps.written(with_weights=True) for pps in weighted if pps.sps_id == header.sps.id
        )
        gray_pps = self._gray_pps(header.sps)
        gray = gray_slice(header.sps, gray_pps, kind=I, is_idr=True)
        start = header.sps.written(0) + parameters + gray_pps.written(with_weights=False)

        def weighed(header: SliceHeader) -> SliceHeader:
            counts = header.num_refs[: len(header.modifications)]
            offsets = [[(2 * (i + 1), 0) for i in range(counts[0])]] if counts else []
            offsets += [[(0, 2 * (i + 1)) for i in range(count)] for count in counts[1:]]
            return replace(_on_gray(header), weights=Weights.of_offsets(offsets))

        return [(start + gray, None), (self._rewritten(frame, weighed), frame)]

    def accumulated(self, start: int) -> list[Sent]:
        window, poc = self.window(start), self.frames[start].poc
        shown = {n for n in window if self.frames[n].poc > poc}
        if not shown:
            return []
        first = min((kept.frame for kept in self._references[start + 1]), default=start)
        self._check(first, start, window.stop, shown)
        sps = self.frames[start].slices[0].sps
        frame_num_of_gray = self.frames[first].slices[0].frame_num - 1
        poc_of_gray = min(self.frames[n].poc for n in range(first, window.stop)) - 2
        sent: list[Sent] = []
        pocs = [0]
        known: list[Reference] = []
        sets = self.frames[first].sets
        for number in range(first, window.stop):
            frame = self.frames[number]
            header = frame.slices[0]
            frame_num, poc = header.frame_num - frame_num_of_gray, frame.poc - poc_of_gray
            marking = self._kept_commands(known, number)
            if number in shown:
                change = partial(
                    replace, frame_num=frame_num, poc=(poc, 0), marking=marking, **_PURE
                )
                picture = self._rewritten(number, change)
            elif header.ref_idc:
                if number == first:
                    marking = [(1, 0), *(marking or [])]  # the gray IDR picture has served
                kind = I if self.frame_types[number] == "I" else P
                picture = self._gray(number, kind, frame_num, poc, marking)
            else:
                continue
            if frame.sets != sets:
                picture = self._parameters(number, sps, with_weights=False) + picture
                sets = frame.sets
            sent.append((picture, number if number in shown else None))
            known = self._after(known, number)
            pocs.append(poc)
        head = sps.written(_num_reordered(pocs))
        head += self._parameters(first, sps, with_weights=False)
        gray = gray_slice(sps, self._gray_pps(sps), kind=I, is_idr=True)
        return [(head + gray, None), *sent]

    def references(self, frame: int) -> list[Sequence[int]]:
        found: tuple[set[int], set[int]] = set(), set()
        for header in self.frames[frame].slices:
            for known, pictures in zip(found, self.reference_lists(frame, header), strict=False):
                known.update(n for n in pictures if n is not None)
        return [sorted(known) for known in found]

    def kept(self, frame: int) -> Sequence[int]:
        return [kept.frame for kept in self._references[frame + 1]]

    def reference_lists(self, frame: int, header: SliceHeader) -> list[list[int | None]]:
        """The pictures that the indices of each list of a slice stand for (8.2.4)."""
        poc, kept = self.frames[frame].poc, self._references[frame]
        short = [r.frame for r in kept if r.long is None]
        long = [r.frame for r in sorted(kept, key=lambda r: r.long or 0) if r.long is not None]
        if header.kind == I:
            return []
        if header.kind == P:
            initial = [[*sorted(short, reverse=True), *long]]
        else:
            short.sort(key=lambda n: self.frames[n].poc)
            earlier = [n for n in short if self.frames[n].poc < poc][::-1]
            later = [n for n in short if self.frames[n].poc > poc]
            initial = [[*earlier, *later, *long], [*later, *earlier, *long]]
            if initial[0] == initial[1] and len(initial[1]) > 1:
                initial[1][:2] = initial[1][1::-1]
        lists: list[list[int | None]] = []
        for given, operations, count in zip(
            initial, header.modifications, header.num_refs, strict=False
        ):
            found: list[int | None] = [*given[:count], *[None] * (count - len(given))]
            number = header.frame_num
            for index, (operation, value) in enumerate(operations):
                if operation < 2:
                    number += value + 1 if operation else -value - 1
                    number %= header.sps.max_frame_num
                    picture = self._short(kept, number)
                else:
                    picture = next((r.frame for r in kept if r.long == value), None)
                rest = [n for n in found[index:] if n != picture]
                found = [*found[:index], picture, *rest][:count]
                found += [None] * (count - len(found))
            lists.append(found)
        return lists

    def frames_of_indices(self, frame: int, indices: np.ndarray) -> np.ndarray:
        """The numbers of the frames that indices of the two lists stand for: int32 (2, rows,
        columns) of 8 × 8 blocks, −1 = none, → the same.

        Raises:
            CodecError: a picture is missing between the IDR picture before and this frame.
        """
        earlier = (n for n in range(frame, -1, -1) if self.frames[n].slices[0].is_idr)
        self.check_whole(next(earlier, 0), frame + 1)
        headers = self.frames[frame].slices
        rows, columns = np.indices(indices.shape[1:]) // 2
        addresses = rows * headers[0].sps.columns + columns
        starts = [header.first_macroblock for header in headers]
        of_slice = np.searchsorted(starts, addresses, side="right") - 1
        found = np.full_like(indices, -1)
        for number, header in enumerate(headers):
            for which, known in enumerate(self.reference_lists(frame, header)):
                table = np.array([-1 if n is None else n for n in known] + [-1], np.int32)
                here = of_slice == number
                found[which, here] = table[indices[which, here].clip(-1, len(known) - 1)]
        return found

    def with_references(self, frames: range, unfiltered: set[int]) -> list[tuple[bytes, int, bool]]:
        """What a decoder is given to show frames as they are, and before some of them the same
        without the loop filter, for no other to refer to: what prediction and residual add up to.

        Args:
            frames: the first is an IDR picture, or the bitstream's first frame.
            unfiltered: the numbers of those.

        Returns:
            packets, each with its frame's number and whether it is without the loop filter.
        """
        sent: list[tuple[bytes, int, bool]] = []
        pocs: list[int] = []
        sets = -1
        for number in frames:
            frame = self.frames[number]
            header = frame.slices[0]
            marking = header.marking
            if not header.is_idr:
                marking = self._kept_commands(self._references[number], number)
            as_it_is = partial(replace, poc=(frame.poc, 0), marking=marking)
            without_filter = partial(as_it_is, ref_idc=0, marking=None, deblocking=_NO_DEBLOCKING)
            for change in [without_filter, as_it_is] if number in unfiltered else [as_it_is]:
                if number in self.orphans:
                    data = self._gray(number, P, frame.slices[0].frame_num, frame.poc)
                else:
                    data = self._rewritten(number, change)
                if frame.sets != sets:
                    sps, sets = frame.slices[0].sps, frame.sets
                    data = self._parameters(number, sps, with_weights=True) + data
                sent.append((data, number, change is without_filter))
                pocs.append(frame.poc)
        head = self.frames[frames[0]].slices[0].sps.written(_num_reordered(pocs))
        return [(head + sent[0][0], *sent[0][1:]), *sent[1:]]

    # ---- the bitstream, read -----------------------------------------------------------------

    def _nals(self, packet: bytes) -> list[bytes]:
        return (
            _with_lengths(packet, self._length_size) if self._length_size else _with_codes(packet)
        )

    def annex_b(self, frames: range) -> bytes:
        """Some frames with start codes, after the parameters of the first."""
        return self._sets_of(frames[0]) + b"".join(self._annex_b(number) for number in frames)

    def _sets_of(self, frame: int) -> bytes:
        sets = self._sets[self.frames[frame].sets]
        return b"".join(START_CODE + nal for nal in sets.nals.values())

    def _annex_b(self, number: int) -> bytes:
        """A frame with start codes, less what is not needed to decode it."""
        nals = self._nals(self.packets[number])
        kept = (nal for nal in nals if nal[0] & 31 in (SLICE, IDR_SLICE, SPS, PPS))
        return b"".join(START_CODE + nal for nal in kept)

    def _slices(self, number: int) -> list[bytes]:
        return [
            nal for nal in self._nals(self.packets[number]) if nal[0] & 31 in (SLICE, IDR_SLICE)
        ]

    def _take_sets(self, nals: list[bytes]) -> None:
        """Parameter sets that come with a packet hold from there on."""
        for nal in nals:
            kind = nal[0] & 31
            if kind not in (SPS, PPS):
                continue
            if nal not in self._known:
                where, self._where = self._where, ""  # what they refuse is true of the whole video
                parse = SequenceParameters.parse if kind == SPS else PictureParameters.parse
                self._known[nal] = parse(nal)
                self._where = where
            known, last = self._known[nal], self._sets[-1]
            if last.nals.get((kind, known.id)) != nal:
                new = ParameterSets(
                    {**last.sps}, {**last.pps}, {**last.nals, (kind, known.id): nal}
                )
                if isinstance(known, SequenceParameters):
                    new.sps[known.id] = known
                else:
                    new.pps[known.id] = known
                self._sets.append(new)

    def _headers(self, packet: bytes) -> list[SliceHeader]:
        """Those of the slices in a packet, of one picture."""
        self._where = f"frame {len(self.frames)}: "
        nals = self._nals(packet)
        self._take_sets(nals)
        sets = self._sets[-1]
        slices = []
        for nal in nals:
            kind = nal[0] & 31
            if kind in (SLICE, IDR_SLICE):
                slices.append(SliceHeader.parse(nal, sets.sps, sets.pps))
            elif 2 <= kind <= 4:
                raise ValueError("its slices are in partitions")
        addresses = [header.first_macroblock for header in slices]
        if addresses.count(0) > 1:
            raise ValueError("its packet holds several pictures")
        if addresses != sorted(addresses):
            raise ValueError("its slices are in any order")
        return slices

    def _continue(self, slices: list[SliceHeader]) -> None:
        """Some programs write each slice of a picture as a packet of its own."""
        before = self.frames[-1].slices[-1] if self.frames else None
        header = slices[0]
        if before is None or (
            (before.frame_num, before.poc, before.is_idr, before.ref_idc > 0)
            != (header.frame_num, header.poc, header.is_idr, header.ref_idc > 0)
            or before.first_macroblock >= header.first_macroblock
        ):
            raise ValueError("its first slice is missing")
        self.frames[-1].slices.extend(slices)

    def _frame(self, slices: list[SliceHeader]) -> Frame:
        header = slices[0]
        if not header.is_idr and any(command[0] == _RESTART for command in header.marking or ()):
            raise ValueError("it numbers pictures anew in mid-stream")
        if self.frames:
            first = self.frames[0].slices[0].sps
            if (header.sps.width, header.sps.height) != (first.width, first.height):
                raise ValueError("the size of its pictures changes")
        period = (self.frames[-1].period if self.frames else 0) + header.is_idr
        return Frame(slices, len(self._sets) - 1, period, self._poc(header))

    def _poc(self, header: SliceHeader) -> int:
        """The picture order count of the next frame (8.2.1.1, 8.2.1.3)."""
        if header.sps.poc_type == 0:
            lsb, delta = header.poc
            high, low = (0, 0) if header.is_idr else self._poc_before
            most = 1 << header.sps.poc_bits
            if lsb < low and low - lsb >= most // 2:
                high += most
            elif lsb > low and lsb - low > most // 2:
                high -= most
            if header.ref_idc:
                self._poc_before = high, lsb
            return high + lsb + min(delta, 0)
        turns, before = (0, 0) if header.is_idr else self._poc_before
        turns += header.sps.max_frame_num if before > header.frame_num else 0
        self._poc_before = turns, header.frame_num
        return 2 * (turns + header.frame_num) - (header.ref_idc == 0)

    # ---- which pictures are kept -------------------------------------------------------------

    @cached_property
    def _references(self) -> list[list[Reference]]:
        """The pictures that each frame may be predicted from, in the order of the bitstream."""
        found: list[list[Reference]] = [[]]
        for number in range(len(self.frames)):
            if self.frames[number].slices[0].is_idr:
                found[-1] = []
            found.append(self._after(found[-1], number))
        return found

    def _after(self, kept: list[Reference], number: int) -> list[Reference]:
        """Which references are kept after a frame (8.2.5)."""
        header = self.frames[number].slices[0]
        if not header.ref_idc:
            return kept
        operations = _commands(header)
        if operations is None:
            short = [r for r in kept if r.long is None]
            if short and len(kept) >= max(header.sps.num_ref_frames, 1):
                kept = [r for r in kept if r != short[0]]
            return [*kept, Reference(number, None)]
        current: int | None = None
        for operation in operations:
            command, value = operation[0], operation[-1]
            if command == 4:
                kept = [r for r in kept if r.long is None or r.long < value]
            elif command == _CURRENT_TO_LONG:
                kept, current = [r for r in kept if r.long != value], value
            else:
                target = self._target(kept, header, operation)
                if command == _TO_LONG:
                    kept = [r for r in kept if r.long != value or r.frame == target]
                kept = [r for r in kept if r.frame != target]
                if command == _TO_LONG and target is not None:
                    kept = [*kept, Reference(target, value)]
        return [*kept, Reference(number, current)]

    def _short(self, kept: list[Reference], frame_num: int) -> int | None:
        return next(
            (
                r.frame
                for r in kept
                if r.long is None and self.frames[r.frame].slices[0].frame_num == frame_num
            ),
            None,
        )

    def _target(
        self, kept: list[Reference], header: SliceHeader, operation: Operation
    ) -> int | None:
        """The frame that a command of marking is about, if it is there."""
        if operation[0] == 2:
            return next((r.frame for r in kept if r.long == operation[1]), None)
        return self._short(kept, (header.frame_num - operation[1] - 1) % header.sps.max_frame_num)

    def _kept_commands(self, known: list[Reference], number: int) -> list[Operation] | None:
        """A frame's commands of marking, less those about pictures that the decoder lacks."""
        header = self.frames[number].slices[0]
        operations = _commands(header)
        if operations is None:
            return None
        kept = []
        for operation in operations:
            if (
                operation[0] in (4, _CURRENT_TO_LONG)
                or self._target(known, header, operation) is not None
            ):
                kept.append(operation)
        return kept

    @cached_property
    def _gaps(self) -> list[int]:
        """The frames before which a reference is missing: it was lost, or was never sent."""
        found = []
        before = self.frames[0].slices[0].frame_num
        for number, frame in enumerate(self.frames[1:], start=1):
            header = frame.slices[0]
            if header.is_idr:
                before = 0
            elif header.frame_num != (before + 1) % header.sps.max_frame_num:
                found.append(number)
            before = header.frame_num if header.ref_idc else before
        return found

    def check_whole(self, first: int, stop: int) -> None:
        """Raises CodecError where a picture is missing after the first of some frames."""
        for number in self._gaps:
            if first < number < stop:
                raise CodecError(
                    f"{self.name}: a picture before frame {number} is missing; read direct "
                    "residuals there, or re-encode it (cfer encode)"
                )

    def _check(self, first: int, start: int, stop: int, shown: set[int]) -> None:
        """Raises CodecError where gray pictures are not all that a frame needs of those before."""
        self.check_whole(first, stop)
        for number in sorted(shown):
            for header in self.frames[number].slices:
                if header.kind != B:
                    continue
                # Blocks in direct mode take their vectors from there (8.4.1.2.1).
                taken_from = self.reference_lists(number, header)[1][0]
                if taken_from not in shown and (
                    taken_from is None or self.frame_types[taken_from] != "I"
                ):
                    raise CodecError(
                        f"{self.name}: frame {number} takes motion vectors from before frame "
                        f"{start}; begin at an I-frame"
                    )

    # ---- what is written ---------------------------------------------------------------------

    def _gray_pps(self, sps: SequenceParameters) -> PictureParameters:
        return PictureParameters(self._free_id, sps.id)

    @cached_property
    def _free_id(self) -> int:
        free = set(range(256)).difference(*(sets.pps for sets in self._sets))
        if not free:
            raise CodecError(f"{self.name}: no id of picture parameters is free; re-encode it")
        return min(free)

    def _parameters(self, frame: int, sps: SequenceParameters, *, with_weights: bool) -> bytes:
        """The picture parameters that a frame's slices may refer to, and those of gray slices."""
        sets = self._sets[self.frames[frame].sets].pps.values()
        usable = [pps.written(with_weights) for pps in sets if pps.sps_id == sps.id]
        return b"".join(usable) + self._gray_pps(sps).written(with_weights)

    def _gray(
        self,
        number: int,
        kind: int,
        frame_num: int,
        poc: int,
        marking: list[Operation] | None = None,
    ) -> bytes:
        """A picture without a residual in place of a frame."""
        header = self.frames[number].slices[0]
        return gray_slice(
            header.sps, self._gray_pps(header.sps), kind=kind, ref_idc=header.ref_idc,
            frame_num=frame_num, poc=poc, marking=marking,
        )  # fmt: skip

    def _rewritten(self, number: int, change: Change) -> bytes:
        headers, nals = self.frames[number].slices, self._slices(number)
        if len(headers) != len(nals):
            raise CodecError(f"{self.name}: frame {number} is damaged; cut it out")
        return b"".join(change(h).written(nal) for h, nal in zip(headers, nals, strict=True))


def _on_gray(header: SliceHeader) -> SliceHeader:
    """That of a frame which is no reference, and whose lists name one picture at every index."""
    # The gray picture is number 0, one before this; a whole turn back it is the same.
    turn = header.sps.max_frame_num - 1
    counts = header.num_refs[: len(header.modifications)]
    lists: list[list[Operation]] = [[(0, 0), *[(0, turn)] * (count - 1)] for count in counts]
    alone: dict[str, Any] = {"ref_idc": 0, "frame_num": 1, "poc": (2, 0), "marking": None}
    return replace(header, modifications=lists, **alone, **_PURE)


def _num_reordered(pocs: Sequence[int]) -> int:
    """How many pictures, at most, come before one that is shown earlier."""
    before: list[int] = []
    most = 0
    for poc in pocs:
        most = max(most, len(before) - bisect(before, poc))
        insort(before, poc)
    return min(most, MOST_REFERENCES)


def _commands(header: SliceHeader) -> list[Operation] | None:
    """The commands of marking, those that an IDR picture stands for too (8.2.5.1)."""
    if not header.is_idr:
        return header.marking
    assert header.marking is not None
    is_long = header.marking[0][1]
    return [(4, 1), (_CURRENT_TO_LONG, 0)] if is_long else [(4, 0)]


def with_sets(packet: bytes, record: bytes, extradata: bytes, name: str) -> bytes:
    """A packet after parameter sets that hold from it on, both as the container has them.

    Args:
        extradata: the sets that the video began with.
        name: what the message calls the video.

    Raises:
        CodecError: the NAL units of the two have lengths of different sizes.
    """
    size = _length_size(extradata)
    if size != _length_size(record):
        raise CodecError(
            f"{name}: its packets change their form in mid-stream; re-encode it (cfer encode)"
        )
    if not size:
        return record + packet
    return b"".join(len(nal).to_bytes(size, "big") + nal for nal in _in_avcc(record)) + packet


def is_intra(packet: bytes, extradata: bytes) -> bool:
    """Whether a packet begins with a slice of an I-frame; of a damaged one, maybe."""
    size = _length_size(extradata)
    try:
        nals = _with_lengths(packet, size) if size else _with_codes(packet)
        slices = (nal for nal in nals if nal[0] & 31 in (SLICE, IDR_SLICE))
        return any(is_intra_slice(nal) for nal in itertools.islice(slices, 1))
    except ValueError:
        return True


def _length_size(extradata: bytes) -> int:
    """Bytes of the length before each NAL unit, by an avcC record; 0: start codes (Annex B)."""
    return (extradata[4] & 3) + 1 if extradata[:1] == b"\x01" and extradata[4:] else 0


def _in_avcc(extradata: bytes) -> list[bytes]:
    """The parameter sets of an avcC record (ISO/IEC 14496-15, 5.3.3.1)."""
    nals = []
    at = 5
    for mask in (31, 255):
        count = extradata[at] & mask if at < len(extradata) else 0
        at += 1
        for _ in range(count):
            length = int.from_bytes(extradata[at : at + 2], "big")
            nals.append(extradata[at + 2 : at + 2 + length])
            at += 2 + length
    return [nal for nal in nals if nal]


def _with_lengths(packet: bytes, size: int) -> list[bytes]:
    nals = []
    at = 0
    while at + size < len(packet):
        end = at + size + int.from_bytes(packet[at : at + size], "big")
        if end > len(packet):
            raise ValueError("a slice is cut off")
        if end > at + size:
            nals.append(packet[at + size : end])
        at = end
    return nals


def _with_codes(packet: bytes) -> list[bytes]:
    """The NAL units between start codes (B.1.1), which end with no zero."""
    starts = [match.end() for match in _START.finditer(packet)]
    ends = [*(start - 3 for start in starts[1:]), len(packet)]
    nals = (packet[start:end].rstrip(b"\x00") for start, end in zip(starts, ends, strict=False))
    return [nal for nal in nals if nal]
