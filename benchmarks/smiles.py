"""A smile of a real person from two photographs: neutral, and smiling.

The smiling photograph is laid over the neutral one, eyes on eyes and nose on nose, and fades in. As
controls, the neutral photograph alone moves, as a head and a hand-held camera do: a model that
takes movement for an expression says one of it. Each clip is H.264 first, as a user's video is.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from cfer.errors import InputError
from cfer.video.faces import LOOK_SIZE, MIN_FACE, MIN_PROBABILITY
from pipeline.datasets.drawing import sensor_noise, smooth_walk
from pipeline.datasets.made import write_video

FPS, NUM_FRAMES, CRF = 25, 25, 23
END_SECONDS = (NUM_FRAMES - 1) / FPS  # when the last frame is shown
NOISE = 2.5  # standard deviation of a camera's, of 255
# At most: right and down, as shares of the face; turned, in degrees; larger, brighter.
MOST_MOTION = np.array([0.03, 0.03, 3, 0.02, 0.05])
SCALES = np.linspace(0.96, 1.04, 9)  # of one photograph to the other, after the eyes are aligned
ECC_STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-5)


class NoFace(Exception):
    """A photograph that shows none."""


@dataclass(frozen=True)
class Photograph:
    """A photograph with a face.

    Attributes:
        picture: RGB, uint8 (H, W, 3), even sides, the longer one `LOOK_SIZE`.
        box: x0, y0, x1, y1 of the face in pixels.
        points: (3, 2), the eyes and the tip of the nose, x and y in pixels.
    """

    picture: np.ndarray
    box: np.ndarray
    points: np.ndarray


class PhotographReader:
    """Reads photographs, and finds the largest face and its landmarks in each (MTCNN)."""

    def read(self, path: Path) -> Photograph:
        """Raises InputError: not a readable picture; NoFace: no face in it."""
        try:
            with Image.open(path) as image:
                picture = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: a broken PNG
            raise InputError(f"{path}: not a readable picture; copy it again") from error
        scale = LOOK_SIZE / max(picture.shape[:2])
        width, height = (max(2 * round(scale * side / 2), 2) for side in picture.shape[1::-1])
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        boxes, probabilities, points = self._network.detect(picture, landmarks=True)
        if boxes is None or probabilities[0] < MIN_PROBABILITY:
            raise NoFace(f"no face in {path.name}")
        return Photograph(
            picture, np.asarray(boxes[0], np.float64), np.asarray(points[0][:3], np.float64)
        )

    @cached_property
    def _network(self) -> Any:
        from facenet_pytorch import MTCNN

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # facenet-pytorch's own torch.load
            return MTCNN(min_face_size=MIN_FACE)


def aligned(smiling: Photograph, neutral: Photograph) -> np.ndarray:
    """The smiling photograph, turned, scaled and moved onto the neutral one, as bright as that is:
    RGB, float32, the shape of the neutral picture.

    First by the landmarks. Then by the picture from the eyes to the nose, where a smile changes
    least: of all small turns, moves and scales the one that correlates best (ECC: Evangelidis &
    Psarakis, IEEE PAMI 2008).
    """
    shape = neutral.picture.shape[:2]
    left, top, width, height = _eyes_to_nose(neutral)
    part = np.s_[top : top + height, left : left + width]
    wanted, given = (cv2.cvtColor(p.picture, cv2.COLOR_RGB2GRAY) for p in (neutral, smiling))
    # From the part's pixels to the smiling photograph's.
    first = _compose(_similarity(neutral.points, smiling.points), _move(left, top))
    best, transform = -1.0, first
    for scale in SCALES:
        resized = cv2.getRotationMatrix2D((width / 2, height / 2), 0, scale)
        start = _compose(first, resized)
        try:
            found, moved = cv2.findTransformECC(
                wanted[part],
                _warped(given, start, (height, width)),
                np.eye(2, 3, dtype=np.float32),
                cv2.MOTION_EUCLIDEAN,
                ECC_STEPS,
            )
        except cv2.error:  # it does not converge from here
            continue
        if found > best:
            best, transform = found, _compose(start, moved)
    transform = _compose(transform, _move(-left, -top))
    laid = _warped(smiling.picture, transform, shape).astype(np.float32)
    light = neutral.picture[part].mean((0, 1)) / laid[part].mean((0, 1))
    return laid * light.astype(np.float32)


def _eyes_to_nose(photograph: Photograph) -> tuple[int, int, int, int]:
    """Left, top, width and height of that part, in pixels; a face is wholly in its photograph."""
    (x0, y0), (x1, y1), (_, tip) = photograph.points
    apart = float(np.hypot(x1 - x0, y1 - y0))
    left, top = max(round(x0 - 0.4 * apart), 0), max(round((y0 + y1) / 2 - 0.5 * apart), 0)
    return left, top, round(x1 + 0.4 * apart) - left, round(tip + 0.1 * apart) - top


def _similarity(points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """(2, 3): the turn, scale and move that take points (N, 2) nearest to others."""
    a, b = (p[:, 0] + 1j * p[:, 1] for p in (points, onto))
    (turn, move), *_ = np.linalg.lstsq(np.stack([a, np.ones_like(a)], 1), b, rcond=None)
    return np.array([[turn.real, -turn.imag, move.real], [turn.imag, turn.real, move.imag]])


def _move(right: float, down: float) -> np.ndarray:
    return np.array([[1, 0, right], [0, 1, down]], np.float64)


def _compose(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Of two affine maps (2, 3), the one that is `before` and then `after`."""
    return after @ np.vstack([before, [0, 0, 1]])


