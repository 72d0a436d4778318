"""Faults of an extraction, each made for real: it ends with the rows of an undisturbed one."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import (
    extract,
    shard_bytes,
    start_extraction,
    wait_for,
)

from cfer.errors import InputError
from cfer.shards import read_clips, read_description, verify
from cfer.storage import Folder, StorageError
from pipeline.extract import main

# Loaded by each Python process that has it on its path; opening the poisoned file ends the process
# within native code, as a fault of the decoder does.
POISON = """
import ctypes
import av

_open = av.open

def _open_or_crash(file, *arguments, **options):
    if str(file).endswith("_poisoned.mp4"):
        ctypes.string_at(0)
    return _open(file, *arguments, **options)

av.open = _open_or_crash
"""


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The extraction's own actors, and not Ray's."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            command = " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
        if "ClipActor" in command or "ShardActor" in command or "MapWorker" in command:
            found.append(child)
    return found


def test_a_file_that_crashes_the_decoder_is_a_failure(six_videos, undisturbed, tmp_path):
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(POISON)
    videos, out = tmp_path / six_videos.name, tmp_path / "out"
    shutil.copytree(six_videos, videos)
    # Among the others of its shard.
    name = sorted(videos.glob("*.mp4"))[2].stem + "_poisoned"
    (videos / f"{name}.mp4").write_bytes(b"POISON" * 99)
    process = start_extraction(videos, out, PYTHONPATH=str(hook))
    assert process.wait(timeout=240) == 1
    (failure,) = read_description(out).failures
    assert (failure.clip_id, failure.stage) == (name, "native crash")
    assert "SIGSEGV" in failure.reason
    assert verify(out) == []
    assert rows(out) == rows(undisturbed)


def rows(out: Path) -> list[tuple[str, bytes, bytes]]:
    return [(c.clip_id, c.bitstream, c.identity.tobytes()) for c in read_clips(out)]


def test_extractors_killed_every_few_seconds(six_videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start_extraction(six_videos, out, "--clips-per-shard", "1")
    killed: set[int] = set()
    while process.poll() is None and len(killed) < 5:
        # Each in the midst of its work, which the next one finds begun.
        workers = [w for w in workers_of(process) if w.pid not in killed]
        if workers and list(out.glob("working-*")):
            worker = workers[len(killed) % len(workers)]
            worker.kill()
            killed.add(worker.pid)
            time.sleep(3)
        time.sleep(0.02)
    assert process.wait(timeout=240) == 0
    assert len(killed) >= 3
    assert rows(out) == rows(undisturbed)
    assert verify(out) == []


# ----------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB; a shard and its record take some 12."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"this machine does not let a file system be mounted: {mounted.stderr!r}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk(six_videos, undisturbed, small_disk, ray_session):
    out = small_disk / "out"
    out.mkdir()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(168 << 10))  # there is room for a shard, and not for three
    with pytest.raises(StorageError, match=r"No space left on device.*free some space") as caught:
        extract(six_videos, out)
    assert str(out) in str(caught.value)
    assert not (out / "dataset.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in out.glob("shard-*.json")}
    ballast.unlink()
    status, said = extract(six_videos, out)
    assert status == 0, said
    done = re.search(r"of which (\d+) are done already", said)
    # Another actor may have finished its shard after the first one's error was reported.
    assert done is not None
    assert int(done[1]) >= len(kept)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert shard_bytes(out) == shard_bytes(undisturbed)
    assert verify(out) == []


# ----------------------------------------------------------------- an object store


def upload(folder: Path, uri: str) -> None:
    for file in folder.iterdir():
        Folder(uri).write(file.name, file.read_bytes())


def downloaded(uri: str) -> dict[str, bytes]:
    folder = Folder(uri)
    kept = ("shard-", "dataset.json", "failures.csv")
    return {name: folder.read(name) for name in folder.names() if name.startswith(kept)}


def test_videos_manifest_and_shards_in_a_store(s3, six_videos, undisturbed, ray_session, tmp_path):
    """The same bytes as on a disk, from a folder and from a CSV; done again only where needed."""
    uri = f"{s3.uri}/the data/{six_videos.name}".replace(" ", "%20")
    upload(six_videos, uri)
    out = f"{s3.uri}/out"
    assert extract(uri, out)[0] == 0
    assert downloaded(out) == shard_bytes(undisturbed)
    status, said = extract(uri, out)
    assert "nothing to do" in said

    names = sorted(file.name for file in six_videos.iterdir())
    text = "path,clip_id\n" + "".join(f"{name},{Path(name).stem}\n" for name in names)
    Folder(uri).write("all.csv", text.encode())
    assert extract(f"{uri}/all.csv", f"{s3.uri}/by-csv")[0] == 0
    assert downloaded(f"{s3.uri}/by-csv") == shard_bytes(undisturbed)
    # A local CSV names what is in a store.
    table = tmp_path / "missing.csv"
    table.write_text(f"path\n{uri}/{names[0]}\n{uri}/nosuch.mp4\n")
    status, said = extract(table, tmp_path / "out", "--max-failures", "1")
    assert status == 0, said
    (failure,) = read_description(tmp_path / "out").failures
    assert "nosuch.mp4: there is no such file" in failure.reason
    assert read_description(tmp_path / "out").counts["clips"] == 1


def test_a_store_that_fails_and_is_slow_for_a_while(s3, six_videos, undisturbed, tmp_path):
    uri, out = f"{s3.uri}/{six_videos.name}", f"{s3.uri}/out"
    upload(six_videos, uri)
    process = start_extraction(uri, out)
    wait_for(lambda: Folder(out).exists("shard-00000.json"))
    before = s3.be("500")
    for mode in ("500", "503", "slow", "503"):
        s3.be(mode)
        time.sleep(4)
    assert s3.be("well") > before + 4, "it went on without the store"
    assert process.wait(timeout=240) == 0
    assert downloaded(out) == shard_bytes(undisturbed)
    assert verify(out) == []


# ----------------------------------------------------------------- names that mean harm


@pytest.mark.parametrize("path", ["../x.mp4", "videos/../../x.mp4", "s3://b/../x.mp4"])
def test_a_manifest_does_not_lead_upwards(tmp_path, path):
    (tmp_path / "m.csv").write_text(f"path\n{path}\n")
    with pytest.raises(InputError, match=r"m\.csv, line 2: path .* goes up by `\.\.`"):
        main(["--videos", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out")])


def test_a_manifest_does_not_lead_out_by_a_link(six_videos, tmp_path):
    video = sorted(six_videos.glob("*.mp4"))[0]
    (tmp_path / "link.mp4").symlink_to(video)
    (tmp_path / "folder").symlink_to(six_videos)
    for name in ("link.mp4", f"folder/{video.name}"):
        (tmp_path / "m.csv").write_text(f"path\n{name}\n")
        with pytest.raises(InputError, match=r"line 2: path .* is a link that leads out") as caught:
            main(["--videos", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out")])
        assert str(video) in str(caught.value)


def test_whatever_a_video_is_called_nothing_is_written_elsewhere(six_videos, ray_session, tmp_path):
    video = sorted(six_videos.glob("*.mp4"))[0]
    videos = tmp_path / "videos"
    videos.mkdir()
    names = ["-rf .mp4", "$(touch x).mp4", "a\nb.mp4", "%2e%2e%2fx.mp4", "concat:x.mp4", "…'\".mp4"]
    for number, name in enumerate(names):
        (videos / name).write_bytes(video.read_bytes() + bytes(number + 1))
    (videos / "clips.csv").write_text(
        f'path,clip_id\n{names[0]},../../outside\n"{names[2]}",/tmp/outside\n'
    )
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    for what, count in ((videos, len(names)), (videos / "clips.csv", 2)):
        out = tmp_path / f"out{count}"
        status, said = extract(what, out)
        assert status == 0, said
        assert len(list(read_clips(out))) == count
        assert verify(out) == []
        written = {p for p in tmp_path.rglob("*") if p.is_file()} - before
        assert all(p.is_relative_to(out) for p in written)
        before |= written
