"""Streams of H.264 to test on, made by libx264."""

from __future__ import annotations

import io

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from bitstreams import moving_texture


def scene(
    frames: int = 30,
    height: int = 80,
    width: int = 96,
    *,
    fades: bool = False,
    flashes: bool = False,
    small_parts: bool = False,
) -> list[np.ndarray]:
    """A moving texture with noise, RGB; neither black nor white, so that nothing is clipped.

    Args:
        fades: it gets darker and brighter: explicit weights.
        flashes: every fourth picture holds what nothing predicts: intra blocks.
        small_parts: small squares move each in its own way: partitions below 8 × 8.
    """
    rng = np.random.default_rng(0)
    pictures = []
    for t, texture in enumerate(moving_texture(frames, height, width)):
        picture = texture * 0.6 + 50 + rng.normal(0, 4, texture.shape)
        for part in range(24 if small_parts else 0):
            x = int(10 + part % 6 * 14 + 3 * np.sin(t * (1 + part % 5) / 2 + part))
            y = int(8 + part // 6 * 17 + 3 * np.cos(t * (1 + part % 3) * 0.7 + part))
            picture[y : y + 6, x : x + 6] += 60 if part % 2 else -60
        if fades:
            picture = 30 + (picture - 30) * (0.35 + 0.65 * abs(np.cos(t / 9)))
        if flashes and t % 4 == 2:
            picture[16:48, 24 + t : 60 + t] = rng.integers(40, 220, (32, 36, 1))
        pictures.append(np.clip(picture, 3, 252).astype(np.uint8))
    return pictures


def x264(
    pictures: list[np.ndarray],
    parameters: str = "",
    container: str = "mp4",
    pixels: str = "yuv420p",
    crf: int = 20,
    rate: int = 25,
) -> bytes:
    """A file; `parameters` are libx264's own."""
    file = io.BytesIO()
    parameters += ":scenecut=0:threads=1"
    with av.open(file, "w", format=container) as sink:
        stream = sink.add_stream("libx264", rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.options = {
            "crf": str(crf),
            "x264-params": parameters.removeprefix(":"),
        }
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            sink.mux(stream.encode(frame.reformat(format=pixels, threads=1)))
        sink.mux(stream.encode(None))
    return file.getvalue()


def remuxed(
    data: bytes,
    container: str = "mp4",
    *,
    seconds: float = 0,
    without: int | None = None,
    bits: str = "null",
    **options: str,
) -> bytes:
    """The packets of a file in another one.

    Args:
        seconds: by which they are shown later.
        without: the number of one that is lost.
        bits: a bitstream filter of FFmpeg's that changes them.
        options: the container's.
    """
    file = io.BytesIO()
    options = {"avoid_negative_ts": "disabled", **options}
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(file, "w", format=container, container_options=options) as sink,
    ):
        stream = sink.add_stream_from_template(source.streams.video[0])
        changed = BitStreamFilterContext(bits, source.streams.video[0])
        packets = [p for packet in source.demux(video=0) for p in changed.filter(packet or None)]
        for number, packet in enumerate(p for p in packets if p.size):
            if number == without:
                continue
            packet.stream = stream
            if seconds:
                packet.pts += round(seconds / packet.time_base)
                packet.dts += round(seconds / packet.time_base)
            sink.mux(packet)
    return file.getvalue()
