"""One turn of the game between the estimator and the expression net.

    player 1 (estimator):       min_q      − E_p(z_R,z_I)[ log q(z_I | z_R, y) ]
    player 2 (expression net):  min_{E,C}  CE(C(z_R), y) + λ · I_q(z_R; z_I | y) + μ · L_apex

Both minimize: there is no saddle point and no discriminator. `min-min`, the default, has an exact
player 1: of all Gaussians q the best one is known in closed form, from the latest codes, and
player 2 goes down the information that it finds (`cfer.model.mi.gaussian_information`). Given the
class y, since what the label explains is no leak.

The games that it is compared with have the same turns, but another player 1 (`PLAYERS`):

    vclub               as the paper has it: q_θ is a network that learns beside the other, and
                        player 2 minimizes vCLUB, an upper bound on I(z_R; z_I) while q_θ is close
                        to the true conditional
    min-max             player 1 maximizes the Donsker–Varadhan bound, player 2 minimizes it
    gradient-reversal   player 1 names the training subject (Ganin & Lempitsky, "Unsupervised Domain
                        Adaptation by Backpropagation", ICML 2015); it needs identity labels
    identification      no game, but what bounds them all: player 1 names the training subject, and
                        player 2 helps; its code has what the input holds of an identity

A player 1 that learns moves first. Each player's step leaves the other's parameters and gradients
alone: player 1 sees z_R detached, and player 2 sees θ as constants, through which the gradient
still flows into z_R.

λ weighs nats; of vCLUB the *mean* over the dimensions of z_I, so that it means the same for
identities of 128 dimensions and of 512. Every expectation of `min-min` and `vclub` is over the
global batch of all DDP workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from cfer.errors import NotFinite
from cfer.model.mi import (
    IdentityEstimator,
    StatisticsNetwork,
    donsker_varadhan,
    gather_over_workers,
    gaussian_information,
    identity_moments,
    log_likelihood,
    sum_over_workers,
    vclub,
    world_size,
)

UNKNOWN_SUBJECT = -1
NO_CODE = -1  # the label where memory holds none yet
MEMORY = 2048  # latest codes; a batch alone tells little of so many dimensions


@dataclass
class Batch:
    """One worker's part of a batch: N clips of up to T frames, dimension d of z_I.

    Attributes:
        planes: float (N, T, C, S/2, S/2), of `cfer.data.inputs`.
        mask: bool (N, T), True where there is a frame.
        labels: int64 (N,).
        z_I: float (N, d), standardized.
        subjects: int64 (N,), a number for each training subject; -1 where unknown.
        apex: float (N, 3, 32, 32) in [0, 1]; anything where `has_apex` is False.
        has_apex: bool (N,).
    """

    planes: Tensor
    mask: Tensor
    labels: Tensor
    z_I: Tensor
    subjects: Tensor
    apex: Tensor
    has_apex: Tensor


@dataclass(frozen=True)
class Weights:
    """How player 2 weighs its terms.

    Attributes:
        identity: λ; 0 leaves the identity term out.
        apex: μ.
        label_smoothing: of the cross-entropy, in [0, 1].
        classes: weight of each class in the cross-entropy, float (num_classes,); None: all alike.
    """

    identity: float = 0.0
    apex: float = 0.0
    label_smoothing: float = 0.0
    classes: Tensor | None = None


class Player1(nn.Module):
    """Player 1: what it minimizes itself or, with `for_player_2`, the term of player 2 that λ
    weighs. Each is a scalar whose mean over the DDP workers is that of the global batch.

    Both are in one `forward`, since DDP and `functional_call` know no other method.
    """

    def forward(self, z_R: Tensor, batch: Batch, for_player_2: bool) -> Tensor:
        raise NotImplementedError


class MinMin(Player1):
    """Gaussian information of z_R and z_I given the class, for player 2: nats. A collective
    operation under DDP.

    It has no parameters, and so no turn of its own: q is the best Gaussian for the latest `MEMORY`
    codes, of which those of the present batch have a gradient, as large as if all codes moved as
    they do. −log q at its least is the negative of the same information, but for a constant.
    """

    codes: Tensor
    identities: Tensor
    labels: Tensor

    def __init__(self, code_dim: int, identity_dim: int, num_subjects: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(MEMORY, code_dim))
        self.register_buffer("identities", torch.zeros(MEMORY, identity_dim))
        self.register_buffer("labels", torch.full((MEMORY,), NO_CODE))

    def forward(self, z_R: Tensor, batch: Batch, for_player_2: bool) -> Tensor:
        # In one exchange; a float holds a label exactly.
        k = z_R.shape[1]
        now = torch.cat([z_R, batch.z_I, batch.labels.unsqueeze(1).to(z_R.dtype)], dim=1)
        now = gather_over_workers(now)
        codes = torch.cat([now[:, :k], self.codes])
        identities = torch.cat([now[:, k:-1].detach(), self.identities])
        labels = torch.cat([now[:, -1].detach().long(), self.labels])
        self.codes, self.identities = codes[:MEMORY].detach(), identities[:MEMORY]
        self.labels = labels[:MEMORY]
        known = labels != NO_CODE
        codes, identities, labels = codes[known], identities[known], labels[known]
        # DDP takes the mean of the workers' gradients, each of which is of its own codes alone.
        weight = len(codes) / len(z_R)
        moving = weight * codes + (1 - weight) * codes.detach()
        return gaussian_information(moving, identities, labels)


class VClub(Player1):
    """−log q_θ(z_I | z_R) for player 1, vCLUB for player 2: nats per dimension of z_I. A collective
    operation under DDP."""

    def __init__(self, code_dim: int, identity_dim: int, num_subjects: int) -> None:
        super().__init__()
        self.q = IdentityEstimator(code_dim, identity_dim)

    def forward(self, z_R: Tensor, batch: Batch, for_player_2: bool) -> Tensor:
        mean, log_variance = self.q(z_R)
        if for_player_2:
            return vclub(mean, log_variance, batch.z_I, identity_moments(batch.z_I)).mean()
        return -log_likelihood(mean, log_variance, batch.z_I).mean()


class MinMax(Player1):
    """−DV for player 1, DV for player 2: nats. The pairs are those of this worker's batch; a batch
    of one clip has none, and gives 0."""

    def __init__(self, code_dim: int, identity_dim: int, num_subjects: int) -> None:
        super().__init__()
        self.statistics = StatisticsNetwork(code_dim, identity_dim)

    def forward(self, z_R: Tensor, batch: Batch, for_player_2: bool) -> Tensor:
        statistics = self.statistics(z_R, batch.z_I)
        bound = donsker_varadhan(statistics) if len(z_R) > 1 else 0 * statistics.sum()
        return bound if for_player_2 else -bound


class GradientReversal(Player1):
    """The cross-entropy of the training subject for player 1, its negative for player 2: nats.
    Clips of unknown subjects are left out."""

    def __init__(self, code_dim: int, identity_dim: int, num_subjects: int) -> None:
        super().__init__()
        self.name = nn.Sequential(
            nn.Linear(code_dim, 128), nn.ReLU(), nn.Linear(128, max(num_subjects, 1))
        )

    def forward(self, z_R: Tensor, batch: Batch, for_player_2: bool) -> Tensor:
        subjects = batch.subjects
        known = subjects != UNKNOWN_SUBJECT
        each = F.cross_entropy(self.name(z_R), subjects.clamp(min=0), reduction="none")
        loss = (each * known).sum() / known.sum().clamp(min=1)
        return -loss if for_player_2 else loss


class Identification(GradientReversal):
    """The cross-entropy of the training subject for both players: nats."""

    def forward(self, z_R: Tensor, batch: Batch, for_player_2: bool) -> Tensor:
        return super().forward(z_R, batch, for_player_2=False)


PLAYERS: dict[str, type[MinMin] | type[VClub] | type[MinMax] | type[GradientReversal]] = {
    "min-min": MinMin,
    "vclub": VClub,
    "min-max": MinMax,
    "gradient-reversal": GradientReversal,
    "identification": Identification,
}


def optimizer_of(
    module: nn.Module, lr: float = 1e-3, weight_decay: float = 0.01
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019) for one of the players.

    Fused: the players are small, and an update of each parameter on its own took a tenth of a turn.
    """
    # A group may be empty, a list of parameters may not.
    group = {"params": [*module.parameters()]}
    return torch.optim.AdamW([group], lr=lr, weight_decay=weight_decay, fused=True)


