"""Batches of clips in memory (tests/integration/test_data.py: of clips that Ray Data has read)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cfer.data.inputs import APEX_SIZE, Input, to_planes
from cfer.model.game import Batch
from cfer.model.network import scale_planes
from cfer.train.batches import Augmentation, BatchMaker, LoadedClips, Standardization, augment

NO_CHANGE = Augmentation(flip_probability=0, max_shift_pixels=0, gain_jitter=0)


def vary(planes: np.ndarray, kind: str = "accumulated", **changes: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    settings = replace(NO_CHANGE, **changes)
    return augment(planes, Input(kind), settings, generator, torch.device("cpu"))[0]


def test_a_step_may_have_more_clips_than_there_are() -> None:
    nothing = torch.zeros(3, dtype=torch.int64)
    frames = [[np.full((1, 6, 8, 8), 128, np.uint8)]] * 3
    apex = torch.zeros(3, 3, APEX_SIZE, APEX_SIZE)
    clips = LoadedClips(
        frames, torch.arange(3), torch.zeros(3, 2), apex, nothing.bool(), [None] * 3, [], nothing
    )
    maker = BatchMaker(
        clips, Input(), Standardization(torch.zeros(2), torch.ones(2)), torch.device("cpu")
    )
    (batch,) = maker.training_epoch(1, 8, Augmentation(), seed=0, epoch=0, rank=0)
    assert sorted(torch.bincount(batch.labels).tolist()) == [2, 3, 3]


def test_training_draws_among_the_views_and_nothing_else_does() -> None:
    """View v of clip c has the value 100 + 10 c + v everywhere."""
    views = [[np.full((1, 6, 8, 8), 100 + 10 * c + v, np.uint8) for v in range(3)] for c in (0, 1)]
    nothing = torch.zeros(2, dtype=torch.int64)
    apex = torch.zeros(2, 3, APEX_SIZE, APEX_SIZE)
    clips = LoadedClips(
        views, torch.arange(2), torch.zeros(2, 2), apex, nothing.bool(), [None] * 2, [], nothing
    )
    unscaled = Standardization(torch.zeros(2), torch.ones(2))
    maker = BatchMaker(clips, Input(), unscaled, torch.device("cpu"))

    def values(batch: Batch) -> list[tuple[int, int]]:
        seen = (batch.planes[:, 0, 0, 0, 0] * 128 + 128).round().int()
        return list(zip(batch.labels.tolist(), seen.tolist(), strict=True))

    drawn = {
        value
        for epoch in range(20)
        for batch in maker.training_epoch(1, 2, NO_CHANGE, seed=0, epoch=epoch, rank=0)
        for value in values(batch)
    }
    assert drawn == {(c, 100 + 10 * c + v) for c in (0, 1) for v in range(3)}
    (batch,) = maker.in_order(2)
    assert values(batch) == [(0, 100), (1, 110)]


@pytest.mark.parametrize("planes", ["yuv", "luma"])
def test_flip_moves_each_pixel_to_its_mirror_place(planes: str) -> None:
    generator = np.random.default_rng(0)
    luma = generator.integers(0, 256, (16, 16), dtype=np.uint8)
    chroma = generator.integers(0, 256, (2, 8, 8), dtype=np.uint8)
    what = Input(planes=planes)

    def read(luma: np.ndarray, chroma: np.ndarray) -> np.ndarray:
        packed = np.concatenate([luma, chroma.reshape(8, 16)])
        return to_planes(packed)[: what.num_planes][None, None]

    mirrored = read(luma[:, ::-1].copy(), chroma[:, :, ::-1].copy())
    flipped, which = augment(
        read(luma, chroma),
        what,
        replace(NO_CHANGE, flip_probability=1.0),
        torch.Generator().manual_seed(0),
        torch.device("cpu"),
    )
    assert torch.equal(flipped, scale_planes(torch.from_numpy(mirrored)))
    assert which.all()


def test_flip_turns_horizontal_motion_around() -> None:
    planes = np.full((1, 1, 8, 4, 4), 128, np.uint8)
    planes[0, 0, 6, 1, 0], planes[0, 0, 7, 1, 0] = 160, 192
    flipped = vary(planes, "accumulated+motion", flip_probability=1.0)
    assert (float(flipped[0, 0, 6, 1, 3]), float(flipped[0, 0, 7, 1, 3])) == (0.25, -0.5)
    assert float(flipped.abs().sum()) == 0.75


def test_shift_fills_with_zero_residual_and_moves_all_frames_alike() -> None:
    planes = np.full((64, 2, 6, 8, 8), 160, np.uint8)
    planes[:, 1] = 192
    shifted = vary(planes, max_shift_pixels=4)
    assert torch.equal(shifted[:, 1], 2 * shifted[:, 0])
    areas = set()
    for clip in 4 * shifted[:, 0, 0]:
        rows, columns = (clip.sum(axis) > 0 for axis in (1, 0))
        assert float(clip.sum()) == int(rows.sum()) * int(columns.sum())
        areas.add((int(rows.sum()), int(columns.sum())))
    # -2 … 2 places at half the resolution, in both directions.
    assert {size for area in areas for size in area} == {6, 7, 8}

    marked = np.full((64, 1, 6, 8, 8), 128, np.uint8)
    marked[:, :, :, 4, 3] = 160
    moved = vary(marked, max_shift_pixels=4)
    assert torch.equal(moved.flatten(2).sum(2), torch.full((64, 1), 6 / 4))
    places = moved[:, 0, 0].flatten(1).argmax(1)
    assert {int(p) // 8 for p in places} == {2, 3, 4, 5, 6}
    assert {int(p) % 8 for p in places} == {1, 2, 3, 4, 5}


def test_gain_is_one_per_clip_and_within_its_range() -> None:
    gains = 2 * vary(np.full((200, 2, 6, 4, 4), 192, np.uint8), gain_jitter=0.5)
    per_clip = gains[:, 0, 0, 0, 0]
    assert torch.equal(gains, per_clip.reshape(-1, 1, 1, 1, 1).expand_as(gains))
    assert float(per_clip.min()) >= np.exp(-0.5) - 1e-6
    assert float(per_clip.max()) <= np.exp(0.5) + 1e-6
    assert float(per_clip.std()) > 0.1
