"""Studies without training: learning curves at a random pace, and their comparison as array arithmetic.

A run's loss is ``0.15 + 0.85 / (1 + 30 p s)`` at progress ``p``; its pace ``s`` is random, in part common to
all arms of a seed. Evaluations add noise, most of it common to the seed too. So an arm that does nothing is
like the baseline in every respect, and one of ``ratio`` reaches any quality in so many fewer images.

``judge`` does what ``hasten.sweeps.compare`` does, written anew for thousands of studies at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from hasten.sweeps.records import TrialResult
from hasten.sweeps.statistics.intervals import ROUNDING
from hasten.trainers.records import Point, RunResult
from hasten.trainers.tracker import EVAL_LOSS, SECONDS

Array = NDArray[np.float64]
Noise = Literal["gaussian", "heavy tails", "skewed"]

BUDGET: Final = 100_000
GRID: Final = 21
ALPHA: Final = 0.05
COMMON_SD: Final = 0.10
"""Of log pace, over seeds and common to the arms of one."""
OWN_SD: Final = 0.08
"""Of log pace, over the runs of a seed."""
_EVALUATION_SD: Final = 0.0005
_SECONDS_SD: Final = 0.05

PROGRESS: Final = np.linspace(0.0, 1.0, GRID)
CHANGES: Final[Mapping[int, dict[str, int]]] = {1: {"x": 1}, 2: {"y": 1}, 3: {"x": 1, "y": 1}}
"""The settings of the first arms: the third makes the changes of the first and the second together."""


@dataclass(frozen=True, kw_only=True)
class Studies:
    """``losses`` has shape (studies, 1 + arms, seeds, evaluations), the baseline first.

    ``seconds`` are those that a run takes in all, (studies, 1 + arms, seeds); ``control`` holds the losses of
    the A/A arm, on other seeds.
    """

    losses: Array
    seconds: Array
    control: Array


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the half-width of its interval, one for each study or for each arm of each."""

    mean: Array
    half: Array
    p: Array

    def holds(self, truth: float) -> NDArray[np.bool_]:
        return np.abs(self.mean - truth) <= self.half


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What comparisons say. Per arm but the baseline: shape (studies, arms). ``baseline`` is its mean.

    ``speed`` and ``seconds`` are on the log scale, ``reached`` counts seeds, ``counts`` are images to the
    target with infinity where it was not reached. ``winner`` is an arm's number from 1, or 0.
    """

    baseline: Interval
    difference: Interval
    p_adjusted: Array
    winner: NDArray[np.int64]
    speed: Interval
    seconds: Interval
    reached: NDArray[np.int64]
    counts: Array
    control: Interval
    interaction: Interval | None


def draw(random: np.random.Generator, noise: Noise, *, studies: int, seeds: int, ratios: Array) -> Studies:
    """Studies with an arm for each of ``ratios``: 1 for arms that do nothing."""
    shape = (studies, 1 + len(ratios), seeds)
    speed = np.concatenate([[1.0], ratios])[:, None] * _paces(random, noise, shape)
    shared = random.normal(0.0, _EVALUATION_SD, (studies, 1, seeds, GRID))
    losses = _curve(speed) + shared + random.normal(0.0, _EVALUATION_SD, (*shape, GRID))
    control = _curve(_paces(random, noise, (studies, 1, seeds)))[:, 0]
    control += random.normal(0.0, math.sqrt(2.0) * _EVALUATION_SD, control.shape)
    seconds = 100.0 * np.exp(random.normal(0.0, _SECONDS_SD, shape))
    return Studies(losses=losses, seconds=seconds, control=control)


def judge(drawn: Studies) -> Judged:
    """The comparisons of all studies, with the baseline's own final quality as the target."""
    losses = drawn.losses
    finals = losses[..., -1]
    base, arms = finals[:, :1], finals[:, 1:]
    apart = np.abs(arms - base) > ROUNDING * np.maximum(arms, base)
    difference = student(np.where(apart, arms - base, 0.0))
    p_adjusted = holm(difference.p)
    ahead = np.where((p_adjusted < ALPHA) & (difference.mean < 0.0), -difference.mean, 0.0)
    winner = np.where(ahead.max(axis=1) > 0.0, ahead.argmax(axis=1) + 1, 0)
    races = [_race(losses[:, 0], losses[:, arm]) for arm in range(1, losses.shape[1])]
    log_images = np.stack([logs for logs, _, _ in races], axis=1)
    least = np.stack([np.sqrt(variances.mean(axis=1)) for _, variances, _ in races], axis=1)
    log_pace = np.log(drawn.seconds[:, :1] / drawn.seconds[:, 1:])
    interaction = finals[:, 3] - finals[:, 1] - finals[:, 2] + finals[:, 0] if finals.shape[1] > 3 else None
    return Judged(
        baseline=student(finals[:, 0]),
        difference=difference,
        p_adjusted=p_adjusted,
        winner=winner,
        speed=student(log_images, least_sd=least),
        seconds=student(log_images + log_pace, least_sd=least),
        reached=(arms <= base).sum(axis=2),
        counts=np.stack([counts for _, _, counts in races], axis=1),
        control=_welch(drawn.control[..., -1], finals[:, 0]),
        interaction=None if interaction is None else student(interaction),
    )


def student(values: Array, *, least_sd: Array | float = 0.0) -> Interval:
    """The t interval over the last axis."""
    n = values.shape[-1]
    error = np.maximum(values.std(axis=-1, ddof=1), least_sd) / math.sqrt(n)
    mean = values.mean(axis=-1)
    half = float(stdtrit(n - 1, 1.0 - ALPHA / 2.0)) * error
    return Interval(mean=mean, half=half, p=2.0 * stdtr(n - 1, -np.abs(mean / error)))


