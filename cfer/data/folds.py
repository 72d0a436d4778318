"""Which clips are trained on and which are held out: by subjects, folds, or the owner's split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cfer.data.shards import read_columns, read_description
from cfer.errors import InputError
from cfer.names import check_labels, check_subjects

VALIDATION_NAMES = ("validation", "val", "valid", "test")
LOSO = "loso"


@dataclass(frozen=True)
class ClipIndex:
    """Who and what is in a data set: one entry per labeled clip, in the order of the shards."""

    clip_ids: list[str]
    subjects: list[str | None]
    labels: list[int]
    splits: list[str | None]
    num_annotated_apexes: int
    num_unlabeled: int


@dataclass(frozen=True)
class Split:
    """The clips of the two sides, by `clip_id`, in the order of the shards."""

    train: list[str]
    validation: list[str]


def read_index(directory: str) -> ClipIndex:
    """Read the small columns of every shard.

    Raises:
        InputError: not a complete data set, one without a labeled clip, or one in which a subject
            or a class has two names.
    """
    names = ["clip_id", "subject", "label", "split", "apex_frame", "num_frames", "gop_size"]
    description = read_description(directory)
    tables = [*read_columns(directory, names)]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    labeled = [row for row in rows if row["label"] is not None]
    if not labeled:
        raise InputError(
            f"{directory}: none of its {len(rows)} clips has a label; "
            "extract from a manifest with a `label` column"
        )
    # A clip starts with an I-frame; its second frame is a P-frame if a GOP has two frames.
    still = [row["clip_id"] for row in labeled if min(row["num_frames"], row["gop_size"]) < 2]
    if still:
        raise InputError(
            f"{directory}: {len(still)} clips have no P-frame, so no residual ({still[0]}, …); "
            "extract with a GOP of 2 or more"
        )
    check_subjects(
        [(row["subject"], row["clip_id"]) for row in rows if row["subject"] is not None], directory
    )
    check_labels(
        [(description.classes[row["label"]], row["clip_id"]) for row in labeled], directory
    )
    return ClipIndex(
        clip_ids=[row["clip_id"] for row in labeled],
        subjects=[row["subject"] for row in labeled],
        labels=[row["label"] for row in labeled],
        splits=[row["split"] for row in labeled],
        num_annotated_apexes=sum(row["apex_frame"] is not None for row in labeled),
        num_unlabeled=len(rows) - len(labeled),
    )


def read_videos(directory: str) -> dict[str, str]:
    """{clip id: the file or folder that it is from}. The windows of one video have one in common.

    Raises:
        InputError: not a complete data set.
    """
    videos: dict[str, str] = {}
    for table in read_columns(directory, ["clip_id", "source"]):
        videos |= zip(*(column.to_pylist() for column in table), strict=True)
    return videos


def read_identities(directory: str) -> dict[str, np.ndarray]:
    """{clip id: float32 (D,)}, the mean of its embeddings, as the frozen network gives them.

    Raises:
        InputError: not a complete data set.
    """
    known: dict[str, np.ndarray] = {}
    for table in read_columns(directory, ["clip_id", "identity"]):
        for clip_id, embeddings in zip(*(column.to_pylist() for column in table), strict=True):
            known[clip_id] = np.array(embeddings, np.float32).mean(0)
    return known


def split_by_column(index: ClipIndex) -> Split:
    """The data set's own split: `train` on one side, `validation`, `val` or `test` on the other.

    Raises:
        InputError: a clip without a split or of another name, or an empty side.
    """
    train, validation = [], []
    for clip_id, name in zip(index.clip_ids, index.splits, strict=True):
        lowered = (name or "").lower()
        if lowered == "train":
            train.append(clip_id)
        elif lowered in VALIDATION_NAMES:
            validation.append(clip_id)
        else:
            raise InputError(
                f"--split column: clip {clip_id} has the split {name!r}; give every clip `train` "
                f"or one of {', '.join(VALIDATION_NAMES)} in the manifest's `split` column"
            )
    return _checked(Split(train, validation), "--split column")


def split_by_subject(
    index: ClipIndex, *, seed: int, val_fraction: float = 0.25, val_subjects: Sequence[str] = ()
) -> Split:
    """Hold out subjects: nobody is on both sides.

    Args:
        seed: orders the subjects, before a fraction is cut off.
        val_fraction: share of the subjects to hold out, in (0, 1); at least one.
        val_subjects: exactly these instead.

    Raises:
        InputError: clips without a subject, unknown subjects, too few subjects.
    """
    people = _people(index)
    if not val_subjects:
        count = max(1, round(val_fraction * len(people)))
        return _hold_out(index, set(_shuffled(people, seed)[:count]))
    unknown = sorted(set(val_subjects) - set(people))
    if unknown:
        raise InputError(
            f"--val-subjects: {', '.join(unknown)}: not in the data set; its subjects are "
            f"{', '.join(people[:20])}{', …' if len(people) > 20 else ''}"
        )
    return _hold_out(index, set(val_subjects))


def split_into_folds(index: ClipIndex, folds: str, seed: int) -> list[Split]:
    """Every subject is held out in exactly one fold; the folds differ by one subject at most.

    Who is in which fold depends on the subjects' names, the number of folds and the seed, and not
    on the clips: a data set that has lost a clip (in another encoding, say) has the same people in
    each fold, so its figures can be compared fold by fold.

    Args:
        folds: a number, or `loso`: leave one subject out, as many folds as there are subjects.
        seed: of the order in which the subjects are dealt.

    Raises:
        InputError: clips without a subject; fewer than two folds, or more than there are subjects.
    """
    people = _people(index)
    if folds == LOSO:
        return [_hold_out(index, {person}) for person in people]
    count = int(folds) if folds.isdecimal() else 0
    if not 2 <= count <= len(people):
        raise InputError(
            f"--folds {folds}: of {len(people)} subjects there can be 2 to {len(people)} folds, or "
            f"`{LOSO}`, which leaves each subject out once"
        )
    dealt = _shuffled(people, seed)
    splits = [_hold_out(index, set(dealt[fold::count])) for fold in range(count)]
    tested_clips = [clip_id for split in splits for clip_id in split.validation]
    assert sorted(tested_clips) == sorted(index.clip_ids), "a clip is not in exactly one test fold"
    return splits


def who_is_held_out(index: ClipIndex, split: Split) -> list[str]:
    """The subjects on the held-out side, sorted; for a clip without a subject, the clip's id."""
    subjects = dict(zip(index.clip_ids, index.subjects, strict=True))
    return sorted({subjects[clip_id] or clip_id for clip_id in split.validation})


