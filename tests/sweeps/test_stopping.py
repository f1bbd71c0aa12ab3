"""Stopping rules: Optuna's where the definitions agree, plain restatements where they do not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from hasten.sweeps.conducting import stopping, stopping_check
from hasten.sweeps.conducting.stopping import Curve, Halving
from hasten.sweeps.records import TrialRecord, Verdict
from hasten.sweeps.study import Asha, Hyperband, Median, Objective, Stopping, Wilcoxon
from hasten.trainers import specs, timeline
from hasten.trainers.errors import ConfigError

optuna.logging.set_verbosity(optuna.logging.ERROR)

MIN, MAX = Objective(), Objective(mode="max")
TOTAL = 1000
GRID = tuple(range(100, TOTAL + 1, 100))


def curve(number: int, values: Sequence[float], *, grid: Sequence[int] = GRID, total: int = TOTAL) -> Curve:
    return Curve(number=number, total=total, values=tuple(zip(grid, values, strict=False)))


def judged(
    spec: Stopping, objective: Objective, own: Curve, others: Sequence[Curve]
) -> tuple[Curve, Verdict | None]:
    """The trial as far as it came, evaluation by evaluation, and why it went no further."""
    rule = stopping.rule(spec, objective)
    for images, _ in own.values:
        by_then = own.until(images)
        if verdict := rule.decide(by_then, others):
            return by_then, verdict
    return own, None


def conducted(
    spec: Stopping, objective: Objective, trials: Sequence[Curve], *, ahead: int
) -> list[tuple[Curve, Verdict | None]]:
    """A whole study: each trial against those of its points at least ``ahead`` before."""
    done: list[tuple[Curve, Verdict | None]] = []
    for number, whole in enumerate(trials):
        done.append(judged(spec, objective, whole, [one for one, _ in done[: max(0, number + 1 - ahead)]]))
    return done


def curves(rng: np.random.Generator, trials: int, *, digits: int | None = None) -> list[Curve]:
    """Falling curves with noise; with few ``digits`` there are many ties."""
    quality, made = rng.normal(size=trials), []
    for number in range(trials):
        values = quality[number] + 1.0 / np.arange(1, 11) + 0.3 * rng.normal(size=10)
        made.append(curve(number, (values if digits is None else values.round(digits)).tolist()))
    return made


def in_optuna(
    pruner: optuna.pruners.BasePruner, trials: Sequence[Curve], *, mode: str, steps: Sequence[int] = GRID
) -> list[int | None]:
    """At which step Optuna prunes each of the trials, run one after another; None for never."""
    study = optuna.create_study(
        direction="minimize" if mode == "min" else "maximize", pruner=pruner, study_name="ours"
    )
    ends: list[int | None] = []
    for whole in trials:
        trial, end = study.ask(), None
        for images, value in whole.values:
            if images not in steps:
                continue
            trial.report(value, images)
            if images < whole.total and trial.should_prune():
                end = images
                break
        study.tell(
            trial,
            whole.values[-1][1] if end is None else None,
            state=None if end is None else TrialState.PRUNED,
        )
        ends.append(end)
    return ends


# Successive halving.


@pytest.mark.parametrize("objective", [MIN, MAX], ids=["min", "max"])
@pytest.mark.parametrize("digits", [None, 0], ids=["values", "ties"])
def test_asha_stops_whom_optuna_stops(objective: Objective, digits: int | None) -> None:
    rng, stopped = np.random.default_rng(0), 0
    for reduction in (2, 3, 4):
        for _ in range(40):
            trials = curves(rng, 25, digits=digits)
            spec = Asha(kind="asha", grace=0.1, reduction=reduction)
            ours = [end and end.images for _, end in conducted(spec, objective, trials, ahead=1)]
            pruner = optuna.pruners.SuccessiveHalvingPruner(100, reduction)
            assert ours == in_optuna(pruner, trials, mode=objective.mode)
            stopped += sum(end is not None for end in ours)
    assert stopped > 1000


def test_hyperband_stops_whom_optuna_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Optuna's brackets instead of ours: it deals by a hash. 900 images are 9 times the first rung."""
    rng, brackets = np.random.default_rng(1), set()
    spec = Hyperband(kind="hyperband", grace=1 / 9, reduction=3)
    for _ in range(40):
        pruner = optuna.pruners.HyperbandPruner(100, 900, 3)
        trials = [
            curve(one.number, [value for _, value in one.values][:9], total=900) for one in curves(rng, 40)
        ]
        rule = stopping.rule(spec, MIN)
        assert isinstance(rule, Halving)
        dealt = [rule.bracket(number, 900) for number in range(40)]
        monkeypatch.setattr(pruner, "_get_bracket_id", lambda _, trial, dealt=dealt: dealt[trial.number])
        ours = [end and end.images for _, end in conducted(spec, MIN, trials, ahead=1)]
        assert ours == in_optuna(pruner, trials, mode="min")
        brackets |= {bracket for bracket, end in zip(dealt, ours, strict=True) if end is not None}
    assert brackets == {0, 1}  # the last one stops nobody


