"""Our loop as it is, a block at a time: a session is asked for one report after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from harness import Work

from hasten.platform import importing
from hasten.trainers import session, specs
from hasten.trainers.checkpoints import StoreWriter
from hasten.trainers.datasets import sources
from hasten.trainers.job import Job
from hasten.trainers.parts import Parts
from hasten.trainers.specs import RunSpec
from hasten.trainers.tracker import NullTracker, Tracker
from hasten.trainers.worker import Worker

TICKS: Final = 100  # the loop reports a hundred times a run
BATCH: Final = 64

# The digits recipe, evaluated as little as can be: at its start, and at an end that is never reached.
QUIET: Final[Mapping[str, Any]] = {
    "optimizer.batch": BATCH,
    "eval.loss": {"every": 1.0, "images": 32},
    "eval.samples": {"at": [1.0], "images": 2, "steps": 1},
    "eval.grid": {"every": 1.0, "images": 1, "steps": 1},
    "execution.checkpoint_every": 1.0,
}
NETWORKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "digits": {},  # 0.16 M parameters
    "1M": {"model.channels": 40},
    "tiny": {"model.channels": 8, "model.multipliers": [1]},  # to see that something works
}


def spec_of(name: str, steps: int, changes: Mapping[str, Any]) -> RunSpec:
    """The quiet digits recipe with a report every ``steps`` steps."""
    fixed = {"name": name, "budget.images": TICKS * steps * changes.get("optimizer.batch", BATCH)}
    return specs.load("digits", {**QUIET, **fixed, **changes})


def job_of(storage: Path | str, name: str, *, steps: int, changes: Mapping[str, Any]) -> Job:
    """That run, bound to the digits or to a data set that is in the storage already."""
    spec = spec_of(name, steps, changes)
    if spec.data.source == "digits":
        importing.ensure("digits", str(storage))
    return sources.bind(spec, str(storage))


class Ours:
    """A run that goes on for at most 98 reports, ``steps`` steps apart; a block is ``reports`` of them.

    The loop is not changed for it. ``parts`` are its own, for whoever wants to look at them.
    """

    parts: Parts

    def __init__(
        self,
        storage: Path | str,
        name: str,
        *,
        steps: int,
        reports: int = 1,
        changes: Mapping[str, Any] | None = None,
        track: Tracker | None = None,
        change_parts: Callable[[Parts], None] | None = None,
        writer: Callable[..., StoreWriter] = StoreWriter,
    ) -> None:
        self._reports = reports
        self._images = 0
        self.steps = steps * reports
        self.job = job_of(storage, name, steps=steps, changes=changes or {})
        self._run = session.run(self.job, worker=Worker(), track=track or NullTracker())
        assemble = session.assemble

        def overheard(*arguments: Any, **options: Any) -> Parts:
            self.parts = assemble(*arguments, **options)
            if change_parts is not None:
                change_parts(self.parts)
            return self.parts

        with (
            as_ours(),
            mock.patch.object(session, "assemble", overheard),
            mock.patch.object(session, "StoreWriter", writer),
        ):
            next(self._run)

    def block(self) -> Work:
        before = self._images
        with as_ours():
            for _ in range(self._reports):  # an evaluation in the background tells of images long done
                self._images = next(told.images for told in self._run if told.images > self._images)
        return Work(images=self._images - before)

    def close(self) -> None:
        self._run.close()


@contextmanager
def as_ours() -> Iterator[None]:
    """Our loop asks torch for deterministic algorithms; the others in this process never did."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def step_seconds(storage: Path | str, changes: Mapping[str, Any] | None = None) -> float:
    """About how long a step takes here."""
    ours = Ours(storage, "calibration", steps=20, changes=changes)
    ours.block()
    began = time.perf_counter()
    images = ours.block().images
    ours.close()
    return (time.perf_counter() - began) * BATCH / images


def steps_for(seconds: float, step: float, *, least: int = 50) -> int:
    """How many steps fill a block of about ``seconds``; too few of them say little."""
    return max(least, round(seconds / step))


class Stopwatch:
    """A reader that notes when each batch was asked for: once a step, in the training thread."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.marks: list[float] = []

    def batch(self, images: Any) -> Any:
        self.marks.append(time.perf_counter())
        return self._reader.batch(images)

    def restart(self) -> None:
        self.marks.clear()

    def steps(self) -> list[float]:
        """Seconds from batch to batch since the last ``restart``."""
        return [later - earlier for earlier, later in pairwise(self.marks)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)
