"""Expressions live in the residuals: write a fixed-GOP bitstream, and read one without patches.

The codec is MPEG-4 Part 2 (ISO/IEC 14496-2), through PyAV's stock decoder and encoder. A decoder
computes `clip(prediction(reference, motion) + residual)` for every block of a P-frame, and shows
only the sum. Give it a flat mid-gray picture as the reference: any motion-compensated prediction
from a constant is that constant, at any sub-pel position and with either rounding, so what comes
out is `clip(128 + residual)`, the transmitted residual itself. The gray picture is an I-VOP that
this module writes, bit by bit, for the stream's own header (`_gray_vop`), so that it works for any
encoder's stream. FFmpeg takes the very same picture for an I-frame that is missing, so mostly not
even that needs decoding (`_missing_is_gray`).

    bitstream = encode(pictures, CodecSettings(gop_size=12), fps=25)      # or Bitstream.open(path)
    bitstream.direct_residual(7)             # frame 7 alone: one packet is decoded
    bitstream.accumulated_residuals(0)       # the first GOP's P-frames, each since its I-frame

`python -m cfer.bench codec` measures speed and exactness on clips of your own.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from cfer.containers import (
    TICKS_PER_SECOND,
    CutOff,
    open_input,
    ticks_of,
    video_stream,
    whole_packets,
)
from cfer.errors import InputError

GRAY = 128
VOP_START_CODE = b"\x00\x00\x01\xb6"
MACROBLOCK = 16  # samples along one side
# The bitstream writes a frame's time in ticks, with 16 bits for the ticks of a second.
MAX_TICKS_PER_SECOND = 65535
# FFmpeg's AVMotionVector, as PyAV shows it.
MOTION_VECTOR_DTYPE = np.dtype(
    {
        "names": [
            "source", "w", "h", "src_x", "src_y", "dst_x", "dst_y",
            "flags", "motion_x", "motion_y", "motion_scale",
        ],
        "formats": ["i4", "u1", "u1", "i2", "i2", "i2", "i2", "u8", "i4", "i4", "u2"],
        "offsets": [0, 4, 5, 6, 8, 10, 12, 16, 24, 28, 32],
        "itemsize": 40,
    }
)  # fmt: skip


class CodecError(InputError):
    """A bitstream that cannot be written as asked, or cannot be read exactly."""


@dataclass(frozen=True)
class CodecSettings:
    """How to encode. The settings are hyper-parameters of the representation.

    Attributes:
        gop_size: frames from one I-frame to the next, at least 1.
        gop_span: how many frames of the video a GOP stands for, at least `gop_size`: its first one,
            its last one, and others evenly between are encoded; what is left at the end, where it
            is less than half of that, belongs to the GOP before it. None: every frame is encoded.
        quantiser: fixed quantiser, 1 (finest) to 31; exclusive with `bit_rate`.
        bit_rate: bits per second; exclusive with `quantiser`.
        motion_search: False makes every motion vector zero: the accumulated residual is then the
            whole change since the I-frame.
    """

    gop_size: int = 12
    quantiser: int | None = 2
    bit_rate: int | None = None
    motion_search: bool = True
    gop_span: int | None = None

    def __post_init__(self) -> None:
        if self.gop_size < 1:
            raise CodecError(f"GOP size {self.gop_size}: must be 1 or more frames")
        if self.span < self.gop_size:
            raise CodecError(
                f"GOP span {self.span}: a GOP of {self.gop_size} frames stands for as many of the "
                "video, or for more"
            )
        if (self.quantiser is None) == (self.bit_rate is None):
            raise CodecError(
                f"quantiser {self.quantiser} and bit rate {self.bit_rate}: give exactly one of them"
            )
        if self.quantiser is not None and not 1 <= self.quantiser <= 31:
            raise CodecError(f"quantiser {self.quantiser}: must be from 1 (finest) to 31")
        if self.bit_rate is not None and self.bit_rate < 1000:
            raise CodecError(f"bit rate {self.bit_rate}: must be at least 1000 bits per second")

    @property
    def span(self) -> int:
        """Frames of the video that a GOP stands for."""
        return self.gop_size if self.gop_span is None else self.gop_span

    def encoded_frames(self, num_frames: int) -> list[int]:
        """Which frames of a video of `num_frames` are encoded, ascending."""
        kept: list[int] = []
        starts = list(range(0, num_frames, self.span))
        # The apex is often a clip's last frame: in a GOP of its own it would have no residual.
        if (
            self.span > self.gop_size
            and len(starts) > 1
            and num_frames - starts[-1] < self.span / 2
        ):
            starts.pop()
        for start, end in zip(starts, [*starts[1:], num_frames], strict=True):
            last = end - 1
            count = min(self.gop_size, last - start + 1)
            kept += np.linspace(start, last, count).round().astype(int).tolist()
        return kept

    def encoded_fps(self, fps: Fraction) -> Fraction:
        """Frames per second of what is encoded, of a video of `fps`."""
        return fps * self.gop_size / self.span


@dataclass(frozen=True)
class Residual:
    """The residual of one P-frame, as the bitstream carries it.

    Attributes:
        frame: frame number in the bitstream, from 0.
        y: luma, read-only uint8 (H, W), 128 = zero: `clip(128 + residual, 0, 255)`.
        u, v: chroma, read-only uint8 (ceil(H/2), ceil(W/2)), 128 = zero.
        motion: its vectors, or the decoded frame that has them; `motion_vectors` reads them.
        is_coded: False where the bitstream only says that the picture stays (an N-VOP).
    """

    frame: int
    y: np.ndarray
    u: np.ndarray
    v: np.ndarray
    motion: np.ndarray | av.VideoFrame = field(repr=False)
    is_coded: bool = True

    @property
    def motion_vectors(self) -> np.ndarray:
        """The frame's vectors, a structured array of FFmpeg's AVMotionVector: `dst_x`, `dst_y` the
        block's centre, `w`, `h` its size, `motion_x / motion_scale` and `motion_y / motion_scale`
        samples from the block to its reference. Intra blocks have none."""
        if isinstance(self.motion, np.ndarray):
            return self.motion
        exported = self.motion.side_data.get("MOTION_VECTORS")
        known = memoryview(b"" if exported is None else exported)
        return np.frombuffer(known, MOTION_VECTOR_DTYPE)

    @property
    def intra_fraction(self) -> float:
        """Share of the frame's macroblocks that are intra, in [0, 1].

        An intra block carries appearance, not a residual.
        """
        if not self.is_coded:
            return 0.0
        height, width = self.y.shape
        macroblocks = -(-width // MACROBLOCK) * -(-height // MACROBLOCK)
        sides = self.motion_vectors["w"].astype(np.int64), self.motion_vectors["h"]
        return 1 - int((sides[0] * sides[1]).sum()) / (macroblocks * MACROBLOCK**2)

    @property
    def saturated_fraction(self) -> float:
        """Share of the samples of y, u and v at 0 or 255, in [0, 1].

        There the transmitted residual may be larger than 8 bits can tell.
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


