"""Reading residuals, beside FFmpeg's decoding and beside CoViAR's way of making residuals.

All on one core, from files in memory. *FFmpeg, decode only* decodes a file and drops the frames.
*CoViAR's way* is that of Wu et al. (CVPR 2018): decode, then subtract from each picture the one
before, displaced by the vectors rounded to whole pixels; here in OpenCV's C++. Each way opens the
file anew, so nothing but the bytes is there beforehand; but for *an open clip*, whose index and
decoder are kept, as who draws frames at random in training keeps them. Of videos in H.264, all P-
and B-frames are also read as they are.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
from av.video.reformatter import VideoReformatter

from benchmarks.measure import Measurement, Ratio, Work, side_by_side
from cfer.codec import GRAY, Bitstream, CodecError, CodecSettings, encode
from cfer.codec.decoder import vectors_of
from cfer.codec.verify import verify
from cfer.data.inputs import BLOCK, block_motion
from cfer.errors import InputError
from cfer.outputs import say

RANDOM_FRAMES = 3  # of a clip: what CoViAR samples in training

DECODE, RGB, COVIAR = "FFmpeg, decode only", "a clip to RGB arrays", "CoViAR's way"
ACCUMULATED, DIRECT, VECTORS = "residuals, accumulated", "residuals, direct", "motion vectors"
FEW = f"{RANDOM_FRAMES} direct residuals of a clip"
FEW_OF_OPEN = f"{RANDOM_FRAMES} direct residuals of an open clip"
H264 = "H.264: "


def measure(
    clips: list[list[np.ndarray]],
    settings: CodecSettings,
    rounds: int,
    videos: Sequence[Path] = (),
) -> Measurement:
    """Time and weigh the codec on clips of RGB pictures, uint8 (H, W, 3) each, and on videos in
    H.264 as they are."""
    cv2.setNumThreads(1)
    bitstreams = [encode(pictures, settings, 25) for pictures in clips]
    p_frames = [(b, n) for b in bitstreams for gop in b.gops for n in gop[1:]]
    if not p_frames:
        raise InputError(f"--gop-size {settings.gop_size}: there is no P-frame to measure")
    for bitstream in bitstreams:
        _verify(bitstream)
    as_they_are = [known for path in videos if (known := _as_it_is(path))]
    blocks = [_proven(bitstream) for bitstream in as_they_are]
    files = [b.data for b in bitstreams]

    def vectors() -> int:
        # As few bytes are copied as FFmpeg lets one: vectors come with decoded frames only.
        found = (vectors_of(frame) for data in files for frame in _frames(data, True))
        return sum(len(vectors) > 0 for vectors in found)

    def coviar() -> int:
        return sum(1 for data in files for _ in coviar_residuals(data))

    def write() -> int:
        return sum(len(encode(pictures, settings, 25).packets) for pictures in clips)

    works = [
        *_reading(bitstreams, ""),
        Work(COVIAR, coviar),
        Work(VECTORS, vectors),
        Work("encode", write),
    ]
    ratios = [
        Ratio(ACCUMULATED, DECODE, 0.8),
        Ratio(DIRECT, DECODE, 0.45),
        Ratio(VECTORS, DECODE),
        Ratio(FEW, RGB, 20),
        Ratio(FEW_OF_OPEN, RGB, 20),
        Ratio(ACCUMULATED, COVIAR, 10),
        Ratio(DIRECT, COVIAR, 10),
        Ratio("encode", DECODE),
    ]
    if as_they_are:
        works += _reading(as_they_are, H264)
        ratios += [
            Ratio(H264 + ACCUMULATED, H264 + DECODE, 0.8),
            Ratio(H264 + DIRECT, H264 + DECODE, 0.8),
            Ratio(H264 + FEW, H264 + RGB, 20),
            Ratio(H264 + FEW_OF_OPEN, H264 + RGB, 20),
        ]
    verified = (
        f"{len(p_frames)} P-frames of {len(clips)} clips: packets from memory decode as the file "
        "does, direct residuals equal accumulated ones where they must"
    )
    if blocks:
        verified += f"; {sum(blocks):,} blocks of {len(blocks)} videos in H.264: none differs"
    measurement = side_by_side(works, ratios, rounds, "codec", verified)
    residuals = [b.direct_residual(n) for b, n in p_frames]
    raw = b"".join(residual.packed().tobytes() for residual in residuals)
    count = len(residuals)
    loudness = np.mean([np.abs(r.y.astype(int) - GRAY).mean() for r in residuals])
    measurement.figures = {
        "clips": f"{len(clips)} of {bitstreams[0].width} × {bitstreams[0].height}, "
        f"{sum(len(b.packets) for b in bitstreams)} frames, GOP {settings.gop_size}",
        "a residual in the bitstream": f"{sum(len(b.packets[n]) for b, n in p_frames) / count:,.0f}"
        " bytes",
        "a residual as Zstandard": f"{len(pa.compress(raw, codec='zstd')) / count:,.0f} bytes",
        "a residual raw": f"{len(raw) / count:,.0f} bytes",
        "mean |residual| of luma": f"{loudness:.2f} gray levels",
        "intra macroblocks": f"{np.mean([r.intra_fraction for r in residuals]):.6f}",
        "saturated samples": f"{np.mean([r.saturated_fraction for r in residuals]):.6f}",
    }
    return measurement


def _as_it_is(path: Path) -> Bitstream | None:
    try:
        return Bitstream.open(path, ["h264"])
    except CodecError as error:
        say(f"not read as it is: {error}")
        return None


def _reading(bitstreams: Sequence[Bitstream], prefix: str) -> list[Work]:
    """Residuals of whole files and of a few frames, beside FFmpeg's decoding of the same files."""
    files = [bitstream.data for bitstream in bitstreams]
    draws = np.random.default_rng(0)
    sampled = [
        sorted(
            draws.choice([n for n, t in enumerate(b.frame_types) if t == "P"], RANDOM_FRAMES, False)
        )
        for b in bitstreams
    ]

    def opened() -> Iterator[Bitstream]:
        return (Bitstream(data, "a clip") for data in files)

    def decode() -> int:
        return sum(1 for data in files for _ in _frames(data))

    def to_rgb() -> int:
        for data in files:
            converter = VideoReformatter()
            _ = [_rgb(frame, converter) for frame in _frames(data)]
        return len(files)

    def accumulated() -> int:
        # One by one: of a long GOP, all of them may not fit into memory.
        return sum(
            1 for b in opened() for g in range(len(b.gops)) for _ in b.iter_accumulated_residuals(g)
        )

    def direct() -> int:
        numbers = ((b, n) for b in opened() for gop in b.gops for n in gop[1:])
        return sum(b.direct_residual(n) is not None for b, n in numbers)

    def few(known: Iterable[Bitstream]) -> int:
        for bitstream, numbers in zip(known, sampled, strict=True):
            _ = [bitstream.direct_residual(int(n)) for n in numbers]
        return len(files)

    return [
        Work(prefix + DECODE, decode),
        Work(prefix + ACCUMULATED, accumulated),
        Work(prefix + DIRECT, direct),
        Work(prefix + FEW, lambda: few(opened()), "clips", per_round=5),
        Work(prefix + FEW_OF_OPEN, lambda: few(bitstreams), "clips", per_round=5),
        Work(prefix + RGB, to_rgb, "clips"),
    ]


