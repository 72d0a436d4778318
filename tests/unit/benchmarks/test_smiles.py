"""Clips made from two photographs: one face lies on the other, and what moves is what is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks.smiles import (
    CRF,
    FPS,
    MOST_MOTION,
    NUM_FRAMES,
    Unusable,
    aligned,
    faded,
    read_photograph,
    write_clip,
)
from cfer.errors import InputError
from cfer.video.pictures import open_pictures
from pipeline.datasets.drawing import DrawingSettings, Identity, draw_clip

assert (FPS, NUM_FRAMES, CRF) == (25, 25, 23)


@pytest.fixture(scope="module")
def drawn() -> list[np.ndarray]:
    """A clip of a drawn face, from neutral to a smile."""
    rng = np.random.default_rng(3)
    return draw_clip(Identity(rng), "happiness", DrawingSettings(picture_size=480), rng)


def saved(path: Path, picture: np.ndarray) -> Path:
    Image.fromarray(picture).save(path)
    return path


def turned(picture: np.ndarray, degrees: float, scale: float, right: float) -> np.ndarray:
    side = picture.shape[0]
    transform = cv2.getRotationMatrix2D((side / 2, side / 2), degrees, scale)
    transform[0, 2] += right
    return cv2.warpAffine(picture, transform, (side, side), borderMode=cv2.BORDER_REPLICATE)


@pytest.mark.parametrize(("degrees", "scale", "right"), [(4, 1.05, 12), (-6, 0.93, -20)])
def test_one_photograph_is_laid_on_the_other(drawn, tmp_path, degrees, scale, right):
    """The same face, turned, scaled, moved and darker: once laid on itself, it is itself."""
    other = (turned(drawn[0], degrees, scale, right) * [0.8, 0.7, 0.9]).astype(np.uint8)
    neutral = read_photograph(saved(tmp_path / "a.png", drawn[0]))
    moved = read_photograph(saved(tmp_path / "b.png", other))
    x0, y0, x1, y1 = neutral.box.round().astype(int)
    inside = np.s_[y0:y1, x0:x1]

    def difference(picture: np.ndarray) -> float:
        return float(np.abs(picture[inside] - neutral.picture[inside].astype(float)).mean())

    laid = aligned(moved, neutral)
    assert laid.shape == neutral.picture.shape
    assert difference(moved.picture) > 25
    # A move by half a pixel would make as much of a difference, and twice that of the noise.
    half = cv2.warpAffine(neutral.picture, np.float32([[1, 0, 0.5], [0, 1, 0]]), (480, 480))
    assert difference(laid) < max(difference(half), 4)


def test_photographs_of_different_sizes(drawn, tmp_path):
    neutral = read_photograph(saved(tmp_path / "a.png", drawn[0]))
    wide = cv2.copyMakeBorder(drawn[0], 0, 0, 61, 60, cv2.BORDER_REPLICATE)
    large = read_photograph(saved(tmp_path / "b.png", cv2.resize(wide, None, fx=2, fy=2)))
    assert large.picture.shape == (384, 480, 3)
    laid = aligned(large, neutral)
    # Of the same face, between the eyes and the nose.
    x, y = neutral.points.mean(0).round().astype(int)
    part = np.s_[y - 40 : y + 40, x - 60 : x + 60]
    assert np.abs(laid[part] - neutral.picture[part].astype(float)).mean() < 6


def test_a_fade_goes_from_one_picture_to_the_other_without_a_jump(drawn, tmp_path):
    neutral = read_photograph(saved(tmp_path / "a.png", drawn[0]))
    smile = drawn[-1].astype(np.float32)
    pictures = faded(neutral, smile)
    assert len(pictures) == NUM_FRAMES
    assert np.array_equal(pictures[0], neutral.picture)
    assert np.allclose(pictures[-1], smile, atol=1e-3)
    far = np.abs(smile - neutral.picture).argmax()
    change = np.diff([picture.flat[far] for picture in pictures])
    steps = np.abs(change)
    assert (np.sign(change) == np.sign(change[0])).all()
    assert steps[0] < steps.max() / 5
    assert steps[-1] < steps.max() / 5
    assert steps.max() < 1.6 * steps.mean()


def test_a_photograph_without_a_face_and_none_at_all(tmp_path):
    with pytest.raises(Unusable, match=r"no face in gray\.png"):
        read_photograph(saved(tmp_path / "gray.png", np.full((300, 300, 3), 128, np.uint8)))
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.jpg: is not a picture that can be read"):
        read_photograph(tmp_path / "text.jpg")


def test_two_photographs_that_do_not_fit(drawn, tmp_path):
    neutral = read_photograph(saved(tmp_path / "a.png", drawn[0]))
    gray = replace(neutral, picture=np.full_like(neutral.picture, 128))
    with pytest.raises(Unusable, match="can't be laid over one another"):
        aligned(gray, neutral)


def test_a_photograph_is_turned_as_its_camera_says(drawn, tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90° to the right
    Image.fromarray(np.rot90(drawn[0])).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_photograph(tmp_path / "turned.png").picture, drawn[0])


# ---- what moves ----------------------------------------------------------------------------------

BOX = np.array([60.0, 50, 260, 250])


def places(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of two dots 160 pixels apart, around the middle of `BOX`: x and y in each frame, (T, 2, 2);
    and the brightness of what is around them."""
    found, light = [], []
    for picture in open_pictures(path):
        gray = picture.mean(2)
        halves = np.split(np.where(gray > 200, gray, 0), [160], axis=1)
        centers = []
        for half, left in zip(halves, (0, 160), strict=True):
            y, x = np.indices(half.shape)
            centers.append([left + (x * half).sum() / half.sum(), (y * half).sum() / half.sum()])
        found.append(centers)
        light.append(gray[5:25].mean())
    return np.array(found), np.array(light)


