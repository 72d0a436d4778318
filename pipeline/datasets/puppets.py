"""A data set of photo puppets: photographs with landmarks → labeled video of eight expressions.

    cfer puppets --photos PHOTOS --out DIR
    cfer extract --dataset puppets --root PHOTOS        # the same, into puppets/ beside the shards

Writes `DIR/videos/001/anger_1.mp4` …, `DIR/manifest.csv` with the spans to be learned (several of
a video), and `DIR/spans.csv` with the intensity of each. How a face moves: `pipeline.puppets`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cfer.errors import InputError, exit_with_message
from cfer.options import check_at_least, parse
from cfer.outputs import check_output
from pipeline.datasets.made import claim, make_missing, write_csv, write_video
from pipeline.puppets.acting import CLASSES, Clip, Style, plan
from pipeline.puppets.mixture import Mixture, mixtures_of
from pipeline.puppets.photos import Face, Photograph, photographs_below
from pipeline.puppets.render import Stage
from pipeline.puppets.rig import Rig, generator_of
from pipeline.puppets.smile import OwnSmile

NAME = "puppets"
VERSION = 2  # of what a puppet does and looks like
FINEST, COARSEST = 17, 31  # rate factors of H.264
SHEET_PEOPLE, FILM_FRAMES = 8, 12


@dataclass(frozen=True)
class PuppetSettings:
    """What decides how the clips look.

    Attributes:
        size: side of the pictures, pixels.
        seed: of all clips.
    """

    size: int = 256
    seed: int = 0


class Task(NamedTuple):
    """One clip; `repetition` counts from 0."""

    photograph: Photograph | Mixture
    label: str
    repetition: int

    def path(self) -> str:
        """Below the set's folder."""
        return f"videos/{self.photograph.person}/{self.label}_{self.repetition + 1}.mp4"

    def plan(
        self, settings: PuppetSettings, has_own_smile: bool = False
    ) -> tuple[Clip, np.random.Generator]:
        """The clip, and the rest of its randomness, which is its own whatever else is in the set.

        Its spans are the same with and without the person's own smile.
        """
        person = self.photograph.person
        words = person, self.label, str(self.repetition), str(settings.seed)
        generator = generator_of(*words)
        return plan(_style(person), self.label, generator, has_own_smile), generator


@lru_cache(maxsize=4)
def _rig(photograph: Photograph | Mixture) -> Rig:
    if isinstance(photograph, Mixture):
        return Rig.of(photograph.face())
    return Rig.of(Face.read(photograph), _own_smile(photograph))


@cache
def _own_smile(photograph: Photograph) -> OwnSmile | None:
    return OwnSmile.of(photograph)


@lru_cache(maxsize=4)
def _style(person: str) -> Style:
    return Style.of(person)


def stage(task: Task, settings: PuppetSettings) -> tuple[Clip, Stage, np.random.Generator]:
    """A clip, and where its pictures come from.

    Raises:
        InputError: the photograph or its landmarks aren't right.
    """
    rig = _rig(task.photograph)
    clip, generator = task.plan(settings, rig.own_smile is not None)
    style = _style(task.photograph.person)
    return clip, Stage(rig, style, clip, generator, settings.size), generator


def cast(photos: Path, people: int | None, mixtures: int) -> list[Photograph | Mixture]:
    """The first people of a folder of photographs, all if it is None, and mixtures of them.

    Raises:
        InputError: as `photographs_below` and `mixtures_of`.
    """
    photographs = photographs_below(photos)[:people]
    return [*photographs, *mixtures_of(photographs, mixtures)]


def _animate(task: Task, directory: Path, settings: PuppetSettings) -> int:
    clip, shown, generator = stage(task, settings)
    crf = int(generator.integers(FINEST, COARSEST + 1))
    pictures = (shown.frame(number) for number in range(clip.num_frames))
    return write_video(directory / task.path(), pictures, clip.fps, crf)


def animate(
    photos: Path,
    directory: Path,
    settings: PuppetSettings = PuppetSettings(),
    people: int | None = None,
    clips_per_class: int = 3,
    workers: int = 1,
    mixtures: int = 0,
) -> Path:
    """Make the videos and, last, `DIR/manifest.csv`, whose path is returned.

    Videos that are there already are kept, so that an interrupted run goes on where it was and a
    set can grow by people, mixtures of two (`pipeline.puppets.mixture`) or clips.

    Raises:
        InputError: a photograph that isn't right, or a folder that was made with other settings.
    """
    everyone = cast(photos, people, mixtures)
    claim(directory, {"puppets_version": VERSION, **asdict(settings)})
    # By repetition first: what is there early has all people.
    tasks = [
        Task(photograph, label, repetition)
        for repetition in range(clips_per_class)
        for photograph in everyone
        for label in CLASSES
    ]
    make = partial(_animate, directory=directory, settings=settings)
    make_missing(directory, tasks, Task.path, make, "animating", workers)
    return _write_manifest(directory, sorted(tasks, key=Task.path), settings)


