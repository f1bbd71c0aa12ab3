"""Sending one segment of the spool to the tracking server, exactly once in effect."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from hasten.platform.identity import RunIdentity
from hasten.platform.outage import Refused, Unreachable
from hasten.platform.scores import MAX_KEYS, Sample, Scores
from hasten.platform.spool import Entry, Segment
from hasten.trainers.tracker import EndStatus

MAX_SENT_METRICS: Final = 1000
_READ_ENTRIES: Final = 500

log = logging.getLogger(__name__)


class Door(Protocol):
    """The tracking server as a tracker sees it. Every method raises Unreachable, Refused or Gone."""

    @property
    def address(self) -> str:
        """Where the server is, for messages."""

    def attempt(self, identity: RunIdentity, *, fresh: bool = False) -> tuple[str, int]:
        """The run of this identity, made where there is none, RUNNING as one more attempt: id and attempt.

        A ``fresh`` one is made without a look for it: no such run is there, and nobody else makes it.
        """

    def find(self, identity: RunIdentity) -> tuple[str, int]:
        """The run of this identity, made where there is none, otherwise left as it is: id and attempt."""

    def history(self, run_id: str) -> list[Sample]:
        """Every point that the run has."""

    def log(self, run_id: str, samples: Sequence[Sample], tags: Mapping[str, str]) -> None:
        """Record up to ``MAX_SENT_METRICS`` points, and tags; the same again changes nothing."""

    def upload(self, run_id: str, entry: Entry, content: bytes) -> None:
        """Store an image or an artifact; the same again replaces it."""

    def end(self, run_id: str, status: EndStatus, *, time: int) -> None:
        """Say how the run ended, at ``time`` in milliseconds since 1970."""

    def kill(self, run_id: str) -> None:
        """Mark a run KILLED if it is RUNNING."""


@dataclass
class _Chunk:
    samples: list[Sample]
    tags: dict[str, str]
    end: EndStatus | None
    time: int
    offset: int


@dataclass
class Shipment:
    """One segment on its way to its run. ``send`` may fail and be called again: it goes on where it was.

    ``takes_end`` is False where the run goes on and how this segment ended is of no interest any more.
    ``scores`` is shared by the shipments of one run, which are sent one after the other, oldest first.
    """

    door: Door
    run_id: str
    scores: Scores
    segment: Segment
    takes_end: bool = True
    ended: bool = False
    _chunk: _Chunk | None = None
    _warned: set[str] = field(default_factory=set)

    def send(self) -> None:
        """Send whatever the segment holds and has not been confirmed.

        Raises:
            Unreachable: the server did not take all of it; call again later.
            Gone: the run has been deleted.
        """
        # A chunk is kept until it is confirmed: its points count as seen from the first try on.
        while chunk := self._chunk or self._next_chunk():
            self._chunk = chunk
            self._log(chunk.samples, chunk.tags)
            if chunk.end is not None:
                self._end(chunk.end, chunk.time)
            self.segment.confirm(chunk.offset)
            self._chunk = None
        self._send_files()

    def _next_chunk(self) -> _Chunk | None:
        entries, offset = self.segment.read(limit=_READ_ENTRIES)
        if not entries:
            return None
        chunk = _Chunk([], {}, None, 0, offset)
        for entry in entries:
            if "metrics" in entry:
                chunk.samples += self.scores.accept(entry["metrics"], step=entry["step"], time=entry["time"])
            elif "tags" in entry:
                chunk.tags |= entry["tags"]
            elif "end" in entry and self.takes_end:
                chunk.end, chunk.time = entry["end"], entry["time"]
                chunk.samples += self.scores.finals(time=chunk.time)
        # The server's compare page plots what it heard of first.
        chunk.samples.sort(key=lambda sample: not sample.key.startswith("eval/"))
        for key in self.scores.refused:
            self._warn(key, f"metric {key} is not sent: a run has at most {MAX_KEYS} metrics")
        return chunk

    def _log(self, samples: list[Sample], tags: dict[str, str]) -> None:
        first, rest = samples[:MAX_SENT_METRICS], samples[MAX_SENT_METRICS:]
        while first or tags:
            self._log_some(first, tags)
            first, rest, tags = rest[:MAX_SENT_METRICS], rest[MAX_SENT_METRICS:], {}

    def _log_some(self, samples: list[Sample], tags: dict[str, str]) -> None:
        """Send them all, or, where the server refuses some of them, all the others."""
        try:
            self.door.log(self.run_id, samples, tags)
        except Refused as refusal:
            if tags and samples:
                self._log_some(samples, {})
                self._log_some([], tags)
            elif len(samples) > 1:
                middle = len(samples) // 2
                self._log_some(samples[:middle], {})
                self._log_some(samples[middle:], {})
            elif len(tags) > 1:
                for key, value in tags.items():
                    self._log_some([], {key: value})
            else:
                name = samples[0].key if samples else next(iter(tags))
                self._warn(name, f"{name} was refused and is left out: {refusal}")

    def _end(self, status: EndStatus, time: int) -> None:
        """Files first, so that a finished run is whole; but their trouble does not make the status untrue."""
        trouble: Unreachable | None = None
        try:
            self._send_files()
        except Unreachable as error:
            trouble = error
        self.door.end(self.run_id, status, time=time)
        self.ended = True
        if trouble is not None:
            raise trouble

    def _send_files(self) -> None:
        for payload in self.segment.files():
            try:
                self.door.upload(self.run_id, payload.entry, payload.path.read_bytes())
            except Refused as refusal:
                name = payload.entry.get("image") or payload.entry.get("artifact") or payload.index.name
                self._warn(name, f"{name} was refused and is left out: {refusal}")
            self.segment.confirm_file(payload)

    def _warn(self, about: str, message: str) -> None:
        """Once for each subject."""
        if about not in self._warned:
            self._warned.add(about)
            log.warning("tracking: %s", message)
