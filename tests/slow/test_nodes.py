"""Several machines: extraction and training on a Ray cluster of three nodes, killed and not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
import torch
from helpers import EXTRACTION, MOST_SECONDS, shard_bytes, wait_for
from nodes import Cluster, Forbidden, Machine, Network, TrackingServer

from cfer.codec import Bitstream
from cfer.data.inputs import Input
from cfer.data.shards import read_clips, verify
from cfer.train.checkpoint import STATE_NAME, newest_checkpoint, read_results
from cfer.train.command import main


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    try:
        network = Network()
    except Forbidden as error:
        pytest.skip(f"no machines can be made on this one: {error}")
    try:
        yield network
    finally:
        network.close()


@pytest.fixture(scope="module")
def tracking_server(network: Network) -> TrackingServer:
    """Starts before the cluster does, and is waited for by the test that needs it."""
    return TrackingServer(network)


@pytest.fixture(scope="module")
def started_cluster(network: Network, tracking_server: TrackingServer) -> Cluster:
    return Cluster(network)


@pytest.fixture
def cluster(started_cluster: Cluster) -> Cluster:
    """Of three nodes, whatever the test before has done to them."""
    started_cluster.complete()
    return started_cluster


def extraction(videos: Path, out: Path, *options: str) -> list[str]:
    paths = ["--videos", str(videos), "--out", str(out)]
    return ["python", "pipeline/extract.py", *paths, *EXTRACTION, *options]


def ended(job: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status of a submitted job, and its log."""
    try:
        said, _ = job.communicate(timeout=MOST_SECONDS)
    finally:
        job.kill()
    return job.returncode, said


def check_against(undisturbed: Path, out: Path) -> None:
    assert verify(out) == []
    clip_ids = [clip.clip_id for clip in read_clips(out)]
    assert clip_ids == [clip.clip_id for clip in read_clips(undisturbed)]
    assert len(set(clip_ids)) == 6
    assert shard_bytes(out) == shard_bytes(undisturbed)


