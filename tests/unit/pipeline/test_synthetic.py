"""The drawn faces: the same seed is the same set, what should move moves, and nothing is lost."""

from __future__ import annotations

import csv
import os
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.optimize import brentq

from cfer.cli import run
from cfer.errors import InputError
from cfer.video.faces import FaceDetector
from pipeline.datasets.drawing import (
    ACTION_UNITS,
    CREASES,
    EXPRESSIONS,
    PROTOTYPES,
    Canvas,
    DrawingSettings,
    Head,
    Pose,
    activations,
    draw_clip,
)
from pipeline.datasets.synthetic import (
    Verification,
    clip_generator,
    draw_dataset,
    identity_of,
)

SMALL = DrawingSettings(frames=6, picture_size=128, difficulty=0.5, seed=3)


def read_video(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("drawn")
    draw_dataset(directory, 2, SMALL)
    return directory


@pytest.fixture(scope="module")
def clip() -> list[np.ndarray]:
    return draw_clip(identity_of(3, 0), "fear", SMALL, clip_generator(3, 0, "fear", 0))


# --- one clip


def test_a_clip_is_frames(clip: list[np.ndarray]) -> None:
    assert len(clip) == 6
    assert all(p.shape == (128, 128, 3) and p.dtype == np.uint8 for p in clip)


def test_the_same_seed_draws_the_same_pixels(clip: list[np.ndarray]) -> None:
    again = draw_clip(identity_of(3, 0), "fear", SMALL, clip_generator(3, 0, "fear", 0))
    assert np.array_equal(again, clip)


@pytest.mark.parametrize(
    ("seed", "subject", "expression", "repetition"),
    [(4, 0, "fear", 0), (3, 1, "fear", 0), (3, 0, "anger", 0), (3, 0, "fear", 1)],
)
def test_seed_subject_class_and_repetition_each_draw_another_clip(
    clip: list[np.ndarray], seed: int, subject: int, expression: str, repetition: int
) -> None:
    settings = DrawingSettings(2, 128, 0.5, seed)
    generator = clip_generator(seed, subject, expression, repetition)
    other = draw_clip(identity_of(seed, subject), expression, settings, generator)
    assert np.abs(other[0].astype(int) - clip[0]).mean() > 3


def test_subjects_are_different_people() -> None:
    people = [identity_of(0, subject) for subject in range(40)]
    assert len({tuple(person.skin) for person in people}) == 40
    assert len({tuple(person.gain_z) for person in people}) == 40
    assert len({person.hair_style for person in people}) >= 6
    assert pickle.dumps(identity_of(0, 7)) == pickle.dumps(people[7])


def test_expressions_are_the_seven_of_ck_plus_in_their_order() -> None:
    assert EXPRESSIONS == (
        "anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise",
    )  # fmt: skip
    assert set(PROTOTYPES) == set(EXPRESSIONS)


# --- movement


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_action_units_rise_from_zero_to_their_strongest_at_the_apex(expression: str) -> None:
    settings = DrawingSettings(frames=24, difficulty=1.0)
    for subject in range(10):
        generator = clip_generator(0, subject, expression, 0)
        level = activations(identity_of(0, subject), expression, settings, generator)
        assert level.shape == (24, len(ACTION_UNITS), 2)
        assert not level[0].any()
        assert (np.diff(level, axis=0) >= 0).all()
        for unit in PROTOTYPES[expression][0]:
            assert level[-1, ACTION_UNITS.index(unit)].max() > 0.03


def test_contempt_is_on_one_side() -> None:
    identity = identity_of(0, 0)
    settings = DrawingSettings(difficulty=0.0)
    level = activations(identity, "contempt", settings, np.random.default_rng(0))[-1]
    dimpler = level[ACTION_UNITS.index(14)]
    assert dimpler[identity.contempt_side] > 5 * dimpler[1 - identity.contempt_side]


def units(**levels: float) -> np.ndarray:
    level = np.zeros((len(ACTION_UNITS), 2), np.float32)
    for name, value in levels.items():
        level[ACTION_UNITS.index(int(name.removeprefix("au")))] = value
    return level


@pytest.mark.parametrize(
    ("level", "moving", "still"),
    [
        (units(au1=1, au2=1), ("brows",), ("mouth", "chin")),
        (units(au4=1), ("brows",), ("mouth", "chin")),
        (units(au5=1), ("eyes",), ("mouth", "chin")),
        (units(au12=1), ("mouth",), ("brows",)),
        (units(au15=1), ("mouth",), ("brows", "eyes")),
        (units(au26=1), ("mouth", "chin"), ("brows", "eyes")),
    ],
    ids=["raised brows", "lowered brows", "lids", "smile", "corners down", "jaw"],
)
def test_motion_is_where_the_unit_acts(
    level: np.ndarray, moving: tuple[str, ...], still: tuple[str, ...]
) -> None:
    places = {"brows": (-0.5, -0.2), "eyes": (-0.1, 0.1), "mouth": (0.8, 1.2), "chin": (1.2, 1.6)}
    # Foreheads without a fringe, which would hide raised brows.
    bare = [k for k in range(12) if identity_of(0, k).hair_style != "fringe"]
    for subject in bare[:4]:
        who = identity_of(0, subject)
        head = Head(who, Canvas(50.0), np.array([0.2, -0.3, 0.93]))
        drawn = []
        for activation in (units(), level):
            picture = np.full((256, 256, 3), 120, np.uint8)
            center = np.array([128.0, 110.0])
            head.draw(picture, Pose(center, 50.0, 0.0, 0.0, 0.0, activation, 0.0, np.zeros(2)))
            drawn.append(picture.astype(int))
        change = np.abs(drawn[1] - drawn[0])[:, 78:178].mean(axis=(1, 2))
        in_place = {
            name: change[round(110 + 50 * low) : round(110 + 50 * high)].mean()
            for name, (low, high) in places.items()
        }
        for here in moving:
            assert in_place[here] > 0.4
            for there in still:
                assert in_place[here] > 4 * in_place[there]


def test_identity_leaves_no_field_out_of_its_range() -> None:
    for subject in range(200):
        who = identity_of(1, subject)
        assert 0 <= who.age <= 1
        assert who.chin_y > who.mouth_y + 0.25 > who.nose_y + 0.4
        assert all(0 <= channel <= 255 for channel in (*who.skin, *who.hair, *who.lip))
        assert len(who.crease_depth) == len(CREASES)
        assert len(who.gain_z) == len(ACTION_UNITS)


# --- the set


def test_the_manifest_lists_every_clip_and_every_clip_is_readable(drawn: Path) -> None:
    with (drawn / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "clip_id", "subject", "label", "apex_frame", "dataset"]
    assert {(row["subject"], row["label"]) for row in rows} == {
        (subject, label) for subject in ("S001", "S002") for label in EXPRESSIONS
    }
    assert len({row["clip_id"] for row in rows}) == len(rows) == 14
    for row in rows:
        pictures = read_video(drawn / row["path"])
        assert len(pictures) == 6
        assert int(row["apex_frame"]) == 5
        assert pictures[0].shape == (128, 128, 3)
    assert not list(drawn.rglob("*.part"))


def test_the_video_is_nearly_what_was_drawn(drawn: Path, clip: list[np.ndarray]) -> None:
    for written, picture in zip(read_video(drawn / "videos/S001/fear_1.mp4"), clip, strict=True):
        gray = np.array([0.299, 0.587, 0.114])
        error = (written.astype(float) - picture) @ gray
        assert np.sqrt(np.square(error).mean()) < 4


def test_a_subject_does_not_depend_on_the_others_nor_on_the_classes(
    drawn: Path, tmp_path: Path
) -> None:
    draw_dataset(tmp_path, 1, SMALL, classes=["surprise"])
    name = "videos/S001/surprise_1.mp4"
    assert (tmp_path / name).read_bytes() == (drawn / name).read_bytes()


def test_a_second_run_draws_only_what_is_missing(tmp_path: Path) -> None:
    draw_dataset(tmp_path, 1, SMALL, classes=["anger", "sadness"])
    kept = tmp_path / "videos/S001/anger_1.mp4"
    lost = tmp_path / "videos/S001/sadness_1.mp4"
    bytes_before = lost.read_bytes()
    os.utime(kept, (1, 1))
    lost.unlink()
    (tmp_path / "manifest.csv").unlink()
    draw_dataset(tmp_path, 1, SMALL, classes=["anger", "sadness"])
    assert kept.stat().st_mtime == 1
    assert lost.read_bytes() == bytes_before
    assert (tmp_path / "manifest.csv").exists()


def test_a_folder_of_other_settings_is_left_alone(drawn: Path) -> None:
    other = DrawingSettings(frames=6, picture_size=128, difficulty=0.9, seed=3)
    with pytest.raises(InputError, match=r"difficulty 0\.5 there, 0\.9 now"):
        draw_dataset(drawn, 2, other)


def test_a_class_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'joy' is not one of the expressions"):
        run(["draw", "--out", str(tmp_path / "set"), "--classes", "anger,joy"])
    assert not (tmp_path / "set").exists()


def test_a_wrong_option_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(["draw", "--out", str(tmp_path / "set"), "--subjects", "many"])
    assert "--subjects" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    for neither_or_both in ([], ["--out", str(tmp_path / "set"), "--measure", str(tmp_path)]):
        with pytest.raises(InputError, match="give either --out"):
            run(["draw", *neither_or_both])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--subjects", "0", "--subjects 0: give 1 or more"),
        ("--clips-per-class", "-3", "--clips-per-class -3: give 1 or more"),
        ("--workers", "0", "--workers 0: give 1 or more"),
        ("--frames", "1", "--frames: 1 is too few"),
        ("--picture-size", "101", "--picture-size: 101"),
        ("--difficulty", "nan", "--difficulty: nan is outside"),
        ("--seed", "-1", "--seed -1: give 0 or more"),
    ],
)
def test_numbers_that_cannot_be_drawn(
    tmp_path: Path, option: str, value: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(["draw", "--out", str(tmp_path / "set"), option, value])
    assert not (tmp_path / "set").exists()


def test_measuring_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.csv; draw the set first"):
        run(["draw", "--measure", str(tmp_path)])


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="can't be written"):
        draw_dataset(tmp_path / "file", 1, SMALL)
    assert (tmp_path / "file").read_text() == "mine"


