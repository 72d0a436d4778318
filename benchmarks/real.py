"""What models say of real people: recall, confusions and false alarms, several models side by side.

Four kinds of material, each on its own: windows of videos that people have marked; smiles made from
two photographs each, beside the same faces only moving; CREMA-D's clips; and changed videos
(`robustness.py`). A model that reads H.264 as it is stands there twice, once with every face
encoded anew. Intervals are exact for a binomial share (Clopper & Pearson, Biometrika 1934), 95 %.
They count clips as independent, and windows of one video are not quite.
"""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import robustness
from benchmarks.measure import markdown_table
from benchmarks.robustness import Robustness, both_ways
from benchmarks.smiles import (
    END_SECONDS,
    Unusable,
    aligned,
    faded,
    read_photograph,
    write_clip,
)
from cfer.errors import InputError
from cfer.predict.recognizer import Recognizer
from cfer.predict.timeline import NEUTRAL
from cfer.video.files import PICTURE_SUFFIXES, is_video
from cfer.video.pictures import ClipError
from pipeline.datasets import cremad
from pipeline.default_model import groups_of_people
from pipeline.manifest import Entry

COLUMNS = ("video", "onset_s", "apex_s", "label", "confidence")
SURE = 2  # the confidence from which a mark is sure
HAPPINESS, NO_FACE = "happiness", "no face"
STILL, MOVING, MOVER = "smile, still", "smile, moving", "neutral, moving"
INFO, NEUTRAL_PHOTOGRAPHS, SMILING_PHOTOGRAPHS = "london_info.csv", "neutral_front", "smiling_front"
GROUPS = ("age", "gender", "ethnicity")
UNKNOWN = "unknown"
NOT_GIVEN = "Not given."

ENCODED, NATIVE = "encoded", "native"  # see `Prediction.way`
NO_GROUPS: Mapping[str, str] = {}

Models = Mapping[str, Recognizer]


def says(
    recognizer: Recognizer, video: Path, start_seconds: float, end_seconds: float
) -> tuple[dict[str, float], str]:
    """One prediction for a part of a video: probability by class, none if it shows no face; and the
    way (`Prediction.way`).

    Raises:
        InputError: the part has fewer than two frames, or an end after the video's.
    """
    try:
        # One window, however long the part is.
        (prediction,) = recognizer.predict(
            video,
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            window_seconds=end_seconds - start_seconds + 1,
        )
    except ClipError as error:
        if error.stage == "face":
            return {}, ENCODED
        raise
    return prediction.probabilities, prediction.way


# ---- figures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """Hits of a number of clips, and the exact binomial interval of their share, 95 %."""

    hits: int
    of: int
    low: float
    high: float

    @classmethod
    def count(cls, hits: Iterable[bool]) -> Share:
        """Of no clips at all, the interval is [0, 1]."""
        from scipy.stats import binomtest

        all_of_them = list(hits)
        if not all_of_them:
            return cls(0, 0, 0.0, 1.0)
        number, of = sum(all_of_them), len(all_of_them)
        interval = binomtest(number, of).proportion_ci(0.95, "exact")
        return cls(number, of, float(interval.low), float(interval.high))

    def __str__(self) -> str:
        if not self.of:
            return "–"
        share = self.hits / self.of
        return f"{self.hits} of {self.of} = {share:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Clip:
    """What the models say of one clip.

    Attributes:
        name: of the clip, or the video and the times of the window.
        label: what it shows.
        said: by model, the probability of each class; none if it shows no face.
        confidence: of the people who marked it, from 1 to 3; 0 if nobody did.
        groups: age, gender and ethnicity of the person, where known.
        native: the models that read it as H.264 transmits it.
    """

    name: str
    label: str
    said: dict[str, dict[str, float]]
    confidence: int = 0
    groups: dict[str, str] = field(default_factory=dict)
    native: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        models: Models,
        video: Path,
        times: tuple[float, float],
        name: str,
        label: str,
        *,
        confidence: int = 0,
        groups: Mapping[str, str] = NO_GROUPS,
    ) -> Clip:
        """What the models say of a part of a video; raises as `says`."""
        found = {m: says(model, video, *times) for m, model in models.items()}
        said = {m: probabilities for m, (probabilities, _) in found.items()}
        native = [m for m, (_, way) in found.items() if way == NATIVE]
        return cls(name, label, said, confidence, dict(groups), native)

    def label_of(self, model: str) -> str:
        """The likeliest class."""
        return _likeliest(self.said[model])

    def is_right(self, model: str) -> bool:
        return self.label_of(model) == self.label


