"""Clips in memory, and the batches made of them: which of their frames, and how they are varied.

Clips stay in memory as uint8, so an epoch reads nothing. Its order and its draws are a function of
(seed, epoch, rank): a resumed run goes on exactly as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfer.codec import GRAY
from cfer.data.frames import unpack_views
from cfer.data.inputs import APEX_SIZE, LAST, Input, select_frames
from cfer.model.game import UNKNOWN_SUBJECT, Batch
from cfer.model.network import scale_planes


@dataclass
class LoadedClips:
    """The clips that one worker keeps in memory.

    Attributes:
        views: of each clip, uint8 (P, C, S/2, S/2) each, the one that was found first.
        labels: int64 (N,).
        z_I: float32 (N, d), not standardized.
        apex: float32 (N, 3, 32, 32) in [0, 1]; zeros where `has_apex` is False.
        has_apex: bool (N,).
        subjects, clip_ids: N each.
        bytes_read: int64 (N,), the bytes that the decoder was given for each clip.
    """

    views: list[list[np.ndarray]]
    labels: Tensor
    z_I: Tensor
    apex: Tensor
    has_apex: Tensor
    subjects: list[str | None]
    clip_ids: list[str]
    bytes_read: Tensor

    def __len__(self) -> int:
        return len(self.views)


def load_clips(rows: Sequence[dict[str, Any]], identity_dim: int) -> LoadedClips:
    """Rows of `frames_of_clips`, of which there may be none, → memory."""
    apex = np.zeros((len(rows), APEX_SIZE, APEX_SIZE, 3), np.uint8)
    for position, row in enumerate(rows):
        if row["apex"] is not None:
            apex[position] = np.frombuffer(row["apex"], np.uint8).reshape(apex.shape[1:])
    z_I = np.array([row["z_I"] for row in rows], np.float32).reshape(-1, identity_dim)
    return LoadedClips(
        views=[unpack_views(row) for row in rows],
        labels=torch.tensor([int(row["label"]) for row in rows], dtype=torch.int64),
        z_I=torch.from_numpy(z_I),
        apex=torch.from_numpy(apex).permute(0, 3, 1, 2).float() / 255,
        has_apex=torch.tensor([row["apex"] is not None for row in rows]).bool(),
        subjects=[row["subject"] for row in rows],
        clip_ids=[row["clip_id"] for row in rows],
        bytes_read=torch.tensor([int(row["bytes_read"]) for row in rows]).long(),
    )


@dataclass(frozen=True)
class Standardization:
    """Mean and standard deviation of z_I per dimension, (d,), over the training clips."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def of(total: Tensor, total_squares: Tensor, count: float) -> Standardization:
        """From float64 sums over all workers. A dimension that never varies is left unscaled."""
        mean = total / count
        std = (total_squares / count - mean**2).clamp(min=0).sqrt()
        return Standardization(
            mean.float(), torch.where(std > 1e-6, std, torch.ones_like(std)).float()
        )

    def __call__(self, z_I: Tensor) -> Tensor:
        return (z_I - self.mean.to(z_I.device)) / self.std.to(z_I.device)


@dataclass(frozen=True)
class Augmentation:
    """How training clips are varied; every frame of a clip in the same way.

    Attributes:
        flip_probability: of a horizontal flip.
        max_shift_pixels: largest shift in each direction, in pixels of the crop (even); zero
            residual, or mid-gray, comes in from outside.
        gain_jitter: the planes are multiplied by up to exp(±this).
    """

    flip_probability: float = 0.5
    max_shift_pixels: int = 8
    gain_jitter: float = 0.6


