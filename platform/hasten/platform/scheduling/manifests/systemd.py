"""A systemd timer and its service."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import Final

from cronsim import CronSim

from hasten.platform.retraining.pipeline import Pipeline, Schedule
from hasten.trainers.errors import ConfigError

_DAYS: Final = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_ALL: Final = {
    "minutes": set(range(60)),
    "hours": set(range(24)),
    "days": set(range(1, 32)),
    "months": set(range(1, 13)),
}


def units(pipeline: Pipeline, schedule: Schedule, text: str) -> dict[str, str]:
    """The pipeline's file, a service that runs one tick, and a timer.

    Raises:
        ConfigError: ``OnCalendar`` cannot say what the cron expression says.
    """
    name = f"hasten-{pipeline.name}"
    file = f"/etc/hasten/{pipeline.name}.yaml"
    stop = (
        ""
        if pipeline.limits.hours is None
        else f"TimeoutStartSec={int(pipeline.limits.hours * 3600) + 1800}\n"
    )
    service = f"""\
# Validated by systemd-analyze verify. Secrets (AWS_*, MLFLOW_TRACKING_*, HASTEN_WEBHOOK_URL, ...) in the
# EnvironmentFile, mode 0600. Exit code 3 means: stopped at a checkpoint, the next tick goes on.
[Unit]
Description=One tick of hasten's pipeline {pipeline.name}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
User=hasten
StateDirectory=hasten
WorkingDirectory=/var/lib/hasten
Environment=HASTEN_HOME=/var/lib/hasten
EnvironmentFile=-/etc/hasten/environment
ExecStart=/usr/bin/env hasten retrain {shlex.quote(file)}
SuccessExitStatus=3
KillSignal=SIGTERM
TimeoutStopSec=600
{stop}NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ReadWritePaths=/var/lib/hasten
"""
    when = "".join(f"OnCalendar={each} {schedule.timezone}\n" for each in on_calendar(schedule.cron))
    timer = f"""\
# Validated by systemd-analyze verify. A time that a change to daylight saving skips is left out by systemd,
# where `hasten schedule` runs it right after the gap.
[Unit]
Description=Ticks of hasten's pipeline {pipeline.name}: {schedule.cron} {schedule.timezone}

[Timer]
{when}Persistent={"true" if schedule.catchup == "latest" else "false"}
RandomizedDelaySec={int(schedule.jitter)}
FixedRandomDelay=true
AccuracySec=1s
Unit={name}.service

[Install]
WantedBy=timers.target
"""
    return {f"{pipeline.name}.yaml": text, f"{name}.service": service, f"{name}.timer": timer}


def on_calendar(cron: str) -> list[str]:
    """A cron expression as calendar events of systemd, without their zone: one, or two that both hold.

    Where both the day of the month and that of the week are restricted, cron means either, and systemd both.

    Raises:
        ConfigError: it names the last day of a month, or a certain weekday of it.
    """
    known = CronSim(cron, datetime(2000, 1, 1))
    weekdays = {day % 7 for day in known.weekdays if isinstance(day, int)}
    days = known.days
    if not all(isinstance(day, int) for day in known.weekdays) or any(day < 1 for day in days):
        remedy = "Use `hasten schedule`, or days that systemd can say."
        raise ConfigError(
            "schedule.cron", f"{cron}: has days that no systemd timer is asked for like this", remedy
        )
    clock = f"{_field(known.hours, 'hours')}:{_field(known.minutes, 'minutes')}:00"
    months = _field(known.months, "months")
    of_week = "" if weekdays == set(range(7)) else _weekdays(weekdays)
    of_month = _field(days, "days")
    if of_week and of_month != "*" and not known.day_and:
        return [f"*-{months}-{of_month} {clock}", f"{of_week} *-{months}-* {clock}"]
    return [f"{of_week} *-{months}-{of_month} {clock}".strip()]


def _field(values: set[int], which: str) -> str:
    return "*" if values == _ALL[which] else ",".join(f"{value:02d}" for value in sorted(values))


def _weekdays(values: set[int]) -> str:
    return ",".join(_DAYS[value] for value in sorted(values))
