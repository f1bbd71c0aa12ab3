from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hasten.trainers.metrics import quality


def gaussian(count: int, dims: int = 4, *, seed: int = 0, mean: float = 0.0, sd: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, sd, size=(count, dims))


def brute_kid(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimator as the paper writes it, with loops."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1.0) ** 3)

    def within(points: np.ndarray) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(points) for j, b in enumerate(points) if i != j]
        return float(np.mean(pairs))

    return within(x) + within(y) - 2.0 * float(np.mean([kernel(a, b) for a in x for b in y]))


def test_kid_is_the_papers_estimator() -> None:
    x, y = gaussian(13, seed=1), gaussian(9, seed=2, mean=0.5)
    assert quality.kid(x, y) == pytest.approx(brute_kid(x, y), rel=1e-10)


def test_kid_of_one_distribution_is_zero_on_average_not_always() -> None:
    values = np.array([quality.kid(gaussian(60, seed=s), gaussian(80, seed=1000 + s)) for s in range(200)])
    assert abs(values.mean()) < 4.0 * values.std() / np.sqrt(len(values))
    assert values.min() < 0.0 < values.max()


def test_kid_of_two_gaussians_in_closed_form() -> None:
    """In one dimension, E (xy + 1)^3 = m3 m3' + 3 m2 m2' + 3 m1 m1' + 1 by the moments of x and y."""

    def moments(mean: float, sd: float) -> np.ndarray:
        return np.array([1.0, mean, mean**2 + sd**2, mean**3 + 3.0 * mean * sd**2])

    first, second = moments(0.0, 1.0), moments(0.7, 0.5)
    expected = (np.array([1.0, 3.0, 3.0, 1.0]) * (first - second) ** 2).sum()
    x, y = gaussian(6000, 1, seed=1), gaussian(6000, 1, seed=2, mean=0.7, sd=0.5)
    assert quality.kid(x, y) == pytest.approx(expected, rel=0.1)


