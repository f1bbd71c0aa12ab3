"""Data sets into the store."""

from __future__ import annotations

from hasten.trainers import data
from hasten.trainers.data import BUILT_IN, Manifest
from hasten.trainers.errors import ConfigError
from hasten.trainers.store import Folder


def import_dataset(source: str, name: str, storage_uri: str) -> tuple[Manifest, bool]:
    """Import ``source`` as the data set ``name``; also says whether anything changed.

    Raises:
        ConfigError: the source is not one that hasten can read.
        Fault: the storage failed.
    """
    if source not in BUILT_IN:
        remedy = (
            f"Built in: {', '.join(BUILT_IN)}. Reading folders and other formats is not part of this version."
        )
        raise ConfigError(source, "no such data source", remedy)
    location = data.uri(name, storage_uri)
    folder = Folder(location)
    pixels, labels = data.digits()
    known = folder.read(data.MANIFEST)
    before = data.read_manifest(location) if known else None
    if before and before.digest == data.digest(pixels, labels):
        return before, False
    manifest = data.write(folder, name=name, source="scikit-learn: load_digits", pixels=pixels, labels=labels)
    return manifest, True


def ensure(source: str, storage_uri: str) -> None:
    """Import a built-in data set that a recipe names and the store lacks."""
    if source in BUILT_IN and Folder(data.uri(source, storage_uri)).read(data.MANIFEST) is None:
        import_dataset(source, source, storage_uri)
