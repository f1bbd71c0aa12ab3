"""Processes of the local stack: started detached, found again by a mark, stopped with all they started.

Every process carries its home and part in two environment variables that its children inherit.
So all of them are found after the launcher was killed, after daemons called ``setsid``, and after
a process number was given to somebody else. Nothing is ever stopped by name.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from hasten.trainers.errors import Fault

HOME_MARK: Final = "HASTEN_STACK"
PART_MARK: Final = "HASTEN_STACK_PART"
LOOPBACK: Final = "127.0.0.1"

_LOG_BYTES = 10_000_000
# Kept only to be polled: a child that ended stays a zombie until its parent has looked.
_started: list[subprocess.Popen[bytes]] = []
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, ProcessLookupError, PermissionError)


def spawn(
    command: Sequence[str], *, home: Path, part: str, environment: Mapping[str, str], log: Path
) -> psutil.Process:
    """Start ``command`` in a session of its own, with its output in ``log``.

    Raises:
        Fault: the log cannot be written or the process cannot be started.
    """
    marked = {**environment, HOME_MARK: str(home), PART_MARK: part}
    # Some libraries write their title over the environment block, in which the mark is read.
    marked["SPT_NOENV"] = "1"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".old.log"))
        with log.open("ab") as output:
            output.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} starting {part}\n".encode())
            output.flush()
            process = subprocess.Popen(
                command,
                env=marked,
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise Fault(str(log), f"{part} cannot be started: {error.strerror}") from None
    _started.append(process)
    return psutil.Process(process.pid)


def find(pid: int, *, home: Path, part: str) -> psutil.Process | None:
    """The live process ``pid`` if it belongs to ``part`` of this home's stack."""
    with contextlib.suppress(*_GONE):
        process = psutil.Process(pid)
        if _alive(process) and _mark(process) == (str(home), part):
            return process
    return None


def members(home: Path, part: str | None = None) -> list[psutil.Process]:
    """Every live process of this home's stack, or of one part of it, the caller excepted."""
    wanted = str(home)
    sessions: dict[int, str] = {}
    unmarked: list[tuple[psutil.Process, int]] = []
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(*_GONE):
            if process.pid == os.getpid() or not _alive(process):
                continue
            session = os.getsid(process.pid)
            mark = _mark(process)
            if mark is None:
                unmarked.append((process, session))
            elif mark[0] == wanted and part in (None, mark[1]):
                found.append(process)
                sessions[session] = mark[1]
    # A process that overwrote its own environment is known by the session that it shares with marked ones.
    sessions.pop(os.getsid(0), None)
    return found + [process for process, session in unmarked if session in sessions]


def stop(processes: Collection[psutil.Process], *, grace: float) -> None:
    """Ask ``processes`` to end, and end those that have not after ``grace`` seconds."""
    for process in processes:
        with contextlib.suppress(*_GONE):
            process.terminate()
    deadline = time.monotonic() + grace
    left = list(processes)
    while (left := [process for process in left if alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        with contextlib.suppress(*_GONE):
            process.kill()
    while any(alive(process) for process in left) and time.monotonic() < deadline + 5:
        time.sleep(0.05)
    for child in _started:
        child.poll()


def title(process: psutil.Process) -> str:
    """What a process calls itself: its command line; empty for one that has ended meanwhile."""
    with contextlib.suppress(*_GONE):
        return " ".join(process.cmdline())
    return ""


def alive(process: psutil.Process) -> bool:
    """Whether the very same process still runs."""
    with contextlib.suppress(*_GONE):
        return _alive(process)
    return False


def listening(processes: Iterable[psutil.Process], port: int) -> bool:
    """Whether one of ``processes`` accepts connections on ``port``: not merely anybody."""
    for process in processes:
        with contextlib.suppress(*_GONE):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return True
    return False


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of the loopback interface now."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still fading is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def claim(port: int) -> socket.socket | None:
    """Keep other launchers on this machine off ``port`` until the result is closed; None if one was first.

    A server binds its port seconds after it was found free. The claim is a name of the kernel's, not a file,
    so it ends with the launcher however that ends.
    """
    claimed = socket.socket(socket.AF_UNIX)
    if sys.platform == "linux":
        try:
            claimed.bind(f"\0hasten-port-{port}")
        except OSError:
            claimed.close()
            return None
    return claimed


def free_port(preferred: Iterable[int], *, taken: Collection[int]) -> tuple[int, socket.socket]:
    """The first free port of ``preferred`` that is not ``taken``, or any free one, with a claim on it."""
    for port in preferred:
        if port not in taken and is_free(port) and (claimed := claim(port)) is not None:
            return port, claimed
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        if port not in taken and (claimed := claim(port)) is not None:
            return port, claimed


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log since its last start, for an error message."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    last = text.rpartition("--- ")[2].splitlines()[1:]
    return "\n".join(last[-lines:])


def python_module(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs ``module`` with this interpreter, wherever scripts were installed."""
    return (sys.executable, "-m", module, *arguments)


def _alive(process: psutil.Process) -> bool:
    return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE


def _mark(process: psutil.Process) -> tuple[str, str] | None:
    with contextlib.suppress(psutil.AccessDenied, PermissionError):
        environment = process.environ()
        if HOME_MARK in environment:
            return environment[HOME_MARK], environment.get(PART_MARK, "")
    return None
