"""The outcome of one trial of a study, as the comparison sees it."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.trainers.records import RunResult


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """A finished run and its place in the study."""

    trial: str
    arm: str
    seed: int
    result: RunResult
