"""What a recogniser is worth: recognition on held-out subjects, and how much identity its code has.

    python -m cfer.evaluate EXPERIMENT          # table of its finished runs, grouped by settings
    python -m cfer.evaluate RUN --data SHARDS   # a stored model on a data set

Recognition: accuracy, UAR (mean recall over the classes), macro-F1, confusion matrix.
Identity leakage, with the encoder frozen:
  * strict subject probe: a logistic regression that names the subject from z_R, trained on clips of
    some classes and tested on the other classes, so that it can't use the expression;
  * the same with the nearest neighbour (cosine) in place of the regression;
  * AUC of the cosine between two clips' codes for "same subject", across classes; 0.5 is chance;
  * R² of a ridge regression from z_R to z_I, cross-validated with each subject in one fold.
The subject probes are for training subjects and for held-out subjects apart; 1/subjects is chance.
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from mlflow.entities import Run

from cfer import tracking
from cfer.data import parse_frame_rule, read_clips, read_index
from cfer.errors import InputError, exit_with_message
from cfer.shards import read_description, unpack_residuals

# matplotlib and scikit-learn are imported where they are used: every training process imports this
# module, and one of them, once, draws and fits probes.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_CLASS_SPLITS = 10
TESTED_CLASS_FRACTION = 2 / 7


@dataclass
class Predictions:
    """N clips as the recogniser sees them.

    Attributes:
        labels: int (N,).
        logits: float (N, C).
        z_R: float (N, code_dim).
        z_I: float (N, d), standardised.
        subjects: N names, None where unknown.
        clip_ids: N.
    """

    labels: np.ndarray
    logits: np.ndarray
    z_R: np.ndarray
    z_I: np.ndarray
    subjects: list[str | None]
    clip_ids: list[str]

    @staticmethod
    def concatenate(parts: Sequence[Predictions]) -> Predictions:
        """In the order of the clip ids, so that it does not depend on who had which clips."""
        clip_ids = [clip_id for part in parts for clip_id in part.clip_ids]
        subjects = [subject for part in parts for subject in part.subjects]
        order = sorted(range(len(clip_ids)), key=clip_ids.__getitem__)
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])[order]
            for name in ("labels", "logits", "z_R", "z_I")
        }
        return Predictions(
            **arrays,
            subjects=[subjects[i] for i in order],
            clip_ids=[clip_ids[i] for i in order],
        )


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """int (C, C): row = true class, column = predicted class."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def recognition(confusion: np.ndarray) -> dict[str, float]:
    """`accuracy`, `uar` and `macro_f1`, each in [0, 1].

    UAR is the mean recall over the classes that occur; macro-F1 the mean F1 over the classes that
    occur or were predicted.
    """
    hits, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    occurs, seen = true > 0, (true + predicted) > 0
    return {
        "accuracy": float(hits.sum() / true.sum()),
        "uar": float((hits[occurs] / true[occurs]).mean()),
        "macro_f1": float((2 * hits[seen] / (true + predicted)[seen]).mean()),
    }


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean −log softmax of the true class, in nats."""
    shifted = logits - logits.max(1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(1))
    return float((log_sums - shifted[np.arange(len(labels)), labels]).mean())


def subject_probes(
    z_R: np.ndarray, subjects: Sequence[str | None], labels: np.ndarray, seed: int
) -> dict[str, float]:
    """Accuracies of naming the subject from z_R across classes: `linear`, `knn`; `chance`; `auc`.

    Averaged over `NUM_CLASS_SPLITS` random splits of the classes. Clips without a subject are left
    out. Empty where fewer than two subjects have clips of more than one class.
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
        # A person of whom nothing was seen in training can't be named.
        tested_known = tested & np.isin(people, people[~tested])
        candidates = np.unique(people[~tested])
        if len(candidates) < 2 or not tested_known.any():
            continue
        mean, std = codes[~tested].mean(0), codes[~tested].std(0)
        scaled = (codes - mean) / np.where(std > 1e-6, std, 1)
        probes = {
            "linear": LogisticRegression(C=1.0, max_iter=300),
            "knn": KNeighborsClassifier(1, metric="cosine"),
        }
        for name, probe in probes.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                probe.fit(scaled[~tested], people[~tested])
            scores[name].append(float(probe.score(scaled[tested_known], people[tested_known])))
        scores["chance"].append(1 / len(candidates))
    if scores:
        scores["auc"].append(same_subject_auc(codes, people, classes))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def same_subject_auc(codes: np.ndarray, people: np.ndarray, classes: np.ndarray) -> float:
    """How well the cosine of two codes tells "same subject" from "another": AUC, 0.5 is chance.

    Over all pairs of clips of different classes, each code less its class's mean, so that the
    expression says nothing. It uses every pair, and so is steadier than naming one of many people.
    """
    from sklearn.metrics import roc_auc_score

    centred = codes.astype(np.float64)
    for name in np.unique(classes):
        centred[classes == name] -= centred[classes == name].mean(0)
    std = centred.std(0)
    scaled = centred / np.where(std > 1e-6, std, 1)
    scaled /= np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
    first, second = np.triu_indices(len(codes), 1)
    across = classes[first] != classes[second]
    first, second = first[across], second[across]
    cosines = (scaled @ scaled.T)[first, second]
    return float(roc_auc_score(people[first] == people[second], cosines))


