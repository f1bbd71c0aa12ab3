"""Population based training (arXiv 1711.09846) in generations: synchronous, and so repeatable.

After each interval all members wait for each other. The worst take over weights and settings of one of the
best, and change the settings. A member's generation is a run of its own that starts from another run's
checkpoint, so that whatever is killed, the same population comes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from hasten.sweeps import space as spaces
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching.listed import Draws
from hasten.sweeps.searching.outcomes import Trials, require_measured
from hasten.sweeps.searching.possible import Base, Possible
from hasten.sweeps.searching.proposals import Point
from hasten.sweeps.space import Distribution, Settings
from hasten.sweeps.study import Pbt, StudySpec
from hasten.trainers import config, randomness
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.specs import RunSpec, Start
from hasten.trainers.tracker import EVAL_EXCESS, EVAL_LOSS

_IN_FLIGHT: Final = (
    *("curriculum", "momentum", "weighting"),
    *("optimizer.lr", "optimizer.schedule", "optimizer.weight_decay", "optimizer.clip", "optimizer.beta2"),
)
_STEPS: Final = (0.8, 1.2)  # what a setting is multiplied by, as in the paper
_TRIES: Final = 64  # until changed settings are possible; then they stay as they were


class Population:
    """Point ``generation * members + member``, named ``m03-g02``.

    Raises:
        ConfigError: a key cannot change in mid-run, or the objective is not measured after each interval.
    """

    def __init__(self, study: StudySpec, search: Pbt, base: Base, possible: Possible) -> None:
        _check_keys(study)
        self._first = Draws(study.space, spaces.quasi, search.seed, possible)
        recipe = config.validate(RunSpec, config.override(base, self._first[0]))
        _check_marks(study, search, recipe)
        self._study = study
        self._search = search
        self._possible = possible
        self._generations = round(1.0 / search.interval)
        self._budget = recipe.budget.images
        self._batch = recipe.optimizer.batch

    @property
    def count(self) -> int:
        return self._generations * self._search.members

    def needs(self, number: int) -> int:
        return number - number % self._search.members

    def point(self, number: int, outcomes: Sequence[Trials]) -> Point:
        generation, member = divmod(number, self._search.members)
        if generation == 0:
            return self._point(number, self._first[member])
        before = [_only(trials) for trials in outcomes[: self.needs(number)]][-self._search.members :]
        donor = self._donors(before, generation)[member]
        settings = dict(before[donor].settings)
        if donor != member:
            settings = self._changed(settings, number)
        return self._point(number, settings, before[donor])

    def _point(self, number: int, settings: Settings, donor: TrialRecord | None = None) -> Point:
        generation, member = divmod(number, self._search.members)
        return Point(
            number=number,
            name=f"m{member:02d}-g{generation:02d}",
            settings=settings,
            start=Start(run=donor.run, images=donor.images) if donor else None,
            until=self._until(generation),
            parent=donor.arm if donor else None,
        )

    def _until(self, generation: int) -> int:
        """Where a generation ends: at the first whole batch at or after its share of the budget."""
        if generation == self._generations - 1:
            return self._budget
        mark = round(self._search.interval * (generation + 1) * self._budget)
        return min(math.ceil(mark / self._batch) * self._batch, self._budget)

    def _donors(self, before: Sequence[TrialRecord], generation: int) -> list[int]:
        """Whose weights each member goes on with: its own, or in the worst quantile those of one of the best.

        A member that failed has none to go on with, however many failed.
        """
        ranked = sorted(range(len(before)), key=lambda member: (self._badness(before[member]), member))
        alive = [member for member in ranked if before[member].state == "finished"]
        if not alive:
            problem = f"all members failed in generation {generation - 1}: {before[0].error or 'no result'}"
            raise Fault(self._study.name, problem, "Narrow the space; the trials' errors say more.")
        share = max(1, int(self._search.quantile * len(before)))
        best = alive[:share]
        replaced = {*ranked[-share:], *(set(ranked) - set(alive))} - set(best)
        drawn = self._uniform("donor", generation, range(len(before)))
        return [
            best[int(drawn[member] * len(best))] if member in replaced else member
            for member in range(len(before))
        ]

    def _badness(self, record: TrialRecord) -> float:
        """The objective at the end of a generation, less is better; infinite for a member that failed."""
        if record.state != "finished":
            return math.inf
        require_measured(record, self._study.objective)
        curve = record.curves.get(self._study.objective.metric, [])
        if not curve or math.isnan(value := curve[-1][1]):
            return math.inf
        return value if self._study.objective.mode == "min" else -value

    def _changed(self, settings: Settings, number: int) -> Settings:
        """The donor's settings, each drawn anew or moved a little; keys that come into being are drawn."""
        for attempt in range(_TRIES):
            changed: Settings = {}
            for key in spaces.in_order(self._study.space):
                distribution = self._study.space[key]
                if not spaces.holds(distribution.when, changed):
                    continue
                anew, draw, upward = self._uniform(f"change/{number}/{key}", attempt, range(3))
                if key not in settings or anew < self._search.resample:
                    changed[key] = distribution.at(draw)
                else:
                    changed[key] = moved(distribution, settings[key], up=bool(upward >= 0.5))
            if self._possible(changed):
                return changed
        return settings

    def _uniform(self, what: str, block: int, indices: range) -> list[float]:
        numbers = np.array(indices, dtype=np.int64)
        return [float(u) for u in randomness.uniform(self._search.seed, f"pbt/{what}/{block}", numbers)]


