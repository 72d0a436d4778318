"""PyAV's stock decoder, one thread, with what it needs to be exact."""

from __future__ import annotations

from collections.abc import Mapping

import av
import numpy as np

# FFmpeg's AVMotionVector, as PyAV exports it.
MOTION_VECTOR_DTYPE = np.dtype(
    [
        ("source", "i4"), ("w", "u1"), ("h", "u1"),
        ("src_x", "i2"), ("src_y", "i2"), ("dst_x", "i2"), ("dst_y", "i2"),
        ("flags", "u8"), ("motion_x", "i4"), ("motion_y", "i4"), ("motion_scale", "u2"),
    ],
    align=True,
)  # fmt: skip


def new_decoder(name: str, header: bytes, options: Mapping[str, str]) -> av.VideoCodecContext:
    decoder = av.CodecContext.create(name, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    # With several, the exported vectors change from run to run.
    decoder.thread_count = 1
    decoder.options = {"flags2": "+export_mvs", **options}
    if header:
        decoder.extradata = header
    return decoder


def packet_of(data: bytes, pts: int | None = None) -> av.Packet:
    # `av.Packet(data)` would give the decoder a buffer without the padding that it reads beyond the
    # end: wrong frames, and different ones in every process.
    packet = av.Packet(len(data))
    packet.update(data)
    packet.pts = pts
    return packet


def planes_of(frame: av.VideoFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three planes of a 4:2:0 frame: views of the decoder's buffers, which they keep alive."""
    arrays = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        # The decoder may still refer to this picture.
        rows.flags.writeable = False
        arrays.append(rows[: plane.height, : plane.width])
    y, u, v = arrays
    return y, u, v


def vectors_of(frame: av.VideoFrame) -> np.ndarray:
    """The vectors that the decoder exports of a frame, `MOTION_VECTOR_DTYPE` (M,)."""
    exported = frame.side_data.get("MOTION_VECTORS")
    return np.frombuffer(memoryview(b"" if exported is None else exported), MOTION_VECTOR_DTYPE)