def learns(player_1: nn.Module) -> bool:
    """Whether a player 1 has parameters: one that is exact has none."""
    return any(True for _ in player_1.parameters())


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, whose: str) -> None:
    """One step down a player's loss. A collective operation under DDP.

    Raises:
        NotFinite: the loss or its gradient, on any DDP worker. All workers raise it, before any
            parameter is updated.
    """
    optimizer.zero_grad(set_to_none=True)
    # DDP adds up gradients, not losses: what is wrong with a worker's loss goes along with its
    # gradients, in the same exchange.
    (loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)).backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    length = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not torch.isfinite(length):
        raise NotFinite(f"{whose} loss, or its gradient, is not a finite number")
    optimizer.step()


def estimator_turn(
    player_1: nn.Module,
    optimizer: torch.optim.Optimizer,
    z_R: Tensor,
    batch: Batch,
    num_steps: int,
) -> Tensor:
    """The `num_steps` ≥ 1 steps of a player 1 that `learns`.

    Returns:
        Its loss at the last step, before that step: a scalar without gradient.

    Raises:
        NotFinite: see `play_turn`.
    """
    codes = z_R.detach()
    for _ in range(num_steps):
        loss = player_1(codes, batch, for_player_2=False)
        _step(optimizer, loss, "player 1's")
    return loss.detach()


