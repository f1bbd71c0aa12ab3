"""Starts, finds, restarts and stops the parts of the local stack, one command at a time."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import threading
import time
import types
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil

from hasten.platform import settings as settings_module
from hasten.platform.settings import Settings
from hasten.platform.stack import parts, processes, ray_head, state
from hasten.platform.stack.parts import PARTS, Event, Part, Status, Tell, say_nothing
from hasten.platform.stack.state import Record
from hasten.trainers.errors import Fault

_PATIENCE: Final = 240.0
_ATTEMPTS: Final = 3
_MIN_FREE_BYTES: Final = 300_000_000


def up(settings: Settings, names: Collection[str] = PARTS, *, tell: Tell = say_nothing) -> dict[str, str]:
    """Have the local ones of ``names`` run and answer; the address of each. Those that do are left alone.

    The embedded object store is always among them, since the others keep things in it. When this
    fails or is interrupted, what it started is stopped again.

    Raises:
        ConfigError: this machine cannot hold the stack.
        Fault: a part did not start, or the home cannot be written.
    """
    wanted = [name for name in parts.local(settings) if name in names or name == "storage"]
    if not wanted:
        return {}
    home = settings_module.home()
    state.prepare(home)
    with state.locked(home, on_wait=lambda: tell(Event(kind="waiting"))), _interruptible():
        launch = _Launch(home, settings, tell)
        try:
            launch.settle(wanted)
        except BaseException:
            with _uninterruptible():
                launch.undo()
            raise
        finally:
            launch.release()
        return {name: launch.part(name).url(launch.records[name].ports) for name in wanted}


def down(*, tell: Tell = say_nothing) -> list[str]:
    """Stop every process of this home's stack, whoever started it; the names of the parts that ran.

    Raises:
        Fault: a process could not be stopped.
    """
    home = settings_module.home()
    if not state.folder(home).is_dir():
        return []
    with state.locked(home, on_wait=lambda: tell(Event(kind="waiting"))):
        records = state.read(home)
        ran = [name for name in PARTS if processes.members(home, name)]
        started = time.monotonic()
        for name in ran:
            tell(Event(kind="stopping", part=name))
        _stop(home)
        for name in ran:
            tell(Event(kind="stopped", part=name, seconds=time.monotonic() - started))
        ray_head.tidy(home, stopped=True)
        kept = {name: Record(ports=record.ports, log=record.log) for name, record in records.items()}
        with contextlib.suppress(Fault):  # a full disk costs the memory of the ports, no more
            state.save(home, kept)
    return ran


def status(settings: Settings) -> list[Status]:
    """Every part as it is now; starts nothing."""
    home = settings_module.home()
    records = state.read(home)
    return [
        parts.observe(
            parts.make(name, home=home, settings=settings, records=records), records.get(name), home=home
        )
        if name in parts.local(settings)
        else parts.external(name, home=home, settings=settings)
        for name in PARTS
    ]


class _Launch:
    """One ``up``: what it found, what it began, what it must take back when it fails."""

    def __init__(self, home: Path, settings: Settings, tell: Tell) -> None:
        self.home = home
        self.settings = settings
        self.tell = tell
        self.records = state.read(home)
        self.begun: list[str] = []
        self.deaths: Counter[str] = Counter()
        self.claims: dict[str, list[socket.socket]] = {}
        self.pending: dict[str, psutil.Process] = {}

    def part(self, name: str) -> Part:
        """The part, told where the object store is now."""
        return parts.make(name, home=self.home, settings=self.settings, records=self.records)

    def settle(self, wanted: Sequence[str]) -> None:
        """Find or start each part, then wait until all of them answer."""
        for name in wanted:
            self.ensure(name)
        deadline = time.monotonic() + _PATIENCE
        while self.pending:
            for name in list(self.pending):
                self._look_at(name, wanted)
            if time.monotonic() > deadline:
                name = next(iter(self.pending))
                raise self._failure(name, f"did not answer within {_PATIENCE:.0f} s")
            if self.pending:
                time.sleep(0.1)

    def ensure(self, name: str) -> None:
        """Take over the part that runs, or start it."""
        part, record = self.part(name), self.records.get(name)
        process = None
        if record is not None and record.pid is not None:
            process = processes.find(record.pid, home=self.home, part=name)
        if process is not None and not _fits(part, process):
            if part.busy():
                raise Fault(
                    f"local {part.title}",
                    "was started for another object store or other credentials, and is working",
                    "Wait until that work is done, or stop it with `hasten down`; then run this again.",
                )
            process = None
        if process is None:
            self._start(part)
        else:
            self.pending[name] = process

    def undo(self) -> None:
        """Stop what this call began."""
        for name in dict.fromkeys(reversed(self.begun)):
            _stop(self.home, name)
            record = self.records[name]
            self.records[name] = Record(ports=record.ports, log=record.log)
        if "ray" in self.begun:
            ray_head.tidy(self.home, stopped=True)
        if self.begun:
            with contextlib.suppress(Fault):
                state.save(self.home, self.records)

    def release(self) -> None:
        """Let other launchers have the ports that nothing listens on."""
        for name in list(self.claims):
            self._release(name)

    def _release(self, name: str) -> None:
        for claimed in self.claims.pop(name, []):
            claimed.close()

    def _start(self, part: Part) -> None:
        disk = shutil.disk_usage(self.home)
        if disk.total and disk.free < _MIN_FREE_BYTES:  # a file system in memory may not know its size
            problem = f"its disk has {disk.free / 1e6:.0f} MB free"
            raise Fault(f"HASTEN_HOME ({self.home})", problem, state.REMEDY)
        # Whatever is left of an earlier life of this part would hold its ports or its data.
        _stop(self.home, part.name)
        old = self.records.get(part.name, Record())
        taken = {
            port
            for name, record in self.records.items()
            if name != part.name
            for port in record.ports.values()
        }
        self._release(part.name)
        self.claims[part.name] = []
        ports: dict[str, int] = {}
        for purpose, default in part.ports.items():
            preferred = [port for port in (old.ports.get(purpose, 0), default) if port]
            ports[purpose], claimed = processes.free_port(preferred, taken=taken | set(ports.values()))
            self.claims[part.name].append(claimed)
        log = state.folder(self.home) / "logs" / f"{part.name}.log"
        again = part.name in self.begun
        self.begun.append(part.name)
        self.records[part.name] = Record(ports=ports, log=str(log))
        command, variables = part.launch(ports)
        process = processes.spawn(command, home=self.home, part=part.name, environment=variables, log=log)
        self.records[part.name] = Record(
            ports=ports, pid=process.pid, created=process.create_time(), started=time.time(), log=str(log)
        )
        state.save(self.home, self.records)
        self.pending[part.name] = process
        self.tell(
            Event(kind="restarting" if again else "starting", part=part.name, title=part.title, log=str(log))
        )

    def _look_at(self, name: str, wanted: Sequence[str]) -> None:
        part, record = self.part(name), self.records[name]
        if not processes.alive(self.pending[name]):
            self._start_again(part, wanted)
        elif part.answers(record.ports) and (record.ready or self._listens(part, record)):
            del self.pending[name]
            if not record.ready:
                record.ready = True
                state.save(self.home, self.records)
            self.tell(
                Event(
                    kind="ready" if name in self.begun else "found",
                    part=name,
                    title=part.title,
                    url=part.url(record.ports),
                    log=record.log,
                    seconds=time.time() - (record.started or time.time()),
                )
            )

    def _listens(self, part: Part, record: Record) -> bool:
        # Another program may have taken the port after it was found free, and answer in our place.
        own = processes.members(self.home, part.name)
        return all(processes.listening(own, port) for port in part.listens_on(record.ports))

    def _start_again(self, part: Part, wanted: Sequence[str]) -> None:
        """After a death while starting: on other ports when one was lost, else report it."""
        _stop(self.home, part.name)
        ports = self.records[part.name].ports
        lost = [port for port in ports.values() if not processes.is_free(port)]
        self.deaths[part.name] += 1
        hopeless = part.name in self.begun and not lost
        if hopeless or self.deaths[part.name] >= _ATTEMPTS:
            raise self._failure(part.name, "ended while starting")
        self._start(part)
        if part.name == "storage" and self.records["storage"].ports != ports:
            for name in wanted[1:]:
                self.ensure(name)

    def _failure(self, name: str, problem: str) -> Fault:
        log = Path(self.records[name].log)
        lines = processes.tail(log).replace("\n", "\n    ")
        remedy = f"Its log is {log}" + (f" and ends with:\n    {lines}" if lines else "")
        return Fault(f"local {self.part(name).title}", problem, remedy)


def _fits(part: Part, process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return part.fits(process.cmdline(), process.environ())
    return False


def _stop(home: Path, name: str | None = None) -> None:
    """Stop every process of a part, or of all, also those that its processes start meanwhile.

    Nothing is lost with those that must be killed: the store and SQLite survive it, Ray keeps nothing.
    """
    for grace in (3.0, 1.0, 1.0, 1.0):
        found = processes.members(home, name)
        if not found:
            return
        processes.stop(found, grace=grace)
    left = ", ".join(str(process.pid) for process in processes.members(home, name))
    if left:
        raise Fault(
            f"local {name or 'stack'}", f"processes {left} could not be stopped", "Stop them yourself."
        )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, where nobody else has plans for it."""

    def interrupt(signum: int, frame: types.FrameType | None) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _uninterruptible() -> Iterator[None]:
    """Let an impatient second Ctrl-C not leave half of the work behind; it takes some seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
