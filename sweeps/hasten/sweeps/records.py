"""What is known of a trial once it is over: a value that the study's ledger keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hasten.trainers.records import RunResult

TrialState = Literal["finished", "stopped", "failed"]
FailureKind = Literal["diverged", "memory", "lost", "data", "program"]
"""Why a trial failed: it trained into infinity; it did not fit into memory; its process or node was lost
again and again; its data or configuration is wrong; an error in a program. The first two would come again."""


class Verdict(BaseModel):
    """Why a stopping rule ended a trial: its value at a rung, and what it was held against."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rule: str
    images: int
    value: float
    threshold: float | None
    reason: str


class TrialRecord(BaseModel):
    """How a trial of a study ended.

    ``settings`` are the keys in which it differs from the base. ``state`` is ``finished`` when the run has a
    result (or, for a member of a population, its generation is over), ``stopped`` when a stopping rule ended
    it, ``failed`` otherwise. ``curves`` hold ``(images, value)`` of every held-out metric and of
    ``perf/seconds``; ``items`` the held-out errors by group of images, at each evaluation. ``occupied`` is
    for how many seconds it held its ``cpus`` and ``gpus``, over all attempts that are known. ``attempts``
    counts its starts, ``lost`` those that ended with a node, or because the store was away.
    ``forked_images`` were not computed but taken over from the trial ``forked_from``. ``parent`` is the trial
    whose weights a member of a population took over. ``size`` digests what it ran on: a trial that ran out of
    memory is tried again only on another.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    trial: str
    arm: str
    seed: int
    settings: dict[str, Any] = Field(default_factory=dict)
    run: str
    fingerprint: str
    state: TrialState
    images: int
    total: int
    seconds: float = 0.0
    occupied: float = 0.0
    cpus: float = 1.0
    gpus: float = 0.0
    metrics: dict[str, float] = Field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = Field(default_factory=dict)
    items: list[tuple[int, list[float]]] = Field(default_factory=list)
    verdict: Verdict | None = None
    failure: FailureKind | None = None
    error: str = ""
    attempts: int = 1
    lost: int = 0
    forked_from: str | None = None
    forked_images: int = 0
    parent: str | None = None
    size: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """A run that is over and its place in the study; ``record`` says how it ended, where that is known."""

    trial: str
    arm: str
    seed: int
    result: RunResult
    record: TrialRecord | None = None
