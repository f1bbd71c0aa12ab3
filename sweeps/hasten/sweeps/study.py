"""A study as data: what is compared or searched, on which base, with which seeds, judged how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from hasten.sweeps.space import Space
from hasten.trainers import config
from hasten.trainers.config import Spec
from hasten.trainers.specs import Count, Fraction, Name
from hasten.trainers.tracker import EVAL_LOSS

STUDIES: Final = Path(__file__).with_name("studies")

Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0.0)]
Metric = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$")]


class Grid(Spec):
    """Every arm, or every combination of the space's choices, with every seed."""

    kind: Literal["grid"]


class Random(Spec):
    """``trials`` random points of the space; more trials later leave the earlier ones as they are."""

    kind: Literal["random"]
    trials: Count
    seed: Seed = 0


class Quasi(Spec):
    """``trials`` points of a scrambled Sobol sequence: they fill the space more evenly than random ones.

    More trials later leave the earlier ones as they are; powers of two are the most even.
    """

    kind: Literal["quasi"]
    trials: Count
    seed: Seed = 0


class Optuna(Spec):
    """``trials`` points that Optuna's tree-structured Parzen estimator proposes from earlier results.

    The first ``startup`` points are random; ``multivariate`` models keys jointly, in groups that appear
    together where some depend on others (arXiv 2304.11127).
    """

    kind: Literal["optuna"]
    trials: Count
    seed: Seed = 0
    startup: Count = 10
    multivariate: bool = True


class Pbt(Spec):
    """Population based training (arXiv 1711.09846), in generations that wait for each other.

    After every ``interval`` of the budget the worst ``quantile`` of the ``members`` take over weights and
    settings of one of the best ``quantile``; each changed setting is drawn anew with probability
    ``resample``, else multiplied by 0.8 or 1.2, or moved to a neighbouring choice.
    """

    kind: Literal["pbt"]
    members: Annotated[int, Field(ge=2)]
    interval: Fraction = 0.1
    quantile: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    resample: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    seed: Seed = 0


Search = Annotated[Grid | Random | Quasi | Optuna | Pbt, Field(discriminator="kind")]


class _Stopping(Spec):
    """Trials are judged on the objective's metric, at evaluations at or after ``grace`` of the budget.

    ``metric`` is another held-out metric to judge by; training losses are refused.
    """

    grace: Fraction = 0.1
    metric: Metric | None = None


class Asha(_Stopping):
    """Asynchronous successive halving (arXiv 1810.05934), as stopping.

    Rungs lie at ``grace``, ``grace * reduction``, ... of the budget; at each, a trial goes on while it is in
    the best 1/``reduction`` of those that came so far.
    """

    kind: Literal["asha"]
    reduction: Annotated[int, Field(ge=2)] = 3


class Hyperband(_Stopping):
    """Successive halving in brackets with different first rungs (arXiv 1603.06560), by the trial's number.

    The last bracket stops nobody.
    """

    kind: Literal["hyperband"]
    reduction: Annotated[int, Field(ge=2)] = 3


class Median(_Stopping):
    """A trial stops when its best value so far is worse than the median of the others' means until then.

    The median stopping rule of Google Vizier; not before ``trials`` others have come that far.
    """

    kind: Literal["median"]
    trials: Count = 4


class Wilcoxon(_Stopping):
    """A trial stops where the best one is better on the same held-out items with the same noise.

    By Wilcoxon's signed-rank test on the paired errors, one-sided, below ``p``. Choose a small one: it is
    for one test, and a trial is tested at every evaluation.
    """

    kind: Literal["wilcoxon"]
    p: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.001


Stopping = Annotated[Asha | Hyperband | Median | Wilcoxon, Field(discriminator="kind")]


class Bound(Spec):
    """What a trial must keep to count as a solution: ``metric`` at the end at most, or at least, that."""

    metric: Metric
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError(f"{self.metric}: needs at_most or at_least")
        return self


class Goal(Spec):
    """One thing to make small or large."""

    metric: Metric = EVAL_LOSS
    mode: Literal["min", "max"] = "min"


class Objective(Goal):
    """What is better, and the quality whose price in images is compared.

    ``measure`` is what a search optimizes: the ``final`` or the ``best`` value of ``metric``, or how many
    ``images`` or ``seconds`` of training it takes until ``target`` is reached and kept; ``mode`` then still
    says which values of the metric are better. ``target`` is a number, or in a study with arms ``baseline``:
    the baseline's own final quality at the same seed.
    """

    measure: Literal["final", "best", "images", "seconds"] = "final"
    target: Literal["baseline"] | float | None = "baseline"
    bounds: tuple[Bound, ...] = ()


class Prices(Spec):
    """What an hour of a CPU and of a GPU costs."""

    cpu_hour: Annotated[float, Field(ge=0.0)] = 0.0
    gpu_hour: Annotated[float, Field(ge=0.0)] = 0.0
    currency: Annotated[str, Field(min_length=1, max_length=8)] = "USD"


