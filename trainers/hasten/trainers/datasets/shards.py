"""How a data set lies in the store: Parquet shards in the order of their images' hashes, the manifest last.

Rows are sorted over the *whole* data set by key, the SHA-256 of an image's stored bytes, and then by label;
shards are consecutive ranges of them. A prefix of the rows is therefore a random sample that depends on
content alone (the held-out images are one), and reading in file order is reading in random order. A row group
holds 1024 rows: what the streaming reader fetches at once.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hasten.trainers.config import Spec, validate
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.store import Folder

MANIFEST: Final = "manifest.json"
GROUP: Final = 1024  # rows in a row group
KEY: Final = 32  # bytes in a key
_VERSION: Final = 2
_SHARD_BYTES: Final = 128 * 2**20
AGAIN: Final = "Import the data set again."

Dtype = Literal["uint8", "float16", "float32"]
Stored = NDArray[np.uint8 | np.float16 | np.float32]
Keys = NDArray[np.uint8]
Labels = NDArray[np.int64]


class Damaged(Fault):
    """A stored file is not what was written: reading it again will not help."""


class Shard(Spec):
    """One Parquet file: columns ``pixels`` (H x W x C stored numbers), ``label`` (-1 for none) and ``key``.

    ``first`` is the first row's key in hexadecimal.
    """

    path: str
    rows: int
    sha256: str
    first: str


class Manifest(Spec):
    """What a data set holds.

    ``digest`` depends on the images and labels alone, not on their order or on how they lie in shards.
    ``shape`` is (C, H, W); stored numbers times ``scale`` are what a model sees of latents (of uint8 pixels
    it sees [-1, 1]); ``classes`` is 0 where there are no labels; ``report`` counts what an import converted
    or refused.
    """

    version: Literal[2] = 2
    name: str
    digest: str
    count: int
    shape: tuple[int, int, int]
    dtype: Dtype = "uint8"
    scale: float = 1.0
    classes: int = 0
    class_names: tuple[str, ...] = ()
    source: str
    shards: tuple[Shard, ...]
    report: dict[str, int] = {}

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def resolution(self) -> int:
        return self.shape[1]

    @property
    def image_bytes(self) -> int:
        """Bytes that one image takes in memory as it is stored."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def read_manifest(location: str) -> Manifest:
    """The manifest of the data set at a URI.

    Raises:
        ConfigError: there is no data set, or its manifest is not one of this version.
        Fault: the storage failed.
    """
    content = Folder(location).read(MANIFEST)
    if content is None:
        remedy = "Import one: hasten data import SRC NAME (built in: hasten data import digits)."
        raise ConfigError("data.source", f"no data set at {location}", remedy)
    return _manifest(content, f"{location}/{MANIFEST}")


def read_snapshot(location: str, digest: str) -> Manifest:
    """The manifest of the data set at a URI as it was when it had this digest.

    Raises:
        ConfigError: there is no data set.
        Fault: the storage failed, or nothing is left of that snapshot.
    """
    now = read_manifest(location)
    if now.digest == digest:
        return now
    name = snapshot_name(digest)
    content = Folder(location).read(name)
    if content is None:
        problem = f"has changed, and nothing is kept of its snapshot {digest[:12]}"
        raise Fault(location, problem, "Train on the data as they are now.")
    return _manifest(content, f"{location}/{name}")


def snapshot_name(digest: str) -> str:
    """Where a data set's folder keeps the manifest that had this digest."""
    return f"snapshots/{digest}.json"


def _manifest(content: bytes, place: str) -> Manifest:
    try:
        fields: Any = json.loads(content)
    except ValueError:
        raise ConfigError(place, "is not a manifest", AGAIN) from None
    if not isinstance(fields, dict) or fields.get("version") != _VERSION:
        raise ConfigError(place, "is not a manifest of this version of hasten", AGAIN)
    return validate(Manifest, fields, prefix=f"{place}: ")


def content_keys(pixels: Stored) -> Keys:
    """SHA-256 of each image's stored bytes in the order C, H, W: shape (N, 32).

    The label is left out: it does not move an image across the split.
    """
    images = np.ascontiguousarray(pixels)
    digests = b"".join(hashlib.sha256(image).digest() for image in images)
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, KEY)


