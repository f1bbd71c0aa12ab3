"""What a tick finds before it does anything: the data, the champion, and whether to train."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Final

from rich.console import Console

from hasten.platform.registry import Registry, Version
from hasten.platform.retraining import observing, origins, triggers
from hasten.platform.retraining.freshness import Freshness
from hasten.platform.retraining.ledger import Ledger
from hasten.platform.retraining.origins import Source
from hasten.platform.retraining.pipeline import Pipeline
from hasten.platform.retraining.triggers import Changed, Due, Facts, NotDue
from hasten.platform.services import Services

KEY: Final = "hasten.retrain.key"
DECISION: Final = "hasten.retrain.decision"
RECIPE: Final = "hasten.retrain.recipe"
DIGEST: Final = "hasten.data.digest"
VERSION: Final = "hasten.version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What a tick is about.

    Attributes:
        source: what it would train from.
        champion: None where there is none.
        freshness: of the champion.
        due: whether to train, and why.
        key: what a version made now is made from. Equal keys make equal versions.
        known: the version that was made for this key; it may wait for its judgement.
    """

    source: Source
    champion: Version | None
    freshness: Freshness
    due: Due | NotDue
    key: str
    known: Version | None


def assess(
    pipeline: Pipeline,
    services: Services,
    ledger: Ledger,
    *,
    forced: bool,
    console: Console,
) -> Assessment:
    """Look at everything that a decision rests on; trains nothing.

    Raises:
        ConfigError: the pipeline's recipe, study or data do not exist or do not fit.
        Fault: a service failed.
    """
    registry = Registry(services.tracking_uri, pipeline.model)
    versions, champion = registry.versions(), registry.champion()
    source = origins.source(pipeline, champion, services, console=console)
    found = observing.measured(pipeline.model, champion, source.job)
    key = key_of(source, pipeline.origin.weights)
    last = next((version for version in versions if DECISION in version.tags and KEY in version.tags), None)
    facts = Facts(
        now=datetime.now(UTC),
        forced=forced,
        known=_known(key, versions, ledger),
        changed=_changed(source, last),
        new_images=_new_images(source, last),
        champion=None if champion is None else champion.number,
        age=found.age(time.time()),
    )
    due = triggers.decide(pipeline.trigger, facts)
    if isinstance(due, Due) and due.window:
        key = key_of(source, pipeline.origin.weights, due.window)
        if known := _known(key, versions, ledger):
            due = NotDue(decision="unchanged", reason=f"{known} ({due.window})")
    made = next((version for version in versions if version.tags.get(KEY) == key), None)
    return Assessment(source=source, champion=champion, freshness=found, due=due, key=key, known=made)


def key_of(source: Source, weights: str, window: str = "") -> str:
    """What a version is made from: recipe, data, first weights, our own version, perhaps a window of time."""
    parts = (source.recipe, source.job.data_digest, weights, metadata.version("hasten"), window)
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:12]


def _known(key: str, versions: list[Version], ledger: Ledger) -> str | None:
    """What was decided about a key before: the registry knows of versions, the ledger of what became none."""
    for version in versions:
        if version.tags.get(KEY) == key and DECISION in version.tags:
            return (
                f"version {version.number} was made from this data and recipe, and {version.tags[DECISION]}"
            )
    tick = ledger.decided(key)
    if tick is None or tick.version is not None:
        return None
    return f"this data and recipe were {tick.decision}: {tick.reason}"


def _changed(source: Source, last: Version | None) -> frozenset[Changed]:
    """What differs from what the last decision was about; without one, the recipe is new."""
    if last is None:
        return frozenset({"recipe"})
    now: dict[Changed, tuple[str, str]] = {
        "data": (DIGEST, source.job.data_digest),
        "recipe": (RECIPE, source.recipe),
        "hasten": (VERSION, metadata.version("hasten")),
    }
    return frozenset(what for what, (tag, value) in now.items() if last.tags.get(tag) != value)


def _new_images(source: Source, last: Version | None) -> int | None:
    if last is None or DIGEST not in last.tags:
        return None
    if last.tags[DIGEST] == source.job.data_digest:
        return 0
    return observing.new_since(source.job, last.tags[DIGEST], source.job.data_uri)
