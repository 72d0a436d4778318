"""A person that is painted: a photograph with landmarks, for the tests of the photo puppets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

LANDMARKS = np.loadtxt(Path(__file__).parent / "fixtures" / "landmarks.csv", delimiter=",")
# Of the face frame, what the picture shows.
LEFT, TOP, EXTENT = -2.7, -2.2, 5.4
WALL, HAIR, SKIN = (176, 212, 190), (52, 36, 28), (208, 164, 140)
SHIRT, LIPS, BLUE = (120, 60, 60), (176, 84, 88), (40, 80, 190)
FACE = [109, 134, 135, 136, 137, 138, 139, 140, 141, 142, 143, 144, 112, 122, 123, 124, 114]
FACE += [133, 132, 131, 130, 129, 128, 127, 126, 125, 111, 119, 118, 117]
HAIRLINE = list(range(146, 157))
UPPER_LIP = [87, 88, 89, 90, 91, 92, 93, 98, 97, 96, 95, 94]
LOWER_LIP = [87, 99, 100, 101, 102, 103, 93, 108, 107, 106, 105, 104]
BROWS = ([71, 72, 73, 74, 75, 76, 84, 83], [77, 78, 79, 80, 81, 82, 86, 85])
EYES = ([18, 19, 20, 21, 22, 30, 29, 28], [23, 24, 25, 26, 27, 33, 32, 31])
IRISES = (range(2, 10), range(10, 18))
NOSE = [53, 54, 61, 62, 63, 64, 55, 69, 68, 67, 66, 60, 59]
CORNERS = (87, 93)  # of the mouth
RIGHT, DOWN = 0.05, -0.06  # where a smile takes them
FULL = 1.6  # strength of a broad smile
NOSTRILS = ([65, 64, 179], [70, 69, 182])


def painted(unit: float = 90, dots: Mapping[int, tuple[int, int, int]] | None = None) -> np.ndarray:
    """RGB, uint8, `unit` pixels to the unit; with dots of other colors on some landmarks."""
    side = round(EXTENT * unit)
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    picture = (np.array(WALL) + (6 * x + 4 * y)[..., None]).astype(np.uint8)

    def fill(points: np.ndarray, color: tuple[int, ...]) -> None:
        pixels = np.round((points - (LEFT, TOP)) * unit * 256).astype(np.int32)
        cv2.fillPoly(picture, [pixels], color, cv2.LINE_AA, 8)

    p = LANDMARKS
    fill(np.array([[-3, 3.4], [-2.0, 2.7], [-0.6, 2.2], [0.6, 2.2], [2.0, 2.7], [3, 3.4]]), SHIRT)
    fill(
        np.array([[-0.62, 1.2], [0.62, 1.2], [0.6, 2.25], [0, 2.5], [-0.6, 2.25]]), (190, 146, 124)
    )
    fill(p[HAIRLINE], HAIR)
    fill(p[FACE], SKIN)
    fill(p[NOSE], (196, 150, 128))
    for nostril in NOSTRILS:
        fill(p[nostril], (120, 76, 66))
    for brow in BROWS:
        fill(p[brow], HAIR)
    for eye, iris in zip(EYES, IRISES, strict=True):
        white = np.zeros(picture.shape[:2], np.uint8)
        pixels = np.round((p[eye] - (LEFT, TOP)) * unit * 256).astype(np.int32)
        cv2.fillPoly(white, [pixels], 255, cv2.LINE_AA, 8)
        behind = picture.copy()
        fill(p[eye], (236, 234, 230))
        fill(p[iris], BLUE)
        fill(p[iris].mean(axis=0) + 0.45 * (p[iris] - p[iris].mean(axis=0)), (16, 14, 14))
        share = white[..., None] / 255
        picture[:] = np.round(picture * share + behind * (1 - share)).astype(np.uint8)
        for lid in (eye[:5], [eye[0], *eye[:4:-1], eye[4]]):  # lashes
            pixels = np.round((p[lid] - (LEFT, TOP)) * unit * 256).astype(np.int32)
            thick = max(round(0.03 * unit), 1)
            cv2.polylines(picture, [pixels], False, (60, 40, 34), thick, cv2.LINE_AA, 8)
    for lip in (UPPER_LIP, LOWER_LIP):
        fill(p[lip], LIPS)
    for number, color in (dots or {}).items():
        turns = np.linspace(0, 2 * np.pi, 16)
        fill(p[number] + 0.06 * np.column_stack([np.cos(turns), np.sin(turns)]), color)
    # As a skin has: something for the eye, and for optical flow, to hold on to.
    grain = np.random.default_rng(0).normal(0, 1, (120, 120, 3)).astype(np.float32)
    grain = cv2.resize(cv2.GaussianBlur(grain, (0, 0), 0.5), (side, side))
    person = np.abs(picture.astype(int) - np.array(WALL)).sum(axis=-1, keepdims=True) > 40
    return np.clip(picture + 4 * grain * person, 0, 255).astype(np.uint8)


def freckled(picture: np.ndarray, seed: int = 1, contrast: float = 60) -> np.ndarray:
    """With a pattern: what optical flow sees."""
    freckles = np.random.default_rng(seed).normal(0, contrast, picture.shape).astype(np.float32)
    return np.clip(picture + cv2.GaussianBlur(freckles, (0, 0), 1.5), 0, 255).astype(np.uint8)


def smiling(picture: np.ndarray, strength: float) -> np.ndarray:
    """The corners of the mouth, and what is around them, to the sides and up."""
    side = len(picture)
    steps = (np.arange(side) + 0.5) / side * EXTENT
    x, y = np.meshgrid(LEFT + steps, TOP + steps)

    def move(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        right, down = np.zeros_like(x), np.zeros_like(x)
        for corner, out in zip(CORNERS, (-1, 1), strict=True):
            distance = np.hypot(x - LANDMARKS[corner, 0], y - LANDMARKS[corner, 1])
            hill = strength * np.exp(-0.5 * (distance / 0.3) ** 2)
            right, down = right + hill * RIGHT * out, down + hill * DOWN
        return right, down

    from_x, from_y = x, y
    for _ in range(20):
        right, down = move(from_x, from_y)
        from_x, from_y = x - right, y - down
    k = side / EXTENT
    columns, rows = ((from_x - LEFT) * k - 0.5, (from_y - TOP) * k - 0.5)
    return cv2.remap(
        picture, columns.astype(np.float32), rows.astype(np.float32), cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip


def template(points: np.ndarray) -> str:
    """The text of a `.tem` file with these points, in pixels."""
    lines = [str(len(points)), *(f"{x:.3f}\t{y:.3f}" for x, y in points), "0", ""]
    return "\n".join(lines)


def write_person(picture: np.ndarray, path: Path) -> Path:
    """Write a picture and, beside it, where the landmarks are in it; its path is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    points = (LANDMARKS - (LEFT, TOP)) * (len(picture) / EXTENT)
    path.with_suffix(".tem").write_text(template(points))
    return path


def write_pair(neutral: np.ndarray, smile: np.ndarray, folder: Path, person: str) -> None:
    """Write a neutral and a smiling photograph where they belong."""
    write_person(neutral, folder / "neutral_front" / f"{person}_03.png")
    path = write_person(smile, folder / "smiling_front" / f"{person}_08.png")
    path.with_suffix(".tem").unlink()
