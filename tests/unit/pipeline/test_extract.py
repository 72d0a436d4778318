"""What an extraction makes of one clip, and what its options mean: without Ray."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import EXTRACTION
from PIL import Image

from cfer.codec import Bitstream, CodecSettings, encode
from cfer.data.frames import COLUMNS, _chosen
from cfer.data.inputs import Input
from cfer.data.shards import (
    read_clips,
    read_description,
    shard_name,
    verify,
    write_description,
    write_shard,
)
from cfer.errors import InputError
from cfer.model import face_embedder
from cfer.model.face_embedder import open_face_embedder
from cfer.video.faces import Face, _square, face_clip, persons_of
from cfer.video.pictures import open_pictures
from pipeline.actors import extract_clip
from pipeline.datasets import readers
from pipeline.extract import DatasetName, made_beside, main, options_of
from pipeline.job import summary
from pipeline.manifest import Entry, read_manifest
from pipeline.plan import PLAN_NAME, check_same_plan, plan_shards, read_plan, read_source
from pipeline.settings import ExtractionSettings, FaceNetwork

EVERY_FRAME = CodecSettings()
ONCE = ExtractionSettings(views=1)

# ----------------------------------------------------------------- what comes out


def test_rows_hold_what_the_manifest_says(drawn_videos, drawn_shards):
    with open(drawn_videos / "manifest.csv") as stream:
        manifest = {row["clip_id"]: row for row in csv.DictReader(stream)}
    clips = {clip.clip_id: clip for clip in read_clips(drawn_shards)}
    description = read_description(drawn_shards)
    assert clips.keys() == manifest.keys()
    assert len(clips) == 10
    assert description.classes == sorted({row["label"] for row in manifest.values()})
    for clip_id, row in manifest.items():
        clip = clips[clip_id]
        assert clip.subject == row["subject"]
        assert clip.label_name == row["label"] == description.classes[clip.label]
        assert clip.apex_frame == int(row["apex_frame"])
        assert clip.num_frames == 24
        assert Bitstream(clip.bitstream, clip_id).gops == [range(12), range(12, 24)]
        assert clip.identity.shape == (1, 128)
        assert clip.apex.shape == (32, 32, 3)
        assert clip.intra_fraction == 0
    assert verify(drawn_shards) == []


def test_a_clip_has_the_identity_of_its_middle_i_frame(drawn_shards):
    embedder = open_face_embedder("dlib")
    for clip in list(read_clips(drawn_shards))[:2]:
        _, middle = Bitstream(clip.bitstream, clip.clip_id).i_frames()
        np.testing.assert_allclose(clip.identity, embedder.embed([middle]), atol=1e-4)


def test_a_row_holds_the_bitstream_of_its_pictures(drawn_videos, drawn_shards, detector):
    """And so do the stored ones, as far as another processor rounds as this one does;
    tests/fixtures/make.py makes them anew."""
    settings = ExtractionSettings(
        size=64, gop_size=12, gop_seconds=0, identity="dlib", views=2, native=True
    )
    stored = {clip.clip_id: clip for clip in read_clips(drawn_shards)}
    for name in ("S001_happiness_1", "S005_surprise_1"):
        clip = stored[name]
        entry = Entry(str(drawn_videos / clip.source), name, clip.source, apex_frame=23)
        (row,), failures = extract_clip(entry, settings, [], detector)
        assert failures == []
        (window,) = face_clip(open_pictures(entry.location), 64, detector, EVERY_FRAME)
        assert row.bitstream == encode(window.pictures, settings.codec, window.fps).data
        assert row.pts_seconds == [n / 24 for n in range(24)]
        assert np.array_equal(row.apex, as_training_saw_it(window.pictures[row.apex_frame]))
        here, there = (Bitstream(data, name).i_frames() for data in (row.bitstream, clip.bitstream))
        for pictures in (window.pictures[::12], there):
            assert np.abs(np.stack(here).astype(int) - np.stack(pictures)).mean() < 4
        assert np.abs(row.apex.astype(int) - clip.apex).mean() < 2
        assert row.native_refused is None
        assert len(row.native) == len(clip.native) == 2
        for ours, theirs in zip(row.native, clip.native, strict=True):
            ours, theirs = (np.frombuffer(view, np.uint8).astype(int) for view in (ours, theirs))
            assert np.abs(ours - theirs).mean() < 1
        assert len(Bitstream(clip.bitstream, name).packets) == row.num_frames


def test_a_video_whose_name_is_not_utf8_fails_alone(drawn_videos, tmp_path, detector):
    video = drawn_videos / "videos" / "S003" / "surprise_1.mp4"
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.mp4"))
    shutil.copy(video, strange)
    shutil.copy(video, tmp_path / "b.mp4")
    one, other = read_manifest(str(tmp_path))
    assert (one.clip_id, one.source) == ("a\\xff", "a\\xff.mp4")
    assert (one.location, other.clip_id) == (str(strange), "b")
    assert read_source(one.location).digest == ""
    clips, (failure,) = extract_clip(one, ExtractionSettings(identity="dlib"), [], detector)
    assert clips == []
    assert (failure.clip_id, failure.stage) == ("a\\xff", "manifest")
    assert failure.reason == "its name is not UTF-8; rename it"


def as_training_saw_it(picture: np.ndarray) -> np.ndarray:
    """When the rows held the whole picture, and training made it small."""
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "png")
    whole = Image.open(png).convert("RGB")
    return np.asarray(whole.resize((32, 32), Image.Resampling.BOX))


@pytest.mark.parametrize("size", [32, 64, 112])
def test_training_sees_the_apex_that_it_saw_before(drawn_videos, detector, tmp_path, size):
    video = drawn_videos / "videos" / "S002" / "surprise_1.mp4"
    settings = ExtractionSettings(size=size, gop_size=4, gop_seconds=0)
    entry = Entry(str(video), "a", "a.mp4", label="joy", apex_frame=20)
    (clip,), _ = extract_clip(entry, settings, ["joy"], detector)
    write_shard(tmp_path, 0, [replace(clip, identity=np.zeros((1, 2), np.float32))], [], "")
    (row,) = pq.read_table(tmp_path / shard_name(0), columns=list(COLUMNS)).to_pylist()
    seen = np.frombuffer(_chosen(row, Input(), False)["apex"], np.uint8)
    (window,) = face_clip(open_pictures(video), size, detector, settings.codec)
    assert np.array_equal(seen.reshape(32, 32, 3), as_training_saw_it(window.pictures[20]))


def test_further_views_are_the_same_frames_in_other_squares(drawn_videos, detector):
    video = drawn_videos / "videos" / "S002" / "surprise_1.mp4"
    settings = ExtractionSettings(size=64, gop_size=4, gop_seconds=0, views=3)
    entry = Entry(str(video), "a", "a.mp4", label="surprise")
    (clip,), _ = extract_clip(entry, settings, ["surprise"], detector)
    (again,), _ = extract_clip(entry, settings, ["surprise"], detector)
    (alone,), _ = extract_clip(entry, replace(settings, views=1), ["surprise"], detector)
    assert clip.views == again.views, "at random, but always the same"
    assert (clip.bitstream, alone.views) == (alone.bitstream, [])
    (other,), _ = extract_clip(replace(entry, clip_id="b"), settings, ["surprise"], detector)
    views = [Bitstream(data, "a view") for data in (*clip.views, *other.views)]
    firsts = [next(view.gop_pictures(0))[0] for view in views]
    found = next(Bitstream(clip.bitstream, "a").gop_pictures(0))[0]
    assert len(np.unique([found, *firsts], axis=0)) == 5, "each is another"
    for view in views:
        assert view.frame_types == Bitstream(clip.bitstream, "a").frame_types
        # Wherever the square is, the face fills it.
        assert np.corrcoef(next(view.gop_pictures(0))[0].ravel(), found.ravel())[0, 1] > 0.25


def test_windows_and_apex(drawn_videos, detector):
    video = drawn_videos / "videos" / "S002" / "surprise_1.mp4"
    settings = ExtractionSettings(
        size=64, gop_size=4, gop_seconds=0, identity="dlib", window_gops=3
    )
    entry = Entry(str(video), "a", "a.mp4", subject="S2", label="surprise", apex_frame=23)
    clips, failures = extract_clip(entry, settings, ["anger", "surprise"], detector)
    assert failures == []
    assert [clip.clip_id for clip in clips] == ["a#0001", "a#0002"]
    assert [clip.num_frames for clip in clips] == [12, 12]
    assert [clip.apex_frame for clip in clips] == [None, 11]
    assert [clip.label for clip in clips] == [1, 1]
    for clip in clips:
        gops = Bitstream(clip.bitstream, clip.clip_id).gops
        assert gops == [range(4), range(4, 8), range(8, 12)]


def test_some_frames_of_a_span_are_encoded(drawn_videos, detector):
    video = drawn_videos / "videos" / "S002" / "surprise_1.mp4"
    # Of 24 frames a second, a GOP stands for 8.
    settings = ExtractionSettings(
        size=64, gop_size=3, gop_seconds=1 / 3, identity="dlib", window_gops=2
    )
    entry = Entry(str(video), "a", "a.mp4", apex_frame=20)
    clips, failures = extract_clip(entry, settings, [], detector)
    assert failures == []
    assert [clip.num_frames for clip in clips] == [6, 3]
    # The second window is frames 16 to 23, of which 16, 20 and 23 are encoded.
    assert [clip.apex_frame for clip in clips] == [None, 1]
    spans = [range(16), range(16, 24)]
    windows = list(face_clip(open_pictures(video), 64, detector, EVERY_FRAME, spans))
    fps = windows[0].fps * 3 / 8
    assert [clip.fps for clip in clips] == [fps] * 2
    # The apex frame itself, 20, is one of them.
    assert np.array_equal(clips[1].apex, as_training_saw_it(windows[1].pictures[4]))
    pictures = [windows[1].pictures[frame] for frame in (0, 4, 7)]
    assert clips[1].pts_seconds == [16 / 24, 20 / 24, 23 / 24]
    times = [*clips[1].pts_seconds, 1]
    assert clips[1].bitstream == encode(pictures, settings.codec, fps, times).data


def test_parts_of_one_video_are_clips_of_their_own(drawn_videos, detector, tmp_path):
    """As extracted, and as planned: one digest of the source, two of the work."""
    video = drawn_videos / "videos" / "S002" / "surprise_1.mp4"
    settings = ExtractionSettings(size=64, gop_size=3, gop_seconds=0.25, identity="dlib")
    entry = Entry(str(video), "b", "a.mp4", apex_frame=13, start_seconds=0.25, end_seconds=0.75)
    (clip,), failures = extract_clip(entry, settings, [], detector)
    assert failures == []
    # Frames 6 to 18; a GOP stands for six, and the one that is left over belongs to the last.
    encoded = [6, 8, 11, 12, 15, 18]
    assert clip.pts_seconds == [n / 24 for n in encoded]
    # The frame nearest to the apex is 12, the video's.
    assert clip.apex_frame == 3
    pictures = open_pictures(video)
    (window,) = face_clip(pictures, 64, detector, settings.codec, [range(6, 19)])
    assert np.array_equal(clip.apex, as_training_saw_it(window.pictures[3]))
    looked: dict[int, list[Face]] = {}
    for frame, picture in zip((6, 11, 18), pictures.select((6, 11, 18)), strict=True):
        (looked[frame],) = detector.look(picture, [list(looked.values())])
    (person,) = persons_of(looked, picture.shape[:2])
    assert window.square == _square(*person), "it was looked for in the part alone"
    crops = window.pictures
    assert (
        clip.bitstream == encode(crops, settings.codec, clip.fps, [*clip.pts_seconds, 19 / 24]).data
    )
    entries = [
        replace(entry, clip_id="c", start_seconds=None, subject="S2"),
        replace(entry, subject="S1"),
    ]
    one, other = (plan_shards([e], settings, [], "")[0].digest for e in entries)
    assert one != other
    moved = plan_shards([replace(entries[0], start_seconds=0.1)], settings, [], "")[0]
    assert moved.digest != one
    # Two people in one video are no mistake, in one and the same part of it they are.
    plan_shards(entries, settings, [], "")
    with pytest.raises(InputError, match="the same bytes under two subjects"):
        plan_shards([replace(entries[0], start_seconds=0.25), entries[1]], settings, [], "")


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"end_seconds": 1.5}, "its span ends at 1.5 s, and the video at 1.000 s"),
        ({"start_seconds": 0.98}, "fewer than two pictures from 0.98 s to 1 s"),
        ({"start_seconds": 0.5, "apex_frame": 11}, "apex_frame 11 is not among its frames, 12 to"),
    ],
)
def test_a_part_that_is_not_in_the_video_is_a_failure(drawn_videos, detector, part, reason):
    video = drawn_videos / "videos" / "S001" / "happiness_1.mp4"
    entry = Entry(str(video), "a", "a.mp4", **part)
    clips, (failure,) = extract_clip(entry, ExtractionSettings(size=64), [], detector)
    assert clips == []
    assert (failure.clip_id, failure.stage) == ("a", "manifest")
    assert reason in failure.reason


@pytest.mark.parametrize(
    ("name", "apex_frame", "reason"),
    [
        ("happiness_1.mp4", 24, "apex_frame 24 is not among its frames, 0 to 23"),
        ("nosuch.mp4", None, "No such file"),
    ],
)
def test_what_cannot_be_used_is_a_failure(drawn_videos, detector, name, apex_frame, reason):
    entry = Entry(str(drawn_videos / "videos" / "S001" / name), "a", name, apex_frame=apex_frame)
    clips, (failure,) = extract_clip(entry, ExtractionSettings(size=64), [], detector)
    assert clips == []
    assert failure.clip_id == "a"
    assert reason in failure.reason


def test_a_real_video(faces_dir, detector):
    entry = Entry(str(faces_dir / "d18.mp4"), "d18", "d18.mp4")
    clips, failures = extract_clip(entry, ExtractionSettings(), [], detector)
    assert not failures
    assert sum(clip.num_frames for clip in clips) == 21, "3 of each second"
    assert all(clip.intra_fraction == 0 for clip in clips)
    # The same person through the whole video.
    i_frames = Bitstream(clips[0].bitstream, "d18").i_frames()
    first, last = open_face_embedder("dlib").embed([i_frames[0], i_frames[-1]])
    assert np.linalg.norm(first - last) < 0.6, "dlib's own threshold for one person"


# ----------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "63"), "--size 63: give an even number"),
        (("--gop-size", "1"), "--gop-size 1: give 2 or more"),
        (("--gop-seconds", "-1"), "GOP of -1.0 seconds: must be above 0"),
        (("--quantizer", "40"), "quantizer 40: must be from 1"),
        (("--clips-per-shard", "0"), "--clips-per-shard 0: give 1 or more"),
        (("--identity-weights", "w.pt", "--identity", "facenet"), "w.pt: cannot be read"),
        (("--actors", "0"), "--actors 0: give 1 or more"),
        (("--videos", "nosuch*.mp4"), "no clip found"),
        (("--root", "x"), "--root x: only for a --dataset"),
    ],
)
def test_mistakes_name_the_option(drawn_videos, tmp_path, options, message):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=re.escape(message)):
        main(["--videos", str(drawn_videos), "--out", str(out), *EXTRACTION, *options])
    assert not list(out.glob("shard-*"))


def test_unknown_class_names_stop_before_any_work(drawn_videos, tmp_path):
    arguments = ["--videos", str(drawn_videos / "manifest.csv"), "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"unknown class .*--classes has anger, joy"):
        main([*arguments, "--classes", "anger,joy"])
    with pytest.raises(InputError, match=r"no dataset\.json"):
        read_description(tmp_path / "out")


def test_presets_are_defaults():
    base = ["--videos", "v", "--out", "o", "--preset", "paper"]
    assert options_of(base).settings.size == 224
    assert options_of(base).settings.codec == CodecSettings(12, 4), "every frame"
    assert options_of([*base, "--size", "96"]).settings.size == 96
    assert options_of([*base, "--no-motion-search"]).settings.motion_search is False
    assert options_of(base[:4]).settings == ExtractionSettings()


def test_a_default_that_is_given_is_the_same_setting():
    """Else a data set that was begun without the option could not be gone on with."""
    given = "--size 112 --gop-size 3 --gop-seconds 1 --quantizer 4 --window-gops 20"
    given += " --identity auto"
    assert options_of(["--videos", "v", *given.split()]).settings == ExtractionSettings()
    assert ExtractionSettings(quantizer=5) != ExtractionSettings()
    assert ExtractionSettings(bit_rate=9000).quantizer is None


def test_bit_rate_takes_the_quantizers_place():
    codec = options_of("--videos v --bit-rate 200000".split()).settings.codec
    assert (codec.quantizer, codec.bit_rate) == (None, 200_000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--videos v --dataset ck+ --root r", "--videos, --dataset: give one of them"),
        ("--videos v --root r", "--root r: only for a --dataset"),
        ("--dataset synthetic --root r", "--root r: only for a --dataset"),
        ("--dataset ck+", "--dataset ck+: needs --root"),
        ("--dataset puppets", "--dataset puppets: needs --root"),
        ("--bit-rate 9000 --quantizer 4", "--quantizer, --bit-rate: give one of them"),
        ("--size 33", "--size 33: give an even number"),
        ("--gop-size 1", "--gop-size 1: give 2 or more"),
        ("--gop-seconds nan", "GOP of nan seconds: must be above 0"),
        ("--actors 0", "--actors 0: give 1 or more"),
        ("--quantizer 32", "quantizer 32: must be from 1"),
    ],
)
def test_options_that_cannot_be(words, message):
    with pytest.raises(InputError, match=re.escape(message)):
        options_of(words.split())


def test_videos_are_made_beside_the_shards(tmp_path):
    assert made_beside("shards", "drawn") == Path("drawn")
    assert made_beside(str(tmp_path / "shards"), "puppets") == tmp_path / "puppets"
    with pytest.raises(InputError, match="make them by `cfer draw` or `cfer puppets`"):
        made_beside("s3://bucket/shards", "drawn")


def test_what_an_earlier_cfer_has_extracted_is_not_gone_on_with(tmp_path):
    """Its GOPs had a length in frames."""
    now = {"settings": asdict(ExtractionSettings(gop_size=12, gop_seconds=0, identity="dlib"))}
    before = {name: value for name, value in now["settings"].items() if name != "gop_seconds"}
    before |= {"gop_span": 12, "quantiser": before.pop("quantizer")}
    (tmp_path / PLAN_NAME).write_text(json.dumps({"settings": before}))
    plan = read_plan(str(tmp_path))
    assert plan["settings"]["quantizer"] == 4, "by its name of today"
    message = "it was begun with gop_span 12, and now gop_span is None"
    with pytest.raises(InputError, match=message):
        check_same_plan(str(tmp_path), now)


def test_the_names_on_the_command_line_are_those_of_the_readers_and_networks():
    assert set(get_args(DatasetName)) == {*readers.NAMES, "synthetic", "puppets"}
    assert get_args(FaceNetwork) == face_embedder.NAMES


def test_a_source_is_known_by_its_bytes(tmp_path):
    one, two = tmp_path / "a.mp4", tmp_path / "b.mp4"
    one.write_bytes(b"same")
    two.write_bytes(b"same")
    assert (
        read_source(str(one)) == read_source(str(two)) == (hashlib.sha256(b"same").hexdigest(), 4)
    )
    two.write_bytes(b"other")
    assert read_source(str(one)) != read_source(str(two))
    assert read_source(str(tmp_path / "missing.mp4")) == ("", 0)


def test_a_folder_of_pictures_has_a_digest_of_its_own(tmp_path):
    for name in ("001.png", "002.png"):
        (tmp_path / name).write_bytes(b"picture")
    before = read_source(str(tmp_path))
    assert before.bytes == 14
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    assert read_source(str(tmp_path)) == before != ("", 0)
    Path(tmp_path / "002.png").rename(tmp_path / "003.png")
    assert read_source(str(tmp_path)) != before


# ----------------------------------------------------------------- the plan


def files_of(folder: Path, count: int, size: int = 9) -> list[Entry]:
    for number in range(count):
        (folder / f"{number:04d}.mp4").write_bytes(number.to_bytes(4) + bytes(size - 4))
    return [Entry(str(file), file.stem, file.name) for file in sorted(folder.glob("*.mp4"))]


def test_the_plan_follows_from_the_sources_alone(tmp_path):
    entries = files_of(tmp_path, 100)
    plan = plan_shards(entries, ONCE, [], "")
    assert [entry for shard in plan for entry in shard.entries] == entries
    assert [shard.index for shard in plan] == list(range(len(plan)))
    # 6 kB of each clip: 6 of them are the least that a shard is to have.
    assert [len(shard.entries) for shard in plan] == [6] * 16 + [4]
    assert plan_shards(entries, ONCE, [], "") == plan
    # Where a clip is left out at the end, all other shards are those that are there.
    assert plan_shards(entries[:-1], ONCE, [], "")[:-1] == plan[:-1]


def test_clips_with_more_to_encode_make_shards_of_fewer(tmp_path):
    def lengths(entries: list[Entry], **settings) -> list[int]:
        return [len(s.entries) for s in plan_shards(entries, replace(ONCE, **settings), [], "")]

    entries = files_of(tmp_path, 6)
    assert lengths(entries) == [6]
    assert lengths(entries, views=4) == [2, 2, 2]
    assert lengths(entries, size=224) == [2, 2, 2]
    assert lengths(entries, gop_seconds=0.25) == [2, 2, 2]
    assert lengths(files_of(tmp_path, 6, 2_000_000)) == [1] * 6
    assert lengths(entries, clips_per_shard=4) == [4, 2]


def test_the_job_says_how_many_clips_are_read_as_they_are(drawn_shards, tmp_path):
    known = read_description(drawn_shards)
    assert known.settings["native"]
    native = f"\n{known.counts['clips']} of them also as H.264 transmits them\n0 failures"
    assert native in summary(known, str(drawn_shards), 0, 1)
    clips = list(read_clips(drawn_shards))[:4]
    reasons = [None, "no face in the I-frame (at 1.00 s)", "no face in the I-frame (at 2.00 s)"]
    reasons.append("codec mpeg4")
    written = [
        replace(clip, native=clip.native if reason is None else [], native_refused=reason)
        for clip, reason in zip(clips, reasons, strict=True)
    ]
    receipt = write_shard(tmp_path, 0, written, [], "")
    write_description(tmp_path, replace(known, shards=[receipt]))
    said = summary(read_description(tmp_path), str(tmp_path), 0, 1).splitlines()
    assert said[1] == (
        "1 of them also as H.264 transmits them; 2 not: no face in the I-frame; 1 not: codec mpeg4"
    )
    encoded = replace(known, settings={**known.settings, "native": False})
    assert "as H.264" not in summary(encoded, str(drawn_shards), 0, 1)
