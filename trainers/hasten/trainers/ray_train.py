"""The Ray launcher: one run by DDP on several workers of a cluster. Ray Train's only door.

Ray starts the processes and watches over them; checkpoints are our own store's business, so Ray is given
none, and reports go straight from the first worker to who waits for them: Ray's own are a barrier over all
workers. This process decides what follows a failure: a lost worker, or one out of memory, costs a restart
from the newest complete checkpoint; what would fail again ends the run. It also decides how many workers
there are: Ray's own elastic policy counts CPUs that others occupy, and resizes without a checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final

import ray
import ray.train.torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.worker_group import worker_group
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError

from hasten.trainers import capacity, session
from hasten.trainers.capacity import Resources
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.desk import Desk, how_ended
from hasten.trainers.errors import Exhausted, Fault, HastenError, Lost, NodeLost
from hasten.trainers.job import Job
from hasten.trainers.memory import OutOfMemory
from hasten.trainers.records import Report
from hasten.trainers.store import Folder
from hasten.trainers.tracker import EndStatus, NullTracker, Tracker
from hasten.trainers.worker import Worker

Asked = Callable[[], EndStatus | None]

_SECONDS_BETWEEN_REPORTS: Final = 1.0
_SECONDS_BETWEEN_QUESTIONS: Final = 0.5  # whether to stop
_SECONDS_TO_END: Final = 30.0  # for a checkpoint, where nobody waits for more reports
_RESTARTS: Final = 2  # in a row, without a new checkpoint
# Failures that another attempt may be spared: lost processes, broken connections, a device's bad day. An
# exception of another kind is an error in a program.
_LOST: Final = (RayError, PreemptionError, WorkerGroupStartupFailedError, WorkerHealthCheckFailedError)
_TRANSIENT: Final = (*_LOST, WorkerGroupStartupTimeoutError, OutOfMemory, RuntimeError, OSError)

log = logging.getLogger(__name__)


def fit(
    job: Job,
    *,
    open_tracker: Callable[[], Tracker],
    scratch: str,
    observe: Callable[[Report], None] | None = None,
    stop: Callable[[], bool] = session.never,
    resize_seconds: float = 60.0,
) -> None:
    """Train ``job`` as :func:`reports` does; its result is in the store afterwards, unless it was stopped.

    ``observe`` is told of every report and ``stop`` is asked a few times a second, both in this process.

    Raises:
        HastenError: whatever ended the training.
    """

    def asked() -> EndStatus | None:
        return "stopped" if stop() else None

    for report in reports(
        job, open_tracker=open_tracker, scratch=scratch, asked=asked, resize_seconds=resize_seconds
    ):
        if observe is not None:
            observe(report)


def reports(
    job: Job,
    *,
    open_tracker: Callable[[], Tracker],
    scratch: str,
    asked: Asked,
    restarts: int = _RESTARTS,
    resize_seconds: float = 60.0,
) -> Generator[Report, None, None]:
    """Train ``job`` with ``execution.workers`` workers; what the first of them reports, as it goes.

    Where that is a range, the run takes what is free; when more becomes free, the workers write a checkpoint
    and more of them go on. Closing the generator stops them at a checkpoint, too. Their resources are free
    again when it has ended.

    Args:
        job: what to train.
        open_tracker: called on rank 0, wherever Ray puts it.
        scratch: a folder or URI for Ray's own bookkeeping, which every node reaches.
        asked: once this is not None, the workers write a checkpoint and end, and tell the tracker that.
        restarts: how often in a row the workers start again without a new checkpoint; 0 is not even once.
        resize_seconds: how long a group trains before it may grow; a restart takes some ten seconds.

    Raises:
        ConfigError: the cluster can never hold that many workers.
        HastenError: whatever ended the training.
    """
    execution, store = job.spec.execution, RunStore(job.uri)
    needs, failures = capacity.needs(execution), 0
    capacity.require(execution.least, nodes().values(), needs)
    free(job.run)

    def spare() -> int:
        return capacity.room([ray.available_resources()], needs)

    while asked() is None:
        workers = capacity.settled(spare, execution.least, execution.most)
        log.info("%s: trains with %d workers", job.run, workers)
        latest, ended, there = store.latest(), False, nodes()
        name = f"{job.run}-{secrets.token_hex(4)}"  # Ray's own resumption is not used, ours is exact
        try:
            with _desk() as desk:
                trainer = _trainer(job, name, workers, scratch, open_tracker=open_tracker, desk=desk)
                growth = capacity.Growth(spare, resize_seconds) if workers < execution.most else None
                with contextlib.closing(_until_done(trainer, desk, asked, growth)) as told:
                    for report in told:
                        ended = report.stopped and report.images == job.until
                        yield report
        except (TrainingFailedError, RayError) as error:
            cause = _cause(error, job, there)
            if not _costs_nothing(error):
                failures = failures + 1 if store.latest() == latest else 1
            if not _is_transient(error) or failures > restarts:
                raise cause from error
            log.warning("%s: %s; its workers start again", job.run, cause.problem)
        finally:
            free(job.run)
            forget(scratch, name)
        if ended or store.result() is not None:
            return


def _trainer(job: Job, name: str, workers: int, scratch: str, **config: Any) -> TorchTrainer:
    """A trainer for one attempt, which keeps Ray's books under ``name``."""
    return _Trainer(
        _train_on_worker,
        train_loop_config={"job": job, **config},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=job.spec.execution.gpus > 0,
            resources_per_worker=dict(capacity.needs(job.spec.execution)),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=scratch,
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
            callbacks=[_Introduction(config["desk"], name)],
        ),
    )


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Without the process that Ray starts to give back what a dead conductor's workers occupied.

    It is blind to a group that was starting, and where another Ray runs on this machine it stays for ever.
    """

    def _create_default_callbacks(self) -> list[Any]:
        known = super()._create_default_callbacks()
        return [each for each in known if not isinstance(each, PlacementGroupCleanerCallback)]


def forget(scratch: str, name: str) -> None:
    """Remove Ray's books on a run that is over; ``scratch`` as Ray's ``storage_path`` takes it."""
    Folder(scratch.partition("?")[0]).delete_folder(name)


def free(run: str) -> None:
    """Give back what the workers of a run occupied that nobody conducts any more."""
    for group in ray.util.placement_group_table().values():
        if group["name"].startswith(f"{run}-") and group["state"] != "REMOVED":
            with contextlib.suppress(ValueError):  # it has just gone
                ray.util.remove_placement_group(ray.util.get_placement_group(group["name"]))


def nodes() -> dict[str, Resources]:
    """What each node of the cluster has, busy or not, by its id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _until_done(
    trainer: TorchTrainer, desk: Any, asked: Asked, growth: capacity.Growth | None
) -> Generator[Report, None, None]:
    """What the workers report until they end, heard on this thread while Ray waits on another."""
    ended: Future[None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)
        desk.tell.remote(None)  # wakes up who waits for reports

    threading.Thread(target=fit, daemon=True, name="ray-train").start()
    told, controller = False, None
    try:
        while not ended.done():
            controller = controller or ray.get(desk.controller.remote())
            yield from ray.get(desk.hear.remote(_SECONDS_BETWEEN_QUESTIONS))
            watched = ray.get(desk.is_watched.remote())
            status = asked() or ("stopped" if growth is not None and growth.is_due(watched) else None)
            if status is not None and not told:
                told = ray.get(desk.ask.remote(status))
                if not told:
                    return  # workers that have not begun have nothing to keep, and may wait for room for ever
        yield from ray.get(desk.hear.remote(0.0))
        ended.result()
    except GeneratorExit:
        if ray.get(desk.ask.remote("stopped")):
            futures.wait([ended], timeout=_SECONDS_TO_END)
        raise
    finally:
        if not ended.done():
            with contextlib.suppress(RayError):
                controller = controller or ray.get(desk.controller.remote())
            if controller is not None:
                ray.kill(controller)  # workers and their resources go with it
            futures.wait([ended], timeout=_SECONDS_TO_END)


