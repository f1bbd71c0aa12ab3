"""Shared prefixes against plain restatements: every batch of every pair, the longest earlier agreement."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.sweeps.conducting import prefixes
from hasten.sweeps.conducting.prefixes import Donor
from hasten.sweeps.plan import Trial
from hasten.trainers import curriculum, diffusion, learning_rate, momentum, specs, weighting
from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import RunSpec

BATCH, BATCHES = 64, 25
TOTAL = BATCH * BATCHES

CURRICULA: list[dict[str, Any]] = [
    {"kind": "uniform"},
    {"kind": "static", "mu": 0.3, "sigma": 0.2, "weight": 0.0},
    {"kind": "static", "mu": 0.3, "sigma": 0.2, "weight": 0.5},
    {"kind": "clts", "sigma": 0.2},
    {"kind": "clts", "sigma": 0.2, "start": 0.4},
    {"kind": "clts", "sigma": 0.2, "start": 0.4, "ramp": 0.8},
    {"kind": "clts", "sigma": 0.1, "start": 0.4, "ramp": 0.8},
    {"kind": "clts", "sigma": 0.2, "start": 0.8, "peak": 0.5},
    {"kind": "return", "sigma": 0.2, "ramp": 0.4, "hold": 0.2},
    {"kind": "return", "sigma": 0.2, "ramp": 0.4, "hold": 0.4},
    {"kind": "shuffled", "sigma": 0.2, "start": 0.4},
    {"kind": "two_phase", "switch": 0.0},
    {"kind": "two_phase", "switch": 0.52},
    {"kind": "two_phase", "switch": 0.84},
    {"kind": "logit_normal", "coordinate": "timestep"},
    {"kind": "second_moment"},
    {"kind": "second_moment", "history": 20},
    {"kind": "clusters"},
    {"kind": "uniform", "draws": "independent"},
]
MOMENTA: list[dict[str, Any]] = [
    {"kind": "constant", "beta": 0.9},
    {"kind": "demon", "beta": 0.9, "delay": 0.4},
    {"kind": "mdlrc", "beta": 0.9, "delay": 0.4},
    {"kind": "mdlrc", "beta": 0.9, "delay": 0.4, "floor": 0.8},
    {"kind": "lr_only", "beta": 0.9, "delay": 0.6},
]
SCHEDULES: list[dict[str, Any]] = [
    {"kind": "constant"},
    {"kind": "inverse_sqrt", "reference": 0.5},
    {"kind": "inverse_sqrt", "reference": 0.7},
    {"kind": "cosine"},
]
WEIGHTINGS: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "min_snr"},
    {"kind": "twin", "of": {"kind": "clts", "sigma": 0.2, "start": 0.6}},
    {"kind": "twin", "of": {"kind": "clts", "sigma": 0.2, "start": 0.6, "ramp": 0.9}},
]
CHANGES = {
    "curriculum": CURRICULA,
    "momentum": MOMENTA,
    "optimizer.schedule": SCHEDULES,
    "weighting": WEIGHTINGS,
    "optimizer.warmup": [0.0, 0.02, 0.1],
    "optimizer.lr": [1e-3, 2e-3],
    "diffusion.timesteps": [50],  # so that tables are quickly made
    "budget.images": [TOTAL],
}


def spec_of(**changes: Any) -> RunSpec:
    """The digits recipe, short, with changes; a dot is written as two underscores."""
    plain = {key: values[0] for key, values in CHANGES.items()}
    return specs.load("digits", plain | {key.replace("__", "."): value for key, value in changes.items()})


def trial(name: str, spec: RunSpec, until: int | None = None) -> Trial:
    return Trial(name=name, arm=name, seed=spec.budget.seed, spec=spec, changes={}, until=until)


def doing(spec: RunSpec) -> list[tuple[Any, ...]]:
    """What a run does in each batch, and tells before and after it, as bytes and numbers."""

    def rates(images: int, warmed: int) -> tuple[float, float]:
        beta1, factor = momentum.at(spec.momentum, images / TOTAL)
        factor *= learning_rate.factor(spec.optimizer.schedule, images / TOTAL)
        return spec.optimizer.lr * factor * learning_rate.warmup(warmed / TOTAL, spec.optimizer.warmup), beta1

    abar, found = diffusion.alphas_bar(spec.diffusion), list[tuple[Any, ...]]()
    for images in range(0, TOTAL, BATCH):
        after, now = images + BATCH, images / TOTAL
        table = weighting.weights(spec.weighting, abar, diffusion.prediction(spec.diffusion), progress=now)
        density = curriculum.pmf(spec.curriculum, now, diffusion.levels(spec.diffusion).alphas_bar)
        learns = spec.curriculum if curriculum.adaptive(spec.curriculum) else None
        found.append(
            (
                spec.curriculum.draws,
                learns,
                density.tobytes(),
                table.astype(np.float32).tobytes(),
                rates(images, images),
                rates(images, after),
                rates(after, after),
            )
        )
    return found


def by_brute_force(first: RunSpec, second: RunSpec) -> int:
    pairs = zip(doing(first), doing(second), strict=True)
    return BATCH * next((number for number, (a, b) in enumerate(pairs) if a != b), BATCHES)


def possible(changes: dict[str, Any]) -> RunSpec | None:
    try:
        return spec_of(**{key.replace(".", "__"): value for key, value in changes.items()})
    except ConfigError:  # a curriculum and its own twin, for one
        return None


some = (
    st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in CHANGES.items()})
    .map(possible)
    .filter(lambda spec: spec is not None)
)


@given(first=some, second=some)
@settings(max_examples=200, deadline=None)
def test_agreement_is_exact(first: RunSpec, second: RunSpec) -> None:
    expected = by_brute_force(first, second)
    assert prefixes.agree_until(first, second) == expected
    assert prefixes.agree_until(second, first) == expected


def test_every_pair_of_curricula_and_of_momenta() -> None:
    for key in ("curriculum", "momentum", "weighting", "optimizer__schedule"):
        all_of_them = [spec_of(**{key: value}) for value in CHANGES[key.replace("__", ".")]]
        for first, second in itertools.combinations(all_of_them, 2):
            assert prefixes.agree_until(first, second) == by_brute_force(first, second), (first, second)


@pytest.mark.parametrize(
    ("first", "second", "batches"),
    [
        # A share of nothing, of whatever density, is the uniform.
        ({}, {"curriculum": CURRICULA[1]}, 25),
        ({}, {"curriculum": CURRICULA[11]}, 25),
        # Progress 0.4 is batch 10, whose share is still 0.
        ({}, {"curriculum": CURRICULA[4]}, 11),
        ({"curriculum": CURRICULA[5]}, {"curriculum": CURRICULA[6]}, 11),
        # Risen alike, and parted where the first one falls: at 0.6, whose share is still 1.
        ({"curriculum": CURRICULA[8]}, {"curriculum": CURRICULA[9]}, 16),
        # Phases end at 0.52, batch 13.
        ({"curriculum": CURRICULA[12]}, {"curriculum": CURRICULA[13]}, 13),
        # Momentum leaves its start after batch 10, and after batch 9 the same is still told of batch 10.
        ({}, {"momentum": MOMENTA[1]}, 10),
        # A warm-up that is over after the first batch differs in what is told at the start.
        ({}, {"optimizer__warmup": 0.02}, 0),
        ({}, {"optimizer__lr": 2e-3}, 0),
        ({"curriculum": CURRICULA[15]}, {"curriculum": CURRICULA[15], "momentum": MOMENTA[2]}, 10),
    ],
)
def test_known_agreements(first: dict[str, Any], second: dict[str, Any], batches: int) -> None:
    assert prefixes.agree_until(spec_of(**first), spec_of(**second)) == batches * BATCH


def test_a_last_batch_that_is_short() -> None:
    """Ends at the budget, and begins at a multiple of the batch."""
    short = {"budget__images": 25 * 64 - 10}
    base = spec_of(**short)
    end = spec_of(**short, curriculum={"kind": "clts", "sigma": 0.2, "start": 0.95})
    none = spec_of(**short, curriculum=CURRICULA[1])
    assert prefixes.agree_until(base, end) == 24 * 64
    assert prefixes.agree_until(base, none) == 25 * 64 - 10
    assert prefixes.donors([trial("a", base), trial("b", none)]) == {"b": Donor(trial="a", images=24 * 64)}


@pytest.mark.parametrize(
    "changes",
    [
        {"budget__seed": 1},
        {"budget__images": 2 * TOTAL},
        {"optimizer__batch": 32},
        {"optimizer__clip": 1.0},
        {"optimizer__beta2": 0.99},
        {"optimizer__weight_decay": 0.1},
        {"model__channels": 8},
        {"diffusion__schedule": "linear"},
        {"diffusion__timesteps": 60},
        {"ema__stds": [0.1]},
        {"eval__loss__every": 0.5},
        {"data__holdout": 0.1},
        {"precision": "bf16"},
        {"execution__threads": 2},
        {"start": {"run": "other-0123456789ab", "images": 64}},
        {"curriculum": CURRICULA[-1]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_runs_that_differ_in_more_than_schedules_share_nothing(changes: dict[str, Any]) -> None:
    assert prefixes.agree_until(spec_of(), spec_of(**changes)) == 0
    assert prefixes.donors([trial("a", spec_of()), trial("b", spec_of(**changes))]) == {}


def test_names_do_not_matter() -> None:
    assert prefixes.agree_until(spec_of(), spec_of(name="other")) == TOTAL


def expected_donors(trials: Sequence[Trial], least: float) -> dict[str, Donor]:
    """For each trial, the first among the earlier ones of longest agreement."""
    found = {}
    for number, one in enumerate(trials):
        ends = [prefixes.agree_until(one.spec, other.spec) for other in trials[:number]]
        same = {other.spec.fingerprint("") for other in trials[:number]}
        if not ends or one.spec.fingerprint("") in same:
            continue
        images = min(max(ends), TOTAL - BATCH)
        if images > least * TOTAL:
            donor = next(i for i, end in enumerate(ends) if min(end, TOTAL - BATCH) == images)
            found[one.name] = Donor(trial=trials[donor].name, images=images)
    return found


@given(chosen=st.lists(some, min_size=2, max_size=12), least=st.sampled_from([0.0, 0.05, 0.5]))
@settings(max_examples=60, deadline=None)
def test_each_goes_on_from_the_earliest_that_agrees_longest(chosen: list[RunSpec], least: float) -> None:
    trials = [trial(f"t{number}", spec) for number, spec in enumerate(chosen)]
    found = prefixes.donors(trials, least=least)
    assert found == expected_donors(trials, least)
    assert prefixes.donors(trials[:5], least=least) == {
        name: donor for name, donor in found.items() if int(name[1:]) < 5
    }
    for name, donor in found.items():
        assert int(donor.trial[1:]) < int(name[1:])
        assert donor.images % BATCH == 0
        # The donor has this checkpoint to give: it does not itself begin later.
        assert donor.trial not in found or found[donor.trial].images < donor.images


def test_agreement_is_an_ultrametric() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        three = [
            spec_of(
                curriculum=CURRICULA[rng.integers(4, 14)],
                momentum=MOMENTA[rng.integers(len(MOMENTA))],
            )
            for _ in range(3)
        ]
        ends = sorted(prefixes.agree_until(*pair) for pair in itertools.combinations(three, 2))
        assert ends[0] == ends[1]


def test_a_chain_of_onsets() -> None:
    """The later the onset the longer the agreement: all go on from the first, where their own onset is."""
    specs_of = {
        f"{start:g}": spec_of(curriculum={"kind": "clts", "sigma": 0.2, "start": start})
        for start in (0.8, 0.2, 0.4, 0.6)
    }
    trials = [trial(name, spec) for name, spec in specs_of.items()]
    found = prefixes.donors(trials)
    assert found == {
        "0.2": Donor(trial="0.8", images=6 * BATCH),
        "0.4": Donor(trial="0.8", images=11 * BATCH),
        "0.6": Donor(trial="0.8", images=16 * BATCH),
    }
    assert prefixes.saving(found) == 33 * BATCH


def test_seeds_are_apart_and_populations_take_no_part() -> None:
    onset = {"curriculum": CURRICULA[4]}
    trials = [
        trial("a-s0", spec_of()),
        trial("a-s1", spec_of(budget__seed=1)),
        trial("b-s1", spec_of(budget__seed=1, **onset)),
        trial("b-s0", spec_of(**onset)),
        trial("member", spec_of(**onset, momentum=MOMENTA[1]), until=640),
        trial("twin-s0", spec_of()),
    ]
    assert prefixes.donors(trials) == {
        "b-s1": Donor(trial="a-s1", images=11 * BATCH),
        "b-s0": Donor(trial="a-s0", images=11 * BATCH),
    }


def test_each_schedule_is_evaluated_once_for_all_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen trials of four curricula and four momenta: eight times 5,000 batches, not 120 pairs of them."""
    calls = {"share": 0, "at": 0}
    for module, name in ((curriculum, "share"), (momentum, "at")):

        def counted(*arguments: Any, name: str = name, call: Any = getattr(module, name)) -> Any:
            calls[name] += 1
            return call(*arguments)

        monkeypatch.setattr(module, name, counted)
    trials = [
        trial(
            f"{start}-{delay}",
            spec_of(
                budget__images=5000 * BATCH,
                curriculum={"kind": "clts", "sigma": 0.2, "start": start},
                momentum={"kind": "demon", "delay": delay},
            ),
        )
        for start in (0.61, 0.62, 0.63, 0.64)
        for delay in (0.61, 0.62, 0.63, 0.64)
    ]
    assert len(prefixes.donors(trials)) == 15
    assert max(calls.values()) <= 4 * 1.05 * 5000
