"""The data set on disk: one place that writes, reads, validates and describes a row.

A data set is a folder (local, or `s3://...`) of

    shard-00000.parquet   one row per clip, plain Arrow types, Zstandard
    shard-00000.json      its completion record: written after the shard, so a shard without a
                          record is unfinished work
    failures.csv          every clip that was not extracted: where it failed, and why
    dataset.json          what the data set is; written last, so its presence says "complete"

`cfer verify DIR` checks every hash, count and row.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cfer.codec import Bitstream, CodecError, CodecSettings, spelled_as_now
from cfer.codec.containers import COARSE_TICKS_PER_SECOND
from cfer.data import DESCRIPTION_NAME
from cfer.data.inputs import APEX_SIZE, NATIVE_PLANES
from cfer.data.storage import Folder
from cfer.errors import InputError

SCHEMA_VERSION = 6
FAILURES_NAME = "failures.csv"
ROWS_OF_A_GROUP = 64  # what a reader of some columns has in memory at a time

# The size that a shard is meant to have: a million clips are then one or two thousand shards. Of a
# small set each worker should have several shards, and a kill should lose only seconds of work.
SHARD_BYTES, LEAST_SHARD_BYTES = 2**23, 2**15
MOST_SHARDS_OF_A_SMALL_SET = 256
# What a clip is expected to take in a shard at the default settings: a fixed part (a second of
# pictures, identity, apex), and a share of the bytes of its source.
BYTES_OF_A_CLIP, SHARE_OF_THE_SOURCE = 6000, 1 / 64
USUAL_FPS = Fraction(24)  # of a video that was not opened yet
DEFAULT_SAMPLES = 112**2 * 3 / 24  # of a picture, for each frame of the source

SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("subject", pa.string()),
        pa.field("label", pa.int32()),
        pa.field("label_name", pa.string()),
        pa.field("split", pa.string()),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("pts_seconds", pa.list_(pa.float64()), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("gop_size", pa.int32(), nullable=False),
        pa.field("bitstream", pa.binary(), nullable=False),
        pa.field("views", pa.list_(pa.binary()), nullable=False),
        pa.field("native", pa.list_(pa.binary()), nullable=False),
        pa.field("native_bytes", pa.int64(), nullable=False),
        pa.field("native_refused", pa.string()),
        pa.field("identity", pa.list_(pa.list_(pa.float32())), nullable=False),
        pa.field("apex_frame", pa.int32()),
        pa.field("apex", pa.binary()),
        pa.field("intra_fraction", pa.float32(), nullable=False),
        pa.field("saturated_fraction", pa.float32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Clip:
    """One clip's row.

    S is the side of the square face crop in pixels (even), D the dimension of the identity
    embedding. I-frames and residuals are stored only in the bitstream, where they are smallest, and
    any kind of residual can be read from it: `Bitstream(clip.bitstream, clip.clip_id)`.

    Attributes:
        clip_id: unique in the data set.
        dataset, source: the data set's name, and the path of the video or folder.
        subject, label, label_name, split: nullable; `label` indexes `Description.classes`.
        num_frames, fps: of the encoded clip; frames per second, on average.
        pts_seconds: when each frame is shown, ascending: seconds since the video's first picture,
            also in a window that is cut out of it. The bitstream's own times start at its first.
        size, gop_size: S, and the frames from one I-frame to the next.
        bitstream: the clip as an MPEG-4 Part 2 video in MP4, which any player shows.
        views: more of these, with the face's square a little elsewhere.
        native: of each view, as many as there are bitstreams, the planes that its H.264 file itself
            transmits (`cfer.data.native.NativeWindow.planes`): uint8 (T, 8, S/2, S/2), as bytes.
            They take less room than the packets that they are read from, and no more than the
            encoded views. None without --native, or where `native_refused` says why.
        native_bytes: of the packets that they are read from; 0 without.
        native_refused: why the file isn't read as it is; None if it is, or nobody asked.
        identity: float32 (J, D), the frozen network's embeddings of J ≥ 1 of the I-frames, as it
            gives them (`cfer.model.face_embedder.embed_clip`).
        apex_frame, apex: frame number of the annotated apex, and its picture before encoding, in
            the size that training uses (`cfer.data.inputs.apex_picture`): RGB uint8 (32, 32, 3),
            stored as PNG (lossless).
        intra_fraction: share of the P-frames' macroblocks that are intra, in [0, 1].
        saturated_fraction: share of the residual samples at 0 or 255, in [0, 1].
    """

    clip_id: str
    dataset: str
    source: str
    subject: str | None
    label: int | None
    label_name: str | None
    split: str | None
    num_frames: int
    fps: float
    pts_seconds: list[float] = field(repr=False)
    size: int
    gop_size: int
    bitstream: bytes = field(repr=False)
    views: list[bytes] = field(repr=False)
    native: list[bytes] = field(repr=False)
    native_bytes: int
    native_refused: str | None
    identity: np.ndarray = field(repr=False)
    apex_frame: int | None
    apex: np.ndarray | None = field(repr=False)
    intra_fraction: float
    saturated_fraction: float

    def __post_init__(self) -> None:
        assert len(self.pts_seconds) == self.num_frames, (
            f"{self.clip_id}: {len(self.pts_seconds)} pts_seconds of {self.num_frames} frames"
        )
        assert len(self.native) in (0, 1 + len(self.views)), (
            f"{self.clip_id}: {len(self.native)} native views beside {len(self.views)} others"
        )
        assert len(self.identity), f"{self.clip_id}: identity is {self.identity.shape}"
        assert self.apex is None or self.apex.shape == (APEX_SIZE, APEX_SIZE, 3), (
            f"{self.clip_id}: apex is {self.apex.shape}"
        )


@dataclass(frozen=True)
class Failure:
    """A clip that was not extracted: at which stage it failed, why, and the exception's type."""

    clip_id: str
    source: str
    stage: str
    reason: str
    exception: str