def identity_r2(z_R: np.ndarray, z_I: np.ndarray, subjects: Sequence[str | None]) -> float:
    """R² of a ridge regression z_R → z_I on clips it was not fitted to, pooled over dimensions.

    Five folds, each subject in one of them where subjects are known; 0 is as good as the mean of
    the other folds, and less is worse than that. NaN with fewer than five groups.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, KFold

    groups = np.array([s if s is not None else f"#{i}" for i, s in enumerate(subjects)])
    if len(np.unique(groups)) < 5:
        return float("nan")
    with_subjects = any(subject is not None for subject in subjects)
    folds = GroupKFold(5) if with_subjects else KFold(5, shuffle=True, random_state=0)
    residual = total = 0.0
    for fitted, tested in folds.split(z_R, groups=groups):
        mean, std = z_R[fitted].mean(0), z_R[fitted].std(0)
        scaled = (z_R - mean) / np.where(std > 1e-6, std, 1)
        ridge = RidgeCV(alphas=np.logspace(-1, 5, 13)).fit(scaled[fitted], z_I[fitted])
        residual += float(((z_I[tested] - ridge.predict(scaled[tested])) ** 2).sum())
        total += float(((z_I[tested] - z_I[fitted].mean(0)) ** 2).sum())
    return 1 - residual / total


def leakage(train: Predictions, validation: Predictions, seed: int) -> dict[str, float]:
    """The probes by name: `probe_linear_train_subjects`, …, `identity_r2`."""
    figures = {}
    for side, clips in (("train_subjects", train), ("held_out_subjects", validation)):
        for name, value in subject_probes(clips.z_R, clips.subjects, clips.labels, seed).items():
            figures[f"probe_{name}_{side}"] = value
    both = Predictions.concatenate([train, validation])
    figures["identity_r2"] = identity_r2(both.z_R, both.z_I, both.subjects)
    return figures


def confusion_figure(confusion: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Rows are normalised to recall for the colour; the cells show counts."""
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
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return figure


def curves_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """Accuracy and UAR, player 2's cross-entropy, and both players' information terms, by epoch."""
    from matplotlib.figure import Figure

    panels = {
        "recognition": ("train_accuracy", "val_accuracy", "val_uar"),
        "cross-entropy (nats)": ("train_cross_entropy", "val_cross_entropy"),
        "identity (nats per dimension)": ("train_vclub", "train_estimator_nll"),
    }
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    all_axes = figure.subplots(1, len(panels))
    epochs = [int(entry["epoch"]) for entry in history]
    for axes, (title, names) in zip(all_axes, panels.items(), strict=True):
        for name in names:
            axes.plot(epochs, [entry[name] for entry in history], label=name)
        axes.set(xlabel="epoch", title=title)
        axes.legend(fontsize="small")
    return figure


