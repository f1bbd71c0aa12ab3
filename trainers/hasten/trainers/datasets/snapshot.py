"""Data sets into the store: shards first, by any number of processes, the manifest last; and their audit."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hasten.trainers.datasets import shards as stored
from hasten.trainers.datasets.shards import (
    AGAIN,
    GROUP,
    MANIFEST,
    Damaged,
    Dtype,
    Keys,
    Labels,
    Manifest,
    Shard,
    Stored,
)
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.store import Folder

_CONNECTIONS: Final = 8


def write(
    folder: Folder,
    *,
    name: str,
    source: str,
    pixels: Stored,
    labels: Labels,
    classes: int | None = None,
    scale: float = 1.0,
    report: Mapping[str, int] | None = None,
) -> Manifest:
    """Write a data set that fits in memory; the images may come in any order.

    Args:
        folder: where to write.
        name: the data set's name.
        source: where the images came from, for the record.
        pixels: uint8, float16 or float32 of shape (N, C, H, W) with H = W.
        labels: int64 of shape (N,); -1 where there is none.
        classes: how many classes there are; by default the largest label and one.
        scale: what a model multiplies stored floating-point numbers with.
        report: counts of what was converted or refused, for the record.
    """
    keys = stored.content_keys(pixels)
    order = stored.row_order(keys, labels)
    step = stored.shard_rows(pixels[:1].nbytes)
    shards = []
    for number, start in enumerate(range(0, len(order), step)):
        part = order[start : start + step]
        shards.append(
            write_shard(folder, number=number, pixels=pixels[part], labels=labels[part], keys=keys[part])
        )
    _, channels, height, width = pixels.shape
    return finish(
        folder,
        name=name,
        source=source,
        shards=shards,
        shape=(channels, height, width),
        dtype=stored.dtype_name(pixels),
        classes=classes,
        scale=scale,
        report=report,
    )


def write_shard(folder: Folder, *, number: int, pixels: Stored, labels: Labels, keys: Keys) -> Shard:
    """Write one shard of a data set whose rows are already in global order; any process may do it.

    A data set streams best where every shard but the last has ``shards.shard_rows(...)`` rows, or another
    multiple of 1024: the blocks of the training order are then its row groups.

    Args:
        folder: the data set's folder.
        number: the shard's place among the shards, from 0: for the file's name alone.
        pixels: uint8, float16 or float32 of shape (n, C, H, W), n >= 1.
        labels: int64 of shape (n,); -1 where there is none.
        keys: ``shards.content_keys`` of the pixels, shape (n, 32); rows lie as ``shards.row_order`` has them.
    """
    sink = io.BytesIO()
    columns = {
        "pixels": _binary(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))),
        "label": pa.array(labels, pa.int64()),
        "key": _binary(keys),
    }
    pq.write_table(
        pa.table(columns),
        sink,
        row_group_size=GROUP,
        compression="zstd",
        use_dictionary=["label"],
        write_statistics=False,
        write_page_checksum=True,
    )
    content = sink.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    # The checksum in the name: a new snapshot never overwrites the shards of the one being read.
    path = f"shards/{number:05d}-{sha256[:16]}.parquet"
    folder.write(path, content)
    return Shard(path=path, rows=len(labels), sha256=sha256, first=keys[0].tobytes().hex())


def finish(
    folder: Folder,
    *,
    name: str,
    source: str,
    shards: Sequence[Shard],
    shape: tuple[int, int, int],
    dtype: Dtype = "uint8",
    classes: int | None = None,
    scale: float = 1.0,
    class_names: Sequence[str] = (),
    report: Mapping[str, int] | None = None,
) -> Manifest:
    """Write the manifest, last of all, so that a half-written data set is never seen.

    Keys and labels are read back from the shards, a few at a time: the digest is that of what is stored.

    Args:
        folder: the data set's folder.
        name: the data set's name.
        source: where the images came from, for the record.
        shards: what :func:`write_shard` returned, in the order of their rows.
        shape: (C, H, W) of every image.
        dtype: of the stored numbers.
        classes: how many classes there are; by default the largest label and one.
        scale: what a model multiplies stored floating-point numbers with.
        class_names: what the classes are called, in the order of their numbers.
        report: counts of what was converted or refused, for the record.

    Raises:
        ConfigError: there are no images.
        Fault: the storage failed, or rows are not in global order.
    """
    if not shards:
        raise ConfigError(source, "has no images to import")
    rows, known, last = hashlib.sha256(), 0, b""
    for shard, (keys, labels) in zip(shards, _keys_and_labels(folder, shards), strict=True):
        packed = stored.packed(keys, labels)
        if not _in_order(packed, last):
            raise Fault(f"{folder.uri}/{shard.path}", "its rows are not in the order of their keys", AGAIN)
        rows.update(packed.tobytes())
        known, last = max(known, int(labels.max()) + 1), packed[-1].tobytes()
    manifest = Manifest(
        name=name,
        digest=stored.finished_digest(rows, known, dtype=dtype, classes=classes, scale=scale),
        count=sum(shard.rows for shard in shards),
        shape=shape,
        dtype=dtype,
        scale=scale,
        classes=known if classes is None else classes,
        class_names=tuple(class_names),
        source=source,
        shards=tuple(shards),
        report=dict(report or {}),
    )
    content = json.dumps(manifest.model_dump(mode="json"), indent=2).encode()
    # A run that has begun stays with its snapshot, whatever arrives meanwhile.
    folder.write(stored.snapshot_name(manifest.digest), content)
    folder.write(MANIFEST, content)
    return manifest


def verify(location: str) -> list[str]:
    """What is wrong with the data set at a URI, a sentence each; empty where it is sound. Reads all of it.

    Checked are every shard's checksum and count, every key against its pixels, the order of the rows, the
    labels' range and the digest.

    Raises:
        ConfigError: there is no data set.
        Fault: the storage failed.
    """
    manifest, folder = stored.read_manifest(location), Folder(location)
    problems: list[str] = []
    rows, known, last = hashlib.sha256(), 0, b""
    for shard in manifest.shards:
        try:
            pixels, labels, keys = stored.whole_shard(folder, shard, manifest)
        except Damaged as damage:
            problems.append(f"{shard.path}: {damage.problem}")
            continue
        packed = stored.packed(keys, labels)
        findings = {
            "a key is not the hash of its pixels": bool((stored.content_keys(pixels) != keys).any()),
            "rows are not in the order of their keys": not _in_order(packed, last),
            "its first key is not the manifest's": keys[0].tobytes().hex() != shard.first,
            "a label is out of range": bool((labels < -1).any() or labels.max() >= manifest.classes),
        }
        problems += [f"{shard.path}: {problem}" for problem, found in findings.items() if found]
        rows.update(packed.tobytes())
        known, last = max(known, int(labels.max()) + 1), packed[-1].tobytes()
    if problems:
        return problems
    if sum(shard.rows for shard in manifest.shards) != manifest.count:
        problems.append(f"{MANIFEST}: its shards do not add up to {manifest.count} images")
    found = stored.finished_digest(
        rows, known, dtype=manifest.dtype, classes=manifest.classes, scale=manifest.scale
    )
    if found != manifest.digest:
        problems.append(f"{MANIFEST}: its digest is not that of the images and labels")
    return problems


def _keys_and_labels(folder: Folder, shards: Sequence[Shard]) -> Iterator[tuple[Keys, Labels]]:
    """Each shard's keys and labels, in order, over several connections."""

    def read(shard: Shard) -> tuple[Keys, Labels]:
        with folder.open(shard.path) as file:
            table = pq.read_table(file, columns=["label", "key"], pre_buffer=True)
        if len(table) != shard.rows:
            raise Damaged(f"{folder.uri}/{shard.path}", f"has {len(table)} rows, not {shard.rows}", AGAIN)
        return stored.key_column(table), table["label"].to_numpy()

    with ThreadPoolExecutor(_CONNECTIONS) as executor:
        for start in range(0, len(shards), _CONNECTIONS):
            yield from executor.map(read, shards[start : start + _CONNECTIONS])


def _in_order(packed: NDArray[np.uint8], last: bytes) -> bool:
    """Whether packed rows ascend, from ``last`` on."""
    rows = stored.sortable(packed)
    return packed[0].tobytes() >= last and bool((rows[:-1] <= rows[1:]).all())


def _binary(rows: NDArray[Any]) -> pa.Array:
    """Each row's bytes as a FixedSizeBinary value."""
    width = rows[:1].nbytes
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))]
    )
