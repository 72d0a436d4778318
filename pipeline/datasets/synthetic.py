"""A built-in data set: procedurally drawn faces, as video, of the seven CK+ expressions.

    python -m pipeline.datasets.synthetic --out DIR --subjects 60
    python -m pipeline.datasets.synthetic --measure DIR

The first command writes `DIR/videos/S001/anger_1.mp4` … and `DIR/manifest.csv`; the second reports
how good the set is: whether MTCNN finds the faces, and whether a face network, and plain pixels
beside it, tell the subjects apart.

How a face is drawn is in `drawing.py`. Every clip starts neutral and ends at its apex, as in CK+.
Subject k of a seed is always the same person, and each of its clips the same pixels, however many
subjects are drawn.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn

import av
import cv2
import numpy as np
from tqdm import tqdm

from cfer.errors import InputError, exit_with_message
from pipeline.datasets.drawing import (
    DRAWING_VERSION,
    EXPRESSIONS,
    DrawingSettings,
    Identity,
    draw_clip,
)

log = logging.getLogger(__name__)

FPS = 24
DATASET_NAME = "synthetic"


def subject_name(subject: int) -> str:
    return f"S{subject + 1:03d}"


def identity_of(seed: int, subject: int) -> Identity:
    """Subject number `subject` (from 0) of a seed: the same in a set of any size."""
    return Identity.sample(np.random.default_rng([seed, subject]))


def clip_generator(
    seed: int, subject: int, expression: str, repetition: int
) -> np.random.Generator:
    """The randomness of one clip, independent of all other clips."""
    return np.random.default_rng([seed, subject, 1 + EXPRESSIONS.index(expression), repetition])


# ---------------------------------------------------------------------------------------------
# The data set on disk


@dataclass(frozen=True)
class Task:
    """One clip to be drawn."""

    path: Path
    subject: int
    expression: str
    repetition: int

    def manifest_row(self, directory: Path, settings: DrawingSettings) -> dict[str, str | int]:
        return {
            "path": self.path.relative_to(directory).as_posix(),
            "clip_id": f"{subject_name(self.subject)}_{self.path.stem}",
            "subject": subject_name(self.subject),
            "label": self.expression,
            "apex_frame": settings.frames - 1,
            "dataset": DATASET_NAME,
        }


def write_video(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """Write RGB uint8 pictures as a visually lossless video; the file appears whole or not at all.

    H.264 at constant rate factor 12 where this PyAV has x264, otherwise MPEG-4 at quantizer 2.
    One thread, so that the same pictures give the same bytes.
    """
    height, width = pictures[0].shape[:2]
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as file, av.open(file, "w", format="mp4") as container:
        if "libx264" in av.codecs_available:
            options = {"crf": "12", "preset": "veryfast"}
            stream = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        else:
            options = {"qmin": "2", "qmax": "2"}
            stream = container.add_stream("mpeg4", rate=Fraction(FPS), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    os.replace(temporary, path)


def draw_task(task: Task, settings: DrawingSettings) -> int:
    """Draw one clip and write its video; returns the number of frames."""
    pictures, _ = draw_clip(
        identity_of(settings.seed, task.subject),
        task.expression,
        settings,
        clip_generator(settings.seed, task.subject, task.expression, task.repetition),
    )
    write_video(task.path, pictures)
    return len(pictures)


def _start_worker() -> None:
    # Ctrl-C is the parent's to handle; OpenCV's threads would fight over the workers' cores.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def draw_dataset(
    directory: str | Path,
    subjects: int = 60,
    settings: DrawingSettings | None = None,
    classes: Sequence[str] = EXPRESSIONS,
    clips_per_class: int = 1,
    workers: int = 1,
) -> Path:
    """Draw `DIR/videos/S001/anger_1.mp4` … and, last, `DIR/manifest.csv`, whose path is returned.

    Videos that are there already are kept, so that an interrupted run goes on where it was and a
    set can grow by subjects, classes or clips. Raises `InputError` for a folder that was drawn
    with other settings, and for numbers or classes that can't be drawn.
    """
    settings = settings or DrawingSettings()
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
        Task(
            directory / "videos" / subject_name(subject) / f"{name}_{repetition + 1}.mp4",
            subject,
            name,
            repetition,
        )
        for subject in range(subjects)
        for name in EXPRESSIONS
        if name in classes
        for repetition in range(clips_per_class)
    ]
    _claim_directory(directory, settings)
    for folder in sorted({task.path.parent for task in tasks}):
        folder.mkdir(parents=True, exist_ok=True)
    missing = [task for task in tasks if not task.path.exists()]
    if len(missing) < len(tasks):
        log.info("%d of %d clips are there already", len(tasks) - len(missing), len(tasks))
    start = time.monotonic()
    frames = sum(_progress(_draw_all(missing, settings, workers), len(missing)))
    seconds = time.monotonic() - start
    _write_manifest(directory, [task.manifest_row(directory, settings) for task in tasks])
    log.info(
        "%s: %d clips of %d subjects, %d frames drawn now in %.0f s (%.0f frames/s)",
        directory / "manifest.csv",
        len(tasks),
        subjects,
        frames,
        seconds,
        frames / max(seconds, 1e-9),
    )
    return directory / "manifest.csv"


def _draw_all(tasks: Sequence[Task], settings: DrawingSettings, workers: int) -> Iterator[int]:
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from (draw_task(task, settings) for task in tasks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        futures = [pool.submit(draw_task, task, settings) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _progress(counts: Iterator[int], total: int) -> Iterator[int]:
    """Pass the counts on; a bar on a terminal, a line every ten seconds in a log."""
    if sys.stderr.isatty():
        yield from tqdm(counts, total=total, unit="clip", desc="drawing")
        return
    last = time.monotonic()
    for done, count in enumerate(counts, start=1):
        if time.monotonic() - last > 10:
            last = time.monotonic()
            log.info("drawn %d of %d clips", done, total)
        yield count


def _claim_directory(directory: Path, settings: DrawingSettings) -> None:
    """Make the folder these settings' own, or raise `InputError` where it is another's."""
    record = directory / "settings.json"
    mine = {"drawing_version": DRAWING_VERSION, **asdict(settings)}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            _write_whole(record, json.dumps(mine, indent=1) + "\n")
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
        names = ("drawing_version", *(field.name for field in fields(settings)))
        differing = [name for name in names if theirs.get(name) != mine[name]]
        described = ", ".join(f"{n} {theirs.get(n)} there, {mine[n]} now" for n in differing)
        raise InputError(
            f"--out {directory}: was drawn with other settings ({described}); use the same ones, "
            "delete the folder, or give another one"
        )


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.write_text(text)
    os.replace(temporary, path)


def _write_manifest(directory: Path, rows: Sequence[dict[str, str | int]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write_whole(directory / "manifest.csv", text.getvalue())


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
        from sklearn.metrics import auc, roc_curve  # see `measure`

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


def measure(directory: str | Path, embedder_name: str = "dlib") -> str:
    """Measure a drawn set, and say it in a few lines.

    Raises `InputError` where there is no set, or where one subject or one clip each leaves nothing
    to compare.
    """
    directory = Path(directory)
    manifest = directory / "manifest.csv"
    if not manifest.exists():
        raise InputError(f"--measure {directory}: has no manifest.csv; draw the set first (--out)")
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    subjects = [row["subject"] for row in rows]
    if not 1 < len(set(subjects)) < len(rows):
        raise InputError(
            f"{manifest}: {len(rows)} clips of {len(set(subjects))} subjects leave nothing to "
            "compare; draw two or more subjects with two or more clips each"
        )
    # Heavy, and of no use to the processes that draw.
    from cfer.model.face_embedder import open_face_embedder
    from cfer.video.faces import FaceDetector, crop
    from cfer.video.pictures import open_pictures

    detector = FaceDetector()
    looked, found, crops, kept = 0, 0, [], []
    for row in tqdm(rows, desc="looking", unit="clip", disable=not sys.stderr.isatty()):
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
        f"{directory}: {len(rows)} clips of {len(set(subjects))} subjects",
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
    settings = DrawingSettings()
    for expression in EXPRESSIONS:
        draw_clip(identity_of(0, 0), expression, settings, clip_generator(0, 0, expression, 0))
    speed = settings.frames * len(EXPRESSIONS) / (time.monotonic() - start)
    lines.append(
        f"drawing: {speed:.0f} frames/s on one core, {settings.picture_size} pixels square"
    )
    return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """Its errors are the user's: one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def main(arguments: Sequence[str] | None = None) -> int:
    defaults = DrawingSettings()
    parser = Parser(
        prog="python -m pipeline.datasets.synthetic",
        description="Draw a data set of faces as video, or measure one.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", metavar="DIR", help="draw a set into this folder")
    what.add_argument("--measure", metavar="DIR", help="measure the set in this folder")
    parser.add_argument(
        "--identity", default="dlib", choices=("dlib", "facenet"),
        help="the face network that measures (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--subjects", type=int, default=60, help="number of people (%(default)s)")
    parser.add_argument(
        "--frames", type=int, default=defaults.frames,
        help=f"frames a clip, neutral to apex, at {FPS} a second (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--picture-size", type=int, default=defaults.picture_size, help="pixels (%(default)s)"
    )
    parser.add_argument(
        "--difficulty", type=float, default=defaults.difficulty,
        help="0 is easy, 1 is hard, up to 2 (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=defaults.seed, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--clips-per-class", type=int, default=1, help="of each subject (%(default)s)"
    )
    parser.add_argument(
        "--classes", default=",".join(EXPRESSIONS), help="comma-separated (%(default)s)"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.measure:
        print(measure(options.measure, options.identity))
        return 0
    settings = DrawingSettings(
        frames=options.frames,
        picture_size=options.picture_size,
        difficulty=options.difficulty,
        seed=options.seed,
    )
    draw_dataset(
        options.out,
        options.subjects,
        settings,
        [name.strip() for name in options.classes.split(",")],
        options.clips_per_class,
        options.workers,
    )
    return 0


if __name__ == "__main__":
    exit_with_message(main)
