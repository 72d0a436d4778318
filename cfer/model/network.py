"""The expression net: a clip's planes → expression code z_R → classes; and the apex decoder.

Nothing is resampled on the way in: `cfer.data.inputs` turns the luma's 2×2 samples into four planes
of the resolution that U and V have, S/2. The networks normalize by GroupNorm: with BatchNorm, N DDP
workers, each with the statistics of its own batch, would differ from one with the N-fold batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfer.codec import GRAY
from cfer.errors import InputError

MOST = 4096  # channels, classes, … of a network: a card with more is damaged
NORM_GROUPS = 4
STEM = 5  # samples along one side of the stem's filter: a longer stride would leave some out
POOLINGS = ("mean", "max")
MOST_BLUR = 16
EARLIER_STEM_STRIDE = 2  # of all networks before the stride was stored with them
GRID = 4  # a crop is aligned with the face, so where something moves matters: in a 4 × 4 grid


@dataclass(frozen=True)
class ModelConfig:
    """The hyper-parameters of a network.

    Attributes:
        num_classes: expressions.
        identity_dim: dimension of z_I, the face embedder's vector.
        num_planes, gain: of the input, `cfer.data.inputs.Input`.
        blur: standard deviation of a Gaussian that the planes are blurred by, in their samples; 0:
            none. What is often done to hide who is seen.
        width: channels of the stem and of the first of three stages, a multiple of `NORM_GROUPS`;
            each later stage has twice as many.
        stem_stride: of the stem, in samples of the planes.
        code_dim: dimension of the expression code z_R.
        pooling: over a clip's frames, "mean" or "max".
        dropout: share of z_R that is zeroed before the classifier in training, in [0, 1).

    Raises:
        InputError: a value out of its range.
    """

    num_classes: int
    identity_dim: int
    num_planes: int = 6
    gain: float = 8.0
    blur: float = 0.0
    width: int = 16
    stem_stride: int = 4
    code_dim: int = 64
    pooling: str = "mean"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = ("num_classes", "identity_dim", "num_planes", "width", "code_dim")
        for name, most in {**dict.fromkeys(sizes, MOST), "stem_stride": STEM}.items():
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name} {getattr(self, name)} is not between 1 and {most}")
        if self.width % NORM_GROUPS:
            raise InputError(f"width {self.width}: give a multiple of {NORM_GROUPS}")
        if not 0 <= self.blur <= MOST_BLUR:
            raise InputError(f"blur {self.blur} is not between 0 and {MOST_BLUR}")
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling {self.pooling}: give one of {', '.join(POOLINGS)}")
        if not 0 < self.gain < math.inf or not 0 <= self.dropout < 1:
            raise InputError(
                f"gain {self.gain}, dropout {self.dropout}: give a positive number, and a share"
            )


def scale_planes(planes: Tensor) -> Tensor:
    """uint8, 128 = zero → float32 in [-1, 1)."""
    return (planes.float() - GRAY) / GRAY


class _Block(nn.Module):
    """Two 3×3 convolutions around a shortcut; halves the picture where `stride` is 2."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_inputs, num_outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.GroupNorm(NORM_GROUPS, num_outputs)
        self.second = nn.Conv2d(num_outputs, num_outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(NORM_GROUPS, num_outputs)
        self.shortcut = nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


def _blurred(planes: Tensor, deviation: float) -> Tensor:
    """(N, C, H, W), along both axes in turn, out to four deviations; beyond the edge, the edge goes
    on."""
    reach = math.ceil(4 * deviation)
    steps = torch.arange(-reach, reach + 1, dtype=planes.dtype, device=planes.device)
    weights = torch.softmax(-0.5 * (steps / deviation) ** 2, 0)
    count = planes.shape[1]
    padded = F.pad(planes, (reach,) * 4, mode="replicate")
    across = weights.expand(count, 1, 1, -1)
    return F.conv2d(F.conv2d(padded, across, groups=count), across.transpose(2, 3), groups=count)


class Encoder(nn.Module):
    """E: the planes of a clip's frames → expression code z_R, pooled over the frames."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.gain = config.gain
        self.pooling = config.pooling
        # Strided, since a first stage at full size would take most of the time.
        self.stem = nn.Conv2d(config.num_planes, width, STEM, config.stem_stride, STEM // 2)
        self.stages = nn.Sequential(
            _Block(width, width, 1),
            _Block(width, 2 * width, 2),
            _Block(2 * width, 4 * width, 2),
        )
        self.code = nn.Linear(4 * width * GRID**2, config.code_dim)
        self.blur = config.blur
        # Convolutions on CPUs are fastest in this layout.
        self.to(memory_format=torch.channels_last)

    def forward(self, planes: Tensor, mask: Tensor | None = None) -> Tensor:
        """planes float (N, T, C, S/2, S/2), mask bool (N, T) → z_R float (N, code_dim).

        The mask is False where a clip has no frame; those planes have no influence. None: all are
        there.
        """
        num_clips, num_frames = planes.shape[:2]
        # Clips differ in length: a batch that is as long as its longest has mostly empty places.
        there = planes.flatten(0, 1) if mask is None else planes[mask]
        scaled = (self.gain * there).contiguous(memory_format=torch.channels_last)
        if self.blur:
            scaled = _blurred(scaled, self.blur)
        x = self.stages(F.relu(self.stem(scaled)))
        frames = F.adaptive_avg_pool2d(x, GRID).flatten(1)
        if mask is None:
            frames = frames.reshape(num_clips, num_frames, -1)
            counts: Tensor | int = num_frames
        else:
            # A stage's output is never negative, so a missing frame is never the largest.
            frames = frames.new_zeros(*mask.shape, frames.shape[1]).masked_scatter(
                mask.unsqueeze(-1), frames
            )
            counts = mask.sum(1, keepdim=True)
        return self.code(frames.amax(1) if self.pooling == "max" else frames.sum(1) / counts)


class ApexDecoder(nn.Module):
    """(z_R, z_I) → the apex picture, RGB float (N, 3, APEX_SIZE, APEX_SIZE) in [0, 1].

    It takes the identity from z_I, so z_R can lose the identity without losing the expression.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.start = nn.Linear(config.code_dim + config.identity_dim, 64 * 4 * 4)
        self.grow = nn.Sequential(
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 3, 4, 2, 1),
        )

    def forward(self, z_R: Tensor, z_I: Tensor) -> Tensor:
        start = self.start(torch.cat([z_R, z_I], dim=1)).reshape(-1, 64, 4, 4)
        return torch.sigmoid(self.grow(start))


