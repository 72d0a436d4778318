"""What a smile does, measured from pairs whose difference is known; and a person's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from painted import (
    DOWN,
    EXTENT,
    FULL,
    LANDMARKS,
    LEFT,
    RIGHT,
    TOP,
    freckled,
    painted,
    smiling,
    write_pair,
)

from cfer.errors import InputError
from pipeline.puppets.photos import EXTENT as KEPT
from pipeline.puppets.photos import LEFT as KEPT_LEFT
from pipeline.puppets.photos import MOUTH_CORNERS, FaceFrame, photographs_below
from pipeline.puppets.photos import TOP as KEPT_TOP
from pipeline.puppets.smile import (
    CLEAR,
    FIELD,
    MEASURED_CORNER,
    MEASURED_SIDE,
    SHADE,
    SMILE,
    OwnSmile,
    Pair,
    find_face,
    is_held_out,
    measure,
    smile,
)

STRENGTHS = np.linspace(0.4, 1.3, 10)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten people, neutral and smiling."""
    folder = tmp_path_factory.mktemp("pairs")
    neutral = freckled(painted(48))
    for number, strength in enumerate(STRENGTHS):
        write_pair(neutral, smiling(neutral, strength), folder, f"{number:03}")
    return folder


def at(values: np.ndarray, x: float, y: float) -> np.ndarray:
    column, row = (
        round((v - c) / MEASURED_SIDE * len(values) - 0.5)
        for v, c in zip((x, y), MEASURED_CORNER, strict=True)
    )
    return values[row, column]


def test_a_known_smile_comes_out(pairs: Path) -> None:
    field, shade = measure(photographs_below(pairs))
    assert field.shape == (FIELD, FIELD, 2)
    assert shade.shape == (SHADE, SHADE)
    assert field.dtype == shade.dtype == np.float32
    clear = np.percentile(STRENGTHS, CLEAR)
    # A grid's step beside a corner, and smoothed: a tenth is lost.
    right, left = at(field, 0.4, 1.1), at(field, -0.4, 1.1)
    assert right[0] == pytest.approx(clear * RIGHT, rel=0.3)
    assert right[1] == pytest.approx(clear * DOWN, rel=0.3)
    assert np.allclose(left, right * (-1, 1), atol=1e-4), "it is symmetric"
    for place in ((-0.5, 0), (0.5, 0), (0, -1), (0, 0.3)):
        assert np.hypot(*at(field, *place)) < 0.2 * np.hypot(*right), place
    # Nothing was lighter or darker than before, where it went.
    assert np.abs(shade).max() < 0.06


def test_nine_pairs_are_too_few(pairs: Path) -> None:
    with pytest.raises(InputError, match=r"9 people have a smiling photograph .* give the London"):
        measure(photographs_below(pairs)[:9])


def test_a_pair_without_a_face(pairs: Path, tmp_path: Path) -> None:
    people = photographs_below(pairs)
    empty = tmp_path / "empty.png"
    cv2.imwrite(str(empty), np.full((300, 300, 3), 200, np.uint8))
    people[0] = replace(people[0], smile=empty)
    with pytest.raises(InputError, match=r"empty\.png: no face found in it; replace it"):
        measure(people)


def test_every_fifth_person_is_left_out(pairs: Path, tmp_path: Path) -> None:
    assert [n for n in range(12) if is_held_out(n)] == [0, 5, 10]
    with pytest.raises(InputError, match="8 people have a smiling photograph"):
        smile(pairs, tmp_path / "smile.npz")
    assert not (tmp_path / "smile.npz").exists()


def test_the_smile_that_ships() -> None:
    """78 people's, of the London set: docs/data.md names where the corners go."""
    with np.load(SMILE) as stored:
        field, shade = stored["field"], stored["shade"]
    assert np.allclose(at(field, 0.4, 1.1), (0.052, -0.068), atol=0.001)
    assert np.allclose(field[:, ::-1] * (-1, 1), field, atol=1e-3)
    assert np.allclose(shade[:, ::-1], shade, atol=1e-3)


# ---- a person's own ------------------------------------------------------------------------------


def own_smile(neutral: np.ndarray, smile: np.ndarray, folder: Path) -> OwnSmile | None:
    write_pair(neutral, smile, folder, "p1")
    return OwnSmile.of(photographs_below(folder)[0])


