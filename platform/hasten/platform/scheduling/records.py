"""What a scheduler knows when it is started again: the last moment dealt with, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Column, Engine, Float, String, Table, Text, insert, select, update

from hasten.platform import database
from hasten.platform.leases import Lease

_SCHEDULES: Final = Table(
    "hasten_schedules",
    database.TABLES,
    Column("pipeline", String(200), primary_key=True),
    Column("settled", Float(53), nullable=False),
    Column("planned", Float(53)),
    Column("began", Float(53)),
    Column("ended", Float(53)),
    Column("decision", String(20)),
    Column("reason", Text),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A pipeline's schedule so far.

    Attributes:
        settled: every planned moment until here is dealt with.
        planned: the moment of the last tick that was begun; it is to be repeated while ``ended`` is None.
        began: when it really began.
        ended: when it ended.
        decision: what it decided, or its exit code.
        reason: why.
    """

    pipeline: str
    settled: datetime
    planned: datetime | None = None
    began: datetime | None = None
    ended: datetime | None = None
    decision: str | None = None
    reason: str | None = None

    @property
    def unfinished(self) -> datetime | None:
        """The moment of a tick that was begun and whose end nobody wrote down."""
        return self.planned if self.ended is None else None


def read(engine: Engine, pipeline: str) -> Record | None:
    """What is known of a pipeline's schedule; None before it was first scheduled.

    Raises:
        Fault: the database failed.
    """
    with database.writing(engine) as connection:
        chosen = select(_SCHEDULES).where(_SCHEDULES.c.pipeline == pipeline)
        row = connection.execute(chosen).mappings().one_or_none()
    if row is None:
        return None
    moments = {key: _moment(row[key]) for key in ("settled", "planned", "began", "ended")}
    return Record(pipeline=pipeline, decision=row["decision"], reason=row["reason"], **moments)  # type: ignore[arg-type]


def first(engine: Engine, lease: Lease, pipeline: str, now: datetime) -> Record:
    """Begin to schedule a pipeline: what was planned before now is nobody's business.

    Raises:
        Lost: the lease is not ours any more.
        Fault: the database failed.
    """
    if known := read(engine, pipeline):
        return known
    with database.writing(engine) as connection:
        lease.guard(connection)
        connection.execute(insert(_SCHEDULES).values(pipeline=pipeline, settled=now.timestamp()))
    return Record(pipeline=pipeline, settled=now)


def begin(engine: Engine, lease: Lease, pipeline: str, planned: datetime, now: datetime) -> None:
    """Write down that a tick begins, before it does.

    Raises:
        Lost: the lease is not ours any more.
        Fault: the database failed.
    """
    blank: dict[str, Any] = {"ended": None, "decision": None, "reason": None}
    times = {"planned": planned.timestamp(), "began": now.timestamp()}
    _set(engine, lease, pipeline, **times, **blank)


def end(engine: Engine, lease: Lease, pipeline: str, now: datetime, decision: str, reason: str) -> None:
    """Write down what came of the tick that was begun; its moment is dealt with.

    Raises:
        Lost: the lease is not ours any more.
        Fault: the database failed.
    """
    planned = _SCHEDULES.c.planned
    _set(engine, lease, pipeline, ended=now.timestamp(), decision=decision, reason=reason, settled=planned)


def settle(engine: Engine, lease: Lease, pipeline: str, until: datetime) -> None:
    """Deal with moments by leaving them out.

    Raises:
        Lost: the lease is not ours any more.
        Fault: the database failed.
    """
    _set(engine, lease, pipeline, settled=until.timestamp())


def _set(engine: Engine, lease: Lease, pipeline: str, **values: Any) -> None:
    with database.writing(engine) as connection:
        lease.guard(connection)
        connection.execute(update(_SCHEDULES).where(_SCHEDULES.c.pipeline == pipeline).values(**values))


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
