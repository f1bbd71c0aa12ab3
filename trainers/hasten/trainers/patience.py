"""Asking again while a server is away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from hasten.trainers.errors import Away

T = TypeVar("T")

_FIRST_PAUSE: Final = 1.0  # seconds; each is twice as long as the one before
_LONGEST_PAUSE: Final = 10.0

log = logging.getLogger(__name__)


def patiently(ask: Callable[[], T], *, seconds: float, enough: threading.Event | None = None) -> T:
    """What ``ask`` returns, asked again and again for ``seconds`` while a server is away.

    Raises:
        Away: it still is, or was when ``enough`` was set.
    """
    enough = enough or threading.Event()
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while True:
        try:
            return ask()
        except Away as error:
            if time.monotonic() + pause > deadline or enough.is_set():
                raise
            if pause == _FIRST_PAUSE:
                log.warning("%s: %s; it is tried again for %.0f s", error.subject, error.problem, seconds)
            enough.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
