"""Real smiles: a person's own, and what they have in common.

    python -m pipeline.puppets.smile --photos DIR       # writes pipeline/puppets/smile.npz

The London set has a neutral and a smiling photograph of everyone. The two are aligned (eyes and
nose by MTCNN, then by correlation, Evangelidis and Psarakis, PAMI 2008), and dense optical flow
(DIS, Kroeger et al., ECCV 2016) says where each point of the face went. With both, a person's clips
can show that person's own smile (`OwnSmile`).

Over the people, laid over one another by their mouths, the first singular vector of the flow is
*the* smile: people differ most in how much of it they do. What is stored of it is this field at the
strength of a clear smile, and the change of brightness that goes along with it outside the eyes and
the mouth. Both are made symmetric. They are action unit 12 of everyone, so every fifth person is
left out, and those are whom the model that ships holds out for its card: nothing of their smiles is
in what it has learned (`is_held_out`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from cfer.errors import InputError, exit_with_message
from cfer.options import parse
from cfer.video.faces import MIN_PROBABILITY
from cfer.video.follow import compose
from pipeline.puppets.photos import (
    EXTENT,
    LEFT,
    MOUTH_CORNERS,
    TEXTURE,
    TOP,
    FaceFrame,
    Photograph,
    photographs_below,
    read_landmarks,
    read_picture,
)

if TYPE_CHECKING:
    from facenet_pytorch import MTCNN

log = logging.getLogger("puppets.smile")
SMILE = Path(__file__).with_name("smile.npz")
# What is compared of a pair of photographs, and what is stored, is this square of the face frame:
# its corner and its side, in units; and pixels to the unit.
MEASURED_CORNER, MEASURED_SIDE, UNIT = (-2.0, -1.6), 4.0, 64
# The mean face's mouth: half its width, and how far below the eyes.
MEAN_HALF, MEAN_MOUTH = 0.4, 1.1
BETWEEN_EYES = tuple(-corner * UNIT - 0.5 for corner in MEASURED_CORNER)  # pixels of a view
ECC_STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 80, 1e-5)
FIELD, SHADE = 48, 96  # points to a side of what is stored
CLEAR = 75  # percentile of the people's smiles that counts as strength 1
LEAST_SMILE = 0.4  # of a clear smile
WORST_FIT = 14  # mean gray levels by which the upper faces of a pair may differ


def is_held_out(number: int) -> bool:
    """Whether the person of this number (from 0, by sorted names) is left out."""
    return number % 5 == 0


def measure(photographs: Sequence[Photograph]) -> tuple[np.ndarray, np.ndarray]:
    """The smile's field, float32 (FIELD, FIELD, 2) in units, and brightness, (SHADE, SHADE).

    Raises:
        InputError: fewer than ten of them have a smile, or one shows no face.
    """
    pairs = [photograph for photograph in photographs if photograph.smile is not None]
    if len(pairs) < 10:
        raise InputError(
            f"{len(pairs)} people have a smiling photograph (smiling_front/ beside "
            "neutral_front/), and a mean needs 10 or more; give the London set"
        )
    from tqdm import tqdm

    measured = [_measured(pair) for pair in tqdm(pairs, "smiles", unit="person", disable=None)]
    flows = np.stack([flow for flow, _ in measured])
    flows = np.concatenate([flows, flows[:, :, ::-1] * (-1, 1)])
    x, y = places(FIELD, MEASURED_CORNER, MEASURED_SIDE)
    weight = np.exp(-0.5 * x**4 - 0.5 * ((y - 0.7) / 1.05) ** 4)
    flat = (flows * weight[..., None]).reshape(len(flows), -1)
    _, _, vectors = np.linalg.svd(flat, full_matrices=False)
    strength = flat @ vectors[0]
    direction = np.sign(strength.mean())
    strength *= direction
    clear = np.percentile(strength, CLEAR)
    field = direction * vectors[0].reshape(FIELD, FIELD, 2) * clear
    changes = np.stack([change for _, change in measured])
    changes = np.concatenate([changes, changes[:, :, ::-1]])
    # Least squares: how brightness changes with strength.
    shade = np.tensordot(strength, changes, 1) / np.square(strength).sum() * clear
    x, y = places(SHADE, MEASURED_CORNER, MEASURED_SIDE)
    face = np.exp(-0.5 * (x / 0.75) ** 4 - 0.5 * ((y - 0.8) / 0.62) ** 4)
    mouth = np.exp(-0.5 * (x / 0.36) ** 6 - 0.5 * ((y - 1.12) / 0.16) ** 6)
    eyes = np.exp(-0.5 * ((np.abs(x) - 0.5) / 0.3) ** 6 - 0.5 * (y / 0.2) ** 6)
    shade = cv2.GaussianBlur(shade * face * (1 - mouth) * (1 - eyes), (0, 0), 1)
    log.info("%d smiles; corners of the mouth go by %s", len(pairs), _corner(field))
    return field.astype(np.float32), shade.astype(np.float32)


class FoundFace(NamedTuple):
    """Of a picture's largest face, in pixels, float64.

    Attributes:
        box: x0, y0, x1, y1.
        points: (3, 2), the eyes and the tip of the nose.
    """

    box: np.ndarray
    points: np.ndarray


def find_face(picture: np.ndarray) -> FoundFace | None:
    """The largest face (MTCNN) of an RGB picture, uint8 (H, W, 3); None if it shows none."""
    boxes, probabilities, points = _landmark_network().detect(picture, landmarks=True)
    if boxes is None or probabilities[0] < MIN_PROBABILITY:
        return None
    return FoundFace(boxes[0].astype(np.float64), points[0][:3].astype(np.float64))


@cache
def _landmark_network() -> MTCNN:
    from facenet_pytorch import MTCNN

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # facenet-pytorch's own torch.load
        return MTCNN(min_face_size=60)


class Pair(NamedTuple):
    """A neutral and a smiling photograph of a face, seen alike: `UNIT` pixels to the unit.

    Attributes:
        neutral, smiling: views, RGB, uint8 (S, S, 3), the second as bright as the first.
        to_neutral, to_smiling: from pixels of the views to those of the photographs, float (2, 3).
        gain: by how much the neutral photograph is brighter, RGB.
    """

    neutral: np.ndarray
    smiling: np.ndarray
    to_neutral: np.ndarray
    to_smiling: np.ndarray
    gain: np.ndarray

    @classmethod
    def of(
        cls,
        neutral: np.ndarray,
        smiling: np.ndarray,
        frame: FaceFrame,
        points: tuple[np.ndarray, np.ndarray],
        scales: Sequence[float],
    ) -> Pair | None:
        """Aligned by eyes and nose, then by the picture of the upper face, where a smile changes
        least: by the small turn, move and scale that correlates best (ECC). None if there is none.

        Args:
            neutral, smiling: photographs, RGB, uint8 (H, W, 3).
            frame: of the neutral face.
            points: eyes and nose of both (`FoundFace.points`).
            scales: those tried, of the one to the other after eyes and nose are aligned.
        """
        corner = frame.scale @ (np.array(MEASURED_CORNER) + 0.5 / UNIT) + frame.origin
        to_neutral = np.column_stack([frame.scale / UNIT, corner - 0.5])
        between, _ = cv2.estimateAffinePartial2D(*points)
        by_points = compose(between, to_neutral)
        a = _view(neutral, to_neutral)
        before, upper = cv2.cvtColor(a, cv2.COLOR_RGB2GRAY), _upper(a)
        best, to_smiling = -1.0, None
        for scale in scales:
            scaled = compose(by_points, cv2.getRotationMatrix2D(BETWEEN_EYES, 0, scale))
            after = cv2.cvtColor(_view(smiling, scaled), cv2.COLOR_RGB2GRAY)
            start = np.eye(2, 3, dtype=np.float32)
            try:
                found, warp = cv2.findTransformECC(
                    before, after, start, cv2.MOTION_EUCLIDEAN, ECC_STEPS, upper, 5
                )
            except cv2.error:  # it does not converge from here
                continue
            if found > best:
                best, to_smiling = found, compose(scaled, warp)
        if to_smiling is None:
            return None
        b = _view(smiling, to_smiling)
        gain = a[upper > 0].mean(axis=0) / np.maximum(b[upper > 0].mean(axis=0), 1)
        return cls(a, np.clip(b * gain, 0, 255).astype(np.uint8), to_neutral, to_smiling, gain)

    def flow(self) -> np.ndarray:
        """Where each point of the neutral face went, smooth, float32 (S, S, 2) in pixels."""
        a, b = (cv2.cvtColor(view, cv2.COLOR_RGB2GRAY) for view in (self.neutral, self.smiling))
        dense = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        moved = dense.calc(a, b, None)  # type: ignore[call-overload]  # zeros are another start
        return cv2.GaussianBlur(moved, (0, 0), 1.5)


def _read(photograph: Photograph) -> tuple[Pair | None, np.ndarray, np.ndarray]:
    """Both photographs of a person: aligned; the smiling one; and the neutral face's landmarks, in
    units.

    Raises:
        InputError: one can't be read, or shows no face.
    """
    assert photograph.smile is not None
    pictures, found = [], []
    for path in (photograph.picture, photograph.smile):
        pictures.append(read_picture(path))
        face = find_face(pictures[-1])
        if face is None:
            raise InputError(f"{path}: no face found in it; replace it, or remove the person")
        found.append(face.points)
    neutral, smiling = pictures
    points = read_landmarks(photograph.landmarks)
    frame = FaceFrame.of(points)
    # As landmarks have it; another scale would change the sets of puppets that there are.
    pair = Pair.of(neutral, smiling, frame, (found[0], found[1]), scales=(1.0,))
    return pair, smiling, frame.units(points)


def _measured(photograph: Photograph) -> tuple[np.ndarray, np.ndarray]:
    """One person's flow, laid over the mean face, and the change of log brightness."""
    pair, _, points = _read(photograph)
    if pair is None:
        raise InputError(
            f"{photograph.smile}: can't be laid over {photograph.picture}; replace one of the two, "
            "or remove the person"
        )
    flow = pair.flow()
    back = moved(pair.smiling, flow)
    before, after = (
        np.log(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 2).mean(axis=-1) + 8)
        for picture in (pair.neutral, back)
    )
    smooth = cv2.GaussianBlur(flow, (0, 0), 4) / UNIT
    return _laid_over(smooth, points, FIELD), _laid_over(after - before, points, SHADE)


