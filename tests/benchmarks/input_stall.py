"""How long training waits for its images when they are streamed from S3 over a slow network.

The embedded object store behind 100 ms of latency and 50 MB/s a connection; images in memory as the control.
Then the store goes away for a while in the middle of training.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import harness
import numpy as np
import own_stack
import torch
from harness import Work
from ours import Ours, step_seconds, steps_for
from ratios import Aim
from slow_network import SlowNetwork

from hasten.platform.stack import processes
from hasten.trainers.datasets import data
from hasten.trainers.store import Folder

AIM = Aim(bound=0.01, kind="at most")
SIDE, CHANNELS = 32, 3
# The faster the network trains, the harder it is to feed.
MODELS: dict[str, dict[str, Any]] = {
    "fast": {"kind": "mlp", "width": 64, "layers": 1},
    "unet": {"kind": "unet", "channels": 16, "multipliers": [1, 2], "attention": False},
}


class Fed:
    """An arm that notes how long its reader made it wait."""

    def __init__(self, storage: str, name: str, *, steps: int, changes: dict[str, Any]) -> None:
        began = time.perf_counter()
        self._ours = Ours(storage, name, steps=steps, changes=changes)
        self._reader = self._ours.parts.reader
        self.opening_seconds = time.perf_counter() - began

    def block(self) -> Work:
        stalled, began = self._reader.stalled, time.perf_counter()
        work = self._ours.block()
        waited = self._reader.stalled - stalled
        share = waited / (time.perf_counter() - began)
        return Work(images=work.images, details={"stalled_seconds": waited, "stalled_share": share})

    def close(self) -> None:
        self._ours.close()


def main() -> int:
    parser = harness.options(__doc__ or "", seconds=5)
    parser.add_argument("--model", choices=list(MODELS), default="unet")
    parser.add_argument("--images", type=int, default=40_960, help="how many images the data set has")
    parser.add_argument("--window", type=int, default=16_384, help="data.shuffle")
    parser.add_argument("--outage", type=float, default=30.0, help="seconds for which the store is away")
    parser.add_argument("--steps", type=int, help="steps in a block, instead of --seconds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        home = Path(folder) / "home"
        with own_stack.started(home) as services:
            assert services.endpoint is not None
            address = urlsplit(services.endpoint)
            changes = {
                "data": {"source": "noise", "resolution": SIDE, "shuffle": given.window},
                "model": MODELS[given.model],
            }
            written = write(services.storage_uri, given.images)
            with SlowNetwork(str(address.hostname), int(address.port or 80)) as network:
                own_stack.through(network.port)
                resident = changes | {"execution.reader": "resident"}
                pace = step_seconds(services.storage_uri, resident)
                steps = given.steps or steps_for(given.seconds, pace)
                arms = {
                    name: Fed(
                        services.storage_uri,
                        f"run{number}",
                        steps=steps,
                        changes=changes | {"execution.reader": kind},
                    )
                    for number, (name, kind) in enumerate(
                        [("streaming", "streaming"), ("resident", "resident"), (harness.AGAIN, "resident")]
                    )
                }
                blocks = harness.take_turns(
                    {name: arm.block for name, arm in arms.items()},
                    given.pairs,
                    others=lambda: processes.members(home),
                )
                outage = through_outage(arms["streaming"], network, given.outage) if given.outage else {}
                for arm in arms.values():
                    arm.close()
    streaming = harness.of_arm(blocks, "streaming")
    speed = float(np.mean([block.speed for block in streaming]))
    results = {
        "data_set_bytes": written,
        "images_per_second": speed,
        "bytes_per_second": speed * SIDE * SIDE * CHANNELS,
        "stalled_share": harness.cost([block.details["stalled_share"] for block in streaming], AIM),
        "opening_seconds": {name: arm.opening_seconds for name, arm in arms.items()},
        "resident over streaming": harness.compare(
            blocks, ours="resident", aims={"streaming": None}, tolerance=0.01
        ),
        "outage": outage,
    }
    harness.conclude(harness.document("input_stall", blocks=blocks, results=results), given.out)
    return 0


def write(storage_uri: str, images: int) -> int:
    """Put a data set of random pixels, which no compression helps, into the store; its bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, CHANNELS, SIDE, SIDE), dtype=np.uint8)
    labels = np.full(images, -1, np.int64)
    data.write(
        Folder(f"{storage_uri}/data/noise"), name="noise", source="random", pixels=pixels, labels=labels
    )
    return pixels.nbytes


def through_outage(arm: Fed, network: SlowNetwork, seconds: float) -> dict[str, float]:
    """Train while the store is away, and until as long again has passed; how long training waited."""
    network.turn("refuse")
    back = threading.Timer(seconds, network.turn, ["up"])
    back.start()
    began, waited, images = time.perf_counter(), 0.0, 0
    while time.perf_counter() - began < 2 * seconds:
        work = arm.block()
        waited += work.details["stalled_seconds"]
        images += work.images
    back.join()
    return {"seconds": seconds, "stalled_seconds": waited, "images_meanwhile": images}


if __name__ == "__main__":
    sys.exit(main())
