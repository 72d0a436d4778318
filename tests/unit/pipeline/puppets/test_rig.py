"""Where each action unit and each turn of the head takes the points of a face."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.puppets.acting import MOST
from pipeline.puppets.photos import (
    CHIN,
    EXTENT,
    LEFT,
    MOUTH_CORNERS,
    TOP,
    Face,
    photographs_below,
)
from pipeline.puppets.rig import GRID, PAIRED, SHADE, SINGLE, Rig

UNITS = [*(name + side for name in PAIRED for side in "LR"), *SINGLE]
INNER_BROWS, OUTER_BROWS, BROWS = (76, 77), (72, 81), (74, 79)
LEFT_CORNER, RIGHT_CORNER = MOUTH_CORNERS
UPPER_LIP, LOWER_LIP, NOSE_TIP, CHEEKS = 95, 106, 55, (165, 168)


def field(rig: Rig, name: str, part: str = "upper") -> np.ndarray:
    fields = getattr(rig, part)[rig.names.index(name)]
    return fields.reshape(GRID, GRID, 2)


def moves(rig: Rig, name: str, points: np.ndarray, part: str = "upper") -> np.ndarray:
    """Where points go at strength 1, (N, 2), between those of the grid."""
    column, row = ((np.atleast_2d(points) - (LEFT, TOP)) / EXTENT * GRID - 0.5).astype(np.float32).T
    return cv2.remap(field(rig, name, part), column[None], row[None], cv2.INTER_LINEAR)[0]


def jacobians(displacement: np.ndarray) -> np.ndarray:
    """The determinant of place + displacement, between the points of the grid."""
    step = EXTENT / GRID
    right, down = np.diff(displacement, axis=1)[:-1] / step, np.diff(displacement, axis=0) / step
    down = down[:, :-1]
    return (1 + right[..., 0]) * (1 + down[..., 1]) - right[..., 1] * down[..., 0]


def strengths(name: str) -> tuple[float, float]:
    """The least and the most of a unit: a closed jaw can't be raised (test_acting: none is)."""
    return (0 if name == "26" else -MOST), MOST


def test_every_unit_of_both_sides_has_fields_and_the_head_too(rig: Rig) -> None:
    head = {"yaw", "yaw2", "pitch", "pitch2", "roll", "right", "down", "nearer"}
    assert set(rig.names) == {*UNITS, *head}
    assert rig.upper.shape == rig.lower.shape == (len(rig.names), GRID * GRID * 2)
    assert rig.upper.dtype == rig.lower.dtype == rig.shades.dtype == np.float32
    assert rig.shades.shape == (len(rig.shade_names), round(EXTENT * SHADE) ** 2)
    for name in UNITS:
        assert max(np.abs(field(rig, name, part)).max() for part in ("upper", "lower")) > 0.02, name


@pytest.mark.parametrize("name", UNITS)
def test_no_unit_folds_the_face(rig: Rig, name: str) -> None:
    for part in ("upper", "lower"):
        for strength in strengths(name):
            assert jacobians(strength * field(rig, name, part)).min() > 0, (part, strength)


def test_no_turn_of_the_head_folds_the_face(rig: Rig) -> None:
    for angle in np.radians([-27, 27]):
        for name in ("yaw", "pitch"):
            turned = np.sin(angle) * field(rig, name)
            turned = turned + (1 - np.cos(angle)) * field(rig, name + "2")
            inner = jacobians(turned)[10:-10, 10:-10]
            assert inner.min() > 0, (name, angle)


@pytest.mark.parametrize(
    ("side", "own", "other", "out"),
    [("L", LEFT_CORNER, RIGHT_CORNER, -1), ("R", RIGHT_CORNER, LEFT_CORNER, 1)],
)
def test_a_smile_of_one_side(rig: Rig, side: str, own: int, other: int, out: int) -> None:
    p = rig.face.points
    for part in ("upper", "lower"):
        assert moves(rig, "12" + side, p[own], part)[0] == pytest.approx(
            (0.115 * out, -0.145), abs=0.015
        )
        assert np.abs(moves(rig, "12" + side, p[other], part)).max() < 0.002


@pytest.mark.parametrize(
    ("name", "points", "right", "down"),
    [
        ("1", INNER_BROWS, 0, -1),
        ("2", OUTER_BROWS, 0, -1),
        ("4", INNER_BROWS, -1, 1),  # to one another, and down
        ("6", CHEEKS, 0, -1),
        ("14", MOUTH_CORNERS, 1, 0),
        ("15", MOUTH_CORNERS, 0, 1),
        ("18", MOUTH_CORNERS, -1, 0),
        ("20", MOUTH_CORNERS, 1, 0),
    ],
)
def test_paired_units_go_their_way_on_their_side(
    rig: Rig, name: str, points: tuple[int, int], right: int, down: int
) -> None:
    """`right` is outward: to the right on the picture's right."""
    p = rig.face.points
    for side, sign, own, other in (("L", -1, *points), ("R", 1, *points[::-1])):
        there = moves(rig, name + side, p[own])[0]
        if right:
            assert there[0] * sign * right > 0.02
        else:
            assert abs(there[0]) < 0.03
        if down:
            assert there[1] * down > 0.05
        else:
            assert abs(there[1]) < 0.05
        elsewhere = moves(rig, name + side, p[other])[0]
        assert np.hypot(*elsewhere) < 0.35 * np.hypot(*there)


