"""Samples as rows of Arrow tables: decoded, hashed and counted; and rows as shards of a data set.

Nothing here knows who runs it. Rows carry an ``id`` (part, place in the part), so that the order of all rows
is the same however many processes made them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hasten.platform.importing import decoding
from hasten.platform.importing.decoding import Mismatch, Note, Refused, Target
from hasten.platform.importing.samples import Label, Part, Sample
from hasten.trainers.datasets import data
from hasten.trainers.datasets.shards import KEY, Dtype, Shard, content_keys, row_order
from hasten.trainers.errors import ConfigError
from hasten.trainers.store import Folder

_TABLE_BYTES: Final = 2**22
_MOST_CLASSES: Final = 1_000_000
_ID: Final = 2**32  # of a part's rows

SCHEMA: Final = pa.schema(
    [
        ("id", pa.int64()),
        ("pixels", pa.binary()),  # (C, H, W); empty where the sample was refused
        ("key", pa.binary(KEY)),
        ("label", pa.int64()),  # -1: none, or a name
        ("class", pa.string()),
        ("notes", pa.int32()),
        ("sum", pa.float64()),  # of a latent's numbers
        ("squares", pa.float64()),
        ("name", pa.string()),  # of a refused sample, and why it was
        ("reason", pa.string()),
    ]
)
SMALL_SCHEMA: Final = pa.schema([column for column in SCHEMA if column.name != "pixels"])
SMALL: Final = SMALL_SCHEMA.names


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentTarget:
    """Latents as they are stored: ``shape`` (C, H, W), float16 where ``half``, else float32."""

    shape: tuple[int, int, int]
    half: bool

    @property
    def dtype(self) -> Dtype:
        return "float16" if self.half else "float32"


AnyTarget = Target | LatentTarget


@dataclass(slots=True)
class _Row:
    label: Label
    pixels: NDArray[Any] | None = None
    notes: Note = field(default_factory=lambda: Note(0))
    name: str | None = None
    reason: str | None = None
    moments: tuple[float, float] = (0.0, 0.0)


def tables(part: Part, number: int, target: AnyTarget) -> Iterator[pa.Table]:
    """The rows of a part, a few megabytes at a time.

    Raises:
        ConfigError: a container is damaged, or a sample is not like the first ones.
        Fault: the storage failed.
    """
    rows: list[_Row] = []
    size, start = 0, number * _ID
    for sample in part.samples():
        row = _row(sample, target)
        rows.append(row)
        size += 200 if row.pixels is None else row.pixels.nbytes
        if size >= _TABLE_BYTES:
            yield _table(rows, start)
            start, size, rows = start + len(rows), 0, []
    if rows:
        yield _table(rows, start)


def _row(sample: Sample, target: AnyTarget) -> _Row:
    try:
        if isinstance(sample.content, Refused):
            raise sample.content
        label = _checked(sample.label)
        if isinstance(target, LatentTarget):
            return _latent_row(sample.content, label, target)
        if isinstance(sample.content, bytes):
            pixels, notes = decoding.decode(sample.content, target)
        else:
            pixels, notes = decoding.convert(sample.content, target)
        return _Row(label, pixels, notes)
    except Mismatch as mismatch:
        raise ConfigError(printable(sample.name), mismatch.reason, f"Give {mismatch.option}.") from None
    except Refused as refusal:
        return _Row(None, name=printable(sample.name), reason=printable(str(refusal)))


def _latent_row(content: bytes | NDArray[Any], label: Label, target: LatentTarget) -> _Row:
    if isinstance(content, bytes) or content.shape != target.shape:
        has = "a file" if isinstance(content, bytes) else list(content.shape)
        raise Refused(f"is {has}, not {list(target.shape)} as the first one")
    notes = Note.FLOAT64_TO_32 if content.dtype == np.float64 else Note(0)
    if target.half and content.dtype != np.float16:
        raise Refused(f"is {content.dtype}, the first one float16")
    stored = np.ascontiguousarray(content.astype(target.dtype))
    if not np.isfinite(stored).all():
        raise Refused("has numbers that are not finite")
    wide = stored.astype(np.float64)
    return _Row(label, stored, notes, moments=(float(wide.sum()), float(np.square(wide).sum())))


def _checked(label: Label) -> Label:
    if isinstance(label, str) or label is None or -1 <= label < _MOST_CLASSES:
        return label
    raise Refused(f"has the label {label}, which is not from 0 to {_MOST_CLASSES - 1:,}")


def _table(rows: Sequence[_Row], start: int) -> pa.Table:
    empty = bytes(KEY)
    keys = [empty if row.pixels is None else content_keys(row.pixels[None])[0].tobytes() for row in rows]
    columns = {
        "id": range(start, start + len(rows)),
        "pixels": [b"" if row.pixels is None else row.pixels.tobytes() for row in rows],
        "key": keys,
        "label": [-1 if row.label is None or isinstance(row.label, str) else row.label for row in rows],
        "class": [row.label if isinstance(row.label, str) else None for row in rows],
        "notes": [int(row.notes) for row in rows],
        "sum": [row.moments[0] for row in rows],
        "squares": [row.moments[1] for row in rows],
        "name": [row.name for row in rows],
        "reason": [row.reason for row in rows],
    }
    return pa.table(columns, schema=SCHEMA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How rows become shards: ``bounds`` are the first rows (key, label, id) of every shard but the first,
    ``classes`` the numbers of class names.
    """

    folder: str
    bounds: NDArray[np.bytes_]
    classes: dict[str, int] = field(default_factory=dict)
    labelled: bool = True
    shape: tuple[int, int, int]
    dtype: Dtype

    def labels(self, table: pa.Table) -> NDArray[np.int64]:
        return final_labels(table, self.classes, labelled=self.labelled)

    def sharded(self, table: pa.Table) -> pa.Table:
        """Accepted rows with what a shard needs of them, and the ``shard`` that each belongs to."""
        table = table.filter(pc.is_null(table["reason"]))
        labels = self.labels(table)
        rows = sortable(keys_of(table), labels, table["id"].to_numpy())
        shard = np.searchsorted(self.bounds, rows, side="right").astype(np.int64)
        return pa.table({"shard": shard, "pixels": table["pixels"], "key": table["key"], "label": labels})

    def write(self, table: pa.Table) -> tuple[int, Shard]:
        """Write all rows of one shard, given in any order."""
        keys, labels = keys_of(table), table["label"].to_numpy()
        order = row_order(keys, labels)
        flat = np.frombuffer(b"".join(table["pixels"].to_pylist()), self.dtype)
        pixels = flat.reshape(-1, *self.shape)[order]
        number = int(table["shard"][0].as_py())
        shard = data.write_shard(
            Folder(self.folder), number=number, pixels=pixels, labels=labels[order], keys=keys[order]
        )
        return number, shard