def _train_on_worker(config: dict[str, Any]) -> None:
    """What every worker runs."""
    job: Job = config["job"]
    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
    )
    desk = config["desk"]
    asked = _watching(desk) if worker.is_first else lambda: None
    track: Tracker = config["open_tracker"]() if worker.is_first else NullTracker()
    told, last, heard = 0.0, None, None
    try:
        for last in session.run(job, worker=worker, track=track, stop=lambda: asked() is not None):
            due = last.evaluated or last.stopped or time.monotonic() - told >= _SECONDS_BETWEEN_REPORTS
            if worker.is_first and due:
                told, heard = time.monotonic(), desk.tell.remote(last)
        if heard is not None:
            ray.get(heard)  # and all before it: the desk takes them in order
    except BaseException:
        track.close("failed")
        raise
    track.close(how_ended(job, last, asked()))


class _Introduction(ControllerCallback):  # type: ignore[misc]
    """Tells the desk who conducts the workers, and names what they occupy: both can be ended from outside."""

    def __init__(self, desk: Any, name: str) -> None:
        self._desk = desk
        self._name = name

    def after_controller_start(self, train_run_context: Any) -> None:
        del train_run_context
        self._desk.meet.remote(ray.get_runtime_context().current_actor)
        # There is no public way; this process conducts one group.
        worker_group.placement_group = functools.partial(worker_group.placement_group, name=self._name)


