"""The extraction job: real videos, a real Ray; killed, damaged, crashed, submitted."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from helpers import (
    EXTRACTION,
    extract,
    free_ports,
    is_open,
    kill_with_children,
    run_module,
    shard_bytes,
    start_extraction,
    wait_for,
)

from cfer.codec import encode
from cfer.errors import InputError
from cfer.faces import FaceDetector
from cfer.identity import open_recogniser
from cfer.shards import read_clips, read_description, verify
from pipeline.actors import Settings, extract_clip
from pipeline.extract import (
    build_parser,
    main,
    settings_of,
    source_digest,
)
from pipeline.manifest import Entry

# ----------------------------------------------------------------- what comes out


def test_rows_hold_what_the_manifest_says(drawn_videos, drawn_shards):
    with open(drawn_videos / "manifest.csv") as stream:
        manifest = {row["clip_id"]: row for row in csv.DictReader(stream)}
    clips = {clip.clip_id: clip for clip in read_clips(drawn_shards)}
    description = read_description(drawn_shards)
    assert clips.keys() == manifest.keys()
    assert len(clips) == 56
    assert description.classes == sorted({row["label"] for row in manifest.values()})
    for clip_id, row in manifest.items():
        clip = clips[clip_id]
        assert clip.subject == row["subject"]
        assert clip.label_name == row["label"] == description.classes[clip.label]
        assert clip.apex_frame == int(row["apex_frame"])
        assert clip.num_frames == 24
        assert clip.i_frame_numbers == [0, 12]
        assert clip.residual_frames == [*range(1, 12), *range(13, 24)]
        assert clip.identity.shape == (1, 128)
        assert clip.apex.shape == (64, 64, 3)
        assert clip.intra_fraction == 0
    assert verify(drawn_shards) == []


def test_a_clip_has_the_identity_of_its_middle_i_frame(drawn_shards):
    recogniser = open_recogniser("dlib")
    for clip in list(read_clips(drawn_shards))[:3]:
        assert len(clip.i_frames) == 2
        np.testing.assert_array_equal(clip.identity, recogniser.embed(clip.i_frames[1:]))


def test_a_row_holds_the_bitstream_of_its_pictures(drawn_videos, drawn_shards):
    from cfer.faces import face_clip

    clip = next(read_clips(drawn_shards))
    source = drawn_videos / clip.source
    (window,) = face_clip(source, 64, FaceDetector())
    settings = Settings(size=64, gop_size=12, gop_span=12, quantiser=2)
    bitstream = encode(window.pictures, settings.codec, window.fps)
    assert clip.bitstream == bitstream.data
    assert np.array_equal(clip.apex, window.pictures[clip.apex_frame])
    assert np.abs(clip.i_frames[0].astype(int) - window.pictures[0]).mean() < 4


def test_windows_and_apex(drawn_videos, tmp_path):
    video = drawn_videos / "videos" / "S002" / "fear_1.mp4"
    settings = Settings(size=64, gop_size=4, gop_span=4, identity="dlib", window_gops=3)
    entry = Entry(str(video), "a", "a.mp4", subject="S2", label="fear", apex_frame=23)
    clips, failures = extract_clip(entry, settings, ["anger", "fear"], FaceDetector())
    assert failures == []
    assert [clip.clip_id for clip in clips] == ["a#0001", "a#0002"]
    assert [clip.num_frames for clip in clips] == [12, 12]
    assert [clip.apex_frame for clip in clips] == [None, 11]
    assert [clip.label for clip in clips] == [1, 1]
    for clip in clips:
        assert clip.residual_frames == [1, 2, 3, 5, 6, 7, 9, 10, 11]


def test_some_frames_of_a_span_are_encoded(drawn_videos):
    from cfer.faces import face_clip

    video = drawn_videos / "videos" / "S002" / "fear_1.mp4"
    settings = Settings(size=64, gop_size=3, gop_span=8, identity="dlib", window_gops=2)
    entry = Entry(str(video), "a", "a.mp4", apex_frame=20)
    clips, failures = extract_clip(entry, settings, [], FaceDetector())
    assert failures == []
    assert [clip.num_frames for clip in clips] == [6, 3]
    assert [clip.i_frame_numbers for clip in clips] == [[0, 3], [0]]
    # The second window is frames 16 to 23, of which 16, 20 and 23 are encoded.
    assert [clip.apex_frame for clip in clips] == [None, 1]
    windows = list(face_clip(video, 64, FaceDetector(), 16))
    fps = windows[0].fps * 3 / 8
    assert [clip.fps for clip in clips] == [fps] * 2
    # The apex frame itself, 20, is one of them.
    assert np.array_equal(clips[1].apex, windows[1].pictures[4])
    pictures = [windows[1].pictures[frame] for frame in (0, 4, 7)]
    every = encode(pictures, settings.codec, fps)
    assert clips[1].bitstream == every.data


def test_a_folder_of_pictures_is_a_clip(drawn_videos, ray_session, tmp_path):
    folder = tmp_path / "S005" / "001"
    folder.mkdir(parents=True)
    (folder / ".DS_Store").write_bytes(b"\0")
    with av.open(str(drawn_videos / "videos" / "S004" / "anger_1.mp4")) as container:
        for number, frame in enumerate(container.decode(video=0)):
            picture = frame.to_ndarray(format="bgr24")
            cv2.imwrite(str(folder / f"S005_001_{number + 1:08d}.png"), picture)
    status, said = extract(tmp_path, tmp_path / "out", "--quantiser", "4")
    assert status == 0, said
    (clip,) = read_clips(tmp_path / "out")
    assert clip.clip_id == "S005/001"
    assert clip.num_frames == 3, "of 24"
    assert clip.label is None
    assert read_description(tmp_path / "out").codec["quantiser"] == 4


def test_a_real_video(faces_dir):
    entry = Entry(str(faces_dir / "d18.mp4"), "d18", "d18.mp4")
    clips, failures = extract_clip(entry, Settings(), [], FaceDetector())
    assert not failures
    assert sum(clip.num_frames for clip in clips) == 27, "3 of each 24"
    assert all(clip.intra_fraction == 0 for clip in clips)
    # The same person through the whole video.
    first, last = open_recogniser("dlib").embed([clips[0].i_frames[0], clips[0].i_frames[-1]])
    assert np.linalg.norm(first - last) < 0.6, "dlib's own threshold for one person"


# ----------------------------------------------------------------- bad clips


def test_bad_clips_end_in_the_failures_table(six_videos, ray_session, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    good = sorted(six_videos.glob("*.mp4"))[0]
    shutil.copy(good, videos / "good.mp4")
    data = good.read_bytes()
    (videos / "cut.mp4").write_bytes(data[: len(data) // 2])
    damaged = bytearray(data)
    middle = data.index(b"mdat") + len(data) // 3
    damaged[middle : middle + 4000] = os.urandom(4000)
    (videos / "damaged.mp4").write_bytes(bytes(damaged))
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "text.MP4").write_text("this is no video\n" * 9)
    write_video(videos / "noface.mp4", [np.full((120, 160, 3), v, np.uint8) for v in range(9)])
    write_video(videos / "one.mp4", [np.full((120, 160, 3), 99, np.uint8)])
    (videos / "notes.txt").write_text("not a clip at all")
    out = tmp_path / "out"
    status, said = extract(videos, out, "--max-failures", "6")
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
    assert [clip.clip_id for clip in read_clips(out)] == ["good"]
    assert verify(out) == []
    status, said = extract(videos, out, "--max-failures", "5")
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


def test_a_missing_video_and_a_wrong_apex_are_failures(six_videos, ray_session, tmp_path):
    name = sorted(six_videos.glob("*.mp4"))[0].name
    manifest = six_videos / "wrong.csv"
    manifest.write_text(f"path,clip_id,apex_frame\n{name},a,24\nmissing.mp4,b,\n{name},c,23\n")
    out = tmp_path / "out"
    status, _ = extract(manifest, out)
    manifest.unlink()
    assert status == 1
    failures = {failure.clip_id: failure for failure in read_description(out).failures}
    assert "apex_frame 24 is beyond its last frame, 23" in failures["a"].reason
    assert "No such file" in failures["b"].reason
    assert [clip.clip_id for clip in read_clips(out)] == ["c"]


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
    wait_for(first.exists)
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


def test_a_damaged_or_changed_shard_is_done_again(six_videos, undisturbed, tmp_path):
    # A folder of another name would be another data set.
    videos, out = tmp_path / six_videos.name, tmp_path / "out"
    shutil.copytree(six_videos, videos)
    shutil.copytree(undisturbed, out)
    shard = out / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    first_written = (out / "shard-00000.parquet").stat().st_mtime_ns
    status, said = extract(videos, out)
    assert status == 0
    assert "of which 2 are done already" in said
    assert shard_bytes(out) == shard_bytes(undisturbed)

    last = sorted(videos.glob("*.mp4"))[-1]
    last.unlink()
    status, said = extract(videos, out)
    assert status == 0
    assert "5 clips in 3 shards, of which 2 are done already" in said
    sorted(videos.glob("*.mp4"))[-1].unlink()
    assert extract(videos, out)[0] == 0
    assert read_description(out).counts["clips"] == 4
    assert verify(out) == [], "the shard that no longer belongs is gone"
    assert (out / "shard-00000.parquet").stat().st_mtime_ns == first_written


# ----------------------------------------------------------------- through Ray Jobs


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[str]:
    """A cluster as `ray start --head` makes it, with a dashboard for jobs; its address."""
    # Socket names below Ray's folder must be short.
    folder = Path("/tmp") / f"cfer-{os.getpid()}"
    ports = free_ports(4)
    names = (
        "--port",
        "--dashboard-port",
        "--dashboard-agent-listen-port",
        "--ray-client-server-port",
    )
    ray = str(Path(sys.executable).with_name("ray"))
    # A job's `python` is the one that is found where the cluster was started.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "RAY_ADDRESS": "", "RAY_AUTH_MODE": "disabled", "PATH": path}
    arguments = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}"]
        + ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: is_open(ports[1]) and is_open(ports[2]))
        yield f"http://127.0.0.1:{ports[1]}"
    finally:
        kill_with_children(head)
        shutil.rmtree(folder, ignore_errors=True)


def test_ray_job_submit(ray_cluster, checkout, six_videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ray")), "job", "submit"]
        + ["--address", ray_cluster, "--working-dir", ".", "--"]
        + ["python", "pipeline/extract.py", "--videos", str(six_videos), "--out", str(out)]
        + [*EXTRACTION],
        cwd=checkout,
        env={**os.environ, "RAY_ADDRESS": "", "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 clips, 18 frames" in done.stdout
    assert shard_bytes(out) == shard_bytes(undisturbed)


# ----------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "63"), "--size 63: give an even number"),
        (("--gop-size", "1"), "--gop-size 1: give 2 or more"),
        (("--gop-size", "30"), "--gop-size 30 --gop-span 24: a GOP stands for at least"),
        (("--quantiser", "40"), "quantiser 40: must be from 1"),
        (("--clips-per-shard", "0"), "--clips-per-shard 0: give 1 or more"),
        (("--identity-weights", "w.pt", "--identity", "facenet"), "w.pt: cannot be read"),
        (("--actors", "0"), "--actors 0: give 1 or more"),
        (("--actors", "64"), "--actors 64: the cluster has room for"),
        (("--gpu", "--actors", "64"), "--gpu"),
        (("--videos", "nosuch*.mp4"), "no clip found"),
    ],
)
def test_mistakes_name_the_option(ray_session, six_videos, tmp_path, options, message):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=re.escape(message)):
        main(["--videos", str(six_videos), "--out", str(out), *EXTRACTION, *options])
    assert not list(out.glob("shard-*"))


def test_a_mistake_is_one_line_and_no_traceback(six_videos, tmp_path):
    paths = ("--videos", str(six_videos), "--out", str(tmp_path / "out"))
    done = run_module("pipeline.extract", *paths, "--size", "63")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --size 63: give an even number")
    assert done.stderr.count("\n") == 1


def test_presets_are_defaults():
    parse = build_parser().parse_args
    base = ["--videos", "v", "--out", "o", "--preset", "paper"]
    assert settings_of(parse(base)).size == 224
    assert settings_of(parse([*base, "--size", "96"])).size == 96
    assert settings_of(parse([*base, "--no-motion-search"])).motion_search is False
    assert settings_of(parse(base[:4])) == Settings()


def test_bit_rate_takes_the_quantisers_place():
    arguments = build_parser().parse_args("--videos v --out o --bit-rate 200000".split())
    codec = settings_of(arguments).codec
    assert (codec.quantiser, codec.bit_rate) == (None, 200_000)


def test_source_digest_is_of_the_bytes(tmp_path):
    one, two = tmp_path / "a.mp4", tmp_path / "b.mp4"
    one.write_bytes(b"same")
    two.write_bytes(b"same")
    assert source_digest(str(one)) == source_digest(str(two))
    two.write_bytes(b"other")
    assert source_digest(str(one)) != source_digest(str(two))
    assert source_digest(str(tmp_path / "missing.mp4")) == ""


def test_unknown_class_names_stop_before_any_work(drawn_videos, tmp_path):
    arguments = ["--videos", str(drawn_videos / "manifest.csv"), "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"unknown class .*--classes has anger, joy"):
        main([*arguments, "--classes", "anger,joy"])
    with pytest.raises(InputError, match=r"no dataset\.json"):
        read_description(tmp_path / "out")
