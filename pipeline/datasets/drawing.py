"""One drawn face: an identity, an expression built from FACS action units, and their pictures.

A head is built once per clip in its own coordinates (origin between the eyes,
x to the right of the picture, y down, 1 = half the width of the face): a height map shaded by the
clip's light, skin with its texture, brows, nose, beard (the face layer), and hair and glasses (the
front layer). Each FACS action unit is a set of muscle pulls: a displacement with a Gaussian
fall-off (after Waters, "A muscle model for animating three-dimensional facial expression",
SIGGRAPH 1987). The pulls move everything on the face: skin texture, brows, lips, lids, creases.
Eyes, mouth and creases are drawn anew in every frame, hair and glasses only follow the head.

What is a person's own: shape, colors, texture, how far, how quickly and how evenly each unit
moves, a habit that accompanies every expression, how deep the creases get, and the resting face,
which may look sad, angry or amused. What is a clip's own: light, background, clothes, place and
size of the head, head motion, flicker, noise, blinks. So neither the background nor a single
picture says who it is or what is felt; the change does.

Every clip starts neutral and ends at its apex, as in CK+. Subject k of a seed is always the same
person, and each of its clips the same pixels, however many subjects are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import ArrayLike

from cfer.errors import InputError
from cfer.options import check_at_least

EXPRESSIONS = ("anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")
ACTION_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 16, 17, 20, 23, 25, 26, 27)
INDEX = {unit: i for i, unit in enumerate(ACTION_UNITS)}
FPS = 24
# Part of the settings' digest: raise it when the same settings draw other pixels.
DRAWING_VERSION = 2

# Emotion prototypes of EMFACS (Ekman & Friesen), as strengths of the units at the apex. Each has
# variants, of which a clip shows one: the units that may join the core.
PROTOTYPES: dict[str, tuple[dict[int, float], tuple[dict[int, float], ...]]] = {
    "anger": ({4: 1.0, 5: 0.5, 7: 0.8, 23: 0.9}, ({}, {17: 0.6}, {10: 0.4, 25: 0.5})),
    "contempt": ({12: 0.5, 14: 1.0}, ({}, {7: 0.2}, {17: 0.2})),
    "disgust": ({9: 1.0, 15: 0.6, 16: 0.6}, ({}, {10: 0.7, 25: 0.4}, {4: 0.4, 17: 0.5})),
    "fear": (
        {1: 0.9, 2: 0.6, 4: 0.6, 5: 0.9, 7: 0.3, 20: 0.9, 26: 0.5},
        ({25: 0.3}, {25: 0.7}, {}),
    ),
    "happiness": ({6: 0.8, 12: 1.0}, ({}, {25: 0.7}, {25: 0.9, 26: 0.3})),
    "sadness": ({1: 0.9, 4: 0.5, 15: 1.0}, ({}, {17: 0.7}, {7: 0.2, 17: 0.3})),
    "surprise": ({1: 1.0, 2: 1.0, 5: 0.7, 26: 1.0}, ({25: 0.3}, {25: 0.5}, {27: 0.6})),
}
# Resting faces that mislead: units that are always a little on in such a person.
MOODS: tuple[dict[int, float], ...] = (
    {},
    {1: 0.5, 15: 0.6},
    {4: 0.7, 23: 0.4, 7: 0.3},
    {12: 0.4},
    {1: 0.4, 2: 0.5, 5: 0.3},
)
# Creases: the units that deepen them, and how visible they are at rest in the oldest faces.
CREASES: dict[str, tuple[dict[int, float], float]] = {
    "forehead": ({1: 0.7, 2: 0.7}, 0.35),
    "glabella": ({4: 1.0, 9: 0.4}, 0.2),
    "nose": ({9: 1.0}, 0.0),
    "crow": ({6: 0.9}, 0.0),
    "under_eye": ({6: 0.8, 7: 0.5}, 0.4),
    "nasolabial": ({12: 0.7, 10: 0.6, 9: 0.5, 20: 0.3, 6: 0.2}, 0.5),
    "dimple": ({14: 1.0, 12: 0.3}, 0.0),
    "mouth_corner": ({15: 0.9, 17: 0.2}, 0.0),
    "chin": ({17: 1.0}, 0.0),
}

SKIN_TONES = np.array(
    [(247, 219, 200), (233, 194, 166), (210, 163, 128), (170, 118, 84), (116, 75, 53)]
)
HAIR_COLORS = np.array([
    (28, 24, 24), (58, 38, 28), (96, 62, 38), (150, 104, 60), (205, 170, 110), (150, 66, 34),
    (165, 162, 160),
])  # fmt: skip
IRIS_COLORS = np.array(
    [(70, 45, 28), (104, 70, 38), (92, 104, 58), (86, 122, 150), (110, 130, 138)]
)
GLASSES_COLORS = np.array([(25, 22, 22), (80, 45, 25), (120, 25, 35)])
HAIR_STYLES = ("bald", "buzz", "short", "parted", "fringe", "long", "curly", "receding")
GLASSES = ("none", "none", "none", "round", "square", "half")
BEARDS = ("none", "none", "none", "stubble", "moustache", "goatee", "full")

Paint = Sequence[float] | np.ndarray | float
# What colors the skin: where (H, W) 0..1, with which color, how much of it.
Tint = tuple[np.ndarray, np.ndarray, float]


@dataclass(frozen=True)
class DrawingSettings:
    """What decides a clip's pixels besides the subject and the expression.

    `picture_size` in pixels; `difficulty` from 0 (easy) over 1 (hard) to 2 scales head motion,
    noise, flicker, the spread of the personal ways of moving and the misleading resting faces,
    and weakens the expressions.
    """

    frames: int = 24
    picture_size: int = 256
    difficulty: float = 0.75
    seed: int = 0

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise InputError(
                f"--frames: {self.frames} is too few; a clip needs a neutral frame and an apex: "
                "give 2 or more"
            )
        if self.picture_size < 64 or self.picture_size % 2:
            raise InputError(
                f"--picture-size: {self.picture_size} can't be drawn; give an even number of "
                "pixels, 64 or more"
            )
        if not 0 <= self.difficulty <= 2:
            raise InputError(
                f"--difficulty: {self.difficulty} is outside 0 to 2; 0 is easy, 1 is hard"
            )
        check_at_least(0, seed=self.seed)


class Identity:
    """One person. Lengths in half face widths, colors RGB 0..255, `*_z` standard normal scores.

    Arrays over action units are in the order of `ACTION_UNITS`. Each attribute is drawn from `rng`
    in this order: another order is another person.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        u = rng.uniform
        n = len(ACTION_UNITS)
        female = rng.random() < 0.5
        tone = u(0, len(SKIN_TONES) - 1.001)
        low = int(tone)
        skin = SKIN_TONES[low] * (1 - tone + low) + SKIN_TONES[low + 1] * (tone - low)
        skin *= 1 + rng.normal(0, 0.025, 3)
        dark = tone / (len(SKIN_TONES) - 1)
        weights = np.array([4, 4, 3 - 2 * dark, 2 - 1.6 * dark, 2 - 1.9 * dark, 1 - 0.9 * dark, 1])
        hair = HAIR_COLORS[rng.choice(len(HAIR_COLORS), p=weights / weights.sum())]
        self.hair = np.clip(hair * (1 + rng.normal(0, 0.1)), 12, 235)
        lipstick = female and rng.random() < 0.45
        natural = skin * np.array([0.86, 0.62, 0.62])
        lip = np.array([u(140, 190), u(30, 80), u(50, 95)]) if lipstick else natural
        iris = IRIS_COLORS[0 if rng.random() < dark else rng.integers(5)]
        styles = HAIR_STYLES[2:7] if female else HAIR_STYLES
        # Head
        self.cheek_width = u(0.93, 1.04)
        self.jaw_width = u(0.66, 0.84) if female else u(0.72, 0.92)
        self.chin_width = u(0.22, 0.4)
        self.chin_y = u(1.34, 1.58)
        self.crown_y = u(-1.5, -1.3)
        self.ear_size = u(0.18, 0.28)
        # Features
        self.eye_x = u(0.38, 0.46)
        self.eye_width = u(0.165, 0.215)
        self.eye_height = u(0.06, 0.095)
        self.eye_tilt = u(-0.02, 0.05)
        self.lash = u(0.6, 1.0) if female else u(0.2, 0.5)
        self.lid_fold = u(0.2, 1.0)
        self.brow_y = u(-0.36, -0.27)
        self.brow_thickness = u(0.03, 0.06) if female else u(0.045, 0.085)
        self.brow_arch = u(0.0, 0.07)
        self.brow_slope = rng.normal(0, 0.03)
        self.brow_gap = u(0.14, 0.22)
        self.nose_y = u(0.5, 0.64)
        self.nose_width = u(0.15, 0.25)
        self.nose_height = u(0.2, 0.36)
        self.mouth_y = u(0.89, 1.0)
        self.mouth_width = u(0.3, 0.42)
        self.mouth_curve = rng.normal(0, 0.015)
        self.upper_lip = u(0.035, 0.085)
        self.lower_lip = u(0.055, 0.11)
        # Colors
        self.skin = np.clip(skin, 0, 255)
        self.blush = u(0.0, 1.0)
        self.lip = np.clip(lip, 0, 255)
        self.brow = self.hair * u(0.5, 0.9)
        self.iris = iris * u(0.85, 1.15)
        self.glasses_color = rng.choice(GLASSES_COLORS)
        # What one has or has not
        self.hair_style = styles[rng.integers(len(styles))]
        self.hair_volume = u(0.0, 1.0)
        self.glasses = GLASSES[rng.integers(len(GLASSES))]
        self.glasses_size = u(0.85, 1.1)
        self.beard = "none" if female else BEARDS[rng.integers(len(BEARDS))]
        self.age = float(rng.beta(1.2, 2.0))
        self.num_freckles = int(rng.integers(30, 140)) if rng.random() < 0.25 else 0
        self.num_moles = int(rng.integers(0, 5))
        self.texture_seed = int(rng.integers(2**31))
        # Ways of moving
        self.mood = int(rng.integers(len(MOODS)))
        self.mood_strength = u(0.5, 1.0)
        self.gain_z = rng.standard_normal(n)
        self.onset = u(0, 1, n)
        self.asymmetry_z = rng.standard_normal(n)
        self.habit_unit = int(rng.choice([1, 2, 4, 7, 10, 14, 17, 20, 25]))
        self.habit_strength = u(0.1, 0.5)
        self.contempt_side = int(rng.integers(2))
        self.crease_depth = u(0.25, 1.0, len(CREASES))
        self.variant_bias = int(rng.integers(3))


