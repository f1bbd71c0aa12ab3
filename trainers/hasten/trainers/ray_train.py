"""The Ray launcher: one run by DDP on several workers of a cluster. Ray Train's only door.

Ray starts the processes and watches over them; checkpoints are our own store's business, so Ray is given
none. This process decides what follows a failure: a lost worker, or one out of memory, costs a restart from
the newest complete checkpoint; what would fail again ends the run. It also decides how many workers there
are: Ray's own elastic policy counts CPUs that others occupy, and resizes without a checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

import ray
import ray.train.torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError
from ray.util.queue import Empty, Queue

from hasten.trainers import session
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.errors import ConfigError, Fault, HastenError
from hasten.trainers.job import Job
from hasten.trainers.memory import OutOfMemory
from hasten.trainers.records import Report
from hasten.trainers.store import Folder
from hasten.trainers.tracker import NullTracker, Tracker
from hasten.trainers.worker import Worker

_SECONDS_BETWEEN_REPORTS: Final = 2.0  # a report is a barrier over all workers
_SECONDS_BETWEEN_QUESTIONS: Final = 0.5  # whether to stop
_SECONDS_TO_SETTLE: Final = 5.0  # until the cluster knows that a group's resources are free again
_RESTARTS: Final = 2  # in a row, without a new checkpoint
# Failures that another attempt may be spared: lost processes, broken connections, a device's bad day. An
# exception of another kind is an error in a program.
_TRANSIENT: Final = (
    RayError,
    PreemptionError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    OutOfMemory,
    RuntimeError,
    OSError,
)

log = logging.getLogger(__name__)


def fit(
    job: Job,
    *,
    open_tracker: Callable[[], Tracker],
    scratch: str,
    observe: Callable[[Report], None] | None = None,
    callbacks: Sequence[UserCallback] = (),
    stop: Callable[[], bool] = session.never,
    resize_seconds: float = 60.0,
) -> None:
    """Train ``job`` to its end with ``execution.workers`` workers; its result is in the store afterwards.

    Where that is a range, the run takes what is free; when more becomes free, the workers write a checkpoint
    and more of them go on. Once ``stop`` is true, the workers write a checkpoint and end: then there is no
    result.

    Args:
        job: what to train.
        open_tracker: called on rank 0, wherever Ray puts it.
        scratch: a folder or URI for Ray's own bookkeeping, which every node reaches.
        observe: told of every report, in the process that calls ``fit``.
        callbacks: further callbacks for Ray Train's controller.
        stop: asked in this process, a few times a second.
        resize_seconds: how long a group trains before it may grow; a restart takes some ten seconds.

    Raises:
        ConfigError: the cluster can never hold that many workers.
        HastenError: whatever ended the training.
    """
    execution, store = job.spec.execution, RunStore(job.uri)
    require_room(execution.least, cpus=execution.cpus, gpus=execution.gpus)
    needs, failures = resources(job), 0
    with _listening(observe) as listeners, _stop_sign() as sign:
        while not stop():
            workers = _settled(needs, execution.least, execution.most)
            log.info("%s: trains with %d workers", job.run, workers)
            latest = store.latest()
            grows = _Growth(needs, resize_seconds, sign) if workers < execution.most else None
            trainer, name = _trainer(
                job, workers, scratch, [*callbacks, *listeners], open_tracker=open_tracker, sign=sign
            )
            try:
                _until_done(trainer, sign, stop, grows or session.never)
            except TrainingFailedError as error:
                cause = _cause(error, job)
                if not _costs_nothing(error):
                    failures = failures + 1 if store.latest() == latest else 0
                if not _is_transient(error) or failures > _RESTARTS:
                    raise cause from error
                log.warning("%s: %s; its workers start again", job.run, cause.problem)
            finally:
                forget(scratch, name)
            if store.result() is not None:
                return


def _trainer(
    job: Job,
    workers: int,
    scratch: str,
    callbacks: list[UserCallback],
    **config: Any,
) -> tuple[TorchTrainer, str]:
    """A trainer for one attempt, and the name under which it keeps Ray's books."""
    # A name for each attempt: Ray's own resumption is not used, ours is exact.
    name = f"{job.run}-{secrets.token_hex(4)}"
    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job, **config},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=job.spec.execution.gpus > 0,
            resources_per_worker=resources(job),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=scratch,
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
            callbacks=callbacks,
        ),
    )
    return trainer, name


def forget(scratch: str, name: str) -> None:
    """Remove Ray's books on a run that is over; ``scratch`` as Ray's ``storage_path`` takes it."""
    Folder(scratch.partition("?")[0]).delete_folder(name)


def resources(job: Job) -> dict[str, float]:
    """What one worker of the job occupies."""
    execution = job.spec.execution
    return {"CPU": execution.cpus} | ({"GPU": execution.gpus} if execution.gpus else {})


def require_room(workers: int, *, cpus: float, gpus: float) -> None:
    """Refuse what the cluster, even when idle, can never hold: Ray would wait for it forever.

    Raises:
        ConfigError: with the numbers.
    """
    cluster = ray.cluster_resources()
    for kind, each in (("CPU", cpus), ("GPU", gpus)):
        available = cluster.get(kind, 0.0)
        if workers * each > available:
            problem = (
                f"{workers} of {each:g} {kind}s each need {workers * each:g}; the cluster has {available:g}"
            )
            raise ConfigError("execution.workers", problem, "Ask for fewer, or add nodes.")


