"""The arrays behind the picture of one GOP: motion, block types, bytes, where a model looked."""

from __future__ import annotations

import io
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from bitstreams import (
    luma_on_flat_reference,
    moving_texture,
    not_coded,
    someone_elses,
    with_intra_blocks,
)

from cfer.codec import GRAY, Bitstream, CodecSettings, encode
from cfer.data.inputs import Input
from cfer.model.network import ModelConfig, Predictor, scale_planes
from cfer.predict.gop_arrays import (
    EMPTY,
    INTER,
    INTER_PARTS,
    INTRA,
    activation_picture,
    block_types,
    class_activation,
    frame_bytes,
    movements,
    movements_since_i_frame,
)
from cfer.predict.models import open_model
from cfer.predict.recognizer import Recognizer


def shifting(frames: int, right: int, down: int, side: int = 96) -> list[np.ndarray]:
    """A texture that moves by so many pixels a frame."""
    big = moving_texture(1, 260, 260)[0]
    return [big[80 - down * t :, 80 - right * t :][:side, :side] for t in range(frames)]


def inner(moves: np.ndarray, margin: int, side: int = 96) -> np.ndarray:
    """Blocks far enough from the border, where new content comes in."""
    return moves[((moves[:, :2] > margin) & (moves[:, :2] < side - margin)).all(1)]


# ----------------------------------------------------------------- motion, types, bytes


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-2, 3)])
def test_arrows_have_the_length_and_direction_of_the_movement(right, down):
    bitstream = encode(shifting(5, right, down), CodecSettings(quantizer=1), 25)
    moves = movements(bitstream.direct_residual(3))
    assert moves.shape == (36, 4)
    assert {(x, y) for x, y, _, _ in moves} == {
        (x, y) for x in range(8, 96, 16) for y in range(8, 96, 16)
    }
    here = inner(moves, 20)
    assert ((here[:, 2:] == [right, down]).all(1)).mean() > 0.8
    traced = inner(movements_since_i_frame(bitstream.accumulated_residuals(0)), 30)
    assert len(traced) == 16  # blocks of 8 × 8
    assert (np.abs(traced[:, 2:] - [4 * right, 4 * down]) <= 0.5).all(1).mean() > 0.8


def test_a_vector_of_quarter_pixels_is_in_pixels_too(tmp_path):
    path = someone_elses(shifting(4, 3, -2), tmp_path / "quarter.mp4", flags="+qpel")
    residual = Bitstream.open(path).direct_residual(2)
    assert set(residual.motion_vectors["motion_scale"]) == {4}
    assert np.median(inner(movements(residual), 20)[:, 2:], axis=0) == pytest.approx([3, -2])


def test_blocks_with_nothing_to_send_are_empty():
    """A still picture in which one macroblock's brightness changes, then one pixel of chroma's."""
    still = np.full((64, 80, 3), 100, np.uint8)
    changed = still.copy()
    changed[16:32, 48:64] += np.random.default_rng(0).integers(0, 60, (16, 16, 1), dtype=np.uint8)
    bitstream = encode([still, still, changed], CodecSettings(quantizer=1), 25)
    assert (block_types(bitstream.direct_residual(1)) == EMPTY).all()
    wanted = np.full((4, 5), EMPTY)
    wanted[1, 3] = INTER
    residual = bitstream.direct_residual(2)
    assert np.array_equal(block_types(residual), wanted)
    colored = residual.u.copy()
    colored[8 * 3, 8 * 1] += 1
    wanted[3, 1] = INTER
    assert np.array_equal(block_types(replace(residual, u=colored)), wanted)


def test_a_block_that_moves_is_not_empty_even_without_a_residual():
    bitstream = encode(shifting(3, 4, 0), CodecSettings(quantizer=31), 25)
    residual = bitstream.direct_residual(2)
    flat = [np.full_like(plane, GRAY) for plane in (residual.y, residual.u, residual.v)]
    types = block_types(replace(residual, y=flat[0], u=flat[1], v=flat[2]))
    moves = (movements(residual)[:, 2:] != 0).any(1)
    assert moves.sum() > 10
    assert (types == INTER).sum() == moves.sum()


