"""Where a source lies: its files by name, on a disk or in a bucket, opened where they are read."""

from __future__ import annotations

import fnmatch
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Final, cast

import pyarrow.fs as pafs

from hasten.trainers import store
from hasten.trainers.errors import ConfigError

_GLOB: Final = frozenset("*?[")
_BUFFER: Final = 2**20  # a read through a bucket is a request


@dataclass(frozen=True, slots=True)
class File:
    """A file by its name below the source's folder, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Place:
    """A source's folder. It holds an address alone, so it may travel to where the files are read."""

    uri: str

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            HastenError: the storage failed.
        """
        filesystem, root = store.filesystem(self.uri)
        with self.speaking(), filesystem.open_input_stream(f"{root}/{name}", compression=None) as stream:
            return bytes(stream.read())

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file for reading at any place in it. A storage that fails raises a :class:`HastenError` from
        within a read, so that it is not mistaken for a damaged file.
        """
        filesystem, root = store.filesystem(self.uri)
        with self.speaking():
            file = filesystem.open_input_file(f"{root}/{name}")
        raw = _Raw(file, self)
        with file:
            yield cast(IO[bytes], io.BufferedReader(raw, _BUFFER))

    @contextmanager
    def speaking(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            remedy = "Run it again; on a cluster of several hosts, every one must reach the folder."
            raise ConfigError(self.uri, "a file is not where it was listed", remedy) from error
        except OSError as error:
            raise store.explained(self.uri, error) from error


class _Raw(io.RawIOBase):
    def __init__(self, file: object, place: Place) -> None:
        super().__init__()
        self._file, self._place = cast(IO[bytes], file), place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        with self._place.speaking():
            content = self._file.read(len(view))
        view[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def find(source: str) -> tuple[Place, list[File]]:
    """The files of a source, sorted by name: of a folder all below it, hidden ones left out; of a file or of
    a pattern (``data/train-*.parquet``) those that it names.

    Raises:
        ConfigError: there is nothing.
        HastenError: the storage failed.
    """
    if not source.strip():
        raise ConfigError("SRC", "is empty", "Give a folder, a file or s3://BUCKET/PREFIX.")
    trimmed = absolute(source)
    parent, _, last = trimmed.rpartition("/")
    above = Place(parent or "/")
    exact = _kind(trimmed)
    if exact is None and _GLOB & set(last) and (found := _listing(above, recursive=False)):
        found = [file for file in found if fnmatch.fnmatchcase(file.name, last)]
        if found:
            return above, found
    if exact is None or exact.type == pafs.FileType.NotFound:
        remedy = "Give a folder, a file or a pattern such as 'folder/train-*.parquet', or s3://BUCKET/PREFIX."
        raise ConfigError(source, "no such file or folder", f"{remedy} Built in: digits.")
    if exact.is_file:
        return above, [File(last, exact.size)]
    place = Place(trimmed)
    files = _listing(place, recursive=True)
    if not files:
        raise ConfigError(source, "is an empty folder", "Give a folder with images in it.")
    return place, files


def absolute(uri: str) -> str:
    """A plain path from the root, since workers have folders of their own; a URI as it is."""
    return uri.rstrip("/") or uri if "://" in uri else os.path.abspath(uri)


def siblings(place: Place, file: File, ending: str) -> list[File]:
    """The files beside ``file`` whose names end so."""
    return [
        other for other in _listing(place, recursive=False) if other.name.endswith(ending) and other != file
    ]


def _kind(uri: str) -> pafs.FileInfo | None:
    filesystem, root = store.filesystem(uri)
    with Place(uri).speaking():
        info = filesystem.get_file_info(root)
    return None if info.type == pafs.FileType.NotFound else info


def _listing(place: Place, *, recursive: bool) -> list[File]:
    filesystem, root = store.filesystem(place.uri)
    with place.speaking():
        if isinstance(filesystem, pafs.LocalFileSystem):
            found = list(_walk(root, recursive=recursive))
        else:
            selector = pafs.FileSelector(root, recursive=recursive, allow_not_found=True)
            infos = filesystem.get_file_info(selector)
            found = [File(info.path[len(root) :].lstrip("/"), info.size) for info in infos if info.is_file]
    for file in found:
        if not _is_text(file.name):
            shown = file.name.encode(errors="backslashreplace").decode()
            raise ConfigError(f"{place.uri}/{shown}", "has a name that is not UTF-8", "Rename it.")
    visible = [file for file in found if not any(_is_hidden(part) for part in file.name.split("/"))]
    return sorted(visible, key=lambda file: file.name)


def _walk(root: str, *, recursive: bool) -> Iterator[File]:
    """The files below a folder of this machine, through links, but not round in circles."""
    for folder, names, files in os.walk(root, followlinks=True, onerror=_raise):
        real = os.path.realpath(folder)
        inside = os.path.relpath(folder, root)
        prefix = "" if inside == "." else f"{inside}/"
        for name in files:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                yield File(prefix + name, os.path.getsize(path))
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        for name in links:
            target = os.path.realpath(os.path.join(folder, name))
            if real == target or real.startswith(target.rstrip("/") + "/"):
                names.remove(name)
        if not recursive:
            names.clear()


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
