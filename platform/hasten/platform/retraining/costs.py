"""What a training will cost, by what one like it took before or by twenty of its updates."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

from hasten.platform import probing
from hasten.platform.registry import RUN_URI, Version
from hasten.platform.retraining.pipeline import Limits
from hasten.platform.saying import duration
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.errors import ConfigError
from hasten.trainers.job import Job
from hasten.trainers.records import RunResult
from hasten.trainers.specs import RunSpec

_LATEST = 5  # versions whose runs are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of ``runs`` trainings: hours one after another, and of how many devices.

    ``gpu_hours`` are worker-hours where the recipe asks for no GPU. ``basis`` says how it is known.
    """

    runs: int
    hours: float
    gpu_hours: float
    on_gpus: bool
    basis: str

    def __str__(self) -> str:
        what = "GPU-hours" if self.on_gpus else "worker-hours"
        return f"{duration(self.hours * 3600.0)}, {self.gpu_hours:.2g} {what}, {self.basis}"


def known(job: Job, versions: Iterable[Version], *, runs: int = 1) -> Cost | None:
    """The cost of a run by what an equal kind of run took that made a version; None where there is none."""
    wanted = _kind(job.spec)
    for version in list(versions)[:_LATEST]:
        result = RunStore(version.tags[RUN_URI]).result() if RUN_URI in version.tags else None
        if result is not None and _kind(RunSpec.model_validate(result.spec)) == wanted:
            seconds = _seconds(result) / result.images
            return _cost(job.spec, seconds, runs, f"by the run of version {version.number}")
    return None


def probed(job: Job, *, runs: int = 1) -> Cost:
    """The cost of a run by twenty of its updates on this machine.

    Raises:
        ConfigError: it needs a device that is not there.
        Fault: it diverged, or its data cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="hasten-probe-") as folder:
        speed, _, _ = probing.measure(job.spec, job, folder)
    return _cost(job.spec, speed.seconds_per_image, runs, "by twenty updates on this machine")


def require(limits: Limits, cost: Cost) -> None:
    """Refuse what is too dear before it starts.

    Raises:
        ConfigError: with the numbers.
    """
    if limits.gpu_hours is not None and cost.gpu_hours > limits.gpu_hours:
        problem = f"{limits.gpu_hours:g} are allowed, but it needs about {cost}"
        raise ConfigError("limits.gpu_hours", problem, "Raise the limit, or lower budget.images.")


def _kind(spec: RunSpec) -> str:
    """What speed depends on; the data's name is no part of it."""
    return probing.kind(spec.model_copy(update={"data": spec.data.model_copy(update={"source": "any"})}))


def _seconds(result: RunResult) -> float:
    """With evaluation and checkpoints, where the run was never interrupted."""
    return result.seconds if result.resumed_from else max(result.seconds, result.wall_seconds)


def _cost(spec: RunSpec, seconds_per_image: float, runs: int, basis: str) -> Cost:
    hours = runs * spec.budget.images * seconds_per_image / 3600.0
    each = spec.execution.gpus or 1.0
    return Cost(
        runs=runs,
        hours=hours,
        gpu_hours=hours * spec.execution.least * each,
        on_gpus=spec.execution.gpus > 0.0,
        basis=basis,
    )
