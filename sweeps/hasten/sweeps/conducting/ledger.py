"""A study's ledger in the store: how every trial ended, what was proposed, and what the driver is doing.

It lies at ``{storage}/studies/NAME`` and is written by one driver. What it says is enough to go on from: a
trial with a record is over, a trial without one is open.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from hasten.sweeps.conducting.limits import Spent
from hasten.sweeps.conducting.shelf import Place, Shelf
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching.proposals import Point
from hasten.trainers.errors import Fault, HastenError
from hasten.trainers.patience import patiently

log = logging.getLogger(__name__)

BEAT: Final = 15.0
"""Seconds between two signs of life of a driver."""

StudyState = Literal["running", "finished", "stopped"]

_NOTE: Final = "study.json"
_PATIENCE: Final = 600.0  # seconds for which the store may be away in mid-study


class StoredPoint(BaseModel):
    """A point that was proposed. ``basis`` digests what it was proposed from: it counts for nothing else."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    point: Point
    basis: str


class OpenTrial(BaseModel):
    """A trial that has begun and is not over: what is known of it at a sign of life.

    ``value`` is the latest of the objective's metric; the rest is as in :class:`TrialRecord`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    fingerprint: str
    running: bool
    images: int
    total: int
    value: float | None = None
    attempts: int = 0
    lost: int = 0
    occupied: float = 0.0


class StudyNote(BaseModel):
    """What a study's driver says of itself: its file as last run, since when and where, and how far it is.

    ``spec`` is the whole study as plain data, ``digest`` of what its points rest on. ``started`` and
    ``heartbeat`` are seconds since 1970; a driver that was killed stays ``running`` with an old heartbeat.
    ``trials`` are planned as far as known now, ``over`` of them are over. ``why`` says what stopped it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    spec: dict[str, Any]
    digest: str = ""
    state: StudyState
    host: str
    pid: int
    started: float
    heartbeat: float = 0.0
    trials: int = 0
    over: int = 0
    spent: Spent = Spent()
    open: dict[str, OpenTrial] = {}
    why: str = ""

    def is_alive(self, now: float | None = None) -> bool:
        """Whether a driver is at it, by its latest sign of life."""
        now = time.time() if now is None else now
        return self.state == "running" and now - self.heartbeat < 4.0 * BEAT


class Ledger:
    """What is known of a study, in a folder of the store; to be closed when it was written to.

    Writing happens in a thread of its own, in order: nobody waits for a bucket, which may be away for
    minutes. What could not be written is raised as the ``Fault`` that it was at the next call of a method
    that writes, or of ``close``.

    Args:
        place: the study's folder.
        beat: seconds between signs of life.
    """

    def __init__(self, place: Place, *, beat: float = BEAT) -> None:
        self._place = place
        self._beat = beat
        self._trials = Shelf(place, "trials", TrialRecord)
        self._points = Shelf(place, "points", StoredPoint)
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._note: StudyNote | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def records(self) -> dict[str, TrialRecord]:
        """Every trial's record, by its name. To be called before anything is written.

        Raises:
            Fault: the storage failed, or a file is damaged.
        """
        return self._trials.read()

    def points(self) -> dict[int, StoredPoint]:
        """Every point that was proposed, by its number. To be called before anything is written."""
        return {stored.point.number: stored for stored in self._points.read().values()}

    def note(self) -> StudyNote | None:
        """What the study's last driver said of itself; None when it never ran."""
        content = self._place.read(_NOTE)
        if content is None:
            return None
        try:
            return StudyNote.model_validate_json(content)
        except ValidationError as error:
            problem = f"is damaged: {str(error).splitlines()[0]}"
            remedy = "Delete it: only what unfinished trials have cost so far is forgotten."
            raise Fault(f"{self._place.uri}/{_NOTE}", problem, remedy) from None

    def write(self, record: TrialRecord) -> None:
        """Keep how a trial ended, in place of an earlier record of it."""
        self._soon(lambda: self._trials.write(record.trial, record))

    def write_point(self, stored: StoredPoint) -> None:
        """Keep a point that was proposed."""
        self._soon(lambda: self._points.write(f"{stored.point.number:06d}", stored))

    def tell(self, note: StudyNote) -> None:
        """Say what the driver is doing: at once when its state is another, else with the next beat."""
        changed = self._note is None or self._note.state != note.state
        self._note = note
        if changed:
            self._soon(self._write_note)

    def close(self) -> None:
        """Wait until everything is written, and gather it: reading it again is quick."""
        if self._writer is not None:
            self._closing.set()
            self._tasks.put(self._trials.gather)
            self._tasks.put(self._points.gather)
            self._tasks.put(None)
            self._writer.join()
            self._writer = None
        self._raise_failure()

    def _soon(self, task: Callable[[], None]) -> None:
        self._raise_failure()
        if self._writer is None:
            self._writer = threading.Thread(target=self._work, name="ledger-writer", daemon=True)
            self._writer.start()
        self._tasks.put(task)

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _work(self) -> None:
        """Do what there is to do, in order, with a sign of life now and then."""
        due = time.monotonic() + self._beat
        while True:
            try:
                task = self._tasks.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                task = _nothing
            if task is None:
                return
            try:
                patiently(task, seconds=_PATIENCE, enough=self._closing)
            except Exception as error:
                self._failure = self._failure or error
            if time.monotonic() >= due:
                due = time.monotonic() + self._beat
                self._sign_of_life()

    def _sign_of_life(self) -> None:
        try:
            self._write_note()
        except HastenError as error:  # nobody depends on one beat; a record that fails is another matter
            log.warning("%s", error)

    def _write_note(self) -> None:
        if self._note is not None:
            alive = self._note.model_copy(update={"heartbeat": time.time()})
            self._place.write(_NOTE, alive.model_dump_json().encode())


def _nothing() -> None:
    pass
