"""A model that reads H.264 as it is."""

from __future__ import annotations

import pytest
from small_recognizer import small_recognizer

from cfer.codec import CodecSettings
from cfer.data.inputs import Input
from cfer.model.card import write_model
from cfer.predict.recognizer import Recognizer


@pytest.fixture(scope="module")
def native() -> Recognizer:
    what = Input("energy+motion", stream="native")
    return small_recognizer(what, CodecSettings(gop_size=3, gop_seconds=1))


@pytest.fixture(scope="module")
def native_model(native: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its file."""
    path = tmp_path_factory.mktemp("model") / "native.safetensors"
    write_model(path, native.predictor, native.card)
    return str(path)
