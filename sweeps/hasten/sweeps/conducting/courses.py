"""One trial from the moment it is known until it is over: what has been heard of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Final, Literal

from hasten.sweeps.conducting import failures
from hasten.sweeps.conducting.failures import Patience
from hasten.sweeps.conducting.ledger import OpenTrial
from hasten.sweeps.conducting.prefixes import Donor
from hasten.sweeps.conducting.stopping import Curve
from hasten.sweeps.plan import Trial
from hasten.sweeps.records import FailureKind, TrialRecord, TrialState, Verdict
from hasten.trainers.job import Job
from hasten.trainers.records import Report, RunResult
from hasten.trainers.tracker import SECONDS

_HELD_OUT: Final = "eval/"

Phase = Literal["waiting", "running", "over", "open"]
"""``waiting`` for its turn; ``open``: ended before its time, and this command does not start it again."""


class Course:
    """A trial and what is known of it.

    Reports are heard in order, some of them again after a restart: an evaluation counts once.

    Args:
        trial: what to run.
        job: the same, bound to its data.
        number: its point's.
        place: where it stands in the order of starts.
        earlier: what earlier commands noted of this very run, without an end that counts.
    """

    def __init__(
        self,
        trial: Trial,
        job: Job,
        *,
        number: int,
        place: tuple[int, int],
        earlier: OpenTrial | TrialRecord | None,
    ) -> None:
        self.trial = trial
        self.job = job
        self.number = number
        self.place = place
        self.fingerprint = job.fingerprint
        self.run = f"{trial.spec.name}-{self.fingerprint}"
        self.phase: Phase = "waiting"
        self.record: TrialRecord | None = None
        self.verdict: Verdict | None = None
        self.patience = Patience()
        self.images = 0
        self.seconds = 0.0
        self.starts = 0  # in this command
        self.attempts = earlier.attempts if earlier else 0
        self.lost = earlier.lost if earlier else 0
        self.occupied = earlier.occupied if earlier else 0.0
        self.donor: Donor | None = None
        self._curves: dict[str, list[tuple[int, float]]] = {}
        self._items: list[tuple[int, tuple[float, ...]]] = []
        self._evaluated: set[int] = set()

    def __lt__(self, other: Course) -> bool:
        return self.place < other.place

    @property
    def name(self) -> str:
        return self.trial.name

    @property
    def total(self) -> int:
        return self.trial.spec.budget.images

    @functools.cached_property
    def size(self) -> str:
        return failures.size_of(self.trial.spec)

    @property
    def is_at_its_end(self) -> bool:
        """Whether a member of a population has come to the end of its generation."""
        return self.trial.until is not None and self.images >= self.trial.until

    def begin(self) -> None:
        """Another attempt starts."""
        self.phase = "running"
        self.starts += 1
        self.attempts += 1

    def hear(self, report: Report) -> bool:
        """Take a report in; whether it is of an evaluation that was not known."""
        if report.images >= self.images:
            self.images, self.seconds = report.images, max(self.seconds, report.seconds)
        if not report.evaluated or report.images in self._evaluated:
            return False
        self._evaluated.add(report.images)
        for key, value in report.metrics.items():
            if key.startswith(_HELD_OUT):
                self._curves.setdefault(key, []).append((report.images, value))
        self._curves.setdefault(SECONDS, []).append((report.images, report.seconds))
        if report.items:
            self._items.append((report.images, report.items))
        return True

    def latest(self, metric: str) -> float | None:
        """The newest value of a metric."""
        curve = self._curves.get(metric)
        return curve[-1][1] if curve else None

    def curve(self, metric: str) -> Curve:
        """What the trial has shown by now, as a stopping rule sees it."""
        return Curve(
            number=self.number,
            total=self.total,
            values=tuple(self._curves.get(metric, ())),
            items=tuple(self._items),
        )

    def finished(self, result: RunResult) -> TrialRecord:
        """The record of a run that is whole: its curves are the result's own.

        They have more than was heard: what is measured of samples may be between evaluations of the loss.
        """
        held_out = {key for point in result.history for key in point.metrics if key.startswith(_HELD_OUT)}
        return self._ended(
            "finished",
            images=result.images,
            seconds=result.seconds,
            metrics=result.metrics,
            curves={SECONDS: self._curves.get(SECONDS, [])}
            | {key: result.series(key) for key in sorted(held_out)},
        )

    def passed(self) -> TrialRecord:
        """The record of a member of a population whose generation is over."""
        assert self.trial.until is not None, "only members of a population end unfinished"
        return self._ended("finished", images=self.trial.until)

    def stopped(self) -> TrialRecord:
        """The record of a trial that a stopping rule has ended; it ends where the rule did."""
        assert self.verdict is not None, "only a verdict stops a trial for good"
        return self._ended("stopped", images=self.verdict.images, verdict=self.verdict)

    def failed(self, failure: FailureKind, error: str) -> TrialRecord:
        return self._ended("failed", images=self.images, failure=failure, error=error)

    def opened(self, *, held: float, metric: str) -> OpenTrial:
        """The trial as a sign of life tells of it; ``held`` is for how long its running attempt has run."""
        return OpenTrial(
            fingerprint=self.fingerprint,
            running=self.phase == "running",
            images=self.images,
            total=self.total,
            value=self.latest(metric),
            attempts=self.attempts,
            lost=self.lost,
            occupied=self.occupied + held,
        )

    def _ended(self, state: TrialState, **known: Any) -> TrialRecord:
        execution = self.trial.spec.execution
        fields: dict[str, Any] = {
            "seconds": self.seconds,
            "metrics": {key: curve[-1][1] for key, curve in self._curves.items()},
            "curves": self._curves,
        }
        return TrialRecord(
            trial=self.trial.name,
            arm=self.trial.arm,
            seed=self.trial.seed,
            settings=self.trial.changes,
            run=self.run,
            fingerprint=self.fingerprint,
            state=state,
            total=self.total,
            occupied=self.occupied,
            cpus=execution.most * execution.cpus,
            gpus=execution.most * execution.gpus,
            items=[(images, list(errors)) for images, errors in self._items],
            attempts=self.attempts,
            lost=self.lost,
            forked_from=self.donor.trial if self.donor else None,
            forked_images=self.donor.images if self.donor else 0,
            parent=self.trial.parent,
            size=self.size,
            **(fields | known),
        )


def evaluations(result: RunResult) -> Iterator[Report]:
    """The reports of a finished run's evaluations of the held-out loss, as it once made them."""
    metrics: dict[int, dict[str, float]] = {}
    for point in result.history:
        metrics.setdefault(point.step, {}).update(point.metrics)
    ticks = result.series(SECONDS)
    for row in result.by_timestep:
        step = row["step"]
        # An evaluation was made at the first tick that reached its step.
        seconds = next((passed for reached, passed in ticks if reached >= step), result.seconds)
        yield Report(
            images=step,
            total=int(result.spec["budget"]["images"]),
            seconds=seconds if step else 0.0,
            metrics=metrics.get(step, {}),
            evaluated=True,
            items=tuple(row.get("items", ())),
        )
