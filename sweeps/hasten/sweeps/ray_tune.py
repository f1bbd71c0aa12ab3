"""Runs the trials of a plan on a Ray cluster. Ray Tune's only door.

One trial function, one loop, two kinds of worker: with one worker a trial runs inside a Tune actor that is
reused by the next trial; with several it is a small driver that starts a TorchTrainer and forwards its
reports. Tune keeps no state that matters: a resumed sweep is the plan minus what the store has results of.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from hasten.sweeps.study import StudyExecution
from hasten.trainers import ray_train, session
from hasten.trainers.errors import ConfigError, HastenError
from hasten.trainers.job import Job
from hasten.trainers.records import Report
from hasten.trainers.tracker import Tracker
from hasten.trainers.worker import Worker

OpenTracker = Callable[[str], Tracker]
State = Literal["running", "finished", "failed", "stopped"]

_SECONDS_BETWEEN_RESULTS: Final = 1.0
_RESTARTS: Final = (
    2  # of a trial whose actor or node died; a trial that fails by its own fault is not retried
)
_DRIVER: Final = {"memory": 1.0}  # of a several-worker trial: one byte, so that all CPUs are the workers'


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a trial: how far it is, or how it ended."""

    trial: str
    state: State
    report: Report | None = None
    error: str = ""


