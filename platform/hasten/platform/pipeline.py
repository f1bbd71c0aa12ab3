"""A retraining pipeline as data: what to keep fresh, and when a challenger is better."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from hasten.trainers import config
from hasten.trainers.config import Spec
from hasten.trainers.specs import Name
from hasten.trainers.tracker import EVAL_LOSS

PIPELINES: Final = Path(__file__).with_name("pipelines")


class Gate(Spec):
    """A challenger becomes champion when its held-out loss on the current data is lower."""

    metric: Literal["eval/loss"] = EVAL_LOSS
    mode: Literal["min"] = "min"


class Pipeline(Spec):
    """What to keep fresh. See ``pipelines/`` for an example."""

    name: Name
    recipe: str
    overrides: dict[str, Any] = {}
    model: Name
    gate: Gate = Gate()


def load(pipeline: str, overrides: dict[str, Any]) -> Pipeline:
    """The pipeline that a file (a path or a shipped name) and overrides describe.

    Raises:
        ConfigError: no such pipeline, unknown or ill-typed keys.
    """
    path = config.find(pipeline, PIPELINES, "pipeline")
    return config.validate(Pipeline, config.override(config.read_yaml(path), overrides))