def _people(index: ClipIndex) -> list[str]:
    missing = sum(subject is None for subject in index.subjects)
    if missing:
        raise InputError(
            f"--data: {missing} of {len(index.clip_ids)} labeled clips have no subject, so no "
            "subject can be held out; add a `subject` column to the manifest and extract again, or "
            "use `--split column` with a `split` column of `train` and `validation`"
        )
    people = sorted({subject for subject in index.subjects if subject is not None})
    if len(people) < 2:
        raise InputError(
            f"--data: only {len(people)} subject; holding out subjects takes at least two"
        )
    return people


def _shuffled(people: list[str], seed: int) -> list[str]:
    return [people[i] for i in np.random.default_rng(seed).permutation(len(people))]


def _hold_out(index: ClipIndex, held_out: set[str]) -> Split:
    clips = list(zip(index.clip_ids, index.subjects, strict=True))
    train = [clip_id for clip_id, subject in clips if subject not in held_out]
    validation = [clip_id for clip_id, subject in clips if subject in held_out]
    subjects = dict(clips)
    shared = {subjects[c] for c in train} & {subjects[c] for c in validation}
    assert not shared, f"subjects on both sides of a fold: {shared}"
    return _checked(Split(train, validation), "the held-out subjects")


def _checked(split: Split, what: str) -> Split:
    if not split.train or not split.validation:
        raise InputError(
            f"{what}: {len(split.train)} clips to train on and {len(split.validation)} to validate "
            "on; both sides need some"
        )
    return split
