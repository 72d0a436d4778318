"""Prediction with the model of a run, and out of a pipe while it is written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import as_mpegts, windows_of

from cfer.cli import run
from cfer.errors import InputError
from cfer.predict.recognizer import Recognizer
from cfer.tracking import find_run


def test_a_runs_model_is_found_by_its_name_and_by_its_id(
    in_trained_store, drawn_shards: Path, drawn_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it says of shards, which it sees in one view, nearly what it says of their videos."""
    name = in_trained_store.name
    folder = drawn_videos / "videos" / "S003"
    assert run(["predict", str(folder), "--model", name, "--json"]) == 0
    windows = windows_of(capsys.readouterr().out)
    assert [Path(w["source"]).stem for w in windows] == ["happiness_1", "surprise_1"]
    recognizer = Recognizer.from_pretrained(find_run(name).info.run_id)
    assert recognizer.card.classes == ("happiness", "surprise")
    of_shards = {p.source: p for p in recognizer.predict_shards(drawn_shards)}
    for window in windows:
        wanted = of_shards[f"S003_{Path(window['source']).stem}"]
        assert window["label"] == wanted.label
        assert window["probabilities"] == pytest.approx(wanted.probabilities, abs=0.2)
    with pytest.raises(InputError, match="nosuchrun: no finished run or experiment of this name"):
        run(["predict", str(folder), "--model", "nosuchrun"])


def predicting(*options: str) -> subprocess.Popen[bytes]:
    """`cfer predict` of what will be piped in."""
    return subprocess.Popen(
        [sys.executable, "-m", "cfer.cli", "predict", "-", "--json", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_pipe_is_predicted_while_it_comes(drawn_videos: Path) -> None:
    """The first window is known before the stream has ended, and a stream needs no seeking."""
    one, other = (
        drawn_videos / "videos" / "S003" / f"{n}_1.mp4" for n in ("surprise", "happiness")
    )
    stream = as_mpegts(one, other, one)
    first_part = len(stream) * 3 // 4
    with predicting() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stream[:first_part])
        process.stdin.flush()
        first = json.loads(process.stdout.readline())
        assert process.poll() is None, "printed while the pipe was open"
        rest, errors = process.communicate(stream[first_part:])
    assert process.returncode == 0, errors.decode()
    windows = [first, *windows_of(rest)]
    assert [w["start_seconds"] for w in windows] == [0, 0.5, 1, 1.5, 2]
    assert {w["source"] for w in windows} == {"standard input"}
    assert {w["face"] for w in windows} == {1}
    assert "animated photographs" in errors.decode()


def test_a_stream_that_is_stopped_has_said_what_it_saw(drawn_videos: Path, tmp_path: Path) -> None:
    """Ctrl-C, while more is waited for: the expressions so far, their windows in the CSV, and no
    traceback."""
    surprise = drawn_videos / "videos" / "S003" / "surprise_1.mp4"
    stream = as_mpegts(surprise, surprise, surprise)
    rows = tmp_path / "windows.csv"
    with predicting("--csv", str(rows)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stream[: len(stream) * 3 // 4])
        process.stdin.flush()
        windows = [json.loads(process.stdout.readline())]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in errors.decode()
    assert errors.decode().endswith("interrupted; what is finished is kept\n")
    told = [json.loads(line) for line in rest.decode().splitlines()]
    windows += [line for line in told if "label" in line]
    events = [line["event"] for line in told if "event" in line]
    assert len(rows.read_text().splitlines()) >= 1 + len(windows)
    expressions = {window["label"] for window in windows} - {"neutral"}
    assert {event["label"] for event in events} >= expressions


def test_whoever_reads_the_output_may_stop() -> None:
    """As `| head -1` does: no traceback, and the status that a shell expects."""
    code = (
        "from cfer.errors import exit_with_message\n"
        "def main():\n"
        "    for number in range(100_000): print(number)\n"
        "    return 0\n"
        "exit_with_message(main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 128 + signal.SIGPIPE
