"""Studies and plans: what would run, and what is refused in the user's words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasten.sweeps import plan as plans
from hasten.sweeps import study as studies
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching.proposals import Point
from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import Start


@pytest.mark.parametrize("path", sorted(studies.STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_plans(path: Path) -> None:
    plan = plans.plan(studies.load(path.stem))
    assert plan.study.name == path.stem
    assert len({trial.name for trial in plan.trials}) == len(plan.trials)


def test_the_demo_is_twelve_trials_seed_by_seed() -> None:
    plan = plans.plan(studies.load("demo"))
    names = [trial.name for trial in plan.trials]
    assert names[:5] == ["baseline-s0", "clts-s0", "mdlrc-s0", "both-s0", "baseline-s1"]
    assert len(names) == 12
    assert plan.images == 12 * 25_600
    assert plan.arms == ("baseline", "clts", "mdlrc", "both")


def test_an_arm_replaces_a_block_whole_and_a_dotted_key_changes_a_field() -> None:
    plan = plans.plan(studies.load("demo", {"arms.slow": {"optimizer.lr": 1e-4}}))
    by_name = {trial.name: trial.spec for trial in plan.trials}
    assert by_name["clts-s1"].curriculum.kind == "clts"
    assert by_name["slow-s0"].optimizer.lr == 1e-4
    assert by_name["slow-s0"].optimizer.batch == by_name["baseline-s0"].optimizer.batch


def test_base_overrides_reach_every_trial() -> None:
    plan = plans.plan(studies.load("demo", {"base.budget.images": 640, "seeds": [7]}))
    assert {trial.spec.budget.images for trial in plan.trials} == {640}
    assert {trial.spec.budget.seed for trial in plan.trials} == {7}


def test_same_seed_same_randomness_and_execution_stays_out_of_the_fingerprint() -> None:
    one = plans.plan(studies.load("demo"))
    two = plans.plan(studies.load("demo", {"execution.workers": 2}))
    assert [t.spec.fingerprint("") for t in one.trials] == [t.spec.fingerprint("") for t in two.trials]


def test_planning_is_deterministic_and_extension_keeps_what_was_there() -> None:
    small = plans.plan(studies.load("search"))
    large = plans.plan(studies.load("search", {"search.trials": 20}))
    assert [t.spec for t in small.trials] == [t.spec for t in large.trials][: len(small.trials)]


def test_aa_repeats_the_baseline_on_seeds_of_its_own() -> None:
    plan = plans.plan(studies.load("demo", {"aa": True}))
    control = [trial for trial in plan.trials if trial.arm == "baseline-aa"]
    assert len(control) == 3
    assert not {trial.seed for trial in control} & {0, 1, 2}


def test_a_base_beside_the_study_is_found_from_anywhere(tmp_path: Path) -> None:
    recipe = (studies.STUDIES.parents[3] / "trainers/hasten/trainers/recipes/digits-demo.yaml").resolve()
    if not recipe.exists():
        from hasten.trainers import specs

        recipe = specs.RECIPES / "digits-demo.yaml"
    (tmp_path / "mine.yaml").write_text(recipe.read_text())
    (tmp_path / "study.yaml").write_text("name: s\nbase: mine.yaml\narms: {baseline: {}}\n")
    assert len(plans.plan(studies.load(str(tmp_path / "study.yaml"))).trials) == 1


def test_without_stopping_pairs_complete_early_and_with_it_points_do() -> None:
    early = plans.plan(studies.load("search", {"seeds": [0, 1]}))
    assert [trial.name for trial in early.trials[:2]] == ["0000-s0", "0001-s0"]
    in_order = plans.plan(studies.load("search", {"seeds": [0, 1], "stopping": {"kind": "median"}}))
    assert [trial.name for trial in in_order.trials[:3]] == ["0000-s0", "0000-s1", "0001-s0"]


def test_what_outcomes_decide_is_counted_and_costed() -> None:
    plan = plans.plan(studies.load("halving", {"seeds": [0, 1]}))
    assert (len(plan.trials), plan.proposed, plan.total) == (16, 32, 48)
    assert plan.images == 48 * 25_600
    population = plans.plan(studies.load("population"))
    assert (len(population.trials), population.total) == (8, 40)
    assert population.images == 8 * 25_600
    assert {trial.until for trial in population.trials} == {5120}


def test_a_proposed_point_becomes_a_trial_of_its_own() -> None:
    plan = plans.plan(studies.load("halving"))
    point = Point(number=20, name="0020", settings={"optimizer.lr": 1e-3})
    trial = plans.make_trial(plan.study, plan.base, point, seed=3)
    assert (trial.name, trial.arm, trial.seed, trial.spec.budget.seed) == ("0020-s3", "0020", 3, 3)
    assert trial.spec.optimizer.lr == 1e-3
    assert trial.spec.fingerprint("") != plan.trials[0].spec.fingerprint("")
    started = replace(point, start=Start(run="digits-demo-0123456789ab", images=640), until=1280)
    going_on = plans.make_trial(plan.study, plan.base, started, seed=3)
    assert going_on.spec.fingerprint("") != trial.spec.fingerprint("")
    assert (going_on.until, going_on.images) == (1280, 640)


@pytest.mark.parametrize(
    ("study", "overrides", "notes"),
    [
        ("paper", {}, []),
        ("demo", {}, ["no arm has CLTS's time average", "no arm has MDLRC's rate alone"]),
        ("search", {}, ["curriculum.kind in the space has not CLTS's time average"]),
        ("halving", {}, []),
        (
            "search",
            {
                "space": {"momentum": {"choice": [{"kind": "constant"}, {"kind": "mdlrc", "beta": 0.9}]}},
                "search.trials": 2,
            },
            ["momentum.kind in the space has not MDLRC's rate alone"],
        ),
        ("search", {"space": {"optimizer.lr": {"choice": [1e-3, 2e-3]}}, "search.trials": 2}, []),
    ],
)
def test_controls_that_are_missing_are_named(study: str, overrides: dict[str, Any], notes: list[str]) -> None:
    found = plans.missing_controls(plans.plan(studies.load(study, overrides)))
    assert len(found) == len(notes)
    for text, start in zip(found, notes, strict=True):
        assert text.startswith(start)


def test_a_study_that_asks_the_same_has_the_same_digest() -> None:
    def check(overrides: dict[str, Any], recorded: str | None, study: str = "halving") -> None:
        plan = plans.plan(studies.load(study, overrides))
        plans.require_same(plan.study, plan.base, recorded)

    plan = plans.plan(studies.load("halving"))
    digest = plans.study_digest(plan.study, plan.base)
    for more in (
        {"search.trials": 99},
        {"seeds": [0, 1]},
        {"limits.hours": 1},
        {"execution.workers": 2},
        {"question": "?"},
        {"base.execution.checkpoint_every": 0.5},
    ):
        check(more, digest)
    for other in (
        {"search.seed": 1},
        {"ahead": 2},
        {"stopping.grace": 0.4},
        {"objective.mode": "max"},
        {"base.optimizer.beta2": 0.99},
        {"base": "digits"},
        {"constraints": []},
        {"space": {"optimizer.lr": {"log_uniform": [1e-3, 1e-2]}}},
    ):
        with pytest.raises(ConfigError, match=r"^name: halving has begun with another .*\n.*new name"):
            check(other, digest)
    check({"objective.mode": "max"}, "of another demo", study="demo")
    check({}, None)


def test_runs_that_an_edited_study_makes_anew_are_told_by_reason() -> None:
    def fingerprints(plan: plans.Plan) -> dict[str, str]:
        return {trial.name: trial.spec.fingerprint("") for trial in plan.trials}

    before = plans.plan(studies.load("demo"))
    names = fingerprints(before)
    records = [
        TrialRecord(
            trial=trial.name,
            arm=trial.arm,
            seed=trial.seed,
            settings=trial.changes,
            run=f"digits-demo-{names[trial.name]}",
            fingerprint=names[trial.name],
            state="finished",
            images=25_600,
            total=25_600,
        )
        for trial in before.trials
    ]

    def told(overrides: dict[str, Any]) -> dict[str, list[str]]:
        plan = plans.plan(studies.load("demo", overrides))
        return plans.new_runs(plan, records, fingerprints(plan))

    assert told({}) == {}
    assert told({"seeds": [0, 1, 2, 3]}) == {}, "what never ran is an extension"
    longer = told({"base.budget.images": 51_200})
    assert {reason: len(trials) for reason, trials in longer.items()} == {
        "budget.images changed from 25,600 to 51,200": 12
    }
    assert {reason: len(trials) for reason, trials in told({"base.optimizer.lr": 1e-3}).items()} == {
        "their base or data changed": 12
    }
    assert told({"arms.clts.curriculum.mu": 0.4}) == {
        "their settings changed": ["clts-s0", "clts-s1", "clts-s2"]
    }


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"arms.clts.curriculum.mu": 7}, r"^arms\.clts\.curriculum\.mu: must be less than or equal to 1"),
    ({"arms.clts.curriculum.muu": 1}, r"^arms\.clts\.curriculum\.muu: unknown key"),
    ({"arms.x": {}}, r"^arms\.x: is the same run as arms\.baseline"),
    ({"arms.clts.budget.seed": 3}, r"^arms\.clts\.budget\.seed: belongs to the study"),
    ({"seeds": [1, 1]}, r"^seeds: each may appear once"),
    ({"seeds": []}, r"^seeds: "),
    ({"seedz": [1]}, r"^seedz: unknown key"),
    ({"baseline": "nobody"}, r"^arms: there is no arm 'nobody'"),
    ({"execution.workers": 0}, r"^execution\.workers: must be greater"),
    ({"execution.workers": 1000}, r"^execution\.workers: 1000 cannot share"),
    ({"search": {"kind": "random", "trials": 3}}, r"^search\.kind: random searches a space"),
    ({"search.kind": "asha"}, r"^search\.kind: must be one of"),
    ({"space": {"optimizer.lr": {"choice": [1e-3]}}}, r"^arms: a study has either arms or a space"),
    ({"base": "nothing"}, r"^nothing: no such recipe"),
    ({"base.optimizer.lrr": 1}, r"^optimizer\.lrr: unknown key"),
    ({"limits.hours": -1}, r"^limits\.hours: must be greater"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refusals_name_the_key(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plans.plan(studies.load("demo", overrides))
