"""The pictures stored with a run (confusion matrix, curves, embedding, reliability) and a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cfer.evaluate.attacks import LINKAGE, VERIFICATION, strongest
from cfer.evaluate.calibration import NUM_BINS, bins, cross_fitted, ece
from cfer.evaluate.metrics import ScoredClips, standardized

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Spread = tuple[float, float]  # mean and standard deviation
NEAR_THE_BEST = 0.06  # of accuracy
_COLORS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#000000",
)  # fmt: skip


def confusion_figure(confusion: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Rows are normalized to recall for the color; the cells show counts."""
    from matplotlib.figure import Figure

    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 2.5 + 0.6 * len(classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    for row, column in np.ndindex(*confusion.shape):
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=color)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return figure


def curves_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """Recognition, player 2's cross-entropy, and both players' terms of the identity, by epoch."""
    from matplotlib.figure import Figure

    panels = {
        "recognition": ("train/accuracy", "held_out/accuracy", "held_out/uar"),
        "cross-entropy (nats)": ("train/cross_entropy", "held_out/cross_entropy"),
        "identity (nats)": ("train/identity_term", "train/estimator_loss"),
    }
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    epochs = range(1, len(history) + 1)
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            axes.plot(epochs, [entry[name] for entry in history], label=name)
        axes.set(xlabel="epoch", title=title)
        axes.legend(fontsize="small")
    return figure


