"""The game in two processes: DDP workers play as one with the doubled batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_game import (
    NUM_CLIPS,
    assert_players_leave_each_other_alone,
    assert_same,
    make_batch,
    parameters,
    play,
    players,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cfer.errors import NotFinite
from cfer.model.game import learns


def _wrapped(player: nn.Module) -> nn.Module:
    return DistributedDataParallel(player) if learns(player) else player


def _in_worker(rank: int, folder: str, game: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        expression_net, player_1 = players(game=game)
        assert_players_leave_each_other_alone(
            DistributedDataParallel(expression_net), _wrapped(player_1)
        )
        expression_net, player_1 = players(game=game)
        half = NUM_CLIPS // 2
        terms = play(
            DistributedDataParallel(expression_net),
            _wrapped(player_1),
            make_batch(rank * half, (rank + 1) * half),
        )
        state = {"terms": terms, "players": [parameters(expression_net), parameters(player_1)]}
        # What one of them alone can't go on with stops both, and before anything is updated.
        batch = make_batch(rank * half, (rank + 1) * half)
        batch.apex[0] *= 1 if rank else float("nan")
        before = parameters(expression_net)
        ddp = DistributedDataParallel(expression_net), _wrapped(player_1)
        with pytest.raises(NotFinite, match=r"^player 2's loss"):
            play(*ddp, batch, turns=1)
        assert_same(before, parameters(expression_net))
        torch.save(state, Path(folder) / f"{rank}.pt")
        dist.barrier()  # Gloo may abort when the other one is gone already
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("game", ["min-min", "vclub"])
def test_two_workers_equal_one_with_the_doubled_batch(game: str, tmp_path: Path) -> None:
    mp.spawn(_in_worker, args=(str(tmp_path), game), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    expression_net, player_1 = players(game=game)
    terms = play(expression_net, player_1, make_batch())
    for state in states:
        for mine, theirs in zip(
            (parameters(expression_net), parameters(player_1)), state["players"], strict=True
        ):
            for a, b in zip(mine, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    for name in ("loss", "identity_term", "estimator_loss", "apex_error", "cross_entropy"):
        mean = (states[0]["terms"][name] + states[1]["terms"][name]) / 2
        torch.testing.assert_close(terms[name].double(), mean.double(), rtol=1e-9, atol=1e-11)
