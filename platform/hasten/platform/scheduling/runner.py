"""A scheduler: pipelines beside each other, no pipeline beside itself, each tick a process of its own.

Every step is written down before or after it such that a scheduler that is killed anywhere repeats at most
one tick, which is idempotent, and leaves none out. A lease for each pipeline lets a second scheduler stand by
and take over.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from sqlalchemy import Engine

from hasten.platform import leases
from hasten.platform.leases import Lease
from hasten.platform.locks import Busy
from hasten.platform.retraining.pipeline import Schedule
from hasten.platform.scheduling import calendar, records
from hasten.platform.scheduling.records import Record
from hasten.trainers.errors import Fault, HastenError

log = logging.getLogger(__name__)

_STANDBY: Final = 20.0  # seconds between two attempts to take a pipeline over
_GRACE: Final = 300.0  # seconds for a tick to stop at a checkpoint
_TAIL: Final = 2000  # characters of what a failed tick said that are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A pipeline, its schedule, and the arguments of its tick: ``hasten retrain`` and these."""

    name: str
    schedule: Schedule
    arguments: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Told:
    """What happens to a pipeline, for whoever shows it."""

    planned: Planned
    record: Record | None = None
    next: datetime | None = None
    standby: str = ""
    working: bool = False


class Scheduled:
    """One pipeline under its schedule; every method is quick, and called again and again.

    Args:
        engine: our own tables.
        planned: the pipeline.
        say: is told lines for the log.
    """

    def __init__(self, engine: Engine, planned: Planned, say: Callable[[str], None]) -> None:
        self.told = Told(planned=planned)
        self._engine, self._say = engine, say
        self._held = ExitStack()
        self._lease: Lease | None = None
        self._tick: _Tick | None = None
        self._lost = self._stopping = False
        self._retry = 0.0

    @property
    def is_working(self) -> bool:
        return self._tick is not None

    def step(self, now: datetime) -> bool:
        """Do what is to be done now; whether anything was, or is being done.

        Raises:
            Fault: the database failed.
        """
        if self._lost:
            self._let_go()
        if self._lease is None and not self._take(now):
            return False
        if self._tick is not None:
            return self._collect(now)
        return self._begin(now)

    def stop(self) -> None:
        """Ask the tick to stop, if there is one: it is taken up again by whoever schedules this next."""
        self._stopping = True
        if self._tick is not None:
            self._tick.stop()

    def close(self, now: datetime) -> None:
        """Wait for the tick to end, write down what came of it, and let the pipeline go."""
        if self._tick is not None:
            self._tick.wait(_GRACE)
            try:
                self._collect(now)
            except HastenError as error:
                log.warning("%s: %s", self.told.planned.name, error)
        self._held.close()

    def _take(self, now: datetime) -> bool:
        if time.monotonic() < self._retry:
            return False
        name = self.told.planned.name
        try:
            what = f"the schedule of pipeline {name}"
            held = leases.held(self._engine, f"schedule {name}", what=what, on_lost=self._on_lost)
            self._lease = self._held.enter_context(held)
        except Busy as busy:
            if not self.told.standby:
                self._say(f"{name}: {busy.problem}; standing by")
            self.told.standby, self._retry = busy.problem, time.monotonic() + _STANDBY
            return False
        self.told.standby = ""
        self.told.record = records.first(self._engine, self._lease, name, now)
        self._look_ahead(now)
        return True

    def _begin(self, now: datetime) -> bool:
        assert self._lease is not None
        name, schedule = self.told.planned.name, self.told.planned.schedule
        record = records.first(self._engine, self._lease, name, now)
        moments = calendar.due(schedule, name, after=record.settled, now=now)
        moment = record.unfinished or calendar.to_run(schedule, name, moments, now=now)
        if moment is None:
            if moments:
                self._say(f"{name}: {len(moments)} missed, and left out as schedule.catchup is none")
                records.settle(self._engine, self._lease, name, moments[-1])
            self._look_ahead(now)
            return bool(moments)
        records.begin(self._engine, self._lease, name, moment, now)
        self._tick = _Tick(self.told.planned.arguments)
        self.told.record, self.told.working = records.read(self._engine, name), True
        again = " again" if record.unfinished else ""
        self._say(f"{name}: the tick of {moment:%Y-%m-%d %H:%M} UTC begins{again}")
        return True

    def _collect(self, now: datetime) -> bool:
        assert self._tick is not None
        answer = self._tick.answer()
        if answer is None:
            return True
        name, self._tick, self.told.working = self.told.planned.name, None, False
        decision, reason = answer
        is_over = not (self._stopping and decision == "stopped")
        if self._lease is not None and not self._lost and is_over:
            records.end(self._engine, self._lease, name, now, decision, reason)
        self.told.record = records.read(self._engine, name)
        self._look_ahead(now)
        self._say(f"{name}: {decision}: {reason}")
        return True

    def _look_ahead(self, now: datetime) -> None:
        name, schedule = self.told.planned.name, self.told.planned.schedule
        moment = next(calendar.planned(schedule, now))
        self.told.next = moment + calendar.delay(schedule, name, moment)

    def _on_lost(self) -> None:
        self._lost = True

    def _let_go(self) -> None:
        """Somebody else schedules it by now: the tick here ends, and its own lease keeps order meanwhile."""
        self.stop()
        if self._tick is not None:
            self._tick.wait(_GRACE)
            self._tick, self.told.working = None, False
        self._held.close()
        self._held, self._lease, self._lost, self._stopping = ExitStack(), None, False, False


