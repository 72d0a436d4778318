"""Which clips, which frames, and how they are varied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cfer import shards
from cfer.batches import Augmentation, BatchMaker, Standardisation, augment, load_rows
from cfer.codec import Bitstream
from cfer.data import (
    ClipIndex,
    read_clips,
    read_index,
    split_by_column,
    split_by_subject,
    split_into_folds,
)
from cfer.errors import InputError
from cfer.inputs import Input, to_planes
from cfer.model import scale_planes

NO_CHANGE = Augmentation(flip_probability=0, max_shift_pixels=0, gain_jitter=0)


def vary(planes: np.ndarray, kind: str = "accumulated", **changes: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    settings = replace(NO_CHANGE, **changes)
    return augment(planes, Input(kind), settings, generator, torch.device("cpu"))[0]


def make_index(
    subjects: list[str | None],
    splits: list[str | None] | None = None,
    labels: list[int] | None = None,
) -> ClipIndex:
    count = len(subjects)
    return ClipIndex(
        clip_ids=[f"clip{i}" for i in range(count)],
        subjects=subjects,
        labels=labels or [0] * count,
        splits=splits or [None] * count,
        num_annotated_apexes=0,
        num_unlabelled=0,
    )


@pytest.mark.parametrize("folds", ["4", "8", "loso"])
def test_folds_hold_out_every_subject_once_and_share_nobody(folds: str) -> None:
    subjects: list[str | None] = [f"s{i % 11}" for i in range(60)]
    index = make_index(subjects, labels=[i % 7 for i in range(60)])
    held_out: list[str | None] = []
    splits = split_into_folds(index, folds, seed=5)
    assert len(splits) == (11 if folds == "loso" else int(folds))
    for split in splits:
        sides = [
            {subjects[int(c.removeprefix("clip"))] for c in side}
            for side in (split.train, split.validation)
        ]
        assert not sides[0] & sides[1]
        assert sorted(split.train + split.validation) == sorted(index.clip_ids)
        held_out += sides[1]
    assert sorted(map(str, held_out)) == sorted(map(str, set(subjects)))
    assert split_into_folds(index, folds, 5) == splits
    with pytest.raises(InputError, match="no class has more than 9 clips"):
        split_into_folds(index, "10", 5)
    if folds == "4":
        assert split_into_folds(index, folds, 6) != splits
    assert split_by_subject(index, seed=5) == split_by_subject(index, seed=5)
    assert split_by_subject(index, seed=5) != split_by_subject(index, seed=6)


def test_folds_are_balanced_by_class() -> None:
    """Half of the people show joy alone, half anger alone: dealt blindly, folds would be skewed."""
    subjects: list[str | None] = [f"s{i // 4:02d}" for i in range(160)]
    labels = [int(i // 4 < 20) for i in range(160)]
    for split in split_into_folds(make_index(subjects, labels=labels), "5", seed=0):
        joy = sum(labels[int(c.removeprefix("clip"))] for c in split.validation)
        assert joy == len(split.validation) // 2 == 16


def test_one_person_under_two_names_is_refused(drawn_shards: Path, tmp_path: Path) -> None:
    """And the windows of one video, which have clip ids of their own, stay on one side."""
    clips = list(shards.read_clips(drawn_shards))[:21]
    described = shards.read_description(drawn_shards)

    def store(names: list[str], folder: Path) -> str:
        renamed = [
            replace(clip, subject=name, clip_id=f"one#{i:04d}")
            for i, (clip, name) in enumerate(zip(clips, names, strict=True))
        ]
        receipt = shards.write_shard(folder, 0, renamed, [], "test")
        shards.write_description(folder, replace(described, shards=[receipt], counts={}))
        return str(folder)

    people = ["S001"] * 7 + ["S002"] * 7 + ["S003"] * 7
    index = read_index(store(people, tmp_path / "good"))
    for split in split_into_folds(index, "3", 0):
        assert len(split.validation) == 7
        assert len({people[int(c[-4:])] for c in split.validation}) == 1
    for other in ("s002", "S002 ", "\uff33002"):
        broken = people[:10] + [other] + people[11:]
        with pytest.raises(InputError, match=r"S002.*differ in case or spaces"):
            read_index(store(broken, tmp_path / other.encode().hex()))


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
    for folds in ("3", "1", "0", "many"):
        with pytest.raises(InputError, match=f"--folds {folds}: of 2 subjects"):
            split_into_folds(make_index(["a", "b"]), folds, seed=0)
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


def test_rows_through_ray_data_are_those_of_the_shards(
    ray_session: None, drawn_shards: Path
) -> None:
    directory = str(drawn_shards)
    index = read_index(directory)
    assert len(index.clip_ids) == 56
    assert index.num_annotated_apexes == 56
    wanted = index.clip_ids[5:40:3]
    rows = read_clips(directory, wanted, Input(), for_training=True).take_all()
    assert [row["clip_id"] for row in rows] == wanted
    clips = {clip.clip_id: clip for clip in shards.read_clips(directory)}
    memory = load_rows(rows, clips[wanted[0]].identity.shape[1])
    for position, clip_id in enumerate(wanted):
        clip = clips[clip_id]
        bitstream = Bitstream(clip.bitstream, clip_id)
        packed = [bitstream.accumulated_residuals(gop)[-1].packed() for gop in (0, 1)]
        expected = np.stack([to_planes(residual) for residual in packed])
        np.testing.assert_array_equal(memory.frames[position], expected)
        sizes = [len(bitstream.packets[n]) for gop in bitstream.gops for n in gop[1:]]
        assert int(memory.bytes_read[position]) == sum(sizes)
        assert int(memory.labels[position]) == clip.label
        assert memory.subjects[position] == clip.subject
        np.testing.assert_allclose(memory.z_I[position], clip.identity.mean(0), rtol=1e-5)
        assert bool(memory.has_apex[position])
        mean = clip.apex.mean((0, 1)) / 255
        np.testing.assert_allclose(memory.apex[position].mean((1, 2)), mean, atol=0.01)

    # Drawn anew each epoch, so all are kept; for validation only the evenly spaced ones.
    what = Input(frames=3)
    all_frames = load_rows(read_clips(directory, wanted[:2], what, True).take_all(), 128)
    assert len(all_frames.frames[0]) == len(clips[wanted[0]].residual_frames)
    three = load_rows(read_clips(directory, wanted[:2], what, False).take_all(), 128)
    assert three.frames[0].shape[0] == 3
    # In training's own look at its clips they are the same three.
    standardise = Standardisation.of(torch.zeros(128), torch.ones(128), 1)
    for rows_of in (all_frames, three):
        (batch,) = BatchMaker(rows_of, what, standardise, torch.device("cpu")).in_order(2)
        expected = scale_planes(torch.from_numpy(three.frames[0].copy()))
        torch.testing.assert_close(batch.planes[0], expected)


def test_epochs_are_a_function_of_seed_epoch_and_rank(
    ray_session: None, drawn_shards: Path
) -> None:
    directory = str(drawn_shards)
    index = read_index(directory)
    what = Input(frames=4)
    records = read_clips(directory, index.clip_ids[:10], what, for_training=True).take_all()
    rows = load_rows(records, 128)
    total = rows.z_I.double()
    standardise = Standardisation.of(total.sum(0), (total**2).sum(0), len(rows))
    maker = BatchMaker(rows, what, standardise, torch.device("cpu"), ["S002", "S001"])

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

    numbers = torch.cat([batch.subjects for batch in maker.in_order(4)])
    assert numbers.tolist() == [{"S001": 1, "S002": 0}.get(s or "", -1) for s in rows.subjects]

    whole = torch.cat([batch.z_I for batch in maker.in_order(4)])
    torch.testing.assert_close(whole, standardise(rows.z_I))
    torch.testing.assert_close(whole.mean(0), torch.zeros(128), atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.std(0, correction=0), torch.ones(128), atol=1e-3, rtol=0)
