"""Bitstreams to test on, and an independent motion compensation of MPEG-4 Part 2 in NumPy."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from cfer.codec import GRAY, CodecSettings, encode
from cfer.codec.bitstream import Bitstream, Residual
from cfer.codec.decoder import planes_of
from cfer.codec.mpeg4 import VOP_START_CODE

# ----------------------------------------------------------------- clips


def moving_texture(frames: int, height: int = 96, width: int = 128, seed: int = 0) -> list:
    """A textured picture under smooth sub-pel motion, rotation and a change of light."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (height * 2, width * 2, 3)).astype(np.float32)
    base = cv2.GaussianBlur(base, (0, 0), 2)
    base = np.clip((base - base.mean()) * 4 + 128, 0, 255)
    pictures = []
    for t in range(frames):
        turn = cv2.getRotationMatrix2D((width, height), 1.5 * np.sin(t / 3), 1 + 0.01 * t)
        turn[:, 2] += [1.3 * t - width / 2, 0.7 * t - height / 2]
        moved = cv2.warpAffine(base, turn, (width, height), borderMode=cv2.BORDER_REFLECT)
        pictures.append(np.clip(moved + 6 * np.sin(t / 2), 0, 255).astype(np.uint8))
    return pictures


def face_pictures(faces_dir: Path, name: str, frames: int, size: int = 192) -> list:
    with av.open(str(faces_dir / name)) as container:
        pictures = []
        for frame in container.decode(video=0):
            picture = frame.to_ndarray(format="rgb24")
            side = min(picture.shape[:2])
            square = picture[:side, :side]
            pictures.append(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA))
            if len(pictures) == frames:
                break
    return pictures


