"""Power against scipy's noncentral t and by simulation, and the ways back from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hasten.sweeps.statistics import power
from hasten.sweeps.statistics.power import MOST_SEEDS, POWER, detectable, seeds_needed


@pytest.mark.parametrize("n", [2, 3, 5, 20, 1000])
@pytest.mark.parametrize("effect", [0.0, 0.3, 1.0, -4.0, 100.0])
@pytest.mark.parametrize("level", [0.05, 0.05 / 6])
def test_power_is_that_of_the_noncentral_t(n: int, effect: float, level: float) -> None:
    threshold = stats.t.isf(level / 2.0, n - 1)
    noncentrality = abs(effect) / 2.0 * np.sqrt(n)
    wanted = stats.nct.sf(threshold, n - 1, noncentrality) if effect else level / 2.0
    assert power.power(n, effect=effect, sd=2.0, level=level) == pytest.approx(wanted, abs=1e-6)


def test_power_by_simulation() -> None:
    draws = np.random.default_rng(7).normal(1.5, 1.0, (20_000, 5))
    found = stats.ttest_1samp(draws, 0.0, axis=1)
    share = np.mean((found.pvalue < 0.05 / 3) & (found.statistic > 0.0))
    assert power.power(5, effect=1.5, sd=1.0, level=0.05 / 3) == pytest.approx(share, abs=0.011)


def test_seeds_by_the_textbook() -> None:
    """Cohen's d of 1, 0.8 and 0.5 at 5 % and 80 %: 10, 15 and 34 pairs, as G*Power has it."""
    needed = [seeds_needed(effect=d, sd=1.0, level=0.05, least=3) for d in (1.0, 0.8, 0.5)]
    assert needed == [10, 15, 34]


@given(st.floats(0.1, 5.0), st.sampled_from([0.05, 0.025, 0.01]), st.integers(3, 30))
def test_the_fewest_seeds_are_enough_and_one_less_is_not(effect: float, level: float, least: int) -> None:
    needed = seeds_needed(effect=effect, sd=1.0, level=level, least=least)
    if needed is None:
        assert power.power(MOST_SEEDS, effect=effect, sd=1.0, level=level) < POWER
        return
    assert needed >= least
    assert power.power(needed, effect=effect, sd=1.0, level=level) >= POWER
    assert needed == least or power.power(needed - 1, effect=effect, sd=1.0, level=level) < POWER


@pytest.mark.parametrize(("effect", "sd"), [(0.0, 1.0), (1.0, 0.0), (1e-3, 1.0)])
def test_where_no_number_of_seeds_helps(effect: float, sd: float) -> None:
    assert seeds_needed(effect=effect, sd=sd, level=0.05, least=3) is None


@given(st.integers(2, 200), st.floats(1e-6, 1e6), st.sampled_from([0.05, 0.05 / 6]))
def test_what_is_detectable_has_just_the_power(n: int, sd: float, level: float) -> None:
    effect = detectable(n, sd=sd, level=level)
    assert power.power(n, effect=effect, sd=sd, level=level) == pytest.approx(POWER, abs=1e-5)
