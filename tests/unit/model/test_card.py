"""A model as one file: what is read again, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cfer.errors import InputError
from cfer.model.card import CARD_NAME, ModelCard, calibration_line, read_model, write_model
from cfer.model.network import ModelConfig, Predictor

NETWORK = ModelConfig(num_classes=3, identity_dim=128, num_planes=8, width=8, code_dim=16)


def planes(clips: int, frames: int) -> torch.Tensor:
    return torch.randint(0, 256, (clips, frames, 8, 32, 32), dtype=torch.uint8)


def of_group(card: dict[str, Any], counts: list[float]) -> dict[str, Any]:
    return card | {"recall_by_group": {"age": {"20": counts}}}


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


def test_a_window_is_the_cards_seconds_or_an_earlier_cards_gops(card):
    assert card.window_seconds is None
    assert card.window_frames(Fraction(60)) == 24, "two GOPs of 12 frames"
    text = json.loads(card.to_json())
    del text["window_seconds"], text["codec"]["gop_seconds"]
    assert ModelCard.from_json(json.dumps(text)) == card, "as an earlier cfer wrote it"
    by_time = replace(card, window_seconds=1.5)
    assert ModelCard.from_json(by_time.to_json()) == by_time
    assert by_time.window_frames(Fraction(30000, 1001)) == 45
    assert by_time.window_frames(Fraction(24), 0.5) == 12
    assert by_time.window_frames(Fraction(24), 0.01) == 2, "one frame has no residual"


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
        (lambda card: card | {"network": card["network"] | {"stem_stride": 0}}, "stem_stride 0 is"),
        (lambda card: card | {"network": card["network"] | {"stem_stride": 6}}, "between 1 and 5"),
        (lambda card: card | {"network": card["network"] | {"blur": 99}}, "blur 99.0 is not"),
        (lambda card: card | {"network": card["network"] | {"pooling": "sum"}}, "pooling sum"),
        (lambda card: card | {"network": card["network"] | {"gain": "x"}}, "network.gain"),
        (lambda card: card | {"network": card["network"] | {"gain": math.nan}}, "gain nan"),
        (lambda card: card | {"network": card["network"] | {"more": 1}}, "more is unknown"),
        (lambda card: card | {"what": card["what"] | {"frames": "foo"}}, "what.frames"),
        (lambda card: card | {"size": math.inf}, "size"),
        (lambda card: card | {"size": 111}, "size 111 is odd"),
        (lambda card: card | {"temperature": 0}, "temperature 0.0 is not a positive number"),
        (lambda card: card | {"temperature": -1.5}, "temperature -1.5 is not a positive"),
        (lambda card: card | {"temperature": math.nan}, "temperature nan is not a positive"),
        (lambda card: card | {"temperature": math.inf}, "temperature inf is not a positive"),
        (lambda card: card | {"temperature": "2"}, "temperature Input should be a valid number"),
        (lambda card: of_group(card, [3, 2]), "recall_by_group age 20: 3 of 2 clips is not"),
        (lambda card: of_group(card, [-1, 2]), "recall_by_group age 20: -1 of 2 clips is not"),
        (lambda card: of_group(card, [0, 0]), "recall_by_group age 20: 0 of 0 clips is not"),
        (lambda card: of_group(card, [0, 10**400]), "recall_by_group"),
        (lambda card: of_group(card, [0.5, 1]), r"recall_by_group\.age\.20\.0"),
        (lambda card: of_group(card, [1]), r"recall_by_group\.age\.20\.1"),
        (lambda card: card | {"window_seconds": -1.0}, "window_seconds -1.0 is not between 0"),
        (lambda card: card | {"window_gops": 0}, "window_gops 0 is not between 1"),
        (lambda card: card | {"codec": card["codec"] | {"gop_seconds": -1.0}}, "GOP of -1.0 s"),
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


def test_a_card_keeps_its_temperature_and_its_groups(card: ModelCard) -> None:
    groups = {"age": {"20 to 30": (7, 9), "older": (0, 3)}, "gender": {"women": (12, 12)}}
    calibrated = replace(card, temperature=1.75, recall_by_group=groups)
    assert ModelCard.from_json(calibrated.to_json()) == calibrated


def test_a_card_of_before_temperatures_and_groups_is_read(card: ModelCard) -> None:
    values = json.loads(card.to_json())
    del values["temperature"], values["recall_by_group"]
    read = ModelCard.from_json(json.dumps(values))
    assert read == card
    assert (read.temperature, read.recall_by_group) == (1.0, {})


def test_a_card_of_before_stem_strides_is_of_a_stem_of_stride_2(
    tmp_path: Path, predictor: Predictor, card: ModelCard
) -> None:
    """The weights have the same shapes, whatever the stride: nothing else would show it."""
    assert card.network.stem_stride == 4
    earlier = Predictor(replace(NETWORK, stem_stride=2))
    earlier.load_state_dict(predictor.state_dict())
    values = json.loads(card.to_json())
    del values["network"]["stem_stride"]
    tensors = {name: value.contiguous() for name, value in earlier.state_dict().items()}
    path = tmp_path / "earlier.safetensors"
    safetensors.torch.save_file(tensors, str(path), metadata={CARD_NAME: json.dumps(values)})
    read, read_card = read_model(path)
    assert read_card == replace(card, network=replace(card.network, stem_stride=2))
    given = planes(2, 3)
    with torch.inference_mode():
        torch.testing.assert_close(read(given), earlier(given))
        assert not torch.allclose(read(given), predictor(given), atol=1e-4)


def test_what_is_said_of_the_probabilities() -> None:
    figures = {"people": 4.0, "clips": 28.0, "ece_before": 0.25, "ece_after": 0.125}
    known = {f"calibration/{name}": value for name, value in figures.items()}
    assert calibration_line(1.75, known) == (
        "temperature 1.750, fitted to 28 clips of 4 held-out people; ECE 0.250 before, 0.125 after "
        "(cross-fitted)"
    )
    for name in known:
        part = {k: v for k, v in known.items() if k != name}
        assert calibration_line(1.0, part) == (
            "temperature 1.000, not fitted: that takes clips of two held-out people"
        )


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
