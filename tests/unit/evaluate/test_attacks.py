"""The attacks on codes of which it is known what they hold, and their closed forms."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score, roc_curve

from cfer.evaluate import attackers, attacks, trials
from cfer.evaluate.attackers import STRENGTHS, Clips
from cfer.evaluate.attacks import OTHERS, TRAINING, Suite
from cfer.evaluate.metrics import ScoredClips
from cfer.evaluate.trials import Estimate, Trials

NUM_CLASSES, VIDEOS_OF_A_CLASS, CODE, FACE = 4, 4, 16, 12
NUM_VICTIMS, NUM_TRAINING = 24, 30
CLIPS = NUM_CLASSES * VIDEOS_OF_A_CLASS
PEOPLE = np.arange(NUM_VICTIMS + NUM_TRAINING)
MIX = np.linalg.qr(np.random.default_rng(100).normal(size=(CODE, CODE)))[0]
INTO_CODE = np.random.default_rng(101).normal(size=(FACE, CODE)) / np.sqrt(FACE)
PICTURE = np.random.default_rng(102).normal(size=(FACE, 64))
EXPRESSIONS = 3 * np.random.default_rng(103).normal(size=(NUM_CLASSES, CODE))


@cache
def suite(kind: str, seed: int = 0, num_victims: int = NUM_VICTIMS) -> Suite:
    """The suite of codes that hold expression, noise, and of the identity …

    * `none`: nothing;
    * `weak`, `strong`: a linear function of z_I, as large as a tenth of the noise, or as the noise;
    * `masked`: a linear function of z_I, beside how strong the expression is, which is a hundred
      times as large and lies in half of the directions, turned at random;
    * `number`: a vector of each person's own, which z_I says nothing about;
    * `by class`: a linear function of z_I that is added in every second class, and in the others
      taken away;
    * `strength`: how strong the expressions are;
    * `spread`: how much the codes of a person vary, in each direction.
    """
    generator = np.random.default_rng(seed)
    faces = generator.normal(size=(len(PEOPLE), FACE))
    faces[:, 0] += np.where(PEOPLE % 2, 2, -2)
    people, labels = np.repeat(PEOPLE, CLIPS), np.tile(np.arange(CLIPS) % NUM_CLASSES, len(PEOPLE))
    noise = generator.normal(size=(len(people), CODE))
    numbers = generator.normal(size=(len(PEOPLE), CODE))
    held = {
        "none": np.zeros((len(people), CODE)),
        "weak": 0.35 * (faces @ INTO_CODE)[people],
        "strong": (faces @ INTO_CODE)[people],
        "masked": (faces @ INTO_CODE)[people],
        "number": numbers[people],
        "by class": (faces @ INTO_CODE)[people] * np.where(labels % 2, 1, -1)[:, None],
        "strength": 0.3 * numbers[people, :1] * (EXPRESSIONS - EXPRESSIONS.mean(0))[labels],
        "spread": noise * np.expm1(0.5 * faces @ INTO_CODE)[people],
    }[kind]
    if kind == "masked":
        held[:, : CODE // 2] = 100 * generator.normal(size=(len(people), CODE // 2))
    codes = (EXPRESSIONS[labels] + noise + held) @ MIX
    z_I = faces[people] + 0.3 * generator.normal(size=(len(people), FACE))
    names = [f"p{number:02d}" for number in people]
    videos = [f"{name}/{clip}" for name, clip in zip(names, range(len(names)), strict=True)]
    photographed = faces + 0.3 * generator.normal(size=faces.shape)
    logits = np.zeros((len(people), NUM_CLASSES))
    clips = ScoredClips(labels, logits, codes, z_I, [*names], videos)
    victims = np.flatnonzero(people < num_victims)
    training = np.flatnonzero(people >= NUM_VICTIMS)
    groups = {f"p{person:02d}": {"half": "odd" if person % 2 else "even"} for person in PEOPLE}
    pictures = {f"p{person:02d}": (faces[person] @ PICTURE).reshape(8, 8) for person in PEOPLE}
    return attacks.attack(
        clips.chosen([*victims]),
        clips.chosen([*training]),
        {video: video for video in videos},
        groups,
        pictures,
        {f"p{person:02d}": photographed[person] for person in PEOPLE},
        seed,
    )


def open_codes(
    people: int, clips: int, dimensions: int, noise: float, seed: int
) -> tuple[ScoredClips, dict[str, str], dict[str, np.ndarray]]:
    """Codes that are faces, nearly; the video of each clip, its own; and each person's face."""
    names = [f"{number:02d}" for number in range(people)]
    ids = [f"{who}/{clip}" for who in names for clip in range(clips)]
    generator = np.random.default_rng(seed)
    faces = generator.normal(size=(people, dimensions))
    z_I = np.repeat(faces, clips, axis=0)
    codes = z_I + noise * generator.normal(size=z_I.shape)
    labels, logits = np.tile([0, 1], len(ids) // 2), np.zeros((len(ids), 2))
    scored = ScoredClips(labels, logits, codes, z_I, [name[:2] for name in ids], ids)
    return scored, dict(zip(ids, ids, strict=True)), dict(zip(names, faces, strict=True))


def estimates(found: Suite, pooled: bool) -> dict[tuple[str, str], Estimate]:
    """The AUC, accuracy, … of each attack, by its name and whom it learned from."""
    found_by = {}
    for attack in found.attacks:
        figures = attack.pooled if pooled else attack.one
        name = attack.name.removesuffix(f", {NUM_TRAINING} people")
        found_by[name, attack.learned_from] = next(iter(figures.values()))
    return found_by


def value(found: Suite, name: str, pooled: bool = True, learned_from: str = OTHERS) -> float:
    return estimates(found, pooled)[name, learned_from].value


LINKS = tuple(f"linkage, {name}" for name in ("ridge", "MLP", "contrastive", "likelihood"))
VERIFICATIONS = ("verification, learned", "verification, likelihood")
OF_PHOTOGRAPHS = tuple(f"photographs, {name}" for name in LINKS)


@pytest.mark.parametrize("source", [OTHERS, TRAINING])
def test_identity_in_the_open_is_found_by_every_attack(source: str) -> None:
    found = suite("strong")
    assert found.people == NUM_VICTIMS
    assert found.clips_pooled == CLIPS / 2
    for name in (*VERIFICATIONS, *LINKS, *OF_PHOTOGRAPHS):
        assert value(found, name, pooled=False, learned_from=source) > 0.8
        assert value(found, name, learned_from=source) > 0.93
    assert value(found, "verification, cosine") > 0.95
    assert value(found, "half, 2 values", learned_from=source) > 0.8
    assert value(found, "inversion, ridge", learned_from=source) > 0.5
    assert value(found, "identification", learned_from=TRAINING) > 0.9
    for attack in found.attacks:
        if attack.measure == "auc":
            assert attack.pooled["eer"].value < 0.15
            assert attack.pooled["d_sys"].low > 2 * attack.pooled["d_sys"].chance
            assert attack.pooled["rank1"].low > attack.pooled["rank1"].chance


def test_weak_identity_shows_in_a_persons_clips_pooled() -> None:
    found = suite("weak")
    for name in (*VERIFICATIONS, "verification, cosine", *LINKS):
        assert value(found, name, pooled=False) < value(found, name) - 0.08
    for name in LINKS:
        assert estimates(found, True)[name, TRAINING].low > 0.55


def test_identity_beside_a_much_larger_expression_is_seen_by_what_learns_and_not_by_cosine() -> (
    None
):
    found = suite("masked")
    assert value(found, "verification, cosine", pooled=False) < 0.53
    for name in (*VERIFICATIONS, *LINKS):
        assert value(found, name) > 0.8


def test_identity_that_shows_in_the_expression_is_found_in_several_clips() -> None:
    """In their mean it is not."""
    for kind, least in (("by class", 0.9), ("strength", 0.75), ("spread", 0.9)):
        found = suite(kind)
        for source in (OTHERS, TRAINING):
            assert value(found, "verification, learned", learned_from=source) < 0.65, kind
            assert value(found, "verification, likelihood", learned_from=source) > least, kind
    assert value(suite("by class"), "linkage, likelihood", learned_from=TRAINING) > 0.8


def test_labels_alone_tell_of_a_person_what_their_mistakes_do() -> None:
    """Of codes that are nearly faces: where all labels are right, they tell nothing; where people
    with some faces are never said to show an expression, that is found."""
    clips, videos, faces = open_codes(24, 16, 6, 0.1, seed=0)
    right = np.eye(2)[clips.labels]
    of_face = np.array([faces[who][0] > 0 for who in clips.subjects])
    mistaken = np.where(of_face[:, None], np.eye(2)[0], right)
    for logits, least, most in ((right, 0.4, 0.6), (mistaken, 0.63, 1)):
        alone = replace(clips, logits=logits).of_labels_alone()
        assert alone.z_R.shape == logits.shape
        found = attacks.attack(alone, alone, videos)
        for name in ("verification, likelihood", "linkage, MLP"):
            assert least <= value(found, name) <= most, name
    assert value(attacks.attack(clips, clips, videos), "linkage, MLP") > 0.9


def test_mistakes_that_anybody_makes_verify_nobody() -> None:
    """Of labels that are nearly all right: which expressions a half of a person's clips shows says
    which the other half shows, but not whose they are."""
    found = []
    for seed in range(3):
        generator = np.random.default_rng(seed)
        labels = np.tile(np.repeat(np.arange(8), 5), 40)
        wrong = generator.random(len(labels)) < generator.uniform(0, 0.2, 8)[labels]
        said = np.where(wrong, generator.integers(0, 8, len(labels)), labels)
        ids = [str(number) for number in range(len(labels))]
        names = [f"p{number // 40:02d}" for number in range(len(labels))]
        z_I = generator.normal(size=(len(labels), 4))
        clips = ScoredClips(labels, np.eye(8)[said], np.eye(8)[said], z_I, [*names], ids)
        attacked = attacks.attack(clips, clips.chosen([]), dict(zip(ids, ids, strict=True)))
        found.append([value(attacked, f"verification, {name}") for name in ("cosine", "learned")])
    # With the mean of directions: 0.19 and 0.29.
    assert np.abs(np.mean(found, axis=0) - 0.5).max() < 0.1


def test_codes_of_one_number_are_attacked() -> None:
    """As two classes have."""
    clips, videos, _ = open_codes(people=30, clips=6, dimensions=1, noise=0.3, seed=3)
    found = attacks.attack(clips, clips.chosen([]), videos)
    assert value(found, "verification, likelihood") > 0.8
    assert value(found, "linkage, likelihood") > 0.8
    assert value(found, "linkage, MLP") > 0.7


def test_the_strongest_of_several_attacks_is_above_a_half_by_chance() -> None:
    gaps = []
    for seed in range(3):
        figures = attacks.attack_figures(suite("none", seed))
        for kind in (attacks.VERIFICATION, attacks.LINKAGE):
            chance = attacks.chance_of(figures, kind)
            assert 0.52 < chance < 0.6
            gaps.append(figures[attacks.strongest(figures, kind)] - chance)
    assert abs(np.mean(gaps)) < 0.03
    assert attacks.chance_of({}, attacks.LINKAGE) == 0.5


def test_codes_are_linked_to_the_photographs_that_are_given() -> None:
    clips, videos, face_of = open_codes(people=20, clips=4, dimensions=5, noise=0.1, seed=2)
    people, faces = [*face_of], [*face_of.values()]
    half = dict(zip(people[::2], faces[::2], strict=True))
    others = dict(zip(people, faces[::-1], strict=True))
    right, wrong, alone = (
        attacks.attack(clips, clips.chosen([]), videos, photographs=shown)
        for shown in (half, others, {people[0]: faces[0]})
    )
    for link in OF_PHOTOGRAPHS:
        assert value(right, link) > 0.9
        assert value(wrong, link) < 0.6
    assert not any(attack.name in OF_PHOTOGRAPHS for attack in alone.attacks)


def test_a_code_that_numbers_people_is_verified_and_not_linked() -> None:
    """Nothing can be learned from other people about whose face it is."""
    found = suite("number")
    assert value(found, "verification, cosine") > 0.95
    assert value(found, "identification", learned_from=TRAINING) > 0.9
    for name, source in itertools.product(LINKS, (OTHERS, TRAINING)):
        for pooled in (False, True):
            chance = estimates(found, pooled)[name, source]
            assert chance.low - 0.03 < 0.5 < chance.high + 0.03


def test_codes_without_identity_give_chance() -> None:
    """In every attack, from one clip and pooled: neither above nor, by artifact, below."""
    seeds = range(3)
    inside = []
    for pooled in (False, True):
        of_seeds = [estimates(suite("none", seed), pooled) for seed in seeds]
        for name in of_seeds[0]:
            found = [each[name] for each in of_seeds]
            gap = float(np.mean([each.value - each.chance for each in found]))
            width = float(np.mean([each.high - each.low for each in found]))
            # The mean of three varies by the width / 4 / √3.
            assert abs(gap) < max(0.5 * width, 0.02), (name, pooled, gap, width)
            inside += [each.low <= each.chance <= each.high for each in found]
    assert np.mean(inside) > 0.85
    for attack in suite("none").attacks:
        if attack.measure == "auc":
            for figures in (attack.one, attack.pooled):
                linkable = figures["d_sys"]
                assert linkable.low < 1.5 * linkable.chance + 0.01


def test_the_best_is_as_good_as_the_input() -> None:
    """What is held back can only lower the figures of an encoder that holds back nothing."""
    for name in LINKS:
        assert (
            value(suite("none"), name) < value(suite("weak"), name) < value(suite("strong"), name)
        )


def test_too_few_people_are_not_attacked() -> None:
    ids = [*"12345678"]
    codes = np.zeros((8, 2))
    few = ScoredClips(np.zeros(8, int), codes, codes, codes, [*"aabbccdd"], ids)
    assert attacks.attack(few, few, dict(zip(ids, ids, strict=True))) == Suite()
    assert attacks.attack_figures(Suite()) == {}


def test_a_few_people_are_attacked_by_whom_learns_from_the_training_people() -> None:
    found = suite("strong", num_victims=5)
    assert found.people == 5
    assert {attack.learned_from for attack in found.attacks} == {TRAINING}
    for name in (*VERIFICATIONS, *LINKS):
        assert value(found, name, learned_from=TRAINING) > 0.8


def test_of_too_many_people_and_clips_some_are_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "MOST_PEOPLE", 12)
    monkeypatch.setattr(attacks, "MOST_CLIPS", 40)
    people = np.repeat([f"p{number:02d}" for number in range(20)], 6)
    videos = np.arange(120) // 2
    codes = np.arange(240.0).reshape(120, 2)
    clips = Clips(codes, codes, people, videos % 3, videos)
    chosen = attacks._attackable(clips, 0)
    assert len(np.unique(chosen.people)) <= 12
    assert 20 < len(chosen.people) <= 40
    for who in chosen.people:
        assert len(np.unique(chosen.videos[chosen.people == who])) > 1


