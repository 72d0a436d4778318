"""From nothing to the table of the built-in data, by one command."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.benchmark import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an MLflow store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_one_command_from_nothing_to_the_table_and_again(
    here: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dataset", "synthetic", "--out", "bench", "--quick", "--subjects", "4"]
    arguments += ["--identity", "dlib", "--epochs", "1", "--rows", "cross-entropy,min-min"]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert "4 runs, 2 at a time" in said
    table = (here / "bench" / "report" / "report.md").read_text()
    assert "| **cross-entropy** | " in table
    assert "| **min-min** | " in table
    assert (here / "bench" / "report" / "report.html").exists()
    assert main(arguments) == 0
    assert "4 of 4 runs are finished already" in capsys.readouterr().err
