"""What a study would run: a value, computed before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from hasten.sweeps import space
from hasten.sweeps.study import Grid, Random, StudySpec
from hasten.trainers import config, specs
from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import RunSpec

_AA_SEED_SHIFT: Final = 1_000_000  # the A/A control repeats the baseline on seeds that nobody else has


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a study. ``changes`` are the keys in which its arm differs from the base.

    A member of a population runs until ``until`` images, with the weights of ``parent``.
    """

    name: str
    arm: str
    seed: int
    spec: RunSpec
    changes: dict[str, Any]
    until: int | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All runs of a study, in the order in which they start: seed by seed, so that pairs complete early."""

    study: StudySpec
    trials: tuple[Trial, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(trial.arm for trial in self.trials))

    @property
    def images(self) -> int:
        """Images to train on, over all trials."""
        return sum(trial.spec.budget.images for trial in self.trials)


def plan(study: StudySpec) -> Plan:
    """The trials of a study.

    Raises:
        ConfigError: an arm or a point of the space is not a possible run, or two arms are the same run.
    """
    base = specs.load_raw(study.base, study.base_overrides)
    arms = _arms(study)
    for name, changes in arms.items():
        if "budget.seed" in changes or (
            isinstance(changes.get("budget"), dict) and "seed" in changes["budget"]
        ):
            raise ConfigError(f"arms.{name}.budget.seed", "belongs to the study", "Use the study's seeds.")
    seeds = dict.fromkeys(arms, study.seeds)
    if study.aa:
        control = f"{study.baseline}-aa"
        arms[control] = arms[study.baseline]
        seeds[control] = tuple(seed + _AA_SEED_SHIFT for seed in study.seeds)
    trials = tuple(
        _trial(study, base, name, changes, seeds[name][index])
        for index in range(len(study.seeds))
        for name, changes in arms.items()
    )
    _refuse_equal(study, trials)
    return Plan(study=study, trials=trials)


def _arms(study: StudySpec) -> dict[str, dict[str, Any]]:
    """The arms by name; a point of a space is an arm named by its number."""
    if study.arms:
        return dict(study.arms)
    if isinstance(study.search, Grid):
        points = list(space.grid(study.space))
    else:
        search = study.search
        assert isinstance(search, Random)
        points = [space.random(study.space, seed=search.seed, trial=index) for index in range(search.trials)]
    return {f"{index:04d}": point for index, point in enumerate(points)}


def _trial(study: StudySpec, base: dict[str, Any], arm: str, changes: dict[str, Any], seed: int) -> Trial:
    execution = {
        "launcher": "ray",
        "workers": study.execution.workers,
        "cpus": study.execution.cpus,
        "gpus": study.execution.gpus,
        "threads": study.execution.threads,
    }
    raw = config.override(base, changes)
    raw = config.override(
        raw, {"budget.seed": seed, **{f"execution.{key}": value for key, value in execution.items()}}
    )
    # An arm without changes is the base: its errors are the recipe's own.
    place = f"arms.{arm}." if study.arms else f"space, point {arm}: "
    spec = config.validate(RunSpec, raw, prefix=place if changes else "")
    return Trial(name=f"{arm}-s{seed}", arm=arm, seed=seed, spec=spec, changes=changes)


def _refuse_equal(study: StudySpec, trials: tuple[Trial, ...]) -> None:
    seen: dict[str, str] = {}
    for trial in trials:
        fingerprint = trial.spec.fingerprint("")
        if fingerprint in seen and study.arms:
            problem = f"is the same run as arms.{seen[fingerprint]}: nothing would be compared"
            raise ConfigError(f"arms.{trial.arm}", problem, "Change one of them, or remove it.")
        seen[fingerprint] = trial.arm


def missing_controls(plan: Plan) -> list[str]:
    """What the arms of a study cannot tell apart, for want of a control."""
    kinds = {(trial.spec.curriculum.kind, trial.spec.momentum.kind) for trial in plan.trials}
    curricula, momenta = {curriculum for curriculum, _ in kinds}, {momentum for _, momentum in kinds}
    notes = []
    if "clts" in curricula and "static" not in curricula:
        notes.append("no arm has CLTS's time average (static): a gain may be the density's, not the ramp's")
    if "mdlrc" in momenta and "lr_only" not in momenta:
        notes.append(
            "no arm has MDLRC's rate alone (lr_only): an effect may be the rate's, not the momentum's"
        )
    return notes