def test_brackets_are_dealt_out_evenly_and_in_proportion() -> None:
    """With R = 9 times the first rung and reduction 3 there are brackets of 9, 5 and 3 (arXiv 1603.06560)."""
    rule = stopping.rule(Hyperband(kind="hyperband", grace=1 / 9, reduction=3), MIN)
    assert isinstance(rule, Halving)
    dealt = [rule.bracket(number, 900) for number in range(3 * 17)]
    assert [dealt.count(bracket) for bracket in range(3)] == [27, 15, 9]
    for number in range(1, len(dealt)):
        for bracket, share in enumerate((9, 5, 3)):
            assert abs(dealt[:number].count(bracket) - number * share / 17) < 1.5


def test_rungs_meet_the_first_evaluation_from_there_on() -> None:
    rule = stopping.rule(Asha(kind="asha", grace=0.1, reduction=3), MIN)
    assert isinstance(rule, Halving)
    assert rule.rungs(1000) == (100, 300, 900)
    assert rule.marks(1000, GRID) == (100, 300, 900)
    assert rule.marks(1000, (250, 500, 750, 1000)) == (250, 500)
    assert rule.marks(1000, (1000,)) == ()
    assert Halving("asha", 1.0, grace=1 / 3, reduction=3, brackets=False).rungs(900) == (300,)


def test_a_trial_is_held_against_others_of_another_grid() -> None:
    """Of each, the first evaluation at or after the rung, here 300."""
    spec = Asha(kind="asha", grace=0.3, reduction=2)
    coarse = [curve(n, [0.9, 0.1 + n, 0.0], grid=(250, 350, 1000)) for n in range(3)]
    _, verdict = judged(spec, MIN, curve(9, [0.0, 0.0, 1.5]), coarse)
    assert verdict is not None
    assert (verdict.images, verdict.value, verdict.threshold) == (300, 1.5, 1.1)
    assert verdict.reason == "1.5 at 300 images is not among the best 2 of 4 (1.1 was needed)"


def test_a_rung_is_judged_once() -> None:
    """Between rungs a trial may be as bad as it likes."""
    spec, others = Asha(kind="asha", grace=0.1, reduction=3), [curve(n, [1.0] * 10) for n in range(5)]
    assert judged(spec, MIN, curve(9, [1.0, 9.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 9.0]), others)[1] is None
    _, verdict = judged(spec, MIN, curve(9, [1.0, 1.0, 9.0]), others)
    assert verdict is not None
    assert verdict.images == 300


# The median.


