"""An extraction from a store, of names that mean harm, and of clips that end their process."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import pytest
from helpers import extract, poisoned_python, shard_bytes

from cfer.data.shards import read_clips, read_description, verify
from cfer.data.storage import Folder, StorageError
from cfer.video.faces import FaceDetector
from pipeline.actors import DEATHS_OF_A_SUSPECT, ClipActor, extract_clip
from pipeline.manifest import Entry, read_manifest
from pipeline.settings import ExtractionSettings

SETTINGS = ExtractionSettings(size=64, gop_size=3, gop_seconds=1 / 3, identity="dlib")

# ---- an object store -----------------------------------------------------------------------------


def upload(folder: Path, uri: str) -> None:
    for file in folder.iterdir():
        Folder(uri).write(file.name, file.read_bytes())


def downloaded(uri: str) -> dict[str, bytes]:
    folder = Folder(uri)
    kept = ("shard-", "dataset.json", "failures.csv")
    return {name: folder.read(name) for name in folder.names() if name.startswith(kept)}


def test_videos_manifest_and_shards_in_a_store(s3, six_videos, undisturbed, ray_session, tmp_path):
    """The same bytes as on a disk; done again only where needed."""
    uri = f"{s3.uri}/the data/{six_videos.name}".replace(" ", "%20")
    upload(six_videos, uri)
    out = f"{s3.uri}/out"
    assert extract(uri, out)[0] == 0
    assert downloaded(out) == shard_bytes(undisturbed)
    assert verify(out) == []
    status, said = extract(uri, out)
    assert status == 0
    assert "nothing to do" in said

    names = sorted(file.name for file in six_videos.iterdir())
    text = "path,clip_id\n" + "".join(f"{name},{Path(name).stem}\n" for name in names)
    Folder(uri).write("all.csv", text.encode())
    assert read_manifest(f"{uri}/all.csv") == read_manifest(uri)
    # A local CSV names what is in a store.
    table = tmp_path / "missing.csv"
    table.write_text(f"path\n{uri}/{names[0]}\n{uri}/nosuch.mp4\n")
    status, said = extract(table, tmp_path / "out", "--max-failures", "1")
    assert status == 0, said
    (failure,) = read_description(tmp_path / "out").failures
    assert "nosuch.mp4: there is no such file" in failure.reason
    (clip,) = read_clips(tmp_path / "out")
    assert clip.bitstream == next(read_clips(undisturbed)).bitstream


def test_a_store_that_is_out_of_order_is_no_fault_of_the_clip(s3, monkeypatch):
    monkeypatch.setattr("cfer.data.storage.PATIENCE_SECONDS", 0)
    s3.be("503")
    with pytest.raises(StorageError, match=r"a\.mp4: the store is out of order"):
        extract_clip(Entry(f"{s3.uri}/a.mp4", "a", "a.mp4"), SETTINGS, [], FaceDetector())


# ---- names that mean harm ------------------------------------------------------------------------


def test_whatever_a_video_is_called_nothing_is_written_elsewhere(six_videos, ray_session, tmp_path):
    video = sorted(six_videos.glob("*.mp4"))[0]
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    names = ["-rf .mp4", "$(touch x).mp4", "a\nb.mp4", "%2e%2e%2fx.mp4", "concat:x.mp4", "…'\".mp4"]
    for number, name in enumerate(names):
        (videos / name).write_bytes(video.read_bytes() + bytes(number + 1))
    given = {names[0]: "../../outside", names[2]: str(tmp_path / "outside")}
    with (videos / "clips.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [("path", "clip_id"), *((name, given.get(name, "")) for name in names)]
        )
    found = {entry.source: entry.clip_id for entry in read_manifest(str(videos))}
    assert found == {name: name.removesuffix(".mp4") for name in names}
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    status, said = extract(videos / "clips.csv", out)
    assert status == 0, said
    assert {clip.source: clip.clip_id for clip in read_clips(out)} == found | given
    assert verify(out) == []
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(out) for path in written)


# ---- clips that end their process ----------------------------------------------------------------


def test_a_suspects_clips_are_made_in_a_process_of_their_own(six_videos, tmp_path, monkeypatch):
    """So one that crashes the decoder is known, and the others of its shard are made."""
    monkeypatch.setenv("PYTHONPATH", poisoned_python(tmp_path / "hook"))
    out = tmp_path / "out"
    videos = sorted(six_videos.glob("*.mp4"))[:2]
    bad = tmp_path / "b_poisoned.mp4"
    bad.write_bytes(b"POISON" * 99)
    entries = [
        Entry(str(path), clip_id, path.name)
        for path, clip_id in zip((videos[0], bad, videos[1]), "abc", strict=True)
    ]
    row = {"index": 0, "digest": "d", "entries": pickle.dumps(entries)}
    out.mkdir()
    mark = out / "working-00000-clips.json"
    mark.write_text(json.dumps({"job": "now", "deaths": DEATHS_OF_A_SUSPECT - 1}))
    made = ClipActor(str(out), SETTINGS, [], "now")(row)
    (failure,) = pickle.loads(made["failures"])
    assert (failure.clip_id, failure.source) == ("b", bad.name)
    assert failure.stage == "native crash"
    assert failure.reason == "the decoder crashed at it (SIGSEGV); convert it to MP4"
    clips = pickle.loads(made["clips"])
    assert [clip.clip_id for clip in clips] == ["a", "c"]
    for clip, entry in zip(clips, entries[::2], strict=True):
        ((here,), _) = extract_clip(entry, SETTINGS, [], FaceDetector())
        assert clip.bitstream == here.bitstream
    assert not mark.exists()
