"""Optuna's proposals as a function of outcomes, and the view for its dashboard."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from hasten.sweeps import space as spaces
from hasten.sweeps.records import TrialRecord, Verdict
from hasten.sweeps.searching import optuna_search
from hasten.sweeps.searching.factory import proposals
from hasten.sweeps.searching.proposals import Point, Proposals
from hasten.sweeps.space import Settings
from hasten.sweeps.study import StudySpec
from hasten.trainers import config, specs
from hasten.trainers.errors import ConfigError, Fault

BASE = specs.load_raw("digits")
SPACE: dict[str, Any] = {
    "curriculum.kind": {"choice": ["uniform", "clts"]},
    "curriculum.mu": {"uniform": [0.1, 0.9], "when": {"curriculum.kind": "clts"}},
    "curriculum.sigma": {"uniform": [0.1, 0.5], "step": 0.05, "when": {"curriculum.kind": "clts"}},
    "optimizer.lr": {"log_uniform": [3e-4, 1e-2]},
    "optimizer.batch": {"log_int_uniform": [16, 256]},
}


def study(**changes: Any) -> StudySpec:
    raw = {
        "name": "s",
        "base": "digits",
        "space": SPACE,
        "search": {"kind": "optuna", "trials": 30, "startup": 8},
        "objective": {"metric": "eval/loss", "target": None},
    }
    return config.validate(StudySpec, raw | changes)


def planted(settings: Settings) -> float:
    """Best, 0, at clts with mu 0.3 and a learning rate of 2e-3."""
    if settings["curriculum.kind"] == "uniform":
        return 1.0 + math.log(settings["optimizer.lr"] / 2e-3) ** 2
    return (settings["curriculum.mu"] - 0.3) ** 2 * 4 + math.log(settings["optimizer.lr"] / 2e-3) ** 2


def ended(point: Point, value: float, seed: int = 0, **changes: Any) -> TrialRecord:
    fields: dict[str, Any] = {
        "trial": f"{point.name}-s{seed}",
        "arm": point.name,
        "seed": seed,
        "settings": point.settings,
        "run": "digits-0123456789ab",
        "fingerprint": "0123456789ab",
        "state": "finished",
        "images": 1000,
        "total": 1000,
        "metrics": {"eval/loss": value, "eval/frechet": -value},
        "curves": {"eval/loss": [(500, value + 1.0), (1000, value)], "eval/frechet": [(1000, -value)]},
    }
    return TrialRecord(**fields | changes)


def search(
    spec: StudySpec, end: Callable[[Point], Mapping[int, TrialRecord]], source: Proposals | None = None
) -> tuple[list[Point], list[Mapping[int, TrialRecord]]]:
    """All points of a study in order, each ended at once."""
    source = source or proposals(spec, BASE)
    points: list[Point] = []
    outcomes: list[Mapping[int, TrialRecord]] = []
    for number in range(source.count):
        points.append(source.point(number, outcomes[: source.needs(number)]))
        outcomes.append(end(points[-1]))
    return points, outcomes


def finished(point: Point) -> Mapping[int, TrialRecord]:
    return {0: ended(point, planted(point.settings))}


def varied(point: Point) -> Mapping[int, TrialRecord]:
    """Some diverge, some are stopped, some are lost."""
    match point.number % 7:
        case 2:
            return {0: ended(point, math.nan, state="failed", failure="diverged", metrics={}, curves={})}
        case 4:
            verdict = Verdict(rule="asha", images=500, value=2.0, threshold=1.0, reason="worse")
            curves = {"eval/loss": [(500, planted(point.settings) + 1.0)]}
            return {0: ended(point, 2.0, state="stopped", images=500, verdict=verdict, curves=curves)}
        case 6:
            return {0: ended(point, math.nan, state="failed", failure="program", metrics={}, curves={})}
        case _:
            return finished(point)


def test_points_are_possible_different_and_wait_for_those_before_at_the_lag() -> None:
    spec = study(constraints=["optimizer.lr * optimizer.batch <= 0.5"], ahead=3)
    source = proposals(spec, BASE)
    assert [source.needs(number) for number in (0, 7, 8, 9, 29)] == [0, 0, 6, 7, 27]
    points, _ = search(spec, varied)
    assert all(spaces.contains(spec.space, each.settings) for each in points)
    assert all(each.settings["optimizer.lr"] * each.settings["optimizer.batch"] <= 0.5 for each in points)
    assert len({spaces.identity(each.settings) for each in points}) == 30


def test_a_point_is_the_same_whatever_was_asked_before_and_in_another_process(tmp_path: Path) -> None:
    spec = study(ahead=4)
    points, outcomes = search(spec, varied)
    source = proposals(spec, BASE)
    for number in random.Random(0).sample(range(30), 30):
        assert source.point(number, outcomes[: source.needs(number)]) == points[number]
        assert proposals(spec, BASE).point(number, outcomes[: source.needs(number)]) == points[number]
    file = tmp_path / "outcomes.json"
    file.write_text(json.dumps([each[0].model_dump(mode="json") for each in outcomes]))
    program = f"""
