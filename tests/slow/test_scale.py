"""`cfer.bench scale`: its model by hand, its verdict on made-up memory, the real job in small."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from helpers import REPOSITORY, commands

from cfer.bench import cost, memory
from cfer.bench.__main__ import main
from cfer.bench.cost import Assumptions, Costs, predict
from cfer.bench.material import many_clips
from cfer.bench.memory import Sample, Watch, growth, read_log
from cfer.bench.scale import SETTINGS, WINDOW_FRAMES, Job, Sizes, judged
from cfer.errors import InputError
from cfer.shards import read_clips, read_description

DOCUMENTED = REPOSITORY / "docs" / "bench"

CLIP = cost.Clip(frames=48, encoded=6, windows=1, bytes_in=2e6, bytes_out=5e3)
COSTS = Costs(
    frame=0.001, window=0.05, encoded=0.002, identity=0.2, row=0.01, megabyte=0.004,
    start=10.0, shard=0.5, driver=0.0005, driver_bytes=4000,
)  # fmt: skip
CLIP_SECONDS = 0.048 + 0.05 + 0.012 + 0.2 + 0.01 + 0.008


# ---- the model -----------------------------------------------------------------------------------


def test_a_job_takes_a_start_and_its_turns():
    assert COSTS.clip_seconds(CLIP) == pytest.approx(CLIP_SECONDS)
    # 9 clips are 3 shards of 4, 4 and 1; two workers take two turns.
    assert COSTS.job_seconds(CLIP, 9, 4, 2) == pytest.approx(10 + 2 * (4 * CLIP_SECONDS + 0.5))
    assert COSTS.job_seconds(CLIP, 9, 4, 3) == pytest.approx(10 + 4 * CLIP_SECONDS + 0.5)


def test_the_fit_gives_back_what_made_the_runs():
    runs = [(n, COSTS.job_seconds(CLIP, n, 4, 2)) for n in (8, 80)]
    bare = replace(COSTS, start=0.0, shard=0.0)
    fitted = bare.fitted(CLIP, 4, 2, 4 * CLIP_SECONDS + 0.5, runs)
    assert fitted.start == pytest.approx(10.0)
    assert fitted.shard == pytest.approx(0.5)
    assert fitted.job_seconds(CLIP, 480, 4, 2) == pytest.approx(10 + 60 * (4 * CLIP_SECONDS + 0.5))


def test_throughput_is_told_without_the_start(tmp_path: Path):
    """Two workers, 3 s a shard; the first two shards end at 100 s."""
    job = Job(200.0, [], 0.0, tmp_path)
    job.shards.mkdir()
    for number, end in enumerate((100, 100.5, 103, 103.5, 106, 106.5)):
        record = job.shards / f"shard-{number:05d}.json"
        record.touch()
        os.utime(record, (end, end))
    assert job.clips_per_second(2, 4) == pytest.approx(4 * 2 / 3)
    with pytest.raises(InputError, match="6 finished shards of 6 workers tell no throughput"):
        job.clips_per_second(6, 4)


def test_a_longer_clip_of_the_same_kind():
    long = CLIP.of_length(WINDOW_FRAMES + 24, SETTINGS, WINDOW_FRAMES)
    assert (long.windows, long.encoded) == (2, 63)
    assert long.bytes_in == pytest.approx(2e6 * 504 / 48)
    assert long.bytes_out == pytest.approx(5e3 * 63 / 6)


def test_machines_hours_bytes_and_money():
    given = Assumptions(
        hours=2, cores=8, core_hour=0.1, puts=0.01, gets=0.001, gb_month=0.02, driver_gb=1
    )
    made = predict(COSTS, CLIP, 1_000_000, 4, given)
    work = 250_000 * (4 * CLIP_SECONDS + 0.5)
    assert made.machines == math.ceil(work / (8 * 7190)) == 8
    assert made.hours == pytest.approx((10 + work / 64) / 3600)
    assert made.hours <= 2
    assert made.bytes_read == pytest.approx(4e12)
    assert made.bytes_out == pytest.approx(5e9)
    assert made.files == 500_000
    assert made.puts == 250_000 * cost.PUTS_OF_A_SHARD + 1_000_000 * cost.PUTS_OF_A_CLIP
    assert made.money_cores == pytest.approx(made.hours * 64 * 0.1)
    assert made.money_requests == pytest.approx(made.puts * 1e-5 + made.gets * 1e-6)
    assert made.money_storage_month == pytest.approx(0.1)
    assert made.money == made.money_cores + made.money_requests
    # 4 GB of the driver's memory, of which a job may have 1; its time is no bound: 500 s.
    assert made.jobs == 4
    # 60 times as long, it is: 30,000 s of one process, in less than 2 hours.
    busy = predict(replace(COSTS, driver=0.03), CLIP, 1_000_000, 4, given)
    assert busy.jobs == math.ceil(30_000 / (3600 * made.hours)) == 5


# ---- the verdict ---------------------------------------------------------------------------------


def series(mb_per_1000: float, run: int = 0, first: int = 0, base: float = 900.0) -> list[Sample]:
    """2,000 clips, 4 a second; memory that rises fast at first, and then as is said."""
    return [
        Sample(
            run=run, seconds=n / 4.0, clips=first + n, driver=300.0, ray=200.0, object_store=1.0,
            workers=base * min(1.0, n / 100) + mb_per_1000 * n / 1000,
            processes=8, cpu_seconds=n / 2.0, driver_cpu_seconds=n / 100,
        )
        for n in range(0, 2001, 20)
    ]  # fmt: skip


def test_memory_that_grows_is_not_flat():
    figures = judged(series(0.0), 2000).figures
    assert figures["memory"].startswith("flat: +0.00 MB")
    assert figures["memory, most"] == "1,401 MB"
    assert judged(series(1.9), 2000).figures["memory"].startswith("flat: +1.90 MB")
    growing = judged(series(2.1), 2000).figures
    assert growing["memory"].startswith("NOT FLAT: +2.10 MB")
    assert growing["memory, workers"].endswith("+2.10 MB with 1,000 clips")
    assert growing["memory, driver"] == "300 MB, +0.00 MB with 1,000 clips"


def test_a_run_that_was_started_again_is_judged_within_its_runs():
    """Between two runs the memory may jump; what counts is how it grows in each."""
    both = series(0.0) + series(0.0, run=1, first=2000, base=1500.0)
    assert growth(both, 200, lambda s: s.total) == pytest.approx(0)
    both = series(5.0) + series(5.0, run=1, first=2000, base=100.0)
    assert growth(both, 200, lambda s: s.total) == pytest.approx(5.0)
    assert judged(both, 4000).figures["runs"] == "2, 1,000 s"


def test_processes_that_leave_at_the_end_are_no_fall_of_memory():
    grown = series(3.0)
    leaving = [
        replace(grown[-1], seconds=500.0 + n, processes=7 - n, workers=800.0 - 100 * n)
        for n in range(7)
    ]
    assert judged(grown + leaving, 2000).figures["memory"].startswith("NOT FLAT: +3.00 MB")


def test_throughput_that_falls_is_found():
    slowing = [
        replace(s, seconds=s.seconds if s.clips <= 1000 else 250 + (s.clips - 1000) / 2)
        for s in series(0)
    ]
    ratio = judged(slowing, 2000).ratios["extraction, last third / extraction, first third"]
    assert ratio.median == pytest.approx(0.5)
    with pytest.raises(InputError, match="too short"):
        judged(series(0)[:3], 20)
    with pytest.raises(InputError, match="no clip was finished after the first 200"):
        judged(series(0)[:10], 2000)


def test_the_memory_of_a_family_counts_shared_pages_once(tmp_path: Path):
    """A child that only reads what it inherited adds nothing; what it writes is its own."""
    code = """
