"""Temperatures of planted logits, and figures of calibration against their definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from cfer.evaluate.calibration import (
    LEAST,
    MOST,
    NUM_BINS,
    bins,
    brier,
    calibration,
    cross_fitted,
    ece,
    held_out_people,
    temperature,
)
from cfer.evaluate.metrics import ScoredClips, cross_entropy


def planted(people: int, clips_each: int, seed: int = 0) -> ScoredClips:
    """Clips of 5 classes whose labels are drawn from the softmax of their logits: calibrated."""
    generator = np.random.default_rng(seed)
    count = people * clips_each
    logits = generator.normal(0, 2, (count, 5))
    labels = (softmax(logits, axis=1).cumsum(1) < generator.random((count, 1))).sum(1)
    return ScoredClips(
        labels=labels,
        logits=logits,
        z_R=np.zeros((count, 1)),
        z_I=np.zeros((count, 1)),
        subjects=[f"S{i % people}" for i in range(count)],
        clip_ids=[f"{i:06d}" for i in range(count)],
    )


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0, 20.0])
def test_the_temperature_finds_the_factor_that_logits_were_multiplied_by(factor: float) -> None:
    clips = planted(people=20, clips_each=500)
    given = factor * clips.logits
    found = temperature(given, clips.labels)
    assert found == pytest.approx(factor, rel=0.05)
    least = cross_entropy(given / found, clips.labels)
    for other in (found * 1.01, found / 1.01, 1.0):
        assert least <= cross_entropy(given / other, clips.labels)


def test_temperatures_are_bounded() -> None:
    """Wrong labels have no best one; where all are right, the smallest would be the best."""
    logits = np.random.default_rng(0).normal(size=(50, 3))
    always_wrong = temperature(logits, logits.argmin(1))
    assert LEAST < always_wrong <= MOST
    assert always_wrong == pytest.approx(MOST, rel=1e-3)
    assert temperature(logits, logits.argmax(1)) == 1


def test_overconfident_logits_are_found_and_mended() -> None:
    clips = planted(people=20, clips_each=100)
    figures = calibration(replace(clips, logits=3 * clips.logits))
    assert figures["calibration/temperature"] == pytest.approx(3, rel=0.1)
    assert (figures["calibration/clips"], figures["calibration/people"]) == (2000, 20)
    assert figures["calibration/ece_before"] > 0.1
    assert figures["calibration/ece_after"] < 0.05
    for name in ("nll", "brier"):
        before, after = (figures[f"calibration/{name}_{when}"] for when in ("before", "after"))
        assert after < before - 0.05
    # Nothing is lost where there is nothing to mend.
    right = calibration(clips)
    assert right["calibration/temperature"] == pytest.approx(1, abs=0.1)
    assert right["calibration/nll_after"] == pytest.approx(
        right["calibration/nll_before"], rel=0.01
    )


@pytest.mark.parametrize("people", [2, 5, 10, 30])
def test_cross_fitting_uses_no_clip_of_the_person(people: int) -> None:
    """Whatever the labels of a person are, that person's logits are divided by the same."""
    clips = planted(people, clips_each=20)
    scaled = cross_fitted(clips)
    for person in ("S0", f"S{people - 1}"):
        mine = np.array([subject == person for subject in clips.subjects])
        # Their true classes would ask for a very high temperature.
        labels = np.where(mine, clips.logits.argmin(1), clips.labels)
        changed = cross_fitted(replace(clips, labels=labels))
        np.testing.assert_array_equal(changed[mine], scaled[mine])
        assert (np.abs(changed[~mine]) < np.abs(scaled[~mine])).any()
    factors = clips.logits / scaled
    np.testing.assert_allclose(factors, np.repeat(factors[:, :1], 5, 1))
    assert len(np.unique(factors[:, 0].round(9))) == min(people, 10)


def test_no_label_changes() -> None:
    clips = planted(people=12, clips_each=10)
    np.testing.assert_array_equal(cross_fitted(clips).argmax(1), clips.logits.argmax(1))


def test_one_person_has_no_temperature() -> None:
    clips = planted(people=1, clips_each=30)
    assert calibration(clips) == {}
    assert calibration(clips.chosen([])) == {}


def test_held_out_are_people_who_are_known_and_not_trained_on() -> None:
    clips = planted(people=4, clips_each=2)
    train = replace(clips.chosen([0, 1]), subjects=["S0", None])
    validation = replace(clips, subjects=["S0", "S1", "S2", None, "S0", "S1", "S2", None])
    found = held_out_people(train, validation)
    assert found.subjects == ["S1", "S2", "S1", "S2"]
    assert found.clip_ids == [clips.clip_ids[i] for i in (1, 2, 5, 6)]
    np.testing.assert_array_equal(found.logits, clips.logits[[1, 2, 5, 6]])


def of_confidences(confidences: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of two classes, and labels."""
    return np.stack([confidences, 1 - confidences], 1), np.where(right, 0, 1)


def test_the_calibration_error_is_that_of_bins_of_equally_many_clips() -> None:
    confidences = np.linspace(0.6, 0.9, 10 * NUM_BINS)
    right = np.arange(10 * NUM_BINS) % 10 < 5
    order = np.random.default_rng(0).permutation(10 * NUM_BINS)
    probabilities, labels = of_confidences(confidences[order], right[order])
    parts = bins(probabilities, labels)
    means = confidences.reshape(NUM_BINS, 10).mean(1)
    assert [(count, mine) for _, mine, count in parts] == [(10, 5)] * NUM_BINS
    assert [mean for mean, _, _ in parts] == pytest.approx(means)
    assert ece(probabilities, labels) == pytest.approx((means - 0.5).mean())
    # Errors in both directions do not cancel.
    probabilities, labels = of_confidences(
        np.repeat([0.6, 0.9], 150), np.repeat([True, False], 150)
    )
    assert ece(probabilities, labels) == pytest.approx((0.4 + 0.9) / 2, abs=0.05)


def test_fewer_clips_than_bins() -> None:
    probabilities, labels = of_confidences(np.array([0.6, 0.8, 0.9]), np.array([True, False, True]))
    assert [count for _, _, count in bins(probabilities, labels)] == [1, 1, 1]
    assert ece(probabilities, labels) == pytest.approx((0.4 + 0.8 + 0.1) / 3)


def test_the_brier_score_is_over_all_classes() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    assert brier(probabilities, np.array([0, 0])) == pytest.approx((0.375 + 2) / 2)
