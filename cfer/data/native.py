"""The recognizer's input from a video as it is: its own residuals and vectors, of one face.

Nothing is encoded anew, and of the P-frames no picture is made: each is decoded by itself. What is
seen of a window is one *run* or a few: from an I- or P-frame, the first, to a later P-frame, the
last. Their vectors are traced back to the first, as `cfer.data.inputs` has them of a GOP that was
encoded for it. Of their direct residuals the energy is seen, the mean of the absolute value: where,
and how much, the face changes by more than vectors explain.

A head moves by more than any expression does. What most vectors in the upper part of the face agree
on, a shift, turn and scale (RANSAC), is taken for its own movement: each residual is cut out where
the head is then, and the vectors are those of the face alone, less the head's.

    video = NativeVideo(Path("phone.mp4"), FaceDetector())
    window = video.read(0.5, 1.5, size=112)
    window.planes       # uint8 (1, T, 5, 56, 56): energy of Y, U, V; motion, down and right

The face is looked for in the I-frames, and in a long GOP every `LOOK_SECONDS`; in between its
square follows the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from cfer.codec import GRAY, Bitstream, CodecError, Residual
from cfer.data.inputs import BLOCK, block_motion, energy_steps, motion_steps
from cfer.video.faces import NEAR, FaceDetector, Square
from cfer.video.follow import NOWHERE, Place, compose
from cfer.video.pictures import VideoPictures
from cfer.video.variation import AS_FOUND, Variation

# Of the square: from above the brows to the tip of the nose, where no expression moves much.
UPPER_FACE = ((0.2, 0.8), (0.15, 0.66))
LEAST_BLOCKS = 10  # with a vector, of those in the upper face
AGREED = 0.3  # the share of them that has to go along with the whole
AGREES = 1.0  # pixels between a vector and the head's movement
# Pairs of vectors that are tried: where `AGREED` is met, 50 are enough in 99 of 100 cases.
MOST_TRIES = 200
LOOK_SECONDS = 2.0  # until a face is looked for again in the same GOP
MOST_BYTES = 512 << 20  # of a file: it is held in memory
# Of what P-frames change: windows overlap, and a face is followed from one to the next. There are
# at least so many of them.
BYTES_KEPT, LEAST_KEPT = 128 << 20, 8
MOST_INTRA = 0.5  # of the face; docs/residuals.md has what it costs below, and few clips above
RUN_SECONDS = 1.0  # a longer window is seen in several runs
WIDER = 1.5  # than the square: what is cut out of each residual, from which the varied squares are
SHORT = 0.5  # of the longest run; shorter ones, beside an I-frame, are left out


@dataclass(frozen=True)
class Run:
    """Frames of one GOP over which a change is seen.

    Attributes:
        first: number of an I- or P-frame of the bitstream.
        last: of a later P-frame.
    """

    first: int
    last: int


@dataclass(frozen=True)
class NativeFace:
    """What one run shows of one face.

    Attributes:
        planes: of each variation of the square, uint8 (V, 5, S/2, S/2), 128 = zero: the energy of
            Y, U and V (`cfer.data.inputs.energy_steps`); the face's own motion, down and right, in
            `cfer.data.inputs.STEPS_PER_PIXEL` steps a pixel of the crop.
        intra_fraction: share of the square where the last frame is intra, or predicted from blocks
            of the run that are, in [0, 1]: there the picture itself is transmitted, not a change.
    """

    planes: np.ndarray
    intra_fraction: float


def runs(
    bitstream: Bitstream, start_seconds: float, end_seconds: float, run_seconds: float = RUN_SECONDS
) -> list[Run]:
    """The runs that come nearest to a window of time; none, where it has no P-frame.

    A run never goes beyond an I-frame, so a window is cut there first, and then into equal parts of
    about `run_seconds`.
    """
    return long_enough(parts(bitstream, start_seconds, end_seconds, run_seconds))


def parts(
    bitstream: Bitstream, start_seconds: float, end_seconds: float, run_seconds: float = RUN_SECONDS
) -> list[tuple[float, list[Run]]]:
    """The parts of a window that I-frames cut it into: how long each is, in seconds, and its runs,
    as `runs`."""
    times = bitstream.times
    found: list[tuple[float, list[Run]]] = []
    for gop in bitstream.gops:
        stops = _stops(bitstream, gop)
        start = max(start_seconds, times[stops[0]])
        end = min(end_seconds, times[stops[-1]])
        if len(stops) < 2 or end < start:
            continue
        edges = np.linspace(start, end, max(round((end - start) / run_seconds), 1) + 1)
        at = np.array([times[n] for n in stops])
        near = [int(np.abs(at - edge).argmin()) for edge in edges]
        if near[0] == near[-1]:  # shorter than from one P-frame to the next
            near = [max(near[0] - 1, 0), max(near[0], 1)]
        found.append((end - start, [Run(stops[a], stops[b]) for a, b in pairwise(near) if a < b]))
    return found


Part = TypeVar("Part")


def long_enough(parts: Sequence[tuple[float, list[Part]]]) -> list[Part]:
    """The runs of a window's parts, without those of parts that are short beside the longest."""
    longest = max((seconds for seconds, _ in parts), default=0.0)
    return [run for seconds, found in parts if seconds >= SHORT * longest for run in found]


