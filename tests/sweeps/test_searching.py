"""Constraints, possible points, and the searches that look at no results."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.sweeps.searching import constraints, possible
from hasten.sweeps.searching.factory import proposals
from hasten.sweeps.searching.proposals import Point
from hasten.sweeps.study import StudySpec
from hasten.trainers import config, specs
from hasten.trainers.errors import ConfigError

BASE = specs.load_raw("digits")
SPACE: dict[str, Any] = {
    "curriculum.kind": {"choice": ["uniform", "clts"]},
    "curriculum.mu": {"uniform": [0.1, 0.9], "when": {"curriculum.kind": "clts"}},
    "curriculum.sigma": {"choice": [0.15, 0.3], "when": {"curriculum.kind": "clts"}},
    "optimizer.lr": {"log_uniform": [3e-4, 1e-2]},
    "optimizer.batch": {"choice": [32, 64, 128]},
}


def study(**changes: Any) -> StudySpec:
    raw = {"name": "s", "base": "digits", "space": SPACE, "search": {"kind": "random", "trials": 20}}
    return config.validate(StudySpec, raw | changes)


def points(spec: StudySpec) -> list[Point]:
    source = proposals(spec, BASE)
    assert [source.needs(number) for number in range(source.count)] == [0] * source.count
    return [source.point(number, ()) for number in range(source.count)]


def holds(text: str, **settings: Any) -> bool:
    settings = {key.replace("__", "."): value for key, value in settings.items()}
    return constraints.parse(text, key="constraints[0]", known=settings).holds(settings)


@given(lr=st.floats(1e-6, 1.0), batch=st.integers(1, 10_000))
def test_a_constraint_computes_what_python_would(lr: float, batch: int) -> None:
    settings = {"optimizer__lr": lr, "optimizer__batch": batch}
    assert holds("optimizer.lr * optimizer.batch <= 1", **settings) == (lr * batch <= 1)
    assert holds("log(optimizer.lr) < -2 or 10 < optimizer.batch < 99", **settings) == (
        math.log(lr) < -2 or 10 < batch < 99
    )
    assert holds("max(optimizer.batch, 100) % 16 == 0", **settings) == (max(batch, 100) % 16 == 0)
    assert holds("not optimizer.batch ** 2 > 1e4", **settings) == (batch**2 <= 1e4)


def test_a_constraint_on_what_is_absent_does_not_apply_and_one_without_a_value_does_not_hold() -> None:
    assert holds("a.b <= 1", a__b=None)
    assert constraints.parse("a.b <= 1", key="k", known={"a.b"}).holds({})
    assert not holds("1 / a > 0", a=0.0)
    assert not holds("sqrt(a) < 5", a=-1.0)
    assert holds("a in ('x', 'y') and b != 'z'", a="x", b="w")


HOSTILE = [
    "__import__('os').system('true') == 0",
    "().__class__.__bases__ == 1",
    "a.__class__ == 1",
    "'a'.join(['b']) == 'b'",
    "(lambda: 1)() == 1",
    "[b for b in (1, 2)] == 1",
    "{1: 2} == 1",
    "f'{a}' == '1'",
    "open('/etc/passwd') == 1",
    "a[0] == 1",
    "(b := 1) == 1",
    "a = 1",
    "a <= 1; b",
    "import os",
    "max(key=a) == 1",
    "max(*a) == 1",
    "b'a' == 1",
    "1j == 1",
    "... == 1",
    "a <= " + "(" * 300 + "1" + ")" * 300,
    "-" * 400 + "a <= 1",
    "a <= " + "1" * 1000,
    "a" + " + a" * 110 + " <= 1",
    "a\x00 <= 1",
    "",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:24])
def test_whatever_is_not_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^constraints\[2\]: "):
        constraints.parse(text, key="constraints[2]", known={"a"})


@pytest.mark.parametrize(
    "text",
    [
        *(
            "9 ** 9 ** 9 ** 9 > a",
            "a <= exp(1e9)",
            "10 ** 400 > a",
            f"{'9' * 400} * a > 1",
            "'x' * 9999999 == a",
        ),
        *("a + True > 1", "a * 2", "min(a) > 1", "min([a, 1]) > 1", "'x' < a", "a in 5"),
    ],
)
def test_what_grows_too_large_or_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^constraints\[0\]: "):
        holds(text, a=3.0)


@given(text=st.text(max_size=60))
def test_no_text_does_more_than_be_refused_or_tell_yes_or_no(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert holds(text, a=1.5) in (True, False)


def test_constraints_look_at_the_resolved_recipe_and_speak_early() -> None:
    assert points(study(constraints=["budget.images / optimizer.batch >= 750"]))
    for wrong, message in [
        (
            "optimizer.lrr < 1",
            r"^constraints\[0\]: optimizer.lrr < 1: there is no setting optimizer.lrr\n.*optimizer.lr",
        ),
        ("lr < 1", r"there is no setting lr\n"),
        ("curriculum.kind * 2 > 1", r"^constraints\[0\]: .*'uniform' is not a number"),
        ("ema.stds < 3", r"^constraints\[0\]: "),
    ]:
        with pytest.raises(ConfigError, match=message):
            proposals(study(constraints=[wrong]), BASE)


@pytest.mark.parametrize("kind", ["random", "quasi", "grid"])
def test_only_feasible_points_are_listed_and_none_twice(kind: str) -> None:
    text = "optimizer.lr * optimizer.batch <= 0.3"
    space = SPACE
    search: dict[str, Any] = {"kind": kind, "trials": 40}
    if kind == "grid":
        space = {key: value for key, value in SPACE.items() if key != "curriculum.mu"}
        space = {**space, "optimizer.lr": {"choice": [1e-3, 4e-3, 1e-2]}}
        space["curriculum.kind"] = {"choice": ["uniform"]}
        search = {"kind": kind}
    found = points(study(space=space, constraints=[text], search=search))
    assert all(each.settings["optimizer.lr"] * each.settings["optimizer.batch"] <= 0.3 for each in found)
    assert len({str(each.settings) for each in found}) == len(found) == (5 if kind == "grid" else 40)
    assert [each.name for each in found] == [f"{number:04d}" for number in range(len(found))]


@pytest.mark.parametrize("kind", ["random", "quasi"])
def test_more_trials_leave_the_earlier_points(kind: str) -> None:
    text = ["curriculum.mu <= 0.5", "optimizer.lr * optimizer.batch <= 0.3"]
    few, many = (
        points(study(constraints=text, search={"kind": kind, "trials": trials})) for trials in (7, 60)
    )
    assert many[:7] == few
    assert all(each.settings.get("curriculum.mu", 0.0) <= 0.5 for each in many)
    assert {each.settings["curriculum.kind"] for each in many} == {"uniform", "clts"}


def test_a_space_that_is_nearly_or_wholly_infeasible_is_refused_with_the_share() -> None:
    with pytest.raises(ConfigError, match=r"^constraints: 0 of [\d,]+ different points fulfil them"):
        proposals(study(constraints=["optimizer.lr > 1"]), BASE)
    grid = study(
        space={"optimizer.batch": {"choice": [32, 64]}},
        search={"kind": "grid"},
        constraints=["optimizer.batch > 64"],
    )
    with pytest.raises(ConfigError, match=r"^constraints: no point of the grid"):
        proposals(grid, BASE)


@pytest.mark.parametrize("kind", ["random", "quasi", "optuna"])
def test_a_small_space_is_not_searched_for_more_points_than_it_has(kind: str) -> None:
    space = {"optimizer.batch": {"choice": [32, 64]}, "optimizer.beta2": {"choice": [0.99, 0.999]}}
    with pytest.raises(ConfigError, match=r"^search.trials: .*different points.*\n.*grid"):
        proposals(study(space=space, search={"kind": kind, "trials": 5}), BASE)
    assert proposals(study(space=space, search={"kind": kind, "trials": 4}), BASE).count == 4


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"optimizer.lr": {"uniform": [0.0, 1.0]}}, r"^space\.optimizer\.lr: 0\.0 is no possible run: must be"),
    ({"optimizer.lrr": {"choice": [1]}}, r"^space\.optimizer\.lrr: 1 is no possible run: unknown key"),
    (
        {"curriculum.kind": {"choice": ["uniform", "clt"]}},
        r"^space\.curriculum\.kind: clt is no possible run",
    ),
    (
        {
            "momentum.kind": {"choice": ["constant", "one_cycle"]},
            "optimizer.schedule.kind": {"choice": ["constant", "cosine"]},
            "optimizer.beta2": {"choice": [0.9, 0.99]},
        },
        r"^space\.(momentum|optimizer\.schedule)\.kind: (?!.*beta2).*with .* is no possible run: momentum: ",
    ),
    ({"budget.seed": {"choice": [1, 2]}}, r"^space\.budget\.seed: belongs to the study"),
    ({"execution.cpus": {"choice": [1, 2]}}, r"^space\.execution\.cpus: is about where"),
    ({"name": {"choice": ["a", "b"]}}, r"^space\.name: "),
    (
        {"momentum": {"choice": [{"kind": "constant"}]}, "momentum.beta": {"choice": [0.8]}},
        r"^space\.momentum\.beta: lies in momentum",
    ),
    (
        {"curriculum.mu": {"uniform": [0.1, 0.9], "when": {"curriculum.king": 1}}},
        r"^space\.curriculum\.mu\.when: depends on curriculum\.king, which is not in the space",
    ),
]


@pytest.mark.parametrize(("space", "message"), IMPOSSIBLE, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_impossible_settings_are_refused_before_anything_runs(
    space: dict[str, Any], message: str, kind: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        proposals(study(space=space, search={"kind": kind, "trials": 2}), BASE)


def test_constraints_may_exclude_what_is_impossible() -> None:
    space = {
        "momentum.kind": {"choice": ["constant", "one_cycle"]},
        "optimizer.schedule.kind": {"choice": ["constant", "cosine"]},
    }
    fixed = ["momentum.kind != 'one_cycle' or optimizer.schedule.kind == 'constant'"]
    assert len(points(study(space=space, search={"kind": "grid"}, constraints=fixed))) == 3


def test_a_wide_space_is_looked_over_in_a_moment() -> None:
    wide = {f"model.k{n}": {"choice": list(range(9))} for n in range(6)}
    spec = study(space={**SPACE, **wide})
    assert len(list(possible._corners(spec.space))) == 256
    with pytest.raises(ConfigError, match=r"^space\.model\.k\d: \d is no possible run: unknown key"):
        proposals(spec, BASE)


def test_arms_are_points_by_name_and_the_control_comes_last() -> None:
    arms = {"baseline": {}, "slow": {"optimizer.lr": 1e-4}}
    spec = config.validate(StudySpec, {"name": "s", "base": "digits", "arms": arms, "aa": True})
    assert [(each.number, each.name) for each in points(spec)] == [
        *((0, "baseline"), (1, "slow"), (2, "baseline-aa"))
    ]
