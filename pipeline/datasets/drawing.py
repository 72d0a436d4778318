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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from cfer.errors import InputError

EXPRESSIONS = ("anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")
ACTION_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 16, 17, 20, 23, 25, 26, 27)
INDEX = {unit: i for i, unit in enumerate(ACTION_UNITS)}
# Part of the settings' digest: raise it when the same settings draw other pixels.
DRAWING_VERSION = 1

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

SKIN_TONES = ((247, 219, 200), (233, 194, 166), (210, 163, 128), (170, 118, 84), (116, 75, 53))
HAIR_COLORS = (
    (28, 24, 24),
    (58, 38, 28),
    (96, 62, 38),
    (150, 104, 60),
    (205, 170, 110),
    (150, 66, 34),
    (165, 162, 160),
)
IRIS_COLORS = ((70, 45, 28), (104, 70, 38), (92, 104, 58), (86, 122, 150), (110, 130, 138))
HAIR_STYLES = ("bald", "buzz", "short", "parted", "fringe", "long", "curly", "receding")
GLASSES = ("none", "none", "none", "round", "square", "half")
BEARDS = ("none", "none", "none", "stubble", "moustache", "goatee", "full")

Color = tuple[float, float, float]
Paint = Sequence[float] | np.ndarray | float
Tint = Callable[[np.ndarray, Paint, float], None]


@dataclass(frozen=True)
class DrawingSettings:
    """What decides a clip's pixels beside the subject and the expression.

    `picture_size` in pixels; `difficulty` from 0 (easy) over 1 (hard) upwards scales head motion,
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
        if self.seed < 0:
            raise InputError(f"--seed: {self.seed} is negative; give 0 or more")


@dataclass(frozen=True)
class Identity:
    """One person. Lengths in half face widths, colors RGB 0..255, `*_z` standard normal scores.

    Arrays over action units are in the order of `ACTION_UNITS`.
    """

    # Head
    cheek_width: float
    jaw_width: float
    chin_width: float
    chin_y: float
    crown_y: float
    ear_size: float
    # Features
    eye_x: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    lash: float
    lid_fold: float
    brow_y: float
    brow_thickness: float
    brow_arch: float
    brow_slope: float
    brow_gap: float
    nose_y: float
    nose_width: float
    nose_height: float
    mouth_y: float
    mouth_width: float
    mouth_curve: float
    upper_lip: float
    lower_lip: float
    # Colors
    skin: Color
    blush: float
    lip: Color
    hair: Color
    brow: Color
    iris: Color
    glasses_color: Color
    # What one has or has not
    hair_style: str
    hair_volume: float
    glasses: str
    glasses_size: float
    beard: str
    age: float
    num_freckles: int
    num_moles: int
    texture_seed: int
    # Ways of moving
    mood: int
    mood_strength: float
    gain_z: tuple[float, ...]
    onset: tuple[float, ...]
    asymmetry_z: tuple[float, ...]
    habit_unit: int
    habit_strength: float
    contempt_side: int
    crease_depth: tuple[float, ...]
    variant_bias: int

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Identity:
        """Draw one person from `rng`."""
        u = rng.uniform
        n = len(ACTION_UNITS)
        female = rng.random() < 0.5
        tone = u(0, len(SKIN_TONES) - 1.001)
        low = int(tone)
        skin = np.array(SKIN_TONES[low]) * (1 - tone + low) + np.array(SKIN_TONES[low + 1]) * (
            tone - low
        )
        skin *= 1 + rng.normal(0, 0.025, 3)
        dark = tone / (len(SKIN_TONES) - 1)
        weights = np.array([4, 4, 3 - 2 * dark, 2 - 1.6 * dark, 2 - 1.9 * dark, 1 - 0.9 * dark, 1])
        hair = np.array(HAIR_COLORS[rng.choice(len(HAIR_COLORS), p=weights / weights.sum())])
        hair = np.clip(hair * (1 + rng.normal(0, 0.1)), 12, 235)
        lipstick = female and rng.random() < 0.45
        natural = skin * np.array([0.86, 0.62, 0.62])
        lip = np.array([u(140, 190), u(30, 80), u(50, 95)]) if lipstick else natural
        iris = IRIS_COLORS[0] if rng.random() < dark else IRIS_COLORS[rng.integers(5)]
        styles = HAIR_STYLES[2:7] if female else HAIR_STYLES
        return cls(
            cheek_width=u(0.93, 1.04),
            jaw_width=u(0.66, 0.84) if female else u(0.72, 0.92),
            chin_width=u(0.22, 0.4),
            chin_y=u(1.34, 1.58),
            crown_y=u(-1.5, -1.3),
            ear_size=u(0.18, 0.28),
            eye_x=u(0.38, 0.46),
            eye_width=u(0.165, 0.215),
            eye_height=u(0.06, 0.095),
            eye_tilt=u(-0.02, 0.05),
            lash=u(0.6, 1.0) if female else u(0.2, 0.5),
            lid_fold=u(0.2, 1.0),
            brow_y=u(-0.36, -0.27),
            brow_thickness=u(0.03, 0.06) if female else u(0.045, 0.085),
            brow_arch=u(0.0, 0.07),
            brow_slope=rng.normal(0, 0.03),
            brow_gap=u(0.14, 0.22),
            nose_y=u(0.5, 0.64),
            nose_width=u(0.15, 0.25),
            nose_height=u(0.2, 0.36),
            mouth_y=u(0.89, 1.0),
            mouth_width=u(0.3, 0.42),
            mouth_curve=rng.normal(0, 0.015),
            upper_lip=u(0.035, 0.085),
            lower_lip=u(0.055, 0.11),
            skin=_color(skin),
            blush=u(0.0, 1.0),
            lip=_color(lip),
            hair=_color(hair),
            brow=_color(hair * u(0.5, 0.9)),
            iris=_color(np.array(iris) * u(0.85, 1.15)),
            glasses_color=_color(rng.choice(np.array([[25, 22, 22], [80, 45, 25], [120, 25, 35]]))),
            hair_style=styles[rng.integers(len(styles))],
            hair_volume=u(0.0, 1.0),
            glasses=GLASSES[rng.integers(len(GLASSES))],
            glasses_size=u(0.85, 1.1),
            beard="none" if female else BEARDS[rng.integers(len(BEARDS))],
            age=float(rng.beta(1.2, 2.0)),
            num_freckles=int(rng.integers(30, 140)) if rng.random() < 0.25 else 0,
            num_moles=int(rng.integers(0, 5)),
            texture_seed=int(rng.integers(2**31)),
            mood=int(rng.integers(len(MOODS))),
            mood_strength=u(0.5, 1.0),
            gain_z=tuple(rng.standard_normal(n).tolist()),
            onset=tuple(rng.uniform(0, 1, n).tolist()),
            asymmetry_z=tuple(rng.standard_normal(n).tolist()),
            habit_unit=int(rng.choice([1, 2, 4, 7, 10, 14, 17, 20, 25])),
            habit_strength=u(0.1, 0.5),
            contempt_side=int(rng.integers(2)),
            crease_depth=tuple(rng.uniform(0.25, 1.0, len(CREASES)).tolist()),
            variant_bias=int(rng.integers(3)),
        )


def _color(values: np.ndarray) -> Color:
    red, green, blue = np.clip(values, 0, 255).tolist()
    return (red, green, blue)


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
    gains = np.exp(0.45 * d * np.array(identity.gain_z) + rng.normal(0, 0.12 * d, len(strength)))
    strength = np.minimum(strength * overall * np.clip(gains, 0.2, 1.8), 1.3)
    strength[INDEX[identity.habit_unit]] += identity.habit_strength * d
    # Something unrelated moves as well in most clips.
    strength[rng.integers(len(strength))] += 0.4 * d * rng.random()
    skew = np.clip(0.22 * d * np.array(identity.asymmetry_z), -0.7, 0.7)
    both = np.stack([strength * (1 + skew), strength * (1 - skew)], axis=1)
    if expression == "contempt":
        for unit in (12, 14):
            both[INDEX[unit], 1 - identity.contempt_side] *= 0.12
    apex = settings.frames - 1
    onset = np.clip(
        np.array(identity.onset) * 0.5 * min(d, 1) + rng.normal(0, 0.04, len(strength)), 0, 0.6
    )
    end = np.clip(1 - 0.25 * rng.random(len(strength)), onset + 0.2, 1)
    position = np.clip((np.arange(settings.frames)[:, None] / apex - onset) / (end - onset), 0, 1)
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


@dataclass(frozen=True)
class Pulls:
    """Every muscle pull of a face: unit and side (K,), center and vector (K, 2), reach (K,)."""

    unit: np.ndarray
    side: np.ndarray
    center: np.ndarray
    vector: np.ndarray
    reach: np.ndarray
    is_jaw: np.ndarray
    mouth_y: float

    @classmethod
    def of(cls, who: Identity) -> Pulls:
        """The pulls for this person's proportions, given for the right of the picture."""
        brow, eye, mouth = who.brow_y, who.eye_x, who.mouth_y
        corner = who.mouth_width
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
        rows = np.array([row for row in table for _ in range(2)])
        sign = np.tile([-1.0, 1.0], len(table))
        return cls(
            unit=np.array([INDEX[int(unit)] for unit in rows[:, 0]]),
            side=np.tile([0, 1], len(table)),
            center=np.stack([rows[:, 1] * sign, rows[:, 2]], axis=1).astype(np.float32),
            vector=np.stack([rows[:, 3] * sign, rows[:, 4]], axis=1).astype(np.float32),
            reach=rows[:, 5].astype(np.float32),
            is_jaw=np.isin(rows[:, 0], (26, 27)),
            mouth_y=mouth,
        )

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