# ---------------------------------------------------------------------------------------------
# Movement


def activations(
    identity: Identity, expression: str, settings: DrawingSettings, rng: np.random.Generator
) -> np.ndarray:
    """How far each action unit is from rest: float32 (frames, units, 2), left and right of picture.

    0 in the first frame, rising without a fall to each unit's strength at the apex, the last frame.
    """
    d = settings.difficulty
    core, variants = PROTOTYPES[expression]
    own_variant = rng.random() < 0.6
    chosen = identity.variant_bias if own_variant else int(rng.integers(len(variants)))
    strength = np.zeros(len(ACTION_UNITS))
    for unit, value in {**core, **variants[chosen]}.items():
        strength[INDEX[unit]] = value
    overall = max(1 - 0.3 * d, 0.3) * math.exp(rng.normal(0, 0.12 * d))
    gains = np.exp(0.45 * d * identity.gain_z + rng.normal(0, 0.12 * d, len(strength)))
    strength = np.minimum(strength * overall * np.clip(gains, 0.2, 1.8), 1.3)
    strength[INDEX[identity.habit_unit]] += identity.habit_strength * d
    # Something unrelated moves as well in most clips.
    strength[rng.integers(len(strength))] += 0.4 * d * rng.random()
    skew = np.clip(0.22 * d * identity.asymmetry_z, -0.7, 0.7)
    both = np.stack([strength * (1 + skew), strength * (1 - skew)], axis=1)
    if expression == "contempt":
        for unit in (12, 14):
            both[INDEX[unit], 1 - identity.contempt_side] *= 0.12
    late = identity.onset * 0.5 * min(d, 1)
    onset = np.clip(late + rng.normal(0, 0.04, len(strength)), 0, 0.6)
    end = np.clip(1 - 0.25 * rng.random(len(strength)), onset + 0.2, 1)
    time = np.arange(settings.frames)[:, None] / (settings.frames - 1)
    position = np.clip((time - onset) / (end - onset), 0, 1)
    rise = position**2 * (3 - 2 * position)
    return (rise[:, :, None] * both[None]).astype(np.float32)


def resting_units(identity: Identity, settings: DrawingSettings) -> np.ndarray:
    """The units that are always a little on in this person: float32 (units, 2)."""
    rest = np.zeros((len(ACTION_UNITS), 2), np.float32)
    for unit, value in MOODS[identity.mood].items():
        rest[INDEX[unit]] = value * identity.mood_strength * 1.1 * settings.difficulty
    return rest


def smooth_walk(rng: np.random.Generator, frames: int, num: int) -> np.ndarray:
    """`num` smooth random curves of unit variance at their knots: float (frames, num)."""
    knots = rng.standard_normal((6, num))
    t = np.linspace(1, 3.999, frames)
    i = t.astype(int)
    return _catmull_rom(knots[i - 1], knots[i], knots[i + 1], knots[i + 2], (t - i)[:, None])


def _catmull_rom(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, t: np.ndarray
) -> np.ndarray:
    return 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )


