"""Which clips are trained on and which are held out, and the reading of their frames.

The clips of a data set are few and, once their frames are chosen, small (the planes of a 112 × 112
frame are 19 kB): Ray Data reads the shards once, decodes and chooses the frames where the shard is
read, and each training worker keeps its share in memory (`cfer.batches`). Ray's reading processes
import this module, and so it does without PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from cfer.codec import Bitstream
from cfer.errors import InputError
from cfer.inputs import LAST, Input
from cfer.names import check_labels, check_subjects
from cfer.shards import read_description, unpack_picture
from cfer.storage import Folder

COLUMNS = ("clip_id", "subject", "label", "bitstream", "identity", "apex")
VALIDATION_NAMES = ("validation", "val", "valid", "test")
LOSO = "loso"


@dataclass(frozen=True)
class ClipIndex:
    """Who and what is in a data set: one entry per labelled clip, in the order of the shards."""

    clip_ids: list[str]
    subjects: list[str | None]
    labels: list[int]
    splits: list[str | None]
    num_annotated_apexes: int
    num_unlabelled: int


@dataclass(frozen=True)
class Split:
    """The clips of the two sides, by `clip_id`, in the order of the shards."""

    train: list[str]
    validation: list[str]


def read_index(directory: str) -> ClipIndex:
    """Read the small columns of every shard.

    Raises:
        InputError: not a complete data set, one without a labelled clip, or one subject or class
            under two names.
    """
    names = ["clip_id", "subject", "label", "split", "apex_frame", "num_frames", "gop_size"]
    description = read_description(directory)
    folder = Folder(directory)
    tables = [
        pq.read_table(path, columns=names, filesystem=folder.patient_filesystem)
        for path in description.shard_paths(folder)
    ]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    labelled = [row for row in rows if row["label"] is not None]
    if not labelled:
        raise InputError(
            f"{directory}: none of its {len(rows)} clips has a label; "
            "extract from a manifest with a `label` column"
        )
    # A clip begins with an I-frame, and its second frame is a P-frame where a GOP has two.
    still = [row["clip_id"] for row in labelled if min(row["num_frames"], row["gop_size"]) < 2]
    if still:
        raise InputError(
            f"{directory}: {len(still)} clips have no P-frame, so no residual ({still[0]}, …); "
            "extract with a GOP of 2 or more"
        )
    check_subjects(
        [(row["subject"], row["clip_id"]) for row in rows if row["subject"] is not None], directory
    )
    check_labels(
        [(description.classes[row["label"]], row["clip_id"]) for row in labelled], directory
    )
    return ClipIndex(
        clip_ids=[row["clip_id"] for row in labelled],
        subjects=[row["subject"] for row in labelled],
        labels=[row["label"] for row in labelled],
        splits=[row["split"] for row in labelled],
        num_annotated_apexes=sum(row["apex_frame"] is not None for row in labelled),
        num_unlabelled=len(rows) - len(labelled),
    )


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
        shuffled = [people[i] for i in np.random.default_rng(seed).permutation(len(people))]
        return _hold_out(index, set(shuffled[: max(1, round(val_fraction * len(people)))]))
    unknown = sorted(set(val_subjects) - set(people))
    if unknown:
        raise InputError(
            f"--val-subjects: {', '.join(unknown)}: not in the data set; its subjects are "
            f"{', '.join(people[:20])}{', …' if len(people) > 20 else ''}"
        )
    return _hold_out(index, set(val_subjects))


def split_into_folds(index: ClipIndex, folds: str, seed: int) -> list[Split]:
    """Every subject is held out in exactly one fold; the folds' numbers of subjects differ by one.

    Who is in which fold is a function of the subjects' names, the number of folds and the seed, and
    not of their clips: a data set that has lost a clip (in another encoding, say) has the same
    people in each fold, and so its figures can be compared fold by fold.

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
    dealt = [people[i] for i in np.random.default_rng(seed).permutation(len(people))]
    splits = [_hold_out(index, set(dealt[fold::count])) for fold in range(count)]
    tested_clips = [clip_id for split in splits for clip_id in split.validation]
    assert sorted(tested_clips) == sorted(index.clip_ids), "a clip is not in exactly one test fold"
    return splits


