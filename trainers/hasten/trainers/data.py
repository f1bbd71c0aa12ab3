"""Image data sets: Parquet shards beside a manifest, whose digest names the content.

An image's place (train or held out) is a function of its own content, so it survives new snapshots and
duplicates never straddle the split.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hasten.trainers.config import Spec, validate
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.store import Folder

MANIFEST: Final = "manifest.json"
_ROWS_PER_SHARD: Final = 50_000
BUILT_IN: Final = ("digits",)


class Shard(Spec):
    """One Parquet file: columns ``pixels`` (H x W x C bytes) and ``label`` (-1 where there is none)."""

    path: str
    rows: int
    sha256: str


class Manifest(Spec):
    """What a data set holds. ``digest`` depends on the images and labels alone, not on their order."""

    name: str
    digest: str
    count: int
    resolution: int
    channels: int
    source: str
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Images in memory: ``pixels`` uint8 (N, C, H, W), ``labels`` int64 (N,), ``keys`` bytes (N, 32)."""

    manifest: Manifest
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    keys: NDArray[np.uint8]

    def split(self, holdout: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices of the training images and of the held-out ones, each ordered by content."""
        place = self.keys[:, :8].copy().view(">u8")[:, 0].astype(np.float64) * 2.0**-64
        order = np.lexsort(self.keys.T[::-1])
        held_out = place[order] < holdout
        return order[~held_out], order[held_out]


def uri(source: str, storage_uri: str) -> str:
    """Where a recipe's ``data.source`` lies: a URI or path as it is, a name below the storage's ``data/``."""
    if "://" in source or source.startswith((".", "/")):
        return source
    return f"{storage_uri.rstrip('/')}/data/{source}"


def write(
    folder: Folder, *, name: str, source: str, pixels: NDArray[np.uint8], labels: NDArray[np.int64]
) -> Manifest:
    """Write shards first and the manifest last, so that a half-written data set is never seen.

    Args:
        folder: where to write.
        name: the data set's name.
        source: where the images came from, for the record.
        pixels: uint8 of shape (N, C, H, W) with H = W.
        labels: int64 of shape (N,).
    """
    count, channels, height, _ = pixels.shape
    content_digest = digest(pixels, labels)
    shards = []
    for number, start in enumerate(range(0, count, _ROWS_PER_SHARD)):
        part = slice(start, start + _ROWS_PER_SHARD)
        content = _parquet(pixels[part], labels[part])
        # The digest in the name: a new snapshot never overwrites the shards of the one being read.
        path = f"shards/{content_digest[:12]}-{number:05d}.parquet"
        folder.write(path, content)
        rows = len(labels[part])
        shards.append(Shard(path=path, rows=rows, sha256=hashlib.sha256(content).hexdigest()))
    manifest = Manifest(
        name=name,
        digest=content_digest,
        count=count,
        resolution=height,
        channels=channels,
        source=source,
        shards=tuple(shards),
    )
    folder.write(MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=2).encode())
    return manifest


def read_manifest(location: str) -> Manifest:
    """The manifest of the data set at a URI.

    Raises:
        ConfigError: there is no data set, or its manifest is not one.
        Fault: the storage failed.
    """
    content = Folder(location).read(MANIFEST)
    if content is None:
        remedy = "Import one: hasten data import SRC NAME (built in: hasten data import digits)."
        raise ConfigError("data.source", f"no data set at {location}", remedy)
    try:
        fields: Any = json.loads(content)
    except ValueError:
        raise ConfigError(
            f"{location}/{MANIFEST}", "is not a manifest", "Import the data set again."
        ) from None
    return validate(Manifest, fields, prefix=f"{location}/{MANIFEST}: ")


def digest(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """What names a data set: SHA-256 over its images and their labels, whatever their order."""
    rows = sorted(
        key.tobytes() + int(label).to_bytes(8, "big", signed=True)
        for key, label in zip(_keys(pixels), labels, strict=True)
    )
    return hashlib.sha256(b"".join(rows)).hexdigest()


@functools.lru_cache(maxsize=2)
def read(location: str, digest: str) -> Dataset:
    """The data set at a URI, which must still have this digest; kept in memory for the next run.

    Raises:
        Fault: a shard is missing or damaged, or the data set changed since the digest was taken.
    """
    manifest = read_manifest(location)
    if manifest.digest != digest:
        raise Fault(location, "the data set changed since this run was planned", "Run the command again.")
    tables = [_read_shard(Folder(location), location, shard) for shard in manifest.shards]
    table = pa.concat_tables(tables).combine_chunks()
    shape = (-1, manifest.resolution, manifest.resolution, manifest.channels)
    flat = np.frombuffer(b"".join(table["pixels"].to_pylist()), dtype=np.uint8).reshape(shape)
    pixels = np.ascontiguousarray(flat.transpose(0, 3, 1, 2))
    labels = table["label"].to_numpy().astype(np.int64)
    return Dataset(manifest=manifest, pixels=pixels, labels=labels, keys=_keys(pixels))


def _read_shard(folder: Folder, location: str, shard: Shard) -> pa.Table:
    content = folder.read(shard.path)
    if content is None or hashlib.sha256(content).hexdigest() != shard.sha256:
        problem = "is missing" if content is None else "is damaged (its checksum is wrong)"
        raise Fault(f"{location}/{shard.path}", problem, "Import the data set again.")
    return pq.read_table(io.BytesIO(content))


def _parquet(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    rows = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).reshape(len(pixels), -1)
    width = rows.shape[1]
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(rows), [None, pa.py_buffer(rows.tobytes())]
    )
    sink = io.BytesIO()
    pq.write_table(pa.table({"pixels": column, "label": labels}), sink, compression="zstd")
    return sink.getvalue()


def _keys(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """SHA-256 of each image's pixels, shape (N, 32); the label does not move an image across the split."""
    digests = b"".join(hashlib.sha256(image.tobytes()).digest() for image in pixels)
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """scikit-learn's 1,797 handwritten digits: uint8 (N, 1, 8, 8), stretched from 0..16 to 0..255."""
    from sklearn.datasets import load_digits  # heavy, and only an import of the built-in data needs it

    bunch = load_digits()
    pixels = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    return pixels, bunch.target.astype(np.int64)
