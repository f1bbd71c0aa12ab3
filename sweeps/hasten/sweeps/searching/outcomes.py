"""What the trials of one point say about its settings, over seeds: what a searcher learns from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hasten.sweeps.records import TrialRecord
from hasten.sweeps.space import Settings
from hasten.sweeps.statistics import objectives
from hasten.sweeps.study import Goal, Objective, StudySpec
from hasten.trainers.errors import ConfigError

Trials = Mapping[int, TrialRecord]
"""How the trials of one point ended, by seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One point, over its seeds.

    ``valued`` points have the mean of the objective, and of every further goal, in ``values``, and the mean
    excess over every bound in ``violations``. ``stopped`` ones have the mean ``curve`` until then, by images.
    ``hopeless`` ones diverged or did not fit into memory, and would again. Of the others nothing is known: a
    lost node says nothing about settings.
    """

    state: Literal["valued", "stopped", "hopeless", "unknown"]
    values: tuple[float, ...] = ()
    violations: tuple[float, ...] = ()
    curve: Mapping[int, float]


def goals(study: StudySpec) -> tuple[Objective, ...]:
    """The objective, and every further goal as one by final values."""
    further = (Objective(metric=goal.metric, mode=goal.mode, target=None) for goal in study.pareto)
    return (study.objective, *further)


def outcome(study: StudySpec, trials: Trials) -> Outcome:
    """What is learnt from a point. A seed that is unknown, stopped or hopeless makes the whole point so.

    Raises:
        ConfigError: a run ended well, and has not measured what the study is about.
    """
    records = list(trials.values())
    for record, goal in itertools.product(records, goals(study)):
        if record.state == "finished":
            require_measured(record, goal)
    curve = mean_curve(records, study.objective.metric)
    told = [[objectives.for_search(record, goal) for record in records] for goal in goals(study)]
    if any(record.state == "failed" and record.failure not in ("diverged", "memory") for record in records):
        return Outcome(state="unknown", curve=curve)
    if any(value is not None and math.isinf(value) for each in told for value in each):
        return Outcome(state="hopeless", curve=curve)
    if any(record.state == "stopped" for record in records):
        return Outcome(state="stopped", curve=curve)
    known = [[value for value in each if value is not None] for each in told]
    if not all(len(each) == len(records) for each in known):
        return Outcome(state="unknown", curve=curve)
    excess = [objectives.violations(record, study.objective.bounds) for record in records]
    return Outcome(
        state="valued",
        values=tuple(float(np.mean(each)) for each in known),
        violations=tuple(map(float, np.mean(excess, axis=0))),
        curve=curve,
    )


def require_measured(record: TrialRecord, goal: Goal) -> None:
    """Refuse an objective that the runs do not measure.

    Raises:
        ConfigError: the record's curves do not have it.
    """
    if goal.metric not in record.curves and goal.metric not in record.metrics:
        measured = ", ".join(sorted(name for name in record.curves if name.startswith("eval/")))
        problem = f"{goal.metric} was not measured by {record.run}"
        raise ConfigError("objective.metric", problem, f"It measured {measured or 'nothing'}.")


def settings_of(trials: Trials) -> Settings:
    """The settings of a point, as its trials keep them."""
    return dict(next(iter(trials.values())).settings)


def by_point(records: Iterable[TrialRecord]) -> dict[str, dict[int, TrialRecord]]:
    """Records by the name of their point, and by seed, in the order in which they are given."""
    points: dict[str, dict[int, TrialRecord]] = {}
    for record in records:
        points.setdefault(record.arm, {})[record.seed] = record
    return points


def mean_curve(records: Sequence[TrialRecord], metric: str) -> dict[int, float]:
    """``metric`` by images, averaged over the trials, where all of them have it."""
    curves = [dict(record.curves.get(metric, [])) for record in records]
    common = set.intersection(*map(set, curves)) if curves else set()
    return {images: float(np.mean([curve[images] for curve in curves])) for images in sorted(common)}