def someone_elses(pictures: list, path: Path, gop: int = 12, **options: str) -> Path:
    """Write as another program would: FFmpeg's own defaults, and the options given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(30000, 1001))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.options = {"g": str(gop), **options}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


# ------------------------------------- an independent motion compensation (14496-2, 7.6)


def rounding_control(packet: bytes, time_bits: int) -> int:
    bits = "".join(f"{b:08b}" for b in packet[packet.find(VOP_START_CODE) + 4 :][:40])
    at = 2
    while bits[at] == "1":
        at += 1
    at += 1 + 1 + time_bits + 1
    assert bits[at] == "1", "not a coded VOP"
    return int(bits[at + 1])


def block_from(reference: np.ndarray, x2: int, y2: int, w: int, h: int, rounding: int):
    """A w×h block whose corner is (x2, y2) in half samples, from a reference without end."""
    rows = np.clip(np.arange(h + 1) + (y2 >> 1), 0, reference.shape[0] - 1)
    columns = np.clip(np.arange(w + 1) + (x2 >> 1), 0, reference.shape[1] - 1)
    area = reference[np.ix_(rows, columns)].astype(np.int32)
    a, b, c, d = area[:-1, :-1], area[:-1, 1:], area[1:, :-1], area[1:, 1:]
    if x2 & 1 and y2 & 1:
        return (a + b + c + d + 2 - rounding) >> 2
    if x2 & 1:
        return (a + b + 1 - rounding) >> 1
    if y2 & 1:
        return (a + c + 1 - rounding) >> 1
    return a


def chroma_of_four(total: int) -> int:
    """The chroma vector of a macroblock with four: the mean, to the nearest half sample."""
    table = [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2]
    sign = -1 if total < 0 else 1
    magnitude = abs(total)
    return sign * (table[magnitude % 16] + 2 * (magnitude // 16))


def predict(reference, vectors, rounding: int):
    """The prediction of a frame, int32, -1 where no vector reaches; and a count by kind."""
    planes = [np.full(plane.shape, -1, np.int32) for plane in reference]
    kinds = {"full": 0, "half": 0, "four": 0}
    four: dict[tuple[int, int], list] = {}
    for vector in vectors:
        assert vector["motion_scale"] == 2
        w, h = int(vector["w"]), int(vector["h"])
        x, y = int(vector["dst_x"]) - w // 2, int(vector["dst_y"]) - h // 2
        mx, my = int(vector["motion_x"]), int(vector["motion_y"])
        kinds["half" if (mx | my) & 1 else "full"] += 1
        block = block_from(reference[0], 2 * x + mx, 2 * y + my, w, h, rounding)
        planes[0][y : y + h, x : x + w] = block
        if w == 16:
            # Half the luma vector: what is between two half samples becomes a half sample.
            cx, cy = ((m >> 1) | (m & 1) for m in (mx, my))
            _chroma(planes, reference, x // 2, y // 2, cx, cy, rounding)
        else:
            four.setdefault((x // 16, y // 16), []).append((mx, my))
    for (column, row), motions in four.items():
        assert len(motions) == 4
        kinds["four"] += 1
        cx, cy = (chroma_of_four(sum(m)) for m in zip(*motions, strict=True))
        _chroma(planes, reference, column * 8, row * 8, cx, cy, rounding)
    return planes, kinds


def _chroma(planes, reference, x, y, cx, cy, rounding) -> None:
    for k in (1, 2):
        block = block_from(reference[k], 2 * x + cx, 2 * y + cy, 8, 8, rounding)
        planes[k][y : y + 8, x : x + 8] = block


def count_mismatches(bitstream: Bitstream, residuals: dict[int, Residual]):
    """How many samples differ from clip(prediction + residual), over all P-frames given.

    Only samples of inter blocks whose residual fits 8 bits can be compared.
    """
    pictures = list(bitstream.pictures())
    mismatches = compared = saturated = 0
    kinds = {"full": 0, "half": 0, "four": 0, "rounding 0": 0, "rounding 1": 0}
    for number, residual in residuals.items():
        rounding = rounding_control(bitstream.packets[number], bitstream._format.layer.time_bits)
        kinds[f"rounding {rounding}"] += 1
        prediction, counted = predict(pictures[number - 1], residual.motion_vectors, rounding)
        for name, value in counted.items():
            kinds[name] += value
        sent = (residual.y, residual.u, residual.v)
        for p, r, decoded in zip(prediction, sent, pictures[number], strict=True):
            inter, fits = p >= 0, (r > 0) & (r < 255)
            wanted = np.clip(p + r.astype(np.int32) - GRAY, 0, 255)
            mismatches += int(((wanted != decoded) & inter & fits).sum())
            compared += int((inter & fits).sum())
            saturated += int((inter & ~fits).sum())
    return mismatches, compared, saturated, kinds


def direct_residuals(bitstream: Bitstream) -> dict[int, Residual]:
    return {n: bitstream.direct_residual(n) for gop in bitstream.gops for n in gop[1:]}


def luma_on_flat_reference(bitstream: Bitstream, number: int, gray_level: int):
    """A P-frame's luma decoded on a flat reference of another level, and that level."""
    flat = np.full((bitstream.height, bitstream.width, 3), gray_level, np.uint8)
    other = encode([flat], CodecSettings(quantizer=1), bitstream.fps)
    decoder = av.CodecContext.create("mpeg4", "r")
    decoder.thread_count = 1
    frames = []
    for data in (other._format.alone(0), bitstream.packets[number]):
        packet = av.Packet(len(data))
        packet.update(data)
        frames += decoder.decode(packet)
    frames += decoder.decode(None)
    level, luma = (planes_of(frame)[0].astype(int) for frame in frames)
    assert level.min() == level.max()
    return luma, level[0, 0]


def not_coded(packet: bytes, time_bits: int) -> bytes:
    """The P-VOP's header with vop_coded = 0, as a video conference's encoder sends it."""
    start = packet.find(VOP_START_CODE) + 4
    bits = "".join(f"{b:08b}" for b in packet[start : start + 16])
    at = bits.index("0", 2) + 1 + 1 + time_bits + 1
    bits = bits[:at] + "0"
    bits += "0" + "1" * (-(len(bits) + 1) % 8)
    return packet[:start] + int(bits, 2).to_bytes(len(bits) // 8, "big")


def with_intra_blocks(folder: Path) -> Bitstream:
    """Four frames of another encoder; in P-frame 2 it codes what nothing predicts as intra."""
    pictures = moving_texture(4, seed=1)
    pictures[2] = pictures[2].copy()
    pictures[2][32:64, 48:96] = 250
    return Bitstream.open(someone_elses(pictures, folder / "intra.avi", qmin="2", qmax="2"))