def brute_precision(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """Share of x within the distance to the k-th nearest other point of some y."""
    radii = [
        np.sort([np.linalg.norm(a - b) for j, b in enumerate(y) if i != j])[k - 1] for i, a in enumerate(y)
    ]
    inside = [any(np.linalg.norm(a - b) <= r for b, r in zip(y, radii, strict=True)) for a in x]
    return float(np.mean(inside))


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_are_the_papers(neighbours: int) -> None:
    x, y = gaussian(40, 2, seed=1, mean=0.8), gaussian(40, 2, seed=2)
    precision, recall = quality.precision_recall(x, y, neighbours=neighbours)
    assert precision == brute_precision(x, y, neighbours)
    assert recall == brute_precision(y, x, neighbours)
    assert 0.0 < recall < 1.0
    assert 0.0 < precision < 1.0


def test_equal_sets() -> None:
    x = gaussian(300)
    assert quality.precision_recall(x, x) == (1.0, 1.0)
    assert quality.precision_recall(x[::-1], x) == (1.0, 1.0)
    assert quality.kid(x, x) < 0.0  # not 0: a pair of equal points is no pair of independent ones
    assert quality.copies(x, x) == 1.0
    # Images come twice in data: their distance is 0, not what is left of rounding.
    twice = np.repeat(x[:50], 5, axis=0)
    assert quality.precision_recall(twice, twice[::-1]) == (1.0, 1.0)


def test_disjoint_sets() -> None:
    x, y = gaussian(200), gaussian(200, seed=1, mean=50.0)
    assert quality.precision_recall(x, y) == (0.0, 0.0)
    assert quality.copies(x, y) == 0.0
    assert quality.energy_distance(x, y) == pytest.approx(2.0 * 50.0 * 2.0, rel=0.1)


def test_a_missing_mode_costs_recall_and_bad_samples_cost_precision() -> None:
    modes = np.concatenate([gaussian(200, seed=1, mean=-5.0), gaussian(200, seed=2, mean=5.0)])
    order = np.random.default_rng(0).permutation(400)
    one_mode = gaussian(400, seed=3, mean=5.0)
    precision, recall = quality.precision_recall(one_mode, modes[order])
    assert precision > 0.9
    assert 0.4 < recall < 0.55
    noisy = modes[order] + gaussian(400, seed=4, sd=8.0) * (np.arange(400) % 2)[:, None]
    precision, recall = quality.precision_recall(noisy, modes[order])
    assert precision < 0.7
    assert recall > 0.95


def test_energy_distance_against_loops_and_its_null() -> None:
    x, y = gaussian(20, seed=1), gaussian(15, seed=2, sd=2.0)

    def mean(a: np.ndarray, b: np.ndarray, *, same: bool) -> float:
        pairs = [
            np.linalg.norm(p - q) for i, p in enumerate(a) for j, q in enumerate(b) if not same or i != j
        ]
        return float(np.mean(pairs))

    expected = 2.0 * mean(x, y, same=False) - mean(x, x, same=True) - mean(y, y, same=True)
    assert quality.energy_distance(x, y) == pytest.approx(expected, rel=1e-9)
    values = np.array(
        [quality.energy_distance(gaussian(60, seed=s), gaussian(80, seed=1000 + s)) for s in range(200)]
    )
    assert abs(values.mean()) < 4.0 * values.std() / np.sqrt(len(values))


def test_energy_distance_sees_a_missing_mode_that_moments_do_not() -> None:
    """Two modes against one Gaussian of the same mean and variance."""
    random = np.random.default_rng(0)
    modes = random.choice([-1.0, 1.0], size=(1500, 1)) * 0.98 + random.normal(0.0, 0.2, size=(1500, 1))
    matched = random.normal(0.0, 1.0, size=(1500, 1))
    null = quality.energy_distance(random.normal(size=(1500, 1)), matched)
    assert quality.energy_distance(modes, matched) > 0.05 > 10.0 * abs(null)


def test_copies_are_found_and_fresh_samples_are_not() -> None:
    training, fresh = gaussian(500, 32, seed=1), gaussian(400, 32, seed=2)
    assert quality.copies(fresh, training) == 0.0
    mixed = fresh.copy()
    mixed[:100] = training[:100] + 0.01
    assert quality.copies(mixed, training) == 0.25
    # A training image that is there twice is still copied, not "equally near to two".
    assert quality.copies(training[:100], np.concatenate([training, training])) == 1.0
    assert quality.copies(fresh, training[:1]) == 1.0


def test_chance_level_of_copies_is_a_third_to_the_power_of_the_dimension() -> None:
    random = np.random.default_rng(0)
    training, fresh = random.uniform(size=(4000, 2)), random.uniform(0.1, 0.9, size=(3000, 2))
    assert quality.copies(fresh, training) == pytest.approx(1.0 / 9.0, abs=0.02)


@pytest.mark.parametrize(("seen", "held_out"), [(400, 100), (100, 400), (1000, 50)])
def test_unseen_is_one_for_fresh_samples(seen: int, held_out: int) -> None:
    values = []
    for seed in range(60):
        points = gaussian(seen + held_out + 100, 3, seed=seed)
        values.append(quality.unseen(points[:100], points[100 : 100 + seen], points[100 + seen :]))
    spread = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - 1.0) < 4.0 * spread
    assert spread < 0.1


def test_unseen_falls_with_the_share_of_copies() -> None:
    training, held_out, fresh = (gaussian(n, 8, seed=n) for n in (2000, 500, 1000))
    assert quality.unseen(training[:1000], training, held_out) == 0.0
    half = np.concatenate([training[:500], fresh[:500]])
    assert quality.unseen(half, training, held_out) == pytest.approx(0.5, abs=0.15)
    assert quality.unseen(held_out, training, held_out) == pytest.approx(5.0)


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "kid": quality.kid,
    "energy": quality.energy_distance,
    "precision": lambda x, y: quality.precision_recall(x, y)[0],
    "recall": lambda x, y: quality.precision_recall(x, y)[1],
    "copies": quality.copies,
    "unseen": lambda x, y: quality.unseen(x, y, y + 0.3),
}


@pytest.mark.parametrize("name", MEASURES)
def test_order_of_the_points_does_not_matter_nor_how_many_at_a_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = MEASURES[name]
    x, y = gaussian(150, seed=1, mean=0.3), gaussian(150, seed=2)
    value = measure(x, y)
    assert measure(x, y) == value
    random = np.random.default_rng(0)
    assert measure(random.permutation(x), random.permutation(y)) == pytest.approx(value, rel=1e-9)
    monkeypatch.setattr(quality, "_ROWS", 7)
    monkeypatch.setattr(quality, "_POINTS", 11)
    assert measure(x, y) == pytest.approx(value, rel=1e-9)


def test_precision_and_recall_compare_equal_numbers_of_points() -> None:
    x, y = gaussian(100, seed=1), gaussian(300, seed=2)
    assert quality.precision_recall(x, y) == quality.precision_recall(x, y[:100])
