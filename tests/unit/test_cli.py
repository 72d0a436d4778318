"""The command `cfer` as such, and how a demo begins."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cfer.cli import COMMANDS, run
from cfer.errors import InputError
from cfer.outputs import check_output, check_output_folder

HEAVY = set(
    "tqdm filelock jinja2 tenacity torch ray mlflow matplotlib sklearn pyarrow fastapi".split()
)


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"• {name} " in said
        assert command.help in said


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_comes_before_anything_heavy_is_imported(name: str) -> None:
    code = (
        "import sys\nfrom cfer.cli import run\n"
        "try: run(sys.argv[1:])\nexcept SystemExit as end: status = end.code\n"
        f"print(sorted({HEAVY} & sys.modules.keys()), status)"
    )
    words = [name, "--help"] if name else ["--help"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"usage: {f'cfer {name}'.strip()} ")
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_a_command_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in (
        ([], "Missing subcommand"),
        (["paint"], "paint"),
        (["models"], "Missing subcommand"),
        (["look", "x"], "PICTURE"),
        (["predict", "x", "--modle", "y"], "--modle"),
    ):
        with pytest.raises(SystemExit) as end:
            run(words)
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert named in said
        assert re.search(r"cfer[ a-z]* --help", said)
    with pytest.raises(InputError, match="no source: give a video"):
        run(["predict"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["--tyro-print-completion", shell])
    assert not end.value.code
    script = capsys.readouterr().out
    for word in (*COMMANDS, "window-seconds", "subjects", "batch-size", "gop-size"):
        assert word in script
    for refused in ("config.data", "settings.gop-size", "no-json"):
        assert refused not in script


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
    assert printed.err.startswith("error: --out videos: was made with other settings")
    *_, command, end = printed.out.splitlines()
    assert command == "$ cfer draw --out videos --subjects 4"
    assert end == "cfer demo: stopped, since the command above ended with 2"
    assert not Path("work/shards").exists()
    assert Path.cwd() == tmp_path
    assert (logging.root.handlers, logging.root.level) == (handlers, level)


# ---- what can be known before the work -----------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is opened."""

    def fail(*_: object) -> None:
        pytest.fail("the work has begun")

    monkeypatch.setattr("cfer.predict.models.read_model", fail)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict VIDEO --csv /proc/x.csv", "/proc/x.csv: cannot be written ("),
        ("predict VIDEO --csv MISSING/x.csv", "MISSING/x.csv: there is no folder MISSING; make it"),
        ("predict VIDEO --csv FOLDER", "FOLDER: cannot be written (Is a directory)"),
        ("predict VIDEO --plot /proc/x.png", "/proc/x.png: cannot be written ("),
        ("predict VIDEO --plot FOLDER/x.jpg", "FOLDER/x.jpg: give a file that ends in .png"),
        ("predict VIDEO --annotate /proc/x.mp4", "/proc/x.mp4: cannot be written ("),
        ("look VIDEO /proc/x.png", "/proc/x.png: cannot be written ("),
        ("look VIDEO FOLDER/x.pdf", "FOLDER/x.pdf: give a file that ends in .png"),
        ("encode VIDEO /proc/x.mp4", "/proc/x.mp4: cannot be written ("),
        ("models export default /proc/x.safetensors", "/proc/x.safetensors: cannot be written ("),
        ("report any --out /proc/x", "/proc/x: cannot be written ("),
        ("demo --out /proc/x", "/proc/x: cannot be written ("),
    ],
)
def test_an_output_that_cannot_be_written(
    drawn_videos: Path, tmp_path: Path, no_work: None, command: str, message: str
) -> None:
    names = {
        "VIDEO": str(drawn_videos / "videos" / "S003" / "surprise_1.mp4"),
        "MISSING": str(tmp_path / "missing"),
        "FOLDER": str(tmp_path),
    }
    for name, value in names.items():
        command, message = command.replace(name, value), message.replace(name, value)
    with pytest.raises(InputError, match=re.escape(message)):
        run(command.split())
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_there_is_not_touched_by_the_look_at_it(tmp_path: Path) -> None:
    check_output(tmp_path / "new.csv", ".csv")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.csv").write_bytes(b"old")
    check_output(tmp_path / "old.csv")
    assert (tmp_path / "old.csv").read_bytes() == b"old"
    check_output_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="-: standard input is closed"):
        run(["predict", "-"])


def test_a_store_that_mlflow_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}")
    with pytest.raises(InputError, match=r"MLFLOW_TRACKING_URI=file://\S+: .*; give a database"):
        run(["models", "list"])


# ---- names that are no text ----------------------------------------------------------------------


def test_a_name_that_is_not_utf8_is_predicted_and_told(
    drawn_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = drawn_videos / "videos" / "S003" / "surprise_1.mp4"
    (tmp_path / "videos").mkdir()
    strange = os.fsencode(tmp_path / "videos") + b"/a\xff.mp4"
    Path(os.fsdecode(strange)).write_bytes(video.read_bytes())
    (tmp_path / "videos" / "b.mp4").write_bytes(video.read_bytes())
    assert run(["predict", str(tmp_path / "videos"), "--csv", str(tmp_path / "x.csv")]) == 0
    rows = (tmp_path / "x.csv").read_text().splitlines()
    assert [row.rsplit("/", 1)[1].split(",")[0] for row in rows[1:]] == ["a\\xff.mp4", "b.mp4"]
