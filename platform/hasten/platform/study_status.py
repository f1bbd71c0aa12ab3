"""``hasten status STUDY``: how far a study is, by its ledger: while it runs, afterwards, from any machine.

Nothing is started for it, and nothing is written.
"""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from hasten.platform import settings
from hasten.platform.services import Services, look
from hasten.sweeps import plan as plans
from hasten.sweeps import study as study_files
from hasten.sweeps.conducting.ledger import Ledger, StudyNote
from hasten.sweeps.plan import Plan, Trial
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.reports import live
from hasten.sweeps.study import StudySpec
from hasten.trainers.datasets import data, mixtures
from hasten.trainers.errors import ConfigError, Fault, HastenError
from hasten.trainers.store import Folder

_SECONDS: Final = 2.0  # between two looks, or longer where a look takes long
_PATIENCE: Final = 5.0  # times as long as a look took, until the next
_MIXTURE: Final = "mixture:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What earlier commands have done of a plan, by how it ended.

    ``again`` are trials that ran as other runs, by the reason why they run again; ``seconds_per_image`` is
    what the finished ones took, all in all, None where none is.
    """

    counts: dict[str, int]
    again: dict[str, list[str]]
    seconds_per_image: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a store knows of a study: its driver's note, and the records that count.

    ``stale`` records are of trials that the study no longer has, or has with other settings.
    """

    note: StudyNote | None
    records: tuple[TrialRecord, ...]
    stale: int


def status(study: str, *, watch: bool = False, console: Console) -> dict[str, Any]:
    """Show how far a study is; what ``hasten status STUDY --json`` prints.

    ``study`` is its name, or a file of it. With ``watch`` a terminal shows it until its driver has ended.

    Raises:
        ConfigError: the store has no such study.
        Fault: the storage does not answer.
    """
    services = reachable()
    name = _name(study)
    place = Folder(f"{services.storage_uri.rstrip('/')}/studies/{name}")
    seen = standing(place, services.storage_uri)
    if seen.note is None:
        raise _unknown(name, services.storage_uri)
    if watch and console.is_terminal:
        seen = _watch(seen, place, services.storage_uri, console)
    else:
        console.print(_rendered(seen))
    return _plain(seen)


def reachable() -> Services:
    """The services that run now, if the storage is among them.

    Raises:
        Fault: it is the local stack's, which is not up.
    """
    current = settings.load()
    services = look(current)
    if current.storage.embedded and not services.endpoint:
        raise Fault("storage", "the local store is not running", "Start it: hasten up.")
    return services


def standing(place: Folder, storage_uri: str) -> Standing:
    """What is known of the study in a folder of the store, as it was last run.

    Raises:
        Fault: the storage failed, or the ledger is damaged.
    """
    ledger = Ledger(place)
    note, records = ledger.note(), ledger.records()
    if note is None:
        return Standing(note=None, records=(), stale=len(records))
    try:
        wanted = fingerprints(_planned(note, ledger), storage_uri)
    except ConfigError:  # another machine's base recipe need not be here
        wanted = {}
    counting = [
        record for name, record in records.items() if not wanted or wanted.get(name) == record.fingerprint
    ]
    return Standing(note=note, records=tuple(counting), stale=len(records) - len(counting))


def earlier(plan: Plan) -> Earlier | None:
    """What the store has of a plan; None where it has nothing, or does not answer.

    Raises:
        ConfigError: the study is a search that began as another one.
    """
    try:
        services = reachable()
        if services.storage_uri.startswith("s3://"):
            from hasten.platform import buckets  # pyarrow would try for a minute where nobody answers

            buckets.check(services.storage_uri, endpoint=services.endpoint, region=services.region)
        place = Folder(f"{services.storage_uri.rstrip('/')}/studies/{plan.study.name}")
        ledger = Ledger(place)
        note, records = ledger.note(), ledger.records()
        wanted = fingerprints(plan.trials, services.storage_uri)
    except HastenError:
        return None
    if note is None:
        return None
    plans.require_same(plan.study, plan.base, note.digest or None)
    # Of a trial that is proposed in its turn nobody knows yet whether it is the same again.
    counting = [
        record
        for name, record in records.items()
        if wanted.get(name, record.fingerprint) == record.fingerprint
    ]
    finished = [record for record in counting if record.state == "finished" and record.occupied]
    images = sum(record.images - record.forked_images for record in finished)
    return Earlier(
        counts=dict(Counter(record.state for record in counting)),
        again=plans.new_runs(plan, records.values(), wanted) if wanted else {},
        seconds_per_image=sum(record.occupied for record in finished) / images if images else None,
    )


