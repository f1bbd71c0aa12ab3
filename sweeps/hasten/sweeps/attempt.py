"""One attempt at a trial, in the process that runs it: on a thread, so that it can be told to stop."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final

import torch

from hasten.sweeps.conducting.terms import How
from hasten.sweeps.records import FailureKind
from hasten.trainers import memory, ray_train, session
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.desk import how_ended
from hasten.trainers.errors import Away, ConfigError, Diverged, Exhausted, HastenError, Lost, NodeLost
from hasten.trainers.job import Job
from hasten.trainers.records import Report
from hasten.trainers.tracker import EndStatus, Tracker
from hasten.trainers.worker import Worker

_SECONDS_BETWEEN_NEWS: Final = 1.0  # at least; an evaluation that is waited at is told at once

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What travels to the process that runs a trial: ``open_tracker`` opens the tracker there.

    A trial on which somebody decides waits at each evaluation until that was heard; with ``waits`` False none
    does, and what happens within a second is told together.
    """

    trial: str
    job: Job
    open_tracker: Callable[[], Tracker]
    waits: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Last:
    """How an attempt ended; ``result`` is what the run left in the store, as JSON.

    ``blameless`` is a failure that is not the trial's doing: its node went down, or the store did not answer.
    """

    how: How
    result: bytes | None = None
    failure: FailureKind | None = None
    error: str = ""
    blameless: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What happened since the news before, and how the attempt ended if it did."""

    reports: tuple[Report, ...] = ()
    last: Last | None = None


class Attempt:
    """An attempt at a trial that begins at once.

    With one worker it trains in this process; with several, this process conducts those that do. Training
    goes on past an evaluation, where it ``waits``, only when somebody asks for more news: who decides on a
    trial is never late.
    """

    def __init__(self, task: Task, scratch: str) -> None:
        self._task = task
        self._scratch = scratch
        self._told: queue.SimpleQueue[Report | Last] = queue.SimpleQueue()
        self._heard = threading.Semaphore(0)
        self._is_held = False
        self._asked: EndStatus | None = None
        self._track: Tracker | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name=task.trial)
        self._thread.start()

    def halt(self, status: EndStatus) -> None:
        """Have the run write a checkpoint and end, and the tracker told that it ended so."""
        self._asked = self._asked or status

    def close(self, seconds: float) -> None:
        """Halt, and wait so long for the end; nobody asks for news any more."""
        self.halt("stopped")
        self._heard.release()
        self._thread.join(seconds)

    @property
    def is_closed(self) -> bool:
        """Whether nothing of it goes on, not even the tracker's last words."""
        return not self._thread.is_alive()

    def news(self) -> News:
        """What happens next: an evaluation that the run waits at, the end, or all there is after a second."""
        if self._is_held:
            self._is_held = False
            self._heard.release()
        evaluations: list[Report] = []
        newest: Report | None = None
        deadline = time.monotonic() + _SECONDS_BETWEEN_NEWS
        while not self._is_held:
            try:
                told = self._told.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                break
            if isinstance(told, Last):
                return News(reports=tuple(evaluations), last=told)
            newest = told
            if told.evaluated:
                evaluations.append(told)
                self._is_held = self._holds(told)
        if newest is not None and not newest.evaluated:
            evaluations.append(newest)
        return News(reports=tuple(evaluations))

    def _holds(self, report: Report) -> bool:
        """Whether the run waits after a report until it was heard: not at its end."""
        return self._task.waits and report.evaluated and report.images < report.total

    def _run(self) -> None:
        last, evaluated = None, -1
        try:
            with contextlib.closing(self._reports()) as reports:
                for last in reports:
                    if last.evaluated and last.images <= evaluated:
                        continue  # told before, by workers that have started again since
                    evaluated = max(evaluated, last.images) if last.evaluated else evaluated
                    self._told.put(last)
                    if self._holds(last):
                        self._heard.acquire()
            end = self._ended(last)
        except BaseException as error:
            end = failed(error)
            if end.failure == "program":
                log.exception("%s failed", self._task.trial)
        self._told.put(end)
        if self._track is not None:
            job = self._task.job
            self._track.close("failed" if end.failure else how_ended(job, last, self._asked))

    def _reports(self) -> Generator[Report, None, None]:
        task = self._task
        if task.job.spec.execution.most > 1:
            # What follows a lost worker is not decided here.
            yield from ray_train.reports(
                task.job,
                open_tracker=task.open_tracker,
                scratch=self._scratch,
                asked=lambda: self._asked,
                restarts=0,
            )
            return
        self._track = task.open_tracker()
        worker = Worker(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        yield from session.run(
            task.job, worker=worker, track=self._track, stop=lambda: self._asked is not None
        )

    def _ended(self, last: Report | None) -> Last:
        job = self._task.job
        if last is None or not last.stopped:
            result = RunStore(job.uri).result()
            if result is not None:
                return Last(how="finished", result=result.model_dump_json().encode())
        if last is not None and last.images == job.until:
            return Last(how="finished")
        return Last(how="stopped")


def failed(error: BaseException) -> Last:
    """What kind of failure an exception is, and its last words."""
    kind: FailureKind
    match error:
        case Diverged():
            kind = "diverged"
        case Lost() | Away():
            kind = "lost"
        case ConfigError():
            kind = "data"
        case _:
            exhausted = isinstance(error, Exhausted | memory.OutOfMemory) or memory.is_exhausted(error)
            kind = "memory" if exhausted else "program"
    if isinstance(error, HastenError):
        words = f"{error.subject}: {error.problem}"
    else:
        words = ": ".join(filter(None, [type(error).__name__, str(error)])).splitlines()[-1]
    return Last(how="failed", failure=kind, error=words, blameless=isinstance(error, NodeLost | Away))
