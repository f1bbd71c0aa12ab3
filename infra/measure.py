"""Measure what the README and the changelog state: `python3 infra/measure.py OUT.json`.

Runs the demo twice in a home of its own, with the services up, and splits the sweep's time. Absolute times
are this machine's; run it on one that does nothing else.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HASTEN = [sys.executable, str(ROOT / "infra" / "run.py"), "hasten"]


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="hasten-") as home:
        environment = os.environ | {"HASTEN_HOME": home}
        try:
            up_seconds, _ = timed(["up"], environment)
            demo_seconds, demo = timed(["demo", "--json"], environment)
            again_seconds, again = timed(["demo", "--json"], environment)
        finally:
            subprocess.run([*HASTEN, "down"], env=environment, check=False, capture_output=True)
    same = [trial["metrics"] for trial in again["sweep"]["trials"]] == [
        trial["metrics"] for trial in demo["sweep"]["trials"]
    ]
    out.write_text(
        json.dumps(
            {
                "command": "python3 infra/measure.py",
                "machine": {
                    "cpus": os.cpu_count(),
                    "machine": platform.machine(),
                    "python": platform.python_version(),
                },
                "load_before": os.getloadavg()[0],
                "up_seconds": up_seconds,
                "demo_seconds": demo_seconds,
                "second_demo_seconds": again_seconds,
                "second_demo_has_the_same_numbers": same,
                "sweep": split(demo),
                "comparison": demo["comparison"],
            },
            indent=2,
        )
        + "\n"
    )


def timed(arguments: list[str], environment: dict[str, str]) -> tuple[float, dict[str, Any]]:
    started = time.monotonic()
    done = subprocess.run(
        [*HASTEN, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.monotonic() - started
    return seconds, json.loads(done.stdout.splitlines()[-1]) if "--json" in arguments else {}


def split(demo: dict[str, Any]) -> dict[str, float]:
    """Where the processor time of a sweep goes, in seconds a trial; two trials run at a time."""
    trials = demo["sweep"]["trials"]
    wall, slots = demo["seconds"]["sweep"], min(os.cpu_count() or 1, len(trials))
    training = sum(trial["seconds"] for trial in trials) / len(trials)
    run = sum(trial["wall_seconds"] for trial in trials) / len(trials)
    return {
        "sweep_seconds": wall,
        "ddp_run_seconds": demo["seconds"]["train"],
        "trials": len(trials),
        "at_a_time": slots,
        "slot_seconds_a_trial": wall * slots / len(trials),
        "training_seconds_a_trial": training,
        "evaluation_and_checkpoint_seconds_a_trial": run - training,
        "everything_else_seconds_a_trial": wall * slots / len(trials) - run,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