class OwnSmile(NamedTuple):
    """A person's smile, at the places of the neutral face.

    Attributes:
        field: where each point of the face goes, float32 (S, S, 2) in units, over the square of the
            face frame that is kept of a photograph.
        texture: the smiling face's color, brought back to where the neutral face has it: RGB,
            uint8, of the neutral texture's size.
        share: where it is to be used, float32 in [0, 1], likewise: the face, not the hair.
    """

    field: np.ndarray
    texture: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, photograph: Photograph) -> OwnSmile | None:
        """None where there is no photograph of it, the two don't fit together, or hardly smiles."""
        if photograph.smile is None:
            return None
        pair, smiling, points = _read(photograph)
        if pair is None:
            return None
        flow = pair.flow()
        error = np.abs(moved(pair.smiling, flow).astype(np.float32) - pair.neutral).mean(axis=-1)
        x, y = places(len(error), MEASURED_CORNER, MEASURED_SIDE)
        upper = (_face(x, y) > 0.5) & (y < 0.6)
        with np.load(SMILE) as measured:
            known = measured["field"].astype(np.float64)
        own = _laid_over(flow / UNIT, points, FIELD)
        strength = (own * known).sum() / np.square(known).sum()
        if error[upper].mean() > WORST_FIT or strength < LEAST_SMILE:
            return None
        x, y = places(round(EXTENT * TEXTURE), (LEFT, TOP), EXTENT)
        share = _face(x, y)
        column, row = _pixels(x, y)
        field = _sampled(flow, column, row) / UNIT * share[..., None]
        column, row = column + field[..., 0] * UNIT, row + field[..., 1] * UNIT
        (a, b, c), (d, e, f) = pair.to_smiling
        texture = _sampled(smiling, a * column + b * row + c, d * column + e * row + f)
        texture = np.clip(texture * pair.gain, 0, 255).astype(np.uint8)
        return cls(field.astype(np.float32), texture, share)


