"""How long trials compute the same, so that one can go on from another's checkpoint: exactly, batch by batch.

Runs of one seed that differ in schedules only (curriculum, weighting, momentum, learning rate) do the same
until the first batch in which a schedule has another value. All of the trainer's schedules are functions of
progress; here they are evaluated at every batch, in the loop's own order of operations, and compared bit by
bit. Also compared is what a run tells of its schedules after a batch, because that is kept with the
checkpoint: so runs whose rates part at some batch share all but the batch before it. A curriculum that learns
from the losses agrees only with itself.

"Agrees until" is an ultrametric: of three runs, two part first and at once from the third. So trials hang in
a tree, each at the trial and the batch where it parts from it, and a new one finds its place by following one
branch.

Evaluating a schedule takes about a microsecond a batch, and is done once for trials that have it in common:
3 s for a million batches, nothing to speak of for most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hasten.sweeps.plan import Trial
from hasten.trainers import curriculum, diffusion, learning_rate, momentum, weighting
from hasten.trainers.curriculum import Curriculum
from hasten.trainers.diffusion import Diffusion, Edm
from hasten.trainers.learning_rate import LearningRate
from hasten.trainers.momentum import Momentum
from hasten.trainers.specs import RunSpec
from hasten.trainers.weighting import Twin, Weighting

Rows = NDArray[np.int64]

_CHUNK: Final = 128  # batches that are evaluated together: most trials part at the first
_KEPT: Final = 16_384  # chunks that are remembered, of 1 to 5 KiB
_SCHEDULED: Final[Mapping[str, Any]] = {
    "name": True,
    "curriculum": True,
    "weighting": True,
    "momentum": True,
    "optimizer": {"lr", "schedule", "warmup"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    """The trial from which another one goes on after ``images``, a multiple of the batch."""

    trial: str
    images: int


def agree_until(first: RunSpec, second: RunSpec) -> int:
    """After how many images the runs still have the same state: a multiple of the batch, or the whole budget.

    At most one batch too few: where rates part, see the module. 0 for runs that differ in anything but
    schedules, also in how they are executed, and for those that start from another run.
    """
    if first.start or second.start or _the_rest(first) != _the_rest(second):
        return 0
    grid = _Grid.of(first)
    return grid.images(_parting(first, second, 0, grid.batches))


def donors(trials: Sequence[Trial], *, least: float = 0.05) -> dict[str, Donor]:
    """For each trial that can go on from an earlier one, in order of the plan: from which, and where.

    It is the earliest of those that agree with it longest, if that is longer than ``least`` of the budget.
    """
    tree = Prefixes(least=least)
    found = {trial.name: tree.add(trial) for trial in trials}
    return {name: donor for name, donor in found.items() if donor is not None}


def saving(found: Mapping[str, Donor]) -> int:
    """Images that need not be trained on where all of these trials go on from their donors."""
    return sum(donor.images for donor in found.values())


class Prefixes:
    """The tree of all trials so far, to which trials are added in the order of the plan.

    A donor always leaves its own donor before others leave it, so each has a checkpoint to give.
    """

    def __init__(self, *, least: float = 0.05) -> None:
        self._least = least
        self._roots: dict[str, _Node] = {}
        self._runs: set[str] = set()

    def add(self, trial: Trial) -> Donor | None:
        """Find a trial's donor among those before it. Members of a population take no part."""
        spec = trial.spec
        if spec.start is not None or trial.until is not None:
            return None
        run = spec.fingerprint("")
        if run in self._runs:
            return None  # an earlier trial is that run
        self._runs.add(run)
        new = _Node(trial.name, spec)
        node = self._roots.setdefault(_the_rest(spec), new)
        if node is new:
            return None
        grid, at = _Grid.of(spec), 0
        last = grid.batches - 1  # is left to every trial to compute: so it has an end of its own
        while True:
            at = _parting(spec, node.spec, at, last)
            if at == last:
                break
            inner = node.leaving.setdefault((at, _row(spec, grid, at)), new)
            if inner is new:
                break
            node = inner
        images = grid.images(at)
        return Donor(trial=node.trial, images=images) if images > self._least * grid.total else None


