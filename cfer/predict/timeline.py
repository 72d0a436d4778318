"""Predictions over time, for people and for programs: JSON, CSV, a plot, the video with labels.

cfer predict VIDEO --json --csv windows.csv --plot timeline.png --annotate labeled.mp4
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import cv2
import numpy as np
from av.packet import Packet

from cfer.codec.containers import ticks_of
from cfer.errors import InputError
from cfer.names import printable
from cfer.predict.recognizer import Prediction
from cfer.video.pictures import Pictures, open_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRIP_ASPECT = 7.4  # width by height of the frames above a plot
MOST_STILLS = 40  # there, of very tall pictures
# Of an annotated video, pixels; another one is scaled, so that its labels are readable.
LONGEST_SIDE = 1280
SHORTEST_SIDE = 480
# A strip of a few pixels would be scaled beyond all measure.
MOST_SIDE = 4096


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
        "label": prediction.label,
        "probabilities": {name: round(p, 6) for name, p in prediction.probabilities.items()},
    }


def write_csv(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """A row per window: source, start_seconds, end_seconds, face, label, and a column per class."""
    head = ["source", "start_seconds", "end_seconds", "face", "label"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*head, *classes])
        for p in predictions:
            span = [f"{p.start_seconds:.3f}", f"{p.end_seconds:.3f}"]
            values = [f"{p.probabilities[name]:.6f}" if p.label else "" for name in classes]
            writer.writerow([printable(p.source), *span, p.face, p.label or "", *values])


def colors(classes: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """A color for each class, RGB in [0, 1]; the same in every picture."""
    import matplotlib

    table = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    return {name: table[number % len(table)] for number, name in enumerate(classes)}


# ---- plot ----------------------------------------------------------------------------------------


def plot(source: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> Figure:
    """Frames of the video above, and each face's probabilities below them, on one axis of time."""
    from matplotlib.figure import Figure

    pictures = open_pictures(source)
    times = pictures.times()
    strip_picture = _strip(pictures, times)
    faces = sorted({p.face for p in predictions if p.face}) or [0]
    figure = Figure(figsize=(12, 2 + 2.4 * len(faces)), layout="constrained")
    grid = figure.add_gridspec(1 + len(faces), 1, height_ratios=[1.3, *([2] * len(faces))])
    strip = figure.add_subplot(grid[0])
    strip.imshow(strip_picture, aspect="auto")
    strip.set_axis_off()
    strip.set_title(source.name, fontsize=10, loc="left")
    for row, face in enumerate(faces, start=1):
        axes = figure.add_subplot(grid[row])
        windows = [p for p in predictions if p.face == face and p.label]
        _draw_probabilities(axes, windows, classes)
        axes.set_xlim(0, times[-1])
        axes.set_ylim(0, 1)
        axes.set_ylabel("probability" if len(faces) == 1 else f"face {face}")
        if row == 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
        if row == len(faces):
            axes.set_xlabel("seconds")
    return figure


def _strip(
    pictures: Pictures, times: Sequence[float], height: int = 160, gap: int = 3
) -> np.ndarray:
    """As many frames as fit beside each other: what is shown in the middle of equal times."""
    first = next(iter(pictures))
    num_stills = round(STRIP_ASPECT * first.shape[0] / first.shape[1])
    num_stills = min(max(num_stills, 1), MOST_STILLS)
    middles = (np.arange(num_stills) + 0.5) / num_stills * times[-1]
    numbers = (np.searchsorted(times[:-1], middles, side="right") - 1).tolist()
    # A short video has fewer frames than there are places.
    stills = dict(zip(sorted(set(numbers)), pictures.select(set(numbers)), strict=True))
    width = round(STRIP_ASPECT * height / num_stills)
    thumbnails = [
        np.pad(
            _thumbnail(stills[n], width - gap, height),
            ((0, 0), (0, gap), (0, 0)),
            constant_values=255,
        )
        for n in numbers
    ]
    return np.concatenate(thumbnails, axis=1)[:, :-gap]


