from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.trainers.datasets import mixtures
from hasten.trainers.datasets.mixtures import Mixture
from hasten.trainers.diffusion import Ddpm, levels
from hasten.trainers.errors import ConfigError

NAMED = pytest.mark.parametrize("name", mixtures.NAMES)


def mixture(components: int = 3, dims: int = 5, rank: int = 2, seed: int = 0) -> Mixture:
    random = np.random.default_rng(seed)
    return Mixture(
        name="test",
        weights=random.dirichlet(np.full(components, 3.0)),
        means=random.normal(size=(components, dims)),
        spreads=random.uniform(0.1, 0.6, size=components),
        factors=random.normal(size=(components, dims, rank)),
    )


def density(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Of a Gaussian, at points (..., D), by the textbook."""
    offset = x - mean
    solved = np.linalg.solve(covariance, offset[..., None])[..., 0]
    scale = np.sqrt(np.linalg.det(2.0 * np.pi * covariance))
    return np.asarray(np.exp(-0.5 * (offset * solved).sum(axis=-1)) / scale)


def dense(found: Mixture, k: int) -> np.ndarray:
    dims = found.means.shape[1]
    return np.asarray(found.factors[k] @ found.factors[k].T + found.spreads[k] ** 2 * np.eye(dims))


def prior(found: Mixture, x: np.ndarray) -> np.ndarray:
    return np.asarray(
        sum(found.weights[k] * density(x, found.means[k], dense(found, k)) for k in range(found.classes))
    )


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("signal", "noise"), [(0.98, 0.2), (0.7, 0.71), (0.1, 0.99), (1.0, 3.0)])
def test_posterior_is_bayes_rule_integrated_by_brute_force(rank: int, signal: float, noise: float) -> None:
    """E[x_0 | x_t] = integral x_0 p(x_0) N(x_t; a x_0, n^2) / integral p(x_0) N(x_t; a x_0, n^2)."""
    found = mixture(components=3, dims=2, rank=rank)
    line = np.linspace(-12.0, 12.0, 801)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    before = prior(found, grid)
    for noisy in np.random.default_rng(1).normal(size=(4, 2)):
        weight = before * np.exp(-0.5 * ((noisy - signal * grid) ** 2).sum(axis=-1) / noise**2)
        clean = (weight[..., None] * grid).sum(axis=(0, 1)) / weight.sum()
        answer = found.posterior(noisy[None], np.array([signal]), np.array([noise]))
        np.testing.assert_allclose(answer.clean[0], clean, atol=1e-6)
        np.testing.assert_allclose(answer.eps[0], (noisy - signal * clean) / noise, atol=1e-5)


def test_score_is_the_gradient_of_the_log_density() -> None:
    found, signal, noise, step = mixture(dims=3, rank=1), 0.8, 0.6, 1e-5

    def log_density(x: np.ndarray) -> np.ndarray:
        parts = [
            found.weights[k]
            * density(x, signal * found.means[k], signal**2 * dense(found, k) + noise**2 * np.eye(3))
            for k in range(found.classes)
        ]
        return np.log(np.sum(parts, axis=0))

    points = np.random.default_rng(2).normal(size=(6, 3))
    score = -found.posterior(points, np.full(6, signal), np.full(6, noise)).eps / noise
    for axis in range(3):
        delta = step * np.eye(3)[axis]
        slope = (log_density(points + delta) - log_density(points - delta)) / (2.0 * step)
        np.testing.assert_allclose(score[:, axis], slope, rtol=1e-6, atol=1e-8)


@given(
    signal=st.floats(0.0, 1.0),
    noise=st.floats(1e-3, 80.0),
    rank=st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_one_component_is_the_gaussian_closed_form(signal: float, noise: float, rank: int, seed: int) -> None:
    """Linear regression of x_0 on x_t with a dense covariance: the low-rank formula must not differ."""
    found = mixture(components=1, dims=4, rank=rank, seed=seed)
    noisy = np.random.default_rng(seed).normal(size=(3, 4))
    total = signal**2 * dense(found, 0) + noise**2 * np.eye(4)
    solved = np.linalg.solve(total, (noisy - signal * found.means[0]).T).T
    answer = found.posterior(noisy, np.full(3, signal), np.full(3, noise))
    expected = found.means[0] + signal * solved @ dense(found, 0)
    np.testing.assert_allclose(answer.clean, expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(answer.eps, noise * solved, rtol=1e-7, atol=1e-9)


@NAMED
@pytest.mark.parametrize("t", [0, 300, 999])
def test_shipped_mixtures_against_dense_covariances(name: str, t: int) -> None:
    """Every component's full matrix, inverted as it is, with rows at their own levels of noise."""
    found, tables = mixtures.get(name), levels(Ddpm(kind="ddpm"))
    dims = found.means.shape[1]
    a, n = tables.signal[t], tables.noise[t]
    clean = found.generate(3, "test", np.arange(8)).reshape(8, dims).astype(np.float64)
    noisy = a * clean + n * np.random.default_rng(0).normal(size=(8, dims))
    logs, means = [], []
    for k in range(found.classes):
        total = a**2 * dense(found, k) + n**2 * np.eye(dims)
        offset = noisy - a * found.means[k]
        solved = np.linalg.solve(total, offset.T).T
        volume = np.linalg.slogdet(total)[1]
        logs.append(np.log(found.weights[k]) - 0.5 * ((offset * solved).sum(axis=1) + volume))
        means.append(found.means[k] + a * solved @ dense(found, k))
    share = np.exp(np.array(logs) - np.max(logs, axis=0))
    share /= share.sum(axis=0)
    expected = np.einsum("kb,kbd->bd", share, np.array(means))
    answer = found.posterior(noisy.reshape(8, *found.shape), np.full(8, a), np.full(8, n))
    assert answer.clean.shape == (8, *found.shape)
    np.testing.assert_allclose(answer.clean.reshape(8, dims), expected, atol=1e-8)
    np.testing.assert_allclose(a * answer.clean + n * answer.eps, noisy.reshape(8, *found.shape), atol=1e-9)


def test_noise_and_signal_belong_to_each_point() -> None:
    found = mixture()
    noisy = np.random.default_rng(0).normal(size=(700, 5))  # more than a chunk
    signal, noise = np.linspace(0.99, 0.01, 700), np.linspace(0.1, 1.0, 700)
    together = found.posterior(noisy, signal, noise)
    for row in (0, 511, 512, 699):
        alone = found.posterior(noisy[row : row + 1], signal[row : row + 1], noise[row : row + 1])
        np.testing.assert_allclose(together.clean[row], alone.clean[0], rtol=1e-12)
        np.testing.assert_allclose(together.eps[row], alone.eps[0], rtol=1e-12)


def test_known_labels_leave_one_component() -> None:
    found = mixture()
    noisy, labels = np.random.default_rng(0).normal(size=(6, 5)), np.array([0, 1, 2, 0, 1, 2])
    signal, noise = np.full(6, 0.6), np.full(6, 0.8)
    answer = found.posterior(noisy, signal, noise, labels)
    for row, k in enumerate(labels):
        single = Mixture(
            name="one",
            weights=np.ones(1),
            means=found.means[k : k + 1],
            spreads=found.spreads[k : k + 1],
            factors=found.factors[k : k + 1],
        )
        alone = single.posterior(noisy[row : row + 1], signal[:1], noise[:1])
        np.testing.assert_allclose(answer.eps[row], alone.eps[0], rtol=1e-10)


@NAMED
def test_nothing_beats_the_posterior_mean(name: str) -> None:
    """The loss of any other answer is the posterior's plus the mean square of the difference."""
    found, tables = mixtures.get(name), levels(Ddpm(kind="ddpm"))
    count = 4000
    images = np.arange(count)
    t = images * 1000 // count
    a, n = tables.signal[t], tables.noise[t]
    random = np.random.default_rng(0)
    eps = random.normal(size=(count, *found.shape))
    clean = found.generate(5, "test", images).astype(np.float64)
    noisy = a[:, None, None, None] * clean + n[:, None, None, None] * eps
    best = found.posterior(noisy, a, n).eps
    least = ((best - eps) ** 2).mean()
    assert 0.0 < least < 1.0
    for other in (0.9 * best, best + 0.1, n[:, None, None, None] * noisy):
        loss, excess = ((other - eps) ** 2).mean(), ((other - best) ** 2).mean()
        assert excess > 0.0
        assert loss - least == pytest.approx(excess, abs=0.1 * least)
        assert loss > least


@NAMED
def test_points_follow_the_mixture(name: str) -> None:
    """Shares of the components by chi-square, and mean and covariance of all points."""
    found, count = mixtures.get(name), 20_000
    images = np.arange(count)
    points = found.generate(7, "test", images)
    assert points.dtype == np.float32
    assert points.shape == (count, *found.shape)
    shares = np.bincount(found.labels(7, "test", images), minlength=found.classes)
    chi_square = ((shares - count * found.weights) ** 2 / (count * found.weights)).sum()
    assert chi_square < found.classes - 1 + 4.0 * np.sqrt(2.0 * (found.classes - 1))
    mean, covariance = found.moments()
    flat = points.reshape(count, -1).astype(np.float64)
    np.testing.assert_allclose(flat.mean(axis=0), mean, atol=5.0 * np.sqrt(0.35 / count))
    np.testing.assert_allclose(np.cov(flat, rowvar=False), covariance, atol=0.02)


@NAMED
def test_points_come_from_the_component_of_their_label(name: str) -> None:
    found, images = mixtures.get(name), np.arange(20_000)
    points, labels = found.generate(1, "test", images), found.labels(1, "test", images)
    for k in range(found.classes):
        mine = points[labels == k].reshape((labels == k).sum(), -1).astype(np.float64)
        spread = np.sqrt(np.diag(dense(found, k)) / len(mine))
        assert (np.abs(mine.mean(axis=0) - found.means[k]) < 5.0 * spread).all()


@NAMED
def test_scale_is_that_of_images(name: str) -> None:
    found = mixtures.get(name)
    mean, covariance = found.moments()
    np.testing.assert_allclose(mean, 0.0, atol=1e-5)
    assert np.trace(covariance) / len(covariance) == pytest.approx(0.25, rel=1e-4)
    points = found.generate(0, "test", np.arange(5000))
    assert (np.abs(points) < 1.0).mean() > 0.9


@NAMED
def test_a_point_is_a_function_of_its_address(name: str) -> None:
    found = mixtures.get(name)
    whole = found.generate(0, "train", np.arange(40, 80))
    np.testing.assert_array_equal(found.generate(0, "train", np.arange(40, 80)[1::3]), whole[1::3])
    np.testing.assert_array_equal(found.generate(0, "train", np.array([77])), whole[37:38])
    assert not np.array_equal(found.generate(1, "train", np.arange(40, 80)), whole)
    assert not np.array_equal(found.generate(0, "other", np.arange(40, 80)), whole)
    assert found.generate(0, "train", np.empty(0, dtype=np.int64)).shape == (0, *found.shape)


DIGESTS = {"ring": "ec2e48f056ff", "16d": "c69354484936", "64d": "959cddd3e287"}


@NAMED
def test_parameters_never_change(name: str) -> None:
    """Recorded scores name a mixture by its digest."""
    assert mixtures.get(name).digest[:12] == DIGESTS[name]


def test_digest_is_the_parameters_not_the_name() -> None:
    base = mixture()
    fields: dict[str, Any] = {
        "weights": base.weights,
        "means": base.means,
        "spreads": base.spreads,
        "factors": base.factors,
    }
    assert Mixture(name="other", **fields).digest == base.digest
    assert Mixture(name="test", **fields | {"spreads": base.spreads + 1e-9}).digest != base.digest


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        mixtures.get("17d")
    assert caught.value.subject == "data.source"
    assert "ring" in caught.value.remedy
