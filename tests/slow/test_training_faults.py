"""Faults while a run trains: MLflow's server away, workers killed, a failure that stays; and a run
of which all is on S3, killed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow.fs as pafs
import pytest
import torch
from helpers import REPOSITORY, free_ports, is_open, kill_with_children, wait_for
from mlflow.tracking import MlflowClient

from cfer.data.storage import Folder
from cfer.errors import WorkerError
from cfer.predict.recognizer import Recognizer
from cfer.train.checkpoint import SEAL_NAME, STATE_NAME, newest_checkpoint, read_results
from cfer.train.command import main

# Of a tenth of a second: whoever waits for one has some seconds before the last.
EPOCHS = 40
OPTIONS = (
    *("--epochs", str(EPOCHS), "--width", "8", "--code-dim", "32", "--batch-size", "4"),
    *("--lambda", "0.5", "--dropout", "0.2"),
)


def epoch_of(location: str) -> int:
    checkpoint = newest_checkpoint(location)
    return 0 if checkpoint is None else int(checkpoint.rsplit("-", 1)[1])


class Server:
    """`mlflow server` on loopback: killed and started again, on the same store."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self.artifacts = folder / "artifacts"
        self._store = f"sqlite:///{folder / 'mlflow.db'}"
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(self.port)),
                *("--backend-store-uri", self._store),
                *("--artifacts-destination", str(self.artifacts)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=self._log.open("wb"),
        )
        wait_for(lambda: is_open(self.port) or self._process.poll() is not None)
        assert self._process.poll() is None, self._log.read_text()

    def kill(self) -> None:
        if self._process is not None:
            kill_with_children(self._process)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def train(name: str, shards: Path, storage: Path, meanwhile: Callable[[], None]) -> int:
    """A run on two workers, and what happens in the meantime."""
    errors: list[BaseException] = []

    def happen() -> None:
        try:
            meanwhile()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=happen, daemon=True)
    thread.start()
    status = main(
        [
            *("--data", str(shards), "--storage", str(storage), "--run", name, *OPTIONS),
            *("--workers", "2"),
        ]
    )
    thread.join()
    assert not errors, errors
    return status


def training_workers() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE
        and process.cmdline()
        and process.cmdline()[0].startswith("ray::RayTrainWorker")
    ]


@contextmanager
def halted() -> Iterator[list[psutil.Process]]:
    """The workers, none of which gets on meanwhile: what is done is done in the middle of a run."""
    workers = training_workers()
    for worker in workers:
        worker.suspend()
    try:
        yield workers
    finally:
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.resume()


@pytest.fixture(scope="module")
def outlived(
    server: Server, storage: Path, ray_session: None, drawn_shards: Path
) -> tuple[str, int]:
    """A run in three outages of the server → its id in MLflow, and its epoch at the second."""
    location = str(storage / "outlived")
    epochs = []

    def outages() -> None:
        server.start()  # the run is to be made in it meanwhile
        wait_for(lambda: epoch_of(location) >= 2)
        with halted():
            server.kill()
            epochs.append(epoch_of(location))
        wait_for(lambda: epoch_of(location) == EPOCHS)
        server.start()
        wait_for(lambda: any(server.artifacts.rglob("confusion.png")))
        server.kill()
        server.start()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        assert train("outlived", drawn_shards, storage, outages) == 0
    results = read_results(location)
    assert results is not None
    return results.mlflow_run_id, epochs[0]


def history_of(folder: Path) -> list[dict[str, float]]:
    state = torch.load(folder / f"epoch-{EPOCHS:05d}" / STATE_NAME, weights_only=True)
    return state["history"]


def assert_every_epoch_is_there_once(
    client: MlflowClient, run_id: str, history: list[dict[str, float]]
) -> None:
    for name in history[0]:
        there = client.get_metric_history(run_id, name)
        assert sorted(metric.step for metric in there) == list(range(1, EPOCHS + 1)), name
        for metric in there:
            assert metric.value == history[metric.step - 1][name], name