def _thumbnail(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scaled to fill width × height; what is too much of one side is cut off."""
    scale = max(width / picture.shape[1], height / picture.shape[0])
    size = max(round(picture.shape[1] * scale), width), max(round(picture.shape[0] * scale), height)
    scaled = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return scaled[top : top + height, left : left + width]


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


# ---- annotated video -----------------------------------------------------------------------------


def annotate(source: Path, predictions: Sequence[Prediction], out: Path) -> None:
    """The video again, as H.264 without sound: each face's square, its label and a bar per class.

    A clip that is a face's crop already has no square.

    Raises:
        InputError: `out` does not end in .mp4, is the source, or can't be written.
        ClipError: the source can't be read.
    """
    if out.suffix.lower() != ".mp4":
        raise InputError(f"--annotate {out}: give a file that ends in .mp4")
    if out.exists() and out.samefile(source):
        raise InputError(f"--annotate {out}: that is the video itself; give another file")
    classes = next((list(p.probabilities) for p in predictions if p.label), [])
    palette = {
        name: tuple(round(255 * part) for part in color) for name, color in colors(classes).items()
    }
    pictures = open_pictures(source)
    times = pictures.times()
    rate = Fraction(pictures.fps).limit_denominator(1001)
    ticks, per_second = ticks_of(times)
    written = 0

    def mux(packets: Iterable[Packet]) -> None:
        nonlocal written
        for packet in packets:
            packet.duration = ticks[written + 1] - ticks[written]
            container.mux(packet)
            written += 1

    # A file, not a name, which FFmpeg might take for a URL.
    with open(out, "wb") as file, av.open(file, "w", format="mp4") as container:
        # With B-frames, an MP4 of varying rate would not say how long it is.
        options = {"crf": "20", "bf": "0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.codec_context.time_base = Fraction(1, per_second)
        for number, picture in enumerate(_drawn(pictures, times, predictions, palette)):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = ticks[number], Fraction(1, per_second)
            mux(stream.encode(frame))
        mux(stream.encode(None))


def _drawn(
    pictures: Pictures,
    times: Sequence[float],
    predictions: Sequence[Prediction],
    palette: dict[str, tuple[int, ...]],
) -> Iterator[np.ndarray]:
    """Every picture with what holds at its time drawn on it; sides even, as 4:2:0 needs."""
    for picture, shown, until in zip(pictures, times, times[1:], strict=False):
        seconds = (shown + until) / 2
        height, width = picture.shape[:2]
        scale = min(LONGEST_SIDE / max(height, width), 1.0)
        # A label must be readable in a small picture too.
        scale = max(scale, SHORTEST_SIDE / min(height, width))
        scale = min(scale, MOST_SIDE / max(height, width))
        size = (max(round(width * scale / 2), 1) * 2, max(round(height * scale / 2), 1) * 2)
        canvas = cv2.resize(
            picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        for p in predictions:
            if p.label and p.start_seconds <= seconds < p.end_seconds:
                _draw(canvas, p, scale, palette)
        yield canvas


def _draw(
    canvas: np.ndarray, p: Prediction, scale: float, palette: dict[str, tuple[int, ...]]
) -> None:
    assert p.label is not None
    height, width = canvas.shape[:2]
    unit = min(height, width) / 480
    left, top, side = 0.0, 0.0, float(min(height, width))
    if p.square is not None:
        left, top, side = (scale * part for part in (p.square.x, p.square.y, p.square.side))
        corners = (round(left), round(top)), (round(left + side), round(top + side))
        cv2.rectangle(canvas, *corners, palette[p.label], max(round(2 * unit), 1), cv2.LINE_AA)
    line, pad = 15 * unit, 4 * unit
    panel_width, panel_height = 150 * unit, line * len(palette) + 2 * pad
    # Beside the face where there is room, else on whichever side of the picture it is not.
    x = left + side + pad
    if x + panel_width > width:
        x = left - pad - panel_width if left - pad > panel_width else width - panel_width
    x, y = max(x, 0.0), min(max(top, 0.0), max(height - panel_height, 0.0))
    x0, y0, x1, y1 = (round(v) for v in (x, y, x + panel_width, y + panel_height))
    canvas[y0:y1, x0:x1] //= 3
    for row, (name, probability) in enumerate(p.probabilities.items()):
        base = y + pad + line * row
        bar = x + 74 * unit
        bar_end = bar + 72 * unit * probability
        cv2.rectangle(
            canvas,
            (round(bar), round(base + 3 * unit)),
            (round(bar_end), round(base + line - 3 * unit)),
            palette[name],
            -1,
        )
        color = (255, 255, 255) if name == p.label else (170, 170, 170)
        _text(canvas, name, x + pad, base + line - 4 * unit, 0.4 * unit, color)
    title = p.label if p.face <= 1 else f"{p.face}: {p.label}"
    if p.square is not None:
        size, base = 0.7 * unit, max(top, 24 * unit)
        (text_width, _), _ = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, size, 2)
        tag = (round(left), round(base - 24 * unit)), (round(left + text_width + 12), round(base))
        cv2.rectangle(canvas, *tag, palette[p.label], -1)
        ink = (0, 0, 0) if np.mean(palette[p.label]) > 120 else (255, 255, 255)
        _text(canvas, title, left + 6, base - 7 * unit, size, ink)


def _text(
    canvas: np.ndarray, text: str, x: float, y: float, size: float, color: tuple[int, ...]
) -> None:
    at, thickness = (round(x), round(y)), max(round(1.6 * size), 1)
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, color, thickness, cv2.LINE_AA)
