"""Predictions over time: when an expression rises; JSON, CSV, a plot, the video with labels.

cfer predict VIDEO --json --csv windows.csv --plot timeline.png --annotate labeled.mp4
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import cv2
import numpy as np
from av.codec.context import Flags
from PIL import Image, ImageOps

from cfer.codec.containers import ticks_of
from cfer.names import printable
from cfer.outputs import check_output, count_reasons
from cfer.predict.recognizer import Prediction
from cfer.video.pictures import Pictures, open_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEUTRAL = "neutral"  # the class of a window in which no expression rises
GRAY = (127 / 255,) * 3
YELLOW = 255, 220, 0
# Of the bars beside a face, in 480ths of the picture's shorter side: width, a line, a margin.
PANEL, LINE, PAD = 150, 15, 4

STRIP_ASPECT = 7.4  # width by height of the frames above a plot
STRIP_HEIGHT, STRIP_GAP = 160, 3  # pixels
MOST_STILLS = 40  # in that strip, where the pictures are very tall
LETTER = 0.009  # of a label above a plot: its width as a share of the plot's
# Of an annotated video, pixels; another one is scaled, so that its labels are readable.
LONGEST_SIDE = 1280
SHORTEST_SIDE = 480
# A strip of a few pixels would be scaled beyond all measure.
MOST_SIDE = 4096

Palette = dict[str, tuple[int, ...]]
Point = tuple[float, float]


@dataclass(frozen=True)
class Event:
    """The rise of one expression in one face.

    Attributes:
        label: a class other than `neutral`.
        onset_seconds, apex_seconds: when it begins to rise, and when it is strongest, as `events`
            estimates it.
        probability: the highest that one of its windows gives the label.
        face: the face's number.
    """

    label: str
    onset_seconds: float
    apex_seconds: float
    probability: float
    face: int


def events(predictions: Sequence[Prediction]) -> list[Event]:
    """The expressions that rise in a video, by face, in order.

    An event is a run of consecutive windows of one face that all say the same class, not
    `neutral`; a window without the face ends it. To a model without a class of this name,
    something always rises.

    A window says an expression if it holds most of its rise. So the rise is taken to be in the
    middle of what a run's first and last window share, and to last half a window: the onset is a
    quarter of a window before that middle, the apex as much after it. Where the two share nothing,
    the face changes for longer: from a quarter of a window before the first one's end to a quarter
    after the last one's beginning. No time is known more finely than the step from one window to
    the next.

    Args:
        predictions: all windows of one video.
    """
    starts = sorted({p.start_seconds for p in predictions})
    places = {start: place for place, start in enumerate(starts)}
    found = []
    for face in _faces(predictions):
        windows = sorted(_of_face(predictions, face), key=lambda p: p.start_seconds)
        # Places rise as numbers do until a window of the video lacks the face.
        keys = [(p.label, places[p.start_seconds] - number) for number, p in enumerate(windows)]
        for (label, _), run in groupby(zip(keys, windows, strict=True), key=lambda pair: pair[0]):
            if label not in (None, NEUTRAL):
                found.append(_event([window for _, window in run], str(label)))
    return found


def _event(run: Sequence[Prediction], label: str) -> Event:
    first, last = run[0], run[-1]
    middle = (first.end_seconds + last.start_seconds) / 2
    return Event(
        label=label,
        onset_seconds=min(middle, first.end_seconds) - _seconds(first) / 4,
        apex_seconds=max(middle, last.start_seconds) + _seconds(last) / 4,
        probability=max(p.probabilities[label] for p in run),
        face=first.face,
    )


def _seconds(window: Prediction) -> float:
    return window.end_seconds - window.start_seconds


def _faces(predictions: Sequence[Prediction]) -> list[int]:
    return sorted({p.face for p in predictions if p.label})


def _of_face(predictions: Sequence[Prediction], face: int) -> list[Prediction]:
    return [p for p in predictions if p.face == face]


def summary(predictions: Sequence[Prediction]) -> list[str]:
    """A line per event of a video, for people; or that a face is neutral throughout, and with
    which mean probability."""
    faces, found, lines = _faces(predictions), events(predictions), []
    for face in faces:
        windows = _of_face(predictions, face)
        said = [
            f"{e.label}: onset {e.onset_seconds:.2f} s, apex {e.apex_seconds:.2f} s, "
            f"{e.probability:.2f}"
            for e in found
            if e.face == face
        ] or [f"{NEUTRAL} throughout, {fmean(p.probabilities[NEUTRAL] for p in windows):.2f}"]
        lines += [f"face {face}: {line}" if len(faces) > 1 else line for line in said]
    return lines


def ways(predictions: Sequence[Prediction]) -> list[str]:
    """How the windows of a video were read, for people: where a model reads H.264 as it is, a line
    for those that were, and one for each reason why others were not; and how many show no face."""
    of = f"of {len(predictions)} window{'s' * (len(predictions) > 1)}"
    native = sum(p.way == "native" for p in predictions)
    refused = count_reasons(p.refused for p in predictions if p.label)
    faceless = sum(p.label is None for p in predictions)
    lines = [f"{native} {of} read as H.264 transmits them"] if native else []
    lines += [f"{count} encoded anew: {printable(reason)}" for reason, count in refused.items()]
    return lines + ([f"{faceless} {of} without a face"] if faceless else [])


def as_json(prediction: Prediction) -> dict[str, Any]:
    """What `--json` and the server give for a window; pixels and seconds."""
    square = prediction.square
    return {
        "source": prediction.source,
        "start_seconds": round(prediction.start_seconds, 3),
        "end_seconds": round(prediction.end_seconds, 3),
        "face": prediction.face,
        "box": None if square is None else [square.x, square.y, square.side, square.side],
        "num_frames": prediction.num_frames,
        "way": prediction.way,
        "refused": prediction.refused,
        "label": prediction.label,
        "probabilities": {name: round(p, 6) for name, p in prediction.probabilities.items()},
    }


def event_as_json(event: Event) -> dict[str, Any]:
    """What `--json` and the server give for an event; seconds."""
    return asdict(event) | {
        "onset_seconds": round(event.onset_seconds, 3),
        "apex_seconds": round(event.apex_seconds, 3),
        "probability": round(event.probability, 6),
    }


@contextmanager
def csv_rows(path: Path | None, classes: Sequence[str]) -> Iterator[Callable[[Prediction], None]]:
    """What writes a row for a window, each as it comes: source, start_seconds, end_seconds, face,
    label, and a column per class. None: nothing is written."""
    if path is None:
        yield lambda window: None
        return
    head = ["source", "start_seconds", "end_seconds", "face", "label"]
    with open(path, "w", newline="", encoding="utf-8", buffering=1) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*head, *classes])

        def write(p: Prediction) -> None:
            span = [f"{p.start_seconds:.3f}", f"{p.end_seconds:.3f}"]
            values = [f"{p.probabilities[name]:.6f}" if p.label else "" for name in classes]
            writer.writerow([printable(p.source), *span, p.face, p.label or "", *values])

        yield write


def colors(classes: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """A color for each class, RGB in [0, 1]; the same in every picture, and gray for neutral."""
    import matplotlib

    table = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    table = sorted(table, key=lambda color: max(color) == min(color))  # grays last
    others = [name for name in classes if name != NEUTRAL]
    given = {name: table[number % len(table)] for number, name in enumerate(others)}
    return {name: given.get(name, GRAY) for name in classes}


def without_overlap(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Windows of one face, in order, as they are shown: where one and the next overlap, the border
    is in the middle of what they share."""
    borders = [(a.end_seconds + b.start_seconds) / 2 for a, b in pairwise(predictions)]
    return [
        replace(
            p,
            start_seconds=max(p.start_seconds, before),
            end_seconds=min(p.end_seconds, after),
        )
        for p, before, after in zip(
            predictions, [-math.inf, *borders], [*borders, math.inf], strict=False
        )
    ]


