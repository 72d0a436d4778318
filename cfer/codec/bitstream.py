"""Read the residuals of a bitstream with an unpatched decoder.

The formats are H.264 (ITU-T H.264) and MPEG-4 Part 2 (ISO/IEC 14496-2), through PyAV's stock
decoders. A decoder computes `clip(prediction(references, motion) + residual)` for every block of a
P- or B-frame, and shows only the sum. Give it flat mid-gray pictures as the references: any
motion-compensated prediction from a constant is that constant, at any sub-pel position, so the
decoder shows `clip(128 + residual)`, the transmitted residual itself. How the gray picture is
written for a stream's own headers is up to its format: `mpeg4.py`, `h264.py`.

    bitstream = Bitstream.open("phone.mp4")  # or encode(pictures, CodecSettings(gop_size=12), 25)
    bitstream.direct_residual(7)             # frame 7 alone: one packet is decoded
    bitstream.accumulated_residuals(0)       # the first GOP's frames, each since its I-frame

`cfer residuals --verify VIDEO` proves it on a file of your own; `cfer bench codec` measures speed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from cfer.codec.containers import CutOff, open_input, packets, video_stream, whole_packets
from cfer.codec.decoder import (
    MOTION_VECTOR_DTYPE,
    new_decoder,
    packet_of,
    planes_of,
    vectors_of,
)
from cfer.codec.format import GRAY, MACROBLOCK, CodecError, Format, Sent
from cfer.codec.h264 import H264, is_intra, with_sets
from cfer.codec.mpeg4 import Mpeg4

FORMATS: dict[str, type[Mpeg4 | H264]] = {"mpeg4": Mpeg4, "h264": H264}
BLOCK = 4  # samples along a side of what is masked or not
BLOCK_OF_REFERENCE = 8  # samples along a side of the smallest block that has references of its own


@dataclass(frozen=True)
class Residual:
    """The residual of one P- or B-frame, as the bitstream carries it.

    Attributes:
        frame: frame number in the bitstream, from 0.
        y: luma, read-only uint8 (H, W), 128 = zero: `clip(128 + residual, 0, 255)`.
        u, v: chroma, read-only uint8 (ceil(H/2), ceil(W/2)), 128 = zero.
        motion: its vectors, or the decoded frame that has them; see `motion_vectors`.
        is_coded: False where the bitstream only says that the picture stays (an N-VOP).
        masked: where samples were set to 128 since they hold appearance, bool (rows, columns) of
            4 × 4 blocks of luma, to the end of the last macroblocks; None: nobody asked for it.
    """

    frame: int
    y: np.ndarray
    u: np.ndarray
    v: np.ndarray
    motion: np.ndarray | av.VideoFrame = field(repr=False)
    is_coded: bool = True
    masked: np.ndarray | None = field(default=None, repr=False)

    @property
    def motion_vectors(self) -> np.ndarray:
        """The frame's vectors, `MOTION_VECTOR_DTYPE` (M,), one for each inter block and list:
        `dst_x` and `dst_y` are the block's center and `w` and `h` its size, in samples of luma; its
        reference is `motion_x / motion_scale` and `motion_y / motion_scale` samples away from it,
        in a frame shown earlier (`source` −1) or later (1).

        Of partitions smaller than 8 × 8, FFmpeg exports one vector for each 8 × 8 block; where a
        B-frame's macroblock uses both lists, each of its blocks has two vectors, one of them (0, 0)
        if it is not used. A direct residual's vectors of B-frames may be wrong, since direct mode
        takes vectors from another frame.
        """
        if isinstance(self.motion, np.ndarray):
            return self.motion
        return vectors_of(self.motion)

    @property
    def intra(self) -> np.ndarray:
        """Which macroblocks are intra, bool (ceil(H/16), ceil(W/16)): those without a vector.

        An intra block carries appearance, not a residual.
        """
        height, width = self.y.shape
        is_intra = np.ones((-(-height // MACROBLOCK), -(-width // MACROBLOCK)), bool)
        vectors = self.motion_vectors
        is_intra[vectors["dst_y"] // MACROBLOCK, vectors["dst_x"] // MACROBLOCK] = False
        return is_intra & self.is_coded

    @property
    def intra_fraction(self) -> float:
        """Share of the frame's macroblocks that are intra, in [0, 1]."""
        return float(self.intra.mean())

    @property
    def saturated_fraction(self) -> float:
        """Share of the samples of y, u and v at 0 or 255, in [0, 1].

        There the transmitted residual may be larger than 8 bits can hold.
        """
        planes = (self.y, self.u, self.v)
        # Unsigned wrap-around turns 255 and 0 into 0 and 1: one comparison finds both.
        saturated = sum(int(np.count_nonzero(plane + np.uint8(1) < 2)) for plane in planes)
        return saturated / sum(plane.size for plane in planes)

    def packed(self) -> np.ndarray:
        """Planar YUV 4:2:0 as one picture, uint8 (3H/2, W): y's rows, then u's and v's samples.

        Raises:
            CodecError: width or height is odd.
        """
        height, width = self.y.shape
        if width % 2 or height % 2:
            raise CodecError(f"{width}×{height}: planar 4:2:0 in one picture needs even sides")
        chroma = np.concatenate([self.u.ravel(), self.v.ravel()])
        return np.concatenate([self.y, chroma.reshape(height // 2, width)])

    def __repr__(self) -> str:
        height, width = self.y.shape
        return (
            f"Residual(frame={self.frame}, {width}×{height}, vectors={len(self.motion_vectors)}, "
            f"intra={self.intra_fraction:.4f})"
        )


class Bitstream:
    """A video in H.264, or in MPEG-4 Part 2 without B-frames, read packet by packet.

    Frame numbers count from 0 in the order of the bitstream: a frame has a higher number than those
    that it is predicted from, and a GOP is a range of numbers. With B-frames this is not the order
    in which frames are shown; `times` and `display_order` say that. Not safe for use from several
    threads at once.

    Args:
        data: the bytes of a file: MP4, MOV, Matroska, AVI, MPEG-TS, or H.264 with start codes.
        name: what messages call it.
        codecs: which of `FORMATS` are read.

    Attributes:
        codec: "H.264" or "MPEG-4 Part 2".
        packets: the bytes of each frame.
        width, height: in samples of luma.
        fps: frames per second, on average.
        frame_types: one letter a frame: I, P, B, or N (not coded: the picture before it, again).
        gops: the frame numbers of each GOP; the first of each is its I-frame.

    Raises:
        CodecError: another codec, a coding tool whose residuals cannot be read exactly, or a file
            that is damaged or cut off.
    """

    def __init__(self, data: bytes, name: str, codecs: Sequence[str] = tuple(FORMATS)) -> None:
        try:
            file = io.BytesIO(data)
            with open_input(file) as container:
                stream, codec = _readable_stream(container, name, codecs)
                extradata = bytes(stream.codec_context.extradata or b"")
                fps = Fraction(stream.average_rate or stream.base_rate or 25)
                is_avi = container.format.name == "avi"
                read = (codec == "mpeg4" and _packets_by_index(data, container, stream)) or [
                    _Read(
                        packet_data(packet, extradata, name),
                        packet.dts if packet.pts is None or is_avi else packet.pts,
                        packet.is_discard,
                    )
                    for packet in whole_packets(container, stream, file)
                    if packet.size
                ]
                time_base, duration = stream.time_base, stream.duration
        except (av.error.FFmpegError, CutOff) as error:
            raise CodecError(f"{name}: not a readable video ({error})") from error
        if not read:
            raise CodecError(f"{name}: there is no frame in it")
        frames = FORMATS[codec](extradata, [packet.data for packet in read], name)
        stamps = [read[n].stamp for n in frames.sources]
        if is_avi:  # it says when each frame is decoded: at as many times one is shown
            stamps = [stamps[place] for place in np.argsort(frames.display_order)]
            duration = None  # FFmpeg's guess
        self._take(data, name, frames, fps, stamps, time_base, duration)
        self._hidden |= {n for n, source in enumerate(frames.sources) if read[source].is_hidden}

    def _take(
        self,
        data: bytes,
        name: str,
        frames: Mpeg4 | H264,
        fps: Fraction,
        stamps: Sequence[int | None],
        time_base: Fraction | None,
        duration: int | None,
    ) -> None:
        self.data, self.name, self.fps = data, name, fps
        self._time_base, self._duration = time_base, duration
        self.codec = _NAMES[frames.decoder]
        self.width, self.height = frames.width, frames.height
        self._take_frames(frames, stamps)
        self._decoder = self._new_decoder()
        # It has the gray picture of `_held`, and waits for no picture that is shown earlier.
        self._gray_decoder = self._new_decoder()
        self._held: list[bytes] = []

    def _take_frames(self, frames: Mpeg4 | H264, stamps: Sequence[int | None]) -> None:
        self._format: Format = frames
        self._stamps = stamps
        self._hidden = set(frames.orphans)
        self.packets, self.frame_types = frames.packets, frames.frame_types
        if self.frame_types[0] != "I":
            raise CodecError(f"{self.name}: its first frame is no I-frame; cut it at an I-frame")
        starts = [n for n, kind in enumerate(self.frame_types) if kind == "I"]
        ends = [*starts[1:], len(self.packets)]
        self.gops = [range(start, end) for start, end in zip(starts, ends, strict=True)]

    @classmethod
    def open(cls, path: str | Path, codecs: Sequence[str] = tuple(FORMATS)) -> Bitstream:
        """Read a file; raises `CodecError` as the class does, or where the file is not readable."""
        try:
            with open(path, "rb") as file:
                # A film in another codec may be larger than the memory: look before reading.
                with open_input(file) as container:
                    _readable_stream(container, str(path), codecs)
                file.seek(0)
                return cls(file.read(), str(path), codecs)
        except av.error.FFmpegError as error:
            raise CodecError(f"{path}: not a readable video ({error})") from error
        except OSError as error:
            raise CodecError(f"{path}: cannot be read ({error.strerror})") from error

    @classmethod
    def open_gop(
        cls,
        path: str | Path,
        gop: int,
        most_frames: int,
        codecs: Sequence[str] = tuple(FORMATS),
    ) -> tuple[Bitstream, int]:
        """One GOP of a file, however long the file is: of H.264 a bitstream of its own, from where
        decoding can begin to the GOP's end, and at the most so many of its frames. A file in MPEG-4
        Part 2 is read as a whole.

        Returns:
            the bitstream, and the GOP's number in it; if the file ends earlier, the bitstream of
            the last GOPs, and a number that it lacks.

        Raises:
            CodecError: as the class does, of what is read.
        """
        name = str(path)
        try:
            with open(path, "rb") as file, open_input(file) as container:
                stream, codec = _readable_stream(container, name, codecs)
                if codec == "mpeg4":
                    return cls.open(path, codecs), gop
                fps = Fraction(stream.average_rate or stream.base_rate or 25)
                frames, number = _frames_of_gop(container, stream, name, gop, most_frames)
        except av.error.FFmpegError as error:
            raise CodecError(f"{path}: not a readable video ({error})") from error
        except OSError as error:
            raise CodecError(f"{path}: cannot be read ({error.strerror})") from error
        bitstream = cls.__new__(cls)
        data, stamps = frames.annex_b(range(len(frames.packets))), [None] * len(frames.packets)
        bitstream._take(data, name, frames, fps, stamps, None, None)
        return bitstream, number

    def save(self, path: str | Path) -> None:
        """Write the file as it was read or encoded (MP4 if `encode` made it)."""
        Path(path).write_bytes(self.data)

    def __repr__(self) -> str:
        return (
            f"Bitstream({self.name!r}, {self.width}×{self.height}, {len(self.packets)} frames, "
            f"{len(self.gops)} GOPs, {sum(map(len, self.packets))} bytes)"
        )

    @property
    def display_order(self) -> Sequence[int]:
        """The numbers of the frames, in the order in which they are shown."""
        return self._format.display_order

    @cached_property
    def times(self) -> list[float]:
        """When each frame is shown and, one value more, when the last one ends: seconds since the
        first one, by the container's time stamps, or by `fps` where it lacks some.

        Frames that no player shows count from there, too, so that those before it have a negative
        time: what an edit list leaves out of an MP4, and what is predicted from before the file.
        """
        count, order = len(self.packets), self.display_order
        shown = [place for place, n in enumerate(order) if n not in self._hidden] or range(count)
        first, last = shown[0], shown[-1]
        known = [stamp for n in order if (stamp := self._stamps[n]) is not None]
        base = self._time_base
        times = [0.0] * (count + 1)
        if base is None or len(known) < count or known != sorted(set(known)):
            for place, number in enumerate(order):
                times[number] = float((place - first) / self.fps)
            times[count] = float((last + 1 - first) / self.fps)
            return times
        end = known[first] + (self._duration or 0)
        if end <= known[last] or last + 1 < count:
            end = known[last] + round(1 / (self.fps * base))
        for stamp, number in zip([*known, end], [*order, count], strict=True):
            times[number] = float((stamp - known[first]) * base)
        return times

    @property
    def shown_times(self) -> list[float]:
        """The times of the frames that a player shows, in that order, and of the last one's end."""
        *times, end = self.times
        return [*(times[n] for n in self.display_order if n not in self._hidden), end]

    def pictures(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Decode everything, also what no player shows: (y, u, v) of each frame, read-only uint8,
        as in `Residual`, in the order of their numbers."""
        return (picture for _, picture in self._pictures(range(len(self.packets))))

    def gop_pictures(self, gop: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The pictures of one GOP, as `pictures`. Of H.264, all is decoded since the IDR picture
        before, as far back as references may be."""
        return (picture for _, picture in self._pictures(self.gops[gop]))

    def gop_pictures_without_b(
        self, gop: int
    ) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """As `gop_pictures`, each with its frame's number, without the B-frames that no other is
        predicted from: these are not decoded."""
        return self._pictures(self.gops[gop], skip_b=True)

    def _pictures(
        self, numbers: range, skip_b: bool = False
    ) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        skipped = {n for n in numbers if skip_b and self._is_idle_b(n)}
        sent = [one for one in self._format.whole(numbers) if one[1] not in skipped]
        # A decoder of its own, since between two pictures another may be asked for.
        frames = self._shown(self._new_decoder(), sent)
        for number in numbers:
            if number in skipped:
                continue
            if self.frame_types[number] != "N":
                picture = planes_of(next(frames))
            yield number, picture

    def _is_idle_b(self, frame: int) -> bool:
        return self.frame_types[frame] == "B" and not self.is_reference(frame)

    def i_frames(self) -> list[np.ndarray]:
        """The I-frame of every GOP as RGB, uint8 (H, W, 3)."""
        return [self.i_frame(number) for number in range(len(self.gops))]

    def i_frame(self, gop: int) -> np.ndarray:
        """The I-frame of one GOP as RGB, uint8 (H, W, 3)."""
        number = self.gops[gop][0]
        (frame,) = self._decode([(self._format.alone(number), number)])
        # By default a conversion starts as many threads as there are cores, for each picture.
        return frame.to_ndarray(format="rgb24", threads=1)

    def direct_residual(self, frame: int, *, mask_intra: bool = False) -> Residual:
        """What the bitstream transmits for one P- or B-frame; that frame's packet alone is decoded.

        Args:
            mask_intra: set the samples of intra blocks to 128.

        Raises:
            ValueError: the frame is not a P- or B-frame of this bitstream.
        """
        if not 0 <= frame < len(self.packets) or self.frame_types[frame] == "I":
            raise ValueError(f"frame {frame} is not one of the P-frames of {self!r}")
        if self.frame_types[frame] == "N":
            residual = self._zero_residual(frame)
        else:
            decoded = self._decode_on_gray(frame)
            residual = Residual(frame, *planes_of(decoded), decoded)
        return masked(residual, _in_blocks(residual.intra)) if mask_intra else residual

    def accumulated_residuals(self, gop: int, *, mask_intra: bool = False) -> list[Residual]:
        """Every frame's change since the I-frame of its GOP, less what motion explains.

        Gray pictures stand in for the I-frame and all before it, and the frames are decoded on top
        of each other: CoViAR's back-traced residual (Wu et al., "Compressed Video Action
        Recognition", CVPR 2018), at the decoder's own sub-pel accuracy. The last P-frame's residual
        holds the change of the whole GOP. Of H.264 the loop filter and explicit weights are left
        out, as in a direct residual; frames that are shown before the I-frame (of an open GOP) are
        not among them.

        Args:
            mask_intra: set to 128 the samples of intra blocks, and of all that is predicted from
                such samples. FFmpeg does not say which index of a list a block uses: it counts as
                predicted from all of them.
        """
        return list(self._accumulated(self.gops[gop][0], mask_intra, self._decoder))

    def iter_accumulated_residuals(
        self, gop: int, *, mask_intra: bool = False
    ) -> Iterator[Residual]:
        """As `accumulated_residuals`, one by one, so that a long GOP takes little memory."""
        return self.residuals_since(self.gops[gop][0], mask_intra=mask_intra)

    def residuals_since(self, start: int, *, mask_intra: bool = False) -> Iterator[Residual]:
        """As `accumulated_residuals`, since any I- or P-frame, up to the next I-frame.

        Raises:
            ValueError: the frame is not an I- or P-frame of this bitstream.
            CodecError: the residuals would not be exact, which the message explains.
        """
        if not 0 <= start < len(self.packets) or self.frame_types[start] == "B":
            raise ValueError(f"frame {start} is not one of the I- and P-frames of {self!r}")
        # A decoder of its own, since between two residuals another may be asked for.
        return self._accumulated(start, mask_intra, self._new_decoder())

    def is_reference(self, frame: int) -> bool:
        """Whether other frames may be predicted from this one."""
        return frame in self._format.kept(frame)

    def reference_frames(self, frame: int) -> np.ndarray:
        """From which frames each block of a P- or B-frame of H.264 is predicted: int32 (2,
        ceil(H/8), ceil(W/8)), for each 8 × 8 block the frame's number in list 0 (of a B-frame
        mostly one shown earlier) and in list 1 (one shown later); −1: none.

        No decoder exports this. So the frame is decoded once more, and each index adds an offset of
        its own to the gray that it stands for. In temporal direct mode a block takes its reference
        from another frame, which is gray: there it may be wrong, as its vector. Where all samples
        of U or V are as large as can be, nothing can be added, and it is −1 too.

        Raises:
            ValueError: the frame is not a P- or B-frame of this bitstream.
            CodecError: not H.264, a picture that is missing before it, or a damaged frame.
        """
        if not isinstance(self._format, H264):
            raise CodecError(f"{self.name}: references are read from H.264 alone")
        residual = self.direct_residual(frame)
        (decoded,) = self._decode(self._format.on_offsets(frame))
        shape = -(-self.height // BLOCK_OF_REFERENCE), -(-self.width // BLOCK_OF_REFERENCE)
        added = np.zeros((2, *shape), np.int32)
        for plane, shown, sent in zip(
            added, planes_of(decoded)[1:], (residual.u, residual.v), strict=True
        ):
            # A sum that was clipped is too small: one sample of a block that was not is enough.
            side = BLOCK_OF_REFERENCE // 2
            padded = np.zeros((shape[0] * side, shape[1] * side), np.int32)
            padded[: sent.shape[0], : sent.shape[1]] = np.where(
                shown < 255, shown.astype(np.int32) - sent, 0
            )
            plane[:] = padded.reshape(shape[0], side, shape[1], side).max((1, 3))
        indices = np.where((added > 0).all(0), added, added // 2) - 1
        indices[added <= 0] = -1
        per_macroblock = MACROBLOCK // BLOCK_OF_REFERENCE
        intra = residual.intra.repeat(per_macroblock, 0).repeat(per_macroblock, 1)
        indices[:, intra[: shape[0], : shape[1]]] = -1
        return self._format.frames_of_indices(frame, indices)

    def _accumulated(
        self, start: int, mask_intra: bool, decoder: av.VideoCodecContext
    ) -> Iterator[Residual]:
        sent = self._format.accumulated(start)
        frames = self._shown(decoder, sent)
        asked = {number for _, number in sent}
        numbers = [
            n for n in self._format.window(start) if n in asked or self.frame_types[n] == "N"
        ]
        before: Residual | None = None
        appearance: dict[int, np.ndarray] = {}
        for number in numbers:
            if self.frame_types[number] != "N":
                decoded = next(frames)
                if decoded.is_corrupt:
                    raise CodecError(f"{self.name}: frame {number} is damaged; cut it out")
                residual = Residual(number, *planes_of(decoded), decoded)
            else:
                residual = self._zero_residual(number)
                if before is not None:
                    residual = replace(residual, y=before.y, u=before.u, v=before.v)
            if mask_intra:
                lists = self._format.references(number)
                held = _appearance(
                    residual, [[appearance[n] for n in known if n in appearance] for known in lists]
                )
                kept = {n: appearance[n] for n in self._format.kept(number) if n in appearance}
                appearance = {**kept, number: held}
                yield masked(residual, held)
            else:
                yield residual
            before = residual

    def _new_decoder(self) -> av.VideoCodecContext:
        codec = self._format
        return new_decoder(codec.decoder, codec.header, codec.decoder_options)

    def _decode_on_gray(self, frame: int) -> av.VideoFrame:
        gray, packet = self._format.direct(frame)
        if not self._format.keeps_gray:
            (decoded,) = self._decode([*((data, None) for data in gray), (packet, frame)])
            return decoded
        decoder, is_held = self._gray_decoder, self._held is gray
        self._held = []
        try:
            if not is_held:
                decoder.flush_buffers()
                for data in gray:
                    decoder.decode(packet_of(data))
            frames = decoder.decode(packet_of(packet, frame))
        except av.error.FFmpegError as error:
            raise CodecError(f"{self.name}: a damaged frame ({error}); cut it out") from error
        if [decoded.pts for decoded in frames] != [frame] or frames[0].is_corrupt:
            raise CodecError(f"{self.name}: frame {frame} is damaged; cut it out")
        self._held = gray
        return frames[0]

    def _decode(self, sent: Sequence[Sent]) -> list[av.VideoFrame]:
        return list(self._shown(self._decoder, sent))

    def _shown(
        self, decoder: av.VideoCodecContext, sent: Sequence[Sent]
    ) -> Iterator[av.VideoFrame]:
        """The frames that are asked for, in the order of the bitstream, from a decoder that need
        not know anything before."""
        waiting: dict[int, av.VideoFrame] = {}
        asked = [place for place, (_, number) in enumerate(sent) if number is not None]
        count = given = 0
        decoder.flush_buffers()
        try:
            for place in range(len(sent) + 1):
                if place == len(sent) and count == len(sent):
                    break
                packet = packet_of(sent[place][0], place) if place < len(sent) else None
                for frame in decoder.decode(packet):
                    count += 1
                    if frame.pts is not None:
                        waiting[frame.pts] = frame
                for shown in [n for n in waiting if n < len(sent) and sent[n][1] is None]:
                    del waiting[shown]
                while given < len(asked) and asked[given] in waiting:
                    given += 1
                    yield waiting.pop(asked[given - 1])
        except av.error.FFmpegError as error:
            raise CodecError(f"{self.name}: a damaged frame ({error}); cut it out") from error
        finally:
            decoder.flush_buffers()
        if count != len(sent) or given != len(asked):
            raise CodecError(
                f"{self.name}: {len(sent)} frames went into the decoder and {count} came out; the "
                "file is damaged"
            )

    def _zero_residual(self, number: int) -> Residual:
        chroma = (-(-self.height // 2), -(-self.width // 2))
        return Residual(
            frame=number,
            y=np.full((self.height, self.width), GRAY, np.uint8),
            u=np.full(chroma, GRAY, np.uint8),
            v=np.full(chroma, GRAY, np.uint8),
            motion=np.zeros(0, MOTION_VECTOR_DTYPE),
            is_coded=False,
        )


class GrowingBitstream(Bitstream):
    """One in H.264 that comes packet by packet; there is no file of it, and so nothing to `save`.

    Args:
        extradata: parameter sets, as the container has them.
        packets: those that are there, from an I-frame on, each with its time stamp.
        name: what messages call it.
        fps: frames per second, on average.
        time_base: of the time stamps.
        start_seconds: when its first frame is shown; `times` go on from there.

    Raises:
        CodecError: as `Bitstream`, also when more packets are given.
    """

    def __init__(
        self,
        extradata: bytes,
        packets: Sequence[tuple[bytes, int | None]],
        name: str,
        fps: Fraction,
        time_base: Fraction | None,
        start_seconds: float = 0.0,
    ) -> None:
        self._extradata, self._read, self._start = extradata, list(packets), start_seconds
        frames = H264(extradata, [packet for packet, _ in packets], name)
        self._take(b"", name, frames, fps, self._stamps_of(frames), time_base, None)

    def extend(self, packets: Sequence[tuple[bytes, int | None]]) -> None:
        """Packets that have come since; frames that are there keep their numbers."""
        self._read += packets
        # Headers alone are read, of 30,000 frames and more in a second.
        frames = H264(self._extradata, [packet for packet, _ in self._read], self.name)
        self._take_frames(frames, self._stamps_of(frames))
        self.__dict__.pop("times", None)

    @cached_property
    def times(self) -> list[float]:
        times = super().times
        return [seconds - times[0] + self._start for seconds in times]

    def _stamps_of(self, frames: H264) -> list[int | None]:
        return [self._read[n][1] for n in frames.sources]


def packet_data(packet: Packet, extradata: bytes, name: str) -> bytes:
    """The bytes of a packet of H.264, after new parameter sets where its container has some for it.

    Args:
        extradata: those that the video began with, as its container has them.
        name: what messages call the video.

    Raises:
        CodecError: as `with_sets`.
    """
    if not packet.has_sidedata("new_extradata"):
        return bytes(packet)
    record = bytes(packet.get_sidedata("new_extradata"))
    return with_sets(bytes(packet), record, extradata, name)


class _Read(NamedTuple):
    """A packet of a file; `is_hidden`: an edit list leaves it out."""

    data: bytes
    stamp: int | None
    is_hidden: bool = False


@dataclass(frozen=True)
class Gop:
    """A group of pictures; each property decodes the packets that it needs, and no others.

    Attributes:
        bitstream: the video.
        number: the GOP's number in it, from 0.
    """

    bitstream: Bitstream
    number: int

    @property
    def frames(self) -> range:
        """Frame numbers; the first is the I-frame's."""
        return self.bitstream.gops[self.number]

    @property
    def i_frame(self) -> np.ndarray:
        """RGB, uint8 (H, W, 3)."""
        return self.bitstream.i_frame(self.number)

    @property
    def direct_residuals(self) -> list[Residual]:
        """`Bitstream.direct_residual` of each frame but the I-frame."""
        return [self.bitstream.direct_residual(frame) for frame in self.frames[1:]]

    @property
    def accumulated_residuals(self) -> list[Residual]:
        """`Bitstream.accumulated_residuals` of this GOP."""
        return self.bitstream.accumulated_residuals(self.number)


def read_gops(path: str | Path) -> list[Gop]:
    """The GOPs of a video in H.264 or MPEG-4 Part 2.

    Raises:
        CodecError: see `Bitstream`.
    """
    bitstream = Bitstream.open(path)
    return [Gop(bitstream, number) for number in range(len(bitstream.gops))]


def residuals(
    path: str | Path, kind: str = "accumulated", *, mask_intra: bool = False
) -> Iterator[Residual]:
    """The residual of every P- and B-frame, in the order of the bitstream.

    Args:
        path: a video in H.264 or MPEG-4 Part 2.
        kind: "accumulated" (see `Bitstream.accumulated_residuals`) or "direct".
        mask_intra: set samples that hold appearance to 128.

    Raises:
        CodecError: see `Bitstream`; or a kind of another name.
    """
    if kind not in ("accumulated", "direct"):
        raise CodecError(f"residuals of kind {kind!r}: give accumulated or direct")
    bitstream = Bitstream.open(path)
    for number, gop in enumerate(bitstream.gops):
        if kind == "accumulated":
            yield from bitstream.iter_accumulated_residuals(number, mask_intra=mask_intra)
        else:
            for frame in gop[1:]:
                yield bitstream.direct_residual(frame, mask_intra=mask_intra)


def masked(residual: Residual, blocks: np.ndarray) -> Residual:
    """A residual with the samples of some blocks set to 128; `blocks` as `Residual.masked`."""
    planes = []
    for plane, side in ((residual.y, BLOCK), (residual.u, BLOCK // 2), (residual.v, BLOCK // 2)):
        height, width = plane.shape
        samples = blocks.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
        changed = np.where(samples, np.uint8(GRAY), plane)
        changed.flags.writeable = False
        planes.append(changed)
    y, u, v = planes
    return replace(residual, y=y, u=u, v=v, masked=blocks)


def _in_blocks(macroblocks: np.ndarray) -> np.ndarray:
    side = MACROBLOCK // BLOCK
    blocks: np.ndarray = macroblocks.repeat(side, axis=0).repeat(side, axis=1)
    return blocks


def _appearance(residual: Residual, references: list[list[np.ndarray]]) -> np.ndarray:
    """Which 4 × 4 blocks of a frame are intra, or predicted from samples that hold appearance.

    Args:
        references: of each list, the same of each frame that is in it.
    """
    held = _in_blocks(residual.intra)
    vectors = residual.motion_vectors
    for known, uses_it in zip(
        references, (vectors["source"] <= 0, vectors["source"] > 0), strict=False
    ):
        if not residual.is_coded:
            held = np.logical_or.reduce([held, *known])
        elif any(source.any() for source in known):
            _mark_predicted(held, np.logical_or.reduce(known), vectors[uses_it])
    return held


def _mark_predicted(held: np.ndarray, source: np.ndarray, vectors: np.ndarray) -> None:
    """Set the 4 × 4 blocks that vectors predict from blocks of a reference that are set."""
    # Sums over all above and to the left: any rectangle's count is a difference of four.
    sums = np.zeros((held.shape[0] + 1, held.shape[1] + 1), np.int64)
    sums[1:, 1:] = source.cumsum(0).cumsum(1)
    heights, widths = vectors["h"].astype(np.int64), vectors["w"].astype(np.int64)
    down, across = np.divmod(np.arange((MACROBLOCK // BLOCK) ** 2), MACROBLOCK // BLOCK)
    has_part = (BLOCK * down < heights[:, None]) & (BLOCK * across < widths[:, None])
    chosen, part = np.nonzero(has_part)
    # Of an 8 × 8 block all is looked at as one: smaller partitions may have other vectors.
    is_whole = (heights == 8) & (widths == 8)
    scale = np.maximum(vectors["motion_scale"].astype(np.int64), 1)
    places, ranges = [], []
    for axis, sides, steps, last in (
        ("y", heights, down, held.shape[0] - 1),
        ("x", widths, across, held.shape[1] - 1),
    ):
        corner = vectors[f"dst_{axis}"] - sides // 2
        moved = vectors[f"motion_{axis}"].astype(np.int64)
        # Between two samples the widest filter, of MPEG-4's quarter samples, takes four on a side.
        margin = np.where(moved % scale, 4, 0)[chosen]
        offset = BLOCK * steps[part]
        whole = is_whole[chosen]
        first = (corner + moved // scale)[chosen] + np.where(whole, 0, offset)
        final = first + np.where(whole, 8, BLOCK) - 1
        places.append((corner[chosen] + offset) // BLOCK)
        ranges.append(((first - margin) // BLOCK).clip(0, last))
        ranges.append(((final + margin) // BLOCK).clip(0, last) + 1)
    top, bottom, left, right = ranges
    count = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    hit = count > 0
    held[places[0][hit], places[1][hit]] = True


def _readable_stream(
    container: InputContainer, name: str, codecs: Sequence[str]
) -> tuple[VideoStream, str]:
    stream = video_stream(container)
    if stream is None:
        raise CodecError(f"{name}: there is no video stream in it")
    codec = stream.codec_context.name if stream.codec_context else "none that is known"
    if codec not in codecs:
        raise CodecError(
            f"{name}: its codec is {codec}, and residuals are read from "
            f"{' and '.join(_NAMES[codec] for codec in codecs)}; re-encode it (cfer encode, or "
            "cfer extract)"
        )
    return stream, codec


_NAMES = {"mpeg4": "MPEG-4 Part 2", "h264": "H.264"}


def _frames_of_gop(
    container: InputContainer, stream: VideoStream, name: str, gop: int, most_frames: int
) -> tuple[H264, int]:
    """See `Bitstream.open_gop`."""
    extradata = bytes(stream.codec_context.extradata or b"")
    frames, number = None, gop
    for can_begin, read in _runs(container, stream, extradata, name, 2 * most_frames):
        number -= frames.frame_types.count("I") if frames else 0
        frames = H264(extradata, read, name)
        starts = [n for n, kind in enumerate(frames.frame_types) if kind == "I"]
        if number < len(starts):
            if not can_begin:
                raise CodecError(
                    f"{name}: GOP {gop} begins too far from where decoding can begin; re-encode it "
                    "(cfer encode)"
                )
            stop = min([starts[number] + most_frames, *starts[number + 1 : number + 2]])
            if stop < len(frames.packets):
                frames = H264(extradata, read[: frames.sources[stop]], name)
            break
    if frames is None:
        raise CodecError(f"{name}: there is no frame in it")
    return frames, number


def _runs(
    container: InputContainer, stream: VideoStream, extradata: bytes, name: str, most: int
) -> Iterator[tuple[bool, list[bytes]]]:
    """The packets from an I-frame where decoding can begin to the next one, so many at a time, and
    whether these are the first of them."""
    read: list[bytes] = []
    can_begin = True
    for packet in packets(container, stream):
        data = packet_data(packet, extradata, name)
        # FFmpeg also calls it a key frame where an I-frame is spread over several P-frames.
        begins = packet.is_keyframe and is_intra(data, extradata)
        if read and (begins or len(read) == most):
            yield can_begin, read
            read, can_begin = [], begins
        read.append(data)
    yield can_begin, read


def _packets_by_index(data: bytes, container: InputContainer, stream: VideoStream) -> list[_Read]:
    """The packets of a video and their time stamps, cut out by an MP4's index, which is faster than
    demuxing; none where the index may not be the whole truth."""
    if "mp4" not in container.format.name or stream.frames != len(stream.index_entries):
        return []
    entries = [
        (entry.pos, entry.size, entry.is_discard, entry.timestamp) for entry in stream.index_entries
    ]
    end = 0
    for start, size, is_discard, _ in entries:
        # An edit list leaves frames out or repeats them, and a file that is cut off lacks some.
        if is_discard or start < end or size < 1 or start + size > len(data):
            return []
        end = start + size
    # Without B-frames, the order of decoding is that of display.
    return [_Read(data[start : start + size], stamp) for start, size, _, stamp in entries]