def identity_term(player_1: nn.Module, z_R: Tensor, batch: Batch) -> Tensor:
    """The term of player 2 that λ weighs, a scalar, in nats.

    θ is a constant here; the gradient reaches z_R only. A collective operation under DDP.
    """
    bare = player_1.module if isinstance(player_1, DistributedDataParallel) else player_1
    constants = {name: parameter.detach() for name, parameter in bare.named_parameters()}
    term: Tensor = functional_call(bare, constants, (z_R, batch), {"for_player_2": True})
    return term


def apex_error(rebuilt: Tensor, apex: Tensor, has_apex: Tensor) -> Tensor:
    """L_apex: mean squared error over the annotated clips of the global batch; 0 without any.

    Divided so that the mean over DDP workers is the mean over all annotated clips, however they
    are distributed. A collective operation under DDP.
    """
    per_clip = ((rebuilt - apex) ** 2).flatten(1).mean(1)
    num_annotated = sum_over_workers(has_apex.sum().to(per_clip.dtype))
    kept = torch.where(has_apex, per_clip, torch.zeros_like(per_clip))
    return kept.sum() * world_size() / num_annotated.clamp(min=1)


def expression_error(logits: Tensor, labels: Tensor, weights: Weights) -> Tensor:
    """Cross-entropy in nats, a scalar, with each clip weighed by its class.

    Divided by the number of clips and not by the sum of weights, so that the mean over DDP workers
    is that of the global batch.
    """
    each = F.cross_entropy(
        logits, labels, label_smoothing=weights.label_smoothing, reduction="none"
    )
    if weights.classes is not None:
        each = each * weights.classes[labels]
    return each.mean()


def play_turn(
    expression_net: nn.Module,
    player_1: nn.Module,
    expression_net_optimizer: torch.optim.Optimizer,
    player_1_optimizer: torch.optim.Optimizer,
    batch: Batch,
    weights: Weights,
    num_estimator_steps: int,
) -> dict[str, Tensor]:
    """Player 1's steps, then player 2's one, on one batch.

    With λ = 0 player 1 still plays, so that its term can be reported, but has no influence on
    player 2.

    Args:
        expression_net: player 2, a `cfer.model.network.ExpressionNet`, bare or in DDP; with an apex
            decoder if and only if μ > 0.
        player_1: one of `PLAYERS`, bare or in DDP.
        batch: with the same number of clips on every DDP worker.

    Returns:
        This worker's loss terms, scalars without gradient: `estimator_loss` and `identity_term`
        (nats; of vCLUB per dimension), `cross_entropy` (nats), `apex_error` (with an
        apex decoder), `loss` (player 2's); and `num_correct`.

    Raises:
        NotFinite: a player's loss or its gradient, on any DDP worker. All workers raise it, before
            that player is updated.
    """
    z_R, logits, rebuilt = expression_net(batch.planes, batch.mask, batch.z_I)
    if learns(player_1):
        estimator_loss = estimator_turn(
            player_1, player_1_optimizer, z_R, batch, num_estimator_steps
        )
    cross_entropy = expression_error(logits, batch.labels, weights)
    term = identity_term(player_1, z_R if weights.identity else z_R.detach(), batch)
    if not learns(player_1):
        estimator_loss = -term.detach()
    loss = cross_entropy + weights.identity * term
    terms = {}
    if rebuilt is not None:
        error = apex_error(rebuilt, batch.apex, batch.has_apex)
        loss = loss + weights.apex * error
        terms["apex_error"] = error.detach()
    _step(expression_net_optimizer, loss, "player 2's")
    return {
        "loss": loss.detach(),
        "cross_entropy": cross_entropy.detach(),
        "identity_term": term.detach(),
        "estimator_loss": estimator_loss,
        "num_correct": (logits.argmax(1) == batch.labels).sum(),
        **terms,
    }
