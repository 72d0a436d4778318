"""The three commands that the project is known by, as they are typed, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY, ask, free_ports, is_open, kill_with_children, ray_head, wait_for
from mlflow.tracking import MlflowClient

from cfer.data.shards import read_description, verify

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"},
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "RAY_ADDRESS": "",
    "RAY_AUTH_MODE": "disabled",
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in people: drawn by whichever test is the first, and kept for the next."""
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture
def folder(tmp_path: Path, drawn: Path) -> Path:
    """A checkout with nothing in it but the program."""
    (tmp_path / "pipeline").symlink_to(REPOSITORY / "pipeline")
    (tmp_path / "drawn").symlink_to(drawn)
    return tmp_path


def type_in(folder: Path, command: str, **variables: str) -> None:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])


def check_extracted_and_trained(folder: Path) -> None:
    assert verify(folder / "shards") == []
    assert read_description(folder / "shards").counts["clips"] == 60 * 7
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("cfer").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["game"] == run.data.params["method"] == "min-min"
    assert float(run.data.params["lambda"]) > 0
    assert run.data.params["workers"] == "8"
    # A seventh would be chance.
    assert run.data.metrics["held_out/accuracy"] > 0.5


def test_on_one_machine(folder: Path) -> None:
    type_in(folder, "python pipeline/extract.py")
    type_in(folder, "python -m cfer.train --workers 8")
    check_extracted_and_trained(folder)
    check_that_it_is_shown(folder)


def check_that_it_is_shown(folder: Path) -> None:
    port, words = 5000, ["mlflow", "ui"]
    if is_open(port):  # somebody else's
        (port,) = free_ports(1)
        words += ["--port", str(port)]
    server = subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: is_open(port), server)
        status, page = ask(port, "/", method="GET")
        assert (status, b"MLflow" in page) == (200, True)
    finally:
        kill_with_children(server)


def test_through_ray_job_submit(folder: Path) -> None:
    with ray_head(folder) as address:
        submit = "ray job submit --"
        type_in(folder, f"{submit} python pipeline/extract.py", RAY_API_SERVER_ADDRESS=address)
        train = f"{submit} python -m cfer.train --workers 8"
        type_in(folder, train, RAY_API_SERVER_ADDRESS=address)
    check_extracted_and_trained(folder)