def test_figures_are_named_after_the_attack() -> None:
    found = attacks.attack_figures(suite("strong"))
    assert found["attack/linkage_MLP_training_pooled_auc"] == value(
        suite("strong"), "linkage, MLP", learned_from=TRAINING
    )
    assert all(name.startswith("attack/") and " " not in name for name in found)


# ---- closed forms --------------------------------------------------------------------------------


def test_the_ridge_regressions_are_those_of_a_solver() -> None:
    generator = np.random.default_rng(0)
    codes, targets = generator.normal(2, 1, (60, 5)), generator.normal(size=(60, 3))
    weights = generator.uniform(0.5, 2, 60)
    for strength, model in zip(STRENGTHS, attackers.ridges(codes, targets, weights), strict=True):
        solved = Ridge(strength, solver="lsqr", tol=1e-12).fit(codes, targets, weights)
        np.testing.assert_allclose(model(codes), solved.predict(codes), atol=1e-7)


def test_the_strength_is_chosen_for_people_who_were_left_out() -> None:
    """Of codes that number people, clips left out would say that the weakest is the best."""
    generator = np.random.default_rng(0)
    people = np.repeat(np.arange(20), 30)
    codes = 30 * (generator.normal(size=(20, 16))[people] + 0.1 * generator.normal(size=(600, 16)))
    targets = generator.normal(size=(20, 8))[people]
    by_people = attackers.fit_ridge(codes, targets, people)(codes).var()
    by_clips = attackers.fit_ridge(codes, targets, np.arange(600))(codes).var()
    assert by_people < 0.7 * by_clips


