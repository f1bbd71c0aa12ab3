"""A running study as its displays see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hasten.sweeps.conducting.courses import Course
from hasten.sweeps.conducting.limits import Spent
from hasten.sweeps.records import FailureKind, Verdict

State = Literal["waiting", "running", "open", "finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialView:
    """One trial: how far it is, and its newest ``value`` of the objective's metric.

    ``waiting`` is for its turn, ``open`` was begun and left before its end. ``seconds_left`` is of training,
    by its own speed so far.
    """

    trial: str
    arm: str
    seed: int
    state: State
    images: int
    total: int
    value: float | None
    attempt: int
    seconds_left: float | None = None
    verdict: Verdict | None = None
    failure: FailureKind | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A study at one moment.

    ``trials`` are planned, as far as that is known; ``counts`` are of those that are known, by state. By
    the clock, ``seconds_left`` are to go if the rest is like what is over, as many at a time as now.
    """

    running: tuple[TrialView, ...]
    counts: dict[State, int]
    trials: int
    spent: Spent
    seconds_left: float | None
    why_stopped: str | None

    @property
    def over(self) -> int:
        """Trials with a record that counts."""
        return sum(self.counts.get(state, 0) for state in _OVER)


_OVER: tuple[State, ...] = ("finished", "stopped", "failed")


def state_of(course: Course) -> State:
    """Where a trial is."""
    match course.phase:
        case "over":
            assert course.record is not None, "a trial that is over has a record"
            return course.record.state
        case phase:
            return phase


def view(course: Course, metric: str) -> TrialView:
    """One trial as it is now."""
    record = course.record
    if record is None:
        return TrialView(
            trial=course.name,
            arm=course.trial.arm,
            seed=course.trial.seed,
            state=state_of(course),
            images=course.images,
            total=course.total,
            value=course.latest(metric),
            attempt=course.attempts,
            seconds_left=_left(course),
        )
    return TrialView(
        trial=record.trial,
        arm=record.arm,
        seed=record.seed,
        state=record.state,
        images=record.images,
        total=record.total,
        value=record.metrics.get(metric),
        attempt=record.attempts,
        verdict=record.verdict,
        failure=record.failure,
        error=record.error,
    )


def _left(course: Course) -> float | None:
    """Seconds of training that a trial has before it."""
    if course.phase != "running" or not course.images or not course.seconds:
        return None
    end = course.trial.until or course.total
    return course.seconds / course.images * max(0, end - course.images)
