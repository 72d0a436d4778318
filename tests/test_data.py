"""Which clips, which frames, and how they are varied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cfer import shards
from cfer.data import (
    Augmentation,
    BatchMaker,
    ClipIndex,
    Standardisation,
    augment,
    load_rows,
    parse_frame_rule,
    read_clips,
    read_index,
    select_frames,
    split_by_column,
    split_by_subject,
)
from cfer.errors import InputError
from cfer.model import residual_planes

NO_CHANGE = Augmentation(flip_probability=0, max_shift_pixels=0, gain_jitter=0)


def make_index(subjects: list[str | None], splits: list[str | None] | None = None) -> ClipIndex:
    count = len(subjects)
    return ClipIndex(
        clip_ids=[f"clip{i}" for i in range(count)],
        subjects=subjects,
        labels=[0] * count,
        splits=splits or [None] * count,
        num_annotated_apexes=0,
        num_unlabelled=0,
    )


@pytest.mark.parametrize(
    ("i_frames", "p_frames", "expected"),
    [
        ([0, 4, 8], [1, 2, 3, 5, 6, 7, 9], [3, 7, 9]),  # the last GOP is cut off
        ([0, 4, 8], [1, 2, 3, 5, 6, 7], [3, 7]),  # the last GOP is an I-frame alone
        ([0], [1, 2, 3], [3]),
        ([0, 1], [], []),
    ],
)
def test_last_p_frame_of_each_gop(
    i_frames: list[int], p_frames: list[int], expected: list[int]
) -> None:
    assert select_frames(i_frames, p_frames, "last") == expected


def test_a_number_of_frames() -> None:
    p_frames = [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert select_frames([0, 4, 8], p_frames, 3) == [2, 6, 10]
    assert select_frames([0, 4, 8], p_frames, 20) == p_frames
    drawn = [select_frames([0, 4, 8], p_frames, 4, np.random.default_rng(i)) for i in range(50)]
    assert all(frames == sorted(set(frames)) and len(frames) == 4 for frames in drawn)
    assert {frame for frames in drawn for frame in frames} == set(p_frames)


def test_frame_rule_is_checked() -> None:
    assert parse_frame_rule("last") == "last"
    assert parse_frame_rule("4") == 4
    for text in ("0", "-1", "first", "1.5"):
        with pytest.raises(InputError, match="--frames"):
            parse_frame_rule(text)


def test_folds_hold_out_every_subject_once_and_share_nobody() -> None:
    subjects = [f"s{i % 11}" for i in range(60)]
    index = make_index(subjects)
    held_out: list[str] = []
    for fold in range(4):
        split = split_by_subject(index, seed=5, num_folds=4, fold=fold)
        sides = [
            {subjects[int(c.removeprefix("clip"))] for c in side}
            for side in (split.train, split.validation)
        ]
        assert not sides[0] & sides[1]
        assert sorted(split.train + split.validation) == sorted(index.clip_ids)
        held_out += sides[1]
    assert sorted(held_out) == sorted(set(subjects))
    assert split_by_subject(index, seed=5) == split_by_subject(index, seed=5)
    assert split_by_subject(index, seed=5) != split_by_subject(index, seed=6)


def test_given_subjects_are_held_out() -> None:
    split = split_by_subject(make_index(["a", "b", "a", "c"]), seed=0, val_subjects=["a"])
    assert split.validation == ["clip0", "clip2"]
    assert split.train == ["clip1", "clip3"]


def test_subject_splits_that_cannot_be_made() -> None:
    with pytest.raises(InputError, match=r"1 of 3 labelled clips have no subject.*--split column"):
        split_by_subject(make_index(["a", "b", None]), seed=0)
    with pytest.raises(InputError, match="at least two"):
        split_by_subject(make_index(["a", "a"]), seed=0)
    with pytest.raises(InputError, match="--val-subjects: z: not in the data set"):
        split_by_subject(make_index(["a", "b"]), seed=0, val_subjects=["z"])
    for num_folds, fold in ((3, 0), (1, 0), (2, 2)):
        with pytest.raises(InputError, match="folds"):
            split_by_subject(make_index(["a", "b"]), seed=0, num_folds=num_folds, fold=fold)
    with pytest.raises(InputError, match="0 clips to train on"):
        split_by_subject(make_index(["a", "b"]), seed=0, val_subjects=["a", "b"])


def test_split_column() -> None:
    index = make_index([None] * 3, ["train", "Val", "test"])
    assert split_by_column(index).train == ["clip0"]
    assert split_by_column(index).validation == ["clip1", "clip2"]
    with pytest.raises(InputError, match=r"clip clip1 has the split None"):
        split_by_column(make_index([None] * 2, ["train", None]))
    with pytest.raises(InputError, match="0 to validate"):
        split_by_column(make_index([None] * 2, ["train", "train"]))


def test_flip_moves_each_pixel_to_its_mirror_place() -> None:
    generator = np.random.default_rng(0)
    luma = generator.integers(0, 256, (16, 16), dtype=np.uint8)
    chroma = generator.integers(0, 256, (2, 8, 8), dtype=np.uint8)

    def packed(luma: np.ndarray, chroma: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([luma, chroma.reshape(8, 16)])[None, None])

    mirrored = packed(luma[:, ::-1].copy(), chroma[:, :, ::-1].copy())
    flipped, which = augment(
        residual_planes(packed(luma, chroma)),
        replace(NO_CHANGE, flip_probability=1.0),
        torch.Generator().manual_seed(0),
    )
    assert torch.equal(flipped, residual_planes(mirrored))
    assert which.all()


def test_shift_fills_with_zero_residual_and_moves_all_frames_alike() -> None:
    planes = torch.ones(64, 2, 6, 8, 8)
    planes[:, 1] = 2.0
    settings = replace(NO_CHANGE, max_shift_pixels=4)
    shifted, _ = augment(planes, settings, torch.Generator().manual_seed(0))
    assert torch.equal(shifted[:, 1], 2 * shifted[:, 0])
    areas = set()
    for clip in shifted[:, 0, 0]:
        rows, columns = (clip.sum(axis) > 0 for axis in (1, 0))
        assert float(clip.sum()) == int(rows.sum()) * int(columns.sum())
        areas.add((int(rows.sum()), int(columns.sum())))
    # -2 … 2 places at half the resolution, in both directions.
    assert {size for area in areas for size in area} == {6, 7, 8}

    marked = torch.zeros(64, 1, 6, 8, 8)
    marked[:, :, :, 4, 4] = 1.0
    moved, _ = augment(marked, settings, torch.Generator().manual_seed(0))
    assert torch.equal(moved.flatten(2).sum(2), torch.full((64, 1), 6.0))
    places = moved[:, 0, 0].flatten(1).argmax(1)
    assert {int(p) // 8 for p in places} == {int(p) % 8 for p in places} == {2, 3, 4, 5, 6}


def test_gain_is_one_per_clip_and_within_its_range() -> None:
    planes = torch.ones(200, 2, 6, 4, 4)
    gains, _ = augment(
        planes, replace(NO_CHANGE, gain_jitter=0.5), torch.Generator().manual_seed(0)
    )
    per_clip = gains[:, 0, 0, 0, 0]
    assert torch.equal(gains, per_clip.reshape(-1, 1, 1, 1, 1).expand_as(gains))
    assert float(per_clip.min()) >= np.exp(-0.5) - 1e-6
    assert float(per_clip.max()) <= np.exp(0.5) + 1e-6
    assert float(per_clip.std()) > 0.1


def test_rows_through_ray_data_are_those_of_the_shards(
    ray_session: None, drawn_shards: Path
) -> None:
    directory = str(drawn_shards)
    index = read_index(directory)
    assert len(index.clip_ids) == 56
    assert index.num_annotated_apexes == 56
    wanted = index.clip_ids[5:40:3]
    rows = read_clips(directory, wanted, "last", for_training=True).take_all()
    assert [row["clip_id"] for row in rows] == wanted
    clips = {clip.clip_id: clip for clip in shards.read_clips(directory)}
    memory = load_rows(rows, clips[wanted[0]].identity.shape[1])
    for position, clip_id in enumerate(wanted):
        clip = clips[clip_id]
        frames = select_frames(clip.i_frame_numbers, clip.residual_frames, "last")
        chosen = [clip.residual_frames.index(frame) for frame in frames]
        np.testing.assert_array_equal(memory.frames[position], clip.residuals[chosen])
        assert int(memory.labels[position]) == clip.label
        assert memory.subjects[position] == clip.subject
        np.testing.assert_allclose(memory.z_I[position], clip.identity.mean(0), rtol=1e-5)
        assert bool(memory.has_apex[position])
        mean = clip.apex.mean((0, 1)) / 255
        np.testing.assert_allclose(memory.apex[position].mean((1, 2)), mean, atol=0.01)

    # Drawn anew each epoch, so all are kept; for validation only the evenly spaced ones.
    all_frames = read_clips(directory, wanted[:2], 3, for_training=True).take_all()
    assert len(all_frames[0]["frames"]) == clips[wanted[0]].residuals.nbytes
    three = load_rows(read_clips(directory, wanted[:2], 3, for_training=False).take_all(), 128)
    assert three.frames[0].shape[0] == 3


def test_epochs_are_a_function_of_seed_epoch_and_rank(
    ray_session: None, drawn_shards: Path
) -> None:
    directory = str(drawn_shards)
    index = read_index(directory)
    records = read_clips(directory, index.clip_ids[:10], 4, for_training=True).take_all()
    rows = load_rows(records, 128)
    total = rows.z_I.double()
    standardise = Standardisation.of(total.sum(0), (total**2).sum(0), len(rows))
    maker = BatchMaker(rows, 4, standardise, torch.device("cpu"))

    def epoch(*key: int) -> list:
        return list(maker.training_epoch(3, 4, Augmentation(), *key))

    first, again = epoch(0, 1, 0), epoch(0, 1, 0)
    for one, other in zip(first, again, strict=True):
        for name in vars(one):
            assert torch.equal(getattr(one, name), getattr(other, name))
    for key in ((1, 1, 0), (0, 2, 0), (0, 1, 1)):
        assert not torch.equal(first[0].planes, epoch(*key)[0].planes)
    assert all(batch.planes.shape == (4, 4, 6, 32, 32) for batch in first)
    # 12 places for 10 clips: each once, before two come twice.
    identities = torch.cat([batch.z_I for batch in first])
    assert len(torch.unique(identities[:10], dim=0)) == 10

    # What is rebuilt from a mirrored clip is the mirrored apex.
    mirroring = replace(NO_CHANGE, flip_probability=1.0)
    plain, mirrored = (
        next(maker.training_epoch(1, 4, settings, 0, 0, 0)) for settings in (NO_CHANGE, mirroring)
    )
    assert torch.equal(mirrored.apex, plain.apex.flip(-1))
    assert not torch.equal(mirrored.apex, plain.apex)

    whole = torch.cat([batch.z_I for batch in maker.in_order(4)])
    torch.testing.assert_close(whole, standardise(rows.z_I))
    torch.testing.assert_close(whole.mean(0), torch.zeros(128), atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.std(0, correction=0), torch.ones(128), atol=1e-3, rtol=0)
