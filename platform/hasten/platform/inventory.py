"""What lies in the store under ``runs/``: every file with its size and age, and what of it may be removed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow.fs as pafs

from hasten.trainers import store
from hasten.trainers.retention import Item, Kind, Run

RESULT: Final = "result.json"
_MANIFEST: Final = "manifest.json"
_ROOMS: Final[Mapping[str, Kind]] = {"checkpoints": "checkpoint", "forks": "fork", "ema": "average"}
_IMAGES: Final = re.compile(r"\.?(\d+)")  # every name begins with the images; a dot: on its way


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file at ``path`` below the folder that was listed, ``written`` in seconds since 1970."""

    path: str
    bytes: int
    written: float


def files(uri: str) -> list[File]:
    """Every file below a folder, half-written ones too; empty where there is no such folder.

    Raises:
        Fault: the storage failed.
        ConfigError: it refuses the credentials.
    """
    found, root = store.filesystem(uri)
    try:
        if isinstance(found, pafs.LocalFileSystem):
            return list(_walk(Path(root)))
        infos = found.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    except OSError as error:
        raise store.explained(uri, error) from error
    return [
        File(path=info.path.removeprefix(f"{root}/"), bytes=info.size, written=info.mtime_ns / 1e9)
        for info in infos
        if info.type == pafs.FileType.File
    ]


def _walk(root: Path) -> Iterator[File]:
    """The same on a disk, where files may vanish while one looks."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            with suppress(FileNotFoundError):
                stat = path.stat()
                yield File(path=path.relative_to(root).as_posix(), bytes=stat.st_size, written=stat.st_mtime)


def by_folder(found: Iterable[File]) -> dict[str, list[File]]:
    """Files by the folder that they are in at the top, with paths below it; others are left out."""
    folders: dict[str, list[File]] = {}
    for file in found:
        folder, separator, rest = file.path.partition("/")
        if separator:
            folders.setdefault(folder, []).append(File(path=rest, bytes=file.bytes, written=file.written))
    return dict(sorted(folders.items()))


def run(name: str, found: Iterable[File], *, over: bool = False) -> Run:
    """A run as the files in its folder tell of it; with a result it is over, also where nobody says so."""
    items: dict[str, list[File]] = {}
    finished = over
    for file in found:
        finished = finished or file.path == RESULT
        room, _, rest = file.path.partition("/")
        place = rest.partition("/")[0]
        if room in _ROOMS and _IMAGES.match(place):
            items.setdefault(f"{room}/{place}", []).append(file)
    return Run(name=name, items=tuple(_item(*each) for each in sorted(items.items())), over=finished)


def _item(place: str, found: list[File]) -> Item:
    room, _, name = place.partition("/")
    images = _IMAGES.match(name)
    assert images is not None, "other names are no items"
    kind = _ROOMS[room]
    parts = {file.path.removeprefix(f"{place}/") for file in found}
    return Item(
        place=place,
        kind=kind,
        images=int(images[1]),
        bytes=sum(file.bytes for file in found),
        written=max(file.written for file in found),
        whole=not name.startswith(".") if kind == "average" else _MANIFEST in parts,
    )


def remove(uri: str, item: Item) -> None:
    """Remove an item of the run at ``uri``: the manifest first, so that nobody takes a half for a whole.

    Raises:
        Fault: the storage failed.
        ConfigError: it refuses the credentials.
    """
    found, root = store.filesystem(uri)
    place = f"{root}/{item.place}"
    steps = [(found.delete_file, f"{place}/{_MANIFEST}"), (found.delete_dir, place)]
    for delete, path in [(found.delete_file, place)] if item.kind == "average" else steps:
        try:
            delete(path)
        except FileNotFoundError:  # a half has no manifest, and its run may have tidied up meanwhile
            continue
        except OSError as error:
            raise store.explained(uri, error) from error
