"""What a tracker's own thread finds out about the machine of its run: its packages, its load over time.

MLflow's monitor does the same on a thread of its own, which ends at the first request that fails and holds up
the end of a run. Its gauges are used here; what they show takes the way of all metrics, through the spool.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from hasten.platform import provenance

PREFIX: Final = "system/"
LOOK_SECONDS: Final = 5.0
TELL_SECONDS: Final = (10.0, 60.0)  # at least between two points, and at most
_SHARE: Final = 0.01  # of a run's age: a day leaves some 1,500 points, not 9,000

log = logging.getLogger(__name__)


class Gauge(Protocol):
    """Some figures of a machine, as MLflow's monitors give them."""

    def collect_metrics(self) -> None:
        """Look once."""

    def aggregate_metrics(self) -> Mapping[str, float]:
        """The mean of each figure over the looks since ``clear_metrics``."""

    def clear_metrics(self) -> None:
        """Begin anew."""


Gauges = Callable[[], list[Gauge]]


class Observer:
    """Watches the machine for one tracker, on the thread that calls it."""

    def __init__(self, gauges: Gauges) -> None:
        self._make = gauges
        self._gauges: list[Gauge] = []
        self._began = self._looked = self._told = time.monotonic()
        self._last_step: int | None = None

    def files(self) -> Mapping[str, bytes]:
        """What is written down once, at the start."""
        self._gauges = self._make()
        self._each(lambda gauge: gauge.collect_metrics())  # the first look at a CPU has nothing to compare
        self._each(lambda gauge: gauge.clear_metrics())
        return {provenance.REQUIREMENTS: provenance.packages().encode()}

    def look(self, step: int | None, *, last: bool = False) -> Mapping[str, float]:
        """The means since the last point, when one is due at ``step``; otherwise nothing.

        While no step is reported, as in a long evaluation, looks add up for the next one.
        """
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS or last:
            self._looked = now
            self._each(lambda gauge: gauge.collect_metrics())
        shortest, longest = TELL_SECONDS
        pause = min(max(shortest, _SHARE * (now - self._began)), longest)
        if step is None or step == self._last_step or not (last or now - self._told >= pause):
            return {}
        self._told, self._last_step = now, step
        values: dict[str, float] = {}
        for gauge in self._gauges:
            values |= {f"{PREFIX}{name}": float(value) for name, value in gauge.aggregate_metrics().items()}
            gauge.clear_metrics()
        return values

    def _each(self, act: Callable[[Gauge], None]) -> None:
        for gauge in list(self._gauges):
            try:
                act(gauge)
            except Exception as error:  # a driver that fails is no reason to lose the others
                log.warning("tracking: %s is not watched any more: %s", type(gauge).__name__, error)
                self._gauges.remove(gauge)
