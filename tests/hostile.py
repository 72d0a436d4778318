"""Uploads that are made to cost a server more than they should, or to read files of others."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIDE = 16_000


def huge_png(side: int = SIDE) -> bytes:
    """A picture of one bit a pixel: some kB, from which a decoder makes hundreds of MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def png_video(path: Path, png: bytes, said: int) -> bytes:
    """The picture as a video, in a container that says its side is `said`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width = stream.height = said
        stream.pix_fmt = "monob"
        for number in range(3):
            packet = av.Packet(png)
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base = Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    return path.read_bytes()


def gray_video(
    path: Path,
    frames: int,
    rate: int,
    size: tuple[int, int] = (64, 64),
    codec: str = "libx264",
    aspect: int = 1,
    **options: str,
) -> bytes:
    """Many pictures in few bytes and little time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        picture = np.full((*size[::-1], 3), 90, np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        for number in range(frames):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def stretched(path: Path, aspect: int) -> bytes:
    """640 × 480, and each pixel is said to be so many times as wide as high."""
    data = gray_video(path, 12, 25, (640, 480), aspect=2)
    at = data.index(b"pasp") + 4
    return data[:at] + struct.pack(">II", aspect, 1) + data[at + 8 :]


def long_gop(path: Path, frames: int, width: int, height: int) -> bytes:
    """One GOP of MPEG-4 Part 2, in which nothing happens: some bytes a frame."""
    options = {"g": "100000", "bf": "0", "strict": "experimental", "sc_threshold": "1000000000"}
    return gray_video(path, frames, 60, (width, height), "mpeg4", **options)


def sound(path: Path) -> bytes:
    """A file without a picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def hostile_videos(video: Path, folder: Path) -> dict[str, tuple[bytes, str]]:
    """Name → bytes, and the error message of a server that takes 10 s and 600 frames."""
    whole, png = video.read_bytes(), huge_png()
    assert len(png) < 100_000
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n%s\n" % str(video).encode()
    concat = b"ffconcat version 1.0\nfile '%s'\n" % str(video).encode()
    unreadable, too_long = "not a readable video (", "longer than 10 s or 600 frames; cut it"
    return {
        "text": (b"not a video\n" * 1000, unreadable),
        "noise": (np.random.default_rng(0).bytes(100_000), unreadable),
        "zeros": (bytes(100_000), unreadable),
        "a picture": (png, unreadable),
        "16k × 16k, and says so": (png_video(folder / "a.mov", png, SIDE), unreadable),
        "16k × 16k, and says 64 × 64": (png_video(folder / "b.mov", png, 64), unreadable),
        "many pictures": (gray_video(folder / "c.mp4", 700, 1000, preset="ultrafast"), too_long),
        "a long time": (gray_video(folder / "d.mp4", 20, 1), too_long),
        "a pixel 4000 times as wide": (
            stretched(folder / "f.mp4", 4000),
            "more than 9,437,184 pixels; scale",
        ),
        "cut off": (whole[: len(whole) // 2], unreadable),
        "sound alone": (sound(folder / "e.mp4"), "there is no video stream in it"),
        "a playlist of a file here": (playlist, unreadable),
        "a list of files here": (concat, unreadable),
    }