# --- its measures


def test_mtcnn_finds_one_face_in_every_frame(detector: FaceDetector) -> None:
    settings = DrawingSettings(frames=2, difficulty=1.0)
    for subject, expression in enumerate(EXPRESSIONS):
        generator = clip_generator(0, subject, expression, 0)
        pictures = draw_clip(identity_of(0, subject), expression, settings, generator)
        assert [len(faces) for faces in detector.faces(pictures, every=True)] == [1, 1]


def test_verification_of_perfect_useless_and_known_codes() -> None:
    subjects = ["a", "a", "b", "b"]
    perfect = Verification.of(np.array([[0.0], [0.1], [5.0], [5.1]]), subjects)
    assert (perfect.nearest, perfect.auc, perfect.eer) == (1.0, 1.0, 0.0)
    wrong = Verification.of(np.array([[0.0], [5.0], [0.1], [5.1]]), subjects)
    assert wrong.nearest == 0.0
    # Two pairs of one subject at 5 apart; of the four others two are nearer, two are about as far.
    assert wrong.auc == pytest.approx(0.25)
    rng = np.random.default_rng(0)
    useless = Verification.of(rng.standard_normal((200, 8)), [str(k % 20) for k in range(200)])
    assert useless.auc == pytest.approx(0.5, abs=0.03)
    assert useless.eer == pytest.approx(0.5, abs=0.03)


