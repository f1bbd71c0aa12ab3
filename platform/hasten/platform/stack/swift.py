"""The embedded object store: OpenStack Swift on one disk, with its S3 API, on loopback only."""

from __future__ import annotations

import contextlib
import errno
import getpass
import importlib.util
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from hasten.platform.stack import environment, processes, state
from hasten.trainers.errors import ConfigError, Fault

ACCOUNT: Final = "hasten"
SERVERS: Final = ("account", "container", "object")

# Written beside a secret, so it is kept apart from what anybody may read.
_CREDENTIALS: Final = """\
# The embedded object store of this installation only. `hasten up` wrote it; nobody else can read it.
[default]
aws_access_key_id = {access}
aws_secret_access_key = {secret}
"""

_SWIFT_CONF: Final = """\
[swift-hash]
swift_hash_path_suffix = {suffix}
[storage-policy:0]
name = disk
default = yes
[swift-constraints]
max_header_size = 32768
"""

_STORAGE_CONF: Final = """\
[DEFAULT]
{common}
bind_port = {port}
devices = {devices}
mount_check = false
fallocate_reserve = 100000000
[pipeline:main]
pipeline = healthcheck {server}-server
[app:{server}-server]
use = egg:swift#{server}
{options}
[filter:healthcheck]
use = egg:swift#healthcheck
"""

# allow_async_delete: else the parts of a deleted multipart object wait for a daemon that is not run here.
_PROXY_CONF: Final = """\
[DEFAULT]
{common}
bind_port = {port}
[pipeline:main]
pipeline = {pipeline}
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
paste.filter_factory = hasten.platform.stack.localcache:filter_factory
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
allow_no_owner = true
max_upload_part_num = 10000
multi_delete_concurrency = 8
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret} .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
max_manifest_size = 8388608
allow_async_delete = false
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
"""

_PIPELINE: Final = (
    "catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth copy slo versioned_writes "
    "symlink proxy-server"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swift:
    """The part of the stack that serves ``storage``."""

    name: ClassVar[str] = "storage"
    title: ClassVar[str] = "S3 store"
    ports: ClassVar[Mapping[str, int]] = {"s3": 9000, "account": 0, "container": 0, "object": 0}
    home: Path

    def launch(self, ports: Mapping[str, int]) -> tuple[tuple[str, ...], dict[str, str]]:
        """Write the configuration for ``ports``; the command and environment that start the store.

        Raises:
            ConfigError: this machine cannot run it.
            Fault: the folder cannot hold its data.
        """
        check_available()
        folder, data = state.folder(self.home) / "swift", self.home / "objects"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            (data / "disk").mkdir(mode=0o700, parents=True, exist_ok=True)
            check_xattrs(data)
            self._write(folder, data, ports)
        except OSError as error:
            raise Fault(
                f"HASTEN_HOME ({self.home})", f"cannot be written: {error.strerror}", state.REMEDY
            ) from None
        arguments = [f"{server}={ports[server]}" for server in SERVERS]
        command = processes.python_module("hasten.platform.stack.swift_server", str(folder), *arguments)
        return command, environment.servers(os.environ)

    def listens_on(self, ports: Mapping[str, int]) -> tuple[int, ...]:
        """The ports that must accept connections before the store is ready."""
        return tuple(ports.values())

    def answers(self, ports: Mapping[str, int]) -> bool:
        """Whether every server of the store says that it is well."""
        return all(
            environment.answers(f"http://{processes.LOOPBACK}:{port}/healthcheck") for port in ports.values()
        )

    def fits(self, _command: Sequence[str], _variables: Mapping[str, str]) -> bool:
        """Whether the running store was told the credentials that are in the file now."""
        try:
            _, secret = credentials(self.home)
            return f" = {secret} ." in (state.folder(self.home) / "swift" / "proxy.conf").read_text("utf-8")
        except OSError:
            return False

    def busy(self) -> bool:
        """Never in the way of a restart."""
        return False

    def url(self, ports: Mapping[str, int]) -> str:
        """The S3 endpoint."""
        return f"http://{processes.LOOPBACK}:{ports['s3']}"

    def _write(self, folder: Path, data: Path, ports: Mapping[str, int]) -> None:
        access, secret = credentials(self.home)
        hashing = folder / "swift.conf"
        if not hashing.exists():
            # It salts the place of every object on the disk: never to change while there is data.
            suffix = secrets.token_hex(16)
            state.write(hashing, _SWIFT_CONF.format(suffix=suffix), mode=0o600)
        common = "\n".join(
            [
                f"swift_dir = {folder}",
                f"bind_ip = {processes.LOOPBACK}",
                "bind_timeout = 3",
                "workers = 0",
                f"user = {_user()}",
                "log_level = WARNING",
                "log_custom_handlers = hasten.platform.stack.swift_server.log_to_stderr",
            ]
        )
        for server in SERVERS:
            options = "keep_cache_size = 67108864\nmb_per_sync = 64" if server == "object" else ""
            text = _STORAGE_CONF.format(
                common=common, port=ports[server], devices=data, server=server, options=options
            )
            state.write(folder / f"{server}.conf", text, mode=0o600)
        account, user = access.split(":")
        text = _PROXY_CONF.format(
            common=common,
            port=ports["s3"],
            pipeline=_PIPELINE,
            account=account,
            user=user,
            secret=secret,
        )
        state.write(folder / "proxy.conf", text, mode=0o600)


def check_available() -> None:
    """Refuse a machine without Swift.

    Raises:
        ConfigError: it is not installed; its wheels exist for Linux only.
    """
    if importlib.util.find_spec("swift") is None:
        raise ConfigError(
            "storage.uri",
            f"the embedded object store (OpenStack Swift) is not available here ({sys.platform})",
            "Name an S3 server (storage.uri and storage.endpoint), or set storage.uri to a local folder.",
        )


def check_xattrs(folder: Path) -> None:
    """Refuse a file system on which Swift cannot keep an object's metadata.

    Raises:
        ConfigError: no user extended attributes.
        OSError: the folder cannot be written.
    """
    probe = folder / f".xattr-{secrets.token_hex(4)}"
    probe.touch()
    try:
        os.setxattr(probe, "user.swift.metadata", b"x" * 1024)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.ENOSYS, errno.E2BIG, errno.ENOSPC):
            raise
        raise ConfigError(
            "HASTEN_HOME",
            f"the file system of {folder} has no user extended attributes, which the embedded object store "
            f"needs ({error.strerror})",
            "Set HASTEN_HOME to a folder on ext4 or xfs, or storage.uri to an S3 bucket or a local folder.",
        ) from None
    finally:
        probe.unlink()


def credentials(home: Path) -> tuple[str, str]:
    """The access key and secret of this installation's store, made at first use.

    Raises:
        Fault: the file was damaged.
    """
    path = environment.credentials_file(home)
    if not path.exists():
        access, secret = f"{ACCOUNT}:{secrets.token_hex(4)}", secrets.token_hex(24)
        state.write(path, _CREDENTIALS.format(access=access, secret=secret), mode=0o600)
    path.chmod(0o600)
    values: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        values[name.strip()] = value.strip()
    try:
        access, secret = values["aws_access_key_id"], values["aws_secret_access_key"]
        account, user = access.split(":")
    except (KeyError, ValueError):
        raise Fault(
            str(path), "is damaged", "Remove it and run `hasten down`, `hasten up`: a new one is made."
        ) from None
    return f"{account}:{user}", secret


def _user() -> str:
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    # A container may run under a number that has no name.
    return str(os.getuid())