def fingerprints(trials: Iterable[Trial], storage_uri: str) -> dict[str, str]:
    """The fingerprints of runs by trial; empty where the data that they would see is not there."""
    listed = list(trials)
    try:
        digests = {source: _digest(source, storage_uri) for source in {t.spec.data.source for t in listed}}
    except ConfigError:
        return {}
    return {trial.name: trial.spec.fingerprint(digests[trial.spec.data.source]) for trial in listed}


def _digest(source: str, storage_uri: str) -> str:
    """Of a data set's content."""
    if source.startswith(_MIXTURE):
        return mixtures.get(source.removeprefix(_MIXTURE)).digest
    return data.read_manifest(data.uri(source, storage_uri)).digest


def _planned(note: StudyNote, ledger: Ledger) -> list[Trial]:
    """The trials of a study as far as they are known: by its file, and by the points that were proposed."""
    plan = _plan(json.dumps(note.spec))
    known = {trial.arm for trial in plan.trials}
    trials = list(plan.trials)
    for _, stored in sorted(ledger.points().items()):
        if stored.point.name not in known:
            seeds = plans.seeds(plan.study, stored.point)
            trials += [plans.make_trial(plan.study, plan.base, stored.point, seed) for seed in seeds]
    return trials


@functools.lru_cache(maxsize=1)
def _plan(study: str) -> Plan:
    """The plan of a study as JSON; the same one is asked for again and again while somebody watches."""
    return plans.plan(StudySpec.model_validate_json(study))


def _name(study: str) -> str:
    """The name of the study that a name or a file means."""
    if study.endswith((".yaml", ".yml")):
        return study_files.load(study).name
    return study


def _unknown(name: str, storage_uri: str) -> ConfigError:
    known = Folder(f"{storage_uri.rstrip('/')}/studies").names()
    remedy = f"Studies there: {', '.join(known)}." if known else f"Run it: hasten sweep {name}."
    return ConfigError(name, f"no such study has run with the store {storage_uri}", remedy)


def _watch(seen: Standing, place: Folder, storage_uri: str, console: Console) -> Standing:
    """Show the study anew every few seconds until its driver says that it has ended, or Ctrl-C."""
    with Live(_rendered(seen), console=console, auto_refresh=False, transient=False) as screen:
        while seen.note is not None and seen.note.state == "running":
            began = time.monotonic()
            try:
                seen = standing(place, storage_uri)
                screen.update(_rendered(seen), refresh=True)
            except Fault as fault:  # an outage of the storage ends no view
                screen.update(Group(_rendered(seen), Text(str(fault), style="red")), refresh=True)
            time.sleep(max(_SECONDS, _PATIENCE * (time.monotonic() - began)))
    return seen


def _rendered(seen: Standing) -> RenderableType:
    assert seen.note is not None, "a study that never ran is refused before"
    shown = live.render(seen.note, seen.records)
    if not seen.stale:
        return shown
    words = (
        f"{seen.stale} more records are of trials that the study no longer has, or has with other settings"
    )
    return Group(shown, Text(words, style="dim"))


def _plain(seen: Standing) -> dict[str, Any]:
    note = seen.note
    assert note is not None
    lost = note.state == "running" and not note.is_alive()
    return {
        "study": note.name,
        "status": "lost" if lost else note.state,
        "why": note.why,
        "host": note.host,
        "pid": note.pid,
        "started": note.started,
        "heartbeat": note.heartbeat,
        "total": note.trials,
        "counts": dict(Counter(record.state for record in seen.records)),
        "stale": seen.stale,
        "spent": note.spent.model_dump(),
        "open": {name: trial.model_dump(mode="json") for name, trial in note.open.items()},
        "trials": [record.model_dump(mode="json", exclude={"curves", "items"}) for record in seen.records],
    }
