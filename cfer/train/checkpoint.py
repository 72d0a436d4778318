"""What a run leaves in its folder: a checkpoint after each epoch, and its results at the end."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cfer.data.storage import Folder
from cfer.errors import InputError, NotFinite
from cfer.train.batches import Standardization

STATE_NAME = "state.pt"


SEAL_NAME = "state.json"


RESULTS_NAME = "results.json"


@dataclass(frozen=True)
class Results:
    """What a finished run is worth.

    Attributes:
        figures: of the last epoch, by the names that MLflow has them under.
        confusion: of the held-out clips, (C, C), row = true class.
        mlflow_run_id: where the rest is.
        num_train: how many clips it was trained on.
        held_out: who was held out (`cfer.data.folds.who_is_held_out`); empty of an earlier cfer's run.
    """

    figures: dict[str, float]
    confusion: list[list[int]]
    mlflow_run_id: str
    num_train: int = 0
    held_out: list[str] = field(default_factory=list)


def _check_finite(state: Mapping[str, Any]) -> None:
    """Raises NotFinite where a number in it, or in what is in it, is infinite or none."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            _check_finite({f"{name} {key}": part for key, part in value.items()})
        elif isinstance(value, Tensor) and not torch.isfinite(value).all():
            raise NotFinite(f"{name} is not finite")


# ---- checkpoints ---------------------------------------------------------------------------------


def _save(
    setup: Mapping[str, Any],
    stateful: Mapping[str, Any],
    history: list[dict[str, float]],
    spent_seconds: float,
    standardize: Standardization,
) -> None:
    """Write a checkpoint, then its seal; then remove the one before."""
    state = {
        **{name: part.state_dict() for name, part in stateful.items()},
        "history": history,
        "spent_seconds": spent_seconds,
        "z_I_mean": standardize.mean,
        "z_I_std": standardize.std,
        "config": setup["config"],
        "classes": setup["classes"],
        "mlflow_run_id": setup["run_id"],
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    seal = {"epoch": len(history), "sha256": hashlib.sha256(data).hexdigest()}
    run_folder = Folder(setup["location"])
    folder = run_folder.folder(_checkpoint_name(len(history)))
    folder.write(STATE_NAME, data)
    folder.write(SEAL_NAME, json.dumps(seal).encode())
    for name in _checkpoint_names(run_folder):
        if name != _checkpoint_name(len(history)):
            run_folder.delete_folder(name)


def _restore(
    location: str, stateful: Mapping[str, Any], device: torch.device
) -> tuple[list[dict[str, float]], float]:
    """Load the newest state → the figures of the epochs done, and the seconds they took.

    Raises:
        NotFinite: it is of a run that had diverged.
    """
    checkpoint = newest_checkpoint(location)
    if checkpoint is None:
        return [], 0.0
    data = Folder(checkpoint).read(STATE_NAME)
    state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    try:
        _check_finite({name: state[name] for name in stateful})
    except NotFinite as error:
        raise NotFinite(
            f"{checkpoint}: {error}: the run had diverged before it was written, and can't be gone "
            "on with; start another --run with a lower --lr or --estimator-lr"
        ) from error
    for name, part in stateful.items():
        part.load_state_dict(state[name])
    return state["history"], state["spent_seconds"]


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
        # The next one is complete before anything of the last is removed: the second look finds it.
        if names == seen:
            return None
        seen = names


def _checkpoint_name(epoch: int) -> str:
    return f"epoch-{epoch:05d}"


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


def read_results(location: str) -> Results | None:
    """What a run in this folder ended with; None where it has not ended."""
    folder = Folder(location)
    if not folder.exists(RESULTS_NAME):
        return None
    return Results(**json.loads(folder.read(RESULTS_NAME)))
