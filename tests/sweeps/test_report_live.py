"""A running study in the terminal: the counts add up, it fits, and it says when nobody is at it."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

sys.path.append(str(Path(__file__).parent))

import example_studies as examples

from hasten.sweeps.conducting.ledger import StudyNote
from hasten.sweeps.conducting.limits import Spent
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.reports import live

NOW = 2_010.0


def shown(note: StudyNote, records: list[TrialRecord], *, width: int = 80, now: float = NOW) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(live.render(note, records, now=now))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def search(count: int = 40, **changes: Any) -> tuple[StudyNote, list[TrialRecord]]:
    study = examples.search_study()
    records = examples.points(study, count)
    return examples.note(study, records, trials=64, **changes), records


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_search_on_its_way(width: int) -> None:
    note, records = search()
    text = shown(note, records, width=width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    counts = {
        name: int(n) for n, name in re.findall(r"(\d+) (finished|stopped|failed|running|waiting)", text)
    }
    assert sum(counts.values()) == 64
    assert counts["running"] == 2
    words = " ".join(text.split())
    assert "40 of 64 trials over" in words
    assert "1.71 of 2" in words
    assert "0.0855 of 4 EUR" in words
    assert "about" in words
    assert "attempt 2" in words
    assert "diverged: the loss is NaN" in words
    signs = max(re.findall("[●■×◐]+", text), key=len)
    assert len(signs) == 42 or width < 60


def test_arms_are_shown_by_seed_and_not_ranked() -> None:
    study = examples.arms_study()
    records = [one.record for one in examples.arms() if one.record and one.seed < 2]
    text = shown(examples.note(study, records, trials=18, open={}), records)
    assert re.search(r"baseline +●●· +eval/loss 0\.\d+ over 2", text)
    assert "best so far" not in text


def test_a_driver_that_was_killed_is_called_lost() -> None:
    note, records = search()
    text = shown(note, records, now=NOW + 7_200.0)
    assert "lost: no sign of life for 2 h 00 min" in text
    assert "2 open" in text
    assert "running" not in text
    assert "to go" not in text


def test_a_study_that_stopped_says_why() -> None:
    note, records = search(state="stopped", why="limits.cost: 4 of 4 EUR are used", spent=Spent(cost=4.0))
    text = shown(note, records)
    assert "search  stopped: limits.cost: 4 of 4 EUR are used" in text
    assert "2 open" in text


def test_nothing_has_ended_yet_and_nothing_is_known() -> None:
    note, _ = search(0, spent=Spent(), open={})
    assert "0 of 64 trials over" in shown(note, [])
    assert "0 of 0 trials over" in shown(note.model_copy(update={"trials": 0}), [])


def test_a_thousand_trials_take_no_more_room_than_a_screen() -> None:
    note, records = search(40)
    many = [
        record.model_copy(update={"trial": f"{n:04d}-s0", "arm": f"{n:04d}"})
        for n, record in enumerate(records * 25)
    ]
    text = shown(note.model_copy(update={"trials": 1_000, "open": {}}), many)
    assert "1,000 of 1,000 trials over" in text
    assert len(text.splitlines()) < 40
