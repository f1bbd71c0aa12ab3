"""torch.compile, channels_last and bfloat16 against plain execution, in our loop on the digits' network.

Ratios are each variant's images per second over plain ones; ``compile_seconds`` is what the first block took
longer than the next. While the schedules move from the first block to the last, nothing may compile again.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from typing import Any

import harness
import torch
from harness import Arm
from ours import BATCH, NETWORKS, Ours, step_seconds, steps_for
from torch._dynamo.utils import counters

PLAIN = "plain"
VARIANTS: dict[str, dict[str, Any]] = {
    "channels_last": {"execution.channels_last": True},
    "bf16": {"precision": "bf16"},
    "compile": {"execution.compile": "default"},
    "compile, bf16": {"execution.compile": "default", "precision": "bf16"},
    "compile, channels_last, bf16": {
        "execution.compile": "default",
        "execution.channels_last": True,
        "precision": "bf16",
    },
}
# All schedules that a run can have move at once.
MOVING: dict[str, Any] = {
    "curriculum": {"kind": "clts", "mu": 0.3, "sigma": 0.2},
    "momentum": {"kind": "mdlrc", "beta": 0.9},
    "optimizer.warmup": 0.1,
}


def main() -> int:
    parser = harness.options(__doc__ or "", seconds=5)
    parser.add_argument("--steps", type=int, help="steps in a block, instead of --seconds")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--network", choices=list(NETWORKS), default="digits")
    given = parser.parse_args()
    if not (shutil.which("g++") or shutil.which("clang++")):
        return harness.missing("torch.compile needs a C++ compiler here", "Install g++, then run this again.")
    torch.set_num_threads(1)
    changes = {**MOVING, **NETWORKS[given.network]}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        steps = given.steps or steps_for(given.seconds, step_seconds(folder, changes))
        # With a report for each block, the last block is the end of the schedules.
        arms: dict[str, Arm] = {}
        for number, name in enumerate([PLAIN, *given.variants, harness.AGAIN]):
            made = Ours(folder, f"run{number}", steps=steps, changes={**changes, **VARIANTS.get(name, {})})
            results[name] = warmed(made, steps)
            arms[name] = made.block
        before = graphs()
        blocks = harness.take_turns(arms, given.pairs)
        again = graphs() - before
    for name in given.variants:
        results[name]["over plain"] = {
            clock: found["arms"][PLAIN]
            for clock, found in harness.compare(
                blocks,
                ours=name,
                aims={PLAIN: None},
                tolerance=0.01,
                control=(PLAIN, harness.AGAIN),
            ).items()
        }
    results |= {"steps_a_block": steps, "batch": BATCH, "recompilations": again}
    harness.conclude(harness.document("compile", blocks=blocks, results=results), given.out)
    return 0


def warmed(ours: Ours, steps: int) -> dict[str, Any]:
    """Run two blocks; what compiling took, and how many graphs it made."""
    before, seconds = graphs(), []
    for _ in range(2):
        began = time.perf_counter()
        ours.block()
        seconds.append(time.perf_counter() - began)
    made = graphs() - before
    return {"compile_seconds": max(0.0, seconds[0] - seconds[1]) if made else 0.0, "graphs": made}


def graphs() -> int:
    """How many graphs were compiled in this process."""
    return int(counters["stats"]["unique_graphs"])


if __name__ == "__main__":
    sys.exit(main())
