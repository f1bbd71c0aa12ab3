"""Studies and plans: what would run, and what is refused in the user's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hasten.sweeps import plan as plans
from hasten.sweeps import study as studies
from hasten.trainers.errors import ConfigError


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
