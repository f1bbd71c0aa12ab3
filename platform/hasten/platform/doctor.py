"""What works and what does not: one check for each thing that a run needs, with what to do about it.

Nothing is started and nothing is kept. Each service is tried with a real round trip.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hasten.platform.services import Services, look
from hasten.platform.settings import Settings, home
from hasten.platform.stack import parts, state, swift
from hasten.trainers.errors import Fault, HastenError

_LOW_BYTES: Final = 2_000_000_000
_START: Final = "Run `hasten up`, which starts it and says where its log is."


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was tried. ``detail`` says what was seen, ``remedy`` what to do if not ``ok``."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    seconds: float = 0.0


def checks(settings: Settings) -> Iterator[Check]:
    """Every check, one after the other as it is done."""
    local = parts.local(settings)
    services = look(settings)
    yield _try("home", _home)
    yield _try("disk", _disk)
    if "storage" in local:
        yield _try("xattrs", _xattrs)
    yield _try("storage", lambda: _storage(settings, services))
    yield _try("tracking", lambda: _tracking(services))
    yield _try("ray", lambda: _ray(services))


def _try(name: str, check: Callable[[], str]) -> Check:
    started = time.monotonic()
    try:
        detail, remedy, ok = check(), "", True
    except HastenError as error:
        detail, remedy, ok = f"{error.subject} {error.problem}", error.remedy, False
    except Exception as error:  # one check that breaks must not hide the others
        detail, ok = f"{type(error).__name__}: {error}", False
        remedy = "hasten did not expect this: please report it."
    return Check(name=name, ok=ok, detail=detail, remedy=remedy, seconds=time.monotonic() - started)


def _home() -> str:
    folder = _existing(home())
    probe = folder / f".hasten-{secrets.token_hex(4)}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Fault(f"HASTEN_HOME ({home()})", f"cannot be written: {error.strerror}", state.REMEDY) from None
    return f"{home()} can be written" if folder == home() else f"{home()} can be made"


def _disk() -> str:
    disk = shutil.disk_usage(_existing(home()))
    if disk.total and disk.free < _LOW_BYTES:
        raise Fault(f"the disk of {home()}", f"has {disk.free / 1e9:.1f} GB free", state.REMEDY)
    return f"{disk.free / 1e9:.0f} GB free"


def _xattrs() -> str:
    swift.check_available()
    folder = _existing(home() / "objects")
    try:
        swift.check_xattrs(folder)
    except OSError as error:
        raise Fault(str(folder), f"cannot be written: {error.strerror}", state.REMEDY) from None
    return "the file system keeps extended attributes"


def _storage(settings: Settings, services: Services) -> str:
    folder = settings.storage.folder
    if folder is not None:
        return _folder_round_trip(folder)
    if settings.storage.embedded and services.endpoint is None:
        raise Fault("the local S3 store", "does not run", _START)
    # boto3, MLflow and Ray are heavy, and one that is broken must not hide the others' checks.
    from hasten.platform import buckets

    return buckets.round_trip(services.storage_uri, endpoint=services.endpoint, region=services.region)


def _tracking(services: Services) -> str:
    if not services.tracking_uri:
        raise Fault("the local MLflow", "does not run", _START)
    from hasten.platform import tracking

    return tracking.round_trip(services.tracking_uri)


def _ray(services: Services) -> str:
    if not services.ray_address:
        raise Fault("the local Ray", "does not run", _START)
    from hasten.platform import cluster

    cluster.attach(services)
    try:
        return cluster.round_trip()
    finally:
        cluster.detach()


def _folder_round_trip(folder: Path) -> str:
    probe = folder / f"hasten-doctor-{secrets.token_hex(8)}"
    content = secrets.token_bytes(64)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(content)
        found = probe.read_bytes()
        probe.unlink()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Free some space there." if full else "Make it writable, or name another folder."
        raise Fault(f"storage.uri ({folder})", f"cannot be used: {error.strerror}", remedy) from None
    if found != content:
        raise Fault(f"storage.uri ({folder})", "gave back other bytes than were written")
    return f"wrote, read and removed a file in {folder}"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest thing above it that is there."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder
