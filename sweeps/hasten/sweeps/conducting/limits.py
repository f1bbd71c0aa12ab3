"""What a study may cost, what it has cost so far, and what it is going to cost."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import BaseModel, ConfigDict

from hasten.sweeps.study import Limits, Prices, StudySpec
from hasten.trainers.specs import RunSpec

_HOUR: Final = 3600.0


class Spent(BaseModel):
    """What a study has used: hours of CPUs and GPUs that its trials held, whether or not they got anywhere.

    These count over all commands; ``hours`` is wall-clock time of this one. ``cost`` is in the study's
    currency. ``trials`` are over.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    cost: float = 0.0
    trials: int = 0
    hours: float = 0.0


class Meter:
    """Counts what trials hold, while they hold it.

    Args:
        cpus: of one trial.
        gpus: of one trial.
        prices: of an hour.
        earlier: what earlier commands have used.
        clock: seconds; only differences matter.
    """

    def __init__(
        self, *, cpus: float, gpus: float, prices: Prices | None, earlier: Spent, clock: Callable[[], float]
    ) -> None:
        self._cpus = cpus
        self._gpus = gpus
        self._prices = prices or Prices()
        self._earlier = earlier
        self._clock = clock
        self._began = clock()
        self._running: dict[str, float] = {}
        self._starts = 0.0  # the sum of all times in ``_running``
        self._seconds = 0.0  # of attempts that have ended

    def start(self, trial: str) -> None:
        self._running[trial] = self._clock() - self._began
        self._starts += self._running[trial]

    def end(self, trial: str, seconds: float) -> None:
        """``seconds`` is for how long it held its resources, by whoever ran it."""
        self._starts -= self._running.pop(trial)
        self._seconds += seconds

    def held(self, trial: str) -> float:
        """For how many seconds a trial has been running; 0 when it is not."""
        return self._clock() - self._began - self._running[trial] if trial in self._running else 0.0

    def spent(self, *, trials: int) -> Spent:
        """So far, when ``trials`` are over."""
        passed = self._clock() - self._began
        hours = (self._seconds + len(self._running) * passed - self._starts) / _HOUR
        cpu_hours = self._earlier.cpu_hours + hours * self._cpus
        gpu_hours = self._earlier.gpu_hours + hours * self._gpus
        return Spent(
            cpu_hours=cpu_hours,
            gpu_hours=gpu_hours,
            cost=_cost(self._prices, cpu_hours, gpu_hours),
            trials=trials,
            hours=passed / _HOUR,
        )


def spent_before(noted: Spent, held: Iterable[tuple[float, float, float]]) -> Spent:
    """What earlier commands have used: as ``noted`` at the last sign of life, or as trials say.

    ``held`` has seconds, CPUs and GPUs of each trial that is known. That is newer than the note where the
    driver was killed; the note knows more where a trial's record was replaced.
    """
    seconds = list(held)
    return Spent(
        cpu_hours=max(noted.cpu_hours, sum(each * cpus for each, cpus, _ in seconds) / _HOUR),
        gpu_hours=max(noted.gpu_hours, sum(each * gpus for each, _, gpus in seconds) / _HOUR),
    )


def exceeded(limits: Limits, prices: Prices | None, spent: Spent) -> str | None:
    """The limit that is reached, as a sentence with what to do; None while there is none."""
    currency = (prices or Prices()).currency
    for key, limit, used, unit in (
        ("trials", limits.trials, spent.trials, " trials"),
        ("hours", limits.hours, spent.hours, " hours"),
        ("cpu_hours", limits.cpu_hours, spent.cpu_hours, " CPU-hours"),
        ("gpu_hours", limits.gpu_hours, spent.gpu_hours, " GPU-hours"),
        ("cost", limits.cost, spent.cost, f" {currency}"),
    ):
        if limit is not None and used >= limit:
            remedy = "go on with the same command" if key == "hours" else f"raise limits.{key} to go on"
            return f"limits.{key}: {used:.4g} of {limit:g}{unit} are used; {remedy}"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast trials run on their resources, as a probe measured it.

    Seconds for training on one image; from a trial's start to its first image; for one evaluation of the
    held-out loss, of samples, and for one sheet of samples.
    """

    seconds_per_image: float
    startup_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    sampling_seconds: float = 0.0
    sheet_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What trials are going to take: ``seconds`` one of them on average, ``hours`` all, by the clock.

    ``notes`` say what the numbers do not know: stopping makes it cheaper, a limit ends it earlier.
    """

    trials: int
    seconds: float
    concurrent: int
    hours: float
    cpu_hours: float
    gpu_hours: float
    cost: float
    notes: tuple[str, ...] = ()


def estimate(
    study: StudySpec,
    specs: Sequence[RunSpec],
    speed: Speed,
    *,
    concurrent: int,
    shared: Mapping[int, int] | None = None,
) -> Estimate:
    """What the trials ``specs`` take, in the order in which they start, ``concurrent`` at a time.

    ``shared`` maps the place of a trial in ``specs`` to how many images it takes over from another one. All
    trials are counted in full, so that a study with stopping costs at most this.
    """
    shared = shared or {}
    seconds = [
        trial_seconds(spec, speed, shared_images=shared.get(index, 0)) for index, spec in enumerate(specs)
    ]
    hours = sum(seconds) / _HOUR
    workers = study.execution.workers
    cpu_hours, gpu_hours = hours * workers * study.execution.cpus, hours * workers * study.execution.gpus
    found = Estimate(
        trials=len(specs),
        seconds=sum(seconds) / len(specs) if specs else 0.0,
        concurrent=concurrent,
        hours=_by_the_clock(seconds, concurrent) / _HOUR,
        cpu_hours=cpu_hours,
        gpu_hours=gpu_hours,
        cost=_cost(study.prices or Prices(), cpu_hours, gpu_hours),
    )
    return _with_notes(study, found)


def trial_seconds(spec: RunSpec, speed: Speed, *, shared_images: int = 0) -> float:
    """How long one trial takes: training and evaluations after the first ``shared_images``."""
    total = spec.budget.images
    left = 1.0 - shared_images / total
    return (
        speed.startup_seconds
        + speed.seconds_per_image * (total - shared_images)
        + speed.evaluation_seconds * left / spec.eval.loss.every
        + speed.sampling_seconds * sum(at * total > shared_images for at in spec.eval.samples.at)
        + speed.sheet_seconds * left / spec.eval.grid.every
    )


def _by_the_clock(seconds: Iterable[float], concurrent: int) -> float:
    """When the last trial ends, if each starts as soon as one of ``concurrent`` places is free."""
    places = [0.0] * concurrent
    for each in seconds:
        heapq.heapreplace(places, places[0] + each)
    return max(places)


def _with_notes(study: StudySpec, found: Estimate) -> Estimate:
    notes = []
    if study.stopping is not None:
        notes.append(f"at most: trials that {study.stopping.kind} stops cost less")
    needed = Spent(
        cpu_hours=found.cpu_hours,
        gpu_hours=found.gpu_hours,
        cost=found.cost,
        trials=found.trials,
        hours=found.hours,
    )
    for key in ("hours", "cpu_hours", "gpu_hours", "cost", "trials"):
        limit, need = getattr(study.limits, key), getattr(needed, key)
        if limit is not None and need > limit:
            notes.append(f"limits.{key} ({limit:g}) is reached before the end, which needs {need:.4g}")
    return replace(found, notes=tuple(notes))


def _cost(prices: Prices, cpu_hours: float, gpu_hours: float) -> float:
    return cpu_hours * prices.cpu_hour + gpu_hours * prices.gpu_hour
