"""Parquet: image files in a column as the Hugging Face hub keeps them, or latents as nested lists."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hasten.platform.importing.decoding import Refused
from hasten.platform.importing.places import File, Place
from hasten.platform.importing.samples import MAX_BYTES, Sample, too_large
from hasten.trainers.errors import ConfigError

_ROWS: Final = 64  # read at once
_CONNECTIONS: Final = 8
_IMAGE_NAMES: Final = ("image", "img", "images", "jpg", "png", "bytes", "pixels")
_LATENT_NAMES: Final = ("latent", "latents", "image", "pixels")
_LABEL_NAMES: Final = ("label", "labels", "cls", "class", "fine_label", "class_label")
_SPLITS: Final = ("train", "test", "validation", "val")


@dataclass(frozen=True, slots=True)
class Table:
    """One row group."""

    place: Place
    name: str
    group: int
    column: str
    label: str | None
    latents: bool

    def samples(self) -> Iterator[Sample]:
        columns = [self.column] + ([self.label] if self.label else [])
        row = 0
        try:
            with self.place.open(self.name) as file:
                parquet = pq.ParquetFile(file)
                for batch in parquet.iter_batches(_ROWS, row_groups=[self.group], columns=columns):
                    for sample in self._of(batch, row):
                        yield sample
                        row += 1
        except pa.ArrowException as error:
            raise _damaged(self.place, self.name, error) from None

    def _of(self, batch: pa.RecordBatch, start: int) -> Iterator[Sample]:
        labels = batch[self.label].to_pylist() if self.label else [None] * len(batch)
        for offset, label in enumerate(labels):
            name = f"{self.name}/{self.group}:{start + offset}"
            value = batch[self.column][offset]
            content = self._latent(value) if self.latents else _bytes(value.as_py())
            if isinstance(label, float):
                content, label = Refused(f"has a label that is no whole number: {label}"), None
            yield Sample(name, content, label if isinstance(label, str) or label is None else int(label))

    def _latent(self, value: pa.Scalar) -> NDArray[Any] | Refused:
        if not value.is_valid:
            return Refused("is empty")
        if isinstance(value, pa.FixedShapeTensorScalar):
            return np.array(value.to_numpy())
        try:
            return np.array(value.as_py(), dtype=_innermost(value.type).to_pandas_dtype())
        except (ValueError, TypeError):
            return Refused("is not an array: its rows differ in length")


def parts(
    source: str, place: Place, files: Sequence[File], *, labels: str, latents: bool | None
) -> tuple[list[Table], tuple[str, ...], int]:
    """Row groups, the classes' names (empty where labels are numbers without names) and the rows.

    ``labels`` is ``auto``, ``none`` or a column; ``latents`` is None where either may be.

    Raises:
        ConfigError: a file is no Parquet, or has no column of images.
    """
    _refuse_splits(source, files)

    def footer(file: File) -> pq.FileMetaData:
        try:
            with place.open(file.name) as opened:
                return pq.read_metadata(opened)
        except pa.ArrowException as error:
            raise _damaged(place, file.name, error) from None

    with ThreadPoolExecutor(_CONNECTIONS) as executor:
        footers = list(executor.map(footer, files))
    found: list[Table] = []
    names: tuple[str, ...] | None = None
    for file, metadata in zip(files, footers, strict=True):
        schema = metadata.schema.to_arrow_schema()
        column, is_latent = _content_column(f"{place.uri}/{file.name}", schema, latents)
        label = _label_column(f"{place.uri}/{file.name}", schema, labels)
        here = _class_names(schema, label)
        if names is not None and here != names:
            raise ConfigError(source, "has files with different classes", "Import them apart.")
        names = here
        groups = range(metadata.num_row_groups)
        found += [Table(place, file.name, group, column, label, is_latent) for group in groups]
    return found, names or (), sum(metadata.num_rows for metadata in footers)


def _refuse_splits(source: str, files: Sequence[File]) -> None:
    """The hub keeps train-00000-of-00002.parquet and test-... in one folder."""
    first = {file.name.rpartition("/")[2].partition("-")[0] for file in files}
    folders = {part for file in files for part in file.name.split("/")[:-1]}
    splits = sorted((first | folders) & set(_SPLITS))
    if len(splits) > 1:
        raise ConfigError(
            source,
            f"has several splits: {', '.join(splits)}",
            f"Import one of them, for example {source.rstrip('/')}/{splits[-1]}-*.parquet (in quotes).",
        )


def _content_column(place: str, schema: pa.Schema, latents: bool | None) -> tuple[str, bool]:
    images = [field.name for field in schema if _holds_files(field.type)]
    arrays = [field.name for field in schema if _depth(field.type)]
    if latents is not True and (column := _chosen(images, _IMAGE_NAMES)):
        return column, False
    if latents is not False and (column := _chosen(arrays, _LATENT_NAMES)):
        kind = schema.field(column).type
        if _depth(kind) != 3 and not (isinstance(kind, pa.FixedShapeTensorType) and len(kind.shape) == 3):
            remedy = "Write latents as nested lists (C, H, W) or as Arrow's fixed-shape tensors."
            raise ConfigError(place, f"column {column!r} does not tell the latents' shape", remedy)
        return column, True
    wanted = "latents" if latents else "images"
    raise ConfigError(
        place,
        f"has no column of {wanted}, or several: its columns are {', '.join(schema.names)}",
        "Images are bytes, or structs of bytes and path as on the Hugging Face hub, in a column `image`; "
        "latents are nested lists of floats in a column `latent`.",
    )


def _chosen(found: Sequence[str], preferred: Sequence[str]) -> str | None:
    known = [name for name in preferred if name in found]
    return known[0] if known else (found[0] if len(found) == 1 else None)


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        return "bytes" in names and _holds_files(kind.field(names.index("bytes")).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _depth(kind: pa.DataType) -> int:
    """How many lists are around the floats; 0 where there are none."""
    depth = 0
    while (inner := _inside(kind)) is not None:
        kind, depth = inner, depth + 1
    return depth if pa.types.is_floating(kind) else 0


def _innermost(kind: pa.DataType) -> pa.DataType:
    while (inner := _inside(kind)) is not None:
        kind = inner
    return kind


def _inside(kind: pa.DataType) -> pa.DataType | None:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return (
        kind.value_type if isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType) else None
    )


def _label_column(place: str, schema: pa.Schema, labels: str) -> str | None:
    if labels == "none":
        return None
    if labels != "auto":
        if labels not in schema.names:
            raise ConfigError(
                "--labels", f"{place} has no column {labels!r}", f"Its columns: {', '.join(schema.names)}."
            )
        return labels
    named = [name for name in _LABEL_NAMES if name in schema.names and _is_label(schema.field(name).type)]
    if named:
        return named[0]
    classes = [name for name in schema.names if _class_names(schema, name)]
    if len(classes) > 1:
        raise ConfigError(
            place, f"has several columns of classes: {', '.join(classes)}", f"Choose: --labels {classes[0]}."
        )
    return classes[0] if classes else None


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _class_names(schema: pa.Schema, column: str | None) -> tuple[str, ...]:
    """The names of a ClassLabel, from the metadata that the ``datasets`` library writes."""
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = metadata["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _bytes(value: Any) -> bytes | Refused:
    if isinstance(value, dict):
        path = value.get("path")
        value = value.get("bytes")
        if value is None and path:
            return Refused("has a path in the place of its bytes")
    if value is None:
        return Refused("is empty")
    return too_large(len(value)) if len(value) > MAX_BYTES else bytes(value)


def _damaged(place: Place, name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{place.uri}/{name}",
        f"is not Parquet, or is damaged ({str(error).splitlines()[0][:160]})",
        "Fetch it again, or leave it out: half a file is not imported.",
    )