@pytest.mark.parametrize("objective", [MIN, MAX], ids=["min", "max"])
def test_median_stops_whom_optuna_stops_given_running_means(objective: Objective) -> None:
    """Optuna takes the median of values: of trials whose values are the running means it is ours."""
    rng, stopped = np.random.default_rng(2), 0
    for _ in range(150):
        others = curves(rng, int(rng.integers(1, 12)))
        own = curves(rng, 40)[-1]
        spec = Median(kind="median", grace=0.3, trials=4)
        study = optuna.create_study(direction="minimize" if objective.mode == "min" else "maximize")
        for other in others:
            values = [value for _, value in other.values]
            means = {images: statistics.fmean(values[: at + 1]) for at, images in enumerate(GRID)}
            study.add_trial(optuna.create_trial(value=0.0, intermediate_values=means))
        study.pruner = optuna.pruners.MedianPruner(0, 300, n_min_trials=4)
        trial, end = study.ask(), None
        for images, value in own.values[:-1]:
            trial.report(value, images)
            if trial.should_prune():
                end = images
                break
        found = judged(spec, objective, own, others)[1]
        assert (found and found.images) == end
        stopped += end is not None
    assert 30 < stopped < 140


def test_median_waits_for_enough_others_that_came_as_far() -> None:
    spec = Median(kind="median", grace=0.1, trials=3)
    good, short = [curve(n, [0.1] * 10) for n in range(2)], curve(2, [0.1] * 4)
    assert judged(spec, MIN, curve(9, [1.0] * 10), good)[1] is None
    # Better from 500 images on, where the third one has ended.
    late = [curve(n, [1.0] * 4 + [0.1] * 6) for n in range(3)]
    assert judged(spec, MIN, curve(9, [1.0] * 10), [*late[:2], curve(2, [1.0] * 4)])[1] is None
    _, verdict = judged(spec, MIN, curve(9, [1.0] * 10), late)
    assert verdict is not None
    assert verdict.images == 500
    _, verdict = judged(spec, MIN, curve(9, [1.0] * 10), [*good, short])
    assert verdict is not None
    assert verdict.reason == (
        "1, its best until 100 images, is worse than 0.1, the median of 3 other trials' means until there"
    )


def test_the_untrained_network_does_not_count() -> None:
    spec = Median(kind="median", grace=0.1, trials=1)
    grid = (0, 100, 200, 1000)
    other = curve(0, [50.0, 1.0, 1.0, 1.0], grid=grid)
    _, verdict = judged(spec, MIN, curve(9, [0.0, 2.0], grid=grid), [other])
    assert verdict is not None
    assert verdict.threshold == 1.0


# Wilcoxon.


def paired(number: int, errors: Sequence[Sequence[float]]) -> Curve:
    """A trial with a held-out error of each item at each evaluation; its value is their mean."""
    return Curve(
        number=number,
        total=TOTAL,
        values=tuple((at, statistics.fmean(items)) for at, items in zip(GRID, errors, strict=False)),
        items=tuple((at, tuple(items)) for at, items in zip(GRID, errors, strict=False)),
    )


@pytest.mark.parametrize("digits", [6, 1], ids=["values", "ties and zeros"])
def test_wilcoxon_stops_whom_optuna_stops(digits: int) -> None:
    """Optuna pairs steps: items told as steps are paired as ours."""
    rng, stopped = np.random.default_rng(3), 0
    for _ in range(200):
        worse = rng.normal(0.2, 0.4)
        best = rng.normal(1.0, 0.3, size=20).round(digits)
        own = (best + rng.normal(worse, 0.5, size=20)).round(digits)
        study = optuna.create_study(pruner=optuna.pruners.WilcoxonPruner(p_threshold=0.05, n_startup_steps=8))
        steps = dict(enumerate(best.tolist()))
        study.add_trial(optuna.create_trial(value=float(best.mean()), intermediate_values=steps))
        trial = study.ask()
        for step, value in enumerate(own.tolist()):
            trial.report(value, step)
        spec = Wilcoxon(kind="wilcoxon", grace=0.1, p=0.05)
        found = judged(spec, MIN, paired(1, [own.tolist()]), [paired(0, [best.tolist()])])[1]
        assert (found is not None) == trial.should_prune()
        stopped += found is not None
    assert 50 < stopped < 150


