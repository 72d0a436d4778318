"""`cfer bench scale`: hours by hand, its verdict on made-up memory, its clips, its options."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest
from helpers import REPOSITORY

from benchmarks import scale
from benchmarks.__main__ import main
from benchmarks.extract import IDENTITY, STAGES, Stages
from benchmarks.material import many_clips
from benchmarks.memory import Sample, growth
from benchmarks.scale import clips_per_second, judged, machine_hours, stage_seconds
from cfer.errors import InputError
from cfer.video.pictures import open_pictures
from pipeline.actors import ExtractionSettings

# ---- machine-hours -------------------------------------------------------------------------------


def test_the_stages_are_measured_on_the_clips(drawn_videos: Path):
    sources = [Path(row["path"]) for row in many_clips(drawn_videos, 3)]
    seconds, clips = stage_seconds(Stages(ExtractionSettings(identity="dlib")), sources)
    assert seconds.keys() == {*STAGES, "hash the source"}
    assert min(seconds.values()) > 0
    assert [clip.num_frames for clip in clips] == [3, 3, 3]
    assert all(clip.identity.shape == (1, 128) for clip in clips)


def test_hours_of_cores_and_gpus_and_bytes():
    stages = {"decode": 0.3, IDENTITY: 0.06}
    assert machine_hours(1_000_000, stages, 0.45, 2e6, 5e3, gpu=False) == (
        "100 core-hours and 0 GPU-hours by the stages, 125 core-hours by the job; "
        "4,000 GB read, 5 GB written"
    )
    on_gpu = machine_hours(1_000_000, stages, 0.45, 2e6, 5e3, gpu=True)
    assert on_gpu.startswith("83 core-hours and 17 GPU-hours by the stages, 125 core-hours")


def test_throughput_is_measured_without_the_start(tmp_path: Path):
    """Two workers, 3 s a shard; the first two shards end at 100 s."""
    for number, end in enumerate((100, 100.5, 103, 103.5, 106, 106.5)):
        record = tmp_path / f"shard-{number:05d}.json"
        record.touch()
        os.utime(record, (end, end))
    assert clips_per_second(tmp_path, 2, 4) == pytest.approx(4 * 2 / 3)
    with pytest.raises(InputError, match="6 finished shards are too few"):
        clips_per_second(tmp_path, 6, 4)


def test_each_clip_has_to_come_out_once(drawn_videos: Path, drawn_shards: Path):
    rows = many_clips(drawn_videos, 10)
    scale._verify(drawn_shards, rows)
    with pytest.raises(AssertionError, match="10 clips came out, 9 went in"):
        scale._verify(drawn_shards, rows[:9])


# ---- the verdict ---------------------------------------------------------------------------------


def series(mb_per_1000: float) -> list[Sample]:
    """2,000 clips, 4 a second; memory that rises fast at first, and then by so much."""
    return [
        Sample(
            seconds=n / 4.0, clips=n, processes=8, driver=300.0, ray=200.0,
            workers=900.0 * min(1.0, n / 100) + mb_per_1000 * n / 1000,
        )
        for n in range(0, 2001, 20)
    ]  # fmt: skip


def test_memory_that_grows_is_not_flat():
    figures = judged(series(0.0)).figures
    assert figures["memory"].startswith("flat: +0.00 MB")
    assert figures["memory, total"] == "1,400 MB at most, +0.00 MB with 1,000 clips"
    assert figures["time"] == "500 s"
    assert judged(series(1.9)).figures["memory"].startswith("flat: +1.90 MB")
    figures = judged(series(2.1)).figures
    assert figures["memory"] == (
        "NOT FLAT: +2.10 MB with 1,000 clips, after the first 200; flat is up to 2"
    )
    assert figures["memory, workers"] == "904 MB at most, +2.10 MB with 1,000 clips"
    assert figures["memory, driver"] == "300 MB at most, +0.00 MB with 1,000 clips"


def test_a_run_that_was_killed_is_judged_by_what_was_left():
    left = series(5.0)[50:]
    assert growth(left, attrgetter("total")) == pytest.approx(5.0)
    assert "after the first 100;" in judged(left).figures["memory"]


def test_processes_that_leave_at_the_end_are_no_fall_of_memory():
    grown = series(3.0)
    leaving = [
        replace(grown[-1], seconds=500.0 + n, processes=7 - n, workers=800.0 - 100 * n)
        for n in range(7)
    ]
    assert judged(grown + leaving).figures["memory"].startswith("NOT FLAT: +3.00 MB")


def test_throughput_that_falls_is_found():
    slowing = [
        replace(s, seconds=s.seconds if s.clips <= 1000 else 250 + (s.clips - 1000) / 2)
        for s in series(0)
    ]
    ratio = judged(slowing).ratios["extraction, last third / extraction, first third"]
    assert ratio.median == pytest.approx(0.5)
    with pytest.raises(InputError, match="too short"):
        judged(series(0)[:3])
    with pytest.raises(InputError, match="too few clips"):
        judged(series(0)[:1])


# ---- the clips, and the options ------------------------------------------------------------------


@pytest.fixture
def material(tmp_path: Path, drawn_videos: Path) -> Path:
    """Drawn before, so that only copies are made."""
    folder = tmp_path / "scale-material"
    folder.mkdir()
    (folder / "drawn").symlink_to(drawn_videos)
    return folder


def test_copies_differ_in_their_bytes_and_are_kept(material: Path):
    rows = many_clips(material, 12)
    files = [Path(row["path"]) for row in rows]
    assert len({path.read_bytes() for path in files}) == len({r["clip_id"] for r in rows}) == 12
    # 5 people × 2 expressions: the 11th is the first one's, and shows the same person.
    assert rows[0]["subject"] == rows[10]["subject"]
    assert rows[0]["label"] != rows[1]["label"]
    made = [path.stat().st_mtime_ns for path in files]
    assert [open_pictures(path).count() for path in files] == [24] * 12
    files[3].write_bytes(b"half of it")
    assert len(many_clips(material, 13)) == 13
    assert files[3].stat().st_mtime_ns != made.pop(3)
    assert many_clips(material, 12) == rows
    del files[3]
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
    cores = len(os.sched_getaffinity(0))
    for workers in (["1", str(cores + 1)], ["0"]):
        message = rf"--workers {' '.join(workers)}: this machine has {cores} cores"
        with pytest.raises(InputError, match=message):
            main(["scale", "--material", str(tmp_path), "--workers", *workers])
    with pytest.raises(InputError, match="--gpu: dlib stays on the CPU"):
        main(["scale", "--workers", "1", "--gpu"])
    with pytest.raises(InputError, match="--workers takes one number"):
        main(["scale", "run", "--out", str(tmp_path), "--workers", "1", "2"])
    with pytest.raises(InputError, match="needs --out"):
        main(["scale", "run", "--material", str(tmp_path)])
    with pytest.raises(InputError, match="there is no folder"):
        main(["scale", "--json", str(tmp_path / "none" / "scale.json")])


def test_the_help_imports_nothing_heavy():
    code = "import sys, benchmarks.__main__; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "matplotlib", "av", "cv2"} & set(done.stdout.split())
