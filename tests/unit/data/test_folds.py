"""Which clips, which frames, and how they are varied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cfer.data import shards
from cfer.data.folds import (
    ClipIndex,
    Split,
    read_index,
    split_by_column,
    split_by_subject,
    split_into_folds,
    who_is_held_out,
)
from cfer.errors import InputError
from cfer.train.batches import Augmentation

NO_CHANGE = Augmentation(flip_probability=0, max_shift_pixels=0, gain_jitter=0)


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
        num_unlabeled=0,
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
    if folds == "4":
        assert split_into_folds(index, folds, 6) != splits
    assert split_by_subject(index, seed=5) == split_by_subject(index, seed=5)
    assert split_by_subject(index, seed=5) != split_by_subject(index, seed=6)


@pytest.mark.parametrize("folds", ["5", "loso"])
def test_a_lost_clip_moves_nobody_to_another_fold(folds: str) -> None:
    subjects: list[str | None] = [f"s{i // 7:02d}" for i in range(33 * 7)]
    index = make_index(subjects, labels=[i % 7 for i in range(33 * 7)])
    people = [who_is_held_out(index, split) for split in split_into_folds(index, folds, 0)]
    assert max(map(len, people)) - min(map(len, people)) <= 1
    assert sorted(name for fold in people for name in fold) == sorted(set(map(str, subjects)))
    for lost in (0, 100, 230):
        kept = [i for i in range(33 * 7) if i != lost]
        others = ClipIndex(
            [index.clip_ids[i] for i in kept],
            [subjects[i] for i in kept],
            [index.labels[i] for i in kept],
            [None] * len(kept),
            0,
            0,
        )
        again = [who_is_held_out(others, split) for split in split_into_folds(others, folds, 0)]
        assert again == people


def test_who_is_held_out() -> None:
    index = make_index(["b", "a", "b", None])
    assert who_is_held_out(index, Split(["clip1"], ["clip0", "clip2", "clip3"])) == ["b", "clip3"]


def test_one_person_under_two_names_is_refused(drawn_shards: Path, tmp_path: Path) -> None:
    """And the windows of one video, which have clip ids of their own, stay on one side."""
    clips = list(shards.read_clips(drawn_shards))
    described = shards.read_description(drawn_shards)

    def store(names: list[str], folder: Path) -> str:
        renamed = [
            replace(clip, subject=name, clip_id=f"one#{i:04d}")
            for i, (clip, name) in enumerate(zip(clips, names, strict=True))
        ]
        receipt = shards.write_shard(folder, 0, renamed, [], "test")
        shards.write_description(folder, replace(described, shards=[receipt], counts={}))
        return str(folder)

    people = ["S001"] * 4 + ["S002"] * 4 + ["S003"] * 2
    index = read_index(store(people, tmp_path / "good"))
    for split in split_into_folds(index, "3", 0):
        (one,) = {people[int(c[-4:])] for c in split.validation}
        assert len(split.validation) == people.count(one)
    for other in ("s002", "S002 ", "\uff33002"):
        broken = people[:6] + [other] + people[7:]
        with pytest.raises(InputError, match=r"the subjects .*S002.* are one name to a reader"):
            read_index(store(broken, tmp_path / other.encode().hex()))


def test_one_class_under_two_names_is_refused(drawn_shards: Path, tmp_path: Path) -> None:
    clips = list(shards.read_clips(drawn_shards))
    receipt = shards.write_shard(tmp_path, 0, clips, [], "test")
    described = replace(shards.read_description(drawn_shards), shards=[receipt], counts={})
    shards.write_description(tmp_path, replace(described, classes=["Happy", "happiness "]))
    with pytest.raises(
        InputError, match=r"the labels 'Happy' \(S001_h.*\) and 'happiness ' \(S001_"
    ):
        read_index(str(tmp_path))


def test_given_subjects_are_held_out() -> None:
    split = split_by_subject(make_index(["a", "b", "a", "c"]), seed=0, val_subjects=["a"])
    assert split.validation == ["clip0", "clip2"]
    assert split.train == ["clip1", "clip3"]


def test_subject_splits_that_cannot_be_made() -> None:
    with pytest.raises(InputError, match=r"1 of 3 labeled clips have no subject.*--split column"):
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
