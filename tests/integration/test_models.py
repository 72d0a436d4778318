"""Model files: what they keep, what they refuse; exports; the registry; the model that ships."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import run_module

from cfer.codec import CodecSettings
from cfer.errors import InputError
from cfer.export import export
from cfer.inputs import Input
from cfer.model import ModelConfig, Predictor
from cfer.model_file import CARD_NAME, ModelCard, read_model, write_model
from cfer.models import default_path
from cfer.predict import Recognizer

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
        codec=CodecSettings(gop_size=12, quantiser=4, motion_search=False),
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
        (lambda card: card | {"network": card["network"] | {"width": 10**12}}, "network.width"),
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


def test_a_damaged_file_and_a_pickle_are_refused(tmp_path, predictor, card):
    path = tmp_path / "model.safetensors"
    write_model(path, predictor, card)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a readable model file"):
        read_model(path)
    torch.save(predictor.state_dict(), path)
    with pytest.raises(InputError, match="not a readable model file"):
        read_model(path)


def test_an_export_without_a_form_of_that_name(tmp_path, predictor, card):
    with pytest.raises(InputError, match=r"model\.tflite: give a file that ends in"):
        export(predictor, card, tmp_path / "model.tflite")


@pytest.mark.parametrize("suffix", [".pt2", ".ts", ".onnx"])
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
    elif suffix == ".ts":
        found = torch.jit.load(str(path))(given).detach().numpy()
    else:
        found = torch.export.load(str(path)).module()(given).detach().numpy()
    with torch.inference_mode():
        np.testing.assert_allclose(found, predictor(given).numpy(), atol=1e-5)


def test_an_export_that_computes_something_else_is_not_written(tmp_path, predictor, card):
    """The check is on what was written, not on what was meant."""
    other = replace(card, what=Input("accumulated", "luma"), network=replace(NETWORK, num_planes=4))
    with pytest.raises((RuntimeError, InputError)):
        export(predictor, other, tmp_path / "model.ts")
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_model():
    recognizer = Recognizer.from_pretrained()
    assert recognizer.card.origin["data_set"] == "synthetic"
    assert "--method min-min" in recognizer.card.origin["command"]
    assert recognizer.card.figures["held_out/accuracy"] > 0.5
    assert default_path().stat().st_size < 5_000_000


def test_models_from_hand_to_hand(trained_store, tmp_path, monkeypatch):
    """A run's model → a file → the registry of another store: the same weights, by each name."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained_store)
    given, back = str(tmp_path / "given.safetensors"), str(tmp_path / "back.safetensors")
    done = run_module("cfer.cli", "models", "export", "short", given)
    assert done.returncode == 0, done.stderr
    listed = run_module("cfer.cli", "models", "list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["name", "default", "short"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    done = run_module("cfer.cli", "models", "import", given, "--name", "faces")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "models:/faces/1"
    listed = run_module("cfer.cli", "models", "list")
    assert "models:/faces/1" in listed.stdout
    shown = run_module("cfer.cli", "models", "show", "models:/faces/1")
    assert shown.returncode == 0, shown.stderr
    assert "anger, contempt, disgust" in shown.stdout
    assert "GOPs of 12 frames in 12" in shown.stdout
    done = run_module("cfer.cli", "models", "export", "models:/faces/1", back)
    assert done.returncode == 0, done.stderr
    assert Path(given).read_bytes() == Path(back).read_bytes()


@pytest.mark.parametrize("name", ["missing.safetensors", "models:/nosuch/1", "runs:/nosuch/model"])
def test_no_such_model(trained_store, monkeypatch, name):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained_store)
    done = run_module("cfer.cli", "models", "show", name)
    assert done.returncode == 2
    assert name in done.stderr
    assert "Traceback" not in done.stderr
