"""The recogniser: residual frames → expression code z_R → classes; and the decoder of the apex.

A packed residual picture is planar YUV 4:2:0, uint8 (3S/2, S), 128 = zero. Nothing is resampled on
the way in: the luma's 2×2 pixels become four channels at S/2, where U and V already are, so a
picture is six planes at S/2. The networks normalise by GroupNorm: with BatchNorm the statistics of
each DDP worker's own batch would make N workers differ from one with the N-fold batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_PLANES = 6
GRID = 4  # a crop is aligned with the face: where something moves is kept to a 4 × 4 grid
APEX_SIZE = 32  # side in pixels of the picture that the apex decoder rebuilds


@dataclass(frozen=True)
class ModelConfig:
    """What fixes the shape of a recogniser's weights.

    Attributes:
        num_classes: expressions.
        identity_dim: dimension of z_I (the frozen face recogniser's).
        width: channels of the first stage; each of the three later stages has up to twice as many.
        code_dim: dimension of the expression code z_R.
        dropout: share of z_R that is zeroed before the classifier in training, in [0, 1).
    """

    num_classes: int
    identity_dim: int
    width: int = 16
    code_dim: int = 64
    dropout: float = 0.0


def residual_planes(packed: Tensor) -> Tensor:
    """Packed residual pictures, uint8 (..., 3S/2, S) → float32 (..., 6, S/2, S/2) in [-1, 1).

    Channels: luma at (even row, even column), (even, odd), (odd, even), (odd, odd), then U, V.
    """
    lead, side = packed.shape[:-2], packed.shape[-1]
    luma, chroma = packed[..., :side, :], packed[..., side:, :]
    planes = torch.cat(
        [
            F.pixel_unshuffle(luma.reshape(-1, 1, side, side), 2),
            chroma.reshape(-1, 2, side // 2, side // 2),
        ],
        dim=1,
    )
    return ((planes.float() - 128) / 128).reshape(*lead, NUM_PLANES, side // 2, side // 2)


class _Block(nn.Module):
    """Two 3×3 convolutions around a shortcut; halves the picture where `stride` is 2."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_inputs, num_outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.GroupNorm(4, num_outputs)
        self.second = nn.Conv2d(num_outputs, num_outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(4, num_outputs)
        self.shortcut = nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


class ResidualEncoder(nn.Module):
    """E: residual frames of a clip → expression code z_R; the mean over the clip's frames.

    Residuals are small (|value| well under 1 % of the range on most pixels): a fixed gain brings
    them to the scale that the initialisation expects.
    """

    GAIN = 8.0

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.stem = nn.Conv2d(NUM_PLANES, width, 3, 1, 1)
        self.stages = nn.Sequential(
            _Block(width, width, 2),
            _Block(width, 2 * width, 2),
            _Block(2 * width, 4 * width, 2),
        )
        self.code = nn.Linear(4 * width * GRID**2, config.code_dim)

    def forward(self, planes: Tensor, mask: Tensor) -> Tensor:
        """planes float (N, T, 6, S/2, S/2), mask bool (N, T) → z_R float (N, code_dim).

        A clip with fewer than T frames has False in its mask where there is none; what stands there
        has no influence.
        """
        num_clips, num_frames = planes.shape[:2]
        x = self.stages(F.relu(self.stem(self.GAIN * planes.flatten(0, 1))))
        frames = F.adaptive_avg_pool2d(x, GRID).reshape(num_clips, num_frames, -1)
        weights = mask.to(frames.dtype).unsqueeze(-1)
        pooled = (frames * weights).sum(1) / weights.sum(1)
        return self.code(pooled)


class ApexDecoder(nn.Module):
    """(z_R, z_I) → the apex picture, RGB float (N, 3, APEX_SIZE, APEX_SIZE) in [0, 1].

    What the expression code gives up about the identity this gets back from z_I, so the code loses
    nothing that belongs to the expression.
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


class Recogniser(nn.Module):
    """Player 2: encoder E, classifier C and, where `with_apex`, the apex decoder."""

    def __init__(self, config: ModelConfig, with_apex: bool) -> None:
        super().__init__()
        self.encoder = ResidualEncoder(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.code_dim, config.num_classes)
        self.apex_decoder = ApexDecoder(config) if with_apex else None

    def forward(
        self, planes: Tensor, mask: Tensor, z_I: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """→ z_R (N, code_dim), logits (N, num_classes), apex (N, 3, 32, 32) or None.

        z_I float (N, d), standardised, reaches nothing but the apex.
        """
        z_R = self.encoder(planes, mask)
        apex = None if self.apex_decoder is None else self.apex_decoder(z_R, z_I)
        return z_R, self.classifier(self.dropout(z_R)), apex


class Predictor(nn.Module):
    """What is stored for prediction: packed residual pictures in, probabilities out.

    It has E and C only: no identity, no apex.
    """

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.encoder = recogniser.encoder
        self.classifier = recogniser.classifier

    def forward(self, packed: Tensor) -> Tensor:
        """uint8 (N, T, 3S/2, S) → float32 (N, num_classes), rows that sum to 1."""
        mask = torch.ones(packed.shape[:2], dtype=torch.bool, device=packed.device)
        z_R = self.encoder(residual_planes(packed), mask)
        return self.classifier(z_R).softmax(1)
