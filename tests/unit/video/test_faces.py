"""The square: the rule on boxes, the crop on pixels, the detector on drawn and real faces."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
from videos import write_video

from cfer.codec import CodecSettings
from cfer.video.faces import (
    MARGIN,
    MIN_PROBABILITY,
    Face,
    Square,
    _looks,
    _square,
    crop,
    face_clip,
    persons_of,
)
from cfer.video.pictures import ClipError, open_pictures
from pipeline.datasets.drawing import DrawingSettings, draw_clip
from pipeline.datasets.synthetic import clip_generator, identity_of

SHAPE = (400, 600)
EVERY_FRAME = CodecSettings()


def face(x: float, y: float, width: float, height: float, probability: float = 0.99) -> Face:
    points = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6]]) * (width, height) + (x, y)
    return Face(np.array([x, y, x + width, y + height]), probability, points)


def squares_of(frames: list[list[Face]], shape: tuple[int, int]) -> list[Square]:
    return [_square(person, n) for person, n in persons_of(dict(enumerate(frames)), shape)]


def center(square: Square) -> tuple[float, float]:
    return square.x + square.side / 2, square.y + square.side / 2


def test_the_median_box_grown_to_a_square():
    (square,) = squares_of(
        [[face(100, 100, 80, 100)], [face(104, 98, 80, 100)], [face(130, 100, 80, 100)]], SHAPE
    )
    assert square.side == round(100 * (1 + MARGIN))
    assert center(square) == pytest.approx((144, 150), abs=0.51)
    assert square.num_persons == 1


def test_no_face():
    assert squares_of([[], [], []], SHAPE) == []


def test_the_larger_of_two_persons():
    small, large = face(290, 150, 60, 80), face(20, 100, 100, 120)
    for frame in ([small, large], [large, small]):
        square = squares_of([frame] * 5, SHAPE)[0]
        assert center(square) == pytest.approx((70, 160), abs=0.51)
        assert square.num_persons == 2


def test_the_more_central_of_two_alike():
    """Within 10 % of the larger area the place decides, beyond it the size."""
    side, middle = face(20, 100, 100, 120), face(250, 140, 100, 110)
    assert center(squares_of([[side, middle]], SHAPE)[0]) == pytest.approx((300, 195), abs=0.51)
    middle = face(250, 140, 100, 106)
    assert center(squares_of([[side, middle]], SHAPE)[0]) == pytest.approx((70, 160), abs=0.51)


def test_a_passer_by_is_dropped():
    person, large = face(290, 150, 60, 80), face(20, 50, 200, 240)
    frames = [[person], [person, large], [person], [person], [person]]
    square = squares_of(frames, SHAPE)[0]
    assert center(square) == pytest.approx((320, 190), abs=0.51)
    assert square.num_persons == 1


def test_crop_is_the_pixels_themselves_where_nothing_is_scaled():
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    square = Square(x=7, y=9, side=32, probability=1, num_persons=1)
    assert np.array_equal(crop(picture, square, 32), picture[9:41, 7:39])


def test_crop_repeats_the_edge_outside_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    square = Square(x=-5, y=-3, side=32, probability=1, num_persons=1)
    cut = crop(picture, square, 32)
    padded = np.pad(picture, ((3, 9), (5, 3), (0, 0)), mode="edge")
    assert np.array_equal(cut, padded)


def test_crop_shrinks_by_averaging():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cut = crop(picture, Square(0, 0, 64, 1, 1), 16)
    means = picture.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(cut - means).max() <= 0.51


@pytest.fixture(scope="module")
def drawn_picture() -> np.ndarray:
    """256 × 256, so that it is a large face, and a small one where it is made smaller."""
    generator = clip_generator(0, 0, "anger", 0)
    return draw_clip(identity_of(0, 0), "anger", DrawingSettings(frames=2), generator)[0]


def test_two_who_pass_each_other_are_two_persons():
    """Each look's faces go to the persons that are nearest, one each."""
    frames = [
        [face(100 + 60 * n, 100, 90, 100), face(400 - 60 * n, 160, 90, 100)] for n in range(5)
    ]
    persons = [person for person, _ in persons_of(dict(enumerate(frames)), SHAPE)]
    ways = sorted([one.box[0] for _, one in person] for person in persons)
    assert ways == [[100, 160, 220, 280, 340], [400, 340, 280, 220, 160]]


