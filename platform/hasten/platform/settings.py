"""Where the services are: ``$HASTEN_HOME/settings.yaml``, overridden by ``HASTEN_*`` variables.

A service that the settings do not name is served by the local stack. Reading settings touches
no network and writes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import field_validator, model_validator

from hasten.trainers.config import Spec, override, read_yaml, validate
from hasten.trainers.errors import ConfigError

DEFAULT_HOME: Final = ".hasten"
DEFAULT_REGION: Final = "us-east-1"
FILE_NAME: Final = "settings.yaml"

# Each variable sets one dotted key.
VARIABLES: Final[Mapping[str, str]] = {
    "HASTEN_STORAGE_URI": "storage.uri",
    "HASTEN_STORAGE_ENDPOINT": "storage.endpoint",
    "HASTEN_STORAGE_REGION": "storage.region",
    "HASTEN_TRACKING_URI": "tracking.uri",
    "HASTEN_RAY_ADDRESS": "ray.address",
    "HASTEN_DATABASE": "database",
}
# Not settings: where the state lies, where infra/run.py installs, the marks of the stack's processes, the
# secrets of a pipeline's webhook.
OTHER_VARIABLES: Final = frozenset(
    {
        "HASTEN_HOME",
        "HASTEN_VENV",
        "HASTEN_STACK",
        "HASTEN_STACK_PART",
        "HASTEN_WEBHOOK_URL",
        "HASTEN_WEBHOOK_SECRET",
    }
)

_BUCKET = re.compile(r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
_TRACKING = re.compile(r"^(https?|sqlite|postgresql|mysql|mssql)(\+\w+)?://", re.IGNORECASE)


class StorageSettings(Spec):
    """Everything durable: an S3 bucket and prefix, or a folder of this machine."""

    uri: str | None = None
    endpoint: str | None = None
    region: str = DEFAULT_REGION

    @field_validator("uri")
    @classmethod
    def _uri(cls, value: str | None) -> str | None:
        if value is None:
            return None
        scheme, separator, rest = value.partition("://")
        if not separator:
            return str(Path(value).expanduser().absolute())
        if scheme == "file":
            path = unquote(urlsplit(value).path)
            if not path.startswith("/") or urlsplit(value).netloc:
                raise ValueError(f"a file URI has the form file:///absolute/folder, got {value!r}")
            return path
        if scheme != "s3":
            raise ValueError(f"must be s3://bucket/prefix or a folder, got {value!r}")
        if not _BUCKET.match(rest.split("/", 1)[0]):
            raise ValueError(f"must be s3://bucket/prefix with a valid bucket name, got {value!r}")
        return value.rstrip("/")

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        _no_password(parts.username, parts.password, "the usual AWS variables or profile")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"must be http://host:port or https://host:port, got {value!r}")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _together(self) -> StorageSettings:
        if self.endpoint is not None and self.folder is not None:
            raise ValueError(f"endpoint: means nothing for the folder {self.uri!r}; remove one of the two")
        return self

    @property
    def embedded(self) -> bool:
        """Whether the local stack's own object store is meant."""
        return self.uri is None and self.endpoint is None

    @property
    def folder(self) -> Path | None:
        """The folder that ``uri`` names, or None when it is in S3."""
        return Path(self.uri) if self.uri is not None and not self.uri.startswith("s3://") else None


class TrackingSettings(Spec):
    """The MLflow server."""

    uri: str | None = None

    @field_validator("uri")
    @classmethod
    def _uri(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not _TRACKING.match(value):
            raise ValueError(f"must be the URL of an MLflow server, such as http://host:5000, got {value!r}")
        if value.lower().startswith("http"):
            parts = urlsplit(value)
            _no_password(
                parts.username, parts.password, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return value.rstrip("/") if value.lower().startswith("http") else value


class RaySettings(Spec):
    """The Ray cluster; ``address`` is handed to ``ray.init`` as it is."""

    address: str | None = None


class Settings(Spec):
    """Which services to use. What is absent is served by the local stack."""

    storage: StorageSettings = StorageSettings()
    tracking: TrackingSettings = TrackingSettings()
    ray: RaySettings = RaySettings()
    database: str

    @field_validator("database")
    @classmethod
    def _database(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        if not separator or not re.match(r"^(sqlite|postgresql)(\+\w+)?$", scheme):
            raise ValueError("must be an SQLAlchemy URL that starts with sqlite:// or postgresql://")
        if not scheme.startswith("sqlite"):
            _no_password(None, urlsplit(value).password, "PGPASSWORD or a ~/.pgpass")
        if scheme.startswith("sqlite") and rest.startswith("/") and not rest.startswith("//"):
            # Relative to the home, so that every working folder means the same file.
            return f"{scheme}:///{home() / rest[1:]}"
        return value


def home() -> Path:
    """The folder of all local state: ``$HASTEN_HOME``, or ``.hasten`` in the working folder."""
    return Path(os.environ.get("HASTEN_HOME") or DEFAULT_HOME).expanduser().resolve()


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of this installation; ``environment`` is ``os.environ`` unless given.

    Raises:
        ConfigError: an unknown key or ``HASTEN_*`` variable, or an impossible value.
    """
    environment = os.environ if environment is None else environment
    changes = _changes(environment)
    path = home() / FILE_NAME
    data: dict[str, Any] = {"database": "sqlite:///hasten.db"}
    if os.path.exists(path):
        data |= read_yaml(path)
    for name in ("storage", "tracking", "ray"):
        # A block with nothing below its key reads as None, and means the defaults.
        if data.get(name, {}) is None:
            del data[name]
    try:
        return validate(Settings, override(data, changes))
    except ConfigError as error:
        source = next(
            (variable for variable, key in VARIABLES.items() if key == error.subject and key in changes),
            str(path) if os.path.exists(path) else "",
        )
        hint = f"It was read from {source}." if source else ""
        raise ConfigError(
            error.subject, error.problem, "\n  ".join(filter(None, (error.remedy, hint)))
        ) from None


def _changes(environment: Mapping[str, str]) -> dict[str, str]:
    """The dotted keys that variables set; an empty variable counts as unset."""
    for name in sorted(environment):
        if name.startswith("HASTEN_") and name not in VARIABLES and name not in OTHER_VARIABLES:
            known = ", ".join([*VARIABLES, "HASTEN_HOME"])
            raise ConfigError(name, "unknown variable", f"The ones that hasten reads: {known}.")
    return {key: environment[name] for name, key in VARIABLES.items() if environment.get(name)}


def _no_password(user: str | None, password: str | None, instead: str) -> None:
    if user or password:
        raise ValueError(f"must not contain a user or password; use {instead}")