def spline(points: Sequence[Sequence[float]], closed: bool = False, steps: int = 8) -> np.ndarray:
    """A smooth curve through `points`: float32 (N, 2)."""
    p = np.asarray(points, np.float64)
    n = len(p)
    i = np.arange(n if closed else n - 1)
    pick = (lambda k: p[k % n]) if closed else (lambda k: p[np.clip(k, 0, n - 1)])
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
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


def fill(picture: np.ndarray, points: np.ndarray, color: Paint) -> None:
    cv2.fillPoly(picture, [_fixed(points)], _scalar(color), cv2.LINE_AA, SHIFT)


def stroke(picture: np.ndarray, points: np.ndarray, color: Paint, width: float) -> None:
    cv2.polylines(
        picture, [_fixed(points)], False, _scalar(color), max(1, round(width)), cv2.LINE_AA, SHIFT
    )


def _scalar(color: Paint) -> tuple[float, ...]:
    return (float(color),) if isinstance(color, (int, float)) else tuple(map(float, color))


def fractal_noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: Iterable[int]
) -> np.ndarray:
    """Smooth noise of about unit variance, a sum over numbers of cells: float32 `shape`."""
    total = np.zeros(shape, np.float32)
    count = 0
    for cell in cells:
        coarse = rng.standard_normal((cell + 2, cell + 2), dtype=np.float32)
        total += cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
        count += 1
    return total / math.sqrt(count)


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

    def pixels(self, points: np.ndarray) -> np.ndarray:
        return (points - np.array([X_RANGE[0], Y_RANGE[0]], np.float32)) * self.per_unit

    def mask(self, points: np.ndarray, soft: float = 0.0) -> np.ndarray:
        """A filled outline, its edge blurred over `soft` units: float32 (H, W), 0..1."""
        picture = np.zeros(self.shape, np.uint8)
        fill(picture, self.pixels(points), 255)
        mask = picture.astype(np.float32) / 255
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


def head_outline(who: Identity) -> np.ndarray:
    w = who.cheek_width
    return spline(
        mirror(
            [
                (0, who.crown_y),
                (0.55 * w, who.crown_y * 0.9),
                (0.9 * w, -0.72),
                (1.0 * w, -0.1),
                (0.5 * w + 0.5 * who.jaw_width, 0.55),
                (who.jaw_width, 0.92),
                (who.chin_width, who.chin_y - 0.05),
                (0, who.chin_y),
            ]
        ),
        closed=True,
    )