@dataclass(slots=True)
class _Node:
    """A trial, and the trials that leave it: the first one for each batch and what it does there instead."""

    trial: str
    spec: RunSpec
    leaving: dict[tuple[int, bytes], _Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Grid:
    """The batches of a run: where each begins, in images and as progress."""

    total: int
    batch: int

    @classmethod
    def of(cls, spec: RunSpec) -> _Grid:
        return cls(spec.budget.images, spec.optimizer.batch)

    @property
    def batches(self) -> int:
        return -(-self.total // self.batch)

    def images(self, number: int) -> int:
        return min(number * self.batch, self.total)

    def progress(self, first: int, last: int) -> list[float]:
        return [self.images(number) / self.total for number in range(first, last)]


def _the_rest(spec: RunSpec) -> str:
    """All in which runs that share a beginning must be equal: everything but schedules and names."""
    return f"{spec.curriculum.draws} {spec.model_dump_json(exclude=_SCHEDULED)}"


def _parting(spec: RunSpec, other: RunSpec, first: int, last: int) -> int:
    """The first batch from ``first`` on in which two runs do not do the same; ``last`` if there is none."""
    grid = _Grid.of(spec)
    for settings, rows in _SCHEDULES:
        ours, theirs = settings(spec), settings(other)
        if ours == theirs:
            continue
        for start in range(first // _CHUNK * _CHUNK, last, _CHUNK):
            differ = (rows(ours, grid, start) != rows(theirs, grid, start)).any(axis=1)
            differ[: max(0, first - start)] = False
            if differ.any():
                last = min(last, start + int(differ.argmax()))
                break
    return last


def _row(spec: RunSpec, grid: _Grid, number: int) -> bytes:
    """All that the schedules say of one batch."""
    start = number // _CHUNK * _CHUNK
    found = [rows(settings(spec), grid, start)[number - start] for settings, rows in _SCHEDULES]
    return np.concatenate(found).tobytes()


@lru_cache(maxsize=_KEPT)
def _rates(settings: tuple[Momentum, float, LearningRate, float], grid: _Grid, start: int) -> Rows:
    """Of each batch the momentum and rate that it is trained with, and what is told before and after it.

    As ``loop.rates`` has them: base x (momentum's factor x schedule) x warm-up, in this order.
    """
    of_momentum, base, schedule, share = settings
    progress = grid.progress(start, min(start + _CHUNK, grid.batches) + 1)
    moments = [momentum.at(of_momentum, now) for now in progress]
    scheduled = [
        base * (factor * learning_rate.factor(schedule, now))
        for now, (_, factor) in zip(progress, moments, strict=True)
    ]
    warm = [learning_rate.warmup(now, share) for now in progress]
    beta, rate, warmth = map(_array, ([b for b, _ in moments], scheduled, warm))
    told = rate * warmth
    return _bits(beta[:-1], rate[:-1] * warmth[1:], told[:-1], beta[1:], told[1:])


@lru_cache(maxsize=_KEPT)
def _draws(settings: tuple[Curriculum, Diffusion], grid: _Grid, start: int) -> Rows:
    """Of each batch the density of its timesteps: how much of which, the rest uniform."""
    spec, of_diffusion = settings
    progress = grid.progress(start, min(start + _CHUNK, grid.batches))
    shares = _array([curriculum.share(spec, now) for now in progress])
    if curriculum.adaptive(spec):
        return _bits(shares, np.full(len(shares), _digest(repr(spec).encode())))
    return _bits(shares, np.where(shares == 0.0, 0, _drawn(spec, of_diffusion)))


@lru_cache(maxsize=_KEPT)
def _weights(settings: tuple[Weighting, Diffusion], grid: _Grid, start: int) -> Rows:
    """Of each batch the table of its weights; a twin's is a mixture, as a curriculum's density is."""
    spec, of_diffusion = settings
    progress = grid.progress(start, min(start + _CHUNK, grid.batches))
    if not isinstance(spec, Twin):
        return _bits(np.zeros(len(progress)), np.full(len(progress), _table(spec, of_diffusion, 0.0)))
    shares = _array([curriculum.share(spec.of, now) for now in progress])
    plain = _table(Twin(kind="twin", of=curriculum.Uniform(kind="uniform")), of_diffusion, 0.0)
    mixed = _digest(b"twin", curriculum.density(spec.of, diffusion.alphas_bar(of_diffusion)).tobytes())
    return _bits(shares, np.where(shares == 0.0, plain, mixed))


_SCHEDULES: Final[tuple[tuple[Callable[[RunSpec], Hashable], Callable[[Any, _Grid, int], Rows]], ...]] = (
    (lambda spec: (spec.momentum, *_rate_settings(spec)), _rates),
    (lambda spec: (spec.curriculum, spec.diffusion), _draws),
    (lambda spec: (spec.weighting, spec.diffusion), _weights),
)


def _rate_settings(spec: RunSpec) -> tuple[float, LearningRate, float]:
    return spec.optimizer.lr, spec.optimizer.schedule, spec.optimizer.warmup


@lru_cache(maxsize=_KEPT)
def _drawn(spec: Curriculum, of_diffusion: Diffusion) -> int:
    """The density that the trainer's sampler mixes with the uniform, as a number."""
    return _digest(curriculum.density(spec, diffusion.levels(of_diffusion).alphas_bar).tobytes())


def _table(spec: Weighting, of_diffusion: Diffusion, progress: float) -> int:
    """The trainer's table of weights, in its float32, as a number."""
    found = weighting.weights(
        spec,
        diffusion.alphas_bar(of_diffusion),
        diffusion.prediction(of_diffusion),
        progress=progress,
        sigma_data=of_diffusion.sigma_data if isinstance(of_diffusion, Edm) else 0.5,
    )
    return _digest(found.astype(np.float32).tobytes())


def _digest(*parts: bytes) -> int:
    """64 bits of the content: chance never makes two of them equal in our lifetime."""
    return int.from_bytes(hashlib.blake2b(b"/".join(parts), digest_size=8).digest(), "little", signed=True)


def _array(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def _bits(*columns: NDArray[Any]) -> Rows:
    """Columns of 64-bit numbers side by side, as their bits: equal only where every bit is."""
    return np.stack([np.asarray(column).view(np.int64) for column in columns], axis=1)
