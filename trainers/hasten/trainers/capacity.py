"""How many workers a cluster has room for, and when a run should take more of them.

Resources go by name (``CPU``, ``GPU``); a worker lies on one node.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import Execution

Resources = Mapping[str, float]

_SECONDS_TO_ANSWER: Final = 2.0
_SECONDS_TO_SETTLE: Final = 5.0  # until the cluster knows that a group's resources are free again
_SECONDS_BETWEEN_QUESTIONS: Final = 0.5


def needs(execution: Execution) -> Resources:
    """What one worker of a run occupies."""
    return {"CPU": execution.cpus} | ({"GPU": execution.gpus} if execution.gpus else {})


def room(nodes: Iterable[Resources], needs: Resources) -> int:
    """For how many workers, each with these needs, there is room."""
    return sum(
        min(int(node.get(kind, 0.0) / each + 1e-9) for kind, each in needs.items() if each) for node in nodes
    )


def require(workers: int, nodes: Iterable[Resources], needs: Resources) -> None:
    """Refuse what the cluster, even when idle, can never hold: Ray would wait for it forever.

    Raises:
        ConfigError: with the numbers.
    """
    known = list(nodes)
    for kind, each in needs.items():
        available = sum(node.get(kind, 0.0) for node in known)
        if workers * each > available:
            problem = (
                f"{workers} of {each:g} {kind}s each need {workers * each:g}; the cluster has {available:g}"
            )
            raise ConfigError("execution.workers", problem, "Ask for fewer, or add nodes.")
    if room(known, needs) < workers:
        each_needs = " and ".join(f"{each:g} {kind}s" for kind, each in needs.items() if each)
        problem = f"{workers} of {each_needs} each: the cluster's nodes have room for {room(known, needs)}"
        raise ConfigError("execution.workers", problem, "A worker lies on one node: ask for smaller ones.")


def answers(node: Mapping[str, Any]) -> bool:
    """Whether a node, as Ray lists it, is up: Ray takes up to half a minute to notice that it is not."""
    address = node["NodeManagerAddress"], node["NodeManagerPort"]
    with contextlib.suppress(OSError):
        socket.create_connection(address, timeout=_SECONDS_TO_ANSWER).close()
        return bool(node["Alive"])
    return False


def settled(free: Callable[[], int], least: int, most: int) -> int:
    """How many workers to start with: as many as there is room for, or ``least``, which wait for theirs."""
    deadline = time.monotonic() + _SECONDS_TO_SETTLE
    while least < most and (there := free()) < most:
        if time.monotonic() > deadline:
            return max(there, least)
        time.sleep(_SECONDS_BETWEEN_QUESTIONS)
    return most


class Growth:
    """Whether there is room for more workers than there are, looked for every ``seconds`` once they train."""

    def __init__(self, free: Callable[[], int], seconds: float) -> None:
        self._free = free
        self._seconds = seconds
        self._looked: float | None = None

    def is_due(self, they_train: bool) -> bool:
        """Whether the workers should make room for more."""
        now = time.monotonic()
        if self._looked is None:
            # Until they train, the room that they wait for may look free.
            self._looked = now if they_train else None
            return False
        if now - self._looked < self._seconds:
            return False
        self._looked = now
        return self._free() > 0
