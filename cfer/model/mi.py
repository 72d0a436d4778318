"""How much the expression code z_R says about the identity z_I.

Of jointly Gaussian z_R and z_I the information is known in closed form, and `gaussian_information`
has it. It is also what is left of −log q(z_I | z_R) when q is the best of all Gaussians whose mean
is linear in z_R, the ridge regression:

    I(z_R; z_I) = H(z_I) − min_q E[−log q(z_I | z_R)]
                = ½ · log det R_R + ½ · log det R_I − ½ · log det R

with R the correlations of both together, R_R and R_I those of each.

The paper's bound is variational. vCLUB (Cheng et al., "CLUB: A Contrastive Log-ratio Upper Bound of
Mutual Information", ICML 2020) needs q_θ(z_I | z_R), here a diagonal Gaussian whose mean and
log-variance are small networks of z_R:

    vCLUB = E_p(z_R,z_I)[log q_θ(z_I|z_R)] − E_p(z_R)p(z_I)[log q_θ(z_I|z_R)]  ≥  I(z_R; z_I)

where q_θ is the true conditional, or close to it. For jointly Gaussian scalars with correlation ρ
the information is −½·log(1−ρ²), and vCLUB with the true conditional is ρ²/(1−ρ²); both are tested:

    pytest tests/unit/model/test_mi.py

It is compared with the Donsker–Varadhan lower bound of a min-max game (Belghazi et al., "Mutual
Information Neural Estimation", ICML 2018), which an estimator has to *maximize*:

    DV = E_p(z_R,z_I)[T(z_R, z_I)] − log E_p(z_R)p(z_I)[exp T(z_R, z_I)]  ≤  I(z_R; z_I)
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

# |log-variance| stays below this. z_I is standardized, so a variance above 1 explains nothing, and
# one below e^-6 only shows that a batch was learned by heart.
LOG_VARIANCE_BOUND = 6.0
TINY = 1e-12  # of a variance: a dimension that never varies


def world_size() -> int:
    """The number of DDP workers."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_workers(values: Tensor) -> Tensor:
    """Add the values up over all DDP workers, in place. A collective operation under DDP."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_over_workers(values: Tensor) -> Tensor:
    """The values of all DDP workers, (N, …) each → (workers · N, …); this worker's own have a
    gradient. A collective operation under DDP."""
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.detach().contiguous())
    parts[dist.get_rank()] = values
    return torch.cat(parts)


def shrinkage(z_I: Tensor) -> float:
    """How far the correlations of z_I, float (N, d), are to be shrunk toward none, in (0, 1).

    a² / (a² + d), where a² = d² / n is the sum of the squares that chance alone adds to the
    correlations of n clips, and d, a dimension's one each, stands for those that are true (Ledoit &
    Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004).
    """
    num_dims = z_I.shape[1]
    # A clip that is there several times, with other codes, tells no more of identities. One
    # dimension tells clips apart, at a thirtieth of the time that all take.
    num_clips = len(torch.unique(z_I[:, 0]))
    return num_dims / (num_dims + num_clips)


def gaussian_information(z_R: Tensor, z_I: Tensor, labels: Tensor) -> Tensor:
    """I(z_R; z_I | y) in nats, a scalar ≥ 0, as if both were Gaussian given the class.

    Args:
        z_R, z_I, labels: float (N, code_dim), float (N, d), int64 (N,) ≥ 0. The same for every
            scale and offset of each dimension.

    The correlations are shrunk toward none (`shrinkage`), so that few clips do not seem to say
    everything; independent ones still seem to say a little, about code_dim · d / (2 N). Clips of
    one person are not independent: of few people it says more than is true of others.
    """
    shrunk = shrinkage(z_I)
    both = torch.cat([z_R, z_I], dim=1)
    counts = torch.bincount(labels).clamp(min=1).unsqueeze(1).to(both.dtype)
    means = both.new_zeros(len(counts), both.shape[1]).index_add(0, labels, both) / counts
    centered = both - means[labels]
    scaled = centered / centered.square().mean(0).add(TINY).sqrt()
    correlations = (1 - shrunk) * scaled.T @ scaled / len(both)
    correlations = correlations + shrunk * torch.eye(len(correlations)).to(correlations)
    k = z_R.shape[1]
    parts = torch.logdet(correlations[:k, :k]) + torch.logdet(correlations[k:, k:])
    return 0.5 * (parts - torch.logdet(correlations))


class IdentityEstimator(nn.Module):
    """q_θ(z_I | z_R): a Gaussian with a diagonal covariance; θ is all of this module.

    Args:
        code_dim: dimension of z_R.
        identity_dim: dimension d of z_I, standardized per dimension.
        hidden_dim: width of the one hidden layer of each of the two networks.
    """

    def __init__(self, code_dim: int, identity_dim: int, hidden_dim: int = 128) -> None:
        super().__init__()
        self.mean = _mlp(code_dim, hidden_dim, identity_dim)
        self.log_variance = _mlp(code_dim, hidden_dim, identity_dim)

    def forward(self, z_R: Tensor) -> tuple[Tensor, Tensor]:
        """z_R float (N, code_dim) → mean and log-variance of z_I, each float (N, d)."""
        bounded = LOG_VARIANCE_BOUND * torch.tanh(self.log_variance(z_R) / LOG_VARIANCE_BOUND)
        return self.mean(z_R), bounded


def _mlp(num_inputs: int, num_hidden: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, num_hidden), nn.ReLU(), nn.Linear(num_hidden, num_outputs)
    )


def log_likelihood(mean: Tensor, log_variance: Tensor, z_I: Tensor) -> Tensor:
    """log q(z_I | z_R) of each pair and dimension, in nats: float (N, d), from three (N, d)."""
    squared = (z_I - mean) ** 2
    return -0.5 * (squared / log_variance.exp() + log_variance + math.log(2 * math.pi))


def identity_moments(z_I: Tensor) -> tuple[Tensor, Tensor]:
    """E[z_I] and E[z_I²] per dimension, each (d,), over the batches of all DDP workers.

    A collective operation under DDP; each worker's batch may be of any size.
    """
    sums = sum_over_workers(torch.cat([z_I.sum(0), (z_I**2).sum(0), z_I.new_tensor([len(z_I)])]))
    first, second = sums[:-1].div(sums[-1]).chunk(2)
    return first, second


def vclub(
    mean: Tensor, log_variance: Tensor, z_I: Tensor, moments: tuple[Tensor, Tensor]
) -> Tensor:
    """vCLUB of each pair and dimension, in nats: float (N, d); its mean is the bound per dimension.

    The marginal term is the mean over *all* z_I that `moments` are of, without building the pairs:
    E_j[(z_j − m)²] = E[z²] − 2m·E[z] + m². The normalizing terms of the two Gaussians are the same
    and cancel. Averaged over N (and over DDP workers with batches of equal size) this is the
    all-pairs bound of the global batch.

    Args:
        mean, log_variance: of q_θ for N codes, (N, d).
        z_I: the identities that belong to these codes, (N, d).
        moments: `identity_moments(z_I)`.
    """
    first, second = moments
    joint = (z_I - mean) ** 2
    marginal = second - 2 * mean * first + mean**2
    return 0.5 * (marginal - joint) / log_variance.exp()


class StatisticsNetwork(nn.Module):
    """T(z_R, z_I) of the Donsker–Varadhan bound, for every pair of a batch at once."""

    def __init__(self, code_dim: int, identity_dim: int, hidden_dim: int = 128) -> None:
        super().__init__()
        self.of_code = nn.Linear(code_dim, hidden_dim)
        self.of_identity = nn.Linear(identity_dim, hidden_dim, bias=False)
        self.out = nn.Sequential(
            nn.ReLU(), nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1)
        )

    def forward(self, z_R: Tensor, z_I: Tensor) -> Tensor:
        """z_R float (N, code_dim), z_I float (M, d) → T float (N, M)."""
        pairs = self.of_code(z_R).unsqueeze(1) + self.of_identity(z_I).unsqueeze(0)
        return self.out(pairs).squeeze(-1)


def donsker_varadhan(statistics: Tensor) -> Tensor:
    """DV in nats, a scalar, from T float (N, N), N ≥ 2.

    On the diagonal are the pairs that belong together; the others stand for the product of the
    marginals.
    """
    count = len(statistics)
    apart = ~torch.eye(count, dtype=torch.bool, device=statistics.device)
    marginal = torch.logsumexp(statistics[apart], 0) - math.log(count * (count - 1))
    return statistics.diagonal().mean() - marginal
