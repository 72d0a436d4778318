"""Where models are (the shipped one, model files, the MLflow store), and what `cfer models` does.

    cfer models list                             # the shipped model, and those of the MLflow store
    cfer models show NAME                        # its card: classes, input, figures, origin
    cfer models export NAME FILE                 # .safetensors, .onnx or .pt2
    cfer models import FILE.safetensors --name N # into the MLflow store's registry: models:/N/1

NAME is `default`, a model file, the name or id of a training run, `runs:/ID/model` or
`models:/NAME/VERSION`.
"""

from __future__ import annotations

from pathlib import Path

from cfer.errors import InputError
from cfer.model.card import SUFFIX, ModelCard, calibration_line, read_model, write_model
from cfer.model.network import Predictor
from cfer.outputs import check_output

DEFAULT = "default"
DEFAULT_LIMITS = (
    "the default model was trained on animated photographs: of 24 windows of real people that were "
    "marked by hand it names 13 as they were marked (docs/limits.md); train on recorded faces and "
    "give --model"
)


def default_path() -> Path:
    """The model file that ships with cfer, trained on photo puppets."""
    return Path(__file__).with_name(f"{DEFAULT}{SUFFIX}")


def open_model(name: str = DEFAULT) -> tuple[Predictor, ModelCard]:
    """A model by its name, as above; InputError: there is none, or it can't be read."""
    if name == DEFAULT:
        return read_model(default_path())
    if name.endswith(SUFFIX):
        return read_model(name)
    # MLflow takes seconds to import.
    from cfer import tracking

    return read_model(tracking.model_file(name))


def export(name: str, path: Path) -> str:
    """Write a model in the form that the file's suffix names → a line that says what was done."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    check_output(path)
    predictor, card = open_model(name)
    if path.suffix == SUFFIX:
        write_model(path, predictor, card)
        return f"{path}: {path.stat().st_size:,} bytes"
    from cfer.model import export as forms

    worst = forms.export(predictor, card, path)
    return (
        f"{path}: {path.stat().st_size:,} bytes, and its card beside it; its probabilities differ "
        f"by at most {worst:.1g}"
    )


def import_file(path: Path, name: str) -> str:
    """Put a model file into the connected MLflow store → its URI there, `models:/NAME/VERSION`."""
    if path.suffix != SUFFIX:
        raise InputError(f"{path}: give a {SUFFIX} file, as `cfer models export` writes it")
    predictor, card = read_model(path)
    from cfer import tracking

    return tracking.register_model(predictor, card, name)


def describe(name: str) -> str:
    """A model's card, for people."""
    predictor, card = open_model(name)
    codec, what = card.codec, card.what
    residuals = " residuals" if what.kind in ("accumulated", "direct") else ""
    quality = (
        f"quantizer {codec.quantizer}" if codec.bit_rate is None else f"{codec.bit_rate} bit/s"
    )
    gop = f"{codec.gop_seconds:g} s" if codec.gop_seconds else f"{codec.span} frames"
    window = (
        f"{card.window_gops} GOPs" if card.window_seconds is None else f"{card.window_seconds:g} s"
    )
    stream = ", H.264 as it is" if what.is_native else ""
    shown = [
        ("model", name),
        ("classes", ", ".join(card.classes)),
        ("sees", f"{what.kind}{residuals}, {what.planes}, frames: {what.frames}{stream}"),
        (
            "of",
            f"a {card.size} × {card.size} crop of the face, GOPs of {codec.gop_size} frames in "
            f"{gop} of the video, {quality}"
            f"{'' if codec.motion_search else ', no motion search'}, "
            f"windows of {window}",
        ),
        ("calibrated", calibration_line(card.temperature, card.figures)),
        ("weights", f"{sum(p.numel() for p in predictor.parameters()):,}"),
        *([("limits", DEFAULT_LIMITS)] if name == DEFAULT else []),
        *card.origin.items(),
    ]
    lines = [f"{key:10s} {value}" for key, value in shown]
    figures = {
        metric: value
        for metric, value in card.figures.items()
        if metric.startswith(("held_out/", "recall/")) or metric.endswith("_pooled_auc")
    }
    width = max(map(len, figures), default=0)
    lines += [f"{metric:{width}s} {value:.3f}" for metric, value in figures.items()]
    for group, values in card.recall_by_group.items():
        for value, (right, count) in values.items():
            shares = f"{right / count:.3f}, {_interval(right, count)}"
            lines.append(f"{f'{group} {value}':{width}s} {shares}: {right} of {count} clips")
    return "\n".join(lines)


def _interval(right: int, count: int) -> str:
    """The exact 95 % interval of a share (Clopper & Pearson, Biometrika 1934)."""
    # Nothing else of `cfer models` needs SciPy, which takes a while to import.
    from scipy.stats import binomtest

    interval = binomtest(right, count).proportion_ci()
    return f"95 % in {interval.low:.3f} to {interval.high:.3f}"


def table() -> str:
    """Every model that has a name here, one line each."""
    from cfer import tracking

    rows = [(DEFAULT, "ships with cfer", read_model(default_path())[1].figures)]
    rows += [(entry.name, entry.what, entry.figures) for entry in tracking.models()]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'name':{width}s}  accuracy  what"]
    for name, what, figures in rows:
        accuracy = figures.get("held_out/accuracy", float("nan"))
        lines.append(f"{name:{width}s}  {accuracy:8.3f}  {what}")
    return "\n".join(lines)
