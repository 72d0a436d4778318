"""`cfer look`: the arrays behind the picture, and what stands in it."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from bitstreams import luma_on_flat_reference, moving_texture, not_coded, someone_elses
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from cfer.cli import run
from cfer.codec import GRAY, Bitstream, CodecSettings, encode
from cfer.data.inputs import KINDS, Input, apex_picture
from cfer.data.shards import Clip, Description, write_description, write_shard
from cfer.errors import InputError
from cfer.model.card import ModelCard, write_model
from cfer.model.network import ModelConfig, Predictor, scale_planes
from cfer.predict.look import (
    EMPTY,
    INTER,
    INTER_PARTS,
    INTRA,
    activation_picture,
    block_types,
    class_activation,
    frame_bytes,
    look,
    movements,
    movements_since_i_frame,
)
from cfer.predict.models import open_model
from cfer.predict.recognizer import Recognizer

SIZE, GOP = 112, 24


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
    pictures = moving_texture(4, seed=1)
    pictures[2] = pictures[2].copy()
    pictures[2][32:64, 48:96] = 250  # nothing predicts this
    path = someone_elses(pictures, tmp_path / "intra.avi", qmin="2", qmax="2")
    bitstream = Bitstream.open(path)
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
    changed = not_coded(clip.packets[3], clip._layer.time_bits).ljust(len(clip.packets[3]), b"\0")
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


def some_model(pooling: str = "mean", what: Input | None = None) -> tuple[Predictor, ModelCard]:
    """With random weights, which hide no mistake behind zeros."""
    what = what or Input()
    torch.manual_seed(7)
    classes = ("anger", "fear", "joy", "sadness")
    config = ModelConfig(
        len(classes), 8, num_planes=what.num_planes, gain=what.gain, width=8, pooling=pooling
    )
    card = ModelCard(classes, 64, CodecSettings(gop_size=6), 2, what, config)
    return Predictor(config).eval(), card


def some_planes(frames: int, seed: int = 0) -> np.ndarray:
    bitstream = encode(moving_texture(frames + 1, 64, 64, seed), CodecSettings(frames + 1), 25)
    return Input(frames=frames).read(bitstream, range(1))


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("target", [None, 0, 3])
def test_contributions_sum_to_the_logit_less_its_bias(pooling, target):
    predictor, _ = some_model(pooling)
    planes = some_planes(3)
    found = class_activation(predictor, planes, target)
    assert found.contributions.shape == (3, 4, 4)
    assert np.abs(found.contributions).max() > 0.01
    assert found.contributions.sum() == pytest.approx(
        found.logits[found.target] - found.bias, abs=1e-4
    )
    probabilities = predictor(torch.from_numpy(planes)[None])[0].detach().numpy()
    assert found.probabilities == pytest.approx(probabilities, abs=1e-6)
    assert found.target == (probabilities.argmax() if target is None else target)


def test_the_bias_is_what_is_left_without_any_activation():
    predictor, _ = some_model()
    planes = some_planes(2)
    hook = predictor.encoder.stages.register_forward_hook(lambda _m, _i, x: torch.zeros_like(x))
    logits = logits_of(predictor, planes)
    hook.remove()
    for target in range(4):
        assert class_activation(predictor, planes, target).bias == pytest.approx(
            float(logits[target]), abs=1e-6
        )


def logits_of(predictor: Predictor, planes: np.ndarray) -> torch.Tensor:
    mask = torch.ones(1, len(planes), dtype=torch.bool)
    code = predictor.encoder(scale_planes(torch.tensor(planes))[None], mask)
    return predictor.classifier(code)[0].detach()


def test_a_cells_contribution_is_what_the_logit_loses_without_it():
    predictor, _ = some_model()
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
    bitstream = encode(moving_texture(card.codec.gop_size, SIZE, SIZE), card.codec, 25)
    planes = card.what.read(bitstream, range(1))
    found = class_activation(predictor, planes)
    assert found.contributions.sum() == pytest.approx(found.logits.max() - found.bias, abs=1e-3)
    (prediction,) = Recognizer(predictor, card).predict_bitstream(bitstream, window_gops=1)
    assert list(prediction.probabilities.values()) == pytest.approx(found.probabilities, abs=1e-6)
    assert not predictor.encoder.stages._forward_hooks
    after = predictor.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_map_is_finer_than_the_grid_that_is_pooled_to():
    predictor, _ = open_model("default")
    planes = np.full((1, 6, SIZE // 2, SIZE // 2), GRAY, np.uint8)
    assert class_activation(predictor, planes).contributions.shape == (1, 7, 7)


def test_the_map_is_drawn_where_a_cell_looks():
    """The pixels that a cell of the encoder depends on lie around its peak in the picture."""
    predictor, _ = some_model()
    stages = []
    hook = predictor.encoder.stages.register_forward_hook(lambda _m, _i, x: stages.append(x))
    side = 128
    planes = torch.zeros(1, 1, 6, side // 2, side // 2, requires_grad=True)
    # GroupNorm ties every place to every other; its own scale aside, what is near counts.
    noise = torch.randn(planes.shape, generator=torch.Generator().manual_seed(0))
    predictor.encoder(planes + 0.1 * noise, torch.ones(1, 1, dtype=torch.bool))
    hook.remove()
    row, column = 3, 5
    (gradient,) = torch.autograd.grad(stages[0][0, :, row, column].sum(), planes)
    weight = gradient[0, 0].square().sum(0).numpy()
    weight[weight < 0.02 * weight.max()] = 0
    pixels = 2 * np.arange(side // 2) + 0.5
    center = (weight.sum(1) @ pixels / weight.sum(), weight.sum(0) @ pixels / weight.sum())
    contributions = np.zeros(stages[0].shape[2:], np.float32)
    contributions[row, column] = 1
    picture = activation_picture(contributions, side)
    peak = np.unravel_index(picture.argmax(), picture.shape)
    assert picture.shape == (side, side)
    assert np.abs(np.subtract(peak, center)).max() < 4, (peak, center)


# ----------------------------------------------------------------- the picture


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def num_pictures(figure: Figure) -> int:
    return sum(isinstance(child, AxesImage) for axes in figure.axes for child in axes.get_images())


def assert_nothing_overlaps(figure: Figure) -> None:
    """No text of the page lies over another, over a panel, or beyond the page."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts]
    boxes += [("a legend", legend.get_window_extent(renderer)) for legend in figure.legends]
    panels = [axes.get_window_extent(renderer) for axes in figure.axes]
    for name, box in boxes:
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y1 <= figure.bbox.y1, name
        assert not any(box.overlaps(panel) for panel in panels), name
    for (name, box), (other_name, other) in combinations(boxes, 2):
        assert not box.overlaps(other), (name, other_name)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """The shipped one's weights, for GOPs of 24 frames."""
    predictor, card = open_model("default")
    path = tmp_path_factory.mktemp("model") / "gop24.safetensors"
    write_model(path, predictor, replace(card, codec=CodecSettings(GOP)))
    return str(path)


