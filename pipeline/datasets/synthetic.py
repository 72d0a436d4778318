"""A built-in data set: procedurally drawn faces, as video, of the seven CK+ expressions.

    cfer draw --out DIR --subjects 60
    cfer draw --measure DIR

The first command writes `DIR/videos/S001/anger_1.mp4` … and `DIR/manifest.csv`; the second reports
how good the set is: whether MTCNN finds the faces, and whether a face network, and in addition
plain pixels, tell the subjects apart. How a face is drawn is in `drawing.py`.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple

import av
import cv2
import numpy as np

from cfer.errors import InputError, exit_with_message
from cfer.options import parse
from pipeline.datasets.drawing import (
    DRAWING_VERSION,
    EXPRESSIONS,
    FPS,
    DrawingSettings,
    Identity,
    draw_clip,
)

# A child of the extraction's logger: what is drawn for it is in its log.
log = logging.getLogger("extract.draw")

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


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Another path to write to: the file appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    yield temporary
    os.replace(temporary, path)


def write_video(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """Write RGB uint8 pictures as a visually lossless video; the file appears whole or not at all.

    H.264 at constant rate factor 12. One thread, so that the same pictures give the same bytes.
    """
    with (
        _written_whole(path) as temporary,
        open(temporary, "wb") as file,
        av.open(file, "w", format="mp4") as container,
    ):
        options = {"crf": "12", "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _draw_task(task: Task, directory: Path, settings: DrawingSettings) -> int:
    """Draw one clip and write its video; returns the number of frames."""
    pictures = task.draw(settings)
    write_video(directory / task.path(), pictures)
    return len(pictures)


def _start_worker() -> None:
    # Ctrl-C is the parent's to handle; OpenCV's threads would fight over the workers' cores.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


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
    for option, value in (
        ("--subjects", subjects),
        ("--clips-per-class", clips_per_class),
        ("--workers", workers),
    ):
        if value < 1:
            raise InputError(f"{option}: {value} is too few; give 1 or more")
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
    _claim_directory(directory, settings)
    for name in {task.subject_name() for task in tasks}:
        (directory / "videos" / name).mkdir(parents=True, exist_ok=True)
    missing = [task for task in tasks if not (directory / task.path()).exists()]
    if len(missing) < len(tasks):
        log.info("%d of %d clips are there already", len(tasks) - len(missing), len(tasks))
    start = last = time.monotonic()
    frames = 0
    # A bar on a terminal, a line every ten seconds in a log.
    drawn = _draw_all(missing, directory, settings, workers)
    from tqdm import tqdm

    bar = tqdm(drawn, "drawing", len(missing), unit="clip", disable=None)
    for done, count in enumerate(bar, start=1):
        frames += count
        if bar.disable and time.monotonic() - last > 10:
            last = time.monotonic()
            log.info("drawn %d of %d clips", done, len(missing))
    seconds = time.monotonic() - start
    manifest = directory / "manifest.csv"
    with _written_whole(manifest) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "clip_id", "subject", "label", "apex_frame", "dataset"))
        for task in tasks:
            path, subject = task.path(), task.subject_name()
            clip_id = f"{subject}_{Path(path).stem}"
            apex = settings.frames - 1
            writer.writerow((path, clip_id, subject, task.expression, apex, "synthetic"))
    log.info(
        "%s: %d clips of %d subjects, %d frames drawn now in %.0f s (%.0f frames/s)",
        manifest,
        len(tasks),
        subjects,
        frames,
        seconds,
        frames / max(seconds, 1e-9),
    )
    return manifest


def _draw_all(
    tasks: Sequence[Task], directory: Path, settings: DrawingSettings, workers: int
) -> Iterator[int]:
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from (_draw_task(task, directory, settings) for task in tasks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        futures = [pool.submit(_draw_task, task, directory, settings) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _claim_directory(directory: Path, settings: DrawingSettings) -> None:
    """Make the folder these settings' own, or raise `InputError` where it is another's."""
    record = directory / "settings.json"
    mine = {"drawing_version": DRAWING_VERSION, **asdict(settings)}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            with _written_whole(record) as temporary:
                temporary.write_text(json.dumps(mine, indent=1) + "\n")
            return
        theirs = json.loads(record.read_text())
    except OSError as error:
        raise InputError(
            f"--out {directory}: can't be written ({error.strerror}); give another folder"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{record}: is not the record of a drawn set ({error}); delete the folder or give "
            "another one with --out"
        ) from error
    if theirs != mine:
        differing = [
            f"{name} {theirs.get(name)} there, {value} now"
            for name, value in mine.items()
            if theirs.get(name) != value
        ]
        raise InputError(
            f"--out {directory}: was drawn with other settings ({', '.join(differing)}); use the "
            "same ones, delete the folder, or give another one"
        )


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
        squares = detector.find(pictures[:1])
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
