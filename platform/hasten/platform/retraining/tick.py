"""``hasten retrain``: one idempotent tick that any scheduler may call.

Its state is the registry's: a version is tagged with the key of what it was trained from, and with the
decision about it. A tick that is killed anywhere is finished by the next one. A lease keeps two ticks, on
whichever machines, from training the same; every tick leaves an entry in the ledger.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hasten.platform import database, importing, leases, settings, training
from hasten.platform.connection import connected
from hasten.platform.leases import Lease
from hasten.platform.locks import Busy
from hasten.platform.registry import Registry, Version
from hasten.platform.retraining.ledger import Decided, Ledger
from hasten.platform.retraining.pipeline import Pipeline
from hasten.trainers import specs
from hasten.trainers.datasets import sources
from hasten.trainers.datasets.data import BUILT_IN
from hasten.trainers.errors import HastenError, Stopped
from hasten.trainers.generation import export
from hasten.trainers.job import Job
from hasten.trainers.tracker import EVAL_LOSS

log = logging.getLogger(__name__)

_KEY: Final = "hasten.retrain.key"
_DECISION: Final = "hasten.retrain.decision"
_REASON: Final = "hasten.retrain.reason"
_RUN_URI: Final = "hasten.run_uri"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a tick decided, and why."""

    decision: Literal["promoted", "rejected", "unchanged", "not_due", "running"]
    reason: str
    version: str | None = None


def tick(spec: Pipeline, *, dry_run: bool, console: Console) -> dict[str, Any]:
    """Bring a pipeline up to date; what ``hasten retrain --json`` prints.

    Raises:
        ConfigError: unknown or ill-typed keys of its recipe, impossible values.
        Stopped: a signal ended the training; the next tick goes on.
        Fault: a service failed.
    """
    run = specs.load(spec.recipe, spec.overrides)
    services = connected(console, tracking=True)
    if run.data.source in BUILT_IN and not dry_run:
        importing.import_dataset(run.data.source, run.data.source, services.storage_uri)
    job = sources.bind(run, services.storage_uri)
    key = key_of(job)
    registry = Registry(services.tracking_uri, spec.model)
    if dry_run:
        made = _known(_version_of(key, registry)) or _would(job)
    else:
        made = _in_turn(spec, job, key, registry, console)
    return {
        "pipeline": spec.name,
        "key": key,
        "decision": made.decision,
        "reason": made.reason,
        "version": made.version,
    }