# ---- plot ----------------------------------------------------------------------------------------


def plot(source: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> Figure:
    """Frames of the video above, and each face's probabilities below them, on one axis of time. An
    event is a band from its onset to its apex, with its label where there is room for it."""
    from matplotlib.figure import Figure

    pictures = open_pictures(source)
    times = pictures.times()
    faces = _faces(predictions) or [0]
    stills = _strip(pictures, times, predictions if len(faces) > 1 else ())
    found = events(predictions)
    figure = Figure(figsize=(12, 2 + 2.4 * len(faces)), layout="constrained")
    ratios = [1.3, *([2] * len(faces))]
    strip, *rows = figure.subplots(1 + len(faces), 1, height_ratios=ratios)
    strip.imshow(stills, aspect="auto")
    strip.set_axis_off()
    strip.set_title(source.name, fontsize=10, loc="left")
    for face, axes in zip(faces, rows, strict=True):
        windows = without_overlap([p for p in _of_face(predictions, face) if p.label])
        _draw_probabilities(axes, windows, classes)
        axes.set(xlim=(0, times[-1]), ylim=(0, 1))
        _draw_events(axes, [e for e in found if e.face == face], classes)
        axes.set_ylabel("probability" if len(faces) == 1 else f"face {face}")
        if face == 0:
            axes.text(0.5, 0.5, "no face found", ha="center", transform=axes.transAxes)
    rows[0].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    rows[-1].set_xlabel("seconds")
    return figure


def _strip(
    pictures: Pictures, times: Sequence[float], numbered: Sequence[Prediction]
) -> np.ndarray:
    """As many frames as fit side by side, from the middles of equal parts of the time; the faces of
    some predictions with their numbers."""
    first = next(iter(pictures))
    num_stills = round(STRIP_ASPECT * first.shape[0] / first.shape[1])
    num_stills = min(max(num_stills, 1), MOST_STILLS)
    middles = (np.arange(num_stills) + 0.5) / num_stills * times[-1]
    numbers = (np.searchsorted(times[:-1], middles, side="right") - 1).tolist()
    # A short video has fewer frames than there are places.
    stills = dict(zip(sorted(set(numbers)), pictures.select(set(numbers)), strict=True))
    size = (round(STRIP_ASPECT * STRIP_HEIGHT / num_stills) - STRIP_GAP, STRIP_HEIGHT)
    for n, still in stills.items():
        large = min(still.shape[:2]) / 200
        for face, p in {p.face: p for p in _at(numbered, times[n])}.items():
            if p.square is not None:
                _text(still, str(face), p.square.x, p.square.y + 20 * large, large, YELLOW)
    fitted = {n: ImageOps.fit(Image.fromarray(still), size) for n, still in stills.items()}
    gap = ((0, 0), (0, STRIP_GAP), (0, 0))
    parts = [np.pad(np.asarray(fitted[n]), gap, constant_values=255) for n in numbers]
    return np.concatenate(parts, axis=1)[:, :-STRIP_GAP]


def _draw_probabilities(axes: Any, windows: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Steps: a window's probabilities hold for the whole of it. Gaps where there is no face."""
    for name, color in colors(classes).items():
        times: list[float] = []
        values: list[float] = []
        for p in windows:
            if times and p.start_seconds > times[-1] + 1e-6:
                times, values = [*times, times[-1]], [*values, float("nan")]
            times += [p.start_seconds, p.end_seconds]
            values += [p.probabilities[name]] * 2
        axes.plot(times, values, color=color, label=name, linewidth=2)


def _draw_events(axes: Any, found: Sequence[Event], classes: Sequence[str]) -> None:
    palette = colors(classes)
    until = -math.inf
    for e in found:
        axes.axvspan(
            e.onset_seconds, e.apex_seconds, color=palette[e.label], alpha=0.2, linewidth=0
        )
        half = LETTER * len(e.label) * axes.get_xlim()[1] / 2
        middle = (e.onset_seconds + e.apex_seconds) / 2
        if middle - half < until:
            continue
        until = middle + half
        place = axes.get_xaxis_transform()
        axes.text(middle, 1.02, e.label, ha="center", va="bottom", fontsize=9, transform=place)


# ---- annotated video -----------------------------------------------------------------------------


def annotate(source: Path, predictions: Sequence[Prediction], out: Path) -> None:
    """The video again, as H.264 without sound: each face's square, its label and a bar per class.

    A clip that is already the crop of a face has no square.

    Raises:
        InputError: `out` does not end in .mp4, is the source, or can't be written.
        ClipError: the source can't be read.
    """
    check_output(out, ".mp4", sources=[source])
    classes = next((list(p.probabilities) for p in predictions if p.label), [])
    table = colors(classes).items()
    palette = {name: tuple(round(255 * part) for part in color) for name, color in table}
    seen = [w for face in _faces(predictions) for w in without_overlap(_of_face(predictions, face))]
    pictures = open_pictures(source)
    times = pictures.times()
    rate = Fraction(pictures.fps).limit_denominator(1001)
    ticks, per_second = ticks_of(times)
    # A file, not a name, which FFmpeg might take for a URL.
    with open(out, "wb") as file, av.open(file, "w", format="mp4") as container:
        # With B-frames, an MP4 of varying rate would not say how long it is.
        options = {"crf": "20", "bf": "0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.codec_context.time_base = Fraction(1, per_second)
        stream.codec_context.flags |= Flags.frame_duration
        for number, picture in enumerate(_drawn(pictures, times, seen, palette)):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = ticks[number], Fraction(1, per_second)
            frame.duration = ticks[number + 1] - ticks[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _drawn(
    pictures: Pictures, times: Sequence[float], predictions: Sequence[Prediction], palette: Palette
) -> Iterator[np.ndarray]:
    """Every picture with the predictions for its time drawn on it; sides even, as 4:2:0 needs."""
    faces = len(_faces(predictions))
    for picture, shown, until in zip(pictures, times, times[1:], strict=False):
        seconds = (shown + until) / 2
        shortest, longest = sorted(picture.shape[:2])
        # A label must be readable in a small picture too.
        scale = max(min(LONGEST_SIDE / longest, 1.0), SHORTEST_SIDE / shortest)
        scale = min(scale, MOST_SIDE / longest)
        height, width = (max(round(side * scale / 2), 1) * 2 for side in picture.shape[:2])
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas = cv2.resize(picture, (width, height), interpolation=interpolation)
        unit = min(height, width) / 480
        seen = [(p, _place(p, canvas, scale)) for p in _at(predictions, seconds)]
        taken = [face for _, face in seen]  # by faces and bars
        for p, face in seen:
            if p.square is not None:
                _draw_square(canvas, p, face, unit, palette, faces > 1)
            panel = _panel(face, canvas, unit, len(palette), taken)
            if panel is not None:
                _draw_bars(canvas, p, panel, unit, palette)
                taken.append(panel)
        yield canvas


def _at(predictions: Sequence[Prediction], seconds: float) -> list[Prediction]:
    """Those whose face is seen then."""
    return [p for p in predictions if p.label and p.start_seconds <= seconds < p.end_seconds]


class _Box(NamedTuple):
    """A part of a picture: pixels."""

    left: float
    top: float
    width: float
    height: float

    def overlaps(self, other: _Box) -> bool:
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )


def _place(p: Prediction, canvas: np.ndarray, scale: float) -> _Box:
    """Of a face; of a clip that is one already, all of it."""
    if p.square is None:
        side = float(min(canvas.shape[:2]))
        return _Box(0, 0, side, side)
    left, top, side = (scale * part for part in (p.square.x, p.square.y, p.square.side))
    return _Box(left, top, side, side)


def _panel(
    face: _Box, canvas: np.ndarray, unit: float, rows: int, taken: Sequence[_Box]
) -> _Box | None:
    """Where the bars of a face are: beside it, below or above; None: other faces, or their bars,
    are in the way everywhere. A face that is alone may be covered in part."""
    height, width = canvas.shape[:2]
    pad, size = PAD * unit, (PANEL * unit, (LINE * rows + 2 * PAD) * unit)
    top = min(max(face.top, 0.0), max(height - size[1], 0.0))
    left = min(max(face.left, 0.0), max(width - size[0], 0.0))
    places = [
        _Box(face.left + face.width + pad, top, *size),
        _Box(face.left - pad - size[0], top, *size),
        _Box(left, face.top + face.height + pad, *size),
        _Box(left, face.top - 7 * pad - size[1], *size),
    ]
    for box in places:
        is_inside = box.left >= 0 and box.top >= 0
        is_inside = is_inside and box.left + size[0] <= width and box.top + size[1] <= height
        if is_inside and not any(box.overlaps(other) for other in taken):
            return box
    return _Box(max(width - size[0], 0.0), top, *size) if len(taken) == 1 else None


def _draw_square(
    canvas: np.ndarray, p: Prediction, face: _Box, unit: float, palette: Palette, is_numbered: bool
) -> None:
    """With the label, and of several faces the number and how likely it is."""
    label = str(p.label)
    corners = (
        (round(face.left), round(face.top)),
        (round(face.left + face.width), round(face.top + face.height)),
    )
    cv2.rectangle(canvas, *corners, palette[label], max(round(2 * unit), 1), cv2.LINE_AA)
    title = f"{p.face}: {label} {p.probabilities[label]:.2f}" if is_numbered else label
    size, base = 0.7 * unit, max(face.top, 24 * unit)
    (text_width, _), _ = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, size, 2)
    end = face.left + text_width + 12, base
    _fill(canvas, (face.left, base - 24 * unit), end, palette[label])
    ink = (0, 0, 0) if np.mean(palette[label]) > 120 else (255, 255, 255)
    _text(canvas, title, face.left + 6, base - 7 * unit, size, ink)


def _draw_bars(
    canvas: np.ndarray, p: Prediction, panel: _Box, unit: float, palette: Palette
) -> None:
    """One for each class, on a part of the picture that is darkened."""
    x, y = panel.left, panel.top
    x0, y0, x1, y1 = (round(v) for v in (x, y, x + panel.width, y + panel.height))
    canvas[y0:y1, x0:x1] //= 3
    line, pad, bar = LINE * unit, PAD * unit, x + 74 * unit
    for row, (name, probability) in enumerate(p.probabilities.items()):
        base = y + pad + line * row
        end = bar + 72 * unit * probability
        _fill(canvas, (bar, base + 3 * unit), (end, base + line - 3 * unit), palette[name])
        color = (255, 255, 255) if name == p.label else (170, 170, 170)
        _text(canvas, name, x + pad, base + line - 4 * unit, 0.4 * unit, color)


def _fill(canvas: np.ndarray, start: Point, end: Point, color: tuple[int, ...]) -> None:
    corners = (round(start[0]), round(start[1])), (round(end[0]), round(end[1]))
    cv2.rectangle(canvas, *corners, color, cv2.FILLED)


def _text(
    canvas: np.ndarray, text: str, x: float, y: float, size: float, color: tuple[int, ...]
) -> None:
    at, thickness = (round(x), round(y)), max(round(1.6 * size), 1)
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, color, thickness, cv2.LINE_AA)
