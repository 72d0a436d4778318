"""Names of folders and files as people write them, and who may read what is written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfer.data.storage import Folder, below, folder_of
from cfer.errors import InputError
from cfer.train.command import TrainConfig
from cfer.train.run import location_of

NAMES = ["lambda=1", "first run", "50%", "a#b", "a?b", "%41", "é", "a+b", "a&b=c"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_any_name_is_where_its_name_says(tmp_path: Path, name: str) -> None:
    for storage in (str(tmp_path), f"file://{tmp_path}", f"file://{tmp_path}/"):
        folder = Folder(location_of(TrainConfig(data="", storage=storage, run=name)))
        folder.write("run.json", b"{}")
        folder.folder("inner").write("x", b"")
        assert Folder(folder.folder("inner").location).names() == ["x"]
        assert folder_of(folder.location_of("run.json"))[0].read("run.json") == b"{}"
        assert folder_of(folder.location_of("run.json"))[1] == "run.json"
        assert folder_of(folder.location)[1] == name
        assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["first run", "50%", "a#b", "é"])
def test_a_uri_may_be_written_as_people_write_it(tmp_path: Path, name: str) -> None:
    Folder(f"file://{tmp_path}/{name}").write("x", b"")
    assert os.listdir(tmp_path) == [name]


def test_what_is_after_a_question_mark_is_no_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a file has no options; write \\? as %3F"):
        Folder(f"file://{tmp_path}/a?b")
    with pytest.raises(InputError, match="allow_bucket_deletion is not an option"):
        Folder("s3://bucket/a?allow_bucket_deletion=true&region=eu-west-1")


def test_options_of_a_store_stay_at_the_end_and_keys_out_of_messages() -> None:
    location = "s3://key:secret%2F@bucket/a?region=eu-west-1&endpoint_override=127.0.0.1:1"
    assert below(location, "b c") == location.replace("/a?", "/a/b%20c?")
    folder = Folder(location).folder("b c")
    assert (folder.path, folder.filesystem.region) == ("bucket/a/b c", "eu-west-1")
    assert Folder(folder.location).path == folder.path
    assert folder.name_of("d") == "s3://bucket/a/b%20c/d"
    assert folder_of(folder.location)[1] == "b c"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_who_may_read_a_file_is_the_umasks_to_say(tmp_path: Path, umask: None) -> None:
    folder = Folder(tmp_path / "shards")
    folder.write("shard", b"a face")
    folder.write("shard", b"another")
    assert (tmp_path / "shards" / "shard").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "shards").stat().st_mode & 0o777 == 0o700
    os.umask(0o022)
    folder.write("shard", b"a third")
    assert (tmp_path / "shards" / "shard").stat().st_mode & 0o777 == 0o644
    assert folder.names() == ["shard"]


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    folder.write("a.json", b"before")

    def disk_full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(InputError, match=r"a\.json: cannot be written \(No space left"):
        folder.write("a.json", b"after")
    assert folder.read("a.json") == b"before"
    assert folder.names() == ["a.json"]


def test_a_wrong_location_is_named() -> None:
    with pytest.raises(InputError, match="nosuch://bucket"):
        Folder("nosuch://bucket/x")
