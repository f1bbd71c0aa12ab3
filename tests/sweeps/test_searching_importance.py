"""Importances and interactions of planted functions, and what is said when there is too little to tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hasten.sweeps import space as spaces
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching import importance
from hasten.sweeps.space import Settings
from hasten.sweeps.study import StudySpec
from hasten.trainers import config

SPACE: dict[str, Any] = {
    "optimizer.lr": {"log_uniform": [1e-4, 1e-1]},
    "optimizer.beta2": {"uniform": [0.0, 1.0]},
    "optimizer.batch": {"choice": [16, 32, 64]},
    "optimizer.warmup": {"uniform": [0.0, 1.0]},
    "momentum.kind": {"choice": ["constant", "mdlrc"]},
    "momentum.beta": {"uniform": [0.0, 1.0], "when": {"momentum.kind": "mdlrc"}},
}


def study(**changes: Any) -> StudySpec:
    raw = {
        "name": "s",
        "base": "digits",
        "space": SPACE,
        "search": {"kind": "random", "trials": 9},
        "objective": {"metric": "eval/loss", "target": None},
    }
    return config.validate(StudySpec, raw | changes)


def records(
    spec: StudySpec, worth: Callable[[Settings], float], count: int, stopped: float = math.inf
) -> list[TrialRecord]:
    """Random points; those that are worth more than ``stopped`` end after half of their images."""
    found = []
    for number in range(count):
        settings = spaces.random(spec.space, seed=1, trial=number)
        value = worth(settings)
        ended = value <= stopped
        found.append(
            TrialRecord(
                trial=f"{number:04d}-s0",
                arm=f"{number:04d}",
                seed=0,
                settings=settings,
                run="digits-0123456789ab",
                fingerprint="0123456789ab",
                state="finished" if ended else "stopped",
                images=1000 if ended else 500,
                total=1000,
                metrics={"eval/loss": value} if ended else {},
                curves={"eval/loss": [(500, value + 1.0), *([(1000, value)] if ended else [])]},
            )
        )
    return found


def additive(settings: Settings) -> float:
    """Variances 9/12 of the learning rate's exponent, and 1/12 of beta2's: nine tenths and one."""
    exponent = math.log10(settings["optimizer.lr"] / 1e-4)
    return exponent + settings["optimizer.beta2"]


def test_shares_are_those_of_a_planted_additive_function() -> None:
    found = importance.importances(study(), records(study(), additive, 400))
    assert found.points == 400
    assert found.images is None
    assert found.explained > 0.9
    assert found.shares["optimizer.lr"] == pytest.approx(0.9, abs=0.05)
    assert found.shares["optimizer.beta2"] == pytest.approx(0.1, abs=0.05)
    for key in ("optimizer.batch", "optimizer.warmup", "momentum.kind"):
        assert found.shares[key] == pytest.approx(0.0, abs=0.02)


def test_they_agree_with_optunas_fanova() -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    flat = {key: SPACE[key] for key in ("optimizer.beta2", "optimizer.warmup", "optimizer.batch")}
    spec = study(space=flat)

    def worth(settings: Settings) -> float:
        return settings["optimizer.beta2"] * settings["optimizer.warmup"] + settings["optimizer.batch"] / 100

    ended = records(spec, worth, 100)
    theirs = optuna.create_study()
    distributions = {
        "optimizer.beta2": optuna.distributions.FloatDistribution(0.0, 1.0),
        "optimizer.warmup": optuna.distributions.FloatDistribution(0.0, 1.0),
        "optimizer.batch": optuna.distributions.CategoricalDistribution([16, 32, 64]),
    }
    for record in ended:
        value = record.metrics["eval/loss"]
        theirs.add_trial(
            optuna.trial.create_trial(params=record.settings, distributions=distributions, value=value)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    expected = optuna.importance.get_param_importances(theirs, evaluator=evaluator, normalize=False)
    found = importance.importances(spec, ended).shares
    for key, share in expected.items():
        assert found[key] == pytest.approx(share, abs=0.06)


def test_an_interaction_is_what_neither_explains_alone() -> None:
    def crossed(settings: Settings) -> float:
        return (settings["optimizer.beta2"] - 0.5) * (settings["optimizer.warmup"] - 0.5)

    spec = study()
    ended = records(spec, crossed, 500)
    alone = importance.importances(spec, ended).shares
    assert max(alone["optimizer.beta2"] or 0.0, alone["optimizer.warmup"] or 0.0) < 0.15
    found = importance.interaction(spec, ended, "optimizer.beta2", "optimizer.warmup")
    assert found is not None
    assert found.share > 0.6
    predicted = np.array(found.predicted)
    assert predicted.shape == (len(found.first_values), len(found.second_values)) == (16, 16)
    assert predicted[0, 0] > 0.1 > -0.1 > predicted[0, -1]
    straight = importance.interaction(spec, records(spec, additive, 300), "optimizer.lr", "optimizer.batch")
    assert straight is not None
    assert straight.share < 0.05
    assert straight.second_values == (16, 32, 64)


def test_a_conditional_key_is_judged_where_it_exists() -> None:
    def worth(settings: Settings) -> float:
        return settings.get("momentum.beta", 0.5)

    spec = study()
    shares = importance.importances(spec, records(spec, worth, 300)).shares
    beta = shares["momentum.beta"]
    assert beta is not None
    assert beta > 0.9
    few = importance.importances(spec, records(spec, worth, 16)).shares
    assert few["momentum.beta"] is None
    assert few["optimizer.lr"] is not None
    pair = importance.interaction(spec, records(spec, worth, 300), "momentum.beta", "optimizer.lr")
    assert pair is not None


def test_stopped_points_are_compared_with_the_others_where_all_were_measured() -> None:
    spec = study(stopping={"kind": "asha"})
    ended = records(spec, additive, 200, stopped=1.0)
    assert 20 < sum(record.state == "finished" for record in ended) < 100
    found = importance.importances(spec, ended)
    assert (found.points, found.images) == (200, 500)
    assert found.shares["optimizer.lr"] == pytest.approx(0.9, abs=0.06)


def test_noise_is_not_explained_and_nothing_is_made_of_too_little() -> None:
    noise = np.random.default_rng(0)
    found = importance.importances(study(), records(study(), lambda _: float(noise.normal()), 200))
    assert found.explained < 0.2
    nothing = importance.importances(study(), records(study(), additive, importance.LEAST - 1))
    assert set(nothing.shares.values()) == {None}
    equal = importance.importances(study(), records(study(), lambda _: 1.0, 50))
    assert set(equal.shares.values()) == {None}
    assert importance.interaction(study(), [], "optimizer.lr", "optimizer.beta2") is None


def test_the_same_records_give_the_same_numbers() -> None:
    ended = records(study(), additive, 60)
    assert importance.importances(study(), ended) == importance.importances(study(), ended)
