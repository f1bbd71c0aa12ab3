"""A retraining pipeline as data: what to keep fresh, when, from what, and when a challenger is better."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator, model_validator

from hasten.trainers import config
from hasten.trainers.config import Spec
from hasten.trainers.specs import Name
from hasten.trainers.tracker import EVAL_LOSS

PIPELINES: Final = Path(__file__).parents[1] / "pipelines"

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


class Trigger(Spec):
    """When a tick trains. Another recipe or version of hasten is always a reason; these may be, too.

    Attributes:
        data_changed: the data set is another one than at the last decision.
        min_new_samples: only when at least so many of its images were not there at the last decision.
        max_age: hours after which the champion is trained anew, with another seed if nothing else changed.
    """

    data_changed: bool = True
    min_new_samples: Annotated[int, Field(ge=0)] = 0
    max_age: Positive | None = None


class Origin(Spec):
    """What a challenger is trained from.

    Attributes:
        config: the pipeline's ``recipe``, the champion's own recipe, or the winner of ``study``.
        study: a study's file or shipped name. Its winner is the arm that beat the baseline, or the baseline.
        run_study: bring that study to its end on the current data first, instead of reading what it found.
        weights: ``scratch``, or ``champion`` to begin with the champion's averaged weights.
    """

    config: Literal["recipe", "champion", "study"] = "recipe"
    study: str | None = None
    run_study: bool = False
    weights: Literal["scratch", "champion"] = "scratch"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.config == "study") != (self.study is not None):
            raise ValueError("study: is needed with `config: study`, and means nothing without it")
        if self.run_study and self.config != "study":
            raise ValueError("run_study: means nothing without `config: study`")
        return self


class Gate(Spec):
    """When a challenger becomes champion.

    Its held-out loss on the current data must be lower by a margin (see ``gate.py``)
    that luck with the seed explains badly. Where nobody knows that luck nothing is promoted.

    Attributes:
        deviations: standard deviations between seeds that the margin has at least.
        confidence: that two runs of one recipe do not differ by the margin in the challenger's favour.
        min_improvement: a relative one on top, 0.01 for 1 %.
        calibration_seeds: runs of the champion's recipe under other seeds, which measure the deviation where
            no study did. They are trained once, when a challenger looks better, and stay with the champion.
    """

    metric: Literal["eval/loss"] = EVAL_LOSS
    mode: Literal["min"] = "min"
    deviations: Annotated[float, Field(ge=2.0)] = 2.0
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.95
    min_improvement: Share = 0.0
    calibration_seeds: Literal[0] | Annotated[int, Field(ge=3)] = 3


class Guardrails(Spec):
    """What a challenger must keep whatever its loss. None switches one off.

    Attributes:
        max_frechet_ratio: Fréchet distance over the champion's.
        min_diversity: recall over the champion's.
        min_unseen: ``eval/nearest_unseen``: 1 unless training images are memorized.
        max_megabytes: of the exported pipeline.
        max_latency_ratio: seconds a sample over the champion's, both measured now and in turns.
    """

    max_frechet_ratio: Positive | None = 1.5
    min_diversity: Share | None = 0.8
    min_unseen: Positive | None = 0.5
    max_megabytes: Positive | None = None
    max_latency_ratio: Positive | None = 2.0


class Limits(Spec):
    """What one tick may take.

    Attributes:
        gpu_hours: refused before training when the estimate is above it; on a machine without a GPU these are
            worker-hours.
        hours: wall time after which training stops at a checkpoint; the next tick goes on.
    """

    gpu_hours: Positive | None = None
    hours: Positive | None = None


class Notify(Spec):
    """A webhook that is told of decisions, with a body that Slack understands.

    Its address is a secret: ``url_variable`` names the environment variable that holds it, and
    ``secret_variable`` one with the key of the signature.
    """

    url_variable: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] = "HASTEN_WEBHOOK_URL"
    secret_variable: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] = "HASTEN_WEBHOOK_SECRET"
    on: tuple[Literal["promoted", "rejected", "failed", "unchanged", "not_due"], ...] = (
        "promoted",
        "rejected",
        "failed",
    )


class Schedule(Spec):
    """When ticks come.

    Attributes:
        cron: five fields as in Debian's cron, for example ``0 3 * * *``.
        timezone: of the wall clock that ``cron`` means, such as ``Europe/Berlin``. A time that a change to
            daylight saving leaves out comes right after it; one that occurs twice comes once.
        catchup: of ticks that were missed: the latest, all one after another, or none.
        jitter: up to so many seconds later, the same for the same tick.
    """

    cron: str
    timezone: str = "UTC"
    catchup: Literal["latest", "all", "none"] = "latest"
    jitter: Annotated[float, Field(ge=0.0, le=86_400.0)] = 0.0

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is no time zone; write one such as Europe/Berlin") from None
        return value

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        try:
            next(CronSim(value, datetime(2000, 1, 1)))
        except (CronSimError, StopIteration) as error:
            raise ValueError(f"{value!r} is no cron expression: {error or 'it never comes'}") from None
        return value


class Pipeline(Spec):
    """What to keep fresh. See ``pipelines/`` for an example."""

    name: Name
    recipe: str
    overrides: dict[str, Any] = {}
    model: Name
    trigger: Trigger = Trigger()
    origin: Origin = Origin()
    gate: Gate = Gate()
    guardrails: Guardrails = Guardrails()
    limits: Limits = Limits()
    notify: Notify | None = None
    schedule: Schedule | None = None


def load(pipeline: str, overrides: dict[str, Any]) -> Pipeline:
    """The pipeline that a file (a path or a shipped name) and overrides describe.

    Raises:
        ConfigError: no such pipeline, unknown or ill-typed keys.
    """
    path = config.find(pipeline, PIPELINES, "pipeline")
    return config.validate(Pipeline, config.override(config.read_yaml(path), overrides))
