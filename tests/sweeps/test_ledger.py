"""The ledger: what was written is read back, whatever died in between, and nothing is damaged in silence."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.sweeps.conducting.ledger import Ledger, OpenTrial, StoredPoint, StudyNote
from hasten.sweeps.conducting.limits import Spent
from hasten.sweeps.conducting.shelf import Shelf
from hasten.sweeps.records import TrialRecord, Verdict
from hasten.sweeps.searching.proposals import Point
from hasten.trainers.errors import Fault
from hasten.trainers.specs import Start
from hasten.trainers.store import Folder


def record(trial: str, **more: Any) -> TrialRecord:
    known = {"arm": "a", "seed": 0, "run": "r-000000000000", "fingerprint": "000000000000", "images": 640}
    return TrialRecord(trial=trial, state="finished", total=640, **(known | more))


def note(**more: Any) -> StudyNote:
    known: dict[str, Any] = {
        "name": "s",
        "spec": {},
        "state": "running",
        "host": "h",
        "pid": 1,
        "started": 0.0,
    }
    return StudyNote(**(known | more))


WHOLE = record(
    "0001-s0",
    settings={"optimizer.lr": 0.1 + 0.2, "curriculum": {"kind": "clts", "knots": [1, 2.5]}, "flip": True},
    metrics={"eval/loss": 1 / 3},
    curves={"eval/loss": [(0, 2.0), (64, 1 / 3)], "eval/kid": [(0, math.inf)]},
    items=[(64, [0.1, 1e-300])],
    verdict=Verdict(rule="asha", images=64, value=1 / 3, threshold=0.2, reason="is not among the best"),
    failure="diverged",
    parent="m00-g01",
)


def test_what_is_written_is_read_back_to_the_bit(tmp_path: Path) -> None:
    point = Point(
        number=3,
        name="m01-g01",
        settings={"optimizer.lr": 0.1 + 0.2, "model": {"channels": [8, 16]}},
        start=Start(run="digits-0123456789ab", images=64),
        until=128,
        parent="m00-g00",
    )
    opened = OpenTrial(fingerprint="f", running=True, images=1, total=2, value=1 / 3)
    told = note(spent=Spent(cpu_hours=0.1 + 0.2), open={"x-s0": opened})
    with Ledger(Folder(str(tmp_path))) as ledger:
        ledger.write(WHOLE)
        ledger.write_point(StoredPoint(point=point, basis="b"))
        ledger.tell(told)
    for _ in range(2):  # from the whole, and from the files
        ledger = Ledger(Folder(str(tmp_path)))
        assert ledger.records() == {"0001-s0": WHOLE}
        assert ledger.points() == {3: StoredPoint(point=point, basis="b")}
        found = ledger.note()
        assert found is not None
        assert found.model_copy(update={"heartbeat": 0.0}) == told
        assert found.is_alive(found.heartbeat + 30)
        assert not found.is_alive(found.heartbeat + 90)
        (tmp_path / "trials.jsonl").unlink(missing_ok=True)
        (tmp_path / "points.jsonl").unlink(missing_ok=True)


def test_an_empty_ledger_is_empty_and_only_reading_writes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(Folder(str(tmp_path / "new")))
    assert (ledger.records(), ledger.points(), ledger.note()) == ({}, {}, None)
    ledger.close()
    assert not (tmp_path / "new").exists()


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 60), st.integers(1, 9))
def test_a_crash_between_any_two_writes_leaves_a_prefix(
    store: Any, keys: list[int], writes: int, least: int
) -> None:
    """Of what was written in order, with replacements, exactly the first entries are there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hasten.sweeps.conducting.shelf._LEAST_LOOSE", least)
        place = store()
        place.writes = writes
        history: list[dict[str, int]] = [{}]
        shelf = Shelf(place, "trials", TrialRecord)
        for index, key in enumerate(keys):
            name = f"{key:04d}-s0"
            shelf.write(name, record(name, images=index))
            history.append({**history[-1], name: index})
            if index % 7 == 6:  # another command
                if not place.is_cut_off:
                    shelf.gather()
                shelf = Shelf(place, "trials", TrialRecord)
                shelf.read()
        found = Shelf(place, "trials", TrialRecord).read()
    seen = {name: one.images for name, one in found.items()}
    assert seen in history
    if writes >= 2 * len(keys) + 10:
        assert seen == history[-1]


