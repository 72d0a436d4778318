"""On a cluster of Ray: `ray job submit` of the extraction, and `serve deploy` of the service."""

from __future__ import annotations

import json
import os
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
    ray_head,
    shard_bytes,
    wait_for,
)

from cfer.predict.recognizer import Recognizer

TOKEN = "wonderful"


@pytest.fixture
def ray_cluster() -> Iterator[str]:
    with ray_head(REPOSITORY, CFER_TOKEN=TOKEN) as address:
        yield address


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