def coviar_residuals(data: bytes) -> Iterator[np.ndarray]:
    """The residual of every P-frame of a file as CoViAR has it, int16 (H, W, 3) of RGB.

    Wu et al., "Compressed Video Action Recognition", CVPR 2018: not what the bitstream transmits,
    since a vector's half pixel is lost.
    """
    before = position = None
    converter = VideoReformatter()
    nothing = np.empty(0, np.uint16)  # of what lies between whole pixels
    for frame in _frames(data, vectors=True):
        picture = _rgb(frame, converter)
        height, width = picture.shape[:2]
        if position is None:
            across, down = np.meshgrid(np.arange(width), np.arange(height))
            position = np.stack([across, down], -1).astype(np.int16)
        if before is not None and frame.pict_type == av.video.frame.PictureType.P:
            rows, columns = -(-height // BLOCK), -(-width // BLOCK)
            motion = block_motion(vectors_of(frame), rows, columns)
            whole = np.rint(motion[::-1]).astype(np.int16).transpose(1, 2, 0)
            each = whole.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]
            displaced = cv2.remap(
                before, position + each, nothing, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
            )
            yield cv2.subtract(picture, displaced, dtype=cv2.CV_16S)
        before = picture


def _rgb(frame: av.VideoFrame, converter: VideoReformatter) -> np.ndarray:
    """As quick as PyAV does it: by one converter for all pictures, on this core alone."""
    return converter.reformat(frame, format="rgb24", threads=1).to_ndarray()


def _frames(data: bytes, vectors: bool = False) -> Iterator[av.VideoFrame]:
    with av.open(io.BytesIO(data), "r") as container:
        context = container.streams.video[0].codec_context
        context.thread_count = 1
        if vectors:
            context.options = {"flags2": "+export_mvs"}
        yield from container.decode(video=0)


def _verify(bitstream: Bitstream) -> None:
    """Packets from memory must decode as the file does, and direct equal accumulated at P1."""
    frames = [frame.to_ndarray(format="yuv420p") for frame in _frames(bitstream.data)]
    for (y, _, _), frame in zip(bitstream.pictures(), frames, strict=True):
        if not np.array_equal(y, frame[: bitstream.height]):
            raise AssertionError(f"{bitstream!r}: a frame from memory differs from the file's")
    for number, gop in enumerate(bitstream.gops):
        if len(gop) > 1:
            direct = bitstream.direct_residual(gop[1])
            if not np.array_equal(direct.y, bitstream.accumulated_residuals(number)[0].y):
                raise AssertionError(f"{bitstream!r}: direct and accumulated residuals differ")


def _proven(bitstream: Bitstream) -> int:
    """How many blocks of a video's frames were compared with its decoded pictures."""
    proof = verify(bitstream)
    if proof.differing:
        raise AssertionError(f"{bitstream!r}: {proof.differing} of {proof.blocks} blocks differ")
    return proof.blocks