def test_whitened_codes_vary_equally_within_a_person() -> None:
    generator = np.random.default_rng(0)
    people = np.repeat(np.arange(50), 40)
    noise = generator.normal(size=(2000, 4)) @ generator.normal(size=(4, 4))
    codes = noise + 5 * generator.normal(size=(50, 4))[people]
    white = codes @ attackers.whitening(codes, people)
    within = np.concatenate(
        [white[people == who] - white[people == who].mean(0) for who in range(50)]
    )
    np.testing.assert_allclose(np.cov(within.T), np.eye(4), atol=0.1)


def test_auc_and_eer_are_those_of_all_comparisons() -> None:
    generator = np.random.default_rng(0)
    people = np.arange(12)
    probes = np.repeat(people, 20)
    same = probes[:, None] == people
    scores = generator.normal(size=same.shape) + 1.2 * same
    tried = Trials(people)
    tried.add(scores, probes, people)
    found = tried.estimates(0)
    assert found["auc"].value == pytest.approx(
        roc_auc_score(same.ravel(), scores.ravel()), abs=2e-3
    )
    false, hit, _ = roc_curve(same.ravel(), scores.ravel())
    eer = false[np.abs(false - (1 - hit)).argmin()]
    assert found["eer"].value == pytest.approx(eer, abs=0.01)
    best = people[scores.argmax(1)] == probes
    assert found["rank1"].value == pytest.approx(best.mean())
    assert found["rank1"].chance == pytest.approx(1 / 12)
    # A constant score says nothing.
    constant = Trials(people)
    constant.add(np.ones(same.shape), probes, people)
    nothing = constant.estimates(0)
    assert nothing["auc"].value == pytest.approx(0.5, abs=0.003)
    assert nothing["rank1"].value == pytest.approx(1 / 12)


