"""A crop that goes along with the head, so that what is left of the motion is the face's own.

A head that leans, nods or is filmed by hand moves by more than any expression does; a square that
stood still would leave it half outside, and fill the residuals with its motion. So, in each GOP,
the square of the I-frame is moved, turned and scaled as the head is:

1. The eyes and the tip of the nose, which no expression moves far, say roughly how. Between two
   frames that the detector looked at, they go in a straight line.
2. Corners in the upper part of the face are tracked by optical flow (Shi and Tomasi, CVPR 1994;
   Bouguet 2000), forwards and backwards, and the movement that most of them agree on (RANSAC) says
   it to a fraction of a pixel. Brows and lids that move on their own are outvoted.
3. Less than `STILL` is nothing: a head that rests has a square that rests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cfer.video.variation import Place, Variation

VIEW = 128  # pixels along one side of the pictures in which corners are tracked
STILL = 0.005  # of the square's side
# Of the square: from above the brows to the tip of the nose, without hair and ears.
TRACKED = (slice(int(0.15 * VIEW), int(0.66 * VIEW)), slice(int(0.2 * VIEW), int(0.8 * VIEW)))
MOST_CORNERS, LEAST_CORNERS = 60, 10
AGREED = 0.35  # the share of the corners that have to go along with the whole
FARTHEST = VIEW / 16  # that corners may have moved from where they were guessed
FLOW_WINDOW, FLOW_LEVELS = (21, 21), 3
NOWHERE = np.eye(2, 3)  # the movement that is none


@dataclass(frozen=True)
class Track:
    """Where one head is in the frames that were looked at.

    Attributes:
        frames: their numbers, ascending.
        centers: of its boxes, float64 (frames, 2), pixels.
        points: eyes and nose, float64 (frames, 3, 2), pixels.
        side: of the square around it, pixels.
    """

    frames: Sequence[int]
    centers: np.ndarray
    points: np.ndarray
    side: float

    def center(self, frame: int) -> np.ndarray:
        return _between(frame, self.frames, self.centers)

    def moved(self, first: int, frame: int) -> Place:
        """Roughly how the head has moved from one frame to another."""
        here, there = (_between(n, self.frames, self.points) for n in (first, frame))
        return similarity(here, there)


class Follower:
    """Cuts one head out of the frames of a GOP, in a square that goes along with it.

    Args:
        size: side of the crops, pixels.
        variations: of the square; each crop is made once for each of them.
    """

    def __init__(self, track: Track, size: int, variations: Sequence[Variation]) -> None:
        self._track, self._size, self._variations = track, size, variations
        self._side = max(round(track.side), 2)

    def i_frame(self, picture: np.ndarray, frame: int) -> list[np.ndarray]:
        """The crops of a GOP's first frame, RGB, uint8 (size, size, 3), by variation.

        Args:
            picture: RGB, uint8 (H, W, 3).
            frame: its number.
        """
        self._first = frame
        self._corner = np.round(self._track.center(frame) - self._track.side / 2)
        self._seen = self._view(picture, NOWHERE)
        mask = np.zeros((VIEW, VIEW), np.uint8)
        mask[TRACKED] = 255
        self._corners = cv2.goodFeaturesToTrack(self._seen, MOST_CORNERS, 0.01, 5, mask=mask)
        return self._crops(picture, NOWHERE)

    def p_frame(self, picture: np.ndarray, frame: int) -> list[np.ndarray]:
        """As `i_frame`, of a later frame of the same GOP."""
        return self._crops(picture, self._moved(picture, frame))

    def _moved(self, picture: np.ndarray, frame: int) -> Place:
        """From where something of the head was in the I-frame to where it is."""
        roughly = self._track.moved(self._first, frame)
        tries = (self._refined(picture, guess) for guess in (NOWHERE, roughly))
        moved = next((place for place in tries if place is not None), roughly)
        face = self._corner + self._side * np.array([[0.2, 0.2], [0.8, 0.2], [0.5, 0.8]])
        distance = np.abs(face @ moved[:, :2].T + moved[:, 2] - face).max()
        return moved if distance >= STILL * self._side else NOWHERE

    def _refined(self, picture: np.ndarray, guess: Place) -> Place | None:
        """The movement that most corners agree on; None: too few, or it is far from the guess."""
        if self._corners is None or len(self._corners) < LEAST_CORNERS:
            return None
        now, corners = self._view(picture, guess), self._corners
        there, found = _flow(self._seen, now, corners)
        back, returned = _flow(now, self._seen, there)
        sure = (found & returned)[:, 0] > 0
        sure &= np.linalg.norm((back - corners)[:, 0], axis=1) < 1
        if sure.sum() < LEAST_CORNERS:
            return None
        in_view, agree = cv2.estimateAffinePartial2D(
            corners[sure], there[sure], method=cv2.RANSAC, ransacReprojThreshold=1.2
        )
        if in_view is None or agree.sum() < max(AGREED * sure.sum(), LEAST_CORNERS - 2):
            return None
        if np.abs(in_view[:, 2]).max() > FARTHEST:
            return None
        to_picture = np.column_stack([np.eye(2) * self._side / VIEW, self._corner])
        in_picture = compose(to_picture, compose(in_view, cv2.invertAffineTransform(to_picture)))
        return compose(guess, in_picture)

    def _view(self, picture: np.ndarray, moved: Place) -> np.ndarray:
        square = np.column_stack([np.eye(2), self._corner])
        view = warped(picture, compose(moved, square), self._side, VIEW)
        gray: np.ndarray = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)
        return gray

    def _crops(self, picture: np.ndarray, moved: Place) -> list[np.ndarray]:
        crops = []
        for variation in self._variations:
            square, side = variation.square(self._corner, self._side)
            crops.append(warped(picture, compose(moved, square), side, self._size))
        return crops


def _flow(before: np.ndarray, after: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        before, after, at, at.copy(), winSize=FLOW_WINDOW, maxLevel=FLOW_LEVELS
    )
    return np.asarray(there), np.asarray(found)


def warped(picture: np.ndarray, place: Place, side: int, size: int) -> np.ndarray:
    """A square of a picture, scaled to `size`: RGB, uint8 (H, W, 3) → uint8 (size, size, 3).

    Where it leaves the picture, the picture's edge is repeated.

    Args:
        place: from pixels of the square, which has `side` of them, to those of the picture.
    """
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    part = cv2.warpAffine(
        picture, place, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    # Shrink by averaging: anything else would turn fine texture into flicker.
    method = cv2.INTER_AREA if side >= size else cv2.INTER_LINEAR
    shrunk: np.ndarray = cv2.resize(part, (size, size), interpolation=method)
    return shrunk


def similarity(here: np.ndarray, there: np.ndarray) -> Place:
    """The shift, turn and scale that bring some points, (N, 2), closest to others (Umeyama, PAMI
    1991; in the plane, a product of complex numbers)."""
    a, b = (points[:, 0] + 1j * points[:, 1] for points in (here, there))
    spread = a - a.mean()
    factor = (spread.conj() * (b - b.mean())).sum() / (np.abs(spread) ** 2).sum()
    shift = b.mean() - factor * a.mean()
    x, y = factor.real, factor.imag
    return np.array([[x, -y, shift.real], [y, x, shift.imag]])


def compose(after: Place, before: Place) -> Place:
    """Of two affine maps (2, 3), the one that is `before` and then `after`."""
    both: Place = after[:, :2] @ before
    both[:, 2] += after[:, 2]
    return both


def _between(frame: int, frames: Sequence[int], values: np.ndarray) -> np.ndarray:
    """What is known of some frames, (frames, …), at another one: in a straight line between two."""
    flat = values.reshape(len(frames), -1)
    between = [np.interp(frame, frames, column) for column in flat.T]
    return np.reshape(between, values.shape[1:])
