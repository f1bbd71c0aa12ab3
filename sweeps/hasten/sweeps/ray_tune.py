"""Runs the trials that a conductor hands out on a Ray cluster. Ray Tune's only door.

Tune starts processes and reuses them, carries news, and notices losses. What to run, when to stop and what to
try again is the conductor's business, and Tune keeps no state that matters. A trial with one worker trains in
Tune's own process; with several, that process conducts them (:mod:`hasten.trainers.ray_train`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ray
from ray import cloudpickle, tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from hasten.sweeps.attempt import Attempt, Last, News, Task, failed
from hasten.sweeps.conducting.terms import Assignment, Conducting
from hasten.sweeps.floor import Event, Floor
from hasten.sweeps.study import StudyExecution
from hasten.trainers import capacity, ray_train, session
from hasten.trainers.errors import ConfigError
from hasten.trainers.tracker import EndStatus

_DRIVER: Final = {"memory": 1.0}  # of a several-worker trial: one byte, so that all CPUs are the workers'
_SECONDS_TO_CLOSE: Final = 8.0  # Tune kills a process that takes longer to stop than ten
_NEWS: Final = "news"
_NODE: Final = "node"
_SETTINGS: Final = {
    # Tune writes logs for its own viewers and snapshots that nobody reads.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    # It asks the head every ten seconds how large the cluster is, and waits for an answer for ever.
    "TUNE_STATE_REFRESH_PERIOD": str(10**9),
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Signals are the caller's.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


def execute(
    conductor: Conducting,
    *,
    name: str,
    execution: StudyExecution,
    task: Callable[[Assignment], Task],
    scratch: str,
    observe: Callable[[Event], None],
    stop: Callable[[], bool] = session.never,
    lost: Callable[[], bool] = session.never,
) -> None:
    """Run what ``conductor`` hands out, as many trials at a time as the cluster holds, until it is over.

    Every evaluation reaches the conductor, in order, before a trial with one worker trains past it; one with
    several may be a few reports further. A trial that is stopped writes a checkpoint first.

    Args:
        conductor: called from this thread alone; it hears of the end of everything that it handed out.
        name: the study's name.
        execution: how trials share the cluster.
        task: what to send along with an assignment.
        scratch: a folder or URI for Ray's own bookkeeping; nothing in it is needed afterwards.
        observe: told of every event, in this thread.
        stop: asked a few times a second; then all trials write a checkpoint and end, if they can soon.
        lost: the same for a cluster whose head is gone; then nothing of Ray's is cleaned up.

    Raises:
        ConfigError: the cluster can never hold a trial, or not as many as asked for.
        Exception: whatever the conductor raised, after its trials have ended.
    """
    most = concurrency(execution)
    if conductor.over:
        return
    os.environ.update(_SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    floor = Floor(conductor, task=task, observe=observe, stop=lambda: stop() or lost())
    tuner = tune.Tuner(
        _trainable(execution, scratch),
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(floor),
            scheduler=_Scheduler(floor, most, lost),
            num_samples=-1,
            max_concurrent_trials=most,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=scratch,
            verbose=0,
            callbacks=[_Watcher(floor, lost)],
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    except (_Enough, _Abandoned):
        pass
    finally:
        floor.clear()
        ray_train.forget(scratch, name)
    if floor.trouble is not None:
        raise floor.trouble


def concurrency(execution: StudyExecution) -> int:
    """How many trials run at once: what is asked for, or all that the cluster holds.

    Tune does not count the workers of a nested trainer, so with a number that is too large trials would
    wait for each other's resources.

    Raises:
        ConfigError: the cluster cannot hold that many, or not even one.
    """
    needs, nodes = {"CPU": execution.cpus, "GPU": execution.gpus}, ray_train.nodes().values()
    capacity.require(execution.workers, nodes, needs)
    room = capacity.room(nodes, needs) // execution.workers
    if execution.concurrent == "auto":
        return room
    if execution.concurrent > room:
        cpus, gpus = execution.workers * execution.cpus, execution.workers * execution.gpus
        problem = f"{execution.concurrent} trials of {cpus:g} CPUs and {gpus:g} GPUs do not fit"
        remedy = f"The cluster has room for {room} at a time."
        raise ConfigError("execution.concurrent", problem, remedy)
    return execution.concurrent


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """A process that runs one trial after the other, so that torch is imported once."""

    def setup(self, config: dict[str, Any], scratch: str) -> None:
        del config
        self._scratch = scratch
        self._node = ray.get_runtime_context().get_node_id()
        self._attempt: Attempt | None = None
        self._closing: list[Attempt] = []

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        del new_config
        self._put_away()
        return True

    def begin(self, task: Task) -> None:
        """Begin with a trial; called between Tune's start of it and its first step."""
        self._attempt = Attempt(task, self._scratch)

    def halt(self, status: EndStatus) -> None:
        """Have the trial end at a checkpoint; called before the step that is to be its last."""
        if self._attempt is not None:
            self._attempt.halt(status)

    def step(self) -> dict[str, Any]:
        """What the trial says next; the last result has ``done``."""
        if self._attempt is None:
            return {_NEWS: News(last=Last(how="stopped")), "done": True}
        news = self._attempt.news()
        return {_NEWS: news, _NODE: self._node, "done": news.last is not None}

    def cleanup(self) -> None:
        self._put_away()
        for attempt in self._closing:
            attempt.close(_SECONDS_TO_CLOSE)

    def get_auto_filled_metrics(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """Nothing: Tune would keep statistics of each metric of each trial."""
        del arguments, keywords
        return {}

    def _put_away(self) -> None:
        """Make room for the next trial; the tracker may still have something to send."""
        self._closing = [attempt for attempt in self._closing if not attempt.is_closed]
        if self._attempt is not None:
            self._closing.append(self._attempt)
            self._attempt = None


def _trainable(execution: StudyExecution, scratch: str) -> Any:
    """What Tune starts for trials, with the resources that it occupies."""
    needs = {"CPU": execution.cpus} | ({"GPU": execution.gpus} if execution.gpus else {})
    bound = tune.with_parameters(TrialActor, scratch=scratch)
    return tune.with_resources(bound, needs if execution.workers == 1 else _DRIVER)


def _trial_name(trial: Any) -> str:
    return f"{trial.config['trial']}.{trial.trial_id}"


class _Enough(Exception):
    """Everything that is worth waiting for has ended."""


class _Abandoned(BaseException):
    """The same where the head is lost. Tune cleans up after exceptions of every other kind, and would wait
    for the head to free resources until Ray ends this process."""


class _Kept:
    """Tune pickles its parts into snapshots that nobody reads: a conductor does not belong there."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_Kept, Searcher):  # type: ignore[misc]
    """Hands the conductor's assignments to Tune, as configurations that say only the trial's name."""

    def __init__(self, floor: Floor) -> None:
        super().__init__()
        self._floor = floor

    def suggest(self, trial_id: str) -> Any:
        task = self._floor.hand_out(trial_id)
        if task is None:
            return Searcher.FINISHED if self._floor.is_over else None
        return {"trial": task.trial}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Scheduler(_Kept, FIFOScheduler):  # type: ignore[misc]
    """Keeps every process for the next trial, also while the conductor has to wait before it hands one out.

    Tune itself would keep one, and start the others anew. It would also give a free process to the trial that
    waits longest for one of its own, which then is not started: of many short trials, one would run at once.
    """

    def __init__(self, floor: Floor, most: int, lost: Callable[[], bool]) -> None:
        super().__init__()
        self._floor = floor
        self._most = most
        self._lost = lost
        self._kept = 0

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None in particular: Tune goes through those that wait, and not through all there ever were."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        del result
        wanted = 0 if self._floor.is_over and not self._lost() else self._most
        # There is no public way.
        tune_controller._actor_cache.increase_max(trial.placement_group_factory, wanted - self._kept)
        self._kept = wanted


class _Watcher(_Kept, tune.Callback):  # type: ignore[misc]
    """Tells the floor what Tune tells its callbacks."""

    def __init__(self, floor: Floor, lost: Callable[[], bool]) -> None:
        self._floor = floor
        self._lost = lost

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        del iteration, trials, info
        self._floor.look()
        if self._floor.is_idle:
            raise _Abandoned if self._lost() else _Enough

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, info
        # Calls of one actor are served in order: what is sent to it here comes before its next step.
        self._floor.started(trial.trial_id, trial.temporary_state.ray_actor)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        del iteration, trials, info
        # Taken out of the result, which Tune keeps.
        self._floor.heard(trial.trial_id, result.pop(_NEWS))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, info
        self._floor.ended(trial.trial_id, Last(how="stopped"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, info
        kept = trial.pickled_error_file
        error = cloudpickle.loads(Path(kept).read_bytes()) if kept else RuntimeError("Ray Tune gave it up")
        if isinstance(error, ray.exceptions.RayActorError):
            nodes = [trial.last_result[_NODE]] if _NODE in trial.last_result else []
            error = ray_train.loss(trial.config["trial"], [error], nodes)
        if not self._lost():
            ray_train.free(self._floor.run(trial.trial_id))
        self._floor.ended(trial.trial_id, failed(error))
