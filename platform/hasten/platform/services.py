"""From settings to running services: starts the missing local parts and points every library at them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hasten.platform.settings import Settings, home
from hasten.platform.stack import environment, launcher, ray_head
from hasten.platform.stack.parts import EMBEDDED_URI, Tell, say_nothing
from hasten.trainers.errors import ConfigError, Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Where everything is. ``environment`` holds what child processes need, and no secret.

    ``storage_uri`` is ``s3://bucket/prefix`` or an absolute folder; a service that was not asked
    for and is not named in the settings has an empty address.
    """

    storage_uri: str
    endpoint: str | None
    region: str
    tracking_uri: str = ""
    ray_address: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def connect(
    settings: Settings,
    *,
    storage: bool = True,
    tracking: bool = False,
    ray: bool = False,
    tell: Tell = say_nothing,
) -> Services:
    """Have the services that a command needs, and set this process's environment so that libraries find them.

    Raises:
        ConfigError: the bucket is missing, its credentials are refused, or this machine cannot run the stack.
        Fault: a service does not start or does not answer.
    """
    asked = {"storage": storage, "tracking": tracking, "ray": ray}
    urls = launcher.up(settings, [name for name, wanted in asked.items() if wanted], tell=tell)
    services, change = _resolve(settings, urls)
    _apply(change)
    if storage:
        _check_storage(settings, services)
    return services


def look(settings: Settings) -> Services:
    """Like ``connect``, with whatever runs now: starts nothing, checks nothing, makes nothing."""
    urls = {part.part: part.url for part in launcher.status(settings) if part.state == "running"}
    services, change = _resolve(settings, urls)
    _apply(change)
    return services


def _resolve(settings: Settings, urls: Mapping[str, str]) -> tuple[Services, environment.Change]:
    """The services, and the change of environment that leads libraries to them."""
    storage, folder = settings.storage, home()
    endpoint, uri = storage.endpoint, storage.uri or EMBEDDED_URI
    change: environment.Change = dict(environment.loopback(os.environ))
    if storage.embedded:
        endpoint = urls.get("storage")
        if endpoint:
            change |= environment.embedded_storage(folder, endpoint, storage.region)
    elif storage.folder is None:
        change |= environment.foreign_storage(storage.endpoint, storage.region)

    tracking_uri = settings.tracking.uri or urls.get("tracking", "")
    if tracking_uri:
        change |= environment.tracking(tracking_uri)

    address = settings.ray.address or urls.get("ray", "")
    if settings.ray.address is not None:
        change |= environment.ray_driver()
    elif address:
        change |= environment.ray_local(ray_head.token_file(folder)) | environment.ray_driver()

    services = Services(
        storage_uri=uri,
        endpoint=endpoint,
        region=storage.region,
        tracking_uri=tracking_uri,
        ray_address=address,
        environment={name: value for name, value in change.items() if value is not None},
    )
    return services, change


def _apply(change: environment.Change) -> None:
    for name, value in change.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _check_storage(settings: Settings, services: Services) -> None:
    """Refuse a storage that cannot be used before anything is computed."""
    folder = settings.storage.folder
    if folder is not None:
        _check_folder(folder)
        return
    # Importing boto3 takes a while: not for commands that keep everything in a folder.
    from hasten.platform import buckets

    act = buckets.create if settings.storage.embedded else buckets.check
    act(services.storage_uri, endpoint=services.endpoint, region=services.region)


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "storage.uri", f"the folder {folder} cannot be made: {error.strerror}", "Name another folder."
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Fault(
            str(folder), "cannot be written", "Make it writable, or name another folder as storage.uri."
        )
