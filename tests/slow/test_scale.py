"""`cfer bench scale` with the real job, in small: what it measures and judges."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from helpers import commands

from benchmarks.__main__ import main
from benchmarks.material import many_clips
from benchmarks.scale import STAGES_ALONE, run_job
from cfer.data.shards import read_clips, read_description

HOURS, RUN = (command.split()[2:] for command in commands("At scale", "docs/scale.md"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, drawn_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with clips that were drawn before, so that only copies are made."""
    monkeypatch.chdir(tmp_path)
    Path("scale-material").mkdir()
    Path("scale-material", "drawn").symlink_to(drawn_videos)


def test_hours_are_measured_with_each_number_of_workers(capsys: pytest.CaptureFixture[str]):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("it needs two cores")
    assert main([*HOURS, *"--rounds 1 --clips 16 --clips-per-shard 2".split()]) == 0
    found = json.loads(Path("scale.json").read_text())
    assert found["verified"] == "each job of 16 clips: each clip came out once"
    rates = {name: rate["median"] for name, rate in found["rates"].items()}
    assert rates.keys() == {STAGES_ALONE, "1 worker", "2 workers"}
    ratios = {name: ratio["median"] for name, ratio in found["ratios"].items()}
    assert ratios == {
        f"1 worker / {STAGES_ALONE}": pytest.approx(rates["1 worker"] / rates[STAGES_ALONE]),
        "2 workers / 1 worker": pytest.approx(rates["2 workers"] / rates["1 worker"]),
    }
    assert found["targets"] == dict(zip(ratios, (0.8, 1.7), strict=True))
    figures = found["figures"]
    assert figures["a clip"].startswith("24 frames, 3 of them encoded; ")
    assert float(figures["all stages"].split()[0]) == pytest.approx(1 / rates[STAGES_ALONE], 1e-2)
    hours = 1e6 / rates["1 worker"] / 3600
    assert f" {hours:,.0f} core-hours by the job; " in figures["1,000,000 clips"]
    printed = capsys.readouterr().out
    assert all(text in printed for text in figures.values())


def test_a_run_is_judged_and_can_be_started_again():
    words = [*RUN, *"--clips 16 --clips-per-shard 2 --workers 1".split()]
    assert main(words) == 0
    found = json.loads(Path("scale-run.json").read_text())
    assert found["verified"].startswith("16 clips went in, 16 rows and 0 failures came out")
    out = Path(words[words.index("--out") + 1])
    rows = many_clips(Path("scale-material"), 16)
    clip_ids = [clip.clip_id for clip in read_clips(out / "shards")]
    assert clip_ids == [row["clip_id"] for row in rows]
    assert len((out / "memory.csv").read_text().splitlines()) > 8
    digest = read_description(out / "shards").digest
    (out / "shards" / "shard-00003.json").unlink()
    samples = run_job(rows, out, 1, 2, seconds_between=0.2)
    assert read_description(out / "shards").digest == digest
    assert (samples[0].clips, samples[-1].clips) == (14, 16)
    # PyTorch and both networks, in the one worker; the driver, and Ray's servers.
    busy = max(samples, key=lambda sample: sample.total)
    assert busy.workers > 200
    assert busy.driver > 50
    assert busy.ray > 50
    assert busy.processes > 3
