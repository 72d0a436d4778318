"""Photographs with landmarks: whose they are, where the person ends, and what is wrong with one."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from painted import HAIR, HAIRLINE, LANDMARKS, SHIRT, SKIN, WALL, painted, template, write_person

from cfer.errors import InputError
from pipeline.puppets.photos import (
    CHIN,
    EXTENT,
    LEFT,
    MATTE,
    TEXTURE,
    TOP,
    Face,
    FaceFrame,
    photographs_below,
    read_landmarks,
)


def at(values: np.ndarray, unit: float, x: float, y: float) -> np.ndarray:
    return values[round((y - TOP) * unit), round((x - LEFT) * unit)]


def test_landmarks_are_in_the_face_frame(face: Face) -> None:
    assert np.abs(face.points - LANDMARKS).max() < 0.002
    assert np.allclose(face.points[[0, 1]], [[-0.5, 0], [0.5, 0]], atol=1e-6)
    assert face.name == "p1"
    assert face.reach == pytest.approx((2.7, 2.2, 3.2), abs=0.01)


def test_a_turned_picture_is_seen_upright() -> None:
    points = LANDMARKS * 80 + (300, 250)
    turn = cv2.getRotationMatrix2D((300, 250), 20, 1)
    turned = points @ turn[:, :2].T + turn[:, 2]
    assert np.abs(FaceFrame.of(turned).units(turned) - LANDMARKS).max() < 0.002
    assert FaceFrame.of(turned).unit == pytest.approx(80, rel=1e-3)


def test_the_matte_is_the_person(face: Face) -> None:
    assert face.matte.dtype == np.float32
    assert face.matte.shape == (round(EXTENT * MATTE),) * 2
    assert 0 <= face.matte.min() <= face.matte.max() <= 1
    for x, y in [*LANDMARKS[[0, 1, 55, 95, 106, 139, 165, 168]], (0, 2), (-1.5, 2.9), (1.5, 2.9)]:
        assert at(face.matte, MATTE, x, y) == 1, (x, y)
    for x, y in [(-2.2, -1), (2.2, -1), (0, -1.95), (-2.3, 1.5), (2.3, 1.5), (1.7, -1.5)]:
        assert at(face.matte, MATTE, x, y) == 0, (x, y)
    # Half a unit of the hair's edge is as wide as it was painted.
    row = face.matte[round((0.06 - TOP) * MATTE)]
    assert row.sum() / MATTE == pytest.approx(LANDMARKS[155, 0] - LANDMARKS[147, 0], abs=0.06)


def test_nothing_of_the_walls_color_is_left_around_the_hair(face: Face) -> None:
    size = face.texture.shape[1]
    seen = cv2.resize(face.matte, (size, size)) > 0.02
    y = TOP + np.arange(size) / TEXTURE
    hairy = seen & (y < -0.3)[:, None]
    like_the_wall = np.linalg.norm(face.texture[hairy] - np.array(WALL, float), axis=-1) < 60
    assert not like_the_wall.any()
    # And beyond the hair lies hair.
    outline = LANDMARKS[HAIRLINE] * 1.06
    beyond = np.array([at(face.texture, TEXTURE, *place) for place in outline[2:-2]], float)
    assert np.abs(beyond - HAIR).max() < 25


def test_the_texture_is_the_photograph(face: Face) -> None:
    assert face.texture.dtype == np.uint8
    for place, color in (((-0.6, 0.55), SKIN), ((0, -1.45), HAIR), ((1.2, 2.95), SHIRT)):
        assert np.abs(at(face.texture, TEXTURE, *place) - np.array(color, float)).max() < 14
    cheeks = [at(face.texture, TEXTURE, *face.points[n]) for n in (165, 166, 168, 169)]
    assert np.abs(np.mean(cheeks, axis=0) - SKIN).max() < 8


def test_a_photograph_in_another_size_is_the_same_face(tmp_path: Path, face: Face) -> None:
    large = painted(180)
    half = cv2.resize(large, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    faces = []
    for name, picture in (("large", large), ("half", half)):
        write_person(picture, tmp_path / name / "p1.png")
        faces.append(Face.read(photographs_below(tmp_path / name)[0]))
    one, other = faces
    assert np.abs(one.points - other.points).max() < 1e-4
    assert np.abs(one.texture.astype(int) - other.texture).mean() < 2
    assert np.abs(one.matte - other.matte).mean() < 0.005


def test_people_are_sorted_and_have_their_smiles(tmp_path: Path) -> None:
    picture = painted(30)
    for name in ("b/neutral_front/010_03.png", "b/neutral_front/002_03.jpg", "a/031f.png"):
        write_person(picture, tmp_path / name)
    smile = tmp_path / "b" / "smiling_front" / "002_08.jpg"
    write_person(picture, smile).with_suffix(".tem").unlink()
    (tmp_path / "a" / "._031f.tem").write_text("of a Mac")
    found = photographs_below(tmp_path)
    assert [person.person for person in found] == ["002", "010", "031f"]
    assert [person.smile for person in found] == [smile, None, None]
    assert found[0].picture.name == "002_03.jpg"


# ---- what is wrong -------------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[:100]))


def of_another_kind(path: Path) -> None:
    path.write_text(template(np.zeros((68, 2))))


def of_words(path: Path) -> None:
    path.write_text("no template\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_short, "has 99 landmarks, and 189 are needed; give a template"),
        (of_another_kind, "has 68 landmarks, and 189 are needed; give a template"),
        (of_words, "is not a template of landmarks"),
    ],
)
def test_what_is_no_template_of_189_landmarks(tmp_path: Path, spoil, message: str) -> None:
    path = write_person(painted(30), tmp_path / "p1.png").with_suffix(".tem")
    spoil(path)
    with pytest.raises(InputError, match=re.escape(f"{path}: {message}")):
        read_landmarks(path)


def test_a_landmark_that_is_no_number(tmp_path: Path) -> None:
    path = write_person(painted(30), tmp_path / "p1.png").with_suffix(".tem")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:50], "nan nan", *lines[51:]]))
    with pytest.raises(InputError, match=re.escape(str(path))):
        read_landmarks(path)


def test_landmarks_without_a_picture(tmp_path: Path) -> None:
    picture = write_person(painted(30), tmp_path / "p1.png")
    picture.unlink()
    message = f"{picture.with_suffix('.tem')}: there is no picture of this name"
    with pytest.raises(InputError, match=re.escape(message) + ".*put it there, or remove"):
        photographs_below(tmp_path)


def test_a_picture_in_another_size_than_its_template(tmp_path: Path) -> None:
    path = write_person(painted(90), tmp_path / "p1.png")
    cv2.imwrite(str(path), painted(45)[..., ::-1])
    message = r"p1\.tem: its face does not lie in p1\.png, which has 243 × 243 pixels; give"
    with pytest.raises(InputError, match=message):
        Face.read(photographs_below(tmp_path)[0])


def test_a_picture_that_is_none(tmp_path: Path) -> None:
    path = write_person(painted(90), tmp_path / "p1.png")
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"p1\.png: is not a picture that can be read; replace it"):
        Face.read(photographs_below(tmp_path)[0])


def test_two_photographs_of_one_person(tmp_path: Path) -> None:
    for name in ("a/001_03.png", "b/001_04.png"):
        write_person(painted(30), tmp_path / name)
    with pytest.raises(InputError, match=r"001_04\.png and .*001_03\.png: both are called 001"):
        photographs_below(tmp_path)


def test_a_folder_without_photographs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}: no photograph with landmarks")):
        photographs_below(tmp_path)


# ---- real ones -----------------------------------------------------------------------------------


def test_the_person_is_cut_out_of_a_real_photograph(photos_dir: Path) -> None:
    for photograph in photographs_below(photos_dir)[::40]:
        face = Face.read(photograph)
        for place in face.points[[0, 1, 55, 95, CHIN, 165, 168]]:
            assert at(face.matte, MATTE, *place) > 0.99, photograph.person
        for x in (-2.2, 2.2):
            assert at(face.matte, MATTE, x, -1) < 0.01, photograph.person
