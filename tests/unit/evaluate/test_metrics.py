"""Recognition against its definition, and what is stored of each clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfer.errors import NotFinite
from cfer.evaluate.metrics import ScoredClips, confusion_matrix, cross_entropy, recalls, recognition


def test_recognition_counts_classes_as_it_says() -> None:
    """The third class is only predicted; the fourth neither occurs nor is predicted."""
    labels = np.repeat([0, 1], [4, 10])
    predicted = np.repeat([0, 1, 1, 0, 2], [3, 1, 5, 4, 1])
    confusion = confusion_matrix(labels, predicted, 4)
    assert confusion.tolist() == [[3, 1, 0, 0], [4, 5, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    figures = recognition(confusion)
    assert figures["accuracy"] == pytest.approx(8 / 14)
    assert figures["uar"] == pytest.approx((3 / 4 + 5 / 10) / 2)
    assert figures["macro_f1"] == pytest.approx((2 * 3 / (4 + 7) + 2 * 5 / (10 + 6) + 0) / 3)
    assert recalls(confusion, list("abcd")) == {"a": 3 / 4, "b": 5 / 10}


def test_cross_entropy_of_confident_and_of_uniform_logits() -> None:
    labels = np.array([0, 2])
    assert cross_entropy(np.zeros((2, 4)), labels) == pytest.approx(np.log(4))
    sure = 1000.0 * np.eye(4)[labels]
    assert cross_entropy(sure, labels) == pytest.approx(0)


def test_stored_predictions_are_read_back(tmp_path: Path) -> None:
    clips = ScoredClips(
        labels=np.array([0, 1]),
        logits=np.eye(2),
        z_R=np.ones((2, 3)),
        z_I=np.zeros((2, 4)),
        subjects=["S1", None],
        clip_ids=["a", "b"],
    )
    arrays: dict[str, Any] = clips.arrays()
    np.savez_compressed(tmp_path / "clips.npz", **arrays)
    again = ScoredClips.of_arrays(np.load(tmp_path / "clips.npz"))
    assert (again.subjects, again.clip_ids) == (clips.subjects, clips.clip_ids)
    for name in ("labels", "logits", "z_R", "z_I"):
        np.testing.assert_array_equal(getattr(again, name), getattr(clips, name))


@pytest.mark.parametrize("name", ["logits", "z_R", "z_I"])
def test_scores_that_are_not_finite_are_refused(name: str) -> None:
    """The largest of NaNs is the first, so that they would have an accuracy."""
    arrays: dict[str, Any] = {n: np.zeros((4, 2)) for n in ("logits", "z_R", "z_I")}
    arrays |= {"labels": np.zeros(4, int), "subjects": list("aabb"), "clip_ids": list("wxyz")}
    ScoredClips.of_arrays(arrays)
    for value in (np.nan, np.inf):
        arrays[name][[1, 3], 0] = value
        with pytest.raises(NotFinite, match=rf"^{name} of 2 of 4 clips \(x, …\) is not finite"):
            ScoredClips.of_arrays(arrays)


def test_predictions_of_workers_come_back_in_one_order() -> None:
    generator = np.random.default_rng(0)

    def part(names: list[str]) -> ScoredClips:
        count = len(names)
        return ScoredClips(
            labels=np.arange(count),
            logits=generator.normal(size=(count, 3)),
            z_R=generator.normal(size=(count, 2)),
            z_I=generator.normal(size=(count, 2)),
            subjects=[name.upper() for name in names],
            clip_ids=names,
        )

    first, second, nothing = part(["b", "d"]), part(["c", "a", "e"]), part([])
    nothing.labels = nothing.labels.astype(np.int64)
    whole = ScoredClips.concatenate([first, nothing, second])
    assert whole.clip_ids == ["a", "b", "c", "d", "e"]
    assert whole.subjects == ["A", "B", "C", "D", "E"]
    np.testing.assert_array_equal(whole.logits[3], first.logits[1])
    np.testing.assert_array_equal(whole.z_R[0], second.z_R[1])
