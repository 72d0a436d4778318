"""Prove on a file of H.264 that its residuals are exact: what a decoder shows of a frame, less the
residual, must be a prediction from the pictures that the frame refers to.

The prediction is computed here from pixels alone: ITU-T H.264, 8.4.2.2 (6-tap luma at quarter
samples, bilinear chroma at eighths) and 8.4.2.3 (weights), with the vectors that a decoder exports.
Which index of a list a block uses is not exported: one that fits all samples of all three planes
has to be there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from cfer.codec.bitstream import Bitstream
from cfer.codec.decoder import new_decoder, packet_of, planes_of, vectors_of
from cfer.codec.format import GRAY, MACROBLOCK, CodecError
from cfer.codec.h264 import H264
from cfer.codec.h264_syntax import B, SliceHeader

Planes = tuple[np.ndarray, ...]

_EDGE = 8  # samples beyond a picture's edge; farther away, nothing changes
_WHOLE = {"apply_cropping": "0"}  # motion points into the rest of a macroblock, too


@dataclass(frozen=True)
class Proof:
    """What a comparison found.

    Attributes:
        frames: how many P- and B-frames were looked at.
        blocks: how many of their inter blocks have a sample that can be compared: one that was not
            clipped, neither as shown nor as a residual.
        differing: how many of these are not prediction + residual.
        partly: how many were compared in their first 4 × 4 samples alone, since they consist of
            smaller blocks, and FFmpeg exports one vector for 8 × 8.
        intra_fraction: share of the macroblocks that are intra, in [0, 1].
    """

    frames: int
    blocks: int
    differing: int
    partly: int
    intra_fraction: float


class Picture:
    """A reference, at any sub-sample position.

    Args:
        planes: y, u, v, uint8, of whole macroblocks.
    """

    def __init__(self, planes: Planes) -> None:
        self._luma = np.pad(planes[0], _EDGE + 3, mode="edge").astype(np.int32)
        self._chroma = [np.pad(plane, _EDGE, mode="edge").astype(np.int32) for plane in planes[1:]]
        self._positions: dict[tuple[int, int], np.ndarray] = {}

    def luma(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A block whose corner is (x, y) in quarter samples: int32 (height, width)."""
        return _cut(self._between(x & 3, y & 3), x >> 2, y >> 2, width, height)

    def chroma(self, plane: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The same of u (1) or v (2), in eighths of its samples (8.4.2.2.2)."""
        area = _cut(self._chroma[plane - 1], x >> 3, y >> 3, width + 1, height + 1)
        right, down = x & 7, y & 7
        upper, lower = (
            (8 - right) * rows[:, :-1] + right * rows[:, 1:] for rows in (area[:-1], area[1:])
        )
        between: np.ndarray = ((8 - down) * upper + down * lower + 32) >> 6
        return between

    def _between(self, right: int, down: int) -> np.ndarray:
        """All samples at one of the 16 positions (8.4.2.2.1), beyond the edges too."""
        if (right, down) not in self._positions:
            self._positions[right, down] = self._interpolated(right, down)
        return self._positions[right, down]

    def _interpolated(self, right: int, down: int) -> np.ndarray:
        if right % 2 == 0 and down % 2 == 0:
            # Full samples, and half samples b, h and j.
            if not right and not down:
                return self._luma[3:-3, 3:-3]
            if right and down:
                return ((_six_taps(_six_taps(self._luma, 0), 1) + 512) >> 10).clip(0, 255)
            kept = self._luma[3:-3] if right else self._luma[:, 3:-3]
            return ((_six_taps(kept, 1 if right else 0) + 16) >> 5).clip(0, 255)
        # Quarter samples: the mean of the two nearest (table 8-12), some of them a sample further.
        if right % 2 and down % 2:
            pair = [(2, down // 2 * 4), (right // 2 * 4, 2)]  # b or s, h or m
        elif right % 2:
            pair = [(right - 1, down), (right + 1, down)]
        else:
            pair = [(right, down - 1), (right, down + 1)]
        one, other = (_moved(self._between(x % 4, y % 4), x // 4, y // 4) for x, y in pair)
        mean: np.ndarray = (one + other + 1) >> 1
        return mean


def verify(bitstream: Bitstream, frames: int = 24) -> Proof:
    """Compare so many P- and B-frames, evenly chosen; 0: all.

    Raises:
        CodecError: not H.264, a picture that is missing, or a damaged frame.
    """
    codec = bitstream._format
    if not isinstance(codec, H264):
        raise CodecError(
            f"{bitstream.name}: it is MPEG-4 Part 2; --verify is for H.264, and cfer bench codec "
            "measures this"
        )
    inter = (n for n, kind in enumerate(codec.frame_types) if kind != "I")
    numbers = [n for n in inter if n not in codec.orphans]
    if not numbers:
        raise CodecError(f"{bitstream.name}: it has I-frames alone, so there is no residual")
    count = min(frames or len(numbers), len(numbers))
    chosen = {numbers[round(place)] for place in np.linspace(0, len(numbers) - 1, count)}
    counts = np.zeros(3, np.int64)
    intra = []
    for number, shown, vectors, pictures in _with_references(bitstream, codec, chosen):
        residual = _direct(bitstream, codec, number)
        counts += compare(codec, number, shown, residual, vectors, pictures)
        intra.append(bitstream.direct_residual(number).intra_fraction)
    blocks, differing, partly = map(int, counts)
    return Proof(len(intra), blocks, differing, partly, float(np.mean(intra)))


def compare(
    codec: H264,
    number: int,
    shown: Planes,
    residual: Planes,
    vectors: np.ndarray,
    pictures: Mapping[int, Picture],
    *,
    with_weights: bool = True,
) -> np.ndarray:
    """How many blocks of a frame were compared, differ, and were compared in part: int64 (3,).

    Args:
        shown: y, u, v of prediction and residual, uint8, of whole macroblocks.
        residual: the same of the residual, 128 = zero.
        vectors: the frame's, `MOTION_VECTOR_DTYPE`.
        pictures: of the frames that it may refer to, by number; of others nothing is predicted.
        with_weights: False: explicit weights were left out.
    """
    wanted = [s.astype(np.int32) - r + GRAY for s, r in zip(shown, residual, strict=True)]
    valid = [
        (s > 0) & (s < 255) & (r > 0) & (r < 255) for s, r in zip(shown, residual, strict=True)
    ]
    headers = codec.frames[number].slices
    addresses = [header.first_macroblock for header in headers]
    predictors = [_Predictor(codec, number, header, pictures, with_weights) for header in headers]
    blocks: dict[tuple[int, int, int, int], list[tuple[int, int] | None]] = {}
    for vector in vectors:
        width, height = int(vector["w"]), int(vector["h"])
        x, y = int(vector["dst_x"]) - width // 2, int(vector["dst_y"]) - height // 2
        pair = blocks.setdefault((x, y, width, height), [None, None])
        pair[int(vector["source"] > 0)] = int(vector["motion_x"]), int(vector["motion_y"])
    counts = np.zeros(3, np.int64)
    columns = headers[0].sps.columns
    for (x, y, width, height), pair in blocks.items():
        address = y // MACROBLOCK * columns + x // MACROBLOCK
        predictor = predictors[np.searchsorted(addresses, address, side="right") - 1]
        places = _places(x, y, width, height)
        if not any(known[place].any() for known, place in zip(valid, places, strict=True)):
            continue
        counts[0] += 1
        sides = [(width, height), (4, 4)] if (width, height) == (8, 8) else [(width, height)]
        fitting = (
            side
            for side in sides
            if any(
                _fits(predicted, wanted, valid, _places(x, y, *side))
                for predicted in predictor.predictions(x, y, *side, pair)
            )
        )
        largest = next(fitting, None)
        if largest != (width, height):
            counts[2 if largest else 1] += 1
    return counts


def _fits(
    predicted: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    valid: Sequence[np.ndarray],
    places: Sequence[tuple[slice, slice]],
) -> bool:
    return all(
        ((plane == want[place]) | ~known[place]).all()
        for plane, want, known, place in zip(predicted, wanted, valid, places, strict=True)
    )


class _Predictor:
    """Predictions of a slice's blocks: of each index that a block may use, or pair of them."""

    def __init__(
        self,
        codec: H264,
        number: int,
        header: SliceHeader,
        pictures: Mapping[int, Picture],
        with_weights: bool,
    ) -> None:
        self._pictures = pictures
        self._weights = header.weights if with_weights else None
        lists = codec.reference_lists(number, header)
        self._indices: list[list[tuple[int, int]]] = []
        for found in lists:
            known = [(i, n) for i, n in enumerate(found) if n is not None and n in pictures]
            if self._weights is None:  # an index that names a picture again predicts the same
                known = [(i, n) for i, n in known if n not in found[:i]]
            self._indices.append(known)
        self._is_implicit = header.kind == B and header.pps.weighted_bipred_idc == 2
        self._codec, self._number = codec, number
        self._long = {r.frame for r in codec._references[number] if r.long is not None}

    def predictions(
        self, x: int, y: int, width: int, height: int, pair: list[tuple[int, int] | None]
    ) -> Iterator[list[np.ndarray]]:
        """y, u and v of each prediction that there may be, int32."""
        found: list[list[tuple[int, int, list[np.ndarray]]]] = []
        for indices, vector in zip(self._indices, pair, strict=False):
            found.append([])
            for index, number in indices if vector else []:
                assert vector is not None
                picture = self._pictures[number]
                at = 4 * x + vector[0], 4 * y + vector[1]
                planes = [picture.luma(*at, width, height)]
                planes += [picture.chroma(n, *at, width // 2, height // 2) for n in (1, 2)]
                found[-1].append((index, number, planes))
        if len(found) == 2:
            for one, other in product(*found):
                yield self._from_two(one, other)
        # Of a macroblock's blocks FFmpeg exports a vector of (0, 0) for a list that is not used.
        for which, of_list in enumerate(found):
            for index, _, planes in of_list:
                yield self._from_one(which, index, planes)

    def _from_one(self, which: int, index: int, planes: list[np.ndarray]) -> list[np.ndarray]:
        if self._weights is None:
            return planes
        weighted = []
        for number, plane in enumerate(planes):  # (8-270)
            shift = self._weights.shifts[number > 0]
            weight, offset = self._weights.lists[which][index][number]
            rounding = 1 << shift >> 1
            weighted.append((((plane * weight + rounding) >> shift) + offset).clip(0, 255))
        return weighted

    def _from_two(
        self,
        one: tuple[int, int, list[np.ndarray]],
        other: tuple[int, int, list[np.ndarray]],
    ) -> list[np.ndarray]:
        if self._weights is None:
            first, second = self._implicit(one[1], other[1]) if self._is_implicit else (32, 32)
            return [
                ((p * first + q * second + 32) >> 6).clip(0, 255)
                for p, q in zip(one[2], other[2], strict=True)
            ]
        weighted = []
        for number, (p, q) in enumerate(zip(one[2], other[2], strict=True)):  # (8-271)
            shift = self._weights.shifts[number > 0]
            (w0, o0), (w1, o1) = (
                self._weights.lists[which][given[0]][number]
                for which, given in enumerate((one, other))
            )
            mean = (p * w0 + q * w1 + (1 << shift)) >> (shift + 1)
            weighted.append((mean + ((o0 + o1 + 1) >> 1)).clip(0, 255))
        return weighted

    def _implicit(self, earlier: int, later: int) -> tuple[int, int]:
        """The weights, of 64, that follow from how far away two pictures are (8.4.2.3.1)."""
        pocs = [self._codec.frames[n].poc for n in (self._number, earlier, later)]
        apart = max(min(pocs[2] - pocs[1], 127), -128)
        if not apart or self._long & {earlier, later}:
            return 32, 32
        away = max(min(pocs[0] - pocs[1], 127), -128)
        factor = int((16384 + abs(apart) // 2) / apart)
        scaled = max(min((away * factor + 32) >> 6, 1023), -1024) >> 2
        return (64 - scaled, scaled) if -64 <= scaled <= 128 else (32, 32)


def _with_references(
    bitstream: Bitstream, codec: H264, chosen: set[int]
) -> Iterator[tuple[int, Planes, np.ndarray, dict[int, Picture]]]:
    """Chosen frames without their own loop filter: number, planes, vectors, and what they refer
    to, as it is shown."""
    starts = [n for n, frame in enumerate(codec.frames) if n == 0 or frame.slices[0].is_idr]
    for start, stop in zip(starts, [*starts[1:], len(codec.frames)], strict=True):
        wanted = [n for n in chosen if start <= n < stop]
        if not wanted:
            continue
        codec.check_whole(start, max(wanted) + 1)
        sent = codec.with_references(range(start, max(wanted) + 1), chosen)
        decoder = new_decoder(codec.decoder, b"", {**codec.decoder_options, **_WHOLE})
        frames = bitstream._shown(decoder, [(data, number) for data, number, _ in sent])
        pictures: dict[int, Planes] = {}
        for frame, (_, number, is_unfiltered) in zip(frames, sent, strict=True):
            if is_unfiltered:
                known = {n: Picture(picture) for n, picture in pictures.items()}
                yield number, planes_of(frame), vectors_of(frame), known
            else:
                pictures[number] = planes_of(frame)
                pictures = {n: pictures[n] for n in codec.kept(number) if n in pictures}


def _direct(bitstream: Bitstream, codec: H264, number: int) -> Planes:
    """A direct residual, of whole macroblocks."""
    gray, packet = codec.direct(number)
    decoder = new_decoder(codec.decoder, b"", {**codec.decoder_options, **_WHOLE})
    for data in gray:
        decoder.decode(packet_of(data))
    (frame,) = decoder.decode(packet_of(packet))
    return planes_of(frame)


def _places(x: int, y: int, width: int, height: int) -> list[tuple[slice, slice]]:
    """Where a block lies in y, u and v."""
    luma = slice(y, y + height), slice(x, x + width)
    chroma = slice(y // 2, (y + height) // 2), slice(x // 2, (x + width) // 2)
    return [luma, chroma, chroma]


def _cut(plane: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """A block of a plane that goes on for ever, as at its edges; it is padded by `_EDGE`."""
    rows, columns = plane.shape
    down = np.arange(y + _EDGE, y + _EDGE + height).clip(0, rows - 1)
    across = np.arange(x + _EDGE, x + _EDGE + width).clip(0, columns - 1)
    if down[0] + height == down[-1] + 1 and across[0] + width == across[-1] + 1:
        return plane[down[0] : down[0] + height, across[0] : across[0] + width]
    return plane[np.ix_(down, across)]


def _six_taps(plane: np.ndarray, axis: int) -> np.ndarray:
    """1, −5, 20, 20, −5, 1 along an axis: what is half way to the next sample, of all but the three
    at each end."""
    taps = (1, -5, 20, 20, -5, 1)
    size = plane.shape[axis] - 6
    parts = (
        tap * plane.take(np.arange(start, start + size), axis) for start, tap in enumerate(taps, 1)
    )
    return sum(parts, np.zeros((), np.int32))


def _moved(plane: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """So many samples further to the right and down; at the end, as at the edge."""
    moved: np.ndarray = np.pad(plane, ((0, rows), (0, columns)), mode="edge")[rows:, columns:]
    return moved
