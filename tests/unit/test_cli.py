"""The command `cfer` as such, and how a demo begins."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from cfer.cli import run
from cfer.errors import InputError

COMMANDS = "demo predict look models serve encode report completion".split()


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command}" in said
        with pytest.raises(SystemExit) as end:
            run([command, "--help"])
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: cfer {command} ")


def test_a_command_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["paint"], ["models"], ["predict"]):
        with pytest.raises(SystemExit) as end:
            run(words)
        assert end.value.code == 2
        assert "usage: cfer" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, "window-gops", "subjects"):
        assert word in script


def test_too_few_people_for_a_demo(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--subjects 3: give 4 or more"):
        run(["demo", "--out", str(tmp_path / "x"), "--subjects", "3"])
    assert not (tmp_path / "x").exists()


def test_a_demo_whose_step_fails_stops_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("work/videos").mkdir(parents=True)
    Path("work/videos/settings.json").write_text(json.dumps({"another": "set"}))
    handlers, level = logging.root.handlers[:], logging.root.level
    assert run(["demo", "--out", "work", "--subjects", "4"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: --out videos: was drawn with other settings")
    *_, command, end = printed.out.splitlines()
    assert command == "$ python -m pipeline.datasets.synthetic --out videos --subjects 4"
    assert end == "cfer demo: stopped, since the command above ended with 2"
    assert not Path("work/shards").exists()
    assert Path.cwd() == tmp_path
    assert (logging.root.handlers, logging.root.level) == (handlers, level)
