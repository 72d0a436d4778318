"""The recognizer's input from a video as it is: its own residuals and vectors, of one face.

Nothing is encoded anew, and of the P-frames no picture is made. What is seen of a window is one
*run* or a few: from an I- or P-frame, the first, to a later P-frame, the last. Of the last one the
residual is accumulated and the vectors are traced back, both to the first
(`Bitstream.residuals_since`), as `cfer.data.inputs` has them of a GOP that was encoded for it.

A head moves by more than any expression does. What most vectors in the upper part of the face agree
on, a shift, turn and scale (RANSAC), is taken for its own movement: the residual is cut out where
the head is then, and the vectors are those of the face alone, less the head's.

    video = NativeVideo(Path("phone.mp4"), FaceDetector())
    window = video.read(0.5, 1.5, size=112)
    window.planes       # uint8 (1, T, 8, 56, 56): luma's four phases, U, V; motion, down and right

The face is looked for in the I-frames, and in a long GOP every `LOOK_SECONDS`; in between its
square follows the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from cfer.codec import GRAY, Bitstream, CodecError, Residual
from cfer.data.inputs import BLOCK, block_motion, motion_steps, to_planes
from cfer.video.faces import NEAR, FaceDetector, Square
from cfer.video.follow import NOWHERE, Place, compose
from cfer.video.pictures import VideoPictures
from cfer.video.variation import AS_FOUND, Variation

# Of the square: from above the brows to the tip of the nose, where no expression moves much.
UPPER_FACE = ((0.2, 0.8), (0.15, 0.66))
LEAST_BLOCKS = 10  # with a vector, of those in the upper face
AGREED = 0.3  # the share of them that has to go along with the whole
AGREES = 1.0  # pixels between a vector and the head's movement
LOOK_SECONDS = 2.0  # until a face is looked for again in the same GOP
MOST_BYTES = 512 << 20  # of a file: it is held in memory
MOST_INTRA = 0.5  # of the face; docs/residuals.md has what it costs below, and few clips above
RUN_SECONDS = 1.0  # a longer window is seen in several runs
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
        planes: of each variation of the square, uint8 (V, 8, S/2, S/2), 128 = zero: luma at (even
            row, even column), (even, odd), (odd, even), (odd, odd), U, V; the face's own motion,
            down and right, in `cfer.data.inputs.STEPS_PER_PIXEL` steps a pixel of the crop.
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
    times = bitstream.times
    pieces: list[tuple[float, list[Run]]] = []
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
        found = [Run(stops[a], stops[b]) for a, b in pairwise(near) if a < b]
        pieces.append((end - start, found))
    longest = max((seconds for seconds, _ in pieces), default=0.0)
    return [run for seconds, found in pieces if seconds >= SHORT * longest for run in found]


def follow(
    bitstream: Bitstream, frames: Sequence[int], square: Square, upright: Place = NOWHERE
) -> dict[int, Square]:
    """The square around a head in some frames of a GOP, by the vectors of P-frames alone.

    Args:
        frames: an I- or P-frame, and the P-frames after it, each predicted from the one before.
        square: in the first of them, in pixels of the picture as it is shown.
        upright: from these pixels to samples of the bitstream
            (`cfer.video.pictures.VideoPictures.coded_place`).

    Raises:
        CodecError: a damaged frame.
    """
    trace = _Trace(bitstream, square, upright)
    squares = {frames[0]: square}
    for number in frames[1:]:
        trace.add(bitstream.direct_residual(number))
        squares[number] = trace.square_now()
    return squares


def read_native(
    bitstream: Bitstream,
    run: Run,
    square: Square,
    size: int,
    variations: Sequence[Variation] = (AS_FOUND,),
    upright: Place = NOWHERE,
) -> NativeFace:
    """The input that a recognizer has of one face in one run.

    Args:
        square: in the run's first frame.
        size: side S of the crop in pixels, even.
        variations: of the square; the stream is read once for all.
        upright: see `follow`.

    Raises:
        CodecError: a damaged frame, or a stream whose residuals can't be accumulated exactly.
    """
    trace = _Trace(bitstream, square, upright)
    stops = [*_stops(bitstream, range(run.first, run.last)), run.last]
    for residual in bitstream.residuals_since(run.first, skip_b=True):
        if residual.frame in stops:
            trace.add(residual)
        if residual.frame == run.last:
            break
    moved = trace.now()
    planes = []
    corner = np.array([square.x, square.y])
    for variation in variations:
        varied, side = variation.square(corner, square.side)
        place = compose(moved, varied)
        planes.append(
            np.concatenate(
                [
                    _samples(residual, compose(upright, place), side, size),
                    trace.motion_planes(place, side, size),
                ]
            )
        )
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


class NativeVideo:
    """A video in H.264 that is read as it is, window by window.

    Args:
        path: the file; it is held in memory.
        detector: finds the face.

    Attributes:
        bitstream: the video's.

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
        self.bitstream = Bitstream.open(path, ["h264"])
        self._upright, self._shape = VideoPictures(path, None).coded_place()
        self._detector = detector
        self._squares: dict[int, dict[int, Square]] = {}  # by GOP and frame

    def read(
        self,
        start_seconds: float,
        end_seconds: float,
        size: int,
        variations: Sequence[Variation] = (AS_FOUND,),
    ) -> NativeWindow:
        """What a window of time shows of one face: the largest, and of equal ones the most central.

        Args:
            start_seconds, end_seconds: since the first picture, as `Bitstream.times`.
            size: side S of the crop in pixels, even.
            variations: of the square.

        Raises:
            CodecError: no P-frame or no face there, more intra blocks in the face than
                `MOST_INTRA`, or damage; the message says which.
        """
        name, faces = self.bitstream.name, []
        found = runs(self.bitstream, start_seconds, end_seconds)
        if not found:
            raise CodecError(f"{name}: no P-frame from {start_seconds:g} s to {end_seconds:g} s")
        for run in found:
            square = self._square(run.first)
            faces.append(read_native(self.bitstream, run, square, size, variations, self._upright))
        intra = max(face.intra_fraction for face in faces)
        if intra > MOST_INTRA:
            raise CodecError(
                f"{name}: from {start_seconds:g} s to {end_seconds:g} s {intra:.0%} of the face "
                f"comes from intra blocks, above {MOST_INTRA:.0%}"
            )
        planes = np.stack([face.planes for face in faces], axis=1)
        packets = [
            len(self.bitstream.packets[n])
            for run in found
            for n in range(run.first + 1, run.last + 1)
            if self.bitstream.is_reference(n) or self.bitstream.frame_types[n] != "B"
        ]
        return NativeWindow(planes, self._square(found[0].first), intra, sum(packets))

    def _square(self, frame: int) -> Square:
        gop = next(n for n, frames in enumerate(self.bitstream.gops) if frame in frames)
        if gop not in self._squares:
            self._squares[gop] = self._followed(gop)
        return self._squares[gop][frame]

    def _followed(self, gop: int) -> dict[int, Square]:
        """The squares of a GOP's I- and P-frames."""
        bitstream, times = self.bitstream, self.bitstream.times
        stops = _stops(bitstream, bitstream.gops[gop])
        found = self._detector.find([self._seen(bitstream.i_frame(gop))])
        if not found:
            raise CodecError(f"{bitstream.name}: no face in the I-frame at {times[stops[0]]:.2f} s")
        square = found[0]
        squares: dict[int, Square] = {}
        # Nothing is decoded before the first of them is asked for.
        since, pictures = 0, bitstream.gop_pictures_without_b(gop)
        for place, number in enumerate(stops):
            is_last = place == len(stops) - 1
            if not is_last and times[number] - times[stops[since]] < LOOK_SECONDS:
                continue
            squares |= follow(bitstream, stops[since : place + 1], square, self._upright)
            since, square = place, squares[number]
            if not is_last:
                picture = next(picture for n, picture in pictures if n == number)
                square = _nearest(self._detector.find([self._seen(_rgb(*picture))]), square)
        return squares

    def _seen(self, picture: np.ndarray) -> np.ndarray:
        """A picture as it is shown: upright, with square pixels."""
        if np.array_equal(self._upright, NOWHERE):
            return picture
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        shown: np.ndarray = cv2.warpAffine(
            picture, self._upright, self._shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        return shown


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
        rows, columns = -(-bitstream.height // BLOCK), -(-bitstream.width // BLOCK)
        self._square, self._upright = square, upright
        self._to_upright = cv2.invertAffineTransform(upright)
        centers = np.mgrid[:rows, :columns][::-1] * BLOCK + BLOCK / 2
        self._centers = _applied(self._to_upright, centers)  # (2, rows, columns): x, y
        self._traced = np.zeros((2, rows, columns), np.float32)
        self._appearance = np.zeros((rows, columns), bool)
        self._back = NOWHERE  # the head's movement, from now to the beginning

    def add(self, residual: Residual) -> None:
        """The next P-frame. Its vectors are taken to point into the one before: of a P-frame with
        several references FFmpeg doesn't say which, and it's seldom another."""
        rows, columns = self._appearance.shape
        down, right = block_motion(residual.motion_vectors, rows, columns)
        intra = residual.intra.repeat(2, 0).repeat(2, 1)[:rows, :columns]
        row, column = np.mgrid[:rows, :columns]
        source = (
            np.clip(row + np.floor(0.5 + down / BLOCK), 0, rows - 1).astype(int),
            np.clip(column + np.floor(0.5 + right / BLOCK), 0, columns - 1).astype(int),
        )
        turned = np.einsum("ij,jrc->irc", self._to_upright[:, :2], np.stack([right, down]))
        self._traced = (turned + self._traced[:, source[0], source[1]]).astype(np.float32)
        self._appearance = intra | self._appearance[source]
        origins = self._centers + self._traced
        u, v = ((origins[0] - self._square.x), (origins[1] - self._square.y))
        (left, to_right), (top, bottom) = np.array(UPPER_FACE) * self._square.side
        seen = (u > left) & (u < to_right) & (v > top) & (v < bottom) & ~intra
        agreed = _agreed(self._centers[:, seen].T, origins[:, seen].T)
        self._back = self._back if agreed is None else agreed
        # An intra block has no vector: it goes with the head.
        self._traced[:, intra] = self._of_head()[:, intra]

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
        own = (self._traced - self._of_head())[::-1] * (size / side)
        rows, columns = self._blocks(place, side, size // 2)
        return motion_steps(own[:, rows, columns])

    def intra_fraction(self) -> float:
        corner = np.array([self._square.x, self._square.y])
        place = compose(self.now(), np.column_stack([np.eye(2), corner]))
        return float(self._appearance[self._blocks(place, self._square.side, 64)].mean())

    def _of_head(self) -> np.ndarray:
        return _applied(self._back, self._centers) - self._centers

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
    moved: np.ndarray = np.einsum("ij,j...->i...", place[:, :2], points)
    return moved + place[:, 2].reshape(2, *[1] * (points.ndim - 1))


def _agreed(here: np.ndarray, there: np.ndarray) -> Place | None:
    """The similarity that most of these pairs of points, (N, 2), agree on; None: too few do."""
    if len(here) < LEAST_BLOCKS:
        return None
    place, agree = cv2.estimateAffinePartial2D(
        here.astype(np.float32),
        there.astype(np.float32),
        method=cv2.RANSAC,
        ransacReprojThreshold=AGREES,
    )
    if place is None or agree.sum() < max(LEAST_BLOCKS, AGREED * len(here)):
        return None
    found: Place = place
    return found


def _samples(residual: Residual, place: Place, side: int, size: int) -> np.ndarray:
    """A square of a residual as the first six of `NativeFace.planes`; outside of the picture there
    is no change.

    Args:
        place: from pixels of the square, which has `side` of them, to samples of luma.
    """
    half = max(round(side / 2), 2)
    chroma = place / 2
    chroma[:, :2] *= side / half
    cuts: Iterable[tuple[np.ndarray, Place, int, int]] = (
        (residual.y, place, side, size),
        (residual.u, chroma, half, size // 2),
        (residual.v, chroma, half, size // 2),
    )
    y, u, v = (_cut(*cut) for cut in cuts)
    return to_planes(np.concatenate([y, np.stack([u, v]).reshape(size // 2, size)]))


def _cut(plane: np.ndarray, place: Place, side: int, size: int) -> np.ndarray:
    part = cv2.warpAffine(
        plane,
        place,
        (side, side),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=GRAY,
    )
    # Shrink by averaging: a residual alternates in sign, and anything else would pick at random.
    method = cv2.INTER_AREA if side >= size else cv2.INTER_LINEAR
    shrunk: np.ndarray = cv2.resize(part, (size, size), interpolation=method)
    return shrunk
