"""The write-ahead log between a training run and the tracking server.

Every process that tracks a run writes a *segment* of its own, a folder ``SPOOL/RUN/SEGMENT/`` with

    header.json    whose run this is
    log.jsonl      metrics, tags and the end, one JSON object a line, in the order of recording
    files/         images and artifacts: the payload first, then the entry that names it
    sent           how many bytes of the log the server has confirmed

A segment is locked for as long as its process lives and removed when the server has everything, so what
lies there unlocked is what a ``kill -9`` or an outage left behind. Sending is at least once; whoever
sends makes it exactly once (``scores`` drops what the server has, entries keep their time).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final, Self

Entry = dict[str, Any]

_LOG: Final = "log.jsonl"
_SENT: Final = "sent"
_HEADER: Final = "header.json"
_FILES: Final = "files"
_UNBORN: Final = ".new-"


@dataclass(frozen=True, slots=True)
class Payload:
    """A file that waits in a segment: ``entry`` says what it is, ``path`` where its bytes lie."""

    entry: Entry
    path: Path
    index: Path


class Segment:
    """One process's part of a run's log. One thread may append while another reads and confirms."""

    def __init__(self, folder: Path, log: FileIO) -> None:
        self.folder = folder
        self._log = log
        self._unwritten = b""
        self._num_files = 0

    @classmethod
    def create(cls, run_folder: Path, *, header: Mapping[str, Any]) -> Self:
        """A fresh, locked segment.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        name = f"{time.time_ns():020d}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        unborn = run_folder / (_UNBORN + name)
        (unborn / _FILES).mkdir(parents=True)
        (unborn / _HEADER).write_text(json.dumps(header), encoding="utf-8")
        log = (unborn / _LOG).open("ab", buffering=0)
        fcntl.flock(log, fcntl.LOCK_EX)
        # Locked before it has its name: nobody may take it for one that a dead process left.
        unborn.rename(run_folder / name)
        return cls(run_folder / name, log)

    @classmethod
    def claim(cls, folder: Path) -> Self | None:
        """The segment in ``folder``, locked; None while its process lives, or when it has gone."""
        try:
            log = (folder / _LOG).open("r+b", buffering=0)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log.close()
            return None
        if not (folder / _LOG).exists():  # removed between opening and locking
            log.close()
            return None
        found = cls(folder, log)
        if not (folder / _HEADER).exists():  # its process was killed while it removed what had been sent
            found.remove()
            return None
        return found

    def header(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / _HEADER).read_text(encoding="utf-8"))
        return document

    def set_header(self, header: Mapping[str, Any]) -> None:
        partial = self.folder / f"{_HEADER}.part"
        partial.write_text(json.dumps(header), encoding="utf-8")
        partial.replace(self.folder / _HEADER)

    def append(self, entries: list[Entry]) -> None:
        """Write entries so that they survive the death of this process.

        Not synced to the platter: after a power failure a run goes on from its checkpoint anyway.

        Raises:
            OSError: the disk is full; what could not be written is kept in memory for the next call.
        """
        self._unwritten += b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
        while self._unwritten:
            written = self._log.write(self._unwritten)
            self._unwritten = self._unwritten[written:]

    def append_file(self, entry: Entry, content: bytes) -> None:
        """Write a payload and then the entry that names it: half of it is never seen."""
        stem = self.folder / _FILES / f"{self._num_files:06d}"
        self._num_files += 1
        stem.with_suffix(".bin").write_bytes(content)
        partial = stem.with_suffix(".part")
        partial.write_text(json.dumps(entry), encoding="utf-8")
        partial.rename(stem.with_suffix(".json"))

    def read(self, *, limit: int) -> tuple[list[Entry], int]:
        """Up to ``limit`` complete entries that are not confirmed yet, and the offset to confirm them with.

        A torn last line is left alone: it is complete in a moment, or its writer is dead.
        """
        entries: list[Entry] = []
        offset = self.confirmed()
        with (self.folder / _LOG).open("rb") as log:
            log.seek(offset)
            for line in log:
                if not line.endswith(b"\n") or len(entries) == limit:
                    break
                offset += len(line)
                with contextlib.suppress(ValueError):  # what a full disk or a power failure left of a line
                    entry = json.loads(line)
                    if isinstance(entry, dict):
                        entries.append(entry)
        return entries, offset

    def files(self) -> Iterator[Payload]:
        """The payloads that are not confirmed yet, in the order of recording."""
        for index in sorted((self.folder / _FILES).glob("*.json")):
            payload = index.with_suffix(".bin")
            try:
                yield Payload(json.loads(index.read_text(encoding="utf-8")), payload, index)
            except (ValueError, FileNotFoundError):
                continue

    def confirmed(self) -> int:
        """How many bytes of the log the server has."""
        try:
            return int((self.folder / _SENT).read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return 0

    def confirm(self, offset: int) -> None:
        partial = self.folder / f"{_SENT}.part"
        partial.write_text(str(offset), encoding="ascii")
        partial.replace(self.folder / _SENT)

    def confirm_file(self, payload: Payload) -> None:
        payload.index.unlink(missing_ok=True)
        payload.path.unlink(missing_ok=True)

    def is_sent(self) -> bool:
        """Whether nothing that can still be sent is left."""
        return not self.read(limit=1)[0] and next(self.files(), None) is None

    def release(self) -> None:
        """Let go of the segment: the next command may claim it."""
        self._log.close()

    def remove(self) -> None:
        """Delete the segment, and the run's folder with the last of them."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._log.close()
        with contextlib.suppress(OSError):  # another segment is there
            self.folder.parent.rmdir()


def segments(run_folder: Path) -> list[Path]:
    """The folders of a run's segments, oldest first, alive or not."""
    if not run_folder.is_dir():
        return []
    return sorted(path for path in run_folder.iterdir() if path.is_dir() and path.name[0] != ".")


def abandoned(run_folder: Path) -> Iterator[Segment]:
    """The segments that dead processes left, oldest first, each locked for the caller."""
    for folder in segments(run_folder):
        segment = Segment.claim(folder)
        if segment is not None:
            yield segment


def runs(spool: Path) -> list[Path]:
    """The folders of all runs that have something in the spool."""
    return sorted(path for path in spool.iterdir() if path.is_dir()) if spool.is_dir() else []


def is_alive(run_folder: Path) -> bool:
    """Whether a living process of this machine is tracking the run."""
    return _has_living(segments(run_folder))


def has_living_before(folder: Path) -> bool:
    """Whether somebody on this machine still holds an older segment of the same run."""
    return _has_living([each for each in segments(folder.parent) if each.name < folder.name])


def _has_living(folders: list[Path]) -> bool:
    for folder in folders:
        segment = Segment.claim(folder)
        if segment is None and (folder / _LOG).exists():
            return True
        if segment is not None:
            segment.release()
    return False