def embedding_figure(clips: ScoredClips, classes: Sequence[str]) -> Figure:
    """z_R in two dimensions (t-SNE), colored by expression on the left and by subject on the right.

    A good code forms clusters of the colors on the left, and none of those on the right.
    """
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    figure = Figure(figsize=(11, 5), layout="constrained")
    all_axes = figure.subplots(1, 2)
    scaled = standardized(clips.z_R, clips.z_R)
    if len(scaled) > 3:
        perplexity = min(30.0, (len(scaled) - 1) / 3)
        flat = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(scaled)
    else:
        flat = np.zeros((len(scaled), 2))
    people = sorted({subject or "unknown" for subject in clips.subjects})
    numbers = np.array([people.index(subject or "unknown") for subject in clips.subjects])
    for axes, title, colors, names in (
        (all_axes[0], "colored by expression", clips.labels, list(classes)),
        (all_axes[1], f"colored by subject ({len(people)} of them)", numbers, people),
    ):
        axes.set(title=title, xticks=[], yticks=[])
        for number, name in enumerate(names):
            chosen = colors == number
            color = _COLORS[number % len(_COLORS)]
            mark = "os^Dv*P"[number // len(_COLORS) % 7]
            axes.scatter(*flat[chosen].T, s=18, color=color, marker=mark, label=name)
    all_axes[0].legend(fontsize="small", loc="best")
    figure.suptitle("expression code z_R of the held-out clips")
    return figure


def reliability_figure(clips: ScoredClips, title: str) -> Figure:
    """How often the clips of two people or more are recognized, by how sure the recognizer is.

    As the logits are on the left, and by temperatures of other people on the right. Each point is
    of equally many clips; the bars below count the clips of each range of confidence.
    """
    from matplotlib.figure import Figure
    from scipy.special import softmax
    from scipy.stats import binomtest

    figure = Figure(figsize=(9, 6), layout="constrained")
    columns = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1)).T
    for (above, below), what, logits in zip(
        columns,
        ("as trained", "with temperature, cross-fitted"),
        (clips.logits, cross_fitted(clips)),
        strict=True,
    ):
        probabilities = softmax(logits, axis=1)
        points = bins(probabilities, clips.labels)
        accuracy = np.array([right / count for _, right, count in points])
        intervals = [binomtest(right, count).proportion_ci() for _, right, count in points]
        ends = np.array([(interval.low, interval.high) for interval in intervals]).T
        above.plot((0, 1), (0, 1), "--", color=_COLORS[6], label="right as often as it is sure")
        above.errorbar(
            [confidence for confidence, _, _ in points],
            accuracy,
            np.abs(ends - accuracy),
            fmt="o",
            color=_COLORS[0],
            markersize=5,
            elinewidth=1,
            label="equally many clips, with their 95 % binomial interval",
        )
        error = ece(probabilities, clips.labels)
        above.set(title=f"{what}: ECE {error:.3f}", xlim=(0, 1.02), ylim=(-0.02, 1.02))
        above.grid(alpha=0.3)
        below.hist(probabilities.max(1), NUM_BINS, range=(0, 1), color=_COLORS[0], alpha=0.6)
        below.set(xlabel="confidence: the largest probability")
    columns[0][0].set_ylabel("accuracy")
    columns[0][1].set_ylabel("clips")
    handles, labels = columns[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    people = len(set(clips.subjects))
    figure.suptitle(f"{title}: {len(clips.labels):,} clips of {people} people", fontsize="medium")
    return figure


def faces_figure(
    rebuilt: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, most: int = 10
) -> Figure:
    """Real faces above, and what an attacker rebuilds of each from the codes below it.

    Args:
        rebuilt: {person: (real, rebuilt)}, gray float (h, w) in [0, 1]; the first `most` are shown.
    """
    from matplotlib.figure import Figure

    shown = sorted(rebuilt)[:most]
    figure = Figure(figsize=(1.1 * len(shown) + 0.6, 3), layout="constrained")
    for row in range(2):
        for column, name in enumerate(shown):
            axes = figure.add_subplot(2, len(shown), 1 + row * len(shown) + column)
            axes.imshow(rebuilt[name][row], vmin=0, vmax=1, cmap="gray")
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(("real", "rebuilt")[row])
    figure.suptitle(title, fontsize="medium")
    return figure


def tradeoff_figure(
    points: Mapping[str, Sequence[tuple[str, Spread, Spread]]], chance: float
) -> Figure:
    """Accuracy against what an attacker finds out: of all, and, with names, of the most accurate.

    The best place is at the top left.

    Args:
        points: {method: [(strength, (AUC, its deviation), (accuracy, its deviation)), …]}; those of
            one method that differ in one option alone are joined in the order given.
        chance: the AUC of the strongest attacker where nothing is found.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    whole, best = figure.subplots(1, 2, width_ratios=(1, 1.7))
    every = [point for strengths in points.values() for point in strengths]
    top = max(accuracy for _, _, (accuracy, _) in every)
    of_best = [auc for _, auc, (accuracy, _) in every if accuracy > top - NEAR_THE_BEST]
    right = max([chance, *(mean + deviation for mean, deviation in of_best)])
    left = min([chance, *(mean - deviation for mean, deviation in of_best)])
    named: list[tuple[float, float, str, str]] = []
    for number, (method, strengths) in enumerate(points.items()):
        x, y = (np.array([point[axis] for point in strengths]) for axis in (1, 2))
        # What differs in another option is no further point of a curve.
        is_curve = len({strength.rpartition(" ")[0] for strength, _, _ in strengths}) == 1
        color = _COLORS[number % len(_COLORS)]
        for axes in (whole, best):
            axes.errorbar(
                x[:, 0],
                y[:, 0],
                xerr=x[:, 1],
                yerr=y[:, 1],
                color=color,
                linestyle="-" if is_curve else "none",
                marker="osD^vP*X"[number // len(_COLORS) % 8],
                elinewidth=0.5,
                label=method if axes is whole else None,
            )
        for strength, (auc, _), (accuracy, _) in strengths:
            if accuracy > top - NEAR_THE_BEST:
                named.append((auc, accuracy, strength or method, color))
    low, high = top - NEAR_THE_BEST, top + NEAR_THE_BEST / 3
    _write_names(best, named, (high - low) / 25, (right - left) / 80)
    best.set(xlim=(left - 0.01, right + 0.02), ylim=(low, high), title="the most accurate")
    for axes in (whole, best):
        axes.axvline(chance, color=_COLORS[6], linestyle="--", label="chance")
        axes.grid(alpha=0.3)
        axes.set_xlabel("AUC of the strongest linkage, pooled")
    whole.set(title="all", ylabel="accuracy on held-out subjects")
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small")
    return figure


def _write_names(
    axes: Axes, named: Sequence[tuple[float, float, str, str]], line: float, letter: float
) -> None:
    """Beside points, (x, y, name, color), each as far up as it covers no other; a line and a letter
    are so large."""
    taken: list[tuple[float, float, float]] = []  # from, to, height
    # From right to left, since a name runs to the right, over the points that are there.
    for x, y, name, color in sorted(named, reverse=True):
        start, at = x + letter, y + line / 4
        end = start + len(name) * letter
        while any(a < end and start < b and abs(at - height) < line for a, b, height in taken):
            at += line
        taken.append((start, end, at))
        axes.text(start, at, name, fontsize="small", color=color)


def sweep_figure(
    name: str,
    values: Sequence[Any],
    results: Sequence[tuple[Mapping[str, float], Mapping[str, float]]],
) -> Figure:
    """Accuracy, and identity in the code, against a swept option: mean ± deviation."""
    from matplotlib.figure import Figure

    panels = {
        "recognition on held-out subjects": {
            name: [f"held_out/{name}"] * len(results) for name in ("accuracy", "uar")
        },
        "AUC of the strongest attacker, pooled": {
            kind: [strongest(mean, kind) for mean, _ in results] for kind in (LINKAGE, VERIFICATION)
        },
    }
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for label, names in lines.items():
            if not all(names):
                continue
            axes.errorbar(
                range(len(values)),
                [mean[name] for name, (mean, _) in zip(names, results, strict=True)],
                [other.get(name, 0.0) for name, (_, other) in zip(names, results, strict=True)],
                capsize=3,
                label=label,
            )
            axes.legend(fontsize="small")
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set(xlabel=name, title=title)
    return figure