def test_a_face_of_another_size_is_another_person():
    near, far = face(200, 100, 200, 220), face(260, 170, 60, 70)
    assert len(persons_of({0: [near], 1: [far], 2: [near]}, SHAPE)) == 2


@pytest.mark.parametrize(
    ("fps", "frames", "wanted"),
    [
        (25, 25, [0, 12, 24]),  # the encoded ones
        (25, 13, [0, 6, 12]),
        (25, 5, [0, 4]),
        (2, 10, [0, 4, 9]),
    ],
)
def test_the_detector_looks_at_the_encoded_frames_from_the_first_to_the_last(fps, frames, wanted):
    codec = CodecSettings(gop_size=3, gop_seconds=5.0).at(fps)
    assert _looks(range(frames), codec, Fraction(fps)) == wanted


def test_where_every_frame_is_encoded_it_looks_four_times_a_second():
    looks = _looks(range(100, 149), EVERY_FRAME, Fraction(24))
    assert (looks[0], looks[-1]) == (100, 148)
    assert set(np.diff(looks)) == {6}


def test_the_square_is_where_the_face_is_and_a_still_video_stays_still(
    drawn_picture, detector, tmp_path
):
    picture = drawn_picture
    height, width = picture.shape[:2]
    squares = []
    for offset in (0, 64):
        scene = np.full((height + 64, width + 64, 3), 128, np.uint8)
        scene[offset : offset + height, offset : offset + width] = picture
        write_video(tmp_path / f"{offset}.mp4", [scene] * 8)
        pictures = open_pictures(tmp_path / f"{offset}.mp4")
        (window,) = face_clip(pictures, 96, detector, EVERY_FRAME)
        assert len(window.pictures) == 8
        assert all(p.shape == (96, 96, 3) and p.dtype == np.uint8 for p in window.pictures)
        steps = np.abs(np.diff(np.stack(window.pictures).astype(int), axis=0))
        assert steps.mean() < 1
        squares.append(window.square)
    assert squares[1].x - squares[0].x == pytest.approx(64, abs=10)
    assert squares[1].y - squares[0].y == pytest.approx(64, abs=10)


def test_a_window_without_a_face_is_no_end_of_the_clip(drawn_picture, detector, tmp_path):
    picture = drawn_picture
    path = tmp_path / "clip.mp4"
    write_video(path, [picture] * 6 + [np.full_like(picture, 90)] * 6 + [picture] * 7)
    spans = [range(6), range(6, 12), range(12, 19)]
    found = list(face_clip(open_pictures(path), 64, detector, EVERY_FRAME, spans))
    assert [window.number for window in found] == [1, 2, 3]
    assert [len(window.pictures) for window in found] == [6, 0, 7]
    assert found[1].error.stage == "face"
    assert "frames 6 to 11" in found[1].error.reason
    # The pictures after the gap are the right ones, each in its own window's square.
    pictures = list(open_pictures(path))
    for window in (found[0], found[2]):
        expected = [crop(pictures[number], window.square, 64) for number in window.frames]
        assert np.abs(np.subtract(window.pictures, expected, dtype=int)).mean() < 3


def test_a_window_is_seen_alike_whatever_others_there_are(drawn_picture, detector, tmp_path):
    path = tmp_path / "clip.mp4"
    shifted = [np.roll(drawn_picture, 2 * n, axis=1) for n in range(40)]
    write_video(path, shifted)  # at 25 frames/s
    codec = CodecSettings(gop_size=3, gop_span=20)
    spans = [range(20), range(7, 27), range(14, 34), range(20, 40)]
    together = list(face_clip(open_pictures(path), 64, detector, codec, spans))
    assert len(together) == len(spans) > 2
    for window, span in zip(together, spans, strict=True):
        (alone,) = face_clip(open_pictures(path), 64, detector, codec, [span])
        assert alone.square == window.square
        assert np.array_equal(alone.views, window.views)


def test_one_frame_is_an_error(drawn_picture, detector, tmp_path):
    write_video(tmp_path / "one.mp4", [drawn_picture])
    with pytest.raises(ClipError, match="only one frame"):
        list(face_clip(open_pictures(tmp_path / "one.mp4"), 64, detector, EVERY_FRAME))


