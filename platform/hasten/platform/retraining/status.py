"""Pipelines in ``hasten status``: what their last ticks decided, and how fresh their champions are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import make_url

from hasten.platform import database
from hasten.platform.retraining import freshness
from hasten.platform.retraining.freshness import Freshness
from hasten.platform.retraining.ledger import Ledger, Tick
from hasten.platform.saying import duration
from hasten.trainers.errors import HastenError


def show(url: str, console: Console) -> list[dict[str, Any]]:
    """Print a line a pipeline, where there are any; what ``hasten status --json`` says of them.

    A database that fails is a line, not a failure: the rest of the status is worth seeing.
    """
    address = make_url(url)
    if address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file():
        return []  # no tick was ever made here
    try:
        engine = database.opened(url)
        kept = freshness.kept(engine)
        last = {name: Ledger(engine, name).last() for name in kept}
    except HastenError as error:
        console.print(Text(f"\npipelines: {error}"), soft_wrap=True)
        return []
    if kept:
        console.print()
        console.print(_table(kept, last))
    return [_plain(name, *found, last[name]) for name, found in kept.items()]


def _table(kept: Mapping[str, tuple[float, Freshness]], last: Mapping[str, Tick | None]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("pipeline", "last tick", "decision", "champion", "age", "new data", "drift"):
        table.add_column(heading, justify="left" if heading in ("pipeline", "decision") else "right")
    now = time.time()
    for name, (at, found) in kept.items():
        tick, age = last[name], found.age(now)
        table.add_row(
            name,
            f"{duration(now - (tick.began if tick else at))} ago",
            (tick.decision or "at work") if tick else "",
            found.champion or "none",
            "" if age is None else duration(age * 3600.0),
            "" if found.new_fraction is None else f"{found.new_fraction:.1%}",
            "" if found.drift is None else f"{found.drift:.3g}",
        )
    return table


def _plain(name: str, at: float, found: Freshness, tick: Tick | None) -> dict[str, Any]:
    return {
        "pipeline": name,
        "decision": tick.decision if tick else None,
        "began": tick.began if tick else None,
        "looked_at": at,
        "model": found.model,
        "champion": found.champion,
        **found.metrics(time.time()),
    }
