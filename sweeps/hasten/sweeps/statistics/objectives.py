"""What a trial is worth by a study's objective, whether it keeps the bounds, and which points lead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from hasten.sweeps.records import TrialRecord
from hasten.sweeps.statistics import pareto as fronts
from hasten.sweeps.statistics.intervals import Estimate, mean_of
from hasten.sweeps.study import Bound, Goal, Objective
from hasten.trainers.errors import ConfigError
from hasten.trainers.tracker import SECONDS

Mode = Literal["min", "max"]
Curve = Sequence[tuple[int, float]]
"""``(images, value)`` of one metric, by images."""
State = Literal["ranked", "partial", "infeasible", "stopped", "failed"]

PENALTY: Final = 2.0
"""What never reached its target counts as this many budgets."""

_ORDER: Final[tuple[State, ...]] = ("ranked", "partial", "infeasible", "stopped", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A trial by its objective: a value of the metric, or the images or seconds that the target took.

    ``censored`` says that the target was not reached within the budget: then there is no ``value``. Neither
    a value nor censored is a trial that does not count: stopped, failed, or never measured.
    """

    value: float | None = None
    censored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One point of a search over its seeds.

    ``state`` is ``ranked`` when every seed that others have is there and finished within all bounds;
    ``partial`` points lack a seed, or are members of a population before the end. ``mean`` is that of
    :func:`for_search`, with its t interval where no seed is censored. ``goals`` are the objective's mean
    and that of each further goal; ``front`` says that no ranked point is better in all of them.
    """

    point: str
    state: State
    settings: dict[str, Any]
    records: tuple[TrialRecord, ...]
    mean: Estimate | None
    censored: int
    goals: tuple[float | None, ...]
    front: bool = False


def direction(objective: Objective) -> Mode:
    """Which values of the objective are better; fewer images or seconds always are."""
    return "min" if objective.measure in ("images", "seconds") else objective.mode


def value(record: TrialRecord, objective: Objective) -> Measured:
    """What a trial measured. One that diverged never reaches a target, and has no final or best value.

    Raises:
        ConfigError: the target is the baseline's quality, which a single record does not know.
    """
    curve = record.curves.get(objective.metric, [])
    counted = objective.measure in ("images", "seconds")
    if record.state != "finished":
        return Measured(censored=counted and record.failure == "diverged")
    if not counted:
        final = record.metrics.get(objective.metric, curve[-1][1] if curve else math.nan)
        known = [final] if objective.measure == "final" else [final, *(found for _, found in curve)]
        finite = [found for found in known if math.isfinite(found)]
        best = min if objective.mode == "min" else max
        return Measured(value=best(finite) if finite else None)
    if not isinstance(objective.target, int | float):
        raise ConfigError("objective.target", f"{objective.target!r} is not a number", "Give a number.")
    if not curve:
        return Measured()
    images = images_to_target(curve, target=objective.target, mode=objective.mode)
    if images is None:
        return Measured(censored=True)
    if objective.measure == "images":
        return Measured(value=float(images))
    return Measured(value=seconds_at(record.curves.get(SECONDS, []), images))


def for_search(record: TrialRecord, objective: Objective) -> float | None:
    """The one number that a searcher is told; None where there is nothing to learn from.

    A target that was not reached counts as ``PENALTY`` times what the whole budget takes: the penalized
    average runtime PAR2 of the SAT competitions (with 10 in ParamILS, Hutter et al. 2009). So a censored
    trial is worse than any other, and a search goes on from where some succeed. What diverged, or did not
    fit into memory, would do so again: it is infinitely bad. Other failures say nothing about settings.
    """
    measured = value(record, objective)
    if measured.censored:
        whole = record.total if objective.measure == "images" else _seconds_of_budget(record)
        return PENALTY * whole
    if measured.value is None and record.failure in ("diverged", "memory"):
        return math.inf if direction(objective) == "min" else -math.inf
    return measured.value


def images_to_target(series: Curve, *, target: float, mode: Mode = "min") -> int | None:
    """Images at the first evaluation from which the metric stays at or below ``target`` to the end.

    At or above it for ``mode="max"``; an evaluation at 0 images counts like any other. ``None`` is
    censored: the last value is on the wrong side, or is NaN, or there is no evaluation.
    """
    reached: int | None = None
    for images, found in sorted(series, key=lambda point: point[0], reverse=True):
        if not (found <= target if mode == "min" else found >= target):
            break
        reached = images
    return reached


def seconds_at(curve: Curve, images: float) -> float | None:
    """Seconds of training after so many images, linearly between the points that are known.

    ``None`` beyond the last of them; no images take no time.
    """
    points = [(0, 0.0), *sorted(curve)]
    if len(points) < 2 or images > points[-1][0]:
        return None
    return float(np.interp(images, [step for step, _ in points], [seconds for _, seconds in points]))


def violations(record: TrialRecord, bounds: Sequence[Bound]) -> tuple[float, ...]:
    """By how much the final metrics break each bound: above 0 is broken, as Optuna's constraints have it.

    A metric that was not measured, or is not a number, breaks its bound infinitely.
    """
    return tuple(_violation(record.metrics.get(bound.metric, math.nan), bound) for bound in bounds)


def within(record: TrialRecord, bounds: Sequence[Bound]) -> bool:
    """Whether the final metrics keep every bound."""
    return all(excess <= 0.0 for excess in violations(record, bounds))


def ranking(
    records: Sequence[TrialRecord],
    objective: Objective,
    pareto: Sequence[Goal] = (),
    *,
    alpha: float = 0.05,
) -> tuple[Place, ...]:
    """The points of a search, best first by their mean over seeds; those that do not count come last.

    A point counts only whole: one seed that failed, was stopped or broke a bound puts it apart, since the
    mean of the others would flatter it. Equal means keep the order of the records.
    """
    by_point: dict[str, list[TrialRecord]] = {}
    for record in records:
        by_point.setdefault(record.arm, []).append(record)
    seeds = {record.seed for record in records}
    places = [
        _place(name, tuple(found), objective, pareto, seeds=seeds, alpha=alpha)
        for name, found in by_point.items()
    ]
    ranked = {
        place.point: [math.nan if goal is None else goal for goal in place.goals]
        for place in places
        if place.state == "ranked"
    }
    on_front = fronts.front(ranked, [direction(objective), *(goal.mode for goal in pareto)])
    places = [replace(place, front=place.point in on_front) for place in places]
    sign = 1.0 if direction(objective) == "min" else -1.0
    return tuple(
        sorted(
            places,
            key=lambda place: (
                _ORDER.index(place.state),
                math.inf if place.mean is None else sign * place.mean.mean,
                -max(record.images for record in place.records),
            ),
        )
    )


def _place(
    point: str,
    records: tuple[TrialRecord, ...],
    objective: Objective,
    pareto: Sequence[Goal],
    *,
    seeds: set[int],
    alpha: float,
) -> Place:
    told = [found for record in records if (found := for_search(record, objective)) is not None]
    censored = sum(value(record, objective).censored for record in records)
    mean = mean_of(told, alpha=alpha)
    if mean is not None and censored:
        mean = Estimate(n=mean.n, mean=mean.mean)  # a penalty is not a measurement: it has no spread
    further = [mean_of(_finals(records, goal), alpha=alpha) for goal in pareto]
    return Place(
        point=point,
        state=_state(records, objective, seeds=seeds),
        settings=records[0].settings,
        records=records,
        mean=mean,
        censored=censored,
        goals=tuple(None if found is None else found.mean for found in (mean, *further)),
    )


def _state(records: Sequence[TrialRecord], objective: Objective, *, seeds: set[int]) -> State:
    states = {record.state for record in records}
    if "failed" in states:
        return "failed"
    if "stopped" in states:
        return "stopped"
    if not all(within(record, objective.bounds) for record in records):
        return "infeasible"
    whole = {record.seed for record in records if record.images >= record.total}
    known = all(for_search(record, objective) is not None for record in records)
    return "ranked" if whole == seeds and known else "partial"


def _finals(records: Sequence[TrialRecord], goal: Goal) -> list[float]:
    """A goal's final values, none of them where one is missing."""
    found = [record.metrics.get(goal.metric, math.nan) for record in records]
    return found if all(map(math.isfinite, found)) else []


def _violation(found: float, bound: Bound) -> float:
    if math.isnan(found):
        return math.inf
    above = -math.inf if bound.at_most is None else found - bound.at_most
    below = -math.inf if bound.at_least is None else bound.at_least - found
    return max(above, below)


def _seconds_of_budget(record: TrialRecord) -> float:
    """Seconds that the whole budget takes at the pace the trial had; infinite where it has none."""
    return record.seconds * record.total / record.images if record.images else math.inf
