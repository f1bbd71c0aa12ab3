"""Evaluation in the training thread against evaluation behind its back.

A block has one evaluation of the held-out loss and one of samples. ``hidden`` is the share of an evaluation's
time that training no longer waits for; on a machine without an idle core there is little to hide it behind.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import harness
import ratios
import torch
from harness import Block
from ours import Ours, step_seconds, steps_for

REPORTS = 5  # in a block, of which the last one evaluates
EVALUATED: dict[str, Any] = {
    "eval.loss": {"every": REPORTS / 100, "images": 360},
    "eval.samples": {"at": [n * REPORTS / 100 for n in range(1, 20)], "images": 120, "steps": 25},
}
ARMS: dict[str, dict[str, Any]] = {
    "background": {**EVALUATED, "execution.evaluation": "background"},
    "inline": {**EVALUATED, "execution.evaluation": "inline"},
    "none": {},
    harness.AGAIN: {**EVALUATED, "execution.evaluation": "inline"},
}


def main() -> int:
    parser = harness.options(__doc__ or "", seconds=15)
    parser.add_argument("--steps", type=int, help="steps in a block, instead of --seconds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        steps = given.steps or steps_for(given.seconds, step_seconds(folder))
        runs = {
            name: Ours(
                folder, f"run{number}", steps=max(1, steps // REPORTS), reports=REPORTS, changes=changes
            )
            for number, (name, changes) in enumerate(ARMS.items())
        }
        blocks = harness.take_turns({name: run.block for name, run in runs.items()}, given.pairs)
        for run in runs.values():
            run.close()
    results = {"steps_a_block": steps} | results_of(blocks)
    harness.conclude(harness.document("evaluation_overlap", blocks=blocks, results=results), given.out)
    return 0


def results_of(blocks: list[Block]) -> dict[str, Any]:
    seconds = {name: [block.seconds for block in harness.of_arm(blocks, name)] for name in ARMS}
    waited = {
        name: ratios.mean([a - b for a, b in zip(seconds[name], seconds["none"], strict=True)])
        for name in ("background", "inline")
    }
    compared = harness.compare(
        blocks,
        ours="background",
        aims={"inline": None},
        tolerance=0.02,
        control=("inline", harness.AGAIN),
    )
    return {
        "background over inline": compared,
        "extra_seconds_an_evaluation": {
            name: {"mean": found.mean, "low": found.low, "high": found.high} for name, found in waited.items()
        },
        "hidden": 1.0 - waited["background"].mean / waited["inline"].mean,
    }


if __name__ == "__main__":
    sys.exit(main())
