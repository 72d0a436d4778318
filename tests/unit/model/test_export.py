"""A model for other programs: each form computes the same, or is not written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cfer.data.inputs import Input
from cfer.errors import InputError
from cfer.model.card import ModelCard
from cfer.model.export import EXPORTS, export
from cfer.model.network import ModelConfig, Predictor

NETWORK = ModelConfig(num_classes=3, identity_dim=128, num_planes=8, width=8, code_dim=16)


def planes(clips: int, frames: int) -> torch.Tensor:
    return torch.randint(0, 256, (clips, frames, 8, 32, 32), dtype=torch.uint8)


def test_an_export_without_a_form_of_that_name(tmp_path, predictor, card):
    with pytest.raises(InputError, match=r"model\.tflite: give a file that ends in"):
        export(predictor, card, tmp_path / "model.tflite")


@pytest.mark.parametrize("suffix", EXPORTS)
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

    monkeypatch.setitem(EXPORTS, ".pt2", (export_fixed, EXPORTS[".pt2"][1]))
    with pytest.raises((RuntimeError, AssertionError)):
        export(predictor, card, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
