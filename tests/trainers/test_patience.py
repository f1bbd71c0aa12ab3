"""Asking again while a server is away."""

from __future__ import annotations

import threading

import pytest

from hasten.trainers import patience
from hasten.trainers.errors import Away, Fault
from hasten.trainers.patience import patiently


class Server:
    """Away for its first so many questions."""

    def __init__(self, away: int, error: Fault | None = None) -> None:
        self.asked = 0
        self._away = away
        self._error = error or Away("s3://b", "failed")

    def __call__(self) -> int:
        self.asked += 1
        if self.asked <= self._away:
            raise self._error
        return self.asked


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.001)


def test_an_outage_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    assert patiently(Server(away=4), seconds=10.0) == 5
    assert caplog.text.count("it is tried again") == 1


def test_patience_ends() -> None:
    server = Server(away=10**6)
    with pytest.raises(Away):
        patiently(server, seconds=0.05)
    assert server.asked > 2


def test_other_faults_are_not_waited_for() -> None:
    server = Server(away=1, error=Fault("/disk", "is full"))
    with pytest.raises(Fault, match="is full"):
        patiently(server, seconds=10.0)
    assert server.asked == 1


def test_enough_is_enough() -> None:
    enough, server = threading.Event(), Server(away=10**6)
    enough.set()
    with pytest.raises(Away):
        patiently(server, seconds=10.0, enough=enough)
    assert server.asked == 1
