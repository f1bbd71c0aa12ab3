"""How often a comparison names a winner where there is none, and whether its intervals hold what they say.

Thousands of synthetic studies for every number of seeds and arms, with gaussian, heavy-tailed and skewed
noise. All are judged by array arithmetic; some also by ``hasten.sweeps.compare``, and both must say the same.

    python tests/benchmarks/false_winners.py --out infra/measurements/false_winners.json
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

import harness
import numpy as np
from numpy.typing import NDArray
from scipy import stats
from synthetic_studies import (
    ALPHA,
    BUDGET,
    OWN_SD,
    PROGRESS,
    Array,
    Interval,
    Judged,
    Noise,
    draw,
    first_to_stay,
    holm,
    judge,
    mean_loss,
    results,
    student,
)

from hasten.sweeps.compare import compare
from hasten.sweeps.statistics import power
from hasten.sweeps.statistics.censoring import median_of
from hasten.sweeps.statistics.comparison import Arm, Comparison

SEEDS: Final = (3, 5, 10, 20)
ARMS: Final = (1, 2, 3, 4, 5, 6)
NOISES: Final[tuple[Noise, ...]] = get_args(Noise)
MOST_FALSE_WINNERS: Final = 0.065
EFFECTS: Final = (3.0, 10.0)
"""Planted effects on log pace, in standard deviations of a paired difference: 1.4 and 3.1 times as fast."""
SPEEDS: Final = (0.8, 1.0, 1.1, 1.5)

Row = dict[str, Any]


def main() -> int:
    """Measure everything, print a summary, and write it all when told where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="for every number of seeds and arms")
    parser.add_argument("--through", type=int, default=200, help="of these also by compare itself")
    parser.add_argument("--out", type=Path, help="a JSON file for everything that was measured")
    asked = parser.parse_args()
    began = time.perf_counter()
    found = measure(asked.studies, asked.through)
    found["seconds"] = round(time.perf_counter() - began, 1)
    harness.conclude(harness.document("false_winners", blocks=(), results=found), asked.out)
    return 0 if found["summary"]["keeps_the_bound"] else 1


def measure(
    studies: int, through: int, *, seeds: Sequence[int] = SEEDS, arms: Sequence[int] = ARMS
) -> dict[str, Any]:
    """All tables; the same numbers give the same tables."""
    nothing = [
        nothing_to_find(
            noise, n, m, studies=studies, through=through if noise == "gaussian" else through // 10
        )
        for noise in NOISES
        for n in seeds
        for m in arms
    ]
    most = max(nothing, key=lambda row: row["false_winners"])
    found = [
        something_to_find(n, m, effect, studies=studies) for n in seeds for m in arms for effect in EFFECTS
    ]
    return {
        "summary": {
            "studies": len(nothing) * studies,
            "judged_by_compare_too": sum(row["judged_by_compare_too"] for row in nothing),
            "most_false_winners": most,
            "keeps_the_bound": most["false_winners"] <= MOST_FALSE_WINNERS,
            "least_found": {
                f"effect {effect:g}, {n} seeds": min(
                    row["found"] for row in found if (row["effect"], row["seeds"]) == (effect, n)
                )
                for effect in EFFECTS
                for n in seeds
            },
            "wrong_sign": max(row["wrong_sign"] for row in found),
        },
        "nothing_to_find": nothing,
        "something_to_find": found,
        "speed": [
            speed_covered(noise, n, ratio, studies=studies)
            for noise in NOISES
            for n in seeds
            for ratio in SPEEDS
        ],
        "rarely_far_worse": [rarely_far_worse(n, m, studies=studies) for n in seeds for m in arms],
        "median": [median_covered(n, studies=studies) for n in sorted({*seeds, 6, 8})],
        "seeds_to_settle": [seeds_asked(n, studies=studies) for n in seeds],
    }


def nothing_to_find(noise: Noise, seeds: int, arms: int, *, studies: int, through: int) -> Row:
    """Arms that do nothing: how often one wins, and how often each interval holds the truth."""
    random = np.random.default_rng([seeds, arms, NOISES.index(noise)])
    drawn = draw(random, noise, studies=studies, seeds=seeds, ratios=np.ones(arms))
    judged = judge(drawn)
    for study in range(through):
        agree(judged, study, compare(list(results(drawn, study)), study="nothing", alpha=ALPHA))
    covered = {
        "mean": _share(judged.baseline.holds(mean_loss(noise))),
        "difference": _share(judged.difference.holds(0.0)),
        "speedup": _share(judged.speed.holds(0.0)[judged.reached > 0]),
        "seconds_speedup": _share(judged.seconds.holds(0.0)[judged.reached > 0]),
        "control": _share(judged.control.holds(0.0)),
        "interaction": None if judged.interaction is None else _share(judged.interaction.holds(0.0)),
    }
    return {
        "noise": noise,
        "seeds": seeds,
        "arms": arms,
        "false_winners": _share(judged.winner > 0),
        "either_side": _share((judged.p_adjusted < ALPHA).any(axis=1)),
        "covered": covered,
        "judged_by_compare_too": through,
    }


