"""The local Ray: one head node with all CPUs of this machine, on loopback, behind a token."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from hasten.platform.stack import environment, processes, state
from hasten.trainers.errors import Fault

OBJECT_STORE_BYTES: Final = 200_000_000

# A socket's path has at most 107 bytes, of which Ray adds this many below its folder.
_SOCKET_LIMIT: Final = 103
_SOCKET_TAIL: Final = len("/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")

# Titles of Ray's processes that do nobody's work.
_IDLE: Final = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass(frozen=True, slots=True, kw_only=True)
class RayHead:
    """The part of the stack that serves ``ray``."""

    name: ClassVar[str] = "ray"
    title: ClassVar[str] = "Ray"
    ports: ClassVar[Mapping[str, int]] = {"gcs": 6379, "dashboard": 8265, "client": 0}
    home: Path
    storage: Mapping[str, str | None] = field(default_factory=dict)

    def launch(self, ports: Mapping[str, int]) -> tuple[tuple[str, ...], dict[str, str]]:
        """The command and environment that start the head node.

        Raises:
            Fault: no private folder for its sockets.
        """
        token = make_token(self.home)
        tidy(self.home, stopped=False)
        arguments = [
            *("start", "--head", "--block", "--disable-usage-stats", "--include-log-monitor", "false"),
            *("--node-ip-address", processes.LOOPBACK, "--port", str(ports["gcs"])),
            *("--ray-client-server-port", str(ports["client"])),
            *("--dashboard-host", processes.LOOPBACK, "--dashboard-port", str(ports["dashboard"])),
            # Random ports, or a second Ray on this machine would want the same ones.
            *("--dashboard-agent-listen-port", "0", "--min-worker-port", "0", "--max-worker-port", "0"),
            *("--num-cpus", str(num_cpus()), "--object-store-memory", str(OBJECT_STORE_BYTES)),
            *("--temp-dir", str(sessions(self.home)), "--log-style", "record"),
        ]
        # The module behind the `ray` command, which may lie in another folder than the interpreter.
        command = processes.python_module("ray.scripts.scripts", *arguments)
        change = {**self.storage, **environment.ray_head(token)}
        return command, environment.applied(environment.servers(os.environ), change)

    def listens_on(self, ports: Mapping[str, int]) -> tuple[int, ...]:
        """The ports that must accept connections before Ray is ready."""
        return (ports["gcs"], ports["dashboard"])

    def answers(self, ports: Mapping[str, int]) -> bool:
        """Whether the control store says that it is well and a raylet has joined it."""
        if not environment.answers(f"{self.dashboard(ports)}/api/gcs_healthz"):
            return False
        return any((sessions(self.home) / "session_latest" / "sockets").glob("raylet*"))

    def fits(self, _command: Sequence[str], variables: Mapping[str, str]) -> bool:
        """Whether workers of a running head would reach the object store that this command uses."""
        return not self.storage or environment.same_access(
            variables, environment.applied(os.environ, self.storage)
        )

    def busy(self) -> bool:
        """Whether the running head does work for somebody."""
        titles = (processes.title(process) for process in processes.members(self.home, self.name))
        return any(title.startswith("ray::") and not title.startswith(_IDLE) for title in titles)

    def url(self, ports: Mapping[str, int]) -> str:
        """The address for ``ray.init``."""
        return f"{processes.LOOPBACK}:{ports['gcs']}"

    def dashboard(self, ports: Mapping[str, int]) -> str:
        """Ray's web page; it asks for the token."""
        return f"http://{processes.LOOPBACK}:{ports['dashboard']}"


def num_cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def token_file(home: Path) -> Path:
    """The file that holds the token of the local Ray."""
    return state.folder(home) / "ray_token"


def make_token(home: Path) -> Path:
    """The token's file, written at first use.

    Raises:
        Fault: the home cannot be written.
    """
    path = token_file(home)
    try:
        if not path.exists():
            state.write(path, secrets.token_hex(32), mode=0o600)
        path.chmod(0o600)
    except OSError as error:
        raise Fault(f"HASTEN_HOME ({home})", f"cannot be written: {error.strerror}", state.REMEDY) from None
    return path


def sessions(home: Path) -> Path:
    """Ray's folder: in the home, or a short private one when the home's path is too long or not in ASCII.

    Raises:
        Fault: somebody else owns the short folder.
    """
    inside = state.folder(home) / "ray"
    if str(inside).isascii() and len(str(inside)) + _SOCKET_TAIL <= _SOCKET_LIMIT:
        inside.mkdir(mode=0o700, exist_ok=True)
        return inside
    outside = _outside(home)
    try:
        outside.mkdir(mode=0o700, exist_ok=True)
        found = outside.lstat()
    except OSError as error:
        raise Fault(
            str(outside), f"cannot be made: {error.strerror}", "Set HASTEN_HOME to a shorter path."
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise Fault(
            str(outside), "belongs to somebody else", "Remove it, or set HASTEN_HOME to a shorter path."
        )
    # Ray opens its own folder to everybody; the one around it stays closed.
    return outside / "r"


def tidy(home: Path, *, stopped: bool) -> None:
    """Keep the newest session's logs only; once ``stopped``, nothing outside the home. Ray must not run."""
    outside = _outside(home)
    for folder in (state.folder(home) / "ray", outside / "r"):
        if not _ours(folder):
            continue
        (folder / "session_latest").unlink(missing_ok=True)
        for session in sorted(folder.glob("session_*"))[:-1]:
            shutil.rmtree(session, ignore_errors=True)
    if stopped and _ours(outside):
        shutil.rmtree(outside, ignore_errors=True)


def _ours(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid()


def _outside(home: Path) -> Path:
    # The same name every time, so that a later command finds what a killed one left.
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    return Path("/tmp").resolve() / f"hasten-{os.getuid()}-{digest}"
