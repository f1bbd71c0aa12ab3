"""When ticks are planned: pure functions of a schedule and of given moments, with no clock of their own.

Cron expressions mean what they mean to Debian's cron, daylight saving included, as the library cronsim has
it: a time that the wall clock skips comes right after the gap, a time that it shows twice comes once, and
expressions with a ``*`` for the hour or the minute follow the hours that really pass. All moments are UTC.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim

from hasten.platform.retraining.pipeline import Schedule

ON_TIME: Final = timedelta(seconds=60)
"""A tick that begins no later than this after its moment was not missed."""


def planned(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """The planned moments after a given one, in order, without an end."""
    local = after.astimezone(ZoneInfo(schedule.timezone))
    # cronsim looks from the next whole minute on: begin a minute early, so that none is passed by.
    for moment in CronSim(schedule.cron, local.replace(second=0, microsecond=0) - timedelta(minutes=1)):
        if (utc := moment.astimezone(UTC)) > after:
            yield utc


def delay(schedule: Schedule, pipeline: str, moment: datetime) -> timedelta:
    """How much later than planned a tick begins: the same for the same tick, on every machine."""
    digest = hashlib.sha256(f"{pipeline}/{moment.timestamp():.0f}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") * 2.0**-64
    return timedelta(seconds=schedule.jitter * share)


def due(schedule: Schedule, pipeline: str, *, after: datetime, now: datetime) -> list[datetime]:
    """The planned moments after ``after`` whose tick should have begun by ``now``; jitter keeps their order.

    Of a long absence the last thousand are enough.
    """
    found: list[datetime] = []
    for moment in planned(schedule, after):
        if moment > now:
            return found
        if moment + delay(schedule, pipeline, moment) > now:
            return found
        found = [*found[-999:], moment]
    return found


def to_run(
    schedule: Schedule, pipeline: str, moments: Sequence[datetime], *, now: datetime
) -> datetime | None:
    """Which of the moments that are due gets a tick now; None for none of them."""
    if not moments:
        return None
    if schedule.catchup == "all":
        return moments[0]
    last = moments[-1]
    late = now - last - delay(schedule, pipeline, last)
    return last if schedule.catchup == "latest" or late <= ON_TIME else None
