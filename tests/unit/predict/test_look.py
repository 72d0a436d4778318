"""`cfer look`: what stands in the picture."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from bitstreams import moving_texture, someone_elses
from h264_streams import scene, x264
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image

from cfer.cli import run
from cfer.codec import GRAY, Bitstream, CodecSettings, encode
from cfer.data.inputs import KINDS, Input, apex_picture
from cfer.data.shards import Clip, Description, write_description, write_shard
from cfer.errors import InputError
from cfer.model.card import ModelCard, write_model
from cfer.model.network import ModelConfig, Predictor
from cfer.predict.gop_arrays import frame_bytes
from cfer.predict.look import look
from cfer.predict.models import open_model
from cfer.predict.recognizer import Recognizer, face_bitstream
from cfer.predict.stream_arrays import MOST_FRAMES, ShownStream

SIZE, GOP = 112, 24


def some_model(what: Input) -> tuple[Predictor, ModelCard]:
    """With random weights, which hide no mistake behind zeros."""
    torch.manual_seed(7)
    classes = ("anger", "fear", "joy", "sadness")
    config = ModelConfig(len(classes), 8, num_planes=what.num_planes, gain=what.gain, width=8)
    card = ModelCard(classes, 64, CodecSettings(gop_size=6), what, config)
    return Predictor(config).eval(), card


def written_in(figure: Figure) -> list[Text]:
    # Axes that are switched off keep ticks, which are not drawn.
    off = [axis for axes in figure.axes if not axes.axison for axis in (axes.xaxis, axes.yaxis)]
    hidden = {text for axis in off for text in axis.get_ticklabels()}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_text() and text.get_visible() and text not in hidden
    ]


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in written_in(figure))


def num_pictures(figure: Figure) -> int:
    return sum(isinstance(child, AxesImage) for axes in figure.axes for child in axes.get_images())


def assert_nothing_overlaps(figure: Figure) -> None:
    """No text lies over another, over a panel that is not its own, or beyond the page."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [(text, text.get_window_extent(renderer)) for text in written_in(figure)]
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
        for axes in figure.axes:
            if axes.axison and text not in axes.texts:
                assert not box.overlaps(axes.get_window_extent(renderer)), (text, axes)
    for (text, box), (other_text, other) in combinations(boxes, 2):
        assert not box.overlaps(other), (text, other_text)


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
    figure = look(fixed_gop, None, gop, model).figure
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
    figure = look(path, None, 0, model).figure
    written = texts(figure)
    assert "No prediction" in written
    assert "This is 160 × 120 in GOPs of 8." in written
    assert "takes 112 × 112 in GOPs of 24" in written
    assert "Where the recognizer looked" not in written
    assert "→" not in written
    assert "the residual is the picture itself" in " ".join(written.split())
    assert_nothing_overlaps(figure)


PYRAMID = "keyint=15:ref=3:bframes=3:b-adapt=0:b-pyramid=normal"


def write_h264(path: Path, parameters: str = PYRAMID, frames: int = 30, **kind: bool) -> Path:
    path.write_bytes(x264(scene(frames, 96, 128, **kind), parameters))
    return path


def test_h264_is_shown_as_it_is(tmp_path):
    path = write_h264(tmp_path / "phone.mp4", flashes=True)
    figure, how = look(path, None, 1, "there is no such model")
    assert how.startswith("The file's own H.264 stream, as it is.")
    bitstream = Bitstream.open(path)
    gop = bitstream.gops[1]
    sizes = [len(bitstream.packets[n]) for n in gop]
    kinds = bitstream.frame_types[gop[0] : gop[-1] + 1]
    written = " ".join(texts(figure).split())
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in "IPB")
    assert f"phone.mp4: GOP 1, {len(gop)} frames ({counts}) in {sum(sizes):,} bytes" in written
    for kind in "PB":
        frames = [n for n in gop if bitstream.frame_types[n] == kind]
        shares = [bitstream.direct_residual(n).intra_fraction for n in frames]
        assert f"{kind}-frames {np.mean(shares):.1%}, at the worst {max(shares):.1%}" in written
        largest = max(frames, key=lambda n: len(bitstream.packets[n]))
        assert f"References of {kind}{largest - gop[0]}" in written
    assert "the recognizer sees" not in written
    assert "Where the recognizer looked" not in written
    assert how in written
    assert_nothing_overlaps(figure)


def test_the_residuals_of_h264_are_those_of_the_stream(tmp_path):
    path = write_h264(tmp_path / "phone.mp4")
    bitstream = Bitstream.open(path)
    shown = ShownStream("phone.mp4", bitstream, 0, 0)
    last = max(n for n in bitstream.gops[0] if bitstream.frame_types[n] == "P")
    assert len(shown.positions) == 4
    assert last in shown.positions
    assert {shown.kinds[p] for p in shown.positions} == {"P", "B"}
    pictures = shown_pictures(look(path, None, 0, "default").figure)
    for position in shown.positions:
        direct = bitstream.direct_residual(position).y.astype(int) - GRAY
        assert any(np.array_equal(picture, direct) for picture in pictures)
        start, residual = shown.accumulated[position]
        assert bitstream.frame_types[start] != "B"
        (same,) = (
            r for r in bitstream.residuals_since(start, mask_intra=True) if r.frame == position
        )
        assert np.array_equal(residual.y, same.y)
        assert any(np.array_equal(picture, same.y.astype(int) - GRAY) for picture in pictures)


