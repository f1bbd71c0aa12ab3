"""Whether to stop: asked often, agreed by all workers, cheap."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import torch

from hasten.trainers.worker import Worker

_SECONDS: Final = 2.0  # a question to all workers is a barrier, and on an accelerator a synchronisation


class Pulse:
    """Asks ``stop`` on every worker, every step alone and about every other second in company."""

    def __init__(self, worker: Worker, stop: Callable[[], bool]) -> None:
        self._worker = worker
        self._stop = stop
        self._steps = self._left = 1
        self._clock = time.monotonic()

    def stopping(self) -> bool:
        """Whether any worker was asked to stop, the same on all of them; to be called after every step."""
        if self._worker.world_size == 1:
            return self._stop()
        self._left -= 1
        if self._left:
            return False
        elapsed = time.monotonic() - self._clock
        local = torch.tensor([elapsed, float(self._stop())], dtype=torch.float64, device=self._worker.device)
        seconds, stops = self._worker.sum(local).tolist()
        # Every worker counts the same steps, so all must choose the same number of them.
        pace = self._steps * self._worker.world_size / max(seconds, 1e-6)
        self._steps = self._left = min(max(1, int(pace * _SECONDS)), 4 * self._steps)
        self._clock = time.monotonic()
        return bool(stops > 0)