@dataclass(frozen=True)
class Receipt:
    """A shard's completion record: what was asked for (`digest`), and what was written.

    `labels`, `subjects` and `splits` count the shard's rows; a clip without one counts under "".
    """

    index: int
    digest: str
    file: str
    rows: int
    frames: int
    bytes: int
    sha256: str
    labels: dict[str, int]
    subjects: dict[str, int]
    splits: dict[str, int]
    failures: list[Failure]


@dataclass(frozen=True)
class Description:
    """`dataset.json`: what a reader needs to know before it opens a shard.

    Attributes:
        name: the data set's name.
        classes: class names; a row's `label` indexes them.
        codec: `size`, and the fields of `CodecSettings`.
        identity: `name`, `dimension`, `weights_sha256` of the frozen embedder.
        settings: the other settings of the extraction.
        shards: the completion record of every shard, in order.
        software: versions of what wrote it.
    """

    name: str
    classes: list[str]
    codec: dict[str, Any]
    identity: dict[str, Any]
    settings: dict[str, Any]
    shards: list[Receipt]
    software: dict[str, str]
    schema_version: int = SCHEMA_VERSION
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def codec_settings(self) -> CodecSettings:
        return CodecSettings(**{k: v for k, v in self.codec.items() if k != "size"})

    @property
    def digest(self) -> str:
        """SHA-256 of the shards' SHA-256: it names the data, independently of its folder."""
        return hashlib.sha256("".join(r.sha256 for r in self.shards).encode()).hexdigest()

    @property
    def failures(self) -> list[Failure]:
        return [failure for receipt in self.shards for failure in receipt.failures]

    def shard_paths(self, folder: Folder) -> list[str]:
        """The paths, in the folder's store, of the shards that have rows."""
        return [f"{folder.path}/{receipt.file}" for receipt in self.shards if receipt.rows]


