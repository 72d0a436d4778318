"""What a recognizer is worth: recognition on held-out subjects, and how much identity its code has.

python -m cfer.evaluate.command EXPERIMENT          # table of its finished runs
python -m cfer.evaluate.command RUN                 # one of them: recall of each class, leakage
python -m cfer.evaluate.command RUN --data SHARDS   # a stored model on a data set
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from mlflow.entities import Run

from cfer import tracking
from cfer.data.shards import read_description
from cfer.errors import InputError, NotFinite, exit_with_message
from cfer.predict.recognizer import Recognizer

# matplotlib and scikit-learn are imported where they are used: every training process imports this
# module, and one of them, once, draws and fits probes.
if TYPE_CHECKING:
    pass
from cfer.evaluate.metrics import ScoredClips, recognition
from cfer.evaluate.probes import leakage

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


def run_report(one: Run, clips: tuple[ScoredClips, ScoredClips] | None) -> str:
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


def _stored_predictions(one: Run) -> tuple[ScoredClips, ScoredClips] | None:
    """Of a single run, train and held-out; a parent of several has none of its own."""
    folder = tracking.download(one, tracking.PREDICTIONS_NAME)
    if folder is None or not folder.is_dir():
        return None
    train, held_out = (
        ScoredClips.of_arrays(np.load(folder / f"{name}.npz")) for name in ("train", "held_out")
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
    """A stored model on every labeled clip of a data set → confusion matrix and class names.

    Raises:
        InputError: another number of pixels, another encoding, or other classes; scores that are
            not finite.
    """
    # Nothing else here needs Ray, which takes a second to import.
    from cfer.cluster import join_cluster
    from cfer.data.folds import read_index
    from cfer.data.frames import frames_of_clips, unpack_frames

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
    for row in frames_of_clips(data, index.clip_ids, known.what, for_training=False).iter_rows():
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
        prog="python -m cfer.evaluate.command", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "name",
        help="an MLflow experiment, or a run's name or id (with --data "
        "also a model's URI or folder)",
    )
    parser.add_argument(
        "--data",
        help="evaluate the run's stored model on this data set; it "
        "counts every labeled clip, so give one it was not trained on",
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
