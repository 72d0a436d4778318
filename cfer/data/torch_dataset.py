"""Shards for a PyTorch training loop of your own; needs no Ray.

clips = open_dataset("shards")
loader = torch.utils.data.DataLoader(clips, batch_size=16, shuffle=True)
for batch in loader:
    batch["planes"], batch["label"]          # uint8 (16, T, C, S/2, S/2), int64 (16,)
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset

from cfer.data.inputs import FrameRule, Input
from cfer.data.shards import read_description
from cfer.data.storage import Folder

NO_LABEL = -1


class Item(TypedDict):
    """One clip.

    `planes`: uint8 (T, C, S/2, S/2), as `cfer.data.inputs` makes them, 128 = no change;
    `label`: index into `classes`, -1 if the clip has none; `identity`: float32 (D,), the mean of
    the I-frames' embeddings; `subject`: empty if it isn't known.
    """

    planes: torch.Tensor
    label: int
    identity: torch.Tensor
    subject: str
    clip_id: str


class ClipDataset(Dataset[Item]):
    """Every clip of a data set, in the order of its shards.

    The compressed clips are held in memory (tens of kB each), and residuals are read out of a clip
    when it is asked for. The data set can be pickled, so a DataLoader may have workers.

    Attributes:
        classes: names, by label.
        clip_ids, subjects, labels: one per clip, as in `Item`.
        size: side S of the face crops, pixels.
    """

    def __init__(self, directory: str | Path, what: Input) -> None:
        description = read_description(directory)
        folder = Folder(directory)
        columns = ["clip_id", "subject", "label", "identity", "bitstream", "native"]
        tables = [
            pq.read_table(pa.BufferReader(folder.read(shard.file)), columns=columns)
            for shard in description.shards
        ]
        self._clips = pa.concat_tables(tables)
        self._what = what
        self.size = int(description.codec["size"])
        self.classes = tuple(description.classes)
        self.clip_ids: list[str] = self._clips["clip_id"].to_pylist()
        self.subjects = [name or "" for name in self._clips["subject"].to_pylist()]
        self.labels = [NO_LABEL if n is None else n for n in self._clips["label"].to_pylist()]

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, position: int) -> Item:
        """Raises CodecError: the clip is damaged, or has no P-frame."""
        bitstream, native = (self._clips[c][position].as_py() for c in ("bitstream", "native"))
        name = self.clip_ids[position]
        embeddings = np.array(self._clips["identity"][position].as_py(), np.float32)
        return {
            "planes": torch.tensor(self._what.views_of([bitstream], native, name, False)[0]),
            "label": self.labels[position],
            "identity": torch.from_numpy(embeddings.mean(0)),
            "subject": self.subjects[position],
            "clip_id": self.clip_ids[position],
        }


def open_dataset(
    directory: str | Path, kind: str = "accumulated", frames: FrameRule = "last"
) -> ClipDataset:
    """The clips that `cfer extract` wrote.

    Args:
        directory: a folder, or `s3://…`.
        kind: of residuals, or another of `cfer.data.inputs.KINDS`.
        frames: "last" (one per GOP, at its end), or a number of evenly spaced ones per clip.

    Raises:
        InputError: not a complete data set.
    """
    return ClipDataset(directory, Input(kind, frames=frames))
