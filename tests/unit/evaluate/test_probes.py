"""The probes against scikit-learn's figures and against codes whose identity content is known."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cosine
from sklearn import metrics

from cfer.evaluate import probes
from cfer.evaluate.metrics import ScoredClips
from cfer.evaluate.probes import fitted_vclub, identity_r2, same_subject_auc, subject_probes

NUM_SUBJECTS, NUM_CLASSES = 12, 7
SUBJECTS = [f"s{i}" for i in range(NUM_SUBJECTS) for _ in range(NUM_CLASSES)]
LABELS = np.tile(np.arange(NUM_CLASSES), NUM_SUBJECTS)


def code(identity_share: float, expression_share: float, seed: int = 0) -> np.ndarray:
    """Noise, plus a vector of the subject's, plus one of the class's."""
    generator = np.random.default_rng(seed)
    people = {name: generator.normal(size=16) for name in sorted(set(SUBJECTS))}
    expressions = generator.normal(size=(NUM_CLASSES, 16))
    return (
        generator.normal(size=(len(SUBJECTS), 16))
        + identity_share * np.array([people[name] for name in SUBJECTS])
        + expression_share * expressions[LABELS]
    )


def test_probes_find_identity_and_do_not_invent_it() -> None:
    with_identity = subject_probes(code(3.0, 1.0), SUBJECTS, LABELS, seed=0)
    without = subject_probes(code(0.0, 3.0), SUBJECTS, LABELS, seed=0)
    assert with_identity["chance"] == without["chance"] == pytest.approx(1 / NUM_SUBJECTS)
    for probe in ("linear", "knn"):
        assert with_identity[probe] > 0.8
        assert without[probe] < 0.25
    assert with_identity["auc"] > 0.95
    assert without["auc"] == pytest.approx(0.5, abs=0.06)
    assert subject_probes(code(3.0, 1.0), [None] * len(SUBJECTS), LABELS, seed=0) == {}


def test_chance_is_the_best_constant_guess() -> None:
    """One subject has four clips of each class and two have one each; 1/3 would be too low."""
    subjects = [name for name in "aaaabc" for _ in range(NUM_CLASSES)]
    labels = np.tile(np.arange(NUM_CLASSES), 6)
    codes = np.random.default_rng(0).normal(size=(len(labels), 8))
    assert subject_probes(codes, subjects, labels, seed=0)["chance"] == pytest.approx(4 / 6)


def test_the_auc_is_over_all_pairs_of_other_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = code(0.5, 1.0)
    codes[3] = codes[10]  # of two people: ties
    people = np.array(SUBJECTS)
    kept = np.random.default_rng(0).random(len(LABELS)) < 0.8
    codes, people, labels = codes[kept], people[kept], LABELS[kept]
    centered = codes - np.array([codes[labels == k].mean(0) for k in range(NUM_CLASSES)])[labels]
    scaled = centered / centered.std(0)
    pairs = [(i, j) for i in range(len(labels)) for j in range(i) if labels[i] != labels[j]]
    cosines = [1 - cosine(scaled[i], scaled[j]) for i, j in pairs]
    expected = metrics.roc_auc_score([people[i] == people[j] for i, j in pairs], cosines)
    for size in (1, 100, 1 << 20):
        monkeypatch.setattr(probes, "PAIRS_AT_A_TIME", size)
        assert same_subject_auc(codes, people, labels) == pytest.approx(expected, abs=1e-12)
    # Nobody has two classes; everybody is one person.
    assert np.isnan(same_subject_auc(np.eye(3), np.array(["a", "b", "c"]), np.arange(3)))
    assert np.isnan(same_subject_auc(np.eye(3), np.array(["a"] * 3), np.arange(3)))


def test_the_auc_of_many_clips_holds_few_pairs_at_a_time() -> None:
    """A fifth of CREMA-D's 7,442 clips, of its 91 people; names of pairs took 100 MB."""
    generator = np.random.default_rng(0)
    people = np.array([f"{1001 + i % 91}" for i in range(1488)])
    codes, classes = generator.normal(size=(1488, 16)), generator.integers(0, 6, 1488)
    tracemalloc.start()
    try:
        assert same_subject_auc(codes, people, classes) == pytest.approx(0.5, abs=0.02)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_r2_of_identity_is_cross_validated_by_subject() -> None:
    generator = np.random.default_rng(1)
    z_I = np.repeat(generator.normal(size=(NUM_SUBJECTS, 8)), NUM_CLASSES, axis=0)
    # A code that holds z_I itself, under a rotation: it predicts people never seen.
    rotated = z_I @ np.linalg.qr(generator.normal(size=(8, 8)))[0]
    assert identity_r2(rotated + 0.01 * generator.normal(size=rotated.shape), z_I, SUBJECTS) > 0.9
    # A code that only numbers the people tells nothing about the embedding of a new one.
    numbered = np.repeat(generator.normal(size=(NUM_SUBJECTS, 8)), NUM_CLASSES, axis=0)
    assert identity_r2(numbered, z_I, SUBJECTS) < 0.1
    assert np.isnan(identity_r2(z_I[:14], z_I[:14], SUBJECTS[:14]))