@pytest.fixture(scope="module")
def fixed_gop(tmp_path_factory) -> Path:
    """What this model takes as it is: a GOP, and a part of one."""
    path = tmp_path_factory.mktemp("fixed") / "fixed.mp4"
    encode(moving_texture(GOP + 5, SIZE, SIZE), CodecSettings(GOP), 25).save(path)
    return path


@pytest.mark.parametrize("gop", [0, 1])
def test_a_fixed_gop_clip_is_shown_with_its_prediction(fixed_gop, model, gop):
    figure = look(fixed_gop, None, gop, model)
    bitstream = Bitstream.open(fixed_gop)
    predictions = Recognizer.from_pretrained(model).predict_bitstream(bitstream, window_gops=1)
    label = [p.label for p in predictions][gop]
    sizes = frame_bytes(bitstream, gop)
    written = texts(figure)
    assert (
        f"fixed.mp4: GOP {gop} of 0 to 1, {len(sizes)} frames in {sizes.sum():,} bytes" in written
    )
    assert f"→  {label}, " in written
    assert f"I-frame {sizes[0]:,} + {len(sizes) - 1} P-frames" in written
    assert_nothing_overlaps(figure)


def test_another_bitstream_is_shown_as_it_is_without_a_prediction(tmp_path, model):
    pictures = moving_texture(9, 120, 160)
    pictures[5] = pictures[5].copy()
    pictures[5][32:96, 48:112] = 250
    path = someone_elses(pictures, tmp_path / "other.avi", gop=8)
    figure = look(path, None, 0, model)
    written = texts(figure)
    assert "No prediction" in written
    assert "This is 160 × 120 in GOPs of 8." in written
    assert "takes 112 × 112 in GOPs of 24" in written
    assert "Where the recognizer looked" not in written
    assert "→" not in written
    assert "the residual is the picture itself" in " ".join(written.split())
    assert_nothing_overlaps(figure)


def test_any_other_video_is_cropped_and_encoded_first(drawn_videos):
    video = drawn_videos / "videos" / "S001" / "surprise_1.mp4"
    (prediction,) = Recognizer.from_pretrained().predict(video)
    written = texts(look(video, None, 0, "default"))
    assert f"→  {prediction.label}, {prediction.probabilities[prediction.label]:.0%}" in written


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", ["last", 3])
def test_every_kind_of_input_has_its_picture(tmp_path, kind, frames):
    predictor, card = some_model(what=Input(kind, frames=frames))
    write_model(tmp_path / "model.safetensors", predictor, card)
    encode(moving_texture(6, 64, 64), card.codec, 25).save(tmp_path / "clip.mp4")
    figure = look(tmp_path / "clip.mp4", None, 0, str(tmp_path / "model.safetensors"))
    (prediction,) = Recognizer(predictor, card).predict_bitstream(
        Bitstream.open(tmp_path / "clip.mp4"), window_gops=1
    )
    assert f"→  {prediction.label}, " in texts(figure)
    marked = [t for axes in figure.axes for t in axes.texts if "recognizer sees" in t.get_text()]
    given = Input(kind, frames=frames).wanted(Bitstream.open(tmp_path / "clip.mp4"), range(1))
    # Of P1 to P5, these are drawn.
    drawn = {1, 2, 4, 5}
    residuals = kind.startswith(("accumulated", "direct"))
    assert len(marked) == (len(drawn & set(given)) if residuals else 0)


