"""Ticks by the clock: which are planned, which are missed, and schedulers that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, update

from hasten.platform import database, settings
from hasten.platform.retraining.pipeline import Schedule
from hasten.platform.scheduling import calendar, page, records, runner
from hasten.platform.scheduling.runner import Planned, Scheduler
from hasten.platform.services import Services

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
HOUR = timedelta(hours=1)


def moments(cron: str, zone: ZoneInfo, start: datetime, count: int) -> list[str]:
    """The next planned moments as the wall clock shows them."""
    schedule = Schedule(cron=cron, timezone=zone.key)
    found = calendar.planned(schedule, start.replace(tzinfo=zone).astimezone(UTC))
    return [next(found).astimezone(zone).strftime("%m-%d %H:%M %z") for _ in range(count)]


MARCH, NOVEMBER = (2026, 3, 7), (2026, 10, 31)  # the days before New York changes its clocks


@pytest.mark.parametrize(
    ("cron", "zone", "start", "expected"),
    [
        # Spring: 02:30 does not exist, and comes right after the gap.
        ("30 2 * * *", BERLIN, (2026, 3, 28), "03-28 02:30 +0100, 03-29 03:00 +0200, 03-30 02:30 +0200"),
        ("30 2 * * *", NEW_YORK, MARCH, "03-07 02:30 -0500, 03-08 03:00 -0400, 03-09 02:30 -0400"),
        # Autumn: 02:30 comes twice, and the tick once.
        ("30 2 * * *", BERLIN, (2026, 10, 24), "10-24 02:30 +0200, 10-25 02:30 +0200, 10-26 02:30 +0100"),
        ("30 1 * * *", NEW_YORK, NOVEMBER, "10-31 01:30 -0400, 11-01 01:30 -0400, 11-02 01:30 -0500"),
        # Every hour follows the hours that pass.
        ("0 * * * *", BERLIN, (2026, 3, 29, 0, 30), "03-29 01:00 +0100, 03-29 03:00 +0200"),
        ("0 * * * *", BERLIN, (2026, 10, 25, 1, 30), "10-25 02:00 +0200, 10-25 02:00 +0100"),
        ("0 3 * * 1", BERLIN, (2026, 3, 27), "03-30 03:00 +0200, 04-06 03:00 +0200"),
    ],
)
def test_daylight_saving(cron: str, zone: ZoneInfo, start: Any, expected: str) -> None:
    wanted = expected.split(", ")
    assert moments(cron, zone, datetime(*start), len(wanted)) == wanted


@given(
    st.sampled_from(["*/7 * * * *", "0 3 * * *", "30 2 * * 1-5", "0 */6 1 * *", "15 1 * * 0"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    st.datetimes(datetime(2025, 1, 1), datetime(2027, 1, 1)),
    st.lists(st.floats(0.01, 30.0), min_size=1, max_size=6),
    st.floats(0.0, 3600.0),
)
def test_no_moment_is_lost_or_comes_twice(
    cron: str, zone: str, start: datetime, waits: list[float], jitter: float
) -> None:
    """However often and however irregularly somebody looks, each planned moment is due exactly once."""
    schedule = Schedule(cron=cron, timezone=zone, jitter=jitter)
    begin = now = settled = start.replace(tzinfo=UTC)
    seen: list[datetime] = []
    for days in waits:
        now += timedelta(days=days / 10.0)
        found = calendar.due(schedule, "p", after=settled, now=now)
        seen += found
        settled = found[-1] if found else settled
    assert seen == sorted(set(seen))
    assert seen[-900:] == calendar.due(schedule, "p", after=begin, now=now)[-900:]
    if len(seen) < 900:
        every = calendar.planned(schedule, begin)
        assert seen == [next(every) for _ in seen]


def test_jitter_is_the_same_for_the_same_tick() -> None:
    schedule = Schedule(cron="0 3 * * *", jitter=600.0)
    planned = [datetime(2026, 1, day, 3, tzinfo=UTC) for day in range(1, 30)]
    delays = [calendar.delay(schedule, "p", moment) for moment in planned]
    assert delays == [calendar.delay(schedule, "p", moment) for moment in planned]
    assert all(timedelta(0) <= delay < timedelta(seconds=600) for delay in delays)
    assert len(set(delays)) == len(delays)
    assert delays != [calendar.delay(schedule, "another", moment) for moment in planned]


@pytest.mark.parametrize(
    ("catchup", "late", "expected"),
    [("latest", 5.0, 3), ("all", 5.0, 1), ("none", 5.0, None), ("none", 0.01, 3), ("latest", 0.01, 3)],
)
def test_what_becomes_of_missed_ticks(catchup: Any, late: float, expected: int | None) -> None:
    schedule = Schedule(cron="0 3 * * *", catchup=catchup)
    missed = [datetime(2026, 1, day, 3, tzinfo=UTC) for day in (1, 2, 3)]
    chosen = calendar.to_run(schedule, "p", missed, now=missed[-1] + late * HOUR)
    assert chosen == (None if expected is None else datetime(2026, 1, expected, 3, tzinfo=UTC))
    assert calendar.to_run(schedule, "p", [], now=missed[-1]) is None


def test_a_long_absence_is_looked_through_quickly() -> None:
    schedule = Schedule(cron="*/5 * * * *")
    now = datetime(2026, 1, 1, tzinfo=UTC)
    found = calendar.due(schedule, "p", after=now - timedelta(days=60), now=now)
    assert len(found) == 1000
    assert found[-1] == now


class FakeTick:
    """A tick that takes as many steps as it is told to, and then answers."""

    begun: list[tuple[str, ...]]
    steps = 1
    decision = "unchanged"

    def __init__(self, arguments: Sequence[str]) -> None:
        FakeTick.begun.append(tuple(arguments))
        self._left, self._stopped = FakeTick.steps, False

    def stop(self) -> None:
        self._stopped = True

    def wait(self, seconds: float) -> None:
        del seconds
        self._left = 0

    def answer(self) -> tuple[str, str] | None:
        self._left -= 1
        if self._stopped:
            return "stopped", "exit 3"
        return None if self._left > 0 else (FakeTick.decision, "because")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = database.opened(f"sqlite:///{tmp_path}/hasten.db")
    yield made
    made.dispose()


class Wall:
    """A clock that is set by hand, and a scheduler that goes by it."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch, **schedule: Any) -> None:
        self.now, self.engine = datetime(2026, 3, 1, 12, 0, tzinfo=UTC), engine
        self.said: list[str] = []
        FakeTick.begun, FakeTick.steps, FakeTick.decision = [], 1, "unchanged"
        monkeypatch.setattr(runner, "_Tick", FakeTick)
        self.planned = Planned(
            name="p", schedule=Schedule(**{"cron": "0 3 * * *", **schedule}), arguments=("p",)
        )
        self.scheduler = self.another()

    def another(self) -> Scheduler:
        return Scheduler(
            engine=self.engine, pipelines=[self.planned], say=self.said.append, clock=lambda: self.now
        )

    def pass_by(self, span: timedelta, *, step: timedelta = timedelta(minutes=10)) -> None:
        end = self.now + span
        while self.now < end:
            self.now += step
            self.scheduler.step()

    @property
    def record(self) -> records.Record:
        found = records.read(self.engine, "p")
        assert found is not None
        return found


