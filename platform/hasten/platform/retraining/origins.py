"""What a challenger is trained from: the pipeline's recipe, the champion's, or what won a study."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from rich.console import Console

from hasten.platform import importing, studies, study_reports, sweeping
from hasten.platform.registry import RUN_URI, Version
from hasten.platform.retraining.pipeline import Pipeline
from hasten.platform.services import Services
from hasten.platform.studies import Standing, Study
from hasten.sweeps import plan as plans
from hasten.sweeps import study as study_files
from hasten.sweeps.plan import Plan
from hasten.trainers import config, specs
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.errors import ConfigError
from hasten.trainers.job import Job
from hasten.trainers.specs import Initial, RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A recipe bound to the data as they are now, and where it is from.

    ``recipe`` identifies it without the data: equal ones are one recipe. Where ``study`` is to be run first,
    the job is its base's, and its winner is known afterwards: see :func:`winner`.
    """

    job: Job
    recipe: str
    described: str
    study: Plan | None = None


def source(pipeline: Pipeline, champion: Version | None, services: Services, *, console: Console) -> Source:
    """What the next challenger would be trained from; runs nothing.

    Raises:
        ConfigError: there is no such recipe, study or data set, they do not fit, or the study has no result.
        Fault: the store failed.
    """
    origin = pipeline.origin
    if origin.config == "study":
        assert origin.study is not None, "its spec says so"
        plan = plans.plan(study_files.load(origin.study, {}))
        if origin.run_study:
            job = _bound(_adopted(plan.trials[0].spec, pipeline), services)
            described = f"the winner of study {plan.study.name}, run first"
            return Source(job=job, recipe=_question(plan, job.spec), described=described, study=plan)
        spec, described = winner(plan, pipeline, console)
    elif origin.config == "champion" and champion is not None:
        spec = _adopted(_spec_of(champion), pipeline)
        described = f"the recipe of version {champion.number}"
    else:
        spec, described = specs.load(pipeline.recipe, pipeline.overrides), f"recipe {pipeline.recipe}"
    job = _bound(spec, services)
    return Source(job=job, recipe=spec.fingerprint(""), described=described)


def run_study(plan: Plan, console: Console) -> None:
    """Bring a study to its end on the data as they are now.

    Raises:
        Stopped: a signal or a limit ended it; the same command goes on.
        Fault: trials failed.
    """
    sweeping.sweep(plan, console=console)


def winner(plan: Plan, pipeline: Pipeline, console: Console) -> tuple[RunSpec, str]:
    """The recipe that a study's outcome speaks for, and how to call it.

    Of arms it is the one that beat the baseline, else the baseline; of a search its best point.

    Raises:
        ConfigError: the study is not over.
    """
    study, now = _standing(plan, console)
    found = study_reports.report(study, now)
    if found.comparison is not None:
        arm = found.comparison.winner or plan.study.baseline
        why = "won" if found.comparison.winner else "is the baseline, which nothing beat,"
    else:
        ranked = found.standing.ranked if found.standing else ()
        if not ranked:
            raise ConfigError("origin.study", f"no point of {plan.study.name} has a result")
        arm, why = ranked[0].point, "is the best point"
    assert arm is not None, "a study of arms has a baseline"
    spec = _adopted(studies.specs_of(now)[arm], pipeline)
    return spec, f"{arm}, which {why} of study {plan.study.name}"


def values_by_arm(plan: Plan, metric: str, console: Console) -> list[list[float]]:
    """The final values of a metric in a study's finished trials, a list for each arm or point.

    Raises:
        ConfigError: the study is not over.
    """
    study, now = _standing(plan, console)
    found: dict[str, list[float]] = {}
    for result in studies.results(study, now):
        if metric in result.result.metrics:
            found.setdefault(result.arm, []).append(result.result.metrics[metric])
    return list(found.values())


def warmed(spec: RunSpec, champion: Version) -> RunSpec:
    """The recipe, to begin with the champion's averaged weights."""
    run = champion.tags[RUN_URI].rpartition("/")[2]
    return spec.model_copy(update={"initial": Initial(run=run)})


def reseeded(spec: RunSpec, text: str) -> RunSpec:
    """The recipe under another seed, a function of ``text``."""
    seed = int.from_bytes(hashlib.sha256(f"{spec.budget.seed}/{text}".encode()).digest()[:4], "big")
    return spec.model_copy(update={"budget": spec.budget.model_copy(update={"seed": seed})})


def _standing(plan: Plan, console: Console) -> tuple[Study, Standing]:
    study = studies.bind(plan, console=console, ray=False)
    now = studies.standing(study)
    if not now.is_finished:
        problem = f"{plan.study.name} is not over: {len(now.records)} of {now.planned} trials are"
        remedy = f"Run it: hasten sweep {plan.study.name}; or set origin.run_study: true."
        raise ConfigError("origin.study", problem, remedy)
    return study, now


def _spec_of(version: Version) -> RunSpec:
    uri = version.tags[RUN_URI]
    result = RunStore(uri).result()
    if result is None:
        raise ConfigError(uri, f"has no finished run, but version {version.number} was made from it")
    return RunSpec.model_validate(result.spec)


def _adopted(spec: RunSpec, pipeline: Pipeline) -> RunSpec:
    """Another run's recipe as this pipeline's: with its overrides, and run where and how its own recipe says.

    The seed is its own, too: it is no part of what made the other run good, and that of a training which was
    forced must not look like a change.
    """
    own = specs.load(pipeline.recipe, pipeline.overrides)
    plain = spec.model_dump(mode="json", exclude={"start", "initial", "execution"})
    plain["execution"] = own.execution.model_dump(mode="json")
    plain["budget"]["seed"] = own.budget.seed
    return config.validate(RunSpec, config.override(plain, pipeline.overrides))


def _bound(spec: RunSpec, services: Services) -> Job:
    """Bound to the data as they are now; what is built in and missing is imported, for a dry run too."""
    importing.ensure(spec.data.source, services.storage_uri)
    return sources.bind(spec, services.storage_uri)


def _question(plan: Plan, spec: RunSpec) -> str:
    """What a study asks, as twelve hexadecimal digits: where it runs does not matter."""
    asked = plan.study.model_dump_json(exclude={"execution", "question"})
    return hashlib.sha256(f"{asked}/{spec.fingerprint('')}".encode()).hexdigest()[:12]
