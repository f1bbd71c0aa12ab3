"""Our loop on two workers by Ray Train against the same loop on two workers under torchrun.

A block is a whole run. Its speed is that of its steady part, from step 20 on; its processor time there is
that of all processes, Ray's own included. What a launcher takes before the first step and after the last is
told apart. Ratios are Ray's images per second over torchrun's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import harness
import machine
import numpy as np
import ours
import ratios
from harness import Block, Work
from ratios import Aim

from hasten.platform.stack import environment

AIM = Aim(bound=0.98)
WORKERS: Final = 2
UNSTEADY: Final = 20  # steps
_HERE = Path(__file__).parent


class Launched:
    """An arm: runs of so many steps, each by a launcher of its own, each under a new name."""

    def __init__(self, launcher: str, name: str, *, storage: Path, steps: int) -> None:
        self._launcher, self._name, self._storage, self._steps = launcher, name, storage, steps
        self._count = 0

    def block(self) -> Work:
        self._count += 1
        name = f"{self._name}-{self._count}"
        command = [str(_HERE / "one_run.py"), self._launcher, "--storage", str(self._storage), "--name", name]
        command += ["--steps", str(self._steps), "--workers", str(WORKERS)]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORKERS}"]
        began = time.monotonic()
        with _Sampler() as sampler:
            said = _run([sys.executable, *(torchrun if self._launcher == "torchrun" else []), *command])
        ended = time.monotonic()
        if not (self._storage / f"{name}.times.json").exists():
            raise SystemExit(f"{self._launcher} failed:\n{said[-4000:]}")
        timeline = json.loads((self._storage / f"{name}.timeline.json").read_text())["marks"]
        times = json.loads((self._storage / f"{name}.times.json").read_text())
        return _work(timeline, times, sampler, began=began, ended=ended)


class _Sampler:
    """Reads the processor time of all our processes twice a second: when they have ended it is too late."""

    def __enter__(self) -> _Sampler:
        self._samples: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def between(self, first: float, last: float) -> float:
        moments, seconds = np.transpose(self._samples)
        return float(np.diff(np.interp([first, last], moments, seconds))[0])

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self._samples.append((time.monotonic(), machine.tree_seconds()))


def _work(
    timeline: list[list[float]], times: dict[str, float], sampler: _Sampler, *, began: float, ended: float
) -> Work:
    moments = {int(images): moment for images, moment in reversed(timeline)}
    steady = sorted(images for images in moments if images >= UNSTEADY * ours.BATCH)
    first, last = steady[0], steady[-1]
    return Work(
        images=last - first,
        seconds=moments[last] - moments[first],
        cpu_seconds=sampler.between(moments[first], moments[last]),
        details={
            "start_seconds": moments[0] - began,
            "called_to_start_seconds": moments[0] - times["called"],
            "last_step_to_return_seconds": times["returned"] - moments[last],
            "last_step_to_end_seconds": ended - moments[last],
        },
    )


def _run(command: list[str]) -> str:
    """What a command said; interrupted, it is asked to end, so that it ends what it started."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=_environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            process.wait()
        except BaseException:
            process.terminate()
            process.wait(timeout=60)
            raise
        output.seek(0)
        return output.read()


def _environment() -> dict[str, str]:
    """Of the caller's, without his Ray, and with what hasten asks of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    change = environment.ray_driver() | dict.fromkeys(["RAY_py_gcs_connect_timeout_s"])
    return environment.applied(kept | harness.THREADS, change)


def main() -> int:
    parser = harness.options(__doc__ or "", seconds=20)
    parser.add_argument("--steps", type=int, help="steps of a run, instead of --seconds")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        storage = Path(folder)
        pace = ours.step_seconds(storage) / WORKERS
        steps = given.steps or ours.steps_for(given.seconds, pace, least=200)
        arms = {
            name: Launched(launcher, f"run{number}", storage=storage, steps=max(1, steps // ours.TICKS))
            for number, (name, launcher) in enumerate(
                [("ray", "ray"), ("torchrun", "torchrun"), (harness.AGAIN, "torchrun")]
            )
        }
        blocks = harness.take_turns({name: arm.block for name, arm in arms.items()}, given.pairs, warm_up=0)
    results = {"workers": WORKERS, "steps": steps} | results_of(blocks)
    harness.conclude(harness.document("ray_against_torchrun", blocks=blocks, results=results), given.out)
    return 0


def results_of(blocks: list[Block]) -> dict[str, Any]:
    compared = harness.compare(
        blocks,
        ours="ray",
        aims={"torchrun": AIM},
        tolerance=0.01,
        control=("torchrun", harness.AGAIN),
    )
    rays, runs = harness.of_arm(blocks, "ray"), harness.of_arm(blocks, "torchrun")
    around: dict[str, Any] = {}
    for key in runs[0].details:
        more = ratios.mean([a.details[key] - b.details[key] for a, b in zip(rays, runs, strict=True)])
        around[key] = {
            "ray": float(np.mean([block.details[key] for block in rays])),
            "torchrun": float(np.mean([block.details[key] for block in runs])),
            "more": {"mean": more.mean, "low": more.low, "high": more.high},
        }
    return {"ray over torchrun": compared, "around": around}


if __name__ == "__main__":
    sys.exit(main())