class Pulls:
    """Every muscle pull of a face, one a row: unit, side, center, vector (2), reach, is_jaw."""

    def __init__(self, who: Identity) -> None:
        brow, eye, mouth, corner = who.brow_y, who.eye_x, who.mouth_y, who.mouth_width
        # On the right of the picture.
        table: list[tuple[int, float, float, float, float, float]] = [
            # unit, center x, center y, displacement x, displacement y, reach
            (1, who.brow_gap + 0.04, brow, 0.0, -0.17, 0.17),
            (1, who.brow_gap, brow - 0.3, 0.0, -0.05, 0.22),
            (2, eye + 0.24, brow, 0.0, -0.15, 0.17),
            (2, eye + 0.15, brow - 0.3, 0.0, -0.05, 0.22),
            (4, who.brow_gap + 0.05, brow, -0.075, 0.12, 0.2),
            (4, eye + 0.2, brow, -0.03, 0.05, 0.16),
            (6, eye + 0.1, 0.38, 0.0, -0.11, 0.19),
            (9, 0.11, who.nose_y - 0.18, 0.0, -0.07, 0.13),
            (9, who.brow_gap, brow, -0.03, 0.07, 0.17),
            (9, 0.17, mouth - 0.12, 0.0, -0.05, 0.12),
            (10, 0.2, mouth - 0.06, 0.02, -0.07, 0.13),
            (12, corner, mouth, 0.12, -0.14, 0.15),
            (12, corner + 0.22, mouth - 0.35, 0.03, -0.06, 0.2),
            (14, corner, mouth, 0.08, -0.02, 0.1),
            (15, corner, mouth, 0.02, 0.13, 0.13),
            (16, 0.13, mouth + 0.1, 0.02, 0.05, 0.13),
            (17, 0.08, who.chin_y - 0.2, 0.0, -0.06, 0.15),
            (17, 0.1, mouth + 0.06, 0.0, -0.035, 0.12),
            (20, corner, mouth + 0.02, 0.13, 0.04, 0.17),
            (23, corner, mouth, -0.035, 0.0, 0.15),
            (26, 0.12, who.chin_y - 0.22, 0.0, 0.12, 0.36),
            (27, 0.12, who.chin_y - 0.22, 0.0, 0.2, 0.38),
        ]
        rows = np.repeat(table, 2, axis=0)
        sides = np.tile([(-1.0, 1.0), (1.0, 1.0)], (len(table), 1))
        self.unit = np.array([INDEX[int(unit)] for unit in rows[:, 0]])
        self.side = np.tile([0, 1], len(table))
        self.center = (rows[:, 1:3] * sides).astype(np.float32)
        self.vector = (rows[:, 3:5] * sides).astype(np.float32)
        self.reach = rows[:, 5].astype(np.float32)
        self.is_jaw = np.isin(rows[:, 0], (26, 27))
        self.mouth_y = mouth

    def displacement(
        self, points: np.ndarray, level: np.ndarray, jaw: float | None = None
    ) -> np.ndarray:
        """Where the pulls take `points` (N, 2), less the points themselves, at `level` (units, 2).

        The jaw takes along only what lies below the mouth line, or, with `jaw`, that share.
        """
        weight = level[self.unit, self.side]
        on = weight > 1e-3
        if not on.any():
            return np.zeros_like(points)
        away = points[:, None, :] - self.center[None, on]
        fall = np.exp(-np.square(away).sum(axis=2) / (2 * np.square(self.reach[on])))
        fall *= weight[on]
        if jaw is None:
            below = 1 / (1 + np.exp((self.mouth_y + 0.02 - points[:, 1:]) / 0.09))
        else:
            below = np.full((len(points), 1), jaw, points.dtype)
        fall = np.where(self.is_jaw[on], fall * below, fall)
        return fall @ self.vector[on]


# ---------------------------------------------------------------------------------------------
# Drawing tools


def spline(points: Sequence[Sequence[float]], closed: bool = False) -> np.ndarray:
    """A smooth curve through `points`: float32 (N, 2)."""
    p = np.asarray(points, np.float64)
    n = len(p)
    i = np.arange(n if closed else n - 1)
    pick = (lambda k: p[k % n]) if closed else (lambda k: p[np.clip(k, 0, n - 1)])
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    a, b, c, d = (pick(i + k)[:, None] for k in (-1, 0, 1, 2))
    curve = _catmull_rom(a, b, c, d, t).reshape(-1, 2)
    return (curve if closed else np.concatenate([curve, p[-1:]])).astype(np.float32)


def mirror(points: Sequence[Sequence[float]]) -> list[list[float]]:
    """A closed outline from its right half, given from top to bottom."""
    right = [[x, y] for x, y in points]
    return right + [[-x, y] for x, y in reversed(right) if x > 0]


SHIFT = 4  # sub-pixel bits of OpenCV's drawing functions


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round(points * (1 << SHIFT)).astype(np.int32)


def _scalar(color: Paint) -> tuple[float, ...]:
    return (float(color),) if isinstance(color, (int, float)) else tuple(map(float, color))


def fill(picture: np.ndarray, points: np.ndarray, color: Paint) -> None:
    cv2.fillPoly(picture, [_fixed(points)], _scalar(color), cv2.LINE_AA, SHIFT)


def fill_between(picture: np.ndarray, upper: np.ndarray, lower: np.ndarray, color: Paint) -> None:
    """Fill what lies between two curves that run the same way."""
    fill(picture, np.concatenate([upper, lower[::-1]]), color)


def stroke(picture: np.ndarray, points: np.ndarray, color: Paint, width: float) -> None:
    cv2.polylines(
        picture, [_fixed(points)], False, _scalar(color), max(1, round(width)), cv2.LINE_AA, SHIFT
    )


def disc(picture: np.ndarray, center: np.ndarray, radius: float, color: Paint) -> None:
    at = _fixed(center).tolist()
    cv2.circle(picture, at, round(radius * (1 << SHIFT)), _scalar(color), -1, cv2.LINE_AA, SHIFT)


def shares(mask: np.ndarray, blur: float = 0.0) -> np.ndarray:
    """A mask of bytes, blurred over so many pixels: float32, 0..1."""
    soft = cv2.GaussianBlur(mask, (0, 0), blur) if blur else mask
    return soft.astype(np.float32) / 255


def mix(below: np.ndarray, above: Paint, share: np.ndarray) -> np.ndarray:
    """`above`, a picture or a color, laid over a picture (H, W, C) by its `share` (H, W), 0..1."""
    return below * (1 - share[..., None]) + np.asarray(above) * share[..., None]


def fractal_noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: Sequence[int]
) -> np.ndarray:
    """Smooth noise of about unit variance, a sum over numbers of cells: float32 `shape`."""
    total = np.zeros(shape, np.float32)
    for cell in cells:
        coarse = rng.standard_normal((cell + 2, cell + 2), dtype=np.float32)
        total += cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return total / math.sqrt(len(cells))


# ---------------------------------------------------------------------------------------------
# The still layers of a head


X_RANGE = (-1.75, 1.75)
Y_RANGE = (-2.0, 2.1)


class Canvas:
    """A grid over the head's own coordinates: `x`, `y` float32 (H, W), `per_unit` pixels a unit."""

    def __init__(self, per_unit: float) -> None:
        self.per_unit = per_unit
        width = round((X_RANGE[1] - X_RANGE[0]) * per_unit)
        height = round((Y_RANGE[1] - Y_RANGE[0]) * per_unit)
        self.shape = (height, width)
        x = X_RANGE[0] + np.arange(width, dtype=np.float32) / per_unit
        y = Y_RANGE[0] + np.arange(height, dtype=np.float32) / per_unit
        self.x, self.y = np.meshgrid(x, y)
        self.columns, self.rows = x, y[:, None]

    def blank(self) -> np.ndarray:
        return np.zeros(self.shape, np.uint8)

    def pixels(self, points: ArrayLike) -> np.ndarray:
        """Head coordinates (..., 2) → pixels of the canvas, float32 (..., 2)."""
        corner = np.array([X_RANGE[0], Y_RANGE[0]], np.float32)
        return (np.asarray(points, np.float32) - corner) * self.per_unit

    def disc(self, picture: np.ndarray, at: Sequence[float], radius: float, color: float) -> None:
        """A disc at a place in the head, its `radius` in units."""
        fixed = int(radius * self.per_unit * (1 << SHIFT))
        disc(picture, self.pixels(at), fixed / (1 << SHIFT), color)

    def oval(
        self, picture: np.ndarray, at: Sequence[float], size: Sequence[float], degrees: float,
        scale: float = 1.0,
    ) -> None:  # fmt: skip
        pixels = (np.array(size) * self.per_unit * scale).tolist()
        cv2.ellipse(picture, (self.pixels(at).tolist(), pixels, degrees), 255.0, -1, cv2.LINE_AA)

    def mask(self, points: np.ndarray, soft: float = 0.0) -> np.ndarray:
        """A filled outline, its edge blurred over `soft` units: float32 (H, W), 0..1."""
        picture = self.blank()
        fill(picture, self.pixels(points), 255)
        mask = shares(picture)
        return cv2.GaussianBlur(mask, (0, 0), soft * self.per_unit) if soft else mask

    def blob(self, x: float, y: float, wide: float, high: float) -> np.ndarray:
        across = np.exp(-(((self.columns - x) / wide) ** 2))
        return np.exp(-(((self.rows - y) / high) ** 2)) * across

    def blobs(self, x: float, y: float, wide: float, high: float) -> np.ndarray:
        """The same on both sides of the face."""
        return self.blob(x, y, wide, high) + self.blob(-x, y, wide, high)


