"""One whole run on several workers, by Ray Train or under torchrun, that leaves its timeline in a file.

Started by ``ray_against_torchrun.py``. Times are the machine's monotonic clock, the same in all processes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ours
from ours import Job

from hasten.trainers.tracker import NullTracker


class Timeline(NullTracker):
    """Notes when the first worker told of how many images; the others keep step with it in every update."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._marks: list[tuple[int, float]] = []

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        del values
        self._marks.append((step, time.monotonic()))

    def close(self, status: str) -> None:
        self._path.write_text(json.dumps({"status": status, "marks": self._marks}))


def under_torchrun(job: Job, timeline: str) -> dict[str, float]:
    """What ``hasten train`` does under torchrun, but for MLflow."""
    from hasten.trainers import local, session

    with local.worker(job.spec) as worker:
        track = Timeline(timeline) if worker.is_first else NullTracker()
        called = time.monotonic()
        for _ in session.run(job, worker=worker, track=track):
            pass
        track.close("finished")
    return {"called": called, "returned": time.monotonic()} if worker.is_first else {}


def under_ray(job: Job, timeline: str, scratch: str) -> dict[str, float]:
    """What ``hasten train`` does with ``execution.launcher: ray``, but for MLflow; Ray is started for it."""
    import ray

    from hasten.trainers import ray_train

    ray.init(address="local", num_cpus=job.spec.execution.most, log_to_driver=False, logging_level="ERROR")
    called = time.monotonic()
    ray_train.fit(job, open_tracker=functools.partial(Timeline, timeline), scratch=scratch)
    returned = time.monotonic()
    ray.shutdown()
    return {"called": called, "returned": returned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("launcher", choices=["torchrun", "ray"])
    parser.add_argument("--storage", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    given = parser.parse_args()
    launcher = "local" if given.launcher == "torchrun" else "ray"
    changes: dict[str, Any] = {"execution.launcher": launcher, "execution.workers": given.workers}
    job = ours.job_of(given.storage, given.name, steps=given.steps, changes=changes)
    timeline = f"{given.storage}/{given.name}.timeline.json"
    if given.launcher == "torchrun":
        times = under_torchrun(job, timeline)
    else:
        times = under_ray(job, timeline, f"{given.storage}/ray")
    if times:
        Path(f"{given.storage}/{given.name}.times.json").write_text(json.dumps(times))


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
