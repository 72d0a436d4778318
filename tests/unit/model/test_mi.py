"""The bound against closed forms, and player 1 against the known information of Gaussians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from cfer.model.mi import (
    LOG_VARIANCE_BOUND,
    IdentityEstimator,
    StatisticsNetwork,
    donsker_varadhan,
    gaussian_information,
    identity_moments,
    log_likelihood,
    shrinkage,
    vclub,
)


def gaussian_pairs(rho: float, num_pairs: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal x and y (num_pairs, dim), each dimension of y correlated ρ with x's."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_pairs, dim, generator=generator)
    noise = torch.randn(num_pairs, dim, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
def test_information_of_gaussians_is_the_closed_form(rho: float) -> None:
    """−½·log(1−ρ²) a dimension, of the shrunk ρ; whatever the scales and the offsets."""
    x, y = gaussian_pairs(rho, 50_000, 3, seed=2)
    labels = torch.zeros(len(x), dtype=torch.int64)
    found = float(gaussian_information(x.double(), y.double(), labels))
    expected = -1.5 * math.log(1 - ((1 - shrinkage(y)) * rho) ** 2)
    assert found == pytest.approx(expected, abs=0.01)
    scales = torch.tensor([1e-3, 1.0, 50.0])
    moved = gaussian_information((scales * x - 7).double(), (3 * y + scales).double(), labels)
    assert float(moved) == pytest.approx(found, abs=1e-4)


def test_what_the_class_explains_is_no_information() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(4, (20_000,), generator=generator)
    of_class = torch.randn(4, 2, generator=generator).double() * 3
    noise = torch.randn(2, len(labels), 2, generator=generator).double()
    x, y = of_class[labels] + noise[0], of_class[labels] + noise[1]
    assert float(gaussian_information(x, y, torch.zeros_like(labels))) > 1
    assert 0 <= float(gaussian_information(x, y, labels)) < 1e-3
    # Once more, with one person's offset in both: that is a leak.
    person = torch.randn(len(labels), 2, generator=generator).double()
    assert float(gaussian_information(x + person, y + person, labels)) > 0.2


def test_the_best_response_is_the_ridge_regression_of_a_solver() -> None:
    """H(z_I) less the errors' entropy, by scikit-learn's ridge of the same strength."""
    generator = np.random.default_rng(4)
    x = generator.normal(size=(200, 4))
    y = x @ generator.normal(size=(4, 5)) + generator.normal(size=(200, 5))
    x, y = (values - values.mean(0) for values in (x, y))
    x, y = (values / values.std(0) for values in (x, y))
    shrunk = shrinkage(torch.from_numpy(y))
    ridge = Ridge(alpha=200 * shrunk / (1 - shrunk), fit_intercept=False).fit(x, y)
    entropy = (1 - shrunk) * y.T @ y / 200 + shrunk * np.eye(5)
    explained = (1 - shrunk) * y.T @ ridge.predict(x) / 200
    expected = 0.5 * (np.linalg.slogdet(entropy)[1] - np.linalg.slogdet(entropy - explained)[1])
    found = gaussian_information(
        torch.from_numpy(x), torch.from_numpy(y), torch.zeros(200, dtype=torch.int64)
    )
    assert float(found) == pytest.approx(expected)


def test_few_identities_are_believed_less_however_often_they_come_again() -> None:
    z_I = torch.randn(100, 128, generator=torch.Generator().manual_seed(7))
    assert shrinkage(z_I) == pytest.approx(128 / 228)
    assert shrinkage(z_I.repeat(20, 1)) == pytest.approx(128 / 228)
    assert shrinkage(torch.randn(2000, 128)) < 0.07


def test_information_of_few_clips_and_of_constants_is_finite() -> None:
    generator = torch.Generator().manual_seed(6)
    z_R, z_I = torch.randn(2, 7, generator=generator), torch.randn(2, 128, generator=generator)
    z_R[:, 3] = 1.0
    z_R.requires_grad_()
    found = gaussian_information(z_R, z_I, torch.tensor([1, 5]))
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(z_R.grad).all()
    assert float(found.detach()) == pytest.approx(0, abs=1e-4)  # each is its class's mean


def test_log_likelihood_is_the_normal_density() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance, z = torch.randn(3, 5, 4, generator=generator)
    expected = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(z)
    torch.testing.assert_close(log_likelihood(mean, log_variance, z), expected)


def test_closed_form_equals_the_double_loop_over_all_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    mean, log_variance, z = torch.randn(3, 9, 4, generator=generator, dtype=torch.float64)
    all_pairs = torch.zeros(4, dtype=torch.float64)
    for i in range(9):
        for j in range(9):
            all_pairs += log_likelihood(mean[i], log_variance[i], z[j]) / 81
    expected = log_likelihood(mean, log_variance, z).mean(0) - all_pairs
    bound = vclub(mean, log_variance, z, identity_moments(z)).mean(0)
    torch.testing.assert_close(bound, expected)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
def test_trained_estimator_recovers_the_information_of_gaussians(rho: float) -> None:
    """In nats per dimension: H(y) − NLL → −½·log(1−ρ²); vCLUB → ρ²/(1−ρ²), which is no less."""
    dim = 3
    x, y = gaussian_pairs(rho, 20_000, dim, seed=2)
    torch.manual_seed(0)
    estimator = IdentityEstimator(dim, dim, hidden_dim=32)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    generator = torch.Generator().manual_seed(3)
    for _ in range(600):
        chosen = torch.randint(len(x), (1024,), generator=generator)
        optimizer.zero_grad()
        mean, log_variance = estimator(x[chosen])
        (-log_likelihood(mean, log_variance, y[chosen]).mean()).backward()
        optimizer.step()
        schedule.step()

    x, y = gaussian_pairs(rho, 50_000, dim, seed=4)
    with torch.no_grad():
        mean, log_variance = estimator(x)
        nll = -float(log_likelihood(mean, log_variance, y).mean())
        bound = float(vclub(mean, log_variance, y, identity_moments(y)).mean())
    information = -0.5 * math.log(1 - rho**2)
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    assert entropy - nll == pytest.approx(information, abs=0.02)
    exact_bound = rho**2 / (1 - rho**2)
    assert bound == pytest.approx(exact_bound, abs=0.02, rel=0.05)
    assert bound >= information - 0.02


def test_donsker_varadhan_is_the_double_loop_over_pairs() -> None:
    statistics = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()
    apart = [math.exp(statistics[i, j]) for i in range(5) for j in range(5) if i != j]
    together = sum(float(statistics[i, i]) for i in range(5)) / 5
    expected = together - math.log(sum(apart) / 20)
    assert float(donsker_varadhan(statistics)) == pytest.approx(expected)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_maximized_donsker_varadhan_approaches_the_information_from_below(rho: float) -> None:
    x, y = gaussian_pairs(rho, 20_000, 1, seed=5)
    torch.manual_seed(0)
    network = StatisticsNetwork(1, 1, hidden_dim=16)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(6)
    for _ in range(200):
        chosen = torch.randint(len(x), (96,), generator=generator)
        optimizer.zero_grad()
        (-donsker_varadhan(network(x[chosen], y[chosen]))).backward()
        optimizer.step()
    x, y = gaussian_pairs(rho, 1_000, 1, seed=7)
    with torch.no_grad():
        bound = float(donsker_varadhan(network(x, y)))
    information = -0.5 * math.log(1 - rho**2)
    assert information - 0.15 < bound < information + 0.05


def test_log_variance_stays_bounded() -> None:
    torch.manual_seed(0)
    _, log_variance = IdentityEstimator(4, 6)(1e6 * torch.randn(8, 4))
    assert log_variance.shape == (8, 6)
    assert float(log_variance.detach().abs().max()) <= LOG_VARIANCE_BOUND


def test_of_few_people_the_game_learns_them_by_heart() -> None:
    """Codes that number people, and faces that have nothing to do with it."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = []
    for num_people in (113, 500):
        people = torch.arange(2048) % num_people
        z_I = noise(num_people, 128)[people] + 0.3 * noise(2048, 128)
        z_R = noise(num_people, 7)[people] + noise(2048, 7)
        found.append(float(gaussian_information(z_R, z_I, torch.zeros(2048, dtype=torch.int64))))
    assert found == pytest.approx([1.5, 0.45], rel=0.15)
