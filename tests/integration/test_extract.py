"""The extraction job on Ray: what it leaves, what it leaves alone, killed, damaged."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import (
    EXTRACTION,
    REPOSITORY,
    extract,
    kill_with_children,
    shard_bytes,
    start_extraction,
    wait_for,
)
from PIL import Image

from cfer.data.shards import read_clips, read_description, verify
from cfer.errors import InputError
from pipeline.extract import main

# ----------------------------------------------------------------- bad clips


def test_bad_clips_end_in_the_failures_table(six_videos, ray_session, tmp_path):
    """And the good ones, a video and a folder of pictures, in rows."""
    videos = tmp_path / "videos"
    pictures = videos / "S005" / "001"
    pictures.mkdir(parents=True)
    (pictures / ".DS_Store").write_bytes(b"\0")
    good = sorted(six_videos.glob("*.mp4"))[0]
    shutil.copy(good, videos / "good.mp4")
    with av.open(str(good)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
            picture.save(pictures / f"S005_001_{number + 1:08d}.png")
    data = good.read_bytes()
    (videos / "cut.mp4").write_bytes(data[: len(data) // 2])
    damaged = bytearray(data)
    middle = data.index(b"mdat") + len(data) // 3
    damaged[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    (videos / "damaged.mp4").write_bytes(bytes(damaged))
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "text.MP4").write_text("this is no video\n" * 9)
    write_video(videos / "noface.mp4", [np.full((120, 160, 3), v, np.uint8) for v in range(9)])
    write_video(videos / "one.mp4", [np.full((120, 160, 3), 99, np.uint8)])
    (videos / "notes.txt").write_text("not a clip at all")
    out = tmp_path / "out"
    status, said = extract(videos, out, "--max-failures", "6", "--clips-per-shard", "8")
    assert status == 0, said
    with open(out / "failures.csv") as stream:
        failures = {row["source"]: row for row in csv.DictReader(stream)}
    reasons = {
        "cut.mp4": "cut off before its index",
        "damaged.mp4": "damaged or cut off at frame",
        "empty.mp4": "the file is empty",
        "text.MP4": "not a video",
        "noface.mp4": "no face found",
        "one.mp4": "only one frame",
    }
    assert failures.keys() == reasons.keys()
    for source, reason in reasons.items():
        assert reason in failures[source]["reason"]
        assert failures[source]["exception"] == "ClipError"
        assert f"{source}: " in said, "the summary names it"
    assert failures["noface.mp4"]["stage"] == "face"
    clips = {clip.clip_id: clip for clip in read_clips(out)}
    assert clips.keys() == {"good", "S005/001"}
    assert {(clip.num_frames, clip.label) for clip in clips.values()} == {(3, None)}, "of 24"
    assert verify(out) == []
    status, said = extract(videos, out, "--max-failures", "5", "--clips-per-shard", "8")
    assert status == 1
    assert "more failures than --max-failures 5" in said
    assert "nothing to do" in said


def write_video(path: Path, pictures: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


# ----------------------------------------------------------------- again, killed, crashed


def test_a_second_run_does_nothing_and_says_so(six_videos, undisturbed):
    before = {file: file.stat().st_mtime_ns for file in undisturbed.glob("*.parquet")}
    status, said = extract(six_videos, undisturbed)
    assert status == 0
    assert "is complete: 3 shards, nothing to do" in said
    assert {file: file.stat().st_mtime_ns for file in undisturbed.glob("*.parquet")} == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--gop-size", "6"), "begun with gop_size 3, and now gop_size is 6"),
        (("--classes", "a,b"), "begun with classes [], and now classes is ['a', 'b']"),
    ],
)
def test_other_settings_are_refused(six_videos, undisturbed, option, message):
    with pytest.raises(InputError, match=re.escape(message)):
        main(["--videos", str(six_videos), "--out", str(undisturbed), *EXTRACTION, *option])
    assert verify(undisturbed) == []


def test_killed_and_started_again_gives_the_same_bytes(six_videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start_extraction(six_videos, out)
    first = out / "shard-00000.json"
    wait_for(first.exists, process)
    kill_with_children(process)
    assert not (out / "dataset.json").exists()
    finished = {file: file.stat().st_mtime_ns for file in out.glob("shard-*.json")}
    assert first in finished
    assert len(finished) < 3
    (out / ".shard-00002.parquet.x.tmp").write_bytes(b"half a shard")

    status, said = extract(six_videos, out, "--actors", "2")
    assert status == 0, said
    assert f"of which {len(finished)} are done already" in said
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert shard_bytes(out) == shard_bytes(undisturbed)
    assert verify(out) == []
    leftover = {".tmp", "working"}
    assert not [f for f in out.iterdir() if any(text in f.name for text in leftover)]


def test_damaged_and_changed_shards_are_done_again_and_no_other(six_videos, undisturbed, tmp_path):
    # A folder of another name would be another data set.
    videos, out = tmp_path / six_videos.name, tmp_path / "out"
    shutil.copytree(six_videos, videos)
    shutil.copytree(undisturbed, out)
    shard = out / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    first_written = (out / "shard-00000.parquet").stat().st_mtime_ns
    sorted(videos.glob("*.mp4"))[-1].unlink()
    status, said = extract(videos, out)
    assert status == 0
    assert "5 clips in 3 shards, of which 1 are done already" in said
    now, before = shard_bytes(out), shard_bytes(undisturbed)
    for name in ("shard-00000.parquet", "shard-00000.json", "shard-00001.parquet"):
        assert now[name] == before[name]
    assert [clip.clip_id for clip in read_clips(out)] == sorted(f.stem for f in videos.glob("*"))

    sorted(videos.glob("*.mp4"))[-1].unlink()
    status, said = extract(videos, out)
    assert status == 0
    assert "4 clips in 2 shards, of which 2 are done already" in said
    assert read_description(out).counts["clips"] == 4
    assert verify(out) == [], "the shard that no longer belongs is gone"
    assert (out / "shard-00000.parquet").stat().st_mtime_ns == first_written


# ----------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--actors", "64"), "--actors 64: the cluster has room for 2"),
        (("--gpu", "--actors", "64"), "--gpu: the cluster has 0 GPUs"),
    ],
)
def test_more_than_the_cluster_has_room_for(ray_session, six_videos, tmp_path, options, message):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=re.escape(message)):
        main(["--videos", str(six_videos), "--out", str(out), *EXTRACTION, *options])
    assert not list(out.glob("shard-*"))


def test_a_mistake_is_one_line_and_no_traceback(tmp_path):
    """Of the script, as it is typed; every other sentence is asserted without a process."""
    done = subprocess.run(
        [sys.executable, "pipeline/extract.py", "--videos", ".", "--out", str(tmp_path / "out")]
        + ["--size", "63"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --size 63: give an even number")
    assert done.stderr.count("\n") == 1
