"""Image files in folders: one folder a class, or all in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from hasten.platform.importing.places import File, Place
from hasten.platform.importing.samples import IMAGES, MAX_BYTES, PART_BYTES, Label, Sample, too_large
from hasten.trainers.errors import ConfigError

_CONNECTIONS: Final = 8
_FILES: Final = 256  # in a part
_SPLITS: Final = frozenset({"train", "training", "test", "val", "valid", "validation"})


@dataclass(frozen=True, slots=True)
class Files:
    """Some of the files, with their labels."""

    place: Place
    files: tuple[File, ...]
    labels: tuple[Label, ...]

    def samples(self) -> Iterator[Sample]:
        def read(file: File, label: Label) -> Sample:
            if file.size > MAX_BYTES:
                return Sample(file.name, too_large(file.size), label)
            return Sample(file.name, self.place.read(file.name), label)

        with ThreadPoolExecutor(_CONNECTIONS) as executor:
            yield from executor.map(read, self.files, self.labels)


def is_image(file: File) -> bool:
    return file.name.lower().endswith(IMAGES)


def parts(
    source: str, place: Place, files: Sequence[File], *, labelled: bool
) -> tuple[list[Files], tuple[str, ...]]:
    """The files in parts, and the classes' names: the first folders' names in the order of their letters
    (torchvision's rule), none where the files lie flat.

    Raises:
        ConfigError: it cannot be told what the folders mean.
    """
    classes = _classes(source, files) if labelled else ()
    numbers = {name: number for number, name in enumerate(classes)}
    found: list[Files] = []
    chunk: list[File] = []
    for position, file in enumerate(files):
        chunk.append(file)
        full = len(chunk) == _FILES or sum(file.size for file in chunk) >= PART_BYTES
        if full or position == len(files) - 1:
            labels = tuple(numbers.get(file.name.partition("/")[0]) for file in chunk)
            found.append(Files(place, tuple(chunk), labels))
            chunk = []
    return found, classes


def _classes(source: str, files: Sequence[File]) -> tuple[str, ...]:
    folders = {first for first, slash, _ in (file.name.partition("/") for file in files) if slash}
    flat = sum("/" not in file.name for file in files)
    if not folders:
        return ()
    if flat:
        raise ConfigError(
            source,
            f"has {flat} image(s) beside its folders",
            "Give every class its folder, or import without labels: --labels none.",
        )
    if len(folders) > 1 and {name.lower() for name in folders} <= _SPLITS:
        names = ", ".join(sorted(folders))
        raise ConfigError(
            source,
            f"has splits ({names}), not classes",
            f"Import one of them: {source.rstrip('/')}/{min(folders)}; or all without labels: --labels none.",
        )
    return tuple(sorted(folders))
