"""What a run has in its folder, `<storage>/<run>`.

run.json              its configuration and its MLflow run, written when it is started
epoch-00012/          the newest checkpoint: both players, both optimizers, the figures so far
results.json          the figures of the last epoch; written last: a run that has it is finished
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from cfer.data.shards import Description
from cfer.data.storage import Folder
from cfer.errors import InputError, NotFinite
from cfer.evaluate.table import check_classes
from cfer.model.network import EARLIER_STEM_STRIDE, ModelConfig, not_finite
from cfer.train.config import OPERATIONAL, TrainConfig, flag

RECORD_NAME = "run.json"
STATE_NAME = "state.pt"
SEAL_NAME = "state.json"
RESULTS_NAME = "results.json"

# ---- results -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """What a finished run ends with.

    Attributes:
        figures: of the last epoch, by their names in MLflow.
        confusion: of the held-out clips, (C, C), row = true class.
        mlflow_run_id: the run in MLflow, which has all the rest.
        num_train: how many clips it was trained on.
        held_out: see `cfer.data.folds.who_is_held_out`; empty in runs of an earlier cfer.
    """

    figures: dict[str, float]
    confusion: list[list[int]]
    mlflow_run_id: str
    num_train: int = 0
    held_out: list[str] = field(default_factory=list)


def write_results(location: str, results: Results) -> None:
    _write_json(location, RESULTS_NAME, asdict(results))


def read_results(location: str) -> Results | None:
    """What the run in this folder ended with; None where it has not ended."""
    values = _read_json(location, RESULTS_NAME)
    return None if values is None else Results(**values)


def _write_json(location: str, name: str, values: Mapping[str, Any]) -> None:
    Folder(location).write(name, (json.dumps(values, indent=1) + "\n").encode())


def _read_json(location: str, name: str) -> dict[str, Any] | None:
    folder = Folder(location)
    return json.loads(folder.read(name)) if folder.exists(name) else None


# ---- the record of a run, or of a protocol -------------------------------------------------------


def write_record(
    location: str,
    name: str,
    config: TrainConfig,
    description: Description,
    mlflow_run_id: str,
    **noted: Any,
) -> None:
    """Write what `read_record` compares; `noted` is kept with it."""
    record = {
        "config": asdict(config),
        "classes": description.classes,
        "data_digest": description.digest,
        "stem_stride": ModelConfig.stem_stride,
        **noted,
        "mlflow_run_id": mlflow_run_id,
    }
    _write_json(location, name, record)


def read_record(
    location: str,
    name: str,
    config: TrainConfig,
    description: Description,
    held_out: Sequence[str] | None = None,
) -> str | None:
    """The MLflow run of an earlier start; None where there was none.

    Raises:
        InputError: it was started with other settings, data or classes, or with other people held
            out than `held_out`, where that is given.
    """
    record = _read_json(location, name)
    if record is None:
        return None
    check_classes(f"run {config.run}", record["classes"], config.data, description.classes)
    given = {
        **asdict(config),
        "data set (SHA-256)": description.digest,
        "stem stride": ModelConfig.stem_stride,
    }
    known = {
        # What an earlier cfer had no option for, it did as the default of one says.
        **{option.name: option.default for option in fields(TrainConfig)},
        **record["config"],
        "data set (SHA-256)": record["data_digest"],
        "stem stride": record.get("stem_stride", EARLIER_STEM_STRIDE),
    }
    for setting, value in given.items():
        # A method is short for other settings, which are compared themselves.
        if setting not in (*OPERATIONAL, "method") and known.get(setting) != value:
            what = setting if " " in setting else flag(setting)
            raise InputError(
                f"--run {config.run}: it was started with {what} {known.get(setting)}, and now "
                f"{what} is {value}; give the same to go on with it, or another --run name"
            )
    # An earlier cfer did not note who was held out; only its folds were cut in another way.
    noted = record.get("held_out", [] if config.folds else held_out)
    if held_out is not None and noted != list(held_out):
        raise InputError(
            f"--run {config.run}: it was started with other people held out, by a cfer that cuts "
            "the data set in another way; give another --run name"
        )
    return str(record["mlflow_run_id"])


# ---- checkpoints ---------------------------------------------------------------------------------


def save(
    location: str,
    stateful: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    spent_seconds: float,
) -> None:
    """Write the checkpoint of the last epoch in `history`, then its seal; remove the one before.

    Args:
        stateful: the networks and optimizers, by name.
        history: the figures of each epoch.
        spent_seconds: in these epochs.
    """
    buffer = io.BytesIO()
    state = {name: part.state_dict() for name, part in stateful.items()}
    torch.save({**state, "history": list(history), "spent_seconds": spent_seconds}, buffer)
    data = buffer.getvalue()
    seal = {"epoch": len(history), "sha256": hashlib.sha256(data).hexdigest()}
    run_folder, checkpoint = Folder(location), f"epoch-{len(history):05d}"
    folder = run_folder.folder(checkpoint)
    folder.write(STATE_NAME, data)
    folder.write(SEAL_NAME, json.dumps(seal).encode())
    for name in _checkpoint_names(run_folder):
        if name != checkpoint:
            run_folder.delete_folder(name)


def restore(
    location: str, stateful: Mapping[str, Any], device: torch.device
) -> tuple[list[dict[str, float]], float]:
    """Load the newest checkpoint, if any → the figures of its epochs, and the seconds they took.

    Raises:
        InputError: it is of an earlier cfer.
        NotFinite: it is of a run that had diverged.
    """
    checkpoint = newest_checkpoint(location)
    if checkpoint is None:
        return [], 0.0
    data = Folder(checkpoint).read(STATE_NAME)
    state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    if not state.keys() >= stateful.keys():
        raise InputError(
            f"{checkpoint}: an earlier cfer wrote it; start another --run, or finish this one with "
            "that cfer"
        )
    try:
        check_finite({name: state[name] for name in stateful})
    except NotFinite as error:
        raise NotFinite(
            f"{checkpoint}: {error}: the run had diverged before it was written, and can't be gone "
            "on with; start another --run with a lower --lr or --estimator-lr"
        ) from error
    for name, part in stateful.items():
        part.load_state_dict(state[name])
    return state["history"], state["spent_seconds"]


def check_finite(state: Mapping[str, Any]) -> None:
    """Raises NotFinite where a tensor of this state, or of a state within it, is not finite."""
    if name := not_finite(state):
        raise NotFinite(f"{name} is not finite")


def newest_checkpoint(location: str) -> str | None:
    """The complete checkpoint of the latest epoch in a run's folder.

    A kill can leave a checkpoint half written: one counts as complete when its state has the hash
    that its seal gives. The run may be going on, and remove one when the next is written.
    """
    folder = Folder(location)
    seen: list[str] | None = None
    while True:
        names = _checkpoint_names(folder)
        for name in reversed(names):
            if _is_sealed(folder.folder(name)):
                return folder.location_of(name)
        # The next is complete before anything of the last is removed: a second look finds it, or
        # the one after it is there by then.
        if seen == names == _checkpoint_names(folder):
            return None
        seen = names


def _checkpoint_names(folder: Folder) -> list[str]:
    """By epoch, the latest last."""
    return [name for name in folder.folder_names() if name.startswith("epoch-")]


def _is_sealed(folder: Folder) -> bool:
    if not folder.exists(SEAL_NAME) or not folder.exists(STATE_NAME):
        return False
    try:
        seal, state = folder.read(SEAL_NAME), folder.read(STATE_NAME)
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False  # it has been removed meanwhile
        raise
    try:
        digest: str = json.loads(seal)["sha256"]
    except ValueError:
        return False
    return hashlib.sha256(state).hexdigest() == digest
