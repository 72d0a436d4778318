"""Whether a recognizer is right as often as its probabilities say, and the temperature for that.

A network's logits are divided by one number T before the softmax (Guo et al., "On Calibration of
Modern Neural Networks", ICML 2017). It changes no label. A run fits T to the clips of its held-out
people, and its model is stored with it.

A T looks better than it is on the clips that it was fitted to. So what is reported of it is
*cross-fitted*: each person's logits are divided by the T of other people's clips.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from cfer.evaluate.metrics import ScoredClips, cross_entropy

NUM_BINS = 15
NUM_FOLDS = 10  # of the people, in cross-fitting
LEAST, MOST = 0.01, 100.0  # of T


def held_out_people(train: ScoredClips, validation: ScoredClips) -> ScoredClips:
    """The validation clips of people who are known, and of whom no clip was trained on."""
    others = set(train.subjects) | {None}
    return validation.chosen([i for i, who in enumerate(validation.subjects) if who not in others])


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in [`LEAST`, `MOST`] with the least cross-entropy of logits / T, float (N, C).

    1 where every clip is recognized: then the smallest T is the best, and nothing is known of
    errors.
    """
    if (logits.argmax(1) == labels).all():
        return 1.0
    # As a function of 1 / T it is convex, so there is one minimum.
    found = minimize_scalar(
        lambda log_t: cross_entropy(logits / np.exp(log_t), labels),
        bounds=np.log([LEAST, MOST]),
        method="bounded",
    )
    return float(np.exp(found.x))


def cross_fitted(clips: ScoredClips) -> np.ndarray:
    """The logits, each divided by the temperature of the clips of other people: float (N, C).

    With more than `NUM_FOLDS` people, those of a fold are divided by the T of the other folds.
    """
    from sklearn.model_selection import GroupKFold

    scaled = np.empty_like(clips.logits, dtype=np.float64)
    folds = GroupKFold(min(NUM_FOLDS, len(set(clips.subjects))))
    for others, mine in folds.split(clips.logits, groups=clips.subjects):
        scaled[mine] = clips.logits[mine] / temperature(clips.logits[others], clips.labels[others])
    return scaled


def calibration(clips: ScoredClips) -> dict[str, float]:
    """`calibration/temperature`, and what it is worth, on the clips of held-out people.

    Of the logits as they are (`…_before`) and cross-fitted (`…_after`): `ece`, `nll` (nats) and
    `brier`; `clips` and `people` are how many there are. Empty for fewer than two people: their
    temperature could not be tested.
    """
    if len(set(clips.subjects)) < 2:
        return {}
    figures = {
        "temperature": temperature(clips.logits, clips.labels),
        "clips": len(clips.labels),
        "people": len(set(clips.subjects)),
    }
    for when, logits in (("before", clips.logits), ("after", cross_fitted(clips))):
        probabilities = softmax(logits, axis=1)
        figures[f"ece_{when}"] = ece(probabilities, clips.labels)
        figures[f"nll_{when}"] = cross_entropy(logits, clips.labels)
        figures[f"brier_{when}"] = brier(probabilities, clips.labels)
    return {f"calibration/{name}": value for name, value in figures.items()}


def bins(probabilities: np.ndarray, labels: np.ndarray) -> list[tuple[float, int, int]]:
    """Clips (N, C) in order of their confidence (largest probability), in `NUM_BINS` equal parts.

    → of each part that has any: mean confidence, how many clips are recognized, how many there are.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    parts = np.array_split(np.argsort(confidence, kind="stable"), NUM_BINS)
    return [
        (float(confidence[part].mean()), int(right[part].sum()), len(part))
        for part in parts
        if len(part)
    ]


def ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error, in [0, 1]: |accuracy − confidence| of the `bins`, by their clips.

    It is too high for few clips: of a bin of 6, the accuracy is off by 0.2 by chance.
    """
    gaps = (abs(right - n * confidence) for confidence, right, n in bins(probabilities, labels))
    return sum(gaps) / len(labels)


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of the probabilities and the truth over all classes, in [0, 2]."""
    truth = np.eye(probabilities.shape[1])[labels]
    return float(np.square(probabilities - truth).sum(1).mean())
