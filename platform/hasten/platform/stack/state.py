"""What the stack remembers between commands: ports and processes in one file, under one lock.

The file is a memory, not the truth: whether a process lives and is ours is asked of the process
itself. Ports outlive ``down``, so that URLs stay what they were.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from hasten.trainers.errors import Fault

FOLDER: Final = "stack"
REMEDY: Final = "Free some space there, make it writable, or set HASTEN_HOME to another folder."


@dataclass(slots=True, kw_only=True)
class Record:
    """One part: its ports, and its process while it is meant to run."""

    ports: dict[str, int] = field(default_factory=dict)
    pid: int | None = None
    created: float | None = None
    started: float | None = None
    ready: bool = False
    log: str = ""


def folder(home: Path) -> Path:
    """Where the stack keeps its files."""
    return home / FOLDER


def prepare(home: Path) -> None:
    """Make the folders of an installation, closed to other users and to version control.

    Raises:
        Fault: the home cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        folder(home).mkdir(mode=0o700, exist_ok=True)
        folder(home).chmod(0o700)
        ignore = home / ".gitignore"
        if not ignore.exists():
            write(ignore, "*\n")
        write(folder(home) / "probe", "")
        (folder(home) / "probe").unlink()
    except OSError as error:
        raise Fault(f"HASTEN_HOME ({home})", f"cannot be written: {error.strerror}", REMEDY) from None


def write(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a whole file or nothing; with ``mode`` 0o600 nobody else ever sees a byte of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(home: Path) -> dict[str, Record]:
    """What is remembered of each part; nothing when the file is missing or unreadable."""
    try:
        data = json.loads((folder(home) / "state.json").read_text(encoding="utf-8"))
        return {name: Record(**record) for name, record in data["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Losing the memory costs the old ports: processes are found by their marks.
        return {}


def save(home: Path, records: dict[str, Record]) -> None:
    """Remember ``records``.

    Raises:
        Fault: the home cannot be written.
    """
    text = json.dumps({"parts": {name: asdict(record) for name, record in records.items()}}, indent=1)
    try:
        write(folder(home) / "state.json", text)
    except OSError as error:
        raise Fault(f"HASTEN_HOME ({home})", f"cannot be written: {error.strerror}", REMEDY) from None


@contextlib.contextmanager
def locked(home: Path, *, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold this home's stack alone; another process waits. The lock ends with its holder, however it ends."""
    try:
        # For reading, so that a stack can still be stopped after its disk became read-only.
        file = os.fdopen(os.open(folder(home) / "lock", os.O_RDONLY | os.O_CREAT, 0o600))
    except OSError as error:
        raise Fault(f"HASTEN_HOME ({home})", f"cannot be written: {error.strerror}", REMEDY) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
