"""What `cfer look` shows, as arrays: what one GOP holds, and where a recognizer looked in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from cfer.codec import GRAY, MACROBLOCK, Bitstream, Residual
from cfer.data.inputs import BLOCK, traced_motion
from cfer.data.shards import Clip
from cfer.model.card import ModelCard
from cfer.model.network import Predictor, scale_planes

NUM_RESIDUALS = 4  # of each kind that are drawn, at most

EMPTY, INTER, INTER_PARTS, INTRA = range(4)


def frame_bytes(bitstream: Bitstream, gop: int) -> np.ndarray:
    """What each frame of a GOP takes in the bitstream: int64 (frames,), bytes."""
    return np.array([len(bitstream.packets[n]) for n in bitstream.gops[gop]], np.int64)


def movements(residual: Residual) -> np.ndarray:
    """How the blocks of a P-frame moved since the frame before it: float32 (blocks, 4), pixels.

    A row is the block's center (x, y) and its movement (dx, dy), to the right and downwards, from
    the place in the frame before that the block is predicted from. Intra blocks have no row.
    """
    vectors = residual.motion_vectors
    # A vector points from the block back to where it comes from.
    scale = np.maximum(vectors["motion_scale"], 1).astype(np.float32)
    moved = -vectors["motion_x"] / scale, -vectors["motion_y"] / scale
    return np.stack([vectors["dst_x"], vectors["dst_y"], *moved], axis=1).astype(np.float32)


def movements_since_i_frame(residuals: Iterable[Residual]) -> np.ndarray:
    """How the 8 × 8 blocks of a GOP's last P-frame moved since its I-frame.

    Args:
        residuals: those of all P-frames of the GOP, up to that one.

    Returns:
        float32 (blocks, 4), rows as in `movements`: the vectors, traced back (`traced_motion`).
    """
    (last,) = deque(traced_motion(residuals), maxlen=1)
    down, right = -last
    row, column = (np.indices(down.shape) + 0.5) * BLOCK
    parts = [part.ravel() for part in (column, row, right, down)]
    return np.stack(parts, axis=1).astype(np.float32)


def block_types(residual: Residual) -> np.ndarray:
    """How each macroblock of a P-frame is coded: uint8 (ceil(H/16), ceil(W/16)).

    Args:
        residual: a direct one; an accumulated one is not zero where its frame has nothing.

    Returns:
        INTRA: no prediction, the bitstream holds the samples themselves; INTER: one vector for
        16 × 16; INTER_PARTS: a vector for each 8 × 8 (for each field, if interlaced); EMPTY: the
        vector and the residual are zero. Whether an empty block was skipped by a single bit or
        written out can't be told from what a decoder gives.
    """
    height, width = residual.y.shape
    types = np.full((-(-height // MACROBLOCK), -(-width // MACROBLOCK)), EMPTY, np.uint8)
    if not residual.is_coded:
        return types
    types[has_samples(residual)] = INTER
    vectors = residual.motion_vectors
    rows, columns = vectors["dst_y"] // MACROBLOCK, vectors["dst_x"] // MACROBLOCK
    moves = (vectors["motion_x"] != 0) | (vectors["motion_y"] != 0)
    types[rows[moves], columns[moves]] = INTER
    num_vectors = np.zeros(types.shape, int)
    np.add.at(num_vectors, (rows, columns), 1)
    types[num_vectors > 1] = INTER_PARTS
    types[num_vectors == 0] = INTRA
    return types


def has_samples(residual: Residual) -> np.ndarray:
    """Where a residual is not zero in Y, U or V: bool (ceil(H/16), ceil(W/16)), by macroblock."""
    height, width = residual.y.shape
    found = np.zeros((-(-height // MACROBLOCK), -(-width // MACROBLOCK)), bool)
    for plane in (residual.y, residual.u, residual.v):
        side = MACROBLOCK if plane is residual.y else MACROBLOCK // 2
        rows, columns = np.nonzero(plane != GRAY)
        found[rows // side, columns // side] = True
    return found


class ClassActivation(NamedTuple):
    """What each place of each frame adds to the score of the likeliest class.

    Attributes:
        target: the number of that class in the model's.
        probabilities: of all classes, float32 (classes,), which sum to 1.
        contributions: float32 (T, rows, columns), for the T frames that the model was given and the
            cells of the encoder's last stage. They sum to the target's logit, less what that logit
            would be if the stage were zero everywhere (its bias).
    """

    target: int
    probabilities: np.ndarray
    contributions: np.ndarray


def class_activation(predictor: Predictor, planes: np.ndarray) -> ClassActivation:
    """Where a model looked: Zhou et al., "Learning Deep Features for Discriminative Localization",
    CVPR 2016.

    After the last stage come an average over a grid, a mean over the frames and two linear layers.
    So a logit is linear in the stage's output, and output × gradient, summed over the channels, is
    exactly what a cell adds to it. (With max pooling over the frames it is linear piece by piece
    and grows in proportion to that output, so the sum is exact there as well.)

    Args:
        predictor: the model, in evaluation mode.
        planes: its input, uint8 (T, C, S/2, S/2).
    """
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    hook = predictor.encoder.stages.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            # A copy, since the planes may be read-only.
            code = predictor.encoder(scale_planes(torch.tensor(planes))[None])
            logits = predictor.classifier(code)[0]
    finally:
        hook.remove()
    target = int(logits.argmax())
    (gradient,) = torch.autograd.grad(logits[target], kept[0])
    contributions = (gradient * kept[0].detach()).sum(1)
    probabilities = logits.detach().softmax(0)
    return ClassActivation(target, probabilities.numpy(), contributions.numpy())


def activation_picture(contributions: np.ndarray, size: int, stem_stride: int) -> np.ndarray:
    """One frame's contributions, float32 (rows, columns), over its picture: float32 (size, size).

    Interpolated, so what it shows is a place, and not a quantity that sums to anything.
    """
    # A plane has half of the picture's sides, and two of the stages halve it again.
    cell = 8 * stem_stride
    # The strides sample from the first place on: a cell looks around the pixel cell · n, and not
    # around the middle of the n-th tile of so many pixels.
    at = ((np.arange(size) - 0.5) / cell).astype(np.float32)
    columns, rows = np.meshgrid(at, at)
    cells = np.ascontiguousarray(contributions, np.float32)
    return cv2.remap(cells, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


@dataclass(frozen=True)
class ShownGop:
    """A GOP. Its frames are named by their positions in it: 0 is the I-frame.

    Attributes:
        name: of the video or the clip.
        bitstream, gop: the GOP's number, from 0.
    """

    name: str
    bitstream: Bitstream
    gop: int

    @property
    def numbers(self) -> range:
        """The frames' numbers in the bitstream."""
        return self.bitstream.gops[self.gop]

    @cached_property
    def sizes(self) -> np.ndarray:
        return frame_bytes(self.bitstream, self.gop)[: len(self.numbers)]

    @property
    def last(self) -> int:
        return len(self.sizes) - 1

    def direct(self, position: int) -> Residual:
        return self.bitstream.direct_residual(self.numbers[position])


