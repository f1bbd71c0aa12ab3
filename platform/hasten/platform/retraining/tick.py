"""``hasten retrain``: one idempotent tick that any scheduler may call.

Its state is the registry's: a version is tagged with the key of what it was trained from, with its verdict,
and with the decision once that is carried out. A tick that is killed anywhere is finished by the next one.
A lease keeps two ticks, on whichever machines, from training the same; every tick leaves an entry in the
ledger.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from sqlalchemy import Engine

from hasten.platform import database, leases, settings
from hasten.platform.connection import connected
from hasten.platform.identity import RunIdentity
from hasten.platform.leases import Lease
from hasten.platform.locks import Busy
from hasten.platform.registry import Registry
from hasten.platform.retraining import freshness, notices, observing
from hasten.platform.retraining.assessment import Assessment, assess
from hasten.platform.retraining.ledger import Decided, Ledger
from hasten.platform.retraining.notices import Hook
from hasten.platform.retraining.pipeline import Pipeline
from hasten.platform.retraining.triggers import NotDue
from hasten.platform.retraining.work import Decision, Work
from hasten.platform.services import Services
from hasten.platform.tracking import tracker_of
from hasten.trainers.errors import Fault, HastenError, Stopped

log = logging.getLogger(__name__)


def tick(pipeline: Pipeline, *, forced: bool = False, console: Console) -> dict[str, Any]:
    """Bring a pipeline up to date; what ``hasten retrain --json`` prints.

    Raises:
        ConfigError: unknown or ill-typed keys of its recipe, impossible values, a limit that it exceeds.
        Stopped: a signal or a limit ended the training; the next tick goes on.
        Fault: a service failed.
    """
    hook = notices.hook(pipeline.notify) if pipeline.notify else None
    services = connected(console, tracking=True)
    engine = database.opened(settings.load().database)
    ledger, what = Ledger(engine, pipeline.name), f"pipeline {pipeline.name}"
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(leases.held(engine, what, what=what, on_lost=_stop))
        except Busy as busy:
            key = ledger.key_at_work()
            ledger.skip(key, "running", busy.problem)
            return _told(pipeline, key, Decision(decision="running", reason=busy.problem))
        turn = _Turn(pipeline, services, engine, ledger, lease, console)
        try:
            made = turn.decide(forced=forced)
        finally:
            _send(engine, pipeline, hook)
        return _told(pipeline, turn.key, made)


@dataclass(slots=True)
class _Turn:
    """One tick by the holder of the lease, with its entry in the ledger; ``key`` is known when it decides."""

    pipeline: Pipeline
    services: Services
    engine: Engine
    ledger: Ledger
    lease: Lease
    console: Console
    key: str = ""

    def decide(self, *, forced: bool) -> Decision:
        """Decide, and write down whatever it comes to."""
        entry = self.ledger.begin(self.key, self.lease)
        try:
            with _deadline(self.pipeline.limits.hours):
                made = self._decided(entry, forced=forced)
        except BaseException as error:
            how: Decided = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
            self._note_end(entry, how, str(error) or type(error).__name__)
            raise
        self._end(entry, made.decision, made.reason, made.version)
        return made

    def _decided(self, entry: int, *, forced: bool) -> Decision:
        found = assess(self.pipeline, self.services, self.ledger, forced=forced, console=self.console)
        self.key = found.key
        self.ledger.aim(entry, self.lease, found.key)
        if isinstance(found.due, NotDue):
            version = found.known.number if found.known else None
            made = Decision(decision=found.due.decision, reason=found.due.reason, version=version)
        else:
            self.console.print(f"{self.pipeline.name}: {found.due.reason}", soft_wrap=True, markup=False)
            made = self._work().do(found, found.due)
        self._tell_freshness(found, entry)
        return made

    def _work(self) -> Work:
        registry = Registry(self.services.tracking_uri, self.pipeline.model)
        return Work(
            pipeline=self.pipeline,
            services=self.services,
            registry=registry,
            lease=self.lease,
            console=self.console,
        )

    def _tell_freshness(self, found: Assessment, entry: int) -> None:
        """Keep how fresh the champion is after this tick, and show it in the tracking server."""
        registry = Registry(self.services.tracking_uri, self.pipeline.model)
        now = observing.measured(self.pipeline.model, registry.champion(), found.source.job)
        freshness.keep(self.engine, self.pipeline.name, now, entry)
        try:
            track = tracker_of(self.services).open(_identity(self.pipeline))
            track.metrics(now.metrics(time.time()), step=entry)
            track.close("finished")
        except Fault as fault:
            log.warning("%s; the next tick shows how fresh the champion is", fault)

    def _end(self, entry: int, how: Decided, reason: str, version: str | None = None) -> None:
        notify, notice = self.pipeline.notify, None
        if notify is not None and how in notify.on:
            notice = notices.body(self.pipeline.name, how, reason, version)
        self.ledger.end(entry, self.lease, how, reason, version, notice=notice)

    def _note_end(self, entry: int, how: Decided, reason: str) -> None:
        """Write down why there is no decision; whoever was stopped as the lease is lost hears of that."""
        try:
            self._end(entry, how, reason)
        except leases.Lost:
            raise
        except HastenError as trouble:
            log.warning("%s; the next tick writes down that this one died", trouble)


def _told(pipeline: Pipeline, key: str, made: Decision) -> dict[str, Any]:
    return {
        "pipeline": pipeline.name,
        "key": key,
        "decision": made.decision,
        "reason": made.reason,
        "version": made.version,
    }


def _identity(pipeline: Pipeline) -> RunIdentity:
    """The pipeline's own run in the tracking server: its steps are ticks."""
    note = (
        f"Pipeline **{pipeline.name}** keeps model `{pipeline.model}` fresh. The step of every metric is the "
        f"number of a tick. Its story: `hasten retrain {pipeline.name} --history`."
    )
    return RunIdentity(experiment=f"retrain-{pipeline.name}", name=pipeline.name, kind="pipeline", note=note)


def _stop() -> None:
    """Training ends at a checkpoint, and the command in order."""
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _deadline(hours: float | None) -> Iterator[None]:
    """Stop the tick after so many hours."""
    if hours is None:
        yield
        return
    timer = threading.Timer(hours * 3600.0, _stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _send(engine: Engine, pipeline: Pipeline, hook: Hook | None) -> None:
    """Tell the webhook what it was not told yet; whatever fails there is no failure of the tick."""
    if hook is None:
        return
    try:
        notices.send(engine, pipeline.name, hook)
    except HastenError as trouble:
        log.warning("%s; the next tick tells the webhook", trouble)
