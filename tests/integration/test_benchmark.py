"""From a data set to the table by one command."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from test_datasets import write_video

from cfer import tracking, train
from cfer.config import METHODS, config_of
from cfer.data import ClipIndex
from cfer.errors import InputError
from cfer.train import PROTOCOLS
from pipeline.benchmark import (
    OPPONENTS,
    SEARCH,
    build_parser,
    chosen_rows,
    data_rows,
    experiment_of,
    main,
    settings_of,
    unpacked,
)
from pipeline.datasets.layout import NAMES


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


def test_from_archives_to_the_table_and_one_person_left_out(
    here: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "downloads").mkdir()
    for number, actor in enumerate(("01", "02", "03")):
        with zipfile.ZipFile(f"downloads/Video_Speech_Actor_{actor}.zip", "w") as archive:
            for code, expression in (("05", "anger"), ("03", "happiness")):
                name = f"Actor_{actor}/02-01-{code}-01-02-01-{actor}.mp4"
                write_video(here / "drawn" / name, number, expression)
                archive.write(here / "drawn" / name, name)
    arguments = ["--dataset", "ravdess", "--root", "downloads", "--out", "bench", "--quick"]
    arguments += ["--rows", "cross-entropy", "--epochs", "1", "--identity", "dlib"]
    assert main(arguments) == 0
    assert "6 clips" in capsys.readouterr().err
    table = (here / "bench" / "report" / "report.md").read_text()
    assert table.startswith("# benchmark-ravdess-quick\n")
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


@pytest.mark.parametrize("more", [[], ["--quick"], ["--search"]])
def test_every_data_set_has_settings_that_can_be_trained(more: list[str]) -> None:
    names = ["synthetic", *(name for name in NAMES if name in PROTOCOLS)]
    experiments = set()
    for name in names:
        options = build_parser().parse_args(["--dataset", name, "--out", "x", *more])
        settings, seeds = settings_of(options)
        config = config_of({**settings, "data": "x"})
        assert bool(config.folds) != (config.split == "column")
        of_protocol = "--quick" not in more and name in ("synthetic", "afew")
        assert seeds == ([0, 1, 2] if of_protocol else [0])
        experiments.add(experiment_of(options))
    assert len(experiments) == len(names), "two data sets in one table"


def test_every_method_is_a_row_and_names_are_unique() -> None:
    assert {row.name for row in OPPONENTS} > set(METHODS)
    for rows in (OPPONENTS, SEARCH):
        assert len({row.name for row in rows}) == len(rows)
        assert not any("," in row.name or "/" in row.name for row in rows)
    assert [row.name for row in chosen_rows(OPPONENTS, "min-max,min-min")] == ["min-min", "min-max"]
    with pytest.raises(InputError, match="no row max-max"):
        chosen_rows(OPPONENTS, "max-max")


def test_what_a_data_set_cannot_be_trained_for_is_left_out_with_its_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    index = ClipIndex(["a", "b"], [None, None], [0, 1], ["train", "val"], 0, 0)
    names = {row.name for row in OPPONENTS} - {row.name for row in data_rows(OPPONENTS, index)}
    assert names == {"gradient-reversal", "min-min+apex"}
    said = capsys.readouterr().err
    assert "left out: gradient-reversal (no clip has a subject)" in said
    assert "left out: min-min+apex (no clip has its apex annotated)" in said


def test_archives_are_unpacked_once(tmp_path: Path) -> None:
    root, out = tmp_path / "downloads", tmp_path / "out"
    root.mkdir()
    out.mkdir()
    for actor in ("01", "02"):
        with zipfile.ZipFile(root / f"Video_Speech_Actor_{actor}.ZIP", "w") as archive:
            archive.writestr(f"Actor_{actor}/clip.mp4", actor)
    assert unpacked(root, out) == out
    assert (out / "Actor_02" / "clip.mp4").read_text() == "02"
    (out / "Actor_01" / "clip.mp4").unlink()
    unpacked(root, out)
    assert not (out / "Actor_01" / "clip.mp4").exists(), "it was unpacked a second time"
    assert unpacked(out, tmp_path) == out, "a folder without archives is the data set itself"

    with zipfile.ZipFile(root / "z.zip", "w") as archive:
        archive.writestr("../outside.txt", "x")
    with pytest.raises(InputError, match=r"z\.zip: \.\./outside\.txt would be written outside"):
        unpacked(root, out)
    assert not (tmp_path / "outside.txt").exists()
    with zipfile.ZipFile(root / "z.zip", "w") as archive:
        archive.writestr("Actor_03/clip.mp4", "03")
    locked = bytearray((root / "z.zip").read_bytes())
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        locked[locked.find(header) + flags] |= 1
    (root / "z.zip").write_bytes(locked)
    with pytest.raises(InputError, match=r"z\.zip: .*encrypted.*; unpack it yourself"):
        unpacked(root, out)
    (root / "z.zip").write_bytes(b"PK broken")
    with pytest.raises(InputError, match=r"z\.zip: .*download it again"):
        unpacked(root, out)
    with pytest.raises(InputError, match="no such folder"):
        unpacked(tmp_path / "nowhere", out)