@dataclass(frozen=True)
class Shown(ShownGop):
    """A GOP, and what a model makes of it.

    Attributes:
        clip: the row that it is stored in, if it comes out of a data set.
        model_name, card: of the model.
        activation: None where the model can't be given such a clip.
        given: the frames that the model was given.
    """

    clip: Clip | None
    model_name: str
    card: ModelCard
    activation: ClassActivation | None
    given: Sequence[int]

    @cached_property
    def positions(self) -> list[int]:
        """Of the P-frames whose residuals are drawn."""
        steps = np.linspace(1, self.last, min(NUM_RESIDUALS, self.last))
        return sorted({round(step) for step in steps})

    @cached_property
    def accumulated(self) -> dict[int, Residual]:
        """Those that are drawn: of a long GOP no more are held at a time."""
        residuals = enumerate(self.bitstream.iter_accumulated_residuals(self.gop), start=1)
        return {n: r for n, r in residuals if n in self.positions or n in self.given}

    @property
    def kind_given(self) -> str | None:
        """Of the residuals that the model is given, or whose size, if it is given any."""
        kind = self.card.what.kind.replace("energy", "accumulated")
        return next((name for name in ("direct", "accumulated") if kind.startswith(name)), None)

    def luma_residual(self, kind: str, position: int) -> np.ndarray:
        """int16 (H, W), from -128 to 127."""
        residual = self.direct(position) if kind == "direct" else self.accumulated[position]
        return residual.y.astype(np.int16) - GRAY

    def limit(self, kind: str) -> int:
        """The residual's size at the colors' end: beyond it are 1 % of the samples."""
        sizes = [np.abs(self.luma_residual(kind, position)) for position in self.positions]
        return max(int(np.percentile(sizes, 99)), 8)

    def luma(self, position: int) -> np.ndarray:
        """The decoded picture's Y: uint8 (H, W)."""
        return next(islice(self.bitstream.gop_pictures(self.gop), position, None))[0]
