"""Data sets into the store: built-in ones, and whatever the user has on a disk or in a bucket.

Nothing heavy is imported here: recipes of built-in data come by without Ray, Pillow or a look at any file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.trainers.datasets import data
from hasten.trainers.datasets.data import BUILT_IN, Manifest
from hasten.trainers.errors import ConfigError
from hasten.trainers.store import Folder

if TYPE_CHECKING:
    from rich.console import Console

    from hasten.platform.importing.decoding import Fit


def import_dataset(
    source: str,
    name: str,
    storage_uri: str,
    *,
    format: str = "auto",  # noqa: A002
    resolution: int | None = None,
    fit: Fit = "crop",
    channels: int | None = None,
    labels: str = "auto",
    max_rejected: float = 0.01,
    scale: float | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> tuple[Manifest, bool]:
    """Import ``source`` as the data set ``name``; also says whether anything changed.

    The same source gives the same digest however many processes read it, and importing it again writes
    nothing. A changed source replaces the manifest; shards of earlier snapshots stay for their readers.

    Args:
        source: a built-in name, a folder, a file, a pattern, or ``s3://BUCKET/PREFIX``.
        name: the data set's name, or a URI to write to.
        storage_uri: the storage that names lie in.
        format: ``imagefolder``, ``parquet``, ``webdataset``, ``arrays``, ``latents`` or ``auto``.
        resolution: side in pixels of all images; without it they must share one and be square.
        fit: ``crop`` the centre, ``pad`` with black, or ``stretch``.
        channels: 1 or 3; without it 1 where the first images are grey.
        labels: ``auto``, ``none``, or a Parquet column's name.
        max_rejected: share of images in [0, 1] that may be refused.
        scale: what a model multiplies latents with; measured (1 / standard deviation) unless given.
        workers: how many parts of the source are read at once, on Ray; by default as many as the cluster has
            CPUs for, and without Ray where the source is small.
        console: where progress shows; nowhere without one.

    Raises:
        ConfigError: the source cannot be read, contradicts itself, or too much of it was refused.
        Fault: the storage or the cluster failed.
    """
    if source in BUILT_IN:
        return _import_digits(name, storage_uri)
    from hasten.platform.importing import flow

    return flow.import_source(
        source,
        name,
        storage_uri,
        format=format,
        resolution=resolution,
        fit=fit,
        channels=channels,
        labels=labels,
        max_rejected=max_rejected,
        scale=scale,
        workers=workers,
        console=console,
    )


def ensure(source: str, storage_uri: str) -> None:
    """Import a built-in data set that a recipe names and the store lacks; anything else is the user's."""
    if source in BUILT_IN and existing(Folder(data.uri(source, storage_uri))) is None:
        import_dataset(source, source, storage_uri)


def _import_digits(name: str, storage_uri: str) -> tuple[Manifest, bool]:
    folder = Folder(data.uri(name, storage_uri))
    pixels, labels = data.digits()
    before = existing(folder)
    if before and before.digest == data.digest(pixels, labels):
        return before, False
    manifest = data.write(folder, name=name, source="scikit-learn: load_digits", pixels=pixels, labels=labels)
    return manifest, True


def existing(folder: Folder) -> Manifest | None:
    """The data set that lies there; one that this version does not read counts as none."""
    if folder.read(data.MANIFEST) is None:
        return None
    try:
        return data.read_manifest(folder.uri)
    except ConfigError:
        return None
