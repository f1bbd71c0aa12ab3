"""A run's tracker: the training thread queues, one thread writes the spool, another sends it.

Nothing here knows MLflow: a ``Door`` leads to the server.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hasten.platform import grids
from hasten.platform.identity import RunIdentity
from hasten.platform.observer import Observer
from hasten.platform.outage import Gone, Refused, Unreachable
from hasten.platform.scores import Scores
from hasten.platform.shipment import Door, Shipment
from hasten.platform.spool import Entry, Segment, abandoned, has_living_before
from hasten.trainers.tracker import EndStatus

THREAD_NAME: Final = "hasten-tracker"
FLUSH_SECONDS: Final = 0.2  # what a kill -9 may cost
SEND_SECONDS: Final = (1.0, 5.0)  # between two looks: a young run is watched, and the server has others
MAX_QUEUED: Final = 100_000
MAX_QUEUED_BYTES: Final = 256 * 2**20
_BACKOFF_SECONDS: Final = (0.5, 15.0)
_PREDECESSOR_SECONDS: Final = 90.0  # a request to a server that hangs, and its repetition, end before
_HOPELESS_SECONDS: Final = 5.0  # how long close waits for a server that has been down for longer than that

log = logging.getLogger(__name__)

_Queued = tuple[Entry, "NDArray[np.uint8] | bytes | None"]


class MlflowTracker:
    """The ``Tracker`` of one run, for one training thread.

    A call queues and returns, whatever the server does: metrics of four keys take about 1 µs (median of
    20,000 calls, server up or down; 99 % under 5 µs), an image takes its copying, about 1 ms for 400 x 500.
    ``run_id`` is empty until the server has been reached once. An ``observer`` adds what it sees of the
    machine, on the writing thread.
    """

    def __init__(
        self,
        door: Door,
        identity: RunIdentity,
        run_folder: Path,
        *,
        run: tuple[str, int],
        fresh: bool,
        close_seconds: float,
        observer: Observer | None = None,
    ) -> None:
        self.run_id, self._attempt = run
        self._fresh = fresh
        self._door = door
        self._identity = identity
        self._run_folder = run_folder
        self._close_seconds = close_seconds
        self._observer = observer
        self._last_step: int | None = None
        self._segment = Segment.create(
            run_folder, header={"identity": identity.document(), "attempt": self._attempt}
        )
        self._queue: deque[_Queued] = deque()
        self._bytes_in = self._bytes_out = 0  # each written by one thread only
        self._dropped = 0
        self._draining = threading.Lock()
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._written, self._sent = threading.Event(), threading.Event()
        self._send_now = threading.Event()
        self._down_since: float | None = None
        for target in (self._write, self._send):
            threading.Thread(target=target, name=f"{THREAD_NAME}{target.__name__}", daemon=True).start()
        atexit.register(self._drain)

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        self._enqueue({"metrics": dict(values), "step": step}, None)

    def image(self, key: str, image: NDArray[np.uint8], *, step: int) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"{key}: an image is uint8 (height, width, 3), not {image.dtype} {image.shape}")
        self._enqueue({"image": key, "step": step}, image.copy())

    def artifact(self, path: str, content: bytes) -> None:
        self._enqueue({"artifact": path}, content)

    def tags(self, values: Mapping[str, str]) -> None:
        self._enqueue({"tags": dict(values)}, None)

    def close(self, status: EndStatus) -> None:
        """End the run; what has not arrived within ``close_seconds`` is sent by the next command."""
        if self._closing.is_set():
            return
        self._ending = {"end": status, "time": _now()}
        self._closing.set()
        self._written.wait(self._close_seconds)
        self._send_now.set()
        down_since = self._down_since
        hopeless = down_since is not None and time.monotonic() - down_since > self._close_seconds
        patience = min(_HOPELESS_SECONDS, self._close_seconds) if hopeless else self._close_seconds
        if not self._sent.wait(patience):
            self._given_up.set()
            self._send_now.set()
            log.warning(
                "tracking: the end of %s has not arrived; the next hasten command sends it from %s",
                self._identity.name,
                self._segment.folder,
            )
        atexit.unregister(self._drain)

    def _enqueue(self, entry: Entry, payload: NDArray[np.uint8] | bytes | None) -> None:
        size = _size(payload)
        too_large = size > 0 and self._bytes_in - self._bytes_out + size > MAX_QUEUED_BYTES
        if len(self._queue) >= MAX_QUEUED or too_large or self._closing.is_set():
            self._dropped += 1
            return
        self._bytes_in += size
        entry["time"] = _now()
        self._queue.append((entry, payload))

    # The writing thread: from the queue to the disk.

    def _write(self) -> None:
        reported = 0
        if self._observer is not None:
            for path, content in self._observer.files().items():
                self._append_file({"artifact": path, "time": _now()}, content)
        while not self._written.is_set():
            closing = self._closing.wait(FLUSH_SECONDS)
            self._drain()
            self._observe(last=closing)
            if closing:
                self._queue.append((self._ending, None))
                self._drain()
            if self._dropped > reported:
                log.warning("tracking: %d records dropped, the spool is too slow", self._dropped - reported)
                reported = self._dropped
            if closing:
                self._written.set()
        self._send_now.set()

    def _observe(self, *, last: bool) -> None:
        if self._observer is not None and (seen := self._observer.look(self._last_step, last=last)):
            self._queue.append(({"metrics": dict(seen), "step": self._last_step, "time": _now()}, None))

    def _drain(self) -> None:
        with self._draining:
            entries: list[Entry] = []
            while self._queue:
                entry, payload = self._queue.popleft()
                try:
                    if payload is None:
                        entries.append(_plain(entry))
                        self._last_step = entry.get("step", self._last_step)
                    else:
                        self._bytes_out += _size(payload)
                        self._append_file(entry, payload)
                except (TypeError, ValueError) as error:
                    log.warning("tracking: a record is left out: %s", error)
            if entries:
                try:
                    self._segment.append(entries)
                except OSError as error:
                    log.warning("tracking: %s cannot be written: %s", self._segment.folder, error)

    def _append_file(self, entry: Entry, payload: NDArray[np.uint8] | bytes) -> None:
        try:
            self._segment.append_file(entry, payload if isinstance(payload, bytes) else _png(payload))
        except OSError as error:
            log.warning("tracking: a record is left out: %s", error)

    # The sending thread: from the disk to the server.

    def _send(self) -> None:
        shipments: deque[Shipment] = deque()
        delay, (pause, longest) = 0.0, SEND_SECONDS
        try:
            while True:
                self._send_now.wait(delay)
                self._send_now.clear()
                last_round = self._written.is_set()
                try:
                    shipments = shipments or self._connect()
                    while len(shipments) > 1:  # what an earlier process of this run left behind
                        shipments[0].send()
                        shipments.popleft().segment.remove()
                    shipments[0].send()
                    self._say_up()
                    delay, pause = pause, min(1.5 * pause, longest)
                except Unreachable as trouble:
                    self._say_down(trouble)
                    low, high = _BACKOFF_SECONDS
                    delay = low if last_round else min(max(2 * delay, low), high)
                    last_round = False
                if last_round:
                    self._segment.remove()
                    break
                if self._given_up.is_set():
                    break
        except Gone as gone:
            log.warning("tracking: %s is no longer recorded: %s", self._identity.name, gone)
            self._segment.remove()
        except Refused as refusal:
            log.warning("tracking: %s cannot be recorded: %s", self._identity.name, refusal)
        except Exception:  # a defect in here must not end a training run; the spool keeps what it has
            log.exception("tracking: sending %s stopped", self._identity.name)
        for shipment in shipments:
            shipment.segment.release()
        self._segment.release()
        self._sent.set()

    def _connect(self) -> deque[Shipment]:
        """Reach the run, learn what it has, and take over what earlier trackers left."""
        self._await_predecessor()
        if not self.run_id:
            fresh, self._fresh = self._fresh, False  # it may be made although no answer comes
            run_id, self._attempt = self._door.attempt(self._identity, fresh=fresh)
            self._segment.set_header({"identity": self._identity.document(), "attempt": self._attempt})
            self.run_id = run_id
        scores = Scores()
        if self._attempt > 1:
            scores.load(self._door.history(self.run_id))
        left = [
            Shipment(self._door, self.run_id, scores, segment, takes_end=False)
            for segment in abandoned(self._run_folder)
        ]
        return deque([*left, Shipment(self._door, self.run_id, scores, self._segment)])

    def _await_predecessor(self) -> None:
        """Let an earlier tracker of this run, closed while it was sending, come to the end of its request.

        What the run has must be asked for after that, or the points of that request would be sent again.
        """
        deadline = time.monotonic() + _PREDECESSOR_SECONDS
        while has_living_before(self._segment.folder) and time.monotonic() < deadline:
            if self._given_up.wait(FLUSH_SECONDS):
                raise Unreachable("an earlier tracker of this run waits for its answer")

    def _say_down(self, trouble: Unreachable) -> None:
        if self._down_since is None:
            self._down_since = time.monotonic()
            log.warning(
                "tracking: %s does not take metrics (%s); training goes on, they wait in %s",
                self._door.address,
                trouble,
                self._segment.folder,
            )

    def _say_up(self) -> None:
        if self._down_since is not None:
            seconds = time.monotonic() - self._down_since
            log.warning("tracking: %s is back after %.0f s, nothing is lost", self._door.address, seconds)
            self._down_since = None


def _now() -> int:
    return time.time_ns() // 1_000_000


def _size(payload: NDArray[np.uint8] | bytes | None) -> int:
    if payload is None:
        return 0
    return len(payload) if isinstance(payload, bytes) else payload.nbytes


def _plain(entry: Entry) -> Entry:
    if "metrics" in entry:
        return entry | {"metrics": {key: float(value) for key, value in entry["metrics"].items()}}
    if "tags" in entry:
        return entry | {"tags": {key: str(value) for key, value in entry["tags"].items()}}
    return entry


def _png(image: NDArray[np.uint8]) -> bytes:
    return grids.encode(Image.fromarray(image), kind="PNG")