def test_wilcoxon_compares_with_the_best_at_that_evaluation() -> None:
    """Point 0 is the better one at first, point 1 later; the curve that has ended is out of the running."""
    spec = Wilcoxon(kind="wilcoxon", grace=0.1, p=0.01)
    ramp = np.linspace(0.0, 0.1, 12)
    first = paired(0, [(ramp + 0.5).tolist()] + [(ramp + 2.0).tolist()] * 9)
    later = paired(1, [(ramp + 1.0).tolist()] * 10)
    ended = paired(2, [(ramp + 0.4).tolist()])
    own = paired(9, [(ramp + 0.45).tolist(), (ramp * 1.01 + 1.5).tolist()])
    _, verdict = judged(spec, MIN, own, [first, later])
    assert verdict is not None
    assert verdict.images == 200
    assert verdict.threshold == pytest.approx(1.05)
    assert "worse than 1.05 of point 1, on 12 of 12 held-out groups (p = 0.00" in verdict.reason
    _, verdict = judged(spec, MIN, own, [first, later, ended])
    assert verdict is not None
    assert verdict.images == 100
    assert "of point 2" in verdict.reason


def test_wilcoxon_needs_items_and_a_worse_value() -> None:
    spec = Wilcoxon(kind="wilcoxon", grace=0.1, p=0.05)
    few = np.linspace(1.0, 2.0, stopping.LEAST_ITEMS - 1).tolist()
    assert judged(spec, MIN, paired(1, [[e + 1.0 for e in few]]), [paired(0, [few])])[1] is None
    # Worse on 19 of 20 groups, but far better on one: by its value it is the better trial.
    best, own = [1.0] * 20, [1.1] * 19 + [-9.0]
    assert stopping.signed_rank(own, best) < 0.05
    assert judged(spec, MIN, paired(1, [own]), [paired(0, [best])])[1] is None
    assert stopping.signed_rank([math.nan, *own], [1.0, *best]) == 1.0
    assert stopping.signed_rank(best, best) >= 0.5


@pytest.mark.parametrize(
    ("p", "lasting", "luck", "least", "most"),
    [
        (0.01, 0.0, 0.0, 0.15, 0.35),
        (0.01, 0.9, 0.0, 0.06, 0.20),
        (0.001, 0.0, 0.0, 0.0, 0.06),
        (0.01, 0.9, 0.02, 0.35, 0.65),
    ],
)
def test_how_many_equal_trials_wilcoxon_stops(
    p: float, lasting: float, luck: float, least: float, most: float
) -> None:
    """What the rule's docstring says, on fewer studies."""
    rng, studies, stopped = np.random.default_rng(4), 20, 0
    spec = Wilcoxon(kind="wilcoxon", grace=0.1, p=p)
    for _ in range(studies):
        hard, trials = rng.lognormal(-1.5, 0.3, size=64), []
        for number in range(16):
            shift, noise, errors = luck * rng.normal(), rng.normal(size=64), []
            for _ in GRID:
                noise = lasting * noise + math.sqrt(1.0 - lasting**2) * rng.normal(size=64)
                errors.append((hard * (1.0 + 0.05 * noise + shift)).tolist())
            trials.append(paired(number, errors))
        stopped += sum(end is not None for _, end in conducted(spec, MIN, trials, ahead=4))
    assert least <= stopped / (16 * studies) <= most


# All of them.

RULES: list[Stopping] = [
    Asha(kind="asha", grace=0.1, reduction=3),
    Hyperband(kind="hyperband", grace=0.1, reduction=3),
    Median(kind="median", grace=0.1, trials=2),
    Wilcoxon(kind="wilcoxon", grace=0.1, p=0.05),
]
by_kind = pytest.mark.parametrize("spec", RULES, ids=lambda spec: spec.kind)


def noisy(rng: np.random.Generator, trials: int, sign: float = 1.0) -> list[Curve]:
    """Trials of different quality with items, for every rule."""
    quality = rng.normal(size=trials)
    return [
        paired(n, [(sign * (quality[n] + rng.normal(size=12))).tolist() for _ in GRID]) for n in range(trials)
    ]


