"""A data set in an object store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import S3Server, wait_for

from cfer.cli import run
from cfer.data.folds import read_index
from cfer.data.shards import (
    read_clips,
    read_description,
    read_receipt,
    shard_is_done,
    verify,
    write_description,
    write_shard,
)
from cfer.data.storage import Folder
from cfer.errors import InputError


def test_an_object_store_holds_the_same(s3_bucket: str, drawn_shards: Path) -> None:
    remote = f"{s3_bucket}/sets/one"
    description = read_description(drawn_shards)
    clips = list(read_clips(drawn_shards))
    for index in range(2):
        digest = read_receipt(drawn_shards, index).digest
        write_shard(remote, index, clips[5 * index : 5 * index + 5], [], digest)
    write_description(remote, description)
    assert read_description(remote).digest == description.digest
    assert verify(remote) == []
    for theirs, ours in zip(read_clips(remote), clips, strict=True):
        assert theirs.bitstream == ours.bitstream
    assert read_index(remote) == read_index(str(drawn_shards))
    digest = read_receipt(drawn_shards, 1).digest
    assert shard_is_done(remote, 1, digest) is not None
    Folder(remote).write("shard-00001.parquet", b"damaged")
    assert shard_is_done(remote, 1, digest) is None
    assert run(["verify", remote]) == 1
    Folder(remote).delete("dataset.json")
    with pytest.raises(InputError, match=r"s3://\S+/sets/one: no dataset\.json"):
        read_description(remote)


def test_an_index_is_read_when_its_store_is_in_order_again(s3: S3Server, drawn_shards: Path):
    remote = f"{s3.uri}/set"
    for file in drawn_shards.iterdir():
        Folder(remote).write(file.name, file.read_bytes())
    before = s3.be("without-shards")
    with ThreadPoolExecutor(1) as pool:
        index = pool.submit(read_index, remote)
        # A request is asked three times by itself.
        wait_for(lambda: index.done() or s3.be("without-shards") > before + 6)
        s3.be("well")
        assert index.result() == read_index(str(drawn_shards))
