"""Medians of censored counts, their intervals, and sign tests, against scipy's and by simulation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hasten.sweeps.statistics.censoring import Median, median_of, sign_test

_COUNTS = st.lists(st.one_of(st.none(), st.integers(1, 99)), min_size=1, max_size=25)


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ([], None),
        ([30], Median(n=1, median=30)),
        ([None], Median(n=1, median=None)),
        ([10, None], Median(n=2, median=10)),
        ([10, None, None], Median(n=3, median=None)),
        ([30, 10, 20, None], Median(n=4, median=20)),
        ([10, 20, 30, 40, 50], Median(n=5, median=30)),  # five runs give no interval at 95 %
        ([10, 20, 30, 40, 50, 60], Median(n=6, median=30, low=10, high=60)),
        ([10, 20, 30, 40, 50, None], Median(n=6, median=30, low=10, high=None)),
        ([10, None, None, None, None, None], Median(n=6, median=None, low=10, high=None)),
    ],
)
def test_median(counts: list[float | None], found: Median | None) -> None:
    assert median_of(counts, alpha=0.05) == found


@given(_COUNTS)
def test_the_median_is_kaplan_and_meiers(counts: list[int | None]) -> None:
    found = median_of(counts, alpha=0.05)
    assert found is not None
    reached = [count for count in counts if count is not None]
    if not reached:
        assert found.median is None
        return
    sample = stats.CensoredData(uncensored=reached, right=[100] * (len(counts) - len(reached)))
    left = stats.ecdf(sample).sf
    passed = left.quantiles[left.probabilities <= 0.5 + 1e-9]
    wanted = float(passed[0]) if len(passed) and passed[0] < 100 else None
    assert found.median == wanted


@given(_COUNTS)
def test_the_interval_is_that_of_scipys_quantile_test(counts: list[int | None]) -> None:
    found = median_of(counts, alpha=0.05)
    assert found is not None
    numbers = [math.inf if count is None else count for count in counts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = stats.quantile_test(numbers, q=0.0, p=0.5).confidence_interval(0.95)
    assert found.low == (wanted.low if math.isfinite(wanted.low) else None)
    assert found.high == (wanted.high if math.isfinite(wanted.high) else None)


@pytest.mark.parametrize("seeds", [6, 10, 20])
@pytest.mark.parametrize("censored", [0.0, 0.2, 0.45])
def test_the_interval_holds_the_median(seeds: int, censored: float) -> None:
    draws = np.random.default_rng(seeds).lognormal(0.0, 0.5, (2000, seeds))
    budget = math.inf if censored == 0.0 else math.exp(0.5 * float(stats.norm.ppf(1.0 - censored)))
    missed = 0
    for row in draws.tolist():
        found = median_of([count if count <= budget else None for count in row], alpha=0.05)
        assert found is not None
        # Without a lower end, all of the interval is beyond the budget, where the median is not.
        missed += found.low is None or not found.low <= 1.0 <= (found.high or math.inf)
    assert missed / len(draws) < 0.06  # at most 5 %, and two standard errors


@pytest.mark.parametrize(("sooner", "later"), [(0, 0), (1, 0), (5, 0), (6, 0), (2, 4), (4, 2), (10, 10)])
def test_sign_test(sooner: int, later: int) -> None:
    wanted = stats.binomtest(sooner, sooner + later, 0.5).pvalue if sooner + later else 1.0
    assert sign_test(sooner, later) == pytest.approx(wanted)
