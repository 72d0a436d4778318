"""Does a model say the same of a video that was changed a little?

Windows of one GOP are changed, encoded anew, and the model's label of each is compared with its
label of the unchanged one. No label is needed, so this is no accuracy: a model that says the same
of everything is robust, too. Hence `by chance`, how often the labels would agree if they were dealt
out to the windows anew.

Of a model that reads H.264 as it is, the windows are those that it reads so. A change of the
pictures is then made to the whole video, which is written anew at `FINE_CRF`; there is no encoder
of its own to change.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.measure import markdown_table
from cfer.codec import CodecError, CodecSettings
from cfer.data.native import NativeVideo
from cfer.errors import InputError
from cfer.predict.recognizer import VARIATIONS, Recognizer
from cfer.video.faces import FaceDetector, face_clip
from cfer.video.pictures import Pictures, open_pictures
from cfer.video.variation import AS_FOUND, Variation
from cfer.video.windows import windows
from pipeline.datasets.made import write_video

H264_CRF = 35  # coarse, as a messenger sends a video
FINE_CRF = 18

Picture = Callable[[np.ndarray], np.ndarray]
Said = list[dict[int, np.ndarray]]


def _same(of: Any) -> Any:
    return of


@dataclass(frozen=True)
class Change:
    """Something that may happen to a video.

    Attributes:
        name: its name in the table.
        variation: of the face's square.
        picture: changes each crop, RGB, uint8 (S, S, 3), or each picture of the video.
        codec: changes the encoder's settings.
        is_compressed: the whole video is H.264 of `H264_CRF` first.
        is_later: each window begins half its length later.
    """

    name: str
    variation: Variation = AS_FOUND
    picture: Picture = _same
    codec: Callable[[CodecSettings], CodecSettings] = _same
    is_compressed: bool = False
    is_later: bool = False


def _brighter(factor: float) -> Picture:
    return lambda picture: (picture * np.float32(factor)).round().clip(0, 255).astype(np.uint8)


CHANGES = (
    Change("crop 3 % to the right", Variation(right=0.03)),
    Change("crop 3 % lower", Variation(down=0.03)),
    Change("crop 5 % larger", Variation(larger=math.log(1.05))),
    Change("mirrored", picture=lambda picture: np.ascontiguousarray(picture[:, ::-1])),
    Change("darker, × 0.8", picture=_brighter(0.8)),
    Change("brighter, × 1.2", picture=_brighter(1.2)),
    Change("quantizer halved", codec=lambda codec: codec.coarser(0.5)),
    Change("quantizer doubled", codec=lambda codec: codec.coarser(2)),
    Change(f"H.264, CRF {H264_CRF}, before", is_compressed=True),
    Change("half a window later", is_later=True),
)


@dataclass(frozen=True)
class Agreement:
    """The probabilities of changed windows, compared with those of the unchanged ones.

    Attributes:
        windows: how many were compared.
        same_label: share of them, in [0, 1].
        by_chance: `same_label` if labels and windows had nothing to do with each other.
        difference: of the probabilities, half the sum of the absolute ones; the mean, in [0, 1].
    """

    windows: int
    same_label: float
    by_chance: float
    difference: float

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray) -> Agreement:
        """Probabilities of the same windows, float (N, classes) each."""
        labels, others = before.argmax(1), after.argmax(1)
        num_classes = before.shape[1]
        counts, other_counts = (np.bincount(n, minlength=num_classes) for n in (labels, others))
        return cls(
            windows=len(before),
            same_label=float((labels == others).mean()),
            by_chance=float(counts / len(before) @ (other_counts / len(before))),
            difference=float(np.abs(before - after).sum(1).mean() / 2),
        )


@dataclass(frozen=True)
class OneRobustness:
    """Of one model.

    Attributes:
        videos, windows: how many.
        measured: how many of the windows: those that show a face, and of a model that `is_native`
            those that it reads as they are.
        is_native: whether it reads H.264 as it is.
        labels: of the unchanged windows, how many of each.
        agreement: by the name of the change.
    """

    videos: int
    windows: int
    measured: int
    is_native: bool
    labels: dict[str, int]
    agreement: dict[str, Agreement]

    def __str__(self) -> str:
        share = f"{self.measured} of {self.windows} windows of {self.videos} videos"
        share += " read as H.264 transmits them" if self.is_native else " show a face"
        said = ", ".join(f"{name} {count}" for name, count in self.labels.items())
        return share + (f"; of these it says {said}" if said else "")


@dataclass(frozen=True)
class Robustness:
    """The result, by model."""

    models: dict[str, OneRobustness]

    def table(self) -> str:
        """Markdown, for the terminal and for a page: a line for each change, the models side by
        side."""
        columns = ("windows", "same label", "by chance", "difference of probabilities")
        head = ["change", *(f"{model}: {column}" for model in self.models for column in columns)]
        lines = [f"{model}: {found}." for model, found in self.models.items()]
        rows = []
        for change in CHANGES:
            cells = [change.name]
            for found in self.models.values():
                a = found.agreement.get(change.name)
                shares = (a.same_label, a.by_chance, a.difference) if a else ()
                cells += [str(a.windows), *(f"{x:.2f}" for x in shares)] if a else ["–"] * 4
            rows.append(cells)
        return "\n".join([*lines, "", markdown_table(head, rows)])


def both_ways(names: Sequence[str]) -> dict[str, Recognizer]:
    """Models by name; of one that reads H.264 as it is also the one that encodes every face anew.

    Raises:
        InputError: there is no such model.
    """
    models: dict[str, Recognizer] = {}
    for name in names:
        models[name] = model = Recognizer.from_pretrained(name)
        if model.card.what.is_native:
            models[f"{name}, encoded anew"] = model.encoding_anew()
    return models


def measure(models: Mapping[str, Recognizer], videos: Sequence[Path]) -> Robustness:
    """Every change on every window of the videos that shows a face.

    Raises:
        ClipError: a video that cannot be read.
        InputError: no face in any of them.
    """
    found = {name: _measure(model, videos, name) for name, model in models.items()}
    if not any(of_model.measured for of_model in found.values()):
        raise InputError("no face was found in any window; give videos with a face in view")
    return Robustness(found)


def _measure(recognizer: Recognizer, videos: Sequence[Path], name: str) -> OneRobustness:
    num_windows = 0
    unchanged: list[np.ndarray] = []
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {c.name: [] for c in CHANGES}
    card, detector = recognizer.card, FaceDetector()
    for video in tqdm(videos, f"robustness of {name}", unit="video", disable=None, leave=False):
        pictures = open_pictures(video)
        fps = pictures.regular_fps()
        spans = windows(pictures.times(), pictures.span(), fps, card.codec.at(fps).span)
        num_windows += len(spans)
        with tempfile.TemporaryDirectory() as folder:
            if card.what.is_native:
                before, *after = says_natively(recognizer, detector, pictures, spans, Path(folder))
            else:
                compressed = open_pictures(_written(pictures, Path(folder), H264_CRF))
                before, *after = says(recognizer, detector, pictures, compressed, spans)
        unchanged += before.values()
        for change, changed in zip(CHANGES, after, strict=True):
            pairs[change.name] += [(before[n], changed[n]) for n in before if n in changed]
    labels = Counter(card.classes[probabilities.argmax()] for probabilities in unchanged)
    agreement = {
        name: Agreement.of(*(np.stack(side) for side in zip(*both, strict=True)))
        for name, both in pairs.items()
        if both
    }
    counts = len(videos), num_windows, len(unchanged)
    return OneRobustness(*counts, card.what.is_native, dict(labels.most_common()), agreement)


def says(
    recognizer: Recognizer,
    detector: FaceDetector,
    pictures: Pictures,
    compressed: Pictures,
    spans: Sequence[range],
    changes: Sequence[Change] = CHANGES,
) -> Said:
    """What a model says of windows as they are, and then after each change: by the window's number,
    from 0, the probabilities, float32 (classes,), of those that show a face."""
    card, later = recognizer.card, _later(spans, pictures.count())
    told = [Change("none"), *changes]
    said: Said = [{} for _ in told]
    # One look at each source serves all changes that are made to it.
    for source, part, *kind in (
        (pictures, spans, False, False),
        (compressed, spans, True, False),
        (pictures, later, False, True),
    ):
        wanted = [
            number
            for number, change in enumerate(told)
            if [change.is_compressed, change.is_later] == kind
        ]
        if not wanted or not part:
            continue
        squares = [v.and_also(told[number].variation) for number in wanted for v in VARIATIONS]
        for window in face_clip(source, card.size, detector, card.codec, part, False, squares):
            views = iter(window.views)
            for number in wanted if window.error is None else ():
                change, own = told[number], list(islice(views, len(VARIATIONS)))
                own = [[change.picture(picture) for picture in view] for view in own]
                changed = replace(window, views=own, codec=change.codec(window.codec))
                said[number][window.number - 1], _ = recognizer.predict_views(changed)
    return said


def says_natively(
    recognizer: Recognizer,
    detector: FaceDetector,
    pictures: Pictures,
    spans: Sequence[range],
    folder: Path,
    changes: Sequence[Change] = CHANGES,
) -> Said:
    """As `says`, of the windows that are read as H.264 transmits them; nothing of a change that
    only another encoder would make.

    Args:
        folder: to write changed videos into.
    """
    told = [Change("none"), *changes]
    said: Said = [{} for _ in told]
    later = _later(spans, pictures.count())
    wanted: dict[tuple[Picture, bool, bool], list[int]] = {}
    for change_number, change in enumerate(told):
        if change.codec is _same:
            kind = change.picture, change.is_compressed, change.is_later
            wanted.setdefault(kind, []).append(change_number)
    for (picture, is_compressed, is_later), numbers in wanted.items():
        file = pictures.source
        if picture is not _same or is_compressed:
            crf = H264_CRF if is_compressed else FINE_CRF
            file = _written(pictures, folder, crf, picture)
        squares = [v.and_also(told[n].variation) for n in numbers for v in VARIATIONS]
        try:
            native = NativeVideo(file, detector)
        except CodecError:
            continue
        times = native.bitstream.shown_times
        for number, span in enumerate(later if is_later else spans):
            try:
                window = native.read(
                    times[span.start], times[span.stop], recognizer.card.size, squares
                )
            except CodecError:
                continue
            each = np.split(recognizer.card.what.of_native(window.planes), len(numbers))
            for change_number, planes in zip(numbers, each, strict=True):
                said[change_number][number] = recognizer.of_views(planes)
    return said


def _later(spans: Sequence[range], count: int) -> list[range]:
    """Each half its length later, as far as there are so many pictures."""
    moved = (range(s.start + len(s) // 2, s.stop + len(s) // 2) for s in spans)
    return [span for span in moved if span.stop <= count]


def _written(pictures: Pictures, folder: Path, crf: int, picture: Picture = _same) -> Path:
    """A video's pictures, each changed, as H.264."""
    path = folder / "video.mp4"
    write_video(path, map(picture, pictures), pictures.fps.limit_denominator(1001), crf)
    return path