def _likeliest(probabilities: Mapping[str, float]) -> str:
    return max(probabilities, key=probabilities.__getitem__, default=NO_FACE)


def _with_probability(probabilities: Mapping[str, float]) -> str:
    label = _likeliest(probabilities)
    return f"{label} {probabilities[label]:.2f}" if probabilities else label


def _each_clip(
    head: Sequence[str],
    leading: Sequence[Sequence[object]],
    kinds: Mapping[str, Sequence[Clip]],
    models: Iterable[str],
) -> str:
    """A line for each clip: its leading cells, and what each model says of each kind of it."""
    columns = {f"{model}{kind}": (model, kind) for model in models for kind in kinds}
    rows = [
        [
            *cells,
            *(_with_probability(kinds[kind][n].said[model]) for model, kind in columns.values()),
        ]
        for n, cells in enumerate(leading)
    ]
    return markdown_table([*head, *columns], rows)


def _ways(clips: Sequence[Clip]) -> list[str]:
    """A line for each model that read some of them as they are."""
    counts = Counter(name for clip in clips for name in clip.native)
    return [
        f"{name}: {count} of {len(clips)} read as H.264 transmits them, the others encoded anew."
        for name, count in counts.items()
    ]


def _and(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


# ---- windows that people have marked -------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A row of the CSV: from the onset to the apex of an expression, in seconds."""

    video: Path
    onset_s: float
    apex_s: float
    label: str
    confidence: int


@dataclass(frozen=True)
class WindowFigures:
    """Of one model.

    Attributes:
        right: of all windows.
        right_of_sure: of those with a confidence of `SURE` or more.
        mean_recall: over the labels that were marked, in [0, 1].
        confusion: by the label marked and the one said, how many windows.
        unknown: labels that are no classes of the model; their windows count as wrong.
    """

    right: Share
    right_of_sure: Share
    mean_recall: float
    confusion: dict[str, dict[str, int]]
    unknown: list[str]


@dataclass(frozen=True)
class Windows:
    """The first part; `figures` by model."""

    clips: list[Clip]
    figures: dict[str, WindowFigures]

    def table(self, details: bool) -> str:
        figures = self.figures
        head = ["model", "right", f"right, of confidence ≥ {SURE}", "mean recall"]
        rows = [[m, f.right, f.right_of_sure, f"{f.mean_recall:.2f}"] for m, f in figures.items()]
        parts = [f"{len(self.clips)} windows from onset to apex.", markdown_table(head, rows)]
        parts += _ways(self.clips)
        parts += [
            f"{model} has no class {label}: its {sum(f.confusion[label].values())} windows count "
            "as wrong."
            for model, f in figures.items()
            for label in f.unknown
        ]
        for model, f in figures.items():
            said = sorted({name for row in f.confusion.values() for name in row} | {*f.confusion})
            cells = [
                [label, *(row.get(name, 0) for name in said)] for label, row in f.confusion.items()
            ]
            parts.append(markdown_table([f"marked \\ {model} says", *said], cells))
        if details:
            leading = [[clip.name, clip.label, clip.confidence] for clip in self.clips]
            head = ["window", "marked", "confidence"]
            parts.append(_each_clip(head, leading, {"": self.clips}, figures))
        return "\n\n".join(parts)


def read_marks(file: Path, videos: Path) -> list[Mark]:
    """The windows of a CSV with the columns `COLUMNS`, and where their videos are.

    Raises:
        InputError: a column, a row, a number or a video is missing; or an apex that is not after
            its onset.
    """
    with file.open(newline="", encoding="utf-8-sig") as opened:
        reader = csv.DictReader(opened)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        rows = list(reader)
    if missing or not rows:
        raise InputError(
            f"--windows {file}: needs the columns {', '.join(COLUMNS)} and a row"
            + (f"; there is no {', '.join(missing)}" if missing else "")
        )
    if not videos.is_dir():
        raise InputError(f"--videos {videos}: no folder; give the one with the videos of {file}")
    found = {path.stem: path for path in sorted(videos.iterdir()) if is_video(path)}
    marks = []
    for number, row in enumerate(rows, start=2):
        where = f"--windows {file}, line {number}"
        if row["video"] not in found:
            raise InputError(
                f"{where}: there is no video {row['video']!r} in {videos}; add {row['video']}.mp4, "
                "or remove the line"
            )
        try:
            onset, apex = float(row["onset_s"]), float(row["apex_s"])
            confidence = int(row["confidence"])
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{where}: onset_s, apex_s and confidence are numbers, the last one whole; {error}"
            ) from error
        if not 0 <= onset < apex:
            raise InputError(f"{where}: from {onset} s to {apex} s; give an apex that is later")
        label = (row["label"] or "").strip()
        if not label:
            raise InputError(f"{where}: no label; say what the face does, or remove the line")
        marks.append(Mark(found[row["video"]], onset, apex, label, confidence))
    return marks


