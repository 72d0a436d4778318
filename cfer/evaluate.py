"""What a recogniser is worth: recognition on held-out subjects, and how much identity its code has.

    python -m cfer.evaluate EXPERIMENT          # table of its finished runs
    python -m cfer.evaluate RUN                 # one of them: recall of each class, leakage
    python -m cfer.evaluate RUN --data SHARDS   # a stored model on a data set

Recognition: accuracy, UAR (mean recall over the classes), macro-F1, confusion matrix.
Identity leakage, with the encoder frozen:
  * strict subject probe: a logistic regression that names the subject from z_R, trained on clips of
    some classes and tested on the other classes, so that it can't use the expression;
  * the same with the nearest neighbour (cosine) in place of the regression;
  * AUC of the cosine between two clips' codes for "same subject", across classes; 0.5 is chance;
  * vCLUB by an estimator that is fitted anew, the same for every method;
  * R² of a ridge regression from z_R to z_I, cross-validated with each subject in one fold.
The subject probes are for training subjects and for held-out subjects apart. Their chance is what
the best constant guess reaches: the share of the subject who has most of the tested clips.
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.entities import Run

from cfer import tracking
from cfer.errors import InputError, NotFinite, exit_with_message
from cfer.predict import Recognizer
from cfer.shards import read_description

# matplotlib and scikit-learn are imported where they are used: every training process imports this
# module, and one of them, once, draws and fits probes.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_CLASS_SPLITS = 10
TESTED_CLASS_FRACTION = 2 / 7
PAIRS_AT_A_TIME = 1 << 20  # of clips; 8 MB of cosines


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
        for name in ("logits", "z_R", "z_I"):
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
            **{name: getattr(self, name) for name in ("labels", "logits", "z_R", "z_I")},
            "subjects": np.array([subject or "" for subject in self.subjects]),
            "clip_ids": np.array(self.clip_ids),
        }

    @staticmethod
    def of_arrays(arrays: Mapping[str, np.ndarray]) -> Predictions:
        """What `arrays` gave, again."""
        numbers = {name: np.asarray(arrays[name]) for name in ("labels", "logits", "z_R", "z_I")}
        return Predictions(
            **numbers,
            subjects=[str(name) or None for name in arrays["subjects"]],
            clip_ids=[str(name) for name in arrays["clip_ids"]],
        )

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


def recalls(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Recall of each class that occurs, in [0, 1]."""
    true = confusion.sum(1)
    return {name: float(confusion[i, i] / true[i]) for i, name in enumerate(classes) if true[i] > 0}


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean −log softmax of the true class, in nats."""
    shifted = logits - logits.max(1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(1))
    return float((log_sums - shifted[np.arange(len(labels)), labels]).mean())


def subject_probes(
    z_R: np.ndarray, subjects: Sequence[str | None], labels: np.ndarray, seed: int
) -> dict[str, float]:
    """Accuracies of naming the subject from z_R across classes: `linear`, `knn`; `chance`; `auc`.

    Averaged over `NUM_CLASS_SPLITS` random splits of the classes. `chance` is the share of the
    subject who has most of the tested clips: no guess that does not look at the code reaches more.
    Clips without a subject are left out. Empty where fewer than two subjects have clips of more
    than one class.
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
        counts = np.unique(people[tested_known], return_counts=True)[1]
        scores["chance"].append(float(counts.max() / counts.sum()))
    if scores:
        scores["auc"].append(same_subject_auc(codes, people, classes))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def same_subject_auc(codes: np.ndarray, people: np.ndarray, classes: np.ndarray) -> float:
    """How well the cosine of two codes tells "same subject" from "another": AUC, 0.5 is chance.

    Over all pairs of clips of different classes, each code less its class's mean, so that the
    expression says nothing. It uses every pair, and so is steadier than naming one of many people.
    NaN where there is no such pair of the same subject, or none of two.

    Args:
        codes, people, classes: (N, code_dim), (N,), (N,). What is held of the N² pairs is those of
            the same subject, and a block of the others at a time.
    """
    centred = codes.astype(np.float64)
    for name in np.unique(classes):
        centred[classes == name] -= centred[classes == name].mean(0)
    std = centred.std(0)
    scaled = centred / np.where(std > 1e-6, std, 1)
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
    the other folds, and less is worse than that. NaN with fewer than five groups.
    """
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
        ridge = _ridge().fit(scaled[fitted], z_I[fitted])
        residual += float(((z_I[tested] - ridge.predict(scaled[tested])) ** 2).sum())
        total += float(((z_I[tested] - z_I[fitted].mean(0)) ** 2).sum())
    return 1 - residual / total


def fitted_vclub(train: Predictions, validation: Predictions) -> float:
    """vCLUB of the held-out clips, nats per dimension, by a q fitted anew to the training clips.

    The same estimator for every method, whatever it was trained against: a Gaussian whose mean is a
    ridge regression of the standardised code (strength by leave-one-out) and whose variance is that
    of its errors. A small network in its place learns so few clips by heart, and then says more of
    itself than of the code.

    With such a q the bound over all pairs of a code and an identity (`cfer.mi.vclub`) is the
    covariance of q's mean and z_I over q's variance: E[z²] and E[m²] are in both of its terms. The
    covariance is taken about the training people's means. About those of the K held-out people it
    would be too low by 1/K, and nothing of one person left out; so it means the same for one person
    as for many, and the mean over people left out one by one is the figure of all of them.
    """
    mean, std = train.z_R.mean(0), train.z_R.std(0)

    def scaled(codes: np.ndarray) -> np.ndarray:
        return (codes - mean) / np.where(std > 1e-6, std, 1)

    ridge = _ridge().fit(scaled(train.z_R), train.z_I)
    fitted = ridge.predict(scaled(train.z_R))
    variance = np.square(train.z_I - fitted).mean(0)
    expected = ridge.predict(scaled(validation.z_R))
    moved = (expected - fitted.mean(0)) * (validation.z_I - train.z_I.mean(0))
    return float((moved.mean(0) / np.maximum(variance, 1e-6)).mean())


def _ridge() -> Any:
    from sklearn.linear_model import RidgeCV

    return RidgeCV(alphas=np.logspace(-1, 5, 13))


def leakage(train: Predictions, validation: Predictions, seed: int) -> dict[str, float]:
    """All of it by name: `leakage/linear_train`, `leakage/auc_held_out`, `leakage/r2`, …"""
    figures = {}
    for side, clips in (("train", train), ("held_out", validation)):
        for name, value in subject_probes(clips.z_R, clips.subjects, clips.labels, seed).items():
            figures[f"leakage/{name}_{side}"] = value
    both = Predictions.concatenate([train, validation])
    figures["leakage/r2"] = identity_r2(both.z_R, both.z_I, both.subjects)
    figures["leakage/vclub"] = fitted_vclub(train, validation)
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
    """Recognition, player 2's cross-entropy, and both players' terms of the identity, by epoch."""
    from matplotlib.figure import Figure

    panels = {
        "recognition": ("train/accuracy", "held_out/accuracy", "held_out/uar"),
        "cross-entropy (nats)": ("train/cross_entropy", "held_out/cross_entropy"),
        "identity (nats)": ("train/identity_term", "train/estimator_loss"),
    }
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    all_axes = figure.subplots(1, len(panels))
    epochs = range(1, len(history) + 1)
    for axes, (title, names) in zip(all_axes, panels.items(), strict=True):
        for name in names:
            axes.plot(epochs, [entry[name] for entry in history], label=name)
        axes.set(xlabel="epoch", title=title)
        axes.legend(fontsize="small")
    return figure


def embedding_figure(clips: Predictions, classes: Sequence[str]) -> Figure:
    """z_R in two dimensions (t-SNE), coloured by expression beside the same coloured by subject.

    Clusters of the left picture's colours and none of the right one's are what one hopes for.
    """
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    figure = Figure(figsize=(11, 5), layout="constrained")
    all_axes = figure.subplots(1, 2)
    std = clips.z_R.std(0)
    scaled = (clips.z_R - clips.z_R.mean(0)) / np.where(std > 1e-6, std, 1)
    if len(scaled) > 3:
        perplexity = min(30.0, (len(scaled) - 1) / 3)
        flat = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(scaled)
    else:
        flat = np.zeros((len(scaled), 2))
    people = sorted({subject or "unknown" for subject in clips.subjects})
    numbers = np.array([people.index(subject or "unknown") for subject in clips.subjects])
    for axes, title, colours, names in (
        (all_axes[0], "coloured by expression", clips.labels, list(classes)),
        (all_axes[1], f"coloured by subject ({len(people)} of them)", numbers, people),
    ):
        axes.set(title=title, xticks=[], yticks=[])
        for number, name in enumerate(names):
            chosen = colours == number
            colour = _COLOURS[number % len(_COLOURS)]
            mark = "os^Dv*P"[number // len(_COLOURS) % 7]
            axes.scatter(*flat[chosen].T, s=18, color=colour, marker=mark, label=name)
    all_axes[0].legend(fontsize="small", loc="best")
    figure.suptitle("expression code z_R of the held-out clips")
    return figure


_COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#000000",
)  # fmt: skip


def sweep_figure(
    name: str,
    values: Sequence[Any],
    results: Sequence[tuple[Mapping[str, float], Mapping[str, float]]],
) -> Figure:
    """Accuracy, and leakage on held-out subjects, against a swept option: mean ± deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, title, metrics in zip(
        figure.subplots(1, 2),
        ("recognition on held-out subjects", "same-subject AUC of the code (0.5 is chance)"),
        (("held_out/accuracy", "held_out/uar"), ("leakage/auc_held_out", "leakage/auc_train")),
        strict=True,
    ):
        for metric in metrics:
            if not all(metric in mean for mean, _ in results):
                continue
            axes.errorbar(
                range(len(values)),
                [mean[metric] for mean, _ in results],
                [deviation.get(metric, 0.0) for _, deviation in results],
                capsize=3,
                label=metric,
            )
            axes.legend(fontsize="small")
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set(xlabel=name, title=title)
    return figure


