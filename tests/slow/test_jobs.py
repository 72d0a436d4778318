"""On a cluster of Ray: `ray job submit` of the extraction, and `serve deploy` of the service."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import (
    EXTRACTION,
    REPOSITORY,
    ask,
    free_ports,
    is_open,
    kill_with_children,
    shard_bytes,
    wait_for,
)

from cfer.predict.recognizer import Recognizer

TOKEN = "wonderful"


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[str]:
    """A cluster as `ray start --head` makes it, with a dashboard for jobs; its address."""
    # Socket names below Ray's folder must be short.
    folder = Path("/tmp") / f"cfer-{os.getpid()}"
    ports = free_ports(4)
    names = (
        "--port",
        "--dashboard-port",
        "--dashboard-agent-listen-port",
        "--ray-client-server-port",
    )
    ray = str(Path(sys.executable).with_name("ray"))
    # A job's `python` is the one that is found where the cluster was started.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "RAY_ADDRESS": "",
        "RAY_AUTH_MODE": "disabled",
        "PATH": path,
        "CFER_TOKEN": TOKEN,
    }
    arguments = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}"]
        + ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: is_open(ports[1]) and is_open(ports[2]), head)
        yield f"http://127.0.0.1:{ports[1]}"
    finally:
        kill_with_children(head)
        shutil.rmtree(folder, ignore_errors=True)


def test_ray_job_submit(ray_cluster, checkout, six_videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ray")), "job", "submit"]
        + ["--address", ray_cluster, "--working-dir", ".", "--"]
        + ["python", "pipeline/extract.py", "--videos", str(six_videos), "--out", str(out)]
        + [*EXTRACTION],
        cwd=checkout,
        env={**os.environ, "RAY_ADDRESS": "", "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 clips, 18 frames" in done.stdout
    assert shard_bytes(out) == shard_bytes(undisturbed)


def test_the_service_is_deployed_on_a_cluster(
    ray_cluster: str, drawn_videos: Path, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    config = yaml.safe_load((REPOSITORY / "cluster" / "serve.yaml").read_text())
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    serve = str(Path(sys.executable).with_name("serve"))
    subprocess.run(
        [serve, "deploy", "--address", ray_cluster, str(tmp_path / "serve.yaml")], check=True
    )

    def status(path: str, body: bytes | None = None, token: str = TOKEN) -> int:
        return ask(port, path, body, token, "POST" if body else "GET")[0]

    wait_for(lambda: is_open(port) and status("/model") == 200)
    video = drawn_videos / "videos" / "S003" / "surprise_1.mp4"
    told, body = ask(port, "/predict", video.read_bytes(), TOKEN)
    assert told == 200, body
    (window,) = json.loads(body)["windows"]
    (wanted,) = Recognizer.from_pretrained().predict(video)
    assert window["label"] == wanted.label
    assert status("/look", video.read_bytes()) == 200
    assert status("/model", token="") == 401
    assert status("/predict", b"not a video") == 422