import json
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching.factory import proposals
from hasten.sweeps.study import StudySpec
from hasten.trainers import specs
study = StudySpec.model_validate_json({spec.model_dump_json()!r})
records = [TrialRecord.model_validate(each) for each in json.load(open({str(file)!r}))]
source = proposals(study, specs.load_raw("digits"))
for number in (29, 12):
    point = source.point(number, [{{0: each}} for each in records[: source.needs(number)]])
    print(json.dumps(point.settings))
"""
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line) for line in told.stdout.splitlines()] == [
        *(points[29].settings, points[12].settings)
    ]


def test_points_that_are_running_are_kept_away_from() -> None:
    spec = study()
    _, outcomes = search(spec, finished)
    estimator = optuna_search._Estimator(spec, spec.search)
    estimator.learn(outcomes)
    alone = [estimator.ask(seed) for seed in range(20)]
    with estimator.running(alone[:1] * 10):
        beside = [estimator.ask(seed) for seed in range(20)]
    assert alone == [estimator.ask(seed) for seed in range(20)], "and are forgotten afterwards"

    def close(settings: Settings) -> bool:
        return abs(math.log(settings["optimizer.lr"] / alone[0]["optimizer.lr"])) < 0.2

    assert sum(map(close, beside)) < sum(map(close, alone))


def test_other_outcomes_lead_elsewhere_and_the_old_ones_back() -> None:
    spec = study()
    source = proposals(spec, BASE)
    points, outcomes = search(spec, finished, source)
    changed = [*outcomes[:10], {0: ended(points[10], -5.0)}, *outcomes[11:]]
    assert source.point(29, changed[: source.needs(29)]) != points[29]
    assert source.point(29, outcomes[: source.needs(29)]) == points[29]
    assert source.point(12, changed[: source.needs(12)]) == points[12], "the tenth is not known to it yet"


def test_more_trials_leave_the_earlier_points_and_the_first_are_the_random_ones() -> None:
    few, _ = search(study(), varied)
    many, _ = search(study(search={"kind": "optuna", "trials": 36, "startup": 8}), varied)
    assert many[:30] == few
    spec = study(search={"kind": "random", "trials": 8})
    assert [proposals(spec, BASE).point(number, ()).settings for number in range(8)] == [
        each.settings for each in few[:8]
    ]


@pytest.mark.parametrize("multivariate", [True, False])
def test_it_finds_a_planted_optimum_better_than_random_search(multivariate: bool) -> None:
    wins = 0
    for seed in range(5):
        fields = {"kind": "optuna", "trials": 60, "seed": seed, "multivariate": multivariate}
        _, outcomes = search(study(search=fields), finished)
        drawn = proposals(study(search={"kind": "random", "trials": 60, "seed": seed}), BASE)
        by_chance = min(planted(drawn.point(number, ()).settings) for number in range(60))
        wins += min(each[0].metrics["eval/loss"] for each in outcomes) < by_chance
    assert wins >= 4


def test_it_avoids_what_diverges() -> None:
    def end(point: Point) -> Mapping[int, TrialRecord]:
        if point.settings["optimizer.lr"] > 2e-3:
            return {0: ended(point, math.nan, state="failed", failure="diverged", metrics={}, curves={})}
        return {0: ended(point, math.log(point.settings["optimizer.lr"] / 8e-4) ** 2)}

    points, _ = search(study(search={"kind": "optuna", "trials": 50}), end)
    diverged = [each.settings["optimizer.lr"] > 2e-3 for each in points]
    assert sum(diverged[:10]) >= 3, "random points do in 46 of 100 cases"
    assert sum(diverged[25:]) <= 4


def test_bounds_on_other_metrics_are_learnt() -> None:
    def end(point: Point) -> Mapping[int, TrialRecord]:
        lr = point.settings["optimizer.lr"]
        metrics = {"eval/loss": -lr, "eval/frechet": lr}
        return {0: ended(point, 0.0, metrics=metrics, curves={"eval/loss": [(1000, -lr)]})}

    objective = {
        "metric": "eval/loss",
        "target": None,
        "bounds": [{"metric": "eval/frechet", "at_most": 1e-3}],
    }
    points, _ = search(study(objective=objective, search={"kind": "optuna", "trials": 60}), end)
    late = [each.settings["optimizer.lr"] for each in points[30:]]
    assert sum(lr <= 1.3e-3 for lr in late) >= 20
    assert max(lr for lr in (each.settings["optimizer.lr"] for each in points) if lr <= 1e-3) > 8e-4


def test_a_mode_and_several_goals_are_searched_for() -> None:
    largest = {"metric": "eval/loss", "mode": "max", "target": None}
    _, outcomes = search(study(objective=largest, search={"kind": "optuna", "trials": 40}), finished)
    late = [each[0].metrics["eval/loss"] for each in outcomes[20:]]
    early = [each[0].metrics["eval/loss"] for each in outcomes[:10]]
    assert sum(late) / len(late) > sum(early) / len(early)

    def end(point: Point) -> Mapping[int, TrialRecord]:
        lr, batch = point.settings["optimizer.lr"], point.settings["optimizer.batch"]
        metrics = {"eval/loss": (math.log(lr / 1e-3)) ** 2, "eval/frechet": (math.log(batch / 64)) ** 2}
        return {0: ended(point, 0.0, metrics=metrics)} if point.number % 5 else varied(point)

    both = study(pareto=[{"metric": "eval/frechet"}], search={"kind": "optuna", "trials": 60})
    points, _ = search(both, end)
    near = [
        abs(math.log(each.settings["optimizer.lr"] / 1e-3)) < 0.5
        and abs(math.log(each.settings["optimizer.batch"] / 64)) < 0.5
        for each in points
    ]
    assert sum(near[40:]) > sum(near[:20])


def test_seeds_are_averaged_and_a_target_that_is_never_reached_costs_two_budgets() -> None:
    spec = study(objective={"measure": "images", "target": 0.5}, seeds=[0, 1])
    point = Point(number=0, name="0000", settings={"optimizer.lr": 1e-3})
    reached = ended(point, 0.4, curves={"eval/loss": [(500, 0.45), (1000, 0.4)]})
    never = ended(point, 0.6, seed=1)
    trial = optuna_search._trial(spec, {0: reached, 1: never})
    assert trial.state.name == "COMPLETE"
    assert trial.value == (500 + 2000) / 2


def test_an_objective_that_nothing_measures_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^objective\.metric: eval/fid was not measured.*\n.*eval/frechet"):
        search(study(objective={"metric": "eval/fid", "target": None}), finished)


def test_every_kind_of_value_comes_back_as_it_was_written() -> None:
    space = {
        "ema.stds": {"choice": [[0.05], [0.1, 0.05]]},
        "data.flip": {"choice": [True, False]},
        "weighting": {"choice": [{"kind": "none"}, {"kind": "min_snr", "gamma": 5.0}]},
        "optimizer.clip": {"choice": [None, 1, 2.5]},
    }
    spec = study(space=space, search={"kind": "optuna", "trials": 24, "startup": 3})
    points, _ = search(spec, lambda point: {0: ended(point, float(point.settings["data.flip"]))})
    assert all(spaces.contains(spec.space, each.settings) for each in points)
    assert len({spaces.identity(each.settings) for each in points}) == 24, "all that there are"


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'optuna.db'}"


def shown(url: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=url).trials


def test_the_view_holds_every_point_once(database: str) -> None:
    spec = study(search={"kind": "optuna", "trials": 14, "startup": 8})
    points, outcomes = search(spec, varied)
    records = [each[0] for each in outcomes]
    assert optuna_search.mirror(database, spec, records[:9]) == 9
    assert optuna_search.mirror(database, spec, records) == 5
    assert optuna_search.mirror(database, spec, records) == 0
    trials = shown(database)
    assert [trial.user_attrs["point"] for trial in trials] == [each.name for each in points]
    assert {trial.state.name for trial in trials} == {"COMPLETE", "PRUNED", "FAIL"}
    for trial, point, record in zip(trials, points, records, strict=True):
        assert trial.params["optimizer.lr"] == point.settings["optimizer.lr"]
        assert trial.user_attrs["runs"] == {"0": record.run}
        if record.state == "finished":
            assert trial.value == record.metrics["eval/loss"]
        if record.state == "stopped":
            assert trial.intermediate_values == {500: record.curves["eval/loss"][0][1]}
        if record.failure:
            assert trial.user_attrs["failures"] == {"0": record.failure}


def test_the_view_is_written_anew_when_it_is_no_longer_true(database: str) -> None:
    spec = study(search={"kind": "optuna", "trials": 8}, seeds=[0, 1])
    points, outcomes = search(study(search={"kind": "optuna", "trials": 8}), finished)
    one = [each[0] for each in outcomes]
    two = [ended(point, 0.5, seed=1) for point in points[:4]]
    assert optuna_search.mirror(database, spec, [*one, *two]) == 4, "points wait for all their seeds"
    two[0] = ended(points[0], 0.75, seed=1)
    assert optuna_search.mirror(database, spec, [*one, *two]) == 4
    assert shown(database)[0].value == (one[0].metrics["eval/loss"] + 0.75) / 2
    assert len(shown(database)) == 4


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    spec = study()
    with pytest.raises(Fault, match="Optuna's storage") as failed:
        optuna_search.mirror(f"sqlite:///{tmp_path}/no/such/folder.db", spec, [])
    with pytest.raises(Fault) as without:
        optuna_search.mirror("mysql+nosuch://user:secret@127.0.0.1:1/optuna", spec, [])
    with pytest.raises(Fault, match="not the address") as malformed:
        optuna_search.mirror("user:secret@nowhere", spec, [])
    assert all("secret" not in str(each.value) for each in (without, malformed))
    assert failed.value.exit_code == 1


@pytest.fixture
def dashboard(database: str) -> Iterator[str]:
    """optuna-dashboard on a free port, as a user would start it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    server = subprocess.Popen(
        [program, database, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)


def answer(url: str) -> Any:
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                return json.load(reply)
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


@pytest.mark.slow
def test_the_dashboard_shows_the_study(database: str, dashboard: str) -> None:
    spec = study(search={"kind": "optuna", "trials": 10})
    points, outcomes = search(spec, varied)
    optuna_search.mirror(database, spec, [each[0] for each in outcomes])
    (summary,) = answer(f"{dashboard}/api/studies")["study_summaries"]
    assert summary["study_name"] == "s"
    detail = answer(f"{dashboard}/api/studies/{summary['study_id']}")
    assert len(detail["trials"]) == len(points)
    assert detail["objective_names"] == ["eval/loss"]
