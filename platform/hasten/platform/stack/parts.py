"""What a part of the stack is, which parts the settings leave to it, and how one is seen from outside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

import psutil

from hasten.platform.settings import Settings
from hasten.platform.stack import environment, processes
from hasten.platform.stack.mlflow_server import MlflowServer
from hasten.platform.stack.ray_head import RayHead
from hasten.platform.stack.state import Record
from hasten.platform.stack.swift import Swift

# In the order in which they start: the later ones are told where the first one is.
PARTS: Final = ("storage", "tracking", "ray")
EMBEDDED_URI: Final = "s3://hasten"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a person who waits wants to see. ``seconds`` is the time since the start of the part."""

    kind: Literal["waiting", "starting", "restarting", "found", "ready", "stopping", "stopped"]
    part: str = ""
    title: str = ""
    url: str = ""
    log: str = ""
    seconds: float = 0.0


Tell = Callable[[Event], None]


def say_nothing(event: Event) -> None:
    """For callers with nobody to tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One part as it is now.

    ``dead`` was started and is gone; ``silent`` runs but does not answer; ``external`` is somebody else's.
    """

    part: str
    title: str
    state: Literal["running", "silent", "dead", "stopped", "external"]
    url: str = ""
    dashboard: str = ""
    pid: int | None = None
    since: float | None = None
    memory_bytes: int = 0
    log: str = ""


class Part(Protocol):
    """A server of the stack. It holds no state: what runs is in records and in the processes themselves."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def ports(self) -> Mapping[str, int]: ...
    def launch(self, ports: Mapping[str, int]) -> tuple[tuple[str, ...], dict[str, str]]: ...
    def listens_on(self, ports: Mapping[str, int]) -> tuple[int, ...]: ...
    def answers(self, ports: Mapping[str, int]) -> bool: ...
    def fits(self, command: Sequence[str], variables: Mapping[str, str]) -> bool: ...
    def busy(self) -> bool: ...
    def url(self, ports: Mapping[str, int]) -> str: ...


def local(settings: Settings) -> tuple[str, ...]:
    """The parts that the settings leave to the local stack."""
    named = {
        "storage": not settings.storage.embedded,
        "tracking": settings.tracking.uri is not None,
        "ray": settings.ray.address is not None,
    }
    return tuple(name for name in PARTS if not named[name])


def make(name: str, *, home: Path, settings: Settings, records: Mapping[str, Record]) -> Part:
    """The part called ``name``, told where the object store is."""
    storage = settings.storage
    change: environment.Change = {}
    if storage.embedded:
        ports = records["storage"].ports if "storage" in records else {"s3": 0}
        change = environment.embedded_storage(home, Swift(home=home).url(ports), storage.region)
    elif storage.folder is None:
        change = environment.foreign_storage(storage.endpoint, storage.region)
    match name:
        case "storage":
            return Swift(home=home)
        case "tracking":
            uri = f"{storage.uri or EMBEDDED_URI}/mlflow"
            artifacts = str(home / "artifacts") if storage.folder is not None else uri
            return MlflowServer(home=home, artifacts=artifacts, storage=change)
        case _:
            return RayHead(home=home, storage=change)


def observe(part: Part, record: Record | None, *, home: Path) -> Status:
    """How a local part is now."""
    if record is None or record.pid is None:
        return Status(part=part.name, title=part.title, state="stopped", log=record.log if record else "")
    process = processes.find(record.pid, home=home, part=part.name)
    if process is None:
        return Status(part=part.name, title=part.title, state="dead", log=record.log)
    return Status(
        part=part.name,
        title=part.title,
        state="running" if part.answers(record.ports) else "silent",
        url=part.url(record.ports),
        dashboard=part.dashboard(record.ports) if isinstance(part, RayHead) else "",
        pid=record.pid,
        since=record.started,
        memory_bytes=sum(_memory(member) for member in processes.members(home, part.name)),
        log=record.log,
    )


def external(name: str, *, home: Path, settings: Settings) -> Status:
    """A part that the settings name."""
    part = make(name, home=home, settings=settings, records={})
    urls = {
        "storage": settings.storage.endpoint or settings.storage.uri,
        "tracking": settings.tracking.uri,
        "ray": settings.ray.address,
    }
    return Status(part=name, title=part.title, state="external", url=urls[name] or "")


def _memory(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        # Forked servers share most of their memory: count each page once where the system can say so.
        return int(getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss)
    return 0
