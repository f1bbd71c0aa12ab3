"""When a running trial is not worth going on with, judged by held-out curves alone.

A rule is a pure function: the same curves give the same verdict, in any process, at any time. A trial is held
against trials of its own seed, all of them over (``StudySpec.ahead``), some of which were stopped themselves
and have short curves. It is judged at its evaluations, never at its last: there it has its result already.

**ASHA** (Li et al., arXiv 1810.05934) as stopping: the paper pauses trials at a rung and promotes the best
later; here a trial decides at once whether it goes on, as in Optuna and Ray. At a rung with n values so far,
its own among them, it goes on if it is in the best max(1, floor(n / reduction)); ties go on. So with fewer
than ``reduction`` values only the best goes on (Optuna's ``SuccessiveHalvingPruner`` to the letter).
**Hyperband** (Li et al., arXiv 1603.06560): trial numbers are dealt out to brackets in the proportion of its
table 1; bracket i leaves out the first i rungs and halves among its own, the last one stops nobody. Optuna
deals by a hash of the study's name, and has no such last bracket unless the rungs divide the budget.
**Median** (Golovin et al., "Google Vizier", KDD 2017): the best value so far against the median of the
others' means so far. Optuna's pruner of that name compares with the others' values, not their means.
**Wilcoxon**: the signed-rank test on errors of the same held-out items with the same noise; see
:class:`Paired` for how often it stops a trial that is no worse.
"""

from __future__ import annotations

import functools
import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, assert_never

from hasten.sweeps.records import TrialRecord, Verdict
from hasten.sweeps.study import Asha, Hyperband, Median, Objective, Stopping, Wilcoxon

Mode = Literal["min", "max"]

LEAST_ITEMS: Final = 8  # with fewer, a single odd one decides a signed-rank test
_HIGH_IS_GOOD: Final = ("eval/precision", "eval/recall", "eval/raw_precision", "eval/raw_recall")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What one trial, point ``number`` of the study, has shown by now, by images.

    ``values`` of the judged metric at each evaluation; ``items`` the held-out error of each group of images
    there, where there was a loss evaluation; ``total`` images are its budget.
    """

    number: int
    total: int
    values: tuple[tuple[int, float], ...]
    items: tuple[tuple[int, tuple[float, ...]], ...] = ()

    def until(self, images: int) -> Curve:
        """What had been shown after ``images``."""
        return Curve(
            number=self.number,
            total=self.total,
            values=tuple(one for one in self.values if one[0] <= images),
            items=tuple(one for one in self.items if one[0] <= images),
        )


def curve_of(number: int, record: TrialRecord, metric: str) -> Curve:
    """The curve of a trial that is over.

    A stopped trial's ends at its verdict: what came after depends on how soon it heard of it.
    """
    whole = Curve(
        number=number,
        total=record.total,
        values=tuple(record.curves.get(metric, ())),
        items=tuple((images, tuple(errors)) for images, errors in record.items),
    )
    return whole if record.verdict is None else whole.until(record.verdict.images)


class StoppingRule(Protocol):
    """What the conductor asks."""

    def marks(self, total: int, evaluations: Sequence[int]) -> tuple[int, ...]:
        """After how many images a trial is judged, given when it is evaluated (in order): for a dry run."""

    def decide(self, own: Curve, others: Sequence[Curve]) -> Verdict | None:
        """Whether a trial stops at its newest evaluation; to be asked at each of them, in order.

        ``others`` are the trials of its seed of all points at least ``ahead`` before, over and in order. One
        with another budget is not compared: at equal images its schedules stand elsewhere.
        """


def rule(spec: Stopping, objective: Objective) -> StoppingRule:
    """The rule that a study's ``stopping`` block describes."""
    sign = 1.0 if mode_of(spec, objective) == "min" else -1.0
    match spec:
        case Asha():
            return Halving(spec.kind, sign, grace=spec.grace, reduction=spec.reduction, brackets=False)
        case Hyperband():
            return Halving(spec.kind, sign, grace=spec.grace, reduction=spec.reduction, brackets=True)
        case Median():
            return BelowMedian(spec.kind, sign, grace=spec.grace, trials=spec.trials)
        case Wilcoxon():
            return Paired(spec.kind, sign, grace=spec.grace, p=spec.p)
        case _:
            assert_never(spec)


def metric_of(spec: Stopping, objective: Objective) -> str:
    """The held-out metric that trials are judged by."""
    return spec.metric or objective.metric


