"""What a run leaves behind: ``result.json`` in the store is the truth, MLflow is a view of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RunStatus = Literal["finished", "failed", "stopped", "running"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the outside hears now and then; equal on every rank, so that all can decide alike.

    ``images`` of ``total`` are done after ``seconds`` of training. An ``evaluated`` report is about one
    evaluation of the held-out loss: ``images`` is the step that it is recorded under, ``metrics`` are all of
    that step, and ``items`` holds the held-out error of each group of images: the same images, noise and
    timesteps for every run of an ``eval`` spec. It is the same however the run came there. ``again`` says
    that it was made before the run went on from here, perhaps by another run. ``stopped`` says that the run
    ends here, unfinished.
    """

    images: int
    total: int
    seconds: float
    metrics: dict[str, float]
    evaluated: bool
    stopped: bool = False
    items: tuple[float, ...] = ()
    again: bool = False


class Point(BaseModel):
    """Metrics at one moment: ``step`` is images seen, on the nominal grid for evaluations."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    step: int
    metrics: dict[str, float]


class RunResult(BaseModel):
    """How a run ended and what it measured; written last of all, once.

    ``seconds`` were spent training, over all attempts; ``wall_seconds`` passed in the last attempt, with
    evaluation, checkpoints and loading. ``metrics`` are the final values under their MLflow names;
    ``history`` holds every point in order of step; ``by_timestep`` the held-out loss of equal ranges of
    timesteps, and as ``items`` of groups of images, at each evaluation; ``evaluation`` all that a score
    depends on beside the network; ``spec`` is the resolved recipe; ``environment`` records what does not
    enter the fingerprint (versions, device, threads, world size).
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    run: str
    fingerprint: str
    status: RunStatus
    images: int
    resumed_from: int | None = None
    seconds: float
    wall_seconds: float = 0.0
    metrics: dict[str, float]
    history: list[Point] = Field(default_factory=list)
    by_timestep: list[dict[str, Any]] = Field(default_factory=list)
    evaluation: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None
    spec: dict[str, Any]
    data_digest: str
    environment: dict[str, str] = Field(default_factory=dict)

    def series(self, metric: str) -> list[tuple[int, float]]:
        """The ``(step, value)`` pairs of one metric, by step."""
        return [(point.step, point.metrics[metric]) for point in self.history if metric in point.metrics]
