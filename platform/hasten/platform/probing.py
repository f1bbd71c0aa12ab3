"""Before a study starts: twenty real updates and each kind of evaluation, and so how long its trials take.

Everything happens in this process and in a folder that is thrown away; of the store only data is read.
Trials are alike in speed when they differ only in rates, shapes of schedules and seeds; of those that are
alike the first one is measured.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import torch
from rich.console import Console

from hasten.platform import importing, progress
from hasten.platform.connection import connected
from hasten.sweeps.conducting.limits import Speed
from hasten.sweeps.plan import Plan
from hasten.sweeps.statistics.intervals import mean_of
from hasten.trainers import session
from hasten.trainers.datasets import sources
from hasten.trainers.datasets.data import BUILT_IN
from hasten.trainers.errors import ConfigError
from hasten.trainers.job import Job
from hasten.trainers.metrics.evaluation import Evaluator
from hasten.trainers.models.architectures import Simulated
from hasten.trainers.models.networks import Network
from hasten.trainers.specs import RunSpec, flatten
from hasten.trainers.tracker import NullTracker
from hasten.trainers.worker import Worker

STEPS: Final = 20
WARM_UP: Final = 3
MOST_KINDS: Final = 6  # of trials; the rest is taken to be like the mean of these
_NO_TICK: Final = 10_000  # updates in the probed budget: it reports nothing in its first hundredth
_SAMPLES: Final = 256
_REFERENCE: Final = 256
_ALPHA: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One kind of trial: what sets it apart from the others, how many there are, and its speed.

    ``low`` and ``high`` hold the mean seconds an image with 95 % confidence, as far as these updates tell.
    """

    differs: str
    trials: int
    speed: Speed
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How fast a plan's trials are on this machine: their mean, and each kind by itself."""

    speed: Speed
    low: float
    high: float
    kinds: tuple[Measured, ...]
    machine: str
    notes: tuple[str, ...] = ()


def probe(plan: Plan, *, console: Console) -> Probe:
    """Measure a plan's trials, those that are known beforehand.

    Raises:
        ConfigError: the data is not there or does not fit, or the trials need a device that is not there.
        Fault: training diverged, or the data cannot be read.
    """
    kinds: dict[str, list[RunSpec]] = {}
    for trial in plan.trials:
        kinds.setdefault(kind(trial.spec), []).append(trial.spec)
    chosen = _spread(list(kinds), MOST_KINDS)
    names = _names([kinds[key][0] for key in chosen])
    measured = []
    with tempfile.TemporaryDirectory(prefix="hasten-probe-") as folder:
        data = {source: _data_store(source, folder, console) for source in _sources(plan)}
        with progress.steps(console, "probing", names) as steps:
            for key, name in zip(chosen, steps, strict=True):
                spec = kinds[key][0]
                speed, low, high = measure(spec, sources.bind(spec, data[spec.data.source]), folder)
                measured.append(
                    Measured(differs=name, trials=len(kinds[key]), speed=speed, low=low, high=high)
                )
    return _together(plan, measured, others=len(kinds) - len(chosen))


def kind(spec: RunSpec) -> str:
    """What a run's speed depends on, as a key: runs with equal keys take equally long an image."""
    apart = {"name", "start", "initial", "execution", "budget", "diffusion", "momentum"}
    known = spec.model_dump(mode="json", exclude=apart)
    optimizer = {name: known["optimizer"][name] for name in ("kind", "batch")}
    optimizer["clip"] = known["optimizer"]["clip"] is not None
    known["optimizer"] = optimizer
    for name in ("curriculum", "weighting"):
        known[name] = known[name]["kind"]
    return json.dumps(known, sort_keys=True)


def measure(spec: RunSpec, bound: Job, folder: str) -> tuple[Speed, float, float]:
    """The speed of one run, and the 95 % interval of its seconds an image.

    With several workers it is that of one of them with its share of the batch, without their exchange. A
    simulated run takes as long as its recipe says.

    Args:
        spec: the run.
        bound: the same, bound to its data.
        folder: to write to.
    """
    if isinstance(spec.model, Simulated):
        simulated = spec.model.seconds / spec.budget.images
        return Speed(seconds_per_image=simulated), simulated, simulated
    device = _device(spec)
    short = _shortened(spec)
    job = Job(spec=short, data_uri=bound.data_uri, data_digest=bound.data_digest, storage_uri=folder)
    clock = _Stopwatch(device)
    for _ in session.run(job, worker=Worker(device=device), track=NullTracker(), stop=clock):
        pass
    seconds = [step / spec.optimizer.batch for step in clock.steps()]
    each = mean_of(seconds, alpha=_ALPHA)
    assert each is not None
    assert each.low is not None
    assert each.high is not None
    evaluator, network = session.alone(_small(job), str(device))
    raw = 2 if spec.eval.raw else 1
    workers = spec.execution.most
    _, loss = _twice(evaluator.losses, network, device)
    _, sheet = _twice(evaluator.sheet, network, device)
    reference, samples = _samples_of(spec, evaluator, network, bound, device)
    speed = Speed(
        seconds_per_image=each.mean,
        startup_seconds=max(0.0, clock.first - loss * raw - sheet) + reference,
        evaluation_seconds=loss * raw / workers,
        sampling_seconds=samples * raw / workers,
        sheet_seconds=sheet / workers,
    )
    return speed, max(0.0, each.low), each.high