TABLE_METRICS = {
    "accuracy": "val_accuracy",
    "UAR": "val_uar",
    "macro-F1": "val_macro_f1",
    "probe held-out": "probe_linear_held_out_subjects",
    "(chance)": "probe_chance_held_out_subjects",
    "probe train": "probe_linear_train_subjects",
    "(chance) ": "probe_chance_train_subjects",
    "1-NN held-out": "probe_knn_held_out_subjects",
    "AUC held-out": "probe_auc_held_out_subjects",
    "AUC train": "probe_auc_train_subjects",
    "R² z_R→z_I": "identity_r2",
    "vCLUB": "val_vclub",
}
# What tells repetitions of one experiment apart, and not experiments.
REPETITION = ("seed", "fold", "val_subjects", "workers", "data", "run", "storage", "device")


def summary_table(runs: Sequence[Run]) -> str:
    """Mean ± standard deviation (over seeds and folds) of runs grouped by their other settings."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = defaultdict(list)
    for run in runs:
        settings = {k: v for k, v in run.data.params.items() if k not in REPETITION}
        groups[tuple(sorted(settings.items()))].append(run)
    differing = {
        name
        for key in groups
        for name, value in key
        if any(dict(other).get(name) != value for other in groups)
    }
    shown = ["lambda", *sorted(differing - {"lambda"})]
    rows = [[*shown, "runs", *(name.strip() for name in TABLE_METRICS)]]
    for key, members in sorted(groups.items(), key=lambda item: _sort_key(dict(item[0]))):
        settings = dict(key)
        cells = [settings.get(name, "-")[:12] for name in shown] + [str(len(members))]
        for metric in TABLE_METRICS.values():
            values = [r.data.metrics[metric] for r in members if metric in r.data.metrics]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "-")
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _sort_key(settings: Mapping[str, str]) -> tuple[float, list[tuple[str, str]]]:
    return float(settings.get("lambda", "nan")), sorted(settings.items())


def check_classes(model: str, known: Sequence[str], data: str, given: Sequence[str]) -> None:
    """Raises InputError where a model and a data set do not have the same classes in order."""
    if list(known) != list(given):
        raise InputError(
            f"{data}: its classes are {', '.join(given)}, and {model} was trained on "
            f"{', '.join(known)}; use a data set of the same classes in the same order, or train "
            "a model on this one"
        )


def evaluate_on(model: str, data: str) -> tuple[np.ndarray, list[str]]:
    """A stored model on every labelled clip of a data set → confusion matrix and class names.

    Raises:
        InputError: another number of pixels, other classes, or another kind of residual.
    """
    predict, known = tracking.load_model(model)
    description = read_description(data)
    check_classes(model, known["classes"], data, description.classes)
    for name, given in (
        ("size", description.codec["size"]),
        ("residual_kind", description.codec["residual_kind"]),
    ):
        if known[name] != given:
            raise InputError(
                f"{data}: its {name} is {given}, and {model} was trained on {known[name]}; "
                "extract the data set with the model's settings"
            )
    rule = parse_frame_rule(str(known["frames"]))
    index = read_index(data)
    confusion = np.zeros((len(known["classes"]),) * 2, np.int64)
    for row in read_clips(data, index.clip_ids, rule, for_training=False).iter_rows():
        packed = unpack_residuals(row["frames"], int(row["size"]))
        confusion[row["label"], int(predict(packed[None]).argmax())] += 1
    return confusion, list(known["classes"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cfer.evaluate", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "name",
        help="an MLflow experiment, or a run's name or id (with --data "
        "also a model's URI or folder)",
    )
    parser.add_argument(
        "--data",
        help="evaluate the run's stored model on this data set; it "
        "counts every labelled clip, so give one it was not trained on",
    )
    options = parser.parse_args(arguments)
    tracking.connect()
    if options.data:
        confusion, classes = evaluate_on(options.name, options.data)
        figures = recognition(confusion)
        print(
            f"{options.name} on {options.data}: {confusion.sum()} clips, "
            + ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        )
        width = max(map(len, classes))
        for name, row in zip(classes, confusion, strict=True):
            print(f"  {name:<{width}}  " + " ".join(f"{count:4d}" for count in row))
        return 0
    runs = tracking.find_runs(options.name)
    if not runs:
        tracking.find_run(options.name)
    print(summary_table(runs))
    return 0


if __name__ == "__main__":
    exit_with_message(main)
