"""A stage for conductors: trials that are only played, on a store in memory, by an unkind executor."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings

from hasten.sweeps import plan as plans
from hasten.sweeps.conducting import stopping
from hasten.sweeps.conducting.conductor import Conductor
from hasten.sweeps.conducting.ledger import Ledger, StudyNote
from hasten.sweeps.conducting.terms import Assignment, Ending
from hasten.sweeps.plan import Plan, Trial
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching.factory import proposals
from hasten.sweeps.searching.proposals import Proposals
from hasten.sweeps.study import StudySpec
from hasten.trainers import config, specs
from hasten.trainers.errors import Fault
from hasten.trainers.job import Job
from hasten.trainers.records import Point, Report, RunResult

# Two busy cores: how long an example takes says nothing.
settings.register_profile("hasten", deadline=None)
settings.load_profile("hasten")

STEP = 64
"""Images between two evaluations, and in a batch."""


class Store:
    """What is used of a folder, in memory; after ``writes`` more writes it is as if the driver were dead."""

    uri = "memory://study"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.writes: float = float("inf")
        self.failing = False

    @property
    def is_cut_off(self) -> bool:
        return self.writes <= 0

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def write(self, name: str, content: bytes) -> None:
        if self.failing:
            raise Fault(self.uri, "the storage is down")
        self.writes -= 1
        if self.writes >= 0:
            self.files[name] = content

    def names(self, name: str = "") -> list[str]:
        start = f"{name}/"
        return sorted(file.removeprefix(start) for file in self.files if file.startswith(start))


class PromptLedger(Ledger):
    """One that writes at once, so that the same chances always play the same story."""

    def _soon(self, task: Callable[[], None]) -> None:
        task()

    def tell(self, note: StudyNote) -> None:
        self._note = note
        self._write_note()

    def close(self) -> None:
        self._trials.gather()
        self._points.gather()


@dataclass
class Run:
    """A run's folder: its newest checkpoint, forks and result."""

    images: int = 0
    forks: set[int] = field(default_factory=set)
    result: RunResult | None = None


def loss(fingerprint: str, images: int) -> float:
    """A curve that falls, with a level and wiggles of its own: ranks at rungs are not those at the end."""
    level, wiggle = (digest(f"{fingerprint}{what}") for what in ("level", images))
    return (0.5 + level) / (1.0 + images / STEP) ** 0.5 + 0.3 * wiggle


