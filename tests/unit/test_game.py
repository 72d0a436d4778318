"""The game: each player leaves the other alone, and N DDP workers play as one with N-fold batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cfer.game import (
    PLAYERS,
    Batch,
    MinMin,
    Player,
    Weights,
    apex_error,
    estimator_turn,
    expression_error,
    identity_term,
    play_turn,
)
from cfer.inputs import APEX_SIZE
from cfer.mi import identity_moments, vclub
from cfer.model import ModelConfig, Recogniser

IDENTITY_DIM = 12
CONFIG = ModelConfig(num_classes=3, identity_dim=IDENTITY_DIM, width=4, code_dim=8)
NUM_CLIPS = 8
NUM_SUBJECTS = 4


def players(with_apex: bool = True, game: str = "min-min") -> tuple[Recogniser, Player]:
    torch.manual_seed(0)
    recogniser = Recogniser(CONFIG, with_apex)
    player = PLAYERS[game](CONFIG.code_dim, IDENTITY_DIM, NUM_SUBJECTS)
    return recogniser.double(), player.double()


def make_batch(start: int = 0, stop: int = NUM_CLIPS) -> Batch:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    whole = Batch(
        planes=0.1 * normal(NUM_CLIPS, 2, 6, 16, 16),
        mask=torch.tensor([[True, True]] * 5 + [[True, False]] * 3),
        labels=torch.arange(NUM_CLIPS) % 3,
        z_I=normal(NUM_CLIPS, IDENTITY_DIM),
        subjects=torch.tensor([0, 1, 2, 3, 0, 1, -1, 3]),
        apex=normal(NUM_CLIPS, 3, APEX_SIZE, APEX_SIZE).sigmoid(),
        # Spread unevenly over two halves, so that a mean of means would be wrong.
        has_apex=torch.tensor([True, True, True, False, False, False, True, False]),
    )
    return Batch(**{name: value[start:stop] for name, value in vars(whole).items()})


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def parameters(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def assert_same(first: list, second: list) -> None:
    for a, b in zip(first, second, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def assert_players_leave_each_other_alone(recogniser: nn.Module, estimator: nn.Module) -> None:
    batch = make_batch()
    optimiser = torch.optim.SGD(estimator.parameters(), lr=0.1)

    # Gradients of an earlier step are there, and must survive the other player's turn.
    z_R, logits, apex = recogniser(batch.planes, batch.mask, batch.z_I)
    (logits.sum() + apex.sum()).backward()
    before, before_gradients = parameters(recogniser), gradients(recogniser)
    assert all(g is not None for g in before_gradients)
    theta = parameters(estimator)
    z_R, logits, apex = recogniser(batch.planes, batch.mask, batch.z_I)
    estimator_turn(estimator, optimiser, z_R, batch, num_steps=2)
    assert_same(before, parameters(recogniser))
    assert_same(before_gradients, gradients(recogniser))
    assert not any(torch.equal(a, b) for a, b in zip(theta, parameters(estimator), strict=True))

    theta, theta_gradients = parameters(estimator), gradients(estimator)
    recogniser.zero_grad(set_to_none=True)
    bound = identity_term(estimator, z_R, batch)
    (bound + 0 * logits.sum() + 0 * apex.sum()).backward()
    assert_same(theta, parameters(estimator))
    assert_same(theta_gradients, gradients(estimator))
    bare = recogniser.module if hasattr(recogniser, "module") else recogniser
    for parameter in bare.encoder.parameters():
        assert float(parameter.grad.abs().max()) > 0  # through q into z_R


def play(recogniser: nn.Module, estimator: nn.Module, batch: Batch, turns: int = 2) -> dict:
    weights = Weights(identity=2.0, apex=0.5, label_smoothing=0.1)
    first = torch.optim.SGD(recogniser.parameters(), lr=0.05, momentum=0.9)
    second = torch.optim.SGD(estimator.parameters(), lr=0.05, momentum=0.9)
    for _ in range(turns):
        terms = play_turn(recogniser, estimator, first, second, batch, weights, 2)
    return terms


@pytest.mark.parametrize("game", PLAYERS)
def test_players_leave_each_other_alone(game: str) -> None:
    assert_players_leave_each_other_alone(*players(game=game))


def test_bound_is_that_of_the_estimator() -> None:
    recogniser, estimator = players()
    batch = make_batch()
    z_R, _, _ = recogniser(batch.planes, batch.mask, batch.z_I)
    assert isinstance(estimator, MinMin)
    expected = vclub(*estimator.q(z_R), batch.z_I, identity_moments(batch.z_I)).mean()
    torch.testing.assert_close(identity_term(estimator, z_R, batch), expected)


def test_the_opponents_of_the_min_max_games_want_the_opposite_of_each_other() -> None:
    batch = make_batch()
    for game in ("min-max", "gradient-reversal"):
        recogniser, player = players(game=game)
        z_R, _, _ = recogniser(batch.planes, batch.mask, batch.z_I)
        mine, theirs = (player(z_R, batch.z_I, batch.subjects, side) for side in (False, True))
        torch.testing.assert_close(mine, -theirs)
        assert float(mine) != 0
    # A clip of an unknown subject teaches nothing.
    alone = player(z_R[6:7], batch.z_I[6:7], batch.subjects[6:7], False)
    assert float(alone) == 0
    logits = player.name(z_R)[[0, 1, 2, 3, 4, 5, 7]]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3, 0, 1, 3]))
    torch.testing.assert_close(mine, expected)


def test_class_weights_weigh_clips() -> None:
    batch = make_batch()
    logits = torch.randn(NUM_CLIPS, 3, generator=torch.Generator().manual_seed(3)).double()
    each = torch.stack(
        [expression_error(logits[i : i + 1], batch.labels[i : i + 1], Weights()) for i in range(8)]
    )
    weights = torch.tensor([2.0, 0.5, 0.0]).double()
    weighted = expression_error(logits, batch.labels, Weights(classes=weights))
    torch.testing.assert_close(weighted, (each * weights[batch.labels]).mean())


def test_without_weight_the_estimator_plays_and_the_recogniser_does_not_notice() -> None:
    batch = make_batch()
    results = []
    for identity_weight, steps in ((0.0, 1), (0.0, 5), (3.0, 5)):
        recogniser, estimator = players(with_apex=False)
        theta = parameters(estimator)
        optimiser = torch.optim.SGD(recogniser.parameters(), lr=0.05)
        estimator_optimiser = torch.optim.SGD(estimator.parameters(), lr=0.05)
        weights = Weights(identity=identity_weight)
        terms = play_turn(
            recogniser, estimator, optimiser, estimator_optimiser, batch, weights, steps
        )
        assert float(terms["identity_term"]) != 0
        assert not torch.equal(theta[0], parameters(estimator)[0])
        results.append(parameters(recogniser))
    assert_same(results[0], results[1])
    assert not torch.equal(results[1][0], results[2][0])


def test_apex_counts_annotated_clips_only() -> None:
    batch = make_batch()
    rebuilt = batch.apex + 0.5
    rebuilt[~batch.has_apex] = 100.0
    assert float(apex_error(rebuilt, batch.apex, batch.has_apex)) == pytest.approx(0.25)
    none = torch.zeros_like(batch.has_apex)
    assert float(apex_error(rebuilt, batch.apex, none)) == 0.0


def test_the_game_lowers_the_bound_that_it_weighs() -> None:
    """z_I that can be read off the input: with λ the code gives it up, without it does not."""
    generator = torch.Generator().manual_seed(2)
    identity = torch.randn(64, 2, generator=generator).sign().double()
    z_I = identity.repeat(1, IDENTITY_DIM // 2)
    labels = torch.arange(64) % 2
    planes = torch.zeros(64, 1, 6, 8, 8, dtype=torch.float64)
    planes[:, 0, 0] = 0.3 * identity[:, 0, None, None]
    planes[:, 0, 1] = 0.3 * identity[:, 1, None, None]
    planes[:, 0, 2] = 0.3 * (2 * labels.double() - 1)[:, None, None]
    batch = Batch(
        planes=planes,
        mask=torch.ones(64, 1, dtype=torch.bool),
        labels=labels,
        z_I=z_I,
        subjects=(identity[:, 0] > 0).long() + 2 * (identity[:, 1] > 0).long(),
        apex=torch.zeros(64, 3, APEX_SIZE, APEX_SIZE),
        has_apex=torch.zeros(64, dtype=torch.bool),
    )
    bounds = {}
    for weight in (0.0, 1.0):
        recogniser, estimator = players(with_apex=False)
        optimiser = torch.optim.AdamW(recogniser.parameters(), lr=3e-3)
        estimator_optimiser = torch.optim.AdamW(estimator.parameters(), lr=3e-3)
        for _ in range(250):
            terms = play_turn(
                recogniser,
                estimator,
                optimiser,
                estimator_optimiser,
                batch,
                Weights(identity=weight),
                2,
            )
        assert int(terms["num_correct"]) == 64
        bounds[weight] = float(terms["identity_term"])
    assert bounds[0.0] > 0.5
    assert bounds[1.0] < 0.2 * bounds[0.0]


def _in_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        recogniser, estimator = players()
        assert_players_leave_each_other_alone(
            DistributedDataParallel(recogniser), DistributedDataParallel(estimator)
        )
        recogniser, estimator = players()
        half = NUM_CLIPS // 2
        terms = play(
            DistributedDataParallel(recogniser),
            DistributedDataParallel(estimator),
            make_batch(rank * half, (rank + 1) * half),
        )
        state = {"terms": terms, "players": [parameters(recogniser), parameters(estimator)]}
        torch.save(state, Path(folder) / f"{rank}.pt")
        dist.barrier()  # Gloo may abort when the other one is gone already
    finally:
        dist.destroy_process_group()


def test_two_workers_equal_one_with_the_doubled_batch(tmp_path: Path) -> None:
    mp.spawn(_in_worker, args=(str(tmp_path),), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    recogniser, estimator = players()
    terms = play(recogniser, estimator, make_batch())
    for state in states:
        for mine, theirs in zip(
            (parameters(recogniser), parameters(estimator)), state["players"], strict=True
        ):
            for a, b in zip(mine, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    for name in ("loss", "identity_term", "estimator_loss", "apex_error", "cross_entropy"):
        mean = (states[0]["terms"][name] + states[1]["terms"][name]) / 2
        torch.testing.assert_close(terms[name].double(), mean.double(), rtol=1e-9, atol=1e-11)