def measure_windows(models: Models, marks: Sequence[Mark]) -> Windows:
    """Raises InputError: a window that reaches beyond its video."""
    clips = []
    for mark in tqdm(marks, "windows", unit="window", disable=None, leave=False):
        times = mark.onset_s, mark.apex_s
        name = f"{mark.video.stem} {mark.onset_s:.2f}–{mark.apex_s:.2f}"
        clips.append(
            Clip.of(models, mark.video, times, name, mark.label, confidence=mark.confidence)
        )
    figures = {m: window_figures(clips, m, model.card.classes) for m, model in models.items()}
    return Windows(clips, figures)


def window_figures(clips: Sequence[Clip], model: str, classes: Sequence[str]) -> WindowFigures:
    """What a model with these classes says of the windows, counted."""
    labels = sorted({clip.label for clip in clips})
    confusion = {
        label: dict(Counter(clip.label_of(model) for clip in clips if clip.label == label))
        for label in labels
    }
    recalls = [row.get(label, 0) / sum(row.values()) for label, row in confusion.items()]
    return WindowFigures(
        right=Share.count(clip.is_right(model) for clip in clips),
        right_of_sure=Share.count(c.is_right(model) for c in clips if c.confidence >= SURE),
        mean_recall=float(np.mean(recalls)),
        confusion=confusion,
        unknown=[label for label in labels if label not in classes],
    )


# ---- smiles from two photographs -----------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """Two photographs of a person, None where there is none; age, gender and ethnicity."""

    name: str
    neutral: Path | None
    smiling: Path | None
    groups: dict[str, str]


@dataclass(frozen=True)
class SmileFigures:
    """Of one model.

    Attributes:
        happiness: by the kind of clip, of how many it is said: recall of the smiles, and false
            alarms of the neutral faces that only move.
        said: by the kind of clip, how often each class is said.
        groups: recall of the smiles, by group of people and kind of clip.
    """

    happiness: dict[str, Share]
    said: dict[str, dict[str, int]]
    groups: dict[str, dict[str, Share]]


@dataclass(frozen=True)
class Smiles:
    """The second part; `clips` by kind, `figures` by model, `left_out` by person: why."""

    clips: dict[str, list[Clip]]
    left_out: dict[str, str]
    figures: dict[str, SmileFigures]

    def table(self, details: bool) -> str:
        people = len(self.clips[STILL])
        parts = [f"{people} people. Happiness said, of:"]
        kinds = [*self.clips]
        rows = [[m, *(f.happiness[k] for k in kinds)] for m, f in self.figures.items()]
        parts.append(markdown_table(["model", *kinds], rows))
        parts += _ways([clip for kind in kinds for clip in self.clips[kind]])
        parts.append(
            markdown_table(
                ["model", "clips", "says"],
                (
                    [model, kind, _and(f"{name} {n}" for name, n in f.said[kind].items())]
                    for model, f in self.figures.items()
                    for kind in kinds
                ),
            )
        )
        if self.left_out:
            names = _and(f"{name} ({why})" for name, why in self.left_out.items())
            parts.append(f"{len(self.left_out)} left out: {names}.")
        smiles = (STILL, MOVING)
        head = ["group", *(f"{model}: {kind}" for model in self.figures for kind in smiles)]
        groups = next(iter(self.figures.values())).groups
        rows = [
            [group, *(f.groups[group][kind] for f in self.figures.values() for kind in smiles)]
            for group in groups
        ]
        parts.append(markdown_table(head, rows))
        if details:
            leading = [[clip.name] for clip in self.clips[STILL]]
            named = {f": {kind}": clips for kind, clips in self.clips.items()}
            parts.append(_each_clip(["person"], leading, named, self.figures))
        return "\n\n".join(parts)


