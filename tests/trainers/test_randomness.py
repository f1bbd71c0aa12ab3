from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hasten.trainers import randomness

SMALLEST_P = 1e-3  # seeds are fixed: a test below it fails always or never


def span(first: int, last: int) -> np.ndarray:
    return np.arange(first, last, dtype=np.int64)


@given(
    chosen=st.lists(st.integers(0, 199), min_size=1, max_size=50),
    shape=st.sampled_from([(1,), (3,), (2, 2), (1, 3, 3), (5, 7), (1, 8, 8)]),
    offset=st.sampled_from([0, 1, 1000, 2**33]),
)
def test_any_subset_in_any_order_is_the_slice_of_the_whole(
    chosen: list[int], shape: tuple[int, ...], offset: int
) -> None:
    picked = np.array(chosen, dtype=np.int64)
    everything, images = span(offset, offset + 200), picked + offset
    np.testing.assert_array_equal(
        randomness.noise(7, "noise", images, shape), randomness.noise(7, "noise", everything, shape)[picked]
    )
    np.testing.assert_array_equal(
        randomness.uniform(7, "u", images), randomness.uniform(7, "u", everything)[picked]
    )


@pytest.mark.parametrize("batch", [1, 7, 64, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_same_numbers_for_every_batch_size_and_world_size(batch: int, world_size: int) -> None:
    whole = randomness.noise(3, "noise", span(0, 250), (2, 3))
    seen = np.full_like(whole, np.nan)
    for before in range(0, 250, batch):
        count = min(batch, 250 - before)
        for rank in range(world_size):
            images = before + np.arange(count)[rank::world_size]
            if len(images):
                seen[images] = randomness.noise(3, "noise", images, (2, 3))
    np.testing.assert_array_equal(seen, whole)


@pytest.mark.parametrize("shape", [(1,), (1, 8, 8)])
def test_no_images_no_numbers(shape: tuple[int, ...]) -> None:
    """A worker whose share is empty: two workers that sample a grid of one image."""
    assert randomness.noise(0, "noise", span(0, 0), shape).shape == (0, *shape)
    assert randomness.uniform(0, "u", span(0, 0)).shape == (0,)


def test_noise_is_standard_normal() -> None:
    values = randomness.noise(0, "noise", span(0, 4000), (1, 8, 8)).astype(np.float64)
    count = values.size
    assert values.mean() == pytest.approx(0.0, abs=4.0 / np.sqrt(count))
    assert values.var() == pytest.approx(1.0, abs=4.0 * np.sqrt(2.0 / count))
    assert stats.skew(values, axis=None) == pytest.approx(0.0, abs=4.0 * np.sqrt(6.0 / count))
    assert stats.kurtosis(values, axis=None) == pytest.approx(0.0, abs=4.0 * np.sqrt(24.0 / count))
    assert stats.kstest(values.ravel(), "norm").pvalue > SMALLEST_P
    # The tails are there: one in 16,000 lies beyond four standard deviations.
    assert 4.0 < np.abs(values).max() < 6.6


def test_noise_is_independent_within_and_between_images() -> None:
    values = randomness.noise(0, "noise", span(0, 20_000), (4,)).astype(np.float64)
    neighbours = np.concatenate([values[:-1], values[1:]], axis=1)
    for series in (neighbours, neighbours**2):
        correlations = np.corrcoef(series.T) - np.eye(8)
        assert np.abs(correlations).max() < 4.5 / np.sqrt(20_000)


def test_uniform_numbers_are_uniform() -> None:
    values = randomness.uniform(0, "u", span(0, 100_000))
    assert ((values >= 0.0) & (values < 1.0)).all()
    assert stats.kstest(values, "uniform").pvalue > SMALLEST_P
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4.0 / np.sqrt(100_000)


def test_streams_and_seeds_are_independent() -> None:
    streams = [
        randomness.noise(seed, stream, span(0, 20_000), (1,)).ravel()
        for seed, stream in (
            (0, "noise"),
            (1, "noise"),
            (0, "eval/noise"),
            (1, "0/noise"),
            (2**63 - 1, "noise"),
        )
    ]
    correlations = np.corrcoef(np.array(streams, dtype=np.float64)) - np.eye(len(streams))
    assert np.abs(correlations).max() < 4.5 / np.sqrt(20_000)


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000), size=st.integers(0, 300))
def test_permutation_holds_everything_once(seed: int, epoch: int, size: int) -> None:
    order = randomness.permutation(seed, "order", epoch, size)
    assert sorted(order.tolist()) == list(range(size))
    np.testing.assert_array_equal(order, randomness.permutation(seed, "order", epoch, size))


def test_permutations_of_epochs_and_seeds_differ_and_are_fair() -> None:
    orders = np.array([randomness.permutation(0, "order", epoch, 10) for epoch in range(3000)])
    counts = np.array([np.bincount(orders[:, place], minlength=10) for place in range(10)])
    statistic = ((counts - 300.0) ** 2 / 300.0).sum()
    assert stats.chi2.sf(statistic, 81) > SMALLEST_P
    assert not np.array_equal(
        randomness.permutation(0, "order", 0, 100), randomness.permutation(1, "order", 0, 100)
    )


@settings(max_examples=50)
@given(batch=st.integers(1, 130), step=st.integers(0, 50), world_size=st.integers(1, 8))
def test_stratified_numbers_fill_every_stratum_once(batch: int, step: int, world_size: int) -> None:
    places, before = np.arange(batch), step * batch
    whole = randomness.stratified(5, "timestep", before + places, places, batch)
    np.testing.assert_array_equal(np.floor(whole * batch), places)
    for rank in range(world_size):
        mine = places[rank::world_size]
        if not len(mine):
            continue
        part = randomness.stratified(5, "timestep", before + mine, mine, batch)
        # World size changes who computes a number, never the number.
        np.testing.assert_array_equal(part, whole[mine])
        if batch % world_size == 0:
            np.testing.assert_array_equal(np.floor(part * len(mine)), np.arange(len(mine)))


def drawn(num_batches: int, batch: int) -> np.ndarray:
    places = np.arange(batch)
    return np.concatenate(
        [
            randomness.stratified(11, "timestep", step * batch + places, places, batch)
            for step in range(num_batches)
        ]
    )


def test_stratified_numbers_have_the_marginal_of_independent_ones() -> None:
    u = drawn(2000, 16)
    assert stats.kstest(u, "uniform").pvalue > SMALLEST_P
    # What stratification is for: a batch's mean hardly varies (1/12 for independent numbers).
    assert u.reshape(2000, 16).mean(axis=1).var() * 16 < 0.01 / 12.0 * 1.5


def test_integer_fits_into_63_bits_and_depends_on_both() -> None:
    values = {randomness.integer(seed, stream) for seed in range(50) for stream in ("init", "other")}
    assert len(values) == 100
    assert all(0 <= value < 2**63 for value in values)


def test_numbers_are_the_same_on_every_machine() -> None:
    """A change here changes every run: it belongs under "Numbers changed" in the changelog."""
    np.testing.assert_allclose(
        randomness.noise(0, "noise", span(5, 6), (1, 1, 3)).ravel(),
        [0.9550872445106506, -0.8517187237739563, -1.528984785079956],
        rtol=1e-6,
    )
    assert randomness.uniform(0, "timestep", span(5, 6))[0] == 0.5225486255474981
    assert randomness.permutation(0, "order", 0, 6).tolist() == [5, 1, 0, 2, 4, 3]
    assert randomness.integer(0, "init") == 5080817238051367697
