"""The trials that run now: what they say goes to the conductor, what it decides goes to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from hasten.sweeps.attempt import Last, News, Task
from hasten.sweeps.conducting.terms import Assignment, Conducting, Ending
from hasten.trainers.records import Report, RunResult
from hasten.trainers.tracker import EndStatus

State = Literal["running", "finished", "failed", "stopped"]

_SECONDS_TO_STOP: Final = 30.0  # for the checkpoints of all trials


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a trial: how far it is, or how an attempt at it ended."""

    trial: str
    state: State
    report: Report | None = None
    error: str = ""


@dataclass(slots=True, kw_only=True)
class _Running:
    """An attempt that was handed out; ``actor`` runs it, ``since`` it was given its resources."""

    task: Task
    actor: Any = None
    since: float | None = None
    is_halted: bool = False

    @property
    def seconds(self) -> float:
        return 0.0 if self.since is None else time.monotonic() - self.since


class Floor:
    """Everything between the conductor and the processes that run its trials, each in a place of its own.

    A conductor or an observer that fails ends the command, as a wish to stop does: trials write a checkpoint
    and end.

    Args:
        conductor: hands out trials and decides on them; called from one thread.
        task: what to send along with a trial.
        observe: told of every event.
        stop: whether to stop all trials; asked a few times a second.
    """

    def __init__(
        self,
        conductor: Conducting,
        *,
        task: Callable[[Assignment], Task],
        observe: Callable[[Event], None],
        stop: Callable[[], bool],
    ) -> None:
        self._conductor = conductor
        self._task = task
        self._observe = observe
        self._stop = stop
        self._running: dict[str, _Running] = {}
        self._deadline: float | None = None
        self.trouble: Exception | None = None

    @property
    def is_over(self) -> bool:
        """Whether no trial starts any more."""
        return self._deadline is not None or self._conductor.over

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs that is to be waited for: after a wish to stop, for a while only."""
        if self._deadline is None:
            return False
        started = any(running.since is not None for running in self._running.values())
        return not started or time.monotonic() > self._deadline

    def look(self) -> None:
        """See whether to stop; then have every trial write a checkpoint and end."""
        if self._deadline is None and self._stop():
            self._halt_all()

    def hand_out(self, place: str) -> Task | None:
        """A trial to start at ``place``; None while there is none."""
        if self.is_over:
            return None
        try:
            assignment = self._conductor.next()
            if assignment is None:
                return None
            task = self._task(assignment)
        except Exception as error:
            self._fail(error)
            return None
        self._running[place] = _Running(task=task)
        return task

    def run(self, place: str) -> str:
        """The run of the trial at ``place``."""
        return self._running[place].task.job.run

    def started(self, place: str, actor: Any) -> None:
        """A process is there for the trial that was handed out for ``place``."""
        running = self._running[place]
        running.actor, running.since = actor, time.monotonic()
        if self._deadline is None:  # else it ends without a task
            actor.begin.remote(running.task)

    def heard(self, place: str, news: News) -> None:
        """Pass news on; a trial that is to stop does so before it trains on."""
        running = self._running[place]
        for report in news.reports:
            self._report(running, report)
        if news.last is not None:
            self.ended(place, news.last)

    def _report(self, running: _Running, report: Report) -> None:
        trial = running.task.trial
        try:
            self._observe(Event(trial=trial, state="running", report=report))
            if running.is_halted or self.trouble is not None:
                return
            if self._conductor.report(trial, report):
                # A rule's decision is no failure; where a limit was reached, the study as a whole says so.
                self._halt(running, "finished")
        except Exception as error:
            self._fail(error)

    def ended(self, place: str, last: Last) -> None:
        """An attempt is over; only the first word on it counts."""
        running = self._running.pop(place, None)
        if running is None:
            return
        trial, how = running.task.trial, last.how
        if how == "failed" and self._deadline is not None and last.failure == "lost":
            how = "stopped"  # it was killed for not stopping by itself
        ending = Ending(
            how=how,
            seconds=running.seconds,
            result=RunResult.model_validate_json(last.result) if last.result else None,
            failure=last.failure if how == "failed" else None,
            error=last.error if how == "failed" else "",
            blameless=last.blameless,
        )
        try:
            if self.trouble is None:
                self._conductor.ended(trial, ending)
            self._observe(Event(trial=trial, state=how, error=ending.error))
        except Exception as error:
            self._fail(error)

    def clear(self) -> None:
        """Whatever still runs does so no longer."""
        for place in list(self._running):
            self.ended(place, Last(how="stopped"))

    def _fail(self, error: Exception) -> None:
        self.trouble = self.trouble or error
        self._halt_all()

    def _halt_all(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + _SECONDS_TO_STOP
            for running in self._running.values():
                self._halt(running, "stopped")

    def _halt(self, running: _Running, status: EndStatus) -> None:
        running.is_halted = True
        if running.actor is not None:
            running.actor.halt.remote(status)
