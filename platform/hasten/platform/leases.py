"""One holder at a time on any number of machines: a row with signs of life and a fencing token.

The row lives in our own tables at ``settings.database``. Its token grows with every new holder, so whoever
was silent too long and wakes up again is told by its own token that somebody else has gone on. Neither a lock
file, which one machine sees, nor a conditional put, which not every object store does atomically, could.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import psutil
from sqlalchemy import BigInteger, Column, Connection, Engine, Float, String, Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from hasten.platform import database
from hasten.platform.locks import Busy
from hasten.trainers.errors import Fault, HastenError

SECONDS: Final = 60.0
"""How long a lease lasts beyond the last sign of life of its holder."""

_LEASES: Final = Table(
    "hasten_leases",
    database.TABLES,
    Column("name", String(200), primary_key=True),
    Column("holder", String(400), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires", Float(53), nullable=False),
)


class Lost(Fault):
    """Somebody else holds it by now."""


class Lease:
    """A name that is ours for as long as we show signs of life; see :func:`held`.

    Attributes:
        name: what is held.
        token: a number that no earlier holder had, and that every later one exceeds.
    """

    def __init__(self, engine: Engine, name: str, token: int, *, seconds: float) -> None:
        self.name, self.token = name, token
        self._engine, self._seconds = engine, seconds
        self._renewed = time.monotonic()
        self._over = threading.Event()

    def check(self) -> None:
        """Whether it is still ours, by the database.

        Raises:
            Lost: it is not.
            Fault: the database failed.
        """
        with database.writing(self._engine) as connection:
            self.guard(connection)

    def guard(self, connection: Connection) -> None:
        """Make a transaction one of the holder's: nobody else becomes it before the transaction ends.

        Raises:
            Lost: it is not ours any more; let the transaction fail with it.
        """
        row = _LEASES.c.name == self.name
        token = connection.execute(select(_LEASES.c.token).where(row).with_for_update()).scalar_one_or_none()
        if token != self.token:
            problem = "was taken over by another process, as this one was silent for too long"
            raise Lost(self.name, problem, "The other one goes on; nothing is lost.")

    def _keep(self, on_lost: Callable[[], None]) -> None:
        """Give signs of life until it is over; those that fail are repeated while there is time."""
        while not self._over.wait(self._seconds / 4):
            asked = time.monotonic()
            try:
                self._renew()
                self._renewed = asked
                is_lost = False
            except Lost:
                is_lost = True
            except HastenError:
                is_lost = time.monotonic() - self._renewed > self._seconds
            if is_lost and not self._over.is_set():
                return on_lost()

    def _renew(self) -> None:
        with database.writing(self._engine) as connection:
            self.guard(connection)
            _set(connection, self.name, expires=database.now(connection) + self._seconds)

    def _release(self) -> None:
        with suppress(HastenError), database.writing(self._engine) as connection:
            self.guard(connection)
            _set(connection, self.name, expires=0.0)


@contextmanager
def held(
    engine: Engine, name: str, *, what: str, on_lost: Callable[[], None], seconds: float = SECONDS
) -> Iterator[Lease]:
    """Hold a lease.

    Args:
        engine: from :func:`hasten.platform.database.opened`.
        name: what to hold, the same on every machine.
        what: how to call it when somebody else has it.
        on_lost: is called once, in another thread, when it is not ours any more.
        seconds: how long it lasts beyond the last sign of life.

    Raises:
        Busy: another living process holds it; the message names it.
        Fault: the database failed.
    """
    lease = Lease(engine, name, _acquired(engine, name, what, seconds), seconds=seconds)
    keeper = threading.Thread(target=lease._keep, args=(on_lost,), name=f"lease-{name}", daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        lease._over.set()
        keeper.join(seconds)  # a sign of life after the release would undo it
        lease._release()


def _acquired(engine: Engine, name: str, what: str, seconds: float) -> int:
    """The token of the lease, now ours."""
    with database.speaking(engine), suppress(IntegrityError), engine.begin() as connection:
        now = database.now(connection)
        row = connection.execute(
            select(_LEASES).where(_LEASES.c.name == name).with_for_update()
        ).one_or_none()
        if row is None:
            first = {"name": name, "holder": _me(), "token": 1, "expires": now + seconds}
            connection.execute(insert(_LEASES).values(first))
            return 1
        if row.expires <= now or _is_gone(row.holder):
            _set(connection, name, holder=_me(), token=row.token + 1, expires=now + seconds)
            return int(row.token) + 1
        raise _busy(what, row.holder)
    raise Busy(what, "was taken by another process this moment", "Wait for it, or stop it.")


def _set(connection: Connection, name: str, **values: Any) -> None:
    connection.execute(update(_LEASES).where(_LEASES.c.name == name).values(values))


def _busy(what: str, holder: str) -> Busy:
    who = json.loads(holder)
    problem = f"is being run by process {who['pid']} on {who['host']}"
    return Busy(what, problem, "Wait for it, or stop it.")


def _me() -> str:
    process = psutil.Process()
    me = {"host": socket.gethostname(), "space": _space(), "pid": process.pid, "began": process.create_time()}
    return json.dumps(me)


def _is_gone(holder: str) -> bool:
    """Whether that process is known to be dead: one of this machine, that no longer exists."""
    who = json.loads(holder)
    if (who["host"], who["space"]) != (socket.gethostname(), _space()):
        return False
    try:
        return bool(psutil.Process(who["pid"]).create_time() != who["began"])
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _space() -> str:
    """Where process ids mean the same: containers on one host may share its name, but not these."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return ""