def _free(needs: dict[str, float]) -> int:
    """How many workers there is room for now."""
    cluster = ray.available_resources()
    return min(int(cluster.get(kind, 0.0) / each + 1e-9) for kind, each in needs.items() if each)


def _settled(needs: dict[str, float], least: int, most: int) -> int:
    """How many workers to start with: as many as there is room for, or ``least``, which wait for theirs."""
    deadline = time.monotonic() + _SECONDS_TO_SETTLE
    while least < most and (free := _free(needs)) < most:
        if time.monotonic() > deadline:
            return max(free, least)
        time.sleep(_SECONDS_BETWEEN_QUESTIONS)
    return most


class _Growth:
    """Whether there is room for more workers than there are, asked every ``seconds`` once they train."""

    def __init__(self, needs: dict[str, float], seconds: float, sign: Any) -> None:
        self._needs = needs
        self._seconds = seconds
        self._sign = sign
        self._asked = float("inf")

    def __call__(self) -> bool:
        now = time.monotonic()
        # Until they train, the room that they wait for may look free.
        if self._asked > now and ray.get(self._sign.is_watched.remote()):
            self._asked = now
        if now - self._asked < self._seconds:
            return False
        self._asked = now
        return _free(self._needs) > 0


def _train_on_worker(config: dict[str, Any]) -> None:
    """What every worker runs."""
    job: Job = config["job"]
    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
    )
    stop = _watching(config["sign"]) if worker.is_first else session.never
    track: Tracker = config["open_tracker"]() if worker.is_first else NullTracker()
    reported, stopped = 0.0, False
    try:
        for report in session.run(job, worker=worker, track=track, stop=stop):
            stopped = report.stopped
            # The seconds are the same on every rank, so all ranks decide alike.
            if report.evaluated or report.seconds - reported >= _SECONDS_BETWEEN_REPORTS:
                reported = report.seconds
                ray.train.report({**report.metrics, "report": asdict(report)})
    except BaseException:
        track.close("failed")
        raise
    track.close("stopped" if stopped else "finished")


def _until_done(
    trainer: TorchTrainer, sign: Any, stop: Callable[[], bool], grows: Callable[[], bool]
) -> None:
    """Wait for the training on this thread, where signals arrive, while Ray waits on another."""
    ended: Future[None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)

    ray.get(sign.lower.remote())
    threading.Thread(target=fit, daemon=True, name="ray-train").start()
    told = False
    while not ended.done():
        with contextlib.suppress(TimeoutError):
            ended.exception(timeout=_SECONDS_BETWEEN_QUESTIONS)
        if stop():
            # Workers that have not begun have nothing to keep, and may wait for room for ever.
            if not ray.get(sign.rise.remote()):
                return
        elif not told and grows():
            told = bool(ray.get(sign.rise.remote()))
    ended.result()


class _Sign:
    """An actor that knows whether the workers should stop, and whether any of them looks."""

    def __init__(self) -> None:
        self._is_up = self._is_watched = False

    def lower(self) -> None:
        self._is_up = self._is_watched = False

    def rise(self) -> bool:
        """Ask to stop; whether somebody will see it."""
        self._is_up = True
        return self._is_watched

    def is_watched(self) -> bool:
        return self._is_watched

    def is_up(self) -> bool:
        self._is_watched = True
        return self._is_up


@contextmanager
def _stop_sign() -> Iterator[Any]:
    """A sign that is up once the workers should stop."""
    sign = ray.remote(num_cpus=0)(_Sign).remote()
    try:
        yield sign
    finally:
        ray.kill(sign)


def _watching(sign: Any) -> Callable[[], bool]:
    """Whether the sign is up, asked on a thread of its own: training never waits for the answer."""
    seen = threading.Event()

    def watch() -> None:
        with contextlib.suppress(RayError):  # it goes when the training does
            while not ray.get(sign.is_up.remote()):
                time.sleep(_SECONDS_BETWEEN_QUESTIONS)
            seen.set()

    threading.Thread(target=watch, daemon=True, name="stop-sign").start()
    return seen.is_set


class _Forward(UserCallback):  # type: ignore[misc]
    """Sends rank 0's reports from Ray's controller to the process that waits for the run."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        del run_context, checkpoint
        self._queue.put_nowait(metrics[0]["report"])


@contextmanager
def _listening(observe: Callable[[Report], None] | None) -> Iterator[list[UserCallback]]:
    """Callbacks that carry reports to ``observe``, on a thread of this process."""
    if observe is None:
        yield []
        return
    queue = Queue(actor_options={"num_cpus": 0})
    ended = threading.Event()

    def listen() -> None:
        while not ended.is_set() or not queue.empty():
            try:
                observe(Report(**queue.get(timeout=0.5)))
            except Empty:
                continue

    thread = threading.Thread(target=listen, daemon=True, name="reports")
    thread.start()
    try:
        yield [_Forward(queue)]
    finally:
        ended.set()
        thread.join(timeout=10)
        queue.shutdown(force=True)


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


def _cause(error: TrainingFailedError, job: Job) -> HastenError:
    """The user's error at the bottom of Ray's, or Ray's own words about what happened."""
    seen: BaseException | None
    for failure in _failures(error):
        seen = failure
        while seen is not None:
            if isinstance(seen, HastenError):
                return seen
            seen = seen.__cause__
    summary = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
    return Fault(job.run, f"a worker failed ({summary})", "Run the same command again: it goes on.")