def test_an_own_smile_is_where_the_neutral_face_goes(
    neutral: np.ndarray, full_smile: np.ndarray, tmp_path: Path
) -> None:
    own = own_smile(neutral, full_smile, tmp_path)
    assert own is not None
    assert own.field.shape[:2] == own.share.shape == own.texture.shape[:2]
    assert own.field.dtype == own.share.dtype == np.float32

    def seen(values: np.ndarray, x: float, y: float) -> np.ndarray:
        side = len(values) / KEPT
        return values[round((y - KEPT_TOP) * side - 0.5), round((x - KEPT_LEFT) * side - 0.5)]

    for corner, out in zip(MOUTH_CORNERS, (-1, 1), strict=True):
        right, down = seen(own.field, *LANDMARKS[corner])
        assert right == pytest.approx(FULL * RIGHT * out, abs=0.04)
        assert down == pytest.approx(FULL * DOWN, abs=0.04)
    for place in ((0, -0.3), (-0.5, 0), (0.5, 0), (0, 0.4)):
        assert np.hypot(*seen(own.field, *place)) < 0.02, place
        assert seen(own.share, *place) > 0.8
    for place in ((-1.6, 0), (1.6, 0), (0, 2.6)):  # hair and clothes
        assert seen(own.share, *place) < 0.01


def other_above(picture: np.ndarray) -> np.ndarray:
    """With other freckles from the nose up."""
    other = freckled(picture, 2, 115)
    end = round((0.5 - TOP) * len(picture) / EXTENT)
    return np.vstack([other[:end], picture[end:]])


def test_who_has_no_smile_of_their_own(
    neutral: np.ndarray, full_smile: np.ndarray, tmp_path: Path
) -> None:
    """No second photograph, one that hardly smiles, and one of another face."""
    assert own_smile(neutral, full_smile, tmp_path / "smiles") is not None
    (person,) = photographs_below(tmp_path / "smiles")
    assert OwnSmile.of(replace(person, smile=None)) is None
    assert own_smile(neutral, smiling(neutral, 0.2), tmp_path / "hardly") is None
    assert own_smile(neutral, other_above(full_smile), tmp_path / "other") is None


def test_a_smile_without_a_face_is_named(neutral: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p1_08\.png: no face found in it; replace it"):
        own_smile(neutral, np.full_like(neutral, 200), tmp_path)


@pytest.mark.parametrize(
    ("off", "scales"),
    [([[2, 1], [2, 1], [2, 1]], (1.0,)), ([[2, -1], [-1, 2], [0, 1]], np.arange(0.94, 1.06, 0.01))],
)
def test_a_pair_is_aligned_on_the_upper_face(
    neutral: np.ndarray, full_smile: np.ndarray, off: list, scales: Sequence[float]
) -> None:
    """Turned, larger, moved and darker, and its points are off: all but a scale that is not tried
    is made good; and the smile below changes nothing of it."""
    side = len(neutral)
    there = cv2.getRotationMatrix2D((side / 2, side / 2), 5, 1.1) + [[0, 0, 9], [0, 0, -4]]
    other = cv2.warpAffine(full_smile, there, (side, side), borderMode=cv2.BORDER_REPLICATE)
    other = (other * [0.8, 0.7, 0.9]).astype(np.uint8)
    points = (LANDMARKS - (LEFT, TOP)) * (side / EXTENT) - 0.5
    known = points[[0, 1, 55]]
    found = known @ there[:, :2].T + there[:, 2] + off
    pair = Pair.of(neutral, other, FaceFrame.of(points), (known, found), scales)
    assert pair is not None
    assert pair.gain == pytest.approx(np.divide(1, [0.8, 0.7, 0.9]), rel=0.02)
    eyes = known @ cv2.invertAffineTransform(pair.to_neutral)[:, :2].T
    eyes += cv2.invertAffineTransform(pair.to_neutral)[:, 2]
    laid = eyes @ pair.to_smiling[:, :2].T + pair.to_smiling[:, 2]
    wanted = known @ there[:, :2].T + there[:, 2]
    assert np.abs(laid - wanted).max() < 0.7


def test_what_cannot_be_aligned_is_no_pair(neutral: np.ndarray) -> None:
    points = (LANDMARKS - (LEFT, TOP)) * (len(neutral) / EXTENT)
    known = points[[0, 1, 55]]
    gray = np.full_like(neutral, 128)
    assert Pair.of(neutral, gray, FaceFrame.of(points), (known, known), (1.0,)) is None


def test_the_largest_face_is_found(neutral: np.ndarray) -> None:
    face = find_face(neutral)
    assert face is not None
    eyes_and_nose = (LANDMARKS[[0, 1, 55]] - (LEFT, TOP)) * len(neutral) / EXTENT
    assert np.abs(face.points - eyes_and_nose).max() < 12
    x0, y0, x1, y1 = face.box
    assert (x0, y0) < tuple(eyes_and_nose.min(axis=0))
    assert (x1, y1) > tuple(eyes_and_nose.max(axis=0))
    assert find_face(np.full_like(neutral, 200)) is None
