"""What a study has left behind, in the store and in MLflow: to hold a disturbed one against another.

Whatever tells of clocks is left out, and so is how often and where a trial was tried. All the rest of two
studies with one file must be equal, to the last bit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from mlflow import MlflowClient
from ray.util.state import list_actors, list_placement_groups
from rich.console import Console

from hasten.platform import cluster, studies
from hasten.platform.services import Services
from hasten.platform.stack import processes, state
from hasten.platform.studies import Study
from hasten.sweeps.plan import Plan
from hasten.sweeps.records import TrialRecord
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.records import RunResult

_OF_THE_WAY: Final = {"seconds", "occupied", "attempts", "lost", "forked_from", "forked_images"}
_CLOCKS: Final = "perf/"
_TRIALS: Final = ("ray::ResourceTrainable", "ray::TrialActor", "ray::RayTrainWorker", "ray::TrainController")
_RAYS_OWN: Final = ("_StatsActor", "_AutoscalingCoordinatorActor")

Steps = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """A study's points by number, its records, results and MLflow runs by trial, without the clock.

    ``faults`` is what is wrong with it in itself; ``attempts`` how often trials were started in all.
    """

    points: Mapping[int, Any]
    records: Mapping[str, Any]
    results: Mapping[str, Any]
    runs: Mapping[str, Any]
    faults: tuple[str, ...]
    attempts: int


def of(plan: Plan) -> Remains:
    """What the study of this home has left; the stack runs, and nothing is at work on the study."""
    study = studies.bind(plan, console=Console(quiet=True), ray=False)
    now = studies.standing(study)
    whole = {
        trial.name: result
        for trial in now.trials
        if (result := RunStore(study.job(trial).uri).result()) is not None
    }
    runs, faults = _tracked(study, now.records, whole)
    if not now.is_finished:
        faults.append(f"{len(now.records)} of {now.planned} trials are over")
    with study.ledger() as ledger:
        points = {number: stored.model_dump() for number, stored in ledger.points().items()}
    return Remains(
        points=points,
        records={name: essence(record) for name, record in now.records.items()},
        # A run that outran the verdict on it may have come to its end or not.
        results={name: plain(whole[name]) for name in whole if now.records[name].state == "finished"},
        runs=runs,
        faults=tuple(faults),
        attempts=sum(record.attempts for record in now.records.values()),
    )


def essence(record: TrialRecord) -> dict[str, Any]:
    """What must not depend on what happened on the way."""
    told = record.model_dump(mode="json", exclude=_OF_THE_WAY)
    return told | {key: _timeless(told[key]) for key in ("metrics", "curves")}


def plain(result: RunResult) -> dict[str, Any]:
    """A result without what depends on the clock or on where and how often the run was started."""
    fields = {"run", "fingerprint", "status", "images", "evaluation", "spec", "data_digest"}
    return {
        **result.model_dump(mode="json", include=fields),
        "metrics": _timeless(result.metrics),
        "history": [(point.step, _timeless(point.metrics)) for point in result.history],
        "by_timestep": [{**row, "seconds": None} for row in result.by_timestep],
    }


def differences(calm: Remains, disturbed: Remains) -> list[str]:
    """What a disturbed study has otherwise than an undisturbed one, and what is wrong with it in itself."""
    found = list(disturbed.faults)
    for what in ("points", "records", "results", "runs"):
        one, other = getattr(calm, what), getattr(disturbed, what)
        found += [f"{what}: {key} is not there" for key in one.keys() - other.keys()]
        found += [f"{what}: {key} is new" for key in other.keys() - one.keys()]
        for key in one.keys() & other.keys():
            found += [f"{what}: {key}{place}" for place in _unlike(one[key], other[key])]
    return sorted(found)


def of_trials(home: Path) -> list[psutil.Process]:
    """The processes of this home's Ray in which trials live."""
    return [
        process for process in processes.members(home, "ray") if processes.title(process).startswith(_TRIALS)
    ]


def left_running(home: Path, services: Services, *, patience: float = 20.0) -> list[str]:
    """Processes, actors and placement groups of trials that are still there after so many seconds."""
    deadline = time.monotonic() + patience
    cluster.attach(services)
    try:
        while (left := _running(home)) and time.monotonic() < deadline:
            time.sleep(0.5)
    finally:
        cluster.detach()
    return left


def _running(home: Path) -> list[str]:
    address = f"http://{processes.LOOPBACK}:{state.read(home)['ray'].ports['dashboard']}"
    actors = list_actors(address=address, filters=[("state", "!=", "DEAD")])
    groups = list_placement_groups(address=address, filters=[("state", "!=", "REMOVED")])
    return [
        *(f"process {process.pid} {processes.title(process)}" for process in of_trials(home)),
        *(f"actor {actor.class_name}" for actor in actors if actor.class_name not in _RAYS_OWN),
        *(f"placement group {group.placement_group_id}" for group in groups),
    ]


def _tracked(
    study: Study, records: Mapping[str, TrialRecord], whole: Mapping[str, RunResult]
) -> tuple[dict[str, Any], list[str]]:
    """The study's children in MLflow, and what of them is not true or not whole."""
    client = MlflowClient(study.tracking.uri)
    experiment = client.get_experiment_by_name(study.name)
    assert experiment is not None, "the study has never run"
    found = client.search_runs([experiment.experiment_id], max_results=5000)
    faults = [f"MLflow: {run.info.run_name} is RUNNING" for run in found if run.info.status == "RUNNING"]
    children = [run for run in found if run.data.tags.get("kind") == "trial"]
    count = Counter(run.data.tags["hasten.trial"] for run in children)
    faults += [
        f"MLflow: {count[trial]} runs of {trial}" for trial in records.keys() | count if count[trial] != 1
    ]
    faults += [f"MLflow: {len(found) - len(children)} parents"] * (len(found) != len(children) + 1)
    runs: dict[str, Any] = {}
    for run in children:
        trial = run.data.tags["hasten.trial"]
        runs[trial] = {"status": run.info.status, "stopped_by": run.data.tags.get("hasten.stopped_by")}
        told = {
            key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        if trial in records:
            faults += [f"MLflow: {trial}: {fault}" for fault in _gaps(told, records[trial], whole.get(trial))]
    return runs, faults


def _gaps(told: Steps, record: TrialRecord, result: RunResult | None) -> Iterator[str]:
    """What is missing, doubled or wrong in the curves that MLflow has of a trial."""
    for key, curve in told.items():
        steps = [step for step, _ in curve]
        if len(set(steps)) < len(steps):
            yield f"{key} has a step twice"
    wanted: Steps = {key: list(curve) for key, curve in _timeless(record.curves).items()}
    if result is not None and record.state == "finished":
        keys = {key for point in result.history for key in point.metrics}
        wanted = {key: result.series(key) for key in keys}
    for key, curve in wanted.items():
        if key.startswith(_CLOCKS):
            missing = {step for step, _ in curve} - {step for step, _ in told.get(key, [])}
        else:
            missing = {step for step, _ in set(curve) - set(told.get(key, []))}
        if missing:
            yield f"{key} lacks {sorted(missing)}"


def _unlike(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Where two values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from _unlike(one.get(key), other.get(key), f"{place}.{key}")
    elif one != other:
        yield f"{place} is {str(other)[:80]}, not {str(one)[:80]}"


def _timeless(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if not key.startswith(_CLOCKS)}
