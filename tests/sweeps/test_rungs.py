"""Rank correlation of rungs and ends: scipy as the oracle, simulated coverage, and what survivors hide."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from hasten.sweeps.conducting import stopping
from hasten.sweeps.conducting.stopping import Curve
from hasten.sweeps.statistics import rungs
from hasten.sweeps.statistics.rungs import Rung
from hasten.sweeps.study import Asha, Objective

RUNG, TOTAL = 300, 1000
Series = list[tuple[int, float]]


def series(early: float, final: float | None) -> Series:
    """A trial with one value at the rung and, unless it was stopped, one at the end."""
    return [(0, 9.0), (RUNG, early)] + ([] if final is None else [(TOTAL, final)])


def judge(*seeds: list[Series]) -> Rung:
    (found,) = rungs.judge(dict(enumerate(seeds)), [RUNG], total=TOTAL)
    return found


def pairs(rng: np.random.Generator, n: int, correlation: float) -> list[Series]:
    """Normal values with this (Pearson's) correlation."""
    final = rng.normal(size=n)
    early = correlation * final + math.sqrt(1.0 - correlation**2) * rng.normal(size=n)
    return [series(*both) for both in zip(early.tolist(), final.tolist(), strict=True)]


def test_the_estimates_are_scipys() -> None:
    rng = np.random.default_rng(0)
    for n in (4, 7, 30):
        trials = pairs(rng, n, 0.7)
        early, final = [t[1][1] for t in trials], [t[2][1] for t in trials]
        found = judge(trials)
        assert (found.n, found.stopped) == (n, 0)
        assert found.spearman == pytest.approx(stats.spearmanr(early, final).statistic)
        assert found.ordered == pytest.approx((1.0 + stats.kendalltau(early, final).statistic) / 2.0)
        assert (found.low is None) == (n < rungs.LEAST)


@pytest.mark.parametrize("n", [10, 30])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8, 0.95])
def test_the_interval_holds_the_truth_as_often_as_it_says(n: int, correlation: float) -> None:
    """The truth of normal values is 6/pi asin(r/2). 1,500 draws: 2 % of leeway are nearly four errors."""
    rng, truth = np.random.default_rng(1), 6.0 / math.pi * math.asin(correlation / 2.0)
    held = []
    for _ in range(1500):
        early = rng.normal(size=n)
        final = correlation * early + math.sqrt(1.0 - correlation**2) * rng.normal(size=n)
        z = rungs._z(1.0 - 6.0 * float(((rank(early) - rank(final)) ** 2).sum()) / (n * (n * n - 1)), n)
        low, high = rungs._interval(z, n)
        held.append(low <= truth <= high)
    assert 0.92 <= np.mean(held) <= 0.985


def test_the_interval_by_hand() -> None:
    """r = 0.5, n = 12: z = 0.549306, error sqrt(1.125 / 9) = 0.353553."""
    assert rungs._interval(math.atanh(0.5), 12) == pytest.approx((-0.142666, 0.846098), abs=2e-6)


