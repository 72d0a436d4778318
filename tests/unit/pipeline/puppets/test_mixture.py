"""Mixtures of two people: between both in shape and in skin, and of nobody who is held out."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from painted import BROWS, FACE, LANDMARKS, painted, template, write_person

from cfer.cli import run
from cfer.errors import InputError
from pipeline.puppets.mixture import Mixture, mixtures_of
from pipeline.puppets.photos import LEFT, TEXTURE, TOP, Face, Photograph, photographs_below
from pipeline.puppets.smile import is_held_out

NOSE_TIP = 67
RED, GREEN = (220, 30, 30), (30, 200, 30)


def photographs(count: int) -> list[Photograph]:
    """Of people of whom there are no files."""
    return [Photograph(f"p{n:02d}", Path(f"{n}.png"), Path(f"{n}.tem")) for n in range(count)]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Photograph, Photograph]:
    """A face, and one that is wider by a fifth, and has a dot on its nose."""
    write_person(painted(90), tmp_path / "a_03.png")
    picture = painted(90, {NOSE_TIP: RED})
    side = len(picture)
    wider = cv2.resize(picture, (round(side * 1.2), side), interpolation=cv2.INTER_AREA)
    path = write_person(wider, tmp_path / "b_03.png")
    points = (LANDMARKS - (-2.7, -2.2)) * side / 5.4 * (1.2, 1)
    path.with_suffix(".tem").write_text(template(points))
    first, second = photographs_below(tmp_path)
    return first, second


def color(face: Face, at: np.ndarray) -> np.ndarray:
    """The mean around a place of a face, RGB."""
    column, row = np.round((at - (LEFT, TOP)) * TEXTURE).astype(int)
    return face.texture[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3).mean(axis=0)


def test_a_mixture_lies_between_two_people(pair: tuple[Photograph, Photograph]) -> None:
    first, second = (Face.read(photograph) for photograph in pair)
    # The pupils are the face frame's unit: what is wider is the frame, so the second is longer.
    assert np.ptp(first.points[FACE, 1]) > 1.15 * np.ptp(second.points[FACE, 1])
    mixed = Mixture("a+b", *pair, share=0.4).face()
    assert mixed.name == "a+b"
    np.testing.assert_allclose(mixed.points, 0.6 * first.points + 0.4 * second.points)
    # What the second has and the first has not is seen by its share, where the mixture has it.
    redness = [
        float(color(face, face.points[NOSE_TIP]) @ (1, -0.5, -0.5))
        for face in (first, mixed, second)
    ]
    assert redness[2] > redness[0] + 60
    share = (redness[1] - redness[0]) / (redness[2] - redness[0])
    assert 0.2 < share < 0.6
    # Both pictures were bent to it: brows lie where its landmarks are, and are as dark as both's.
    for brow in BROWS:
        dark = [color(face, face.points[brow].mean(axis=0)).mean() for face in (first, mixed)]
        assert dark[1] < dark[0] + 25


def test_hair_and_cloth_are_the_first_persons(tmp_path: Path) -> None:
    write_person(painted(90), tmp_path / "a_03.png")
    green = painted(90)
    green[420:] = GREEN  # cloth
    write_person(green, tmp_path / "b_03.png")
    first, second = photographs_below(tmp_path)
    mixed = Mixture("a+b", first, second, share=0.6).face()
    own = Face.read(first)
    cloth = np.s_[-30:, 200:-200]
    np.testing.assert_allclose(mixed.texture[cloth], own.texture[cloth], atol=6)
    np.testing.assert_allclose(mixed.matte, own.matte, atol=0.05)


def test_nobody_who_is_held_out_is_in_a_mixture() -> None:
    people = photographs(11)
    found = mixtures_of(people, 40)
    held_out = {photo.person for number, photo in enumerate(people) if is_held_out(number)}
    assert held_out
    assert not held_out & {
        photo.person for mixture in found for photo in (mixture.first, mixture.second)
    }
    assert all(mixture.first != mixture.second for mixture in found)
    assert len({mixture.person for mixture in found}) == 40
    # A set can grow: the first ones stay as they are.
    assert mixtures_of(people, 9) == found[:9]


def test_more_mixtures_than_pairs_are_refused() -> None:
    assert len(mixtures_of(photographs(3), 2)) == 2
    with pytest.raises(InputError, match=r"3 mixtures: of 3 people.* there are 2 pairs"):
        mixtures_of(photographs(3), 3)


def test_mixtures_are_animated_as_people_are(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name in ("p0", "p1", "p2"):
        write_person(painted(48), photos / f"{name}_03.png")
    options = ["--photos", str(photos), "--out", str(out), "--size", "64"]
    options += ["--clips-per-class", "1", "--workers", "1"]
    assert run(["puppets", *options, "--mixtures", "1"]) == 0
    (name,) = (mixture.person for mixture in mixtures_of(photographs_below(photos), 1))
    assert {folder.name for folder in (out / "videos").iterdir()} == {"p0", "p1", "p2", name}
    assert f"{name}_anger_1" in (out / "manifest.csv").read_text()
    with pytest.raises(InputError, match="--mixtures -1: give 0 or more"):
        run(["puppets", *options, "--mixtures", "-1"])
