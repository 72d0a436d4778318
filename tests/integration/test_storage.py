"""Folders on a disk and in object stores: real servers of S3 and of Google Cloud Storage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import MOST_SECONDS, S3Server, free_ports, is_open, wait_for

import cfer.data.lock
import cfer.data.storage
from cfer.data.lock import _machine, owned
from cfer.data.storage import Folder, StorageError, local_copy
from cfer.errors import InputError


@pytest.fixture(scope="module")
def gcs_bucket() -> Iterator[str]:
    (port,) = free_ports(1)
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("gcp-storage-emulator")), "start"]
        + ["--host", "127.0.0.1", "--port", str(port), "--in-memory", "--default-bucket", "bucket"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: is_open(port))
        yield "gs://anonymous@bucket"
    finally:
        del os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"]
        server.kill()
        server.wait()


@pytest.fixture(params=["disk", "s3", "gs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A folder that is not there yet, with a space in its name."""
    if request.param == "disk":
        return Folder(tmp_path / "some where")
    bucket = request.getfixturevalue("s3_bucket" if request.param == "s3" else "gcs_bucket")
    return Folder(f"{bucket}/some%20where")


def test_the_same_on_a_disk_and_in_a_store(folder):
    assert folder.names() == []
    assert not folder.exists("a b.bin")
    with pytest.raises(InputError, match=r"a b\.bin: there is no such file"):
        folder.read("a b.bin")
    folder.write("a b.bin", b"1" * 1000)
    folder.write("a b.bin", b"2" * 999)
    folder.write("empty", b"")
    Folder(folder.location_of("deeper")).write("c", b"3")
    assert folder.read("a b.bin") == b"2" * 999
    assert folder.read("empty") == b""
    assert folder.names() == ["a b.bin", "empty"], "nothing half-written beside them"
    assert folder.folder_names() == ["deeper"]
    assert folder.names_below() == ["a b.bin", "deeper/c", "empty"]
    with local_copy(folder.location_of("a b.bin")) as path:
        assert path.suffix == ".bin"
        assert path.read_bytes() == b"2" * 999
    with local_copy(folder.location_of("deeper")) as path:
        assert [file.name for file in path.iterdir()] == ["c"]
    folder.delete("a b.bin")
    folder.delete("a b.bin")
    folder.delete_folder("deeper")
    assert folder.names_below() == ["empty"]


def test_what_is_in_no_store(s3_bucket):
    with (
        pytest.raises(InputError, match=r"nosuch\.mp4: there is no such file or folder"),
        local_copy(f"{s3_bucket}/nosuch.mp4"),
    ):
        pass
    with pytest.raises(StorageError, match=r"nosuchbucket/x: cannot be written"):
        Folder("s3://nosuchbucket").write("x", b"1")


def test_more_than_one_piece(s3_bucket):
    data = os.urandom(20_000_000)
    folder = Folder(s3_bucket)
    folder.write("large", data)
    assert [len(piece) for piece in folder.chunks("large")] == [
        8 << 20,
        8 << 20,
        20_000_000 % (8 << 20),
    ]
    assert folder.read("large") == data


def test_a_store_that_stays_out_of_order_is_an_error(s3: S3Server, monkeypatch):
    monkeypatch.setattr(cfer.data.storage, "PATIENCE_SECONDS", 3)
    folder = Folder(f"{s3.uri}/any")
    folder.write("a", b"1")
    s3.be("503")
    with pytest.raises(StorageError, match=r"any/a: the store is out of order.*503.*start again"):
        folder.read("a")
    s3.be("well")
    assert folder.read("a") == b"1"


def test_a_store_that_has_deleted_a_file_and_does_not_say_so(s3: S3Server):
    folder = Folder(f"{s3.uri}/any")
    for name in ("a", "below/b"):
        folder.write(name, b"1")
    s3.be("forgetful")
    folder.delete("a")
    folder.delete_folder("below")
    assert folder.names_below() == []
    assert s3.be("well") > 1


# ---- who owns a folder ---------------------------------------------------------------------------


def test_of_a_store_a_job_that_lives_keeps_its_folder(s3: S3Server, monkeypatch) -> None:
    monkeypatch.setattr(cfer.data.lock, "RENEWED_SECONDS", 0.2)
    monkeypatch.setattr(cfer.data.lock, "SILENT_SECONDS", MOST_SECONDS)
    folder = Folder(f"{s3.uri}/out")
    busy = pytest.raises(InputError, match="another job is at work in it")
    with owned(folder, "--out"), busy, owned(folder, "--out"):
        pytest.fail("two owners")
    assert folder.names() == []
    with owned(folder, "--out"):
        assert folder.names() == [cfer.data.lock.NAME]


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_of_a_store_a_dead_jobs_folder_is_taken_over(s3: S3Server, monkeypatch, host: str) -> None:
    """One of this machine at once; another's when it has been silent."""
    monkeypatch.setattr(
        cfer.data.lock, "SILENT_SECONDS", 1 if host == "elsewhere" else MOST_SECONDS
    )
    folder = Folder(f"{s3.uri}/out")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    where = _machine() if host == "here" else "elsewhere"
    notes = [f"1 renewed 7 times by process {dead.pid} of {where}"]
    if host == "elsewhere":  # and that of an earlier cfer, and any other file
        notes += [json.dumps({"job": "1", "machine": _machine(), "process": dead.pid}), "", "note"]
    for text in notes:
        folder.write(cfer.data.lock.NAME, text.encode())
        with owned(folder, "--out"):
            assert folder.read(cfer.data.lock.NAME) != text.encode()
        assert folder.names() == []


def test_of_a_store_a_note_that_is_not_ones_own_is_left_alone(s3: S3Server, monkeypatch) -> None:
    monkeypatch.setattr(cfer.data.lock, "RENEWED_SECONDS", 0.1)
    folder = Folder(f"{s3.uri}/out")
    said = threading.Event()
    monkeypatch.setattr(cfer.data.lock.log, "warning", lambda *_: said.set())
    with owned(folder, "--out"):
        folder.write(cfer.data.lock.NAME, b"another")
        wait_for(said.is_set)
    assert folder.read(cfer.data.lock.NAME) == b"another"


def test_the_lock_of_a_killed_job_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import time; from cfer.data.lock import owned; from cfer.data.storage import Folder\n"
        f"with owned(Folder({str(tmp_path)!r}), '--out'):\n"
        "    print('owned', flush=True); time.sleep(1e6)"
    )
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdout.readline() == "owned\n"
    with pytest.raises(InputError, match="another job"), owned(Folder(tmp_path), "--out"):
        pytest.fail("two owners")
    job.kill()
    job.wait()
    with owned(Folder(tmp_path), "--out"):
        pass