def rarely_far_worse(seeds: int, arms: int, *, studies: int) -> Row:
    """Beyond what is promised: arms no better in the mean, usually a little better, now and then far worse.

    Here differences are skewed, which they are not where arms differ in nothing, and a t test is misled.
    """
    random = np.random.default_rng([seeds, arms])
    skewed = random.lognormal(0.0, 1.0, (studies, arms, seeds)) - math.exp(0.5)
    spread = 2.0 / math.sqrt((math.e - 1.0) * math.e)
    found = student(spread * skewed - random.standard_normal((studies, 1, seeds)))
    return {
        "seeds": seeds,
        "arms": arms,
        "false_winners": _share(((holm(found.p) < ALPHA) & (found.mean < 0.0)).any(axis=1)),
    }


def something_to_find(seeds: int, arms: int, effect: float, *, studies: int) -> Row:
    """One arm is faster: how often it wins, and how often it, or an arm that does nothing, is misjudged."""
    ratios = np.ones(arms)
    ratios[0] = math.exp(effect * OWN_SD * math.sqrt(2.0))
    random = np.random.default_rng([seeds, arms, int(effect)])
    judged = judge(draw(random, "gaussian", studies=studies, seeds=seeds, ratios=ratios))
    worse = (judged.p_adjusted[:, 0] < ALPHA) & (judged.difference.mean[:, 0] > 0.0)
    return {
        "seeds": seeds,
        "arms": arms,
        "effect": effect,
        "found": _share(judged.winner == 1),
        "wrong_arm": _share(judged.winner > 1),
        "wrong_sign": _share(worse),
    }


def speed_covered(noise: Noise, seeds: int, ratio: float, *, studies: int) -> Row:
    """How often the interval of a speed-up holds the true ratio, where it is shown.

    Beside it, the obvious way that ours replaces: only studies in which all seeds reached the baseline's own
    quality, counted to the next evaluation.
    """
    random = np.random.default_rng([seeds, int(100 * ratio), NOISES.index(noise)])
    drawn = draw(random, noise, studies=studies, seeds=seeds, ratios=np.array([ratio]))
    judged = judge(drawn)
    shown = judged.reached[:, 0] > 0
    losses, final = drawn.losses, drawn.losses[:, 0, :, -1]
    theirs = PROGRESS[first_to_stay(losses[:, 0], final)] * BUDGET
    whole = judged.reached[:, 0] == seeds
    step = BUDGET * PROGRESS[1]
    theirs, ours = theirs[whole], judged.counts[whole, 0]
    least_sd = np.sqrt(((step / theirs) ** 2 + (step / ours) ** 2).mean(axis=1) / 12.0)
    obvious = student(np.log(theirs / ours), least_sd=least_sd)
    return {
        "noise": noise,
        "seeds": seeds,
        "ratio": ratio,
        "shown": _share(shown),
        "covered": _share(judged.speed.holds(math.log(ratio))[:, 0][shown]),
        "in_seconds": _share(judged.seconds.holds(math.log(ratio))[:, 0][shown]),
        "all_reached": _share(whole),
        "all_reached_covered": _share(obvious.holds(math.log(ratio))),
    }


def median_covered(seeds: int, *, studies: int) -> Row:
    """How often each kind of interval holds the true median of images to target, and ours exists.

    A fifth of the runs never reach the target. The usual intervals are tried in 500 studies.
    """
    random = np.random.default_rng(seeds)
    counts = random.lognormal(0.0, 0.3, (studies, seeds))
    counts = np.where(counts > np.exp(0.3 * stats.norm.ppf(0.8)), np.inf, counts)
    ours = [median_of([None if np.isinf(c) else c for c in row], alpha=ALPHA) for row in counts.tolist()]
    held = [
        found.low <= 1.0 <= (math.inf if found.high is None else found.high)
        for found in ours
        if found is not None and found.low is not None
    ]
    return {
        "seeds": seeds,
        "shown": len(held) / studies,
        "covered": _share(np.array(held)),
        "greenwood": _share(np.array([_greenwood(row, 1.0, "linear") for row in counts[:500]])),
        "greenwood_log_log": _share(np.array([_greenwood(row, 1.0, "log-log") for row in counts[:500]])),
    }


