"""The Ray launcher: one run by DDP on several workers of a cluster. Ray Train's only door.

Ray starts the processes and watches over them; checkpoints are our own store's business, so Ray is given
none. A lost worker costs a restart from the newest complete checkpoint.
"""

from __future__ import annotations

import contextlib
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
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Empty, Queue

from hasten.trainers import session
from hasten.trainers.errors import ConfigError, Fault, HastenError
from hasten.trainers.loop import Report
from hasten.trainers.session import Job
from hasten.trainers.store import Folder
from hasten.trainers.tracker import NullTracker, Tracker
from hasten.trainers.worker import Worker

_SECONDS_BETWEEN_REPORTS: Final = 2.0  # a report is a barrier over all workers
_SECONDS_BETWEEN_QUESTIONS: Final = 0.5  # whether to stop
_RESTARTS: Final = 4  # out of memory, each halves the micro-batch


def fit(
    job: Job,
    *,
    open_tracker: Callable[[], Tracker],
    scratch: str,
    observe: Callable[[Report], None] | None = None,
    callbacks: Sequence[UserCallback] = (),
    stop: Callable[[], bool] = session.never,
) -> None:
    """Train ``job`` to its end with ``execution.workers`` workers; its result is in the store afterwards.

    Once ``stop`` is true, the workers write a checkpoint and end: then there is no result.

    Args:
        job: what to train.
        open_tracker: called on rank 0, wherever Ray puts it.
        scratch: a folder or URI for Ray's own bookkeeping, which every node reaches.
        observe: told of every report, in the process that calls ``fit``.
        callbacks: further callbacks for Ray Train's controller.
        stop: asked in this process, a few times a second.

    Raises:
        ConfigError: the cluster can never hold that many workers.
        HastenError: whatever ended the training.
    """
    execution = job.spec.execution
    require_room(execution.least, cpus=execution.cpus, gpus=execution.gpus)
    # A name for each attempt: Ray's own resumption is not used, ours is exact.
    name = f"{job.run}-{secrets.token_hex(4)}"
    with _listening(observe) as listeners, _stop_sign() as sign:
        trainer = _Trainer(
            _train_on_worker,
            train_loop_config={"job": job, "open_tracker": open_tracker, "sign": sign},
            scaling_config=ScalingConfig(
                num_workers=execution.workers,
                use_gpu=execution.gpus > 0,
                resources_per_worker=resources(job),
            ),
            run_config=RunConfig(
                name=name,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=_RESTARTS),
                callbacks=[*callbacks, *listeners],
            ),
        )
        try:
            _until_done(trainer, sign, stop)
        except TrainingFailedError as error:
            raise _cause(error, job) from error
        finally:
            forget(scratch, name)


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


def _train_on_worker(config: dict[str, Any]) -> None:
    """What every worker runs."""
    job: Job = config["job"]
    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
    )
    track: Tracker = config["open_tracker"]() if worker.is_first else NullTracker()
    reported, stopped = 0.0, False
    try:
        stop = _watching(config["sign"]) if worker.is_first else session.never
        for report in session.run(job, worker=worker, track=track, stop=stop):
            stopped = report.stopped
            # The seconds are the same on every rank, so all ranks decide alike.
            if report.evaluated or report.seconds - reported >= _SECONDS_BETWEEN_REPORTS:
                reported = report.seconds
                ray.train.report({**report.metrics, "report": asdict(report)})
        track.close("stopped" if stopped else "finished")
    except HastenError:
        track.close("failed")
        raise


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer without its handler of SIGINT, which would abort without a last checkpoint."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Nothing: whoever calls :func:`fit` decides when to stop."""


def _until_done(trainer: _Trainer, sign: Any, stop: Callable[[], bool]) -> None:
    """Wait for the training on this thread, where signals arrive, while Ray waits on another."""
    ended: Future[None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=fit, daemon=True, name="ray-train").start()
    told = False
    while not ended.done():
        with contextlib.suppress(TimeoutError):
            ended.exception(timeout=_SECONDS_BETWEEN_QUESTIONS)
        if stop() and not told:
            sign.put_nowait("stop")
            told = True
    ended.result()


@contextmanager
def _stop_sign() -> Iterator[Queue]:
    """Not empty once the workers should stop."""
    sign = Queue(actor_options={"num_cpus": 0})
    try:
        yield sign
    finally:
        sign.shutdown(force=True)


def _watching(sign: Queue) -> Callable[[], bool]:
    """Whether the sign is up, asked on a thread of its own: training never waits for the answer."""
    seen = threading.Event()

    def watch() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # it goes when the training does
            while sign.empty():
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


def _cause(error: TrainingFailedError, job: Job) -> HastenError:
    """The user's error at the bottom of Ray's, or Ray's own words about what happened."""
    seen: BaseException | None
    for failure in getattr(error, "worker_failures", {}).values():
        seen = failure
        while seen is not None:
            for candidate in (seen, getattr(seen, "cause", None)):
                if isinstance(candidate, HastenError):
                    return candidate
            seen = seen.__cause__
    summary = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return Fault(job.run, f"Ray Train gave up: {summary}", "Run the same command again: it goes on.")
