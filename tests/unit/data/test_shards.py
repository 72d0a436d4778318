"""The data set on disk: what is written is what is read, and damage is seen."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cfer.cli import run
from cfer.codec import CodecSettings, encode
from cfer.data.folds import read_index
from cfer.data.inputs import APEX_SIZE, NATIVE_PLANES
from cfer.data.shards import (
    MOST_SHARDS_OF_A_SMALL_SET,
    SCHEMA,
    SHARD_BYTES,
    Clip,
    Description,
    Failure,
    cut_into_shards,
    expected_bytes,
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

SIZE = 16


def some_clip(number: int, **changes) -> Clip:
    rng = np.random.default_rng(number)
    moving = rng.integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)
    clip = Clip(
        clip_id=f"clip-{number}",
        dataset="test",
        source=f"videos/{number}.mp4",
        subject=f"S{number % 3}",
        label=number % 2,
        label_name=["anger", "joy"][number % 2],
        split=None,
        num_frames=7,
        fps=25.0,
        pts_seconds=[3 + n / 25 for n in range(7)],
        size=SIZE,
        gop_size=4,
        bitstream=encode(moving, CodecSettings(gop_size=4), 25).data,
        views=[encode(moving[:, ::-1], CodecSettings(gop_size=4), 25).data],
        native=[rng.bytes(2 * NATIVE_PLANES * (SIZE // 2) ** 2) for _ in range(2)],
        native_bytes=321,
        native_refused=None,
        identity=rng.normal(size=(2, 8)).astype(np.float32),
        apex_frame=6,
        apex=rng.integers(0, 256, (APEX_SIZE, APEX_SIZE, 3), dtype=np.uint8),
        intra_fraction=0.0,
        saturated_fraction=0.25,
    )
    return replace(clip, **changes)


def some_data_set(folder: Path, clips_per_shard: int = 2, shards: int = 3) -> Description:
    receipts = []
    for index in range(shards):
        numbers = range(index * clips_per_shard, (index + 1) * clips_per_shard)
        failures = [Failure(f"bad-{index}", "a.mp4", "faces", "no face, found", "ClipError")]
        clips = [some_clip(n) for n in numbers]
        receipts.append(write_shard(folder, index, clips, failures, f"work-{index}"))
    description = Description(
        name="test",
        classes=["anger", "joy"],
        codec={"size": SIZE, "gop_size": 4},
        identity={"name": "none", "dimension": 8, "weights_sha256": ""},
        settings={},
        shards=receipts,
        software={},
    )
    write_description(folder, description)
    return read_description(folder)


def test_what_is_written_is_read(tmp_path):
    clip = some_clip(3, subject=None, label=None, label_name=None, apex_frame=None, apex=None)
    some_data_set(tmp_path, shards=1)
    receipt = write_shard(tmp_path, 0, [some_clip(0), clip], [], "w")
    write_description(tmp_path, replace(read_description(tmp_path), shards=[receipt]))
    first, second = read_clips(tmp_path)
    assert second.subject is None
    assert second.label is None
    assert second.apex is None
    for read, written in ((first, some_clip(0)), (second, clip)):
        assert read.bitstream == written.bitstream
        assert np.array_equal(read.identity, written.identity)
        assert read.pts_seconds == written.pts_seconds
        assert read.saturated_fraction == 0.25
    assert np.array_equal(first.apex, some_clip(0).apex)


@pytest.mark.parametrize("version", [2, 3, 99])
def test_shards_of_another_version_are_refused_with_the_command_that_makes_them_anew(
    tmp_path, version
):
    """2 had no times, 3 had pictures beside the bitstream."""
    some_data_set(tmp_path)
    path = tmp_path / "dataset.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "schema_version": version}))
    with pytest.raises(InputError, match=rf"version {version},.*cfer extract --videos"):
        read_description(tmp_path)


def test_columns_are_plain_arrow(tmp_path):
    some_data_set(tmp_path)
    table = pq.read_table(tmp_path / "shard-00001.parquet")
    assert table.schema == SCHEMA
    assert table.column("subject").to_pylist() == ["S2", "S0"]


def test_description_counts_and_digest(tmp_path):
    description = some_data_set(tmp_path / "a")
    assert description.counts["clips"] == 6
    assert description.counts["frames"] == 42
    assert description.counts["labels"] == {"anger": 3, "joy": 3}
    assert description.counts["subjects"] == {"S0": 2, "S1": 2, "S2": 2}
    assert description.counts["failures"] == 3
    assert description.digest == some_data_set(tmp_path / "b").digest
    assert description.digest != some_data_set(tmp_path / "c", shards=2).digest
    lines = (tmp_path / "a" / "failures.csv").read_text().splitlines()
    assert lines[0] == "clip_id,source,stage,reason,exception"
    assert lines[1] == 'bad-0,a.mp4,faces,"no face, found",ClipError'
    paths = description.shard_paths(Folder(tmp_path / "a"))
    assert [Path(p).is_file() for p in paths] == [True] * 3


def test_a_whole_data_set_verifies(tmp_path, capsys):
    some_data_set(tmp_path)
    assert verify(tmp_path) == []
    assert run(["verify", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "6 clips, 42 frames" in said
    assert "every hash and count is right" in said


def test_one_flipped_byte_is_found(tmp_path, capsys):
    some_data_set(tmp_path)
    path = tmp_path / "shard-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (problem,) = verify(tmp_path)
    assert "shard-00001.parquet" in problem
    assert shard_is_done(tmp_path, 1, "work-1") is None
    assert run(["verify", str(tmp_path)]) == 1
    assert "1 PROBLEMS" in capsys.readouterr().out


def test_other_damage_is_found(tmp_path):
    some_data_set(tmp_path)
    (tmp_path / "shard-00002.parquet").unlink()
    (tmp_path / "shard-00009.parquet").write_bytes(b"stray")
    record = json.loads((tmp_path / "shard-00000.json").read_text())
    (tmp_path / "shard-00000.json").write_text(json.dumps({**record, "rows": 9}))
    text = "\n".join(verify(tmp_path))
    assert "shard-00002.parquet: missing" in text
    assert "shard-00009.parquet: a shard that" in text
    assert "shard-00000.json" in text


def test_a_wrong_count_behind_a_right_hash_is_found(tmp_path):
    description = some_data_set(tmp_path)
    data = (tmp_path / "shard-00001.parquet").read_bytes()
    (tmp_path / "shard-00000.parquet").write_bytes(data)
    swapped = replace(
        description.shards[0], sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)
    )
    values = json.loads((tmp_path / "shard-00000.json").read_text())
    (tmp_path / "shard-00000.json").write_text(
        json.dumps({**values, "sha256": swapped.sha256, "bytes": swapped.bytes})
    )
    write_description(tmp_path, replace(description, shards=[swapped, *description.shards[1:]]))
    text = "\n".join(verify(tmp_path))
    assert "subjects" in text
    assert "clip-2 occurs twice" in text


def test_times_that_are_not_the_bitstreams_are_found(tmp_path):
    description = some_data_set(tmp_path, shards=1)
    wrong = some_clip(1, pts_seconds=[3 + n / 24 for n in range(7)])
    receipt = write_shard(tmp_path, 0, [some_clip(0), wrong], [], "work")
    write_description(tmp_path, replace(description, shards=[receipt]))
    (problem,) = verify(tmp_path)
    assert "clip-1: pts_seconds are not the times of its bitstream" in problem


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_frames": 6, "pts_seconds": [n / 25 for n in range(6)]}, "num_frames 6, and .* 7"),
        ({"gop_size": 5}, "gop_size 5, and its bitstream has 4"),
        ({"bitstream": b"no video"}, "clip-1"),
    ],
)
def test_what_a_row_says_of_its_bitstream_is_checked(tmp_path, changes, problem):
    description = some_data_set(tmp_path, shards=1)
    receipt = write_shard(tmp_path, 0, [some_clip(1, **changes)], [], "work")
    write_description(tmp_path, replace(description, shards=[receipt]))
    assert re.search(problem, "\n".join(verify(tmp_path)))


@pytest.mark.parametrize(("frames", "gop_size"), [(1, 4), (3, 1)])
def test_clips_without_a_p_frame_are_not_trained_on(tmp_path, frames, gop_size):
    """Nor is one decoded to find out."""
    times = [n / 25 for n in range(frames)]
    still = some_clip(1, num_frames=frames, pts_seconds=times, gop_size=gop_size, bitstream=b"")
    description = some_data_set(tmp_path, shards=1)
    receipt = write_shard(tmp_path, 0, [some_clip(0), still], [], "work")
    write_description(tmp_path, replace(description, shards=[receipt]))
    with pytest.raises(InputError, match=r"1 clips have no P-frame, so no residual \(clip-1, …\)"):
        read_index(str(tmp_path))


def test_nothing_is_stored_twice(tmp_path):
    """No picture that the bitstream has; and nothing of a bitstream in the file's statistics."""
    write_shard(tmp_path, 0, [some_clip(0)], [], "work")
    metadata = pq.ParquetFile(tmp_path / "shard-00000.parquet").metadata.row_group(0)
    columns = [metadata.column(n) for n in range(metadata.num_columns)]
    assert not any(column.is_stats_set for column in columns)
    large = {c.path_in_schema.split(".")[0] for c in columns if c.total_compressed_size > 300}
    assert large <= {"apex", "bitstream", "identity", "native", "views"}


