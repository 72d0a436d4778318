"""What a smile does, measured: the mean move and the mean change of brightness of real smiles.

    python -m pipeline.puppets.smile --photos DIR       # writes pipeline/puppets/smile.npz

The London set has a neutral and a smiling photograph of everyone. The two are aligned (eyes and
nose by MTCNN, then by correlation, Evangelidis and Psarakis, PAMI 2008), and dense optical flow
(DIS, Kroeger et al., ECCV 2016) says where each point of the face went. Over the people, laid over
one another by their mouths, the first singular vector of the flow is *the* smile: people differ
most in how much of it they do. What is stored is this field at the strength of a clear smile, and
the change of brightness that goes along with it outside the eyes and the mouth. Both are made
symmetric.

Every fifth person is left out (`is_held_out`): the model that ships holds out the same people for
its card, and nothing of their smiles is in what it has learned.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cfer.errors import InputError, exit_with_message
from cfer.options import parse
from pipeline.puppets.photos import (
    MOUTH_CORNERS,
    FaceFrame,
    Photograph,
    photographs_below,
    read_landmarks,
    read_picture,
)
from pipeline.puppets.rig import MEAN_HALF, MEAN_MOUTH, MEASURED_CORNER, MEASURED_SIDE, SMILE

log = logging.getLogger("puppets.smile")
UNIT = 64  # pixels
FIELD, SHADE = 48, 96  # points to a side of what is stored
CLEAR = 75  # percentile of the people's smiles that counts as strength 1


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
    from facenet_pytorch import MTCNN
    from tqdm import tqdm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # facenet-pytorch's own torch.load
        network = MTCNN(keep_all=False, min_face_size=60)
    measured = [_pair(pair, network) for pair in tqdm(pairs, "smiles", unit="person", disable=None)]
    flows = np.stack([flow for flow, _ in measured])
    flows = np.concatenate([flows, flows[:, :, ::-1] * (-1, 1)])
    x, y = np.meshgrid(*(np.linspace(c, c + MEASURED_SIDE, FIELD) for c in MEASURED_CORNER))
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
    x, y = np.meshgrid(*(np.linspace(c, c + MEASURED_SIDE, SHADE) for c in MEASURED_CORNER))
    face = np.exp(-0.5 * (x / 0.75) ** 4 - 0.5 * ((y - 0.8) / 0.62) ** 4)
    mouth = np.exp(-0.5 * (x / 0.36) ** 6 - 0.5 * ((y - 1.12) / 0.16) ** 6)
    eyes = np.exp(-0.5 * ((np.abs(x) - 0.5) / 0.3) ** 6 - 0.5 * (y / 0.2) ** 6)
    shade = cv2.GaussianBlur(shade * face * (1 - mouth) * (1 - eyes), (0, 0), 1)
    log.info("%d smiles; corners of the mouth go by %s", len(pairs), _corner(field))
    return field.astype(np.float32), shade.astype(np.float32)


def _pair(photograph: Photograph, network: object) -> tuple[np.ndarray, np.ndarray]:
    """One person's flow, laid over the mean face, and the change of log brightness."""
    assert photograph.smile is not None
    neutral, smiling = read_picture(photograph.picture), read_picture(photograph.smile)
    points = read_landmarks(photograph.landmarks)
    frame = FaceFrame.of(points)
    corner = frame.scale @ np.array(MEASURED_CORNER) + frame.origin
    view = np.column_stack([frame.scale / UNIT, corner])
    found = []
    for path, picture in ((photograph.picture, neutral), (photograph.smile, smiling)):
        _, _, landmarks = network.detect(picture, landmarks=True)  # type: ignore[attr-defined]
        if landmarks is None:
            raise InputError(f"{path}: no face found in it; replace it, or remove the person")
        found.append(landmarks[0][:3].astype(np.float64))  # eyes and nose
    between, _ = cv2.estimateAffinePartial2D(*found)
    whole = between @ np.vstack([view, [0, 0, 1]])
    a, b = _view(neutral, view), _view(smiling, whole)
    b = _aligned(a, b)
    gray_a, gray_b = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (a, b))
    optical_flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = optical_flow.calc(gray_a, gray_b, None)  # type: ignore[call-overload]
    column, row = np.meshgrid(np.arange(a.shape[1]), np.arange(a.shape[0]))
    back = cv2.remap(
        b,
        (column + flow[..., 0]).astype(np.float32),
        (row + flow[..., 1]).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    light_a, light_b = (
        np.log(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 2).mean(axis=-1) + 8)
        for picture in (a, back)
    )
    units = frame.units(points)
    smooth = cv2.GaussianBlur(flow, (0, 0), 4) / UNIT
    return _laid_over(smooth, units, FIELD), _laid_over(light_b - light_a, units, SHADE)


def _view(photo: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    side = round(MEASURED_SIDE * UNIT)
    flags = cv2.INTER_AREA | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(photo, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _aligned(neutral: np.ndarray, smiling: np.ndarray) -> np.ndarray:
    """The smiling face where the eyes and the nose of the neutral one are, and as bright."""
    upper = np.zeros(neutral.shape[:2], np.uint8)
    rows = [round((y - MEASURED_CORNER[1]) * UNIT) for y in (-0.55, 0.55)]
    columns = [round((x - MEASURED_CORNER[0]) * UNIT) for x in (-1, 1)]
    upper[rows[0] : rows[1], columns[0] : columns[1]] = 255
    a, b = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (neutral, smiling))
    start = np.eye(2, 3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 80, 1e-5)
    _, warp = cv2.findTransformECC(a, b, start, cv2.MOTION_EUCLIDEAN, stop, upper, 5)
    size = (neutral.shape[1], neutral.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(smiling, warp, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    ratio = neutral[upper > 0].mean(axis=0) / np.maximum(moved[upper > 0].mean(axis=0), 1)
    return np.clip(moved * ratio, 0, 255).astype(np.uint8)


def _laid_over(values: np.ndarray, points: np.ndarray, size: int) -> np.ndarray:
    """What was measured of one face, at the places of the mean face."""
    left, right = points[MOUTH_CORNERS[0]], points[MOUTH_CORNERS[1]]
    middle, half = (left + right) / 2, (right[0] - left[0]) / 2
    x, y = np.meshgrid(*(np.linspace(c, c + MEASURED_SIDE, size) for c in MEASURED_CORNER))
    own_x = x * half / MEAN_HALF + middle[0] * np.clip(y / MEAN_MOUTH, 0, 1)
    own_y = y * middle[1] / MEAN_MOUTH
    return cv2.remap(
        values,
        ((own_x - MEASURED_CORNER[0]) * UNIT).astype(np.float32),
        ((own_y - MEASURED_CORNER[1]) * UNIT).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _corner(field: np.ndarray) -> str:
    column, row = (
        round((v - c) / MEASURED_SIDE * (FIELD - 1))
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
