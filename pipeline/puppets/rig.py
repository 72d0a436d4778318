"""What moves in a face: facial action units and the head as fields of displacement over the face.

Every action unit (FACS, Ekman, Friesen and Hager 2002; of paired ones left and right apart) and
every turn of the head is a field on a coarse grid: where a point of the neutral face goes, in
units of the face frame, at strength 1. What a face does at one moment is the weighted sum. The lips
are a seam: above it one sum holds, below it another, and where they part is the mouth.

What changes in brightness goes along: folds, and light from the side. Strengths add up, and a face
that did everything at once would fold over itself: `acting` keeps each below 1.3.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.puppets.photos import CHIN, EXTENT, LEFT, MATTE, MOUTH_CORNERS, TOP, Face
from pipeline.puppets.smile import (
    MEAN_HALF,
    MEAN_MOUTH,
    MEASURED_CORNER,
    MEASURED_SIDE,
    SMILE,
    OwnSmile,
)

GRID = 80  # points to a side of the fields
SHADE = MATTE  # pixels to the unit of the maps of brightness
# Action units of one side each, named 12L, 12R (the picture's left and right), and of both.
PAIRED = ("1", "2", "4", "6", "9", "10", "12", "14", "15", "18", "20")
SINGLE = ("16", "17", "24", "25", "26")
OWN = "own smile"  # from a photograph, where there is one
JAW_DROP = 0.62  # units, at strength 1
UPPER_INNER_LIP = (87, 94, 95, 96, 97, 98, 93)
LOWER_INNER_LIP = (87, 99, 100, 101, 102, 103, 93)
UPPER_LIDS = ((18, 19, 20, 21, 22), (23, 24, 25, 26, 27))
LOWER_LIDS = ((18, 28, 29, 30, 22), (23, 31, 32, 33, 27))


@dataclass(frozen=True)
class _Side:
    """Landmarks of one side; `sign` is -1 on the picture's left."""

    name: str
    sign: int
    inner_brow: np.ndarray
    brow: np.ndarray
    outer_brow: np.ndarray
    corner: np.ndarray
    cheek: np.ndarray
    wing: np.ndarray
    upper_lip: np.ndarray
    outer_eye: np.ndarray
    lower_lid: np.ndarray
    fold: np.ndarray


@dataclass(frozen=True)
class Rig:
    """A face that can be moved.

    Attributes:
        face: whose.
        names: of the fields, in the order of both arrays.
        upper, lower: float32 (fields, GRID * GRID * 2): displacement above and below the lips.
        shade_names, shades: maps of brightness, float32 (maps, side * side), `SHADE` pixels to the
            unit; a sum of them is a change of the logarithm of brightness.
        lip_line: y of the closed lips at 43 x, float64 (2, 43).
        lids: of each eye, its corner to corner upper and lower lid, float64 (5, 2) each.
        own_smile: if there is a photograph of it; the field "own smile" goes with it.
    """

    face: Face
    names: tuple[str, ...]
    upper: np.ndarray
    lower: np.ndarray
    shade_names: tuple[str, ...]
    shades: np.ndarray
    lip_line: np.ndarray
    lids: tuple[tuple[np.ndarray, np.ndarray], ...]
    own_smile: OwnSmile | None = None

    @classmethod
    def of(cls, face: Face, own_smile: OwnSmile | None = None) -> Rig:
        """A rig for a face; the same for the same face."""
        builder = _Builder(face)
        builder.brows_and_cheeks()
        builder.mouth()
        builder.head()
        builder.folds()
        if own_smile is not None:
            size = (GRID, GRID)
            builder.add(OWN, cv2.resize(own_smile.field, size, interpolation=cv2.INTER_AREA))
        points = face.points
        lids = []
        for upper, lower in zip(UPPER_LIDS, LOWER_LIDS, strict=True):
            pair = points[list(upper)], points[list(lower)]
            lids.append(tuple(lid[np.argsort(lid[:, 0])] for lid in pair))
        return cls(
            face,
            tuple(builder.fields),
            np.stack([upper.ravel() for upper, _ in builder.fields.values()]).astype(np.float32),
            np.stack([lower.ravel() for _, lower in builder.fields.values()]).astype(np.float32),
            tuple(builder.shades),
            np.stack([shade.ravel() for shade in builder.shades.values()]).astype(np.float32),
            builder.lip_line,
            tuple(lids),  # type: ignore[arg-type]
            own_smile,
        )


def generator_of(*words: str) -> np.random.Generator:
    """Randomness that belongs to these words: the same on every machine."""
    return np.random.default_rng([zlib.crc32(word.encode()) for word in words])


