"""Decides what a study starts next, what it stops, and what it makes of every end.

A state machine without a clock of its own, threads or Ray: whoever runs trials asks it and tells it, from one
thread. What it decides depends on the study's file and on how earlier points ended, never on what happens to
run at once. So a study that was killed and goes on comes to what it would have come to undisturbed: all that
is needed for it is in the ledger, and in the checkpoints of trials that were not over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from hasten.sweeps import plan as plans
from hasten.sweeps.conducting import bulletin, failures
from hasten.sweeps.conducting.bulletin import Bulletin
from hasten.sweeps.conducting.courses import Course, evaluations
from hasten.sweeps.conducting.frontier import Frontier
from hasten.sweeps.conducting.judging import Judge
from hasten.sweeps.conducting.ledger import Ledger, OpenTrial, StudyState
from hasten.sweeps.conducting.limits import Spent, exceeded
from hasten.sweeps.conducting.prefixes import Donor
from hasten.sweeps.conducting.roster import Roster
from hasten.sweeps.conducting.stopping import StoppingRule
from hasten.sweeps.conducting.terms import Assignment, Ending
from hasten.sweeps.conducting.views import Snapshot
from hasten.sweeps.conducting.waiting import Queue
from hasten.sweeps.plan import Plan, Trial
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching.proposals import Point, Proposals
from hasten.trainers.job import Job, Origin
from hasten.trainers.records import Report, RunResult


class Conductor:
    """Conducts one study; see :class:`hasten.sweeps.conducting.terms.Conducting`.

    Trials start in order: seed by seed, so that pairs complete early, or where outcomes decide what is run,
    point by point. A trial with a record that counts is over, one whose run has a result too.

    Args:
        plan: what is conducted; its trials that are known already.
        proposals: where the study's points come from.
        bind: puts a trial's addresses to it.
        result_of: what a finished run left in the store; None where it is not finished.
        ledger: the study's; it is closed with the conductor.
        rule: of the study's ``stopping``.
        donors: whose checkpoints trials may start from.
        clock: seconds; only differences matter.

    Raises:
        Fault: the ledger cannot be read. Later, from any method: it cannot be written.
    """

    def __init__(
        self,
        plan: Plan,
        proposals: Proposals,
        *,
        bind: Callable[[Trial], Job],
        result_of: Callable[[Job], RunResult | None],
        ledger: Ledger,
        rule: StoppingRule | None = None,
        donors: Mapping[str, Donor] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        study = self._study = plan.study
        self._plan = plan
        self._known = {trial.name: trial for trial in plan.trials}
        self._bind = bind
        self._result_of = result_of
        self._ledger = ledger
        self._donors = donors or {}
        self._forks: dict[str, set[int]] = {}
        for donor in self._donors.values():
            self._forks.setdefault(donor.trial, set()).add(donor.images)

        self._records = ledger.records()
        note = ledger.note()
        self._opened: Mapping[str, OpenTrial] = note.open if note else {}
        self._meter = bulletin.meter(study, note, self._records, clock)
        self._bulletin = Bulletin(ledger, plan, clock)
        self._judge = None if rule is None else Judge(rule, study)
        self._frontier = Frontier(
            proposals,
            ledger.points(),
            digest=self._bulletin.digest,
            window=None if study.stopping is None else study.ahead,
            keep=ledger.write_point,
        )
        self.roster = Roster(study.objective.metric)
        self._queue = Queue()
        self._runs: dict[str, str] = {}  # the trial that is running a run; others with that run wait
        self._why: str | None = None
        self._advance()
        self._tell("running")

    # What an executor asks and tells.

    def next(self) -> Assignment | None:
        """A trial to start now; None while nothing can be started (or when all is over)."""
        self._tell_now_and_then()
        while self._queue and not self._is_barred():
            course = self._queue.pop()
            if self._waits(course) or self._was_done(course):
                continue
            return self._start(course)
        return None

    @property
    def over(self) -> bool:
        """Whether no trial will ever be started again by this command; running ones may still end."""
        return self._why is not None or not (self._runs or self._queue)

    def report(self, trial: str, report: Report) -> bool:
        """Hear a report of a running trial, in order; whether it must stop now."""
        course = self.roster.get(trial)
        if course is None or course.phase != "running" or course.verdict is not None:
            return True
        if course.hear(report) and self._judge is not None:
            course.verdict = self._judge.verdict(course)
        self._queue.passed(trial, course.images)
        self._tell_now_and_then()
        return course.verdict is not None or self._is_stopping()

    def ended(self, trial: str, ending: Ending) -> None:
        """Hear that an attempt is over; it may come back from :meth:`next` as another attempt."""
        course = self.roster.get(trial)
        assert course is not None, f"{trial} was never started"
        del self._runs[course.run]
        self._meter.end(trial, ending.seconds)
        course.occupied += ending.seconds
        course.lost += ending.blameless
        self._settle(course, ending)
        self._queue.ended(trial)
        self._tell_now_and_then()

    # What the command asks.

    def stop(self, why: str) -> None:
        """Start nothing any more, and stop what is running at its next report."""
        self._why = self._why or why

    @property
    def why_stopped(self) -> str | None:
        """What ended the command early, as a sentence: a limit, or what :meth:`stop` was told."""
        return self._why

    @property
    def spent(self) -> Spent:
        """What the study has used, over all commands."""
        return self._meter.spent(trials=self.roster.ended)

    @property
    def planned(self) -> int:
        """How many trials the study has, known or not."""
        return self._plan.total

    @property
    def is_finished(self) -> bool:
        """Whether every trial of the study has a record that counts."""
        return self.roster.ended == self.planned

    def snapshot(self) -> Snapshot:
        """The study as it is now."""
        running, mean = self.roster.running(), self.roster.mean_occupied
        left = self.planned - self.roster.ended - sum(one.images / one.total for one in running)
        return Snapshot(
            running=running,
            counts=self.roster.counts(),
            trials=self.planned,
            spent=self.spent,
            seconds_left=left * mean / len(running) if mean and running else None,
            why_stopped=self._why,
        )

    def close(self) -> None:
        """Say in the ledger how the command ended, and wait until all is written.

        Raises:
            Fault: something could not be written.
        """
        self._tell("finished" if self.is_finished else "stopped")
        self._ledger.close()

    # Which trial is next.

    def _advance(self) -> None:
        """Make known what can be known by now, and let start what may."""
        while (point := self._frontier.tell()) is not None:
            self._add(point)
        if self._judge is not None:
            self._judge.learn(self._frontier.leading)
        for number in self._frontier.starts():
            for course in self.roster.point(number):
                if course.phase == "waiting":
                    self._queue.push(course)

    def _add(self, point: Point) -> None:
        seeds = plans.seeds(self._study, point)
        courses = [self._course(point, seed, index) for index, seed in enumerate(seeds)]
        self.roster.add(courses)
        self._frontier.expect([course.fingerprint for course in courses])
        rule = self._study.stopping.kind if self._study.stopping else None
        for course in courses:
            record = self._records.get(course.name)
            if record is None or record.fingerprint != course.fingerprint:
                continue
            if failures.stands(record, rule=rule, size=course.size):
                self._end(course, record)

    def _course(self, point: Point, seed: int, index: int) -> Course:
        """A point's trial with its seed of that index, and what earlier commands noted of the same run."""
        trial = self._known.get(f"{point.name}-s{seed}")
        if trial is None:
            trial = plans.make_trial(self._study, self._plan.base, point, seed)
        job = self._bind(trial)
        noted = (self._opened.get(trial.name), self._records.get(trial.name))
        same = [one for one in noted if one is not None and one.fingerprint == job.fingerprint]
        return Course(
            trial,
            job,
            number=point.number,
            place=(point.number, index) if self._study.adaptive else (index, point.number),
            earlier=max(same, key=lambda one: one.attempts, default=None),
        )

    def _waits(self, course: Course) -> bool:
        """Whether a trial has to wait for another one, and is put behind it."""
        if course.run in self._runs:  # two points may be the same run, which only one may write to
            self._queue.wait(course, self._runs[course.run])
            return True
        gift = self._donors.get(course.name)
        donor = self.roster.get(gift.trial) if gift else None
        if gift is None or donor is None or donor.phase in ("over", "open") or donor.images > gift.images:
            return False
        self._queue.wait(course, donor.name, images=gift.images)
        return True

    def _was_done(self, course: Course) -> bool:
        """Whether a trial's run is finished already: a driver was killed just then, or a study shares it."""
        whole = course.trial.until is None or course.trial.until >= course.total
        result = self._result_of(course.job) if whole and not course.starts else None
        if result is not None:
            self._conclude(course, result)
            self._queue.ended(course.name)
        return result is not None

    def _start(self, course: Course) -> Assignment:
        job = replace(
            course.job,
            origin=self._origin(course),
            until=course.trial.until,
            forks=tuple(sorted(self._forks.get(course.name, ()))),
        )
        self.roster.begin(course)
        self._runs[course.run] = course.name
        self._meter.start(course.name)
        return Assignment(trial=course.trial, job=job, attempt=course.starts)

    def _origin(self, course: Course) -> Origin | None:
        """The checkpoint of another trial that a trial starts from, if that one came so far."""
        gift = self._donors.get(course.name)
        donor = self.roster.get(gift.trial) if gift else None
        if gift is None or donor is None:
            return None
        if (donor.record.images if donor.record else donor.images) <= gift.images:
            return None
        course.donor = gift
        return Origin(uri=donor.job.uri, images=gift.images)

    # What becomes of an end.

    def _settle(self, course: Course, ending: Ending) -> None:
        result = ending.result
        if result is None and ending.how == "finished" and not course.is_at_its_end:
            result = self._result_of(course.job)
        if course.verdict is not None:
            self._keep(course, course.stopped())
        elif result is not None:
            self._conclude(course, result)
        elif course.is_at_its_end and ending.how != "failed":
            self._keep(course, course.passed())
        elif ending.how == "finished":
            self._keep(course, course.failed("program", "the run ended without a result"))
        elif ending.how == "stopped":
            course.phase = "open"
        else:
            self._settle_failure(course, ending)

    def _settle_failure(self, course: Course, ending: Ending) -> None:
        failure = ending.failure or "program"
        if not course.patience.again(failure, blameless=ending.blameless, images=course.images):
            self._keep(course, course.failed(failure, ending.error))
        elif self._why is None:
            course.phase = "waiting"
            self._queue.push(course)
        else:
            course.phase = "open"

    def _conclude(self, course: Course, result: RunResult) -> None:
        """A run is whole; where a rule would have stopped it, that is how the trial ended.

        A result may come from a run that outran its verdict, or that another study shares: whether it is
        there must not decide what is stopped.
        """
        for report in evaluations(result):
            if course.verdict is None and course.hear(report) and self._judge is not None:
                course.verdict = self._judge.verdict(course)
        self._keep(course, course.finished(result) if course.verdict is None else course.stopped())

    def _keep(self, course: Course, record: TrialRecord) -> None:
        """A trial is over by this command."""
        self._ledger.write(record)
        self._end(course, record)
        self._advance()

    def _end(self, course: Course, record: TrialRecord) -> None:
        self.roster.end(course, record)
        self._frontier.end(course.number, record)

    # Limits, and what is told of the study.

    def _is_stopping(self) -> bool:
        """Whether running trials have to stop: for a limit, or because somebody said so."""
        if self._why is None:
            self._why = exceeded(self._study.limits, self._study.prices, self.spent)
        return self._why is not None

    def _is_barred(self) -> bool:
        """Whether no trial may start; those that are running count for the number of trials."""
        spent = self._meter.spent(trials=self.roster.ended + len(self._runs))
        return self._is_stopping() or exceeded(self._study.limits, self._study.prices, spent) is not None

    def _tell_now_and_then(self) -> None:
        if self._bulletin.is_due:
            self._tell("running")

    def _tell(self, state: StudyState) -> None:
        opened = self.roster.opened(self._meter.held)
        self._bulletin.tell(
            state, over=self.roster.ended, spent=self.spent, opened=opened, why=self._why or ""
        )