class Limits(Spec):
    """When to stop although trials are left; the same command goes on later, with a higher limit.

    ``hours`` is wall-clock time of one command; ``trials``, ``cpu_hours``, ``gpu_hours`` and ``cost`` count
    over the whole study, in whatever sessions.
    """

    hours: Positive | None = None
    trials: Count | None = None
    cpu_hours: Positive | None = None
    gpu_hours: Positive | None = None
    cost: Positive | None = None


class StudyExecution(Spec):
    """How trials share the cluster; ``workers`` of one trial train it together by DDP.

    With ``share_prefixes`` trials whose schedules agree at first compute that part once.
    """

    concurrent: Literal["auto"] | Count = "auto"
    workers: Count = 1
    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    threads: Count = 1
    share_prefixes: bool = True


class StudySpec(Spec):
    """One study: either ``arms`` to compare or a ``space`` to search. See ``studies/`` for examples.

    ``constraints`` are conditions on settings, such as ``optimizer.lr * optimizer.batch <= 1``; only points
    that fulfil all of them are tried. What is proposed, and what is stopped, depends on the outcomes of all
    points up to ``ahead`` before and on nothing else: so a search is the same however many trials run at
    once and whatever is killed. ``pareto`` names further goals that are traded off against the objective.
    """

    name: Name
    question: str = ""
    base: str
    base_overrides: dict[str, Any] = {}
    baseline: str = "baseline"
    arms: dict[Name, dict[str, Any]] = {}
    space: Space = {}
    constraints: tuple[str, ...] = ()
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    aa: bool = False
    search: Search = Grid(kind="grid")
    ahead: Count = 4
    stopping: Stopping | None = None
    objective: Objective = Objective()
    pareto: tuple[Goal, ...] = ()
    limits: Limits = Limits()
    prices: Prices | None = None
    execution: StudyExecution = StudyExecution()

    @property
    def adaptive(self) -> bool:
        """Whether outcomes decide what is run: then trials start in order, ``ahead`` points at a time."""
        return self.stopping is not None or isinstance(self.search, Optuna | Pbt)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if bool(self.arms) == bool(self.space):
            raise ValueError("arms: a study has either arms or a space")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: each may appear once, got {list(self.seeds)}")
        if self.limits.cost is not None and self.prices is None:
            raise ValueError("limits.cost: needs prices, for example {cpu_hour: 0.05, gpu_hour: 2.5}")
        _check_arms(self) if self.arms else _check_space(self)
        if isinstance(self.search, Pbt):
            _check_pbt(self, self.search)
        return self


def _check_arms(study: StudySpec) -> None:
    if study.search.kind != "grid":
        raise ValueError(f"search.kind: {study.search.kind} searches a space; arms are run as a grid")
    if study.baseline not in study.arms:
        raise ValueError(f"arms: there is no arm {study.baseline!r} to compare with")
    if study.stopping is not None:
        raise ValueError(
            "stopping: arms are compared in pairs at the end of their runs, and a stopped trial has none; "
            "remove stopping, or search a space"
        )
    if study.objective.measure != "final":
        raise ValueError(
            f"objective.measure: {study.objective.measure} is for a search; arms are compared by their final "
            "values, and by images and seconds to the target beside them"
        )
    for key in ("constraints", "pareto"):
        if getattr(study, key):
            raise ValueError(f"{key}: belongs to a study with a space")


def _check_space(study: StudySpec) -> None:
    if study.aa:
        raise ValueError("aa: the control needs arms to stand beside")
    objective = study.objective
    if objective.measure in ("images", "seconds") and not isinstance(objective.target, float | int):
        raise ValueError("objective.target: a space has no baseline; give the value to reach as a number")
    if study.stopping is not None and objective.measure in ("images", "seconds"):
        raise ValueError(
            f"stopping: trials are compared at equal images; with objective.measure: {objective.measure} "
            "a stopped trial would count as one that never reaches the target"
        )
    metric = study.stopping.metric if study.stopping is not None else None
    if metric is not None and not metric.startswith("eval/"):
        raise ValueError(
            f"stopping.metric: {metric} depends on the curriculum; choose a held-out metric (eval/...)"
        )


def _check_pbt(study: StudySpec, search: Pbt) -> None:
    if study.execution.workers > 1:
        raise ValueError(
            "search.kind: pbt clones weights between trials of one worker; with execution.workers above 1 "
            "each generation would start its processes anew: use optuna with stopping instead"
        )
    if study.stopping is not None:
        raise ValueError("stopping: pbt replaces bad members by itself; remove stopping")
    if len(study.seeds) > 1:
        raise ValueError("seeds: a population is one experiment; repeat it with another search.seed instead")
    if study.pareto or study.objective.bounds:
        key = "pareto" if study.pareto else "objective.bounds"
        raise ValueError(f"{key}: pbt ranks its members by the objective alone; use optuna")
    if study.objective.measure != "final":
        raise ValueError(
            f"objective.measure: pbt ranks by the value after each interval, not {study.objective.measure}"
        )
    if abs(1.0 / search.interval - round(1.0 / search.interval)) > 1e-9:
        raise ValueError(f"search.interval: {search.interval} of the budget does not divide it")


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