class _Builder:
    """Makes a rig's fields and shades, one after the other."""

    def __init__(self, face: Face) -> None:
        self.p = p = face.points
        self.fields: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.shades: dict[str, np.ndarray] = {}
        self.generator = generator_of(face.name, "folds")
        with np.load(SMILE) as measured:
            self.smile_field, self.smile_shade = measured["field"], measured["shade"]
        steps = (np.arange(GRID) + 0.5) / GRID * EXTENT
        self.x, self.y = np.meshgrid(LEFT + steps, TOP + steps)
        left, right = p[MOUTH_CORNERS[0]], p[MOUTH_CORNERS[1]]
        self.mouth_x = (left[0] + right[0]) / 2
        self.half = (right[0] - left[0]) / 2
        line = np.linspace(left[0], right[0], 41)
        upper, lower = p[list(UPPER_INNER_LIP)], p[list(LOWER_INNER_LIP)]
        between = np.interp(line, *upper.T) + np.interp(line, *lower.T)
        self.lip_line = np.array([[-9, *line, 9], [left[1], *(between / 2), right[1]]])
        self.mouth_y = float(np.interp(self.mouth_x, *self.lip_line))
        self.below = self.y - np.interp(self.x, *self.lip_line)
        # How far a lip goes when the mouth opens: most in the middle, nothing at the corners.
        self.opening = np.clip(1 - ((self.x - self.mouth_x) / self.half) ** 2, 0, 1)
        self.sides = [
            _Side(
                "L", -1, (p[75] + p[76]) / 2, p[74], p[72], left, (p[165] + p[166]) / 2, p[158],
                p[95], p[18], p[[28, 29, 30]].mean(axis=0), p[[158, 159, 160]],
            ),
            _Side(
                "R", 1, (p[77] + p[78]) / 2, p[79], p[81], right, (p[168] + p[169]) / 2, p[161],
                p[97], p[27], p[[31, 32, 33]].mean(axis=0), p[[161, 162, 163]],
            ),
        ]  # fmt: skip

    def bump(
        self,
        at: np.ndarray | tuple[float, float],
        wide: float,
        up: float,
        down: float | None = None,
    ) -> np.ndarray:
        """A hill of height 1 with standard deviations to the sides, up and down."""
        return _hill(self.x, self.y, at, wide, up, up if down is None else down)

    def add(
        self, name: str, *both: np.ndarray, upper: np.ndarray | None = None,
        lower: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        nothing = np.zeros((GRID, GRID, 2))
        common = sum(both, nothing)
        self.fields[name] = (
            common + (nothing if upper is None else upper),
            common + (nothing if lower is None else lower),
        )

    def brows_and_cheeks(self) -> None:
        for s in self.sides:
            out = s.sign
            self.add(
                "1" + s.name,
                _move(self.bump(s.inner_brow, 0.18, 0.45, 0.13), 0, -0.11),
                _move(self.bump(s.brow, 0.15, 0.32, 0.13), 0, -0.02),
            )
            self.add(
                "2" + s.name,
                _move(self.bump(s.outer_brow, 0.22, 0.42, 0.14), 0.01 * out, -0.10),
                _move(self.bump(s.brow, 0.16, 0.32, 0.13), 0, -0.04),
            )
            self.add(
                "4" + s.name,
                _move(self.bump(s.inner_brow, 0.20, 0.28, 0.12), -0.06 * out, 0.085),
                _move(self.bump(s.brow, 0.22, 0.26, 0.10), -0.02 * out, 0.05),
            )
            self.add(
                "6" + s.name,
                _move(self.bump(s.cheek, 0.30, 0.24, 0.28), 0.015 * out, -0.075),
                _move(self.bump(s.outer_eye + (0.1 * out, 0), 0.14, 0.12), -0.02 * out, 0.01),
            )
            self.add(
                "9" + s.name,
                _move(self.bump(s.wing, 0.15, 0.22, 0.12), 0.01 * out, -0.075),
                _move(self.bump(s.inner_brow, 0.20, 0.25, 0.12), -0.01 * out, 0.05),
            )

    def mouth(self) -> None:
        x, below = self.x, self.below
        middle = (self.mouth_x, self.mouth_y)
        chin = self.p[CHIN]
        whole_smile = self.laid_over(self.smile_field, x, self.y)
        for s in self.sides:
            out, corner = s.sign, s.corner
            # The half of the face on this side, with a soft edge.
            half = 1 / (1 + np.exp(-out * (x - self.mouth_x) / 0.10))
            smile = whole_smile * half[..., None]
            at = np.abs(x - corner[0]) + np.abs(self.y - corner[1])
            rest = np.array([0.115 * out, -0.145]) - smile.reshape(-1, 2)[at.argmin()]
            self.add("12" + s.name, smile, self.bump(corner, 0.20, 0.20, 0.18)[..., None] * rest)
            self.add(
                "10" + s.name,
                _move(self.bump(s.wing, 0.16, 0.12, 0.16), 0, -0.05),
                upper=_move(
                    self.bump(s.upper_lip, 0.15, 0.13, 0.2) * np.clip(1.6 * self.opening, 0, 1),
                    0, -0.10,
                ),
            )  # fmt: skip
            self.add(
                "14" + s.name,
                _move(self.bump(corner, 0.13, 0.14), 0.075 * out, -0.015),
                _move(self.bump(corner + (0.17 * out, 0), 0.09, 0.13), -0.04 * out, 0),
            )
            self.add(
                "15" + s.name,
                _move(self.bump(corner, 0.16, 0.14, 0.22), 0.012 * out, 0.105),
            )
            self.add("18" + s.name, _move(self.bump(corner, 0.23, 0.17), -0.13 * out, 0))
            self.add(
                "20" + s.name,
                _move(self.bump(corner, 0.25, 0.18, 0.26), 0.14 * out, 0.04),
            )
        up = np.exp(-0.5 * (np.minimum(below, 0) / 0.12) ** 2)
        down = np.exp(-0.5 * (np.maximum(below, 0) / 0.14) ** 2)
        self.add(
            "25",
            upper=_move(self.opening * up, 0, -0.035),
            lower=_move(self.opening * down, 0, 0.065),
        )
        self.add("16", lower=_move(self.opening * down, 0, 0.10))
        # The jaw swings down: at the lips as wide as the mouth, at the chin as the jaw.
        depth = np.clip(below / max(chin[1] - self.p[106][1], 0.3), 0, 1)
        width = self.half * (1 - depth) + 0.88 * depth
        fall = np.exp(-0.5 * (np.maximum(self.y - chin[1], 0) / 0.5) ** 2)
        jaw = np.clip(1 - ((x - self.mouth_x) / width) ** 2, 0, 1) * fall
        corners = [_move(self.bump(s.corner, 0.18, 0.16), -0.05 * s.sign, 0.05) for s in self.sides]
        self.add("26", *corners, lower=_move(jaw, 0, JAW_DROP))
        self.add(
            "17",
            _move(self.bump(self.p[174], 0.26, 0.16, 0.14), 0, -0.09),
            _move(self.bump(middle, 0.22, 0.08, 0.16), 0, -0.05),
        )
        press = np.clip(1 - ((x - self.mouth_x) / (1.25 * self.half)) ** 2, 0, 1)
        press = press * below * np.exp(-0.5 * (below / 0.10) ** 2)
        inward = [_move(self.bump(s.corner, 0.15, 0.12), -0.03 * s.sign, 0) for s in self.sides]
        self.add("24", _move(press, 0, -0.75), *inward)

    def laid_over(self, values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """What was measured on the mean face, (S, S) or (S, S, 2), at places of this face."""
        size = len(values)
        lean = np.clip(y / self.mouth_y, 0, 1)
        places = (
            (x - self.mouth_x * lean) * MEAN_HALF / self.half,
            y * MEAN_MOUTH / self.mouth_y,
        )
        column, row = (
            ((place - corner) / MEASURED_SIDE * size - 0.5).astype(np.float32)
            for place, corner in zip(places, MEASURED_CORNER, strict=True)
        )
        return cv2.remap(
            values.astype(np.float32), column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
        )

    def head(self) -> None:
        x, y = self.x, self.y
        chin_y = self.p[CHIN, 1]
        # How far in front of the neck a point lies: an egg, and the nose on it.
        egg = np.exp(-0.5 * (x / 0.82) ** 2 - 0.5 * ((y - 0.4) / 1.1) ** 2)
        depth = 1.05 * egg + 0.26 * self.bump((0, 0.62), 0.16, 0.25)
        # The shoulders follow the head a little.
        along = 1 - 0.8 / (1 + np.exp(-(y - chin_y - 0.35) / 0.16))
        self.add("yaw", _move(depth, 1, 0))
        self.add("pitch", _move(depth, 0, 1))
        self.add("yaw2", np.stack([-x * along, 0 * x], axis=-1))
        self.add("pitch2", np.stack([0 * x, -(y - 0.4) * along], axis=-1))
        self.add("roll", np.stack([-(y - chin_y - 0.1), x], axis=-1) * along[..., None])
        self.add("right", _move(along, 1, 0))
        self.add("down", _move(along, 0, 1))
        self.add("nearer", np.stack([x, y - 0.6], axis=-1) * along[..., None])

    def folds(self) -> None:
        p, shades = self.p, self.shades
        side = round(EXTENT * SHADE)
        steps = (np.arange(side) + 0.5) / SHADE
        x, y = np.meshgrid(LEFT + steps, TOP + steps)

        def near(spread: float) -> np.ndarray:
            return self.generator.normal(0, spread, 2)

        smile = self.laid_over(self.smile_shade, x, y)
        for s in self.sides:
            out, fold = s.sign, s.fold + near(0.015)
            paths = [
                np.vstack([fold[0] + (0.05 * -out, -0.1), fold[1], s.corner + (0.15 * out, 0)])
            ]
            shades["cheek fold" + s.name] = _crease(paths, 0.045, 0.4)
            brow = s.inner_brow * (0.55, 1)
            shades["frown" + s.name] = _crease(
                [[brow + (0, -0.1), brow + (0, 0.08)] + near(0.02)], 0.03
            )
            shades["crow's feet" + s.name] = _crease(
                [
                    [s.outer_eye + (0.08 * out, dy), s.outer_eye + (0.24 * out, 2.2 * dy)]
                    for dy in (-0.05, 0.015, 0.075)
                ],
                0.02,
            )
            bag = s.lower_lid + near(0.01)
            shades["bag" + s.name] = _crease(
                [[bag + (-0.15, 0.08), bag + (0, 0.12), bag + (0.15, 0.08)]], 0.035
            )
            dent = s.corner + (0.11 * out, 0)
            shades["dimple" + s.name] = _crease(
                [[dent + (-0.02 * out, -0.08), dent, dent + (-0.02 * out, 0.08)]], 0.035
            )
            shades["smile" + s.name] = smile / (1 + np.exp(-out * (x - self.mouth_x) / 0.1))
        top, brow_y = p[[137, 138, 139, 140, 141], 1].mean(), p[[74, 79], 1].mean()
        across = np.linspace(-0.42, 0.42, 12)
        lines = [
            np.column_stack(
                [across, brow_y + share * (top - brow_y) + 0.02 * np.cos(4 * across + n)]
            )
            for n, share in enumerate((0.36, 0.54, 0.72) + near(0.03)[0])
        ]
        fade = np.exp(-((x / 0.5) ** 4))
        shades["forehead"] = _crease(lines, 0.05, 0.6) * fade
        shades["nose"] = _crease(
            [[(s * 0.13, 0.22), (s * 0.05, 0.14)] for s in (-1, 1)]
            + [[(s * 0.14, 0.33), (s * 0.07, 0.26)] for s in (-1, 1)]
            + [[(-0.09, 0.04), (0.09, 0.04)]],
            0.025,
        )
        shades["chin"] = _crease([[p[176], p[177] + (0, 0.02), p[178]]], 0.045)
        # Light from the side: by the slope of an egg.
        egg = 1.3 * np.exp(-0.5 * (x / 0.85) ** 2 - 0.5 * ((y - 0.4) / 1.2) ** 2)
        egg += 0.25 * _hill(x, y, (0, 0.62), 0.16, 0.25, 0.25)
        down, right = np.gradient(egg, 1 / SHADE)
        normal = np.sqrt(1 + down**2 + right**2)
        shades["light right"], shades["light down"] = -right / normal, -down / normal


def _hill(
    x: np.ndarray, y: np.ndarray, at: np.ndarray | tuple[float, float], wide: float, up: float,
    down: float,
) -> np.ndarray:  # fmt: skip
    dy = y - at[1]
    return np.exp(-0.5 * ((x - at[0]) / wide) ** 2 - 0.5 * (dy / np.where(dy > 0, down, up)) ** 2)


def _move(weight: np.ndarray, right: float, down: float) -> np.ndarray:
    return np.stack([weight * right, weight * down], axis=-1)


def _crease(paths: list, width: float, bright: float = 0.5) -> np.ndarray:
    """A soft dark line along each path of points, with a lighter rim: -1 at its darkest."""
    side = round(EXTENT * SHADE)
    line = np.zeros((side, side), np.float32)
    for path in paths:
        pixels = np.round((np.asarray(path, float) - (LEFT, TOP)) * SHADE * 8).astype(np.int32)
        thick = max(1, round(width * SHADE))
        cv2.polylines(line, [pixels], False, 1.0, thick, cv2.LINE_AA, 3)
    sharp, wide = (cv2.GaussianBlur(line, (0, 0), width * SHADE * k) for k in (0.8, 2.4))
    return bright * wide / max(wide.max(), 1e-6) - sharp / max(sharp.max(), 1e-6)
