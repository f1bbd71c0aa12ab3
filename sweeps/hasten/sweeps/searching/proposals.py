"""What a search tries next, as a function of what is known: no clock, no order of arrival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hasten.sweeps.records import TrialRecord
from hasten.sweeps.space import Settings
from hasten.trainers.specs import Start


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Something to try, once for each seed of the study.

    ``name`` is the arm's, or the point's number. A member of a population starts from ``start`` and runs
    until ``until`` images; ``parent`` is the point whose weights it takes over.
    """

    number: int
    name: str
    settings: Settings
    start: Start | None = None
    until: int | None = None
    parent: str | None = None


class Proposals(Protocol):
    """The points of a study, one by one."""

    @property
    def count(self) -> int:
        """How many points there are in all."""

    def needs(self, number: int) -> int:
        """How many of the first points must be over before point ``number`` can be told."""

    def point(self, number: int, outcomes: Sequence[Mapping[int, TrialRecord]]) -> Point:
        """Point ``number``, given how the first ``needs(number)`` points ended, each by seed.

        The same outcomes give the same point, in any process, at any time.
        """
