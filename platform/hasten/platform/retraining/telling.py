"""What people are shown of a pipeline: what a tick would do, and what ticks have done."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hasten.platform import database, settings
from hasten.platform.connection import connected
from hasten.platform.registry import CALIBRATION, Registry
from hasten.platform.retraining import costs
from hasten.platform.retraining.assessment import Assessment, assess
from hasten.platform.retraining.costs import Cost
from hasten.platform.retraining.ledger import Ledger
from hasten.platform.retraining.pipeline import Pipeline
from hasten.platform.retraining.triggers import Due
from hasten.platform.saying import duration


def dry_run(pipeline: Pipeline, *, forced: bool, console: Console) -> dict[str, Any]:
    """Explain what a tick would do and cost; what ``hasten retrain --dry-run --json`` prints.

    Raises:
        ConfigError: the pipeline's recipe, study or data do not exist or do not fit.
        Fault: a service failed.
    """
    services = connected(console, tracking=True)
    ledger = Ledger(database.opened(settings.load().database), pipeline.name)
    found = assess(pipeline, services, ledger, forced=forced, console=console)
    versions = Registry(services.tracking_uri, pipeline.model).versions()
    cost = calibration = None
    if isinstance(found.due, Due) and found.known is None:
        cost = costs.known(found.source.job, versions)
        if _calibrates(pipeline, found):
            calibration = costs.known(found.source.job, versions, runs=pipeline.gate.calibration_seeds)
    console.print(_explained(pipeline, found, cost, calibration))
    decision = "due" if isinstance(found.due, Due) else found.due.decision
    return {
        "pipeline": pipeline.name,
        "key": found.key,
        "decision": decision,
        "reason": found.due.reason,
        "version": found.known.number if found.known else None,
        "images": found.source.job.spec.budget.images,
        "cost": None if cost is None else asdict(cost),
        "freshness": asdict(found.freshness),
    }


def history(pipeline: Pipeline, *, console: Console) -> dict[str, Any]:
    """The ledger of a pipeline: printed, and what ``hasten retrain --history --json`` prints.

    Raises:
        ConfigError: the database refuses us.
        Fault: the database failed.
    """
    entries = Ledger(database.opened(settings.load().database), pipeline.name).entries()
    table = Table(title=f"pipeline {pipeline.name}", title_justify="left", box=None, pad_edge=False)
    for heading in ("began", "took", "decision", "version", "why"):
        table.add_column(heading, justify="right" if heading == "took" else "left")
    for each in entries:
        began = datetime.fromtimestamp(each.began, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        took = f"{each.ended - each.began:,.0f} s" if each.ended is not None else ""
        table.add_row(began, took, each.decision or "at work", each.version or "", Text(each.reason or ""))
    console.print(table if entries else f"pipeline {pipeline.name}: no tick yet", markup=False)
    return {"pipeline": pipeline.name, "ticks": [asdict(each) for each in entries]}


def _calibrates(pipeline: Pipeline, found: Assessment) -> bool:
    """Whether seeds would have to be tried out before a challenger can win."""
    asked = pipeline.gate.calibration_seeds > 0 and pipeline.origin.study is None
    return asked and found.champion is not None and CALIBRATION not in found.champion.tags


def _explained(pipeline: Pipeline, found: Assessment, cost: Cost | None, calibration: Cost | None) -> Table:
    table = Table(title=f"pipeline {pipeline.name}", title_justify="left", box=None, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    job = found.source.job
    decision = "would train" if isinstance(found.due, Due) else found.due.decision
    table.add_row("decision", Text(f"{decision}: {found.due.reason}"))
    table.add_row("data", Text(_data(found)))
    table.add_row("champion", Text(_champion(found)))
    if not isinstance(found.due, Due):
        return table
    if found.known is not None:
        table.add_row(
            "is left", Text(f"version {found.known.number} is trained, and waits for its judgement")
        )
        return table
    warm = ", beginning with the champion's weights" if pipeline.origin.weights == "champion" else ""
    table.add_row("trains", Text(f"{found.source.described}: {job.spec.budget.images:,} images{warm}"))
    table.add_row("cost", Text(str(cost) if cost else "not known before a run like it was finished"))
    if _calibrates(pipeline, found):
        seeds = f"{pipeline.gate.calibration_seeds} runs under other seeds, once, if it looks better"
        table.add_row("calibration", Text(f"{seeds}: {calibration}" if calibration else seeds))
    table.add_row("gate", Text(_gate(pipeline)))
    return table


def _data(found: Assessment) -> str:
    job, fresh = found.source.job, found.freshness
    told = f"{job.spec.data.source}, digest {job.data_digest[:12]}"
    if fresh.images is not None:
        told += f", {fresh.images:,} images"
    if fresh.new_fraction is not None:
        told += f", {fresh.new_fraction:.1%} new to the champion"
    if fresh.drift is not None and fresh.drift_floor is not None:
        told += f", drift {fresh.drift:.3g} (between halves of its snapshot {fresh.drift_floor:.3g})"
    return told


def _champion(found: Assessment) -> str:
    if found.champion is None:
        return "none"
    age = found.freshness.age(time.time())
    old = "" if age is None else f", {duration(age * 3600.0)} old"
    return f"version {found.champion.number}{old}"


def _gate(pipeline: Pipeline) -> str:
    gate = pipeline.gate
    return (
        f"{gate.metric} lower by {gate.deviations:g} or more standard deviations between seeds, "
        f"as {gate.confidence:.0%} confidence needs"
    )