def _face(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1 in the face, 0 in the hair and below the chin, soft between: float32."""
    return np.exp(-0.5 * (x / 0.85) ** 6 - 0.5 * ((y - 0.65) / 1.15) ** 6).astype(np.float32)


def _pixels(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of places in the compared square's view."""
    return (x - MEASURED_CORNER[0]) * UNIT - 0.5, (y - MEASURED_CORNER[1]) * UNIT - 0.5


def places(side: int, corner: tuple[float, float], extent: float) -> tuple[np.ndarray, np.ndarray]:
    """The middle of each of `side` × `side` pixels of a square, in units."""
    steps = (np.arange(side) + 0.5) / side * extent
    x, y = np.meshgrid(corner[0] + steps, corner[1] + steps)
    return x, y


def _sampled(values: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    return cv2.remap(
        values,
        column.astype(np.float32),
        row.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def moved(picture: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """What flowed away, brought back."""
    row, column = np.mgrid[: picture.shape[0], : picture.shape[1]]
    return _sampled(picture, column + flow[..., 0], row + flow[..., 1])


def _view(photo: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    side = round(MEASURED_SIDE * UNIT)
    flags = cv2.INTER_AREA | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(photo, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _upper(picture: np.ndarray) -> np.ndarray:
    """Eyes, nose and forehead, where a smile changes least: a mask, uint8."""
    mask = np.zeros(picture.shape[:2], np.uint8)
    rows = [round((y - MEASURED_CORNER[1]) * UNIT) for y in (-0.55, 0.55)]
    columns = [round((x - MEASURED_CORNER[0]) * UNIT) for x in (-1, 1)]
    mask[rows[0] : rows[1], columns[0] : columns[1]] = 255
    return mask


def _laid_over(values: np.ndarray, points: np.ndarray, size: int) -> np.ndarray:
    """What was measured of one face, at the places of the mean face."""
    left, right = points[MOUTH_CORNERS[0]], points[MOUTH_CORNERS[1]]
    middle, half = (left + right) / 2, (right[0] - left[0]) / 2
    x, y = places(size, MEASURED_CORNER, MEASURED_SIDE)
    own_x = x * half / MEAN_HALF + middle[0] * np.clip(y / MEAN_MOUTH, 0, 1)
    own_y = y * middle[1] / MEAN_MOUTH
    return _sampled(values, *_pixels(own_x, own_y))


def _corner(field: np.ndarray) -> str:
    column, row = (
        round((v - c) / MEASURED_SIDE * FIELD - 0.5)
        for v, c in zip((MEAN_HALF, MEAN_MOUTH), MEASURED_CORNER, strict=True)
    )
    right, down = field[row, column]
    return f"{right:+.3f} {down:+.3f}"


def smile(photos: Path, out: Path = SMILE) -> int:
    """Measure what a smile does from the London set's photographs, and store it.

    Args:
        photos: folder of photographs, with landmarks and smiles.
        out: file to write.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    people = photographs_below(photos)
    used = [person for number, person in enumerate(people) if not is_held_out(number)]
    field, shade = measure(used)
    np.savez_compressed(out, field=field.astype(np.float16), shade=shade.astype(np.float16))
    return 0


if __name__ == "__main__":
    exit_with_message(lambda: parse(smile, "python -m pipeline.puppets.smile", None))