class _Tick:
    """``hasten retrain`` in a process of its own, which Ctrl-C at the scheduler's terminal does not reach."""

    def __init__(self, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "hasten.platform", "retrain", *arguments, "--json"]
        self._out: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the answer
        self._err: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdout=self._out, stderr=self._err, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def answer(self) -> tuple[str, str] | None:
        """Decision and reason; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        out, err = (self._read(file) for file in (self._out, self._err))
        if code == 0:
            told: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
            return str(told["decision"]), str(told["reason"])
        decision = "stopped" if code in (3, -signal.SIGTERM, -signal.SIGKILL) else "failed"
        said = err[-_TAIL:].strip().splitlines()
        error = next((line for line in reversed(said) if line.startswith("error ")), said[-1] if said else "")
        return decision, f"exit {code}: {error.removeprefix('error ')}"

    @staticmethod
    def _read(file: IO[str]) -> str:
        with file:
            file.seek(0)
            return file.read()


@dataclass(slots=True, kw_only=True)
class Scheduler:
    """Several pipelines under their schedules.

    Args:
        engine: our own tables.
        pipelines: what to schedule; their names differ.
        say: is told lines for the log.
        clock: the time, in UTC.
    """

    engine: Engine
    pipelines: Sequence[Planned]
    say: Callable[[str], None]
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    scheduled: list[Scheduled] = field(init=False)

    def __post_init__(self) -> None:
        self.scheduled = [Scheduled(self.engine, planned, self.say) for planned in self.pipelines]

    def step(self) -> bool:
        """One look at every pipeline; whether there was anything to do. A failing database is waited for."""
        busy = False
        for each in self.scheduled:
            try:
                busy = each.step(self.clock()) or busy
            except Fault as fault:
                log.warning("%s: %s; going on", each.told.planned.name, fault)
                time.sleep(1.0)
        return busy

    def close(self) -> None:
        """Ask every tick to stop at a checkpoint, and wait until they did."""
        for each in self.scheduled:
            each.stop()
        for each in self.scheduled:
            each.close(self.clock())


def arguments(file: str, changes: Sequence[str]) -> tuple[str, ...]:
    """Those of a tick: the pipeline's file as an absolute path, or its name, and what is changed in it."""
    path = Path(file)
    name = str(path.absolute()) if path.is_file() else file
    return (name, *(part for change in changes for part in ("-s", change)))
