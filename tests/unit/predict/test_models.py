"""Model files: what they keep, what they refuse; exports; the model that ships; `cfer models`."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from cfer.cli import run
from cfer.codec import CodecSettings
from cfer.data.inputs import Input
from cfer.errors import InputError
from cfer.model.card import CARD_NAME, ModelCard, read_model, write_model
from cfer.model.export import EXPORTS, export
from cfer.model.network import ModelConfig, Predictor
from cfer.predict.models import DEFAULT_LIMITS, default_path
from cfer.predict.recognizer import Recognizer

NETWORK = ModelConfig(num_classes=3, identity_dim=128, width=8, code_dim=16)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    network = Predictor(NETWORK)
    # Statistics as after training: with those of a new network a lost buffer would not show.
    for name, buffer in network.named_buffers():
        if buffer.dtype.is_floating_point:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
        assert name in network.state_dict()
    return network.eval()


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return ModelCard(
        classes=("joy", "fear", "surprise"),
        size=64,
        codec=CodecSettings(gop_size=12, quantizer=4, motion_search=False),
        window_gops=2,
        what=Input("accumulated"),
        network=NETWORK,
        origin={"data_set": "drawn"},
        figures={"held_out/accuracy": 0.5},
    )


def planes(clips: int, frames: int) -> torch.Tensor:
    return torch.randint(0, 256, (clips, frames, NETWORK.num_planes, 32, 32), dtype=torch.uint8)


def test_a_file_gives_back_the_model_and_its_card(tmp_path, predictor, card):
    write_model(tmp_path / "one.safetensors", predictor, card)
    read, read_card = read_model(tmp_path / "one.safetensors")
    assert read_card == card
    given = planes(2, 3)
    with torch.inference_mode():
        torch.testing.assert_close(read(given), predictor(given))
    write_model(tmp_path / "two.safetensors", read, read_card)
    one, two = ((tmp_path / f"{n}.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card | {"format": 2}, "format 2"),
        (lambda card: card | {"classes": ["joy"]}, "1 classes, and a network for 3"),
        (lambda card: card | {"size": 10**9}, "size 1000000000 is not between"),
        (lambda card: {k: v for k, v in card.items() if k != "codec"}, "codec"),
        (lambda card: card | {"more": 1}, "more"),
        (lambda card: card | {"network": card["network"] | {"width": 4000}}, "not those that its"),
        (
            lambda card: card | {"network": card["network"] | {"width": 10**12}},
            "width 1000000000000",
        ),
        (lambda card: card | {"network": card["network"] | {"width": 4095}}, "width 4095: give a"),
        (lambda card: card | {"network": card["network"] | {"width": "16"}}, "network.width"),
        (lambda card: card | {"network": card["network"] | {"pooling": "sum"}}, "pooling sum"),
        (lambda card: card | {"network": card["network"] | {"gain": "x"}}, "network.gain"),
        (lambda card: card | {"network": card["network"] | {"gain": math.nan}}, "gain nan"),
        (lambda card: card | {"network": card["network"] | {"more": 1}}, "more is unknown"),
        (lambda card: card | {"what": card["what"] | {"frames": "foo"}}, "what.frames"),
        (lambda card: card | {"size": math.inf}, "size"),
        (lambda card: card | {"size": 111}, "size 111 is odd"),
        (lambda card: card | {"classes": ["a", "b", "a"]}, "are not all different names"),
        (lambda card: [card], "not one of cfer's"),
        (None, "without cfer's card"),
    ],
)
def test_a_file_that_is_not_right_is_refused(tmp_path, predictor, card, change, message):
    """Also where its numbers ask for more memory than there is."""
    metadata = None
    if change is not None:
        metadata = {CARD_NAME: json.dumps(change(json.loads(card.to_json())))}
    path = tmp_path / "bad.safetensors"
    tensors = {name: value.contiguous() for name, value in predictor.state_dict().items()}
    safetensors.torch.save_file(tensors, str(path), metadata=metadata)
    with pytest.raises(InputError, match=message) as error:
        read_model(path)
    assert str(path) in str(error.value)


def test_a_card_that_is_nested_deeply(tmp_path, predictor, card):
    with pytest.raises(InputError, match="not one of cfer's"):
        ModelCard.from_json("[" * 100_000)


def test_a_damaged_file_and_a_pickle_are_refused(tmp_path, predictor, card):
    path = tmp_path / "model.safetensors"
    write_model(path, predictor, card)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a readable model file"):
        read_model(path)
    torch.save(predictor.state_dict(), path)
    with pytest.raises(InputError, match="not a readable model file"):
        read_model(path)


def test_weights_that_are_not_finite_are_refused(tmp_path, predictor, card):
    """Whatever they were asked, they would say the first class."""
    diverged = Predictor(NETWORK)
    diverged.load_state_dict(predictor.state_dict())
    diverged.classifier.bias.data[1] = float("nan")
    write_model(tmp_path / "bad.safetensors", diverged, card)
    with pytest.raises(InputError, match=r"weights classifier\.bias are not finite: its training"):
        read_model(tmp_path / "bad.safetensors")


def test_an_export_without_a_form_of_that_name(tmp_path, predictor, card):
    with pytest.raises(InputError, match=r"model\.tflite: give a file that ends in"):
        export(predictor, card, tmp_path / "model.tflite")


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_an_export_computes_the_same(tmp_path, predictor, card, suffix):
    path = tmp_path / f"model{suffix}"
    assert export(predictor, card, path) < 1e-5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", path.name]
    assert ModelCard.from_json(path.with_suffix(".json").read_text()) == card
    given = planes(4, 7)
    if suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (found,) = session.run(["probabilities"], {"planes": given.numpy()})
    else:
        found = torch.export.load(str(path)).module()(given).detach().numpy()
    with torch.inference_mode():
        np.testing.assert_allclose(found, predictor(given).numpy(), atol=1e-5)


def test_an_export_that_computes_something_else_is_not_written(tmp_path, predictor, card):
    """The check is on what was written, not on what was meant."""
    other = replace(card, what=Input("accumulated", "luma"), network=replace(NETWORK, num_planes=4))
    with pytest.raises((RuntimeError, InputError)):
        export(predictor, other, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_an_export_for_one_number_of_clips_alone_is_not_written(
    tmp_path: Path, predictor: Predictor, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_fixed(predictor: Predictor, card: ModelCard, path: Path) -> None:
        torch.export.save(torch.export.export(predictor, (planes(2, 2),)), str(path))

    monkeypatch.setitem(EXPORTS, ".pt2", export_fixed)
    with pytest.raises((RuntimeError, AssertionError)):
        export(predictor, card, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_model():
    recognizer = Recognizer.from_pretrained()
    assert recognizer.card.origin["data_set"] == "synthetic"
    assert "--method min-min" in recognizer.card.origin["command"]
    assert recognizer.card.figures["held_out/accuracy"] > 0.5
    assert default_path().stat().st_size < 5_000_000


# ---- cfer models ---------------------------------------------------------------------------------


def test_the_card_is_shown_for_people(
    tmp_path: Path, predictor: Predictor, card: ModelCard, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "model.safetensors")
    write_model(path, predictor, replace(card, figures={"held_out/accuracy": 0.5, "cost/x": 1.0}))
    assert run(["models", "show", path]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown == {
        "model": path,
        "classes": "joy, fear, surprise",
        "sees": "accumulated residuals, yuv, frames: last",
        "of": "a 64 × 64 crop of the face, GOPs of 12 frames in 12 of the video, quantizer 4, "
        "no motion search, windows of 2 GOPs",
        "weights": f"{sum(p.numel() for p in predictor.parameters()):,}",
        "data_set": "drawn",
        "held_out/accuracy": "0.500",
    }
    rate = replace(card, codec=CodecSettings(gop_size=3, quantizer=None, bit_rate=9000, gop_span=6))
    write_model(path, predictor, replace(rate, what=Input("difference", frames=2)))
    assert run(["models", "show", path]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["sees"] == "difference, yuv, frames: 2"
    assert "GOPs of 3 frames in 6 of the video, 9000 bit/s, windows" in shown["of"]


def test_the_shipped_model_is_shown_with_its_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "show", "default"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["limits"] == DEFAULT_LIMITS
    assert float(shown["held_out/accuracy"]) > 0.5
    assert {"leakage/linear_held_out", "recall/fear", "command"} <= set(shown)


def test_a_file_is_exported_as_it_is_or_in_another_form(
    tmp_path: Path, predictor: Predictor, card: ModelCard, capsys: pytest.CaptureFixture[str]
) -> None:
    path, copy = tmp_path / "model.safetensors", tmp_path / "sub" / "copy.safetensors"
    write_model(path, predictor, card)
    assert run(["models", "export", str(path), str(copy)]) == 0
    assert copy.read_bytes() == path.read_bytes()
    assert capsys.readouterr().out == f"{copy}: {path.stat().st_size:,} bytes\n"
    other = tmp_path / "sub" / "model.pt2"
    assert run(["models", "export", str(path), str(other)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{other}: {other.stat().st_size:,} bytes, and its card beside it")
    assert other.with_suffix(".json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("show missing.safetensors", "missing.safetensors: not a readable model file"),
        ("export missing.safetensors model.onnx", "missing.safetensors: not a readable model file"),
        ("export default model.tflite", "model.tflite: give a file that ends in one of .onnx, "),
        ("import model.onnx --name x", "model.onnx: give a .safetensors file, as `cfer models"),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        run(["models", *arguments.split()])
    assert list(tmp_path.iterdir()) == []
