"""Pictures of a puppet: what moves is where it should be, and nothing else has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from painted import LANDMARKS, SHIRT, painted, write_pair, write_person
from painted import LEFT as PAINTED_LEFT
from painted import TOP as PAINTED_TOP

from pipeline.puppets.acting import Clip, Style, plan
from pipeline.puppets.photos import CHIN, EXTENT, LEFT, TEXTURE, TOP, Face, photographs_below
from pipeline.puppets.render import Stage
from pipeline.puppets.rig import JAW_DROP, Rig, generator_of
from pipeline.puppets.smile import OwnSmile

SIZE = 192
BROWS = [72, 73, 74, 75, 78, 79, 80, 81]
STYLE = Style.of("p1")


def still(**strengths: float) -> Clip:
    """Two frames: at rest; and with these strengths (`_` for a space, `u` before a number)."""
    rest = {name: np.zeros(2) for name in plan(STYLE, "neutral", generator_of("any")).curves}
    for name, strength in strengths.items():
        key = name.removeprefix("u") if name[1:2].isdigit() else name.replace("_", " ")
        assert key in rest
        rest[key] = np.array([0.0, strength])
    return Clip(25, rest, [])


def stage(rig: Rig, clip: Clip, style: Style = STYLE, seed: str = "0") -> Stage:
    """Without noise."""
    made = Stage(rig, style, clip, generator_of("stage", seed), SIZE)
    made.noise[:] = 0
    return made


def turned(roll: float) -> np.ndarray:
    return np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])


def pixel(shown: Stage, places: np.ndarray) -> np.ndarray:
    """Where a place of the face frame is in the pictures, (N, 2), x and y."""
    turn = turned(shown.roll)
    return (np.atleast_2d(places) - shown.center) @ turn * shown.unit + SIZE / 2 - 0.5


def area(shown: Stage, places: np.ndarray) -> np.ndarray:
    """Which pixels are within a polygon of the face frame."""
    inside = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(inside, [np.round(pixel(shown, places)).astype(np.int32)], 1)
    return inside > 0


def frames(shown: Stage) -> tuple[np.ndarray, np.ndarray]:
    return shown.frame(0).astype(int), shown.frame(1).astype(int)


def test_at_rest_a_puppet_is_its_photograph(rig: Rig) -> None:
    """Also where lips and lids meet: nothing is between them."""
    shown = stage(rig, still())
    picture, again = frames(shown)
    assert picture.shape == (SIZE, SIZE, 3)
    assert np.array_equal(picture, again)
    # The same texture, seen by one affine map.
    turn = turned(shown.roll)
    scale = turn * shown.pixels / shown.unit
    corner = (shown.center - (LEFT, TOP)) * shown.pixels - 0.5
    matrix = np.column_stack([scale, corner - scale @ np.full(2, SIZE / 2 - 0.5)])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen, alpha = (
        cv2.warpAffine(values, matrix, (SIZE, SIZE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        for values in (shown.texture, shown.matte)
    )
    behind = shown.background[16 : 16 + SIZE, 16 : 16 + SIZE]
    wanted = np.clip(behind + (seen - behind) * alpha[..., None], 0, 255)
    difference = np.abs(picture - wanted)[2:-2, 2:-2]
    assert difference.max() < 8
    assert difference.mean() < 0.8


def test_the_texture_is_the_photograph_in_some_light(rig: Rig) -> None:
    for seed in "0123":
        shown = stage(rig, still(), seed=seed)
        side = len(shown.texture)
        photo = cv2.resize(rig.face.texture, (side, side), interpolation=cv2.INTER_AREA)
        whole = cv2.resize(rig.face.matte, (side, side)) > 0.99
        whole &= (TOP + np.arange(side) / side * EXTENT < 1.9)[:, None]
        for channel in range(3):
            one, other = (values[..., channel][whole] for values in (photo, shown.texture))
            assert np.corrcoef(one, other)[0, 1] > 0.95
    assert len({stage(rig, still(), seed=seed).gain for seed in "0123"}) == 4


def test_an_open_jaw_shows_dark_and_teeth_between_the_lips_and_nothing_outside(rig: Rig) -> None:
    clip = still(u26=1.0, u25=0.5)
    other = replace(STYLE, tooth=(STYLE.tooth[0], 0.2), teeth=0.09)
    shown = stage(rig, clip, replace(STYLE, tooth=(STYLE.tooth[0], 1.0), teeth=0.05))
    closed, opened = frames(shown)
    _, in_other_style = frames(stage(rig, clip, other))
    p = rig.face.points
    upper, lower = p[[87, 94, 95, 96, 97, 98, 93]], p[[93, 103, 102, 101, 100, 99, 87]]
    mouth = area(shown, np.vstack([upper - (0, 0.05), lower + (0, JAW_DROP + 0.05)]))
    teeth = np.abs(opened - in_other_style).max(axis=-1) > 3
    assert teeth.sum() > 10
    assert not (teeth & ~mouth).any()
    # In the middle: teeth below the upper lip, and below them dark.
    x, y = pixel(shown, p[96])[0]
    column = opened[round(y) : round(y + JAW_DROP * shown.unit), round(x)]
    assert column.max() > 120
    assert np.abs(np.diff(column[column.argmax() // 3])).max() < 60, "a tooth is no lip"
    hollow = opened[round(y + 0.6 * JAW_DROP * shown.unit), round(x)]
    assert hollow.max() < 0.6 * closed[round(y + 0.6 * JAW_DROP * shown.unit), round(x)].max()
    # What is above the mouth stays where it is.
    above = area(shown, np.array([(-0.9, -1), (0.9, -1), (0.6, 0.6), (-0.6, 0.6)]))
    assert np.abs(opened - closed)[above].max() <= 1


def test_a_blink_hides_the_iris(rig: Rig) -> None:
    def blue(picture: np.ndarray) -> int:
        return int((picture[..., 2] > picture[..., 0] + 40)[eyes].sum())

    shown = stage(rig, still(blink=1.0))
    p = rig.face.points
    eyes = area(shown, np.array([(-0.8, -0.15), (0.8, -0.15), (0.8, 0.15), (-0.8, 0.15)]))
    opened, closed = frames(shown)
    assert blue(opened) > 12
    assert blue(closed) == 0
    # Nor is the white of the ball.
    balls = sum(area(shown, np.vstack([upper, lower[::-1]])) for upper, lower in rig.lids) > 0
    assert closed[balls].min(axis=-1).max() < 0.85 * opened[balls].min(axis=-1).max()
    # A lid comes down; the brow stays.
    brow = area(shown, p[[71, 72, 73, 74, 75, 76, 84, 83]])
    assert np.abs(opened - closed)[brow].mean() < 1
    # Half-closed is between.
    _, half = frames(stage(rig, still(blink=0.5)))
    assert blue(closed) < blue(half) < blue(opened)


def test_of_a_closed_eye_hardly_a_line_of_the_ball_is_left(rig: Rig) -> None:
    """Balls painted green, within the lids' edges, and seen from near."""
    texture = rig.face.texture.copy()
    for upper, lower in rig.lids:
        ball = np.vstack([upper[1:-1] + (0, 0.01), lower[-2:0:-1] - (0, 0.01)])
        pixels = np.round((ball - (LEFT, TOP)) * TEXTURE).astype(np.int32)
        cv2.fillPoly(texture, [pixels], (0, 255, 0))
    green = replace(rig, face=replace(rig.face, texture=texture))
    shown = Stage(green, STYLE, still(blink=1.0), generator_of("near"), 512)
    shown.noise[:] = 0
    seen = [int((p[..., 1] - p[..., [0, 2]].max(axis=-1) > 120).sum()) for p in frames(shown)]
    assert seen[0] > 500
    assert seen[1] < 0.04 * seen[0]


