"""One driver of a study at a time, on any machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from hasten.platform import locks
from hasten.platform.locks import Busy, only_driver
from hasten.sweeps.conducting.ledger import BEAT, StudyNote


def note(*, age: float = 1.0, state: str = "running", host: str = "elsewhere", pid: int = 1) -> StudyNote:
    now = time.time()
    return StudyNote.model_validate(
        {
            "name": "s",
            "spec": {},
            "state": state,
            "host": host,
            "pid": pid,
            "started": now - 1000.0,
            "heartbeat": now - age,
        }
    )


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_SECONDS_BETWEEN_LOOKS", 0.01)


def look(ask: Callable[[], StudyNote | None]) -> list[str]:
    said: list[str] = []
    only_driver(ask, say=said.append)
    return said


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    "last",
    [
        None,
        note(age=5 * BEAT),
        note(state="stopped"),
        note(state="finished"),
        note(host=socket.gethostname(), pid=os.getpid()),
        note(host=socket.gethostname(), pid=ended_process()),
    ],
    ids=["never run", "silent", "stopped", "finished", "this process", "a dead process"],
)
def test_nobody_is_waited_for(last: StudyNote | None) -> None:
    assert look(lambda: last) == []


def test_a_driver_elsewhere_is_waited_for_until_it_is_silent() -> None:
    killed = note(age=4 * BEAT - 0.3)
    said = look(lambda: killed)
    assert len(said) == 1
    assert "on elsewhere a moment ago" in said[0]
    assert not killed.is_alive()


def test_a_driver_elsewhere_that_lives_is_left_alone() -> None:
    ages = iter([3.0, 3.0, 1.0])
    with pytest.raises(Busy, match="process 1 on elsewhere"):
        look(lambda: note(age=next(ages) + 0.01))
