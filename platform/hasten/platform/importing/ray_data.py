"""The import's door to Ray Data: parts are decoded, and shards written, on all of the cluster.

Decoded rows stay in Ray's object store (which spills to disks) until their order is known: a row's shard
depends on all rows. The first pass is therefore materialized, the second one shuffles it by shard number.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from hasten.platform.importing import rows
from hasten.platform.importing.rows import AnyTarget, Layout
from hasten.platform.importing.samples import Part
from hasten.trainers.datasets.shards import Shard
from hasten.trainers.errors import Fault, HastenError

_BLOCK: Final = 2**27  # Ray's own default
_SMALLEST_BLOCK: Final = 2**22


class OnRay:
    """Works on the cluster that this process is attached to; at most ``workers`` parts at once, if given."""

    def __init__(self, workers: int | None) -> None:
        self._workers = workers
        self._blocks: list[Any] = []

    def decode(self, parts: Sequence[Part], target: AnyTarget, advance: Callable[[int], None]) -> None:
        items = [{"number": number, "part": pickle.dumps(part)} for number, part in enumerate(parts)]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            partial(_decoded, target=target),
            batch_size=1,
            batch_format="pyarrow",
            concurrency=self._workers,
            num_cpus=1,
        )
        with _speaking():
            for bundle in dataset.iter_internal_ref_bundles():
                self._blocks += bundle.block_refs
                advance(bundle.num_rows() or 0)

    def small_columns(self) -> pa.Table:
        with _speaking():
            batches = ray.data.from_arrow_refs(self._blocks).select_columns(rows.SMALL)
            found = list(batches.iter_batches(batch_size=None, batch_format="pyarrow"))
        return pa.concat_tables([rows.SMALL_SCHEMA.empty_table(), *found])

    def write(self, layout: Layout, advance: Callable[[int], None]) -> list[Shard]:
        count = len(layout.bounds) + 1
        sharded = ray.data.from_arrow_refs(self._blocks).map_batches(
            partial(_sharded, layout=layout), batch_size=None, batch_format="pyarrow", num_cpus=1
        )
        written = sharded.groupby("shard", num_partitions=count).map_groups(
            partial(_written, layout=layout), batch_format="pyarrow", num_cpus=1
        )
        found: dict[int, Shard] = {}
        with _speaking():
            for row in written.iter_rows():
                found[row["number"]] = Shard.model_validate_json(row["shard"])
                advance(1)
        return [found[number] for number in range(count)]


def _decoded(batch: pa.Table, *, target: AnyTarget) -> Iterator[pa.Table]:
    for number, part in zip(batch["number"].to_pylist(), batch["part"].to_pylist(), strict=True):
        yield from rows.tables(pickle.loads(part), number, target)


def _sharded(batch: pa.Table, *, layout: Layout) -> pa.Table:
    return layout.sharded(batch)


def _written(batch: pa.Table, *, layout: Layout) -> pa.Table:
    number, shard = layout.write(batch)
    return pa.table({"number": [number], "shard": [shard.model_dump_json()]})


def is_attached() -> bool:
    """Whether this process has a cluster already, which is then not ours to leave."""
    return bool(ray.is_initialized())


@contextmanager
def quiet(workers: int | None) -> Iterator[OnRay]:
    """Ray Data without its own lines and bars, in blocks that the cluster's object store has room for."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what fails is said once, by us
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    room = ray.cluster_resources()
    share = int(room.get("object_store_memory", _BLOCK) / (4 * max(room.get("CPU", 1), 1)))
    context.target_max_block_size = min(max(share, _SMALLEST_BLOCK), _BLOCK)
    try:
        with ray.data.DataContext.current(context):
            yield OnRay(workers)
    finally:
        logger.setLevel(level)


@contextmanager
def _speaking() -> Iterator[None]:
    """What a task raised as it was raised there, without Ray's wrapping."""
    try:
        yield
    except ray.exceptions.RayError as error:
        if (own := _cause(error)) is not None:
            raise own from None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise Fault(
            "Ray", f"ended the import ({lines[-1][:200]})", "Its dashboard and its logs say why."
        ) from error


def _cause(error: BaseException | None) -> HastenError | None:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        found = getattr(error, "cause", None)
        for candidate in (error, found):
            # Ray's wrapping passes for what it wraps: its class is made from both.
            if isinstance(candidate, HastenError) and not isinstance(candidate, ray.exceptions.RayError):
                return candidate
        error = error.__cause__ or error.__context__ or (found if isinstance(found, BaseException) else None)
    return None