def test_a_gop_of_one_p_frame(tmp_path):
    encode(moving_texture(2, 64, 64), CodecSettings(), 25).save(tmp_path / "two.mp4")
    figure = look(tmp_path / "two.mp4", None, 0, "default")
    assert "2 frames in" in texts(figure)
    # I-frame, two residuals, their two scales, motion, types.
    assert num_pictures(figure) == 7


# ----------------------------------------------------------------- out of a data set


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    clips = [stored_clip(number) for number in range(5)]
    description = Description(
        name="test",
        classes=["anger", "joy"],
        codec={"size": SIZE, "gop_size": GOP},
        identity={"name": "none", "dimension": 8, "weights_sha256": ""},
        settings={},
        shards=[
            write_shard(folder, 0, clips[:3], [], "a"),
            write_shard(folder, 1, clips[3:], [], "b"),
        ],
        software={},
    )
    write_description(folder, description)
    return folder


def stored_clip(number: int) -> Clip:
    pictures = moving_texture(10, SIZE, SIZE, seed=number)
    bitstream = encode(pictures, CodecSettings(GOP), 25)
    return Clip(
        clip_id=f"clip-{number}",
        dataset="test",
        source=f"videos/{number}.mp4",
        subject=f"S{number}",
        label=1,
        label_name="joy",
        split=None,
        num_frames=10,
        fps=25.0,
        pts_seconds=[n / 25 for n in range(10)],
        size=SIZE,
        gop_size=GOP,
        bitstream=bitstream.data,
        identity=np.zeros((1, 8), np.float32),
        apex_frame=7 if number % 2 else None,
        apex=apex_picture(pictures[7]) if number % 2 else None,
        intra_fraction=0.0,
        saturated_fraction=0.0,
    )


def shown_pictures(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.get_images()]


def test_a_stored_clip_is_shown_with_what_is_known_of_it(shards, model):
    clip = stored_clip(3)
    figure = look(shards, "clip-3", 0, model)
    assert_nothing_overlaps(figure)
    written = texts(figure)
    for text in ("clip-3: 10 frames", "S3", "joy", "frame 7", f"{len(clip.bitstream):,} bytes"):
        assert text in written
    assert "Stored label: joy" in " ".join(written.split())
    assert clip.apex is not None
    i_frame = Bitstream(clip.bitstream, "clip-3").i_frame(0)
    for wanted in (i_frame, clip.apex):
        assert any(np.array_equal(picture, wanted) for picture in shown_pictures(figure))


def test_a_stored_clip_without_an_apex(shards):
    written = texts(look(shards, "clip-2", 0, "default"))
    assert "I-frame" in written
    assert "Stored apex" not in written


# ----------------------------------------------------------------- the command, and mistakes


def test_the_command_writes_a_picture_of_about_1600_pixels(fixed_gop, tmp_path):
    assert run(["look", str(fixed_gop), str(tmp_path / "look.png")]) == 0
    with Image.open(tmp_path / "look.png") as picture:
        assert 1550 <= picture.width <= 1650


def test_mistakes_are_clear(fixed_gop, shards, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video\n" * 50)
    alone = tmp_path / "alone.mp4"
    encode(moving_texture(5, 64, 64), CodecSettings(gop_size=4), 25).save(alone)
    for arguments, message in (
        ((fixed_gop, None, 2), r"--gop 2: .*fixed.mp4 has 2 GOPs; give 0 to 1"),
        ((fixed_gop, None, -1), r"--gop -1: .*give 0 to 1"),
        ((alone, None, 1), r"--gop 1: .*alone.mp4 is an I-frame alone.*give another GOP"),
        ((fixed_gop, "clip-1", 0), r"--clip clip-1: .*is no data set"),
        ((shards, None, 0), r"give --clip ID \(clip-0, clip-1, clip-2, …\)"),
        ((shards, "nobody", 0), r"--clip nobody: .*give one of clip-0, clip-1, clip-2, …"),
        ((shards, "clip-4", 3), r"--gop 3: .*one GOP; give 0"),
        ((tmp_path / "missing.mp4", None, 0), r"missing.mp4: there is no such file"),
        ((text, None, 0), r"text.mp4: not a"),
    ):
        with pytest.raises(InputError, match=message):
            look(*arguments, "default")
    with pytest.raises(InputError, match=r"nothing\.safetensors"):
        look(fixed_gop, None, 0, str(tmp_path / "nothing.safetensors"))
