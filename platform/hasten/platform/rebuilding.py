"""``hasten tracking rebuild``: MLflow's view made again from the store, which is the truth.

Onto an empty server, or onto one that lacks something: what is there already stays as it is, and nothing is
there twice. What only a living process could know is not in the store: the load of machines, and when each
point was measured; points that are told again carry the time of the telling.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console

from hasten.platform import identities, keepsakes, runs, settings, studies, study_reports, sweeping, training
from hasten.platform.connection import connected
from hasten.platform.keepsakes import Keepsake
from hasten.platform.locks import Busy, is_gone, only_one
from hasten.platform.notes import BASE_FILE, STUDY_FILE
from hasten.platform.provenance import Provenance
from hasten.platform.reconciliation import STATUS
from hasten.platform.services import Services
from hasten.platform.studies import Standing, Study
from hasten.platform.tracking import Tracking, tracker_of
from hasten.sweeps import plan as plans
from hasten.sweeps import study as study_files
from hasten.sweeps.conducting.ledger import Ledger, StudyNote
from hasten.sweeps.plan import Plan, Trial
from hasten.sweeps.study import StudySpec
from hasten.trainers import config
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.job import Job
from hasten.trainers.records import RunResult
from hasten.trainers.specs import RunSpec
from hasten.trainers.store import Folder

_READERS: Final = 8  # runs that the tracking server is asked of at once
_UNKNOWN: Final = Provenance(command="", version="")

State = Literal["told", "whole", "alive", "unfinished", "impossible"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What became of a study or of a run: ``runs`` of it were told again, or would be; ``why`` in words."""

    name: str
    kind: Literal["study", "run"]
    state: State
    runs: int = 0
    why: str = ""


def rebuild(names: Sequence[str], *, everything: bool, dry_run: bool, console: Console) -> dict[str, Any]:
    """Make MLflow's view of studies and runs again; what ``hasten tracking rebuild --json`` prints.

    Raises:
        ConfigError: nothing or nothing known was named.
        Fault: the storage or MLflow does not answer; or something could not be told.
    """
    if bool(names) == everything:
        raise ConfigError("tracking rebuild", "needs studies or runs by name, or --all", "")
    services = connected(console, tracking=True)
    tracking = tracker_of(services)
    wanted_studies, wanted_runs = _wanted(names, services)
    told: list[Told] = []
    for name in wanted_studies:
        told.append(_study(name, services, tracking, dry_run=dry_run, console=console))
        _say(told[-1], dry_run=dry_run, console=console)
    for uri in wanted_runs:
        told.append(_run(uri, services, tracking, dry_run=dry_run))
        _say(told[-1], dry_run=dry_run, console=console)
    if not told:
        console.print("the store holds neither a study nor a run")
    if wrong := [each for each in told if each.state == "impossible"]:
        remedy = "The others are told. " + " ".join(f"{each.name}: {each.why}." for each in wrong)
        raise Fault("tracking rebuild", f"{len(wrong)} of {len(told)} could not be told", remedy)
    return {"dry_run": dry_run, "tracking": services.tracking_uri, "told": [asdict(each) for each in told]}


def _wanted(names: Sequence[str], services: Services) -> tuple[list[str], list[str]]:
    """The studies by name and the runs by address that are meant; all of them where none is named.

    A run in the store that a study's ledger knows belongs to that study, unless it was trained by itself as
    well.
    """
    root = services.storage_uri.rstrip("/")
    known = Folder(f"{root}/studies").names()
    if names:
        meant = [name for name in dict.fromkeys(names) if name in known]
        return meant, [runs.locate(name, services.storage_uri) for name in names if name not in known]
    of_studies: set[str] = set()
    for study in known:
        of_studies.update(
            record.run for record in Ledger(Folder(f"{root}/studies/{study}")).records().values()
        )
    uris = [f"{root}/runs/{run}" for run in Folder(f"{root}/runs").names()]
    return known, [uri for uri in uris if uri.rpartition("/")[2] not in of_studies or keepsakes.read(uri)]


def _say(told: Told, *, dry_run: bool, console: Console) -> None:
    runs = f"{told.runs} run{'' if told.runs == 1 else 's'}"
    words = {
        "told": f"{runs} {'would be told' if dry_run else 'told'}",
        "whole": "MLflow has all of it",
        "alive": "is alive and left alone",
        "unfinished": "is not finished and left alone",
        "impossible": "cannot be told",
    }[told.state]
    console.print(f"{told.name}: {words}{f' ({told.why})' if told.why else ''}", soft_wrap=True, markup=False)


# Studies.


def _study(name: str, services: Services, tracking: Tracking, *, dry_run: bool, console: Console) -> Told:
    """One study with its trials; while it is held here, no sweep of this machine begins it."""
    note = Ledger(Folder(f"{services.storage_uri.rstrip('/')}/studies/{name}")).note()
    if note is None:
        return Told(name=name, kind="study", state="impossible", why="it never ran")
    if note.is_alive() and not is_gone(note):
        return Told(name=name, kind="study", state="alive", why=f"process {note.pid} on {note.host}")
    try:
        with only_one(settings.home() / "locks" / f"study-{name}", what=f"study {name}"):
            study = _bound(note, services, tracking)
            return _study_told(study, dry_run=dry_run, console=console)
    except Busy as busy:
        return Told(name=name, kind="study", state="alive", why=busy.problem)
    except ConfigError as error:
        return Told(name=name, kind="study", state="impossible", why=f"{error.subject}: {error.problem}")