def test_intra_blocks_are_those_that_do_not_follow_the_reference(tmp_path):
    bitstream = with_intra_blocks(tmp_path)
    low, high = (luma_on_flat_reference(bitstream, 2, level)[0] for level in (100, 128))
    still = (low == high).reshape(6, 16, 8, 16).mean(axis=(1, 3)) > 0.9
    assert still.any(), "the encoder chose no intra block: this clip tests nothing"
    assert np.array_equal(block_types(bitstream.direct_residual(2)) == INTRA, still)


def test_quarters_that_move_apart_have_a_vector_each(tmp_path):
    """A still picture, but for one macroblock, whose quarters come from four directions."""
    gray = moving_texture(1, 96, 96)[0][..., :1].repeat(3, axis=2)
    wanted = {(36, 36): (2, 2), (44, 36): (-2, 2), (36, 44): (2, -2), (44, 44): (-2, -2)}
    moved = gray.copy()
    for (x, y), (right, down) in wanted.items():
        source = gray[y - 4 - down : y + 4 - down, x - 4 - right : x + 4 - right]
        moved[y - 4 : y + 4, x - 4 : x + 4] = source
    path = someone_elses(
        [gray, moved], tmp_path / "four.mp4", flags="+mv4", mbd="rd", qmin="2", qmax="2"
    )
    residual = Bitstream.open(path).direct_residual(1)
    types = block_types(residual)
    assert np.argwhere(types == INTER_PARTS).tolist() == [[2, 2]]
    moves = movements(residual)
    assert len(moves) == 35 + 4
    found = {(x, y): (dx, dy) for x, y, dx, dy in moves.tolist()}
    # The encoder may settle for a vector that is half a pixel off.
    for block, movement in wanted.items():
        assert found[block] == pytest.approx(movement, abs=0.6)


def test_a_frame_that_is_not_coded_is_empty():
    clip = encode(moving_texture(6), CodecSettings(), 25)
    changed = not_coded(clip.packets[3], clip._format.layer.time_bits)
    changed = changed.ljust(len(clip.packets[3]), b"\0")
    bitstream = Bitstream(clip.data.replace(clip.packets[3], changed), "with an N-VOP")
    assert (block_types(bitstream.direct_residual(3)) == EMPTY).all()
    assert movements(bitstream.direct_residual(3)).shape == (0, 4)


def test_types_of_a_picture_that_is_no_multiple_of_a_macroblock():
    bitstream = encode(moving_texture(3, 50, 71), CodecSettings(), 25)
    assert block_types(bitstream.direct_residual(1)).shape == (4, 5)


def test_bytes_are_those_of_the_files_packets(tmp_path):
    bitstream = encode(moving_texture(30), CodecSettings(), 25)
    with av.open(io.BytesIO(bitstream.data)) as container:
        sizes = [packet.size for packet in container.demux(video=0) if packet.size]
    assert [frame_bytes(bitstream, gop).tolist() for gop in range(3)] == [
        sizes[:12],
        sizes[12:24],
        sizes[24:],
    ]


# ----------------------------------------------------------------- where the recognizer looked


WHAT = Input("accumulated+motion")


def some_predictor(pooling: str = "mean", stem_stride: int = 2) -> Predictor:
    """With random weights, which hide no mistake behind zeros."""
    torch.manual_seed(7)
    config = ModelConfig(
        *(4, 8, WHAT.num_planes, WHAT.gain), width=8, stem_stride=stem_stride, pooling=pooling
    )
    return Predictor(config).eval()


def some_planes(frames: int, seed: int = 0) -> np.ndarray:
    bitstream = encode(moving_texture(frames + 1, 64, 64, seed), CodecSettings(frames + 1), 25)
    return replace(WHAT, frames=frames).read(bitstream, range(1))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_contributions_sum_to_the_logit_less_its_bias(pooling):
    predictor = some_predictor(pooling)
    planes = some_planes(3)
    found = class_activation(predictor, planes)
    assert found.contributions.shape == (3, 4, 4)
    assert np.abs(found.contributions).max() > 0.01
    less_bias = logits_less_bias(predictor, planes)
    assert found.contributions.sum() == pytest.approx(less_bias[found.target], abs=1e-4)
    probabilities = predictor(torch.from_numpy(planes)[None])[0].detach().numpy()
    assert found.probabilities == pytest.approx(probabilities, abs=1e-6)
    assert found.target == probabilities.argmax()


