"""``hasten sweep``: conduct a study on the cluster, minus what is over, and make MLflow agree."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from hasten.platform import identities, keepsakes, notes, progress, provenance, settings, study_reports
from hasten.platform.identities import OpenRun
from hasten.platform.identity import FINGERPRINT, TRIAL
from hasten.platform.locks import only_driver, only_one
from hasten.platform.reconciliation import STATUS, Seen
from hasten.platform.saying import say
from hasten.platform.search_view import SearchView
from hasten.platform.signals import stop_on_signal
from hasten.platform.studies import Standing, Study, bind, outcome
from hasten.platform.training import retell
from hasten.sweeps.conducting.conductor import Conductor
from hasten.sweeps.plan import Plan, Trial
from hasten.sweeps.reports.build import StudyReport
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.errors import Fault, Stopped
from hasten.trainers.specs import flatten
from hasten.trainers.tracker import (
    EVAL_FRECHET,
    EVAL_LOSS,
    FIXED_NOISE_GRID,
    RESOLVED_CONFIG,
    TRAIN_LOSS,
    EndStatus,
    Tracker,
)

if TYPE_CHECKING:
    from hasten.platform.tracker import MlflowTracker
    from hasten.sweeps.attempt import Task  # with torch
    from hasten.sweeps.conducting.terms import Assignment

_SECONDS_BETWEEN_LOOKS: Final = 0.2  # at a terminal's bars
_TELLERS: Final = 8  # trials that the tracking server is told of at once

log = logging.getLogger(__name__)


def sweep(plan: Plan, *, console: Console) -> tuple[dict[str, Any], StudyReport]:
    """Run what is left of a study; what ``hasten sweep --json`` prints, and what it found.

    Raises:
        ConfigError: the study cannot run as it is, or not on this cluster.
        Stopped: a signal or a limit ended it; the same command goes on.
        Fault: trials failed in a way that may be mended; the others are over.
    """
    name = plan.study.name
    with only_one(settings.home() / "locks" / f"study-{name}", what=f"study {name}"):
        study = bind(plan, console=console)
        with study.ledger() as ledger:
            only_driver(ledger.note, say=lambda text: console.print(text, soft_wrap=True))
        conductor = study.conductor()
        try:
            now = _now(conductor)
            if now.is_finished and study.tracking.status(study.parent) == "FINISHED":
                console.print(f"{name}: all {now.planned} trials are over; nothing to run")
                return outcome(study, now, {}), study_reports.report(study, now)
            return _conduct(study, conductor, console)
        finally:
            conductor.close()


def _conduct(study: Study, conductor: Conductor, console: Console) -> tuple[dict[str, Any], StudyReport]:
    now = _now(conductor)
    if not conductor.over:
        _require_cluster(study)
    track = _open_parent(study, is_over=conductor.over)
    try:
        share_view(study, image_step=0)
        left = now.planned - len(now.records)
        console.print(f"{study.name}: {left} trials to run, {len(now.records)} over already")
        console.print(f"watch it at {study.tracking.link(study.name)}", soft_wrap=True)
        _run(study, conductor, track, console)
        now = _now(conductor)
        settle(study, now, track.run_id)
        share_view(study, image_step=max(trial.spec.budget.images for trial in now.trials))
        told = study_reports.report(study, now)
        if now.records:
            attach(told, track)
    except BaseException:
        track.close("stopped")
        raise
    failed = [record.trial for record in now.in_order() if record.state == "failed"]
    again = now.again
    track.close(now.ending)
    if not now.is_finished:
        raise _stopped(study, conductor)
    if again:
        problem = f"{len(again)} of {now.planned} trials failed: {', '.join(again[:10])}"
        raise Fault(study.name, problem, "The same command tries them again.")
    if failed:
        console.print(f"{len(failed)} trials failed for good: {', '.join(failed[:10])}", soft_wrap=True)
    states = {view.trial: view.state for view in conductor.roster.views()}
    return outcome(study, now, states), told


def _open_parent(study: Study, *, is_over: bool) -> MlflowTracker:
    """The tracker of the study's own run, with the files that one needs to repeat it."""
    source, files = provenance.current(), identities.study_files(study.plan)
    if not is_over:  # who only mends what MLflow missed has trained nothing
        files |= {provenance.REQUIREMENTS: provenance.packages().encode()}
        keepsakes.write(study.uri, study.parent, source, files)
        files |= source.files()
    return study.tracking.open(study.parent, files=files)


