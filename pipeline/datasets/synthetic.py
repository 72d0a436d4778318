"""A built-in data set: procedurally drawn faces, as video, of the seven CK+ expressions.

    cfer draw --out DIR --subjects 60
    cfer draw --measure DIR

The first command writes `DIR/videos/S001/anger_1.mp4` … and `DIR/manifest.csv`; the second reports
how good the set is: whether MTCNN finds the faces, and whether a face network, and in addition
plain pixels, tell the subjects apart. How a face is drawn is in `drawing.py`.
"""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from cfer.errors import InputError, exit_with_message
from cfer.options import check_at_least, parse
from pipeline.datasets.drawing import (
    DRAWING_VERSION,
    EXPRESSIONS,
    FPS,
    DrawingSettings,
    Identity,
    draw_clip,
)
from pipeline.datasets.made import claim, make_missing, write_csv, write_video

CRF = 12  # visually lossless
DEFAULTS = DrawingSettings()


@lru_cache(maxsize=2)
def identity_of(seed: int, subject: int) -> Identity:
    """Subject number `subject` (from 0) of a seed: the same in a set of any size."""
    return Identity(np.random.default_rng([seed, subject]))


def clip_generator(
    seed: int, subject: int, expression: str, repetition: int
) -> np.random.Generator:
    """The randomness of one clip, independent of all other clips."""
    return np.random.default_rng([seed, subject, 1 + EXPRESSIONS.index(expression), repetition])


# ---------------------------------------------------------------------------------------------
# The data set on disk


class Task(NamedTuple):
    """One clip to be drawn; `subject` and `repetition` count from 0."""

    subject: int
    expression: str
    repetition: int

    def subject_name(self) -> str:
        return f"S{self.subject + 1:03d}"

    def path(self) -> str:
        """Below the set's folder."""
        return f"videos/{self.subject_name()}/{self.expression}_{self.repetition + 1}.mp4"

    def draw(self, settings: DrawingSettings) -> list[np.ndarray]:
        generator = clip_generator(settings.seed, *self)
        return draw_clip(
            identity_of(settings.seed, self.subject), self.expression, settings, generator
        )


def _draw_task(task: Task, directory: Path, settings: DrawingSettings) -> int:
    """Draw one clip and write its video; returns the number of frames."""
    pictures = task.draw(settings)
    return write_video(directory / task.path(), pictures, FPS, CRF)


def draw_dataset(
    directory: str | Path,
    subjects: int = 60,
    settings: DrawingSettings = DEFAULTS,
    classes: Sequence[str] = EXPRESSIONS,
    clips_per_class: int = 1,
    workers: int = 1,
) -> Path:
    """Draw `DIR/videos/S001/anger_1.mp4` … and, last, `DIR/manifest.csv`, whose path is returned.

    Videos that are there already are kept, so that an interrupted run goes on where it was and a
    set can grow by subjects, classes or clips.

    Raises:
        InputError: a folder that was drawn with other settings, or numbers or classes that can't be
            drawn.
    """
    directory = Path(directory)
    check_at_least(1, subjects=subjects, clips_per_class=clips_per_class, workers=workers)
    for name in classes:
        if name not in EXPRESSIONS:
            raise InputError(
                f"--classes: {name!r} is not one of the expressions; choose from "
                f"{', '.join(EXPRESSIONS)}"
            )
    tasks = [
        Task(subject, name, repetition)
        for subject in range(subjects)
        for name in EXPRESSIONS
        if name in classes
        for repetition in range(clips_per_class)
    ]
    claim(directory, {"drawing_version": DRAWING_VERSION, **asdict(settings)})
    make = partial(_draw_task, directory=directory, settings=settings)
    make_missing(directory, tasks, Task.path, make, "drawing", workers)
    manifest = directory / "manifest.csv"
    apex = settings.frames - 1
    rows = []
    for task in tasks:
        path, subject = task.path(), task.subject_name()
        rows.append(
            (path, f"{subject}_{Path(path).stem}", subject, task.expression, apex, "synthetic")
        )
    write_csv(manifest, ("path", "clip_id", "subject", "label", "apex_frame", "dataset"), rows)
    return manifest


# ---------------------------------------------------------------------------------------------
# How good the set is


@dataclass(frozen=True)
class Verification:
    """How well distances between clips tell whether they show the same subject.

    `nearest` is the share of clips whose nearest other clip is of the same subject, and `chance`
    what naming the subject of most clips every time would reach; `auc` and `eer` (area under the
    ROC curve, equal error rate) are over all pairs of clips. The ROC is taken as the straight lines
    between its points (Provost & Fawcett, "Robust Classification for Imprecise Environments",
    Machine Learning 2001), so the equal error rate may lie between two of them.
    """

    nearest: float
    chance: float
    auc: float
    eer: float

    @classmethod
    def of(cls, codes: np.ndarray, subjects: Sequence[str]) -> Verification:
        """From one code per clip, (N, D)."""
        from sklearn.metrics import auc, roc_curve  # see `measure_dataset`

        names = np.asarray(subjects)
        squares = np.square(codes).sum(axis=1)
        distance = squares[:, None] + squares[None] - 2 * codes @ codes.T
        np.fill_diagonal(distance, np.inf)
        same = names[:, None] == names[None]
        pair = np.triu_indices(len(names), 1)
        rejected, accepted, _ = roc_curve(same[pair], -distance[pair])
        return cls(
            nearest=float((names[distance.argmin(axis=1)] == names).mean()),
            chance=float(np.unique(names, return_counts=True)[1].max() / len(names)),
            auc=float(auc(rejected, accepted)),
            # Where 1 − accepted = rejected; their sum grows from point to point.
            eer=float(np.interp(1, accepted + rejected, rejected)),
        )


