"""Scoring in a process of its own, so that training does not wait for it.

The process gets a copy of the weights as they were, and gives back the numbers that this one would have
found: the same code on the same data with the same number of threads. It is a fresh interpreter, started
neither by forking (torch's threads do not survive that) nor by importing the caller's main module.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.trainers.errors import Fault, HastenError
from hasten.trainers.metrics.evaluation import Evaluator
from hasten.trainers.metrics.losses import Losses
from hasten.trainers.models.networks import Network

What = Literal["losses", "quality", "sheet"]
Weights = dict[str, torch.Tensor]
Make = Callable[[], tuple[Evaluator, Network]]

_PATIENCE: Final = 10.0  # seconds for a process to end by itself
_CODE: Final = "from hasten.trainers.metrics import background; background.serve({}, {})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What an evaluation found of what it was asked for; ``record`` is all that it depends on."""

    losses: Losses | None = None
    quality: dict[str, float] = field(default_factory=dict)
    sheet: NDArray[np.uint8] | None = None
    record: dict[str, Any] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """All numbers, under the names that they are tracked by."""
        return (self.losses.metrics() if self.losses else {}) | self.quality


def score(evaluator: Evaluator, network: Network, what: Collection[What]) -> Scores:
    """Measure a network; in the background or not, this is what is done."""
    return Scores(
        losses=evaluator.losses(network) if "losses" in what else None,
        quality=evaluator.quality(network) if "quality" in what else {},
        sheet=evaluator.sheet(network) if "sheet" in what else None,
        record=evaluator.spec_record(),
    )


class BackgroundEvaluator:
    """Scores weights in another process, one after the other.

    Args:
        make: builds evaluator and network in that process; it is pickled, so a function of a module with
            picklable arguments. Which device they live on is its business.
        threads: torch's threads there.
        pending: how many evaluations may wait; each holds a copy of the weights.
    """

    def __init__(self, make: Make, *, threads: int = 1, pending: int = 2) -> None:
        first = pickle.dumps((make, threads))
        self._room = threading.BoundedSemaphore(pending)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluation")
        (their_in, my_out), (my_in, their_out) = os.pipe(), os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(their_in, their_out)],
            pass_fds=(their_in, their_out),
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # a Ctrl-C is the trainer's: it decides what becomes of its evaluations
        )
        os.close(their_in)
        os.close(their_out)
        self._sending, self._receiving = Connection(my_out, readable=False), Connection(my_in, writable=False)
        self._executor.submit(self._sending.send_bytes, first)

    def submit(self, step: int, weights: Weights, what: Collection[What]) -> Future[Scores]:
        """Ask for an evaluation of ``weights`` as they are now; waits only when too many are pending.

        The future raises what the evaluation raised, and :class:`Fault` when its process died.
        """
        self._room.acquire()
        held = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
        future = self._executor.submit(self._ask, step, held, frozenset(what))
        future.add_done_callback(lambda _: self._room.release())
        return future

    def close(self, *, wait: bool = True) -> None:
        """End the process: after all that was asked, or at once."""
        if not wait:
            self._process.kill()
        self._executor.shutdown(wait=True, cancel_futures=not wait)
        self._sending.close()
        self._receiving.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, step: int, weights: Weights, what: frozenset[What]) -> Scores:
        try:
            self._sending.send_bytes(pickle.dumps((weights, what), protocol=pickle.HIGHEST_PROTOCOL))
            answer = pickle.loads(self._receiving.recv_bytes())
        except (EOFError, OSError):
            raise Fault(
                "evaluation",
                f"the background process {self._fate()} before it had scored image {step:,}",
                "Run the command again: it goes on. With execution.evaluation: inline there is no process.",
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        scores: Scores = answer
        return scores

    def _fate(self) -> str:
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return "fell silent"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def serve(receiving: int, sending: int) -> None:
    """The other process's whole life: pipes by their numbers; it ends when the trainer hangs up."""
    from hasten.trainers import session

    requests, answers = Connection(receiving, writable=False), Connection(sending, readable=False)
    try:
        make, threads = pickle.loads(requests.recv_bytes())
        session.make_deterministic(threads)
        evaluator, network = None, None
        while True:
            weights, what = pickle.loads(requests.recv_bytes())
            try:
                if evaluator is None or network is None:
                    evaluator, network = make()
                network.load_state_dict(weights)
                answer: Scores | BaseException = score(evaluator, network, what)
            except HastenError as error:
                answer = error
            except Exception:
                answer = RuntimeError(f"in the background process:\n{traceback.format_exc()}")
            answers.send_bytes(pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))
    except (EOFError, OSError):
        return
