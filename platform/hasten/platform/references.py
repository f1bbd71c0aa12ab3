"""Who needs the runs in the store: studies by their ledgers, and the model registry."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from hasten.platform import settings
from hasten.platform.locks import Busy, only_one
from hasten.platform.services import Services
from hasten.sweeps.conducting.ledger import Ledger, StudyNote
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.statistics import objectives
from hasten.sweeps.study import StudySpec
from hasten.trainers.retention import References, Standing, Study
from hasten.trainers.store import Folder

_STUDIES: Final = "studies"
_FINGERPRINT: Final = 12  # digits at the end of a run's name


def gather(services: Services, runs: Sequence[str]) -> tuple[References, frozenset[str]]:
    """Who needs what of these runs, and which of them never go on although they have no result.

    Raises:
        Fault: the storage or the model registry failed, or a ledger is damaged: what is not known to be
            superfluous is not.
    """
    # Importing MLflow takes seconds.
    from hasten.platform import registry

    by_fingerprint: dict[str, list[str]] = {}
    for run in runs:
        by_fingerprint.setdefault(run[-_FINGERPRINT:], []).append(run)
    home = Folder(f"{services.storage_uri.rstrip('/')}/{_STUDIES}")
    ledgers = {name: read(home.folder(name)) for name in home.names()}
    ended = [_ended(records) for _, records in ledgers.values()]
    studies = [_study(name, *ledger, by_fingerprint) for name, ledger in ledgers.items()]
    models = registry.registered_fingerprints(services.tracking_uri)
    return (
        References(studies=tuple(studies), registered=frozenset(_named(models, by_fingerprint))),
        _by_all(studies, ended),
    )


def read(study: Folder) -> tuple[StudyNote | None, dict[str, TrialRecord]]:
    """What a study's ledger says: its driver's note, and the records of trials that are over."""
    ledger = Ledger(study)
    return ledger.note(), ledger.records()


def is_held(study: str) -> bool:
    """Whether a process of this machine is running the study."""
    path = settings.home() / "locks" / f"study-{study}"
    if not path.exists():
        return False
    try:
        with only_one(path, what=study):
            return False
    except Busy:
        return True


def _study(
    name: str,
    note: StudyNote | None,
    records: Mapping[str, TrialRecord],
    by_fingerprint: Mapping[str, list[str]],
) -> Study:
    begun = [] if note is None else [trial.fingerprint for trial in note.open.values()]
    spec = None if note is None else StudySpec.model_validate(note.spec)
    return Study(
        name=name,
        runs=dict.fromkeys(_named(begun, by_fingerprint), Standing()) | standings(spec, records.values()),
        running=is_held(name) or (note is not None and note.is_alive(time.time())),
        over=note is not None and note.state == "finished",
    )


def standings(spec: StudySpec | None, records: Iterable[TrialRecord]) -> dict[str, Standing]:
    """Every run that has a record, as the study judges it."""
    if spec is None:
        return {record.run: Standing() for record in records}
    objective, known = spec.objective, list(records)
    front = {
        record.run
        for place in (objectives.ranking(known, objective, spec.pareto) if spec.pareto else ())
        for record in place.records
        if place.front
    }
    sign = 1.0 if objectives.direction(objective) == "min" else -1.0
    better = 1.0 if objective.mode == "min" else -1.0
    standings = {}
    for record in known:
        value = objectives.for_search(record, objective)
        counts = value is not None and math.isfinite(value) and objectives.within(record, objective.bounds)
        standings[record.run] = Standing(
            value=sign * value if value is not None and counts else None,
            scores=tuple(
                (images, better * score) for images, score in record.curves.get(objective.metric, ())
            ),
            front=record.run in front,
        )
    return standings


def _ended(records: Mapping[str, TrialRecord]) -> frozenset[str]:
    """The runs that their study never takes up again: finished, stopped, or diverged."""
    return frozenset(
        record.run
        for record in records.values()
        if record.state in ("finished", "stopped") or record.failure == "diverged"
    )


def _by_all(studies: Sequence[Study], ended: Sequence[frozenset[str]]) -> frozenset[str]:
    """The runs that every study which knows them has ended."""
    open_somewhere = {
        run for study, over in zip(studies, ended, strict=True) for run in study.runs if run not in over
    }
    return frozenset().union(*ended) - open_somewhere


def _named(fingerprints: Iterable[str], by_fingerprint: Mapping[str, list[str]]) -> list[str]:
    return [run for fingerprint in fingerprints for run in by_fingerprint.get(fingerprint, ())]
