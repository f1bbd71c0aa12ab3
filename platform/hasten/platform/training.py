"""``hasten train``: one run, by the launcher that its recipe names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console

from hasten.platform import identities, importing, keepsakes, progress, provenance
from hasten.platform.connection import connected
from hasten.platform.identities import OpenRun
from hasten.platform.identity import RunIdentity
from hasten.platform.services import Services
from hasten.platform.signals import stop_on_signal
from hasten.platform.tracking import Tracking, tracker_of
from hasten.trainers import local, session
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.errors import Fault, Stopped
from hasten.trainers.job import Job
from hasten.trainers.specs import RunSpec
from hasten.trainers.tracker import EndStatus, NullTracker, Tracker

log = logging.getLogger(__name__)


def train(
    spec: RunSpec,
    *,
    console: Console,
    experiment: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Bring a run to its end from wherever it stands; what `hasten train --json` prints.

    ``experiment`` and ``tags`` place it in the tracking server.

    Raises:
        Stopped: a signal ended it; the same command goes on.
        HastenError: whatever went wrong.
    """
    services = connected(console, tracking=True, ray=spec.execution.launcher == "ray")
    importing.ensure(spec.data.source, services.storage_uri)
    job = sources.bind(spec, services.storage_uri)
    return run(job, services, console=console, experiment=experiment, tags=tags)


def run(
    job: Job,
    services: Services,
    *,
    console: Console,
    experiment: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """As :func:`train`, for a run that is bound to its data."""
    tracking = tracker_of(services)
    source = provenance.current()
    identity = identities.run(job, source, experiment=experiment, tags=tags)
    if RunStore(job.uri).result() is None:
        keepsakes.write(job.uri, identity, source)
        launch = _locally if job.spec.execution.launcher == "local" else _on_ray
        launch(job, tracking, identity, services, console)
    else:
        repair(job, tracking, identity)
    return outcome(job, tracking, identity)


def repair(job: Job, tracking: Tracking, identity: RunIdentity) -> None:
    """Tell the tracking server what it missed of a finished run."""
    if tracking.status(identity) != "FINISHED":
        kept = keepsakes.read(job.uri)
        if kept is not None:  # the command that trained it is the one to tell of, not this one
            identity = replace(kept.identity, experiment=identity.experiment)
        retell(job, tracking, identity, files=kept.source.files() if kept else {})


def retell(
    job: Job, tracking: Tracking, identity: RunIdentity, *, files: Mapping[str, bytes] | None = None
) -> None:
    """Tell the tracking server everything about a finished run."""
    track = tracking.open(identity, files=files)
    session.retell(job, track)
    track.close("finished")


def outcome(job: Job, tracking: Tracking, identity: RunIdentity) -> dict[str, Any]:
    """A finished run as the stable JSON of the command line."""
    result = RunStore(job.uri).result()
    assert result is not None, "a run that was not stopped has a result"
    try:
        mlflow_run_id = tracking.run_id(identity)
    except Fault as fault:  # a tracking server that fails once training runs is no failure of the run
        log.warning("%s; the next command tells it what it missed", fault)
        mlflow_run_id = None
    return {
        "run": job.run,
        "fingerprint": job.fingerprint,
        "mlflow_run_id": mlflow_run_id,
        "status": result.status,
        "images": result.images,
        "resumed_from": result.resumed_from,
        "metrics": result.metrics,
        "checkpoint": result.checkpoint,
    }


def _locally(
    job: Job, tracking: Tracking, identity: RunIdentity, services: Services, console: Console
) -> None:
    del services
    with local.worker(job.spec) as worker, stop_on_signal() as stop:
        track: Tracker = (
            tracking.open(identity, observed=True, files=provenance.current().files())
            if worker.is_first
            else NullTracker()
        )
        bar_console = console if worker.is_first else Console(quiet=True)
        stopped = False
        try:
            with progress.run(bar_console, job.run, job.spec.budget.images) as bar:
                for report in session.run(job, worker=worker, track=track, stop=stop.is_set):
                    bar.observe(report)
                    stopped = report.stopped
        except BaseException:
            track.close("failed")
            raise
        track.close("stopped" if stopped else "finished")
    if stopped:
        raise Stopped(job.run, "stopped at a checkpoint", "The same command goes on from there.")


def _on_ray(
    job: Job, tracking: Tracking, identity: RunIdentity, services: Services, console: Console
) -> None:
    # Importing Ray takes seconds: only for those who train on it.
    from hasten.platform import cluster
    from hasten.trainers import ray_train

    cluster.attach(services)
    how: EndStatus = "failed"
    try:
        with progress.run(console, job.run, job.spec.budget.images) as bar, stop_on_signal() as stop:
            ray_train.fit(
                job,
                open_tracker=OpenRun(tracking, identity, files=provenance.current().files()),
                scratch=cluster.scratch(services),
                observe=bar.observe,
                stop=stop.is_set,
                resize_seconds=job.spec.execution.resize_seconds,
            )
        how = "finished" if RunStore(job.uri).result() else "stopped"
    except KeyboardInterrupt:
        how = "stopped"
    finally:
        if how != "finished":
            _end(tracking, identity, how)
    if how == "stopped":
        raise Stopped(job.run, "stopped", "The same command goes on from the last checkpoint.")


def _end(tracking: Tracking, identity: RunIdentity, status: EndStatus) -> None:
    """Say how a run ended, for a first worker that died before it could."""
    try:
        tracking.end(identity, status)
    except Fault as fault:
        log.warning("%s; the next command says how the run ended", fault)
