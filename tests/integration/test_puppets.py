"""Photo puppets, by the command: in several processes, and stopped on the way."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY, run_module, wait_for
from painted import painted, write_person


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_person(painted(48), folder / "p1_03.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run_module(*command(photos, folder, "1"))
    assert done.returncode == 0, done.stderr
    assert f"{folder}: 8 clips, " in done.stderr
    return folder


def command(photos: Path, out: Path, workers: str) -> list[str]:
    return [
        *("cfer.cli", "puppets", "--photos", str(photos), "--out", str(out)),
        *("--clips-per-class", "1", "--size", "64", "--workers", workers),
    ]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Of all files but those that a killed process had begun."""
    files = (path for path in folder.rglob("*.*") if path.suffix != ".part")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_set_whose_making_was_killed_ends_as_if_it_had_not_been(
    photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", *command(photos, tmp_path, "1")],
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: len(list(tmp_path.rglob("*.mp4"))) >= 2, process)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    there = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    assert 2 <= len(there) < 8
    assert not (tmp_path / "manifest.csv").exists()
    done = run_module(*command(photos, tmp_path, "2"))
    assert done.returncode == 0, done.stderr
    assert f"{len(there)} of 8 clips are there already" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert bytes_of(tmp_path) == bytes_of(undisturbed)