def test_the_equal_error_rate_lies_between_the_points_of_the_roc() -> None:
    """The one pair of the same subject is at distance 3, the five others at 1, 2, 4, 5 and 6: where
    2/5 of these are accepted, the ROC goes straight up, and none of its points is on the way."""
    codes = np.array([[0.0], [3.0], [4.0], [-2.0]])
    found = Verification.of(codes, ["a", "a", "b", "c"])
    assert found.eer == pytest.approx(0.4)
    assert found.chance == 0.5  # two of four clips


def test_the_equal_error_rate_is_where_an_independent_search_finds_it() -> None:
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(3), 2).astype(str)
    for _ in range(20):
        codes = np.repeat(rng.normal(size=(3, 4)), 2, 0) + rng.normal(size=(6, 4))
        distance = np.linalg.norm(codes[:, None] - codes[None], axis=-1)[np.triu_indices(6, 1)]
        same = (names[:, None] == names[None])[np.triu_indices(6, 1)]
        # Every threshold accepts so many of both kinds; between two of them, a coin is thrown.
        cuts = [-1.0, *np.sort(distance)]
        points = [((distance[~same] <= c).mean(), (distance[same] <= c).mean()) for c in cuts]
        false, true = (np.array(p) for p in zip(*points, strict=True))
        rate = brentq(lambda x, f=false, t=true: 1 - x - np.interp(x, f, t), 0, 1)
        # Where the curve goes straight up, the search ends beside the jump.
        assert Verification.of(codes, list(names)).eer == pytest.approx(rate, abs=1e-6)
