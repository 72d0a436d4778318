"""The game: each player leaves the other alone, and the bound that is weighed goes down."""

from __future__ import annotations

import pytest
import torch
from small_game import (
    IDENTITY_DIM,
    NUM_CLIPS,
    assert_players_leave_each_other_alone,
    assert_same,
    make_batch,
    parameters,
    players,
)

from cfer.data.inputs import APEX_SIZE
from cfer.errors import NotFinite
from cfer.model.game import (
    MEMORY,
    PLAYERS,
    Batch,
    MinMin,
    VClub,
    Weights,
    apex_error,
    expression_error,
    identity_term,
    optimizer_of,
    play_turn,
)
from cfer.model.mi import gaussian_information, identity_moments, vclub


@pytest.mark.parametrize("game", PLAYERS)
def test_players_leave_each_other_alone(game: str) -> None:
    assert_players_leave_each_other_alone(*players(game=game))


def test_bound_is_that_of_the_estimator() -> None:
    expression_net, player_1 = players(game="vclub")
    batch = make_batch()
    z_R, _, _ = expression_net(batch.planes, batch.mask, batch.z_I)
    assert isinstance(player_1, VClub)
    expected = vclub(*player_1.q(z_R), batch.z_I, identity_moments(batch.z_I)).mean()
    torch.testing.assert_close(identity_term(player_1, z_R, batch), expected)


def test_the_exact_player_knows_the_latest_codes_and_moves_those_of_the_batch() -> None:
    """Against finite differences: as much as if all codes that it remembers moved alike."""
    generator = torch.Generator().manual_seed(5)
    player_1 = MinMin(3, IDENTITY_DIM, 0).double()
    batches = [make_batch() for _ in range(3)]
    codes = torch.randn(3, NUM_CLIPS, 3, generator=generator, dtype=torch.float64)
    for z_R, batch in zip(codes[:2], batches, strict=False):
        player_1(z_R, batch, for_player_2=True)
    z_R = codes[2].clone().requires_grad_()
    known = torch.cat([batch.z_I for batch in batches]), torch.cat([b.labels for b in batches])

    def information(now: torch.Tensor) -> torch.Tensor:
        return gaussian_information(torch.cat([now, codes[1], codes[0]]), *known)

    theirs = player_1(z_R, batches[2], for_player_2=True)
    torch.testing.assert_close(theirs, information(codes[2]))
    (gradient,) = torch.autograd.grad(theirs, z_R)
    for clip, dimension in ((0, 0), (5, 2)):
        step = torch.zeros_like(codes[2])
        step[clip, dimension] = 1e-5
        slope = (information(codes[2] + step) - information(codes[2] - step)) / 2e-5
        torch.testing.assert_close(gradient[clip, dimension], 3 * slope, rtol=1e-5, atol=1e-9)


def test_the_exact_players_loss_is_what_player_2_goes_down_turned_around() -> None:
    expression_net, player_1 = players(with_apex=False)
    optimizers = [optimizer_of(player) for player in (expression_net, player_1)]
    terms = play_turn(expression_net, player_1, *optimizers, make_batch(), Weights(1.0), 2)
    assert float(terms["identity_term"]) > 0
    torch.testing.assert_close(terms["estimator_loss"], -terms["identity_term"])
    assert not terms["estimator_loss"].requires_grad