def _now(conductor: Conductor) -> Standing:
    roster = conductor.roster
    return Standing(trials=roster.trials(), records=roster.records(), planned=conductor.planned)


def _require_cluster(study: Study) -> None:
    """Attach to Ray, and refuse a study that it can never hold before anything is written down.

    Raises:
        ConfigError: with the numbers.
        Fault: Ray does not answer.
    """
    # Importing Ray takes seconds: not for a study that is finished.
    from hasten.platform import cluster
    from hasten.sweeps import ray_tune

    cluster.attach(study.services)
    ray_tune.concurrency(study.plan.study.execution)


def _run(study: Study, conductor: Conductor, track: MlflowTracker, console: Console) -> None:
    """Run the trials that are left, until all are over or somebody says to stop."""
    if conductor.over:
        return
    from hasten.platform import cluster
    from hasten.sweeps import ray_tune
    from hasten.sweeps.floor import Event

    records = conductor.roster.records
    silence = f"Ray at {study.services.ray_address} does not answer any more"

    def last_words() -> None:
        conductor.stop(silence)
        conductor.close()
        track.close("stopped")
        say(_stopped(study, conductor))

    with (
        progress.board(console, study.name, conductor.planned) as board,
        SearchView(settings.load().database, study.plan.study, lambda: records().values()) as view,
        stop_on_signal() as stop,
        cluster.watched(study.services, last_words) as lost,
    ):
        shown = 0.0

        def observe(event: Event) -> None:
            nonlocal shown
            view.look()
            if event.state != "running":
                board.ended(conductor.roster.view(event.trial), conductor.snapshot())
            elif console.is_terminal and time.monotonic() - shown >= _SECONDS_BETWEEN_LOOKS:
                shown = time.monotonic()
                board.show(conductor.snapshot())

        try:
            ray_tune.execute(
                conductor,
                name=study.name,
                execution=study.plan.study.execution,
                task=_tasks(study, track.run_id),
                scratch=cluster.scratch(study.services),
                observe=observe,
                stop=stop.is_set,
                lost=lost.is_set,
            )
            if lost.is_set():
                conductor.stop(silence)
            elif stop.is_set():
                conductor.stop("stopped by a signal")
        finally:
            cluster.detach()


def _stopped(study: Study, conductor: Conductor) -> Stopped:
    """Why not all trials are over."""
    now = _now(conductor)
    problem = f"{conductor.why_stopped or 'stopped'}; {len(now.records)} of {now.planned} trials are over"
    return Stopped(study.name, problem, "The same command goes on with the others.")


def _tasks(study: Study, parent_run_id: str) -> Callable[[Assignment], Task]:
    """What to send along with an assignment: among it how to open its trial's tracker.

    Runs that the tracking server does not have by now are made by this command alone, since nobody else may
    conduct the study: their trials need not look for them.
    """
    from hasten.sweeps.attempt import Task

    there = {run.tags.get(TRIAL) for run in study.tracking.seen(study.name)}
    waits = study.plan.study.stopping is not None

    def task(assignment: Assignment) -> Task:
        trial = assignment.trial
        fresh = assignment.attempt == 1 and trial.name not in there
        opened = OpenRun(study.tracking, study.identity(trial, parent_run_id), fresh=fresh)
        return Task(trial=trial.name, job=assignment.job, open_tracker=opened, waits=waits)

    return task