def mode_of(spec: Stopping, objective: Objective) -> Mode:
    """Which of its values are better: the objective says so of its own metric only."""
    metric = metric_of(spec, objective)
    if metric == objective.metric:
        return objective.mode
    return "max" if metric in _HIGH_IS_GOOD else "min"


class _Rule(ABC):
    """What all rules share. Inside, a value is a loss: of the sign in which less is better, never NaN."""

    def __init__(self, name: str, sign: float, *, grace: float) -> None:
        self._name, self._sign, self._grace = name, sign, grace

    def marks(self, total: int, evaluations: Sequence[int]) -> tuple[int, ...]:
        return tuple(images for images in evaluations if self._first(total) <= images < total)

    def decide(self, own: Curve, others: Sequence[Curve]) -> Verdict | None:
        if not own.values:
            return None
        images, value = own.values[-1]
        if images >= own.total:
            return None
        if not math.isfinite(value):
            return self._verdict(own, None, f"{value} at {images:,} images is not a finite number")
        return self._compare(own, [other for other in others if other.total == own.total])

    @abstractmethod
    def _compare(self, own: Curve, others: Sequence[Curve]) -> Verdict | None:
        """The verdict on a finite value that is not the last, against trials of the same budget."""

    def _first(self, total: int) -> int:
        """From how many images on trials are judged; rounded, as the marks of evaluations are."""
        return max(1, round(self._grace * total))

    def _loss(self, value: float) -> float:
        return self._sign * value if math.isfinite(value) else math.inf

    def _value(self, loss: float) -> float:
        return self._sign * loss

    def _verdict(self, own: Curve, threshold: float | None, reason: str) -> Verdict:
        images, value = own.values[-1]
        return Verdict(rule=self._name, images=images, value=value, threshold=threshold, reason=reason)