def test_wide_eyes_show_more_of_the_ball_and_a_look_moves_the_iris(rig: Rig) -> None:
    def center(picture: np.ndarray) -> np.ndarray:
        iris = (picture[..., 2] > picture[..., 0] + 40) & eyes
        return np.argwhere(iris).mean(axis=0)[::-1]

    shown = stage(rig, still(look_right=0.04))
    eyes = area(shown, np.array([(-0.8, -0.2), (0, -0.2), (0, 0.2), (-0.8, 0.2)]))
    ahead, aside = frames(shown)
    assert 0.4 < (center(aside) - center(ahead))[0] / (0.04 * shown.unit) < 1.4
    neutral, wide = frames(stage(rig, still(upper_lid=1.0)))
    pale = [
        (picture.min(axis=-1) > 0.75 * neutral[eyes].max()) & eyes for picture in (neutral, wide)
    ]
    assert pale[1].sum() > 1.1 * pale[0].sum()


@pytest.fixture(scope="module")
def dotted(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """With a dot on the nose, and on an ear."""
    folder = tmp_path_factory.mktemp("dotted")
    write_person(painted(dots={55: (20, 230, 20), 121: (230, 230, 20)}), folder / "p1.png")
    return Rig.of(Face.read(photographs_below(folder)[0]))


def dots(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the green and the yellow dot are, x and y."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    nose, ear = green - np.maximum(red, blue) > 50, np.minimum(red, green) - blue > 70
    assert nose.any()
    assert ear.any()
    return np.argwhere(nose).mean(axis=0)[::-1], np.argwhere(ear).mean(axis=0)[::-1]


def test_a_turn_moves_the_nose_more_than_the_ears(dotted: Rig) -> None:
    shown = stage(dotted, still(yaw=0.25))
    (nose, ear), (turned_nose, turned_ear) = (dots(picture) for picture in frames(shown))
    there, back = (turned_nose - nose)[0] / shown.unit, (turned_ear - ear)[0] / shown.unit
    assert there == pytest.approx(np.sin(0.25), abs=0.1)
    assert abs(back) < 0.5 * there


def test_the_head_and_the_camera_move_as_the_curves_say(dotted: Rig) -> None:
    shown = stage(dotted, still(right=0.1, down=-0.06))
    (nose, _), (moved, _) = (dots(picture) for picture in frames(shown))
    turn = turned(shown.roll)
    assert np.allclose((moved - nose) / shown.unit, np.array([0.1, -0.06]) @ turn, atol=0.03)
    shown = stage(dotted, still(camera_right=0.1))
    (nose, _), (moved, _) = (dots(picture) for picture in frames(shown))
    assert (moved - nose)[0] / shown.unit == pytest.approx(0.1, abs=0.02)


def test_light_and_folds_change_brightness_and_move_nothing(rig: Rig) -> None:
    shown = stage(rig, still(light_right=0.4))
    before, after = frames(shown)
    p = rig.face.points
    left, right = (
        area(shown, p[n] + 0.15 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]))
        for n in (165, 168)
    )
    change = [after[side].mean() / before[side].mean() - 1 for side in (left, right)]
    assert change[0] * change[1] < 0
    assert min(map(abs, change)) > 0.02
    before, brighter = frames(stage(rig, still(gain=0.1)))
    assert brighter.mean() / before.mean() == pytest.approx(np.exp(0.1), rel=0.02)


