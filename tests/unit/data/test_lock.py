"""A folder has one owner: the second job says so, and touches nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import EXTRACTION

from cfer.data.lock import owned
from cfer.data.storage import Folder
from cfer.errors import InputError
from cfer.train.command import main as train
from pipeline.extract import main as extract

BUSY = "another job is at work in it; wait for its end, or give another"


def test_the_second_is_refused_and_the_next_is_not(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "out")
    for _ in range(2):
        with owned(folder, "--out"):
            folder.write("a", b"1")
            with pytest.raises(InputError, match=f"{BUSY} --out"), owned(folder, "--out"):
                pytest.fail("two owners")
            with owned(Folder(tmp_path / "other"), "--out"):
                pass
    assert folder.names() == ["a"]
    assert os.listdir(tmp_path) == ["out"], "what nothing was written to is not there"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = Folder(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="out: cannot be written"), owned(folder, "--out"):
        pytest.fail("it is no folder")


def test_a_second_extraction_leaves_the_first_ones_files(
    drawn_videos: Path, tmp_path: Path
) -> None:
    out = Folder(tmp_path / "shards")
    with owned(out, "--out"):
        out.write("dataset.json", b"{}")
        out.write("working-1", b"")
        with pytest.raises(InputError, match=f"shards: {BUSY} --out"):
            extract(["--videos", str(drawn_videos / "videos"), "--out", out.location, *EXTRACTION])
        assert {"dataset.json", "working-1"} <= set(out.names())


@pytest.mark.parametrize("options", [[], ["--folds", "2"]])
def test_a_second_training_leaves_the_first_ones_checkpoints(
    drawn_shards: Path, tmp_path: Path, options: list[str]
) -> None:
    run = Folder(tmp_path / "runs" / "first")
    with owned(run, "--run"):
        with pytest.raises(InputError, match=f"first: {BUSY} --run"):
            train(
                ["--data", str(drawn_shards), "--storage", str(tmp_path / "runs"), "--run", "first"]
                + options
            )
        assert run.names() == [".owner"]
