"""Which checkpoints may go: a pure function of what there is, who needs it and what is asked for.

What is kept is the union of all reasons to keep something: one is enough. Results, recipes and samples are
never up for removal, because nobody lists them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["checkpoint", "fork", "average"]
Reason = Literal[
    # to keep
    "younger than an hour",
    "its study is running",
    "being written",
    "registered model",
    "an unfinished run goes on here",
    "other trials may start here",
    "best of its study",
    "best of its trial",
    "last of its trial",
    "average",
    "of no study",
    # to remove
    "never completed",
    "no trial starts here any more",
    "older than those kept",
    "of a trial beyond those kept",
]

YOUNG_SECONDS: Final = 3600.0
HALF_SECONDS: Final = 86_400.0  # what is still half-written after a day never becomes whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A file or folder of a run that can be removed on its own, at ``place`` in the run's folder.

    It was made after ``images``; ``written`` is when its newest file was, in seconds since 1970; ``whole``
    says that it has all its parts.
    """

    place: str
    kind: Kind
    images: int
    bytes: int
    written: float
    whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run's folder in the store; ``over`` says that it will never go on."""

    name: str
    items: tuple[Item, ...]
    over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A run in a study: its objective, and its quality after so many images; smaller is better in both.

    ``value`` is None where the trial has none: it failed, was stopped, or is still to come. ``front`` says
    that it is on the study's Pareto front, which counts as being among the best.
    """

    value: float | None = None
    scores: tuple[tuple[int, float], ...] = ()
    front: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study and its runs, by name: ``running`` on whatever machine; ``over`` when none is left to run."""

    name: str
    runs: Mapping[str, Standing]
    running: bool
    over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Who needs what: studies, and the runs that registered models were made from."""

    studies: tuple[Study, ...] = ()
    registered: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How much is kept of what could go.

    Of each study, the best and the last checkpoint of its ``study_best`` best trials; of each trial, whatever
    its rank, the ``trial_best`` best and ``trial_latest`` last ones. Averages, from which other averages can
    be made, go only with ``averages``; runs of no study are treated as trials only with ``orphans``.
    """

    study_best: int = 3
    trial_best: int = 1
    trial_latest: int = 1
    averages: bool = False
    orphans: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of an item, and why; ``studies`` are those that its run belongs to."""

    run: str
    item: Item
    keep: bool
    reason: Reason
    studies: tuple[str, ...] = field(default=())


def plan(runs: Iterable[Run], references: References, policy: Policy, *, now: float) -> tuple[Decision, ...]:
    """A decision on every item of every run, in their order; ``now`` is in seconds since 1970."""
    leaders = {study.name: _best_runs(study, policy.study_best) for study in references.studies}
    decisions = []
    for run in runs:
        studies = [study for study in references.studies if run.name in study.runs]
        leads = frozenset(study.name for study in studies if run.name in leaders[study.name])
        reasons: dict[str, Reason] = {}
        for items, reason in (
            *_in_use(run, studies, now=now),
            *_wanted(run, studies, leads, policy, registered=run.name in references.registered),
        ):
            for item in items:
                reasons.setdefault(item.place, reason)
        decisions += [
            Decision(
                run=run.name,
                item=item,
                keep=item.place in reasons,
                reason=reasons.get(item.place) or _superfluous(run, item, reasons),
                studies=tuple(study.name for study in studies),
            )
            for item in run.items
        ]
    return tuple(decisions)


_Kept = tuple[Iterable[Item], Reason]


def _in_use(run: Run, studies: Sequence[Study], *, now: float) -> list[_Kept]:
    """What somebody may be writing, or may read to go on."""
    young = [item for item in run.items if now - item.written < YOUNG_SECONDS]
    halves = [item for item in run.items if not item.whole and now - item.written < HALF_SECONDS]
    kept: list[_Kept] = [(young, "younger than an hour"), (halves, "being written")]
    if any(study.running for study in studies):
        kept.append((run.items, "its study is running"))
    if not run.over:
        kept.append((_checkpoints(run)[-1:], "an unfinished run goes on here"))
    if not run.over or not all(study.over for study in studies):
        kept.append((_whole(run, "fork"), "other trials may start here"))
    return kept


def _wanted(
    run: Run, studies: Sequence[Study], leads: frozenset[str], policy: Policy, *, registered: bool
) -> list[_Kept]:
    """What people want to have: models, the best, the last."""
    kept: list[_Kept] = []
    if registered:
        kept += [(_whole(run, kind), "registered model") for kind in ("checkpoint", "average")]
    if not studies and not policy.orphans:
        kept += [(_whole(run, kind), "of no study") for kind in ("checkpoint", "fork", "average")]
    if not run.over or leads or not policy.averages:
        kept.append((_whole(run, "average"), "average"))
    checkpoints = _checkpoints(run)
    for study in studies:
        scores = study.runs[run.name].scores
        if study.name in leads:
            kept.append((_best(checkpoints, scores, 1), "best of its study"))
            kept.append((_last(checkpoints, 1), "best of its study"))
        kept.append((_best(checkpoints, scores, policy.trial_best), "best of its trial"))
    kept.append((_last(checkpoints, policy.trial_latest), "last of its trial"))
    return kept


def _whole(run: Run, kind: Kind) -> list[Item]:
    """The run's complete items of a kind, oldest first."""
    found = [item for item in run.items if item.kind == kind and item.whole]
    return sorted(found, key=lambda item: (item.images, item.place))


def _checkpoints(run: Run) -> list[Item]:
    return _whole(run, "checkpoint")


def _last(checkpoints: Sequence[Item], count: int) -> Sequence[Item]:
    return checkpoints[max(len(checkpoints) - count, 0) :]


def _best(checkpoints: Sequence[Item], scores: Sequence[tuple[int, float]], count: int) -> Sequence[Item]:
    """The ``count`` best of the checkpoints that have a score: that of the last evaluation before them.

    Of equal ones the newest.
    """
    ranked = []
    for item in reversed(checkpoints):
        before = [(images, score) for images, score in scores if images <= item.images]
        if before:
            ranked.append((max(before)[1], item))
    return [item for _, item in sorted(ranked, key=lambda each: each[0])[:count]]


def _best_runs(study: Study, count: int) -> set[str]:
    """The runs of the ``count`` best trials, of equal ones the first by name, and of the Pareto front."""
    ranked = sorted((known.value, run) for run, known in study.runs.items() if known.value is not None)
    front = {run for run, known in study.runs.items() if known.front} if count else set()
    return front.union(run for _, run in ranked[:count])


def _superfluous(run: Run, item: Item, kept: Mapping[str, Reason]) -> Reason:
    """Why an item that nobody needs may go."""
    if not item.whole:
        return "never completed"
    if item.kind == "average":
        return "average"
    if item.kind == "fork":
        return "no trial starts here any more"
    if any(other.place in kept for other in _checkpoints(run)):
        return "older than those kept"
    return "of a trial beyond those kept"
