"""A hasten command watched from outside: when it said what, what it asked MLflow, what everything used."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import psutil
from other_sweeps import WORKERS

from hasten.platform.stack import processes

_PARTS: Final = ("storage", "tracking", "ray")
_HEAD: Final = ("gcs_server", "raylet")
_HERE: Final = Path(__file__).parent
_OVER: Final = re.compile(r"^\S+: (?:finished|stopped).*\((\d+) of (\d+)")
_LOOKS: Final = 10  # at a study while it runs: each takes some milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """Processor seconds by part of the stack, with the ``driver``'s; MiB that driver and Ray's head hold."""

    cpu: Mapping[str, float]
    mib: Mapping[str, float]

    def since(self, earlier: Used) -> dict[str, float]:
        """Processor seconds by part, and ``all`` of them together."""
        spent = {part: self.cpu[part] - earlier.cpu.get(part, 0.0) for part in self.cpu}
        return {**spent, "all": sum(spent.values())}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """At some moment so many trials were over, and so much had been used."""

    moment: float
    trials: int
    used: Used


@dataclass(slots=True, kw_only=True)
class Watched:
    """A command that has ended. Moments are the machine's monotonic clock.

    ``marks`` were made while trials ran: when each worker had done its first, now and then, and at the end.
    ``asked`` is what MLflow was asked for; ``found`` what ``--json`` prints.
    """

    began: float
    ended: float = 0.0
    lines: list[tuple[float, str]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    asked: list[tuple[float, str]] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)
    peak_mib: float = 0.0

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def steady(self) -> tuple[Mark, Mark]:
        """When each worker had done its first trial, and when the last was over.

        Workers that go in step end together: counted from the first end of all, one trial would seem to have
        taken no time.
        """
        return next(mark for mark in self.marks if mark.trials >= WORKERS), self.marks[-1]

    def when(self, text: str) -> float:
        """Seconds from the start until a line with ``text`` came."""
        return next(moment for moment, line in self.lines if text in line) - self.began

    def queries(self) -> dict[str, int]:
        """How often the driver asked MLflow: until the first trial was over, until the last was, and then."""
        start, end = self.marks[0].moment, self.marks[-1].moment
        moments = [moment for moment, _ in self.asked]
        return {
            "start": sum(moment < start for moment in moments),
            "running": sum(start <= moment < end for moment in moments),
            "end": sum(moment >= end for moment in moments),
        }


class Stack:
    """The servers of a home, under which commands run."""

    def __init__(self, home: Path) -> None:
        self._home = home
        # Ray's workers come and go: they are found below the raylet.
        self._lasting = {
            part: [one for one in processes.members(home, part) if not _is_worker(one)] for part in _PARTS
        }
        self._seen: dict[str, dict[int, float]] = {part: {} for part in _PARTS}

    def used(self, driver: psutil.Process | None = None) -> Used:
        """What was used by now; of what has ended since, what was then."""
        for part, roots in self._lasting.items():
            self._seen[part] |= _seconds(roots)
        seen = {**self._seen, "driver": _seconds([driver]) if driver else {}}
        head = sum(_mib(one) for one in self._lasting["ray"] if one.name() in _HEAD)
        return Used(
            cpu={part: sum(seconds.values()) for part, seconds in seen.items()},
            mib={"head": head, "driver": _mib(driver) if driver else 0.0},
        )

    def run(self, *arguments: str) -> Watched:
        """Run a hasten command to its end.

        Raises:
            SystemExit: it did not end well.
        """
        notes = self._home / "notes.json"
        command = [sys.executable, str(_HERE / "one_command.py"), str(notes), *arguments, "--json"]
        seen = Watched(began=time.monotonic())
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            driver = psutil.Process(process.pid)
            _listen(process, lambda line: self._hear(line, seen, driver))
        seen.ended = time.monotonic()
        if process.returncode != 0:
            said = "\n".join(line for _, line in seen.lines)
            raise SystemExit(f"hasten {' '.join(arguments)} ended with {process.returncode}:\n{said[-4000:]}")
        told = json.loads(notes.read_text())
        seen.asked = [(moment, what) for moment, what in told["asked"]]
        seen.peak_mib = told["peak_mib"]
        seen.found = json.loads(next(line for _, line in reversed(seen.lines) if line.startswith("{")))
        return seen

    def _hear(self, line: str, seen: Watched, driver: psutil.Process) -> None:
        moment = time.monotonic()
        seen.lines.append((moment, line))
        if found := _OVER.match(line):
            over, of = map(int, found.groups())
            if over <= WORKERS or over == of or over % max(1, of // _LOOKS) == 0:
                seen.marks.append(Mark(moment=moment, trials=over, used=self.used(driver)))


def _listen(process: subprocess.Popen[str], hear: Callable[[str], None]) -> None:
    """Hear what a process says, on both of its outputs, until it says no more."""
    lock = threading.Lock()

    def follow(stream: IO[str]) -> None:
        for line in stream:
            with lock:
                hear(line.rstrip("\n"))

    assert process.stdout is not None
    assert process.stderr is not None
    readers = [threading.Thread(target=follow, args=(stream,)) for stream in (process.stdout, process.stderr)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


def _is_worker(process: psutil.Process) -> bool:
    title = processes.title(process)
    return not title or title.startswith("ray::")  # without a title: it has ended


def _seconds(roots: Iterable[psutil.Process]) -> dict[int, float]:
    """Processor seconds of processes and of their descendants, by process."""
    found = {}
    for root in roots:
        with contextlib.suppress(psutil.Error):
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    found[process.pid] = float(times.user + times.system)
    return found


def _mib(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 2**20
    except psutil.Error:
        return 0.0