def key_of(job: Job) -> str:
    """What a version is made from: the run's identity, which holds the data's digest, and our own version."""
    text = f"{job.fingerprint}/{metadata.version('hasten')}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def history(spec: Pipeline, *, console: Console) -> dict[str, Any]:
    """The ledger of a pipeline: printed, and what ``hasten retrain --history --json`` prints.

    Raises:
        ConfigError: the database refuses us.
        Fault: the database failed.
    """
    entries = Ledger(database.opened(settings.load().database), spec.name).entries()
    table = Table(title=f"pipeline {spec.name}", title_justify="left", box=None, pad_edge=False)
    for heading in ("began", "took", "decision", "version", "why"):
        table.add_column(heading, justify="right" if heading == "took" else "left")
    for each in entries:
        began = datetime.fromtimestamp(each.began, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        took = f"{each.ended - each.began:,.0f} s" if each.ended is not None else ""
        table.add_row(began, took, each.decision or "at work", each.version or "", Text(each.reason or ""))
    console.print(table if entries else f"pipeline {spec.name}: no tick yet", markup=False)
    return {"pipeline": spec.name, "ticks": [asdict(each) for each in entries]}


def _in_turn(spec: Pipeline, job: Job, key: str, registry: Registry, console: Console) -> Decision:
    """Decide as the only tick of this pipeline, and write it down; or say who is at it."""
    engine = database.opened(settings.load().database)
    ledger, what = Ledger(engine, spec.name), f"pipeline {spec.name}"
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(leases.held(engine, what, what=what, on_lost=_stop))
        except Busy as busy:
            ledger.skip(key, "running", busy.problem)
            return Decision(decision="running", reason=busy.problem)
        entry = ledger.begin(key, lease)
        try:
            made = _decide(spec, job, key, registry, lease, console)
        except BaseException as error:
            _note_end(ledger, entry, lease, error)
            raise
        ledger.end(entry, lease, made.decision, made.reason, made.version)
        return made


def _note_end(ledger: Ledger, entry: int, lease: Lease, error: BaseException) -> None:
    """Write down why there is no decision; whoever was stopped as the lease is lost hears of that instead."""
    how: Decided = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
    try:
        ledger.end(entry, lease, how, str(error) or type(error).__name__, None)
    except leases.Lost:
        raise
    except HastenError as trouble:
        log.warning("%s; the next tick writes down that this one died", trouble)


def _stop() -> None:
    """Training ends at a checkpoint, and the command in order."""
    os.kill(os.getpid(), signal.SIGTERM)


def _decide(
    spec: Pipeline, job: Job, key: str, registry: Registry, lease: Lease, console: Console
) -> Decision:
    """Do what is left to do for ``key``: train, register, judge, promote."""
    begun = _version_of(key, registry)
    if (known := _known(begun)) is not None:
        return known
    version = begun or _train_and_register(spec, job, key, registry, lease, console)
    return _judge(job, version, registry, lease)


def _known(version: Version | None) -> Decision | None:
    """What was decided about a version before."""
    if version is None or _DECISION not in version.tags:
        return None
    reason = f"version {version.number} was made from this data and recipe, and {version.tags[_DECISION]}"
    return Decision(decision="unchanged", reason=reason, version=version.number)


def _version_of(key: str, registry: Registry) -> Version | None:
    """The version that an earlier tick made for ``key``, decided or not."""
    return next((version for version in registry.versions() if version.tags.get(_KEY) == key), None)


def _would(job: Job) -> Decision:
    reason = f"would train {job.spec.budget.images:,} images on data {job.data_digest[:12]}, then compare"
    return Decision(decision="not_due", reason=reason)


def _train_and_register(
    spec: Pipeline, job: Job, key: str, registry: Registry, lease: Lease, console: Console
) -> Version:
    trained = training.train(job.spec, console=console, experiment=f"retrain-{spec.name}", tags={_KEY: key})
    with tempfile.TemporaryDirectory() as folder:
        export.pipeline(job.uri, Path(folder))
        tags = {_KEY: key, _RUN_URI: job.uri, "hasten.data.digest": job.data_digest}
        lease.check()
        return registry.register(Path(folder), run_id=str(trained["mlflow_run_id"]), tags=tags)


def _judge(job: Job, challenger: Version, registry: Registry, lease: Lease) -> Decision:
    """Compare with the champion on the current held-out images and noise, and act on it.

    The alias moves before the decision is written: a tick killed in between judges once more and comes to
    the same end.
    """
    champion = registry.champion()
    ours = export.held_out_loss(challenger.tags[_RUN_URI], job)
    if champion is None or champion.number == challenger.number:  # the latter: killed after the alias moved
        made = Decision(
            decision="promoted",
            reason=f"no other champion; {EVAL_LOSS} {ours:.4f}",
            version=challenger.number,
        )
    else:
        theirs = export.held_out_loss(champion.tags[_RUN_URI], job)
        better = ours < theirs
        reason = f"{EVAL_LOSS} {ours:.4f} against the champion's {theirs:.4f} (version {champion.number})"
        made = Decision(
            decision="promoted" if better else "rejected", reason=reason, version=challenger.number
        )
    lease.check()  # scoring takes a while
    if made.decision == "promoted":
        registry.promote(challenger)
    registry.tag(challenger, {_DECISION: made.decision, _REASON: made.reason})
    return made
