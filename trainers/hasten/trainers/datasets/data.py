"""Image data sets: opened without being read, then read by row.

An image's place (train or held out) is a function of its own content, so it survives new snapshots and
duplicates never straddle the split.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hasten.trainers.datasets import shards
from hasten.trainers.datasets.shards import (
    MANIFEST,
    Damaged,
    Labels,
    Manifest,
    Shard,
    Stored,
    digest,
    read_manifest,
)
from hasten.trainers.datasets.snapshot import finish, verify, write, write_shard
from hasten.trainers.errors import Fault
from hasten.trainers.store import Folder

__all__ = [
    "BUILT_IN",
    "MANIFEST",
    "Dataset",
    "Manifest",
    "Shard",
    "digest",
    "digits",
    "finish",
    "read",
    "read_manifest",
    "to_model",
    "to_pixels",
    "uri",
    "verify",
    "write",
    "write_shard",
]

BUILT_IN: Final = ("digits",)
_SMALL: Final = 256 * 2**20  # a data set of no more bytes is kept in memory, for the next trial too
_CONNECTIONS: Final = 4

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A data set in the store. Its rows are ordered by content: the held-out ones come first.

    A small one is read as a whole when its first row is asked for, and kept; of a large one, the row groups
    that hold the asked rows are read each time. What is read is verified: whole shards by their checksum,
    row groups by their pages' checksums and every image by its key.

    Every method that reads raises :class:`Fault` where the storage fails and :class:`Damaged` where reading
    again would not help.
    """

    manifest: Manifest
    folder: Folder
    _footers: dict[str, Any] = field(default_factory=dict, repr=False)

    def held_out(self, holdout: float) -> int:
        """How many images are held out: the first rows, whose place is below ``holdout``."""
        firsts = b"".join(bytes.fromhex(shard.first) for shard in self.manifest.shards)
        keys = np.frombuffer(firsts, np.uint8).reshape(-1, shards.KEY)
        begun = int(np.sum(shards.places(keys) < holdout))
        if not begun:
            return 0
        # Rows ascend, so every shard before the last one begun is held out as a whole.
        keys = shards.key_column(self._table(begun - 1, None, ["key"]))
        return int(self._starts[begun - 1]) + int(np.sum(shards.places(keys) < holdout))

    def split(self, holdout: float) -> tuple[Rows, Rows]:
        """Indices of the training images and of the held-out ones, each ordered by content."""
        held_out = self.held_out(holdout)
        return np.arange(held_out, self.manifest.count), np.arange(held_out)

    def keys(self) -> NDArray[np.uint8]:
        """What identifies every image whatever its label, in the order of the rows: shape (n, 32)."""
        numbers = range(len(self.manifest.shards))
        with ThreadPoolExecutor(_CONNECTIONS) as executor:
            parts = list(
                executor.map(lambda number: shards.key_column(self._table(number, None, ["key"])), numbers)
            )
        return np.concatenate(parts)

    def rows(self, indices: Rows) -> tuple[Stored, Labels]:
        """Stored images (n, C, H, W) and labels (n,) at ``indices``, in any order, as copies."""
        if self.is_small:
            pixels, labels = self._whole
            return pixels[indices], labels[indices]
        pixels = np.empty((len(indices), *self.manifest.shape), self.manifest.dtype)
        labels = np.empty(len(indices), np.int64)

        def fill(group: int, here: Rows) -> None:
            pixels[here], labels[here] = self.group(group, indices[here])

        _in_parallel(fill, alike(self.group_of(indices)))
        return pixels, labels

    def labels(self, indices: Rows) -> Labels:
        """Labels at ``indices``, shape (n,), without reading a pixel of a large data set."""
        if self.is_small:
            return self._whole[1][indices]
        labels = np.empty(len(indices), np.int64)

        def fill(number: int, here: Rows) -> None:
            column = self._table(number, None, ["label"])["label"].to_numpy()
            labels[here] = column[indices[here] - self._starts[number]]

        _in_parallel(fill, alike(np.searchsorted(self._starts, indices, side="right") - 1))
        return labels

    def group_of(self, indices: Rows) -> Rows:
        """The number of the row group that holds each row."""
        return np.searchsorted(self._group_starts, indices, side="right") - 1

    def group(self, number: int, indices: Rows) -> tuple[Stored, Labels]:
        """Images and labels of these rows of one row group, read from the store and verified."""
        start = self._group_starts[number]
        of = int(np.searchsorted(self._starts, start, side="right")) - 1
        table = self._table(of, int(start - self._starts[of]) // shards.GROUP, None)
        local = indices - start
        pixels = np.ascontiguousarray(shards.decoded(table["pixels"], self.manifest)[local])
        if (shards.content_keys(pixels) != shards.key_column(table)[local]).any():
            place = f"{self.folder.uri}/{self.manifest.shards[of].path}"
            raise Damaged(place, "is damaged (an image is not what its key says)", shards.AGAIN)
        return pixels, table["label"].to_numpy()[local]

    @property
    def is_small(self) -> bool:
        """Whether it is read at once and kept in memory."""
        return self.manifest.count * self.manifest.image_bytes <= _SMALL

    @functools.cached_property
    def _starts(self) -> Rows:
        """Each shard's first row."""
        return np.cumsum([0, *(shard.rows for shard in self.manifest.shards[:-1])])

    @functools.cached_property
    def _group_starts(self) -> Rows:
        """Each row group's first row."""
        begins = zip(self._starts, self.manifest.shards, strict=True)
        return np.concatenate([np.arange(start, start + shard.rows, shards.GROUP) for start, shard in begins])

    @functools.cached_property
    def _whole(self) -> tuple[Stored, Labels]:
        def read(shard: Shard) -> tuple[Stored, Labels]:
            pixels, labels, _ = shards.whole_shard(self.folder, shard, self.manifest)
            return np.ascontiguousarray(pixels), labels

        with ThreadPoolExecutor(_CONNECTIONS) as executor:
            parts = list(executor.map(read, self.manifest.shards))
        return np.concatenate([pixels for pixels, _ in parts]), np.concatenate(
            [labels for _, labels in parts]
        )

    def _table(self, number: int, group: int | None, columns: list[str] | None) -> pa.Table:
        """Columns of a shard's row group, or of all of the shard: one request once its footer is known."""
        shard = self.manifest.shards[number]
        footer = self._footers.get(shard.path)
        try:
            with self.folder.open(shard.path) as file:
                parquet = pq.ParquetFile(
                    file, metadata=footer, pre_buffer=True, page_checksum_verification=True
                )
                self._footers[shard.path] = parquet.metadata
                groups = range(parquet.num_row_groups) if group is None else [group]
                return parquet.read_row_groups(groups, columns, use_threads=False)
        except (Fault, pa.ArrowException) as error:
            # Was it the way there, or what lies there? The shard's checksum tells.
            shards.whole_shard(self.folder, shard, self.manifest)
            if isinstance(error, Fault):
                raise
            raise Fault(f"{self.folder.uri}/{shard.path}", f"cannot be read: {error}") from error


def alike(numbers: Rows) -> list[tuple[int, Rows]]:
    """Each number that occurs, and the places where it does."""
    order = np.argsort(numbers, kind="stable")
    found, first = np.unique(numbers[order], return_index=True)
    return list(zip(found.tolist(), np.split(order, first[1:]), strict=True)) if len(numbers) else []


def _in_parallel(fill: Callable[[int, Rows], None], parts: list[tuple[int, Rows]]) -> None:
    """Fill each part, over several connections."""
    with ThreadPoolExecutor(_CONNECTIONS) as executor:
        for done in [executor.submit(fill, number, places) for number, places in parts]:
            done.result()


def uri(source: str, storage_uri: str) -> str:
    """Where a recipe's ``data.source`` lies: a URI or path as it is, a name below the storage's ``data/``."""
    if "://" in source or source.startswith((".", "/")):
        return source
    return f"{storage_uri.rstrip('/')}/data/{source}"


@functools.lru_cache(maxsize=2)
def read(location: str, digest: str) -> Dataset:
    """The data set at a URI as it was with this digest; a small one stays in memory for the next run.

    Raises:
        ConfigError: there is no data set, or its manifest is not one.
        Fault: the storage failed, or nothing is kept of that snapshot.
    """
    return Dataset(manifest=shards.read_snapshot(location, digest), folder=Folder(location))


def to_model(stored: Stored, manifest: Manifest) -> NDArray[np.float32]:
    """What a model sees of stored images: pixels in [-1, 1], latents times their scale."""
    if stored.dtype == np.uint8:
        return stored.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    return stored.astype(np.float32) * np.float32(manifest.scale)


def to_pixels(values: NDArray[np.float32], manifest: Manifest) -> Stored:
    """The inverse of :func:`to_model`; pixels are rounded, and clipped to what can be shown."""
    if manifest.dtype == "uint8":
        return np.round((values.clip(-1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    return (values / np.float32(manifest.scale)).astype(manifest.dtype)


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """scikit-learn's 1,797 handwritten digits: uint8 (N, 1, 8, 8), stretched from 0..16 to 0..255."""
    from sklearn.datasets import load_digits  # heavy, and only an import of the built-in data needs it

    bunch = load_digits()
    pixels = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    return pixels, bunch.target.astype(np.int64)
