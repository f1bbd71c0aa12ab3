"""Ticks that are started together and ended, on servers that go away: a short form of ``days.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import days

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_first_day_comes_to_the_same_end() -> None:
    told = days.lived(1, ticks=2, kills=2, outages=0.0, seed=2)
    assert not told["wrong"]
    assert told["undisturbed"]["decisions"] == ["promoted"]
    assert told["disturbed"]["trainings"] == 1
    assert sum(told["disturbed"]["blows"].values()) >= 1
    assert sum(told["disturbed"]["ticks"].values()) >= 4


def test_the_calendar_has_every_kind_of_day() -> None:
    planned = days.calendar(12)
    arrived = [day.images for day in planned]
    assert arrived == sorted(arrived)
    assert len(set(arrived)) < len(arrived), "on some days no data arrive"
    budgets = [day.budget for day in planned]
    assert min(budgets) < budgets[0] < max(budgets), "a mistake, and an improvement"
