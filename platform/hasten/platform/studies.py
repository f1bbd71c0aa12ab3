"""A study bound to its services: its trials as jobs, its ledger, its conductor, and what it has come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from hasten.platform import identities, importing, provenance, settings
from hasten.platform.connection import connected
from hasten.platform.identity import RunIdentity
from hasten.platform.provenance import Provenance
from hasten.platform.services import Services
from hasten.platform.tracking import Tracking, tracker_of
from hasten.sweeps import plan as plans
from hasten.sweeps.conducting import prefixes, stopping
from hasten.sweeps.conducting.conductor import Conductor
from hasten.sweeps.conducting.ledger import Ledger
from hasten.sweeps.plan import Plan, Trial
from hasten.sweeps.records import TrialRecord, TrialResult
from hasten.sweeps.searching.factory import proposals
from hasten.sweeps.statistics.outcomes import unfinished
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.job import Job
from hasten.trainers.patience import patiently
from hasten.trainers.records import RunResult
from hasten.trainers.specs import RunSpec
from hasten.trainers.store import Folder
from hasten.trainers.tracker import EndStatus

_PATIENCE: Final = 60.0  # seconds for which the store may be away when a trial is to start
_READERS: Final = 16  # files of the store that are read at once
_OF_DATA: Final = {"data", "model", "diffusion", "conditioning", "eval"}  # what must fit the data


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study's plan bound to its services.

    ``source`` is where its runs come from; ``shown`` its own run in the tracking server, where that is known.
    """

    plan: Plan
    services: Services
    tracking: Tracking
    source: Provenance = field(default_factory=provenance.current)
    shown: RunIdentity | None = None
    _bound: dict[str, Job] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.plan.study.name

    @property
    def parent(self) -> RunIdentity:
        """The study's own run in the tracking server."""
        return self.shown or identities.study(self.plan, self.source)

    def job(self, trial: Trial) -> Job:
        """A trial bound to its data, which are looked up once for all trials that see them alike.

        Raises:
            ConfigError: the data set is missing, or does not fit the recipe.
        """
        kind = trial.spec.model_dump_json(include=_OF_DATA)
        if kind not in self._bound:
            importing.ensure(trial.spec.data.source, self.services.storage_uri)
            self._bound[kind] = sources.bind(trial.spec, self.services.storage_uri)
        known = self._bound[kind]
        return Job(
            spec=trial.spec,
            data_uri=known.data_uri,
            data_digest=known.data_digest,
            storage_uri=known.storage_uri,
        )

    def ledger(self) -> Ledger:
        """What the store knows of the study; to be closed by whoever writes to it."""
        return Ledger(Folder(self.uri))

    @property
    def uri(self) -> str:
        """The study's folder in the store."""
        return f"{self.services.storage_uri.rstrip('/')}/studies/{self.name}"

    def conductor(self) -> Conductor:
        """What runs next, and what becomes of it; to be closed.

        Raises:
            ConfigError: the study is another one than that whose points the ledger holds.
            Fault: the ledger cannot be read.
        """
        study, base, ledger = self.plan.study, self.plan.base, self.ledger()
        note = ledger.note()
        plans.require_same(study, base, note.digest if note and note.digest else None)
        rule = stopping.rule(study.stopping, study.objective) if study.stopping else None
        shared = prefixes.donors(self.plan.trials) if study.execution.share_prefixes else {}
        return Conductor(
            self.plan,
            proposals(study, base),
            bind=self.job,
            result_of=lambda job: patiently(RunStore(job.uri).result, seconds=_PATIENCE),
            ledger=ledger,
            rule=rule,
            donors=shared,
        )

    def identity(self, trial: Trial, parent_run_id: str) -> RunIdentity:
        """A trial's run in the tracking server."""
        job = self.job(trial)
        return identities.trial(trial, job, self.source, study=self.name, parent_run_id=parent_run_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a study has come to: its known trials, and the records of those that are over."""

    trials: Sequence[Trial]
    records: Mapping[str, TrialRecord]
    planned: int

    @property
    def is_finished(self) -> bool:
        return len(self.records) == self.planned

    @property
    def again(self) -> list[str]:
        """The trials that the same command tries once more."""
        return [each.trial for each in self.in_order() if each.failure in ("lost", "data", "program")]

    @property
    def ending(self) -> EndStatus:
        """How the study has ended, as it stands."""
        return "failed" if self.again else "finished" if self.is_finished else "stopped"

    def in_order(self) -> list[TrialRecord]:
        return [self.records[trial.name] for trial in self.trials if trial.name in self.records]


def bind(plan: Plan, *, console: Console, ray: bool = True) -> Study:
    """Find or start what a study needs.

    Raises:
        ConfigError: a service is wrong.
    """
    services = connected(console, tracking=True, ray=ray)
    return Study(plan=plan, services=services, tracking=tracker_of(services))


def standing(study: Study) -> Standing:
    """What a study has come to, as its ledger says; runs nothing and writes nothing."""
    ledger, plan = study.ledger(), study.plan
    known = {trial.name: trial for trial in plan.trials}
    for number in sorted(points := ledger.points()):
        for seed in plans.seeds(plan.study, points[number].point):
            trial = plans.make_trial(plan.study, plan.base, points[number].point, seed)
            known.setdefault(trial.name, trial)
    records = ledger.records()
    counted = {
        name: records[name]
        for name, trial in known.items()
        if name in records and records[name].fingerprint == study.job(trial).fingerprint
    }
    return Standing(trials=tuple(known.values()), records=counted, planned=plan.total)


def results(study: Study, now: Standing, *, most: int | None = None) -> list[TrialResult]:
    """The results of trials that are over, in order: all, or the first ``most``.

    Of those that left none it is what their record knows.
    """

    def read(trial: Trial) -> TrialResult:
        record = now.records[trial.name]
        result: RunResult | None = None
        if record.state == "finished":
            result = RunStore(study.job(trial).uri).result()
        if result is None:
            return unfinished(record)
        return TrialResult(trial=trial.name, arm=trial.arm, seed=trial.seed, result=result, record=record)

    over = [trial for trial in now.trials if trial.name in now.records]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, over[:most]))


def report_folder(study: str) -> Path:
    return settings.home() / "reports" / study


def outcome(study: Study, now: Standing, states: Mapping[str, str]) -> dict[str, Any]:
    """The state of a study as the stable JSON of the command line; ``states`` of trials without a record."""
    return {
        "study": study.name,
        "mlflow_run_id": study.tracking.run_id(study.parent),
        "status": "finished" if now.is_finished else "stopped",
        "trials": [
            {
                "trial": trial.name,
                "arm": trial.arm,
                "seed": trial.seed,
                **_row(now.records.get(trial.name), states.get(trial.name, "stopped")),
            }
            for trial in now.trials
        ],
    }


def _row(record: TrialRecord | None, state: str) -> dict[str, Any]:
    """The part of a trial's row that its record fills."""
    if record is None:
        return {"status": state, "images": 0, "seconds": None, "wall_seconds": None, "metrics": {}}
    return {
        "status": record.state,
        "images": record.images,
        "seconds": record.seconds,
        "wall_seconds": record.occupied,
        "metrics": record.metrics,
        "stopped_by": record.verdict.rule if record.verdict else None,
        "failure": record.failure,
        "error": record.error,
        "settings": record.settings,
    }


def link(study: str) -> str:
    """The address that opens MLflow on a study."""
    from hasten.platform.services import look

    return Tracking(look(settings.load()).tracking_uri, settings.home() / "spool").link(study)


def specs_of(now: Standing) -> dict[str, RunSpec]:
    """The recipe of each arm or point, by the first of its trials."""
    found: dict[str, RunSpec] = {}
    for trial in now.trials:
        found.setdefault(trial.arm, trial.spec)
    return found
