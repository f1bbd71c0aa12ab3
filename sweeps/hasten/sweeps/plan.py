"""What a study would run: a value, computed before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching.factory import proposals
from hasten.sweeps.searching.listed import AA
from hasten.sweeps.searching.possible import Base
from hasten.sweeps.searching.proposals import Point
from hasten.sweeps.study import StudySpec
from hasten.trainers import config, specs
from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import RunSpec

_AA_SEED_SHIFT: Final = 1_000_000  # the A/A control repeats the baseline on seeds that nobody else has
_CONTROLS: Final = (
    ("curriculum", "clts", "static", "CLTS's time average", "a gain may be the density's, not the ramp's"),
    ("momentum", "mdlrc", "lr_only", "MDLRC's rate alone", "an effect may be the rate's, not the momentum's"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a study. ``changes`` are the keys in which its arm differs from the base.

    A member of a population runs until ``until`` images, with the weights of the point ``parent``.
    """

    name: str
    arm: str
    seed: int
    spec: RunSpec
    changes: dict[str, Any]
    until: int | None = None
    parent: str | None = None

    @property
    def images(self) -> int:
        """Images that it trains on itself."""
        begun = self.spec.start.images if self.spec.start else 0
        return (self.until or self.spec.budget.images) - begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The runs of a study that are known beforehand, in the order in which they start.

    Where no outcome decides that is seed by seed, so that pairs complete early; else point by point. Another
    ``proposed`` runs follow, whose settings outcomes decide. ``base`` is the base recipe as written.
    """

    study: StudySpec
    trials: tuple[Trial, ...]
    proposed: int = 0
    base: Base = field(default_factory=dict, repr=False)

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(trial.arm for trial in self.trials))

    @property
    def total(self) -> int:
        """How many runs the study has in all, if none fails or is stopped."""
        return len(self.trials) + self.proposed

    @property
    def images(self) -> int:
        """Images to train on, over all runs; proposed ones count as the mean of those that are known."""
        known = sum(trial.images for trial in self.trials)
        return known + round(self.proposed * known / len(self.trials))


def plan(study: StudySpec) -> Plan:
    """What a study would run.

    Raises:
        ConfigError: an arm or a point of the space is not a possible run, two arms are the same run, or a
            constraint cannot be evaluated.
    """
    base = specs.load_raw(study.base, study.base_overrides)
    _check_seeds(study)
    source = proposals(study, base)
    known = [source.point(number, ()) for number in range(source.count) if source.needs(number) == 0]
    pairs = [(point, index) for point in known for index in range(len(study.seeds))]
    if not study.adaptive:
        pairs.sort(key=lambda pair: pair[1])
    trials = tuple(make_trial(study, base, point, seeds(study, point)[index]) for point, index in pairs)
    if study.arms:
        _refuse_equal(trials)
    proposed = (source.count - len(known)) * len(study.seeds)
    return Plan(study=study, trials=trials, proposed=proposed, base=base)


def seeds(study: StudySpec, point: Point) -> tuple[int, ...]:
    """The seeds that a point is tried with: the study's, which the A/A control shares with nobody."""
    if study.aa and point.name == f"{study.baseline}{AA}":
        return tuple(seed + _AA_SEED_SHIFT for seed in study.seeds)
    return study.seeds


def make_trial(study: StudySpec, base: Base, point: Point, seed: int) -> Trial:
    """A point's run with one of its seeds.

    Raises:
        ConfigError: the point's settings are not a possible run.
    """
    execution = {
        "launcher": "ray",
        "workers": study.execution.workers,
        "cpus": study.execution.cpus,
        "gpus": study.execution.gpus,
        "threads": study.execution.threads,
    }
    raw = config.override(base, point.settings)
    raw = config.override(
        raw, {"budget.seed": seed, **{f"execution.{key}": value for key, value in execution.items()}}
    )
    if point.start is not None:
        raw["start"] = point.start.model_dump(mode="json")
    # An arm without changes is the base: its errors are the recipe's own.
    place = f"arms.{point.name}." if study.arms else f"space, point {point.name}: "
    return Trial(
        name=f"{point.name}-s{seed}",
        arm=point.name,
        seed=seed,
        spec=config.validate(RunSpec, raw, prefix=place if point.settings else ""),
        changes=point.settings,
        until=point.until,
        parent=point.parent,
    )


