"""Batches of clips in memory (tests/integration/test_data.py: of clips that Ray Data has read)."""

from __future__ import annotations

import numpy as np
import torch

from cfer.data.inputs import APEX_SIZE, Input
from cfer.train.batches import Augmentation, BatchMaker, LoadedClips, Standardization


def test_a_step_may_have_more_clips_than_there_are() -> None:
    nothing = torch.zeros(3, dtype=torch.int64)
    frames = [np.full((1, 6, 8, 8), 128, np.uint8)] * 3
    apex = torch.zeros(3, 3, APEX_SIZE, APEX_SIZE)
    clips = LoadedClips(
        frames, torch.arange(3), torch.zeros(3, 2), apex, nothing.bool(), [None] * 3, [], nothing
    )
    maker = BatchMaker(
        clips, Input(), Standardization(torch.zeros(2), torch.ones(2)), torch.device("cpu")
    )
    (batch,) = maker.training_epoch(1, 8, Augmentation(), seed=0, epoch=0, rank=0)
    assert sorted(torch.bincount(batch.labels).tolist()) == [2, 3, 3]
