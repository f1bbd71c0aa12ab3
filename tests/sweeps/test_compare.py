"""Who won, and whether the statistics hold: oracles, boundary tables, simulated coverage at three seeds."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from hasten.sweeps.compare import compare, images_to_target
from hasten.sweeps.records import TrialResult
from hasten.sweeps.reports import table
from hasten.sweeps.statistics.comparison import Arm, Comparison
from hasten.sweeps.statistics.intervals import holm, mean_of, paired_difference, welch_difference
from hasten.trainers.errors import ConfigError
from hasten.trainers.records import Point, RunResult, RunStatus

BUDGET = 1000
LOSS = "eval/loss"


def trial(
    arm: str,
    seed: int,
    values: Sequence[float] | float,
    *,
    status: RunStatus = "finished",
    images: int = BUDGET,
    metric: str = LOSS,
) -> TrialResult:
    """A run whose evaluations are spread evenly from 0 to its last image; a single value is at the end."""
    curve = [float(values)] if isinstance(values, int | float) else [float(value) for value in values]
    steps = [images] if len(curve) == 1 else [round(step) for step in np.linspace(0, images, len(curve))]
    history = [Point(step=step, metrics={metric: value}) for step, value in zip(steps, curve, strict=True)]
    result = RunResult(
        run=f"{arm}-s{seed}",
        fingerprint="0" * 12,
        status=status,
        images=images,
        seconds=1.0,
        metrics={metric: curve[-1]},
        history=history,
        spec={"budget": {"images": BUDGET, "seed": seed}},
        data_digest="d",
    )
    return TrialResult(trial=result.run, arm=arm, seed=seed, result=result)


def finals(arms: Mapping[str, Sequence[float]]) -> list[TrialResult]:
    return [trial(arm, seed, value) for arm, values in arms.items() for seed, value in enumerate(values)]


def arm_of(comparison: Comparison, name: str) -> Arm:
    return next(arm for arm in comparison.arms if arm.name == name)


def said(comparison: Comparison, words: str) -> bool:
    return any(words in note for note in comparison.notes)


# --- The statistics against scipy's, and by simulation -----------------------------------------------------


def test_paired_difference_is_the_paired_t_test() -> None:
    ours, theirs = [0.31, 0.28, 0.35, 0.30], [0.36, 0.30, 0.36, 0.37]
    found, wanted = paired_difference(ours, theirs, alpha=0.05), stats.ttest_rel(ours, theirs)
    assert found is not None
    assert found.p == pytest.approx(wanted.pvalue)
    interval = wanted.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_welch_difference_is_welchs_t_test() -> None:
    ours, theirs = [0.31, 0.28, 0.35, 0.30], [0.46, 0.30, 0.36]
    found, wanted = welch_difference(ours, theirs, alpha=0.05), stats.ttest_ind(ours, theirs, equal_var=False)
    assert found is not None
    assert found.p == pytest.approx(wanted.pvalue)
    interval = wanted.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.04, 0.011, 0.02], [0.04, 0.033, 0.04]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.0, 0.5], [0.0, 0.5]),
    ],
)
def test_holm(raw: list[float], adjusted: list[float]) -> None:
    assert holm(raw) == pytest.approx(adjusted)


@given(st.lists(st.floats(0.0, 1.0), max_size=8))
def test_holm_keeps_order_and_never_sharpens(raw: list[float]) -> None:
    adjusted = holm(raw)
    assert all(p <= q <= 1.0 for p, q in zip(raw, adjusted, strict=True))
    assert all(
        adjusted[i] <= adjusted[j] for i in range(len(raw)) for j in range(len(raw)) if raw[i] < raw[j]
    )


def test_t_interval_covers_the_mean_at_three_seeds() -> None:
    draws = np.random.default_rng(11).normal(0.3, 0.05, size=(4000, 3))
    intervals = [mean_of(row.tolist(), alpha=0.05) for row in draws]
    covered = np.mean([i.low <= 0.3 <= i.high for i in intervals if i and i.low is not None and i.high])
    assert 0.935 < covered < 0.965  # 4000 draws: standard error 0.0034


def test_no_winner_under_the_null() -> None:
    """Three arms that do nothing, three paired seeds: a winner is named in at most about 5 % of studies."""
    random, studies, winners, significant = np.random.default_rng(5), 1500, 0, 0
    for _ in range(studies):
        seeds = random.normal(0.0, 0.05, size=3)  # what a seed does to every arm alike
        arms = {
            name: (0.3 + seeds + random.normal(0.0, 0.01, size=3)).tolist()
            for name in ("baseline", "a", "b", "c")
        }
        comparison = compare(finals(arms), study="null")
        winners += comparison.winner is not None
        significant += any(arm.p_adjusted is not None and arm.p_adjusted < 0.05 for arm in comparison.arms)
    assert significant / studies < 0.065  # either side; 5 % plus nearly three standard errors
    assert winners / studies < 0.04  # the better side alone: half of it


def test_speedup_interval_covers_the_ratio_on_a_coarse_grid() -> None:
    """True ratio 1.5, a tenth of noise from seed to seed, images to target rounded up to a grid of 21."""
    random, covered, studies = np.random.default_rng(3), 0, 400
    grid = np.linspace(0, BUDGET, 21)
    for _ in range(studies):
        results = []
        for seed in range(3):
            crossing = 600.0 * math.exp(random.normal(0.0, 0.1))
            for arm, ratio in (("baseline", 1.0), ("fast", 1.5 * math.exp(random.normal(0.0, 0.1)))):
                results.append(trial(arm, seed, (grid < crossing / ratio).astype(float).tolist()))
        speedup = arm_of(compare(results, study="s", target=0.5), "fast").speedup
        assert speedup is not None
        assert speedup.low is not None
        assert speedup.high is not None
        covered += speedup.low <= 1.5 <= speedup.high
    assert covered / studies > 0.92


# --- Who wins ----------------------------------------------------------------------------------------------


def test_a_clear_gain_wins() -> None:
    results = finals(
        {"baseline": [0.50, 0.60, 0.55], "good": [0.41, 0.50, 0.46], "level": [0.51, 0.59, 0.55]}
    )
    comparison = compare(results, study="s")
    assert comparison.verdict == "good beats baseline"
    assert arm_of(comparison, "good").difference is not None


def test_the_furthest_ahead_wins_and_the_other_is_named() -> None:
    comparison = compare(
        finals({"baseline": [0.5, 0.6, 0.55], "a": [0.41, 0.5, 0.46], "b": [0.31, 0.4, 0.36]}), study="s"
    )
    assert comparison.winner == "b"
    assert said(comparison, "a also did better")


def test_worse_is_no_winner() -> None:
    comparison = compare(finals({"baseline": [0.5, 0.6, 0.55], "bad": [0.7, 0.8, 0.76]}), study="s")
    assert comparison.verdict == "no clear winner"
    assert "bad is worse than baseline" in table.explanation(comparison)


def test_max_turns_the_direction() -> None:
    results = finals({"baseline": [0.5, 0.6, 0.55], "more": [0.7, 0.8, 0.76]})
    assert compare(results, study="s", mode="max").verdict == "more beats baseline"


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_seeds_never_win(n: int) -> None:
    comparison = compare(finals({"baseline": [0.5] * n, "good": [0.1] * n}), study="s")
    assert comparison.verdict == "no clear winner"
    assert said(comparison, "only 1 seed" if n == 1 else "only 2 seeds")


def test_a_control_on_other_seeds_is_unpaired_and_never_wins() -> None:
    results = [trial("baseline", seed, 0.5 + 0.001 * seed) for seed in range(3)]
    results += [trial("baseline-aa", 1000 + seed, 0.3 + 0.001 * seed) for seed in range(3)]
    comparison = compare(results, study="s")
    control = arm_of(comparison, "baseline-aa")
    assert not control.paired
    assert control.p_adjusted is None
    assert control.reached is None
    assert comparison.winner is None
    assert said(comparison, "unpaired")
    assert said(comparison, "mistrust")


def test_the_control_does_not_dilute_the_correction() -> None:
    arms = {"baseline": [0.50, 0.61, 0.55], "a": [0.45, 0.55, 0.51]}
    alone = compare(finals(arms), study="s")
    control = [trial("baseline-aa", 1000 + seed, 0.5 + 0.05 * seed) for seed in range(3)]
    both = compare([*finals(arms), *control], study="s")
    assert arm_of(alone, "a").p_adjusted == arm_of(both, "a").p_adjusted


def test_an_arm_that_diverged_cannot_win() -> None:
    results = finals({"baseline": [0.5, 0.6, 0.55, 0.57], "wild": [0.1, 0.2, 0.151, math.nan]})
    comparison = compare(results, study="s")
    assert arm_of(comparison, "wild").n == 3
    assert comparison.verdict == "no clear winner"
    assert said(comparison, "wild diverged")
    assert said(comparison, "seed 3 (1 of 4 runs)")


def test_equal_to_rounding_is_no_gain() -> None:
    arms = {"baseline": [0.5, 0.6, 0.55], "same": [0.5 - 1e-8, 0.6 - 1e-8, 0.55 - 1e-8]}
    comparison = compare(finals(arms), study="s")
    assert comparison.verdict == "no clear winner"
    assert said(comparison, "the same result as baseline at every seed")


def test_a_constant_gain_wins_with_a_caution() -> None:
    comparison = compare(finals({"baseline": [0.5, 0.625, 0.75], "a": [0.25, 0.375, 0.5]}), study="s")
    assert comparison.verdict == "a beats baseline"
    assert said(comparison, "the same difference to baseline at every seed")


# --- What is missing ---------------------------------------------------------------------------------------


def test_nothing_at_all() -> None:
    comparison = compare([], study="s", arms=["baseline", "a"], seeds=[0, 1])
    assert comparison.as_json()["arms"][1] == {
        "arm": "a",
        "n": 0,
        "mean": None,
        "low": None,
        "high": None,
        "speedup": None,
        "speedup_low": None,
        "speedup_high": None,
        "reached": None,
    }
    assert said(comparison, "no results yet")


def test_missing_baseline() -> None:
    comparison = compare(finals({"a": [0.1, 0.2, 0.3]}), study="s")
    assert [arm.name for arm in comparison.arms] == ["baseline", "a"]
    assert comparison.verdict == "no clear winner"
    assert said(comparison, "nothing to compare with")


def test_baseline_alone() -> None:
    assert said(compare(finals({"baseline": [0.1, 0.2, 0.3]}), study="s"), "no arm beside baseline")


def test_missing_metric() -> None:
    results = finals({"baseline": [0.1, 0.2, 0.3], "a": [0.1, 0.2, 0.3]})
    comparison = compare(results, study="s", metric="eval/frechet")
    assert said(comparison, "3 finished without the metric")
    assert comparison.verdict == "no clear winner"


def test_failed_and_absent_trials_are_counted() -> None:
    results = finals({"baseline": [0.5, 0.6, 0.55, 0.52], "a": [0.4, 0.5]})
    results.append(trial("a", 2, 0.1, status="failed"))
    comparison = compare(results, study="s", seeds=[0, 1, 2, 3], arms=["baseline", "a", "b"])
    assert arm_of(comparison, "a").n == 2
    assert said(comparison, "a: 2 of 4 trials missing (1 failed, 1 without a result)")
    assert said(comparison, "b has no results")


def test_a_run_cut_short_does_not_count() -> None:
    results = finals({"baseline": [0.5, 0.6, 0.55], "a": [0.4, 0.5]})
    results.append(trial("a", 2, 0.1, images=BUDGET // 3))
    comparison = compare(results, study="s")
    assert arm_of(comparison, "a").n == 2
    assert said(comparison, "1 stopped before its budget was spent")


def test_a_second_attempt_replaces_the_failed_one() -> None:
    results = finals({"baseline": [0.5, 0.6, 0.55], "a": [0.4, 0.5]})
    results += [
        trial("a", 2, 0.44),
        trial("a", 2, 0.9, status="failed"),
        trial("a", 1, 0.7, status="stopped"),
    ]
    assert arm_of(compare(results, study="s"), "a").values == {0: 0.4, 1: 0.5, 2: 0.44}


def test_pairs_are_the_common_seeds() -> None:
    results = [
        trial(arm, seed, 0.5 + 0.01 * seed) for arm, seed in (("baseline", 0), ("baseline", 1), ("a", 1))
    ]
    arm = arm_of(compare([*results, trial("a", 7, 9.0)], study="s"), "a")
    assert arm.paired
    assert arm.differences == {1: 0.0}


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("objective.mode", {"mode": "least"}),
        ("objective.target", {"target": "best"}),
        ("objective.target", {"target": math.nan}),
        ("alpha", {"alpha": 0.0}),
    ],
)
def test_senseless_arguments(key: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=key):
        compare([], study="s", **arguments)


# --- Images to target --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "mode", "reached"),
    [
        ([1.0, 0.6, 0.4, 0.3], "min", 20),
        ([1.0, 0.4, 0.6, 0.5], "min", 30),  # it left again; at the target counts
        ([1.0, 0.4, 0.3, 0.51], "min", None),
        ([0.4, 0.4, 0.4, 0.4], "min", 0),
        ([0.4, math.nan, 0.4, 0.4], "min", 20),
        ([0.4, 0.4, 0.4, math.nan], "min", None),
        ([0.1, 0.6, 0.4, 0.5], "max", 30),
        ([], "min", None),
    ],
)
def test_images_to_target(values: list[float], mode: Any, reached: int | None) -> None:
    series = [(10 * index, value) for index, value in enumerate(values)]
    assert images_to_target(series, target=0.5, mode=mode) == reached


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
    assert arm.speedup is not None
    assert (arm.speedup.mean, arm.speedup.low) == (pytest.approx(2.0), None)  # two seeds: no interval
    assert said(comparison, "5 points: images to target are resolved to 250 images")


def test_equal_ratios_keep_the_width_of_the_grid() -> None:
    results = [
        trial(arm, seed, curve)
        for seed in range(3)
        for arm, curve in (("baseline", [1.0, 0.9, 0.8, 0.7, 0.6]), ("a", [1.0, 0.8, 0.6, 0.5, 0.5]))
    ]
    speedup = arm_of(compare(results, study="s"), "a").speedup
    assert speedup is not None
    assert speedup.low is not None
    assert speedup.high is not None
    assert speedup.mean == pytest.approx(2.0)
    deviation = math.sqrt((0.25**2 + 0.5**2) / 12.0)
    assert math.log(speedup.high / 2.0) == pytest.approx(stats.t.ppf(0.975, 2) * deviation / math.sqrt(3.0))


def test_a_censored_seed_leaves_the_speedup_out() -> None:
    falling = [1.0, 0.8, 0.6, 0.5, 0.4]
    results = [trial("baseline", seed, falling) for seed in range(3)]
    results += [trial("a", seed, falling if seed else [1.0, 0.5, 0.5, 0.5, 0.5]) for seed in range(3)]
    comparison = compare(results, study="s")
    arm = arm_of(comparison, "a")
    assert (arm.reached, arm.speedup) == (2, None)
    assert table.speedup_text(arm) == "2 of 3 reached"
    assert said(comparison, "a: speed-up left out: 1 of 3 seeds never reached the target")


def test_a_target_reached_before_training_gives_no_ratio() -> None:
    curve = [0.4, 0.3, 0.2]
    comparison = compare(
        [trial(arm, seed, curve) for arm in ("baseline", "a") for seed in range(3)], study="s", target=0.5
    )
    assert arm_of(comparison, "a").reached == 3
    assert arm_of(comparison, "a").speedup is None
    assert said(comparison, "at the target before training began")


def test_no_target_no_speed() -> None:
    comparison = compare(finals({"baseline": [0.5, 0.6, 0.55]}), study="s", target=None)
    assert comparison.reference.reached is None
    assert comparison.reference.speedup is None


# --- Whatever comes in -------------------------------------------------------------------------------------

_VALUES = st.one_of(
    st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e308, -1e308])
)
_TRIALS = st.lists(
    st.builds(
        trial,
        st.sampled_from(["baseline", "baseline-aa", "a", "b"]),
        st.integers(0, 4),
        st.lists(_VALUES, min_size=1, max_size=4),
        status=st.sampled_from(["finished", "finished", "finished", "failed", "stopped", "running"]),
    ),
    max_size=24,
)


@settings(max_examples=150, deadline=None)
@given(_TRIALS, st.sampled_from(["baseline", None, 0.5]), st.sampled_from(["min", "max"]))
def test_never_crashes_and_stays_json(trials: list[TrialResult], target: Any, mode: Any) -> None:
    comparison = compare(trials, study="s", target=target, mode=mode)
    found = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    assert list(found) == ["study", "metric", "baseline", "arms", "verdict"]
    for arm in found["arms"]:
        assert arm["low"] is None or arm["low"] <= arm["mean"] <= arm["high"]
    if comparison.winner is not None:
        winner = arm_of(comparison, comparison.winner).difference
        assert winner is not None
        assert winner.n >= 3
    assert table.explanation(comparison)
    Console(width=80, quiet=True).print(table.render(comparison))


@settings(max_examples=50, deadline=None)
@given(_TRIALS, st.randoms())
def test_the_order_of_different_trials_does_not_matter(trials: list[TrialResult], random: Any) -> None:
    once = list({(one.arm, one.seed): one for one in trials}.values())
    names = ["baseline", "baseline-aa", "a", "b"]
    wanted = compare(once, study="s", arms=names).as_json()
    random.shuffle(once)
    assert compare(once, study="s", arms=names).as_json() == wanted


# --- The terminal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (0.12341, 0.0056, "0.1234 ± 0.0056"),
        (0.12345, 0.56, "0.12 ± 0.56"),
        (1234.5, 56.0, "1234 ± 56"),
        (0.1234567, None, "0.1235"),
        (0.5, 0.0, "0.5 ± 0"),
        (1.0, 1e-12, "1 ± 1.0e-12"),
    ],
)
def test_plus_minus(mean: float, half: float | None, text: str) -> None:
    assert table.plus_minus(mean, half) == text


def test_the_table_fits_eighty_columns() -> None:
    arms = {"baseline": [0.5012, 0.6012, 0.5512], "clts": [0.4312, 0.5112, 0.4712], "a[b]": [0.55, 0.61, 0.5]}
    console = Console(width=80, color_system=None, record=True, file=io.StringIO())
    console.print(table.render(compare(finals(arms), study="paper")))
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "a[b]" in text
    assert text.index("speed-up") < text.index("clts beats baseline")
