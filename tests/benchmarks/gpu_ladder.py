"""What one GPU can do, and how much of it our loop gets: for whoever has a GPU.

First the card's own ceilings: a bfloat16 matrix product, a copy, a 3x3 convolution, the gap between kernels.
Then our loop on a U-Net of 36 M parameters (Ho et al. 2020, CIFAR-10), step by step faster. A run's use of
the card is its training operations (3 forward passes, 2 operations a multiplication) over the product's rate.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import harness
import numpy as np
import ours
import ratios
import torch
from harness import Block
from ours import Ours

from hasten.trainers.datasets import data
from hasten.trainers.models import networks
from hasten.trainers.store import Folder

SIDE: Final = 32
UNET: Final[dict[str, Any]] = {
    "kind": "unet",
    "channels": 128,
    "multipliers": [1, 2, 2, 2],
    "layers": 2,
    "attention": [16],
}
LADDER: Final[dict[str, dict[str, Any]]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "bf16, channels_last": {"precision": "bf16", "execution.channels_last": True},
    "bf16, channels_last, compile": {
        "precision": "bf16",
        "execution.channels_last": True,
        "execution.compile": "default",
    },
}


def main() -> int:
    parser = harness.options(__doc__ or "", seconds=3, pairs=5)
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 512, 1024])
    given = parser.parse_args()
    if not torch.cuda.is_available():
        return harness.missing("torch sees no GPU here", "Run this on a machine with one.")
    ceilings = measure_ceilings()
    rungs, blocks = measure_ladder(given, ceilings["product_tflops"] * 1e12)
    card = {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    results = {"card": card, "ceilings": ceilings, "ladder": rungs}
    harness.conclude(harness.document("gpu_ladder", blocks=blocks, results=results), given.out)
    return 0


def measure_ceilings() -> dict[str, float]:
    """Rates of random data: zeros draw less power and read faster."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 / seconds_of(lambda: a @ b)
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds_of(lambda: target.copy_(source))
    convolution = torch.nn.Conv2d(256, 256, 3, padding=1, device="cuda", dtype=torch.bfloat16)
    convolution = convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(1024, 256, SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        convolved = 2 * 9 * 256 * 256 * 1024 * SIDE**2 / seconds_of(lambda: convolution(x))
    one = torch.zeros(1, device="cuda")
    return {
        "product_tflops": product / 1e12,
        "copy_tb_per_second": copied / 1e12,
        "convolution_tflops": convolved / 1e12,
        "launch_microseconds": 1e6 * seconds_of(lambda: one.add_(1.0), times=10_000),
    }


def seconds_of(act: Callable[[], Any], times: int = 30) -> float:
    """The median over five rounds of how long one call takes."""
    found = []
    for _ in range(6):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            act()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - began) / times)
    return float(np.median(found[1:]))


def measure_ladder(given: argparse.Namespace, ceiling: float) -> tuple[list[dict[str, Any]], list[Block]]:
    rungs, blocks = [], []
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        count = 60_000
        pixels = np.random.default_rng(0).integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)
        place = Folder(f"{folder}/data/noise")
        data.write(place, name="noise", source="random", pixels=pixels, labels=np.full(count, -1, np.int64))
        for batch in given.batches:
            for name, changes in LADDER.items():
                rung, taken = measure_rung(given, folder, batch, changes, ceiling)
                rungs.append({"rung": name, "batch": batch} | rung)
                blocks += taken
    return rungs, blocks


def measure_rung(
    given: argparse.Namespace, folder: str, batch: int, changes: dict[str, Any], ceiling: float
) -> tuple[dict[str, Any], list[Block]]:
    changes = {
        "data": {"source": "noise", "resolution": SIDE},
        "model": UNET,
        "optimizer.batch": batch,
        **changes,
    }
    name = f"b{batch}-{abs(hash(str(changes)))}"
    torch.cuda.reset_peak_memory_stats()
    try:
        began = time.perf_counter()
        calibration = Ours(folder, f"{name}-first", steps=10, changes=changes)
        calibration.block()
        opening = time.perf_counter() - began
        began = time.perf_counter()
        calibration.block()
        steps = ours.steps_for(given.seconds, (time.perf_counter() - began) / 10, least=10)
        calibration.close()
        run = Ours(folder, name, steps=steps, changes=changes)
        blocks = harness.take_turns({"ours": run.block}, given.pairs)
        run.close()
    except torch.cuda.OutOfMemoryError:
        return {"problem": "out of memory"}, []
    operations = 6 * networks.operations(run.job.spec.model, shape=(3, SIDE, SIDE), classes=None)
    speed = ratios.mean([block.speed for block in blocks])
    return {
        "images_per_second": asdict(speed),
        "share_of_ceiling": speed.mean * operations / ceiling,
        "opening_seconds": opening,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }, blocks


if __name__ == "__main__":
    sys.exit(main())
