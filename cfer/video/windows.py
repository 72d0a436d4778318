"""Windows of time: which pictures of a video belong to each, at whatever rate they are shown.

A clock ticks as often as the video shows pictures where it shows them regularly. Windows are so
many ticks, so they last equally long: where a camera leaves pictures out, or slows down in the
dark, they have fewer. Of a video of constant rate, a tick is a picture.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from statistics import median_low

REGULAR = 0.25  # by how much an interval between pictures may differ from the median


def regular_fps(times: Sequence[float], fps: Fraction) -> Fraction:
    """Pictures in a second where they are shown regularly: by the mean of the intervals that are
    about as long as most.

    Args:
        times: when each is shown, seconds, ascending.
        fps: what is taken where they say nothing.
    """
    intervals = [after - before for before, after in pairwise(times) if after > before]
    if not intervals:
        return fps
    usual = median_low(intervals)
    kept = [seconds for seconds in intervals if abs(seconds - usual) <= REGULAR * usual]
    return Fraction(len(kept) / sum(kept)).limit_denominator(1001) or fps


def fps_within(times: Sequence[float], fps: Fraction) -> Fraction:
    """Pictures in a second of one window; `fps`, that of the video, where none is left out."""
    ticks = round((times[-1] - times[0]) * fps)
    return fps * (len(times) - 1) / ticks if ticks > 0 and len(times) > 1 else fps


class WindowCutter:
    """Cuts the pictures of one video into windows of `window_frames` ticks, one `step_frames` after
    the other.

    No picture is lost: the last window may be shorter, and a single tick left over joins the window
    before it. A window in which one picture is shown has the next one, too, since one alone has no
    residual; there is no window in which none is.

    Args:
        fps: ticks in a second (`regular_fps`).
        window_frames: of a window; at least 2.
        step_frames: from one window's beginning to the next's, at most a window; None: a window.
        origin: when the first picture is shown, seconds.
    """

    def __init__(
        self, fps: Fraction, window_frames: int, step_frames: int | None = None, origin: float = 0.0
    ) -> None:
        self._fps, self._origin = float(fps), origin
        self._window, self._step = window_frames, step_frames or window_frames
        self._start = 0  # the tick at which the next window begins
        # When the first and the last picture of the window before are shown.
        self._before: tuple[float, float] | None = None

    def complete(self, times: Sequence[float]) -> range | None:
        """The next window, numbers of pictures, as soon as it is known that it isn't the last:
        after two more ticks than it has. None: it is not known yet.

        Args:
            times: when pictures are shown, from the first one on that is still `needed`.
        """
        shown = self._ticks(times)
        while shown and shown[-1] > self._start + self._window:
            span = self._span(times, shown, self._start + self._window)
            self._start += self._step
            if span is not None:
                return span
        return None

    def needed(self, times: Sequence[float]) -> int:
        """The number of the first of these pictures that a later window may have."""
        return max(min(bisect_left(self._ticks(times), self._start), len(times) - 2), 0)

    def rest(self, times: Sequence[float]) -> list[range]:
        """All windows that are left, after which nothing comes."""
        shown = self._ticks(times)
        ticks = shown[-1] + 1 - self._start if shown else 0
        # None begins where the one before it has reached the end.
        count = 1 - (-max(ticks - self._window, 0) // self._step)
        if count > 1 and ticks - (count - 1) * self._step == 1:
            count -= 1
        found = []
        for number in range(count):
            is_last = number == count - 1
            end = shown[-1] + 1 if is_last and shown else self._start + self._window
            span = self._span(times, shown, end)
            self._start += self._step
            if span is not None:
                found.append(span)
        return found

    def _ticks(self, times: Sequence[float]) -> list[int]:
        return [round((seconds - self._origin) * self._fps) for seconds in times]

    def _span(self, times: Sequence[float], shown: Sequence[int], end: int) -> range | None:
        first, stop = bisect_left(shown, self._start), bisect_left(shown, end)
        if first == stop or len(shown) < 2:
            return None
        stop = max(stop, first + 2)
        if stop > len(shown):
            first, stop = len(shown) - 2, len(shown)
        if (times[first], times[stop - 1]) == self._before:
            return None
        self._before = times[first], times[stop - 1]
        return range(first, stop)


def shifted(span: range, by: int) -> range:
    return range(span.start + by, span.stop + by)


def windows(
    times: Sequence[float],
    frames: range,
    fps: Fraction,
    window_frames: int,
    step_frames: int | None = None,
) -> list[range]:
    """The windows of some frames of a video (`WindowCutter`): numbers of frames.

    Args:
        times: when each of the video's frames is shown, seconds.
    """
    shown = times[frames.start : frames.stop]
    cutter = WindowCutter(fps, window_frames, step_frames, shown[0])
    return [shifted(span, frames.start) for span in cutter.rest(shown)]
