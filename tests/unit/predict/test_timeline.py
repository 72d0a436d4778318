"""When expressions rise; predictions as a CSV, as a picture over time, and drawn on the video."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from cfer.cli import run
from cfer.errors import InputError
from cfer.predict import timeline
from cfer.predict.recognizer import Prediction
from cfer.predict.timeline import (
    NEUTRAL,
    Event,
    annotate,
    as_json,
    colors,
    csv_rows,
    event_as_json,
    events,
    plot,
    summary,
    ways,
    without_overlap,
)
from cfer.video.faces import Square
from cfer.video.pictures import open_pictures

CLASSES = ("fear", "joy")


def window(start: float, end: float, joy: float, square: Square | None, face: int = 1):
    return Prediction("v.mp4", start, end, {"fear": 1 - joy, "joy": joy}, 2, face, square)


def write_video(path: Path, pictures: Sequence[np.ndarray], times: Sequence[float]) -> Path:
    """Each picture at its time, in seconds; the last time is the video's end."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, (start, end) in zip(pictures, pairwise(times), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(start * 1000), Fraction(1, 1000)
            (packet,) = stream.encode(frame)
            packet.duration = round((end - start) * 1000)
            container.mux(packet)
    return path


def at_25_per_second(num_pictures: int) -> list[float]:
    return [n / 25 for n in range(num_pictures + 1)]


@pytest.fixture
def video(tmp_path) -> Path:
    """One second, gray, 25 pictures of 640 × 960."""
    gray = np.full((640, 960, 3), 128, np.uint8)
    return write_video(tmp_path / "v.mp4", [gray] * 25, at_25_per_second(25))


# ---- events --------------------------------------------------------------------------------------


def said(start: float, label: str | None, face: int = 1, p: float = 0.75, seconds: float = 1.0):
    """A window that says one of three classes, or has no face."""
    others = {NEUTRAL, "joy", "fear"} - {label}
    probabilities = dict.fromkeys(others, (1 - p) / 2) | {label: p} if label else {}
    return Prediction("v.mp4", start, start + seconds, probabilities, 2, face if label else 0)


def every_half_second(*labels: str | None, face: int = 1) -> list[Prediction]:
    return [said(number / 2, label, face) for number, label in enumerate(labels)]


def spans(found: Sequence[Event]) -> list[tuple[str, float, float]]:
    return [(e.label, e.onset_seconds, e.apex_seconds) for e in found]