def _write_manifest(directory: Path, tasks: Sequence[Task], settings: PuppetSettings) -> Path:
    rows, strengths = [], []
    for task in tasks:
        person, path = task.photograph.person, task.path()
        for number, span in enumerate(task.plan(settings)[0].spans, start=1):
            clip_id = f"{person}_{Path(path).stem}_{number}"
            start, end = f"{span.start:.3f}", f"{span.end:.3f}"
            rows.append((path, clip_id, person, span.label, start, end, NAME))
            strengths.append((clip_id, task.label, span.label, f"{span.intensity:.3f}"))
    write_csv(directory / "spans.csv", ("clip_id", "video", "label", "intensity"), strengths)
    manifest = directory / "manifest.csv"
    columns = ("path", "clip_id", "subject", "label", "start_seconds", "end_seconds", "dataset")
    write_csv(manifest, columns, rows)
    return manifest


# ---------------------------------------------------------------------------------------------
# To be looked at


def apex_frame(clip: Clip) -> int:
    """The frame at which a clip's expression is at its strongest; of a neutral one, its middle."""
    shown = [span for span in clip.spans if span.label != "neutral"]
    last = clip.num_frames - 1
    return min(round(shown[0].end * clip.fps), last) if shown else last // 2


def contact_sheet(
    photographs: Sequence[Photograph | Mixture], settings: PuppetSettings
) -> np.ndarray:
    """Each person in a row, each class at its apex in a column: RGB, uint8."""
    rows = []
    for photograph in photographs:
        row = []
        for label in CLASSES:
            clip, shown, _ = stage(Task(photograph, label, 0), settings)
            row.append(shown.frame(apex_frame(clip)))
        rows.append(np.hstack(row))
    side = settings.size
    head = np.full((side // 8, side * len(CLASSES), 3), 255, np.uint8)
    for column, label in enumerate(CLASSES):
        at = (column * side + side // 24, side // 11)
        cv2.putText(
            head, label, at, cv2.FONT_HERSHEY_DUPLEX, side / 400, (30, 30, 30), 1, cv2.LINE_AA
        )
    return np.vstack([head, *rows])


def film_strip(
    photograph: Photograph | Mixture, label: str, settings: PuppetSettings
) -> np.ndarray:
    """A clip's frames, evenly spaced, in two rows: RGB, uint8."""
    clip, shown, _ = stage(Task(photograph, label, 0), settings)
    last = clip.num_frames - 1
    frames = [shown.frame(n) for n in np.linspace(0, last, FILM_FRAMES).round().astype(int)]
    half = FILM_FRAMES // 2
    return np.vstack([np.hstack(frames[:half]), np.hstack(frames[half:])])


def _write_picture(path: Path, picture: np.ndarray) -> None:
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def puppets(
    *,
    photos: Path,
    out: Path | None = None,
    sheet: Path | None = None,
    film: Path | None = None,
    people: int | None = None,
    clips_per_class: int = 3,
    size: int = 256,
    seed: int = 0,
    workers: int = os.cpu_count() or 1,
    mixtures: int = 0,
) -> int:
    """Photographs of faces with landmarks → labeled video of eight expressions.

    Args:
        photos: folder of photographs, with a .tem file of 189 landmarks beside each.
        out: make a data set in this folder.
        sheet: draw some people at each apex, into this picture.
        film: draw one clip as a strip, into this picture.
        people: only so many, the first ones; not given: all.
        clips_per_class: videos of each person and class.
        size: width and height of the pictures, in pixels.
        seed: of all clips.
        workers: processes.
        mixtures: so many people more, each mixed of two photographs, of whom the model that ships
            holds out neither.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = PuppetSettings(size, seed)
    check_at_least(1, people=people, clips_per_class=clips_per_class, workers=workers)
    check_at_least(0, mixtures=mixtures, seed=seed)
    if size < 64 or size % 2:
        raise InputError(f"--size {size}: give an even number of pixels, 64 or more")
    if out is sheet is film is None:
        raise InputError("give --out, to make a data set, or --sheet or --film, to look at one")
    for picture in (sheet, film):
        if picture is not None:
            check_output(picture, ".png", ".jpg")
    if sheet or film:
        shown = cast(photos, people, mixtures)
        some = shown[:: max(len(shown) // SHEET_PEOPLE, 1)][:SHEET_PEOPLE]
        if sheet is not None:
            _write_picture(sheet, contact_sheet(some, settings))
        if film is not None:
            _write_picture(film, film_strip(some[0], "happiness", settings))
    if out is not None:
        animate(photos, out, settings, people, clips_per_class, workers, mixtures)
    return 0


if __name__ == "__main__":
    exit_with_message(lambda: parse(puppets, "cfer puppets", None))