@dataclass(frozen=True)
class _Change:
    """What a P-frame changes, as far as it does not depend on where a face is.

    Attributes:
        residual: its direct one.
        moved: from each block of `BLOCK` × `BLOCK` samples to where it was in the frame before,
            right and down, in pixels of the picture as it is shown: float32 (2, rows, columns).
        source: the number of the block that it was, row by row: int32 (rows, columns).
        intra: bool (rows, columns).
    """

    residual: Residual
    moved: np.ndarray
    source: np.ndarray
    intra: np.ndarray


BYTES_A_SAMPLE = 1.5 + (8 + 4 + 1) / BLOCK**2  # of luma, in a `_Change`


def _change(bitstream: Bitstream, upright: Place, number: int) -> _Change:
    """Of a P-frame. Its vectors are taken to point into the one before: of a P-frame with several
    references FFmpeg doesn't say which, and it's seldom another. Raises CodecError: damage."""
    residual = bitstream.direct_residual(number)
    rows, columns = _num_blocks(bitstream)
    motion = block_motion(residual.motion_vectors, rows, columns)
    there = np.floor(motion / BLOCK + 0.5).astype(np.int32) + np.mgrid[:rows, :columns]
    row, column = np.clip(there, 0, np.array([rows - 1, columns - 1]).reshape(2, 1, 1))
    turn = cv2.invertAffineTransform(upright)[:, :2]
    moved = np.einsum("ij,jrc->irc", turn, motion[::-1]).astype(np.float32)
    intra = residual.intra.repeat(2, 0).repeat(2, 1)[:rows, :columns]
    return _Change(residual, moved, (row * columns + column).astype(np.int32), intra)


