"""Measure the codec, on clips of your own or on a drawn texture; the output is verified first.

    python -m cfer.bench codec [VIDEO ...] [--size 224] [--gop-size 12]

Timings are of one core. Read the ratios: they are taken side by side in one run.
"""

from __future__ import annotations

import argparse
import io
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa

from cfer.clips import open_pictures
from cfer.codec import GRAY, Bitstream, CodecSettings, encode
from cfer.errors import InputError, exit_with_message


def moving_texture(num_frames: int, size: int) -> list[np.ndarray]:
    """A blurred noise picture that drifts, turns and flickers: RGB, uint8 (size, size, 3) each."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2 * size, 2 * size, 3)).astype(np.float32)
    base = cv2.GaussianBlur(noise, (0, 0), 3)
    base = (base - base.mean()) * 4 + 128
    pictures = []
    for t in range(num_frames):
        turn = cv2.getRotationMatrix2D((size, size), 1.5 * np.sin(t / 5), 1)
        turn[:, 2] += [5 * np.sin(t / 7) - size / 2, 4 * np.cos(t / 6) - size / 2]
        moved = cv2.warpAffine(base, turn, (size, size)) + 4 * np.sin(t / 3)
        pictures.append(np.clip(moved, 0, 255).astype(np.uint8))
    return pictures


def read_square_pictures(path: Path, size: int, max_frames: int) -> list[np.ndarray]:
    """The middle square of a video's first frames, scaled: RGB, uint8 (size, size, 3) each."""
    pictures = []
    for picture in itertools.islice(open_pictures(path), max_frames):
        side = min(picture.shape[:2])
        top, left = ((length - side) // 2 for length in picture.shape[:2])
        square = picture[top : top + side, left : left + side]
        pictures.append(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA))
    return pictures


def _verify(bitstream: Bitstream) -> None:
    """Packets from memory must decode as the file does, and direct equal accumulated at P1."""
    with av.open(io.BytesIO(bitstream.data), "r") as container:
        frames = [f.to_ndarray(format="yuv420p") for f in container.decode(video=0)]
    for (y, _, _), frame in zip(bitstream.pictures(), frames, strict=True):
        if not np.array_equal(y, frame[: bitstream.height]):
            raise AssertionError(f"{bitstream!r}: a frame from memory differs from the file's")
    for number, gop in enumerate(bitstream.gops):
        if len(gop) > 1:
            direct = bitstream.direct_residual(gop[1])
            if not np.array_equal(direct.y, bitstream.accumulated_residuals(number)[0].y):
                raise AssertionError(f"{bitstream!r}: direct and accumulated residuals differ")


def _frames_per_second(work: Callable[[], int], repeats: int = 5) -> float:
    """The median over several rounds."""
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        num_frames = work()
        rates.append(num_frames / (time.perf_counter() - start))
    return float(np.median(rates))


def measure_codec(clips: list[list[np.ndarray]], settings: CodecSettings) -> list[tuple[str, str]]:
    """Rows (what, figure) of the codec's speed and size on clips of RGB pictures."""
    bitstreams = [encode(pictures, settings, 25) for pictures in clips]
    for bitstream in bitstreams:
        _verify(bitstream)
    p_frames = [(b, n) for b in bitstreams for gop in b.gops for n in gop[1:]]
    if not p_frames:
        raise InputError(f"--gop-size {settings.gop_size}: there is no P-frame to measure")
    residuals = [b.direct_residual(n) for b, n in p_frames]

    def decode() -> int:
        return sum(1 for bitstream in bitstreams for _ in bitstream.pictures())

    def direct() -> int:
        return len([b.direct_residual(n) for b, n in p_frames])

    def accumulated() -> int:
        return sum(len(b.accumulated_residuals(g)) for b in bitstreams for g in range(len(b.gops)))

    def write() -> int:
        return sum(len(encode(pictures, settings, 25).packets) for pictures in clips)

    rates = {work: _frames_per_second(work) for work in (decode, direct, accumulated, write)}
    raw = b"".join(residual.packed().tobytes() for residual in residuals)
    packed = len(pa.compress(raw, codec="zstd"))
    in_bitstream = sum(len(b.packets[n]) for b, n in p_frames)
    loudness = np.mean([np.abs(r.y.astype(int) - GRAY).mean() for r in residuals])
    count = len(residuals)
    return [
        ("P-frames, verified", f"{count}"),
        ("decode to planes", f"{rates[decode]:,.0f} frames/s (1.00)"),
        ("accumulated residuals", _beside(rates[accumulated], rates[decode])),
        ("direct residuals", _beside(rates[direct], rates[decode])),
        ("encode", _beside(rates[write], rates[decode])),
        ("a residual in the bitstream", f"{in_bitstream / count:,.0f} bytes"),
        ("a residual as Zstandard", f"{packed / count:,.0f} bytes"),
        ("a residual raw", f"{len(raw) / count:,.0f} bytes"),
        ("mean |residual| of luma", f"{loudness:.2f} grey levels"),
        ("intra macroblocks", f"{np.mean([r.intra_fraction for r in residuals]):.6f}"),
        ("saturated samples", f"{np.mean([r.saturated_fraction for r in residuals]):.6f}"),
    ]


def _beside(rate: float, reference: float) -> str:
    return f"{rate:,.0f} frames/s ({rate / reference:.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cfer.bench", description="Measure the parts.")
    commands = parser.add_subparsers(dest="command", required=True)
    codec = commands.add_parser("codec", help="speed and size of encoding and reading residuals")
    codec.add_argument("videos", nargs="*", type=Path, help="clips; none: a drawn moving texture")
    codec.add_argument("--size", type=int, default=224, help="side in pixels (224)")
    codec.add_argument("--gop-size", type=int, default=12, help="frames per GOP (12)")
    codec.add_argument("--max-frames", type=int, default=240, help="of each clip (240)")
    arguments = parser.parse_args()
    if arguments.videos:
        clips = [
            read_square_pictures(path, arguments.size, arguments.max_frames)
            for path in arguments.videos
        ]
    else:
        clips = [moving_texture(arguments.max_frames, arguments.size)]
    for what, figure in measure_codec(clips, CodecSettings(gop_size=arguments.gop_size)):
        print(f"{what:30s}{figure}")
    return 0


if __name__ == "__main__":
    exit_with_message(main)
