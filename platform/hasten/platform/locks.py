"""One process at a time: a lock that dies with its owner, also by ``kill -9``; elsewhere, signs of life."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from hasten.sweeps.conducting.ledger import StudyNote
from hasten.trainers.errors import Fault

_SECONDS_BETWEEN_LOOKS: Final = 5.0


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


def only_driver(note: Callable[[], StudyNote | None], *, say: Callable[[str], None]) -> None:
    """Wait until a study's last driver, perhaps killed on another machine, has been silent for long.

    Nothing on this machine tells whether a process of another one lives: only that it goes on giving signs
    of life does. Two commands that start within seconds of each other are not told apart.

    Args:
        note: reads the study's note.
        say: is told, once, what is waited for.

    Raises:
        Busy: it lives.
    """
    first = last = note()
    is_told = False
    while first is not None and last is not None and last.is_alive() and not is_gone(last):
        what = f"study {last.name}"
        if last.heartbeat > first.heartbeat:
            problem = f"is being run by process {last.pid} on {last.host}"
            raise Busy(what, problem, f"Wait for it, or stop it; `hasten status {last.name}` follows it.")
        if not is_told:
            is_told = True
            say(f"{what} was being run on {last.host} a moment ago; waiting until that is over for sure")
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        last = note()


def is_gone(note: StudyNote) -> bool:
    """Whether who wrote it is known to be gone: an earlier life of this process, or of this machine."""
    if note.host != socket.gethostname():
        return False
    return note.pid == os.getpid() or not psutil.pid_exists(note.pid)