def _check_seeds(study: StudySpec) -> None:
    for name, changes in study.arms.items():
        budget = changes.get("budget")
        if "budget.seed" in changes or (isinstance(budget, dict) and "seed" in budget):
            raise ConfigError(f"arms.{name}.budget.seed", "belongs to the study", "Use the study's seeds.")


def _refuse_equal(trials: tuple[Trial, ...]) -> None:
    seen: dict[str, str] = {}
    for trial in trials:
        fingerprint = trial.spec.fingerprint("")
        if fingerprint in seen:
            problem = f"is the same run as arms.{seen[fingerprint]}: nothing would be compared"
            raise ConfigError(f"arms.{trial.arm}", problem, "Change one of them, or remove it.")
        seen[fingerprint] = trial.arm


def missing_controls(plan: Plan) -> list[str]:
    """What a study cannot tell apart, for want of a control among its arms or in its space."""
    notes = []
    for block, kind, control, meaning, doubt in _CONTROLS:
        kinds = _kinds(plan, block)
        if kind in kinds and len(kinds) > 1 and control not in kinds:
            place = "no arm has" if plan.study.arms else f"{block}.kind in the space has not"
            notes.append(f"{place} {meaning} ({control}): {doubt}")
    return notes


def _kinds(plan: Plan, block: str) -> set[str]:
    """The kinds of a tagged block that a study tries, or may try."""
    kinds = {getattr(trial.spec, block).kind for trial in plan.trials}
    for key, distribution in plan.study.space.items():
        for value in distribution.choice or ():
            if key == f"{block}.kind":
                kinds.add(value)
            elif key == block and isinstance(value, dict):
                kinds.add(value.get("kind"))
    return kinds


def study_digest(study: StudySpec, base: Base) -> str:
    """What outcomes rest on: two versions of a study with one digest propose the same from the same outcomes.

    ``base`` is its base recipe as written.

    More trials, seeds, limits and another execution leave it; another space, search, objective, stopping or
    base do not.
    """
    fields = {"space", "constraints", "search", "ahead", "stopping", "objective", "pareto"}
    asked = study.model_dump(mode="json", include=fields)
    asked["search"].pop("trials", None)
    asked["base"] = {key: value for key, value in base.items() if key not in ("name", "execution")}
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def require_same(study: StudySpec, base: Base, recorded: str | None) -> None:
    """Refuse to go on with a search whose points were proposed by another version of the study.

    Raises:
        ConfigError: ``recorded``, the digest kept with its points, is another's.
    """
    if recorded is not None and study.adaptive and recorded != study_digest(study, base):
        raise ConfigError(
            "name",
            f"{study.name} has begun with another space, search, objective, stopping or base",
            "Its points were chosen by their outcomes. Give the changed study a new name.",
        )


def new_runs(
    plan: Plan, records: Iterable[TrialRecord], fingerprints: Mapping[str, str]
) -> dict[str, list[str]]:
    """The trials of an edited study that ran before as other runs, by the reason why they run again.

    ``fingerprints`` are those of the planned runs, by trial. A longer horizon stretches every schedule: a run
    that ended earlier is no beginning of it.
    """
    reasons: dict[str, list[str]] = {}
    known = {record.trial: record for record in records}
    for trial in plan.trials:
        record = known.get(trial.name)
        if record is None or record.fingerprint == fingerprints[trial.name]:
            continue
        horizon = trial.spec.budget.images
        if record.total != horizon:
            reason = f"budget.images changed from {record.total:,} to {horizon:,}"
        elif record.settings != trial.changes:
            reason = "their settings changed"
        else:
            reason = "their base or data changed"
        reasons.setdefault(reason, []).append(trial.name)
    return reasons
