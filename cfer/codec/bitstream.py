"""Read the residuals of a bitstream with an unpatched decoder.

The codec is MPEG-4 Part 2 (ISO/IEC 14496-2), through PyAV's stock decoder. A decoder computes
`clip(prediction(reference, motion) + residual)` for every block of a P-frame, and shows only the
sum. Give it a flat mid-gray picture as the reference: any motion-compensated prediction from a
constant is that constant, at any sub-pel position and with either rounding, so the decoder shows
`clip(128 + residual)`, the transmitted residual itself. The gray picture is an I-VOP that is
written, bit by bit, for the stream's own header (`gray_vop`), so it fits any encoder's stream.
FFmpeg uses the same picture where an I-frame is missing, so mostly not even that has to be decoded
(`_missing_is_gray`).

    bitstream = encode(pictures, CodecSettings(gop_size=12), fps=25)      # or Bitstream.open(path)
    bitstream.direct_residual(7)             # frame 7 alone: one packet is decoded
    bitstream.accumulated_residuals(0)       # the first GOP's P-frames, each since its I-frame

`cfer bench codec` measures speed and exactness on clips of your own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from cfer.codec.containers import CutOff, open_input, video_stream, whole_packets
from cfer.codec.mpeg4 import (
    GRAY,
    MACROBLOCK,
    VOP_START_CODE,
    CodecError,
    VideoObjectLayer,
    gray_vop,
)

# FFmpeg's AVMotionVector, as PyAV exports it.
MOTION_VECTOR_DTYPE = np.dtype(
    [
        ("source", "i4"), ("w", "u1"), ("h", "u1"),
        ("src_x", "i2"), ("src_y", "i2"), ("dst_x", "i2"), ("dst_y", "i2"),
        ("flags", "u8"), ("motion_x", "i4"), ("motion_y", "i4"), ("motion_scale", "u2"),
    ],
    align=True,
)  # fmt: skip


@dataclass(frozen=True)
class Residual:
    """The residual of one P-frame, as the bitstream carries it.

    Attributes:
        frame: frame number in the bitstream, from 0.
        y: luma, read-only uint8 (H, W), 128 = zero: `clip(128 + residual, 0, 255)`.
        u, v: chroma, read-only uint8 (ceil(H/2), ceil(W/2)), 128 = zero.
        motion: its vectors, or the decoded frame that has them; see `motion_vectors`.
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
        """The frame's vectors, `MOTION_VECTOR_DTYPE` (M,), one for each inter block: `dst_x` and
        `dst_y` are the block's center and `w` and `h` its size, in samples of luma; its reference
        is `motion_x / motion_scale` and `motion_y / motion_scale` samples away from it."""
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
    """An MPEG-4 Part 2 video of I- and P-frames, read packet by packet.

    Frame numbers count from 0 in the order of the bitstream, which is the order of display, since
    there are no B-frames. Not safe for use from several threads at once.

    Args:
        data: the bytes of a file, of any container.
        name: what messages call it.

    Attributes:
        packets: the bytes of each frame.
        width, height: in samples of luma.
        fps: frames per second, on average.
        frame_types: one letter a frame: I, P, or N (not coded: the picture before it, again).
        gops: the frame numbers of each GOP; the first of each is its I-frame.

    Raises:
        CodecError: another codec, a B-frame, a coding tool whose residuals cannot be read exactly,
            or a file that is damaged or cut off.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.data = data
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
        # The layer header is somewhere before the first picture, wherever the muxer put it.
        self._header = extradata + self.packets[0][: max(self.packets[0].find(VOP_START_CODE), 0)]
        self._layer = VideoObjectLayer.parse(self._header, name)
        self.width, self.height = self._layer.width, self._layer.height
        self.frame_types = "".join(map(self._frame_type, range(len(self.packets))))
        if self.frame_types[0] != "I":
            raise CodecError(f"{name}: its first frame is no I-frame; cut it at an I-frame")
        starts = [n for n, kind in enumerate(self.frame_types) if kind == "I"]
        ends = [*starts[1:], len(self.packets)]
        self.gops = [range(start, end) for start, end in zip(starts, ends, strict=True)]
        self._decoder = _new_decoder(self._header)

    @classmethod
    def open(cls, path: str | Path) -> Bitstream:
        """Read a file; raises `CodecError` as the class does, or where the file is not readable."""
        try:
            with open(path, "rb") as file:
                # A film in another codec may be larger than the memory: look before reading.
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
        """When each frame is shown and, one value more, when the last one ends: seconds since the
        first one, by the container's time stamps, or by `fps` where it lacks some."""
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
        """Decode everything, as any player does: `gop_pictures` of every GOP."""
        for number in range(len(self.gops)):
            yield from self.gop_pictures(number)

    def gop_pictures(self, gop: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The pictures of one GOP: (y, u, v) of each frame, read-only uint8, as in `Residual`."""
        numbers = self.gops[gop]
        coded = [n for n in numbers if self.frame_types[n] != "N"]
        packets = [self._i_packet(numbers), *(self.packets[n] for n in coded[1:])]
        # A decoder of its own, since between two pictures another may be asked for.
        frames = self._decode_one_by_one(_new_decoder(self._header), packets)
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
        """What the bitstream transmits for one P-frame; that frame's packet alone is decoded.

        Raises:
            ValueError: the frame is not a P-frame of this bitstream.
        """
        if not 0 <= frame < len(self.packets) or self.frame_types[frame] == "I":
            raise ValueError(f"frame {frame} is not one of the P-frames of {self!r}")
        if self.frame_types[frame] == "N":
            return self._zero_residual(frame)
        (decoded,) = self._decode([self.packets[frame]], self._reference)
        return Residual(frame, *_planes(decoded), decoded)

    def accumulated_residuals(self, gop: int) -> list[Residual]:
        """Every P-frame's change since its I-frame, less what motion explains.

        The gray picture stands in for the I-frame, and the P-frames are decoded on top of each
        other: CoViAR's back-traced residual (Wu et al., "Compressed Video Action Recognition",
        CVPR 2018), at the decoder's own sub-pel accuracy. The last P-frame's residual holds the
        change of the whole GOP.
        """
        return list(self._accumulated_residuals(gop, self._decoder))

    def iter_accumulated_residuals(self, gop: int) -> Iterator[Residual]:
        """As `accumulated_residuals`, one by one, so that a long GOP takes little memory."""
        # A decoder of its own, since between two residuals another may be asked for.
        return self._accumulated_residuals(gop, _new_decoder(self._header))

    def _accumulated_residuals(self, gop: int, decoder: av.VideoCodecContext) -> Iterator[Residual]:
        numbers = self.gops[gop][1:]
        packets = [self.packets[n] for n in numbers if self.frame_types[n] == "P"]
        frames = self._decode_one_by_one(decoder, packets, self._reference)
        before: Residual | None = None
        for number in numbers:
            if self.frame_types[number] == "P":
                decoded = next(frames)
                residual = Residual(number, *_planes(decoded), decoded)
            else:
                residual = self._zero_residual(number)
                if before is not None:
                    residual = replace(residual, y=before.y, u=before.u, v=before.v)
            yield residual
            before = residual

    @cached_property
    def _reference(self) -> list[bytes]:
        """The packets that the decoder is given in place of an I-frame, to show residuals."""
        # FFmpeg's gray picture ends at the visible edge, and motion may point into the rest of a
        # macroblock beyond it. Where the decoder delays pictures, it also shows its gray one.
        whole = self.width % MACROBLOCK == 0 and self.height % MACROBLOCK == 0
        if whole and self._layer.low_delay and _missing_is_gray():
            return []
        return [self._gray]

    @property
    def _gray(self) -> bytes:
        return self._header + gray_vop(self._layer)

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
        """Decode packets, independently of earlier ones: a GOP, or P-frames on a reference."""
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

    def _frame_type(self, number: int) -> str:
        packet = self.packets[number]
        start = packet.find(VOP_START_CODE)
        if not 0 <= start < len(packet) - 4:
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
        try:
            return kind if kind == "I" or self._layer.is_coded(packet[start + 4 :]) else "N"
        except ValueError as error:
            raise CodecError(
                f"{self.name}: frame {number}: {error}; the file is damaged"
            ) from error


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
        """`Bitstream.direct_residual` of each P-frame."""
        return [self.bitstream.direct_residual(frame) for frame in self.frames[1:]]

    @property
    def accumulated_residuals(self) -> list[Residual]:
        """`Bitstream.accumulated_residuals` of this GOP."""
        return self.bitstream.accumulated_residuals(self.number)


def read_gops(path: str | Path) -> list[Gop]:
    """The GOPs of an MPEG-4 Part 2 video; `cfer encode VIDEO CLIP.mp4` makes one of any video.

    Raises:
        CodecError: see `Bitstream`.
    """
    bitstream = Bitstream.open(path)
    return [Gop(bitstream, number) for number in range(len(bitstream.gops))]


def residuals(path: str | Path, kind: str = "accumulated") -> Iterator[Residual]:
    """The residual of every P-frame, in order; `kind` is "accumulated" or "direct".

    Raises:
        CodecError: see `Bitstream`; or a kind of another name.
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
            "it (cfer encode, or cfer extract)"
        )
    return stream