def brow_curve(who: Identity) -> tuple[np.ndarray, np.ndarray]:
    """The right brow from the nose outwards: its middle line (N, 2) and its thickness (N,)."""
    s = np.linspace(0, 1, 24, dtype=np.float32)
    x = who.brow_gap + s * (who.eye_x + who.eye_width * 1.35 - who.brow_gap)
    arch = -who.brow_arch * np.sin(np.pi * np.clip(s * 1.25 - 0.1, 0, 1))
    y = who.brow_y + arch + who.brow_slope * (0.5 - s) + 0.03 * s**2
    return np.stack([x, y], 1), who.brow_thickness * np.clip(1.1 - 0.9 * s**2, 0.15, 1)


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
    skin = np.array(who.skin, np.float32)
    mottle = fractal_noise(rng, canvas.shape, (9, 30)) * 0.018
    pores = rng.standard_normal(canvas.shape, dtype=np.float32) * (0.012 + 0.02 * who.age)
    albedo: np.ndarray = np.broadcast_to(skin, (*canvas.shape, 3)) * (
        1 + mottle + cv2.GaussianBlur(pores, (0, 0), 0.8) * 2
    )[..., None].astype(np.float32)

    def tint(mask: np.ndarray, color: Paint, share: float) -> None:
        nonlocal albedo
        weight = (mask * share)[..., None]
        albedo = albedo * (1 - weight) + np.array(color, np.float32) * weight

    red = skin * np.array([1.0, 0.72, 0.7], np.float32)
    tint(canvas.blobs(0.56, 0.42, 0.26, 0.2), red, 0.15 + 0.4 * who.blush)
    tint(canvas.blob(0, who.nose_y - 0.03, 0.14, 0.12), red, 0.25 + 0.2 * who.blush)
    tint(canvas.blobs(who.eye_x, 0.02, 0.24, 0.14), skin * np.float32(0.72), 0.25 + 0.3 * who.age)

    dots = np.zeros(canvas.shape, np.uint8)
    for _ in range(who.num_freckles):
        at = np.array([rng.normal(0, 0.42), rng.normal(0.3, 0.17)], np.float32)
        center = _fixed(canvas.pixels(at))
        radius = int(rng.uniform(0.006, 0.015) * canvas.per_unit * (1 << SHIFT))
        cv2.circle(dots, center.tolist(), radius, rng.uniform(90, 230), -1, cv2.LINE_AA, SHIFT)
    tint(dots.astype(np.float32) / 255, skin * np.array([0.66, 0.5, 0.42]), 0.6)
    dots[:] = 0
    for _ in range(who.num_moles):
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.85)
        at = np.array([far * np.cos(angle) * 0.85, 0.35 + far * np.sin(angle) * 0.85], np.float32)
        radius = int(rng.uniform(0.014, 0.03) * canvas.per_unit * (1 << SHIFT))
        cv2.circle(dots, _fixed(canvas.pixels(at)).tolist(), radius, 255.0, -1, cv2.LINE_AA, SHIFT)
    tint(cv2.GaussianBlur(dots, (0, 0), 0.8).astype(np.float32) / 255, skin * 0.35, 0.85)

    _beard(canvas, who, rng, tint)
    _nose(canvas, who, skin, tint)
    _brows(canvas, who, rng, tint)

    return albedo


def face_layer(canvas: Canvas, who: Identity, light: np.ndarray) -> np.ndarray:
    """Everything that the muscles move, less eyes and mouth: uint8 (H, W, 4), premultiplied."""
    skin = np.array(who.skin, np.float32)
    shade, gloss = shading(canvas, who, light)
    picture = skin_of(who, canvas.per_unit) * shade[..., None] + 30 * gloss[..., None]
    outline = head_outline(who)
    alpha = canvas.mask(outline)
    inner = cv2.GaussianBlur(alpha, (0, 0), 0.05 * canvas.per_unit)
    picture *= (0.72 + 0.28 * np.clip(2 * inner - 1, 0, 1))[..., None]
    ears = np.zeros(canvas.shape, np.float32)
    for side in (-1, 1):
        ear = canvas.pixels(np.array([side * (who.cheek_width + 0.02), 0.16], np.float32))
        size = np.array([0.22, 2 * who.ear_size]) * canvas.per_unit
        for scale, darken in ((1.0, 0.82), (0.55, 0.62)):
            mask = np.zeros(canvas.shape, np.uint8)
            box = (ear.tolist(), (size * scale).tolist(), side * 8.0)
            cv2.ellipse(mask, box, 255.0, -1, cv2.LINE_AA)
            behind = (mask.astype(np.float32) / 255 * (1 - alpha))[..., None]
            picture = picture * (1 - behind) + skin * darken * behind
            ears = np.maximum(ears, mask.astype(np.float32) / 255)
    return _premultiply(picture, np.maximum(alpha, ears))