def who_is_held_out(index: ClipIndex, split: Split) -> list[str]:
    """The subjects on the held-out side, sorted; a clip whose subject is unknown has its own id."""
    subjects = dict(zip(index.clip_ids, index.subjects, strict=True))
    return sorted({subjects[clip_id] or clip_id for clip_id in split.validation})


def _people(index: ClipIndex) -> list[str]:
    missing = sum(subject is None for subject in index.subjects)
    if missing:
        raise InputError(
            f"--data: {missing} of {len(index.clip_ids)} labelled clips have no subject, so no "
            "subject can be held out; add a `subject` column to the manifest and extract again, or "
            "use `--split column` with a `split` column of `train` and `validation`"
        )
    people = sorted({subject for subject in index.subjects if subject is not None})
    if len(people) < 2:
        raise InputError(
            f"--data: only {len(people)} subject; holding out subjects takes at least two"
        )
    return people


def _hold_out(index: ClipIndex, held_out: set[str]) -> Split:
    sides = list(zip(index.clip_ids, index.subjects, strict=True))
    train = [clip_id for clip_id, subject in sides if subject not in held_out]
    validation = [clip_id for clip_id, subject in sides if subject in held_out]
    subjects = dict(sides)
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


def read_clips(
    directory: str, clip_ids: Sequence[str], what: Input, for_training: bool
) -> ray.data.Dataset:
    """A lazy Ray Data set of these clips, in the order of the shards, one row each.

    A row has `clip_id`, `subject`, `label`, `frames` (uint8 (P, C, S/2, S/2) as bytes; all P-frames
    where training draws N of them anew each epoch, else only those that `what` selects),
    `num_planes` and `side` (C and S/2), `z_I` (the clip's identity, not standardised; the mean,
    where it has several), `apex` (RGB uint8 (32, 32, 3) as bytes, or null) and `bytes_read` (of the
    packets that `what` gives to the decoder).
    """
    wanted = pa.array(sorted(clip_ids))
    draws_later = for_training and what.frames != LAST

    def choose(table: pa.Table) -> pa.Table:
        kept = table.filter(pc.is_in(table["clip_id"], value_set=wanted))
        rows = [_chosen(row, what, draws_later) for row in kept.to_pylist()]
        return pa.Table.from_pylist(rows, schema=_CHOSEN_SCHEMA)

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    folder = Folder(directory)
    paths = read_description(directory).shard_paths(folder)
    rows = ray.data.read_parquet(paths, columns=list(COLUMNS), filesystem=folder.patient_filesystem)
    return rows.map_batches(choose, batch_format="pyarrow", batch_size=None)


_CHOSEN_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("frames", pa.binary()),
        pa.field("num_planes", pa.int32()),
        pa.field("side", pa.int32()),
        pa.field("z_I", pa.list_(pa.float32())),
        pa.field("apex", pa.binary()),
        pa.field("bytes_read", pa.int64()),
    ]
)


def _chosen(row: dict[str, Any], what: Input, all_frames: bool) -> dict[str, Any]:
    bitstream = Bitstream(row["bitstream"], row["clip_id"])
    gops = range(len(bitstream.gops))
    if all_frames:
        every = [frame for gop in bitstream.gops for frame in gop[1:]]
        frames = what.read_frames(bitstream, gops, every)
    else:
        frames = what.read(bitstream, gops)
    apex = None
    if row["apex"] is not None:
        apex = unpack_picture(row["apex"]).tobytes()
    return {
        "clip_id": row["clip_id"],
        "subject": row["subject"],
        "label": row["label"],
        "frames": frames.tobytes(),
        "num_planes": frames.shape[1],
        "side": frames.shape[2],
        "z_I": np.mean(row["identity"], axis=0).astype(np.float32).tolist(),
        "apex": apex,
        "bytes_read": sum(len(bitstream.packets[n]) for n in what.packets_read(bitstream, gops)),
    }


def unpack_frames(record: Mapping[str, Any]) -> np.ndarray:
    """The frames of a row of `read_clips`: read-only uint8 (P, C, S/2, S/2)."""
    shape = (-1, int(record["num_planes"]), int(record["side"]), int(record["side"]))
    return np.frombuffer(record["frames"], np.uint8).reshape(shape)