def moved(distribution: Distribution, value: Any, *, up: bool) -> Any:
    """A setting moved a little: a choice to its neighbour, a number times 0.8 or 1.2 within its range.

    Numbers that come in steps, and whole ones, move by at least one. At an end a choice turns back.
    """
    if distribution.choice is not None:
        last = len(distribution.choice) - 1
        place = int(distribution.quantile(value) * (last + 1))
        neighbour = place + (1 if up else -1)
        if not 0 <= neighbour <= last:
            neighbour = place - (1 if up else -1)
        return distribution.choice[min(max(neighbour, 0), last)]
    low, high = distribution.extremes()
    target = value * _STEPS[up]
    step = distribution.step or float(distribution.whole)
    if step:
        direction = target - value or _STEPS[up] - 1.0
        target = value + math.copysign(max(1, round(abs(target - value) / step)) * step, direction)
    target = min(max(target, low), high)
    if distribution.step is not None:
        return distribution.at(distribution.quantile(target))
    return round(target) if distribution.whole else target


def _only(trials: Trials) -> TrialRecord:
    """A population has one seed."""
    return next(iter(trials.values()))


def _check_keys(study: StudySpec) -> None:
    for key in study.space:
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in _IN_FLIGHT):
            raise ConfigError(
                f"space.{key}",
                "cannot change while a network trains, as members of a population do",
                f"Use search.kind: optuna, or sweep {', '.join(_IN_FLIGHT)}.",
            )


def _check_marks(study: StudySpec, search: Pbt, recipe: RunSpec) -> None:
    """Refuse intervals at whose end the objective is not measured."""
    metric = study.objective.metric
    ends = [search.interval * number for number in range(1, round(1.0 / search.interval) + 1)]
    if metric.startswith((EVAL_LOSS, EVAL_EXCESS)):
        every = recipe.eval.loss.every
        missed = [end for end in ends[:-1] if abs(end / every - round(end / every)) > 1e-6]
        remedy = f"{metric} is measured at multiples of eval.loss.every, {every:g} of the budget."
    else:
        missed = [end for end in ends if all(abs(end - at) > 1e-6 for at in recipe.eval.samples.at)]
        remedy = f"{metric} is measured at eval.samples.at, {list(recipe.eval.samples.at)} of the budget."
    if missed:
        problem = f"members are compared after {missed[0]:g} of the budget, where {metric} is not measured"
        raise ConfigError("search.interval", problem, remedy)