def _premultiply(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    layer = np.empty((*alpha.shape, 4), np.float32)
    layer[..., :3] = np.clip(picture, 0, 255) * alpha[..., None]
    layer[..., 3] = alpha * 255
    return np.round(layer).astype(np.uint8)


def _beard(canvas: Canvas, who: Identity, rng: np.random.Generator, tint: Tint) -> None:
    if who.beard == "none":
        return
    x, y = np.abs(canvas.x), canvas.y
    moustache = canvas.blobs(0.15, who.mouth_y - 0.13, 0.2, 0.055)
    edge = 0.5 + 0.42 * np.clip(1 - x / 0.95, 0, 1) ** 0.6 + 0.12
    jaw = 1 / (1 + np.exp(np.clip((edge + 0.1 - y) / 0.035, -30, 30)))
    lips = canvas.blob(0, who.mouth_y + 0.01, who.mouth_width * 1.05, 0.11)
    goatee = canvas.blob(0, who.chin_y - 0.16, 0.24, 0.19)
    masks = {
        "stubble": (np.maximum(jaw, moustache), 0.38),
        "full": (np.maximum(jaw, moustache), 0.85),
        "moustache": (moustache, 0.9),
        "goatee": (np.maximum(goatee, moustache), 0.85),
    }
    mask, share = masks[who.beard]
    mask = np.clip(mask * 1.4, 0, 1) * (1 - np.clip(lips * 1.3, 0, 1))
    hairs = cv2.GaussianBlur(
        rng.standard_normal(canvas.shape, dtype=np.float32), (0, 0), 0.7, sigmaY=1.8
    )
    mask *= np.clip(0.8 + 0.9 * hairs, 0, 1.1)
    tint(np.clip(mask, 0, 1), np.array(who.hair) * 0.75, share)


def _nose(canvas: Canvas, who: Identity, skin: np.ndarray, tint: Tint) -> None:
    lines = np.zeros(canvas.shape, np.uint8)
    holes = np.zeros(canvas.shape, np.uint8)
    w, y = who.nose_width, who.nose_y
    for side in (-1, 1):
        wing = spline(
            [
                (side * w * 0.8, y - 0.13),
                (side * w * 1.02, y - 0.03),
                (side * w * 0.8, y + 0.035),
                (side * w * 0.5, y + 0.02),
            ]
        )
        stroke(lines, canvas.pixels(wing), 200, 0.022 * canvas.per_unit)
        hole = canvas.pixels(np.array([side * w * 0.48, y + 0.02], np.float32)).tolist()
        size = (np.array([w * 0.5, 0.055]) * canvas.per_unit).tolist()
        cv2.ellipse(holes, (hole, size, -side * 14.0), 255.0, -1, cv2.LINE_AA)
    base = spline([(-w * 0.5, y + 0.05), (0, y + 0.075), (w * 0.5, y + 0.05)])
    stroke(lines, canvas.pixels(base), 130, 0.02 * canvas.per_unit)
    soft = 0.014 * canvas.per_unit
    tint(cv2.GaussianBlur(lines, (0, 0), soft).astype(np.float32) / 255, skin * 0.45, 0.8)
    tint(cv2.GaussianBlur(holes, (0, 0), soft * 0.7).astype(np.float32) / 255, skin * 0.2, 0.85)


def _brows(canvas: Canvas, who: Identity, rng: np.random.Generator, tint: Tint) -> None:
    middle, thick = brow_curve(who)
    base = np.zeros(canvas.shape, np.uint8)
    hairs = np.zeros(canvas.shape, np.uint8)
    for side in (-1, 1):
        sign = np.array([side, 1], np.float32)
        half = np.stack([np.zeros_like(thick), thick / 2], 1)
        outline = np.concatenate([middle - half, (middle + half)[::-1]]) * sign
        fill(base, canvas.pixels(outline), 255)
        for _ in range(70):
            i = int(rng.integers(0, len(middle) - 3))
            root = middle[i] + [0, rng.uniform(-0.6, 0.6) * thick[i]]
            lean = np.array([rng.uniform(0.03, 0.07), -thick[i] * rng.uniform(-0.3, 0.5)])
            stroke(hairs, canvas.pixels(np.array([root, root + lean], np.float32) * sign), 255, 1)
    soft = cv2.GaussianBlur(base, (0, 0), 0.012 * canvas.per_unit)
    tint(soft.astype(np.float32) / 255, who.brow, 0.75)
    tint(hairs.astype(np.float32) / 255, np.array(who.brow) * 0.7, 0.65)


def hairline(who: Identity) -> list[tuple[float, float]]:
    """The right half of the opening that the hair leaves, from the middle of the forehead down."""
    w = who.cheek_width
    side = {"fringe": (0.92, 0.2), "long": (0.9, 0.2), "curly": (0.98, 0.0)}.get(
        who.hair_style, (1.0, 0.05)
    )
    top = {"fringe": -0.5, "receding": -1.2, "buzz": -0.95, "long": -0.92}.get(
        who.hair_style, -0.86
    )
    shoulder = {"fringe": -0.46, "receding": -0.95, "long": -0.5}.get(who.hair_style, -0.72)
    reach = 0.98 if who.hair_style in ("fringe",) else 0.8
    return [(0, top), (0.45 * w, top + 0.03), (reach * w * 0.95, shoulder), (side[0] * w, side[1])]


def front_layer(canvas: Canvas, who: Identity, light: np.ndarray) -> np.ndarray:
    """Hair and glasses, which only follow the head: uint8 (H, W, 4), premultiplied."""
    alpha: np.ndarray = np.zeros(canvas.shape, np.float32)
    picture: np.ndarray = np.zeros((*canvas.shape, 3), np.float32)
    style, w = who.hair_style, who.cheek_width
    if style != "bald":
        grow = {"buzz": 0.03, "receding": 0.05, "curly": 0.14}.get(style, 0.08)
        grow += 0.10 * who.hair_volume * (style not in ("buzz", "receding"))
        top = who.crown_y - grow
        low = {"long": 1.75, "fringe": 1.0 + 0.4 * who.hair_volume}.get(style)
        right: list[tuple[float, float]] = [
            (0, top),
            (0.6 * w, top * 0.9),
            ((0.98 + grow) * w, -0.7),
            ((1.02 + grow) * w, -0.1),
        ]
        if low is None:
            right += [(1.03 * w, 0.12), (0.97 * w, 0.12)]
        else:
            right += [((1.08 + grow) * w, 0.6), (1.05 * w, low), (0.8 * w, low + 0.05)]
        hair = canvas.mask(spline(mirror([*right, (0, 0.3)]), closed=True))
        inner = hairline(who)
        if low is not None:
            inner += [(0.9 * w, 0.7), (0.8 * w, 2.2), (0, 2.3)]
        else:
            inner += [(1.3 * w, 0.4), (0.8 * w, 1.2), (0, 1.4)]
        opening = mirror(inner)
        if style == "parted":
            opening = [[x + 0.25 * (y < -0.6), y - 0.1 * (y < -0.8)] for x, y in opening]
        hair *= 1 - canvas.mask(spline(opening, closed=True), soft=0.012)
        if style == "curly":
            curls = np.zeros(canvas.shape, np.uint8)
            own = np.random.default_rng(who.texture_seed + 1)
            for angle in np.linspace(0.06, 0.94, 22) * np.pi:
                far = 1.05 + 0.08 * own.random() + 0.12 * who.hair_volume
                at = np.array(
                    [np.cos(angle) * w * far, -0.1 - np.sin(angle) * (-who.crown_y - 0.1) * far],
                    np.float32,
                )
                radius = int(own.uniform(0.13, 0.22) * canvas.per_unit * (1 << SHIFT))
                center = _fixed(canvas.pixels(at)).tolist()
                cv2.circle(curls, center, radius, 255.0, -1, cv2.LINE_AA, SHIFT)
            hair = np.maximum(hair, curls.astype(np.float32) / 255)
        own = np.random.default_rng(who.texture_seed + 2)
        strands = cv2.resize(
            own.standard_normal((8 if style != "curly" else 60, 140), dtype=np.float32),
            canvas.shape[::-1],
            interpolation=cv2.INTER_CUBIC,
        )
        lit = 0.8 + 0.25 * np.clip(canvas.x * light[0] - (canvas.y + 0.3) * 0.7, -1, 1)
        shine = 0.35 * canvas.blob(light[0] * 0.5, who.crown_y * 0.75, 0.7, 0.16)
        tone = np.clip(lit + shine + 0.13 * strands, 0.3, 1.6)[..., None]
        picture = np.array(who.hair, np.float32) * tone + 6
        alpha = hair * (0.75 if style == "buzz" else 1.0)
    layer = _premultiply(picture, alpha)
    return _glasses(canvas, who, layer) if who.glasses != "none" else layer


def _glasses(canvas: Canvas, who: Identity, layer: np.ndarray) -> np.ndarray:
    lens = np.zeros(canvas.shape, np.uint8)
    rims = np.zeros(canvas.shape, np.uint8)
    band = slice(*np.searchsorted(canvas.rows[:, 0], (-0.5, 0.6)))
    size = 0.30 * who.glasses_size
    corner = {"round": 2.0, "square": 5.0, "half": 3.5}[who.glasses]
    t = np.linspace(0, 2 * np.pi, 60, dtype=np.float32)
    wave = np.stack([np.cos(t), np.sin(t)], 1)
    shape = np.sign(wave) * np.abs(wave) ** (2 / corner) * [size, size * (0.95 - 0.06 * corner)]
    width = 0.03 * canvas.per_unit
    for side in (-1, 1):
        rim = canvas.pixels((shape + np.array([side * who.eye_x, 0.05])).astype(np.float32))
        fill(lens, rim, 255)
        stroke(rims, rim[30:] if who.glasses == "half" else rim, 255, width)
        temple = [(side * (who.eye_x + size), -0.02), (side * (who.cheek_width + 0.04), -0.06)]
        stroke(rims, canvas.pixels(np.array(temple, np.float32)), 255, width)
    inside = who.eye_x - size
    bridge = spline([(-inside, 0.0), (0, -0.04), (inside, 0.0)])
    stroke(rims, canvas.pixels(bridge), 255, width)
    glint = np.clip(np.sin((canvas.x + canvas.y)[band] * 9), 0.8, 1) - 0.8
    sheen = lens[band].astype(np.float32) / 255 * (0.03 + 0.35 * glint)
    out = layer[band].astype(np.float32)
    for alpha, color in (
        (sheen, (235, 240, 245)),
        (rims[band].astype(np.float32) / 255, who.glasses_color),
    ):
        over = np.array([*color, 255], np.float32)
        out = out * (1 - alpha[..., None]) + over * alpha[..., None]
    layer[band] = np.round(out).astype(np.uint8)
    return layer


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
        fill(picture, shape.astype(np.float32), (rng.uniform(30, 225, 3) * 0.8).tolist())
    picture = cv2.GaussianBlur(picture, (0, 0), size * rng.uniform(0.006, 0.03))

    def place(points: Sequence[Sequence[float]], closed: bool = True) -> np.ndarray:
        return head + spline(points, closed=closed) * unit

    skin = np.array(who.skin, np.float32)
    if who.hair_style == "long":
        fill(
            picture,
            place(mirror([(0, -0.5), (1.12, 0.4), (1.15, 1.6), (0.9, 2.0), (0, 2.0)])),
            np.array(who.hair) * 0.62,
        )
    neck = who.jaw_width * 0.68
    fill(
        picture,
        place(mirror([(0, 0.8), (neck, 0.8), (neck, 1.8), (neck + 0.3, 2.2), (0, 2.6)])),
        skin * 0.72,
    )
    shadow = np.zeros((size, size), np.uint8)
    fill(
        shadow,
        place(
            mirror([(0, 0.8), (neck, 0.9), (neck * 0.8, who.chin_y + 0.18), (0, who.chin_y + 0.25)])
        ),
        255,
    )
    dim = cv2.GaussianBlur(shadow, (0, 0), 0.09 * unit).astype(np.float32)[..., None] / 255
    picture *= 1 - 0.38 * dim
    cloth = rng.uniform(25, 220, 3)
    shirt = place(
        mirror([(0, 2.12), (neck + 0.08, 1.82), (1.25, 2.05), (1.75, 2.5), (1.9, 4.0), (0, 4.2)])
    )
    mask = np.zeros((size, size), np.uint8)
    fill(mask, shirt, 255)
    weave = 1 + 0.06 * fractal_noise(rng, (size, size), (5, 14))
    cover = mask.astype(np.float32)[..., None] / 255
    picture = picture * (1 - cover) + cloth * weave[..., None] * cover
    return np.clip(picture, 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------
# What is drawn anew in every frame


# Creases: the units that deepen them, with the curve on the right of the picture as a function of
# the face. Those of one line move with both sides' mean.
CREASES = (
    "forehead", "glabella", "nose", "crow", "under_eye", "nasolabial", "dimple", "mouth_corner",
    "chin",
)  # fmt: skip
CREASE_UNITS: dict[str, dict[int, float]] = {
    "forehead": {1: 0.7, 2: 0.7},
    "glabella": {4: 1.0, 9: 0.4},
    "nose": {9: 1.0},
    "crow": {6: 0.9},
    "under_eye": {6: 0.8, 7: 0.5},
    "nasolabial": {12: 0.7, 10: 0.6, 9: 0.5, 20: 0.3, 6: 0.2},
    "dimple": {14: 1.0, 12: 0.3},
    "mouth_corner": {15: 0.9, 17: 0.2},
    "chin": {17: 1.0},
}
# How visible a crease is at rest in the oldest faces.
CREASE_AT_REST = {"forehead": 0.35, "glabella": 0.2, "under_eye": 0.4, "nasolabial": 0.5}


def crease_curves(who: Identity) -> dict[str, list[np.ndarray]]:
    """The creases on the right of the picture, by name."""
    ex, ew, my, mw = who.eye_x, who.eye_width, who.mouth_y, who.mouth_width
    ny, nw, by = who.nose_y, who.nose_width, who.brow_y
    eye_end = ex + ew + 0.05
    return {
        "forehead": [
            spline([(0, by - 0.2 - k), (0.3, by - 0.24 - k), (0.58, by - 0.17 - k)])
            for k in (0, 0.12, 0.24)
        ],
        "glabella": [spline([(0.07, by + 0.1), (0.075, by), (0.1, by - 0.12)])],
        "nose": [
            spline([(0.02, 0.02 + k), (0.08, 0.0 + k), (0.13, 0.06 + k)]) for k in (0.0, 0.09)
        ],
        "crow": [
            spline([(eye_end, 0.02 + k * 0.5), (eye_end + 0.08, k), (eye_end + 0.15, k * 1.8)])
            for k in (-0.06, 0.02, 0.1)
        ],
        "under_eye": [
            spline([(ex - ew, 0.09), (ex - 0.03, 0.17), (ex + ew * 0.9, 0.12)]),
        ],
        "nasolabial": [
            spline([(nw + 0.04, ny - 0.06), (nw + 0.16, ny + 0.12), (mw + 0.12, my - 0.05),
                    (mw + 0.11, my + 0.06)])
        ],
        "dimple": [spline([(mw + 0.05, my - 0.08), (mw + 0.085, my), (mw + 0.05, my + 0.07)])],
        "mouth_corner": [
            spline([(mw + 0.02, my + 0.03), (mw + 0.06, my + 0.11), (mw + 0.05, my + 0.2)])
        ],
        "chin": [
            spline([(0.0, my + 0.19), (0.12, my + 0.2), (0.2, my + 0.25)]),
            spline([(0.05, my + 0.3), (0.1, my + 0.33)]),
        ],
    }  # fmt: skip


@dataclass(frozen=True)
class Pose:
    """Where the head is in a frame: pixels of the drawing, radians, and turns in depth."""

    center: np.ndarray
    unit: float
    angle: float
    yaw: float
    pitch: float


def to_picture(points: np.ndarray, pose: Pose, who: Identity) -> np.ndarray:
    """Head coordinates (N, 2) → pixels (N, 2)."""
    z = depth(points[:, 0], points[:, 1], who)
    turned = points + np.stack([pose.yaw * z, pose.pitch * z], 1)
    c, s = math.cos(pose.angle), math.sin(pose.angle)
    return pose.center + pose.unit * (turned @ np.array([[c, s], [-s, c]]))


def sampling_maps(
    shape: tuple[int, int], origin: np.ndarray, pose: Pose, who: Identity, canvas: Canvas,
    pulls: Pulls, level: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """For each pixel of the drawing's region, its place in the layers: rigid, and with the pulls.

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
    z = depth(plain[:, 0], plain[:, 1], who)
    flat = plain - np.stack([pose.yaw * z, pose.pitch * z], 1).astype(np.float32)
    source = flat
    for _ in range(3):  # the inverse of the pulls, as a fixed point
        source = flat - pulls.displacement(source, level)
    maps = []
    for place in (flat, source):
        coarse = canvas.pixels(place).astype(np.float32).reshape(rows, columns, 2)
        full = cv2.resize(coarse, (columns * step, rows * step), interpolation=cv2.INTER_LINEAR)
        maps.append(full[: shape[0], : shape[1]])
    return maps[0], maps[1]


def sample(layer: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A layer (H, W, 4) as seen from `places` (h, w, 2) in it: uint8 (h, w, 4)."""
    # OpenCV's types don't know that the second map is absent where the first holds both.
    return cv2.remap(layer, places, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]


def lay_over(picture: np.ndarray, layer: np.ndarray) -> None:
    """Put a premultiplied layer (H, W, 4) on the picture (H, W, 3), in place."""
    keep = cv2.cvtColor(255 - cv2.extractChannel(layer, 3), cv2.COLOR_GRAY2RGB)
    under = cv2.multiply(picture, keep, scale=1 / 255)
    cv2.add(under, cv2.cvtColor(layer, cv2.COLOR_RGBA2RGB), dst=picture)


class Head:
    """One person in one clip's light, ready to be drawn in any pose with any action units on."""

    def __init__(self, who: Identity, canvas: Canvas, light: np.ndarray) -> None:
        self.who = who
        self.canvas = canvas
        self.face = face_layer(self.canvas, who, light)
        self.front = front_layer(self.canvas, who, light)
        self.pulls = Pulls.of(who)
        self.creases = crease_curves(who)

    def draw(
        self, picture: np.ndarray, pose: Pose, level: np.ndarray, blink: float, gaze: np.ndarray
    ) -> None:
        """Draw the head on `picture` (uint8, in place): `level` (units, 2), `blink` 0..1."""
        size = picture.shape[0]
        reach = pose.unit * np.array([[X_RANGE[0], Y_RANGE[0]], [X_RANGE[1], Y_RANGE[1]]])
        low, high = np.clip(np.round(pose.center + reach), 0, size).astype(int)
        region = picture[low[1] : high[1], low[0] : high[0]]
        rigid, pulled = sampling_maps(
            region.shape[:2], low, pose, self.who, self.canvas, self.pulls, level
        )
        lay_over(region, sample(self.face, pulled))
        self._draw_creases(picture, pose, level)
        for side in (0, 1):
            self._draw_eye(picture, pose, level, side, blink, gaze)
        self._draw_mouth(picture, pose, level)
        lay_over(region, sample(self.front, rigid))

    def _place(
        self, points: np.ndarray, pose: Pose, level: np.ndarray, jaw: float | None = None
    ) -> np.ndarray:
        moved = points + self.pulls.displacement(points, level, jaw)
        return to_picture(moved, pose, self.who)

    def _draw_creases(self, picture: np.ndarray, pose: Pose, level: np.ndarray) -> None:
        mask = np.zeros(picture.shape[:2], np.uint8)
        curves, weights = [], []
        for i, name in enumerate(CREASES):
            for side in (0, 1):
                drive = sum(w * level[INDEX[u], side] for u, w in CREASE_UNITS[name].items())
                rest = CREASE_AT_REST.get(name, 0.0) * self.who.age
                weight = rest + min(float(drive), 1.2) * self.who.crease_depth[i]
                if weight > 0.03:
                    sign = np.array([2 * side - 1, 1], np.float32)
                    curves += [curve * sign for curve in self.creases[name]]
                    weights += [min(weight, 1.0)] * len(self.creases[name])
        if not curves:
            return
        points = self._place(np.concatenate(curves), pose, level)
        ends = np.cumsum([len(curve) for curve in curves])[:-1]
        for curve, weight in zip(np.split(points, ends), weights, strict=True):
            stroke(mask, curve, weight * 255, 0.03 * pose.unit)
        low, high = _bounds(to_picture(np.array([[-1, -0.9], [1, 1.5]]), pose, self.who), picture)
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        soft = cv2.GaussianBlur(mask[window], (0, 0), 0.02 * pose.unit)
        # A crease is a shadow with a lit edge below it.
        lit = np.roll(soft, round(0.035 * pose.unit), axis=0)
        keep = 255 - (soft * np.float32(0.55)).astype(np.uint8)
        part = cv2.multiply(picture[window], cv2.merge([keep] * 3), scale=1 / 255)
        edge = (lit * np.float32(0.05)).astype(np.uint8)
        picture[window] = cv2.add(part, cv2.merge([edge] * 3))

    def _draw_eye(
        self, picture: np.ndarray, pose: Pose, level: np.ndarray, side: int, blink: float,
        gaze: np.ndarray,
    ) -> None:  # fmt: skip
        who = self.who
        unit = {u: float(level[INDEX[u], side]) for u in (4, 5, 6, 7, 9)}
        open_up = who.eye_height * (
            1 + 0.5 * unit[5] - 0.4 * unit[7] - 0.15 * unit[6] - 0.2 * unit[4] - 0.15 * unit[9]
        )
        open_up = max(open_up, 0.012)
        open_down = max(
            who.eye_height * 0.62 * (1 + 0.1 * unit[5] - 0.5 * unit[7] - 0.5 * unit[6]), 0.006
        )
        open_up = open_up * (1 - blink) - open_down * 0.8 * blink
        s = np.linspace(-1, 1, 21, dtype=np.float32)
        arc = (1 - s**2) ** 0.75
        x = who.eye_x + s * who.eye_width
        tilt = -who.eye_tilt * s
        sign = np.array([2 * side - 1, 1], np.float32)
        level_eye = 0.5 * level  # the globe holds the lids back
        upper = self._place(np.stack([x, tilt - open_up * arc], 1) * sign, pose, level_eye)
        lower = self._place(np.stack([x, tilt + open_down * arc], 1) * sign, pose, level_eye)
        low, high = _bounds(np.concatenate([upper, lower]), picture, margin=round(0.2 * pose.unit))
        window = picture[low[1] : high[1], low[0] : high[0]]
        upper, lower = upper - low, lower - low
        skin = np.array(who.skin)
        if blink < 0.9:
            ball = np.empty_like(window)
            ball[:] = (226, 221, 216)
            middle = np.array([[who.eye_x + gaze[0] * sign[0], gaze[1] - 0.012]], np.float32)
            center = to_picture(middle * sign, pose, who)[0] - low
            radius = 0.078 * pose.unit
            circles = (
                (1.0, np.array(who.iris) * 0.45),
                (0.86, np.array(who.iris)),
                (0.45, np.array([12, 10, 10])),
            )
            for scale, color in circles:
                _disc(ball, center, radius * scale, color)
            _disc(ball, center + np.array([-0.3, -0.35]) * radius, radius * 0.22, (250, 250, 250))
            # The upper lid's shadow on the globe.
            stroke(ball, upper, np.array([120, 105, 100]), 0.05 * pose.unit)
            ball = cv2.GaussianBlur(ball, (0, 0), 0.9)
            almond = np.zeros(window.shape[:2], np.uint8)
            fill(almond, np.concatenate([upper, lower[::-1]]), 255)
            keep = cv2.merge([almond] * 3)
            cv2.add(
                cv2.multiply(window, 255 - keep, scale=1 / 255),
                cv2.multiply(ball, keep, scale=1 / 255),
                dst=window,
            )
        stroke(window, lower, skin * 0.55, 0.012 * pose.unit)
        lash = skin * 0.3 * (1 - who.lash) + 18
        stroke(window, upper, lash, (0.02 + 0.025 * who.lash) * pose.unit)
        rise = (0.05 + 0.02 * unit[5] - 0.03 * unit[4]) * who.lid_fold
        fold = np.stack(
            [x, tilt - np.maximum(open_up, 0.2 * who.eye_height) * arc * 1.15 - rise], 1
        )
        points = self._place(fold[2:-1] * sign, pose, level_eye) - low
        stroke(window, points, skin * 0.62, 0.012 * pose.unit)

    def _draw_mouth(self, picture: np.ndarray, pose: Pose, level: np.ndarray) -> None:
        who = self.who
        unit = {u: float(level[INDEX[u]].mean()) for u in (10, 12, 16, 17, 23, 25, 26, 27)}
        s = np.linspace(-1, 1, 31, dtype=np.float32)
        arc = np.clip(1 - s**2, 0, 1) ** 0.7
        thin = 1 - 0.55 * min(unit[23], 1.2)
        stretch = 1 - 0.2 * unit[12]
        bow = (
            1
            + 0.35 * np.exp(-(((np.abs(s) - 0.22) / 0.14) ** 2))
            - 0.25 * np.exp(-((s / 0.1) ** 2))
        )
        x = s * who.mouth_width
        line = who.mouth_y - who.mouth_curve * (2 * s**2 - 1)
        up = who.upper_lip * thin * stretch * arc * bow
        down = who.lower_lip * thin * stretch * (1 + 0.2 * unit[17]) * arc
        part_up = (0.02 * unit[25] + 0.015 * unit[10]) * arc
        part_down = (0.06 * unit[25] + 0.035 * unit[16] + 0.02 * unit[26]) * arc

        def lip(y: np.ndarray, jaw: float) -> np.ndarray:
            # The corners hang between the two jaws.
            points = np.stack([x, y], 1)
            share = np.abs(s)[:, None] ** 3
            middle = self._place(points, pose, level, jaw)
            corner = self._place(points, pose, level, 0.4)
            return middle * (1 - share) + corner * share

        outer_up, inner_up = lip(line - part_up - up, 0.0), lip(line - part_up, 0.0)
        inner_down, outer_down = lip(line + part_down, 1.0), lip(line + part_down + down, 1.0)
        low, high = _bounds(
            np.concatenate([outer_up, outer_down]), picture, margin=round(0.1 * pose.unit)
        )
        window = picture[low[1] : high[1], low[0] : high[0]]
        outer_up, inner_up, inner_down, outer_down = (
            p - low for p in (outer_up, inner_up, inner_down, outer_down)
        )
        drawn = window.copy()
        color = np.array(who.lip)
        gap = inner_down - inner_up
        if gap[:, 1].max() > 0.015 * pose.unit:
            cavity = np.concatenate([inner_up, inner_down[::-1]])
            fill(drawn, cavity, (52, 16, 18))
            shown = np.minimum(gap * 0.62, 0.085 * pose.unit)
            fill(drawn, np.concatenate([inner_up, (inner_up + shown)[::-1]]), (226, 218, 206))
            if unit[16] > 0.3:
                shown = np.minimum(gap * 0.3, 0.05 * pose.unit)
                fill(
                    drawn, np.concatenate([inner_down, (inner_down - shown)[::-1]]), (205, 196, 184)
                )
            tongue = slice(7, 24)
            if gap[:, 1].max() > 0.16 * pose.unit:
                hump = inner_down[tongue] - gap[tongue] * 0.32 * arc[tongue, None]
                fill(drawn, np.concatenate([inner_down[tongue], hump[::-1]]), (150, 66, 66))
        fill(drawn, np.concatenate([outer_up, inner_up[::-1]]), color * 0.8)
        fill(drawn, np.concatenate([inner_down, outer_down[::-1]]), color)
        middle = 0.55 * inner_down + 0.45 * outer_down
        stroke(drawn, middle[9:22], np.minimum(color * 1.18 + 8, 255), 0.025 * pose.unit)
        stroke(drawn, inner_up, color * 0.38, 0.014 * pose.unit)
        stroke(
            drawn, outer_down[8:23] + np.array([0, 0.02 * pose.unit]), np.array(who.skin) * 0.72, 2
        )
        drawn = cv2.GaussianBlur(drawn, (0, 0), 0.012 * pose.unit)
        cv2.addWeighted(drawn, 0.93, window, 0.07, 0, dst=window)


def _disc(picture: np.ndarray, center: np.ndarray, radius: float, color: Paint) -> None:
    at = _fixed(center).tolist()
    cv2.circle(picture, at, round(radius * (1 << SHIFT)), _scalar(color), -1, cv2.LINE_AA, SHIFT)


def _bounds(
    points: np.ndarray, picture: np.ndarray, margin: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    limit = np.array(picture.shape[1::-1])
    low = np.clip(np.floor(points.min(0)).astype(int) - margin, 0, limit - 2)
    return low, np.clip(np.ceil(points.max(0)).astype(int) + margin, low + 2, limit)


# ---------------------------------------------------------------------------------------------
# Clips


SUPERSAMPLING = 2


def draw_clip(
    identity: Identity, expression: str, settings: DrawingSettings, rng: np.random.Generator
) -> tuple[list[np.ndarray], int]:
    """Draw one clip, neutral to apex.

    Returns the frames, RGB uint8 (S, S, 3), and the number of the apex frame, the last one.
    """
    if expression not in EXPRESSIONS:
        raise InputError(
            f"--classes: {expression!r} is not an expression; choose from {', '.join(EXPRESSIONS)}"
        )
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
        )
        drawn_head.draw(picture, pose, level[t], float(blink[t]), gaze[t])
        picture = cv2.resize(picture, (settings.picture_size,) * 2, interpolation=cv2.INTER_AREA)
        lit = picture * (cast * flicker[t]).astype(np.float32)
        pictures.append(cv2.add(lit, noise * sensor_noise(rng, lit.shape), dtype=cv2.CV_8U))
    return pictures, frames - 1


def sensor_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Nearly normal noise of unit variance, float32: the sum of three bytes, four times as fast."""
    first, second, third = rng.integers(0, 256, (3, *shape), dtype=np.uint8)
    total = first.astype(np.float32) + second + third
    return (total - 382.5) / np.float32(128)