def logits_of(predictor: Predictor, planes: np.ndarray) -> torch.Tensor:
    code = predictor.encoder(scale_planes(torch.tensor(planes))[None])
    return predictor.classifier(code)[0].detach()


def logits_less_bias(predictor: Predictor, planes: np.ndarray) -> np.ndarray:
    """The bias is what is left without any activation."""
    hook = predictor.encoder.stages.register_forward_hook(lambda _m, _i, x: torch.zeros_like(x))
    bias = logits_of(predictor, planes)
    hook.remove()
    return (logits_of(predictor, planes) - bias).numpy()


def test_a_cells_contribution_is_what_the_logit_loses_without_it():
    predictor = some_predictor()
    planes = some_planes(2)
    found = class_activation(predictor, planes)
    whole = logits_of(predictor, planes)[found.target]
    for frame, row, column in ((0, 0, 0), (1, 2, 1), (1, 3, 3)):

        def without(_module, _inputs, x, frame=frame, row=row, column=column):
            x = x.clone()
            x[frame, :, row, column] = 0
            return x

        hook = predictor.encoder.stages.register_forward_hook(without)
        lost = whole - logits_of(predictor, planes)[found.target]
        hook.remove()
        assert found.contributions[frame, row, column] == pytest.approx(float(lost), abs=1e-5)


def test_the_shipped_model_is_read_and_left_as_it_was():
    predictor, card = open_model("default")
    before = {name: value.clone() for name, value in predictor.state_dict().items()}
    bitstream = encode(moving_texture(card.codec.gop_size, 112, 112), card.codec, 25)
    planes = card.what.read(bitstream, range(1))
    found = class_activation(predictor, planes)
    less_bias = logits_less_bias(predictor, planes)
    assert found.contributions.sum() == pytest.approx(less_bias[found.target], abs=1e-3)
    (prediction,) = Recognizer(predictor, card).predict_bitstream(bitstream, window_gops=1)
    assert list(prediction.probabilities.values()) == pytest.approx(found.probabilities, abs=1e-6)
    assert not predictor.encoder.stages._forward_hooks
    after = predictor.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_map_is_finer_than_the_grid_that_is_pooled_to():
    planes = np.full((1, WHAT.num_planes, 56, 56), GRAY, np.uint8)
    assert class_activation(some_predictor(), planes).contributions.shape == (1, 7, 7)


@pytest.mark.parametrize("stem_stride", [2, 4])
def test_the_map_is_drawn_where_a_cell_looks(stem_stride):
    """The pixels that a cell of the encoder depends on lie around its peak in the picture."""
    predictor = some_predictor(stem_stride=stem_stride)
    stages = []
    hook = predictor.encoder.stages.register_forward_hook(lambda _m, _i, x: stages.append(x))
    side = 64 * stem_stride
    planes = torch.zeros(1, 1, WHAT.num_planes, side // 2, side // 2, requires_grad=True)
    # GroupNorm ties every place to every other; its own scale aside, what is near counts.
    noise = torch.randn(planes.shape, generator=torch.Generator().manual_seed(0))
    predictor.encoder(planes + 0.1 * noise)
    hook.remove()
    row, column = 3, 5
    (gradient,) = torch.autograd.grad(stages[0][0, :, row, column].sum(), planes)
    weight = gradient[0, 0].square().sum(0).numpy()
    weight[weight < 0.02 * weight.max()] = 0
    pixels = 2 * np.arange(side // 2) + 0.5
    center = (weight.sum(1) @ pixels / weight.sum(), weight.sum(0) @ pixels / weight.sum())
    contributions = np.zeros(stages[0].shape[2:], np.float32)
    contributions[row, column] = 1
    picture = activation_picture(contributions, side, stem_stride)
    peak = np.unravel_index(picture.argmax(), picture.shape)
    assert picture.shape == (side, side)
    assert np.abs(np.subtract(peak, center)).max() < 2 * stem_stride, (peak, center)
