"""A smile of a real person from two photographs: neutral, and smiling.

The smiling photograph is laid over the neutral one, eyes on eyes and nose on nose, and fades in. As
controls, the neutral photograph alone moves, as a head and a hand-held camera do: a model that
takes movement for an expression says one of it. Each clip is H.264 first, as a user's video is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from cfer.video.faces import LOOK_SIZE
from cfer.video.follow import compose
from pipeline.datasets.drawing import sensor_noise, smooth_walk
from pipeline.datasets.made import write_video
from pipeline.puppets.photos import FaceFrame, read_picture
from pipeline.puppets.rig import generator_of
from pipeline.puppets.smile import Pair, find_face

FPS, NUM_FRAMES, CRF = 25, 25, 23
END_SECONDS = (NUM_FRAMES - 1) / FPS  # when the last frame is shown
NOISE = 2.5  # standard deviation of a camera's, of 255
# At most: right and down, as shares of the face; turned, in degrees; larger, brighter.
MOST_MOTION = np.array([0.03, 0.03, 3, 0.02, 0.05])
SCALES = np.linspace(0.92, 1.08, 17).tolist()  # of one photograph to the other, after their points


class Unusable(Exception):
    """A photograph that shows no face, or two that can't be laid over one another."""


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


def read_photograph(path: Path) -> Photograph:
    """A photograph and its largest face.

    Raises:
        InputError: not a readable picture.
        Unusable: no face in it.
    """
    picture = read_picture(path)
    scale = LOOK_SIZE / max(picture.shape[:2])
    width, height = (max(2 * round(scale * side / 2), 2) for side in picture.shape[1::-1])
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    face = find_face(picture)
    if face is None:
        raise Unusable(f"no face in {path.name}")
    return Photograph(picture, face.box, face.points)


def aligned(smiling: Photograph, neutral: Photograph) -> np.ndarray:
    """The smiling photograph, turned, scaled and moved onto the neutral one, as bright as that is:
    RGB, float32, the shape of the neutral picture.

    Raises:
        Unusable: they are too different.
    """
    frame, points = FaceFrame.of(neutral.points), (neutral.points, smiling.points)
    pair = Pair.of(neutral.picture, smiling.picture, frame, points, SCALES)
    if pair is None:
        raise Unusable("the two can't be laid over one another")
    transform = compose(pair.to_smiling, cv2.invertAffineTransform(pair.to_neutral))
    laid = _warped(smiling.picture, transform, neutral.picture.shape[:2])
    return laid.astype(np.float32) * pair.gain.astype(np.float32)


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
    rng = generator_of(person)
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
