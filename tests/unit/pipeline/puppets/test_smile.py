"""What a smile does, measured from pairs whose difference is known."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from painted import EXTENT, LANDMARKS, LEFT, TOP, painted, write_person

from cfer.errors import InputError
from pipeline.puppets.photos import MOUTH_CORNERS, photographs_below
from pipeline.puppets.rig import MEASURED_CORNER, MEASURED_SIDE, SMILE
from pipeline.puppets.smile import CLEAR, FIELD, SHADE, is_held_out, measure, smile

RIGHT, DOWN = 0.05, -0.06  # where a clear smile takes the corners of the mouth
STRENGTHS = np.linspace(0.4, 1.3, 10)


def smiling(picture: np.ndarray, strength: float) -> np.ndarray:
    """The corners of the mouth, and what is around them, to the sides and up."""
    side = len(picture)
    steps = (np.arange(side) + 0.5) / side * EXTENT
    x, y = np.meshgrid(LEFT + steps, TOP + steps)

    def move(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        right, down = np.zeros_like(x), np.zeros_like(x)
        for corner, out in zip(MOUTH_CORNERS, (-1, 1), strict=True):
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


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten people, neutral and smiling."""
    folder = tmp_path_factory.mktemp("pairs")
    neutral = painted(48)
    # Optical flow sees what has a pattern: skin with freckles.
    freckles = np.random.default_rng(1).normal(0, 60, neutral.shape).astype(np.float32)
    freckles = cv2.GaussianBlur(freckles, (0, 0), 1.5)
    neutral = np.clip(neutral + freckles, 0, 255).astype(np.uint8)
    for number, strength in enumerate(STRENGTHS):
        write_person(neutral, folder / "neutral_front" / f"{number:03}_03.png")
        path = write_person(
            smiling(neutral, strength), folder / "smiling_front" / f"{number:03}_08.png"
        )
        path.with_suffix(".tem").unlink()
    return folder


def at(values: np.ndarray, x: float, y: float) -> np.ndarray:
    column, row = (
        round((v - c) / MEASURED_SIDE * (len(values) - 1))
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
    assert people[0].smile is not None
    empty = tmp_path / "empty.png"
    cv2.imwrite(str(empty), np.full((300, 300, 3), 200, np.uint8))
    people[0] = type(people[0])(people[0].person, people[0].picture, people[0].landmarks, empty)
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
    assert np.allclose(at(field, 0.4, 1.1), (0.049, -0.063), atol=0.001)
    assert np.allclose(field[:, ::-1] * (-1, 1), field, atol=1e-3)
    assert np.allclose(shade[:, ::-1], shade, atol=1e-3)