def test_linkability_is_the_integral_of_its_definition() -> None:
    edges = np.linspace(-8, 9, 2001)
    one, two = np.diff(norm.cdf(edges, 1)), np.diff(norm.cdf(edges, 0))
    middle = (edges[1:] + edges[:-1]) / 2
    ratio = np.exp(middle - 0.5)
    expected = (one * np.maximum(2 * ratio / (1 + ratio) - 1, 0)).sum()
    assert trials.linkability(one[None], two[None])[0] == pytest.approx(expected, abs=1e-4)
    assert trials.linkability(two[None], two[None])[0] == 0
    apart = np.array([[0.0, 1.0]])
    assert trials.linkability(apart, apart[:, ::-1])[0] == 1


def test_the_interval_is_that_of_people_and_not_of_clips() -> None:
    """Of people who are all right or all wrong, more clips make nothing surer."""
    right = np.repeat(np.arange(20) < 10, 50).astype(float)
    people = np.repeat(np.arange(20), 50)
    values = trials.by_person(right, people, trials.resampled(20, 0))
    found = trials.estimate(values, 0.5)
    # 1.96 · √(0.25 / 20)
    assert found.high - found.value == pytest.approx(0.22, abs=0.04)
    # Five parts, each attacked by the four others: 1/n becomes 1/n + 1/4.
    assert attacks.widening(TRAINING) == 1
    assert attacks.widening(OTHERS) ** 2 / 5 == pytest.approx(1 / 5 + 1 / 4)
    wider = trials.estimate(values, 0.5, attacks.widening(OTHERS))
    assert wider.high - wider.value == pytest.approx(1.5 * (found.high - found.value))
    # Where nobody of 29 was found, up to one in eight may be.
    none = trials.estimate(np.zeros(100), 1 / 29, people=29)
    assert (none.low, none.high) == (0, pytest.approx(1 - 0.025 ** (1 / 29)))
    # None ends beyond what a figure can be.
    assert trials.estimate(np.array([0.9, 0.7, 1.1]), 0.5, 5.0).high == 1


def test_clips_of_one_video_link_nothing() -> None:
    """What all clips of a video share, and no two videos, such as the background."""
    generator = np.random.default_rng(0)
    people = np.repeat(np.arange(16), 24)
    videos = np.repeat(np.arange(16 * 6), 4)
    labels = np.tile([0, 0, 1, 1], 16 * 6)
    codes = generator.normal(size=(len(people), 8)) + 5 * generator.normal(size=(96, 8))[videos]
    names: list[str | None] = [f"p{number:02d}" for number in people]
    z_I = generator.normal(size=(16, 6))[people]
    ids = [f"c{number}" for number in range(len(people))]
    clips = ScoredClips(labels, np.zeros((len(people), 2)), codes, z_I, names, ids)
    video_of = {name: str(video) for name, video in zip(ids, videos, strict=True)}
    found = attacks.attack(clips, clips.chosen([]), video_of)
    one = [each.one["auc"] for each in found.attacks if each.name.startswith("verification")]
    assert len(one) == 3
    assert all(abs(each.value - 0.5) < 0.04 for each in one)