def _num_blocks(bitstream: Bitstream) -> tuple[int, int]:
    """Rows and columns."""
    return -(-bitstream.height // BLOCK), -(-bitstream.width // BLOCK)


Picture = tuple[np.ndarray, np.ndarray, np.ndarray]  # y, u, v


def read_native(
    bitstream: Bitstream,
    run: Run,
    square: Square,
    size: int,
    variations: Sequence[Variation] = (AS_FOUND,),
    upright: Place = NOWHERE,
    read: Callable[[int], _Change] | None = None,
) -> NativeFace:
    """The input that a recognizer has of one face in one run.

    Args:
        square: in the run's first frame.
        size: side S of the crop in pixels, even.
        variations: of the square; the stream is read once for all.
        upright: from pixels of the picture as it is shown to samples of the bitstream
            (`cfer.video.pictures.VideoPictures.coded_place`).
        read: what a P-frame changes, where it may be known already.

    Raises:
        CodecError: a damaged frame.
    """
    trace = _Trace(bitstream, square, upright)
    stops = [*_stops(bitstream, range(run.first, run.last)), run.last]
    energy = _Energy(square, size)
    read = read or partial(_change, bitstream, upright)
    for number in stops[1:]:
        change = read(number)
        trace.add(change)
        energy.add(change.residual, trace.now(), upright)
    planes = []
    corner = np.array([square.x, square.y])
    for variation in variations:
        varied, side = variation.square(corner, square.side)
        motion = trace.motion_planes(compose(trace.now(), varied), side, size)
        planes.append(np.concatenate([energy.planes(varied, side), motion]))
    return NativeFace(np.stack(planes), trace.intra_fraction())


@dataclass(frozen=True)
class NativeWindow:
    """What a window of a video shows of one face.

    Attributes:
        planes: of each variation and each run, uint8 (V, T, 8, S/2, S/2); see `NativeFace`.
        square: where the face is in the first frame of the first run.
        intra_fraction: see `NativeFace`; of the run where it's the most.
        bytes_read: of the packets from which its planes are.
    """

    planes: np.ndarray
    square: Square
    intra_fraction: float
    bytes_read: int


class FaceReader:
    """The face in a bitstream of H.264, run by run. The bitstream may grow.

    Args:
        bitstream: the video's, or a part of it from an I-frame on.
        upright: from pixels of the picture as it is shown to samples of the bitstream.
        shape: height and width of the picture as it is shown.
        detector: finds the face.

    Attributes:
        bitstream: the same.
    """

    def __init__(
        self,
        bitstream: Bitstream,
        upright: Place,
        shape: tuple[int, int],
        detector: FaceDetector,
    ) -> None:
        self.bitstream = bitstream
        self._upright, self._shape, self._detector = upright, shape, detector
        self._following: dict[int, _Following] = {}  # by GOP
        bytes_of_one = int(bitstream.width * bitstream.height * BYTES_A_SAMPLE)
        kept = max(BYTES_KEPT // bytes_of_one, LEAST_KEPT)
        self._read = lru_cache(maxsize=kept)(partial(_change, bitstream, upright))

    def face(self, run: Run, size: int, variations: Sequence[Variation]) -> NativeFace:
        """What one run shows of one face: the largest, and of equal ones the most central.

        Raises:
            CodecError: no face in the I-frame before it, or damage.
        """
        square = self.square(run.first)
        return read_native(self.bitstream, run, square, size, variations, self._upright, self._read)

    def bytes_of(self, run: Run) -> int:
        """Of the packets that a run is read from."""
        frames = (*_stops(self.bitstream, range(run.first, run.last)), run.last)
        return sum(len(self.bitstream.packets[n]) for n in frames if n > run.first)

    def square(self, frame: int) -> Square:
        """Where the face is in an I- or P-frame; raises as `face`."""
        gop = next(n for n, frames in enumerate(self.bitstream.gops) if frame in frames)
        try:
            if gop not in self._following:
                self._following[gop] = _Following(self, gop)
            return self._following[gop].square(frame)
        except CodecError:
            self._following.pop(gop, None)  # asked again, it has to say so again
            raise

    def _as_shown(self, picture: np.ndarray) -> np.ndarray:
        """A picture of the bitstream, RGB, uint8 (H, W, 3): upright, with square pixels."""
        if np.array_equal(self._upright, NOWHERE):
            return picture
        return cv2.warpAffine(
            picture,
            self._upright,
            self._shape[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )


class _Following:
    """The squares of a GOP's I- and P-frames, each found when it is asked for."""

    def __init__(self, reader: FaceReader, gop: int) -> None:
        self._reader, self._gop = reader, gop
        bitstream = reader.bitstream
        self._last = bitstream.gops[gop][0]
        found = reader._detector.find(reader._as_shown(bitstream.i_frame(gop)))
        if not found:
            at = bitstream.times[self._last]
            raise CodecError(f"{bitstream.name}: no face in the I-frame (at {at:.2f} s)")
        self._known = {self._last: found[0]}
        self._looked = self._last
        # To look again; of a GOP that has grown since they are decoded anew.
        self._pictures: Iterator[tuple[int, Picture]] = iter(())
        self._pictures_end = self._last
        self._trace = _Trace(bitstream, found[0], reader._upright)

    def square(self, frame: int) -> Square:
        """Raises CodecError: damage."""
        reader, bitstream = self._reader, self._reader.bitstream
        if frame not in self._known:
            times = bitstream.times
            for number in _stops(bitstream, range(self._last, frame + 1))[1:]:
                self._trace.add(reader._read(number))
                square = self._trace.square_now()
                if times[number] - times[self._looked] >= LOOK_SECONDS:
                    if number >= self._pictures_end:
                        self._pictures = bitstream.gop_pictures_without_b(self._gop)
                        self._pictures_end = bitstream.gops[self._gop].stop
                    decoded = next(picture for n, picture in self._pictures if n == number)
                    picture = reader._as_shown(_rgb(*decoded))
                    again = reader._detector.find_again(picture, square)
                    square = again or _nearest(reader._detector.find(picture), square)
                    self._looked, self._trace = number, _Trace(bitstream, square, reader._upright)
                self._known[number], self._last = square, number
        return self._known[frame]


class NativeVideo(FaceReader):
    """A video in H.264 that is read as it is, window by window.

    Args:
        path: the file; it is held in memory.
        detector: finds the face.

    Raises:
        CodecError: not H.264, a stream whose residuals can't be read exactly, or a file that is too
            large or damaged.
    """

    def __init__(self, path: Path, detector: FaceDetector) -> None:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise CodecError(
                f"{path}: {size >> 20} MB, and at the most {MOST_BYTES >> 20} are read as they "
                "are; cut it"
            )
        bitstream = Bitstream.open(path, ["h264"])
        super().__init__(bitstream, *VideoPictures(path, None).coded_place(), detector)

    def read(
        self,
        start_seconds: float,
        end_seconds: float,
        size: int,
        variations: Sequence[Variation] = (AS_FOUND,),
    ) -> NativeWindow:
        """What a window of time shows of one face (`read_window`).

        Args:
            start_seconds, end_seconds: since the first picture, as `Bitstream.times`.
            size: side S of the crop in pixels, even.
            variations: of the square.

        Raises:
            CodecError: as `read_window`.
        """
        found = [(self, run) for run in runs(self.bitstream, start_seconds, end_seconds)]
        times = start_seconds, end_seconds
        return read_window(self.bitstream.name, found, times, size, variations)


def read_window(
    name: str,
    found: Sequence[tuple[FaceReader, Run]],
    times: tuple[float, float],
    size: int,
    variations: Sequence[Variation],
) -> NativeWindow:
    """What the runs of a window show of one face.

    Args:
        name, times: what messages call the video, and when the window begins and ends.
        size: side S of the crop in pixels, even.
        variations: of the square.

    Raises:
        CodecError: no run or no face there, more intra blocks in the face than `MOST_INTRA`, or
            damage; the message says which.
    """
    when = f"from {times[0]:g} s to {times[1]:g} s"
    if not found:
        raise CodecError(f"{name}: no P-frame in the window ({when})")
    faces = [reader.face(run, size, variations) for reader, run in found]
    intra = max(face.intra_fraction for face in faces)
    if intra > MOST_INTRA:
        raise CodecError(
            f"{name}: more than {MOST_INTRA:.0%} of the face comes from intra blocks "
            f"({intra:.0%}, {when})"
        )
    first, run = found[0]
    return NativeWindow(
        np.stack([face.planes for face in faces], axis=1),
        first.square(run.first),
        intra,
        sum(reader.bytes_of(run) for reader, run in found),
    )


def _stops(bitstream: Bitstream, gop: Sequence[int]) -> list[int]:
    """The frames of a GOP at which runs begin and end: each is predicted from the one before."""
    shown = [n for n in gop if bitstream.frame_types[n] in "IP"]
    # The last one is often marked as of no use to others.
    return [n for n in shown if bitstream.is_reference(n) or n == shown[-1]]


def _nearest(found: Sequence[Square], known: Square) -> Square:
    """Of some squares that were found anew the one of the same face; or the one known before."""

    def distance(square: Square) -> float:
        across = square.x + square.side / 2 - known.x - known.side / 2
        down = square.y + square.side / 2 - known.y - known.side / 2
        return math.hypot(across, down)

    nearest = min(found, key=distance, default=known)
    return nearest if distance(nearest) <= NEAR * known.side else known


def _rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Decoded planes → RGB, uint8 (H, W, 3), to look for a face in; the last row or column of an
    odd size is left out."""
    height, width = y.shape[0] // 2 * 2, y.shape[1] // 2 * 2
    chroma = np.stack([u[: height // 2, : width // 2], v[: height // 2, : width // 2]])
    packed = np.concatenate([y[:height, :width], chroma.reshape(height // 2, width)])
    picture: np.ndarray = cv2.cvtColor(packed, cv2.COLOR_YUV2RGB_I420)
    return picture


class _Trace:
    """The vectors of P-frames after one another, traced back to where they began, and the movement
    of the head among them.

    Everything is in pixels of the upright picture; blocks are those of the bitstream.
    """

    def __init__(self, bitstream: Bitstream, square: Square, upright: Place) -> None:
        rows, columns = _num_blocks(bitstream)
        self._square, self._upright = square, upright
        centers = np.mgrid[:rows, :columns][::-1] * BLOCK + BLOCK / 2
        # (2, rows, columns): x, y
        self._centers = _applied(cv2.invertAffineTransform(upright), centers).astype(np.float32)
        self._traced = np.zeros((2, rows, columns), np.float32)
        self._appearance = np.zeros((rows, columns), bool)
        self._back = NOWHERE  # the head's movement, from now to the beginning

    def add(self, change: _Change) -> None:
        """The next P-frame."""
        before = self._traced.reshape(2, -1).take(change.source, axis=1)
        self._traced = change.moved + before
        self._appearance = change.intra | self._appearance.ravel()[change.source]
        origins = self._centers + self._traced
        x, y = origins
        (left, right), (top, bottom) = np.array(UPPER_FACE) * self._square.side
        seen = (x > self._square.x + left) & (x < self._square.x + right) & ~change.intra
        seen &= (y > self._square.y + top) & (y < self._square.y + bottom)
        agreed = _agreed(self._centers[:, seen].T, origins[:, seen].T)
        self._back = self._back if agreed is None else agreed
        # An intra block has no vector: it goes with the head.
        centers = self._centers[:, change.intra]
        self._traced[:, change.intra] = _applied(self._back, centers) - centers

    def now(self) -> Place:
        """From where something of the head was in the beginning to where it is."""
        return cv2.invertAffineTransform(self._back)

    def square_now(self) -> Square:
        """The square that has the head in its middle now, as large and as upright as it was."""
        half = self._square.side / 2
        x, y = self.now() @ [self._square.x + half, self._square.y + half, 1.0]
        return replace(self._square, x=round(x - half), y=round(y - half))

    def motion_planes(self, place: Place, side: int, size: int) -> np.ndarray:
        """The face's own motion since the beginning, less the head's: uint8 (2, S/2, S/2).

        Args:
            place: from pixels of the square, which has `side` of them, to those of the picture.
        """
        rows, columns = self._blocks(place, side, size // 2)
        centers = self._centers[:, rows, columns]
        own = self._traced[:, rows, columns] + centers - _applied(self._back, centers)
        return motion_steps(own[::-1] * (size / side))

    def intra_fraction(self) -> float:
        corner = np.array([self._square.x, self._square.y])
        place = compose(self.now(), np.column_stack([np.eye(2), corner]))
        return float(self._appearance[self._blocks(place, self._square.side, 64)].mean())

    def _blocks(self, place: Place, side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows and columns of the blocks below `count` × `count` points of a square."""
        points = (np.mgrid[:count, :count][::-1] + 0.5) * side / count - 0.5
        x, y = _applied(compose(self._upright, place), points)
        rows, columns = self._appearance.shape
        return (
            np.clip(y // BLOCK, 0, rows - 1).astype(int),
            np.clip(x // BLOCK, 0, columns - 1).astype(int),
        )


def _applied(place: Place, points: np.ndarray) -> np.ndarray:
    """An affine map of points, (2, …) → (2, …)."""
    moved: np.ndarray = place[:, :2] @ points.reshape(2, -1) + place[:, 2:]
    return moved.reshape(points.shape)


def _agreed(here: np.ndarray, there: np.ndarray) -> Place | None:
    """The similarity that most of these pairs of points, (N, 2), agree on; None: too few do."""
    if len(here) < LEAST_BLOCKS:
        return None
    place, agree = cv2.estimateAffinePartial2D(
        here,
        there,
        method=cv2.RANSAC,
        ransacReprojThreshold=AGREES,
        maxIters=MOST_TRIES,
    )
    if place is None or agree.sum() < max(LEAST_BLOCKS, AGREED * len(here)):
        return None
    found: Place = place
    return found


class _Energy:
    """The energy of direct residuals around a head, summed up where the head is at the time.

    It is summed up for a wider square, at the resolution of the planes, and each varied square is
    cut out of the sum: to cut all of them out of each residual would take several times as long.
    """

    def __init__(self, square: Square, size: int) -> None:
        self._planes = size // 2
        self._across = round(WIDER * self._planes)
        side = WIDER * square.side
        self._samples = side / self._across  # of luma, along a side of a sample of the sum
        corner = np.array([square.x, square.y]) - (side - square.side) / 2
        place = np.column_stack([np.eye(2), corner])
        self._place = compose(place, _resized(self._samples))  # from the sum to the picture
        self._sum = np.zeros((3, self._across, self._across), np.float32)
        self._count = 0

    def add(self, residual: Residual, moved: Place, upright: Place) -> None:
        """Of one frame, in which the head has `moved` so since the beginning."""
        place = compose(upright, compose(moved, self._place))
        for number, (plane, subsampled) in enumerate(
            ((residual.y, 1), (residual.u, 2), (residual.v, 2))
        ):
            of_plane = compose(_resized(1 / subsampled), place)
            step = max(int(self._samples / subsampled), 1)
            self._sum[number] += _energy(plane, of_plane, self._across, step)
        self._count += 1

    def planes(self, varied: Place, side: int) -> np.ndarray:
        """uint8 (3, S/2, S/2) of a square of `side` pixels.

        Args:
            varied: from its pixels to those of the picture in the beginning.
        """
        to_picture = compose(varied, _resized(side / self._planes))
        to_sum = compose(cv2.invertAffineTransform(self._place), to_picture)
        cut = [
            cv2.warpAffine(
                plane, to_sum, (self._planes,) * 2, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            )
            for plane in self._sum
        ]
        return energy_steps(np.stack(cut) / max(self._count, 1))


def _resized(scale: float) -> Place:
    """From samples of a picture to those of one that has `scale` times as many along a side."""
    return np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])


def _energy(plane: np.ndarray, place: Place, count: int, step: int) -> np.ndarray:
    """The absolute value of a residual's plane at count × count points, float32; zero outside of
    the plane.

    Args:
        place: from the points to samples of the plane.
        step: the plane is brought down to means of step × step samples first, without a rest at
            its right and lower end. They are nearly as few as the points then, which takes a
            quarter of the time that it takes to turn a square of all samples and bring that down.
    """

    def reach(row: np.ndarray, length: int) -> tuple[int, int]:
        """From which sample on the points lie, and to which, along a side of the plane; in plain
        numbers, since NumPy takes longer for a few."""
        right, down, at = row.tolist()
        first = at - (right + down) / 2 + count * (min(right, 0) + min(down, 0))
        end = first + count * (abs(right) + abs(down))
        cells = length // step
        return (
            min(max(int(first // step) - 1, 0), cells) * step,
            min(max(int(end // step) + 3, 0), cells) * step,
        )

    left, right = reach(place[0], plane.shape[1])
    top, bottom = reach(place[1], plane.shape[0])
    if left >= right or top >= bottom:
        return np.zeros((count, count), np.float32)
    part = plane[top:bottom, left:right]
    small = cv2.resize(
        cv2.absdiff(part, np.full_like(part, GRAY)).astype(np.float32),
        ((right - left) // step, (bottom - top) // step),
        interpolation=cv2.INTER_AREA,
    )
    return cv2.warpAffine(
        small,
        compose(_resized(1 / step), place - [[0, 0, left], [0, 0, top]]),
        (count, count),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
    )
