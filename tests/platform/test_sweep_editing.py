"""A study that is edited, fails in every way, and meets its limits: what runs again, and what does not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from hasten.platform import study_checking, sweeping
from hasten.platform.services import Services
from hasten.platform.studies import bind
from hasten.sweeps import plan as plans
from hasten.sweeps import study as studies
from hasten.sweeps.records import TrialRecord
from hasten.trainers import config
from hasten.trainers.errors import Fault, Stopped

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]

QUIET = Console(quiet=True)
SEARCH = {
    "base": "simulated",
    "space": {"optimizer.lr": {"log_uniform": [3e-4, 1e-2]}},
    "search": {"kind": "random", "trials": 2},
}


def planned(name: str, **fields: Any) -> plans.Plan:
    return plans.plan(config.validate(studies.StudySpec, {"name": name, **fields}))


def records(plan: plans.Plan) -> dict[str, TrialRecord]:
    return bind(plan, console=QUIET).ledger().records()


def attempts(services: Services, study: str, *, images: int = 64_000) -> dict[str, int]:
    """How often each trial of that horizon was started, as MLflow counts it; one run for each trial."""
    client = MlflowClient(services.tracking_uri)
    experiment = client.get_experiment_by_name(study)
    condition = f"tags.kind = 'trial' and params.`budget.images` = '{images}'"
    runs = client.search_runs([experiment.experiment_id], condition, max_results=1000)
    found = {run.data.tags["hasten.trial"]: int(run.data.tags["hasten.attempt"]) for run in runs}
    assert len(found) == len(runs), "a trial has two runs"
    assert {run.info.status for run in runs} == {"FINISHED"}
    return found


def test_an_extended_study_runs_only_what_is_new(stack: Services) -> None:
    name = "extended"
    found, _ = sweeping.sweep(planned(name, **SEARCH), console=QUIET)
    assert [row["trial"] for row in found["trials"]] == ["0000-s0", "0001-s0"]

    more = SEARCH | {"search": {"kind": "random", "trials": 3}, "seeds": [0, 1]}
    found, told = sweeping.sweep(planned(name, **more), console=QUIET)
    assert found["status"] == "finished"
    assert {row["trial"] for row in found["trials"]} == {f"000{n}-s{s}" for n in range(3) for s in (0, 1)}
    assert attempts(stack, name) == dict.fromkeys((row["trial"] for row in found["trials"]), 1)
    assert told.standing is not None
    assert len(told.standing.ranked) == 3

    console = Console(width=200)
    longer = planned(name, **more, base_overrides={"budget.images": 128_000})
    with console.capture() as shown:
        study_checking.check_study(longer, console)
    assert "budget.images changed from 64,000 to 128,000" in shown.get()
    found, _ = sweeping.sweep(longer, console=QUIET)
    assert all(row["images"] == 128_000 for row in found["trials"])
    once = dict.fromkeys((row["trial"] for row in found["trials"]), 1)
    assert attempts(stack, name, images=128_000) == attempts(stack, name) == once


FAILING: dict[str, Any] = {
    "base": "simulated",
    "base_overrides": {"execution.checkpoint_every": 0.25},
    "arms": {
        "baseline": {},
        **{how: {"model.fails": {"at": 0.5, "how": how}} for how in ("nan", "memory", "error", "crash")},
        "unlucky": {"model.fails": {"at": 0.5, "how": "crash", "once": True}},
    },
}


def test_failures_are_told_apart(stack: Services) -> None:
    plan = planned("failing", **FAILING)
    with pytest.raises(Fault, match=r"2 of 6 trials failed: (error-s0, crash-s0|crash-s0, error-s0)"):
        sweeping.sweep(plan, console=QUIET)
    first = records(plan)
    kinds = {record.arm: record.failure for record in first.values()}
    assert kinds == {
        "baseline": None,
        "nan": "diverged",
        "memory": "memory",
        "error": "program",
        "crash": "lost",
        "unlucky": None,
    }
    assert first["crash-s0"].attempts >= 3  # and again while an attempt gets further
    assert first["unlucky-s0"].attempts == 2

    with pytest.raises(Fault):
        sweeping.sweep(plan, console=QUIET)
    started = {name: record.attempts - first[name].attempts for name, record in records(plan).items()}
    assert {name for name, number in started.items() if number} == {"error-s0", "crash-s0"}


def test_what_failed_for_good_ends_a_study(stack: Services) -> None:
    arms = {"baseline": {}, "nan": FAILING["arms"]["nan"]}
    found, told = sweeping.sweep(planned("diverging", base="simulated", arms=arms), console=QUIET)
    assert {row["trial"]: (row["status"], row["failure"]) for row in found["trials"]} == {
        "baseline-s0": ("finished", None),
        "nan-s0": ("failed", "diverged"),
    }
    assert told.comparison is not None
    assert told.comparison.arms[1].endings == {"diverged": 1}


def test_a_limit_stops_and_a_higher_one_goes_on(stack: Services) -> None:
    name = "limited"
    more = SEARCH | {"search": {"kind": "random", "trials": 4}}
    with pytest.raises(Stopped, match=r"(?s)limits\.trials.*2 of 4 trials are over"):
        sweeping.sweep(planned(name, **more, limits={"trials": 2}), console=QUIET)
    assert len(records(planned(name, **more))) == 2

    prices = {"cpu_hour": 3600.0}  # a second of a CPU costs 1
    slow = more | {"base_overrides": {"model.seconds": 5.0}, "name": f"{name}-by-cost"}
    with pytest.raises(Stopped, match=r"limits\.cost"):
        sweeping.sweep(planned(**slow, limits={"cost": 4.0}, prices=prices), console=QUIET)

    found, _ = sweeping.sweep(planned(name, **more), console=QUIET)
    assert found["status"] == "finished"
    assert attempts(stack, name) == {f"000{number}-s0": 1 for number in range(4)}
    json.dumps(found)