def final_labels(table: pa.Table, classes: dict[str, int], *, labelled: bool = True) -> NDArray[np.int64]:
    """Labels as the data set has them: names by their numbers, -1 where there is none."""
    labels = np.array(table["label"].to_numpy(), dtype=np.int64)
    if not labelled:
        labels[:] = -1
    elif classes:
        names = table["class"].to_pylist()
        texts = [
            name if name is not None else str(number) for name, number in zip(names, labels, strict=True)
        ]
        labels = np.array([classes.get(text, -1) for text in texts], dtype=np.int64)
    return labels


def keys_of(table: pa.Table) -> NDArray[np.uint8]:
    """The ``key`` column, shape (n, 32)."""
    column = b"".join(itertools.chain(table["key"].to_pylist()))
    return np.frombuffer(column, np.uint8).reshape(-1, KEY)


def sortable(
    keys: NDArray[np.uint8], labels: NDArray[np.int64], ids: NDArray[np.int64]
) -> NDArray[np.bytes_]:
    """Rows as byte strings that sort by key, then by label (-1 last), then by id."""
    ends = [np.ascontiguousarray(part, dtype=">i8").view(np.uint8).reshape(-1, 8) for part in (labels, ids)]
    packed = np.ascontiguousarray(np.concatenate([keys, *ends], axis=1))
    return packed.view(f"S{packed.shape[1]}")[:, 0]


def printable(text: str) -> str:
    """A name or a reason from outside without what would steer a terminal."""
    plain = text.encode(errors="backslashreplace").decode()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in plain)
