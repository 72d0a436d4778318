"""Erase from a trained encoder's code the directions that tell most of the identity.

In closed form, and folded into the encoder's last layer, so that the network stays as large as it
was. It is another defense than the game, and goes with it or alone: `--erase K`.
"""

from __future__ import annotations

import numpy as np
import torch

from cfer.model.network import Encoder

LEAST_VARIANCE = 1e-9  # of the largest: a direction with less does not vary


def erasure(
    z_R: np.ndarray, z_I: np.ndarray, labels: np.ndarray, directions: int
) -> tuple[np.ndarray, np.ndarray]:
    """The map z_R @ matrix + offset that erases so many directions, (d, d) and (d,).

    Both less the mean of their class, and z_R whitened: of its directions those are set to their
    mean that correlate most with z_I. Where as many are erased as z_I has dimensions, what is left
    does not correlate with it at all, and no other map changes the code less (LEACE: Belrose et
    al., "LEACE: Perfect linear concept erasure in closed form", NeurIPS 2023). Fewer erase the
    largest part.

    Args:
        z_R, z_I, labels: of the training clips, (N, d), (N, d_I), (N,).
    """
    code, identity = (less_class_means(values, labels) for values in (z_R, z_I))
    variances, axes = np.linalg.eigh(code.T @ code / len(code))
    kept = variances > LEAST_VARIANCE * variances[-1]
    scales = np.sqrt(variances[kept])
    white, colored = axes[:, kept] / scales, (axes[:, kept] * scales).T
    told, _, _ = np.linalg.svd(white.T @ code.T @ identity / len(code), full_matrices=False)
    erased = white @ told[:, :directions] @ told[:, :directions].T @ colored
    matrix = np.eye(z_R.shape[1]) - erased
    return matrix, z_R.mean(0) @ erased


def less_class_means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each row less the mean of its class: (N, d), (N,) → float64 (N, d)."""
    centered = values.astype(np.float64)
    for label in np.unique(labels):
        centered[labels == label] -= centered[labels == label].mean(0)
    return centered


@torch.no_grad()
def fold(encoder: Encoder, matrix: np.ndarray, offset: np.ndarray) -> None:
    """Let an encoder's code be z_R @ matrix + offset."""
    weight, bias = encoder.code.weight, encoder.code.bias
    mapped = torch.from_numpy(matrix).to(weight)
    bias.copy_(bias @ mapped + torch.from_numpy(offset).to(bias))
    weight.copy_(mapped.T @ weight)