TABLE_METRICS = {
    "accuracy": "held_out/accuracy",
    "UAR": "held_out/uar",
    "macro-F1": "held_out/macro_f1",
    "accuracy by clip": "pooled/accuracy",
    "UAR by clip": "pooled/uar",
    "probe": "leakage/linear_held_out",
    "(chance)": "leakage/chance_held_out",
    "1-NN": "leakage/knn_held_out",
    "AUC": "leakage/auc_held_out",
    "AUC train": "leakage/auc_train",
    "R²": "leakage/r2",
    "vCLUB": "leakage/vclub",
    "parameters": "cost/parameters",
    "bytes/clip": "cost/bytes_per_clip",
}


def summary_table(runs: Sequence[Run]) -> str:
    """A line for each run that has no parent: its figures, or mean ± deviation of its children.

    In a mean each child counts the same (of `loso`, each person); *by clip*, each of their clips.
    """
    rows = [["run", "runs", *TABLE_METRICS]]
    for one in sorted(runs, key=lambda r: r.info.start_time):
        metrics = one.data.metrics
        if "held_out/accuracy" not in metrics or "mlflow.parentRunId" in one.data.tags:
            continue
        cells = [one.info.run_name or "", f"{metrics.get('num_runs', 1):.0f}"]
        for name in TABLE_METRICS.values():
            if name not in metrics:
                cells.append("-")
            elif name.startswith("cost/"):
                cells.append(f"{metrics[name]:,.0f}")
            else:
                spread = metrics.get(f"{name}_sd")
                cells.append(
                    f"{metrics[name]:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")
                )
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def run_report(one: Run, clips: tuple[Predictions, Predictions] | None) -> str:
    """Recognition, recall of each class, and leakage of one run, in lines.

    The leakage is computed anew where the run's predictions are given (train, held-out).
    """
    metrics = dict(one.data.metrics)
    if clips is not None:
        metrics |= leakage(*clips, int(one.data.params["seed"]))

    def figure(name: str) -> str:
        if name not in metrics:
            return "-"
        spread = metrics.get(f"{name}_sd")
        return f"{metrics[name]:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")

    lines = [
        f"{one.info.run_name} ({one.info.run_id})",
        "held-out subjects: "
        + ", ".join(f"{n} {figure(f'held_out/{n}')}" for n in ("accuracy", "uar", "macro_f1")),
        *(
            [
                f"the same, of all clips pooled: accuracy {figure('pooled/accuracy')}, "
                f"uar {figure('pooled/uar')}"
            ]
            if "pooled/accuracy" in metrics
            else []
        ),
        "recall: "
        + ", ".join(
            f"{name.removeprefix('recall/')} {figure(name)}"
            for name in sorted(metrics)
            if name.startswith("recall/") and not name.endswith("_sd")
        ),
    ]
    for side, title in (("train", "training"), ("held_out", "held-out")):
        lines.append(
            f"identity of {title} subjects in z_R: linear probe {figure(f'leakage/linear_{side}')},"
            f" 1-NN {figure(f'leakage/knn_{side}')}, chance {figure(f'leakage/chance_{side}')}; "
            f"same-subject AUC {figure(f'leakage/auc_{side}')} (chance 0.5)"
        )
    lines.append(
        f"R² z_R → z_I {figure('leakage/r2')}; vCLUB {figure('leakage/vclub')} nats per dimension"
    )
    return "\n".join(lines)


