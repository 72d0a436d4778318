"""Clips through Ray Data, and the batches that are made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cfer.codec import Bitstream
from cfer.data import shards
from cfer.data.folds import read_index
from cfer.data.frames import frames_of_clips
from cfer.data.inputs import Input, to_planes
from cfer.model.network import scale_planes
from cfer.train.batches import Augmentation, BatchMaker, Standardization, load_clips

NO_CHANGE = Augmentation(flip_probability=0, max_shift_pixels=0, gain_jitter=0)


def test_rows_through_ray_data_are_those_of_the_shards(
    ray_session: None, drawn_shards: Path
) -> None:
    directory = str(drawn_shards)
    index = read_index(directory)
    assert len(index.clip_ids) == 10
    assert index.num_annotated_apexes == 10
    wanted = index.clip_ids[1:9:3]
    rows = frames_of_clips(directory, wanted, Input(), for_training=True).take_all()
    assert [row["clip_id"] for row in rows] == wanted
    clips = {clip.clip_id: clip for clip in shards.read_clips(directory)}
    memory = load_clips(rows, clips[wanted[0]].identity.shape[1])
    for position, clip_id in enumerate(wanted):
        clip = clips[clip_id]
        bitstream = Bitstream(clip.bitstream, clip_id)
        packed = [bitstream.accumulated_residuals(gop)[-1].packed() for gop in (0, 1)]
        expected = np.stack([to_planes(residual) for residual in packed])
        np.testing.assert_array_equal(memory.views[position][0], expected)
        sizes = [len(bitstream.packets[n]) for gop in bitstream.gops for n in gop[1:]]
        assert int(memory.bytes_read[position]) == sum(sizes)
        assert int(memory.labels[position]) == clip.label
        assert memory.subjects[position] == clip.subject
        np.testing.assert_allclose(memory.z_I[position], clip.identity.mean(0), rtol=1e-5)
        assert bool(memory.has_apex[position])
        mean = clip.apex.mean((0, 1)) / 255
        np.testing.assert_allclose(memory.apex[position].mean((1, 2)), mean, atol=0.01)

    # Drawn anew each epoch, so all are kept; for validation only the evenly spaced ones.
    what = Input(frames=3)
    all_frames = load_clips(frames_of_clips(directory, wanted[:2], what, True).take_all(), 128)
    assert len(all_frames.views[0][0]) == clips[wanted[0]].num_frames - 2, "two are I-frames"
    three = load_clips(frames_of_clips(directory, wanted[:2], what, False).take_all(), 128)
    assert three.views[0][0].shape[0] == 3
    # In training's own look at its clips they are the same three.
    standardize = Standardization.of(torch.zeros(128), torch.ones(128), 1)
    for rows_of in (all_frames, three):
        (batch,) = BatchMaker(rows_of, what, standardize, torch.device("cpu")).in_order(2)
        expected = scale_planes(torch.from_numpy(three.views[0][0].copy()))
        torch.testing.assert_close(batch.planes[0], expected)


def test_epochs_are_a_function_of_seed_epoch_and_rank(
    ray_session: None, drawn_shards: Path
) -> None:
    directory = str(drawn_shards)
    index = read_index(directory)
    what = Input(frames=4)
    records = frames_of_clips(directory, index.clip_ids, what, for_training=True).take_all()
    rows = load_clips(records, 128)
    total = rows.z_I.double()
    standardize = Standardization.of(total.sum(0), (total**2).sum(0), len(rows))
    maker = BatchMaker(rows, what, standardize, torch.device("cpu"), ["S002", "S001"])

    def epoch(*key: int) -> list:
        return list(maker.training_epoch(3, 4, Augmentation(), *key))

    first, again = epoch(0, 1, 0), epoch(0, 1, 0)
    for one, other in zip(first, again, strict=True):
        for name in vars(one):
            assert torch.equal(getattr(one, name), getattr(other, name))
    for key in ((1, 1, 0), (0, 2, 0), (0, 1, 1)):
        assert not torch.equal(first[0].planes, epoch(*key)[0].planes)
    assert all(batch.planes.shape == (4, 4, 6, 32, 32) for batch in first)
    # 12 places for 10 clips: each once, before two come twice.
    identities = torch.cat([batch.z_I for batch in first])
    assert len(torch.unique(identities[:10], dim=0)) == 10

    # What is rebuilt from a mirrored clip is the mirrored apex.
    mirroring = replace(NO_CHANGE, flip_probability=1.0)
    plain, mirrored = (
        next(maker.training_epoch(1, 4, settings, 0, 0, 0)) for settings in (NO_CHANGE, mirroring)
    )
    assert torch.equal(mirrored.apex, plain.apex.flip(-1))
    assert not torch.equal(mirrored.apex, plain.apex)

    numbers = torch.cat([batch.subjects for batch in maker.in_order(4)])
    assert numbers.tolist() == [{"S001": 1, "S002": 0}.get(s or "", -1) for s in rows.subjects]

    whole = torch.cat([batch.z_I for batch in maker.in_order(4)])
    torch.testing.assert_close(whole, standardize(rows.z_I))
    torch.testing.assert_close(whole.mean(0), torch.zeros(128), atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.std(0, correction=0), torch.ones(128), atol=1e-3, rtol=0)
