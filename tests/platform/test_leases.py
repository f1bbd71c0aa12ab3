"""Leases and the ledger of ticks, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine, update

from hasten.platform import database, leases
from hasten.platform.leases import _LEASES, Lease, Lost
from hasten.platform.locks import Busy
from hasten.platform.retraining.ledger import Ledger
from hasten.trainers.errors import ConfigError, Fault


def nothing() -> None:
    """A holder that does not mind."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql"))
    return f"sqlite:///{tmp_path}/new/folder/hasten.db"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = database.opened(url)
    yield made
    made.dispose()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def take(
    engine: Engine, name: str, *, seconds: float = leases.SECONDS, on_lost: Callable[[], None] = nothing
) -> AbstractContextManager[Lease]:
    return leases.held(engine, name, what="the pipeline", on_lost=on_lost, seconds=seconds)


def refused(engine: Engine, name: str, match: str) -> None:
    with pytest.raises(Busy, match=match), take(engine, name):
        pass


def move_away(engine: Engine, name: str) -> None:
    """Let the holder be one of another machine, of which nothing is known but its signs of life."""
    elsewhere = json.dumps({"host": "elsewhere", "space": "", "pid": 1, "began": 0.0})
    with database.writing(engine) as connection:
        connection.execute(update(_LEASES).where(_LEASES.c.name == name).values(holder=elsewhere))


def test_there_is_one_holder_and_every_next_one_has_a_larger_token(engine: Engine, name: str) -> None:
    with take(engine, name) as first:
        first.check()
        refused(engine, name, f"the pipeline: is being run by process {os.getpid()} on ")
    with take(engine, name) as second:
        assert second.token > first.token
        with pytest.raises(Lost, match="taken over"):
            first.check()


ROUNDS = 15
_together: threading.Barrier


def _enter(barrier: threading.Barrier) -> None:
    global _together
    _together = barrier


def _race(url: str) -> list[int | None]:
    """The tokens that this process got, None where another one was first."""
    engine, tokens = database.opened(url), []
    for number in range(ROUNDS):
        _together.wait(60)
        try:
            with leases.held(engine, f"race-{number}", what="it", on_lost=nothing) as lease:
                tokens.append(lease.token)
                _together.wait(60)  # nobody lets go before everybody has tried
        except Busy:
            tokens.append(None)
            _together.wait(60)
    return tokens


def test_of_many_at_once_one_gets_it(url: str) -> None:
    """Also where several open a new database together."""
    context = multiprocessing.get_context("spawn")
    barrier, racers = context.Barrier(5), 5
    with context.Pool(racers, initializer=_enter, initargs=(barrier,)) as pool:
        tokens = pool.map(_race, [url] * racers, chunksize=1)
    for number, of_round in enumerate(zip(*tokens, strict=True)):
        winners = [token for token in of_round if token is not None]
        assert len(winners) == 1, f"round {number}: {of_round}"


HOLDS = """
import sys, time
from hasten.platform import database, leases
with leases.held(database.opened(sys.argv[1]), sys.argv[2], what="it", on_lost=print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_of_this_machine_is_followed_at_once(engine: Engine, url: str, name: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, url, name], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    refused(engine, name, f"process {process.pid} ")
    process.kill()
    process.wait()
    with take(engine, name) as mine:
        assert mine.token == 2


def test_a_silent_holder_of_another_machine_loses_it_in_time(
    engine: Engine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, silent = threading.Event(), ExitStack()
    first = silent.enter_context(take(engine, name, seconds=1.0, on_lost=told.set))
    monkeypatch.setattr(first, "_renew", lambda: time.sleep(2.5))
    move_away(engine, name)
    refused(engine, name, "on elsewhere")
    time.sleep(1.2)
    with take(engine, name) as second:
        monkeypatch.undo()  # it wakes up
        assert told.wait(10), "who lost it was not told"
        with pytest.raises(Lost):
            first.check()
        silent.close()  # what it lets go of is not its own any more
        second.check()
        refused(engine, name, f"by process {os.getpid()} ")


def test_signs_of_life_keep_it(engine: Engine, name: str) -> None:
    with take(engine, name, seconds=0.8):
        move_away(engine, name)
        time.sleep(2.5)
        refused(engine, name, "on elsewhere")


def test_a_late_sign_of_life_does_not_undo_the_release(
    engine: Engine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with take(engine, name, seconds=2.0) as first:
        renew, begun = first._renew, threading.Event()

        def slow() -> None:
            begun.set()
            time.sleep(0.5)
            renew()

        monkeypatch.setattr(first, "_renew", slow)
        move_away(engine, name)
        assert begun.wait(5)
    time.sleep(1.0)  # a sign of life that is still under way would have come by now
    with take(engine, name) as second:
        assert second.token == 2


def test_the_ledger_tells_the_story(engine: Engine, name: str) -> None:
    ledger = Ledger(engine, name)
    with take(engine, name) as died:
        ledger.begin("key1", died)  # and no end
        ledger.skip("key1", "running", "somebody is at it")
    with take(engine, name) as second:
        number = ledger.begin("key1", second)
        ledger.end(number, second, "promoted", "0.1 against 0.2", "7")
        with pytest.raises(Lost):  # a holder that was thought dead writes nothing any more
            ledger.end(number, died, "rejected", "", None)
        with pytest.raises(Lost):
            ledger.begin("key2", died)
    entries = ledger.entries()
    assert [each.decision for each in entries] == ["died", "running", "promoted"]
    assert (entries[2].version, entries[2].reason, entries[2].key) == ("7", "0.1 against 0.2", "key1")
    assert entries[0].token is not None
    assert entries[1].token is None
    assert all(each.ended is not None and each.ended >= each.began for each in entries)
    assert Ledger(engine, "another").entries() == []


def test_a_database_that_is_away_is_told(tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"postgresql\+psycopg://me@127.0.0.1:9/x: the database failed"):
        database.opened("postgresql://me@127.0.0.1:9/x")
    (tmp_path / "no.db").write_bytes(b"this is no database" * 100)
    with pytest.raises((Fault, ConfigError), match="database failed"):
        database.opened(f"sqlite:///{tmp_path}/no.db")


@pytest.mark.parametrize("url", ["postgresql://host:port/x", "postgresql+nobody://host/x"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(ConfigError, match="database: is no address of a database"):
        database.opened(url)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fault, match="cannot be made"):
        database.opened(f"sqlite:///{tmp_path}/file/hasten.db")
