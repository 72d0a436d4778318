"""What the pictures show."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from cfer.evaluate.calibration import NUM_BINS, bins, cross_fitted, ece
from cfer.evaluate.figures import reliability_figure, tradeoff_figure
from cfer.evaluate.metrics import ScoredClips


def test_the_reliability_diagram_shows_the_bins_and_counts_every_clip() -> None:
    generator = np.random.default_rng(0)
    count = 7 * NUM_BINS + 3
    clips = ScoredClips(
        labels=generator.integers(0, 4, count),
        logits=generator.normal(0, 3, (count, 4)),
        z_R=np.zeros((count, 1)),
        z_I=np.zeros((count, 1)),
        subjects=[f"S{i % 6}" for i in range(count)],
        clip_ids=[str(i) for i in range(count)],
    )
    figure = reliability_figure(clips, "mine")
    assert figure.get_suptitle() == f"mine: {count} clips of 6 people"
    above, below = figure.axes[:2], figure.axes[2:]
    for axes, histogram, logits in zip(
        above, below, (clips.logits, cross_fitted(clips)), strict=True
    ):
        probabilities = softmax(logits, axis=1)
        assert axes.get_title().endswith(f"ECE {ece(probabilities, clips.labels):.3f}")
        diagonal, points = axes.get_lines()[:2]
        assert np.array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
        wanted = [(mean, right / n) for mean, right, n in bins(probabilities, clips.labels)]
        np.testing.assert_allclose(points.get_xydata(), wanted)
        assert sum(bar.get_height() for bar in histogram.patches) == count
        assert len(histogram.patches) == NUM_BINS
        # The true share is within the interval of what was counted.
        (bars,) = axes.collections
        for (x, share), segment in zip(wanted, bars.get_segments(), strict=True):
            assert segment[0] == pytest.approx([x, segment[0][1]])
            assert segment[0][1] <= share <= segment[1][1]
            assert 0 <= segment[0][1] < segment[1][1] <= 1
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 2


def test_names_of_points_that_are_close_do_not_cover_each_other() -> None:
    names = [f"method {letter}" for letter in "abcd"]
    close = {name: [("", (0.6 + 0.001 * n, 0.02), (0.8, 0))] for n, name in enumerate(names)}
    _, best = tradeoff_figure({**close, "away": [("", (0.7, 0.02), (0.8, 0))]}, 0.53).axes
    heights = {text.get_text(): text.get_position()[1] for text in best.texts}
    assert np.diff(sorted(heights[name] for name in names)).min() > 0.003
    assert heights["away"] == min(heights.values()), "it has its name beside it"


def test_the_tradeoff_joins_the_strengths_of_a_method() -> None:
    game = [("λ 0", (0.7, 0.01), (0.8, 0.02)), ("λ 1", (0.5, 0.0), (0.74, 0.03))]
    far = [("", (0.9, 0.0), (0.3, 0.0))]
    plain = [("", (0.71, 0.0), (0.81, 0.0))]
    figure = tradeoff_figure({"game": game, "plain": plain, "far": far}, 0.53)
    for axes in figure.axes:
        lines = [line.get_xydata() for line in axes.get_lines()]
        joined = [data for data in lines if len(data) == 2 and data[0][0] == 0.7]
        np.testing.assert_allclose(joined, [[[0.7, 0.8], [0.5, 0.74]]])
    whole, best = figure.axes
    assert not whole.texts
    # What is far below the most accurate is not where the names are.
    assert {text.get_text() for text in best.texts} == {"λ 0", "plain"}
    assert whole.get_ylim()[0] < 0.3 < best.get_ylim()[0] < 0.81 < best.get_ylim()[1]
    # Chance and the most accurate are there, and nothing of what is far to the right of them.
    assert best.get_xlim()[0] < 0.53
    assert 0.71 < best.get_xlim()[1] < 0.8 < whole.get_xlim()[1]
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"game", "plain", "far", "chance"}
