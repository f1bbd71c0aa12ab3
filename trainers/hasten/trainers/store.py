"""Everything durable, through one interface: folders in S3-compatible storage or on a disk.

Credentials and the S3 endpoint come from the environment or from the usual AWS files where a folder is
opened, so that no address book and no secret travels with a job.
"""

from __future__ import annotations

import errno
import functools
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.fs as pafs

from hasten.trainers.errors import Away, ConfigError, Fault


@dataclass(frozen=True, slots=True)
class Folder:
    """A place at a URI (``s3://bucket/prefix``, ``file:///path`` or a plain path), opened where it is used.

    Every method raises :class:`Fault` where the storage fails and :class:`ConfigError` where the bucket or
    the credentials are wrong.
    """

    uri: str
    _filesystem: pafs.FileSystem = field(init=False, repr=False, compare=False)
    _root: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found, root = filesystem(self.uri)
        object.__setattr__(self, "_filesystem", found)
        object.__setattr__(self, "_root", root)

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.uri,)

    def folder(self, name: str) -> Folder:
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None where there is none."""
        with self._speaking():
            try:
                with self._filesystem.open_input_stream(f"{self._root}/{name}") as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    @contextmanager
    def open(self, name: str) -> Iterator[pa.NativeFile]:
        """A file open for reading at any place in it, over a connection of its own.

        Raises:
            Fault: there is none, or reading it failed, inside the block too.
        """
        with self._speaking():
            try:
                file = self._filesystem.open_input_file(f"{self._root}/{name}")
            except FileNotFoundError:
                raise Fault(f"{self.uri}/{name}", "is missing") from None
            with file:
                yield file

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file at once: readers see all of it or nothing."""
        path = f"{self._root}/{name}"
        with self._speaking():
            if not isinstance(self._filesystem, pafs.LocalFileSystem):
                with self._filesystem.open_output_stream(path) as stream:
                    stream.write(content)
                return
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
            try:
                with part.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def names(self, name: str = "") -> list[str]:
        """Names of the files and folders directly inside ``name``, sorted; empty where it does not exist."""
        selector = pafs.FileSelector(f"{self._root}/{name}".rstrip("/"), allow_not_found=True)
        with self._speaking():
            found = self._filesystem.get_file_info(selector)
            # A name with a dot in front is a file on its way, or what a killed process left of one.
            return sorted(info.base_name for info in found if not info.base_name.startswith("."))

    def delete_folder(self, name: str) -> None:
        with self._speaking(), _ignoring_missing():
            self._filesystem.delete_dir(f"{self._root}/{name}")

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise explained(self.uri, error) from error


@contextmanager
def _ignoring_missing() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        return


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI, opened with the environment's credentials, and the path in it.

    Raises:
        ConfigError: it is of a kind that is not supported, or names no bucket.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return pafs.LocalFileSystem(), str(Path(uri).absolute())
    match scheme:
        case "file":
            return pafs.LocalFileSystem(), str(Path(unquote(rest)).absolute())
        case "s3":
            if not rest.partition("/")[0]:
                raise ConfigError(uri, "names no bucket", "Write s3://BUCKET or s3://BUCKET/PREFIX.")
            return _s3(), rest.rstrip("/")
        case _:
            raise ConfigError(
                uri, f"storage of kind {scheme}:// is not supported", "Use s3://... or a folder."
            )


def _s3() -> pafs.S3FileSystem:
    """This process's client for where the environment leads, and with whose credentials.

    Making one takes longer than reading a small file, and its connections stay open.
    """
    access = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return _client(os.getpid(), tuple(sorted(access.items())))


@functools.lru_cache(maxsize=8)
def _client(process: int, access: tuple[tuple[str, str], ...]) -> pafs.S3FileSystem:
    del process  # a forked one must not use its parent's connections
    known = dict(access)
    endpoint = urlparse(known.get("AWS_ENDPOINT_URL_S3") or known.get("AWS_ENDPOINT_URL") or "")
    return pafs.S3FileSystem(
        endpoint_override=endpoint.netloc or None,
        scheme=endpoint.scheme or "https",
        region=known.get("AWS_REGION") or known.get("AWS_DEFAULT_REGION") or "us-east-1",
        allow_delayed_open=True,  # otherwise every small file becomes a multipart upload
        connect_timeout=10,
        request_timeout=60,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=5),
    )


def explained(uri: str, error: OSError) -> ConfigError | Fault:
    """The storage's own words as the user's: what failed, and what to do."""
    text = str(error)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    if error.errno == errno.ENOSPC:
        return Fault(uri, "the disk is full", "Free some space and run the command again: it goes on.")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return Fault(uri, f"cannot be written: {error.strerror}", "Choose a folder that you may write to.")
    if not uri.startswith("s3://"):
        return Fault(uri, error.strerror or text)
    if any(
        word in text
        for word in ("ACCESS_DENIED", "SignatureDoesNotMatch", "INVALID_ACCESS_KEY", "HTTP status 403")
    ):
        remedy = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile that AWS_PROFILE names."
        return ConfigError(uri, f"{endpoint} refuses these credentials", remedy)
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text:
        return ConfigError(uri, f"{endpoint} has no such bucket", "Create it, or change storage.uri.")
    return Away(
        uri, f"{endpoint} failed: {text.splitlines()[0][:300]}", "Is it up? `hasten doctor` tells more."
    )
