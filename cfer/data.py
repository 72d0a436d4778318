"""From shards to batches: which clips, which residual frames of them, and how they are varied.

The clips of a data set are few and, once their residual frames are chosen, small (a 112 × 112
frame is 19 kB): Ray Data reads the shards once, chooses the frames where the shard is read, and
each training worker keeps its share in memory as uint8. So an epoch costs no input at all, and its
order is a function of (seed, epoch, rank): a resumed run goes on exactly as an undisturbed one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from PIL import Image
from torch import Tensor

from cfer.errors import InputError
from cfer.game import Batch
from cfer.model import APEX_SIZE, residual_planes
from cfer.shards import read_description, unpack_residuals

COLUMNS = (
    "clip_id",
    "subject",
    "label",
    "size",
    "i_frame_numbers",
    "residuals",
    "residual_frames",
    "identity",
    "apex",
)
LAST = "last"
FrameRule = str | int
VALIDATION_NAMES = ("validation", "val", "valid", "test")


def parse_frame_rule(text: str) -> FrameRule:
    """`last`, or a number of frames ≥ 1."""
    if text == LAST:
        return LAST
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise InputError(f"--frames {text}: neither `{LAST}` nor a number of frames; give one of them")


def select_frames(
    i_frame_numbers: Sequence[int],
    residual_frame_numbers: Sequence[int],
    rule: FrameRule,
    generator: np.random.Generator | None = None,
) -> list[int]:
    """The residual frames of a clip that the recogniser looks at.

    Args:
        i_frame_numbers: the clip's I-frames, ascending.
        residual_frame_numbers: its P-frames, ascending.
        rule: "last": the last P-frame of each GOP, which holds the GOP's whole change where
            residuals are accumulated; or N: that many P-frames of the clip, all where it has fewer.
        generator: for an N drawn at random, as in training; without one they are evenly spaced.

    Returns:
        Ascending frame numbers; none where the clip has no P-frame.
    """
    if rule == LAST:
        gop = np.searchsorted(i_frame_numbers, residual_frame_numbers)
        return [
            int(frame)
            for position, frame in enumerate(residual_frame_numbers)
            if position + 1 == len(gop) or gop[position + 1] != gop[position]
        ]
    total, count = len(residual_frame_numbers), min(int(rule), len(residual_frame_numbers))
    if generator is None:
        chosen = ((np.arange(count) + 0.5) * total / max(count, 1)).astype(int)
    else:
        chosen = np.sort(generator.choice(total, count, replace=False))
    return [int(residual_frame_numbers[position]) for position in chosen]


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
        InputError: not a complete data set, or one without a labelled clip.
    """
    names = ["clip_id", "subject", "label", "split", "apex_frame", "residual_frames"]
    paths = read_description(directory).shard_paths(directory)
    tables = [pq.read_table(path, columns=names) for path in paths]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    labelled = [row for row in rows if row["label"] is not None]
    if not labelled:
        raise InputError(
            f"{directory}: none of its {len(rows)} clips has a label; "
            "extract from a manifest with a `label` column"
        )
    still = [row["clip_id"] for row in labelled if not row["residual_frames"]]
    if still:
        raise InputError(
            f"{directory}: {len(still)} clips have no P-frame, so no residual ({still[0]}, …); "
            "extract with a GOP of 2 or more"
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
    index: ClipIndex,
    *,
    seed: int,
    val_fraction: float = 0.25,
    val_subjects: Sequence[str] = (),
    num_folds: int = 0,
    fold: int = 0,
) -> Split:
    """Hold out subjects: nobody is on both sides.

    Args:
        seed: orders the subjects, before a fraction or a fold is cut off.
        val_fraction: share of the subjects to hold out, in (0, 1); at least one.
        val_subjects: exactly these instead.
        num_folds, fold: or the `fold`-th (from 0) of `num_folds` parts, each subject in one.

    Raises:
        InputError: clips without a subject, unknown subjects, too few subjects.
    """
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
    if val_subjects:
        unknown = sorted(set(val_subjects) - set(people))
        if unknown:
            raise InputError(
                f"--val-subjects: {', '.join(unknown)}: not in the data set; its subjects are "
                f"{', '.join(people[:20])}{', …' if len(people) > 20 else ''}"
            )
        held_out = set(val_subjects)
    else:
        shuffled = [people[i] for i in np.random.default_rng(seed).permutation(len(people))]
        if num_folds:
            if not 2 <= num_folds <= len(people) or not 0 <= fold < num_folds:
                raise InputError(
                    f"--folds {num_folds} --fold {fold}: of {len(people)} subjects there can be 2 "
                    f"to {len(people)} folds, numbered from 0"
                )
            held_out = set(shuffled[fold::num_folds])
        else:
            held_out = set(shuffled[: max(1, round(val_fraction * len(people)))])
    sides = list(zip(index.clip_ids, index.subjects, strict=True))
    train = [clip_id for clip_id, subject in sides if subject not in held_out]
    validation = [clip_id for clip_id, subject in sides if subject in held_out]
    assert not {s for _, s in sides if s in held_out} & {s for c, s in sides if c in set(train)}
    return _checked(Split(train, validation), "the held-out subjects")