def encode(
    pictures: Iterable[np.ndarray],
    settings: CodecSettings,
    fps: Fraction | float,
    times: Sequence[float] | None = None,
) -> Bitstream:
    """Encode RGB pictures, uint8 (H, W, 3), all of one size, as I P P P … I P P P ….

    Args:
        pictures: all are encoded; which ones of a video to give, `settings.encoded_frames` says.
        fps: of these pictures, `settings.encoded_fps`; the encoder goes by it.
        times: when each of them is shown, and, one more, when the last one ends: seconds,
            ascending. They are in the container alone; the packets are the same without them.
            None: evenly, at `fps`.

    Raises:
        CodecError: no picture, or pictures of different shapes.
    """
    rate = _encodable_rate(fps)
    options = {
        "g": str(settings.gop_size),
        "bf": "0",
        # A scene change must not start a GOP of its own.
        "sc_threshold": "1000000000",
        # An intra block in a P-frame would carry appearance.
        "intra_penalty": "100000",
        # FFmpeg cuts a GOP of more than 600 frames down to 600 without it, and only warns.
        "strict": "experimental",
        # The encoder must not write its version into the stream.
        "flags": "+bitexact",
    }
    if settings.quantiser is not None:
        # `global_quality` is ignored without a flag that PyAV does not pass on.
        options |= {"qmin": str(settings.quantiser), "qmax": str(settings.quantiser)}
    if not settings.motion_search:
        options["motion_est"] = "zero"
    output = io.BytesIO()
    shape: tuple[int, ...] | None = None
    ticks, per_second = ([], TICKS_PER_SECOND) if times is None else ticks_of(times)
    written = 0

    def tick(number: int) -> int:
        return ticks[number] if ticks else round(number / rate * per_second)

    def mux(packets: Iterable[Packet]) -> None:
        nonlocal written
        for packet in packets:
            packet.time_base = Fraction(1, per_second)
            packet.pts = packet.dts = tick(written)
            packet.duration = tick(written + 1) - tick(written)
            container.mux(packet)
            written += 1

    how = {"fflags": "+bitexact", "video_track_timescale": str(per_second)}
    with av.open(output, "w", format="mp4", options=how) as container:
        stream = container.add_stream("mpeg4", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        if settings.bit_rate is not None:
            stream.bit_rate = settings.bit_rate
        for number, picture in enumerate(pictures):
            if shape is None:
                shape = picture.shape
                _check_picture(picture)
                stream.height, stream.width = shape[:2]
            elif picture.shape != shape:
                raise CodecError(f"picture {number} is {picture.shape}, the first one {shape}")
            # The stream converts it, by a converter that it keeps.
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = number
            frame.time_base = 1 / rate
            mux(stream.encode(frame))
        if shape is None:
            raise CodecError("no picture to encode")
        mux(stream.encode(None))
    return Bitstream(output.getvalue(), "encoded clip")


def _check_picture(picture: np.ndarray) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise CodecError(f"a picture is uint8 (H, W, 3), not {picture.dtype} {picture.shape}")
    if min(picture.shape[:2]) < 2 or max(picture.shape[:2]) > 8191:
        raise CodecError(f"a picture's sides are 2 to 8191 pixels, not {picture.shape[:2]}")


def _encodable_rate(fps: Fraction | float) -> Fraction:
    rate = Fraction(fps).limit_denominator(1001)
    if rate <= 0:
        raise CodecError(f"{fps} frames per second: must be above 0")
    if rate.numerator > MAX_TICKS_PER_SECOND:
        rate = Fraction(min(round(rate), MAX_TICKS_PER_SECOND))
    return rate


class Bitstream:
    """An MPEG-4 Part 2 video of I- and P-frames, read packet by packet.

    Frame numbers count from 0 in the order of the bitstream, which is the order of display, since
    there are no B-frames. Not safe for use from several threads at once.

    Attributes:
        name: what messages call it.
        width, height: in samples of luma.
        fps: frames per second, on average.
        times: when each frame is shown, and, one value more, when the last one ends: seconds since
            the first one, as the container says.
        frame_types: one letter a frame: I, P, or N (not coded: the picture before it, again).
        gops: the frame numbers of each GOP; the first of each is its I-frame.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.data = data
        self.packets: list[bytes] = []
        try:
            file = io.BytesIO(data)
            with open_input(file) as container:
                stream = _mpeg4_stream(container, name)
                extradata = bytes(stream.codec_context.extradata or b"")
                self.fps = Fraction(stream.average_rate or stream.base_rate or 25)
                read = _packets_by_index(data, container, stream) or [
                    (bytes(packet), packet.dts if packet.pts is None else packet.pts)
                    for packet in whole_packets(container, stream, file)
                    if packet.size
                ]
                self.packets = [packet for packet, _ in read]
                self._stamps = [stamp for _, stamp in read]
                self._time_base, self._duration = stream.time_base, stream.duration
        except (av.error.FFmpegError, CutOff) as error:
            raise CodecError(f"{name}: not a readable video ({error})") from error
        if not self.packets:
            raise CodecError(f"{name}: there is no frame in it")
        # What stands before the first picture holds the layer header, wherever the muxer put it.
        self._header = extradata + self.packets[0][: max(self.packets[0].find(VOP_START_CODE), 0)]
        self._layer = _VideoObjectLayer.parse(self._header, name)
        self.width, self.height = self._layer.width, self._layer.height
        self.frame_types = self._frame_types()
        if self.frame_types[0] != "I":
            raise CodecError(f"{name}: its first frame is no I-frame; cut it at an I-frame")
        starts = [n for n, kind in enumerate(self.frame_types) if kind == "I"]
        ends = [*starts[1:], len(self.packets)]
        self.gops = [range(start, end) for start, end in zip(starts, ends, strict=True)]
        self._decoder = self._new_decoder()

    @classmethod
    def open(cls, path: str | Path) -> Bitstream:
        """Read a file of any container that holds an MPEG-4 Part 2 video.

        Raises:
            CodecError: another codec, a B-frame, or a coding tool that cannot be read exactly.
        """
        try:
            with open(path, "rb") as file:
                # A film in another codec may be larger than the memory.
                with open_input(file) as container:
                    _mpeg4_stream(container, str(path))
                file.seek(0)
                return cls(file.read(), str(path))
        except av.error.FFmpegError as error:
            raise CodecError(f"{path}: not a readable video ({error})") from error
        except OSError as error:
            raise CodecError(f"{path}: cannot be read ({error.strerror})") from error

    def save(self, path: str | Path) -> None:
        """Write the file as it was read or encoded (MP4 if `encode` made it)."""
        Path(path).write_bytes(self.data)

    def __repr__(self) -> str:
        return (
            f"Bitstream({self.name!r}, {self.width}×{self.height}, {len(self.packets)} frames, "
            f"{len(self.gops)} GOPs, {sum(map(len, self.packets))} bytes)"
        )

    @cached_property
    def times(self) -> list[float]:
        count = len(self.packets)
        stamps = [stamp for stamp in self._stamps if stamp is not None]
        base = self._time_base
        if base is None or len(stamps) < count or stamps != sorted(stamps):
            return [float(number / self.fps) for number in range(count + 1)]
        end = stamps[0] + (self._duration or 0)
        if end <= stamps[-1]:
            end = stamps[-1] + round(1 / (self.fps * base))
        return [float((stamp - stamps[0]) * base) for stamp in (*stamps, end)]

    def pictures(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Decode everything, as any player does: (y, u, v) of each frame, uint8."""
        for number in range(len(self.gops)):
            yield from self.gop_pictures(number)

    def gop_pictures(self, gop: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The pictures of one GOP: (y, u, v) of each frame, uint8."""
        numbers = self.gops[gop]
        coded = [n for n in numbers if self.frame_types[n] != "N"]
        packets = [self._i_packet(numbers), *(self.packets[n] for n in coded[1:])]
        # A decoder of its own, since between two pictures another may be asked for.
        frames = self._decode_one_by_one(self._new_decoder(), packets)
        for number in numbers:
            if self.frame_types[number] != "N":
                picture = _planes(next(frames))
            yield picture

    def i_frames(self) -> list[np.ndarray]:
        """The I-frame of every GOP as RGB, uint8 (H, W, 3)."""
        return [self.i_frame(number) for number in range(len(self.gops))]

    def i_frame(self, gop: int) -> np.ndarray:
        """The I-frame of one GOP as RGB, uint8 (H, W, 3)."""
        (frame,) = self._decode([self._i_packet(self.gops[gop])])
        # By default a conversion starts as many threads as there are cores, for each picture.
        return frame.to_ndarray(format="rgb24", threads=1)

    def direct_residual(self, frame: int) -> Residual:
        """What the bitstream transmits for one P-frame; only that frame's packet is read.

        Raises:
            ValueError: the frame is not a P-frame of this bitstream.
        """
        if not 0 <= frame < len(self.packets) or self.frame_types[frame] == "I":
            raise ValueError(f"frame {frame} is not one of the P-frames of {self!r}")
        if self.frame_types[frame] == "N":
            return self._zero_residual(frame)
        (decoded,) = self._decode([self.packets[frame]], self._reference)
        return self._residual(frame, decoded)

    def accumulated_residuals(self, gop: int) -> list[Residual]:
        """Every P-frame's change since its I-frame, less what motion explains: one decode.

        The gray picture stands in for the I-frame, and the P-frames are decoded on top of each
        other: CoViAR's back-traced residual (Wu et al., CVPR 2018), at the decoder's own sub-pel
        accuracy. The last P-frame's holds the change of the whole GOP.
        """
        return list(self._accumulated_residuals(gop, self._decoder))

    def iter_accumulated_residuals(self, gop: int) -> Iterator[Residual]:
        """As `accumulated_residuals`, one after the other: a GOP of any length in little memory."""
        # A decoder of its own, since between two residuals another may be asked for.
        return self._accumulated_residuals(gop, self._new_decoder())

    def _accumulated_residuals(self, gop: int, decoder: av.VideoCodecContext) -> Iterator[Residual]:
        numbers = self.gops[gop][1:]
        packets = [self.packets[n] for n in numbers if self.frame_types[n] == "P"]
        frames = self._decode_one_by_one(decoder, packets, self._reference)
        before: Residual | None = None
        for number in numbers:
            if self.frame_types[number] == "P":
                residual = self._residual(number, next(frames))
            else:
                residual = self._zero_residual(number)
                if before is not None:
                    residual = replace(residual, y=before.y, u=before.u, v=before.v)
            yield residual
            before = residual

    def _new_decoder(self) -> av.VideoCodecContext:
        decoder = av.CodecContext.create("mpeg4", "r")
        assert isinstance(decoder, av.VideoCodecContext)
        decoder.thread_count = 1
        # Damaged data is an error of ours to report, not something to conceal.
        decoder.options = {"flags2": "+export_mvs", "err_detect": "explode"}
        decoder.extradata = self._header
        return decoder

    @cached_property
    def _reference(self) -> list[bytes]:
        """What the decoder is given in place of an I-frame, to see residuals."""
        # FFmpeg fills what is visible; motion may point into the rest of a macroblock beyond it.
        # And where pictures may come out later than they went in, its filling comes out too.
        whole = self.width % MACROBLOCK == 0 and self.height % MACROBLOCK == 0
        if whole and self._layer.low_delay and _missing_is_gray():
            return []
        return [self._gray]

    @property
    def _gray(self) -> bytes:
        return self._header + _gray_vop(self._layer)

    def _decode(
        self, packets: list[bytes], reference: list[bytes] | None = None
    ) -> list[av.VideoFrame]:
        return list(self._decode_one_by_one(self._decoder, packets, reference))

    def _decode_one_by_one(
        self,
        decoder: av.VideoCodecContext,
        packets: list[bytes],
        reference: list[bytes] | None = None,
    ) -> Iterator[av.VideoFrame]:
        """Decode packets apart from all that came before: a GOP, or P-frames on a reference."""
        given = [*(reference or []), *packets]
        skipped, count = len(given) - len(packets), 0
        try:
            for data in [*given, None]:
                if data is None and count == len(given):
                    break
                for frame in decoder.decode(data if data is None else _packet(data)):
                    count += 1
                    if skipped < count <= len(given):
                        yield frame
        except av.error.FFmpegError as error:
            raise CodecError(f"{self.name}: a damaged frame ({error}); cut it out") from error
        finally:
            decoder.flush_buffers()
        if count != len(given):
            raise CodecError(
                f"{self.name}: {len(given)} frames went into the decoder and {count} came out; the "
                "file is damaged"
            )

    def _i_packet(self, gop: range) -> bytes:
        packet = self.packets[gop[0]]
        return self._header + packet[packet.find(VOP_START_CODE) :]

    def _residual(self, number: int, frame: av.VideoFrame) -> Residual:
        y, u, v = _planes(frame)
        return Residual(number, y, u, v, frame)

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

    def _frame_types(self) -> str:
        """Of all frames at once, since opening a file takes as long as decoding a few frames."""
        heads = b"".join([packet[:12].ljust(12, b"\x00") for packet in self.packets])
        words = np.frombuffer(heads, ">u4").reshape(-1, 3).astype(np.uint64)
        header = words[:, 1] << 32 | words[:, 2]  # the 64 bits after the start code
        kind, late = header >> 62, header >> 61 & 1  # late: a second has passed
        coded = header >> (58 - late - self._layer.time_bits) & 1
        usual = (words[:, 0] == int.from_bytes(VOP_START_CODE, "big")) & (kind < 2)
        usual &= ~(late & header >> 60).astype(bool)
        letters = np.where(kind == 0, "I", np.where(coded, "P", "N")).tolist()
        # One by one where it is not as usual (a header comes first), or to say what is wrong.
        one_each = _count_vops(self.packets) == len(self.packets)
        for number in np.flatnonzero(~usual) if one_each else range(len(self.packets)):
            letters[number] = self._frame_type(int(number))
        return "".join(letters)

    def _frame_type(self, number: int) -> str:
        packet = self.packets[number]
        start = packet.find(VOP_START_CODE)
        if start < 0:
            raise CodecError(f"{self.name}: frame {number} holds no picture; the file is damaged")
        if packet.find(VOP_START_CODE, start + 4) >= 0:
            raise CodecError(
                f"{self.name}: packet {number} holds several pictures (a packed bitstream); "
                "re-encode it (cfer encode)"
            )
        kind = "IPBS"[packet[start + 4] >> 6]
        if kind in "BS":
            tool = "a B-frame" if kind == "B" else "a sprite (global motion compensation)"
            raise CodecError(
                f"{self.name}: frame {number} is {tool}, whose residual cannot be read exactly; "
                "re-encode it (cfer encode), or encode with -bf 0"
            )
        return kind if kind == "I" or self._layer.is_coded(packet[start + 4 :]) else "N"


@dataclass(frozen=True)
class Gop:
    """A group of pictures; each property decodes what it needs, and nothing else.

    Attributes:
        bitstream: which it is of.
        number: its place there, from 0.
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
        """What each P-frame transmits."""
        return [self.bitstream.direct_residual(frame) for frame in self.frames[1:]]

    @property
    def accumulated_residuals(self) -> list[Residual]:
        """Each P-frame's change since the I-frame, less what motion explains."""
        return self.bitstream.accumulated_residuals(self.number)


def read_gops(path: str | Path) -> list[Gop]:
    """The GOPs of an MPEG-4 Part 2 video; `cfer encode VIDEO CLIP.mp4` makes one of any video.

    Raises:
        CodecError: another codec, a B-frame, or a coding tool that cannot be read exactly.
    """
    bitstream = Bitstream.open(path)
    return [Gop(bitstream, number) for number in range(len(bitstream.gops))]


def residuals(path: str | Path, kind: str = "accumulated") -> Iterator[Residual]:
    """The residual of every P-frame, in order; `kind` is "accumulated" or "direct".

    Raises:
        CodecError: see `read_gops`; or a kind of another name.
    """
    if kind not in ("accumulated", "direct"):
        raise CodecError(f"residuals of kind {kind!r}: give accumulated or direct")
    bitstream = Bitstream.open(path)
    for number, gop in enumerate(bitstream.gops):
        if kind == "accumulated":
            yield from bitstream.iter_accumulated_residuals(number)
        else:
            yield from map(bitstream.direct_residual, gop[1:])


def _mpeg4_stream(container: InputContainer, name: str) -> VideoStream:
    stream = video_stream(container)
    if stream is None:
        raise CodecError(f"{name}: there is no video stream in it")
    codec = stream.codec_context.name if stream.codec_context else "none that is known"
    if codec != "mpeg4":
        raise CodecError(
            f"{name}: its codec is {codec}, and residuals are read from MPEG-4 Part 2; re-encode "
            "it (cfer encode, or pipeline/extract.py)"
        )
    return stream


def _packets_by_index(
    data: bytes, container: InputContainer, stream: VideoStream
) -> list[tuple[bytes, int | None]]:
    """The packets of a video and their time stamps, cut out where an MP4's index says; none if that
    is not sure.

    Several times as fast as reading one after the other.
    """
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
    return [(data[start : start + size], stamp) for start, size, _, stamp in entries]


def _count_vops(packets: Sequence[bytes]) -> int:
    """How many VOPs begin in all of them together."""
    everything = b"".join([*packets, b"\x00" * 3])
    code = np.frombuffer(VOP_START_CODE, np.uint32)
    words = (
        np.frombuffer(everything, np.uint32, (len(everything) - offset) // 4, offset)
        for offset in range(4)
    )
    return sum(int(np.count_nonzero(there == code)) for there in words)


def _packet(data: bytes) -> av.Packet:
    # `av.Packet(data)` would lend the decoder a buffer without the padding that it reads beyond the
    # end: wrong frames, and different ones in every process.
    packet = av.Packet(len(data))
    packet.update(data)
    return packet


def _planes(frame: av.VideoFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three planes of a 4:2:0 frame: views of the decoder's buffers, which they keep alive."""
    arrays = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        # The decoder may still refer to this picture.
        rows.flags.writeable = False
        arrays.append(rows[: plane.height, : plane.width])
    y, u, v = arrays
    return y, u, v


@cache
def _missing_is_gray() -> bool:
    """Whether this FFmpeg takes a picture of 128 for an I-frame that a P-frame needs and lacks.

    Every version did so far (`mpegvideo`'s dummy pictures), but it promises nothing: so each
    process looks once.
    """
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    probe = encode(noise, CodecSettings(), 25)
    packets = [probe.packets[1]]
    try:
        (missing,) = probe._decode(packets)
    except CodecError:
        return False
    (gray,) = probe._decode(packets, [probe._gray])
    return all(map(np.array_equal, _planes(missing), _planes(gray)))


class _BitReader:
    """Bits of a header, most significant first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError("the header ends too early")
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1)


@dataclass(frozen=True)
class _VideoObjectLayer:
    """What of the layer's header one must know to write a picture for it (14496-2, 6.2.3)."""

    width: int
    height: int
    time_bits: int
    interlaced: bool
    low_delay: bool

    @classmethod
    def parse(cls, header: bytes, name: str) -> _VideoObjectLayer:
        start = next(
            (
                n
                for n in range(len(header) - 4)
                if header[n : n + 3] == b"\x00\x00\x01" and 0x20 <= header[n + 3] <= 0x2F
            ),
            None,
        )
        if start is None:
            raise CodecError(f"{name}: it has no MPEG-4 layer header; re-encode it (cfer encode)")
        try:
            return cls._parse(_BitReader(header[start + 4 : start + 4 + 400]))
        except ValueError as error:
            raise CodecError(
                f"{name}: {error}, so its residuals cannot be read exactly; "
                "re-encode it (cfer encode)"
            ) from error

    @classmethod
    def _parse(cls, bits: _BitReader) -> _VideoObjectLayer:
        bits.take(1 + 8)  # random access, object type
        version = 1
        if bits.take(1):
            version = bits.take(4)
            bits.take(3)
        if bits.take(4) == 15:  # extended aspect ratio
            bits.take(16)
        low_delay = False
        if bits.take(1):  # control parameters
            bits.take(2)
            low_delay = bool(bits.take(1))
            if bits.take(1):  # buffer verifier
                bits.take(79)
        if bits.take(2) != 0:
            raise ValueError("it is not rectangular")
        bits.take(1)
        ticks_per_second = bits.take(16)
        bits.take(1)
        time_bits = max((ticks_per_second - 1).bit_length(), 1)
        if bits.take(1):  # fixed rate
            bits.take(time_bits)
        bits.take(1)
        width = bits.take(13)
        bits.take(1)
        height = bits.take(13)
        bits.take(1)
        interlaced = bool(bits.take(1))
        if not bits.take(1):
            raise ValueError("it has overlapped block motion compensation")
        if bits.take(1 if version == 1 else 2):
            raise ValueError("it has sprites (global motion compensation)")
        if bits.take(1):
            raise ValueError("its samples are not of 8 bits")
        if bits.take(1):  # MPEG quantisation, perhaps with matrices
            for _ in range(2):
                if bits.take(1):
                    for _ in range(64):
                        if bits.take(8) == 0:
                            break
        if version != 1:
            bits.take(1)  # quarter-sample vectors
        if not bits.take(1):
            raise ValueError("it has complexity estimation")
        bits.take(1)  # resynchronisation markers
        if bits.take(1):
            raise ValueError("its data are partitioned")
        if version != 1:
            if bits.take(1):
                raise ValueError("it has NEWPRED")
            if bits.take(1):
                raise ValueError("it has reduced-resolution pictures")
        if bits.take(1):
            raise ValueError("it is scalable")
        return cls(width, height, time_bits, interlaced, low_delay)

    def is_coded(self, vop: bytes) -> bool:
        """Whether a VOP (what follows its start code) is coded, or repeats the one before it."""
        bits = _BitReader(vop[:64])
        bits.take(2)
        while bits.take(1):  # whole seconds
            pass
        bits.take(1 + self.time_bits + 1)
        return bool(bits.take(1))


def _gray_vop(layer: _VideoObjectLayer) -> bytes:
    """An I-VOP whose samples are all 128, for a stream's own layer header (14496-2, 6.2.5).

    Every block is intra with a DC difference of 0 and no other coefficient: the predicted DC is
    1024 at the picture's border, so it is 1024 everywhere, and 1024 / 8 = 128.
    """
    bits = ["00", "0", "1", "0" * layer.time_bits, "1", "1"]  # I, time, marker, coded
    bits.append("000")  # the DC is always written with the DC table
    if layer.interlaced:
        bits.append("10")  # top field first; no alternate scan
    bits.append("00001")  # quantiser 1: DC in steps of 8
    # Intra with no coefficient ("1"), no AC prediction ("0"), no luma coefficient ("0011"),
    # [frame DCT], then a DC difference of size 0 for four luma and two chroma blocks.
    macroblock = "1" + "0" + "0011" + "0" * layer.interlaced + "011" * 4 + "11" * 2
    columns, rows = -(-layer.width // MACROBLOCK), -(-layer.height // MACROBLOCK)
    bits.append(macroblock * (columns * rows))
    text = "".join(bits) + "0"  # stuffing: a zero, then ones up to the byte's end
    text += "1" * (-len(text) % 8)
    return VOP_START_CODE + int(text, 2).to_bytes(len(text) // 8, "big")
