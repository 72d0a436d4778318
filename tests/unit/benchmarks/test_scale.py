"""`benchmarks scale`: its model by hand, its verdict on made-up memory, its clips, its options."""

from __future__ import annotations

import csv
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import cost, memory, scale
from benchmarks.__main__ import main
from benchmarks.cost import Assumptions, Costs, predict
from benchmarks.material import many_clips
from benchmarks.memory import Sample, append_log, growth, read_log
from benchmarks.scale import SETTINGS, WINDOW_FRAMES, Job, Sizes, judged
from cfer.errors import InputError

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


def test_the_stages_are_measured_on_the_clips(drawn_videos: Path):
    rows = many_clips(drawn_videos, 3)
    costs, clip = scale._stage_costs(rows, clips_per_shard=2, rounds=1)
    assert (clip.frames, clip.encoded, clip.windows) == (24, 3, 1)
    assert clip.bytes_in == sum(Path(row["path"]).stat().st_size for row in rows) / 3
    assert 100 < clip.bytes_out < clip.bytes_in
    each = (costs.frame, costs.window, costs.encoded, costs.identity, costs.row, costs.megabyte)
    assert min(each) > 0
    assert (costs.start, costs.shard, costs.driver) == (0, 0, 0)


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


GIVEN = Assumptions(
    hours=2, cores=8, core_hour=0.1, puts=0.01, gets=0.001, gb_month=0.02, driver_gb=1
)


def test_machines_hours_bytes_and_money():
    made = predict(COSTS, CLIP, 1_000_000, 4, 800, GIVEN)
    work = 250_000 * (4 * CLIP_SECONDS + 0.5)
    assert made.machines == math.ceil(work / (8 * 7190)) == 8
    assert made.hours == pytest.approx((10 + work / 64) / 3600)
    assert made.hours <= 2
    assert made.bytes_read == pytest.approx(4e12)
    assert made.bytes_out == pytest.approx(5e9)
    assert made.files == 2500
    assert made.puts == 1250 * cost.PUTS_OF_A_SHARD + 1_000_000 * cost.PUTS_OF_A_CLIP
    assert made.gets == 1250 * cost.GETS_OF_A_SHARD + 1_000_000 * cost.GETS_OF_A_CLIP
    assert made.money_cores == pytest.approx(made.hours * 64 * 0.1)
    assert made.money_requests == pytest.approx(made.puts * 1e-5 + made.gets * 1e-6)
    assert made.money_storage_month == pytest.approx(0.1)
    assert made.money == made.money_cores + made.money_requests
    # 4 GB of the driver's memory, of which a job may have 1; its time is no bound: 500 s.
    assert made.jobs == 4
    # 60 times as long, it is: 30,000 s of one process, in less than 2 hours.
    busy = predict(replace(COSTS, driver=0.03), CLIP, 1_000_000, 4, 800, GIVEN)
    assert busy.jobs == math.ceil(30_000 / (3600 * made.hours)) == 5


def test_what_is_said_of_the_costs_and_of_the_prediction():
    said = scale._cost_figures(COSTS, CLIP, 4)
    assert said["decode and crop"] == "1.00 ms for a frame of the video"
    assert said["embed an I-frame"] == "200.0 ms for a window"
    assert said["all stages"] == f"{CLIP_SECONDS:.4f} core-seconds for a clip"
    share = 0.5 / (4 * CLIP_SECONDS + 0.5)
    assert said["the job, fitted"] == (
        "10.0 s to start and end; for a shard of 4 clips 0.500 s besides the stages, "
        f"{share:.0%} of its time"
    )
    assert said["the driver"].endswith(f"it can feed {CLIP_SECONDS / 0.0005:.0f} workers")
    made = predict(COSTS, CLIP, 1_000_000, 4, 800, GIVEN)
    said = scale._prediction_figures(made, CLIP, GIVEN)
    assert said["1,000,000 clips: time"] == (
        f"8 machines of 8 cores for {made.hours:.1f} hours ({made.core_hours:,.0f} core-hours), "
        "in 4 jobs; 48 frames a clip"
    )
    assert said["1,000,000 clips: bytes"] == (
        "4,000 GB read, 5 GB written in 2,500 files; 11,250 requests to write, 6,012,500 to read"
    )
    assert said["1,000,000 clips: money"].startswith(
        f"{made.money:,.0f} = {made.money_cores:,.0f} for cores (assumed 0.1 a core-hour) + "
        "6 for requests (assumed 0.01 and 0.001 for 1,000); storage 0 a month (assumed 0.02"
    )


