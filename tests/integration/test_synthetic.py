"""The drawn faces, by the command and in several processes."""

from __future__ import annotations

from pathlib import Path

from helpers import run_module


def test_two_processes_draw_what_one_draws(drawn_videos: Path, tmp_path: Path) -> None:
    """And that is what tests/fixtures/make.py drew."""
    options = "--subjects 2 --workers 2 --picture-size 64 --difficulty 0.3"
    done = run_module(
        *("pipeline.datasets.synthetic", "--out", str(tmp_path / "set"), *options.split()),
        *("--classes", "happiness,surprise"),
    )
    assert done.returncode == 0, done.stderr
    assert "4 clips of 2 subjects, 96 frames drawn now" in done.stderr
    for name in ("S001/happiness_1.mp4", "S002/surprise_1.mp4"):
        drawn = tmp_path / "set" / "videos" / name
        assert drawn.read_bytes() == (drawn_videos / "videos" / name).read_bytes()