def test_lips_part_and_the_jaw_falls(rig: Rig) -> None:
    p = rig.face.points
    assert moves(rig, "26", p[CHIN], "lower")[0, 1] > 0.35
    assert moves(rig, "26", p[LOWER_LIP], "lower")[0, 1] > 0.35
    assert abs(moves(rig, "26", p[UPPER_LIP] - (0, 0.05))[0, 1]) < 0.02
    assert moves(rig, "25", p[UPPER_LIP])[0, 1] < -0.02
    assert moves(rig, "25", p[LOWER_LIP], "lower")[0, 1] > 0.02
    assert moves(rig, "16", p[LOWER_LIP], "lower")[0, 1] > 0.03
    assert np.abs(moves(rig, "16", p[UPPER_LIP])).max() == 0
    assert moves(rig, "17", p[CHIN] - (0, 0.3), "lower")[0, 1] < -0.04  # the chin's boss
    # Pressed lips go toward one another.
    assert moves(rig, "24", p[90])[0, 1] > 0.01
    assert moves(rig, "24", p[LOWER_LIP], "lower")[0, 1] < -0.01


def test_above_and_below_agree_beside_the_mouth(rig: Rig) -> None:
    """The seam is the mouth, and ends at its corners."""
    middle = rig.face.points[list(MOUTH_CORNERS)].mean(axis=0)
    half = np.ptp(rig.face.points[list(MOUTH_CORNERS), 0]) / 2
    beside = np.concatenate([np.linspace(-1.4, -half - 0.1), np.linspace(half + 0.1, 1.4)])
    for name in rig.names:
        for higher in (0, 0.1, 0.5):
            line = np.interp(middle[0] + beside, *rig.lip_line) - higher
            places = np.column_stack([middle[0] + beside, line])
            apart = moves(rig, name, places) - moves(rig, name, places, "lower")
            assert np.abs(apart).max() < (1e-6 if higher else 0.04), (name, higher)


def test_a_turn_moves_the_nose_more_than_the_ears(rig: Rig) -> None:
    p = rig.face.points
    nose, *ears = moves(rig, "yaw", p[[NOSE_TIP, 116, 121]])
    assert nose[0] > 0.9
    assert all(0 < ear[0] < 0.4 * nose[0] for ear in ears)
    nose, top = moves(rig, "pitch", p[[NOSE_TIP, 151]])
    assert nose[1] > 0.9
    assert 0 < top[1] < 0.4 * nose[1]
    # A head that leans leaves its shoulders behind.
    forehead, shoulder = moves(rig, "roll", np.array([(0, -0.8), (0.8, 2.9)]))
    assert np.hypot(*forehead) > 2
    assert np.hypot(*shoulder) < 0.1 * np.hypot(*forehead)


def test_lids_go_from_corner_to_corner_and_the_lip_line_through_the_mouth(rig: Rig) -> None:
    p = rig.face.points
    for (upper, lower), iris in zip(rig.lids, (0, 1), strict=True):
        assert (np.diff(upper[:, 0]) > 0).all()
        assert (np.diff(lower[:, 0]) > 0).all()
        assert np.array_equal(upper[[0, -1]], lower[[0, -1]])
        assert np.interp(p[iris, 0], *upper.T) < p[iris, 1] < np.interp(p[iris, 0], *lower.T)
    assert np.interp(p[95, 0], *rig.lip_line) == pytest.approx((p[95, 1] + p[100, 1]) / 2, abs=0.01)


def test_folds_are_dark_where_they_are(rig: Rig) -> None:
    def brightness(name: str, place: np.ndarray | tuple[float, float]) -> float:
        side = round(EXTENT * SHADE)
        column, row = np.round((np.asarray(place) - (LEFT, TOP)) * SHADE).astype(int)
        shade = rig.shades[rig.shade_names.index(name)].reshape(side, side)
        return float(shade[row - 2 : row + 3, column - 2 : column + 3].min())

    p = rig.face.points
    assert brightness("cheek foldL", p[159]) < -0.4
    assert brightness("cheek foldR", p[162]) < -0.4
    assert abs(brightness("cheek foldR", p[159])) < 0.05
    assert brightness("chin", p[177]) < -0.4
    # Light from the right is on the right cheek, and takes it from the left one.
    right, left = (brightness("light right", p[n]) for n in (168, 165))
    assert left < 0 < right or right < 0 < left


def test_the_same_face_gives_the_same_rig(face: Face, rig: Rig) -> None:
    again = Rig.of(face)
    for one, other in ((rig.upper, again.upper), (rig.lower, again.lower)):
        assert np.array_equal(one, other)
    assert np.array_equal(rig.shades, again.shades)


def test_real_faces_do_not_fold(photos_dir: Path) -> None:
    for photograph in photographs_below(photos_dir)[7::45]:
        rig = Rig.of(Face.read(photograph))
        for name in UNITS:
            for part in ("upper", "lower"):
                for strength in strengths(name):
                    least = jacobians(strength * field(rig, name, part)).min()
                    assert least > 0, (photograph.person, name, part, strength)
