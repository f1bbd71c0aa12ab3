"""One process at a time on this machine: a lock that dies with its owner, also by ``kill -9``."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hasten.trainers.errors import Fault


class Busy(Fault):
    """Another process is at it."""


@contextmanager
def only_one(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock file at ``path``.

    Raises:
        Busy: another process holds it; the message names ``what`` and the process.
        Fault: the lock file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise Fault(
            str(path), f"cannot be written: {error.strerror}", "Choose another HASTEN_HOME."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise Busy(what, f"is being run by process {owner}", "Wait for it, or stop it.") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