def holm(p: Array) -> Array:
    """Holm's adjusted p-values over the last axis."""
    order = np.argsort(p, axis=-1)
    weights = np.arange(p.shape[-1], 0, -1)
    steps = np.minimum(1.0, np.take_along_axis(p, order, -1) * weights)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(steps, axis=-1), -1)
    return adjusted


@cache
def mean_loss(noise: Noise) -> float:
    """The baseline's final loss on average over all seeds there might be."""
    random = np.random.default_rng(0)
    return float(_loss(_paces(random, noise, (1_000_000, 1, 1))).mean())


def first_to_stay(losses: Array, target: Array) -> NDArray[np.int64]:
    """The first evaluation from which the loss stays at or below the target; -1 where it never does."""
    stays = np.flip(np.logical_and.accumulate(np.flip(losses <= target[..., None], -1), axis=-1), -1)
    return np.where(stays[..., -1], stays.argmax(axis=-1), -1)


def results(drawn: Studies, study: int) -> Iterator[TrialResult]:
    """One of the studies as trials, for ``compare``; the A/A control's seeds are 1,000 and on."""
    for arm, losses in enumerate(drawn.losses[study]):
        name = f"arm{arm}" if arm else "baseline"
        for seed, curve in enumerate(losses):
            seconds = float(drawn.seconds[study, arm, seed])
            yield _trial(name, seed, curve, seconds, CHANGES.get(arm, {"z": arm} if arm else {}))
    for seed, curve in enumerate(drawn.control[study]):
        yield _trial("baseline-aa", 1000 + seed, curve, 100.0, {})


def _trial(arm: str, seed: int, curve: Array, seconds: float, changes: dict[str, int]) -> TrialResult:
    # Made without validation or default values, which would take most of the time.
    history = [
        Point.model_construct(
            step=round(progress * BUDGET), metrics={EVAL_LOSS: loss, SECONDS: progress * seconds}
        )
        for progress, loss in zip(PROGRESS.tolist(), curve.tolist(), strict=True)
    ]
    result = RunResult.model_construct(
        run=f"{arm}-s{seed}",
        fingerprint="",
        status="finished",
        images=BUDGET,
        seconds=seconds,
        metrics={EVAL_LOSS: float(curve[-1])},
        history=history,
        by_timestep=[],
        evaluation={},
        environment={},
        spec={"budget": {"images": BUDGET, "seed": seed}, **_settings(changes)},
        data_digest="",
    )
    return TrialResult(trial=result.run, arm=arm, seed=seed, result=result)


def _settings(changes: dict[str, int]) -> dict[str, Any]:
    return {"settings": {"x": 0, "y": 0, "z": 0, **changes}}


def _curve(pace: Array) -> Array:
    return _loss(pace[..., None] * PROGRESS)


def _loss(progress: Array) -> Array:
    return 0.15 + 0.85 / (1.0 + 30.0 * progress)


def _paces(random: np.random.Generator, noise: Noise, shape: tuple[int, int, int]) -> Array:
    """Of every run of (studies, arms, seeds): the seed's part is common to its arms."""
    common = _standard(random, noise, (shape[0], 1, shape[2]))
    return np.exp(COMMON_SD * common + OWN_SD * _standard(random, noise, shape))


def _standard(random: np.random.Generator, noise: Noise, shape: tuple[int, ...]) -> Array:
    """Noise of mean 0 and standard deviation 1; with skewed noise, now and then a run is much slower."""
    match noise:
        case "gaussian":
            return random.standard_normal(shape)
        case "heavy tails":
            return random.standard_t(3, shape) / math.sqrt(3.0)
        case "skewed":
            return (math.exp(0.5) - random.lognormal(0.0, 1.0, shape)) / math.sqrt((math.e - 1.0) * math.e)


def _race(baseline: Array, arm: Array) -> tuple[Array, Array, Array]:
    """Log speed-ups at equal quality and their variance by the grid, (studies, seeds), and the arm's images
    to the baseline's own final loss."""
    quality = np.maximum(baseline[..., -1], arm[..., -1])
    (theirs, their_step), (ours, our_step) = (_crossing(losses, quality) for losses in (baseline, arm))
    found = first_to_stay(arm, baseline[..., -1])
    counts = np.where(found < 0, np.inf, np.round(PROGRESS[found] * BUDGET))
    return np.log(theirs / ours), ((their_step / theirs) ** 2 + (our_step / ours) ** 2) / 12.0, counts


def _crossing(losses: Array, target: Array) -> tuple[Array, Array]:
    """The progress at which the target is reached for good, between two evaluations, and their distance."""
    after = first_to_stay(losses, target)
    above, below = (np.take_along_axis(losses, at[..., None], -1)[..., 0] for at in (after - 1, after))
    share = (above - target) / (above - below)
    step = PROGRESS[after] - PROGRESS[after - 1]
    return PROGRESS[after - 1] + step * share, step


def _welch(ours: Array, theirs: Array) -> Interval:
    """Unpaired, over the last axis."""
    n = ours.shape[-1]
    shares = np.stack([ours.var(axis=-1, ddof=1), theirs.var(axis=-1, ddof=1)]) / n
    error = np.sqrt(shares.sum(axis=0))
    freedom = error**4 / (shares**2 / (n - 1)).sum(axis=0)
    mean = ours.mean(axis=-1) - theirs.mean(axis=-1)
    half = stdtrit(freedom, 1.0 - ALPHA / 2.0) * error
    return Interval(mean=mean, half=half, p=2.0 * stdtr(freedom, -np.abs(mean / error)))
