"""Several tiny one-worker trials in one process: is that faster than a process for each?

The network of `digits-demo`, some runs of it at once, each on one thread, two cores' worth at a time:

    processes     each run in a process of its own, two at a time: what a sweep does
    one by one    one process, one core: a run's block, then the next one's
    interleaved   the same, but a report of each in turn: what an executor in one process would do
    threads       all of them at once in threads of one process

A block is so many steps of every run, from report to report, without evaluations; processes and runs are
there beforehand and stay, as reused actors do. Two ratios matter: what packing does to a core
(``interleaved`` over ``one by one``), and what it does to the machine (``threads`` over ``processes``).
Only where one of them is above 1 would it pay to put trials together.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

import harness
import ours
import torch
from harness import Block, Work

from hasten.trainers import session
from hasten.trainers.records import Report
from hasten.trainers.tracker import NullTracker
from hasten.trainers.worker import Worker

ONE_BY_ONE: Final = "one by one"
NETWORK: Final = {"digits-demo": {}, "tiny": ours.NETWORKS["tiny"]}


class Trial:
    """A run that stands between two reports."""

    def __init__(self, folder: str, name: str, *, steps: int, seed: int, network: str) -> None:
        changes = {"budget.seed": seed, **NETWORK[network]}
        job = ours.job_of(folder, name, steps=steps, changes=changes)
        self._run: Iterator[Report] = session.run(job, worker=Worker(), track=NullTracker())
        self._images = next(self._run).images

    def go_on(self, reports: int = 1) -> int:
        """Train until that many reports more; how many images that were."""
        before = self._images
        for _ in range(reports):
            self._images = next(self._run).images
        return self._images - before

    def close(self) -> None:
        self._run.close()


class Apart:
    """Trials in processes of their own, of which a few train at a time."""

    def __init__(self, make: Sequence[dict[str, Any]], *, reports: int, at_once: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._members: list[tuple[BaseProcess, Connection]] = []
        for arguments in make:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=[there, arguments, reports], daemon=True)
            process.start()
            there.close()
            self._members.append((process, here))
        for _, connection in self._members:
            connection.recv()  # it is ready
        self._threads = ThreadPoolExecutor(at_once)

    def block(self) -> Work:
        return Work(images=sum(self._threads.map(self._ask, self._members)))

    @staticmethod
    def _ask(member: tuple[BaseProcess, Connection]) -> int:
        member[1].send("go")
        images: int = member[1].recv()
        return images

    def close(self) -> None:
        self._threads.shutdown()
        for process, connection in self._members:
            connection.close()
            process.join()


def _serve(connection: Connection, arguments: dict[str, Any], reports: int) -> None:
    """A process's life: a block of its trial whenever it is asked for, until nobody asks any more."""
    torch.set_num_threads(1)
    trial = Trial(**arguments)
    connection.send("ready")
    try:
        while connection.recv() == "go":
            connection.send(trial.go_on(reports))
    except EOFError:
        trial.close()


class Together:
    """Trials in this process: ``how`` many reports each makes the block."""

    def __init__(
        self, make: Sequence[dict[str, Any]], how: Callable[[Sequence[Trial], int], int], *, reports: int
    ) -> None:
        self._trials = [Trial(**arguments) for arguments in make]
        self._how, self._reports = how, reports

    def block(self) -> Work:
        return Work(images=self._how(self._trials, self._reports))

    def close(self) -> None:
        for trial in self._trials:
            trial.close()


def one_by_one(trials: Sequence[Trial], reports: int) -> int:
    return sum(trial.go_on(reports) for trial in trials)


def interleaved(trials: Sequence[Trial], reports: int) -> int:
    return sum(trial.go_on() for _ in range(reports) for trial in trials)


def in_threads(trials: Sequence[Trial], reports: int) -> int:
    with ThreadPoolExecutor(len(trials)) as threads:
        return sum(threads.map(lambda trial: trial.go_on(reports), trials))


HOW: Final = {ONE_BY_ONE: one_by_one, "interleaved": interleaved, "threads": in_threads}


def main() -> int:
    parser = harness.options(__doc__ or "", seconds=20, pairs=20)
    parser.add_argument("--trials", type=int, default=4, help="runs in each arm")
    parser.add_argument("--at-once", type=int, default=2, help="processes that train at the same time")
    parser.add_argument("--network", choices=list(NETWORK), default="digits-demo")
    parser.add_argument("--steps", type=int, help="steps between reports, instead of --seconds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    # A run has a hundred reports, of which the first begins it and one block warms up.
    reports = max(1, 96 // (given.pairs + 1))
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        blocks = measured(folder, given, reports)
    results = {"trials": given.trials, "at_once": given.at_once} | results_of(blocks)
    harness.conclude(harness.document("packing", blocks=blocks, results=results), given.out)
    return 0


def measured(folder: str, given: Any, reports: int) -> list[Block]:
    """All arms in turn, each with runs of its own."""
    step = 0.0 if given.steps else ours.step_seconds(folder, NETWORK[given.network])
    steps = given.steps or ours.steps_for(given.seconds, step * given.trials * reports, least=1)

    def make(arm: str) -> list[dict[str, Any]]:
        name = arm.replace(" ", "-").replace(",", "")
        common = {"folder": folder, "steps": steps, "network": given.network}
        return [{**common, "name": f"{name}{seed}", "seed": seed} for seed in range(given.trials)]

    arms: dict[str, Apart | Together] = {}
    try:
        for arm in ("processes", harness.AGAIN):
            arms[arm] = Apart(make(arm), reports=reports, at_once=given.at_once)
        for arm, how in HOW.items():
            arms[arm] = Together(make(arm), how, reports=reports)
        return harness.take_turns({name: arm.block for name, arm in arms.items()}, given.pairs)
    finally:
        for arm in arms.values():
            arm.close()


def results_of(blocks: list[Block]) -> dict[str, Any]:
    """Speeds over what sweeps do now, and over the same core without packing."""
    control = ("processes", harness.AGAIN)

    def over(arm: str, other: str) -> dict[str, Any]:
        return harness.compare(blocks, ours=arm, aims={other: None}, tolerance=0.02, control=control)

    return {
        "interleaved over one by one": over("interleaved", ONE_BY_ONE),
        "threads over one by one": over("threads", ONE_BY_ONE),
        "threads over processes": over("threads", "processes"),
        "processes over one by one": over("processes", ONE_BY_ONE),
    }


if __name__ == "__main__":
    sys.exit(main())