def _checked(split: Split, what: str) -> Split:
    if not split.train or not split.validation:
        raise InputError(
            f"{what}: {len(split.train)} clips to train on and {len(split.validation)} to validate "
            "on; both sides need some"
        )
    return split


def read_clips(
    directory: str, clip_ids: Sequence[str], rule: FrameRule, for_training: bool
) -> ray.data.Dataset:
    """A lazy Ray Data set of these clips, in the order of the shards, one row each.

    A row has `clip_id`, `subject`, `label`, `frames` (uint8 (P, 3S/2, S) as bytes; all P-frames
    where training draws N of them anew each epoch, else only those that `rule` selects), `size`,
    `z_I` (mean of the I-frames' embeddings, not standardised) and `apex` (RGB uint8
    (32, 32, 3) as bytes, or null).
    """
    wanted = pa.array(sorted(clip_ids))
    draws_later = for_training and rule != LAST

    def choose(table: pa.Table) -> pa.Table:
        kept = table.filter(pa.compute.is_in(table["clip_id"], value_set=wanted))
        return pa.Table.from_pylist(
            [_chosen(row, None if draws_later else rule) for row in kept.to_pylist()],
            schema=_CHOSEN_SCHEMA,
        )

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    paths = read_description(directory).shard_paths(directory)
    rows = ray.data.read_parquet(paths, columns=list(COLUMNS))
    return rows.map_batches(choose, batch_format="pyarrow", batch_size=None)


_CHOSEN_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("size", pa.int32()),
        pa.field("frames", pa.binary()),
        pa.field("z_I", pa.list_(pa.float32())),
        pa.field("apex", pa.binary()),
    ]
)


def _chosen(row: dict[str, Any], rule: FrameRule | None) -> dict[str, Any]:
    residuals = unpack_residuals(row["residuals"], row["size"])
    if rule is not None:
        chosen = set(select_frames(row["i_frame_numbers"], row["residual_frames"], rule))
        residuals = residuals[[frame in chosen for frame in row["residual_frames"]]]
    apex = None
    if row["apex"] is not None:
        picture = Image.open(io.BytesIO(row["apex"])).convert("RGB")
        apex = np.asarray(picture.resize((APEX_SIZE, APEX_SIZE), Image.Resampling.BOX)).tobytes()
    return {
        "clip_id": row["clip_id"],
        "subject": row["subject"],
        "label": row["label"],
        "size": row["size"],
        "frames": residuals.tobytes(),
        "z_I": np.mean(row["identity"], axis=0).astype(np.float32).tolist(),
        "apex": apex,
    }


@dataclass
class Rows:
    """The clips that one worker keeps in memory.

    Attributes:
        frames: of each clip, uint8 (P, 3S/2, S).
        labels: int64 (N,).
        z_I: float32 (N, d), not standardised.
        apex: float32 (N, 3, 32, 32) in [0, 1]; zeros where `has_apex` is False.
        has_apex: bool (N,).
        subjects, clip_ids: N each.
    """

    frames: list[np.ndarray]
    labels: Tensor
    z_I: Tensor
    apex: Tensor
    has_apex: Tensor
    subjects: list[str | None]
    clip_ids: list[str]

    def __len__(self) -> int:
        return len(self.frames)


def load_rows(records: Sequence[dict[str, Any]], identity_dim: int) -> Rows:
    """Rows of `read_clips` → memory. No record gives no rows."""
    apex = np.zeros((len(records), APEX_SIZE, APEX_SIZE, 3), np.uint8)
    for position, record in enumerate(records):
        if record["apex"] is not None:
            apex[position] = np.frombuffer(record["apex"], np.uint8).reshape(apex.shape[1:])
    z_I = np.array([record["z_I"] for record in records], np.float32).reshape(-1, identity_dim)
    return Rows(
        frames=[unpack_residuals(record["frames"], int(record["size"])) for record in records],
        labels=torch.tensor([int(record["label"]) for record in records], dtype=torch.int64),
        z_I=torch.from_numpy(z_I),
        apex=torch.from_numpy(apex).permute(0, 3, 1, 2).float() / 255,
        has_apex=torch.tensor([record["apex"] is not None for record in records]).bool(),
        subjects=[record["subject"] for record in records],
        clip_ids=[record["clip_id"] for record in records],
    )


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of z_I per dimension, (d,), over the training clips."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def of(total: Tensor, total_squares: Tensor, count: float) -> Standardisation:
        """From float64 sums over all workers. A dimension that never varies is left unscaled."""
        mean = total / count
        std = (total_squares / count - mean**2).clamp(min=0).sqrt()
        return Standardisation(
            mean.float(), torch.where(std > 1e-6, std, torch.ones_like(std)).float()
        )

    def __call__(self, z_I: Tensor) -> Tensor:
        return (z_I - self.mean.to(z_I.device)) / self.std.to(z_I.device)


