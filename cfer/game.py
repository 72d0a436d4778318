"""One turn of the min-min game between the estimator and the recogniser.

    player 1 (estimator):   min_θ      − E_p(z_R,z_I)[ log q_θ(z_I | z_R) ]
    player 2 (recogniser):  min_{E,C}  CE(C(z_R), y) + λ · vCLUB + μ · L_apex

Both minimise: there is no saddle point and no discriminator. vCLUB bounds I(z_R; z_I) from above
only while q_θ is close to the true conditional, so player 1 moves first. Each player's step leaves
the other's parameters and gradients alone: player 1 sees z_R detached, and player 2 sees θ as
constants, through which the gradient still flows into z_R.

λ weighs the *mean* of vCLUB over the dimensions of z_I, so that it means the same for a recogniser
of 128 dimensions and one of 512. Every expectation is over the global batch of all DDP workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from cfer.mi import identity_moments, log_likelihood, vclub


@dataclass
class Batch:
    """One worker's part of a batch: N clips of up to T residual frames, dimension d of z_I.

    Attributes:
        planes: float (N, T, 6, S/2, S/2), of `cfer.model.residual_planes`.
        mask: bool (N, T), True where there is a frame.
        labels: int64 (N,).
        z_I: float (N, d), standardised.
        apex: float (N, 3, 32, 32) in [0, 1]; anything where `has_apex` is False.
        has_apex: bool (N,).
    """

    planes: Tensor
    mask: Tensor
    labels: Tensor
    z_I: Tensor
    apex: Tensor
    has_apex: Tensor


@dataclass(frozen=True)
class Weights:
    """λ of the identity bound and μ of the apex constraint; 0 takes the term out."""

    identity: float = 0.0
    apex: float = 0.0
    label_smoothing: float = 0.0


def _bare(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def estimator_turn(
    estimator: nn.Module,
    optimiser: torch.optim.Optimizer,
    z_R: Tensor,
    z_I: Tensor,
    num_steps: int,
) -> Tensor:
    """Player 1: `num_steps` ≥ 1 steps of maximum likelihood.

    Returns:
        Its loss at the last step, before that step: nats per dimension, a scalar without gradient.
    """
    codes = z_R.detach()
    for _ in range(num_steps):
        optimiser.zero_grad(set_to_none=True)
        mean, log_variance = estimator(codes)
        loss = -log_likelihood(mean, log_variance, z_I).mean()
        loss.backward()
        optimiser.step()
    return loss.detach()


def identity_bound(estimator: nn.Module, z_R: Tensor, z_I: Tensor) -> Tensor:
    """vCLUB per dimension of this worker's clips against the global batch, a scalar, in nats.

    θ is a constant here; the gradient reaches z_R only. A collective operation under DDP.
    """
    q = _bare(estimator)
    constants = {name: parameter.detach() for name, parameter in q.named_parameters()}
    mean, log_variance = functional_call(q, constants, (z_R,))
    return vclub(mean, log_variance, z_I, identity_moments(z_I)).mean()


def apex_error(rebuilt: Tensor, apex: Tensor, has_apex: Tensor) -> Tensor:
    """Mean squared error over the annotated clips of the global batch, 0 where there is none.

    Divided so that the mean over DDP workers is the mean over all annotated clips, however they
    are spread. A collective operation under DDP.
    """
    per_clip = ((rebuilt - apex) ** 2).flatten(1).mean(1)
    num_annotated = has_apex.sum().to(per_clip.dtype)
    if _world_size() > 1:
        dist.all_reduce(num_annotated)
    kept = torch.where(has_apex, per_clip, torch.zeros_like(per_clip))
    return kept.sum() * _world_size() / num_annotated.clamp(min=1)


def play_turn(
    recogniser: nn.Module,
    estimator: nn.Module,
    recogniser_optimiser: torch.optim.Optimizer,
    estimator_optimiser: torch.optim.Optimizer,
    batch: Batch,
    weights: Weights,
    num_estimator_steps: int,
) -> dict[str, Tensor]:
    """Player 1's steps, then player 2's one, on one batch.

    With λ = 0 player 1 still plays, so that vCLUB can be reported; it then has no influence on
    player 2.

    Args:
        recogniser: a `cfer.model.Recogniser`, bare or in DDP; one with an apex decoder iff μ > 0.
        estimator: a `cfer.mi.IdentityEstimator`, bare or in DDP.
        batch: of the same number of clips on every DDP worker.

    Returns:
        This worker's loss terms, scalars without gradient: `estimator_nll` and `vclub` (nats per
        dimension), `cross_entropy` (nats), `apex_error`, `loss` (player 2's); and `num_correct`.
    """
    z_R, logits, rebuilt = recogniser(batch.planes, batch.mask, batch.z_I)
    nll = estimator_turn(estimator, estimator_optimiser, z_R, batch.z_I, num_estimator_steps)

    cross_entropy = F.cross_entropy(logits, batch.labels, label_smoothing=weights.label_smoothing)
    bound = identity_bound(estimator, z_R if weights.identity else z_R.detach(), batch.z_I)
    loss = cross_entropy + weights.identity * bound
    error = torch.zeros_like(loss)
    if rebuilt is not None:
        error = apex_error(rebuilt, batch.apex, batch.has_apex)
        loss = loss + weights.apex * error
    recogniser_optimiser.zero_grad(set_to_none=True)
    loss.backward()
    recogniser_optimiser.step()
    return {
        "loss": loss.detach(),
        "cross_entropy": cross_entropy.detach(),
        "vclub": bound.detach(),
        "apex_error": error.detach(),
        "estimator_nll": nll,
        "num_correct": (logits.argmax(1) == batch.labels).sum(),
    }
