"""The demo: every public command in turn, on a few drawn people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import run_module
from mlflow.tracking import MlflowClient

from cfer.shards import read_description, verify


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    done = run_module("cfer.cli", "demo", "--out", str(folder / "work"), "--subjects", "4")
    (folder / "output.txt").write_text(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_demo_leaves_everything_in_one_folder(demo_folder):
    work = demo_folder / "work"
    assert verify(work / "shards") == []
    assert read_description(work / "shards").counts["clips"] == 28
    assert (work / "residuals.png").read_bytes().startswith(b"\x89PNG")
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        assert run.data.params["val_subjects"] == "S004"
        assert run.data.params["workers"] == "2"
    assert Path(experiment.artifact_location.removeprefix("file://")).is_relative_to(work)


def test_the_demo_ends_with_a_table_and_where_to_look(demo_folder):
    output = (demo_folder / "output.txt").read_text()
    table = next(line for line in output.splitlines() if line.startswith("run "))
    assert "accuracy" in table
    assert "UAR" in table
    assert "Chance is 0.14" in output
    lines = output.splitlines()
    (head,) = (n for n, line in enumerate(lines) if line.split()[:2] == ["from", "to"])
    _, _, _, label, *probabilities = lines[head + 1].split()
    classes = lines[head].split()[4:]
    assert len(classes) == 7
    assert label == classes[np.argmax([float(p) for p in probabilities])]
    assert "mlflow ui" in output


def test_the_demo_again_repeats_nothing(demo_folder):
    videos = sorted((demo_folder / "work" / "videos").rglob("*.mp4"))
    before = [video.stat().st_mtime_ns for video in videos]
    done = run_module("cfer.cli", "demo", "--out", str(demo_folder / "work"), "--subjects", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to do" in done.stderr
    assert "is finished already" in done.stderr
    assert [video.stat().st_mtime_ns for video in videos] == before


def test_too_few_people_for_a_demo(tmp_path):
    done = run_module("cfer.cli", "demo", "--out", str(tmp_path / "x"), "--subjects", "3")
    assert done.returncode == 2
    assert "--subjects 3: give 4 or more" in done.stderr


def test_a_demo_whose_step_fails_stops_there(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "settings.json").write_text(json.dumps({"another": "set"}))
    done = run_module("cfer.cli", "demo", "--out", str(tmp_path), "--subjects", "4")
    assert done.returncode == 2
    assert "stopped" in done.stdout
    assert not (tmp_path / "shards").exists()


def test_the_shell_completes_commands_and_options():
    command = Path(sys.executable).with_name("cfer")
    script = (
        f'PATH="{command.parent}:$PATH"; eval "$(cfer completion bash)"; '
        "COMP_WORDS=(cfer predict --fa); COMP_CWORD=2; "
        "$(complete -p cfer | sed 's/.*-F \\([^ ]*\\).*/\\1/') cfer --fa predict; "
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["--faces"], done.stderr


def test_the_command_is_installed():
    command = Path(sys.executable).with_name("cfer")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert "predict" in done.stdout
