"""What an import found, converted and refused: counts for the manifest, names and reasons beside it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hasten.platform.importing import rows
from hasten.platform.importing.decoding import Note
from hasten.platform.importing.rows import AnyTarget, LatentTarget
from hasten.platform.importing.sources import Source
from hasten.trainers.datasets.shards import Dtype, digest_of_keys, shard_rows
from hasten.trainers.errors import ConfigError

NAME: Final = "report.json"
_LISTED: Final = 100
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that is known before a shard is written. ``classes`` is the number of classes, ``bounds`` where
    shards begin.
    """

    digest: str
    classes: int
    class_names: tuple[str, ...]
    scale: float
    bounds: NDArray[np.bytes_]
    counts: dict[str, int]
    refused: list[dict[str, str]]

    def document(self, source: Source) -> dict[str, Any]:
        """The report as it lies beside the manifest."""
        return {
            "source": source.address,
            "format": source.format,
            "digest": self.digest,
            "counts": self.counts,
            "class_names": list(self.class_names),
            "refused": self.refused,
        }


def find(
    table: pa.Table,
    source: Source,
    target: AnyTarget,
    *,
    labelled: bool,
    max_rejected: float,
    scale: float | None,
) -> Findings:
    """Order, count and judge the decoded rows (all columns but the pixels).

    Raises:
        ConfigError: more than ``max_rejected`` of the samples were refused, none is left, or the latents
            have no spread.
    """
    is_refused = pc.is_valid(table["reason"])
    refused, table = table.filter(is_refused), table.filter(pc.invert(is_refused))
    listed = sorted(zip(refused["name"].to_pylist(), refused["reason"].to_pylist(), strict=True))
    _judge(source, listed, len(table), max_rejected)
    names = _names(table, source) if labelled else ()
    numbers = {name: number for number, name in enumerate(names)} if not source.classes else {}
    labels = rows.final_labels(table, numbers, labelled=labelled)
    _check_range(source, labels)
    keys = rows.keys_of(table)
    dtype, shape = layout_of(target)
    measured = _scale(table, target, scale)
    known = int(labels.max(initial=-1)) + 1
    classes = max(len(names), known) if labelled else 0
    order = np.sort(rows.sortable(keys, labels, table["id"].to_numpy()))
    step = shard_rows(math.prod(shape) * np.dtype(dtype).itemsize)
    counts = {
        "images": len(table),
        "refused": len(listed),
        "duplicates": len(table) - len(pc.unique(table["key"])),
        "unlabelled": int(np.sum(labels < 0)),
        "ignored_files": source.ignored,
        **_conversions(table),
    }
    return Findings(
        digest=digest_of_keys(keys, labels, dtype=dtype, classes=classes, scale=measured),
        classes=classes,
        class_names=names,
        scale=measured,
        bounds=order[step::step],
        counts={name: count for name, count in counts.items() if count or name in ("images", "refused")},
        refused=[{"name": name, "reason": reason} for name, reason in listed[:_LISTED]],
    )


def layout_of(target: AnyTarget) -> tuple[Dtype, tuple[int, int, int]]:
    """The stored type and shape (C, H, W)."""
    if isinstance(target, LatentTarget):
        return target.dtype, target.shape
    return "uint8", (target.channels, target.resolution, target.resolution)


def _judge(source: Source, refused: list[tuple[str, str]], accepted: int, max_rejected: float) -> None:
    total = len(refused) + accepted
    if not total:
        raise ConfigError(source.address, "has no images to import")
    if len(refused) > max_rejected * total or not accepted:
        shown = "; ".join(f"{name} {reason}" for name, reason in refused[:_SHOWN])
        more = " ..." if len(refused) > _SHOWN else ""
        raise ConfigError(
            source.address,
            f"{len(refused):,} of {total:,} images were refused: {shown}{more}",
            f"Mend them, or allow more with --max-rejected (now {max_rejected:g}).",
        )


def _names(table: pa.Table, source: Source) -> tuple[str, ...]:
    """Class names by number: the source's own, else the names that samples have, in letters' order."""
    if source.classes:
        return source.classes
    found = {name for name in pc.unique(table["class"]).to_pylist() if name is not None}
    if not found:
        return ()
    plain = pc.unique(table.filter(pc.is_null(table["class"]))["label"]).to_pylist()
    return tuple(sorted(found | {str(number) for number in plain if number >= 0}))


def _check_range(source: Source, labels: NDArray[np.int64]) -> None:
    if source.classes and int(labels.max(initial=-1)) >= len(source.classes):
        raise ConfigError(
            source.address,
            f"has the label {labels.max()} and names for {len(source.classes)} classes",
            "Mend the labels, or import without: --labels none.",
        )


def _conversions(table: pa.Table) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for entry in pc.value_counts(table["notes"]).to_pylist():
        for note in Note(entry["values"]):
            counted[str(note.name).lower()] += entry["counts"]
    return dict(sorted(counted.items()))


def _scale(table: pa.Table, target: AnyTarget, given: float | None) -> float:
    """1 / standard deviation of all numbers of all latents, to six digits; exact sums, so that the order in
    which parts came in does not matter.
    """
    if not isinstance(target, LatentTarget):
        return 1.0
    if given is not None:
        return given
    count = len(table) * math.prod(target.shape)
    mean = math.fsum(table["sum"].to_pylist()) / count
    variance = math.fsum(table["squares"].to_pylist()) / count - mean**2
    if variance <= 0.0:
        raise ConfigError("--scale", "cannot be measured: all numbers are the same", "Give it.")
    return float(f"{variance**-0.5:.6g}")
