"""The demo: every public command in turn, on a few drawn people."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import ray
from mlflow.tracking import MlflowClient

from cfer.cli import run
from cfer.data.shards import read_description, verify


def made_in(folder: Path) -> dict[Path, int]:
    """When each file that took time was written."""
    made = [file for part in ("videos", "shards", "runs") for file in (folder / part).rglob("*")]
    # The manifest is always written, and the extraction's log has a line more.
    files = [file for file in made if file.is_file() and file.suffix not in (".csv", ".log")]
    return {file: file.stat().st_mtime_ns for file in files}


def test_the_demo_leaves_everything_in_one_folder_and_repeats_nothing(
    ray_session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    loggers = [logging.getLogger(name) for name in (None, "cfer", "extract")]
    before = [({*logger.handlers}, logger.level, logger.propagate) for logger in loggers]
    assert run(["demo", "--out", "work", "--subjects", "4"]) == 0
    printed = capsys.readouterr().out
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        assert {*logger.handlers} <= handlers, "how a step logs is its own"
        assert (logger.level, logger.propagate) == (level, propagate)
    assert ray.is_initialized(), "it was there before"
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == [tmp_path / "work"]

    work = tmp_path / "work"
    assert verify(work / "shards") == []
    assert read_description(work / "shards").counts["clips"] == 28
    assert (work / "residuals.png").read_bytes().startswith(b"\x89PNG")
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo")
    assert Path(experiment.artifact_location.removeprefix("file://")).is_relative_to(work)
    (one,) = client.search_runs([experiment.experiment_id])
    assert one.info.status == "FINISHED"
    assert one.data.params["val_subjects"] == "S004"
    assert one.data.params["workers"] == "2"

    lines = printed.splitlines()
    commands = [line.split()[2] for line in lines if line.startswith("$ cfer ")]
    assert commands == ["draw", "extract", "train", "evaluate", "encode", "look", "predict"]
    # What a command prints stands below it.
    (evaluated,) = (n for n, line in enumerate(lines) if line.startswith("$ cfer evaluate"))
    table = lines[evaluated + 1]
    assert table.startswith("run ")
    assert "accuracy" in table
    assert "UAR" in table
    (predicted,) = (n for n, line in enumerate(lines) if line.startswith("$ cfer predict"))
    head, window = lines[predicted + 1].split(), lines[predicted + 2].split()
    assert head[:4] == ["from", "to", "face", "label"]
    assert len(head[4:]) == 7
    assert window[3] == head[4:][np.argmax([float(p) for p in window[4:]])]
    assert "Chance is 0.14" in printed
    assert "mlflow ui" in printed

    made = made_in(work)
    assert len(made) > 28 + 7
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run(["demo", "--out", "work", "--subjects", "4"]) == 0
    said = capsys.readouterr()
    assert "nothing to do" in said.err
    assert "is finished already" in said.err
    assert made_in(work) == made
    assert len(client.search_runs([experiment.experiment_id])) == 1
    again = said.out.splitlines()
    # The same but for the seconds.
    assert [line for line in again if "== " not in line] == [
        line for line in lines if "== " not in line
    ]