class ExpressionNet(nn.Module):
    """Player 2: encoder E, classifier C and, if `with_apex`, the apex decoder."""

    def __init__(self, config: ModelConfig, with_apex: bool) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.code_dim, config.num_classes)
        self.apex_decoder = ApexDecoder(config) if with_apex else None

    def forward(
        self, planes: Tensor, mask: Tensor, z_I: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """planes and mask as in `Encoder`, z_I float (N, d), standardized → z_R (N, code_dim),
        logits (N, num_classes), apex (N, 3, 32, 32) or None.

        z_I reaches nothing but the apex.
        """
        z_R = self.encoder(planes, mask)
        apex = None if self.apex_decoder is None else self.apex_decoder(z_R, z_I)
        return z_R, self.classifier(self.dropout(z_R)), apex


class Predictor(nn.Module):
    """E and C of an expression net, as they are stored for prediction: no identity, no apex."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.classifier = nn.Linear(config.code_dim, config.num_classes)

    @classmethod
    def of(
        cls, expression_net: ExpressionNet, config: ModelConfig, temperature: float
    ) -> Predictor:
        """A copy of a trained expression net's E and C, on the CPU, in evaluation mode.

        C's weights are divided by the temperature, so that its logits are.
        """
        predictor = cls(config)
        predictor.encoder.load_state_dict(expression_net.encoder.state_dict())
        classifier = expression_net.classifier.state_dict()
        predictor.classifier.load_state_dict({k: v / temperature for k, v in classifier.items()})
        return predictor.eval()

    def forward(self, planes: Tensor) -> Tensor:
        """`cfer.data.inputs` planes, uint8 (N, T, C, S/2, S/2) → probabilities, float32
        (N, num_classes), rows that sum to 1."""
        return self.classifier(self.encoder(scale_planes(planes))).softmax(1)


def not_finite(state: Mapping[str, Any]) -> str | None:
    """The name of a tensor in a state, or in one within it, that is not finite; None: all are."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            if found := not_finite(value):
                return f"{name} {found}"
        elif isinstance(value, Tensor) and not torch.isfinite(value).all():
            return name
    return None
