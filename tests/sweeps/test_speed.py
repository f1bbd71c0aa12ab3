"""Images and seconds to a target: censored, interpolated, paired; and whether the intervals hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hasten.sweeps.compare import compare
from hasten.sweeps.records import TrialResult
from hasten.sweeps.statistics.comparison import Arm, Comparison, Outcome
from hasten.sweeps.statistics.intervals import Estimate
from hasten.sweeps.statistics.speed import crossing, race_of
from hasten.trainers.records import Point, RunResult

BUDGET = 1000
LOSS = "eval/loss"
FALLING = [1.0, 0.8, 0.6, 0.5, 0.4]


def trial(arm: str, seed: int, values: Sequence[float], *, seconds: float | None = None) -> TrialResult:
    """A run that is evaluated evenly from 0 to its last image, and takes so many seconds in all."""
    steps = [round(step) for step in np.linspace(0, BUDGET, len(values))]
    clock = {} if seconds is None else {"perf/seconds": seconds}
    history = [
        Point(step=step, metrics={LOSS: value, **{key: all_ * step / BUDGET for key, all_ in clock.items()}})
        for step, value in zip(steps, values, strict=True)
    ]
    result = RunResult(
        run=f"{arm}-s{seed}",
        fingerprint="0" * 12,
        status="finished",
        images=BUDGET,
        seconds=seconds or 1.0,
        metrics={LOSS: values[-1]},
        history=history,
        spec={"budget": {"images": BUDGET, "seed": seed}},
        data_digest="d",
    )
    return TrialResult(trial=result.run, arm=arm, seed=seed, result=result)


def arm_of(comparison: Comparison, name: str) -> Arm:
    return next(arm for arm in comparison.arms if arm.name == name)


def said(comparison: Comparison, words: str) -> bool:
    return any(words in note for note in comparison.notes)


def speedup_of(results: list[TrialResult], arm: str = "a", **options: Any) -> Estimate:
    found = arm_of(compare(results, study="s", **options), arm).speedup
    assert found is not None
    return found


# --- Crossings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "mode", "found"),
    [
        ([1.0, 0.6, 0.4, 0.3], "min", (15.0, 10.0)),  # halfway between 10 and 20
        ([1.0, 0.4, 0.6, 0.5], "min", (30.0, 10.0)),  # it left again; at the target counts
        ([1.0, 0.4, 0.3, 0.51], "min", None),
        ([0.4, 0.4, 0.4, 0.4], "min", (0.0, 0.0)),
        ([1.0, math.inf, 0.4, 0.4], "min", (20.0, 10.0)),  # no line leads down from infinity
        ([0.1, 0.3, 0.7, 0.7], "max", (15.0, 10.0)),
    ],
)
def test_crossing(values: list[float], mode: Any, found: tuple[float, float] | None) -> None:
    series = [(10 * index, value) for index, value in enumerate(values)]
    assert crossing(series, 0.5, mode=mode) == (None if found is None else pytest.approx(found))


def test_before_the_first_evaluation_is_unknown() -> None:
    """Evaluated first at 30 images, and there already: anything from 0 to 30."""
    assert crossing([(30, 0.4), (60, 0.3)], 0.5, mode="min") == (30.0, 30.0)


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6), st.lists(st.floats(0.01, 1.0), min_size=2))
def test_a_race_is_the_same_from_either_side(ours: list[float], theirs: list[float]) -> None:
    """Arm and baseline are treated alike: exchanged, the ratio is turned over."""
    one, other = (
        Outcome(
            seed=0,
            ending="measured",
            value=values[-1],
            images=BUDGET,
            series=tuple((10 * step, value) for step, value in enumerate(values)),
        )
        for values in (ours, theirs)
    )
    target = other.series[-1][1]
    there, back = race_of(one, other, target=target, mode="min"), race_of(other, one, target=0.0, mode="min")
    assert (there is None) == (back is None)
    if there is not None and back is not None:
        assert there.images == pytest.approx(-back.images)
        assert there.variance == pytest.approx(back.variance)


# --- Speed-ups ---------------------------------------------------------------------------------------------


def test_the_target_is_the_baselines_own_at_the_same_seed() -> None:
    results = [
        trial("baseline", 0, [1.0, 0.8, 0.6, 0.5, 0.4]),
        trial("baseline", 1, [1.0, 0.9, 0.8, 0.75, 0.7]),
        trial("a", 0, [1.0, 0.6, 0.4, 0.4, 0.4]),
        trial("a", 1, [1.0, 0.8, 0.7, 0.6, 0.6]),
    ]
    comparison = compare(results, study="s")
    assert arm_of(comparison, "baseline").images_to_target == {0: 1000, 1: 1000}
    arm = arm_of(comparison, "a")
    assert arm.images_to_target == {0: 500, 1: 500}
    assert arm.ratios == {0: pytest.approx(2.0), 1: pytest.approx(2.0)}
    assert arm.speedup is not None
    assert (arm.speedup.mean, arm.speedup.low) == (pytest.approx(2.0), None)  # two seeds: no interval
    assert said(comparison, "5 points: images to target are resolved to 250 images")


def test_equal_ratios_keep_the_width_of_the_grid() -> None:
    results = [
        trial(arm, seed, curve)
        for seed in range(3)
        for arm, curve in (("baseline", [1.0, 0.9, 0.8, 0.7, 0.6]), ("a", [1.0, 0.8, 0.6, 0.5, 0.5]))
    ]
    speedup = speedup_of(results)
    assert speedup.low is not None
    assert speedup.high is not None
    assert speedup.mean == pytest.approx(2.0)
    deviation = math.sqrt((0.25**2 + 0.5**2) / 12.0)
    assert math.log(speedup.high / 2.0) == pytest.approx(stats.t.ppf(0.975, 2) * deviation / math.sqrt(3.0))


def test_a_seed_that_misses_the_target_is_raced_to_its_own_quality() -> None:
    """0.5 is the worse of the two ends: the baseline has it at 750 images, the arm at 1000."""
    slower = [1.0, 0.9, 0.8, 0.6, 0.5]
    results = [trial("baseline", seed, FALLING) for seed in range(3)]
    results += [trial("a", seed, FALLING if seed else slower) for seed in range(3)]
    comparison = compare(results, study="s")
    arm = arm_of(comparison, "a")
    assert arm.reached == 2
    assert arm.ratios == {0: pytest.approx(0.75), 1: pytest.approx(1.0), 2: pytest.approx(1.0)}
    assert arm.speedup is not None
    assert arm.speedup.mean == pytest.approx(0.75 ** (1 / 3))
    assert said(comparison, "a never reached the target at 1 of 3 seeds; half of its runs do by 1,000 images")
    assert said(comparison, "sooner than baseline at 0, later at 1 (sign test p = 1)")


def test_an_arm_that_never_reaches_the_target_has_no_speedup() -> None:
    """However soon it has what little it reaches."""
    results = [trial("baseline", seed, FALLING) for seed in range(3)]
    results += [trial("a", seed, [1.0, 0.5, 0.5, 0.5, 0.5]) for seed in range(3)]
    comparison = compare(results, study="s")
    arm = arm_of(comparison, "a")
    assert (arm.reached, arm.speedup) == (0, None)
    assert arm.median is not None
    assert arm.median.median is None
    assert said(comparison, "a never reached the target at 3 of 3 seeds")


def test_a_diverged_seed_leaves_the_speedup_out() -> None:
    results = [trial("baseline", seed, FALLING) for seed in range(3)]
    results += [trial("a", seed, [1.0, 0.3, 0.3, 0.3, math.nan if seed else 0.3]) for seed in range(3)]
    comparison = compare(results, study="s")
    arm = arm_of(comparison, "a")
    assert (arm.reached, arm.speedup) == (1, None)
    assert arm.images_to_target == {0: 250, 1: None, 2: None}
    assert said(comparison, "a: speed-up left out: it diverged")


def test_a_target_reached_before_training_gives_no_ratio() -> None:
    curve = [0.4, 0.3, 0.2]
    results = [trial(arm, seed, curve) for arm in ("baseline", "a") for seed in range(3)]
    comparison = compare(results, study="s", target=0.5)
    assert arm_of(comparison, "a").reached == 3
    assert arm_of(comparison, "a").speedup is None
    assert said(comparison, "at the target before training began")


def test_a_single_evaluation_says_nothing_about_speed() -> None:
    results = [
        TrialResult(
            trial=one.trial,
            arm=one.arm,
            seed=one.seed,
            result=one.result.model_copy(update={"history": one.result.history[-1:]}),
        )
        for one in (trial(arm, seed, FALLING) for arm in ("baseline", "a") for seed in range(3))
    ]
    comparison = compare(results, study="s")
    assert arm_of(comparison, "a").speedup is None
    assert said(comparison, "a: speed-up left out: it takes two evaluations of every run")


def test_no_target_no_speed() -> None:
    comparison = compare([trial("baseline", seed, FALLING) for seed in range(3)], study="s", target=None)
    assert comparison.reference.reached is None
    assert comparison.reference.speedup is None
    assert comparison.reference.median is None


# --- Seconds -----------------------------------------------------------------------------------------------


def test_seconds_count_what_an_image_takes() -> None:
    """Half the images, each twice as long: no faster."""
    fast = [1.0, 0.6, 0.4, 0.4, 0.4]
    results = [trial("baseline", seed, FALLING, seconds=10.0) for seed in range(3)]
    results += [trial("a", seed, fast, seconds=20.0) for seed in range(3)]
    comparison = compare(results, study="s")
    arm = arm_of(comparison, "a")
    assert arm.seconds_to_target == {seed: pytest.approx(10.0) for seed in range(3)}
    assert arm.seconds_speedup is not None
    assert arm.seconds_speedup.mean == pytest.approx(1.0)
    assert speedup_of(results).mean == pytest.approx(2.0)
    assert said(comparison, "speed-ups in seconds depend on what else the machines did")
    assert comparison.as_json()["arms"][1]["seconds_speedup"] == pytest.approx(1.0)


def test_seconds_that_one_run_did_not_keep_are_left_out() -> None:
    results = [trial("baseline", seed, FALLING, seconds=10.0) for seed in range(3)]
    results += [trial("a", seed, FALLING, seconds=5.0 if seed else None) for seed in range(3)]
    comparison = compare(results, study="s")
    assert arm_of(comparison, "a").seconds_speedup is None
    assert not said(comparison, "in seconds")


# --- Coverage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["baseline", 0.19])
@pytest.mark.parametrize("seeds", [3, 10])
def test_the_interval_of_a_speedup_holds_the_truth_on_a_coarse_grid(seeds: int, target: Any) -> None:
    """True ratio 1.5, a tenth of noise from run to run, eleven evaluations of a curve that is not straight.

    With the baseline's quality as the target, counting to the next evaluation would hold it in half of the
    studies with ten seeds.
    """
    random, held, studies = np.random.default_rng(3), 0, 300
    progress = np.linspace(0.0, 1.0, 11)
    for _ in range(studies):
        results = []
        for seed in range(seeds):
            common = random.normal(0.0, 0.1)
            for arm, ratio in (("baseline", 1.0), ("a", 1.5)):
                pace = ratio * math.exp(common + random.normal(0.0, 0.1))
                results.append(trial(arm, seed, (0.15 + 0.85 / (1.0 + 30.0 * pace * progress)).tolist()))
        speedup = speedup_of(results, target=target)
        assert speedup.low is not None
        assert speedup.high is not None
        held += speedup.low <= 1.5 <= speedup.high
    assert held / studies > 0.915  # 95 % less nearly three standard errors
