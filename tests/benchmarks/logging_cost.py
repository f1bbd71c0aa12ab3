"""What it costs the training thread to tell MLflow about a run: with the server up, refusing, and hanging.

Microseconds a step, spread over all steps of the digits recipe, which tells something every 15 of them; and
microseconds a call, for whoever wants to tell more.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import harness
import numpy as np
import own_stack
import torch
from harness import Block, Work
from numpy.typing import NDArray
from ours import Ours
from ratios import Aim
from slow_network import SlowNetwork, Way

from hasten.platform.identity import RunIdentity
from hasten.platform.stack import processes
from hasten.platform.tracking import Tracking
from hasten.trainers.tracker import EndStatus, NullTracker, Tracker

AIM = Aim(bound=20.0, kind="at most")  # microseconds a step
STEPS = 15  # from report to report, as in the digits recipe
WAYS: tuple[Way, ...] = ("up", "refuse", "hang")


class Timed:
    """A tracker with a stopwatch at the training thread's side."""

    def __init__(self, track: Tracker) -> None:
        self._track = track
        self.seconds: list[float] = []

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        began = time.perf_counter()
        self._track.metrics(values, step=step)
        self.seconds.append(time.perf_counter() - began)

    def image(self, key: str, image: NDArray[np.uint8], *, step: int) -> None:
        began = time.perf_counter()
        self._track.image(key, image, step=step)
        self.seconds.append(time.perf_counter() - began)

    def artifact(self, path: str, content: bytes) -> None:
        self._track.artifact(path, content)

    def tags(self, values: Mapping[str, str]) -> None:
        self._track.tags(values)

    def close(self, status: EndStatus) -> None:
        self._track.close(status)


class Arm:
    """A run whose tracker is timed."""

    def __init__(self, storage: Path, name: str, track: Tracker, *, reports: int) -> None:
        self.track = Timed(track)
        self._ours = Ours(storage, name, steps=STEPS, reports=reports, track=self.track)

    def block(self) -> Work:
        self.track.seconds.clear()
        work = self._ours.block()
        spent = sum(self.track.seconds)
        details = {"calls": len(self.track.seconds), "microseconds_a_step": 1e6 * spent / self._ours.steps}
        return Work(images=work.images, details=details)

    def close(self) -> None:
        self._ours.close()
        self.track.close("finished")


def main() -> int:
    parser = harness.options(__doc__ or "", seconds=5)
    parser.add_argument("--reports", type=int, help="reports in a block, instead of --seconds")
    parser.add_argument("--calls", type=int, default=20_000, help="calls in a row, to time a single one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    # A run has a hundred reports, of which the first begins it and one block warms up.
    reports = given.reports or min(max(1, round(given.seconds / 0.3)), 98 // (given.pairs + 1))
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        home, storage = Path(folder) / "home", Path(folder) / "storage"
        with own_stack.started(home, tracking=True) as services:
            address = urlsplit(services.tracking_uri)
            ways: dict[Way, SlowNetwork] = {
                way: SlowNetwork(str(address.hostname), int(address.port or 80), latency=0.0, rate=1e12)
                for way in WAYS
            }
            try:
                trackers = {way: opened(f"http://127.0.0.1:{ways[way].port}", home, way) for way in WAYS}
                for way in WAYS:
                    ways[way].turn(way)
                arms = {f"server: {way}": trackers[way] for way in WAYS}
                arms |= {"none": NullTracker(), harness.AGAIN: NullTracker()}
                runs = {
                    name: Arm(storage, f"run{number}", track, reports=reports)
                    for number, (name, track) in enumerate(arms.items())
                }
                blocks = harness.take_turns(
                    {name: run.block for name, run in runs.items()},
                    given.pairs,
                    others=lambda: processes.members(home),
                )
                calls = {f"server: {way}": per_call(trackers[way], given.calls) for way in WAYS}
            finally:
                for network in ways.values():
                    network.turn("up")
                for run in runs.values():
                    run.close()
                for network in ways.values():
                    network.close()
    results = {"microseconds_a_step": per_step(blocks), "microseconds_a_call": calls} | {
        "none over each": harness.compare(blocks, ours="none", aims=dict.fromkeys(calls), tolerance=0.01)
    }
    harness.conclude(harness.document("logging_cost", blocks=blocks, results=results), given.out)
    return 0


def opened(uri: str, home: Path, name: str) -> Tracker:
    """A run's tracker, opened as ``hasten train`` does, its server still up."""
    return Tracking(uri, home / f"spool-{name}").open(
        RunIdentity(experiment="logging_cost", name=name), observed=True
    )


def per_step(blocks: list[Block]) -> dict[str, Any]:
    return {
        arm: harness.cost(
            [block.details["microseconds_a_step"] for block in harness.of_arm(blocks, arm)], AIM
        )
        for arm in dict.fromkeys(block.arm for block in blocks)
        if arm.startswith("server")
    }


def per_call(track: Tracker, calls: int) -> dict[str, float]:
    """Quantiles over many calls of four metrics, one right after the other."""
    timed = Timed(track)
    for step in range(calls):
        timed.metrics({"a": 1.0, "b": 2.0, "c": 3.0, "d": float(step)}, step=step)
    spent = 1e6 * np.asarray(timed.seconds)
    return {
        "median": float(np.median(spent)),
        "p99": float(np.quantile(spent, 0.99)),
        "most": float(spent.max()),
    }


if __name__ == "__main__":
    sys.exit(main())