def measure_dataset(directory: Path, embedder_name: str) -> str:
    """What a drawn set is like, in a few lines of text.

    Raises:
        InputError: there is no set, or its one subject, or one clip of each, leaves nothing to
            compare.
    """
    manifest = directory / "manifest.csv"
    if not manifest.exists():
        raise InputError(f"--measure {directory}: has no manifest.csv; draw the set first (--out)")
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    num_subjects = len({row["subject"] for row in rows})
    if not 1 < num_subjects < len(rows):
        raise InputError(
            f"{manifest}: {len(rows)} clips of {num_subjects} subjects leave nothing to compare; "
            "draw two or more subjects with two or more clips each"
        )
    # Heavy, and of no use to the processes that draw.
    from cfer.model.face_embedder import open_face_embedder
    from cfer.video.faces import FaceDetector, crop
    from cfer.video.pictures import open_pictures

    detector = FaceDetector()
    looked, found, crops, kept = 0, 0, [], []
    from tqdm import tqdm

    for row in tqdm(rows, desc="looking", unit="clip", disable=None):
        pictures = list(open_pictures(directory / row["path"]))
        three = (pictures[0], pictures[len(pictures) // 2], pictures[-1])
        looked += len(three)
        found += sum(len(faces) == 1 for faces in detector.faces(three, every=True))
        squares = detector.find(pictures[0])
        if squares:
            crops.append(crop(pictures[0], squares[0], 160))
            kept.append(row["subject"])
    codes = open_face_embedder(embedder_name, None, "cpu").embed(crops)
    plain = [cv2.resize(c, (24, 24), interpolation=cv2.INTER_AREA).ravel() for c in crops]
    lines = [
        f"{directory}: {len(rows)} clips of {num_subjects} subjects",
        f"MTCNN finds exactly one face in {found} of {looked} frames ({found / looked:.2%}): "
        "first, middle and last of each clip",
        "same subject or not, from the first frames' face crops:",
    ]
    for name, code in ((embedder_name, codes), ("24×24 pixels", np.array(plain, np.float64))):
        result = Verification.of(code, kept)
        lines.append(
            f"  {name:<13} 1-NN {result.nearest:.3f} (chance {result.chance:.3f})  "
            f"AUC {result.auc:.3f}  EER {result.eer:.3f}"
        )
    cv2.setNumThreads(1)
    start = time.monotonic()
    frames = sum(len(Task(0, expression, 0).draw(DEFAULTS)) for expression in EXPRESSIONS)
    speed = frames / (time.monotonic() - start)
    size = DEFAULTS.picture_size
    lines.append(f"drawing: {speed:.0f} frames/s on one core, {size} pixels square")
    return "\n".join(lines)


def draw(
    *,
    out: Path | None = None,
    measure: Path | None = None,
    subjects: int = 60,
    classes: str = ",".join(EXPRESSIONS),
    clips_per_class: int = 1,
    frames: int = DEFAULTS.frames,
    picture_size: int = DEFAULTS.picture_size,
    difficulty: float = DEFAULTS.difficulty,
    seed: int = DEFAULTS.seed,
    workers: int = os.cpu_count() or 1,
    identity: Literal["dlib", "facenet"] = "dlib",
) -> int:
    """Draw a data set of faces as video, or measure one.

    Args:
        out: draw a set into this folder.
        measure: measure the set in this folder.
        subjects: number of people.
        classes: comma-separated.
        clips_per_class: clips of each subject and class.
        frames: frames of a clip, from neutral to its apex, at 24 a second.
        picture_size: width and height of the pictures, in pixels.
        difficulty: 0 is easy, 1 is hard, up to 2.
        seed: of the people and their clips.
        workers: processes that draw.
        identity: the face network that measures.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if out is not None and measure is None:
        settings = DrawingSettings(frames, picture_size, difficulty, seed)
        names = [name.strip() for name in classes.split(",")]
        draw_dataset(out, subjects, settings, names, clips_per_class, workers)
    elif measure is not None and out is None:
        print(measure_dataset(measure, identity))
    else:
        raise InputError("give either --out, to draw a set, or --measure, to measure one")
    return 0


if __name__ == "__main__":
    exit_with_message(lambda: parse(draw, "cfer draw", None))
