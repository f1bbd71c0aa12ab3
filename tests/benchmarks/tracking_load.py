"""Many runs that log at once: whether one MLflow server takes it, and what arrives.

    python tests/benchmarks/tracking_load.py --backend sqlite|postgresql --runs 100 --out FILE

Processes open all runs at the same moment, as nested children of one parent, log points, an image and a file,
and close. Afterwards the server is asked for everything: each point has to be there once. Times are of one
machine that the runs and their server share.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import machine
import numpy as np
import own_mlflow
import own_postgresql

from hasten.platform.identity import RunIdentity
from hasten.platform.tracking import Tracking
from hasten.platform.tracking.door import Mlflow

STUDY: Final = "load"
METRICS: Final = ("eval/loss", "train/loss", "train/lr", "perf/images_per_second")
_PATIENCE: Final = 300.0  # seconds for the end of a run to arrive
_READERS: Final = 8


def identity_of(number: int, parent: str) -> RunIdentity:
    tags = {"hasten.study": STUDY, "hasten.trial": f"t{number}", "hasten.fingerprint": f"{number:012x}"}
    return RunIdentity(
        experiment=STUDY,
        name=f"t{number}",
        kind="trial",
        tags=tags,
        params={f"setting.{index}": number * index for index in range(40)},
        parent_run_id=parent,
    )


def load(
    uri: str, spool: Path, *, runs: int, points: int, processes: int = 4, images: bool = True
) -> dict[str, Any]:
    """Log all runs at once, and see what has arrived; ``spool`` is a folder that does not exist yet."""
    tracking = Tracking(uri, spool, close_seconds=_PATIENCE)
    parent = tracking.open(
        RunIdentity(experiment=STUDY, name=STUDY, kind="study", tags={"hasten.study": STUDY})
    )
    context = multiprocessing.get_context("spawn")
    shares = [range(first, runs, processes) for first in range(processes)]
    barrier, answers = context.Barrier(processes + 1), context.SimpleQueue()
    arguments = (tracking, parent.run_id, points, images, barrier, answers)
    workers = [context.Process(target=_log, args=(share, *arguments)) for share in shares]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.monotonic()
    told: list[dict[str, Any]] = [each for _ in workers for each in answers.get()]
    seconds = time.monotonic() - began
    for worker in workers:
        worker.join()
    parent.close("finished")
    answering = time.monotonic()
    server = Mlflow(uri)
    server.probe()
    answering = time.monotonic() - answering
    left = [path for path in spool.glob("*/*") if path.is_dir()]
    found = _arrived(server, parent.run_id, points=points, images=images)
    return {
        "runs": runs,
        "points": runs * points * len(METRICS),
        "seconds_until_all_has_arrived": seconds,
        "seconds_of_logging": _quantiles([each["logging"] for each in told]),
        "seconds_of_closing": _quantiles([each["closing"] for each in told]),
        "seconds_of_an_answer_afterwards": answering,
        "left_in_the_spool": len(left),
        **found,
    }


def _log(
    numbers: Sequence[int],
    tracking: Tracking,
    parent: str,
    points: int,
    images: bool,
    barrier: Any,
    answers: Any,
) -> None:
    """Some of the runs, each on a thread of its own, in a process of their own."""
    picture = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)

    def one(number: int) -> dict[str, float]:
        began = time.monotonic()
        track = tracking.open(identity_of(number, parent), required=False, fresh=True)
        for step in range(points):
            track.metrics(dict.fromkeys(METRICS, number + step / 7), step=step)
        if images:
            track.image("samples/fixed_noise", picture, step=0)
            track.artifact("config/resolved.yaml", b"name: load\n")
        logged = time.monotonic()
        track.close("finished")
        return {"logging": logged - began, "closing": time.monotonic() - logged}

    barrier.wait()
    with ThreadPoolExecutor(len(numbers)) as pool:
        answers.put(list(pool.map(one, numbers)))


def _arrived(server: Mlflow, parent: str, *, points: int, images: bool) -> dict[str, Any]:
    """How many runs there are, and how many of them have every point once, their files and their end."""
    seen = server.seen(STUDY, {"hasten.study": STUDY, "kind": "trial"})

    def is_whole(run_id: str) -> bool:
        history = server.history(run_id)
        steps = {metric: sorted(each.step for each in history if each.key == metric) for metric in METRICS}
        right = all(found == list(range(points)) for found in steps.values())
        return right and (not images or len(server.files(run_id, "images")) == 2)

    with ThreadPoolExecutor(_READERS) as pool:
        whole = sum(pool.map(is_whole, [run.run_id for run in seen]))
    return {
        "arrived": len(seen),
        "trials": len({run.tags["hasten.trial"] for run in seen}),
        "nested": sum(run.tags.get("mlflow.parentRunId") == parent for run in seen),
        "finished": sum(run.status == "FINISHED" for run in seen),
        "whole": whole,
    }


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(seconds)), "most": max(seconds)}


@contextmanager
def server(backend: str, folder: Path) -> Iterator[str]:
    """An MLflow server on the backend that is asked for."""
    with ExitStack() as held:
        url = ""
        if backend == "postgresql":
            url = held.enter_context(own_postgresql.started()).replace("://", "+psycopg://")
        yield held.enter_context(own_mlflow.started(folder, backend=url))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("HASTEN_", "MLFLOW_TRACKING_"))]:
        del os.environ[name]
    with (
        tempfile.TemporaryDirectory(prefix="hasten-load-") as folder,
        server(given.backend, Path(folder, "mlflow")) as uri,
    ):
        found = load(uri, Path(folder, "spool"), runs=given.runs, points=given.points)
    told = {"benchmark": "tracking_load", "backend": given.backend, "machine": machine.fingerprint(), **found}
    given.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    whole = found["whole"] == found["finished"] == found["nested"] == found["arrived"] == given.runs
    return 0 if whole and not found["left_in_the_spool"] else 1


if __name__ == "__main__":
    sys.exit(main())