def seeds_asked(seeds: int, *, studies: int, effect: float = 1.0) -> Row:
    """What "so many more seeds would settle it" is worth: the totals asked for, and what became of them."""
    random = np.random.default_rng(seeds)
    differences = random.normal(effect, 1.0, (studies, seeds))
    open_ones = differences[student(differences).p >= ALPHA]
    wanted: dict[str, Any] = {"level": ALPHA, "least": seeds + 1}
    asked = [
        power.seeds_needed(effect=float(row.mean()), sd=float(row.std(ddof=1)), **wanted) for row in open_ones
    ]
    totals = np.array([power.MOST_SEEDS if total is None else total for total in asked])
    settled = [
        student(np.concatenate([row, random.normal(effect, 1.0, total - seeds)])).p < ALPHA
        for row, total in zip(open_ones, totals, strict=True)
    ]
    return {
        "seeds": seeds,
        "unsettled": len(totals) / studies,
        "needed": power.seeds_needed(effect=effect, sd=1.0, **wanted),
        "asked_quartiles": np.quantile(totals, [0.25, 0.5, 0.75]).tolist() if len(totals) else None,
        "then_settled": _share(np.array(settled)),
    }


def agree(judged: Judged, study: int, comparison: Comparison) -> None:
    """Raises ``AssertionError`` unless ``compare`` said of a study what the arithmetic says."""
    baseline = comparison.reference
    assert np.allclose(
        np.array([baseline.mean, baseline.low], dtype=np.float64), _ends(judged.baseline, study)
    )
    winner = int(judged.winner[study])
    assert comparison.winner == (f"arm{winner}" if winner else None)
    control = comparison.arms[-1].difference
    assert control is not None
    assert _close(judged.control, study, control.mean, control.low, control.p)
    for index, arm in enumerate(comparison.contenders):
        at = (study, index)
        assert arm.difference is not None
        assert _close(judged.difference, at, arm.difference.mean, arm.difference.low, arm.difference.p)
        assert np.isclose(arm.p_adjusted or 0.0, judged.p_adjusted[at])
        assert arm.reached == judged.reached[at]
        _agree_on_speed(judged, at, arm)
    if judged.interaction is not None:
        contrast = comparison.interactions[0].contrast
        assert _close(judged.interaction, study, contrast.mean, contrast.low, contrast.p)


def _agree_on_speed(judged: Judged, at: tuple[int, int], arm: Arm) -> None:
    counts = np.sort(judged.counts[at])
    assert arm.median is not None
    assert (arm.median.median or math.inf) == counts[(len(counts) - 1) // 2]
    if arm.reached == 0:
        assert arm.speedup is None
        return
    for found, wanted in ((arm.speedup, judged.speed), (arm.seconds_speedup, judged.seconds)):
        assert found is not None
        assert found.low is not None
        assert _close(wanted, at, math.log(found.mean), math.log(found.low), found.p)


def _close(wanted: Interval, at: Any, mean: float, low: float | None, p: float | None) -> bool:
    told = [*_ends(wanted, at), wanted.p[at]]
    return bool(np.allclose(told, np.array([mean, low, p], dtype=np.float64), rtol=1e-6, atol=1e-9))


def _ends(found: Interval, at: Any) -> tuple[float, float]:
    return float(found.mean[at]), float(found.mean[at] - found.half[at])


def _greenwood(counts: Array, truth: float, scale: str) -> bool:
    """Whether the usual interval of a Kaplan-Meier median holds it (Brookmeyer and Crowley 1982)."""
    censored = np.isinf(counts)
    if censored.all():
        return True
    beyond = counts[~censored].max() + 1.0
    sample = stats.CensoredData.right_censored(np.where(censored, beyond, counts), censored)
    left = stats.ecdf(sample).sf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where nobody is left the variance is not defined
        band = left.confidence_interval(1.0 - ALPHA, method=scale)
    low = left.quantiles[band.low.probabilities <= 0.5]
    high = left.quantiles[band.high.probabilities < 0.5]
    return bool(min(low, default=math.inf) <= truth <= min(high, default=math.inf))


def _share(found: NDArray[np.bool_]) -> float | None:
    return round(float(np.mean(found)), 4) if found.size else None


if __name__ == "__main__":
    raise SystemExit(main())