import os, sys, time
mine = b"x" * 80_000_000
if os.fork() == 0:
    own = b"y" * 40_000_000
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert [process.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
        log = tmp_path / "memory.csv"
        with Watch(process.pid, lambda: 7, 0.01, log) as watch:
            deadline = time.monotonic() + 60
            while not watch.samples and time.monotonic() < deadline:
                time.sleep(0.01)
            family = watch.family
        sample = watch.samples[0]
        assert sample.processes == len(family) == 2
        assert 120 < sample.total < 160
        assert read_log(log)[0].total == pytest.approx(sample.total, abs=0.01)
        assert Watch(process.pid, lambda: 7, 1, log)._run == 1
    finally:
        for member in [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]:
            member.send_signal(signal.SIGKILL)
        process.wait()
    (tmp_path / "other.csv").write_text("run,clips\n0,1\n")
    with pytest.raises(InputError, match=r"other\.csv: not a log"):
        read_log(tmp_path / "other.csv")


# ---- the real job --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, drawn_videos: Path) -> Path:
    """Drawn before, so that only copies are made."""
    folder = tmp_path_factory.mktemp("scale") / "scale-material"
    folder.mkdir()
    (folder / "drawn").symlink_to(drawn_videos)
    return folder


def test_copies_differ_in_their_bytes_and_are_kept(material: Path):
    rows = many_clips(material, 60)
    files = [Path(row["path"]) for row in rows]
    assert len({path.read_bytes() for path in files}) == len({r["clip_id"] for r in rows}) == 60
    # 8 people × 7 expressions: the 57th is the first one's, and shows the same person.
    assert rows[0]["subject"] == rows[56]["subject"]
    assert rows[0]["label"] != rows[1]["label"]
    made = [path.stat().st_mtime_ns for path in files]
    assert many_clips(material, 61)[:60] == rows
    assert [path.stat().st_mtime_ns for path in files] == made
    assert many_clips(material, 3) == rows[:3]
    assert len(list(csv.reader((material / "manifest.csv").open()))) == 62, "it never shrinks"


def test_a_folder_of_ones_own_is_taken_as_it_is(drawn_videos: Path):
    rows = many_clips(drawn_videos, 5)
    assert all(Path(row["path"]).is_file() for row in rows)
    with pytest.raises(InputError, match=r"has 56 clips and 57 are wanted"):
        many_clips(drawn_videos, 57)


SCALE = commands("At scale", "docs/scale.md")


def documented(what: str) -> list[str]:
    (command,) = (c for c in SCALE if c.startswith(f"python -m cfer.bench scale{what} --"))
    return command.split()[3:]


def test_the_cost_model_predicts_a_run(
    material: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("scale-material").symlink_to(material)
    quick = ("--quick", "--actors", "1", "--hours", "10", "--plot", "plot.png")
    assert main([*documented(""), *quick]) == 0
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(Path("scale.json").read_text())
    sizes = Sizes.of(1, 2, quick=True)
    assert (sizes.fitted, sizes.checked) == ((2, 6), (12,))
    assert found["ratios"].keys() == {"12 clips, measured / 12 clips, as predicted"}
    # How busy the machine is now, nobody knows; a model that is wrong is so by more than this.
    (ratio,) = found["ratios"].values()
    assert 0.2 < ratio["median"] < 5
    figures = found["figures"]
    assert figures["a clip"].startswith("24 frames, 3 of them encoded; ")
    assert figures["1,000,000 clips: time"].endswith("24 frames a clip")
    assert "machines of 16 cores" in figures["100,000,000 clips: time"]
    printed = capsys.readouterr().out
    assert all(text in printed for text in figures.values())


def test_a_run_is_judged_and_can_be_started_again(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("scale-material").symlink_to(material)
    words = documented(" run")
    assert main([*words, "--quick", "--actors", "1", "--plot", "plot.png"]) == 0
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(Path("scale-run.json").read_text())
    assert found["verified"].startswith("16 clips went in, 16 rows and 0 failures came out")
    out = Path(words[words.index("--out") + 1])
    wanted = [row["clip_id"] for row in many_clips(material, 16)]
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


def test_options_that_cannot_be(tmp_path: Path):
    cores = memory.available_cores()
    with pytest.raises(InputError, match=rf"--actors {cores + 1}: this machine has {cores} cores"):
        main(["scale", "workers", "--material", str(tmp_path), "--actors", f"1,{cores + 1}"])
    with pytest.raises(InputError, match=r"--actors 1,2: only `scale workers`"):
        main(["scale", "--actors", "1,2"])
    with pytest.raises(InputError, match=r"--actors 0: give numbers from 1"):
        main(["scale", "workers", "--actors", "0"])
    with pytest.raises(InputError, match="needs --out"):
        main(["scale", "run", "--material", str(tmp_path)])
