"""A small model, for the tests of its file and of its other forms."""

from __future__ import annotations

import pytest
import torch

from cfer.codec import CodecSettings
from cfer.data.inputs import Input
from cfer.model.card import ModelCard
from cfer.model.network import ModelConfig, Predictor

WHAT = Input("accumulated+motion")
NETWORK = ModelConfig(3, identity_dim=128, num_planes=WHAT.num_planes, width=8, code_dim=16)


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
        what=WHAT,
        network=NETWORK,
        origin={"data_set": "drawn"},
        figures={"held_out/accuracy": 0.5},
    )
