"""Fréchet distance between two Gaussians fitted to features (Heusel et al., arXiv 1706.08500, equation 6)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def moments(features: NDArray[np.floating]) -> tuple[Array, Array]:
    """Mean, shape (D,), and covariance, shape (D, D), of features of shape (N, D), N >= 2."""
    values = np.asarray(features, dtype=np.float64)
    mean = values.mean(axis=0)
    centred = values - mean
    return mean, centred.T @ centred / (len(values) - 1)


def distance(first: tuple[Array, Array], second: tuple[Array, Array]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in squared units of the features, never below 0.

    The trace of the root comes from the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric and
    positive: constant features (digits have pixels that are always black) make C1 C2 singular, where a
    matrix square root fails.
    """
    (mean1, cov1), (mean2, cov2) = first, second
    values, vectors = np.linalg.eigh(cov1)
    root1 = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    cross = np.linalg.eigvalsh(root1 @ cov2 @ root1)
    trace_root = np.sqrt(np.clip(cross, 0.0, None)).sum()
    return max(float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2.0 * trace_root), 0.0)
