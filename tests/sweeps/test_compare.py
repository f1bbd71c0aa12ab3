"""Who won, and whether the statistics hold: oracles, boundary tables, simulated coverage at three seeds."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from hasten.sweeps.compare import compare, compare_studies
from hasten.sweeps.records import FailureKind, TrialRecord, TrialResult, TrialState
from hasten.sweeps.reports import table
from hasten.sweeps.statistics import power
from hasten.sweeps.statistics.comparison import Arm, Comparison
from hasten.sweeps.statistics.intervals import holm, mean_of, paired_difference, welch_difference
from hasten.sweeps.statistics.outcomes import unfinished
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


def record(arm: str, seed: int, *, failure: FailureKind | None, state: TrialState = "failed") -> TrialRecord:
    return TrialRecord(
        trial=f"{arm}-s{seed}",
        arm=arm,
        seed=seed,
        run=f"{arm}-s{seed}",
        fingerprint="0" * 12,
        state=state,
        images=300,
        total=BUDGET,
        curves={LOSS: [(0, 1.0), (300, 0.7)]},
        failure=failure,
    )


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
    assert comparison.control_holds is False
    assert comparison.notes[0].startswith("THE A/A CONTROL FAILS")


def test_a_control_that_holds_is_shown_as_a_check() -> None:
    results = [trial("baseline", seed, 0.5 + 0.01 * seed) for seed in range(3)]
    results += [trial("baseline-aa", 1000 + seed, 0.512 - 0.008 * seed) for seed in range(3)]
    comparison = compare(results, study="s")
    assert comparison.control_holds
    assert comparison.as_json()["control_holds"] is True
    assert comparison.notes[0].startswith("the A/A control holds: baseline-aa is no further from")


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
    row = comparison.as_json()["arms"][1]
    assert list(row)[:3] == ["arm", "n", "mean"]
    assert {key for key, value in row.items() if value is not None} == {"arm", "n"}
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


def test_a_record_says_why_a_trial_has_no_value() -> None:
    """The kinds of failure are told apart, and one that diverged keeps its arm from winning."""
    results = finals({"baseline": [0.5, 0.6, 0.55, 0.52, 0.58], "a": [0.4, 0.5, 0.45]})
    lost = [unfinished(record("a", 3, failure="memory")), unfinished(record("a", 4, failure="lost"))]
    comparison = compare([*results, *lost], study="s")
    assert comparison.winner == "a"
    assert arm_of(comparison, "a").endings == {"measured": 3, "failed": 2}
    assert said(comparison, "a: 2 of 5 trials missing (1 lost with its process, 1 out of memory)")
    wild = unfinished(record("a", 3, failure="diverged"))
    assert arm_of(compare([*results, wild], study="s"), "a").endings["diverged"] == 1
    assert compare([*results, wild], study="s").winner is None
    stopped = unfinished(record("a", 3, failure=None, state="stopped"))
    assert arm_of(compare([*results, stopped], study="s"), "a").endings["stopped"] == 1
    assert compare([*results, stopped], study="s").conditions.data == ("d",)


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


# --- More seeds --------------------------------------------------------------------------------------------


def test_more_seeds_are_asked_for_at_the_level_of_holms_next_step() -> None:
    """Two arms of which one is settled: the other is held to the level of a single arm."""
    arms = {
        "baseline": [0.50, 0.61, 0.55, 0.52],
        "clear": [0.40, 0.511, 0.45, 0.42],
        "faint": [0.49, 0.612, 0.53, 0.52],
    }
    comparison = compare(finals(arms), study="s")
    clear, faint = arm_of(comparison, "clear"), arm_of(comparison, "faint")
    assert (comparison.winner, clear.seeds_to_settle) == ("clear", 0)
    gaps = np.subtract(arms["faint"], arms["baseline"])
    needed = power.seeds_needed(effect=float(gaps.mean()), sd=float(gaps.std(ddof=1)), level=0.05, least=5)
    assert needed is not None
    assert faint.seeds_to_settle == needed - 4
    assert faint.detectable == pytest.approx(power.detectable(4, sd=float(gaps.std(ddof=1)), level=0.05))
    assert said(comparison, f"if it is what it seems: about {needed - 4} for faint")
    assert said(comparison, f"differences from {faint.detectable:.2g} (faint) on")
    assert not said(comparison, "for clear")


def test_a_hopelessly_small_difference_asks_for_over_a_thousand_seeds() -> None:
    arms = {"baseline": [0.5, 0.6, 0.55], "a": [0.45, 0.65, 0.5501]}
    comparison = compare(finals(arms), study="s")
    assert arm_of(comparison, "a").seeds_to_settle is None
    assert said(comparison, "if it is what it seems: over 1,000 for a")


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_seeds_know_no_spread(n: int) -> None:
    comparison = compare(finals({"baseline": [0.5, 0.6][:n], "a": [0.4, 0.51][:n]}), study="s")
    assert arm_of(comparison, "a").detectable is None
    assert not said(comparison, "more seeds")


# --- Two changes at once -----------------------------------------------------------------------------------


def crossed(*, both: float) -> list[TrialResult]:
    """``x`` gains 0.02 and ``y`` 0.01; together ``both``."""
    gains = {"baseline": 0.0, "x": 0.02, "y": 0.01, "both": both}
    changes = {"x": {"x": 1}, "y": {"y": 1}, "both": {"x": 1, "y": 1}}
    random, results = np.random.default_rng(1), []
    for arm, gain in gains.items():
        for seed in range(5):
            one = trial(arm, seed, 0.3 + 0.02 * seed - gain + random.normal(0.0, 0.001))
            settings = {"x": 0, "y": 0, **changes.get(arm, {})}
            spec = {**one.result.spec, "settings": settings}
            results.append(replace(one, result=one.result.model_copy(update={"spec": spec})))
    return results


def test_the_interaction_is_both_minus_the_sum() -> None:
    results = crossed(both=0.05)
    comparison = compare(results, study="s")
    (found,) = comparison.interactions
    assert (found.first, found.second, found.both) == ("x", "y", "both")
    values = {arm.name: np.array(list(arm.values.values())) for arm in comparison.arms}
    contrast = values["both"] - values["x"] - values["y"] + values["baseline"]
    wanted = stats.ttest_1samp(contrast, 0.0)
    assert (found.contrast.mean, found.contrast.p) == (
        pytest.approx(contrast.mean()),
        pytest.approx(wanted.pvalue),
    )
    assert said(comparison, "x and y are better together than the sum of their effects: -0.0")
    assert comparison.as_json()["interactions"][0]["contrast"] == pytest.approx(contrast.mean())
    assert arm_of(comparison, "both").changes == {"settings.x": 1, "settings.y": 1}


def test_no_interaction_is_said_to_be_none() -> None:
    comparison = compare(crossed(both=0.03), study="s")
    assert said(comparison, "together no different from the sum of their effects")


def test_arms_that_do_not_cross_have_no_interaction() -> None:
    results = [one for one in crossed(both=0.05) if one.arm != "y"]
    assert compare(results, study="s").interactions == ()


# --- Several studies ---------------------------------------------------------------------------------------


def test_studies_of_one_experiment_are_judged_together() -> None:
    """Holm then counts the arms of all studies, so a study's winner may not survive."""
    base = [0.50, 0.61, 0.55]
    first = compare(finals({"baseline": base, "a": [0.44, 0.53, 0.49]}), study="one")
    second = compare(finals({"baseline": base, "b": [0.51, 0.6, 0.56], "c": [0.49, 0.62, 0.55]}), study="two")
    found = compare_studies([first, second])
    assert found.notes == ()
    assert found.whole is not None
    assert [arm.name for arm in found.whole.arms] == ["baseline", "one/a", "two/b", "two/c"]
    alone, together = arm_of(first, "a").p_adjusted, arm_of(found.whole, "one/a").p_adjusted
    assert alone is not None
    assert together == pytest.approx(3 * alone)
    assert first.winner == "a"
    assert found.verdict == ("one/a beats baseline" if 3 * alone < 0.05 else "no clear winner")
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data_digest": "other"}, "trained on different data"),
        ({"evaluation": {"eval": {"loss": {"images": 7}}}}, "evaluated differently"),
        ({"spec": {"budget": {"images": BUDGET, "seed": 0}, "optimizer": {"lr": 1}}}, "different baselines"),
    ],
)
def test_studies_that_differ_have_no_common_winner(changed: dict[str, Any], words: str) -> None:
    results = finals({"baseline": [0.5, 0.6, 0.55], "a": [0.41, 0.5, 0.46]})
    others = [replace(one, result=one.result.model_copy(update=changed)) for one in results]
    found = compare_studies([compare(results, study="one"), compare(others, study="two")])
    assert found.whole is None
    assert found.verdict == "no clear winner"
    assert [note for note in found.notes if words in note]
    assert found.as_json()["together"] is None


def test_one_study_is_itself_the_whole() -> None:
    alone = compare(finals({"baseline": [0.5, 0.6, 0.55], "a": [0.41, 0.5, 0.46]}), study="one")
    found = compare_studies([alone])
    assert (found.whole, found.verdict, found.notes) == (alone, "a beats baseline", ())


def test_studies_with_other_metrics_are_refused() -> None:
    results = finals({"baseline": [0.5], "a": [0.4]})
    pair = [compare(results, study="one"), compare(results, study="two", metric="eval/frechet")]
    with pytest.raises(ConfigError, match="one objective"):
        compare_studies(pair)


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
    assert {"study", "metric", "baseline", "arms", "verdict"} <= found.keys()
    for arm in found["arms"]:
        assert arm["low"] is None or arm["low"] <= arm["mean"] <= arm["high"]
        assert arm["speedup_low"] is None or arm["speedup_low"] <= arm["speedup"] <= arm["speedup_high"]
        assert arm["seeds_to_settle"] is None or arm["seeds_to_settle"] >= 0
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