def test_a_run_outlives_outages_of_mlflow(
    outlived: tuple[str, int], server: Server, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its beginning, between its epochs, and while its artifacts are sent."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run_id, epoch = outlived
    assert 2 <= epoch < EPOCHS - 2, "the server was not away in the middle of it"
    client = MlflowClient(server.uri)
    assert_every_epoch_is_there_once(client, run_id, history_of(storage / "outlived"))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    results = read_results(str(storage / "outlived"))
    assert results is not None
    for name, value in results.figures.items():
        assert run.data.metrics[name] == value
    calibrated = client.get_metric_history(run_id, "calibration/ece_after")
    assert [metric.step for metric in calibrated] == [EPOCHS]
    folder = Path(client.download_artifacts(run_id, ""))
    for name in ("confusion.png", "curves.png", "embedding.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (folder / "predictions").iterdir()} == {
        "train.npz",
        "held_out.npz",
    }
    assert Recognizer.from_pretrained(run_id).card.figures == results.figures


def test_killed_workers_change_nothing(
    outlived: tuple[str, int],
    server: Server,
    storage: Path,
    drawn_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One is killed within an epoch, and after some more epochs another one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    location = str(storage / "killed")

    def kills() -> None:
        epoch = 0
        for which in (-1, 0):
            wait_for(lambda least=epoch + 2: epoch_of(location) >= least)
            with halted() as workers:
                assert len(workers) == 2
                epoch = epoch_of(location)
                assert epoch < EPOCHS - 2, "it comes too late"
                workers[which].kill()

    assert train("killed", drawn_shards, storage, kills) == 0
    assert capfd.readouterr().err.count("going on from the last checkpoint") == 2
    first, second = (history_of(storage / name) for name in ("outlived", "killed"))
    for undisturbed, disturbed in zip(first, second, strict=True):
        timeless = set(undisturbed) - {"time/epoch_seconds"}
        np.testing.assert_equal(
            {name: disturbed[name] for name in timeless},
            {name: undisturbed[name] for name in timeless},
        )
    results = [read_results(str(storage / name)) for name in ("outlived", "killed")]
    for name, value in results[0].figures.items():
        if not name.startswith("time/"):
            assert results[1].figures[name] == pytest.approx(value, abs=1e-6), name
    assert results[0].confusion == results[1].confusion
    assert_every_epoch_is_there_once(MlflowClient(server.uri), results[1].mlflow_run_id, second)


def test_a_failure_that_stays_ends_the_run(
    outlived: tuple[str, int],
    server: Server,
    storage: Path,
    drawn_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A checkpoint that can't be loaded, though it is sealed."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run = tmp_path / "outlived"
    shutil.copytree(storage / "outlived", run)
    (run / "results.json").unlink()
    checkpoint = run / f"epoch-{EPOCHS:05d}"
    (checkpoint / STATE_NAME).write_bytes(b"not a state")
    seal = {"epoch": EPOCHS, "sha256": hashlib.sha256(b"not a state").hexdigest()}
    (checkpoint / SEAL_NAME).write_text(json.dumps(seal))
    with pytest.raises(WorkerError, match=rf"after epoch-{EPOCHS:05d}: Unp") as end:
        train("outlived", drawn_shards, tmp_path, lambda: None)
    assert str(end.value).startswith("training failed 2 times ")
    assert "in restore" in end.value.traceback
    assert "Error" not in capfd.readouterr().out
    assert MlflowClient(server.uri).get_run(outlived[0]).info.status == "FAILED"


def test_a_run_on_s3_goes_on(
    s3_bucket: str,
    drawn_shards: Path,
    ray_session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Shards, checkpoints and MLflow's artifacts are there; the whole family is killed."""
    bucket, name = pafs.FileSystem.from_uri(s3_bucket)
    pafs.copy_files(str(drawn_shards), f"{name}/shards", destination_filesystem=bucket)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowClient(store).create_experiment("cfer", artifact_location=f"{s3_bucket}/mlflow")
    location = f"{s3_bucket}/runs/far"
    arguments = [
        *("--data", f"{s3_bucket}/shards", "--storage", f"{s3_bucket}/runs", "--run", "far"),
        *OPTIONS,
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    killed = subprocess.Popen([sys.executable, "-m", "cfer.train", *arguments])
    try:
        wait_for(lambda: epoch_of(location) >= 2, killed)
    finally:
        if killed.poll() is None:
            kill_with_children(killed)
    assert 2 <= epoch_of(location) < EPOCHS, "it comes too late"
    assert not Folder(location).exists("results.json")

    assert main(arguments) == 0
    assert "going on from its last checkpoint" in capfd.readouterr().err
    results = read_results(location)
    assert results is not None
    client = MlflowClient(store)
    losses = client.get_metric_history(results.mlflow_run_id, "train/loss")
    assert sorted(metric.step for metric in losses) == list(range(1, EPOCHS + 1))
    assert not (tmp_path / "mlruns").exists()
    selector = pafs.FileSelector(f"{name}/mlflow", recursive=True)
    there = {info.base_name for info in bucket.get_file_info(selector)}
    assert {"confusion.png", "held_out.npz", "MLmodel", "model.safetensors"} <= there