def execute(
    jobs: Mapping[str, Job],
    *,
    name: str,
    execution: StudyExecution,
    open_tracker: OpenTracker,
    scratch: str,
    observe: Callable[[Event], None],
    hours: float | None = None,
) -> dict[str, State]:
    """Run every job to its end, as many at a time as the cluster holds; returns how each trial ended.

    Args:
        jobs: what to run, by trial name, in the order in which they should start.
        name: the study's name.
        execution: how trials share the cluster.
        open_tracker: called with a trial's name in the process that trains it.
        scratch: a folder or URI for Tune's own bookkeeping; nothing in it is needed afterwards.
        observe: told of every event, in the process that calls ``execute``.
        hours: stop starting and continuing trials after that long.

    Raises:
        ConfigError: the cluster can never hold a trial.
    """
    # Tune writes logs for its own viewers and moves trials into their folders; neither is wanted.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    watcher = _Watcher(observe)
    tuner = tune.Tuner(
        _trainable(jobs, execution, open_tracker, scratch),
        param_space={"trial": tune.grid_search(list(jobs))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrency(execution),
            reuse_actors=execution.workers == 1,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
            time_budget_s=hours * 3600 if hours else None,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=scratch,
            verbose=0,
            callbacks=[watcher],
            failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    finally:
        ray_train.forget(scratch, name)
    return {trial: watcher.states.get(trial, "stopped") for trial in jobs}


def concurrency(execution: StudyExecution) -> int:
    """How many trials run at once: what is asked for, or all that the cluster holds.

    Tune does not count the workers of a nested trainer, so a number that is too large would let trials
    wait for each other forever.

    Raises:
        ConfigError: the cluster cannot hold that many, or not even one.
    """
    ray_train.require_room(execution.workers, cpus=execution.cpus, gpus=execution.gpus)
    cluster = ray.cluster_resources()
    needs = {"CPU": execution.workers * execution.cpus, "GPU": execution.workers * execution.gpus}
    room = min(int(cluster.get(kind, 0.0) / each + 1e-9) for kind, each in needs.items() if each)
    if execution.concurrent == "auto":
        return room
    if execution.concurrent > room:
        problem = (
            f"{execution.concurrent} trials of {needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs do not fit"
        )
        remedy = f"The cluster has room for {room} at a time."
        raise ConfigError("execution.concurrent", problem, remedy)
    return execution.concurrent


def _trial_name(trial: Any) -> str:
    return str(trial.config["trial"])


def _trainable(
    jobs: Mapping[str, Job], execution: StudyExecution, open_tracker: OpenTracker, scratch: str
) -> Any:
    """What Tune starts for each trial, with the resources that it occupies."""
    if execution.workers == 1:
        bound = tune.with_parameters(TrialActor, jobs=dict(jobs), open_tracker=open_tracker)
        needs = {"CPU": execution.cpus} | ({"GPU": execution.gpus} if execution.gpus else {})
        return tune.with_resources(bound, needs)
    bound = tune.with_parameters(
        _several_workers, jobs=dict(jobs), open_tracker=open_tracker, scratch=scratch
    )
    return tune.with_resources(bound, _DRIVER)


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """A process that trains one trial after the other, so that torch is imported once."""

    def setup(self, config: dict[str, Any], jobs: dict[str, Job], open_tracker: OpenTracker) -> None:
        self._jobs = jobs
        self._open_tracker = open_tracker
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._trial = config["trial"]
        self._track: Tracker | None = None
        self._reports: Iterator[Report] | None = None

    def step(self) -> dict[str, Any]:
        """Train until there is something worth reporting; the last result has ``done``."""
        try:
            started = time.monotonic()
            for report in self._running():
                if report.evaluated or time.monotonic() - started >= _SECONDS_BETWEEN_RESULTS:
                    return {"images": report.images, "report": asdict(report), **report.metrics}
            self._close("finished")
            return {"done": True, "state": "finished"}
        except HastenError as error:
            self._close("failed")
            return {"done": True, "state": "failed", "error": str(error)}

    def cleanup(self) -> None:
        self._close("stopped")

    def _running(self) -> Iterator[Report]:
        if self._reports is None:
            self._track = self._open_tracker(self._trial)
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            self._reports = session.run(
                self._jobs[self._trial], worker=Worker(device=device), track=self._track
            )
        return self._reports

    def _close(self, status: Literal["finished", "failed", "stopped"]) -> None:
        if self._track is not None:
            self._track.close(status)
            self._track = None


def _several_workers(
    config: dict[str, Any], *, jobs: dict[str, Job], open_tracker: OpenTracker, scratch: str
) -> None:
    """A trial that is a driver: it starts the trainer and forwards its reports to Tune."""
    trial = config["trial"]
    try:
        ray_train.fit(
            jobs[trial],
            open_tracker=_Bound(open_tracker, trial),
            scratch=scratch,
            callbacks=[TuneReportCallback()],
        )
        tune.report({"done": True, "state": "finished"})
    except HastenError as error:
        tune.report({"done": True, "state": "failed", "error": str(error)})


@dataclass(frozen=True, slots=True)
class _Bound:
    """``open_tracker`` for one trial, picklable."""

    open_tracker: OpenTracker
    trial: str

    def __call__(self) -> Tracker:
        return self.open_tracker(self.trial)


def _nobody(event: Event) -> None:
    del event


class _Watcher(tune.Callback):  # type: ignore[misc]
    """Turns Tune's callbacks into events, in the driver's process."""

    def __init__(self, observe: Callable[[Event], None]) -> None:
        self._observe = observe
        self.states: dict[str, State] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks into snapshots that we never read: a terminal does not belong there."""
        return {"_observe": _nobody, "states": {}}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        del iteration, trials, info
        name = _trial_name(trial)
        if "state" in result:
            self._end(name, result["state"], result.get("error", ""))
        elif "report" in result:
            self._observe(Event(trial=name, state="running", report=Report(**result["report"])))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune completes a trial that it stops by the time budget, too: without a state of its own."""
        del iteration, trials, info
        if _trial_name(trial) not in self.states:
            self._end(_trial_name(trial), "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, info
        text = Path(trial.error_file).read_text() if trial.error_file else "unknown"
        self._end(_trial_name(trial), "failed", text.strip().splitlines()[-1])

    def _end(self, name: str, state: State, error: str = "") -> None:
        self.states[name] = state
        self._observe(Event(trial=name, state=state, error=error))
