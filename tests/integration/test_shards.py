"""A data set in an object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfer.errors import InputError
from cfer.shards import (
    main,
    read_clips,
    read_description,
    read_receipt,
    shard_is_done,
    verify,
    write_description,
    write_shard,
)
from cfer.storage import Folder


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
    assert read_description(remote).shard_paths(remote)[0] == f"{remote}/shard-00000.parquet"
    digest = read_receipt(drawn_shards, 1).digest
    assert shard_is_done(remote, 1, digest) is not None
    Folder(remote).write("shard-00001.parquet", b"damaged")
    assert shard_is_done(remote, 1, digest) is None
    assert main(["verify", remote]) == 1
    Folder(remote).delete("dataset.json")
    with pytest.raises(InputError, match=r"s3://\S+/sets/one: no dataset\.json"):
        read_description(remote)
