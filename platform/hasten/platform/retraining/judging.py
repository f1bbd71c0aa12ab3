"""A challenger against the champion: on the data as they are now, with the same noise, on this machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console

from hasten.platform.registry import CALIBRATION, RUN_URI, Registry, Version
from hasten.platform.retraining import gate, origins
from hasten.platform.retraining.gate import Deviation, Measured, Verdict
from hasten.platform.retraining.pipeline import Pipeline
from hasten.sweeps import plan as plans
from hasten.sweeps import study as study_files
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.errors import ConfigError, Diverged
from hasten.trainers.generation.export import Trained
from hasten.trainers.job import Job
from hasten.trainers.metrics import examination
from hasten.trainers.metrics.examination import Examination
from hasten.trainers.specs import Metric, RunSpec

log = logging.getLogger(__name__)

MEGABYTES: Final = "hasten.megabytes"

Train = Callable[[Job], None]
"""Brings a run to its end; raises ConfigError where that is too dear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Judges the challengers of a pipeline; ``job`` brings the data and the evaluation."""

    pipeline: Pipeline
    job: Job
    registry: Registry
    train: Train
    console: Console
    exam: Examination = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "exam", Examination(self.job))

    def judge(self, challenger: Version, champion: Version | None) -> tuple[Verdict, dict[str, float]]:
        """Whether a challenger is to become champion, and what was measured of it.

        Raises:
            Fault: the storage or a service failed, or a checkpoint is damaged.
            Stopped: a signal ended a calibration run.
        """
        several = [challenger] if champion is None else [challenger, champion]
        networks = [examination.trained(version.tags[RUN_URI]) for version in several]
        ours, *others = self._measured(several, networks)
        theirs = others[0] if others else None
        if found := gate.problems(self.pipeline.guardrails, ours, theirs):
            return Verdict(promoted=False, reason="; ".join(found)), _numbers(ours)
        if champion is None or theirs is None:
            reason = f"no other champion; {self.pipeline.gate.metric} {ours.loss:.4g}"
            return Verdict(promoted=True, reason=reason), _numbers(ours)
        better = ours.loss < theirs.loss  # else nobody needs to know how much the seed does
        verdict = gate.verdict(
            self.pipeline.gate,
            ours=ours.loss,
            theirs=theirs.loss,
            version=champion.number,
            deviation=self._deviation(champion, theirs.loss) if better else None,
        )
        return verdict, _numbers(ours)

    def _measured(self, versions: Sequence[Version], networks: Sequence[Trained]) -> list[Measured]:
        metrics, rules = self._metrics(), self.pipeline.guardrails
        seconds: Sequence[float] = [float("nan")] * len(networks)
        if rules.max_latency_ratio is not None and len(networks) > 1:
            seconds = self.exam.seconds_per_sample(networks)
        return [
            Measured(
                loss=self.exam.loss(network),
                quality=self.exam.quality(network, metrics) if metrics else {},
                megabytes=float(version.tags.get(MEGABYTES, "nan")),
                seconds=each,
            )
            for version, network, each in zip(versions, networks, seconds, strict=True)
        ]

    def _metrics(self) -> tuple[Metric, ...]:
        """What the guardrails look at, as far as the data have it."""
        rules = self.pipeline.guardrails
        if sources.is_mixture(self.job.spec.data.source):
            return ("frechet",) if rules.max_frechet_ratio is not None else ()
        asked: dict[Metric, float | None] = {
            "frechet": rules.max_frechet_ratio,
            "recall": rules.min_diversity,
            "memorization": rules.min_unseen,
        }
        return tuple(metric for metric, limit in asked.items() if limit is not None)

    def _deviation(self, champion: Version, loss: float) -> Deviation | None:
        """How much the seed alone changes the metric: by a study, or by the champion's calibration runs."""
        if self.pipeline.origin.study is not None:
            plan = plans.plan(study_files.load(self.pipeline.origin.study, {}))
            metric = self.pipeline.gate.metric
            try:
                groups = origins.values_by_arm(plan, metric, self.console)
            except ConfigError as error:
                log.warning("%s", error)
                groups = []
            if found := gate.deviation(groups, f"within the arms of study {plan.study.name}"):
                return found
        uris = self._calibrated(champion)
        if not uris:
            return None
        losses = [self.exam.loss(examination.trained(uri)) for uri in uris]
        result = RunStore(champion.tags[RUN_URI]).result()
        if result is not None and result.data_digest == self.job.data_digest:
            losses.append(loss)  # the champion itself is one more seed of the same
        return gate.deviation([losses], f"between {len(losses)} seeds of the champion's recipe")

    def _calibrated(self, champion: Version) -> list[str]:
        """The champion's calibration runs, trained now unless it has them, and kept with it."""
        if kept := champion.tags.get(CALIBRATION):
            return list(json.loads(kept))
        if not self.pipeline.gate.calibration_seeds:
            return []
        jobs = self.calibrations(champion)
        try:
            for job in jobs:
                self.train(job)
        except (ConfigError, Diverged) as error:
            log.warning("no calibration: %s", error)
            return []
        uris = [job.uri for job in jobs]
        self.registry.tag(champion, {CALIBRATION: json.dumps(uris)})
        return uris

    def calibrations(self, champion: Version) -> list[Job]:
        """The champion's recipe under other seeds, on the data as they are now."""
        result = RunStore(champion.tags[RUN_URI]).result()
        if result is None:
            raise ConfigError(
                champion.tags[RUN_URI], "has no finished run, but the champion was made from it"
            )
        spec = RunSpec.model_validate(result.spec)
        return [
            Job(
                spec=origins.reseeded(spec, f"calibration {number}"),
                data_uri=self.job.data_uri,
                data_digest=self.job.data_digest,
                storage_uri=self.job.storage_uri,
            )
            for number in range(self.pipeline.gate.calibration_seeds)
        ]


def inherited(challenger: Version, champion: Version) -> dict[str, str]:
    """The tags that a new champion takes over: the old one's calibration, if theirs is one recipe."""
    kept = champion.tags.get(CALIBRATION)
    if kept is None:
        return {}
    recipes = []
    for version in (challenger, champion):
        result = RunStore(version.tags[RUN_URI]).result()
        recipes.append(None if result is None else _recipe(RunSpec.model_validate(result.spec)))
    return {CALIBRATION: kept} if recipes[0] == recipes[1] and recipes[0] is not None else {}


def _recipe(spec: RunSpec) -> str:
    """What is computed, whatever the data, the seed and the first weights."""
    budget = spec.budget.model_copy(update={"seed": 0})
    return spec.model_copy(update={"budget": budget, "initial": None}).fingerprint("")


def megabytes(folder: Path) -> float:
    """The size of an exported pipeline."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def _numbers(measured: Measured) -> dict[str, float]:
    return {"eval/loss": measured.loss, **measured.quality, "seconds_per_sample": measured.seconds}