def expected_bytes(source_bytes: float, size: int, codec: CodecSettings) -> float:
    """Roughly the bytes that a clip will take in a shard, before it is decoded.

    Args:
        source_bytes: of its video, or of its pictures together.
        size: side of the face crops, pixels.
    """
    samples = size**2 * codec.gop_size / codec.at(USUAL_FPS).span
    default = BYTES_OF_A_CLIP + SHARE_OF_THE_SOURCE * source_bytes
    # Smaller pictures take fewer bytes but no less work, and a shard is also a unit of work.
    return default * max(1.0, samples / DEFAULT_SAMPLES)


def cut_into_shards(sizes: Sequence[float]) -> list[range]:
    """Which clips make up each shard, where clip n will take about `sizes[n]` bytes.

    A shard takes clips until it reaches its target: SHARD_BYTES or, if that gives few shards, half
    of it, a quarter, …, down to LEAST_SHARD_BYTES. The steps are of two, so that a set that grows
    or loses a clip is seldom cut anew from its beginning.
    """
    target, total = LEAST_SHARD_BYTES, sum(sizes)
    while target < SHARD_BYTES and total > MOST_SHARDS_OF_A_SMALL_SET * target:
        target *= 2
    shards, first, filled = [], 0, 0.0
    for number, size in enumerate(sizes):
        filled += size
        if filled >= target or number == len(sizes) - 1:
            shards.append(range(first, number + 1))
            first, filled = number + 1, 0.0
    return shards


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def _record_name(index: int) -> str:
    return f"shard-{index:05d}.json"


def _png(picture: np.ndarray) -> bytes:
    # After PNG's filters, nearly all that can be compressed is runs of equal bytes: a longer search
    # takes several times as long and saves a few percent of the size.
    settings = [
        *(cv2.IMWRITE_PNG_COMPRESSION, 3),  # OpenCV's own default leaves out most of the filters
        *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    ]
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), settings)
    return data.tobytes()


def unpack_picture(png: bytes) -> np.ndarray:
    """A row's `apex` → RGB uint8 (32, 32, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _row(clip: Clip) -> dict[str, Any]:
    return {
        **vars(clip),
        "identity": clip.identity.astype(np.float32).tolist(),
        "apex": None if clip.apex is None else _png(clip.apex),
    }


def unpack_row(row: dict[str, Any]) -> Clip:
    """A row as Arrow or Ray Data gives it → a `Clip`."""
    return Clip(
        **{
            **row,
            "pts_seconds": [float(seconds) for seconds in row["pts_seconds"]],
            "identity": np.array([list(v) for v in row["identity"]], dtype=np.float32),
            "apex": None if row["apex"] is None else unpack_picture(row["apex"]),
        }
    )


def _counted(clips: Sequence[Clip]) -> dict[str, Any]:
    """The counts of a shard's receipt."""

    def by_name(values: Iterable[str | None]) -> dict[str, int]:
        return dict(sorted(Counter(value or "" for value in values).items()))

    return {
        "rows": len(clips),
        "frames": sum(clip.num_frames for clip in clips),
        "labels": by_name(clip.label_name for clip in clips),
        "subjects": by_name(clip.subject for clip in clips),
        "splits": by_name(clip.split for clip in clips),
    }


def write_shard(
    directory: str | Path,
    index: int,
    clips: Sequence[Clip],
    failures: Sequence[Failure],
    digest: str,
) -> Receipt:
    """Write a shard, then its completion record; each appears whole or not at all.

    The same clips give the same bytes. `digest` names the work (sources and settings), so that a
    later run that plans the same work recognizes it.
    """
    table = pa.Table.from_pylist([_row(clip) for clip in clips], schema=SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        compression_level=3,
        row_group_size=ROWS_OF_A_GROUP,
        # Statistics would hold the least and the greatest bitstream of each group a second time.
        write_statistics=False,
    )
    data = buffer.getvalue()
    receipt = Receipt(
        index=index,
        digest=digest,
        file=shard_name(index),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        failures=list(failures),
        **_counted(clips),
    )
    folder = Folder(directory)
    folder.write(shard_name(index), data)
    folder.write(_record_name(index), _json(asdict(receipt)))
    return receipt


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _receipt(values: dict[str, Any]) -> Receipt:
    return Receipt(**{**values, "failures": [Failure(**f) for f in values["failures"]]})


