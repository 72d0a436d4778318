"""The square goes along with a head: known movements are undone, and nothing else is."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from cfer.video.faces import FaceDetector, persons_of
from cfer.video.follow import Follower, Track, similarity, warped
from cfer.video.variation import AS_FOUND, Variation
from pipeline.datasets.drawing import DrawingSettings, draw_clip
from pipeline.datasets.synthetic import clip_generator, identity_of

SIZE = 112


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A face before a wall, with room to move in: RGB, uint8 (480, 480, 3)."""
    generator = clip_generator(0, 0, "anger", 0)
    face = draw_clip(identity_of(0, 0), "anger", DrawingSettings(frames=2), generator)[0]
    picture = np.full((480, 480, 3), 128, np.uint8)
    picture[112:368, 112:368] = face
    return picture


def moved(picture: np.ndarray, right: float, down: float, degrees: float, factor: float):
    turn = cv2.getRotationMatrix2D((240, 240), degrees, factor)
    turn[:, 2] += (right, down)
    flags, border = cv2.INTER_CUBIC, cv2.BORDER_REPLICATE
    return cv2.warpAffine(picture, turn, picture.shape[1::-1], flags=flags, borderMode=border)


def track_of(detector: FaceDetector, pictures: list[np.ndarray]) -> Track:
    from cfer.video.faces import _track

    looks = dict(enumerate(detector.faces(pictures)))
    ((person, _),) = persons_of(looks, pictures[0].shape[:2])
    return _track(person)


def off(a: np.ndarray, b: np.ndarray) -> float:
    """How much two crops differ in the face, of 255."""
    inside = slice(SIZE // 5, -SIZE // 5)
    return float(np.abs(a[inside, inside].astype(int) - b[inside, inside]).mean())


@pytest.mark.parametrize(
    "movement",
    [(9, -6, 0, 1), (60, 30, 0, 1), (0, 0, 8, 1), (-12, 5, -6, 1.08), (80, -40, 10, 0.9)],
)
def test_a_movement_of_the_head_is_undone(scene, detector, movement):
    pictures = [scene, moved(scene, *movement)]
    follower = Follower(track_of(detector, pictures), SIZE, [AS_FOUND])
    (first,), (second,) = follower.i_frame(pictures[0], 0), follower.p_frame(pictures[1], 1)
    still = Follower(track_of(detector, pictures[:1]), SIZE, [AS_FOUND])
    (unfollowed,) = still.i_frame(pictures[1], 0)
    assert off(first, second) < 3
    assert off(first, unfollowed) > 2 * off(first, second)


def test_a_head_that_rests_has_a_square_that_rests(scene, detector):
    """To the bit, also where the detector wavers and the light changes a little."""
    pictures = [scene, cv2.convertScaleAbs(scene, alpha=0.97)]
    track = track_of(detector, [scene, moved(scene, 3, 2, 1, 1.01)])
    follower = Follower(track, SIZE, [AS_FOUND])
    (first,), (second,) = follower.i_frame(scene, 0), follower.p_frame(pictures[1], 1)
    side = round(track.side)
    corner = np.round(track.centers[0] - track.side / 2)
    place = np.column_stack([np.eye(2), corner])
    assert np.array_equal(first, warped(scene, place, side, SIZE))
    assert np.array_equal(second, warped(pictures[1], place, side, SIZE))


def test_a_mouth_that_opens_moves_no_square(scene, detector):
    """Drawn over: a dark ellipse where the mouth is, and a box that the jaw has made longer."""
    track = track_of(detector, [scene, scene])
    eyes, nose = track.points[0, :2].mean(axis=0), track.points[0, 2]
    mouth = nose + (nose - eyes)
    opened = scene.copy()
    axes = (round(0.12 * track.side), round(0.1 * track.side))
    cv2.ellipse(opened, mouth.round().astype(int).tolist(), axes, 0, 0, 360, (40, 10, 10), -1)
    lower = Track([0, 1], track.centers + [[0, 0], [0, 12]], track.points, track.side)
    follower = Follower(lower, SIZE, [AS_FOUND])
    (first,), (second,) = follower.i_frame(scene, 0), follower.p_frame(opened, 1)
    changed = np.abs(first.astype(int) - second).max(axis=2) > 8
    assert changed[: SIZE // 2].sum() == 0, "nothing above the mouth has changed"
    assert changed.sum() > 100


def test_each_gop_begins_where_the_head_is(scene, detector):
    pictures = [scene, moved(scene, 50, 20, 0, 1)]
    follower = Follower(track_of(detector, pictures), SIZE, [AS_FOUND])
    (first,), (second,) = (follower.i_frame(p, n) for n, p in enumerate(pictures))
    assert off(first, second) < 12
    (again,) = follower.p_frame(scene, 0)
    assert off(second, again) < 3


def test_where_there_is_nothing_to_track_the_detector_is_believed(scene, detector):
    track = track_of(detector, [scene, moved(scene, 40, 0, 0, 1)])
    gray = np.full_like(scene, 128)
    follower = Follower(track, SIZE, [AS_FOUND])
    follower.i_frame(gray, 0)
    there = gray.copy()
    there[:, 280:] = 0  # an edge, 40 pixels to the right of the middle
    (seen,) = follower.p_frame(there, 1)
    at_rest = Follower(
        Track([0], track.centers[:1], track.points[:1], track.side), SIZE, [AS_FOUND]
    )
    (unfollowed,) = at_rest.i_frame(there, 0)
    by = (seen[SIZE // 2, :, 0] < 64).argmax() - (unfollowed[SIZE // 2, :, 0] < 64).argmax()
    assert by == pytest.approx(-40 * SIZE / track.side, abs=2)


def test_a_variation_is_what_it_says():
    """A point of the varied square, by hand."""
    corner, side = np.array([100.0, 50.0]), 80
    varied = Variation(right=0.1, down=-0.05, larger=math.log(1.5), turned=math.radians(30))
    place, pixels = varied.square(corner, side)
    assert pixels == 120
    center = place @ [60, 60, 1]
    assert center == pytest.approx(corner + 40 + np.array([8, -4]))
    # The middle of the right edge, turned clockwise, in which y points down.
    right = place @ [120, 60, 1] - center
    assert right == pytest.approx([60 * math.cos(math.radians(30)), 30])
    assert AS_FOUND.square(corner, side)[0] == pytest.approx(np.column_stack([np.eye(2), corner]))


def test_two_variations_add_up():
    both = Variation(right=0.1, turned=0.2).and_also(Variation(right=0.05, larger=0.3))
    assert (both.right, both.down) == (pytest.approx(0.15), 0)
    assert (both.larger, both.turned) == (0.3, 0.2)


def test_similarity_by_hand():
    here = np.array([[0.0, 0], [2, 0], [1, 3]])
    turn = np.array([[0.0, -2], [2, 0]])  # a quarter, and twice as large
    found = similarity(here, here @ turn.T + [5, -7])
    assert found == pytest.approx(np.column_stack([turn, [5, -7]]))
