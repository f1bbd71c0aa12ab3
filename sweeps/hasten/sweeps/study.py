"""A study as data: what is compared or searched, on which base, with which seeds, judged how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from hasten.sweeps.space import Space
from hasten.trainers import config
from hasten.trainers.config import Spec
from hasten.trainers.specs import Count, Name
from hasten.trainers.tracker import EVAL_LOSS

STUDIES: Final = Path(__file__).with_name("studies")


class Grid(Spec):
    """Every arm, or every combination of the space's choices, with every seed."""

    kind: Literal["grid"]


class Random(Spec):
    """``trials`` random points of the space; more trials later leave the earlier ones as they are."""

    kind: Literal["random"]
    trials: Count
    seed: Annotated[int, Field(ge=0)] = 0


Search = Annotated[Grid | Random, Field(discriminator="kind")]


class Objective(Spec):
    """What is better, and the quality whose price in images is compared.

    ``target`` is a number, or ``baseline``: the baseline's own final quality at the same seed.
    """

    metric: str = EVAL_LOSS
    mode: Literal["min", "max"] = "min"
    target: Literal["baseline"] | float | None = "baseline"


class Limits(Spec):
    """When to stop although trials are left; the same command goes on later."""

    hours: Annotated[float, Field(gt=0.0)] | None = None


class StudyExecution(Spec):
    """How trials share the cluster; ``workers`` of one trial train it together by DDP."""

    concurrent: Literal["auto"] | Count = "auto"
    workers: Count = 1
    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    threads: Count = 1


class StudySpec(Spec):
    """One study: either ``arms`` to compare or a ``space`` to search. See ``studies/`` for examples."""

    name: Name
    question: str = ""
    base: str
    base_overrides: dict[str, Any] = {}
    baseline: str = "baseline"
    arms: dict[Name, dict[str, Any]] = {}
    space: Space = {}
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    aa: bool = False
    search: Search = Grid(kind="grid")
    objective: Objective = Objective()
    limits: Limits = Limits()
    execution: StudyExecution = StudyExecution()

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if bool(self.arms) == bool(self.space):
            raise ValueError("arms: a study has either arms or a space")
        if self.arms and self.search.kind != "grid":
            raise ValueError(f"search.kind: {self.search.kind} searches a space; arms are run as a grid")
        if self.arms and self.baseline not in self.arms:
            raise ValueError(f"arms: there is no arm {self.baseline!r} to compare with")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: each may appear once, got {list(self.seeds)}")
        if self.aa and not self.arms:
            raise ValueError("aa: the control needs arms to stand beside")
        return self


def load(study: str, overrides: dict[str, Any] | None = None) -> StudySpec:
    """The study that a file (a path or a shipped name) and overrides describe.

    An override ``base.KEY`` changes the base recipe; any other key changes the study.

    Raises:
        ConfigError: no such study, unknown or ill-typed keys, impossible values.
    """
    path = config.find(study, STUDIES, "study")
    overrides = overrides or {}
    of_base = {
        key.removeprefix("base."): value for key, value in overrides.items() if key.startswith("base.")
    }
    of_study = {key: value for key, value in overrides.items() if not key.startswith("base.")}
    raw = config.override(config.read_yaml(path), of_study)
    if of_base:
        raw["base_overrides"] = {**raw.get("base_overrides", {}), **of_base}
    base = raw.get("base")
    if isinstance(base, str) and base.endswith((".yaml", ".yml")):
        raw["base"] = str(path.parent / base)  # beside the study, from wherever it is run
    return config.validate(StudySpec, raw)