def read_people(folder: Path, names: Sequence[str] = ()) -> list[Person]:
    """The people of a folder with the London set's layout, or those named.

    Raises:
        InputError: not that layout, or nobody of that name.
    """
    if (folder / "london").is_dir():
        folder /= "london"
    sides = [folder / NEUTRAL_PHOTOGRAPHS, folder / SMILING_PHOTOGRAPHS]
    if not all(side.is_dir() for side in sides) or not (folder / INFO).is_file():
        raise InputError(
            f"--photos {folder}: needs {NEUTRAL_PHOTOGRAPHS}/, {SMILING_PHOTOGRAPHS}/ and {INFO}; "
            "give the folder of the Face Research Lab London Set"
        )
    neutral, smiling = (
        {
            path.stem.split("_")[0]: path
            for path in sorted(side.iterdir())
            if path.suffix.lower() in PICTURE_SUFFIXES
        }
        for side in sides
    )
    known = groups_of_people(folder)
    everyone = sorted(neutral.keys() | smiling.keys())
    if unknown := [name for name in names if name not in everyone]:
        raise InputError(
            f"--people {', '.join(unknown)}: no photograph of them in {folder}; its people are "
            f"{', '.join(everyone[:5])}, …"
        )
    return [
        Person(
            name,
            neutral.get(name),
            smiling.get(name),
            {group: known.get(name, {}).get(group, UNKNOWN) for group in GROUPS},
        )
        for name in everyone
        if not names or name in names
    ]


def measure_smiles(models: Models, people: Sequence[Person]) -> Smiles:
    """Raises InputError: a photograph that cannot be read, or nobody with two that show a face."""
    clips: dict[str, list[Clip]] = {STILL: [], MOVING: [], MOVER: []}
    left_out = {}
    with tempfile.TemporaryDirectory() as folder:
        for person in tqdm(people, "smiles", unit="person", disable=None, leave=False):
            if person.neutral is None or person.smiling is None:
                side = SMILING_PHOTOGRAPHS if person.neutral else NEUTRAL_PHOTOGRAPHS
                left_out[person.name] = f"no photograph in {side}"
                continue
            try:
                neutral = read_photograph(person.neutral)
                smile = faded(neutral, aligned(read_photograph(person.smiling), neutral))
            except Unusable as error:
                left_out[person.name] = str(error)
                continue
            rest = smile[:1] * len(smile)
            for kind, pictures in ((STILL, smile), (MOVING, smile), (MOVER, rest)):
                video = Path(folder, "clip.mp4")
                write_clip(video, pictures, neutral.box, person.name, moves=kind != STILL)
                label = NEUTRAL if kind == MOVER else HAPPINESS
                times = 0.0, END_SECONDS
                clips[kind].append(
                    Clip.of(models, video, times, person.name, label, groups=person.groups)
                )
    if not clips[STILL]:
        raise InputError(
            f"--photos: nobody with two photographs that show a face: {_and(left_out.values())}"
        )
    return Smiles(clips, left_out, {name: smile_figures(clips, name) for name in models})


def smile_figures(clips: Mapping[str, Sequence[Clip]], model: str) -> SmileFigures:
    """What a model says of the clips of each kind, counted."""

    def happy(some: Iterable[Clip]) -> Share:
        return Share.count(clip.label_of(model) == HAPPINESS for clip in some)

    groups = sorted({group for clip in clips[STILL] for group in clip.groups.items()})
    return SmileFigures(
        happiness={kind: happy(some) for kind, some in clips.items()},
        said={
            kind: dict(Counter(clip.label_of(model) for clip in some).most_common())
            for kind, some in clips.items()
        },
        groups={
            f"{what} {group}": {
                kind: happy(clip for clip in clips[kind] if clip.groups[what] == group)
                for kind in (STILL, MOVING)
            }
            for what, group in groups
        },
    )


