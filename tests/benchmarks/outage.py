"""A server of a local stack that goes away for a while."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

import psutil

from hasten.platform import settings
from hasten.platform.stack import launcher, processes

_LONGEST: Final = 30.0  # seconds


class Outage:
    """A server that is away from now on, for up to ``_LONGEST`` seconds: killed, or it only stops to answer.

    ``aim`` in [0, 1) picks both, how and for how long.
    """

    def __init__(self, home: Path, part: str, aim: float) -> None:
        self._part = part
        self._silent, seconds = aim < 0.5, _LONGEST * (2 * aim % 1)
        self._members = processes.members(home, part)
        self._until: float | None = time.monotonic() + seconds
        for process in self._members:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend() if self._silent else process.kill()

    def look(self, *, over: bool = False) -> None:
        """Have the server back when it is time, or when all is ``over``."""
        if self._until is None or not (over or time.monotonic() > self._until):
            return
        self._until = None
        for process in self._members if self._silent else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        if not self._silent:
            launcher.up(settings.load(), [self._part])
