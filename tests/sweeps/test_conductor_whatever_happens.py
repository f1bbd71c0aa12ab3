"""The proof of the design: a study comes to the same records whatever happens to it.

Random concurrency, durations and deaths of processes and nodes; drivers that die between any two writes to
the ledger, while their trials go on for a while; runs that outrun the verdict on them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.sweeps.conducting import prefixes

Raw = dict[str, Any]

ARMS: Raw = {
    "baseline": {},
    "clts": {"curriculum": {"kind": "clts", "mu": 0.3, "sigma": 0.2}},
    "slow": {"optimizer.lr": 1e-4},
}
SPACE: Raw = {
    "optimizer.lr": {"log_uniform": [1e-4, 1e-2]},
    "momentum.beta": {"choice": [0.8, 0.9]},
    "curriculum.kind": {"choice": ["uniform", "clts"]},
    "curriculum.mu": {"uniform": [0.1, 0.9], "when": {"curriculum.kind": "clts"}},
    "curriculum.sigma": {"choice": [0.2, 0.3], "when": {"curriculum.kind": "clts"}},
}
NO_CURRICULA: Raw = {key: SPACE[key] for key in ("optimizer.lr", "momentum.beta")}

stoppings = st.one_of(
    st.builds(
        lambda grace, r: {"kind": "asha", "grace": grace, "reduction": r}, st.just(0.2), st.integers(2, 3)
    ),
    st.just({"kind": "hyperband", "grace": 0.1, "reduction": 2}),
    st.just({"kind": "median", "grace": 0.2, "trials": 2}),
    st.just({"kind": "wilcoxon", "grace": 0.2, "p": 0.05}),
)
searches = st.one_of(
    st.builds(lambda trials: {"kind": "random", "trials": trials}, st.integers(1, 12)),
    st.builds(
        lambda trials, startup: {"kind": "optuna", "trials": trials, "startup": startup},
        st.integers(3, 12),
        st.integers(1, 4),
    ),
)
seeds = st.sampled_from([[0], [3, 1], [0, 1, 2]])

arms_studies = st.builds(lambda seeds: {"arms": ARMS, "seeds": seeds}, seeds)
space_studies = st.builds(
    lambda search, stopping, ahead, seeds: {
        "space": SPACE,
        "search": search,
        "stopping": stopping,
        "ahead": ahead,
        "seeds": seeds,
    },
    searches,
    st.none() | stoppings,
    st.integers(1, 6),
    seeds,
)
populations = st.builds(
    lambda members, interval: {
        "space": NO_CURRICULA,
        "search": {"kind": "pbt", "members": members, "interval": interval},
    },
    st.integers(2, 5),
    st.sampled_from([0.2, 0.5]),
)


@pytest.mark.slow
@settings(max_examples=50)
@given(raw=arms_studies | space_studies | populations, chances=st.integers(0, 2**32))
def test_whatever_happens_the_records_are_those_of_an_undisturbed_study(
    stage: Any, same: Callable[..., Raw], raw: Raw, chances: int
) -> None:
    undisturbed, disturbed = stage(**raw), stage(**raw)
    expected = same(undisturbed.perform())
    assert len(expected) == undisturbed.plan.total
    assert same(disturbed.suffer(random.Random(chances))) == expected
    # And once all is over there is nothing left to do, nor to look for.
    asked, started = len(disturbed.asked), len(disturbed.started)
    assert same(disturbed.perform()) == expected
    assert (len(disturbed.asked), len(disturbed.started)) == (asked, started)


@settings(max_examples=20)
@given(chances=st.integers(0, 2**32), seeds=seeds)
def test_forks_change_nothing_but_how_much_is_computed(
    stage: Any, same: Callable[..., Raw], chances: int, seeds: list[int]
) -> None:
    arms: Raw = {
        "baseline": {},
        "early": {"optimizer.schedule": {"kind": "inverse_sqrt", "reference": 0.3}},
        "later": {"optimizer.schedule": {"kind": "inverse_sqrt", "reference": 0.6}},
    }
    raw = {"arms": arms, "seeds": seeds}
    alone, together, disturbed = stage(**raw), stage(**raw), stage(**raw)
    donors = prefixes.donors(alone.plan.trials)
    assert donors
    expected = same(alone.perform())
    assert same(together.perform(donors=donors)) == expected
    saved = sum(alone.trained.values()) - sum(together.trained.values())
    assert saved == prefixes.saving(donors)
    assert same(disturbed.suffer(random.Random(chances), donors=donors)) == expected


@settings(max_examples=20)
@given(concurrent=st.integers(1, 20), raw=space_studies)
def test_concurrency_decides_nothing(stage: Any, same: Callable[..., Raw], raw: Raw, concurrent: int) -> None:
    assert same(stage(**raw).perform(concurrent)) == same(stage(**raw).perform())


@settings(max_examples=20)
@given(chances=st.integers(0, 2**32), stopping=st.none() | stoppings, ahead=st.integers(1, 6))
def test_an_extended_study_is_the_larger_one_from_the_start(
    stage: Any, same: Callable[..., Raw], chances: int, stopping: Raw | None, ahead: int
) -> None:
    def study(trials: int) -> Raw:
        search = {"kind": "random", "trials": trials}
        return {"space": SPACE, "search": search, "stopping": stopping, "ahead": ahead}

    grown, large = stage(**study(5)), stage(**study(11))
    grown.suffer(random.Random(chances))
    before = len(grown.started)
    grown.edit(**study(11))
    assert same(grown.perform(3)) == same(large.perform())
    assert set(grown.started[before:]) == {f"{number:04d}-s0" for number in range(5, 11)}