def _packets_by_index(
    data: bytes, container: InputContainer, stream: VideoStream
) -> list[tuple[bytes, int | None]]:
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
    return [(data[start : start + size], stamp) for start, size, _, stamp in entries]


def _packet(data: bytes) -> av.Packet:
    # `av.Packet(data)` would give the decoder a buffer without the padding that it reads beyond the
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


def _new_decoder(header: bytes) -> av.VideoCodecContext:
    decoder = av.CodecContext.create("mpeg4", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    # Report damaged data; by default the decoder conceals it.
    decoder.options = {"flags2": "+export_mvs", "err_detect": "explode"}
    decoder.extradata = header
    return decoder


# A stream of 16 × 16, and a P-frame of it that changes nothing.
_STILL_HEADER = bytes.fromhex("000001b001000001b58913000001000000012000c48d8800cd0084021463")
_STILL_P_FRAME = bytes.fromhex("000001b650f0237f")


@cache
def _missing_is_gray() -> bool:
    """Whether this FFmpeg uses a picture of 128 where a P-frame lacks its I-frame.

    Every version so far does (`mpegvideo`'s dummy pictures), but none promises it: each process
    checks once.
    """
    decoder = _new_decoder(_STILL_HEADER)
    try:
        frames = [*decoder.decode(_packet(_STILL_P_FRAME)), *decoder.decode(None)]
    except av.error.FFmpegError:
        return False
    return len(frames) == 1 and all((plane == GRAY).all() for plane in _planes(frames[0]))
