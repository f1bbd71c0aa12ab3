"""The words that the conductor and whoever runs its trials share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from hasten.sweeps.plan import Trial
from hasten.sweeps.records import FailureKind
from hasten.trainers.job import Job
from hasten.trainers.records import Report, RunResult

How = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A trial to start now: its job says from where, until when, and which checkpoints others wait for.

    ``attempt`` counts from 1 within this command.
    """

    trial: Trial
    job: Job
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt at a trial ended: ``stopped`` also when nobody asked (a signal, a limit).

    There is one for every assignment. A member of a population that came to its ``until`` is ``finished``
    without a result.

    ``result`` is what a finished run left in the store; ``seconds`` it held its resources for that long.
    ``blameless`` is a failure that is not the trial's doing: its node went down, or the store did not answer.
    """

    how: How
    seconds: float
    result: RunResult | None = None
    failure: FailureKind | None = None
    error: str = ""
    blameless: bool = False


class Conducting(Protocol):
    """What an executor asks, from one thread, and what it tells."""

    def next(self) -> Assignment | None:
        """A trial to start now; None while nothing can be started (or when all is over)."""

    @property
    def over(self) -> bool:
        """Whether no trial will ever be started again by this command; running ones may still end."""

    def report(self, trial: str, report: Report) -> bool:
        """Hear a report of a running trial, in order; whether it must stop now."""

    def ended(self, trial: str, ending: Ending) -> None:
        """Hear that an attempt is over; it may come back from :meth:`next` as another attempt."""
