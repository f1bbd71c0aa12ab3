"""Spaces: conditions, distributions, grids, and points that do not depend on each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.sweeps import space
from hasten.sweeps.space import Distribution
from hasten.trainers.errors import ConfigError

CONDITIONAL = {
    "curriculum.mu": Distribution(uniform=(0.1, 0.9), when={"curriculum.kind": "clts"}),
    "curriculum.kind": Distribution(choice=("uniform", "clts")),
    "optimizer.lr": Distribution(log_uniform=(1e-4, 1e-2)),
    "model.layers": Distribution(int_uniform=(1, 3)),
}


@given(seed=st.integers(0, 100), trial=st.integers(0, 1000))
def test_points_obey_their_distributions_and_conditions(seed: int, trial: int) -> None:
    point = space.random(CONDITIONAL, seed=seed, trial=trial)
    assert ("curriculum.mu" in point) == (point["curriculum.kind"] == "clts")
    assert 0.1 <= point.get("curriculum.mu", 0.1) <= 0.9
    assert 1e-4 <= point["optimizer.lr"] <= 1e-2
    assert point["model.layers"] in (1, 2, 3)


def test_a_point_is_a_function_of_seed_and_number() -> None:
    assert space.random(CONDITIONAL, seed=1, trial=5) == space.random(CONDITIONAL, seed=1, trial=5)
    points = [space.random(CONDITIONAL, seed=1, trial=number)["optimizer.lr"] for number in range(50)]
    assert len(set(points)) == 50


def test_log_uniform_is_uniform_in_the_exponent() -> None:
    values = [space.random(CONDITIONAL, seed=0, trial=number)["optimizer.lr"] for number in range(2000)]
    below = sum(value < 1e-3 for value in values) / len(values)
    assert below == pytest.approx(0.5, abs=0.04)


def test_integers_include_both_ends_equally() -> None:
    values = [space.random(CONDITIONAL, seed=0, trial=number)["model.layers"] for number in range(3000)]
    for value in (1, 2, 3):
        assert values.count(value) / len(values) == pytest.approx(1 / 3, abs=0.04)


def test_grid_leaves_out_what_conditions_make_equal() -> None:
    points = list(
        space.grid(
            {
                "curriculum.kind": Distribution(choice=("uniform", "clts")),
                "curriculum.mu": Distribution(choice=(0.3, 0.5), when={"curriculum.kind": ["clts"]}),
            }
        )
    )
    assert points == [
        {"curriculum.kind": "uniform"},
        {"curriculum.kind": "clts", "curriculum.mu": 0.3},
        {"curriculum.kind": "clts", "curriculum.mu": 0.5},
    ]


def test_grid_refuses_a_range() -> None:
    with pytest.raises(ConfigError, match=r"space.optimizer.lr: a grid needs a choice"):
        list(space.grid(CONDITIONAL))


@pytest.mark.parametrize(
    ("when", "problem"),
    [({"model.depth": 1}, "not in the space"), ({"a": 1}, "depends on itself")],
)
def test_impossible_conditions(when: dict[str, int], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        space.random({"a": Distribution(choice=(1, 2), when=when)}, seed=0, trial=0)


@pytest.mark.parametrize(
    "fields",
    [{}, {"choice": (1,), "uniform": (0, 1)}, {"uniform": (1, 0)}, {"log_uniform": (0, 1)}, {"choice": ()}],
)
def test_malformed_distributions(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must|least"):
        Distribution.model_validate(fields)
