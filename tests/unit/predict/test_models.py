"""Model files: what they keep, what they refuse; exports; the model that ships; `cfer models`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cfer.cli import run
from cfer.codec import CodecSettings
from cfer.data.inputs import Input
from cfer.errors import InputError
from cfer.model.card import ModelCard, write_model
from cfer.model.network import ModelConfig, Predictor
from cfer.predict.models import DEFAULT_LIMITS, default_path
from cfer.predict.recognizer import Recognizer

NETWORK = ModelConfig(num_classes=3, identity_dim=128, width=8, code_dim=16)


def test_the_shipped_model():
    recognizer = Recognizer.from_pretrained()
    assert recognizer.card.origin["data_set"] == "puppets"
    assert "neutral" in recognizer.card.classes
    assert recognizer.card.figures["held_out/accuracy"] > 0.7
    assert set(recognizer.card.recall_by_group) == {"age", "ethnicity", "gender"}
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
        "sees": "accumulated+motion, yuv, frames: last",
        "of": "a 64 × 64 crop of the face, GOPs of 12 frames in 12 frames of the video, "
        "quantizer 4, no motion search, windows of 2 GOPs",
        "calibrated": "temperature 1.000, not fitted: that takes clips of two held-out people",
        "weights": f"{sum(p.numel() for p in predictor.parameters()):,}",
        "data_set": "drawn",
        "held_out/accuracy": "0.500",
    }
    rate = replace(
        card,
        window_seconds=2.0,
        codec=CodecSettings(gop_size=3, quantizer=None, bit_rate=9000, gop_seconds=1.5),
    )
    direct = replace(rate, what=Input("direct", frames=2), network=NETWORK)
    write_model(path, Predictor(NETWORK), direct)
    assert run(["models", "show", path]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["sees"] == "direct residuals, yuv, frames: 2"
    assert "GOPs of 3 frames in 1.5 s of the video, 9000 bit/s, windows of 2 s" in shown["of"]


def test_what_the_card_knows_of_calibration_and_of_groups_is_shown(
    tmp_path: Path, predictor: Predictor, card: ModelCard, capsys: pytest.CaptureFixture[str]
) -> None:
    """Intervals by closed forms: of 0 of n, 1 − 0.025^(1/n) is the end; of n of n, 0.025^(1/n)."""
    path = str(tmp_path / "model.safetensors")
    figures = {"people": 4.0, "clips": 28.0, "ece_before": 0.25, "ece_after": 0.125}
    groups = {"age": {"20 to 30": (0, 10), "older": (4, 4)}, "gender": {"women": (8, 10)}}
    write_model(
        path,
        predictor,
        replace(
            card,
            figures={f"calibration/{name}": value for name, value in figures.items()},
            temperature=1.75,
            recall_by_group=groups,
        ),
    )
    assert run(["models", "show", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "calibrated temperature 1.750, fitted to 28 clips of 4 held-out people; ECE 0.250 before, "
        "0.125 after (cross-fitted)"
    ) in lines
    assert [" ".join(line.split()) for line in lines[-3:]] == [
        f"age 20 to 30 0.000, 95 % in 0.000 to {1 - 0.025 ** (1 / 10):.3f}: 0 of 10 clips",
        f"age older 1.000, 95 % in {0.025 ** (1 / 4):.3f} to 1.000: 4 of 4 clips",
        # Clopper and Pearson's, as tables have it.
        "gender women 0.800, 95 % in 0.444 to 0.975: 8 of 10 clips",
    ]


def test_the_shipped_model_is_shown_with_its_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "show", "default"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["limits"] == DEFAULT_LIMITS
    assert float(shown["held_out/accuracy"]) > 0.5
    assert {"attack/linkage_ridge_training_pooled_auc", "recall/fear", "command"} <= set(shown)


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
