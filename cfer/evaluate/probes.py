"""How much of the identity is in the expression code, with the encoder frozen.

  * strict subject probe: a logistic regression that names the subject from z_R, trained on clips of
    some classes and tested on the other classes, so that it can't use the expression;
  * the same with the nearest neighbor (cosine) in place of the regression;
  * AUC of the cosine between two clips' codes for "same subject", across classes; 0.5 is chance;
  * vCLUB by an estimator that is fitted anew, the same for every method;
  * R² of a ridge regression from z_R to z_I, cross-validated with each subject in one fold.
The subject probes are applied to training subjects and held-out subjects separately. Their chance
is what the best constant guess reaches: the share of the subject with most of the tested clips.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cfer.evaluate.metrics import ScoredClips, standardized
from cfer.model.erasure import less_class_means

NUM_CLASS_SPLITS = 10
TESTED_CLASS_FRACTION = 2 / 7
PAIRS_AT_A_TIME = 1 << 20  # of clips; 8 MB of cosines


def subject_probes(
    z_R: np.ndarray, subjects: Sequence[str | None], labels: np.ndarray, seed: int
) -> dict[str, float]:
    """Accuracies of naming the subject from z_R across classes: `linear`, `knn`; `chance`; `auc`.

    Averaged over `NUM_CLASS_SPLITS` random splits of the classes. `chance` is the share of the
    subject with most of the tested clips: a guess that ignores the code cannot exceed it. Clips
    without a subject are left out. Empty where fewer than two subjects have clips of more than one
    class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    known = np.array([subject is not None for subject in subjects])
    people = np.array([subject or "" for subject in subjects])[known]
    codes, classes = z_R[known], labels[known]
    present = np.unique(classes)
    if len(present) < 2 or len(np.unique(people)) < 2:
        return {}
    generator = np.random.default_rng(seed)
    num_tested = max(1, round(TESTED_CLASS_FRACTION * len(present)))
    scores: dict[str, list[float]] = defaultdict(list)
    for _ in range(NUM_CLASS_SPLITS):
        tested = np.isin(classes, generator.choice(present, num_tested, replace=False))
        # A person who was not seen in training can't be named.
        tested_known = tested & np.isin(people, people[~tested])
        candidates = np.unique(people[~tested])
        if len(candidates) < 2 or not tested_known.any():
            continue
        scaled = standardized(codes, codes[~tested])
        probes = {
            "linear": LogisticRegression(C=1.0, max_iter=300),
            "knn": KNeighborsClassifier(1, metric="cosine"),
        }
        for name, probe in probes.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                probe.fit(scaled[~tested], people[~tested])
            scores[name].append(float(probe.score(scaled[tested_known], people[tested_known])))
        counts = np.unique(people[tested_known], return_counts=True)[1]
        scores["chance"].append(float(counts.max() / counts.sum()))
    if scores:
        scores["auc"].append(same_subject_auc(codes, people, classes))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def same_subject_auc(codes: np.ndarray, people: np.ndarray, classes: np.ndarray) -> float:
    """How well the cosine of two codes tells "same subject" from "another": AUC, 0.5 is chance.

    Over all pairs of clips of different classes, each code less the mean of its class, so that the
    expression is no hint. It uses every pair, and so varies less than naming one of many people.
    NaN where all such pairs are of one subject, or all of two.

    Args:
        codes, people, classes: (N, code_dim), (N,), (N,). Of the N² pairs, memory holds those of
            the same subject, and one block of the others at a time: `sklearn.metrics.roc_auc_score`
            would hold all.
    """
    centered = less_class_means(codes, classes)
    std = centered.std(0)
    scaled = centered / np.where(std > 1e-6, std, 1)
    scaled /= np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
    numbers = np.unique(people, return_inverse=True)[1]
    rows_at_a_time = max(1, PAIRS_AT_A_TIME // len(codes))

    def cosines(is_same: bool) -> Iterator[np.ndarray]:
        for start in range(0, len(codes), rows_at_a_time):
            rows = slice(start, start + rows_at_a_time)
            # Each pair once: of a clip and a later one.
            wanted = np.triu((numbers[rows, None] == numbers[start:]) == is_same, 1)
            wanted &= classes[rows, None] != classes[start:]
            yield (scaled[rows] @ scaled[start:].T)[wanted]

    # How often the same subject's cosine is the higher one; a tie is half (Mann & Whitney, "On a
    # Test of Whether one of Two Random Variables is Stochastically Larger", 1947).
    same = np.sort(np.concatenate([*cosines(True)]))
    won, num_others = 0, 0
    for others in cosines(False):
        others.sort()
        won += int(np.searchsorted(others, same, "left").sum())
        won += int(np.searchsorted(others, same, "right").sum())
        num_others += len(others)
    pairs = len(same) * num_others
    return won / (2 * pairs) if pairs else float("nan")


def identity_r2(z_R: np.ndarray, z_I: np.ndarray, subjects: Sequence[str | None]) -> float:
    """R² of a ridge regression z_R → z_I on clips it was not fitted to, pooled over dimensions.

    Five folds, each subject in one of them where subjects are known; 0 is as good as the mean of
    the other folds, and less is worse. NaN with fewer than five groups.
    """
    from sklearn.model_selection import GroupKFold, KFold

    groups = np.array([s if s is not None else f"#{i}" for i, s in enumerate(subjects)])
    if len(np.unique(groups)) < 5:
        return float("nan")
    with_subjects = any(subject is not None for subject in subjects)
    folds = GroupKFold(5) if with_subjects else KFold(5, shuffle=True, random_state=0)
    residual = total = 0.0
    for fitted, tested in folds.split(z_R, groups=groups):
        scaled = standardized(z_R, z_R[fitted])
        ridge = _ridge().fit(scaled[fitted], z_I[fitted])
        residual += float(((z_I[tested] - ridge.predict(scaled[tested])) ** 2).sum())
        total += float(((z_I[tested] - z_I[fitted].mean(0)) ** 2).sum())
    return 1 - residual / total


def fitted_vclub(train: ScoredClips, validation: ScoredClips) -> float:
    """vCLUB of the held-out clips, nats per dimension, by a q fitted anew to the training clips.

    The same estimator for every method, whatever it was trained against: a Gaussian whose mean is a
    ridge regression of the standardized code (strength by leave-one-out) and whose variance is that
    of its errors. A small network instead would memorize so few clips, and measure itself rather
    than the code.

    With such a q the bound over all pairs of a code and an identity (`cfer.model.mi.vclub`) is the
    covariance of q's mean and z_I over q's variance: E[z²] and E[m²] are in both of its terms. The
    covariance is taken about the means of the training people. About the means of the K held-out
    people it would be too low by 1/K, and zero for one person. So the figure means the same for one
    person as for many, and the mean over people left out one by one is the figure of all of them.
    """
    codes = standardized(train.z_R, train.z_R)
    ridge = _ridge().fit(codes, train.z_I)
    fitted = ridge.predict(codes)
    variance = np.square(train.z_I - fitted).mean(0)
    expected = ridge.predict(standardized(validation.z_R, train.z_R))
    moved = (expected - fitted.mean(0)) * (validation.z_I - train.z_I.mean(0))
    return float((moved.mean(0) / np.maximum(variance, 1e-6)).mean())


def _ridge() -> Any:
    from sklearn.linear_model import RidgeCV

    return RidgeCV(alphas=np.logspace(-1, 5, 13))


def leakage(train: ScoredClips, validation: ScoredClips, seed: int) -> dict[str, float]:
    """All of it by name: `leakage/linear_train`, `leakage/auc_held_out`, `leakage/r2`, …"""
    figures = {}
    for side, clips in (("train", train), ("held_out", validation)):
        for name, value in subject_probes(clips.z_R, clips.subjects, clips.labels, seed).items():
            figures[f"leakage/{name}_{side}"] = value
    both = ScoredClips.concatenate([train, validation])
    figures["leakage/r2"] = identity_r2(both.z_R, both.z_I, both.subjects)
    figures["leakage/vclub"] = fitted_vclub(train, validation)
    return figures
