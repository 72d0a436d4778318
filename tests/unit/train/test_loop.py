"""What a training worker computes: standardization, learning rate, figures, what it prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cfer.errors import InputError, NotFinite
from cfer.evaluate.metrics import ScoredClips
from cfer.model.network import ModelConfig
from cfer.train.batches import LoadedClips
from cfer.train.checkpoint import save
from cfer.train.config import TrainConfig
from cfer.train.loop import (
    _diverged,
    _mean_over_workers,
    _progress_line,
    _schedule,
    _standardization,
    _validation_figures,
    model_config,
    threads_of,
    turn_on_noise,
)

CPU = torch.device("cpu")


def test_the_model_is_as_the_options_say() -> None:
    options = {"width": 8, "code_dim": 32, "pooling": "max", "dropout": 0.5, "blur": 2.0}
    config = TrainConfig("x", input="motion", **options)
    assert model_config(config, 7, 128) == ModelConfig(
        num_classes=7,
        identity_dim=128,
        num_planes=config.what.num_planes,
        gain=config.what.gain,
        **options,
    )


@pytest.mark.parametrize(
    ("cores", "processes", "reserved", "threads"),
    [(8, 1, 0, 8), (8, 2, 0, 4), (2, 4, 0, 1), (8, 1, 1, 1), (8, 2, 6, 4), (2, 1, 0.5, 1)],
)
def test_a_process_has_its_share_of_the_cores_and_no_more_than_it_reserved(
    cores: int, processes: int, reserved: float, threads: int
) -> None:
    assert threads_of(cores, processes, reserved) == threads


def test_a_code_has_as_many_directions_as_its_classifier_reads() -> None:
    for num_classes, code_dim in ((8, 7), (2, 1), (1, 1)):
        assert model_config(TrainConfig("x"), num_classes, 128).code_dim == code_dim
    assert model_config(TrainConfig("x", code_dim=64, erase=63), 8, 128).code_dim == 64
    with pytest.raises(InputError, match="--erase 7: the code has 7 directions, and some must be"):
        model_config(TrainConfig("x", erase=7), 8, 128)


def test_identities_are_standardized_by_those_of_the_training_clips() -> None:
    z_I = torch.tensor([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]])
    nothing = torch.zeros(3, dtype=torch.int64)
    clips = LoadedClips([np.zeros(1)] * 3, nothing, z_I, z_I, nothing.bool(), [], [], nothing)
    standardize = _standardization(clips, CPU)
    assert torch.allclose(standardize.mean, z_I.mean(0))
    assert torch.allclose(standardize.std, torch.tensor([z_I[:, 0].std(correction=0), 1.0]))
    assert torch.allclose(standardize(z_I)[:, 0].std(correction=0), torch.tensor(1.0))


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [_schedule(step, 100) for step in range(100)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert _schedule(5 + 50, 105) == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.001
    assert _schedule(0, 1) == 1


def test_figures_of_an_epoch_are_means_of_its_steps() -> None:
    sums = {"loss": torch.tensor(6.0), "num_correct": torch.tensor(9.0), "term": torch.tensor(-3.0)}
    means = _mean_over_workers(sums, num_steps=3, num_clips=12)
    assert means == {"train/loss": 2, "train/accuracy": 0.75, "train/term": -1}

    logits = np.log(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]]))
    held_out = ScoredClips(
        np.array([0, 1, 1, 1]), logits, np.zeros((4, 1)), np.zeros((4, 1)), ["a"] * 4, ["c"] * 4
    )
    figures = _validation_figures(held_out, 2)
    assert figures["held_out/accuracy"] == 0.75
    assert figures["held_out/uar"] == pytest.approx((1 + 2 / 3) / 2)
    expected = -np.mean(np.log([0.9, 0.4, 0.8, 0.7]))
    assert figures["held_out/cross_entropy"] == pytest.approx(expected)


def test_the_line_of_an_epoch() -> None:
    epoch = {
        "train/loss": 0.5,
        "train/cross_entropy": 0.25,
        "train/identity_term": 0.125,
        "train/estimator_loss": 1.5,
        "train/apex_error": 0.0625,
        "train/accuracy": 0.75,
        "held_out/accuracy": 0.625,
        "held_out/uar": 0.375,
        "time/epoch_seconds": 3.0,
    }
    config = TrainConfig("x", run="mine", epochs=5)
    assert _progress_line(2, epoch, config, 8.0) == (
        "epoch   2/5  loss 0.500  CE 0.250  identity 0.125  player 1 1.500  train acc 0.750  "
        "held-out acc 0.625  UAR 0.375  3.0 s, 12 s left"
    )
    with_apex = _progress_line(2, epoch, replace(config, apex_weight=1), 8.0)
    assert "player 1 1.500  apex 0.0625  train acc" in with_apex


def test_the_error_of_a_run_that_diverged(tmp_path: Path) -> None:
    config = TrainConfig("x", run="mine", lr=1e8, epochs=4)
    error = NotFinite("player 2's loss is not")
    said = str(_diverged(error, config, 2 * 10 + 6, 10, str(tmp_path)))
    rate = 1e8 * _schedule(26, 40)
    assert said == (
        f"run mine has stopped in epoch 3, step 7 of 10, at the learning rate {rate:g} (player "
        "1's: 0.002): player 2's loss is not; its last good checkpoint is none; start another "
        "--run with a lower --lr or --estimator-lr"
    )
    save(str(tmp_path), {}, [{}, {}], 2.0)
    said = str(_diverged(error, config, 26, 10, str(tmp_path)))
    assert f"its last good checkpoint is {tmp_path}/epoch-00002; start" in said


def test_a_turn_that_is_timed_is_one_of_the_game() -> None:
    """Both players have moved after it; one that is exact has nothing that moves."""
    wrapped: list[nn.Module] = []

    def kept(module: nn.Module) -> nn.Module:
        wrapped.append(module)
        return module

    config = TrainConfig("x", width=4, game="vclub", apex_weight=1)
    turn_on_noise(replace(config, game="min-min"), 3, 16, 4, 2, 16, kept)()
    assert len(wrapped) == 1
    wrapped.clear()
    turn = turn_on_noise(config, 3, 16, num_clips=4, num_frames=2, side=16, wrap=kept)
    before = [[p.detach().clone() for p in module.parameters()] for module in wrapped]
    turn()
    assert len(wrapped) == 2
    for module, old in zip(wrapped, before, strict=True):
        assert any(not torch.equal(p, was) for p, was in zip(module.parameters(), old, strict=True))
