"""What a puppet does over time: by class and person, and which stretches show what."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipeline.puppets.acting import (
    CAMERA,
    CLASSES,
    EYES,
    FRAME_RATES,
    LEAST_RISE,
    MOST,
    Clip,
    Style,
    ease,
    plan,
    prototype,
)
from pipeline.puppets.rig import OWN, PAIRED, SINGLE, generator_of

EXPRESSIONS = tuple(name for name in CLASSES if name != "neutral")
SEEDS = range(4)
PEOPLE = [f"p{number}" for number in range(16)]
UNITS = [*(name + side for name in PAIRED for side in "LR"), *SINGLE]
# What nothing shows but this class, of those that are told apart by it.
SIGNS = {
    "anger": ("4L", "4R"), "disgust": ("9L", "9R", "10L", "10R"), "fear": ("1L", "1R", "upper lid"),
    "happiness": ("12L", "12R"), "sadness": ("15L", "15R"), "surprise": ("1L", "2L", "1R", "2R"),
    "contempt": ("14L", "14R"),
}  # fmt: skip


def clip_of(person: str, label: str, seed: int = 0, has_own_smile: bool = False) -> Clip:
    generator = generator_of(person, label, str(seed))
    return plan(Style.of(person), label, generator, has_own_smile)


@pytest.fixture(scope="module")
def clips() -> list[tuple[str, Clip]]:
    return [
        (label, clip_of(person, label, seed))
        for label in CLASSES
        for person in PEOPLE
        for seed in SEEDS
    ]


def sign(clip: Clip, label: str, seconds: float) -> float:
    """How strong what is typical of a class is, at a moment."""
    times = np.arange(clip.num_frames) / clip.fps
    return sum(float(np.interp(seconds, times, clip.curves[name])) for name in SIGNS[label])


def test_a_clip_is_curves_of_one_length(clips: list[tuple[str, Clip]]) -> None:
    head = {"yaw", "pitch", "roll", "right", "down", "nearer"}
    light = {"gain", "light right", "light down"}
    for _, clip in clips:
        assert set(clip.curves) == {*UNITS, OWN, *EYES, *CAMERA, *light, *head}
        assert {curve.shape for curve in clip.curves.values()} == {(clip.num_frames,)}
        assert all(np.isfinite(curve).all() for curve in clip.curves.values())
        assert clip.num_frames == round(clip.seconds * clip.fps)
        assert clip.num_frames >= 8
        assert clip.seconds < 5.1
    assert {clip.fps for _, clip in clips} == set(FRAME_RATES)


def test_nothing_goes_further_than_a_face_can(clips: list[tuple[str, Clip]]) -> None:
    for label, clip in clips:
        for name in UNITS:
            assert np.abs(clip.curves[name]).max() < MOST, (label, name)
        assert clip.curves["26"].min() >= 0, "a jaw that goes up"
        for name in ("yaw", "pitch"):
            assert np.abs(clip.curves[name]).max() < np.radians(27)
        assert 0 <= clip.curves["blink"].min() <= clip.curves["blink"].max() <= 1


def test_the_same_words_are_the_same_clip() -> None:
    one, again, other = (clip_of("p1", "fear", seed) for seed in (0, 0, 1))
    assert one.spans == again.spans
    assert all(np.array_equal(one.curves[name], again.curves[name]) for name in one.curves)
    assert one.spans != other.spans
    assert clip_of("p2", "fear").spans != one.spans
    assert clip_of("p1", "anger").spans != one.spans


def test_spans_are_within_the_clip_and_are_of_its_class_or_neutral(
    clips: list[tuple[str, Clip]],
) -> None:
    shown = Counter()
    for label, clip in clips:
        assert {span.label for span in clip.spans} <= {label, "neutral"}
        for span in clip.spans:
            assert 0 <= span.start < span.end <= (clip.num_frames - 1) / clip.fps + 1e-9
            assert span.end - span.start >= 0.2
            if span.label == "neutral":
                assert span.intensity == 0
            else:
                # The expression's own, from 0.6 to 1.2, by how much of it rises here.
                assert 0.6 * LEAST_RISE <= span.intensity <= 1.2
                shown[label] += 1
        if label == "neutral":
            # Two, unless both are all of a short clip: the same window is not asked for twice.
            whole = (0, (clip.num_frames - 1) / clip.fps)
            times = {(span.start, span.end) for span in clip.spans}
            assert len(times) == len(clip.spans)
            assert len(times) == 2 or times == {whole}, clip.spans
    assert all(shown[label] > 1.6 * len(SEEDS) * len(PEOPLE) for label in EXPRESSIONS), shown


@pytest.mark.parametrize("label", EXPRESSIONS)
def test_an_expression_rises_in_its_spans_and_in_no_other(
    clips: list[tuple[str, Clip]], label: str
) -> None:
    rises, rests = [], []
    for clip in (clip for name, clip in clips if name == label):
        for span in clip.spans:
            rise = sign(clip, label, span.end) - sign(clip, label, span.start)
            (rests if span.label == "neutral" else rises).append(rise)
    assert np.median(rises) > 0.5
    # Another expression may have gone before.
    assert np.mean(np.array(rises) > 0.1) > 0.85
    assert len(rests) > 5
    # Speech and twitches aside.
    assert np.mean(np.array(rests) < 0.1 * len(SIGNS[label])) > 0.85
    assert np.median(rests) < 0.02


def test_nothing_rises_in_a_clip_without_an_expression(clips: list[tuple[str, Clip]]) -> None:
    quiet = [clip for label, clip in clips if label == "neutral"]
    for label in EXPRESSIONS:
        rises = [
            sign(clip, label, span.end) - sign(clip, label, span.start)
            for clip in quiet
            for span in clip.spans
        ]
        assert np.quantile(np.abs(rises), 0.9) < 0.6
        assert abs(np.median(rises)) < 0.05
    # But what is no expression goes on: speech, blinks, turns of the head.
    assert sum(clip.curves["25"].max() > 0.3 for clip in quiet) > len(quiet) / 4
    assert sum(clip.curves["blink"].max() == 1 for clip in quiet) > len(quiet) / 4
    assert np.median([np.ptp(clip.curves["yaw"]) for clip in quiet]) > 0.02


def test_contempt_is_on_one_side() -> None:
    sides = Counter()
    for person in PEOPLE:
        style = Style.of(person)
        for seed in range(8):
            units = prototype("contempt", style, generator_of(person, str(seed)))
            paired = {name for name in units if name.rstrip("LR") in PAIRED}
            assert {name[-1] for name in paired} in ({"L"}, {"R"})
            assert {name.rstrip("LR") for name in paired} >= {"12", "14"}
            sides[person, next(iter(paired))[-1] == style.side] += 1
    # Most of a person's are on that person's side.
    assert all(sides[person, True] > sides[person, False] for person in PEOPLE)
    assert {Style.of(person).side for person in PEOPLE} == {"L", "R"}


def test_contempt_moves_one_corner_of_the_mouth(clips: list[tuple[str, Clip]]) -> None:
    differences = {label: [] for label in ("contempt", "happiness")}
    for label, clip in clips:
        if label in differences:
            left, right = (np.ptp(clip.curves["14" + s] + clip.curves["12" + s]) for s in "LR")
            differences[label].append(abs(left - right) / max(left, right))
    assert np.median(differences["contempt"]) > 0.6
    assert np.median(differences["happiness"]) < 0.3


@pytest.mark.parametrize(
    ("label", "always", "never"),
    [
        ("anger", {"4", "lower lid"}, {"1", "12", "26"}),
        ("disgust", {"9", "10"}, {"1", "2", "12", "26L"}),
        ("fear", {"1", "2", "4", "20", "25"}, {"12", "24", "9"}),
        ("happiness", {"12", "6"}, {"4", "15", "24"}),
        ("sadness", {"1", "4", "15"}, {"12", "2", "26"}),
        ("surprise", {"1", "2", "25", "26"}, {"4", "12", "15"}),
        ("neutral", set(), set(UNITS) | set(PAIRED)),
    ],
)
def test_the_action_units_of_a_class(label: str, always: set[str], never: set[str]) -> None:
    seen = Counter()
    for person in PEOPLE:
        for seed in range(4):
            units = prototype(label, Style.of(person), generator_of(person, str(seed)))
            assert always <= set(units)
            assert not never & set(units)
            seen.update(units)
    assert not always or len(seen) > len(always), "everyone does the same"


def test_another_expression_gives_way_in_some_clips_and_is_no_label() -> None:
    """It is there at the start, and falls within a second; no span is of it."""
    given_way = 0
    for person in PEOPLE:
        for seed in SEEDS:
            clip = clip_of(person, "anger", seed)
            shown = [span for span in clip.spans if span.label == "anger"]
            assert {span.label for span in clip.spans} <= {"anger", "neutral"}
            # Neither anger has it nor what that is blended with.
            name = max(("2L", "12L", "12R", "14L", "14R"), key=lambda n: clip.curves[n][0])
            before = clip.curves[name][0]
            if before > 0.35 and shown and clip.seconds > shown[0].start + 1.4:
                assert clip.curves[name][-1] < 0.6 * before
                assert sign(clip, "anger", shown[0].end) > 0.3
                given_way += 1
    # Of a fifth, those that can be seen by these.
    assert 0.03 < given_way / (len(PEOPLE) * len(SEEDS)) < 0.3


def test_half_of_the_happy_clips_of_who_has_an_own_smile_show_it() -> None:
    peaks = []
    for person in PEOPLE:
        for seed in SEEDS:
            without = clip_of(person, "happiness", seed)
            clip = clip_of(person, "happiness", seed, has_own_smile=True)
            assert clip.spans == without.spans
            assert (clip.seconds, clip.fps) == (without.seconds, without.fps)
            assert not without.curves[OWN].any()
            peaks.append(clip.curves[OWN].max())
            if not clip.curves[OWN].any():
                assert all(np.array_equal(clip.curves[n], without.curves[n]) for n in clip.curves)
                continue
            # It rises where the other smile does, in the place of that.
            for span in (span for span in clip.spans if span.label == "happiness"):
                times = np.arange(clip.num_frames) / clip.fps
                start, end = np.interp([span.start, span.end], times, clip.curves[OWN])
                assert end - start > 0.2
    shown = np.array([peak for peak in peaks if peak])
    assert 0.35 < len(shown) / len(peaks) < 0.65
    assert shown.min() > 0.4
    assert shown.max() < 1.2  # no more than there was, but for a tremble


def test_only_happiness_shows_an_own_smile() -> None:
    for label in CLASSES:
        if label != "happiness":
            for person in PEOPLE[:4]:
                without = clip_of(person, label)
                clip = clip_of(person, label, has_own_smile=True)
                assert not clip.curves[OWN].any()
                assert all(np.array_equal(clip.curves[n], without.curves[n]) for n in clip.curves)


def test_nobody_blinks_as_the_apex_is_reached(clips: list[tuple[str, Clip]]) -> None:
    seen = 0
    for label, clip in clips:
        shown = [span for span in clip.spans if span.label == label != "neutral"]
        if len(shown) == 2:  # the first is cut close: it ends at the apex
            times = np.arange(clip.num_frames) / clip.fps
            assert np.interp(shown[0].end, times, clip.curves["blink"]) < 0.2
            seen += 1
    assert seen > 250


def test_a_style_is_the_persons_own() -> None:
    one, again, other = Style.of("p1"), Style.of("p1"), Style.of("p2")
    assert one.strength == again.strength != other.strength
    assert one.lopsided == again.lopsided != other.lopsided
    assert np.array_equal(one.habit, again.habit)
    strengths = [value for person in PEOPLE for value in Style.of(person).strength.values()]
    assert 0.9 < np.median(strengths) < 1.1


def test_easing_has_no_jolt() -> None:
    share = np.linspace(-0.5, 1.5, 401)
    eased = ease(share)
    assert np.array_equal(eased[[0, 100, 200, 300, 400]], [0, 0, 0.5, 1, 1])
    assert (np.diff(eased) >= 0).all()
    speed = np.diff(eased) / np.diff(share)
    assert np.abs(np.diff(speed)).max() < 0.04
