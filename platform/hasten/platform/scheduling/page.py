"""The status page of schedules: a table on a terminal, which lives while the scheduler does."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from rich.table import Table
from rich.text import Text

from hasten.platform.saying import duration
from hasten.platform.scheduling.runner import Told

_STYLES = {"promoted": "green", "failed": "red", "stopped": "yellow", "rejected": "yellow"}


def table(several: Iterable[Told], now: datetime) -> Table:
    """A line a pipeline: its schedule, the last tick with its lag and decision, the next tick."""
    made = Table(box=None, pad_edge=False)
    for heading in ("pipeline", "cron", "last", "lag", "decision", "next", "in"):
        made.add_column(heading, justify="right" if heading in ("lag", "in") else "left")
    for told in several:
        schedule, record = told.planned.schedule, told.record
        zone = ZoneInfo(schedule.timezone)
        made.add_row(
            told.planned.name,
            Text(f"{schedule.cron} {schedule.timezone}"),
            _at(record.planned, zone) if record else "",
            duration(lag.total_seconds()) if (lag := _lag(told)) else "",
            _decision(told),
            _at(told.next, zone),
            "" if told.next is None else duration((told.next - now).total_seconds()),
        )
    return made


def rows(several: Iterable[Told]) -> list[dict[str, Any]]:
    """The same as plain data: moments in ISO 8601, lag in seconds."""
    return [_row(told) for told in several]


def _row(told: Told) -> dict[str, Any]:
    record, lag = told.record, _lag(told)
    return {
        "pipeline": told.planned.name,
        "cron": told.planned.schedule.cron,
        "timezone": told.planned.schedule.timezone,
        "last": record.planned.isoformat() if record and record.planned else None,
        "lag": None if lag is None else lag.total_seconds(),
        "decision": "at work" if told.working else record.decision if record else None,
        "reason": record.reason if record else None,
        "next": told.next.isoformat() if told.next else None,
    }


def _lag(told: Told) -> timedelta | None:
    """How much later than planned the last tick began."""
    record = told.record
    return record.began - record.planned if record and record.began and record.planned else None


def _at(moment: datetime | None, zone: ZoneInfo) -> str:
    return "" if moment is None else moment.astimezone(zone).strftime("%a %d %b %H:%M")


def _decision(told: Told) -> Text:
    if told.standby:
        return Text("standing by", style="dim")
    if told.working:
        return Text("at work", style="cyan")
    said = (told.record.decision if told.record else None) or ""
    return Text(said, style=_STYLES.get(said, ""))