def test_fitted_vclub_is_high_where_the_code_holds_the_identity_and_near_zero_elsewhere() -> None:
    generator = np.random.default_rng(2)

    def clips(rho: float, count: int) -> ScoredClips:
        z_R = generator.normal(size=(count, 6))
        noise = generator.normal(size=(count, 6))
        z_I = rho * z_R + np.sqrt(1 - rho**2) * noise
        labels = np.zeros(count, int)
        return ScoredClips(labels, z_R[:, :2], z_R, z_I, [None] * count, [str(count)] * count)

    for rho in (0.0, 0.5, 0.8):
        # The closed form for Gaussians, as in test_mi.py.
        expected = rho**2 / (1 - rho**2)
        found = fitted_vclub(clips(rho, 4000), clips(rho, 4000))
        assert found == pytest.approx(expected, abs=0.02, rel=0.05)
    # Few clips and nothing to find: no false alarm.
    assert abs(fitted_vclub(clips(0.0, 60), clips(0.0, 20))) < 0.05


def test_fitted_vclub_means_the_same_for_one_person_left_out_as_for_many() -> None:
    """Of a code that holds the whole identity: about the one person's own mean it would be 0."""
    generator = np.random.default_rng(0)
    identities = generator.normal(size=(60, 8))

    def clips(people: np.ndarray) -> ScoredClips:
        z_I = np.repeat(identities[people], 7, 0)
        z_I = z_I + 0.2 * generator.normal(size=z_I.shape)
        z_R = z_I + 0.3 * generator.normal(size=z_I.shape)
        subjects: list[str | None] = [str(n) for n in np.repeat(people, 7)]
        return ScoredClips(np.zeros(len(z_I), int), z_I[:, :2], z_R, z_I, subjects, subjects)

    train, held_out = clips(np.arange(40)), clips(np.arange(40, 60))
    each = [part(held_out, np.array(held_out.subjects) == str(n)) for n in range(40, 60)]
    together = fitted_vclub(train, held_out)
    # I(z_R; z_I) of two Gaussians: z_I has the variance 1 + 0.2², z_R adds 0.3².
    assert together == pytest.approx(1.04 / 0.09, rel=0.2)
    assert np.mean([fitted_vclub(train, one) for one in each]) == pytest.approx(together)


def part(clips: ScoredClips, kept: np.ndarray) -> ScoredClips:
    names = [name for name, is_kept in zip(clips.clip_ids, kept, strict=True) if is_kept]
    arrays = (clips.labels, clips.logits, clips.z_R, clips.z_I)
    return ScoredClips(*(values[kept] for values in arrays), list(names), names)
