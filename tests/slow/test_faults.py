"""Faults of an extraction, each made for real: it ends with the rows of an undisturbed one."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import extract, poisoned_python, shard_bytes, start_extraction, wait_for

from cfer.data.shards import read_clips, read_description, verify
from cfer.data.storage import Folder, StorageError


def rows(out: Path) -> list[tuple[str, bytes, bytes]]:
    return [(c.clip_id, c.bitstream, c.identity.tobytes()) for c in read_clips(out)]


def test_a_file_that_crashes_the_decoder_is_a_failure(six_videos, undisturbed, tmp_path):
    videos, out = tmp_path / six_videos.name, tmp_path / "out"
    shutil.copytree(six_videos, videos)
    # Among the others of its shard.
    name = sorted(videos.glob("*.mp4"))[2].stem + "_poisoned"
    (videos / f"{name}.mp4").write_bytes(b"POISON" * 99)
    process = start_extraction(videos, out, PYTHONPATH=poisoned_python(tmp_path / "hook"))
    assert process.wait() == 1
    (failure,) = read_description(out).failures
    assert (failure.clip_id, failure.stage) == (name, "native crash")
    assert "SIGSEGV" in failure.reason
    assert verify(out) == []
    assert rows(out) == rows(undisturbed)


# ---- workers that are killed ---------------------------------------------------------------------


def begun(out: Path, stage: str) -> set[tuple[str, str]]:
    """The shards that are worked at; each with its file's text, which counts those that died."""
    found = set()
    for file in out.glob(f"working-*-{stage}.json"):
        try:
            found.add((file.name, file.read_text()))
        except FileNotFoundError:  # it is done
            continue
    return found


def kill_workers(process: subprocess.Popen[bytes], kind: str) -> int:
    """The extraction's actors of this kind, which is in their names → how many there were."""
    count = 0
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if f"({kind})" in " ".join(child.cmdline()):
                child.kill()
                count += 1
        except psutil.NoSuchProcess:
            continue
    return count


def test_extractors_killed_in_the_midst_of_their_work(six_videos, undisturbed, tmp_path):
    """Until what they are at is suspected, and done in processes of its own."""
    table, out = tmp_path / "all.csv", tmp_path / "out"
    paths = sorted(six_videos.glob("*.mp4")) * 5  # enough that the work doesn't end meanwhile
    lines = [f"{path},clip-{number:02d}\n" for number, path in enumerate(paths)]
    table.write_text("path,clip_id\n" + "".join(lines))
    process = start_extraction(table, out, "--clips-per-shard", "5")
    seen: set[tuple[str, str]] = set()
    for kind, stage in (*[("ClipActor", "clips")] * 4, ("ShardActor", "shard")):
        # Since the last one was killed, another has begun.
        wait_for(lambda stage=stage: not begun(out, stage) <= seen, process)
        seen.update(begun(out, stage))
        assert kill_workers(process, kind) == 1
    assert process.wait() == 0
    expected = {
        Path(clip.source).name: (clip.bitstream, clip.identity.tobytes())
        for clip in read_clips(undisturbed)
    }
    clips = list(read_clips(out))
    assert [clip.clip_id for clip in clips] == [f"clip-{number:02d}" for number in range(30)]
    for clip in clips:
        assert (clip.bitstream, clip.identity.tobytes()) == expected[Path(clip.source).name]
    assert verify(out) == []
    assert not list(out.glob("working-*"))


# ---- a full disk ---------------------------------------------------------------------------------


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


# ---- an object store -----------------------------------------------------------------------------


def test_a_store_that_fails_and_is_slow_for_a_while(s3, six_videos, undisturbed, tmp_path):
    uri, out = f"{s3.uri}/{six_videos.name}", f"{s3.uri}/out"
    for file in six_videos.iterdir():
        Folder(uri).write(file.name, file.read_bytes())
    process = start_extraction(uri, out)
    wait_for(lambda: Folder(out).exists("shard-00000.json"))
    for mode in ("500", "503", "slow", "503"):
        before = s3.be(mode)
        # Each way, it asks again, and does not go on without the store.
        wait_for(lambda mode=mode, before=before: s3.be(mode) >= before + 3, process)
    s3.be("well")
    assert process.wait() == 0
    for name, data in shard_bytes(undisturbed).items():
        assert Folder(out).read(name) == data, name
    assert verify(out) == []
