"""Spaces: conditions, distributions, grids, and points that do not depend on each other."""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
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

MANY = {
    "a": Distribution(choice=("x", "y", "z")),
    "b": Distribution(uniform=(-1.0, 2.0)),
    "c": Distribution(log_uniform=(1e-5, 1e-1), when={"a": ["x", "y"]}),
    "d": Distribution(int_uniform=(0, 30), step=10, when={"a": "y"}),
    "e": Distribution(log_int_uniform=(1, 1000), when={"d": [10, 20]}),
    "f": Distribution(uniform=(0.0, 1.0), step=0.1),
    "g": Distribution(choice=(True, 1, None, [1, 2], {"kind": "none"})),
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


@hypothesis.settings(deadline=None)  # the first one imports scipy
@given(seed=st.integers(0, 50), trial=st.integers(0, 2000), quasi=st.booleans())
def test_every_point_lies_in_its_space_with_just_the_keys_whose_conditions_hold(
    seed: int, trial: int, quasi: bool
) -> None:
    point = (space.quasi if quasi else space.random)(MANY, seed=seed, trial=trial)
    assert space.contains(MANY, point)
    assert ("c" in point) == (point["a"] in ("x", "y"))
    assert ("d" in point) == (point["a"] == "y")
    assert ("e" in point) == (point.get("d") in (10, 20))
    assert not space.contains(MANY, {**point, "b": 2.5})
    assert not space.contains(MANY, {**point, "h": 1})
    assert not space.contains(MANY, {key: value for key, value in point.items() if key != "b"})


@given(u=st.floats(0.0, 1.0, exclude_max=True), key=st.sampled_from(sorted(MANY)))
def test_a_value_lies_at_its_quantile(u: float, key: str) -> None:
    distribution = MANY[key]
    value = distribution.at(u)
    assert distribution.contains(value)
    again = distribution.at(min(distribution.quantile(value), 1.0 - 2.0**-53))
    assert again == value if distribution.size else again == pytest.approx(value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("key", sorted(MANY))
def test_extremes_are_the_first_and_the_last_value(key: str) -> None:
    distribution = MANY[key]
    assert all(distribution.contains(value) for value in distribution.extremes())
    assert distribution.extremes()[0] == distribution.at(0.0)
    assert distribution.extremes()[-1] == pytest.approx(distribution.at(1.0 - 2.0**-53))


def test_steps_come_out_exactly() -> None:
    tenths = Distribution(uniform=(0.0, 1.0), step=0.1)
    assert [tenths.at((index + 0.5) / 11) for index in range(11)] == [
        *(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    ]
    assert Distribution(uniform=(0.0, 1.0), step=0.35).extremes() == (0.0, 0.7)
    assert not tenths.contains(0.55)


def test_logarithmic_whole_numbers_are_even_in_the_exponent() -> None:
    distribution = Distribution(log_int_uniform=(1, 1000))
    values = [distribution.at((n + 0.5) / 4000) for n in range(4000)]
    assert {1, 2, 3, 1000} <= set(values)
    assert sum(value <= 31 for value in values) / 4000 == pytest.approx(0.5, abs=0.05)


def test_quasi_random_points_do_not_depend_on_the_others_asked_for() -> None:
    once = [space.quasi(MANY, seed=3, trial=trial) for trial in range(600)]
    assert once[::-1] == [space.quasi(MANY, seed=3, trial=trial) for trial in reversed(range(600))]
    assert once[:10] != [space.quasi(MANY, seed=4, trial=trial) for trial in range(10)]


@pytest.mark.parametrize("seed", range(3))
def test_quasi_random_points_fill_every_range_evenly(seed: int) -> None:
    flat = {f"k{n}": Distribution(uniform=(0.0, 1.0)) for n in range(6)}
    points = [space.quasi(flat, seed=seed, trial=trial) for trial in range(512)]
    for key in flat:
        counts = np.bincount([int(point[key] * 256) for point in points], minlength=256)
        assert set(counts) == {2}, "each 256th of the range has just its two points, over two blocks too"


WANDB: list[tuple[dict[str, Any], Distribution]] = [
    ({"values": ["a", "b"]}, Distribution(choice=("a", "b"))),
    ({"value": 3}, Distribution(choice=(3,))),
    ({"min": 1, "max": 4}, Distribution(int_uniform=(1, 4))),
    ({"min": 0, "max": 0.5}, Distribution(uniform=(0.0, 0.5))),
    ({"distribution": "uniform", "min": 0, "max": 1}, Distribution(uniform=(0.0, 1.0))),
    (
        {"distribution": "log_uniform_values", "min": 1e-4, "max": 0.1},
        Distribution(log_uniform=(1e-4, 0.1)),
    ),
    (
        {"distribution": "categorical", "values": [1, 2], "when": {"k": 1}},
        Distribution(choice=(1, 2), when={"k": 1}),
    ),
]


@pytest.mark.parametrize(("theirs", "ours"), WANDB, ids=lambda value: str(value)[:30])
def test_parameters_of_weights_and_biases_mean_the_same(theirs: dict[str, Any], ours: Distribution) -> None:
    assert Distribution.model_validate(theirs) == ours


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"distribution": "log_uniform", "min": -4, "max": -1}, "exponents"),
    ({"distribution": "normal", "mu": 0, "sigma": 1}, "distribution: normal must be one of"),
    ({"distribution": "uniform"}, "must come with"),
    ({"min": 1}, "both min and max"),
    ({"choice": [1, 2, 1]}, "choice: 1 must appear only once"),
    ({"log_int_uniform": [0, 3]}, "must be above 0"),
    ({"log_uniform": [1, 3], "step": 1}, "step: must not go with log_uniform"),
    ({"int_uniform": [1, 3], "step": 0.5}, "step: 0.5 between whole numbers"),
    ({"uniform": [0, 1], "step": 2}, "step: 2.0 must fit"),
]


@pytest.mark.parametrize(("fields", "message"), MALFORMED, ids=lambda value: str(value)[:30])
def test_what_is_ambiguous_or_impossible_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distribution.model_validate(fields)