def read_receipt(directory: str | Path, index: int) -> Receipt | None:
    """The completion record of a shard, or None if it has none; InputError: it is malformed."""
    folder = Folder(directory)
    name = _record_name(index)
    if not folder.exists(name):
        return None
    try:
        return _receipt(json.loads(folder.read(name)))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{folder.name_of(name)}: not a completion record ({error}); "
            "delete it to have this shard extracted again"
        ) from error


def shard_is_done(directory: str | Path, index: int, digest: str) -> Receipt | None:
    """The record of a shard, if it is finished for this very work and its file is undamaged."""
    receipt = read_receipt(directory, index)
    if receipt is None or receipt.digest != digest:
        return None
    _, damage = _read_shard(Folder(directory), receipt)
    return None if damage else receipt


def _read_shard(folder: Folder, receipt: Receipt) -> tuple[bytes, str]:
    """A shard's bytes, and what is wrong with them; empty if nothing is."""
    if not folder.exists(receipt.file):
        return b"", "missing"
    data = folder.read(receipt.file)
    is_right = hashlib.sha256(data).hexdigest() == receipt.sha256
    return data, "" if is_right else "its SHA-256 is not the one recorded"


def write_description(directory: str | Path, description: Description) -> None:
    """Write `failures.csv`, then `dataset.json`: the data set is complete from here on."""
    folder = Folder(directory)
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Failure)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(failure) for failure in description.failures)
    folder.write(FAILURES_NAME, text.getvalue().encode())
    counted = replace(description, counts=_counts(description.shards))
    folder.write(DESCRIPTION_NAME, _json(asdict(counted)))


def _counts(receipts: Sequence[Receipt]) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "clips": sum(r.rows for r in receipts),
        "frames": sum(r.frames for r in receipts),
        "bytes": sum(r.bytes for r in receipts),
        "failures": sum(len(r.failures) for r in receipts),
    }
    for name in ("labels", "subjects", "splits"):
        total: Counter[str] = Counter()
        for receipt in receipts:
            total.update(getattr(receipt, name))
        counts[name] = dict(sorted(total.items()))
    return counts


def read_description(directory: str | Path) -> Description:
    """Raises InputError: the folder is not a complete data set, or is one of another version."""
    folder = Folder(directory)
    if not folder.exists(DESCRIPTION_NAME):
        started = any(name.startswith("shard-") for name in folder.names())
        raise InputError(
            f"{folder.location}: no {DESCRIPTION_NAME} in it; "
            + (
                "its extraction has not finished: run the same extraction again to complete it"
                if started
                else "give the folder that `cfer extract` wrote (--out)"
            )
        )
    name = folder.name_of(DESCRIPTION_NAME)
    try:
        values = json.loads(folder.read(DESCRIPTION_NAME))
        version = values["schema_version"]
        if version == SCHEMA_VERSION:
            receipts = [_receipt(receipt) for receipt in values["shards"]]
            codec = spelled_as_now(values["codec"])
            return Description(**{**values, "codec": codec, "shards": receipts})
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{name}: not a data-set description ({error}); extract again") from error
    raise InputError(
        f"{name}: schema version {version}, and this cfer reads version {SCHEMA_VERSION}; extract "
        "the data set again (cfer extract --videos … --out NEW, with the options that made it), or "
        "use the cfer that wrote it"
    )


