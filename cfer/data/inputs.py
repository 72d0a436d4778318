"""A recognizer's input: which frames of a clip's bitstream, as which planes.

The recommended input is `accumulated+motion`. The others, which it is compared with, are read from
the same bitstream:

    accumulated          change since the GOP's I-frame, less what motion explains
    direct               the residual that each P-frame transmits
    motion               motion vectors, traced back to the I-frame as in CoViAR
    accumulated+motion   both
    energy               how large the residual is, whatever its sign
    energy+motion        both
    pictures             decoded pictures, as in most other work
    difference           decoded picture less the clip's first one

Every kind is uint8 planes (T, C, S/2, S/2) with 128 = zero (in a picture: mid-gray), so one encoder
takes them all. Training and prediction read them by the same function.

Whose residuals they are is another choice: `encoded`, of the face, cut out and encoded anew; or
`native`, those that an H.264 file itself transmits (`cfer.data.native`), in the same planes. Of the
first, the energy is that of the accumulated residual; of the second, that of the direct ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from cfer.codec import GRAY, Bitstream, CodecError, Residual
from cfer.errors import InputError

KINDS = (
    *("accumulated", "direct", "motion", "accumulated+motion", "energy", "energy+motion"),
    *("pictures", "difference"),
)
PLANES = ("yuv", "luma")
STREAMS = ("encoded", "native", "both")
NATIVE_KINDS = ("energy", "motion", "energy+motion")
NATIVE_PLANES = 5  # energy of Y, U and V; motion down and right
LAST = "last"
FrameRule = int | Literal["last"]
BLOCK = 8  # samples of luma along one side of the smallest block that has a motion vector
STEPS_PER_PIXEL = 4  # of a motion plane
STEPS_OF_ENERGY = 4  # of an energy plane, for each step of the residual
APEX_SIZE = 32  # side in pixels of the picture that the apex decoder rebuilds


def parse_frame_rule(text: str) -> FrameRule:
    """Parse `last`, or a number of frames ≥ 1; raises `InputError` for anything else."""
    if text == LAST:
        return "last"
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise InputError(f"--frames {text}: neither `{LAST}` nor a number of frames; give one of them")


def apex_picture(picture: np.ndarray) -> np.ndarray:
    """RGB, uint8 (S, S, 3) → the picture that the apex decoder rebuilds, uint8 (32, 32, 3)."""
    small = Image.fromarray(picture).resize((APEX_SIZE, APEX_SIZE), Image.Resampling.BOX)
    return np.asarray(small)


def select_frames(
    i_frame_numbers: Sequence[int],
    residual_frame_numbers: Sequence[int],
    rule: FrameRule,
    generator: np.random.Generator | None = None,
) -> list[int]:
    """The P-frames of a clip that the recognizer looks at.

    Args:
        i_frame_numbers: the clip's I-frames, ascending.
        residual_frame_numbers: its P-frames, ascending.
        rule: "last": the last P-frame of each GOP, whose accumulated residual is the whole change
            of the GOP; or N: that many P-frames of the clip, all where it has fewer.
        generator: draws the N frames at random, as in training; None: they are evenly spaced.

    Returns:
        Ascending frame numbers; none where the clip has no P-frame.
    """
    total = len(residual_frame_numbers)
    if rule == LAST:
        gop = np.searchsorted(i_frame_numbers, residual_frame_numbers)
        chosen = np.flatnonzero(np.diff(gop, append=-1))
    elif generator is None:
        count = min(int(rule), total)
        chosen = ((np.arange(count) + 0.5) * total / max(count, 1)).astype(int)
    else:
        chosen = np.sort(generator.choice(total, min(int(rule), total), replace=False))
    return [int(frame) for frame in np.asarray(residual_frame_numbers, int)[chosen]]


@dataclass(frozen=True)
class Input:
    """A kind of input, its planes, and its frames.

    Attributes:
        kind: one of `KINDS`.
        planes: "yuv", or "luma" alone.
        frames: "last", or a number of frames; see `select_frames`.
        stream: "encoded", "native" where there is such an input of a clip, or in training "both"
            by turns; a model of the last two reads H.264 as it is.

    Raises:
        InputError: none of these; or a kind that isn't read of a native stream.
    """

    kind: str = "accumulated"
    planes: str = "yuv"
    frames: FrameRule = "last"
    stream: str = "encoded"

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("--input", self.kind, KINDS),
            ("--planes", self.planes, PLANES),
            ("--stream", self.stream, STREAMS),
        ):
            if value not in allowed:
                raise InputError(f"{what} {value}: give one of {', '.join(allowed)}")
        parse_frame_rule(str(self.frames))
        if self.is_native and (self.kind not in NATIVE_KINDS or self.frames != LAST):
            raise InputError(
                f"--stream {self.stream}: of H.264 as it is, a whole run is seen in one; "
                f"give --input {' or '.join(NATIVE_KINDS)}, and --frames {LAST}"
            )

    @property
    def is_native(self) -> bool:
        """Whether H.264 is read as it is, where that can be done."""
        return self.stream != "encoded"

    @property
    def _has_samples(self) -> bool:
        return self.kind != "motion"

    @property
    def _has_motion(self) -> bool:
        return self.kind.endswith("motion")

    @property
    def _luma_planes(self) -> int:
        return 1 if self.kind.startswith("energy") else 4

    @property
    def mirror(self) -> tuple[list[int], list[int]]:
        """The order and the signs that the planes of a mirrored picture have, besides each plane
        being mirrored itself.

        The planes are luma's (even row, even column), (even, odd), (odd, even), (odd, odd), or its
        energy; then U and V; then the vertical and the horizontal part of the motion.
        """
        order: list[int] = []
        if self._has_samples:
            luma = self._luma_planes
            order = [1, 0, 3, 2] if luma == 4 else [0]
            order += [luma, luma + 1] if self.planes == "yuv" else []
        signs = [1] * len(order)
        if self._has_motion:
            order, signs = order + [len(order), len(order) + 1], signs + [1, -1]
        return order, signs

    def mirrored(self, planes: np.ndarray) -> np.ndarray:
        """The planes of the mirrored pictures, uint8 (…, C, S/2, S/2) → the same."""
        order, signs = self.mirror
        turned = planes[..., order, :, ::-1].copy()
        for plane, sign in enumerate(signs):
            if sign < 0:
                opposite = 2 * GRAY - turned[..., plane, :, :].astype(np.int16)
                turned[..., plane, :, :] = opposite.clip(0, 255)
        return turned

    @property
    def num_planes(self) -> int:
        """C: 4 of luma (of an energy, 1), 2 of chroma, 2 of motion."""
        return len(self.mirror[0])

    @property
    def gain(self) -> float:
        """A factor that brings planes in [-1, 1) to the scale that a network's initialization
        expects: changes are well under 1 % of the range in most samples, but pictures are not."""
        return 2.0 if self.kind == "pictures" else 8.0

    def of_native(self, planes: np.ndarray) -> np.ndarray:
        """What is seen of the planes of a native stream, uint8 (…, 5, S/2, S/2) → the same with C
        planes."""
        chosen = [0, *([1, 2] if self.planes == "yuv" else [])] if self._has_samples else []
        return planes[..., chosen + ([3, 4] if self._has_motion else []), :, :]

    def views_of(
        self, bitstreams: Sequence[bytes], native: Sequence[bytes], name: str, for_training: bool
    ) -> list[np.ndarray]:
        """The planes of each view of a clip that there is in its stream, uint8 (P, C, S/2, S/2).

        Args:
            bitstreams: the encoded views of its shard's row, the one that was found first.
            native: its native ones, as there; none where H.264 couldn't be read as it is. Then it's
                seen as `Recognizer` sees such a window: encoded anew.
            for_training: all P-frames, where N of them are drawn anew each epoch; and the views of
                both streams, if `stream` says so. Otherwise what a prediction is given.

        Raises:
            CodecError: no P-frame, or a damaged one.
        """
        views = [Bitstream(data, name) for data in bitstreams]
        side = views[0].width // 2
        found = []
        if self.is_native:
            shape = (-1, NATIVE_PLANES, side, side)
            found = [self.of_native(np.frombuffer(v, np.uint8).reshape(shape)) for v in native]
        if found and not (for_training and self.stream == "both"):
            return found
        gops = range(len(views[0].gops))
        for view in views:
            wanted = self.wanted(view, gops)
            if for_training and self.frames != LAST:
                wanted = [frame for gop in view.gops for frame in gop[1:]]
            found.append(self.read_frames(view, gops, wanted))
        return found

    def read(self, bitstream: Bitstream, gops: range) -> np.ndarray:
        """The planes of the frames that are `wanted` of these GOPs: uint8 (T, C, S/2, S/2).

        Raises:
            CodecError: no P-frame there, or a damaged one.
        """
        return self.read_frames(bitstream, gops, self.wanted(bitstream, gops))

    def wanted(self, bitstream: Bitstream, gops: range) -> list[int]:
        """The frames of these GOPs that `self.frames` selects, evenly spaced if it is a number."""
        chosen = [bitstream.gops[g] for g in gops]
        p_frames = [frame for gop in chosen for frame in gop[1:]]
        return select_frames([gop[0] for gop in chosen], p_frames, self.frames)

    def read_frames(self, bitstream: Bitstream, gops: range, wanted: Sequence[int]) -> np.ndarray:
        """As `read`, for given P-frames of these GOPs, in ascending order."""
        if not wanted:
            raise CodecError(f"{bitstream.name}: it has no P-frame, so there is no change to see")
        if self.kind in ("pictures", "difference"):
            return self._decoded(bitstream, gops, wanted)
        if self.kind == "direct":
            return np.stack([self._samples(bitstream.direct_residual(n).packed()) for n in wanted])
        planes = []
        for g in _gops_of(bitstream, gops, wanted):
            residuals = bitstream.accumulated_residuals(g)
            motion = list(traced_motion(residuals)) if self._has_motion else None
            for position, residual in enumerate(residuals):
                if residual.frame not in wanted:
                    continue
                parts = [self._samples(residual.packed())] if self._has_samples else []
                if motion is not None:
                    parts.append(_motion_planes(motion[position], bitstream.width // 2))
                planes.append(np.concatenate(parts))
        return np.stack(planes)

    def packets_read(self, bitstream: Bitstream, gops: range) -> list[int]:
        """The frames whose packets `read` gives to the decoder: the cost of fetching the input."""
        wanted = self.wanted(bitstream, gops)
        if self.kind == "direct":
            return wanted
        first = bitstream.gops[gops[0]]
        frames = [n for g in _gops_of(bitstream, gops, wanted) for n in bitstream.gops[g]]
        if self.kind == "pictures":
            return frames
        if self.kind == "difference":
            return sorted({first[0], *frames})
        return [n for n in frames if bitstream.frame_types[n] != "I"]

    def _samples(self, packed: np.ndarray) -> np.ndarray:
        planes = to_planes(packed)
        if self.kind.startswith("energy"):
            sizes = np.abs(planes.astype(np.int16) - GRAY)
            planes = energy_steps(np.concatenate([sizes[:4].mean(0, keepdims=True), sizes[4:]]))
        return planes if self.planes == "yuv" else planes[: self._luma_planes]

    def _decoded(self, bitstream: Bitstream, gops: range, wanted: Sequence[int]) -> np.ndarray:
        first: np.ndarray | None = None  # the clip's first picture
        planes = []
        for g in sorted({gops[0], *_gops_of(bitstream, gops, wanted)}):
            for number, (y, u, v) in zip(bitstream.gops[g], bitstream.gop_pictures(g), strict=True):
                if first is not None and number not in wanted:
                    continue
                picture = self._samples(Residual(number, y, u, v, np.zeros(0)).packed())
                first = picture if first is None else first
                if number not in wanted:
                    continue
                if self.kind == "difference":
                    change = picture.astype(np.int16) - first
                    picture = (change + GRAY).clip(0, 255).astype(np.uint8)
                planes.append(picture)
        return np.stack(planes)


def _gops_of(bitstream: Bitstream, gops: range, wanted: Sequence[int]) -> list[int]:
    return [g for g in gops if any(frame in bitstream.gops[g] for frame in wanted)]


def to_planes(packed: np.ndarray) -> np.ndarray:
    """Planar YUV 4:2:0 in one picture, uint8 (3S/2, S) → uint8 (6, S/2, S/2).

    Luma at (even row, even column), (even, odd), (odd, even), (odd, odd), then U, V: each sample
    once, at chroma's resolution.
    """
    side = packed.shape[-1]
    half = side // 2
    luma = packed[:side].reshape(half, 2, half, 2).transpose(1, 3, 0, 2).reshape(4, half, half)
    return np.concatenate([luma, packed[side:].reshape(2, half, half)])


def traced_motion(residuals: Iterable[Residual]) -> Iterator[np.ndarray]:
    """The displacement from each block to its origin in the GOP's I-frame, frame by frame: pixels,
    vertical then horizontal, float32 (2, rows, columns), of blocks of `BLOCK` × `BLOCK` samples.

    It is the P-frame's own vector plus the displacement traced so far for the block that it points
    into (Wu et al., "Compressed Video Action Recognition", CVPR 2018, accumulated motion vectors).
    """
    traced: np.ndarray | None = None
    for residual in residuals:
        height, width = residual.y.shape
        rows, columns = -(-height // BLOCK), -(-width // BLOCK)
        own = block_motion(residual.motion_vectors, rows, columns)
        if traced is not None:
            row, column = np.mgrid[:rows, :columns]
            source = [
                np.clip(np.floor(((at + 0.5) * BLOCK + part) / BLOCK), 0, last - 1).astype(int)
                for at, part, last in ((row, own[0], rows), (column, own[1], columns))
            ]
            own = own + traced[:, source[0], source[1]]
        traced = own
        yield traced


def block_motion(vectors: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A frame's exported vectors (`MOTION_VECTOR_DTYPE`) laid out over its blocks: pixels, vertical
    then horizontal, float32 (2, rows, columns); zero where a block has none."""
    # What lies beyond the picture falls into the last row and column, which are left out.
    field = np.zeros((2, rows + 1, columns + 1), np.float32)
    moved = np.stack([vectors["motion_y"], vectors["motion_x"]]) / vectors["motion_scale"]
    # A vector is exported with the center of its block, of 16 × 16 or 8 × 8 samples.
    height, width = (vectors[name].astype(np.int32) for name in ("h", "w"))
    top = (vectors["dst_y"] - height // 2) // BLOCK
    left = (vectors["dst_x"] - width // 2) // BLOCK
    for down, right in np.ndindex(2, 2):
        covered = (down * BLOCK < height) & (right * BLOCK < width)
        row = np.minimum(top[covered] + down, rows)
        field[:, row, np.minimum(left[covered] + right, columns)] = moved[:, covered]
    return field[:, :rows, :columns]


def energy_steps(sizes: np.ndarray) -> np.ndarray:
    """Mean absolute residuals → uint8, `STEPS_OF_ENERGY` for each step, 128 = none, at most 255."""
    return np.rint(sizes * STEPS_OF_ENERGY + GRAY).clip(0, 255).astype(np.uint8)


def motion_steps(motion: np.ndarray) -> np.ndarray:
    """Pixels → uint8, `STEPS_PER_PIXEL` steps a pixel, 128 = zero."""
    return np.rint(motion * STEPS_PER_PIXEL + GRAY).clip(0, 255).astype(np.uint8)


def _motion_planes(motion: np.ndarray, side: int) -> np.ndarray:
    """(2, rows, columns) in pixels → uint8 (2, side, side), `STEPS_PER_PIXEL` steps a pixel."""
    repeat = BLOCK // 2
    return motion_steps(motion).repeat(repeat, 1).repeat(repeat, 2)[:, :side, :side]