# ---- CREMA-D -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoken:
    """The third part: whole clips of CREMA-D, predicted second by second.

    Attributes:
        mean: the clips, with the mean of their windows' probabilities.
        strongest: the clips, with the window in which a class other than neutral is likeliest;
            neutral is left out.
        right: by model, how many are right by the mean, and by the strongest window.
    """

    mean: list[Clip]
    strongest: list[Clip]
    right: dict[str, tuple[Share, ...]]

    def table(self) -> str:
        rows = [[model, *shares] for model, shares in self.right.items()]
        kinds = {": mean": self.mean, ": strongest window": self.strongest}
        leading = [[clip.name, clip.label] for clip in self.mean]
        parts = [
            markdown_table(["model", "right by the mean", "right by the strongest window"], rows),
            _each_clip(["clip", "label"], leading, kinds, self.right),
        ]
        return "\n\n".join(parts)


def measure_spoken(models: Models, entries: Sequence[Entry]) -> Spoken:
    """Raises ClipError: a video that cannot be read."""
    mean, strongest = [], []
    for entry in tqdm(entries, "CREMA-D", unit="clip", disable=None, leave=False):
        windows = {name: _windows(model, entry.location) for name, model in models.items()}
        label = entry.label or ""  # the reader gives one to every clip
        mean.append(Clip(entry.clip_id, label, {n: _mean(w) for n, w in windows.items()}))
        strongest.append(Clip(entry.clip_id, label, {n: _strongest(w) for n, w in windows.items()}))
    right = {
        name: tuple(Share.count(c.is_right(name) for c in clips) for clips in (mean, strongest))
        for name in models
    }
    return Spoken(mean, strongest, right)


def _mean(windows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    classes = windows[0] if windows else ()
    return {name: float(np.mean([window[name] for window in windows])) for name in classes}


def _strongest(windows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The window in which a class other than neutral is likeliest, without neutral."""
    others = [{name: p for name, p in w.items() if name != NEUTRAL} for w in windows]
    return max(others, key=lambda window: max(window.values()), default={})


def _windows(model: Recognizer, video: str) -> list[dict[str, float]]:
    """The probabilities of each second that shows a face, overlapping by half."""
    try:
        predictions = model.predict(video, window_seconds=1.0)
    except ClipError as error:
        if error.stage != "face":
            raise
        return []
    return [prediction.probabilities for prediction in predictions if prediction.probabilities]


# ---- all of it -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealPeople:
    """The result; a part that was not asked for is None.

    Attributes:
        models: their names.
        details: `table` has a line for each window and person, too.
    """

    models: list[str]
    details: bool
    windows: Windows | None
    smiles: Smiles | None
    spoken: Spoken | None
    robustness: Robustness | None

    def table(self) -> str:
        """Markdown, for the terminal and for a page."""
        parts = {
            "Windows that people have marked": self.windows and self.windows.table(self.details),
            "Smiles from two photographs": self.smiles and self.smiles.table(self.details),
            "CREMA-D": self.spoken and self.spoken.table(),
            "Robustness": self.robustness and self.robustness.table(),
        }
        return "\n\n".join(f"### {title}\n\n{text or NOT_GIVEN}" for title, text in parts.items())


def measure(
    names: Sequence[str],
    *,
    windows: Path | None = None,
    videos: Path | None = None,
    photos: Path | None = None,
    people: Sequence[str] = (),
    crema_d: Path | None = None,
    robust: Sequence[Path] = (),
    details: bool = False,
) -> RealPeople:
    """Each part whose material is given. Everything is looked for before the work begins.

    Raises:
        InputError: a model, a file or a folder that is missing or wrong.
    """
    if (windows is None) != (videos is None):
        raise InputError("cfer bench real: --windows and --videos belong together; give both")
    if people and photos is None:
        raise InputError("cfer bench real: --people chooses from the photographs; give --photos")
    if not (windows or photos or crema_d or robust):
        raise InputError(
            "cfer bench real: give --windows and --videos, --photos, --crema-d or --robustness"
        )
    models = both_ways(names)
    marks = read_marks(windows, videos) if windows and videos else []
    chosen = read_people(photos, people) if photos else []
    entries = cremad.read(crema_d) if crema_d else []
    return RealPeople(
        [*models],
        details,
        measure_windows(models, marks) if windows else None,
        measure_smiles(models, chosen) if photos else None,
        measure_spoken(models, entries) if crema_d else None,
        robustness.measure(models, robust) if robust else None,
    )
