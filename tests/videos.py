"""Videos to test on, written by PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_video(
    path: Path,
    pictures: list[np.ndarray],
    *,
    codec: str = "libx264",
    fps: int | Fraction = 25,
    matrix: Sequence[int] = (),
    times: Sequence[Fraction] = (),
    pixel_aspect: Fraction | None = None,
    faststart: bool = False,
) -> None:
    """Write RGB pictures, uint8 (H, W, 3).

    Args:
        matrix: a, b, c, d of the display matrix.
        times: when each picture is shown, in seconds.
    """
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if matrix:
            a, b, c, d = (value << 16 for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def quarters() -> np.ndarray:
    """Each quarter of another gray, so that no two of its eight orientations are the same."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48], picture[:32, 48:], picture[32:, :48] = 255, 170, 85
    return picture