@by_kind
@given(seed=st.integers(0, 10_000), ahead=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_what_comes_later_changes_no_verdict(spec: Stopping, seed: int, ahead: int) -> None:
    """More trials, or a trial whose end was heard late, leave all verdicts as they were."""
    trials = noisy(np.random.default_rng(seed), 14)
    done = conducted(spec, MIN, trials, ahead=ahead)
    assert conducted(spec, MIN, trials[:9], ahead=ahead) == done[:9]
    for number, (end, verdict) in enumerate(done):
        others = [one for one, _ in done[: max(0, number + 1 - ahead)]]
        assert judged(spec, MIN, trials[number], others) == (end, verdict)
        assert stopping.rule(spec, MIN).decide(end, others) == verdict  # a replay ends where it ended


@by_kind
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_first_points_and_the_best_are_never_stopped(spec: Stopping, seed: int) -> None:
    trials = noisy(np.random.default_rng(seed), 12)
    best = paired(5, [[-99.0 + item / 100 for item in range(12)]] * 10)
    done = conducted(spec, MIN, [*trials[:5], best, *trials[6:]], ahead=4)
    assert all(verdict is None for _, verdict in done[:4])
    assert done[5][1] is None


@pytest.mark.parametrize("spec", RULES[:3], ids=lambda spec: spec.kind)
def test_max_is_min_upside_down(spec: Stopping) -> None:
    for seed in range(20):
        low = conducted(spec, MIN, noisy(np.random.default_rng(seed), 20), ahead=2)
        high = conducted(spec, MAX, noisy(np.random.default_rng(seed), 20, sign=-1.0), ahead=2)
        assert [end and end.images for _, end in low] == [end and end.images for _, end in high]
        for (_, one), (_, other) in zip(low, high, strict=True):
            if one is not None and other is not None:
                assert one.value == -other.value
                assert one.threshold == pytest.approx(-(other.threshold or 0.0))


@by_kind
def test_a_value_that_is_not_finite(spec: Stopping) -> None:
    """It ends the trial, and is the worst there is where others are held against it."""
    _, verdict = judged(spec, MIN, curve(0, [math.nan]), [])
    assert verdict is not None
    assert verdict.reason == "nan at 100 images is not a finite number"
    assert verdict.threshold is None
    for objective in (MIN, MAX):
        broken = [curve(n, [bad] * 10) for n, bad in enumerate([math.nan, math.inf, -math.inf])]
        assert judged(spec, objective, curve(9, [5.0] * 10), broken)[1] is None


@by_kind
def test_a_trial_with_another_budget_is_not_compared(spec: Stopping) -> None:
    better = [paired(n, [[0.0 + i / 100 for i in range(12)]] * 10) for n in range(6)]
    own = paired(9, [[5.0 + i / 100 for i in range(12)]] * 10)
    longer = [Curve(number=one.number, total=2000, values=one.values, items=one.items) for one in better]
    assert judged(spec, MIN, own, longer)[1] is None
    if spec.kind != "hyperband":  # there it depends on the bracket
        assert judged(spec, MIN, own, better)[1] is not None


@by_kind
def test_nobody_is_stopped_at_the_end(spec: Stopping) -> None:
    better = [paired(n, [[0.0 + i / 100 for i in range(12)]] * 10) for n in range(6)]
    whole = paired(9, [[5.0 + i / 100 for i in range(12)]] * 10)
    last = Curve(number=9, total=TOTAL, values=whole.values[-1:], items=whole.items[-1:])
    assert stopping.rule(spec, MIN).decide(last, better) is None


def test_a_stopped_trials_curve_ends_at_its_verdict() -> None:
    """What it still did until it heard of it depends on time."""
    verdict = Verdict(rule="asha", images=300, value=1.0, threshold=0.5, reason="")
    record = TrialRecord(
        trial="0003-s0",
        arm="0003",
        seed=0,
        run="r",
        fingerprint="f",
        state="stopped",
        images=500,
        total=TOTAL,
        curves={"eval/loss": [(0, 3.0), (100, 2.0), (300, 1.0), (400, 0.1)]},
        items=[(300, [1.0, 2.0]), (400, [0.1, 0.1])],
        verdict=verdict,
    )
    found = stopping.curve_of(3, record, "eval/loss")
    assert found == Curve(
        number=3, total=TOTAL, values=((0, 3.0), (100, 2.0), (300, 1.0)), items=((300, (1.0, 2.0)),)
    )
    assert stopping.curve_of(3, record, "eval/kid").values == ()


def test_the_metric_that_is_judged() -> None:
    asha = Asha(kind="asha")
    assert stopping.metric_of(asha, MAX) == "eval/loss"
    assert stopping.mode_of(asha, MAX) == "max"
    for metric, mode in {"eval/frechet": "min", "eval/precision": "max"}.items():
        spec = Asha(kind="asha", metric=metric)
        assert (stopping.metric_of(spec, MAX), stopping.mode_of(spec, MAX)) == (metric, mode)


# Before anything runs.


def run_of(**changes: Any) -> specs.RunSpec:
    return specs.load("digits-demo", {key.replace("__", "."): value for key, value in changes.items()})


@given(
    images=st.integers(64, 3000),
    batch=st.integers(1, 64),
    every=st.floats(0.003, 1.0),
    at=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4),
)
@settings(deadline=None)
def test_evaluations_are_those_of_the_loop(images: int, batch: int, every: float, at: list[float]) -> None:
    run = run_of(budget__images=images, optimizer__batch=batch, eval__loss__every=every, eval__samples__at=at)
    losses, both = [], []
    for before in range(0, images, batch):
        marks = timeline.evaluations(run.eval, before, min(before + batch, images), images)
        if marks.loss is not None:
            losses.append(marks.loss)
            both += [marks.loss] if marks.samples == marks.loss else []
    assert list(stopping_check.evaluations(run, "eval/loss")) == losses
    assert set(both) <= set(stopping_check.evaluations(run, "eval/frechet")) <= set(losses)