def test_what_is_predicted_has_shards_as_the_job_makes_them():
    """Some megabytes, of which the sources tell; 6 kB and 1/64 of 2 MB for each clip."""
    assert scale._planned(CLIP, 28) == 1
    assert scale._planned(CLIP, 1_000_000) == scale._planned(CLIP, 100_000_000) == 226


def test_each_clip_has_to_come_out_once(drawn_videos: Path, drawn_shards: Path):
    rows = many_clips(drawn_videos, 10)
    scale._verify(drawn_shards, rows)
    with pytest.raises(AssertionError, match="10 clips came out, 9 went in"):
        scale._verify(drawn_shards, rows[:9])
    files = [*drawn_shards.glob("shard-*")]
    assert scale._bytes_of(drawn_shards) == sum(file.stat().st_size for file in files)


def test_sizes_of_runs():
    assert Sizes.of(2, 4, quick=False) == Sizes((8, 80), (120, 480), 4000)
    assert Sizes.of(1, 2, quick=True) == Sizes((2, 6), (12,), 2)


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


def test_memory_that_grows_is_not_flat(tmp_path: Path):
    figures = judged(series(0.0), 2000).figures
    assert figures["memory"].startswith("flat: +0.00 MB")
    assert figures["memory, most"] == "1,401 MB"
    assert judged(series(1.9), 2000).figures["memory"].startswith("flat: +1.90 MB")
    growing = judged(series(2.1), 2000)
    assert growing.figures["memory"].startswith("NOT FLAT: +2.10 MB")
    assert growing.figures["memory, workers"].endswith("+2.10 MB with 1,000 clips")
    assert growing.figures["memory, driver"] == "300 MB, +0.00 MB with 1,000 clips"
    scale.draw_run(series(2.1), growing, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


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


def test_a_log_of_memory_is_read_as_it_was_written(tmp_path: Path):
    log = tmp_path / "memory.csv"
    assert read_log(log) == []
    samples = series(2.0)[:3] + series(2.0, run=1)[:1]
    for sample in samples:
        append_log(log, sample)
    assert read_log(log) == samples
    (tmp_path / "other.csv").write_text("run,clips\n0,1\n")
    with pytest.raises(InputError, match=r"other\.csv: not a log"):
        read_log(tmp_path / "other.csv")


# ---- the clips, and the options ------------------------------------------------------------------


@pytest.fixture
def material(tmp_path: Path, drawn_videos: Path) -> Path:
    """Drawn before, so that only copies are made."""
    folder = tmp_path / "scale-material"
    folder.mkdir()
    (folder / "drawn").symlink_to(drawn_videos)
    return folder


def test_copies_differ_in_their_bytes_and_are_kept(
    material: Path, capsys: pytest.CaptureFixture[str]
):
    rows = many_clips(material, 12)
    files = [Path(row["path"]) for row in rows]
    assert len({path.read_bytes() for path in files}) == len({r["clip_id"] for r in rows}) == 12
    # 5 people × 2 expressions: the 11th is the first one's, and shows the same person.
    assert rows[0]["subject"] == rows[10]["subject"]
    assert rows[0]["label"] != rows[1]["label"]
    made = [path.stat().st_mtime_ns for path in files]
    assert main(["scale", "material", "--material", str(material), "--clips", "13"]) == 0
    assert f"{material}: 13 clips" in capsys.readouterr().out
    assert many_clips(material, 12) == rows
    assert [path.stat().st_mtime_ns for path in files] == made
    assert many_clips(material, 3) == rows[:3]
    assert len(list(csv.reader((material / "manifest.csv").open()))) == 14, "it never shrinks"


def test_a_folder_of_ones_own_is_taken_as_it_is(drawn_videos: Path, tmp_path: Path):
    rows = many_clips(drawn_videos, 5)
    assert all(Path(row["path"]).is_file() for row in rows)
    with pytest.raises(InputError, match=r"has 10 clips and 11 are wanted"):
        many_clips(drawn_videos, 11)
    shutil.copy(drawn_videos / "manifest.csv", tmp_path)
    text = (tmp_path / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(text.replace("clip_id", "name"))
    with pytest.raises(InputError, match=r"manifest\.csv: needs the columns path and clip_id"):
        many_clips(tmp_path, 1)


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
