"""Recognition on held-out clips: accuracy, UAR (mean recall over the classes), macro-F1.

scikit-learn and matplotlib take most of a second to import, so the functions of `cfer.evaluate`
that need them import them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax

from cfer.errors import NotFinite

_SCORES = ("logits", "z_R", "z_I")


@dataclass
class ScoredClips:
    """N clips as the recognizer sees them.

    Attributes:
        labels: int (N,).
        logits: float (N, C).
        z_R: float (N, code_dim).
        z_I: float (N, d), standardized.
        subjects: N names, None where unknown.
        clip_ids: N.

    Raises:
        NotFinite: a score, code or identity of a clip; the largest of such scores would be the
            first class.
    """

    labels: np.ndarray
    logits: np.ndarray
    z_R: np.ndarray
    z_I: np.ndarray
    subjects: list[str | None]
    clip_ids: list[str]

    def __post_init__(self) -> None:
        for name in _SCORES:
            bad = ~np.isfinite(getattr(self, name)).all(1)
            if bad.any():
                raise NotFinite(
                    f"{name} of {bad.sum()} of {len(bad)} clips ({self.clip_ids[bad.argmax()]}, …) "
                    "is not finite, so nothing can be said of them: the training has diverged, "
                    "and needs a lower --lr"
                )

    def arrays(self) -> dict[str, np.ndarray]:
        """For NumPy's file format; an unknown subject is an empty name."""
        return {
            **{name: getattr(self, name) for name in ("labels", *_SCORES)},
            "subjects": np.array([subject or "" for subject in self.subjects]),
            "clip_ids": np.array(self.clip_ids),
        }

    @staticmethod
    def of_arrays(arrays: Mapping[str, np.ndarray]) -> ScoredClips:
        """The inverse of `arrays`."""
        return ScoredClips(
            **{name: np.asarray(arrays[name]) for name in ("labels", *_SCORES)},
            subjects=[str(name) or None for name in arrays["subjects"]],
            clip_ids=[str(name) for name in arrays["clip_ids"]],
        )

    @staticmethod
    def concatenate(parts: Sequence[ScoredClips]) -> ScoredClips:
        """In the order of the clip ids, so that it does not depend on who had which clips."""
        clip_ids = [clip_id for part in parts for clip_id in part.clip_ids]
        subjects = [subject for part in parts for subject in part.subjects]
        together = ScoredClips(
            **{
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in ("labels", *_SCORES)
            },
            subjects=subjects,
            clip_ids=clip_ids,
        )
        return together.chosen(sorted(range(len(clip_ids)), key=clip_ids.__getitem__))

    def chosen(self, order: Sequence[int]) -> ScoredClips:
        """The clips at these positions."""
        return ScoredClips(
            **{name: getattr(self, name)[np.asarray(order, int)] for name in ("labels", *_SCORES)},
            subjects=[self.subjects[i] for i in order],
            clip_ids=[self.clip_ids[i] for i in order],
        )

    def of_labels_alone(self) -> ScoredClips:
        """The same, as if a code were no more than the label that is predicted: its z_R is one-hot,
        (N, C)."""
        said = np.eye(self.logits.shape[1], dtype=np.float32)[self.logits.argmax(1)]
        return replace(self, z_R=said)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """int (C, C): row = true class, column = predicted class."""
    from sklearn import metrics

    return metrics.confusion_matrix(labels, predicted, labels=range(num_classes))


def recognition(confusion: np.ndarray) -> dict[str, float]:
    """`accuracy`, `uar` and `macro_f1`, each in [0, 1].

    UAR is the mean recall over the classes that occur; macro-F1 the mean F1 over the classes that
    occur or were predicted.
    """
    from sklearn import metrics

    occurring = np.flatnonzero(confusion.sum(1))
    seen = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
    true, predicted = np.indices(confusion.shape).reshape(2, -1)
    cells = {"y_true": true, "y_pred": predicted, "sample_weight": confusion.ravel()}
    return {
        "accuracy": float(metrics.accuracy_score(**cells)),
        "uar": float(metrics.recall_score(**cells, labels=occurring, average="macro")),
        "macro_f1": float(metrics.f1_score(**cells, labels=seen, average="macro")),
    }


def recalls(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Recall of each class that occurs, in [0, 1]."""
    true = confusion.sum(1)
    return {name: float(confusion[i, i] / true[i]) for i, name in enumerate(classes) if true[i] > 0}


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean −log softmax of the true class, in nats."""
    return -float(log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def standardized(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`values` by the mean and deviation of `like`, of the same dimensions.

    A dimension that hardly varies in `like` is only centered.
    """
    std = like.std(0)
    return (values - like.mean(0)) / np.where(std > 1e-6, std, 1)