@pytest.mark.parametrize(
    ("spec", "changes", "key", "says"),
    [
        (Asha(kind="asha", metric="eval/kid"), {}, "stopping.metric", "is not measured"),
        (Asha(kind="asha", metric="eval/raw_loss"), {}, "stopping.metric", "is not measured"),
        (Asha(kind="asha"), {"eval__loss__every": 1.0}, "stopping.grace", "is not measured between"),
        (Asha(kind="asha", metric="eval/frechet"), {}, "stopping.grace", "is not measured between"),
        (
            Wilcoxon(kind="wilcoxon", metric="eval/frechet"),
            {"eval__samples__at": [0.5, 1.0]},
            "stopping.metric",
            "group by group",
        ),
    ],
)
def test_a_rule_that_could_stop_nobody_is_refused(
    spec: Stopping, changes: dict[str, Any], key: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        stopping_check.check(spec, MIN, run_of(**changes))
    assert caught.value.subject == key
    assert says in caught.value.problem


@pytest.mark.parametrize(
    ("spec", "changes", "notes"),
    [
        (Asha(kind="asha", grace=0.1, reduction=3), {}, []),
        (Median(kind="median"), {}, []),
        (Asha(kind="asha", grace=0.12, reduction=3), {}, ["grace ends at 3,072 images"]),
        (
            Asha(kind="asha", grace=0.1, reduction=3),
            {"eval__loss__every": 0.5},
            ["grace ends at 2,560 images", "2 of the rungs fall", "only one rung, at 12,800"],
        ),
        (Asha(kind="asha", grace=0.5, reduction=3), {}, ["only one rung, at 12,800"]),
        (Asha(kind="asha", metric="eval/raw_loss"), {"eval__raw": True}, []),
    ],
)
def test_what_a_study_is_told_of_its_rule(spec: Stopping, changes: dict[str, Any], notes: list[str]) -> None:
    found = stopping_check.check(spec, MIN, run_of(**changes))
    assert len(found) == len(notes), found
    for said, part in zip(found, notes, strict=True):
        assert part in said