def augment(
    clips: Sequence[np.ndarray],
    what: Input,
    settings: Augmentation,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Vary the planes of N clips, each uint8 (T of the clip, C, S/2, S/2).

    Args:
        generator: of the draws, on the CPU.

    Returns:
        On the device: the planes in [-1, 1) times their gain, float32 (N, T, C, S/2, S/2), where T
        is the longest clip's and the others end in zeros; and which clips were flipped, bool (N,).
    """
    num_clips, side = len(clips), clips[0].shape[-1]
    flip = torch.rand(num_clips, generator=generator) < settings.flip_probability
    reach = settings.max_shift_pixels // 2
    shift = torch.zeros(num_clips, 2, dtype=torch.long)
    if reach:
        shift = (torch.rand(num_clips, 2, generator=generator) * (2 * reach + 1)).long() - reach
    gain = torch.exp(settings.gain_jitter * (2 * torch.rand(num_clips, generator=generator) - 1))

    order, signs = what.mirror
    # Moved while a sample is still one byte: slices of uint8 cost next to nothing.
    longest = max(len(planes) for planes in clips)
    moved = np.full((num_clips, longest, *clips[0].shape[1:]), GRAY, np.uint8)
    # The part of a picture that is left after a move; it was where the opposite move leaves it.
    kept = {by: slice(max(0, -by), side - max(0, by)) for by in range(-reach, reach + 1)}
    for clip, (is_flipped, (down, right)) in enumerate(
        zip(flip.tolist(), shift.tolist(), strict=True)
    ):
        source = clips[clip][:, order, :, ::-1] if is_flipped else clips[clip]
        moved[clip, : len(source), :, kept[down], kept[right]] = source[
            :, :, kept[-down], kept[-right]
        ]
    factors = torch.where(flip.unsqueeze(1), torch.tensor(signs), 1) * gain.unsqueeze(1)
    # As `scale_planes` does, whose division is in the factors here: one pass less.
    varied = torch.from_numpy(moved).to(device).float().sub_(GRAY)
    varied *= (factors / GRAY).reshape(num_clips, 1, -1, 1, 1).to(device)
    return varied, flip.to(device)


class BatchMaker:
    """Turns clips in memory into batches on the device."""

    def __init__(
        self,
        clips: LoadedClips,
        what: Input,
        standardize: Standardization,
        device: torch.device,
        training_subjects: Sequence[str] = (),
    ) -> None:
        self.clips = clips
        self.what = what
        self.standardize = standardize
        self.device = device
        numbers = {subject: number for number, subject in enumerate(training_subjects)}
        self.subjects = torch.tensor(
            [numbers.get(subject or "", UNKNOWN_SUBJECT) for subject in clips.subjects]
        ).long()

    def training_epoch(
        self,
        num_steps: int,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        epoch: int,
        rank: int,
    ) -> Iterator[Batch]:
        """`num_steps` batches of exactly `batch_size` clips; each clip comes once before any comes
        twice."""
        draws = np.random.default_rng((seed, epoch, rank))
        generator = torch.Generator().manual_seed(int(draws.integers(2**62)))
        needed = num_steps * batch_size
        rounds = -(-needed // len(self.clips))
        order = np.concatenate([draws.permutation(len(self.clips)) for _ in range(rounds)])[:needed]
        for chosen in order.reshape(num_steps, batch_size):
            frames = [self._drawn(position, draws) for position in chosen.tolist()]
            planes, flipped = augment(frames, self.what, augmentation, generator, self.device)
            batch = self._batch(chosen.tolist(), planes, _mask(frames))
            if self.clips.has_apex[chosen].any():
                mirrored = flipped.reshape(-1, 1, 1, 1)
                batch.apex = torch.where(mirrored, batch.apex.flip(-1), batch.apex)
            yield batch

    @property
    def num_views(self) -> int:
        """That every clip has."""
        return min(map(len, self.clips.views), default=1)

    def in_order(self, batch_size: int, view: int = 0) -> Iterator[Batch]:
        """Every clip once, in one of its views; the last batch may be smaller."""
        for start in range(0, len(self.clips), batch_size):
            chosen = list(range(start, min(start + batch_size, len(self.clips))))
            frames = [self._selected(self.clips.views[n][view], None) for n in chosen]
            mask = _mask(frames)
            packed = np.full((*mask.shape, *frames[0].shape[1:]), GRAY, np.uint8)
            for position, of_clip in enumerate(frames):
                packed[position, : len(of_clip)] = of_clip
            yield self._batch(chosen, scale_planes(torch.from_numpy(packed).to(self.device)), mask)

    def _batch(self, chosen: list[int], planes: Tensor, mask: Tensor) -> Batch:
        index = torch.tensor(chosen)
        return Batch(
            planes=planes,
            mask=mask.to(self.device),
            labels=self.clips.labels[index].to(self.device),
            z_I=self.standardize(self.clips.z_I[index].to(self.device)),
            subjects=self.subjects[index].to(self.device),
            apex=self.clips.apex[index].to(self.device),
            has_apex=self.clips.has_apex[index].to(self.device),
        )

    def _drawn(self, position: int, draws: np.random.Generator) -> np.ndarray:
        views = self.clips.views[position]
        view = views[draws.integers(len(views))] if len(views) > 1 else views[0]
        return self._selected(view, draws)

    def _selected(self, frames: np.ndarray, draws: np.random.Generator | None) -> np.ndarray:
        if self.what.frames == LAST:
            return frames
        return frames[select_frames([], range(len(frames)), self.what.frames, draws)]


def _mask(clips: Sequence[np.ndarray]) -> Tensor:
    """Which frames of a batch are not padding, bool (N, T): clips differ in length."""
    counts = np.array([len(frames) for frames in clips])
    return torch.from_numpy(np.arange(counts.max()) < counts[:, None])
