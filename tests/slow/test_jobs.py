"""The extraction through Ray Jobs: `ray job submit`, as the README has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import EXTRACTION, free_ports, is_open, kill_with_children, shard_bytes, wait_for


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
    environment = {**os.environ, "RAY_ADDRESS": "", "RAY_AUTH_MODE": "disabled", "PATH": path}
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