class _Stopwatch:
    """Asked after each update whether to stop, it takes the time, and says so after ``WARM_UP + STEPS``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = time.perf_counter()
        self._times: list[float] = []

    def __call__(self) -> bool:
        _synchronize(self._device)
        self._times.append(time.perf_counter())
        return len(self._times) >= WARM_UP + STEPS

    @property
    def first(self) -> float:
        """Seconds until the first update was done, without the update: an untimely one, which compiles."""
        return max(0.0, self._times[WARM_UP - 1] - self._began - WARM_UP * sum(self.steps()) / STEPS)

    def steps(self) -> list[float]:
        """Seconds of each update after the warm-up."""
        counted = self._times[WARM_UP - 1 :]
        return [after - before for before, after in itertools.pairwise(counted)]


def _samples_of(
    spec: RunSpec, evaluator: Evaluator, network: Network, bound: Job, device: torch.device
) -> tuple[float, float]:
    """Seconds for the reference, once a run, and for one whole evaluation of samples: from a smaller one."""
    wanted = spec.eval.samples
    first, again = _twice(evaluator.quality, network, device)
    images = sources.find(spec, bound.storage_uri).images
    reference = wanted.reference if images is None else min(wanted.reference, images)
    return (
        (first - again) * max(1.0, reference / _REFERENCE),
        again * wanted.images / min(wanted.images, _SAMPLES),
    )


def _twice(
    evaluate: Callable[[Network], object], network: Network, device: torch.device
) -> tuple[float, float]:
    """Seconds of the first call, which prepares things, and of the second; the first is no shorter."""
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        evaluate(network)
        _synchronize(device)
        taken.append(time.perf_counter() - began)
    return max(taken), taken[1]


def _shortened(spec: RunSpec) -> RunSpec:
    """The run with one worker's share of a batch, and a budget of which the probe sees only the beginning."""
    share = -(-spec.optimizer.batch // spec.execution.most)
    alone = {"launcher": "local", "workers": 1, "evaluation": "inline", "checkpoint_every": 1.0}
    return spec.model_copy(
        update={
            "start": None,
            "budget": spec.budget.model_copy(update={"images": share * _NO_TICK}),
            "optimizer": spec.optimizer.model_copy(update={"batch": share}),
            "execution": spec.execution.model_copy(update=alone),
        }
    )


def _small(job: Job) -> Job:
    """The job with as few samples, compared with as few images, as tell how long more of them take."""
    wanted = job.spec.eval.samples
    few = {"images": min(wanted.images, _SAMPLES), "reference": min(wanted.reference, _REFERENCE)}
    changed = job.spec.eval.model_copy(update={"samples": wanted.model_copy(update=few)})
    return Job(
        spec=job.spec.model_copy(update={"eval": changed}),
        data_uri=job.data_uri,
        data_digest=job.data_digest,
        storage_uri=job.storage_uri,
    )


def _device(spec: RunSpec) -> torch.device:
    if spec.execution.gpus == 0.0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        problem = "the trials train on GPUs, and this machine has none: what it measured would say nothing"
        raise ConfigError("--probe", problem, "Run it on a machine like those of the cluster.")
    return torch.device("cuda")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _sources(plan: Plan) -> list[str]:
    return sorted({trial.spec.data.source for trial in plan.trials})


def _data_store(source: str, folder: str, console: Console) -> str:
    """The store that has a data set: what comes with hasten is made anew, so that nothing has to be there."""
    if source in BUILT_IN:
        importing.ensure(source, folder)
        return folder
    return folder if sources.is_mixture(source) else connected(console).storage_uri


def _spread(keys: Sequence[str], most: int) -> list[str]:
    """At most so many of the keys, evenly from the first to the last."""
    if len(keys) <= most:
        return list(keys)
    return [keys[round(place * (len(keys) - 1) / (most - 1))] for place in range(most)]


def _names(specs: Sequence[RunSpec]) -> list[str]:
    """What sets each of several runs apart from the others, of the things that its speed depends on."""
    flat = [flatten(json.loads(kind(spec))) for spec in specs]
    keys = sorted(
        {key for one in flat for key in one if any(key not in each or each[key] != one[key] for each in flat)}
    )
    return [", ".join(f"{key}={one[key]}" for key in keys if key in one) or "all trials" for one in flat]


def _together(plan: Plan, kinds: Sequence[Measured], *, others: int) -> Probe:
    """The mean over trials; with the interval that it has if every kind is at the same end of its own."""
    count = sum(one.trials for one in kinds)

    def mean(values: Sequence[float]) -> float:
        return sum(one.trials * value for one, value in zip(kinds, values, strict=True)) / count

    speeds = [asdict(one.speed) for one in kinds]
    notes = ["measured in this process on this machine; the cluster's may be faster or slower"]
    if others:
        notes.append(f"{others} more kinds of trials are taken to be like the mean of these")
    if plan.study.execution.workers > 1:
        notes.append("without the exchange of gradients between workers")
    return Probe(
        speed=Speed(**{name: mean([speed[name] for speed in speeds]) for name in speeds[0]}),
        low=mean([one.low for one in kinds]),
        high=mean([one.high for one in kinds]),
        kinds=tuple(kinds),
        machine=_machine(plan.trials[0].spec),
        notes=tuple(notes),
    )


def _machine(spec: RunSpec) -> str:
    if spec.execution.gpus:
        return torch.cuda.get_device_name()
    return f"{platform.machine()} with {os.cpu_count()} cores, {spec.execution.threads} thread(s) a trial"