def test_the_same_randomness_is_the_same_picture(rig: Rig) -> None:
    clip = plan(STYLE, "surprise", generator_of("p1"))
    one, again, other = (
        Stage(rig, STYLE, clip, generator_of("stage", seed), 64).frame(3) for seed in "aab"
    )
    assert np.array_equal(one, again)
    assert np.abs(one.astype(int) - other).mean() > 3


def test_the_edge_of_a_narrow_photograph_is_not_seen(rig: Rig) -> None:
    """It is looked at from nearer."""
    narrow = replace(rig, face=replace(rig.face, reach=(1.6, 2.2, 2.6)))
    for seed in map(str, range(10)):
        shown = Stage(narrow, STYLE, still(), generator_of(seed), 64)
        half = 32 / shown.unit
        assert abs(shown.center[0]) + half <= 1.6
        assert shown.center[1] - half >= -2.2
        assert shown.center[1] + half <= 2.6


@pytest.fixture(scope="module")
def smiler(
    neutral: np.ndarray, full_smile: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Rig, Rig]:
    """With their own smile; and a rig whose neutral photograph is the smiling one."""
    folder = tmp_path_factory.mktemp("smiler")
    write_pair(neutral, full_smile, folder / "both", "p1")
    write_person(full_smile, folder / "smile" / "p1.png")
    (both,), (smile,) = (photographs_below(folder / name) for name in ("both", "smile"))
    own = OwnSmile.of(both)
    assert own is not None
    return Rig.of(Face.read(both), own), Rig.of(Face.read(smile))