@contextmanager
def _desk() -> Iterator[Any]:
    desk = ray.remote(num_cpus=0)(Desk).remote()
    try:
        yield desk
    finally:
        ray.kill(desk)


def _watching(desk: Any) -> Asked:
    """How the workers should end, once they should; a thread of its own waits for that, never training."""
    seen: list[EndStatus] = []

    def watch() -> None:
        with contextlib.suppress(RayError):  # the desk goes when the training does
            seen.append(ray.get(desk.asked.remote()))

    threading.Thread(target=watch, daemon=True, name="stop-sign").start()
    return lambda: seen[0] if seen else None


def _failures(error: TrainingFailedError) -> list[BaseException]:
    """What went wrong on the workers, or in Ray itself; never empty."""
    found = getattr(error, "worker_failures", {}).values()
    return [*found] or [getattr(error, "controller_failure", error)]


def _is_transient(error: TrainingFailedError) -> bool:
    """Whether another attempt might succeed."""
    return all(isinstance(failure, _TRANSIENT) for failure in _failures(error))


def _costs_nothing(error: TrainingFailedError) -> bool:
    """Whether a failure is none: the next attempt takes smaller micro-batches, or waits for room again."""
    return any(
        isinstance(failure, (OutOfMemory, WorkerGroupStartupTimeoutError)) for failure in _failures(error)
    )


def _cause(error: TrainingFailedError, job: Job, nodes: Collection[str]) -> HastenError:
    """The user's error at the bottom of Ray's, or Ray's own words about what happened."""
    failures = _failures(error)
    for failure in failures:
        seen: BaseException | None = failure
        while seen is not None:
            if isinstance(seen, HastenError):
                return seen
            seen = seen.__cause__
    if lost := [failure for failure in failures if isinstance(failure, _LOST)]:
        return loss(job.run, lost, nodes)
    summary = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
    return Fault(job.run, f"a worker failed ({summary})", "Run the same command again: it goes on.")


def loss(subject: str, failures: Sequence[BaseException], nodes: Collection[str]) -> Fault:
    """What Ray says of processes that went away, in the user's words; they ran on ``nodes``, by id."""
    remedy = "Run the same command again: it goes on."
    if any("low on memory" in str(failure) for failure in failures):
        return Exhausted(subject, "Ray killed its process: the node ran low on memory", remedy)
    if any(isinstance(each, PreemptionError) or getattr(each, "preempted", False) for each in failures):
        return NodeLost(subject, "its node was taken away", remedy)
    if not all(map(capacity.answers, (node for node in ray.nodes() if node["NodeID"] in nodes))):
        return NodeLost(subject, "its node went down", remedy)
    return Lost(subject, "its process died", remedy)