def test_many_records_are_gathered_at_a_cost_that_does_not_grow(store: Any) -> None:
    place = store()
    sizes: list[int] = []
    write = place.write

    def counting(name: str, content: bytes) -> None:
        sizes.append(len(content) if name == "trials.jsonl" else 0)
        write(name, content)

    place.write = counting
    shelf = Shelf(place, "trials", TrialRecord)
    for index in range(4000):
        shelf.write(f"{index:04d}-s0", WHOLE)
    each = len(WHOLE.model_dump_json()) + 40
    assert sum(sizes) < 8 * 4000 * each
    reads: list[str] = []
    read = place.read
    place.read = lambda name: (reads.append(name), read(name))[1]
    assert len(Shelf(place, "trials", TrialRecord).read()) == 4000
    assert len(reads) <= 1 + 4000 // 5


def test_files_are_read_many_at_a_time(store: Any) -> None:
    place = store()
    shelf = Shelf(place, "trials", TrialRecord)
    for index in range(64):
        shelf.write(f"{index:04d}-s0", WHOLE)
    at_once, most, lock, read = 0, 0, threading.Lock(), place.read

    def slow(name: str) -> bytes | None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.005)
        with lock:
            at_once -= 1
        return read(name)

    place.read = slow
    assert len(Shelf(place, "trials", TrialRecord).read()) == 64
    assert most > 4


@pytest.mark.parametrize(
    ("file", "content", "remedy"),
    [
        ("trials/0000-s0.json", b'{"trial": "0000-s0"', "found out again"),
        ("trials.jsonl", b'{"file":"0000-s0.json","entry":{"trial"\n', "a file of its own"),
        ("trials.jsonl", b"what is this\n", "a file of its own"),
        ("points/000000.json", b"{}", "found out again"),
        ("study.json", b"", "forgotten"),
    ],
)
def test_what_is_damaged_is_named_with_its_remedy(store: Any, file: str, content: bytes, remedy: str) -> None:
    place = store()
    place.files[file] = content
    ledger = Ledger(place)
    read = {"t": ledger.records, "p": ledger.points, "s": ledger.note}[file[0]]
    with pytest.raises(Fault, match=rf"{file}: is damaged: (.|\n)*{remedy}"):
        read()
    place.files.pop(file)
    assert Ledger(place).records() == {}


def test_a_damaged_whole_can_be_deleted_without_loss(store: Any) -> None:
    place = store()
    with Ledger(place) as ledger:
        ledger.write(WHOLE)
    place.files["trials.jsonl"] = place.files["trials.jsonl"][:50]
    with pytest.raises(Fault):
        Ledger(place).records()
    del place.files["trials.jsonl"]
    assert Ledger(place).records() == {"0001-s0": WHOLE}


def write_on(ledger: Ledger) -> None:
    """Write until the writer has tried, at most for half a minute."""
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        ledger.write(WHOLE)
        time.sleep(0.001)


def test_a_storage_that_fails_is_heard_of_at_a_later_call_and_nobody_waits(store: Any) -> None:
    place = store()
    ledger = Ledger(place)
    place.failing = True
    with pytest.raises(Fault, match="the storage is down"):
        write_on(ledger)
    place.failing = False
    with contextlib.suppress(Fault):  # of a write before it was up again
        ledger.close()
    ledger.write(record("0002-s0"))
    ledger.close()
    assert "0002-s0" in Ledger(place).records()


def test_close_waits_and_raises(store: Any) -> None:
    place = store()
    ledger = Ledger(place)
    place.failing = True
    ledger.write(WHOLE)
    with pytest.raises(Fault, match="the storage is down"):
        ledger.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "ledger-writer"]


def test_a_driver_gives_signs_of_life_and_outlives_a_missed_one(store: Any) -> None:
    place = store()
    beats: list[float] = []
    write, tried = place.write, threading.Event()

    def watching(name: str, content: bytes) -> None:
        if name == "study.json":
            beats.append(StudyNote.model_validate_json(content).heartbeat)
            if len(beats) == 3:
                raise Fault("memory", "is down for a moment")
            if len(beats) >= 6:
                tried.set()
        write(name, content)

    place.write = watching
    with Ledger(place, beat=0.01) as ledger:
        ledger.tell(note())
        assert tried.wait(30.0)
        ledger.tell(note(over=1))  # with the next beat
        ledger.tell(note(state="finished", over=2))
    assert beats == sorted(beats)
    last = Ledger(place).note()
    assert last is not None
    assert (last.state, last.over) == ("finished", 2)
    assert not last.is_alive()
