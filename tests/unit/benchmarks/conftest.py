"""A model that reads H.264 as it is."""

from __future__ import annotations

import pytest
import torch

from cfer.codec import CodecSettings
from cfer.data.inputs import Input
from cfer.model.card import ModelCard, write_model
from cfer.model.network import ModelConfig, Predictor
from cfer.predict.recognizer import Recognizer


@pytest.fixture(scope="module")
def native() -> Recognizer:
    """Its weights are as they come."""
    torch.manual_seed(0)
    what = Input("energy+motion", stream="native")
    network = ModelConfig(2, identity_dim=128, num_planes=what.num_planes, width=8, code_dim=16)
    card = ModelCard(
        classes=("happiness", "surprise"),
        size=64,
        codec=CodecSettings(gop_size=3, gop_seconds=1),
        window_gops=1,
        what=what,
        network=network,
    )
    return Recognizer(Predictor(network), card)


@pytest.fixture(scope="module")
def native_model(native: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its file."""
    path = tmp_path_factory.mktemp("model") / "native.safetensors"
    write_model(path, native.predictor, native.card)
    return str(path)