def _stored_predictions(one: Run) -> tuple[Predictions, Predictions] | None:
    """Of a single run, train and held-out; a parent of several has none of its own."""
    folder = tracking.download(one, tracking.PREDICTIONS_NAME)
    if folder is None or not folder.is_dir():
        return None
    train, held_out = (
        Predictions.of_arrays(np.load(folder / f"{name}.npz")) for name in ("train", "held_out")
    )
    return train, held_out


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
        InputError: another number of pixels, another encoding, or other classes; scores that are
            not finite.
    """
    # Nothing else here needs Ray, which takes a second to import.
    from cfer.cluster import join_cluster
    from cfer.data import read_clips, read_index, unpack_frames

    recognizer = Recognizer.from_pretrained(model)
    known = recognizer.card
    description = read_description(data)
    check_classes(model, known.classes, data, description.classes)
    if known.size != description.codec["size"]:
        raise InputError(
            f"{data}: its size is {description.codec['size']}, and {model} was trained on "
            f"{known.size}; extract the data set with the model's settings"
        )
    if known.codec != description.codec_settings:
        raise InputError(
            f"{data}: it was encoded with {description.codec_settings}, and {model} was trained on "
            f"{known.codec}; extract the data set with the model's settings"
        )
    index = read_index(data)
    join_cluster(for_training=False)
    confusion = np.zeros((len(known.classes),) * 2, np.int64)
    for row in read_clips(data, index.clip_ids, known.what, for_training=False).iter_rows():
        probabilities = recognizer.probabilities(unpack_frames(row)[None])
        if not np.isfinite(probabilities).all():
            raise NotFinite(
                f"{data}: what {model} says of {row['clip_id']} is not finite; evaluate a model "
                "whose training has not diverged"
            )
        confusion[row["label"], int(probabilities.argmax())] += 1
    return confusion, list(known.classes)


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
    if tracking.is_experiment(options.name):
        print(summary_table(runs))
    else:
        print(run_report(runs[0], _stored_predictions(runs[0])))
    return 0


if __name__ == "__main__":
    exit_with_message(main)
