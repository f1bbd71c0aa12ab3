"""When scores are computed: in the loop, or behind its back by another process.

Either way the loop asks with the marks that are due, and collects what has become known; the numbers are
the same.
"""

from __future__ import annotations

import copy
import json
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hasten.trainers.metrics.background import BackgroundEvaluator, Make, Scores, Weights, What, score
from hasten.trainers.metrics.evaluation import Evaluator
from hasten.trainers.models.networks import Network
from hasten.trainers.timeline import Marks
from hasten.trainers.worker import Worker

Pending = dict[str, Any]  # of one evaluation: its marks and the weights that were to be scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What became known of one evaluation: metrics by the step that they belong to, and a picture.

    ``by_timestep`` is the loss of equal ranges of timesteps, with its step and, as ``items``, the loss of
    each group of images; ``sheet`` is known on the first worker alone.
    """

    metrics: list[tuple[int, dict[str, float]]]
    by_timestep: dict[str, Any] | None
    sheet: tuple[int, NDArray[np.uint8]] | None


class Scorer(Protocol):
    """What the loop asks of an evaluation. All workers call every method alike."""

    def ask(self, marks: Marks, averaged: Network, last: Network) -> None:
        """Have the averaged weights scored as they are now, and the last ones where the recipe says so."""

    def collect(self, *, wait: bool) -> list[Scored]:
        """What has become known since, on all workers; all that was asked for when ``wait``.

        Raises:
            Fault: an evaluation failed.
        """

    def record(self) -> dict[str, Any]:
        """All that a score depends on beside the network; on the first worker."""

    def state_dict(self) -> list[Pending]:
        """What was asked and is not known yet, for a checkpoint."""

    def load_state_dict(self, state: list[Pending]) -> None:
        """Ask again for what a checkpoint says was not known yet."""

    def close(self) -> None:
        """End what goes on in the background, at once."""


class Inline:
    """Training waits for its scores; several workers share the work.

    Args:
        evaluator: scores networks.
        raw: whether the last weights are scored too.
        blank: a network to put weights of a checkpoint into.
    """

    def __init__(self, evaluator: Evaluator, *, raw: bool, blank: Network) -> None:
        self.evaluator = evaluator
        self._raw = raw
        self._blank = blank
        self._known: list[Scored] = []

    def ask(self, marks: Marks, averaged: Network, last: Network) -> None:
        what = wanted(marks)
        scores = score(self.evaluator, averaged, what)
        raw = score(self.evaluator, last, what - {"sheet"}) if self._raw else None
        self._known.append(scored(marks, scores, raw))

    def collect(self, *, wait: bool) -> list[Scored]:
        del wait
        known, self._known = self._known, []
        return known

    def record(self) -> dict[str, Any]:
        return self.evaluator.spec_record()

    def state_dict(self) -> list[Pending]:
        return []

    def load_state_dict(self, state: list[Pending]) -> None:
        for pending in state:
            averaged, last = (copy.deepcopy(self._blank).eval() for _ in range(2))
            averaged.load_state_dict(pending["averaged"])
            last.load_state_dict(pending["last"] or pending["averaged"])
            self.ask(Marks(**pending["marks"]), averaged, last)

    def close(self) -> None:
        """Nothing goes on in the background."""


class Background:
    """The first worker has another process score copies of the weights, while all go on training.

    Args:
        make: builds evaluator and network there, see :class:`BackgroundEvaluator`.
        raw: whether the last weights are scored too.
        threads: torch's threads in the other process.
    """

    def __init__(self, make: Make, *, raw: bool, threads: int, worker: Worker) -> None:
        self._raw = raw
        self._record: dict[str, Any] = {}
        self._worker = worker
        self._process = (
            BackgroundEvaluator(make, threads=threads, pending=4 if raw else 2) if worker.is_first else None
        )
        self._asked: list[tuple[Pending, Future[Scores], Future[Scores] | None]] = []

    def ask(self, marks: Marks, averaged: Network, last: Network) -> None:
        if self._process is not None:
            weights = {"averaged": _held(averaged), "last": _held(last) if self._raw else None}
            self._ask({"marks": asdict(marks), **weights})

    def _ask(self, pending: Pending) -> None:
        assert self._process is not None, "only the first worker asks"
        marks, last = Marks(**pending["marks"]), pending["last"]
        step, what = max(mark for mark in asdict(marks).values() if mark is not None), wanted(marks)
        scores = self._process.submit(step, pending["averaged"], what)
        raw = None if last is None else self._process.submit(step, last, what - {"sheet"})
        self._asked.append((pending, scores, raw))

    def collect(self, *, wait: bool) -> list[Scored]:
        known: list[Scored] = []
        while self._asked and (wait or all(f.done() for f in self._asked[0][1:] if f is not None)):
            pending, scores, raw = self._asked.pop(0)
            known.append(scored(Marks(**pending["marks"]), scores.result(), raw.result() if raw else None))
            self._record = scores.result().record
        if self._worker.world_size == 1:
            return known
        # Metrics decide what becomes of a run, so every worker hears of them; pictures only travel outwards.
        told = self._worker.agree(json.dumps([[one.metrics, one.by_timestep] for one in known]))
        if self._worker.is_first:
            return known
        return [
            Scored(metrics=[(step, found) for step, found in metrics], by_timestep=bins, sheet=None)
            for metrics, bins in json.loads(told or "[]")
        ]

    def record(self) -> dict[str, Any]:
        return self._record

    def state_dict(self) -> list[Pending]:
        return [pending for pending, _, _ in self._asked]

    def load_state_dict(self, state: list[Pending]) -> None:
        if self._process is not None:
            for pending in state:
                self._ask(pending)

    def close(self) -> None:
        if self._process is not None:
            self._process.close(wait=False)


def wanted(marks: Marks) -> frozenset[What]:
    """What is to be measured where these marks are due."""
    due: dict[What, int | None] = {"losses": marks.loss, "quality": marks.samples, "sheet": marks.sheet}
    return frozenset(what for what, mark in due.items() if mark is not None)


def scored(marks: Marks, scores: Scores, raw: Scores | None) -> Scored:
    """Scores under the steps and the names that they are tracked by."""
    metrics: list[tuple[int, dict[str, float]]] = []
    by_timestep: dict[str, Any] | None = None
    if marks.loss is not None and scores.losses is not None:
        last = raw.losses.metrics() if raw and raw.losses else {}
        metrics.append((marks.loss, scores.losses.metrics() | _as_raw(last)))
        by_timestep = {"step": marks.loss, **scores.losses.bins(), "items": list(scores.losses.items)}
    if marks.samples is not None:
        metrics.append((marks.samples, scores.quality | _as_raw(raw.quality if raw else {})))
    return Scored(
        metrics=metrics,
        by_timestep=by_timestep,
        sheet=None if marks.sheet is None or scores.sheet is None else (marks.sheet, scores.sheet),
    )


def _as_raw(metrics: dict[str, float]) -> dict[str, float]:
    """The last weights' scores, under names that tell them from the averaged ones'."""
    return {key.replace("eval/", "eval/raw_", 1): value for key, value in metrics.items()}


def _held(network: Network) -> Weights:
    """Weights as they are now: training goes on changing them."""
    return {name: value.detach().to("cpu", copy=True) for name, value in network.state_dict().items()}