def depth(x: np.ndarray, y: np.ndarray, who: Identity) -> np.ndarray:
    """How far the head stands out towards the camera at a place, in units, for small turns."""
    head = np.clip(1.1 - (x / 1.1) ** 2 - ((y - 0.05) / 1.6) ** 2, 0, None)
    return np.sqrt(head) + who.nose_height * np.exp(
        -((x / 0.16) ** 2) - ((y - who.nose_y + 0.1) / 0.22) ** 2
    )


def shading(canvas: Canvas, who: Identity, light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The light on the skin, about 1 in the middle, and its gloss: two float32 (H, W)."""
    x, y = canvas.x, canvas.y
    height = np.sqrt(np.clip(1.15 - (x / 1.12) ** 2 - ((y - 0.05) / 1.72) ** 2, 0.03, None))
    height += 0.05 * canvas.blobs(who.eye_x, who.brow_y + 0.02, 0.3, 0.1)
    height -= 0.10 * canvas.blobs(who.eye_x - 0.04, 0.03, 0.2, 0.14)
    along = np.clip((y + 0.12) / (who.nose_y + 0.12), 0, None)
    ridge = np.where(along < 1, along**1.3, np.exp(-(((along - 1) / 0.16) ** 2)))
    half = 0.075 + 0.06 * np.clip(along, 0, 1) * who.nose_width / 0.2
    height += 0.55 * who.nose_height * ridge * np.exp(-((x / half) ** 2))
    height += 0.06 * canvas.blobs(who.nose_width * 0.72, who.nose_y - 0.04, 0.065, 0.07)
    height += 0.07 * canvas.blobs(0.58, 0.36, 0.24, 0.2)
    height += 0.06 * canvas.blob(0, who.chin_y - 0.2, 0.2, 0.13)
    height += 0.05 * canvas.blob(0, who.mouth_y, 0.34, 0.16)
    height -= 0.025 * canvas.blob(0, 0.5 * (who.nose_y + who.mouth_y), 0.035, 0.1)
    height -= 0.03 * canvas.blob(0, who.mouth_y + 0.18, 0.2, 0.05)
    height = cv2.GaussianBlur(height, (0, 0), 0.018 * canvas.per_unit)
    slope_y, slope_x = np.gradient(height, 1 / canvas.per_unit)
    norm = np.sqrt(1 + slope_x**2 + slope_y**2)
    lambert = (light[2] - slope_x * light[0] - slope_y * light[1]) / norm
    shade = 0.52 + 0.55 * np.clip(lambert, 0, None)
    return shade.astype(np.float32), np.clip(lambert, 0, 1).astype(np.float32) ** 14


@lru_cache(maxsize=2)
def skin_of(who: Identity, per_unit: float) -> np.ndarray:
    """The colors of the face in an even light, brows, nose and beard included: float32 (H, W, 3).

    A person's own, whatever the clip, hence kept for the next one.
    """
    canvas = Canvas(per_unit)
    rng = np.random.default_rng(who.texture_seed)
    mottle = fractal_noise(rng, canvas.shape, (9, 30)) * 0.018
    pores = rng.standard_normal(canvas.shape, dtype=np.float32) * (0.012 + 0.02 * who.age)
    texture = 1 + mottle + cv2.GaussianBlur(pores, (0, 0), 0.8) * 2
    albedo = who.skin.astype(np.float32) * texture[..., None].astype(np.float32)
    for tints in (_complexion, _beard, _nose, _brows):
        for mask, color, share in tints(canvas, who, rng):
            albedo = mix(albedo, color.astype(np.float32), mask * share)
    return albedo


def _complexion(canvas: Canvas, who: Identity, rng: np.random.Generator) -> Iterator[Tint]:
    skin = who.skin.astype(np.float32)
    red = skin * np.array([1.0, 0.72, 0.7], np.float32)
    yield canvas.blobs(0.56, 0.42, 0.26, 0.2), red, 0.15 + 0.4 * who.blush
    yield canvas.blob(0, who.nose_y - 0.03, 0.14, 0.12), red, 0.25 + 0.2 * who.blush
    shadow = skin * np.float32(0.72)
    yield canvas.blobs(who.eye_x, 0.02, 0.24, 0.14), shadow, 0.25 + 0.3 * who.age
    freckles, moles = canvas.blank(), canvas.blank()
    for _ in range(who.num_freckles):
        at = (rng.normal(0, 0.42), rng.normal(0.3, 0.17))
        canvas.disc(freckles, at, rng.uniform(0.006, 0.015), rng.uniform(90, 230))
    yield shares(freckles), skin * np.array([0.66, 0.5, 0.42]), 0.6
    for _ in range(who.num_moles):
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.85)
        at = (far * np.cos(angle) * 0.85, 0.35 + far * np.sin(angle) * 0.85)
        canvas.disc(moles, at, rng.uniform(0.014, 0.03), 255)
    yield shares(moles, blur=0.8), skin * 0.35, 0.85


def _beard(canvas: Canvas, who: Identity, rng: np.random.Generator) -> Iterator[Tint]:
    if who.beard == "none":
        return
    x, y = np.abs(canvas.x), canvas.y
    moustache = canvas.blobs(0.15, who.mouth_y - 0.13, 0.2, 0.055)
    edge = 0.5 + 0.42 * np.clip(1 - x / 0.95, 0, 1) ** 0.6 + 0.12
    jaw = 1 / (1 + np.exp(np.clip((edge + 0.1 - y) / 0.035, -30, 30)))
    lips = canvas.blob(0, who.mouth_y + 0.01, who.mouth_width * 1.05, 0.11)
    goatee = canvas.blob(0, who.chin_y - 0.16, 0.24, 0.19)
    rest, share = {
        "stubble": (jaw, 0.38),
        "full": (jaw, 0.85),
        "moustache": (moustache, 0.9),
        "goatee": (goatee, 0.85),
    }[who.beard]
    mask = np.maximum(rest, moustache)
    mask = np.clip(mask * 1.4, 0, 1) * (1 - np.clip(lips * 1.3, 0, 1))
    noise = rng.standard_normal(canvas.shape, dtype=np.float32)
    hairs = cv2.GaussianBlur(noise, (0, 0), 0.7, sigmaY=1.8)
    mask *= np.clip(0.8 + 0.9 * hairs, 0, 1.1)
    yield np.clip(mask, 0, 1), who.hair * 0.75, share


def _nose(canvas: Canvas, who: Identity, rng: np.random.Generator) -> Iterator[Tint]:
    lines, holes = canvas.blank(), canvas.blank()
    w, y = who.nose_width, who.nose_y
    for side in (-1, 1):
        at = ((0.8, y - 0.13), (1.02, y - 0.03), (0.8, y + 0.035), (0.5, y + 0.02))
        wing = spline([(side * w * x, height) for x, height in at])
        stroke(lines, canvas.pixels(wing), 200, 0.022 * canvas.per_unit)
        canvas.oval(holes, (side * w * 0.48, y + 0.02), (w * 0.5, 0.055), -side * 14.0)
    base = spline([(-w * 0.5, y + 0.05), (0, y + 0.075), (w * 0.5, y + 0.05)])
    stroke(lines, canvas.pixels(base), 130, 0.02 * canvas.per_unit)
    soft = 0.014 * canvas.per_unit
    skin = who.skin.astype(np.float32)
    yield shares(lines, soft), skin * 0.45, 0.8
    yield shares(holes, soft * 0.7), skin * 0.2, 0.85


def _brows(canvas: Canvas, who: Identity, rng: np.random.Generator) -> Iterator[Tint]:
    # From the nose outwards.
    s = np.linspace(0, 1, 24, dtype=np.float32)
    x = who.brow_gap + s * (who.eye_x + who.eye_width * 1.35 - who.brow_gap)
    arch = -who.brow_arch * np.sin(np.pi * np.clip(s * 1.25 - 0.1, 0, 1))
    y = who.brow_y + arch + who.brow_slope * (0.5 - s) + 0.03 * s**2
    middle = np.stack([x, y], 1)
    thick = who.brow_thickness * np.clip(1.1 - 0.9 * s**2, 0.15, 1)
    half = np.stack([np.zeros_like(thick), thick / 2], 1)
    base, hairs = canvas.blank(), canvas.blank()
    for side in (-1, 1):
        sign = np.array([side, 1], np.float32)
        edges = canvas.pixels((middle - half) * sign), canvas.pixels((middle + half) * sign)
        fill_between(base, *edges, 255)
        for _ in range(70):
            i = int(rng.integers(0, len(middle) - 3))
            root = middle[i] + [0, rng.uniform(-0.6, 0.6) * thick[i]]
            lean = np.array([rng.uniform(0.03, 0.07), -thick[i] * rng.uniform(-0.3, 0.5)])
            stroke(hairs, canvas.pixels(np.array([root, root + lean], np.float32) * sign), 255, 1)
    yield shares(base, 0.012 * canvas.per_unit), who.brow, 0.75
    yield shares(hairs), who.brow * 0.7, 0.65


def face_layer(canvas: Canvas, who: Identity, light: np.ndarray) -> np.ndarray:
    """Everything that the muscles move, less eyes and mouth: uint8 (H, W, 4), premultiplied."""
    shade, gloss = shading(canvas, who, light)
    picture = skin_of(who, canvas.per_unit) * shade[..., None] + 30 * gloss[..., None]
    w = who.cheek_width
    right = [
        (0, who.crown_y),
        (0.55 * w, who.crown_y * 0.9),
        (0.9 * w, -0.72),
        (1.0 * w, -0.1),
        (0.5 * w + 0.5 * who.jaw_width, 0.55),
        (who.jaw_width, 0.92),
        (who.chin_width, who.chin_y - 0.05),
        (0, who.chin_y),
    ]
    alpha = canvas.mask(spline(mirror(right), closed=True))
    inner = cv2.GaussianBlur(alpha, (0, 0), 0.05 * canvas.per_unit)
    picture *= (0.72 + 0.28 * np.clip(2 * inner - 1, 0, 1))[..., None]
    skin = who.skin.astype(np.float32)
    ears = np.zeros(canvas.shape, np.float32)
    for side in (-1, 1):
        for scale, darken in ((1.0, 0.82), (0.55, 0.62)):
            mask = canvas.blank()
            canvas.oval(
                mask, (side * (w + 0.02), 0.16), (0.22, 2 * who.ear_size), side * 8.0, scale
            )
            picture = mix(picture, skin * darken, shares(mask) * (1 - alpha))
            ears = np.maximum(ears, shares(mask))
    return _premultiply(picture, np.maximum(alpha, ears))


def _premultiply(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    layer = np.dstack([np.clip(picture, 0, 255) * alpha[..., None], alpha * 255])
    return np.round(layer.astype(np.float32)).astype(np.uint8)


def front_layer(canvas: Canvas, who: Identity, light: np.ndarray) -> np.ndarray:
    """Hair and glasses, which only follow the head: uint8 (H, W, 4), premultiplied."""
    layer = np.zeros((*canvas.shape, 4), np.uint8)
    if who.hair_style != "bald":
        layer = _hair(canvas, who, light)
    if who.glasses != "none":
        _put_on_glasses(layer, canvas, who)
    return layer


# Of each style, how far the hair stands out from the head, and how much more with volume; then the
# opening that it leaves for the face: at the middle of the forehead, and at the shoulder and the
# side of the face, whose x is in widths of the cheeks.
HAIR_SHAPES = {
    "buzz": (0.03, 0.0, -0.95, (0.8, -0.72), (1.0, 0.05)),
    "short": (0.08, 0.1, -0.86, (0.8, -0.72), (1.0, 0.05)),
    "parted": (0.08, 0.1, -0.86, (0.8, -0.72), (1.0, 0.05)),
    "fringe": (0.08, 0.1, -0.5, (0.98, -0.46), (0.92, 0.2)),
    "long": (0.08, 0.1, -0.92, (0.8, -0.5), (0.9, 0.2)),
    "curly": (0.14, 0.1, -0.86, (0.8, -0.72), (0.98, 0.0)),
    "receding": (0.05, 0.0, -1.2, (0.8, -0.95), (1.0, 0.05)),
}


def _hair(canvas: Canvas, who: Identity, light: np.ndarray) -> np.ndarray:
    style, w = who.hair_style, who.cheek_width
    grow, more, forehead, shoulder, side = HAIR_SHAPES[style]
    grow += more * who.hair_volume
    top = who.crown_y - grow
    outer = [(0, top), (0.6 * w, top * 0.9), ((0.98 + grow) * w, -0.7), ((1.02 + grow) * w, -0.1)]
    opening = [(0, forehead), (0.45 * w, forehead + 0.03)]
    opening += [(shoulder[0] * w * 0.95, shoulder[1]), (side[0] * w, side[1])]
    if style in ("long", "fringe"):
        low = 1.75 if style == "long" else 1.0 + 0.4 * who.hair_volume
        outer += [((1.08 + grow) * w, 0.6), (1.05 * w, low), (0.8 * w, low + 0.05)]
        opening += [(0.9 * w, 0.7), (0.8 * w, 2.2), (0, 2.3)]
    else:
        outer += [(1.03 * w, 0.12), (0.97 * w, 0.12)]
        opening += [(1.3 * w, 0.4), (0.8 * w, 1.2), (0, 1.4)]
    hair = canvas.mask(spline(mirror([*outer, (0, 0.3)]), closed=True))
    both = mirror(opening)
    if style == "parted":
        both = [[x + 0.25 * (y < -0.6), y - 0.1 * (y < -0.8)] for x, y in both]
    hair *= 1 - canvas.mask(spline(both, closed=True), soft=0.012)
    if style == "curly":
        curls = canvas.blank()
        rng = np.random.default_rng(who.texture_seed + 1)
        for angle in np.linspace(0.06, 0.94, 22) * np.pi:
            far = 1.05 + 0.08 * rng.random() + 0.12 * who.hair_volume
            y = -0.1 - np.sin(angle) * (-who.crown_y - 0.1) * far
            canvas.disc(curls, (np.cos(angle) * w * far, y), rng.uniform(0.13, 0.22), 255)
        hair = np.maximum(hair, shares(curls))
    rng = np.random.default_rng(who.texture_seed + 2)
    coarse = rng.standard_normal((60 if style == "curly" else 8, 140), dtype=np.float32)
    strands = cv2.resize(coarse, canvas.shape[::-1], interpolation=cv2.INTER_CUBIC)
    lit = 0.8 + 0.25 * np.clip(canvas.x * light[0] - (canvas.y + 0.3) * 0.7, -1, 1)
    shine = 0.35 * canvas.blob(light[0] * 0.5, who.crown_y * 0.75, 0.7, 0.16)
    tone = np.clip(lit + shine + 0.13 * strands, 0.3, 1.6)[..., None]
    picture = who.hair.astype(np.float32) * tone + 6
    return _premultiply(picture, hair * (0.75 if style == "buzz" else 1.0))


def _put_on_glasses(layer: np.ndarray, canvas: Canvas, who: Identity) -> None:
    lens, rims = canvas.blank(), canvas.blank()
    size = 0.30 * who.glasses_size
    corner = {"round": 2.0, "square": 5.0, "half": 3.5}[who.glasses]
    t = np.linspace(0, 2 * np.pi, 60, dtype=np.float32)
    wave = np.stack([np.cos(t), np.sin(t)], 1)
    shape = np.sign(wave) * np.abs(wave) ** (2 / corner) * [size, size * (0.95 - 0.06 * corner)]
    width = 0.03 * canvas.per_unit
    for side in (-1, 1):
        rim = canvas.pixels(shape + np.array([side * who.eye_x, 0.05]))
        fill(lens, rim, 255)
        stroke(rims, rim[30:] if who.glasses == "half" else rim, 255, width)
        temple = [(side * (who.eye_x + size), -0.02), (side * (who.cheek_width + 0.04), -0.06)]
        stroke(rims, canvas.pixels(temple), 255, width)
    inside = who.eye_x - size
    bridge = spline([(-inside, 0.0), (0, -0.04), (inside, 0.0)])
    stroke(rims, canvas.pixels(bridge), 255, width)
    band = slice(*np.searchsorted(canvas.rows[:, 0], (-0.5, 0.6)))
    glint = np.clip(np.sin((canvas.x + canvas.y)[band] * 9), 0.8, 1) - 0.8
    sheen = shares(lens[band]) * (0.03 + 0.35 * glint)
    out = mix(layer[band].astype(np.float32), np.array([235, 240, 245, 255], np.float32), sheen)
    out = mix(out, np.array([*who.glasses_color, 255], np.float32), shares(rims[band]))
    layer[band] = np.round(out).astype(np.uint8)


def backdrop(
    size: int, head: np.ndarray, unit: float, who: Identity, rng: np.random.Generator
) -> np.ndarray:
    """What stands still behind the head: room, clothes, neck, long hair: uint8 (size, size, 3)."""
    base = rng.uniform(40, 215, 3) * 0.5 + 0.5 * rng.uniform(60, 200)
    picture = np.broadcast_to(base, (size, size, 3)).astype(np.float32)
    cloud = np.dstack([fractal_noise(rng, (size, size), (2, 4)) for _ in range(3)])
    picture = picture + (0.5 * cloud + 0.5 * cloud.mean(2, keepdims=True)) * rng.uniform(3, 22)
    for _ in range(int(rng.integers(0, 4))):
        x, y, w, h = rng.uniform(-0.2, 1.0, 4) * size
        shape = np.array([[x, y], [x + abs(w), y], [x + abs(w), y + abs(h)], [x, y + abs(h)]])
        fill(picture, shape.astype(np.float32), rng.uniform(30, 225, 3) * 0.8)
    picture = cv2.GaussianBlur(picture, (0, 0), size * rng.uniform(0.006, 0.03))

    def outline(*right: tuple[float, float]) -> np.ndarray:
        return head + spline(mirror(right), closed=True) * unit

    if who.hair_style == "long":
        hair = outline((0, -0.5), (1.12, 0.4), (1.15, 1.6), (0.9, 2.0), (0, 2.0))
        fill(picture, hair, who.hair * 0.62)
    w, chin = who.jaw_width * 0.68, who.chin_y
    neck = outline((0, 0.8), (w, 0.8), (w, 1.8), (w + 0.3, 2.2), (0, 2.6))
    fill(picture, neck, who.skin.astype(np.float32) * 0.72)
    shadow, shirt = np.zeros((2, size, size), np.uint8)
    fill(shadow, outline((0, 0.8), (w, 0.9), (w * 0.8, chin + 0.18), (0, chin + 0.25)), 255)
    picture *= 1 - 0.38 * shares(shadow, 0.09 * unit)[..., None]
    cloth = rng.uniform(25, 220, 3)
    shoulders = ((w + 0.08, 1.82), (1.25, 2.05), (1.75, 2.5), (1.9, 4.0))
    fill(shirt, outline((0, 2.12), *shoulders, (0, 4.2)), 255)
    weave = 1 + 0.06 * fractal_noise(rng, (size, size), (5, 14))
    picture = mix(picture, cloth * weave[..., None], shares(shirt))
    return np.clip(picture, 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------
# What is drawn anew in every frame


def crease_curves(who: Identity) -> dict[str, list[np.ndarray]]:
    """The creases on the right of the picture, by name."""
    ex, ew, my, mw = who.eye_x, who.eye_width, who.mouth_y, who.mouth_width
    ny, nw, by = who.nose_y, who.nose_width, who.brow_y
    end = ex + ew + 0.05
    curves: dict[str, list[list[tuple[float, float]]]] = {
        "forehead": [
            [(0, by - 0.2 - k), (0.3, by - 0.24 - k), (0.58, by - 0.17 - k)]
            for k in (0, 0.12, 0.24)
        ],
        "glabella": [[(0.07, by + 0.1), (0.075, by), (0.1, by - 0.12)]],
        "nose": [[(0.02, 0.02 + k), (0.08, 0.0 + k), (0.13, 0.06 + k)] for k in (0.0, 0.09)],
        "crow": [
            [(end, 0.02 + k * 0.5), (end + 0.08, k), (end + 0.15, k * 1.8)]
            for k in (-0.06, 0.02, 0.1)
        ],
        "under_eye": [[(ex - ew, 0.09), (ex - 0.03, 0.17), (ex + ew * 0.9, 0.12)]],
        "nasolabial": [
            [(nw + 0.04, ny - 0.06), (nw + 0.16, ny + 0.12), (mw + 0.12, my - 0.05),
             (mw + 0.11, my + 0.06)]
        ],
        "dimple": [[(mw + 0.05, my - 0.08), (mw + 0.085, my), (mw + 0.05, my + 0.07)]],
        "mouth_corner": [[(mw + 0.02, my + 0.03), (mw + 0.06, my + 0.11), (mw + 0.05, my + 0.2)]],
        "chin": [
            [(0.0, my + 0.19), (0.12, my + 0.2), (0.2, my + 0.25)],
            [(0.05, my + 0.3), (0.1, my + 0.33)],
        ],
    }  # fmt: skip
    return {name: [spline(curve) for curve in several] for name, several in curves.items()}


@dataclass(frozen=True)
class Pose:
    """A head in one frame.

    Attributes:
        center, unit: where its origin is and how long a unit is, in pixels of the drawing.
        angle, yaw, pitch: radians, and turns in depth.
        level: how far each action unit is on, (units, 2).
        blink: 0 (open) to 1.
        gaze: (2,), in units.
    """

    center: np.ndarray
    unit: float
    angle: float
    yaw: float
    pitch: float
    level: np.ndarray
    blink: float
    gaze: np.ndarray

    def of_unit(self, unit: int) -> np.ndarray:
        """How far one action unit is on, left and right of the picture."""
        return self.level[INDEX[unit]]


def lay_over(picture: np.ndarray, layer: np.ndarray, places: np.ndarray) -> None:
    """Put a premultiplied layer (H, W, 4), as seen from `places` (h, w, 2) in it, on the picture
    (h, w, 3), in place."""
    # OpenCV's types don't know that the second map is absent where the first holds both.
    seen = cv2.remap(layer, places, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]
    keep = cv2.cvtColor(255 - cv2.extractChannel(seen, 3), cv2.COLOR_GRAY2RGB)
    under = cv2.multiply(picture, keep, scale=1 / 255)
    cv2.add(under, cv2.cvtColor(seen, cv2.COLOR_RGBA2RGB), dst=picture)


def window_around(
    points: np.ndarray, picture: np.ndarray, margin: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The part of a picture that has `points` (N, 2) in it, and where it begins (x, y)."""
    limit = np.array(picture.shape[1::-1])
    low = np.clip(np.floor(points.min(0)).astype(int) - round(margin), 0, limit - 2)
    high = np.clip(np.ceil(points.max(0)).astype(int) + round(margin), low + 2, limit)
    return picture[low[1] : high[1], low[0] : high[0]], low


class Head:
    """One person in one clip's light, ready to be drawn in any pose."""

    def __init__(self, who: Identity, canvas: Canvas, light: np.ndarray) -> None:
        self.who = who
        self.canvas = canvas
        self.face = face_layer(canvas, who, light)
        self.front = front_layer(canvas, who, light)
        self.pulls = Pulls(who)
        self.creases = crease_curves(who)

    def draw(self, picture: np.ndarray, pose: Pose) -> None:
        """Draw the head on `picture` (uint8 (S, S, 3)), in place."""
        reach = pose.unit * np.array([X_RANGE, Y_RANGE]).T
        low, high = np.clip(np.round(pose.center + reach), 0, picture.shape[0]).astype(int)
        region = picture[low[1] : high[1], low[0] : high[0]]
        rigid, pulled = self._sampling_maps(region.shape[:2], low, pose)
        lay_over(region, self.face, pulled)
        self._draw_creases(picture, pose)
        for side in (0, 1):
            self._draw_eye(picture, pose, side)
        self._draw_mouth(picture, pose)
        lay_over(region, self.front, rigid)

    def _sampling_maps(
        self, shape: tuple[int, ...], origin: np.ndarray, pose: Pose
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each pixel of a region, its place in the layers: rigid, and with the pulls.

        Two float32 (H, W, 2), for `cv2.remap`.
        """
        c, s = math.cos(pose.angle), math.sin(pose.angle)
        back = np.array([[c, s], [-s, c]], np.float32) / pose.unit  # rotation by -angle, rows x, y
        step = 12  # the fields are smooth: computed on a coarse grid
        rows, columns = (n // step + 1 for n in shape)
        gx, gy = np.meshgrid(
            (np.arange(columns) + 0.5) * step - 0.5, (np.arange(rows) + 0.5) * step - 0.5
        )
        at = np.stack([gx.ravel(), gy.ravel()], 1) + origin - pose.center
        plain = (at @ back.T).astype(np.float32)
        flat = plain - self._turn(plain, pose).astype(np.float32)
        source = flat
        for _ in range(3):  # the inverse of the pulls, as a fixed point
            source = flat - self.pulls.displacement(source, pose.level)
        maps = []
        for place in (flat, source):
            coarse = self.canvas.pixels(place).reshape(rows, columns, 2)
            full = cv2.resize(coarse, (columns * step, rows * step), interpolation=cv2.INTER_LINEAR)
            maps.append(full[: shape[0], : shape[1]])
        return maps[0], maps[1]

    def _turn(self, points: np.ndarray, pose: Pose) -> np.ndarray:
        """How far turns in depth move `points` (N, 2)."""
        z = depth(points[:, 0], points[:, 1], self.who)
        return np.stack([pose.yaw * z, pose.pitch * z], 1)

    def _seen(self, points: np.ndarray, pose: Pose) -> np.ndarray:
        """Head coordinates (N, 2) → pixels (N, 2)."""
        turned = points + self._turn(points, pose)
        c, s = math.cos(pose.angle), math.sin(pose.angle)
        return pose.center + pose.unit * (turned @ np.array([[c, s], [-s, c]]))

    def _place(
        self, points: np.ndarray, pose: Pose, share: float = 1.0, jaw: float | None = None
    ) -> np.ndarray:
        """Where points of the face are seen, pulled by a share of the pose's levels."""
        pulled = self.pulls.displacement(points, share * pose.level, jaw)
        return self._seen(points + pulled, pose)

    def _draw_creases(self, picture: np.ndarray, pose: Pose) -> None:
        curves, weights = [], []
        for i, (name, (units, at_rest)) in enumerate(CREASES.items()):
            for side in (0, 1):
                drive = sum(w * pose.of_unit(u)[side] for u, w in units.items())
                weight = at_rest * self.who.age + min(float(drive), 1.2) * self.who.crease_depth[i]
                if weight > 0.03:
                    sign = np.array([2 * side - 1, 1], np.float32)
                    curves += [curve * sign for curve in self.creases[name]]
                    weights += [min(weight, 1.0)] * len(self.creases[name])
        if not curves:
            return
        mask = np.zeros(picture.shape[:2], np.uint8)
        points = self._place(np.concatenate(curves), pose)
        ends = np.cumsum([len(curve) for curve in curves])[:-1]
        for curve, weight in zip(np.split(points, ends), weights, strict=True):
            stroke(mask, curve, weight * 255, 0.03 * pose.unit)
        corners = self._seen(np.array([[-1, -0.9], [1, 1.5]]), pose)
        window, _ = window_around(corners, picture)
        soft = cv2.GaussianBlur(window_around(corners, mask)[0], (0, 0), 0.02 * pose.unit)
        # A crease is a shadow with a lit edge below it.
        lit = np.roll(soft, round(0.035 * pose.unit), axis=0)
        keep = 255 - (soft * np.float32(0.55)).astype(np.uint8)
        part = cv2.multiply(window, cv2.merge([keep] * 3), scale=1 / 255)
        edge = (lit * np.float32(0.05)).astype(np.uint8)
        cv2.add(part, cv2.merge([edge] * 3), dst=window)

    def _draw_eye(self, picture: np.ndarray, pose: Pose, side: int) -> None:
        who, blink = self.who, pose.blink
        unit = {u: float(pose.of_unit(u)[side]) for u in (4, 5, 6, 7, 9)}
        open_up = who.eye_height * (
            1 + 0.5 * unit[5] - 0.4 * unit[7] - 0.15 * unit[6] - 0.2 * unit[4] - 0.15 * unit[9]
        )
        open_up = max(open_up, 0.012)
        open_down = who.eye_height * 0.62 * (1 + 0.1 * unit[5] - 0.5 * unit[7] - 0.5 * unit[6])
        open_down = max(open_down, 0.006)
        open_up = open_up * (1 - blink) - open_down * 0.8 * blink
        s = np.linspace(-1, 1, 21, dtype=np.float32)
        arc = (1 - s**2) ** 0.75
        x = who.eye_x + s * who.eye_width
        tilt = -who.eye_tilt * s
        sign = np.array([2 * side - 1, 1], np.float32)

        def lid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            # The globe holds the lids back.
            return self._place(np.stack([x, y], 1) * sign, pose, share=0.5)

        upper, lower = lid(x, tilt - open_up * arc), lid(x, tilt + open_down * arc)
        both = np.concatenate([upper, lower])
        window, low = window_around(both, picture, margin=0.2 * pose.unit)
        upper, lower = upper - low, lower - low
        if blink < 0.9:
            ball = np.empty_like(window)
            ball[:] = (226, 221, 216)
            middle = np.array(
                [[who.eye_x + pose.gaze[0] * sign[0], pose.gaze[1] - 0.012]], np.float32
            )
            center = self._seen(middle * sign, pose)[0] - low
            radius = 0.078 * pose.unit
            disc(ball, center, radius, who.iris * 0.45)
            disc(ball, center, radius * 0.86, who.iris)
            disc(ball, center, radius * 0.45, (12, 10, 10))
            disc(ball, center + np.array([-0.3, -0.35]) * radius, radius * 0.22, (250, 250, 250))
            # The upper lid's shadow on the globe.
            stroke(ball, upper, (120, 105, 100), 0.05 * pose.unit)
            ball = cv2.GaussianBlur(ball, (0, 0), 0.9)
            almond = np.zeros(window.shape[:2], np.uint8)
            fill_between(almond, upper, lower, 255)
            keep = cv2.merge([almond] * 3)
            skin = cv2.multiply(window, 255 - keep, scale=1 / 255)
            cv2.add(skin, cv2.multiply(ball, keep, scale=1 / 255), dst=window)
        stroke(window, lower, who.skin * 0.55, 0.012 * pose.unit)
        lash = who.skin * 0.3 * (1 - who.lash) + 18
        stroke(window, upper, lash, (0.02 + 0.025 * who.lash) * pose.unit)
        rise = (0.05 + 0.02 * unit[5] - 0.03 * unit[4]) * who.lid_fold
        fold = tilt - np.maximum(open_up, 0.2 * who.eye_height) * arc * 1.15 - rise
        crease = lid(x[2:-1], fold[2:-1]) - low
        stroke(window, crease, who.skin * 0.62, 0.012 * pose.unit)

    def _draw_mouth(self, picture: np.ndarray, pose: Pose) -> None:
        who = self.who
        unit = {u: float(pose.of_unit(u).mean()) for u in (10, 12, 16, 17, 23, 25, 26, 27)}
        s = np.linspace(-1, 1, 31, dtype=np.float32)
        arc = np.clip(1 - s**2, 0, 1) ** 0.7
        thin = 1 - 0.55 * min(unit[23], 1.2)
        stretch = 1 - 0.2 * unit[12]
        bow = (
            1
            + 0.35 * np.exp(-(((np.abs(s) - 0.22) / 0.14) ** 2))
            - 0.25 * np.exp(-((s / 0.1) ** 2))
        )
        line = who.mouth_y - who.mouth_curve * (2 * s**2 - 1)
        up = who.upper_lip * thin * stretch * arc * bow
        down = who.lower_lip * thin * stretch * (1 + 0.2 * unit[17]) * arc
        part_up = (0.02 * unit[25] + 0.015 * unit[10]) * arc
        part_down = (0.06 * unit[25] + 0.035 * unit[16] + 0.02 * unit[26]) * arc

        def lip(y: np.ndarray, jaw: float) -> np.ndarray:
            # The corners hang between the two jaws.
            points = np.stack([s * who.mouth_width, y], 1)
            share = np.abs(s)[:, None] ** 3
            middle = self._place(points, pose, jaw=jaw)
            corner = self._place(points, pose, jaw=0.4)
            return middle * (1 - share) + corner * share

        outer_up, inner_up = lip(line - part_up - up, 0.0), lip(line - part_up, 0.0)
        inner_down, outer_down = lip(line + part_down, 1.0), lip(line + part_down + down, 1.0)
        both = np.concatenate([outer_up, outer_down])
        window, low = window_around(both, picture, margin=0.1 * pose.unit)
        for curve in (outer_up, inner_up, inner_down, outer_down):
            curve -= low
        drawn = window.copy()
        gap = inner_down - inner_up
        if gap[:, 1].max() > 0.015 * pose.unit:
            fill_between(drawn, inner_up, inner_down, (52, 16, 18))
            teeth = inner_up + np.minimum(gap * 0.62, 0.085 * pose.unit)
            fill_between(drawn, inner_up, teeth, (226, 218, 206))
            if unit[16] > 0.3:
                teeth = inner_down - np.minimum(gap * 0.3, 0.05 * pose.unit)
                fill_between(drawn, inner_down, teeth, (205, 196, 184))
            if gap[:, 1].max() > 0.16 * pose.unit:
                tongue = slice(7, 24)
                hump = inner_down[tongue] - gap[tongue] * 0.32 * arc[tongue, None]
                fill_between(drawn, inner_down[tongue], hump, (150, 66, 66))
        fill_between(drawn, outer_up, inner_up, who.lip * 0.8)
        fill_between(drawn, inner_down, outer_down, who.lip)
        middle = 0.55 * inner_down + 0.45 * outer_down
        stroke(drawn, middle[9:22], np.minimum(who.lip * 1.18 + 8, 255), 0.025 * pose.unit)
        stroke(drawn, inner_up, who.lip * 0.38, 0.014 * pose.unit)
        shadow = outer_down[8:23] + np.array([0, 0.02 * pose.unit])
        stroke(drawn, shadow, who.skin * 0.72, 2)
        drawn = cv2.GaussianBlur(drawn, (0, 0), 0.012 * pose.unit)
        cv2.addWeighted(drawn, 0.93, window, 0.07, 0, dst=window)


# ---------------------------------------------------------------------------------------------
# Clips


SUPERSAMPLING = 2


def draw_clip(
    identity: Identity, expression: str, settings: DrawingSettings, rng: np.random.Generator
) -> list[np.ndarray]:
    """Draw one clip, from neutral to its apex, the last frame: RGB uint8 (S, S, 3) each."""
    d, frames = settings.difficulty, settings.frames
    size = settings.picture_size * SUPERSAMPLING
    unit = size * rng.uniform(0.205, 0.245)
    head = size * np.array([rng.uniform(0.45, 0.55), rng.uniform(0.43, 0.5)])
    light = np.array([rng.uniform(-0.55, 0.55), rng.uniform(-0.6, -0.1), 0.8])
    light /= np.linalg.norm(light)
    cast = rng.uniform(0.8, 1.1) * (1 + rng.normal(0, 0.035, 3))
    behind = backdrop(size, head, unit, identity, rng)
    drawn_head = Head(identity, Canvas(0.225 * size), light)
    level = activations(identity, expression, settings, rng) + resting_units(identity, settings)

    walk = smooth_walk(rng, frames, 9)
    still = rng.normal(0, 1, 3) * [0.05, 0.06, 0.05]
    blink = np.zeros(frames)
    if frames >= 12 and rng.random() < 0.35:
        middle = rng.uniform(4, frames - 5)
        blink = np.clip(1.6 - np.abs(np.arange(frames) - middle) / 1.6, 0, 1)
    flicker = 1 + 0.03 * d * walk[:, 6] + rng.normal(0, 0.008 * d, frames)
    noise = 0.8 + 2.6 * d
    gaze = np.stack([0.02 * walk[:, 7] + rng.normal(0, 0.012), 0.008 * walk[:, 8]], 1)

    pictures = []
    for t in range(frames):
        picture = behind.copy()
        pose = Pose(
            center=head + unit * 0.04 * d * walk[t, :2],
            unit=unit * (1 + 0.016 * d * walk[t, 2]),
            angle=still[0] + 0.028 * d * walk[t, 3],
            yaw=still[1] + 0.04 * d * walk[t, 4],
            pitch=still[2] + 0.04 * d * walk[t, 5],
            level=level[t],
            blink=float(blink[t]),
            gaze=gaze[t],
        )
        drawn_head.draw(picture, pose)
        picture = cv2.resize(picture, (settings.picture_size,) * 2, interpolation=cv2.INTER_AREA)
        lit = picture * (cast * flicker[t]).astype(np.float32)
        pictures.append(cv2.add(lit, noise * sensor_noise(rng, lit.shape), dtype=cv2.CV_8U))
    return pictures


def sensor_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Nearly normal noise of unit variance, float32: the sum of three bytes, four times as fast."""
    first, second, third = rng.integers(0, 256, (3, *shape), dtype=np.uint8)
    total = first.astype(np.float32) + second + third
    return (total - 382.5) / np.float32(128)