def share_view(study: Study, *, image_step: int) -> None:
    """Set what MLflow shows of the study: scores and swept settings, the image grid at ``image_step``.

    While trials run, only the images of the start are sure to be there.
    """
    spec = study.plan.study
    of_arms = {key for changes in spec.arms.values() for key in flatten(changes)}
    swept = sorted(of_arms | spec.space.keys())
    settings_of = [flatten(trial.spec.model_dump(mode="json")) for trial in study.plan.trials]
    metric = spec.objective.metric
    columns = [f"final/{metric}", f"best/{metric}", f"final/{EVAL_LOSS}", f"final/{EVAL_FRECHET}", metric]
    study.tracking.set_shared_view(
        study.name,
        list(dict.fromkeys([*columns, EVAL_LOSS, TRAIN_LOSS])),
        swept,
        axes=[key for key in swept if all(key in each for each in settings_of)],
        image_step=image_step,
        note=notes.experiment(spec.question, study.tracking.link(study.name)),
    )


def settle(study: Study, now: Standing, parent_run_id: str) -> None:
    """Make the tracking server agree with the ledger: every trial is there, with its true status.

    A server that fails by now is no failure of the study: the same command tells it later.
    """
    statuses: dict[str, EndStatus] = {}
    stopped_by: dict[str, str] = {}
    for trial in now.trials:
        record = now.records.get(trial.name)
        if record is None:
            statuses[trial.name] = "stopped"
        elif record.state == "stopped":
            statuses[trial.name] = "finished"
            stopped_by[trial.name] = record.verdict.rule if record.verdict else ""
        else:
            statuses[trial.name] = record.state
    try:
        study.tracking.replay()
        seen, earlier = _current(study, now, study.tracking.seen(study.name))
        told = {run.tags.get(TRIAL): run.status for run in seen}
        untold = [
            trial
            for trial in now.trials
            if trial.name in now.records and told.get(trial.name) != STATUS[statuses[trial.name]]
        ]
        if untold:
            with ThreadPoolExecutor(_TELLERS) as pool:
                list(pool.map(lambda trial: retell_trial(study, trial, now, parent_run_id), untold))
            seen, earlier = _current(study, now, study.tracking.seen(study.name))
        study.tracking.reconcile(study.name, statuses, stopped_by=stopped_by, seen=seen)
        study.tracking.reconcile(study.name, {}, seen=earlier)
    except Fault as fault:
        log.warning("%s; the same command tells it what it missed", fault)


def _current(study: Study, now: Standing, seen: Sequence[Seen]) -> tuple[list[Seen], list[Seen]]:
    """The runs of the study as it is, and those of trials that an edit has since made other runs."""
    fingerprints = {trial.name: study.job(trial).fingerprint for trial in now.trials}
    ours: list[Seen] = []
    earlier: list[Seen] = []
    for run in seen:
        trial = run.tags.get(TRIAL)
        is_ours = trial is None or run.tags.get(FINGERPRINT) == fingerprints.get(trial)
        (ours if is_ours else earlier).append(run)
    return ours, earlier


def retell_trial(study: Study, trial: Trial, now: Standing, parent_run_id: str) -> None:
    """Tell the tracking server all that the store knows of a trial that is over.

    For a trial whose process did not come to say so itself, and for a server that is new.
    """
    record, job = now.records[trial.name], study.job(trial)
    identity = study.identity(trial, parent_run_id)
    if record.state == "finished" and RunStore(job.uri).result() is not None:
        retell(job, study.tracking, identity)
        return
    track = study.tracking.open(identity)
    track.artifact(RESOLVED_CONFIG, job.resolved().encode())
    for step, picture in RunStore(job.uri).sheets():
        track.image(FIXED_NOISE_GRID, picture, step=step)
    for metric, curve in record.curves.items():
        for step, value in curve:
            track.metrics({metric: value}, step=step)
    track.close("failed" if record.state == "failed" else "finished")


def attach(told: StudyReport, track: Tracker) -> None:
    """Write the report, and put it into the study's run."""
    for path in study_reports.write(told):
        track.artifact(f"report/{path.name}", path.read_bytes())
    track.tags(study_reports.summary(told))
