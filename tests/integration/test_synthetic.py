"""The drawn faces, by the command and in several processes."""

from __future__ import annotations

from pathlib import Path

from helpers import run_module

from pipeline.datasets.drawing import DrawingSettings
from pipeline.datasets.synthetic import draw_dataset


def test_two_processes_draw_what_one_draws(tmp_path: Path) -> None:
    settings = DrawingSettings(picture_size=64, difficulty=0.3)
    draw_dataset(tmp_path / "one", 2, settings, ["happiness", "surprise"])
    done = run_module(
        *("cfer.cli", "draw", "--out", str(tmp_path / "two"), "--subjects", "2"),
        *("--workers", "2", "--picture-size", "64", "--difficulty", "0.3"),
        *("--classes", "happiness,surprise"),
    )
    assert done.returncode == 0, done.stderr
    assert "4 clips, 96 frames made now" in done.stderr
    one, two = (
        {str(f.relative_to(tmp_path / n)): f.read_bytes() for f in (tmp_path / n).rglob("*.*")}
        for n in ("one", "two")
    )
    assert one == two
