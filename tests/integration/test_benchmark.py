"""From archives to the table, by one command; and with one person left out at a time."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from cfer import tracking
from cfer.train import command as train
from pipeline.benchmark import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an MLflow store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_from_archives_to_the_table_and_one_person_left_out(
    here: Path, ray_session: None, drawn_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "downloads").mkdir()
    for actor in ("01", "02", "03"):
        with zipfile.ZipFile(f"downloads/Video_Speech_Actor_{actor}.zip", "w") as archive:
            for code, expression in (("08", "surprise"), ("03", "happiness")):
                name = f"Actor_{actor}/02-01-{code}-01-02-01-{actor}.mp4"
                video = drawn_videos / "videos" / f"S0{actor}" / f"{expression}_1.mp4"
                archive.write(video, name)
    arguments = ["--dataset", "ravdess", "--root", "downloads", "--out", "bench", "--quick"]
    arguments += ["--rows", "cross-entropy,min-min", "--epochs", "1", "--identity", "dlib"]
    assert main(arguments) == 0
    assert "6 clips" in capsys.readouterr().err
    assert main(arguments) == 0, "and again, of which nothing is left to do"
    assert "4 of 4 runs are finished already" in capsys.readouterr().err
    table = (here / "bench" / "report" / "report.md").read_text()
    assert table.startswith("# benchmark-ravdess-quick\n")
    assert "| **cross-entropy** | " in table
    assert "| **min-min** | " in table
    assert (here / "bench" / "report" / "report.html").exists()
    assert "2 runs a row (seed 0, fold 0 to seed 0, fold 1), 1 epochs" in table

    one_out = ["--data", "bench/shards", "--protocol", "loso", "--epochs", "1", "--run", "loso"]
    for seeds, count in (("1", 3), ("1,2", 6)):
        assert train.main([*one_out, "--seeds", seeds]) == 0
        (parent,) = (
            run for run in tracking.find_runs("cfer") if run.data.tags["cfer.role"] == "protocol"
        )
        # Seeds that come later count, too.
        assert parent.data.metrics["num_runs"] == count
        mean = parent.data.metrics["held_out/accuracy"]
        assert f"loso, {count} runs: accuracy {mean:.3f}" in capsys.readouterr().err
    assert parent.data.tags["cfer.command"].endswith("--folds loso --seeds 1,2")
