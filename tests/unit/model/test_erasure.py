"""Erasure of a code's identity: what is gone, what stays, and that the network computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfer.model.erasure import erasure, fold
from cfer.model.network import Encoder, ModelConfig

CODE_DIM, IDENTITY_DIM = 6, 3


@pytest.fixture
def clips() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of four classes, and mixed into them three dimensions of identity, unlike in size."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 500)
    z_I = generator.normal(size=(500, IDENTITY_DIM))
    mixed = (z_I * (3, 1, 0.3)) @ generator.normal(size=(IDENTITY_DIM, CODE_DIM))
    of_class = generator.normal(size=(4, CODE_DIM)) * 5
    noise = generator.normal(size=(500, CODE_DIM)) * np.geomspace(1, 0.01, CODE_DIM)
    return of_class[labels] + mixed + noise, z_I, labels


def covariance(z_R: np.ndarray, z_I: np.ndarray, labels: np.ndarray) -> float:
    """The largest entry of what z_R and z_I, each less its class's mean, have in common."""
    for label in range(4):
        chosen = labels == label
        z_R, z_I = (np.where(chosen[:, None], v - v[chosen].mean(0), v) for v in (z_R, z_I))
    return float(np.abs(z_R.T @ z_I).max() / len(labels))


def test_with_all_directions_nothing_of_the_identity_is_left(
    clips: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    z_R, z_I, labels = clips
    before = covariance(z_R, z_I, labels)
    left = []
    for directions in range(IDENTITY_DIM + 1):
        matrix, offset = erasure(z_R, z_I, labels, directions)
        erased = z_R @ matrix + offset
        assert np.linalg.matrix_rank(matrix, tol=1e-8) == CODE_DIM - directions
        np.testing.assert_allclose(erased.mean(0), z_R.mean(0), atol=1e-9)
        left.append(covariance(erased, z_I, labels))
    assert left[0] == pytest.approx(before)
    assert left[1] < left[0]
    assert left[IDENTITY_DIM] < 1e-12 * before
    # What is erased once is gone, and the rest is as it was.
    np.testing.assert_allclose(erased @ matrix + offset, erased, atol=1e-9)


def test_the_encoder_computes_the_erased_code(
    clips: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    torch.manual_seed(0)
    encoder = Encoder(ModelConfig(4, IDENTITY_DIM, width=4, code_dim=CODE_DIM)).double()
    planes, mask = torch.randn(3, 1, 6, 16, 16).double(), torch.ones(3, 1, dtype=torch.bool)
    matrix, offset = erasure(*clips, directions=2)
    expected = encoder(planes, mask).detach().numpy() @ matrix + offset
    fold(encoder, matrix, offset)
    np.testing.assert_allclose(encoder(planes, mask).detach().numpy(), expected, atol=1e-9)


def test_a_direction_that_does_not_vary_is_left_alone(
    clips: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    z_R, z_I, labels = clips
    z_R = z_R.copy()
    z_R[:, 2] = 4.0
    matrix, offset = erasure(z_R, z_I, labels, IDENTITY_DIM)
    erased = z_R @ matrix + offset
    np.testing.assert_allclose(erased[:, 2], 4.0)
    assert covariance(erased, z_I, labels) < 1e-9
