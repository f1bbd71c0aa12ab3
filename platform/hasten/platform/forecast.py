"""What a study's plan comes to, before anything starts: work, rungs, what is shared, time and money."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass

from hasten.sweeps.conducting import limits, prefixes, stopping, stopping_check
from hasten.sweeps.conducting.limits import Estimate, Speed
from hasten.sweeps.conducting.stopping import Halving
from hasten.sweeps.plan import Plan
from hasten.sweeps.study import Asha, Hyperband, Pbt, StudySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """After so many ``images`` trials are judged; about ``left`` of all go on, None where nobody can say."""

    images: int
    left: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a plan comes to.

    ``images`` and ``updates`` are those of all trials, if none is stopped; ``shared`` images of them are not
    computed, since ``sharing`` trials go on from another's checkpoint. ``concurrent`` trials run at a time
    on this machine; ``estimate`` is None where no speed is known.
    """

    images: int
    updates: int
    shared: int
    sharing: int
    concurrent: int
    rungs: tuple[Rung, ...]
    estimate: Estimate | None
    notes: tuple[str, ...]


def forecast(plan: Plan, speed: Speed | None = None) -> Forecast:
    """What a plan comes to, with the speed of its trials where that is known.

    Raises:
        ConfigError: the study's stopping rule could never stop anybody.
    """
    study = plan.study
    shares = _shares(plan)
    known_updates = sum(-(-trial.images // trial.spec.optimizer.batch) for trial in plan.trials)
    rungs, notes = _rungs(plan)
    at_once = concurrent(study)
    return Forecast(
        images=plan.images,
        updates=round(known_updates * plan.total / len(plan.trials)),
        shared=sum(shares.values()),
        sharing=len(shares),
        concurrent=at_once,
        rungs=rungs,
        estimate=None if speed is None else _estimate(plan, speed, shares, at_once),
        notes=notes,
    )


def concurrent(study: StudySpec) -> int:
    """How many trials run at a time: what is asked for, or what this machine holds; only those that may."""
    asked, cores = study.execution.concurrent, os.cpu_count() or 1
    room = max(1, int(cores / (study.execution.workers * study.execution.cpus)))
    wanted = room if asked == "auto" else asked
    if isinstance(study.search, Pbt):
        return min(wanted, study.search.members)
    return min(wanted, study.ahead * len(study.seeds)) if study.adaptive else wanted


def _shares(plan: Plan) -> dict[str, int]:
    """The images that trials take over from another one, by trial."""
    if not plan.study.execution.share_prefixes:
        return {}
    return {name: donor.images for name, donor in prefixes.donors(plan.trials).items()}


def _estimate(plan: Plan, speed: Speed, shares: dict[str, int], at_once: int) -> Estimate:
    """All trials; those that are still to be proposed are taken to be like the known ones, in turn."""
    trials = list(itertools.islice(itertools.cycle(plan.trials), plan.total))
    # What a member of a population leaves to its parents and its children is not its own either.
    not_own = {number: trial.spec.budget.images - trial.images for number, trial in enumerate(trials)}
    for number, trial in enumerate(plan.trials):
        not_own[number] += shares.get(trial.name, 0)
    specs = [trial.spec for trial in trials]
    return limits.estimate(plan.study, specs, speed, concurrent=at_once, shared=not_own)


def _rungs(plan: Plan) -> tuple[tuple[Rung, ...], tuple[str, ...]]:
    """Where trials are judged, and how many are about to be left of all; notes of the stopping rule."""
    study, run = plan.study, plan.trials[0].spec
    if study.stopping is None:
        return (), ()
    notes = stopping_check.check(study.stopping, study.objective, run)
    total = run.budget.images
    evaluated = stopping_check.evaluations(run, stopping.metric_of(study.stopping, study.objective))
    marks = stopping.rule(study.stopping, study.objective).marks(total, evaluated)
    if not isinstance(study.stopping, Asha | Hyperband):
        return tuple(Rung(images=mark, left=None) for mark in marks), notes
    left = _left(study, study.stopping, plan, len(marks))
    return tuple(Rung(images=mark, left=each) for mark, each in zip(marks, left, strict=True)), notes


def _left(study: StudySpec, spec: Asha | Hyperband, plan: Plan, rungs: int) -> list[int]:
    """About how many trials go on after each rung: the best 1/reduction of each bracket, from its own on."""
    rule, seeds = stopping.rule(spec, study.objective), len(study.seeds)
    assert isinstance(rule, Halving), "these two halve"
    total = plan.trials[0].spec.budget.images
    brackets = [rule.bracket(number, total) for number in range(plan.total // seeds)]
    return [
        max(1, round(seeds * sum(spec.reduction ** -max(0, rung - bracket) for bracket in brackets)))
        for rung in range(1, rungs + 1)
    ]
