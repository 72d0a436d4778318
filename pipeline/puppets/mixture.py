"""People who do not exist: two photographs mixed, shape and skin, for more identities in training.

A mixture has the mean landmarks of two people, weighted, and inside the outline of the face the
mean of what both look like there. Hair, neck, cloth and the tone of the skin are the first
person's: two heads of hair on top of one another would look like none.

Both photographs are bent to the common landmarks by a thin-plate spline (Bookstein, PAMI 1989).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import RBFInterpolator

from cfer.errors import InputError
from pipeline.puppets.photos import EXTENT, LEFT, OUTLINE, TEXTURE, TOP, Face, Photograph
from pipeline.puppets.smile import is_held_out, moved, places

LEAST_SHARE, MOST_SHARE = 0.35, 0.65  # of the second person in the shape and in the face
BENT = 48  # points to a side of the grid on which the bending is computed
SMOOTHING = 1e-3  # landmarks that are a little off don't make a wave of it
INSIDE, EDGE = 0.16, 0.1  # units: how far inside the outline the second person ends, how softly


@dataclass(frozen=True)
class Mixture:
    """Two people in one.

    Attributes:
        person: its name.
        first: whose hair, neck, cloth and tone of skin it has.
        second: the other one.
        share: of the second one, in [0, 1].
    """

    person: str
    first: Photograph
    second: Photograph
    share: float

    def face(self) -> Face:
        """Raises InputError: a photograph or its landmarks aren't right."""
        first, second = Face.read(self.first), Face.read(self.second)
        points = (1 - self.share) * first.points + self.share * second.points
        bending = _bending(first.points, points)
        texture = _bent(first.texture, bending)
        other = _bent(second.texture, _bending(second.points, points))
        inside = _inside(points, len(texture))
        mixed = self.share * inside[..., None]
        toned = _toned(other, texture, inside)
        texture = ((1 - mixed) * texture + mixed * toned).clip(0, 255).astype(np.uint8)
        matte = _bent(first.matte, bending)
        return Face(self.person, points, texture, matte, first.reach)


def mixtures_of(photographs: Sequence[Photograph], count: int) -> list[Mixture]:
    """So many people who don't exist, the same ones whatever `count` is; each of two photographs.

    Nobody is in one whom the model that ships holds out (`is_held_out`): it would have learned from
    their faces. With another split, a mixture belongs where both its people are.

    Raises:
        InputError: there are not so many pairs.
    """
    used = [photo for number, photo in enumerate(photographs) if not is_held_out(number)]
    most = len(used) * (len(used) - 1)
    if count > most:
        raise InputError(
            f"{count} mixtures: of {len(photographs)} people, without those whom the model that "
            f"ships holds out, there are {most} pairs; give at most that, or more photographs"
        )
    generator = np.random.default_rng(0)
    found: dict[str, Mixture] = {}
    while len(found) < count:
        first, second = (used[n] for n in generator.choice(len(used), 2, replace=False))
        share = float(generator.uniform(LEAST_SHARE, MOST_SHARE))
        name = f"{first.person}+{second.person}"
        found.setdefault(name, Mixture(name, first, second, share))
    return list(found.values())


def _bending(own: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where each place of a face whose landmarks are to be `points` lies in one whose landmarks are
    `own`: how far from here, (BENT, BENT, 2) in units."""
    grid = np.stack(places(BENT, (LEFT, TOP), EXTENT), axis=-1)
    # Far from the face nothing moves.
    rim = np.array([(x, y) for x in (LEFT, 0, LEFT + EXTENT) for y in (TOP, TOP + EXTENT)])
    known = np.vstack([points, rim])
    away = np.vstack([own - points, np.zeros_like(rim)])
    bending = RBFInterpolator(known, away, smoothing=SMOOTHING)
    return bending(grid.reshape(-1, 2)).reshape(BENT, BENT, 2).astype(np.float32)


def _bent(view: np.ndarray, bending: np.ndarray) -> np.ndarray:
    """A square view of the face frame, bent so."""
    side = len(view)
    field = cv2.resize(bending, (side, side), interpolation=cv2.INTER_CUBIC) * (side / EXTENT)
    return moved(view, field)


def _inside(points: np.ndarray, side: int) -> np.ndarray:
    """1 well inside the outline of the face, 0 outside of it: float32 (side, side)."""
    outline = np.round((points[list(OUTLINE)] - (LEFT, TOP)) * TEXTURE).astype(np.int32)
    mask = cv2.fillPoly(np.zeros((side, side), np.uint8), [outline], 1)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5) / TEXTURE
    return np.clip((depth - INSIDE) / EDGE + 0.5, 0, 1).astype(np.float32)


def _toned(picture: np.ndarray, like: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """A face in the tone of another: mean and spread of each channel of CIE Lab (Reinhard et al.,
    Color Transfer between Images, 2001). float32, RGB in [0, 255]."""
    labs = [cv2.cvtColor(p.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for p in (picture, like)]
    (mean, spread), (wanted, wanted_spread) = (
        cv2.meanStdDev(lab, mask=(inside > 0.5).astype(np.uint8)) for lab in labs
    )
    gain = np.clip(wanted_spread / np.maximum(spread, 1e-3), 0.6, 1.6)
    lab = (labs[0] - mean.T) * gain.T + wanted.T
    toned: np.ndarray = cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_LAB2RGB) * 255
    return toned