def _bound(note: StudyNote, services: Services, tracking: Tracking) -> Study:
    """The study as it was last run.

    Raises:
        ConfigError: its base recipe is not here any more, or its data.
    """
    kept = keepsakes.read(f"{services.storage_uri.rstrip('/')}/studies/{note.name}")
    return Study(
        plan=_plan(note, kept),
        services=services,
        tracking=tracking,
        source=kept.source if kept else _UNKNOWN,
        shown=kept.identity if kept else None,
    )


def _plan(note: StudyNote, kept: Keepsake | None) -> Plan:
    if kept is None or not {STUDY_FILE, BASE_FILE} <= kept.files.keys():
        return plans.plan(config.validate(StudySpec, note.spec))
    with tempfile.TemporaryDirectory() as folder:
        for path in (STUDY_FILE, BASE_FILE):
            Path(folder, path.rpartition("/")[2]).write_bytes(kept.files[path])
        return plans.plan(study_files.load(str(Path(folder, STUDY_FILE.rpartition("/")[2]))))


def _study_told(study: Study, *, dry_run: bool, console: Console) -> Told:
    now = studies.standing(study)
    known = study.tracking.status(study.parent)
    parent_run_id = study.tracking.run_id(study.parent) or ""
    with ThreadPoolExecutor(_READERS) as pool:
        over = [trial for trial in now.trials if trial.name in now.records]
        lacking = list(pool.map(lambda trial: _lacks(study, trial, now, parent_run_id), over))
    untold = [trial for trial, lack in zip(over, lacking, strict=True) if lack]
    is_whole = known == STATUS[now.ending] and not study.tracking.lacks(study.parent, (), {"report": 1})
    if not untold and is_whole:
        return Told(name=study.name, kind="study", state="whole")
    count = len(untold) + (not is_whole)
    if not dry_run:
        _tell(study, now, untold, console)
    return Told(name=study.name, kind="study", state="told", runs=count)


def _lacks(study: Study, trial: Trial, now: Standing, parent_run_id: str) -> str:
    """What the tracking server lacks of a trial that is over."""
    record, job = now.records[trial.name], study.job(trial)
    identity = study.identity(trial, parent_run_id)
    if study.tracking.status(identity) != STATUS["failed" if record.state == "failed" else "finished"]:
        return "its end"
    store = RunStore(job.uri)
    result = store.result() if record.state == "finished" else None
    points = (
        _points(result)
        if result
        else {(metric, step) for metric, curve in record.curves.items() for step, _ in curve}
    )
    return study.tracking.lacks(identity, points, _pictures(store))


def _tell(study: Study, now: Standing, untold: Sequence[Trial], console: Console) -> None:
    """Tell what is missing: the parent first, then its children, then what they came to."""
    kept = keepsakes.read(study.uri)
    files = {**kept.files, **kept.source.files()} if kept else identities.study_files(study.plan)
    track = study.tracking.open(study.parent, files=files)
    try:
        for number, trial in enumerate(untold, start=1):
            sweeping.retell_trial(study, trial, now, track.run_id)
            console.print(f"  {trial.name} ({number} of {len(untold)})", markup=False)
        sweeping.settle(study, now, track.run_id)
        sweeping.share_view(study, image_step=max(trial.spec.budget.images for trial in now.trials))
        if now.records:
            sweeping.attach(study_reports.report(study, now), track)
    except BaseException:
        track.close("stopped")
        raise
    track.close(now.ending)


# Runs by themselves.


def _run(uri: str, services: Services, tracking: Tracking, *, dry_run: bool) -> Told:
    name = uri.rpartition("/")[2]
    store = RunStore(uri)
    result = store.result()
    if result is None:
        why = f"hasten train {runs.FINGERPRINT.sub('', name)} goes on with it"
        return Told(name=name, kind="run", state="unfinished", why=why)
    try:
        job = _job(result, services)
    except ConfigError as error:
        return Told(name=name, kind="run", state="impossible", why=f"{error.subject}: {error.problem}")
    kept = keepsakes.read(uri)
    identity = kept.identity if kept else identities.run(job, _UNKNOWN)
    is_finished = tracking.status(identity) == STATUS["finished"]
    if is_finished and not tracking.lacks(identity, _points(result), _pictures(store)):
        return Told(name=name, kind="run", state="whole")
    if not dry_run:
        training.retell(job, tracking, identity, files=kept.source.files() if kept else {})
    return Told(name=name, kind="run", state="told", runs=1)


def _job(result: RunResult, services: Services) -> Job:
    """A finished run as its result tells of it, whatever has become of its data since.

    Raises:
        ConfigError: another version of hasten wrote it, with keys that this one does not know.
    """
    spec = config.validate(RunSpec, result.spec)
    try:
        address = sources.find(spec, services.storage_uri).uri
    except ConfigError:  # the data set has been removed
        address = spec.data.source
    return Job(spec=spec, data_uri=address, data_digest=result.data_digest, storage_uri=services.storage_uri)


def _points(result: RunResult) -> Collection[tuple[str, int]]:
    return {(metric, point.step) for point in result.history for metric in point.metrics}


def _pictures(store: RunStore) -> Mapping[str, int]:
    """Each sheet of samples is a picture and its thumbnail."""
    count = len(list(_sheets(store)))
    return {"images": 2 * count} if count else {}


def _sheets(store: RunStore) -> Iterable[str]:
    return Folder(store.uri).names("samples")