@dataclass(frozen=True)
class Augmentation:
    """How training clips are varied; every frame of a clip in the same way.

    Attributes:
        flip_probability: of a horizontal flip.
        max_shift_pixels: largest shift in each direction, in pixels of the crop (even); what comes
            in from outside is zero residual.
        gain_jitter: the residual is multiplied by up to exp(±this).
    """

    flip_probability: float = 0.5
    max_shift_pixels: int = 8
    gain_jitter: float = 0.3


def augment(
    planes: Tensor, settings: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Vary float planes (N, T, 6, S/2, S/2) of `residual_planes`; the draws come from the CPU.

    Returns:
        The planes, and which clips were flipped, bool (N,).
    """
    num_clips, side = len(planes), planes.shape[-1]

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(planes.device)

    flipped = planes.flip(-1)[:, :, [1, 0, 3, 2, 4, 5]]
    flip = draw(num_clips) < settings.flip_probability
    planes = torch.where(flip.reshape(-1, 1, 1, 1, 1), flipped, planes)

    reach = settings.max_shift_pixels // 2
    if reach:
        shift = (draw(num_clips, 2) * (2 * reach + 1)).long() - reach
        position = torch.arange(side, device=planes.device)
        rows, columns = (position + shift[:, axis : axis + 1] for axis in (0, 1))
        inside = (((rows >= 0) & (rows < side)).unsqueeze(2)) & (
            ((columns >= 0) & (columns < side)).unsqueeze(1)
        )
        clips = torch.arange(num_clips, device=planes.device).reshape(-1, 1, 1)
        # Advanced indices around two slices: their shape (N, S/2, S/2) comes first.
        moved = planes.permute(0, 3, 4, 1, 2)[
            clips, rows.clamp(0, side - 1).unsqueeze(2), columns.clamp(0, side - 1).unsqueeze(1)
        ]
        planes = moved.permute(0, 3, 4, 1, 2) * inside.reshape(num_clips, 1, 1, side, side)

    gain = torch.exp(settings.gain_jitter * (2 * draw(num_clips, 1, 1, 1, 1) - 1))
    return planes * gain, flip


class BatchMaker:
    """Turns clips in memory into batches on the device."""

    def __init__(
        self,
        rows: Rows,
        rule: FrameRule,
        standardise: Standardisation,
        device: torch.device,
    ) -> None:
        self.rows = rows
        self.rule = rule
        self.standardise = standardise
        self.device = device

    def training_epoch(
        self,
        num_steps: int,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        epoch: int,
        rank: int,
    ) -> Iterator[Batch]:
        """`num_steps` batches of exactly `batch_size` clips, a function of (seed, epoch, rank).

        Each clip comes once before any comes twice.
        """
        draws = np.random.default_rng((seed, epoch, rank))
        generator = torch.Generator().manual_seed(int(draws.integers(2**62)))
        needed = num_steps * batch_size
        rounds = -(-needed // len(self.rows))
        order = np.concatenate([draws.permutation(len(self.rows)) for _ in range(rounds)])[:needed]
        for chosen in order.reshape(num_steps, batch_size):
            batch = self._batch(chosen.tolist(), draws)
            batch.planes, flipped = augment(batch.planes, augmentation, generator)
            mirrored = batch.apex.flip(-1)
            batch.apex = torch.where(flipped.reshape(-1, 1, 1, 1), mirrored, batch.apex)
            yield batch

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every clip once, unvaried; the last batch may be smaller."""
        for start in range(0, len(self.rows), batch_size):
            yield self._batch(list(range(start, min(start + batch_size, len(self.rows)))), None)

    def _batch(self, chosen: list[int], draws: np.random.Generator | None) -> Batch:
        clips = [self._frames(position, draws) for position in chosen]
        most = max(len(frames) for frames in clips)
        packed = np.full((len(clips), most, *clips[0].shape[1:]), 128, np.uint8)
        mask = torch.zeros(len(clips), most, dtype=torch.bool)
        for position, frames in enumerate(clips):
            packed[position, : len(frames)] = frames
            mask[position, : len(frames)] = True
        index = torch.tensor(chosen)
        return Batch(
            planes=residual_planes(torch.from_numpy(packed).to(self.device)),
            mask=mask.to(self.device),
            labels=self.rows.labels[index].to(self.device),
            z_I=self.standardise(self.rows.z_I[index].to(self.device)),
            apex=self.rows.apex[index].to(self.device),
            has_apex=self.rows.has_apex[index].to(self.device),
        )

    def _frames(self, position: int, draws: np.random.Generator | None) -> np.ndarray:
        frames = self.rows.frames[position]
        if draws is None or self.rule == LAST:
            return frames
        return frames[select_frames([], range(len(frames)), self.rule, draws)]