def test_the_exact_player_forgets_the_earliest_codes() -> None:
    player_1 = MinMin(2, IDENTITY_DIM, 0).double()
    batch = make_batch()
    for turn in range(MEMORY // NUM_CLIPS + 3):
        player_1(torch.full((NUM_CLIPS, 2), float(turn)).double(), batch, for_player_2=True)
    assert player_1.codes[:, 0].min() == 3
    assert len(player_1.codes) == len(player_1.labels) == MEMORY


def test_the_opponents_of_the_min_max_games_want_the_opposite_of_each_other() -> None:
    batch = make_batch()
    for game in ("min-max", "gradient-reversal"):
        expression_net, player_1 = players(game=game)
        z_R, _, _ = expression_net(batch.planes, batch.mask, batch.z_I)
        mine, theirs = (player_1(z_R, batch, side) for side in (False, True))
        torch.testing.assert_close(mine, -theirs)
        assert float(mine.detach()) != 0
    # A clip of an unknown subject teaches nothing.
    alone = player_1(z_R[6:7], make_batch(6, 7), False)
    assert float(alone.detach()) == 0
    logits = player_1.name(z_R)[[0, 1, 2, 3, 4, 5, 7]]
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


def test_without_weight_the_estimator_plays_and_the_network_does_not_notice() -> None:
    batch = make_batch()
    results = []
    for identity_weight, steps in ((0.0, 1), (0.0, 5), (3.0, 5)):
        expression_net, player_1 = players(with_apex=False, game="vclub")
        theta = parameters(player_1)
        optimizers = [torch.optim.SGD(p.parameters(), lr=0.05) for p in (expression_net, player_1)]
        weights = Weights(identity=identity_weight)
        terms = play_turn(expression_net, player_1, *optimizers, batch, weights, steps)
        assert float(terms["identity_term"]) != 0
        assert not torch.equal(theta[0], parameters(player_1)[0])
        results.append(parameters(expression_net))
    assert_same(results[0], results[1])
    assert not torch.equal(results[1][0], results[2][0])


def test_apex_counts_annotated_clips_only() -> None:
    batch = make_batch()
    rebuilt = batch.apex + 0.5
    rebuilt[~batch.has_apex] = 100.0
    assert float(apex_error(rebuilt, batch.apex, batch.has_apex)) == pytest.approx(0.25)
    none = torch.zeros_like(batch.has_apex)
    assert float(apex_error(rebuilt, batch.apex, none)) == 0.0


def test_the_network_goes_down_the_sum_that_it_weighs() -> None:
    """By a step so small that what it takes from the loss is its gradient's squared length."""
    batch, lr = make_batch(), 1e-7
    for weights in (Weights(identity=2.0, apex=0.5), Weights(identity=-3.0, apex=0.2)):
        expression_net, player_1 = players(game="vclub")
        optimizer = torch.optim.SGD(expression_net.parameters(), lr=lr)
        still = torch.optim.SGD(player_1.parameters(), lr=0.0)
        before = play_turn(expression_net, player_1, optimizer, still, batch, weights, 1)
        length = sum(float((p.grad**2).sum()) for p in expression_net.parameters())
        after = play_turn(expression_net, player_1, optimizer, still, batch, weights, 1)
        for terms in (before, after):
            identity, apex = terms["identity_term"], terms["apex_error"]
            expected = terms["cross_entropy"] + weights.identity * identity + weights.apex * apex
            torch.testing.assert_close(terms["loss"], expected.to(terms["loss"].dtype))
        assert float(before["loss"] - after["loss"]) == pytest.approx(lr * length, rel=1e-2)


def planted() -> Batch:
    """z_I, and four people, that can be read off the input, beside the expression."""
    generator = torch.Generator().manual_seed(2)
    identity = torch.randn(32, 2, generator=generator).sign().double()
    z_I = identity.repeat(1, IDENTITY_DIM // 2)
    z_I += 0.1 * torch.randn(z_I.shape, generator=generator)  # no two clips are quite alike
    labels = torch.arange(32) % 2
    planes = torch.zeros(32, 1, 6, 8, 8, dtype=torch.float64)
    planes[:, 0, 0] = 0.3 * identity[:, 0, None, None]
    planes[:, 0, 1] = 0.3 * identity[:, 1, None, None]
    planes[:, 0, 2] = 0.3 * (2 * labels.double() - 1)[:, None, None]
    return Batch(
        planes=planes,
        mask=torch.ones(32, 1, dtype=torch.bool),
        labels=labels,
        z_I=z_I,
        subjects=(identity[:, 0] > 0).long() + 2 * (identity[:, 1] > 0).long(),
        apex=torch.zeros(32, 3, APEX_SIZE, APEX_SIZE),
        has_apex=torch.zeros(32, dtype=torch.bool),
    )


def term_after_turns(game: str, weight: float, num_turns: int, lr: float = 5e-3) -> float:
    """The identity term on `planted` clips, all of whose expressions are recognized by then."""
    expression_net, player_1 = players(with_apex=False, game=game)
    optimizers = [optimizer_of(p, lr) for p in (expression_net, player_1)]
    batch, weights = planted(), Weights(identity=weight)
    for _ in range(num_turns):
        terms = play_turn(expression_net, player_1, *optimizers, batch, weights, 2)
    assert int(terms["num_correct"]) == 32
    return float(terms["identity_term"])


@pytest.mark.parametrize("game", ["min-min", "vclub"])
def test_the_game_lowers_the_bound_that_it_weighs(game: str) -> None:
    """With λ the code gives up what tells of z_I, without it does not."""
    free = term_after_turns(game, 0.0, 150)
    assert free > 0.5
    assert term_after_turns(game, 1.0, 150) < 0.2 * free


def test_the_encoder_that_bounds_the_games_learns_to_name_people() -> None:
    """Nats of naming one of four. Player 1 alone learns it too, but from less."""
    # At the games' rate it swings: on some CPUs, whose sums round otherwise, out of all measure.
    alone, helped = (term_after_turns("identification", weight, 200, 2e-3) for weight in (0.0, 1.0))
    assert helped < 0.75 * alone


@pytest.mark.parametrize("whose", ["player 1's", "player 2's"])
def test_a_loss_that_is_not_finite_stops_the_turn_before_the_update(whose: str) -> None:
    expression_net, player_1 = players(game="vclub")
    first = optimizer_of(expression_net, 0.1)
    second = optimizer_of(player_1, 0.1)
    batch = make_batch()
    # What either player's loss is made of, and the other's is not.
    if whose == "player 1's":
        batch.z_I[3] = float("nan")
    else:
        batch.apex[1] = float("inf")
    before, theta = parameters(expression_net), parameters(player_1)
    with pytest.raises(NotFinite, match=f"^{whose} loss, or its gradient, is not a finite number"):
        play_turn(expression_net, player_1, first, second, batch, Weights(apex=1.0), 1)
    assert_same(before, parameters(expression_net))
    assert torch.equal(theta[0], parameters(player_1)[0]) == (whose == "player 1's")


def test_a_gradient_that_is_not_finite_stops_the_turn_as_well() -> None:
    """The loss itself may still be: √x at 0."""
    expression_net, player_1 = players(with_apex=False)
    expression_net.classifier.bias.register_hook(lambda gradient: gradient / 0)
    optimizers = optimizer_of(expression_net, 0.1), optimizer_of(player_1, 0.1)
    before = parameters(expression_net)
    with pytest.raises(NotFinite, match=r"^player 2's loss, or its gradient"):
        play_turn(expression_net, player_1, *optimizers, make_batch(), Weights(), 1)
    assert_same(before, parameters(expression_net))


def test_too_high_a_learning_rate_ends_with_finite_weights() -> None:
    expression_net, player_1 = players(with_apex=False)
    optimizers = optimizer_of(expression_net, 1e200), optimizer_of(player_1, 1e-3)
    play_turn(expression_net, player_1, *optimizers, make_batch(), Weights(1.0), 1)
    with pytest.raises(NotFinite):
        play_turn(expression_net, player_1, *optimizers, make_batch(), Weights(1.0), 1)
    for module in (expression_net, player_1):
        assert all(torch.isfinite(p).all() for p in parameters(module))