class Halving(_Rule):
    """Successive halving: all trials together (ASHA), or in ``brackets`` (Hyperband)."""

    def __init__(self, name: str, sign: float, *, grace: float, reduction: int, brackets: bool) -> None:
        super().__init__(name, sign, grace=grace)
        self._reduction, self._brackets = reduction, brackets

    def marks(self, total: int, evaluations: Sequence[int]) -> tuple[int, ...]:
        reached = (next((at for at in evaluations if at >= rung), total) for rung in self.rungs(total))
        return tuple(dict.fromkeys(images for images in reached if images < total))

    def rungs(self, total: int) -> tuple[int, ...]:
        """grace, grace * reduction, ... of ``total`` in images, before they meet evaluations."""
        found: list[int] = []
        while (rung := max(1, round(self._grace * self._reduction ** len(found) * total))) < total:
            found.append(rung)
        return tuple(found)

    def bracket(self, number: int, total: int) -> int:
        """How many of the first rungs the trials of point ``number`` leave out."""
        if not self._brackets:
            return 0
        deal = _deal(len(self.rungs(total)) + 1, self._reduction)
        return deal[number % len(deal)]

    def _compare(self, own: Curve, others: Sequence[Curve]) -> Verdict | None:
        before = own.values[-2][0] if len(own.values) > 1 else 0
        images, value = own.values[-1]
        bracket = self.bracket(own.number, own.total)
        passed = [rung for rung in self.rungs(own.total)[bracket:] if before < rung <= images]
        if not passed:
            return None
        peers = [other for other in others if self.bracket(other.number, own.total) == bracket]
        for rung in passed:
            # Of each trial that came as far, the value at its first evaluation at or after the rung.
            reached = [next((one for at, one in peer.values if at >= rung), None) for peer in peers]
            losses = sorted(self._loss(one) for one in [value, *reached] if one is not None)
            keep = max(1, len(losses) // self._reduction)
            if self._loss(value) > losses[keep - 1]:
                needed = self._value(losses[keep - 1])
                ours, theirs = _apart(value, needed)
                best = f"among the best {keep}" if keep > 1 else "the best"
                of = f"is not {best} of {len(losses)} ({theirs} was needed)"
                return self._verdict(own, needed, f"{ours} at {images:,} images {of}")
        return None


class BelowMedian(_Rule):
    """The median stopping rule, with the mean of each of at least ``trials`` others that came as far."""

    def __init__(self, name: str, sign: float, *, grace: float, trials: int) -> None:
        super().__init__(name, sign, grace=grace)
        self._trials = trials

    def _compare(self, own: Curve, others: Sequence[Curve]) -> Verdict | None:
        images = own.values[-1][0]
        if images < self._first(own.total):
            return None
        as_far = [other for other in others if other.values and other.values[-1][0] >= images]
        if len(as_far) < self._trials:
            return None
        best = min(self._losses(own, images))
        median = statistics.median(statistics.fmean(self._losses(other, images)) for other in as_far)
        if best <= median:
            return None
        threshold = self._value(median)
        ours, theirs = _apart(self._value(best), threshold)
        against = f"is worse than {theirs}, the median of {len(as_far)} other trials' means until there"
        return self._verdict(own, threshold, f"{ours}, its best until {images:,} images, {against}")

    def _losses(self, curve: Curve, until: int) -> list[float]:
        """Of the trained network: at 0 images all trials are the same."""
        return [self._loss(value) for images, value in curve.values if 0 < images <= until]


class Paired(_Rule):
    """The one-sided signed-rank test against the best trial at the same evaluation, below ``p``.

    Items with equal errors are split between the signs (``zsplit``); nobody is stopped whose value is the
    better one, whatever the ranks say (both as in Optuna's ``WilcoxonPruner``, which pairs steps, not items).

    ``p`` is for one test against one given trial. A trial is tested at each evaluation, and against the best
    of all. Of 16 equally good trials with 64 groups at each of 9 evaluations, p 0.05 stops 58 % at some time,
    p 0.01 25 % and p 0.001 2 %; 34, 13 and 2 % where a group's luck lasts (a correlation of 0.9 from one
    evaluation to the next). And the test knows nothing of luck in training: where that moves all errors of a
    trial by 2 %, three times what it takes to be noticed, p 0.01 stops half of them. All this is simulated in
    ``tests/sweeps/test_stopping.py``. So choose a small p: it cannot tell a worse trial from an unlucky one.
    """

    def __init__(self, name: str, sign: float, *, grace: float, p: float) -> None:
        super().__init__(name, sign, grace=grace)
        self._p = p

    def _compare(self, own: Curve, others: Sequence[Curve]) -> Verdict | None:
        images, value = own.values[-1]
        errors = dict(own.items).get(images, ())
        if images < self._first(own.total) or len(errors) < LEAST_ITEMS:
            return None
        rivals = [
            (self._loss(dict(other.values)[images]), other.number, theirs)
            for other in others
            if images in dict(other.values)
            and len(theirs := dict(other.items).get(images, ())) == len(errors)
        ]
        if not rivals:
            return None
        best, number, theirs = min(rivals)
        if self._loss(value) <= best:
            return None
        p = signed_rank(errors, theirs)
        if p >= self._p:
            return None
        worse = sum(ours > other for ours, other in zip(errors, theirs, strict=True))
        shown, needed = _apart(value, self._value(best))
        against = f"is worse than {needed} of point {number}, on {worse} of {len(errors)} held-out groups"
        return self._verdict(own, self._value(best), f"{shown} at {images:,} images {against} (p = {p:.2g})")


def signed_rank(errors: Sequence[float], others: Sequence[float]) -> float:
    """Wilcoxon's one-sided p-value of "``errors`` are no larger than ``others``", item by item.

    Exact for up to 50 items without ties, else by the normal approximation; 1 where one is not finite.
    """
    from scipy import stats  # takes half a second to import

    differences = [ours - theirs for ours, theirs in zip(errors, others, strict=True)]
    if not all(map(math.isfinite, differences)):
        return 1.0
    return float(stats.wilcoxon(differences, alternative="greater", zero_method="zsplit").pvalue)


@functools.cache
def _deal(brackets: int, reduction: int) -> tuple[int, ...]:
    """The bracket of each of as many numbers as make a whole round, as evenly as can be.

    Bracket i, with s = brackets - 1 - i halvings, gets ceil(brackets / (s + 1) * reduction^s) of them
    (arXiv 1603.06560, algorithm 1).
    """
    shares = [-(-brackets * reduction**s // (s + 1)) for s in reversed(range(brackets))]
    dealt, order = [0] * brackets, []
    for number in range(sum(shares)):
        # Whoever is furthest behind its share is next.
        behind = [share * (number + 1) - sum(shares) * had for share, had in zip(shares, dealt, strict=True)]
        order.append(behind.index(max(behind)))
        dealt[order[-1]] += 1
    return tuple(order)


def _apart(one: float, other: float) -> tuple[str, str]:
    """Two different numbers, short, but so that they look different."""
    texts = ((f"{one:.{digits}g}", f"{other:.{digits}g}") for digits in range(4, 18))
    return next((pair for pair in texts if pair[0] != pair[1]), (repr(one), repr(other)))