def _warped(picture: np.ndarray, transform: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Each pixel from where the transform (2, 3) says that it is in the picture."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        picture, transform, shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE
    )


def faded(neutral: Photograph, laid: np.ndarray) -> list[np.ndarray]:
    """From the neutral picture to the other within a second, slow at both ends: float32 each."""
    t = np.linspace(0, 1, NUM_FRAMES, dtype=np.float32)
    picture = neutral.picture.astype(np.float32)
    return [picture + share * (laid - picture) for share in t * t * (3 - 2 * t)]


def write_clip(
    path: Path, pictures: Sequence[np.ndarray], box: np.ndarray, person: str, moves: bool
) -> None:
    """Write pictures as a camera sees them: with noise and, if it `moves`, small smooth movement of
    head, camera and light, which is the same in every clip of a person.

    Args:
        pictures: RGB, float32 (H, W, 3).
        box: of the face.
        person: seeds it.
    """
    rng = np.random.default_rng(zlib.crc32(person.encode()))
    # Half of the walk: a head turns round once or twice a second, not three times.
    walk = np.tanh(smooth_walk(rng, 2 * NUM_FRAMES, len(MOST_MOTION))[:NUM_FRAMES])
    motion = moves * MOST_MOTION * walk
    seen = (_seen(*each, box, rng) for each in zip(pictures, motion, strict=True))
    write_video(path, seen, Fraction(FPS), CRF)


def _seen(
    picture: np.ndarray, motion: np.ndarray, box: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The picture after one of the motions (`MOST_MOTION`), with noise: RGB, uint8."""
    right, down, turn, larger, brighter = motion.tolist()
    (x0, y0, x1, y1), side = box.tolist(), float(max(box[2:] - box[:2]))
    middle = (x0 + x1) / 2, (y0 + y1) / 2
    transform = cv2.getRotationMatrix2D(middle, turn, 1 + larger)
    transform[:, 2] += [right * side, down * side]
    moved = _warped(picture, cv2.invertAffineTransform(transform), picture.shape[:2])
    lit = moved * np.float32(1 + brighter)
    return cv2.add(lit, NOISE * sensor_noise(rng, lit.shape), dtype=cv2.CV_8U)
