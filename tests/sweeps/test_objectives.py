"""What a trial is worth: tables of values, penalties, bounds, ranks and fronts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.sweeps.records import TrialRecord
from hasten.sweeps.statistics.objectives import (
    Measured,
    direction,
    for_search,
    images_to_target,
    ranking,
    seconds_at,
    value,
    violations,
    within,
)
from hasten.sweeps.statistics.pareto import front
from hasten.sweeps.study import Bound, Goal, Objective
from hasten.trainers.errors import ConfigError

LOSS = "eval/loss"
CURVE = [(0, 1.0), (250, 0.6), (500, 0.3), (750, 0.35), (1000, 0.4)]


def record(point: str = "0000", seed: int = 0, final: float = 0.4, **fields: Any) -> TrialRecord:
    """A finished run of 1000 images in 20 seconds, the first half of which take 15."""
    known: dict[str, Any] = {
        "state": "finished",
        "images": 1000,
        "total": 1000,
        "seconds": 20.0,
        "metrics": {LOSS: final},
        "curves": {LOSS: CURVE, "perf/seconds": [(500, 15.0), (1000, 20.0)]},
    }
    name = f"{point}-s{seed}"
    return TrialRecord(trial=name, arm=point, seed=seed, run=name, fingerprint="0" * 12, **(known | fields))


def objective(measure: str = "final", **fields: Any) -> Objective:
    return Objective.model_validate({"measure": measure, "target": 0.5, **fields})


DIVERGED = record(state="failed", failure="diverged", images=400, seconds=12.0, metrics={})
STOPPED = record(state="stopped", images=500, metrics={LOSS: 0.3})
LOST = record(state="failed", failure="lost", images=500)


# --- One trial ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "wanted", "measured"),
    [
        (record(), objective(), Measured(value=0.4)),
        (record(), objective("best"), Measured(value=0.3)),
        (record(), objective("best", mode="max"), Measured(value=1.0)),
        (record(), objective("images"), Measured(value=500.0)),
        (record(), objective("seconds"), Measured(value=15.0)),
        (record(), objective("seconds", target=0.7), Measured(value=7.5)),
        (record(), objective("images", target=0.2), Measured(censored=True)),
        (record(), objective("seconds", target=0.2), Measured(censored=True)),
        (record(metrics={}), objective(), Measured(value=0.4)),
        (record(metrics={}, curves={}), objective(), Measured()),
        (record(curves={}), objective("images"), Measured()),
        (record(curves={LOSS: CURVE}), objective("seconds"), Measured()),
        (record(final=math.inf), objective(), Measured()),
        (STOPPED, objective(), Measured()),
        (DIVERGED, objective(), Measured()),
        (DIVERGED, objective("images"), Measured(censored=True)),
        (LOST, objective("images"), Measured()),
    ],
)
def test_value(found: TrialRecord, wanted: Objective, measured: Measured) -> None:
    assert value(found, wanted) == measured


@pytest.mark.parametrize(
    ("found", "wanted", "told"),
    [
        (record(), objective(), 0.4),
        (record(), objective("images"), 500.0),
        (record(), objective("images", target=0.2), 2000.0),  # PAR2
        (record(), objective("seconds", target=0.2), 40.0),
        (DIVERGED, objective("images"), 2000.0),
        (DIVERGED, objective("seconds"), 60.0),  # 12 seconds for 400 images: 30 for all, twice
        (record(state="failed", failure="diverged", images=0), objective("seconds"), math.inf),
        (DIVERGED, objective(), math.inf),
        (DIVERGED, objective(mode="max"), -math.inf),
        (record(state="failed", failure="memory"), objective("images"), math.inf),
        (LOST, objective(), None),
        (STOPPED, objective(), None),
    ],
)
def test_for_search(found: TrialRecord, wanted: Objective, told: float | None) -> None:
    assert for_search(found, wanted) == (None if told is None else pytest.approx(told))


@given(st.integers(1, 999), st.sampled_from(["images", "seconds"]))
def test_a_penalty_is_worse_than_any_success(images: int, measure: str) -> None:
    """Else a search would go where nothing is ever reached."""
    late = record(curves={LOSS: [(0, 1.0), (images, 0.4)], "perf/seconds": [(1000, 20.0)]})
    never = record(curves={LOSS: [(0, 1.0), (1000, 0.9)], "perf/seconds": [(1000, 20.0)]})
    reached, missed = (for_search(one, objective(measure)) for one in (late, never))
    assert reached is not None
    assert missed is not None
    assert reached < missed


def test_the_baselines_quality_is_not_known_to_a_record() -> None:
    with pytest.raises(ConfigError, match="target"):
        value(record(), objective("images", target="baseline"))


@pytest.mark.parametrize(("measure", "mode", "better"), [("best", "max", "max"), ("images", "max", "min")])
def test_direction(measure: str, mode: str, better: str) -> None:
    assert direction(objective(measure, mode=mode)) == better


@pytest.mark.parametrize(
    ("values", "mode", "reached"),
    [
        ([1.0, 0.6, 0.4, 0.3], "min", 20),
        ([1.0, 0.4, 0.6, 0.5], "min", 30),  # it left again; at the target counts
        ([1.0, 0.4, 0.3, 0.51], "min", None),
        ([0.4, 0.4, 0.4, 0.4], "min", 0),
        ([0.4, math.nan, 0.4, 0.4], "min", 20),
        ([0.4, 0.4, 0.4, math.nan], "min", None),
        ([0.1, 0.6, 0.4, 0.5], "max", 30),
        ([], "min", None),
    ],
)
def test_images_to_target(values: list[float], mode: Any, reached: int | None) -> None:
    series = [(10 * index, found) for index, found in enumerate(values)]
    assert images_to_target(series, target=0.5, mode=mode) == reached


@pytest.mark.parametrize(
    ("images", "seconds"), [(0, 0.0), (250, 7.5), (500, 15.0), (750, 17.5), (1000, 20.0), (1001, None)]
)
def test_seconds_at(images: float, seconds: float | None) -> None:
    assert seconds_at([(1000, 20.0), (500, 15.0)], images) == seconds
    assert seconds_at([], images) is None


# --- Bounds ------------------------------------------------------------------------------------------------


def test_bounds() -> None:
    bounds = (
        Bound(metric=LOSS, at_most=0.5),
        Bound(metric="eval/frechet", at_least=1.0),
        Bound(metric=LOSS, at_least=0.45, at_most=0.6),
    )
    found = record(metrics={LOSS: 0.4, "eval/frechet": 3.0})
    assert violations(found, bounds) == pytest.approx((-0.1, -2.0, 0.05))
    assert within(found, bounds[:2])
    assert not within(found, bounds)
    assert violations(record(metrics={LOSS: math.nan}), bounds) == (math.inf, math.inf, math.inf)
    assert within(found, ())


# --- Many points -------------------------------------------------------------------------------------------


def test_ranking_puts_apart_what_does_not_count() -> None:
    bound = [{"metric": "eval/frechet", "at_most": 5.0}]
    records = [
        *(
            record("worse", seed, 0.5 + 0.1 * seed, metrics={LOSS: 0.5, "eval/frechet": 1.0})
            for seed in (0, 1)
        ),
        *(record("better", seed, metrics={LOSS: 0.3 + seed / 5, "eval/frechet": 1.0}) for seed in (0, 1)),
        *(record("broken", seed, metrics={LOSS: 0.1, "eval/frechet": 9.0}) for seed in (0, 1)),
        record("stopped", 0, metrics={LOSS: 0.1, "eval/frechet": 1.0}),
        record("stopped", 1, state="stopped", images=300),
        record("half", 0, metrics={LOSS: 0.1, "eval/frechet": 1.0}),
        record("failed", 0, metrics={LOSS: 0.1, "eval/frechet": 1.0}),
        record("failed", 1, state="failed", failure="lost"),
    ]
    places = ranking(records, objective(bounds=bound))
    assert [(place.point, place.state) for place in places] == [
        ("better", "ranked"),
        ("worse", "ranked"),
        ("half", "partial"),
        ("broken", "infeasible"),
        ("stopped", "stopped"),
        ("failed", "failed"),
    ]
    best = places[0].mean
    assert best is not None
    assert (best.n, best.mean) == (2, pytest.approx(0.4))
    assert best.low is not None
    assert [place.front for place in places] == [True, False, False, False, False, False]


def test_a_penalty_has_no_interval() -> None:
    never = {LOSS: [(0, 1.0), (1000, 0.9)]}
    records = [record("a", 0), record("a", 1, curves=never), record("b", 0), record("b", 1)]
    first, second = ranking(records, objective("images"))
    assert (first.point, second.point) == ("b", "a")
    assert (second.censored, second.mean and (second.mean.mean, second.mean.low)) == (1, (1250.0, None))


def test_a_member_before_the_end_is_not_ranked() -> None:
    records = [record("m00-g00", images=500), record("m00-g01")]
    assert [(place.point, place.state) for place in ranking(records, objective())] == [
        ("m00-g01", "ranked"),
        ("m00-g00", "partial"),
    ]


def test_the_front_of_a_ranking() -> None:
    """Good at the loss, good at the distance, good at neither."""
    goals = (Goal(metric="eval/recall", mode="max"),)
    numbers = {"loss": (0.1, 0.5), "recall": (0.2, 0.9), "neither": (0.3, 0.4)}
    records = [
        record(name, metrics={LOSS: loss, "eval/recall": recall}) for name, (loss, recall) in numbers.items()
    ]
    places = ranking(records, objective(), goals)
    assert {place.point: place.front for place in places} == {"loss": True, "recall": True, "neither": False}
    assert places[0].goals == (0.1, 0.5)


def test_nothing_to_rank() -> None:
    assert ranking([], objective()) == ()


# --- Fronts ------------------------------------------------------------------------------------------------


def test_front() -> None:
    points = {"a": (1.0, 5.0), "b": (2.0, 6.0), "c": (2.0, 5.0), "same as a": (1.0, 5.0), "no": (math.nan, 9)}
    assert front(points, ["min", "max"]) == {"a", "b", "same as a"}
    assert front({}, ["min"]) == frozenset()


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_the_front_by_its_definition(points: dict[str, tuple[int, int]]) -> None:
    def beaten(one: tuple[int, int]) -> bool:
        return any(all(np.less_equal(other, one)) and other != one for other in points.values())

    assert front(points, ["min", "min"]) == {name for name, one in points.items() if not beaten(one)}