def test_a_full_smile_of_ones_own_is_the_smiling_photograph(smiler: tuple[Rig, Rig]) -> None:
    """In the same light; and half of it is between."""
    rig, smiling = smiler
    shown, wanted = stage(rig, still(own_smile=1.0)), stage(smiling, still())
    (before, after), (photograph, _) = frames(shown), frames(wanted)
    p = rig.face.points
    mouth = area(shown, np.vstack([p[[87]] - (0.2, 0.2), p[[93]] + (0.2, -0.2), p[[107, 105]]]))
    face = area(shown, np.array([(-0.7, -0.4), (0.7, -0.4), (0.7, 0.9), (0.4, 1.6), (-0.4, 1.6)]))
    assert np.abs(before - photograph)[mouth].mean() > 8
    assert np.abs(after - photograph)[mouth].mean() < 3
    assert np.abs(after - photograph)[face].mean() < 2.5
    _, half = frames(stage(rig, still(own_smile=0.5)))
    assert np.abs(half - before)[mouth].mean() > 4
    assert np.abs(half - photograph)[mouth].mean() > 4
    # Hair and clothes don't go along.
    outside = area(shown, np.array([(-3, -3), (3, -3), (3, -1.2), (-3, -1.2)]))
    assert np.abs(after - before)[outside].max() <= 1


def test_a_white_shirt_is_another_one_in_each_clip_and_nothing_else_is(tmp_path: Path) -> None:
    """A light on the neck is as white, and is no shirt; nor is a red one dyed."""
    picture = painted(64)
    shirt = np.abs(picture.astype(int) - SHIRT).max(axis=-1) < 30
    white = picture.copy()
    white[shirt] = (236, 236, 232)
    chin = LANDMARKS[CHIN, 1]
    at = np.round((np.array([0, chin + 0.42]) - (PAINTED_LEFT, PAINTED_TOP)) * 64).astype(int)
    for each in (picture, white):
        cv2.circle(each, at.tolist(), 6, (240, 240, 240), -1)
    textures = []
    for name, each in (("red", picture), ("white", white)):
        write_person(each, tmp_path / name / "p1.png")
        made = Rig.of(Face.read(photographs_below(tmp_path / name)[0]))
        textures.append([stage(made, still(), seed=str(n)).texture for n in range(6)])

    def seen(texture: np.ndarray, x: float, y: float) -> np.ndarray:
        unit = len(texture) / EXTENT
        return texture[round((y - TOP) * unit - 0.5), round((x - LEFT) * unit - 0.5)]

    dyes = []
    for red, dyed in zip(*textures, strict=True):
        for place in ((0.4, 0.6), (0, chin + 0.42)):
            assert np.abs(seen(red, *place) - seen(dyed, *place)).max() < 4, place
        assert seen(red, -1.4, 2.9)[0] > 1.4 * seen(red, -1.4, 2.9)[1]
        dyes.append(seen(dyed, -1.4, 2.9).mean() / seen(dyed, 0, chin + 0.42).mean())
    assert min(dyes) < 0.6
    assert max(dyes) - min(dyes) > 0.3


def test_a_real_person_smiles(photos_dir: Path) -> None:
    real = Rig.of(Face.read(photographs_below(photos_dir)[1]))
    shown = stage(real, still(u12L=1.0, u12R=1.0, u25=0.8))
    before, after = frames(shown)
    p = real.face.points
    change = np.abs(after - before).mean(axis=-1)
    mouth = area(shown, np.vstack([p[[87]] - (0.2, 0.2), p[[93]] + (0.2, -0.2), p[[107, 105]]]))
    brows = area(shown, np.vstack([p[BROWS], p[BROWS[::-1]] - (0, 0.2)]))
    assert change[mouth].mean() > 5 * change[brows].mean()
