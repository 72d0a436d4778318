"""Everything that knows MLflow: where runs are kept, what a run holds, how a model is stored.

Runs go to the store that MLFLOW_TRACKING_URI names, or else to `mlflow.db` (SQLite) in the working
directory. Look at them with

    mlflow ui --backend-store-uri sqlite:///mlflow.db

A stored model can be loaded by `mlflow.pyfunc.load_model(uri)` without `cfer`. Beside it lies the
model file (`cfer.model.card`), which is what `cfer` itself reads.

A tracking server may be away for some minutes: MLflow itself tries every request again for about
ten, and training does not wait for the figures of its epochs to arrive. Figures that have not
arrived by the end of training, or were lost with a process, are sent then from the checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow
import numpy as np
import torch
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from cfer.errors import InputError
from cfer.model.card import SUFFIX, ModelCard, write_model
from cfer.model.export import export_program
from cfer.model.network import Predictor
from cfer.outputs import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMMAND_TAG = "cfer.command"  # repeats the run
PARENT_TAG = "mlflow.parentRunId"
MODEL_NAME = "model"
MODEL_FILE_NAME = f"model{SUFFIX}"
PREDICTIONS_NAME = "predictions"
IMPORTED = "imported"  # experiment of models that were trained elsewhere
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or an absolute SQLite URI in the working directory.

    Absolute, since a training worker has another working directory.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    relative = re.fullmatch(r"sqlite:///([^/].*)", uri)
    return f"sqlite:///{Path(relative[1]).resolve()}" if relative else uri


def connect(uri: str | None = None) -> MlflowClient:
    """Use this store from here on, in this process."""
    for name in ("alembic", "mlflow", "mlflow.store.db.utils", "mlflow.pyfunc", "mlflow.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    connections = logging.getLogger("urllib3.connectionpool")
    if not any(isinstance(handler, _OutageHandler) for handler in connections.handlers):
        connections.addHandler(_OutageHandler())
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    # Waits of 4, 8, 16, … 120 s. MLflow takes no higher number.
    os.environ.setdefault(_RETRIES, "10")
    # Epochs arrive one after the other.
    os.environ.setdefault("MLFLOW_ASYNC_LOGGING_THREADPOOL_SIZE", "1")
    # No input example is needed: the signature is given, and tested.
    warnings.filterwarnings("ignore", message="(?s).*input example was not provided")
    mlflow.set_tracking_uri(uri or tracking_uri())
    try:
        with _one_at_a_time(mlflow.get_tracking_uri()):
            return MlflowClient()
    except MlflowException as error:
        said = error.message.split(". ")[0]
        raise InputError(
            f"MLFLOW_TRACKING_URI={mlflow.get_tracking_uri()}: {said}; give a database "
            "(sqlite:///mlflow.db) or a server (http://…)"
        ) from error


def _one_at_a_time(uri: str) -> contextlib.AbstractContextManager[Any]:
    """Of processes of this machine that open a database: of two that make its tables at the same
    time, MLflow fails in one."""
    if not uri.startswith("sqlite:"):
        return contextlib.nullcontext()
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"cfer-mlflow-{os.getuid()}-{name}.lock")


class _OutageHandler(logging.Handler):
    """Reports on stderr that a request is tried again, which MLflow does silently."""

    def emit(self, record: logging.LogRecord) -> None:
        uri = mlflow.get_tracking_uri()
        if uri.startswith("http") and str(record.msg).startswith("Retrying ("):
            say(f"MLflow at {uri} does not answer ({_reason(record.getMessage())}); trying again")


def _reason(text: str) -> str:
    """The cause of a failed connection, which is near the end of a long message."""
    found = re.search(r"\[Errno \d+\] ([\w ]+)|(Read timed out)|(reset by peer)", text)
    return next(filter(None, found.groups())) if found else text.splitlines()[0]


@contextlib.contextmanager
def _without_retries() -> Iterator[None]:
    """For a request that is not worth waiting for."""
    impatient = {_RETRIES: "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    before = {name: os.environ[name] for name in impatient if name in os.environ}
    os.environ |= impatient
    try:
        yield
    finally:
        for name in impatient:
            del os.environ[name]
        os.environ |= before


def code_version() -> dict[str, str]:
    """Tags `cfer_version` and, where cfer runs from a checkout, `git_commit` and `git_dirty`."""
    tags = {"cfer_version": importlib.metadata.version("cfer")}
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        # Not the commit of some other repository that cfer happens to be installed inside of.
        git("ls-files", "--error-unmatch", "cfer/__init__.py")
        tags["git_commit"] = git("rev-parse", "HEAD")
        tags["git_dirty"] = str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def create_run(
    experiment: str,
    name: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    dataset: Mapping[str, str],
    parent_id: str | None = None,
) -> str:
    """Start a run in the connected store → its id; its status is RUNNING until `end_run`.

    Args:
        dataset: has `name`, `digest` (SHA-256) and `location`.
        parent_id: the run under which this one is shown.

    Raises:
        InputError: the store does not answer, or the experiment was deleted.
    """
    client = MlflowClient()
    try:
        experiment_id = mlflow.set_experiment(experiment).experiment_id
    except MlflowException as error:
        raise InputError(
            f"--experiment {experiment}: MLflow at {mlflow.get_tracking_uri()} does not take it "
            f"({_reason(str(error))}); start its server, or set MLFLOW_TRACKING_URI"
        ) from error
    nested = {} if parent_id is None else {PARENT_TAG: parent_id}
    run_id = client.create_run(
        experiment_id, run_name=name, tags={**code_version(), **tags, **nested}
    ).info.run_id
    client.log_batch(run_id, params=[Param(k, str(v)) for k, v in parameters.items()])
    data = Dataset(
        name=dataset["name"],
        digest=dataset["digest"][:36],  # MLflow's limit; the parameters hold all of it
        source_type="local",
        source=json.dumps({"uri": dataset["location"]}),
    )
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
    return run_id


def check_run(run_id: str, name: str) -> None:
    """That the connected store has the run which an earlier start of `name` wrote into.

    Raises:
        InputError: it has not, or the run was deleted.
    """
    try:
        stage = MlflowClient().get_run(run_id).info.lifecycle_stage
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        stage = "missing"
    if stage != "active":
        raise InputError(
            f"--run {name}: it was started with MLflow run {run_id}, which is {stage} in "
            f"{mlflow.get_tracking_uri()}; start it from the same folder as before or with the "
            "same MLFLOW_TRACKING_URI, or give another --run name"
        )


def set_tag(run_id: str, name: str, value: str) -> None:
    MlflowClient().set_tag(run_id, name, value)


def end_run(run_id: str, *, succeeded: bool) -> None:
    """A failure is marked only where the store answers at once: the error must not wait for it."""
    if succeeded:
        MlflowClient().set_terminated(run_id, "FINISHED")
        return
    with _without_retries(), contextlib.suppress(MlflowException):
        MlflowClient().set_terminated(run_id, "FAILED")


def mark_finished(run_id: str) -> None:
    """For a run that has its results, but whose process was killed before `end_run`."""
    if MlflowClient().get_run(run_id).info.status != "FINISHED":
        end_run(run_id, succeeded=True)


class Tracker:
    """Writes into one run of the connected store."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._client = MlflowClient()
        self._waits: list[Callable[[], None]] = []

    def log_epoch(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Without waiting for the store; `complete_epochs` ensures that the figures arrive."""
        sent = self._log(metrics, epoch, synchronous=False)
        if sent is not None:
            self._waits.append(sent.wait)

    def complete_epochs(self, history: Sequence[Mapping[str, float]]) -> None:
        """Send the epochs that the store lacks after an outage, or after a process was killed.

        Raises:
            MlflowException: the store does not answer.
        """
        for wait in self._waits:
            with contextlib.suppress(MlflowException):
                wait()
        self._waits.clear()
        # An epoch's figures arrive together, so it is enough to look for one of them.
        name = next(k for k in history[0] if all(np.isfinite(epoch[k]) for epoch in history))
        there = {metric.step for metric in self._client.get_metric_history(self.run_id, name)}
        for epoch, metrics in enumerate(history, start=1):
            if epoch not in there:
                self._log(metrics, epoch)

    def log_figures(self, metrics: Mapping[str, float], epoch: int) -> None:
        """The final figures, except those that an earlier, killed process has logged already."""
        there = self._client.get_run(self.run_id).data.metrics
        self._log({k: v for k, v in metrics.items() if there.get(k) != v}, epoch)

    def _log(self, metrics: Mapping[str, float], epoch: int, synchronous: bool = True) -> Any:
        """Values that are not finite (a measure that does not apply to this data set) stay out."""
        now = int(time.time() * 1000)
        finite = [Metric(k, float(v), now, epoch) for k, v in metrics.items() if np.isfinite(v)]
        return self._client.log_batch(self.run_id, metrics=finite, synchronous=synchronous)

    def log_figure(self, figure: Figure, name: str) -> None:
        self._client.log_figure(self.run_id, figure, name)

    def log_table(self, table: Mapping[str, Any], name: str) -> None:
        """As a JSON file."""
        self._client.log_dict(self.run_id, dict(table), name)

    def log_predictions(self, **sides: Mapping[str, Any]) -> None:
        """A file `SIDE.npz` of arrays for each side: what was trained on, and what was held out."""
        with tempfile.TemporaryDirectory() as folder:
            for side, arrays in sides.items():
                path = Path(folder) / f"{side}.npz"
                np.savez_compressed(path, **arrays)
                self._client.log_artifact(self.run_id, str(path), PREDICTIONS_NAME)

    def log_model(self, predictor: Predictor, card: ModelCard) -> None:
        """Store the model as a model file of cfer, and in a form that MLflow alone can run."""
        planes = TensorSpec(np.dtype(np.uint8), (-1, -1, *card.planes_shape))
        probabilities = TensorSpec(np.dtype(np.float32), (-1, len(card.classes)))
        with tempfile.TemporaryDirectory() as folder:
            network, file = Path(folder) / "network.pt2", Path(folder) / MODEL_FILE_NAME
            export_program(predictor, card, network)
            write_model(file, predictor, card)
            with mlflow.start_run(run_id=self.run_id):
                mlflow.pyfunc.log_model(
                    name=MODEL_NAME,
                    python_model=str(Path(__file__).with_name("model") / "pyfunc.py"),
                    artifacts={"network": str(network), "model": str(file)},
                    signature=ModelSignature(Schema([planes]), Schema([probabilities])),
                    metadata={"classes": list(card.classes)},
                    # Without them, MLflow would load the model in a fresh process to find out.
                    pip_requirements=[
                        f"mlflow=={mlflow.__version__}",
                        f"torch=={torch.__version__.split('+')[0]}",
                        f"numpy=={np.__version__}",
                    ],
                )
            # start_run marks the run as finished at its end, and training goes on.
            self._client.update_run(self.run_id, status="RUNNING")


def model_file(uri: str) -> Path:
    """The model file of a run, on this disk.

    Args:
        uri: what MLflow takes (`runs:/ID/model`, `models:/NAME/1`, a folder), or the id or name of
            a training run in the connected store.

    Raises:
        InputError: no such model, or not one of cfer's.
    """
    connect()
    if "/" not in uri and not Path(uri).is_dir():
        run = find_run(uri)
        if role(run) == "protocol":
            raise InputError(
                f"--model {uri}: a protocol of several runs, each with a model of its own; give "
                "the id of one of them (mlflow ui shows them below it)"
            )
        uri = _model_uri(run)
    try:
        file = Path(mlflow.artifacts.download_artifacts(uri)) / "artifacts" / MODEL_FILE_NAME
    except (MlflowException, OSError, ValueError) as error:
        raise InputError(
            f"--model {uri}: no cfer model there ({str(error).splitlines()[0]}); give the name or "
            "id of a training run, `runs:/ID/model`, a model file or a model's folder, and "
            "MLFLOW_TRACKING_URI where the store is not ./mlflow.db"
        ) from error
    if not file.exists():
        raise InputError(
            f"--model {uri}: no {MODEL_FILE_NAME} in it; it is another program's, or of a cfer "
            "before model files: train it again"
        )
    return file


class StoredModelEntry(NamedTuple):
    """A model of the store: its name, where it is from, the last figures of its run."""

    name: str
    what: str
    figures: dict[str, float]


def models() -> list[StoredModelEntry]:
    """The registry's models, then those of finished training runs, newest first."""
    client = connect()
    entries = []
    for version in client.search_model_versions():
        run = client.get_run(version.run_id) if version.run_id else None
        name, what = f"models:/{version.name}/{version.version}", "registered, of run"
        if run is None:
            entries.append(StoredModelEntry(name, f"{what} ?", {}))
        else:
            entries.append(StoredModelEntry(name, f"{what} {run.info.run_name}", run.data.metrics))
    experiments = {e.experiment_id: e.name for e in client.search_experiments()}
    runs = client.search_runs(list(experiments), "status = 'FINISHED'", max_results=1000)
    for run in runs:
        # A protocol has runs and no model; one of its runs is found by its id only.
        if role(run) == "protocol" or run.outputs is None or not run.outputs.model_outputs:
            continue
        what = f"run of experiment {experiments[run.info.experiment_id]}"
        name = run.info.run_name or run.info.run_id
        if PARENT_TAG in run.data.tags:
            name, what = run.info.run_id, f"{what}: {run.info.run_name}"
        entries.append(StoredModelEntry(name, what, run.data.metrics))
    return entries


def register_model(predictor: Predictor, card: ModelCard, name: str) -> str:
    """Store a model that was not trained here, and register it → `models:/NAME/VERSION`.

    Raises:
        InputError: the registry takes no such name.
    """
    client = connect()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            said = error.message.splitlines()[0]
            raise InputError(
                f"--name {name!r}: the registry does not take it ({said}); give letters, digits, "
                "spaces, - and _"
            ) from error
    experiment_id = mlflow.set_experiment(IMPORTED).experiment_id
    run = client.create_run(experiment_id, run_name=name, tags={"cfer.role": "import"})
    tracker = Tracker(run.info.run_id)
    tracker.log_figures(card.figures, 0)
    tracker.log_model(predictor, card)
    end_run(run.info.run_id, succeeded=True)
    version = mlflow.register_model(_model_uri(run), name)
    return f"models:/{name}/{version.version}"


def _model_uri(run: Run) -> str:
    return f"runs:/{run.info.run_id}/{MODEL_NAME}"


def role(run: Run) -> str | None:
    """`run`, `protocol`, `fold` (of a protocol), `sweep` or `import`."""
    return run.data.tags.get("cfer.role")


def is_experiment(name: str) -> bool:
    return MlflowClient().get_experiment_by_name(name) is not None


def download(run: Run, name: str) -> Path | None:
    """A file or folder of a run, on this disk; None where the run has none of this name."""
    try:
        return Path(MlflowClient().download_artifacts(run.info.run_id, name))
    except (MlflowException, OSError):
        return None


def find_run(name_or_id: str) -> Run:
    """The run of this id, or the newest finished one of this name.

    Raises:
        InputError: there is none.
    """
    runs = find_runs(name_or_id)
    if not runs:
        raise InputError(
            f"{name_or_id}: no finished run or experiment of this name in "
            f"{mlflow.get_tracking_uri()}; see `mlflow ui`, or set MLFLOW_TRACKING_URI to the "
            "store that has it"
        )
    return runs[0]


def find_runs(name_or_id: str) -> Sequence[Run]:
    """Finished runs of an experiment or of this name, newest first; or the run of this id."""
    client = MlflowClient()
    runs: Sequence[Run] = []
    experiment = client.get_experiment_by_name(name_or_id)
    if experiment is None and re.fullmatch(r"[0-9a-f]{32}", name_or_id):
        with contextlib.suppress(MlflowException):
            runs = [client.get_run(name_or_id)]
    else:
        experiments = client.search_experiments() if experiment is None else [experiment]
        quoted = name_or_id.replace("'", "''")
        named = "" if experiment is not None else f" and attributes.run_name = '{quoted}'"
        runs = client.search_runs(
            [e.experiment_id for e in experiments],
            f"status = 'FINISHED'{named}",
            max_results=50000,
        )
    return runs
