"""What `cfer evaluate` prints of an experiment, of a run, and of a stored model on a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from mlflow.entities import Run

from cfer import tracking
from cfer.data.shards import read_description
from cfer.errors import InputError, NotFinite
from cfer.evaluate.attacks import LINKAGE, VERIFICATION, strongest
from cfer.evaluate.calibration import ece
from cfer.evaluate.metrics import ScoredClips, confusion_matrix, recognition
from cfer.model.card import calibration_line
from cfer.predict.recognizer import Recognizer, of_views

COLUMNS = {
    "accuracy": "held_out/accuracy",
    "UAR": "held_out/uar",
    "macro-F1": "held_out/macro_f1",
    "accuracy by clip": "pooled/accuracy",
    "UAR by clip": "pooled/uar",
    "ECE before": "calibration/ece_before",
    "ECE after": "calibration/ece_after",
    "parameters": "cost/parameters",
    "bytes/clip": "cost/bytes_per_clip",
}


def of_experiment(runs: Sequence[Run]) -> str:
    """A line for each run that has no parent: its figures, or mean ± deviation of its children.

    In a mean each child counts the same (of `loso`, each person); *by clip*, and in the ECE before
    and after the temperature, each of their clips. Linkage and verification: pooled AUC of the
    strongest attacker (`cfer.evaluate.attacks`).
    """
    attacks = (LINKAGE, VERIFICATION)
    rows = [["run", "runs", *COLUMNS, *attacks]]
    for run in sorted(runs, key=lambda r: r.info.start_time):
        metrics = run.data.metrics
        if "held_out/accuracy" not in metrics or tracking.PARENT_TAG in run.data.tags:
            continue
        names = [*COLUMNS.values(), *(strongest(metrics, kind) for kind in attacks)]
        cells = (_cell(metrics, name) for name in names)
        rows.append([run.info.run_name or "", f"{metrics.get('num_runs', 1):.0f}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _cell(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "-"
    if name.startswith("cost/"):
        return f"{metrics[name]:,.0f}"
    spread = metrics.get(f"{name}_sd")
    return f"{metrics[name]:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")


def predictions_of(run: Run) -> tuple[ScoredClips, ScoredClips] | None:
    """The clips that a run was trained on, and those held out; None where it has none stored."""
    folder = tracking.download(run, tracking.PREDICTIONS_NAME)
    if folder is None or not folder.is_dir():
        return None
    train, held_out = (
        ScoredClips.of_arrays(np.load(folder / f"{side}.npz")) for side in ("train", "held_out")
    )
    return train, held_out


def of_run(run: Run) -> str:
    """Recognition, and the recall of each class, of one run, in lines."""
    metrics = run.data.metrics

    def figure(name: str) -> str:
        return _cell(metrics, name)

    lines = [
        f"{run.info.run_name} ({run.info.run_id})",
        "held-out subjects: "
        + ", ".join(f"{n} {figure(f'held_out/{n}')}" for n in ("accuracy", "uar", "macro_f1")),
    ]
    if "pooled/accuracy" in metrics:
        lines.append(
            f"the same, of all clips pooled: accuracy {figure('pooled/accuracy')}, "
            f"uar {figure('pooled/uar')}"
        )
    lines.append(
        "recall: "
        + ", ".join(
            f"{name.removeprefix('recall/')} {figure(name)}"
            for name in sorted(metrics)
            if name.startswith("recall/") and not name.endswith("_sd")
        )
    )
    temperature = metrics.get("calibration/temperature", 1.0)
    lines.append(f"probabilities: {calibration_line(temperature, metrics)}")
    return "\n".join(lines)


def on_data(model: str, data: str) -> str:
    """A stored model on every labeled clip of a data set: figures, and the confusion matrix.

    Raises:
        InputError: another number of pixels, another encoding, or other classes; scores that are
            not finite.
    """
    # Nothing else here needs Ray, which takes a second to import.
    from cfer.cluster import join_cluster
    from cfer.data.folds import read_index
    from cfer.data.frames import frames_of_clips, unpack_views

    recognizer = Recognizer.from_pretrained(model)
    known = recognizer.card
    description = read_description(data)
    check_classes(model, known.classes, data, description.classes)
    for what, given, expected in (
        ("size is", description.codec["size"], known.size),
        ("clips were encoded with", description.codec_settings, known.codec),
    ):
        if given != expected:
            raise InputError(
                f"{data}: its {what} {given}, and {model} was trained on {expected}; extract the "
                "data set with the model's settings"
            )
    index = read_index(data)
    join_cluster(for_training=False)
    labels, scores = [], []
    for row in frames_of_clips(data, index.clip_ids, known.what, for_training=False).iter_rows():
        probabilities = recognizer.probabilities(np.stack(unpack_views(row)))
        if not np.isfinite(probabilities).all():
            raise NotFinite(
                f"{data}: the scores of {model} for {row['clip_id']} are not finite; evaluate a "
                "model whose training has not diverged"
            )
        labels.append(row["label"])
        scores.append(of_views(probabilities))
    true, scored = np.array(labels), np.stack(scores)
    confusion = confusion_matrix(true, scored.argmax(1), len(known.classes))
    figures = {**recognition(confusion), "ece": ece(scored, true)}
    lines = [
        f"{model} on {data}: {len(labels)} clips, "
        + ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    ]
    width = max(map(len, known.classes))
    for name, counts in zip(known.classes, confusion, strict=True):
        lines.append(f"  {name:<{width}}  " + " ".join(f"{count:4d}" for count in counts))
    return "\n".join(lines)


def check_classes(model: str, known: Sequence[str], data: str, given: Sequence[str]) -> None:
    """Raises InputError where a model and a data set do not have the same classes in order."""
    if list(known) != list(given):
        raise InputError(
            f"{data}: its classes are {', '.join(given)}, and {model} was trained on "
            f"{', '.join(known)}; use a data set of the same classes in the same order, or train "
            "a model on this one"
        )