@pytest.mark.parametrize("step", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("onset", [1.0, 1.15, 1.3, 1.45, 1.6, 1.75, 1.9])
@pytest.mark.parametrize("rise", [0.3, 0.5, 0.7])
def test_an_expression_is_found_when_it_rises(step: float, onset: float, rise: float):
    """By windows that say so where they hold most of the rise. Between two windows' beginnings
    nothing more can be known."""
    predictions = []
    for start in np.arange(0, 4, step):
        seen = min(start + 1, onset + rise) - max(start, onset)
        predictions.append(said(float(start), "joy" if seen >= 0.4 * rise else NEUTRAL))
    (event,) = events(predictions)
    assert event.label == "joy"
    most = max(step, 0.1) / 2 + abs(rise - 0.5) / 2 + 0.01
    assert event.onset_seconds == pytest.approx(onset, abs=most)
    assert event.apex_seconds == pytest.approx(onset + rise, abs=most)


def test_a_run_of_windows_is_one_event():
    windows = [said(0, NEUTRAL), said(0.5, "joy", p=0.6), said(1, "joy", p=0.9), said(1.5, "fear")]
    joy, fear = events(windows[::-1])
    assert joy == Event("joy", 1.0, 1.5, 0.9, 1)
    assert (fear.label, fear.onset_seconds, fear.apex_seconds) == ("fear", 1.75, 2.25)
    assert event_as_json(joy) == {
        "label": "joy",
        "onset_seconds": 1.0,
        "apex_seconds": 1.5,
        "probability": 0.9,
        "face": 1,
    }


def test_a_change_that_no_window_holds_lasts_longer():
    windows = every_half_second(NEUTRAL, *["joy"] * 5, NEUTRAL)
    assert spans(events(windows)) == [("joy", 1.25, 2.75)]


def test_neutral_is_no_event_and_every_other_class_is():
    assert events(every_half_second(*[NEUTRAL] * 4)) == []
    assert [e.label for e in events(every_half_second("fear", "joy", "joy", "fear"))] == [
        "fear",
        "joy",
        "fear",
    ]


def test_a_window_without_the_face_ends_an_event():
    """Also where the windows on its two sides touch, and where it shows another face."""
    wanted = [("joy", 0.25, 0.75), ("joy", 1.25, 1.75)]
    assert spans(events(every_half_second("joy", None, "joy"))) == wanted
    left = [said(0, "joy"), said(1, "joy")]
    assert spans(events(left)) == [("joy", 0.75, 1.25)], "one after the other"
    other = every_half_second(NEUTRAL, NEUTRAL, NEUTRAL, face=2)
    assert spans(events([*left, *other])) == wanted


def test_each_face_has_its_events():
    one, two = (
        every_half_second("joy", "joy", NEUTRAL),
        every_half_second(NEUTRAL, "joy", "joy", face=2),
    )
    found = events([window for pair in zip(two, one, strict=True) for window in pair])
    assert [(e.face, e.onset_seconds) for e in found] == [(1, 0.5), (2, 1.0)]


def test_the_summary_says_what_happened_or_that_nothing_did():
    windows = [said(0, NEUTRAL), said(0.5, "joy", p=0.93), said(1, NEUTRAL)]
    assert summary(windows) == ["joy: onset 0.75 s, apex 1.25 s, 0.93"]
    still = [said(0, NEUTRAL, 2, 0.8), said(0.5, None), said(1, NEUTRAL, 2, 0.9)]
    assert summary(still) == ["neutral throughout, 0.85"]
    assert summary([*windows, *still]) == [
        "face 1: joy: onset 0.75 s, apex 1.25 s, 0.93",
        "face 2: neutral throughout, 0.85",
    ]
    assert summary([said(0, None), said(0.5, None)]) == []


# ---- files ---------------------------------------------------------------------------------------


def test_reasons_are_counted_without_what_is_of_one_window():
    reasons = [None, "v.mp4: too much (60%, from 0 s to 1 s)", "v.mp4: too much (70%, at the end)"]
    windows = [
        replace(said(start, "joy"), way="encoded" if why else "native", refused=why)
        for start, why in enumerate([*reasons, "v.mp4: it is (as it were) interlaced; encode it"])
    ]
    assert ways(windows) == [
        "1 of 4 windows read as H.264 transmits them",
        "2 encoded anew: v.mp4: too much",
        "1 encoded anew: v.mp4: it is (as it were) interlaced; encode it",
    ]
    nobody = replace(windows[1], probabilities={}, face=0)
    assert ways([windows[0], nobody]) == [
        "1 of 2 windows read as H.264 transmits them",
        "1 of 2 windows without a face",
    ]


def test_csv_has_a_row_per_window_and_face(tmp_path):
    without = Prediction("v.mp4", 1.0, 2.0, {}, 0, face=0)
    with csv_rows(tmp_path / "p.csv", CLASSES) as write:
        write(window(0, 1, 0.75, None, face=2))
        # It is there as soon as it is known: a stream may be stopped at any moment.
        assert len((tmp_path / "p.csv").read_text().splitlines()) == 2
        write(without)
    with open(tmp_path / "p.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert first["label"] == "joy"
    assert first["face"] == "2"
    assert float(first["joy"]) + float(first["fear"]) == pytest.approx(1)
    assert second["label"] == second["joy"] == ""
    assert float(second["end_seconds"]) == 2


def test_json_of_a_window():
    given = as_json(window(0, 1, 0.75, Square(3, 4, 50, 0.99, 1)))
    assert given["box"] == [3, 4, 50, 50]
    assert given["probabilities"] == {"fear": 0.25, "joy": 0.75}
    assert given["label"] == "joy"


def test_annotation_is_where_the_face_is_and_when(video, tmp_path):
    out = tmp_path / "out.mp4"
    square = Square(400, 200, 240, 0.99, 1)
    annotate(video, [window(0, 0.4, 0.9, square)], out)
    with av.open(str(out)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 25
    changed = [np.abs(picture.astype(int) - 128).max(2) > 40 for picture in pictures]
    assert [bool(where.any()) for where in changed] == [True] * 10 + [False] * 15
    # The square's four sides, and nothing inside of it where the face is.
    for y, x in ((320, 400), (320, 639), (200, 560), (439, 520)):
        assert changed[0][y - 3 : y + 4, x - 3 : x + 4].any()
    assert not changed[0][280:360, 480:560].any()


# 20 pictures in the first half a second, and 5 more in the next ten.
VARYING = [*(n / 40 for n in range(20)), 0.5, 2.5, 4.5, 6.5, 8.5]


@pytest.fixture
def varying(tmp_path) -> Path:
    """Of varying rate, ends at 10.5 s; each picture is a little brighter than the one before."""
    pictures = [np.full((320, 480, 3), 20 + 8 * n, np.uint8) for n in range(len(VARYING))]
    return write_video(tmp_path / "varying.mp4", pictures, [*VARYING, 10.5])


def test_bars_are_drawn_over_no_other_face():
    canvas = np.zeros((480, 960, 3), np.uint8)
    size = (150.0, 128.0)

    def panel(face, *others):
        return timeline._panel(face, canvas, 1.0, 8, [face, *others])

    left, middle, right = (timeline._Box(x, 100, 200, 200) for x in (20, 300, 740))
    assert panel(left) == (224, 100, *size), "to the right"
    assert panel(right) == (586, 100, *size), "to the left, where the right is outside"
    # Another face is beside it, and then one is on each side.
    assert panel(left, middle) == (20, 304, *size)
    beside = timeline._Box(224, 0, 76, 480)
    assert panel(middle, beside, timeline._Box(500, 0, 80, 480)) == (300, 304, *size)
    # No place anywhere; but a face that is alone always has its bars.
    large = timeline._Box(0, 0, 480, 480)
    assert panel(large, timeline._Box(480, 0, 480, 480)) is None
    whole = timeline._Box(0, 0, 960, 480)
    assert panel(whole) == (810, 0, *size)


def test_an_annotated_video_keeps_its_times(varying, tmp_path):
    out = tmp_path / "out:put.mp4"
    labeled = window(0.5, 4.5, 0.9, Square(100, 100, 120, 0.99, 1))
    annotate(varying, [labeled], out)
    with out.open("rb") as file, av.open(file) as container:
        frames = list(container.decode(video=0))
    with out.open("rb") as file, av.open(file) as container:
        video = container.streams.video[0]
        assert float(video.duration * video.time_base) == pytest.approx(10.5, abs=1e-3)
    assert [frame.time for frame in frames] == pytest.approx(VARYING, abs=1e-4)
    assert open_pictures(out).times()[-1] == pytest.approx(10.5, abs=1e-3)
    pictures = [frame.to_ndarray(format="rgb24") for frame in frames]
    marked = [bool((np.ptp(picture, axis=2) > 40).any()) for picture in pictures]
    assert marked == [0.5 <= seconds < 4.5 for seconds in VARYING]


def test_a_plot_shows_what_is_there_at_its_time(varying):
    figure = plot(varying, [window(0, 10.5, 0.9, None)], CLASSES)
    strip, below = figure.axes
    assert below.get_xlim() == pytest.approx((0, 10.5), abs=0.1)
    shown = np.asarray(strip.get_images()[0].get_array())
    greys = shown[shown.shape[0] // 2, :, 0].astype(int)
    parts = [int(np.median(part)) for part in np.array_split(greys, 5)]
    # In the middles of five equal parts of the time.
    expected = [20 + 8 * number for number in (20, 21, 22, 23, 24)]
    assert parts == pytest.approx(expected, abs=4)


def test_a_picture_of_extreme_shape_is_not_scaled_beyond_measure(tmp_path):
    narrow, out = np.full((2000, 2, 3), 90, np.uint8), tmp_path / "out.mp4"
    path = write_video(tmp_path / "narrow.mp4", [narrow] * 2, at_25_per_second(2))
    plot(path, [window(0, 0.08, 0.9, None)], CLASSES)
    annotate(path, [window(0, 0.08, 0.9, None)], out)
    with av.open(str(out)) as container:
        assert container.streams.video[0].height <= 4096


def test_annotation_never_destroys_its_source(video):
    before = video.read_bytes()
    with pytest.raises(InputError, match="the video itself"):
        annotate(video, [], video)
    with pytest.raises(InputError, match=r"ends in \.mp4"):
        annotate(video, [], video.with_suffix(".txt"))
    assert video.read_bytes() == before


def test_plot_has_a_line_per_class(video):
    windows = [window(0, 0.5, 0.9, None), window(0.5, 1.0, 0.2, None)]
    figure = plot(video, windows, CLASSES)
    drawn = {
        line.get_label(): line.get_ydata()
        for axes in figure.axes
        for line in axes.get_lines()
        if line.get_label() in CLASSES
    }
    assert set(drawn) == set(CLASSES)
    assert float(np.max(drawn["joy"])) == pytest.approx(0.9)
    assert float(np.min(drawn["joy"])) == pytest.approx(0.2)


def test_a_plot_marks_events_from_onset_to_apex(video):
    """Each face's own, in the color of the class; labels that would overlap are left out."""
    classes = (NEUTRAL, "joy", "fear")
    one = [said(n / 10, label, 1, seconds=0.2) for n, label in enumerate([NEUTRAL, "joy", "joy"])]
    two = [said(0.7, "fear", 2, seconds=0.2), said(0.71, "joy", 2, seconds=0.2)]
    _, first, second = plot(video, [*one, *two], classes).axes
    (band,) = first.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((0.2, 0.3))
    assert band.get_facecolor()[:3] == pytest.approx(colors(classes)["joy"])
    assert [text.get_text() for text in first.texts] == ["joy"]
    assert len(second.patches) == 2
    assert [text.get_text() for text in second.texts] == ["fear"]


def test_windows_that_overlap_are_shown_up_to_the_middle_of_what_they_share(video, tmp_path):
    """And one window at a time is drawn into a picture."""
    windows = [window(0, 0.5, 0.9, None), window(0.25, 0.75, 0.2, None), window(0.8, 1, 0.9, None)]
    shown = [(w.start_seconds, w.end_seconds) for w in without_overlap(windows)]
    assert shown == [(0, 0.375), (0.375, 0.75), (0.8, 1)]
    axes = plot(video, windows, CLASSES).axes[1]
    (line,) = (line for line in axes.get_lines() if line.get_label() == "joy")
    assert np.array_equal(line.get_xdata(), [0, 0.375, 0.375, 0.75, 0.75, 0.8, 1], equal_nan=True)
    apart = [window(0, 0.375, 0.9, None), window(0.375, 0.75, 0.2, None), windows[2]]
    for name, given in (("one", windows), ("other", apart)):
        annotate(video, given, tmp_path / f"{name}.mp4")
    one, other = (list(open_pictures(tmp_path / f"{n}.mp4")) for n in ("one", "other"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("count", [2, 7, 10, 20])
def test_each_class_has_a_color_of_its_own(count):
    names = [f"class {number}" for number in range(count)]
    given = colors(names)
    assert list(given) == names
    assert len(set(given.values())) == count


@pytest.mark.parametrize("count", [2, 8, 10, 19])
def test_neutral_alone_is_gray(count):
    names = [f"class {number}" for number in range(count - 1)]
    given = colors([*names[:1], NEUTRAL, *names[1:]])
    assert len(set(given.values())) == count
    assert [name for name, color in given.items() if np.ptp(color) == 0] == [NEUTRAL]
    if count <= 10:
        assert {name: given[name] for name in names} == colors(names), "the others keep theirs"


@pytest.mark.parametrize(("height", "width"), [(640, 960), (960, 480), (160, 160)])
def test_the_frames_above_the_plot_are_not_distorted(tmp_path, height, width):
    """A white square in the middle of each picture stays one; and no frame is needed twice."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[height // 2 - 40 : height // 2 + 40, width // 2 - 40 : width // 2 + 40] = 255
    path = write_video(tmp_path / "v.mp4", [picture] * 3, at_25_per_second(3))
    figure = plot(path, [window(0, 0.12, 0.9, None)], CLASSES)
    figure.draw_without_rendering()
    strip = figure.axes[0]
    shown = np.asarray(strip.get_images()[0].get_array())[..., 0] > 128
    row = shown[shown.shape[0] // 2]
    edges = np.flatnonzero(np.diff(row.astype(int)))
    widths = [end - start for start, end in pairwise(edges) if row[start + 1]]
    squares = sum(size > 10 for size in widths)
    assert squares == max(round(7.4 * height / width), 1)
    wide = max(widths)
    tall = int(shown[:, edges[0] + 1 + wide // 2].sum())
    box = strip.get_window_extent()
    stretch = (box.width / shown.shape[1]) / (box.height / shown.shape[0])
    assert wide * stretch == pytest.approx(tall, rel=0.12)


def test_one_command_writes_all_three(drawn_videos, tmp_path, capsys):
    """With the model that ships, as right after installation."""
    video = drawn_videos / "videos" / "S003" / "surprise_1.mp4"
    files = {name: tmp_path / f"out.{name}" for name in ("csv", "png", "mp4")}
    arguments = ["predict", str(video), "--csv", str(files["csv"]), "--plot", str(files["png"])]
    assert run([*arguments, "--annotate", str(files["mp4"])]) == 0
    printed = capsys.readouterr()
    assert "animated photographs" in printed.err
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    *table, event, way = printed.out.splitlines()
    assert event.startswith("surprise: onset 0.25 s, apex 0.75 s, 0.")
    assert way == "1 of 1 window read as H.264 transmits them"
    assert len(files["csv"].read_text().splitlines()) == len(table), "events are not in it"
    with av.open(str(files["mp4"])) as container:
        assert len(list(container.decode(video=0))) == 24
