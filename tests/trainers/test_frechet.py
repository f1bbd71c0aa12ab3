from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from hasten.trainers.metrics.frechet import distance, moments


def gaussian(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(size, size))
    return generator.normal(size=size), root @ root.T


def test_moments_are_numpys() -> None:
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    mean, covariance = moments(features)
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(covariance, np.cov(features.astype(np.float64), rowvar=False))


def test_diagonal_gaussians_in_closed_form() -> None:
    mean1, mean2 = np.array([0.0, 1.0, -2.0]), np.array([1.0, 1.0, 1.0])
    sd1, sd2 = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.1, 0.0])
    expected = ((mean1 - mean2) ** 2).sum() + ((sd1 - sd2) ** 2).sum()
    assert distance((mean1, np.diag(sd1**2)), (mean2, np.diag(sd2**2))) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_scipys_matrix_root_agrees_at_full_rank(seed: int) -> None:
    (mean1, cov1), (mean2, cov2) = gaussian(seed, 12), gaussian(seed + 100, 12)
    root = np.real(scipy.linalg.sqrtm(cov1 @ cov2))
    expected = ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2.0 * root)
    assert distance((mean1, cov1), (mean2, cov2)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_symmetric_and_zero_for_itself(seed: int) -> None:
    first, second = gaussian(seed, 20), gaussian(seed + 100, 20)
    assert distance(first, second) == pytest.approx(distance(second, first), rel=1e-9)
    assert distance(first, second) > 0.0
    assert 0.0 <= distance(first, first) < 1e-6 * np.trace(first[1])


def test_constant_features_do_no_harm() -> None:
    """Pixels that are always black make the covariances singular."""
    generator = np.random.default_rng(0)
    first, second = np.zeros((100, 6)), np.zeros((80, 6))
    first[:, :3] = generator.normal(size=(100, 3))
    second[:, :3] = generator.normal(size=(80, 3)) * 2.0 + 1.0
    second[:, 5] = 0.25
    with_constants = distance(moments(first), moments(second))
    without = distance(moments(first[:, :3]), moments(second[:, :3]))
    assert with_constants == pytest.approx(without + 0.25**2, rel=1e-6)


def test_fewer_samples_than_features() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(5, 64)), generator.normal(size=(6, 64))
    value = distance(moments(first), moments(second))
    assert np.isfinite(value)
    assert distance(moments(first), moments(first)) == pytest.approx(0.0, abs=1e-5)
    assert value > 1.0