@pytest.fixture
def dots() -> list[np.ndarray]:
    picture = np.full((320, 320, 3), 100, np.float32)
    for x in (80, 240):
        cv2.circle(picture, (x, 150), 12, (250, 250, 250), -1)
    return [picture] * NUM_FRAMES


def test_the_movement_is_small_smooth_and_each_persons_own(dots, tmp_path):
    shown = []
    for person in ("001", "002", "003", "004"):
        write_clip(tmp_path / "clip.mp4", dots, BOX, person, moves=True)
        at, light = places(tmp_path / "clip.mp4")
        assert len(at) == NUM_FRAMES
        middle, across = at.mean(1), at[:, 1] - at[:, 0]
        side = 200
        shown.append(
            np.column_stack(
                [
                    (middle - [160, 150]) / side,
                    -np.degrees(np.arctan2(across[:, 1], across[:, 0])),
                    np.hypot(*across.T) / 160 - 1,
                    light / 100 - 1,
                ]
            )
        )
        assert (np.abs(shown[-1]) <= MOST_MOTION * 1.05 + [0.003, 0.003, 0.3, 0.003, 0.01]).all()
        # From one frame to the next a small part of it.
        assert (np.abs(np.diff(shown[-1], axis=0)).max(0) < 0.6 * MOST_MOTION).all()
    everyone = np.array(shown)
    assert (np.abs(everyone).max((0, 1)) > 0.5 * MOST_MOTION).all()
    assert (everyone.std((0, 1)) > 0.2 * MOST_MOTION).all()
    assert np.abs(everyone[0] - everyone[1]).max() > 0.02


def test_a_still_clip_has_noise_alone(dots, tmp_path):
    write_clip(tmp_path / "clip.mp4", dots, BOX, "001", moves=False)
    at, light = places(tmp_path / "clip.mp4")
    assert np.abs(at - at[0]).max() < 0.3
    assert np.abs(light - 100).max() < 1.5
    pictures = [picture.astype(float) for picture in open_pictures(tmp_path / "clip.mp4")]
    assert pictures[0][200:, :100].std() > 0.3
    assert open_pictures(tmp_path / "clip.mp4").fps == FPS


def test_a_clip_is_the_same_every_time(drawn, tmp_path):
    """In any state of the memory: each time there is more in it."""
    pictures = [picture.astype(np.float32) for picture in drawn]
    pictures += pictures[-1:] * (NUM_FRAMES - len(pictures))
    clips, held = set(), []
    for number in range(5):
        held.append(np.random.default_rng(number).random((300, 300 + number)))
        write_clip(tmp_path / "clip.mp4", pictures, BOX, "001", moves=True)
        clips.add((tmp_path / "clip.mp4").read_bytes())
    assert len(clips) == 1