def test_looking_for_large_faces_first_changes_no_square(drawn_picture, detector):
    """A large face gets the very same box; a small one is found where there is no large one."""
    face = drawn_picture
    small = np.full((480, 480, 3), 128, np.uint8)
    small[40:104, 300:364] = cv2.resize(face, (64, 64), interpolation=cv2.INTER_AREA)
    both = small.copy()
    both[200:456, 20:276] = face
    found = []
    for pictures in ([both] * 3, [small] * 3, [both, small, both]):
        large_first, of_all = detector.faces(pictures), detector.faces(pictures, every=True)
        for one, all_of_them in zip(large_first, of_all, strict=True):
            assert np.array_equal(one[0].box, all_of_them[0].box)
        found.append((len(large_first[0]), len(of_all[0])))
    assert found[0] == (1, 2), "the small one was looked for all the same"
    assert [len(faces) for faces in detector.faces([both, small])] == [1, 1]


@pytest.mark.parametrize("shift", [(12, 0), (-9, 14), (10, -10)])
def test_a_face_is_seen_again_where_it_has_gone_to(drawn_picture, detector, shift):
    scene = np.full((320, 320, 3), 128, np.uint8)
    scene[32:288, 32:288] = drawn_picture
    (before,) = detector.faces([scene])[0]
    moved = np.roll(scene, shift, axis=(1, 0))
    (searched,) = detector.faces([moved])[0]
    (again,) = detector.again(moved, before.box[None])
    assert again.probability >= MIN_PROBABILITY
    near = 0.05 * searched.side
    assert again.center == pytest.approx(searched.center, abs=near)
    assert again.points == pytest.approx(searched.points, abs=2 * near)
    assert again.side == pytest.approx(searched.side, rel=0.08)
    (square,) = detector.find(scene)
    (found,) = detector.find(moved)
    assert center(detector.find_again(moved, square)) == pytest.approx(center(found), abs=near)
    far = np.roll(scene, 70, axis=1)
    assert detector.find_again(far, square) is None


def test_all_of_a_picture_is_searched_once_in_a_second_or_where_a_face_is_lost(
    drawn_picture, detector, monkeypatch
):
    """Two faces, which the last network would take for one when they have come together, too."""
    empty = np.full((300, 560, 3), 128, np.uint8)
    one, both, small = empty.copy(), empty.copy(), cv2.resize(drawn_picture, (200, 200))
    one[20:220, 40:240] = small
    both[20:220, 40:240] = both[20:220, 300:500] = small
    searched = []
    faces = detector.faces
    monkeypatch.setattr(
        detector, "faces", lambda *given: searched.append(len(seen)) or faces(*given)
    )
    seen: list[list[Face]] = []
    for picture in (both, both, one, one, empty, both, both, empty, both, both, both):
        seen += detector.look(picture, [seen])
    assert [len(found) for found in seen] == [2, 2, 1, 1, 0, 2, 2, 0, 2, 2, 2]
    assert searched == [0, 2, 4, 5, 7, 8, 10]
    (a, b), searched[:] = seen[-1], []
    merged = replace(b, box=a.box + 3)
    (found,) = detector.look(both, [[[a, merged]]])
    assert len(found) == 2
    assert len(searched) == 1
    # Windows that overlap look at the same pictures: of none there is more than one search.
    assert detector.look(empty, [[], [[a]], [[]]]) == [[], [], []]
    assert len(searched) == 2


def test_no_face_in_noise(detector):
    picture = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    assert detector.find(cv2.GaussianBlur(picture, (0, 0), 3)) == []
    assert detector.find(picture[:10, :10]) == [], "smaller than any face"


def test_real_faces_are_found(faces_dir, detector):
    smallest = sorted(faces_dir.glob("*.mp4"), key=lambda file: file.stat().st_size)
    for file in smallest[:3]:
        spans = [range(48)]
        window = next(face_clip(open_pictures(file), 112, detector, EVERY_FRAME, spans))
        assert window.error is None, file
        assert window.square.probability > 0.95
        # The crop's middle holds the face: the detector finds it there again.
        again = detector.find(cv2.resize(window.pictures[24], (224, 224)))
        assert center(again[0]) == pytest.approx((112, 112), abs=34)


def test_the_face_in_turned_photographs_is_found(cases_dir, detector):
    (window,) = face_clip(open_pictures(cases_dir / "exif6"), 64, detector, EVERY_FRAME)
    assert window.error is None


def test_no_face_in_a_strip_of_a_few_pixels(detector):
    assert detector.find(np.zeros((3000, 2, 3), np.uint8)) == []
