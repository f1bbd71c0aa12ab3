"""WebDataset: tars whose members belong together by the name before the first dot (x.jpg, x.cls, x.json)."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, cast

from hasten.platform.importing.decoding import Refused
from hasten.platform.importing.places import Place
from hasten.platform.importing.samples import IMAGES, MAX_BYTES, Label, Sample, too_large
from hasten.trainers.errors import ConfigError

_KEY: Final = re.compile(r"^((?:.*/)?[^./][^.]*)\.([^/]+)$", re.DOTALL)
_LABELS: Final = ("label", "cls", "class")  # in a member's JSON
_BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class Tar:
    """One tar, which can only be read from its beginning."""

    place: Place
    name: str
    labelled: bool

    def samples(self) -> Iterator[Sample]:
        read = 0
        try:
            with self.place.open(self.name) as file:
                for sample in self._grouped(file):
                    yield sample
                    read += 1
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ConfigError(
                f"{self.place.uri}/{self.name}",
                f"is truncated or damaged after {read} image(s) ({error})",
                "Fetch it again, or leave it out: half a tar is not imported.",
            ) from None

    def _grouped(self, file: IO[bytes]) -> Iterator[Sample]:
        key, members = "", dict[str, bytes | Refused]()
        for name, content in _members(file):
            match = _KEY.match(name)
            if match is None:
                continue
            if match[1] != key:
                yield from self._sample(key, members)
                key, members = match[1], {}
            members[match[2].lower()] = content
        yield from self._sample(key, members)

    def _sample(self, key: str, members: dict[str, bytes | Refused]) -> Iterator[Sample]:
        images = [name for name in members if f".{name}" in IMAGES]
        images = images or [name for name in members if f".{name.rpartition('.')[2]}" in IMAGES]
        name = f"{self.name}/{key}"
        if not images:
            if self.labelled and "cls" in members:
                raise ConfigError(
                    f"{self.place.uri}/{self.name}",
                    f"has a label away from its image ({key}.cls)",
                    "Sort its members by name when it is made (tar --sort=name), or use --labels none.",
                )
            return
        if len(images) > 1:
            reason = f"has {len(images)} images under one name: {', '.join(sorted(images))}"
            yield Sample(name, Refused(reason))
            return
        try:
            label = _label(members) if self.labelled else None
        except Refused as refusal:
            yield Sample(f"{name}.{images[0]}", refusal)
            return
        yield Sample(f"{name}.{images[0]}", members[images[0]], label)


def _members(file: IO[bytes]) -> Iterator[tuple[str, bytes | Refused]]:
    """Names and contents of the regular files of a tar, in its order; nothing is ever unpacked to a disk."""
    head = file.read(2)
    file.seek(0)
    plain = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if head == b"\x1f\x8b" else file
    stream = _Ending(plain)
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as tar:
        for member in tar:
            if not member.isreg():
                continue
            if member.size > MAX_BYTES:
                yield member.name, too_large(member.size)
                continue
            extracted = tar.extractfile(member)
            content = extracted.read() if extracted else b""
            if len(content) != member.size:
                raise EOFError(f"{member.name} is cut off")
            yield member.name, content
    # The standard library takes a tar that was cut between two members for a whole one.
    if not stream.ended:
        raise EOFError("the mark at its end is missing")
    while plain.read(io.DEFAULT_BUFFER_SIZE):  # to the end: gzip checks its sum there
        pass


class _Ending:
    """A stream that knows whether what was read last ends with a tar's zeros."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.ended = False

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        if content:
            self.ended = not any(content[-_BLOCK:])
        return content


def _label(members: dict[str, bytes | Refused]) -> Label:
    text = members.get("cls")
    if isinstance(text, bytes):
        return _number_or_name(text.decode(errors="replace").strip())
    content = members.get("json")
    if not isinstance(content, bytes):
        return None
    try:
        fields: Any = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused("has a JSON member that cannot be read") from None
    found = (
        next((fields[key] for key in _LABELS if key in fields), None) if isinstance(fields, dict) else None
    )
    if found is None or isinstance(found, int):
        return None if found is None else int(found)
    if isinstance(found, str):
        return _number_or_name(found)
    raise Refused(f"has a label that is neither a number nor a name: {str(found)[:40]}")


def _number_or_name(text: str) -> Label:
    if not text:
        return None
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text
