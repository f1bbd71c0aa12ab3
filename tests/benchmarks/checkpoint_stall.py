"""What a checkpoint costs the training thread, written to S3 over a slow network.

``held`` is how long the loop waits in the checkpoint writer; ``extra`` how much longer a block with
checkpoints takes than one without, for each of its checkpoints. Long runs make one about every minute.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import harness
import numpy as np
import own_stack
import ratios
import torch
from harness import Block, Work
from ours import NETWORKS, Ours, Stopwatch, step_seconds, steps_for
from ratios import Aim
from slow_network import SlowNetwork

from hasten.platform.stack import processes
from hasten.trainers.checkpoints import State, StoreWriter
from hasten.trainers.parts import Parts

BETWEEN = 60.0  # seconds from checkpoint to checkpoint in a long run
AIM = Aim(bound=0.005, kind="at most")
REPORTS = 4  # checkpoints in a block


class TimedWriter(StoreWriter):
    """The writer with a stopwatch at the training thread's side."""

    def __init__(self, *arguments: Any, seconds: list[float], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._seconds = seconds

    def checkpoint(self, state: State) -> None:
        began = time.perf_counter()
        super().checkpoint(state)
        self._seconds.append(time.perf_counter() - began)


class Timed:
    """An arm that notes how long each step took, and each wait for the checkpoint writer."""

    def __init__(self, storage: str, name: str, *, steps: int, changes: dict[str, Any]) -> None:
        self.steps: list[float] = []
        self._held: list[float] = []
        self._ours = Ours(
            storage,
            name,
            steps=steps,
            reports=REPORTS,
            changes=changes,
            change_parts=self._watch,
            writer=functools.partial(TimedWriter, seconds=self._held),
        )

    def _watch(self, parts: Parts) -> None:
        self._stopwatch = Stopwatch(parts.reader)
        parts.reader = self._stopwatch

    def block(self) -> Work:
        self._held.clear()
        self._stopwatch.restart()
        work = self._ours.block()
        self.steps += self._stopwatch.steps()
        held = {"held_seconds": float(np.mean(self._held)), "most": max(self._held)} if self._held else {}
        return Work(images=work.images, details=held | {"checkpoints": len(self._held)})

    def close(self) -> None:
        self._ours.close()


def main() -> int:
    parser = harness.options(__doc__ or "", seconds=5)
    parser.add_argument("--network", choices=list(NETWORKS), default="1M")
    parser.add_argument("--steps", type=int, help="steps from checkpoint to checkpoint, instead of --seconds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    changes = dict(NETWORKS[given.network])
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        home = Path(folder) / "home"
        with own_stack.started(home) as services:
            assert services.endpoint is not None
            address = urlsplit(services.endpoint)
            with SlowNetwork(str(address.hostname), int(address.port or 80)) as network:
                own_stack.through(network.port)
                storage = services.storage_uri
                steps = given.steps or steps_for(given.seconds, step_seconds(storage, changes), least=10)
                arms = {
                    name: Timed(
                        storage,
                        name.replace(", ", "-"),
                        steps=steps,
                        changes=changes | {"execution.checkpoint_every": every},
                    )
                    for name, every in (("checkpoints", 0.01), ("none", 1.0), (harness.AGAIN, 1.0))
                }
                blocks = harness.take_turns(
                    {name: arm.block for name, arm in arms.items()},
                    given.pairs,
                    others=lambda: processes.members(home),
                )
                for arm in arms.values():
                    arm.close()
    results = {"steps_a_checkpoint": steps} | results_of(blocks, arms)
    harness.conclude(harness.document("checkpoint_stall", blocks=blocks, results=results), given.out)
    return 0


def results_of(blocks: list[Block], arms: dict[str, Timed]) -> dict[str, Any]:
    saving, none = harness.of_arm(blocks, "checkpoints"), harness.of_arm(blocks, "none")
    held = [block.details["held_seconds"] for block in saving]
    extra = [(a.seconds - b.seconds) / a.details["checkpoints"] for a, b in zip(saving, none, strict=True)]
    found = ratios.mean(extra)
    return {
        "held_share_at_one_a_minute": harness.cost([seconds / BETWEEN for seconds in held], AIM),
        "held_seconds": {
            "mean": float(np.mean(held)),
            "most": max(block.details["most"] for block in saving),
        },
        "extra_seconds_a_checkpoint": {"mean": found.mean, "low": found.low, "high": found.high},
        "none against itself": harness.compare(blocks, ours="none", aims={}, tolerance=0.01)["wall"][
            "control"
        ],
        "steps": {
            name: {"median_seconds": float(np.median(arm.steps)), "p99": float(np.quantile(arm.steps, 0.99))}
            for name, arm in arms.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
