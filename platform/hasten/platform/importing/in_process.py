"""An import in this process: for sources so small that starting anything else would take longer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from hasten.platform.importing import rows
from hasten.platform.importing.rows import AnyTarget, Layout
from hasten.platform.importing.samples import Part
from hasten.trainers.datasets.shards import Shard


class InProcess:
    """Keeps the rows in memory."""

    def __init__(self) -> None:
        self._table = rows.SCHEMA.empty_table()

    def decode(self, parts: Sequence[Part], target: AnyTarget, advance: Callable[[int], None]) -> None:
        found = []
        for number, part in enumerate(parts):
            for table in rows.tables(part, number, target):
                found.append(table)
                advance(len(table))
        self._table = pa.concat_tables([self._table, *found])

    def small_columns(self) -> pa.Table:
        return self._table.select(rows.SMALL)

    def write(self, layout: Layout, advance: Callable[[int], None]) -> list[Shard]:
        sharded = layout.sharded(self._table)
        shards = []
        for number in range(len(layout.bounds) + 1):
            _, shard = layout.write(sharded.filter(pc.equal(sharded["shard"], number)))
            shards.append(shard)
            advance(1)
        return shards