def row_order(keys: Keys, labels: Labels) -> NDArray[np.int64]:
    """Where each row of a data set comes from: by key, then by label (-1 comes last), shape (N,)."""
    return np.argsort(sortable(packed(keys, labels)), kind="stable").astype(np.int64)


def places(keys: Keys) -> NDArray[np.float64]:
    """Each image's place in [0, 1): it is held out where its place is below the held-out share."""
    return np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0].astype(np.float64) * 2.0**-64


def shard_rows(image_bytes: int) -> int:
    """How many rows a shard should have: a multiple of :data:`GROUP`, about 128 MiB, at most 64 groups."""
    return GROUP * min(max(_SHARD_BYTES // (GROUP * max(image_bytes, 1)), 1), 64)


def dtype_name(pixels: Stored) -> Dtype:
    """How a manifest calls the numbers of ``pixels``.

    Raises:
        ConfigError: they are of a kind that is not stored.
    """
    match pixels.dtype.name:
        case "uint8":
            return "uint8"
        case "float16":
            return "float16"
        case "float32":
            return "float32"
    raise ConfigError(str(pixels.dtype), "is not stored", "Give uint8, float16 or float32.")


def digest(pixels: Stored, labels: Labels, *, classes: int | None = None, scale: float = 1.0) -> str:
    """What names a data set: SHA-256 over its images and their labels, whatever their order."""
    keys, dtype = content_keys(pixels), dtype_name(pixels)
    return digest_of_keys(keys, labels, dtype=dtype, classes=classes, scale=scale)


def digest_of_keys(
    keys: Keys, labels: Labels, *, dtype: Dtype = "uint8", classes: int | None = None, scale: float = 1.0
) -> str:
    """As :func:`digest`, from the images' keys, shape (N, 32), in any order."""
    order = row_order(keys, labels)
    rows = hashlib.sha256(packed(keys[order], labels[order]).tobytes())
    known = int(labels.max(initial=-1)) + 1
    return finished_digest(rows, known, dtype=dtype, classes=classes, scale=scale)


def whole_shard(folder: Folder, shard: Shard, manifest: Manifest) -> tuple[Stored, Labels, Keys]:
    """``(pixels, labels, keys)`` of a shard, its checksum verified.

    Raises:
        Damaged: it is missing, or not what was written.
        Fault: the storage failed.
    """
    content = folder.read(shard.path)
    place = f"{folder.uri}/{shard.path}"
    if content is None:
        raise Damaged(place, "is missing", AGAIN)
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise Damaged(place, "is damaged (its checksum is wrong)", AGAIN)
    table = pq.read_table(pa.BufferReader(content))
    if len(table) != shard.rows:
        raise Damaged(place, f"has {len(table)} rows, not {shard.rows} as its manifest says", AGAIN)
    return decoded(table["pixels"], manifest), table["label"].to_numpy(), key_column(table)


def decoded(column: pa.ChunkedArray, manifest: Manifest) -> Stored:
    """A ``pixels`` column as an array of shape (n, H, W, C) seen as (n, C, H, W), without a copy."""
    channels, height, width = manifest.shape
    flat = _bytes_of(column).view(manifest.dtype)
    images: Stored = flat.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
    return images


def key_column(table: pa.Table) -> Keys:
    """The ``key`` column, shape (n, 32)."""
    return _bytes_of(table["key"]).reshape(-1, KEY)


def packed(keys: Keys, labels: Labels) -> NDArray[np.uint8]:
    """Rows as 40 bytes each, key and big-endian label: bytes that sort as rows do."""
    ends = np.ascontiguousarray(labels, dtype=">i8").view(np.uint8).reshape(-1, 8)
    return np.concatenate([keys, ends], axis=1)


def sortable(rows: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """:func:`packed` rows as values that numpy compares."""
    return np.ascontiguousarray(rows).view(f"S{rows.shape[1]}")[:, 0]


def finished_digest(rows: Any, known: int, *, dtype: Dtype, classes: int | None, scale: float) -> str:
    """The digest, once ``rows`` has hashed all rows; what else changes the task is in it where unusual."""
    count = known if classes is None else classes
    if (dtype, scale, count) != ("uint8", 1.0, known):
        rows.update(json.dumps([dtype, scale, count]).encode())
    return str(rows.hexdigest())


def _bytes_of(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """The bytes of a FixedSizeBinary column, one after the other."""
    array = column.combine_chunks()
    width = array.type.byte_width
    return np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width)
