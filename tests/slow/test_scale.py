"""`benchmarks scale` with the real job, in small: what it measures, predicts and judges."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import commands

from benchmarks.__main__ import main
from benchmarks.material import many_clips
from benchmarks.memory import available_cores, read_log
from cfer.data.shards import read_clips, read_description

SCALE = commands("At scale", "docs/scale.md")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, drawn_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with clips that were drawn before, so that only copies are made."""
    monkeypatch.chdir(tmp_path)
    Path("scale-material").mkdir()
    Path("scale-material", "drawn").symlink_to(drawn_videos)


def documented(what: str) -> list[str]:
    (command,) = (c for c in SCALE if c.startswith(f"python -m benchmarks scale{what} --"))
    return command.split()[3:]


def test_the_cost_model_predicts_a_run(capsys: pytest.CaptureFixture[str]):
    quick = ("--quick", "--actors", "1", "--hours", "10", "--plot", "plot.png")
    assert main([*documented(""), *quick]) == 0
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(Path("scale.json").read_text())
    rates = {name: rate["median"] for name, rate in found["rates"].items()}
    said, measured = rates["12 clips, as predicted"], rates["12 clips, measured"]
    # How busy the machine was, nobody knows; so the prediction is right where it is the model's.
    figures = found["figures"]
    each = float(figures["all stages"].split()[0])
    fitted = re.match(r"(\S+) s to start .* (\S+) s besides", figures["the job, fitted"])
    assert fitted is not None
    start, shard = map(float, fitted.groups())
    assert 12 / said == pytest.approx(start + 6 * (2 * each + shard), abs=0.1)
    assert found["ratios"].keys() == {"12 clips, measured / 12 clips, as predicted"}
    (ratio,) = found["ratios"].values()
    assert ratio["median"] == pytest.approx(measured / said)
    assert found["verified"].startswith("runs of 2, 6, 12 clips: each clip came out once")
    assert figures["a clip"].startswith("24 frames, 3 of them encoded; ")
    assert figures["1,000,000 clips: time"].endswith("24 frames a clip")
    assert re.search("machines? of 16 cores", figures["100,000,000 clips: time"])
    printed = capsys.readouterr().out
    assert all(text in printed for text in figures.values())


def test_a_run_is_judged_and_can_be_started_again():
    words = documented(" run")
    assert main([*words, "--quick", "--actors", "1", "--plot", "plot.png"]) == 0
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(Path("scale-run.json").read_text())
    assert found["verified"].startswith("16 clips went in, 16 rows and 0 failures came out")
    out = Path(words[words.index("--out") + 1])
    wanted = [row["clip_id"] for row in many_clips(Path("scale-material"), 16)]
    assert [clip.clip_id for clip in read_clips(out / "shards")] == wanted
    samples = read_log(out / "memory.csv")
    assert {sample.run for sample in samples} == {0}
    assert samples[-1].clips == 16
    last = next(s for s in samples if s.clips)
    # PyTorch and both networks, in the one worker; the driver, and Ray's servers.
    assert last.workers > 200
    assert last.driver > 50
    assert last.ray > 50
    assert last.processes > 3
    digest = read_description(out / "shards").digest
    (out / "shards" / "shard-00003.json").unlink()
    assert main([*words, "--quick", "--actors", "1"]) == 0
    assert read_description(out / "shards").digest == digest
    assert {sample.run for sample in read_log(out / "memory.csv")} == {0, 1}


def test_throughput_is_measured_with_each_number_of_workers():
    if available_cores() < 2:
        pytest.skip("it needs two cores")
    words = [*documented(" workers"), "--quick", "--actors", "1,2"]
    assert main(words) == 0
    assert Path("scale-workers.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(Path("scale-workers.json").read_text())
    assert found["verified"] == "each run of 16 clips: each clip came out once"
    rates = {name: rate["median"] for name, rate in found["rates"].items()}
    assert rates.keys() == {"1 worker", "2 workers"}
    (ratio,) = found["ratios"].values()
    assert ratio["median"] == pytest.approx(rates["2 workers"] / rates["1 worker"])
    assert found["targets"] == {"2 workers / 1 worker": 1.7}
