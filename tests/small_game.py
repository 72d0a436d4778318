"""Two small players and a batch, in float64: for tests of the game in one process and in two."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cfer.data.inputs import APEX_SIZE
from cfer.model.game import (
    PLAYERS,
    Batch,
    Player1,
    Weights,
    estimator_turn,
    identity_term,
    learns,
    play_turn,
)
from cfer.model.network import ExpressionNet, ModelConfig

IDENTITY_DIM = 12
CONFIG = ModelConfig(num_classes=3, identity_dim=IDENTITY_DIM, width=4, code_dim=8)
NUM_CLIPS = 8
NUM_SUBJECTS = 4


def players(with_apex: bool = True, game: str = "min-min") -> tuple[ExpressionNet, Player1]:
    torch.manual_seed(0)
    expression_net = ExpressionNet(CONFIG, with_apex)
    player_1 = PLAYERS[game](CONFIG.code_dim, IDENTITY_DIM, NUM_SUBJECTS)
    return expression_net.double(), player_1.double()


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


def assert_players_leave_each_other_alone(expression_net: nn.Module, player_1: nn.Module) -> None:
    batch = make_batch()
    optimizer = torch.optim.SGD([{"params": [*player_1.parameters()]}], lr=0.1)

    # Gradients of an earlier step are there, and must survive the other player_1's turn.
    z_R, logits, apex = expression_net(batch.planes, batch.mask, batch.z_I)
    (logits.sum() + apex.sum()).backward()
    before, before_gradients = parameters(expression_net), gradients(expression_net)
    assert all(g is not None for g in before_gradients)
    theta = parameters(player_1)
    z_R, logits, apex = expression_net(batch.planes, batch.mask, batch.z_I)
    if learns(player_1):
        estimator_turn(player_1, optimizer, z_R, batch, num_steps=2)
    assert_same(before, parameters(expression_net))
    assert_same(before_gradients, gradients(expression_net))
    assert not any(torch.equal(a, b) for a, b in zip(theta, parameters(player_1), strict=True))
    assert bool(theta) == learns(player_1)

    theta, theta_gradients = parameters(player_1), gradients(player_1)
    expression_net.zero_grad(set_to_none=True)
    bound = identity_term(player_1, z_R, batch)
    (bound + 0 * logits.sum() + 0 * apex.sum()).backward()
    assert_same(theta, parameters(player_1))
    assert_same(theta_gradients, gradients(player_1))
    bare = expression_net.module if hasattr(expression_net, "module") else expression_net
    for parameter in bare.encoder.parameters():
        assert float(parameter.grad.abs().max()) > 0  # through player 1 into z_R


def play(expression_net: nn.Module, player_1: nn.Module, batch: Batch, turns: int = 2) -> dict:
    weights = Weights(identity=2.0, apex=0.5, label_smoothing=0.1)
    first = torch.optim.SGD(expression_net.parameters(), lr=0.05, momentum=0.9)
    second = torch.optim.SGD([{"params": [*player_1.parameters()]}], lr=0.05, momentum=0.9)
    for _ in range(turns):
        terms = play_turn(expression_net, player_1, first, second, batch, weights, 2)
    return terms