def test_weeks_go_by(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall(engine, monkeypatch, timezone="Europe/Berlin")
    wall.scheduler.step()
    assert not FakeTick.begun, "what was planned before it was first started is nobody's business"
    wall.pass_by(timedelta(days=35))
    assert len(FakeTick.begun) == 35
    assert wall.record.decision == "unchanged"
    assert wall.record.settled == wall.record.planned
    told = wall.scheduler.scheduled[0].told
    assert told.next == datetime(2026, 4, 6, 1, 0, tzinfo=UTC)
    assert "p" in page.rows([told])[0]["pipeline"]
    wall.scheduler.close()


@pytest.mark.parametrize(("catchup", "runs"), [("latest", 1), ("all", 5), ("none", 0)])
def test_five_days_of_absence(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, catchup: str, runs: int
) -> None:
    wall = Wall(engine, monkeypatch, catchup=catchup)
    wall.scheduler.step()
    wall.scheduler.close()
    wall.now += timedelta(days=5)
    wall.scheduler = wall.another()
    for _ in range(20):
        wall.scheduler.step()
    assert len(FakeTick.begun) == runs
    wall.pass_by(timedelta(days=1))
    assert len(FakeTick.begun) == runs + 1, "and then as usual"
    wall.scheduler.close()


def test_a_tick_that_takes_longer_than_its_interval_does_not_overlap(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = Wall(engine, monkeypatch, cron="*/10 * * * *")
    FakeTick.steps = 4
    wall.scheduler.step()
    wall.pass_by(timedelta(hours=3), step=timedelta(minutes=10))
    assert 3 <= len(FakeTick.begun) <= 5
    wall.scheduler.close()


def test_a_failing_tick_ends_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall(engine, monkeypatch)
    FakeTick.decision = "failed"
    wall.scheduler.step()
    wall.pass_by(timedelta(days=3))
    assert len(FakeTick.begun) == 3
    assert (wall.record.decision, wall.record.reason) == ("failed", "because")
    wall.scheduler.close()


def test_a_scheduler_that_is_stopped_repeats_its_tick(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = Wall(engine, monkeypatch)
    FakeTick.steps = 1000
    wall.scheduler.step()
    wall.pass_by(timedelta(days=1))
    assert len(FakeTick.begun) == 1
    wall.scheduler.close()
    assert wall.record.unfinished == datetime(2026, 3, 2, 3, tzinfo=UTC)
    FakeTick.steps = 1
    wall.scheduler = wall.another()
    wall.scheduler.step()
    assert len(FakeTick.begun) == 2
    assert "begins again" in wall.said[-1]
    wall.scheduler.step()
    assert wall.record.unfinished is None
    wall.scheduler.close()


def test_a_second_scheduler_stands_by_and_takes_over(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_STANDBY", 0.0)
    wall = Wall(engine, monkeypatch)
    second = wall.another()
    wall.scheduler.step()
    assert not second.step()
    assert "standing by" in wall.said[-1]
    assert second.scheduled[0].told.standby
    wall.now += timedelta(days=1)
    wall.scheduler.step()
    second.step()
    wall.scheduler.step()
    assert len(FakeTick.begun) == 1
    wall.scheduler.close()
    wall.now += timedelta(days=1)
    second.step()
    assert len(FakeTick.begun) == 2
    second.close()


def test_a_clock_that_is_set_back_repeats_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall(engine, monkeypatch)
    wall.scheduler.step()
    wall.pass_by(timedelta(days=1))
    wall.now -= timedelta(hours=20)
    wall.pass_by(timedelta(hours=20))
    assert len(FakeTick.begun) == 1
    wall.scheduler.close()


# Real processes from here on.


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hasten.platform", "schedule", *arguments]


def backdated(name: str, hours: float) -> Engine:
    """As if the pipeline had last been looked at so many hours ago."""
    engine = database.opened(settings.load().database)
    with database.writing(engine) as connection:
        settled = {"settled": time.time() - hours * 3600.0}
        connection.execute(
            update(records._SCHEDULES).where(records._SCHEDULES.c.pipeline == name).values(settled)
        )
    return engine


def written(folder: Path, name: str, **changes: Any) -> str:
    tiny = {
        "model.channels": 8,
        "budget.images": 12_800,
        "eval.loss": {"every": 0.5, "images": 100},
        "eval.samples": {"images": 64, "steps": 4},
        "eval.grid": {"every": 1.0, "images": 4, "steps": 4},
    }
    fields = {"name": name, "model": name, "recipe": "digits-demo", "overrides": tiny}
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps({**fields, "schedule": {"cron": "0 * * * *"}, **changes}))
    return str(file)


@pytest.mark.stack
@pytest.mark.slow
def test_a_scheduler_is_killed_in_mid_tick_and_another_goes_on(stack: Services, tmp_path: Path) -> None:
    """A tick is begun by a scheduler that is killed, and ended by a second one: one training, one version."""
    file = written(tmp_path, "clockwork")
    subprocess.run(command(file, "--once"), check=True, timeout=120, capture_output=True)
    engine = backdated("clockwork", 3.0)
    first = subprocess.Popen(command(file), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 60
    while (known := records.read(engine, "clockwork")) is None or known.began is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    first.kill()
    first.communicate()
    done = subprocess.run(command(file, "--once", "--json"), text=True, timeout=240, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "begins again" in done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])["schedules"]
    # The first one's tick lives on without its scheduler: the second one finds it at work, or done.
    assert row["decision"] in ("promoted", "running", "unchanged")
    from mlflow import MlflowClient

    client, until = MlflowClient(stack.tracking_uri), time.monotonic() + 120
    while not client.search_model_versions(
        "name = 'clockwork' and tags.`hasten.retrain.decision` = 'promoted'"
    ):
        assert time.monotonic() < until
        time.sleep(0.5)
    assert len(client.search_model_versions("name = 'clockwork'")) == 1
    shown = subprocess.run(command(file, "--status", "--json"), check=True, text=True, capture_output=True)
    (row,) = json.loads(shown.stdout.splitlines()[-1])["schedules"]
    assert row["lag"] > 0.0
    assert row["next"]


@pytest.mark.stack
@pytest.mark.slow
def test_a_scheduler_that_is_asked_to_stop_lets_its_tick_stop_first(stack: Services, tmp_path: Path) -> None:
    file = written(tmp_path, "stopper", overrides={"budget.images": 64_000, "model.channels": 8})
    subprocess.run(command(file, "--once"), check=True, timeout=120, capture_output=True)
    engine = backdated("stopper", 3.0)
    process = subprocess.Popen(command(file), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 60
    while (known := records.read(engine, "stopper")) is None or known.began is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(8.0)  # into its training, or not: either way it ends in order
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 3, out
    assert "Traceback" not in out
    assert "The same command goes on" in out
    known = records.read(engine, "stopper")
    assert known is not None
    assert known.unfinished or known.decision == "promoted"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no such pipeline"),
        (["digits", "-s", "schedule.cron=soon"], "schedule.cron"),
        (["{none}"], "pipeline unscheduled has none"),
        (["digits", "digits"], "several pipelines are called digits"),
        (["render", "kubernetes", "digits", "-s", "schedule.catchup=all"], "schedule.catchup"),
        (["render", "airflow", "digits", "-s", "schedule.jitter=60"], "schedule.jitter"),
        (["render", "systemd", "digits", "-s", "schedule.cron=0 0 L * *"], "schedule.cron"),
        (["render", "cronicle", "digits"], "kubernetes"),
    ],
)
def test_bad_input(arguments: list[str], message: str, own_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "unscheduled.yaml"
    file.write_text(json.dumps({"name": "unscheduled", "model": "m", "recipe": "digits"}))
    filled = [each.replace("{none}", str(file)) for each in arguments]
    done = subprocess.run(command(*filled), capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
