"""The environment variables through which libraries find the services; None means that one is removed.

Secrets are never among them: they lie in files that only their owner reads, and a variable says where.
"""

from __future__ import annotations

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final

Change = dict[str, str | None]

CREDENTIALS_FILE: Final = "credentials"

# What the caller uses for other object stores: not to be sent to ours, and some of it would win over ours.
SOMEBODY_ELSES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CA_BUNDLE",
    "AWS_ENDPOINT_URL_S3",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
)

# How a worker reaches the object store: a running Ray with other values of these cannot serve this command.
STORAGE_ACCESS: Final = (
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    *SOMEBODY_ELSES,
)


def credentials_file(home: Path) -> Path:
    """The shared-credentials file of the embedded object store."""
    return home / CREDENTIALS_FILE


def embedded_storage(home: Path, endpoint: str, region: str) -> Change:
    """For the object store of the local stack: its credentials file instead of what the caller has."""
    return {
        **dict.fromkeys(SOMEBODY_ELSES),
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials_file(home)),
        # Somebody's configuration file may name a profile, a role or an addressing style.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        **foreign_storage(endpoint, region),
    }


def foreign_storage(endpoint: str | None, region: str) -> Change:
    """For an object store that the settings name; its credentials are the caller's business."""
    change: Change = {"AWS_REGION": region, "AWS_DEFAULT_REGION": region}
    if endpoint is not None:
        change |= {"AWS_ENDPOINT_URL": endpoint, "MLFLOW_S3_ENDPOINT_URL": endpoint}
    return change


def tracking(uri: str) -> Change:
    """For every process that speaks to MLflow."""
    return {"MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def ray_driver() -> Change:
    """For a process that attaches to any Ray: what training and sweeps want of it."""
    return {
        **_ray_everywhere(),
        # Say soon that a cluster is not there or refuses us.
        "RAY_py_gcs_connect_timeout_s": "5",
    }


def ray_local(token: Path) -> Change:
    """For the local Ray head and the drivers that attach to it."""
    return {
        **_ray_everywhere(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_AUTH_TOKEN": None,
        "RAY_ADDRESS": None,
        # Ray's one switch for "this node is loopback only"; in spite of its name it is read on Linux too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def ray_head(token: Path) -> Change:
    """For the local Ray head alone: the patience of ``ray_driver`` would be too short for its start."""
    return {**ray_local(token), "RAY_py_gcs_connect_timeout_s": None}


def loopback(environment: Mapping[str, str]) -> Change:
    """Keep a proxy out of the way of local servers."""
    names = [name for name in environment.get("no_proxy", environment.get("NO_PROXY", "")).split(",") if name]
    names += [name for name in ("127.0.0.1", "localhost") if name not in names]
    return {"no_proxy": ",".join(names), "NO_PROXY": ",".join(names)}


def applied(environment: Mapping[str, str], change: Mapping[str, str | None]) -> dict[str, str]:
    """``environment`` after ``change``."""
    result = {name: value for name, value in environment.items() if name not in change}
    result |= {name: value for name, value in change.items() if value is not None}
    return result


def same_access(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two environments reach the object store at the same address with the same credentials."""
    return all(one.get(name) == other.get(name) for name in STORAGE_ACCESS)


def servers(environment: Mapping[str, str]) -> dict[str, str]:
    """What a server of the stack inherits: nothing of hasten's settings, no proxy between local servers."""
    kept = {name: value for name, value in environment.items() if not name.startswith("HASTEN_")}
    return applied(kept, {**loopback(environment), "PYTHONUNBUFFERED": "1"})


def answers(url: str, *, timeout: float = 2.0) -> bool:
    """Whether a GET of ``url`` succeeds; proxies are not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with (
        contextlib.suppress(OSError, urllib.error.URLError, ValueError),
        opener.open(url, timeout=timeout) as reply,
    ):
        return bool(reply.status == 200)
    return False


def _ray_everywhere() -> Change:
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # A report blocks until the controller's next poll: 1.5 s at its default, 7 ms at this.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        # Relative paths in a recipe mean the same folder in every process.
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