def test_done_means_the_same_work_and_an_unharmed_file(tmp_path):
    some_data_set(tmp_path)
    assert shard_is_done(tmp_path, 0, "work-0") is not None
    assert shard_is_done(tmp_path, 0, "other settings") is None
    assert shard_is_done(tmp_path, 7, "work-7") is None
    (tmp_path / "shard-00000.parquet").write_bytes(b"")
    assert shard_is_done(tmp_path, 0, "work-0") is None


def test_a_shard_without_a_record_is_not_done(tmp_path):
    some_data_set(tmp_path)
    (tmp_path / "shard-00001.json").unlink()
    assert read_receipt(tmp_path, 1) is None


@pytest.mark.parametrize("text", ["", "{", '{"index": 1}', "[]"])
def test_a_malformed_record_is_named(tmp_path, text):
    some_data_set(tmp_path)
    (tmp_path / "shard-00001.json").write_text(text)
    with pytest.raises(InputError, match=r"shard-00001\.json: not a completion record"):
        read_receipt(tmp_path, 1)


def test_not_a_data_set(tmp_path):
    with pytest.raises(InputError, match=r"no dataset\.json in it; give the folder"):
        read_description(tmp_path)
    some_data_set(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(InputError, match="extraction has not finished"):
        read_description(tmp_path)


# ---- how large a shard is ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 28, 593, 7442, 100_000, 1_000_000])
def test_shards_are_neither_many_nor_too_few(count):
    """Of clips of a second, from videos of 200 kB."""
    each = expected_bytes(200_000, 112, CodecSettings(3, gop_span=24))
    assert 9000 < each < 9500
    shards = cut_into_shards([each] * count)
    assert [n for shard in shards for n in shard] == list(range(count))
    assert len(shards) <= max(MOST_SHARDS_OF_A_SMALL_SET, count * each / SHARD_BYTES)
    assert len(shards[0]) * each < SHARD_BYTES + each
    # A machine of 64 cores has work for each of them as soon as there are 4 clips for it.
    assert len(shards) >= min(64, count / 4)


def test_a_long_video_is_a_shard_of_its_own():
    """An hour of it becomes some 14 MB."""
    codec = CodecSettings(3, gop_span=24)
    short, long = (expected_bytes(n, 112, codec) for n in (200_000, 1_000_000_000))
    assert 10e6 < long < 20e6
    assert cut_into_shards([long, long, short, short, long]) == [
        range(1), range(1, 2), range(2, 5)
    ]  # fmt: skip


def test_larger_pictures_and_more_of_them_take_more():
    default = expected_bytes(0, 112, CodecSettings(3, gop_span=24))
    assert expected_bytes(0, 224, CodecSettings(3, gop_span=24)) == 4 * default
    assert expected_bytes(0, 112, CodecSettings(12)) == 8 * default
    assert expected_bytes(0, 64, CodecSettings(3, gop_span=24)) == default


def test_no_clips_are_no_shards():
    assert cut_into_shards([]) == []


def test_the_same_clips_give_the_same_bytes(tmp_path):
    some_data_set(tmp_path / "a")
    some_data_set(tmp_path / "b")
    for name in ("shard-00000.parquet", "shard-00002.json", "dataset.json", "failures.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_native_views_are_whole_planes(tmp_path):
    some_data_set(tmp_path, clips_per_shard=1, shards=1)
    clip = next(read_clips(tmp_path))
    with pytest.raises(AssertionError, match="1 native views beside 1 others"):
        replace(clip, native=clip.native[:1])
    description = read_description(tmp_path)
    cut = replace(clip, native=[clip.native[0], clip.native[1][:-1]])
    receipt = write_shard(tmp_path, 0, [cut], description.failures, "work-0")
    write_description(tmp_path, replace(description, shards=[receipt]))
    (problem,) = verify(tmp_path)
    assert "its native view 1 is no whole number of planes" in problem