def digest(text: str) -> float:
    """A number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2.0**48


class Attempt:
    """One process that plays a job; a generator of reports that keeps checkpoints on its way."""

    def __init__(self, stage: Stage, assignment: Assignment) -> None:
        self.stage, self.job, self.trial = stage, assignment.job, assignment.trial.name
        self.fingerprint, self.name = self.job.fingerprint, self.job.run
        self.run = stage.runs.setdefault(self.name, Run())
        self.images = 0
        self.reports = self._play()
        assert self.name not in stage.busy, f"{self.name} runs twice at once"
        stage.busy.add(self.name)

    def report(self, images: int, *, evaluated: bool = True, stopped: bool = False) -> Report:
        items = tuple(digest(f"{self.fingerprint}{images}{item}") for item in range(10))
        return Report(
            images=images,
            total=self.job.spec.budget.images,
            seconds=images / 10,
            metrics={"eval/loss": loss(self.fingerprint, images), "train/lr": 0.1} if evaluated else {},
            evaluated=evaluated,
            stopped=stopped,
            items=items if evaluated else (),
        )

    def _play(self) -> Iterator[Report]:
        total, job = self.job.spec.budget.images, self.job
        end = total if job.until is None else job.until
        if self.run.result is not None:
            return
        origin, start = job.origin, job.spec.start
        forks = self.stage.runs.get(origin.uri.rpartition("/")[2], Run()).forks if origin else set()
        self.images = max(
            self.run.images,
            origin.images if origin and origin.images in forks else 0,
            start.images if start else 0,
        )
        for images in range(0, self.images + 1, STEP):
            yield self.report(images)
        while self.images < end:
            self.images += STEP
            self.stage.trained[self.name] += STEP
            if self.images in job.forks:
                self.run.forks.add(self.images)
            if self.images % (2 * STEP) == 0 or self.images == end:
                self.run.images = max(self.run.images, self.images)
            yield self.report(self.images)
            yield self.report(self.images, evaluated=False)
        if end < total:
            yield self.report(end, evaluated=False, stopped=True)
        else:
            self.run.result = self._result()

    def _result(self) -> RunResult:
        reports = [self.report(images) for images in range(0, self.images + 1, STEP)]
        return RunResult(
            run=self.name,
            fingerprint=self.fingerprint,
            status="finished",
            images=self.images,
            seconds=self.images / 10,
            metrics=reports[-1].metrics,
            history=[
                Point(step=one.images, metrics={**one.metrics, "perf/seconds": one.seconds})
                for one in reports
            ],
            by_timestep=[{"step": one.images, "items": list(one.items)} for one in reports],
            spec=self.job.spec.model_dump(mode="json"),
            data_digest=self.job.data_digest,
        )

    def leave(self) -> None:
        self.stage.busy.discard(self.name)


class Stage:
    """A study, its store, and whoever runs its trials.

    Args:
        raw: the study as a user writes it, beside a name and a base of 640 images.
        proposed: makes other proposals than the study's own.
        digest: of the data.
    """

    def __init__(
        self, proposed: Callable[[StudySpec], Proposals] | None = None, data: str = "data", **raw: Any
    ) -> None:
        self._proposed = proposed
        self.data = data
        self.store = Store()
        self.runs: dict[str, Run] = {}
        self.busy: set[str] = set()
        self.trained: Counter[str] = Counter()
        self.asked: list[str] = []  # runs whose result was looked for
        self.started: list[str] = []
        self.time = 0.0
        self.edit(**raw)

    def edit(self, **raw: Any) -> None:
        """Write another study file of the same name."""
        whole = {"name": "played", "base": "digits", **raw}
        whole["base_overrides"] = {"budget.images": 10 * STEP, **raw.get("base_overrides", {})}
        self.study = config.validate(StudySpec, whole)
        if self._proposed is None:
            self.plan = plans.plan(self.study)
        else:
            base = specs.load_raw(self.study.base, self.study.base_overrides)
            count = self._proposed(self.study).count * len(self.study.seeds)
            self.plan = Plan(study=self.study, trials=(), proposed=count, base=base)

    def conductor(self, **options: Any) -> Conductor:
        """A driver's, as a new command would make it."""
        study = self.study
        source = self._proposed(study) if self._proposed else proposals(study, self.plan.base)
        rule = stopping.rule(study.stopping, study.objective) if study.stopping else None
        return Conductor(
            self.plan,
            source,
            bind=self.bind,
            result_of=self.result_of,
            ledger=PromptLedger(self.store),
            rule=rule,
            clock=lambda: self.time,
            **options,
        )

    def bind(self, trial: Trial) -> Job:
        return Job(
            spec=trial.spec, data_uri="memory://data", data_digest=self.data, storage_uri="memory://all"
        )

    def result_of(self, job: Job) -> RunResult | None:
        self.asked.append(job.run)
        return self.runs.get(job.run, Run()).result

    def attempt(self, assignment: Assignment) -> Attempt:
        self.started.append(assignment.trial.name)
        return Attempt(self, assignment)

    def perform(self, concurrent: int = 1, **options: Any) -> dict[str, TrialRecord]:
        """One command without any trouble, trials in turn; the records that count."""
        conductor = self.conductor(**options)
        played: dict[str, Attempt] = {}
        while True:
            while len(played) < concurrent and (assignment := conductor.next()) is not None:
                played[assignment.trial.name] = self.attempt(assignment)
            if not played:
                break
            for attempt in list(played.values()):
                self.time += 1.0
                report = next(attempt.reports, None)
                if report is None or conductor.report(attempt.trial, report) or report.stopped:
                    attempt.leave()
                    conductor.ended(played.pop(attempt.trial).trial, self.ending(attempt, report))
        assert conductor.over
        conductor.close()
        return conductor.roster.records()

    def ending(self, attempt: Attempt, report: Report | None, seconds: float = 11.0) -> Ending:
        """How an attempt ended of itself, or because it was asked to after ``report``."""
        if report is None:
            return Ending(how="finished", seconds=seconds, result=attempt.run.result)
        return Ending(how="finished" if report.stopped else "stopped", seconds=seconds)

    def suffer(self, chance: random.Random, **options: Any) -> dict[str, TrialRecord]:
        """The same commands, again and again, with whatever can go wrong, until the study is finished."""
        for command in range(60):
            records = self._suffer_once(chance, kind=command > 40, **options)
            if records is not None:
                self.store.writes = float("inf")
                return records
        raise AssertionError("the study never comes to its end")

    def _suffer_once(
        self, chance: random.Random, *, kind: bool, **options: Any
    ) -> dict[str, TrialRecord] | None:
        self.store.writes = float("inf") if kind else chance.randrange(1, 20)
        concurrent, trouble = chance.randrange(1, 9), 0.0 if kind else chance.random() * 0.15
        conductor = self.conductor(**options)
        played: dict[str, Attempt] = {}
        furthest: dict[str, int] = {}
        while not self.store.is_cut_off:
            while len(played) < concurrent and (assignment := conductor.next()) is not None:
                played[assignment.trial.name] = self.attempt(assignment)
            if not played:
                assert conductor.over, "nothing runs, nothing starts, and it is not over"
                break
            attempt = played[chance.choice(sorted(played))]
            self.time += chance.random()
            if chance.random() < trouble:
                # Three deaths in vain would be a failure, which is an outcome: here nodes die then.
                in_vain = attempt.images <= furthest.get(attempt.trial, -1)
                furthest[attempt.trial] = max(attempt.images, furthest.get(attempt.trial, -1))
                lost = Ending(how="failed", seconds=1.0, failure="lost", blameless=in_vain)
                self._end(conductor, played, attempt, lost)
                continue
            report = next(attempt.reports, None)
            if report is None or conductor.report(attempt.trial, report) or report.stopped:
                # Whoever is asked to stop may do more before it hears of it, or even finish.
                for late in (next(attempt.reports, None) for _ in range(chance.randrange(4))):
                    if late is None or not conductor.report(attempt.trial, late):
                        break
                self._end(conductor, played, attempt, self.ending(attempt, report, seconds=1.0))
        for attempt in played.values():  # orphans go on for a while, and die
            for _ in range(chance.randrange(8)):
                next(attempt.reports, None)
            attempt.leave()
        conductor.close()
        done = conductor.is_finished and not self.store.is_cut_off
        return conductor.roster.records() if done else None

    def _end(
        self, conductor: Conductor, played: dict[str, Attempt], attempt: Attempt, ending: Ending
    ) -> None:
        attempt.leave()
        del played[attempt.trial]
        conductor.ended(attempt.trial, ending)


def essence(records: dict[str, TrialRecord]) -> dict[str, dict[str, Any]]:
    """What must not depend on what happened: all but how long it took and how often it was tried."""
    told = {"seconds", "occupied", "attempts", "lost", "forked_from", "forked_images"}
    return {name: record.model_dump(exclude=told) for name, record in sorted(records.items())}


@pytest.fixture(scope="session")
def stage() -> type[Stage]:
    return Stage


@pytest.fixture(scope="session")
def store() -> type[Store]:
    return Store


@pytest.fixture(scope="session")
def same() -> Callable[[dict[str, TrialRecord]], dict[str, dict[str, Any]]]:
    return essence
