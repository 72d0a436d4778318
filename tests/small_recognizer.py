"""A small recognizer whose weights are as they come: what it says is not what is tested."""

from __future__ import annotations

import torch

from cfer.codec import CodecSettings
from cfer.data.inputs import Input
from cfer.model.card import ModelCard
from cfer.model.network import ModelConfig, Predictor
from cfer.predict.recognizer import Recognizer


def small_recognizer(what: Input, codec: CodecSettings) -> Recognizer:
    """For two classes and crops of 64 × 64; the same weights each time."""
    torch.manual_seed(0)
    network = ModelConfig(2, identity_dim=128, num_planes=what.num_planes, width=8, code_dim=16)
    card = ModelCard(
        classes=("happiness", "surprise"),
        size=64,
        codec=codec,
        window_gops=2,
        what=what,
        network=network,
    )
    return Recognizer(Predictor(network), card)
