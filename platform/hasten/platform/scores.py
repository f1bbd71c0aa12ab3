"""Which points of a run go to the server: each (key, step) once, with ``best/`` and ``final/`` copies.

The server's tables show only the last value of a metric; the copies are what one sorts a table by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from hasten.platform.observer import PREFIX

MAX_KEYS: Final = 40  # those of the machine do not count: a node may have many GPUs

Mode = Literal["min", "max"]

# Where the better value lies. A key that is not here, nor one of these with a suffix such as
# ``eval/loss_raw``, has a ``final/`` copy and no ``best/``: a best in the wrong direction would be a lie.
MODES: Final[Mapping[str, Mode]] = {
    "eval/loss": "min",
    "eval/frechet": "min",
    "eval/fid": "min",
    "eval/kid": "min",
    "eval/nll": "min",
    "eval/inception_score": "max",
    "eval/precision": "max",
    "eval/recall": "max",
    "eval/density": "max",
    "eval/coverage": "max",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one metric; ``step`` in images seen, ``time`` in milliseconds since 1970."""

    key: str
    value: float
    step: int
    time: int


@dataclass
class Scores:
    """What a run has on the server, and what follows from it for the next point.

    Not safe for several threads.
    """

    seen: dict[str, set[int]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    _best: dict[str, float] = field(default_factory=dict)
    _last: dict[str, tuple[int, float]] = field(default_factory=dict)

    def load(self, history: Iterable[Sample]) -> None:
        """Take note of what the server has already."""
        for sample in history:
            self.seen.setdefault(sample.key, set()).add(sample.step)
            self._remember(sample)

    def accept(self, values: Mapping[str, float], *, step: int, time: int) -> list[Sample]:
        """The points to send for ``values``: the new ones, and ``best/`` copies where they improve."""
        samples: list[Sample] = []
        for key, value in values.items():
            sample = Sample(key, value, step, time)
            if not self._is_new(sample):
                continue
            samples.append(sample)
            if self._remember(sample):
                best = Sample(f"best/{key}", value, step, time)
                samples += [best] if self._is_new(best) else []
        return samples

    def finals(self, *, time: int) -> list[Sample]:
        """The ``final/`` copies of every evaluation metric's last value."""
        samples = [Sample(f"final/{key}", value, step, time) for key, (step, value) in self._last.items()]
        return [sample for sample in samples if self._is_new(sample)]

    def _is_new(self, sample: Sample) -> bool:
        if sample.key not in self.seen and not sample.key.startswith(PREFIX) and self._num_own() >= MAX_KEYS:
            self.refused.add(sample.key)
            return False
        steps = self.seen.setdefault(sample.key, set())
        if sample.step in steps:
            return False
        steps.add(sample.step)
        return True

    def _num_own(self) -> int:
        return sum(not key.startswith(PREFIX) for key in self.seen)

    def _remember(self, sample: Sample) -> bool:
        """Note an evaluation metric's value; whether it is the best so far."""
        if not sample.key.startswith("eval/"):
            return False
        if sample.step >= self._last.get(sample.key, (-1, 0.0))[0]:
            self._last[sample.key] = (sample.step, sample.value)
        mode = mode_of(sample.key)
        if mode is None or math.isnan(sample.value):
            return False
        best = self._best.get(sample.key)
        if best is not None and (sample.value >= best if mode == "min" else sample.value <= best):
            return False
        self._best[sample.key] = sample.value
        return True


def mode_of(key: str) -> Mode | None:
    """Where the better values of a metric lie; None when hasten does not know."""
    for name, mode in MODES.items():
        if key == name or key.startswith(name + "_"):
            return mode
    return None


def source_of(key: str) -> str:
    """The metric that a ``best/`` or ``final/`` copy is of; any other metric itself."""
    return key.removeprefix("best/").removeprefix("final/")