def rank(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return values.argsort().argsort()


def test_a_false_trust_is_rare() -> None:
    """Where the true rank correlation is 0.6, trust is claimed in 2.5 % at most, or so."""
    rng, correlation = np.random.default_rng(2), 2.0 * math.sin(math.pi * rungs.ENOUGH / 6.0)
    for n in (10, 25):
        claims = [judge(pairs(rng, n, correlation)).trust for _ in range(400)]
        assert claims.count("could be trusted") <= 0.045 * 400
        assert claims.count("could not be trusted") <= 0.05 * 400


def test_survivors_look_less_alike_than_all() -> None:
    """ASHA takes the good ones at the rung: of them the correlation is smaller, and nothing is refuted."""
    rng = np.random.default_rng(3)
    rule = stopping.rule(Asha(kind="asha", grace=RUNG / TOTAL, reduction=2), Objective())
    everyone, survivors = [], []
    for _ in range(60):
        trials, done, seen = pairs(rng, 40, 0.8), list[Curve](), list[Series]()
        for number, trial in enumerate(trials):
            own = Curve(number=number, total=TOTAL, values=tuple(trial[:2]))
            stopped = rule.decide(own, done[: max(0, number - 3)]) is not None
            seen.append(trial[:2] if stopped else trial)
            done.append(Curve(number=number, total=TOTAL, values=tuple(seen[-1])))
        everyone.append(judge(trials))
        survivors.append(judge(seen))
        assert survivors[-1].n + survivors[-1].stopped == 40
        assert survivors[-1].trust != "could not be trusted"
    truth, shown = (np.mean([one.spearman for one in of]) for of in (everyone, survivors))
    assert shown < truth - 0.1


def test_seeds_are_averaged_and_count_as_one() -> None:
    """The same points at three seeds say no more about points than one seed does."""
    trials = pairs(np.random.default_rng(4), 20, 0.8)
    one, three = judge(trials), judge(trials, trials, trials)
    assert (three.spearman, three.low, three.high) == pytest.approx((one.spearman, one.low, one.high))
    assert three.n == 20
    other = pairs(np.random.default_rng(5), 20, 0.1)
    both = judge(trials, other)
    mean = np.mean([math.atanh(judge(of).spearman or 0.0) for of in (trials, other)])
    assert both.spearman == pytest.approx(math.tanh(mean))


def test_verdicts_and_sentences() -> None:
    ordered = [series(float(n), float(n)) for n in range(12)]
    found = judge(ordered)
    assert found.trust == "could be trusted"
    assert found.sentence.startswith("At 300 images: rank correlation 1.00 (0.9")
    assert found.sentence.endswith("100% of pairs in final order; early stopping could be trusted.")

    mixed = [series(float(n), float((n * 7) % 40)) for n in range(40)]
    assert judge(mixed).trust == "could not be trusted"
    assert judge(mixed).sentence.endswith("early stopping could not be trusted.")

    # The same trials, beside some that were stopped: these might have been as bad as they looked.
    found = judge([*mixed, *[series(99.0, None)] * 5])
    assert (found.trust, found.stopped, found.n) == ("cannot tell", 5, 40)
    assert "cannot tell (n=40) whether early stopping could be trusted. 5 stopped trials" in found.sentence

    found = judge(ordered[:4])
    assert (found.trust, found.low, found.needed) == ("cannot tell", None, 12)
    assert "(n=4)" in found.sentence
    assert "set ahead: 12" in found.sentence


@pytest.mark.parametrize("trials", [[], [series(1.0, None)], [series(1.0, 2.0)] * 20, [series(1.0, 1.0)] * 3])
def test_too_little_to_tell(trials: list[Series]) -> None:
    """No trials, no ends, all tied, too few: no number, and no crash."""
    found = judge(trials)
    assert (found.spearman, found.low, found.ordered, found.trust) == (None, None, None, "cannot tell")
    assert "no rank correlation" in found.sentence


def test_trials_that_never_came_there_and_values_that_are_none() -> None:
    ordered = [series(float(n), float(n)) for n in range(12)]
    early_ends = [[(100, 1.0)], []]
    broken = [series(math.nan, 1.0), series(1.0, math.inf)]
    assert judge([*ordered, *early_ends, *broken]) == judge(ordered)


def test_how_many_more_would_tell() -> None:
    """With as many trials of this correlation, the interval leaves the threshold outside."""
    trials = pairs(np.random.default_rng(6), 12, 0.85)
    found = judge(trials)
    assert found.trust == "cannot tell"
    assert found.needed is not None
    z = math.atanh(found.spearman or 0.0)
    assert rungs._interval(z, found.needed)[0] >= rungs.ENOUGH > rungs._interval(z, found.needed - 1)[0]
    assert rungs._needed(math.atanh(rungs.ENOUGH)) is None