def test_references_are_named_and_told_apart(tmp_path):
    """Two pictures of noise by turns: a frame is predicted from the last but one."""
    rng = np.random.default_rng(0)
    two = [rng.integers(60, 200, (64, 96, 1), np.uint8).repeat(3, 2) for _ in range(2)]
    path = tmp_path / "turns.mp4"
    path.write_bytes(x264([two[t % 2] for t in range(8)], "keyint=8:ref=3:bframes=0:weightp=0"))
    shown = ShownStream("turns.mp4", Bitstream.open(path), 0, 0)
    (name, share), *_ = shown.references(5)[0]
    assert name == "P3"
    assert share > 0.9
    assert (shown.references(5)[1] == 0).mean() > 0.8
    assert shown.largest("B") is None
    written = texts(look(path, None, 0, "default").figure)
    assert "References of P" in written
    assert "References of B" not in written


def test_of_a_long_gop_the_first_frames_are_shown(tmp_path):
    path = tmp_path / "long.mp4"
    path.write_bytes(x264(scene(4, 32, 32) * 100, "keyint=infinite:bframes=0"))
    figure = look(path, None, 0, "default").figure
    assert f"GOP 0, the first {MOST_FRAMES} frames (1 I, {MOST_FRAMES - 1} P)" in texts(figure)
    assert f"P{MOST_FRAMES - 1}" in texts(figure)


def test_what_can_not_be_read_exactly_is_encoded_first_and_the_picture_says_why(
    drawn_videos, tmp_path
):
    with av.open(str(drawn_videos / "videos" / "S001" / "surprise_1.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    path = tmp_path / "interlaced.mp4"
    path.write_bytes(x264(pictures, "fake-interlaced=1", crf=10))
    figure, how = look(path, None, 0, "default")
    reason = "it is interlaced, so its residuals cannot be read exactly"
    assert how == f"The face was encoded anew: {reason}."
    written = texts(figure)
    assert how in written
    assert "→" in written
    assert_nothing_overlaps(figure)


def test_h264_is_encoded_first_when_that_is_asked_for(drawn_videos):
    video = drawn_videos / "videos" / "S001" / "surprise_1.mp4"
    recognizer = Recognizer.from_pretrained()
    seen = face_bitstream(video, recognizer.card.size, recognizer.card.codec)
    (prediction,) = recognizer.predict_bitstream(seen)
    figure, how = look(video, None, 0, "default", encoded=True)
    assert how == "The face was encoded anew, for the recognizer."
    written = texts(figure)
    assert f"→  {prediction.label}, {prediction.probabilities[prediction.label]:.0%}" in written


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", ["last", 3])
def test_every_kind_of_input_has_its_picture(tmp_path, kind, frames):
    predictor, card = some_model(Input(kind, frames=frames))
    write_model(tmp_path / "model.safetensors", predictor, card)
    encode(moving_texture(6, 64, 64), card.codec, 25).save(tmp_path / "clip.mp4")
    figure = look(tmp_path / "clip.mp4", None, 0, str(tmp_path / "model.safetensors")).figure
    (prediction,) = Recognizer(predictor, card).predict_bitstream(
        Bitstream.open(tmp_path / "clip.mp4"), window_gops=1
    )
    assert f"→  {prediction.label}, " in texts(figure)
    marked = [t for axes in figure.axes for t in axes.texts if "recognizer sees" in t.get_text()]
    given = Input(kind, frames=frames).wanted(Bitstream.open(tmp_path / "clip.mp4"), range(1))
    # Of P1 to P5, these are drawn.
    drawn = {1, 2, 4, 5}
    residuals = kind.startswith(("accumulated", "direct", "energy"))
    assert len(marked) == (len(drawn & set(given)) if residuals else 0)
    assert all(("its size" in t.get_text()) == kind.startswith("energy") for t in marked)


def test_a_gop_of_one_p_frame(tmp_path):
    encode(moving_texture(2, 64, 64), CodecSettings(), 25).save(tmp_path / "two.mp4")
    figure = look(tmp_path / "two.mp4", None, 0, "default").figure
    assert "2 frames in" in texts(figure)
    # I-frame, two residuals, motion, types.
    assert num_pictures(figure) == 5
    assert_nothing_overlaps(figure)


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
        views=[],
        native=[],
        native_bytes=0,
        native_refused=None,
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
    figure = look(shards, "clip-3", 0, model).figure
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
    written = texts(look(shards, "clip-2", 0, "default").figure)
    assert "I-frame" in written
    assert "Stored apex" not in written


# ----------------------------------------------------------------- the command, and mistakes


def test_the_command_writes_a_picture_of_about_1600_pixels(fixed_gop, tmp_path, capsys):
    assert run(["look", str(fixed_gop), str(tmp_path / "look.png")]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'look.png'}\n"
    assert said.err == f"note: {fixed_gop}: The file's own MPEG-4 stream, as it is.\n"
    with Image.open(tmp_path / "look.png") as picture:
        assert 1550 <= picture.width <= 1650


def test_mistakes_are_clear(fixed_gop, shards, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video\n" * 50)
    phone = write_h264(tmp_path / "phone.mp4")
    alone = tmp_path / "alone.mp4"
    encode(moving_texture(5, 64, 64), CodecSettings(gop_size=4), 25).save(alone)
    for arguments, message in (
        ((fixed_gop, None, 2), r"--gop 2: .*fixed.mp4 has 2 GOPs; give 0 to 1"),
        ((fixed_gop, None, -1), r"--gop -1: .*numbered from 0"),
        ((phone, None, 2), r"--gop 2: .*phone.mp4 has 2 GOPs; give 0 to 1"),
        ((alone, None, 1), r"--gop 1: .*alone.mp4 is an I-frame alone.*give another GOP"),
        ((fixed_gop, "clip-1", 0), r"--clip clip-1: .*is not a data set"),
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
