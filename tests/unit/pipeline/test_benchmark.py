"""The benchmark's rows and settings, and the archives that it unpacks: without Ray."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import get_args

import pytest

from cfer.cli import run
from cfer.data.folds import ClipIndex
from cfer.errors import InputError
from cfer.options import parse
from cfer.train.command import PROTOCOLS
from cfer.train.config import METHODS, Game, config_of
from pipeline.benchmark import (
    CURVE,
    OPPONENTS,
    SEARCH,
    BenchmarkOptions,
    chosen_rows,
    data_rows,
    experiment_of,
    settings_of,
    unpacked,
)
from pipeline.datasets.readers import NAMES


@pytest.mark.parametrize("more", [[], ["--quick"], ["--search"], ["--curve"]])
def test_every_data_set_has_settings_that_can_be_trained(more: list[str]) -> None:
    names = ["synthetic", "puppets", *(name for name in NAMES if name in PROTOCOLS)]
    experiments = set()
    for name in names:
        options = parse(BenchmarkOptions, "", ["--dataset", name, "--out", "x", *more])
        settings, seeds = settings_of(options)
        config = config_of({**settings, "data": "x"})
        assert bool(config.folds) != (config.split == "column")
        of_protocol = "--quick" not in more and name in ("synthetic", "puppets", "afew")
        assert seeds == ([0, 1, 2] if of_protocol else [0])
        experiments.add(experiment_of(options))
    assert len(experiments) == len(names), "two data sets in one table"


def test_two_tables_at_once_are_refused() -> None:
    arguments = ["--dataset", "puppets", "--out", "x", "--search", "--curve"]
    with pytest.raises(InputError, match="--search, --curve: two tables; give one of the two"):
        experiment_of(parse(BenchmarkOptions, "", arguments))


@pytest.mark.parametrize(
    ("option", "least"), [("subjects", 1), ("epochs", 1), ("parallel", 0), ("max-failures", 0)]
)
def test_numbers_that_cannot_be_are_refused_before_the_work(
    option: str, least: int, tmp_path: Path
) -> None:
    arguments = ["benchmark", "--dataset", "synthetic", "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=f"--{option} {least - 1}: give {least} or more"):
        run([*arguments, f"--{option}", str(least - 1)])
    assert not (tmp_path / "out").exists()


def test_the_curve_sweeps_every_game_and_each_row_can_be_trained() -> None:
    configs = {row.name: config_of({**dict(row.training), "data": "x"}) for row in CURVE}
    for game in {*get_args(Game)} - {"identification"}:
        swept = [c.identity_weight for c in configs.values() if c.game == game and c.code_dim == 0]
        assert len(set(swept) - {0}) > 1, game
    assert {c.erase for c in configs.values()} > {0}


def test_every_method_is_a_row_and_names_are_unique() -> None:
    assert {row.name for row in OPPONENTS} > set(METHODS)
    for rows in (OPPONENTS, SEARCH, CURVE):
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
    assert names == {"gradient-reversal", "identification", "min-min+apex"}
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
