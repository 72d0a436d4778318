"""Windows of time, of videos whose pictures come as regularly as they like."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from cfer.video.windows import WindowCutter, fps_within, regular_fps, windows


@pytest.mark.parametrize(
    ("frames", "window_frames", "step_frames", "expected"),
    [
        (range(10), 20, None, [(0, 10)]),
        (range(10), 10, None, [(0, 10)]),
        (range(20), 10, None, [(0, 10), (10, 20)]),
        (range(22), 10, None, [(0, 10), (10, 20), (20, 22)]),
        (range(21), 10, None, [(0, 10), (10, 21)]),  # one frame left over is not lost
        (range(5, 27), 10, None, [(5, 15), (15, 25), (25, 27)]),
        (range(10), 10, 5, [(0, 10)]),
        (range(11), 10, 5, [(0, 10), (5, 11)]),
        (range(20), 10, 5, [(0, 10), (5, 15), (10, 20)]),
        (range(3, 24), 10, 4, [(3, 13), (7, 17), (11, 21), (15, 24)]),
    ],
)
@pytest.mark.parametrize("jitter", [0, 0.4])
def test_of_a_constant_rate_a_tick_is_a_picture(
    frames: range,
    window_frames: int,
    step_frames: int | None,
    expected: list[tuple[int, int]],
    jitter: float,
) -> None:
    """Also where a container rounds its times."""
    fps = Fraction(30000, 1001)
    late = np.random.default_rng(0).uniform(0, jitter, 40)
    times = [float((n + late[n]) / fps) for n in range(40)]
    cut = windows(times, frames, fps, window_frames, step_frames)
    assert [(span.start, span.stop) for span in cut] == expected


def test_a_window_lasts_as_long_where_pictures_are_left_out() -> None:
    """30 a second, of which every third is left out from 2 s on, and one of ten from 4 s on."""
    kept = [n for n in range(180) if n < 60 or (n % 3 and n < 120) or (n % 10 == 0 and n >= 120)]
    times = [n / 30 for n in kept]
    fps = regular_fps(times, Fraction(1000))
    assert fps == 30
    cut = windows(times, range(len(times)), fps, 30, 15)
    begins = [times[span.start] for span in cut]
    assert begins == pytest.approx([n / 2 for n in range(11)], abs=1 / 6 + 1e-9)
    assert {len(span) for span in cut[:3]} == {30}
    assert {len(span) for span in cut[4:7]} == {20}
    assert {len(span) for span in cut[8:]} == {3}
    assert fps_within([times[n] for n in cut[4]], fps) == pytest.approx(20, rel=0.03)
    assert fps_within([times[n] for n in cut[0]], fps) == 30


def test_a_picture_that_stands_still_is_in_the_window_of_the_next() -> None:
    """A slide of five seconds, and one more."""
    times = [0.0, 0.04, 0.08, 0.12, 5.12, 5.16]
    cut = windows(times, range(6), Fraction(25), 25, 12)
    assert cut == [range(4), range(4, 6)]
    assert windows(times, range(2, 5), Fraction(25), 25, 12) == [range(2, 4), range(3, 5)]


@pytest.mark.parametrize("seed", range(40))
def test_a_stream_is_cut_as_its_file_and_nothing_is_lost(seed: int) -> None:
    generator = np.random.default_rng(seed)
    intervals = np.concatenate(
        [
            np.full(generator.integers(1, 40), generator.choice([1 / 30, 1 / 24, 0.1, 0.7, 3]))
            for _ in range(generator.integers(1, 6))
        ]
    )
    times = [0.0, *np.cumsum(intervals).tolist()]
    fps = regular_fps(times, Fraction(25))
    window_frames = int(generator.integers(2, 40))
    step_frames = int(generator.integers(1, window_frames + 1))
    of_file = windows(times, range(len(times)), fps, window_frames, step_frames)
    cutter, held, first, of_stream = WindowCutter(fps, window_frames, step_frames), [], 0, []
    for seconds in times:
        held.append(seconds)
        while (span := cutter.complete(held)) is not None:
            of_stream.append(range(first + span.start, first + span.stop))
            passed = cutter.needed(held)
            first += passed
            del held[:passed]
    of_stream += [range(first + span.start, first + span.stop) for span in cutter.rest(held)]
    assert of_stream == of_file
    assert {n for span in of_file for n in span} == set(range(len(times)))
    assert min(map(len, of_file)) >= 2
    for span in of_file:
        seconds = times[span[-1]] - times[span.start]
        assert len(span) == 2 or seconds <= (window_frames + 1) / fps + 1e-6
    assert [span.start for span in of_file] == sorted(span.start for span in of_file)
