"""Our loop against a bare one and against those of diffusers, k-diffusion and denoising-diffusion-pytorch.

One process, one thread, the same network, the same images, batches of 64. Ratios are our images per second
over theirs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import loops
import ours
import torch
from harness import Arm, Work
from loops import Loop
from ours import Ours
from ratios import Aim

from hasten.trainers.datasets import data
from hasten.trainers.models import networks

AIMS = {
    "bare": Aim(bound=1.00),
    "diffusers": Aim(bound=1.05),
    "k-diffusion": Aim(bound=1.05),
    "denoising-diffusion-pytorch": Aim(bound=1.05),
}


def main() -> int:
    parser = harness.options(__doc__ or "", seconds=5)
    parser.add_argument("--only-bare", action="store_true", help="leave out what needs further packages")
    parser.add_argument("--networks", nargs="+", choices=list(ours.NETWORKS), default=["digits", "1M"])
    parser.add_argument("--steps", type=int, help="steps in a block, instead of --seconds")
    given = parser.parse_args()
    if not given.only_bare and (lacking := loops.lacking()):
        return harness.missing(f"not installed: {', '.join(lacking)}", f"{loops.INSTALL}\nor: --only-bare")
    torch.set_num_threads(1)
    aims = {"bare": AIMS["bare"]} if given.only_bare else AIMS
    results: dict[str, Any] = {}
    blocks = []
    for name in given.networks:
        with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
            arms, facts = arms_of(name, Path(folder), given.steps, given.seconds, set(aims))
            taken = harness.take_turns(arms, given.pairs)
        found = harness.compare(taken, ours="ours", aims=aims, tolerance=0.01)
        results[name] = facts | {"ours over theirs": found}
        blocks += taken
    harness.conclude(harness.document("other_loops", blocks=blocks, results=results), given.out)
    return 0


def arms_of(
    name: str, folder: Path, steps: int | None, seconds: float, wanted: set[str]
) -> tuple[dict[str, Arm], dict[str, Any]]:
    """The arms on one of the networks, and what is to be said about it."""
    changes = ours.NETWORKS[name]
    steps = steps or ours.steps_for(seconds, ours.step_seconds(folder, changes))
    first = Ours(folder, "ours", steps=steps, changes=changes)
    again = Ours(folder, "again", steps=steps, changes=changes)
    spec = first.job.spec
    dataset = data.read(first.job.data_uri, first.job.data_digest)
    images = torch.from_numpy(dataset.rows(dataset.split(spec.data.holdout)[0])[0])

    def network() -> networks.Network:
        return networks.build(spec.model, shape=(1, 8, 8), classes=None, seed=0)

    others: dict[str, Loop] = {"bare": loops.bare(network(), images, ours.BATCH)}
    if len(wanted) > 1:
        others["diffusers"] = loops.diffusers_example(network(), images, ours.BATCH)
        others["k-diffusion"] = loops.k_diffusion(network(), images, ours.BATCH)
        others["denoising-diffusion-pytorch"] = loops.denoising_diffusion_pytorch(
            network(), images, ours.BATCH, folder / "ddp"
        )
    arms: dict[str, Arm] = {"ours": first.block}
    for other, loop in others.items():
        arms[other] = _arm(loop, steps)
    arms[harness.AGAIN] = again.block
    weights = sum(weight.numel() for weight in network().parameters())
    return arms, {"parameters": weights, "batch": ours.BATCH, "steps_a_block": steps}


def _arm(loop: Loop, steps: int) -> Arm:
    def block() -> Work:
        loop(steps)
        return Work(images=steps * ours.BATCH)

    return block


if __name__ == "__main__":
    sys.exit(main())