def read_columns(directory: str | Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of each shard, in order; of large ones, the others are not read.

    Raises:
        InputError: not a complete data set.
    """
    folder = Folder(directory)
    for path in read_description(directory).shard_paths(folder):
        yield pq.read_table(path, columns=list(columns), filesystem=folder.patient_filesystem)


def read_clips(directory: str | Path) -> Iterator[Clip]:
    """Every clip of a data set, in order."""
    folder = Folder(directory)
    for receipt in read_description(directory).shards:
        yield from _unpack(pq.read_table(io.BytesIO(folder.read(receipt.file))))


def _unpack(table: pa.Table) -> list[Clip]:
    return [unpack_row(row) for row in table.to_pylist()]


def verify(directory: str | Path) -> list[str]:
    """Check every hash, count and row of a data set.

    Returns:
        One line per problem; an empty list means that the data set is whole.

    Raises:
        InputError: the folder is not a complete data set.
    """
    description = read_description(directory)
    folder = Folder(directory)
    problems = []
    clip_ids: set[str] = set()

    def find(name: str, problem: str) -> None:
        problems.append(f"{folder.name_of(name)}: {problem}")

    for receipt in description.shards:
        if read_receipt(directory, receipt.index) != receipt:
            find(_record_name(receipt.index), f"not the record that {DESCRIPTION_NAME} holds")
        data, damage = _read_shard(folder, receipt)
        if damage:
            find(receipt.file, damage)
            continue
        table = pq.read_table(io.BytesIO(data))
        if table.schema != SCHEMA:
            find(receipt.file, "its columns are not this schema's")
            continue
        clips = _unpack(table)
        for name, found in _counted(clips).items():
            if found != getattr(receipt, name):
                find(receipt.file, f"{name} {found}, recorded {getattr(receipt, name)}")
        for clip in clips:
            for problem in _problems(clip, description):
                find(receipt.file, f"{clip.clip_id}: {problem}")
            if clip.clip_id in clip_ids:
                find(receipt.file, f"{clip.clip_id} occurs twice")
        clip_ids.update(clip.clip_id for clip in clips)
    if _counts(description.shards) != description.counts:
        find(DESCRIPTION_NAME, "counts differ from the shards'")
    known = {receipt.file for receipt in description.shards}
    for name in folder.names():
        if name.endswith(".parquet") and name not in known:
            find(name, f"a shard that {DESCRIPTION_NAME} does not know")
    return problems


def _problems(clip: Clip, description: Description) -> Iterator[str]:
    if clip.label is not None and (
        not 0 <= clip.label < len(description.classes)
        or description.classes[clip.label] != clip.label_name
    ):
        yield f"label {clip.label} is not {clip.label_name}"
    if clip.identity.shape[1] != description.identity["dimension"]:
        yield f"identity of {clip.identity.shape[1]} values"
    if not np.isfinite(clip.identity).all():
        yield "identity is not finite"
    if clip.size != description.codec["size"]:
        yield f"size {clip.size}"
    try:
        bitstream = Bitstream(clip.bitstream, "its bitstream")
    except CodecError as error:
        yield str(error)
        return
    for number, data in enumerate(clip.views, start=1):
        try:
            view = Bitstream(data, f"its view {number}")
        except CodecError as error:
            yield str(error)
            continue
        if (view.width, view.frame_types) != (bitstream.width, bitstream.frame_types):
            yield f"its view {number} has other frames than its bitstream"
    for number, data in enumerate(clip.native):
        if not data or len(data) % (NATIVE_PLANES * (clip.size // 2) ** 2):
            yield f"its native view {number} is no whole number of planes"
    for name, there, recorded in (
        ("size", (bitstream.width, bitstream.height), (clip.size, clip.size)),
        ("num_frames", len(bitstream.packets), clip.num_frames),
        ("gop_size", max(map(len, bitstream.gops)), min(clip.gop_size, clip.num_frames)),
    ):
        if there != recorded:
            yield f"{name} {recorded}, and its bitstream has {there}"
    since_first = np.subtract(clip.pts_seconds, clip.pts_seconds[0])
    if len(since_first) != len(bitstream.packets) or not np.allclose(
        since_first, bitstream.times[:-1], atol=1 / COARSE_TICKS_PER_SECOND, rtol=0
    ):
        yield "pts_seconds are not the times of its bitstream"
