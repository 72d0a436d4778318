"""Shards → the frames that a run trains on: a lazy Ray Data set.

The clips of a data set are few and, once their frames are chosen, small (the planes of a 112 × 112
frame are 25 kB): Ray Data reads the shards once and decodes and chooses the frames where a shard is
read, and each training worker keeps its share in memory (`cfer.train.batches`). Ray's reading
processes import this module, so it must not import PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from cfer.codec import Bitstream
from cfer.data.inputs import Input
from cfer.data.shards import read_description, unpack_picture
from cfer.data.storage import Folder
from cfer.errors import InputError

COLUMNS = (
    *("clip_id", "subject", "label", "bitstream", "views", "native", "native_bytes"),
    *("identity", "apex"),
)


def frames_of_clips(
    directory: str, clip_ids: Sequence[str], what: Input, for_training: bool
) -> ray.data.Dataset:
    """A lazy Ray Data set of these clips, in the order of the shards, one row each.

    A row has `clip_id`, `subject`, `label`, `frames` (uint8 (P, C, S/2, S/2) as bytes: all P-frames
    if training draws N of them anew each epoch, otherwise only those that `what` selects), `views`
    (the same of each further view), `num_planes` and `side` (C and S/2), `z_I` (the clip's
    identity, not standardized: the mean of its embeddings), `apex` (RGB uint8 (32, 32, 3) as bytes,
    or null) and `bytes_read` (of the packets of the first view that `what` gives to the decoder).

    Raises:
        InputError: `what` is of native streams, and the data set was extracted without them.
    """
    wanted = pa.array(sorted(clip_ids))
    description = read_description(directory)
    if what.is_native and not description.settings.get("native"):
        raise InputError(
            f"{directory}: it was extracted without --native, and the input is of --stream "
            f"{what.stream}; extract the videos again with it (cfer extract --native --out NEW), "
            "or train with --stream encoded"
        )

    def choose(table: pa.Table) -> pa.Table:
        kept = table.filter(pc.is_in(table["clip_id"], value_set=wanted))
        rows = [_chosen(row, what, for_training) for row in kept.to_pylist()]
        return pa.Table.from_pylist(rows, schema=_CHOSEN_SCHEMA)

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    folder = Folder(directory)
    paths = description.shard_paths(folder)
    rows = ray.data.read_parquet(paths, filesystem=folder.patient_filesystem)
    return rows.select_columns(list(COLUMNS)).map_batches(
        choose, batch_format="pyarrow", batch_size=None
    )


_CHOSEN_SCHEMA = pa.schema(
    {
        "clip_id": pa.string(),
        "subject": pa.string(),
        "label": pa.int64(),
        "frames": pa.binary(),
        "views": pa.list_(pa.binary()),
        "num_planes": pa.int32(),
        "side": pa.int32(),
        "z_I": pa.list_(pa.float32()),
        "apex": pa.binary(),
        "bytes_read": pa.int64(),
    }
)


def _chosen(row: dict[str, Any], what: Input, for_training: bool) -> dict[str, Any]:
    frames, *views = what.views_of(
        [row["bitstream"], *row["views"]], row["native"], row["clip_id"], for_training
    )
    bytes_read = row["native_bytes"]
    if not (what.is_native and row["native"]):
        bitstream = Bitstream(row["bitstream"], row["clip_id"])
        read = what.packets_read(bitstream, range(len(bitstream.gops)))
        bytes_read = sum(len(bitstream.packets[n]) for n in read)
    return {
        **{name: row[name] for name in ("clip_id", "subject", "label")},
        "frames": frames.tobytes(),
        "views": [view.tobytes() for view in views],
        "num_planes": frames.shape[1],
        "side": frames.shape[2],
        "z_I": np.mean(row["identity"], axis=0).astype(np.float32).tolist(),
        "apex": None if row["apex"] is None else unpack_picture(row["apex"]).tobytes(),
        "bytes_read": bytes_read,
    }


def unpack_views(record: Mapping[str, Any]) -> list[np.ndarray]:
    """The views of a row of `frames_of_clips`, `frames` first: read-only uint8 (P, C, S/2, S/2)."""
    shape = (-1, int(record["num_planes"]), int(record["side"]), int(record["side"]))
    views = (record["frames"], *record["views"])
    return [np.frombuffer(view, np.uint8).reshape(shape) for view in views]
