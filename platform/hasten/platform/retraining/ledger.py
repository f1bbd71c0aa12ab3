"""The ledger of retraining: an entry for every tick, also for one that had nothing to do or died."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    String,
    Table,
    Text,
    insert,
    select,
    update,
)

from hasten.platform import database
from hasten.platform.leases import Lease
from hasten.platform.retraining import notices

Decided = Literal["promoted", "rejected", "unchanged", "not_due", "running", "failed", "stopped", "died"]

_TICKS: Final = Table(
    "hasten_ticks",
    database.TABLES,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("pipeline", String(200), nullable=False, index=True),
    Column("key", String(64), nullable=False),
    Column("host", String(200), nullable=False),
    Column("token", BigInteger),
    Column("began", Float(53), nullable=False),
    Column("ended", Float(53)),
    Column("decision", String(20)),
    Column("reason", Text),
    Column("version", String(20)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One tick: times in seconds since 1970; ``decision`` and ``ended`` are None while it lives.

    ``token`` is its lease's, None of a tick that had none.
    """

    id: int
    pipeline: str
    key: str
    host: str
    token: int | None
    began: float
    ended: float | None
    decision: Decided | None
    reason: str | None
    version: str | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ticks of one pipeline. Every method raises ``Fault`` where the database fails."""

    engine: Engine
    pipeline: str

    def begin(self, key: str, lease: Lease) -> int:
        """Note that the holder of the lease begins; the entry's number.

        Entries without an end are of ticks that died, as none of them holds the lease.

        Raises:
            Lost: the lease is not ours any more.
        """
        with database.writing(self.engine) as connection:
            lease.guard(connection)
            now = database.now(connection)
            open_ones = (_TICKS.c.pipeline == self.pipeline) & _TICKS.c.decision.is_(None)
            died = {"decision": "died", "ended": now, "reason": "its process ended before it decided"}
            connection.execute(update(_TICKS).where(open_ones).values(died))
            return self._insert(connection, key=key, token=lease.token, began=now)

    def aim(self, number: int, lease: Lease, key: str) -> None:
        """Note what the tick turned out to be about.

        Raises:
            Lost: the lease is not ours any more.
        """
        with database.writing(self.engine) as connection:
            lease.guard(connection)
            connection.execute(update(_TICKS).where(_TICKS.c.id == number).values({"key": key}))

    def end(
        self,
        number: int,
        lease: Lease,
        decision: Decided,
        reason: str,
        version: str | None,
        *,
        notice: Mapping[str, Any] | None = None,
    ) -> None:
        """Note what the holder of the lease decided, and what somebody is to be told of it.

        Raises:
            Lost: the lease is not ours any more: the entry is marked as died, or will be.
        """
        with database.writing(self.engine) as connection:
            lease.guard(connection)
            values = {"ended": database.now(connection), "decision": decision, "reason": reason}
            connection.execute(
                update(_TICKS).where(_TICKS.c.id == number).values(values | {"version": version})
            )
            if notice is not None:
                notices.write(connection, self.pipeline, notice)

    def skip(self, key: str, decision: Decided, reason: str) -> None:
        """Note a tick that found another one at work."""
        with database.writing(self.engine) as connection:
            now = database.now(connection)
            self._insert(connection, key=key, began=now, ended=now, decision=decision, reason=reason)

    def last(self) -> Tick | None:
        """The tick that began last."""
        chosen = select(_TICKS).where(_TICKS.c.pipeline == self.pipeline).order_by(_TICKS.c.id.desc())
        with database.writing(self.engine) as connection:
            row = connection.execute(chosen.limit(1)).mappings().first()
        return None if row is None else Tick(**row)

    def key_at_work(self) -> str:
        """What the tick that works at this moment is about; empty where it does not know yet."""
        return next((tick.key for tick in reversed(self.entries()) if tick.decision is None), "")

    def decided(self, key: str) -> Tick | None:
        """The tick that promoted or rejected what was made for ``key``."""
        of_key = (_TICKS.c.pipeline == self.pipeline) & (_TICKS.c.key == key)
        chosen = select(_TICKS).where(of_key & _TICKS.c.decision.in_(("promoted", "rejected")))
        with database.writing(self.engine) as connection:
            row = connection.execute(chosen.order_by(_TICKS.c.id)).mappings().first()
        return None if row is None else Tick(**row)

    def entries(self) -> list[Tick]:
        """The ticks in the order of their beginning."""
        chosen = select(_TICKS).where(_TICKS.c.pipeline == self.pipeline).order_by(_TICKS.c.id)
        with database.writing(self.engine) as connection:
            return [Tick(**row) for row in connection.execute(chosen).mappings()]

    def _insert(self, connection: Connection, **values: Any) -> int:
        row = {"pipeline": self.pipeline, "host": socket.gethostname(), **values}
        return int(connection.execute(insert(_TICKS).values(row).returning(_TICKS.c.id)).scalar_one())
