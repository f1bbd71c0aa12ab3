"""Small records of one kind in the store: a file for each, and now and then one file with all of them.

A file is never written twice: a record that is replaced gets a file with the next version. So reading needs
one listing, the whole, and the files that are newer than it; and a crash between any two writes leaves
nothing that cannot be read.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from hasten.trainers.errors import Fault

Entry = TypeVar("Entry", bound=BaseModel)

_READERS: Final = 16  # a small object of a bucket takes milliseconds, nearly all of it waiting
_LEAST_LOOSE: Final = 100
_LOOSE_SHARE: Final = 4


class Place(Protocol):
    """What is used of a :class:`hasten.trainers.store.Folder`."""

    @property
    def uri(self) -> str: ...

    def read(self, name: str) -> bytes | None: ...

    def write(self, name: str, content: bytes) -> None: ...

    def names(self, name: str = "") -> list[str]: ...


@dataclass(frozen=True, slots=True)
class _Kept:
    """The newest version of a record, as it is in the store."""

    version: int
    content: bytes


class Shelf(Generic[Entry]):
    """Records by key, at ``NAME/KEY.json`` and, all together, ``NAME.jsonl``.

    Args:
        place: the folder that they are in.
        name: what they are called.
        model: what they are.
    """

    def __init__(self, place: Place, name: str, model: type[Entry]) -> None:
        self._place = place
        self._name = name
        self._model = model
        self._kept: dict[str, _Kept] = {}
        self._loose = 0  # files that the whole does not have

    def read(self) -> dict[str, Entry]:
        """All records, as they are in the store now.

        Raises:
            Fault: the storage failed, or a file is damaged; the remedy is in the message.
        """
        whole, entries = self._read_whole()
        newest = {key: kept.version for key, kept in whole.items()}
        for file in self._place.names(self._name):
            key, version = _parse(file)
            newest[key] = max(version, newest.get(key, 0))
        loose = {
            key: version
            for key, version in newest.items()
            if key not in whole or version > whole[key].version
        }
        with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix=f"{self._name}-reader") as readers:
            contents = readers.map(lambda item: self._read_file(*item), loose.items())
            for (key, version), content in zip(loose.items(), contents, strict=True):
                entries[key] = self._parsed(content, f"{self._name}/{_file(key, version)}", _FILE_REMEDY)
                whole[key] = _Kept(version, content)
        self._kept, self._loose = whole, len(loose)
        return entries

    def write(self, key: str, entry: Entry) -> None:
        """Keep a record, in place of an earlier one with its key."""
        earlier = self._kept.get(key)
        kept = _Kept(earlier.version + 1 if earlier else 1, entry.model_dump_json().encode())
        self._place.write(f"{self._name}/{_file(key, kept.version)}", kept.content)
        self._kept[key] = kept
        self._loose += 1
        # A growing share of them, so that the cost of a record stays the same however many there are.
        if self._loose >= max(_LEAST_LOOSE, len(self._kept) // _LOOSE_SHARE):
            self.gather()

    def gather(self) -> None:
        """Write one file with all records, unless the one that is there has them."""
        if not self._loose:
            return
        lines = [
            b'{"file":%s,"entry":%s}\n' % (json.dumps(_file(key, kept.version)).encode(), kept.content)
            for key, kept in self._kept.items()
        ]
        self._place.write(f"{self._name}.jsonl", b"".join(lines))
        self._loose = 0

    def _read_whole(self) -> tuple[dict[str, _Kept], dict[str, Entry]]:
        """What the file with all records has."""
        kept: dict[str, _Kept] = {}
        entries: dict[str, Entry] = {}
        for line in (self._place.read(f"{self._name}.jsonl") or b"").splitlines():
            head, separator, tail = line.partition(b',"entry":')
            try:
                key, version = _parse(json.loads(head + b"}")["file"])
            except (ValueError, KeyError, TypeError) as error:
                raise self._damaged(f"{self._name}.jsonl", error, _WHOLE_REMEDY) from None
            content = tail[:-1] if separator else b""
            entries[key] = self._parsed(content, f"{self._name}.jsonl", _WHOLE_REMEDY)
            kept[key] = _Kept(version, content)
        return kept, entries

    def _read_file(self, key: str, version: int) -> bytes:
        return self._place.read(f"{self._name}/{_file(key, version)}") or b""

    def _parsed(self, content: bytes, file: str, remedy: str) -> Entry:
        try:
            return self._model.model_validate_json(content)
        except ValidationError as error:
            raise self._damaged(file, error, remedy) from None

    def _damaged(self, file: str, error: Exception, remedy: str) -> Fault:
        return Fault(f"{self._place.uri}/{file}", f"is damaged: {str(error).splitlines()[0]}", remedy)


_WHOLE_REMEDY: Final = "Delete it: every record in it has a file of its own too."
_FILE_REMEDY: Final = "Delete it: what it says is found out again by the same command."


def _file(key: str, version: int) -> str:
    """A record's file; names of trials have no tilde."""
    return f"{key}.json" if version == 1 else f"{key}~{version}.json"


def _parse(file: str) -> tuple[str, int]:
    """The key and the version that a file's name stands for."""
    stem = file.removesuffix(".json")
    key, tilde, version = stem.rpartition("~")
    return (key, int(version)) if tilde else (stem, 1)
