"""What a study has cost, when it has to stop, and what it is going to cost."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.sweeps import plan as plans
from hasten.sweeps import study as studies
from hasten.sweeps.conducting.ledger import Ledger
from hasten.sweeps.conducting.limits import Meter, Speed, Spent, estimate, exceeded, spent_before
from hasten.sweeps.study import Limits, Prices, StudySpec
from hasten.trainers.specs import RunSpec

Raw = dict[str, Any]

ARMS: Raw = {"baseline": {}, "slow": {"optimizer.lr": 1e-4}, "fast": {"optimizer.lr": 1e-2}}
PRICES = Prices(cpu_hour=0.05, gpu_hour=2.5, currency="EUR")


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"trials": 12}, "limits.trials: 12 of 12 trials are used; raise limits.trials to go on"),
        ({"hours": 2}, "limits.hours: 2 of 2 hours are used; go on with the same command"),
        ({"cpu_hours": 7}, "limits.cpu_hours: 7.5 of 7 CPU-hours are used; raise limits.cpu_hours to go on"),
        ({"gpu_hours": 1}, "limits.gpu_hours: 1 of 1 GPU-hours are used; raise limits.gpu_hours to go on"),
        ({"cost": 2.8}, "limits.cost: 2.875 of 2.8 EUR are used; raise limits.cost to go on"),
        ({"trials": 13, "hours": 3, "cpu_hours": 8, "gpu_hours": 2, "cost": 3}, None),
        ({}, None),
    ],
)
def test_a_limit_that_is_reached_is_named_with_what_to_do(limits: Raw, sentence: str | None) -> None:
    spent = Spent(cpu_hours=7.5, gpu_hours=1.0, cost=2.875, trials=12, hours=2.0)
    assert exceeded(Limits(**limits), PRICES, spent) == sentence


def test_a_meter_counts_what_runs_and_what_has_ended() -> None:
    now = 1000.0
    meter = Meter(
        cpus=4.0, gpus=1.0, prices=PRICES, earlier=Spent(cpu_hours=10.0, hours=5.0), clock=lambda: now
    )
    meter.start("a")
    now += 1800.0
    meter.start("b")
    now += 1800.0
    assert (meter.held("a"), meter.held("b"), meter.held("c")) == (3600.0, 1800.0, 0.0)
    spent = meter.spent(trials=3)
    assert (spent.cpu_hours, spent.gpu_hours) == (pytest.approx(10 + 1.5 * 4), pytest.approx(1.5))
    assert (spent.trials, spent.hours) == (3, 1.0)
    assert spent.cost == pytest.approx(16 * 0.05 + 1.5 * 2.5)
    meter.end("a", 1800.0)  # whoever ran it knows better
    assert meter.spent(trials=4).gpu_hours == pytest.approx(1.0)


def test_the_larger_of_two_accounts_counts() -> None:
    held = [(3600.0, 2.0, 0.0), (1800.0, 2.0, 1.0)]
    assert spent_before(Spent(cpu_hours=2.0, gpu_hours=4.0), held) == Spent(cpu_hours=3.0, gpu_hours=4.0)


# In a study.


def test_no_more_trials_start_than_are_allowed_and_the_running_ones_end(stage: Any) -> None:
    played = stage(arms=ARMS, seeds=[0, 1], limits={"trials": 4})
    records = played.perform(concurrent=8)
    assert played.started == ["baseline-s0", "slow-s0", "fast-s0", "baseline-s1"]
    assert records.keys() == set(played.started)
    note = Ledger(played.store).note()
    assert (note.state, note.over, note.trials) == ("stopped", 4, 6)
    assert "limits.trials" in note.why
    assert not played.perform().keys() - records.keys()
    played.edit(arms=ARMS, seeds=[0, 1])
    assert len(played.perform()) == 6
    assert len(played.started) == 6


@pytest.mark.parametrize(
    ("limits", "fewest"),
    [({"hours": 0.02}, 2), ({"cpu_hours": 0.04}, 2), ({"cost": 0.04}, 2), ({"gpu_hours": 1000}, 9)],
)
def test_at_a_limit_running_trials_stop_and_the_rest_goes_on_under_a_higher_one(
    stage: Any, same: Any, limits: Raw, fewest: int
) -> None:
    raw = {"arms": ARMS, "seeds": [0, 1, 2], "prices": {"cpu_hour": 1.0}}
    expected = same(stage(**raw).perform())
    played = stage(**raw, limits=limits)
    records = played.perform(concurrent=2)
    assert fewest <= len(records)
    assert len(records) < 9 or fewest == 9
    assert {record.state for record in records.values()} == {"finished"}
    played.edit(**raw)
    assert same(played.perform()) == expected


def test_costs_add_up_over_commands_also_of_what_was_never_finished(stage: Any) -> None:
    played = stage(arms=ARMS)
    first = played.conductor()
    attempt = played.attempt(first.next())
    first.report(attempt.trial, next(attempt.reports))
    played.time += 3600.0
    first.report(attempt.trial, next(attempt.reports))  # told with the next beat; then the driver is killed
    attempt.leave()
    second = played.conductor()
    assert second.spent.cpu_hours == pytest.approx(1.0)
    assert second.next().attempt == 1
    played.time += 1800.0
    assert second.spent.cpu_hours == pytest.approx(1.5)
    assert second.spent.hours == pytest.approx(0.5)  # by the clock it is another command


# Estimates.


def estimate_of(study: StudySpec, specs: list[RunSpec], **more: Any) -> Any:
    speed = Speed(
        seconds_per_image=0.01,
        startup_seconds=2.0,
        evaluation_seconds=0.5,
        sampling_seconds=3.0,
        sheet_seconds=0.25,
    )
    return estimate(study, specs, speed, **more)


def test_an_estimate_adds_up() -> None:
    study = studies.load("demo", {"prices": {"cpu_hour": 1.0}, "execution.cpus": 2.0})
    specs = [trial.spec for trial in plans.plan(study).trials]
    found = estimate_of(study, specs, concurrent=4)
    one = specs[0]
    seconds = 2.0 + 0.01 * one.budget.images + 0.5 / one.eval.loss.every + 0.25 / one.eval.grid.every
    seconds += 3.0 * len(one.eval.samples.at)
    assert found.trials == len(specs) == 12
    assert found.seconds == pytest.approx(seconds)
    assert found.hours == pytest.approx(3 * seconds / 3600)
    assert found.cpu_hours == found.cost == pytest.approx(12 * 2 * seconds / 3600)
    assert found.notes == ()


def test_a_shared_prefix_costs_nothing_and_the_last_wave_counts_whole() -> None:
    study = studies.load("demo")
    specs = [trial.spec for trial in plans.plan(study).trials][:5]
    whole = estimate_of(study, specs, concurrent=4)
    assert whole.hours == pytest.approx(2 * whole.seconds / 3600)
    half = specs[0].budget.images // 2
    shared = estimate_of(study, specs, concurrent=1, shared={4: half})
    assert whole.cpu_hours - shared.cpu_hours > 0.01 * half / 3600


def test_an_estimate_says_what_it_does_not_know_and_which_limit_comes_first() -> None:
    study = studies.load(
        "search", {"stopping": {"kind": "asha"}, "limits.cpu_hours": 0.001, "limits.trials": 1000}
    )
    found = estimate_of(study, [trial.spec for trial in plans.plan(study).trials], concurrent=1)
    assert found.notes[0] == "at most: trials that asha stops cost less"
    assert found.notes[1].startswith("limits.cpu_hours (0.001) is reached before the end, which needs ")
    assert len(found.notes) == 2
