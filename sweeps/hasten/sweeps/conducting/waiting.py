"""Which trial is next: in order, but for those that wait for another one."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict

from hasten.sweeps.conducting.courses import Course


class Queue:
    """Trials that can start, in order, and trials that wait behind another trial."""

    def __init__(self) -> None:
        self._ready: list[Course] = []
        self._behind: dict[str, list[tuple[float, Course]]] = defaultdict(list)

    def __bool__(self) -> bool:
        """Whether there is a trial that can start now."""
        return bool(self._ready)

    def push(self, course: Course) -> None:
        heapq.heappush(self._ready, course)

    def pop(self) -> Course:
        """The first in order of those that can start."""
        return heapq.heappop(self._ready)

    def wait(self, course: Course, other: str, *, images: float = math.inf) -> None:
        """``course`` can start once trial ``other`` has passed ``images``, or has ended."""
        self._behind[other].append((images, course))

    def passed(self, other: str, images: float = math.inf) -> None:
        """Trial ``other`` has come that far."""
        for wanted, course in self._behind.pop(other, ()):
            if images > wanted:
                self.push(course)
            else:
                self.wait(course, other, images=wanted)

    def ended(self, other: str) -> None:
        """Trial ``other`` does not run any more."""
        for _, course in self._behind.pop(other, ()):
            self.push(course)