def test_extraction_works_on_several_nodes(cluster, checkout, six_videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    status, said = ended(cluster.submit(checkout, *extraction(six_videos, out, "--actors", "3")))
    assert status == 0, said
    check_against(undisturbed, out)
    tasks = cluster.listed("tasks", "type=ACTOR_TASK", "state=FINISHED")
    places = {task["node_id"] for task in tasks if "MapWorker" in task["name"]}
    assert len(places) >= 2, said


def map_workers(*nodes: Machine) -> list[tuple[Machine, psutil.Process]]:
    """The processes that work at shards, and where each of them is."""
    return [(node, worker) for node in nodes for worker in node.processes("MapWorker")]


@contextmanager
def halted(workers: list[tuple[Machine, psutil.Process]]) -> Iterator[None]:
    """Shards are small: what is found of their workers still holds when something is done."""
    for _, worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.suspend()
    try:
        yield
    finally:
        for _, worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.resume()


def is_at_work(worker: psutil.Process) -> bool:
    """Ray's processes are called by what they are doing."""
    try:
        return ".submit" in " ".join(worker.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_a_node_that_dies_costs_no_clip(cluster, checkout, six_videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    job = cluster.submit(checkout, *extraction(six_videos, out, "--actors", "3"))

    workers: list[tuple[Machine, psutil.Process]] = []

    def the_workers_are_there() -> bool:
        workers[:] = map_workers(*cluster.workers, cluster.head)
        return len(workers) >= 3

    def a_node_is_killed_at_work() -> bool:
        # Halted at every look, they would not get so far as to work on a slow machine.
        if not list(out.glob("working-*.json")):
            return False
        with halted(workers):
            busy = [node for node, worker in workers if is_at_work(worker)]
            busy = [node for node in busy if node is not cluster.head]
            if busy:
                busy[0].kill()
                assert len(list(out.glob("shard-*.json"))) < 3, "it comes too late"
        if not busy:
            the_workers_are_there()  # some may have come meanwhile
        return bool(busy)

    wait_for(the_workers_are_there, job)
    wait_for(a_node_is_killed_at_work, job)
    status, said = ended(job)
    assert status == 0, said
    check_against(undisturbed, out)


def test_a_driver_that_dies_is_started_again(cluster, checkout, six_videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    job = cluster.submit(checkout, *extraction(six_videos, out))
    workers = []

    def the_workers_are_there() -> bool:
        workers[:] = map_workers(*cluster.workers, cluster.head)
        return len(workers) == 2

    wait_for(the_workers_are_there, job)
    drivers = cluster.head.processes("pipeline/extract.py", str(out))
    assert drivers
    wait_for(lambda: list(out.glob("shard-*.json")), job)
    with halted(workers):
        for process in [*drivers, *(worker for _, worker in workers)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    status, said = ended(job)
    assert status != 0, said
    assert not (out / "dataset.json").exists()
    finished = {file: file.stat().st_mtime_ns for file in out.glob("shard-*.json")}
    assert 0 < len(finished) < 3

    status, said = ended(cluster.submit(checkout, *extraction(six_videos, out)))
    assert status == 0, said
    assert f"of which {len(finished)} are done already" in said
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    check_against(undisturbed, out)


EPOCHS = 6
TRAINING = (
    *(
        "--workers",
        "3",
        "--epochs",
        str(EPOCHS),
        "--width",
        "8",
        "--code-dim",
        "32",
        "--batch-size",
        "6",
    ),
    *("--lambda", "0.5", "--mu", "0.2", "--run", "three"),
)
# What the server holds of a run, as another machine sees it.
LOOK = """
import json, sys
import mlflow, numpy
from mlflow.tracking import MlflowClient

run_id, clips, probabilities = sys.argv[1:]
client = MlflowClient()
run = client.get_run(run_id)
curves = {
    name: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
    for name in run.data.metrics
}
folders = ("", "predictions")
files = [file.path for folder in folders for file in client.list_artifacts(run_id, folder)]
model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
numpy.save(probabilities, model.predict(numpy.load(clips)))
json.dump({"status": run.info.status, "curves": curves, "files": files}, sys.stdout)
"""


@pytest.fixture(scope="module")
def trained_on_one(drawn_shards, ray_session, tmp_path_factory) -> tuple[Path, str]:
    """The run's folder after three workers on this machine, and its MLflow store."""
    folder = tmp_path_factory.mktemp("one")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        patch.chdir(folder)  # the model's files go to ./mlruns
        arguments = ["--data", str(drawn_shards), *TRAINING, "--storage", str(folder)]
        assert main(arguments) == 0
    return folder / "three", store


@pytest.fixture
def tracking_uri(tracking_server: TrackingServer) -> str:
    tracking_server.wait()
    return tracking_server.uri


def training(shards: Path, storage: Path) -> list[str]:
    folders = ["--data", str(shards), "--storage", str(storage)]
    return ["python", "-m", "cfer.train", *folders, *TRAINING]


def curves_of(run: Path) -> dict[str, list[float]]:
    """Every figure of every epoch, from the last checkpoint; but what the clock says."""
    (checkpoint,) = run.glob("epoch-*")
    history = torch.load(checkpoint / STATE_NAME, weights_only=True)["history"]
    names = [name for name in history[0] if not name.startswith("time/")]
    return {name: [figures[name] for figures in history] for name in names}


def check_curves(
    curves: Mapping[str, Sequence[float]],
    expected: Mapping[str, Sequence[float]],
    tolerance: float = 1e-5,
) -> None:
    assert curves.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(
            curves[name], values, rtol=tolerance, atol=tolerance, err_msg=name
        )


def test_training_on_several_nodes_equals_training_on_one(
    cluster, tracking_uri, checkout, drawn_shards, trained_on_one, tmp_path
):
    status, said = ended(
        cluster.submit(
            checkout, *training(drawn_shards, tmp_path), MLFLOW_TRACKING_URI=tracking_uri
        )
    )
    assert status == 0, said
    actors = cluster.listed("actors", "class_name=RayTrainWorker")
    assert len(actors) == 3
    assert len({actor["node_id"] for actor in actors}) >= 2
    folder, store = trained_on_one
    expected = curves_of(folder)
    check_curves(curves_of(tmp_path / "three"), expected)

    clips = np.stack(
        [
            Input().read(Bitstream(clip.bitstream, clip.clip_id), range(2))
            for clip, _ in zip(read_clips(drawn_shards), range(5), strict=False)
        ]
    )
    np.save(tmp_path / "clips.npy", clips)
    results = read_results(str(tmp_path / "three"))
    done = cluster.client.run(
        *(sys.executable, "-c", LOOK, results.mlflow_run_id),
        *(str(tmp_path / "clips.npy"), str(tmp_path / "probabilities.npy")),
        MLFLOW_TRACKING_URI=tracking_uri,
    )
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout)
    assert held["status"] == "FINISHED"
    assert {"confusion.png", "curves.png", "embedding.png"} <= set(held["files"])
    assert {"predictions/train.npz", "predictions/held_out.npz"} <= set(held["files"])
    for name in expected:
        assert [step for step, _ in held["curves"][name]] == list(range(1, EPOCHS + 1))
    check_curves(
        {name: [value for _, value in held["curves"][name]] for name in expected}, expected
    )
    mlflow.set_tracking_uri(store)
    model = mlflow.pyfunc.load_model(f"runs:/{read_results(str(folder)).mlflow_run_id}/model")
    np.testing.assert_allclose(
        np.load(tmp_path / "probabilities.npy"), model.predict(clips), atol=1e-5
    )


def test_training_goes_on_when_a_node_dies(
    cluster, tracking_uri, checkout, drawn_shards, trained_on_one, tmp_path
):
    """Another takes its place; the workers go on from the last checkpoint."""
    job = cluster.submit(
        checkout, *training(drawn_shards, tmp_path), MLFLOW_TRACKING_URI=tracking_uri
    )
    run = tmp_path / "three"
    busy = []

    def the_workers_are_there() -> bool:
        nodes = [*cluster.workers, cluster.head]
        found = [node for node in nodes for _ in node.processes("RayTrainWorker")]
        busy[:] = [node for node in found if node is not cluster.head]
        return len(found) == 3

    wait_for(the_workers_are_there, job)
    wait_for(lambda: newest_checkpoint(str(run)), job)
    busy[0].kill()
    assert not (run / f"epoch-{EPOCHS:05d}").exists(), "it comes too late"
    assert read_results(str(run)) is None
    cluster.complete()
    status, said = ended(job)
    assert status == 0, said
    # DDP sorts the gradients into its buckets anew, and with them changes the order in which Gloo
    # adds those of three workers: they round otherwise. The losses are about 2, of the same clips.
    check_curves(curves_of(run), curves_of(trained_on_one[0]), tolerance=2e-4)
