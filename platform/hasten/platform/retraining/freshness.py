"""How fresh a champion is: its age, and what has happened to the data since its snapshot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Engine, Float, String, Table, Text, delete, insert, select

from hasten.platform import database
from hasten.platform.registry import RUN_URI, Version
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.datasets.data import Dataset
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.job import Job
from hasten.trainers.metrics import drift
from hasten.trainers.specs import RunSpec

MADE: Final = "hasten.made"
"""The tag of a version with the time at which it was made, in seconds since 1970."""

_FRESHNESS: Final = Table(
    "hasten_freshness",
    database.TABLES,
    Column("pipeline", String(200), primary_key=True),
    Column("at", Float(53), nullable=False),
    Column("tick", BigInteger),
    Column("found", Text, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """What a tick found; None for what nobody can tell.

    Attributes:
        model: the registered model.
        champion: its version.
        champion_made: when, in seconds since 1970.
        images: of the data now, in all.
        new_images: of these, how many the champion's snapshot did not have.
        drift: Fréchet distance between features of the data now and of the champion's snapshot.
        drift_floor: the same between two halves of the champion's snapshot: less is nothing.
    """

    model: str
    champion: str | None = None
    champion_made: float | None = None
    images: int | None = None
    new_images: int | None = None
    drift: float | None = None
    drift_floor: float | None = None

    @property
    def new_fraction(self) -> float | None:
        """The share of the data that is new to the champion, in [0, 1]."""
        return self.new_images / self.images if self.images and self.new_images is not None else None

    def age(self, now: float) -> float | None:
        """Hours since the champion was made."""
        return None if self.champion_made is None else (now - self.champion_made) / 3600.0

    def metrics(self, now: float) -> dict[str, float]:
        """What is known, by the names of the tracker."""
        known = {
            "freshness/new_fraction": self.new_fraction,
            "freshness/new_images": self.new_images,
            "freshness/drift": self.drift,
            "freshness/drift_floor": self.drift_floor,
            "freshness/champion_age_hours": self.age(now),
        }
        return {key: float(value) for key, value in known.items() if value is not None}


def measured(model: str, champion: Version | None, job: Job) -> Freshness:
    """Look at a champion and at the data as they are now.

    Raises:
        Fault: the storage failed.
        ConfigError: the features that the recipe is evaluated by are not there.
    """
    source = sources.opened(job.data_uri, job.data_digest)
    images = source.manifest.count if isinstance(source, Dataset) else None
    if champion is None:
        return Freshness(model=model, images=images)
    made = champion.tags.get(MADE)
    found = Freshness(
        model=model,
        champion=champion.number,
        champion_made=float(made) if made else None,
        images=images,
    )
    moved = _moved(job, source, champion)
    if moved is None:
        return found
    known = {"new_images": moved.new, "drift": moved.distance, "drift_floor": moved.floor}
    known = {key: value for key, value in known.items() if math.isfinite(value)}
    return Freshness(**{**asdict(found), **known})


def new_since(job: Job, digest: str, uri: str) -> int | None:
    """How many images of a job's data were not in the snapshot of this digest; None where it is gone."""
    source = sources.opened(job.data_uri, job.data_digest)
    before = _snapshot(uri, digest)
    if not isinstance(source, Dataset) or before is None:
        return None
    return drift.unseen(source, before)


def _moved(job: Job, source: sources.Source, champion: Version) -> drift.Drift | None:
    result = RunStore(champion.tags[RUN_URI]).result() if RUN_URI in champion.tags else None
    if result is None or not isinstance(source, Dataset):
        return None
    if result.data_digest == job.data_digest:
        return drift.Drift(images=source.manifest.count, new=0, distance=0.0, floor=math.nan)
    theirs = RunSpec.model_validate(result.spec)
    storage = champion.tags[RUN_URI].rpartition("/runs/")[0]
    places = (job.data_uri, sources.address(theirs, storage))  # data are told by digest: names may change
    before = next((found for place in places if (found := _snapshot(place, result.data_digest))), None)
    if before is None or before.manifest.shape != source.manifest.shape:
        return None
    return drift.drift(source, before, job.spec.eval.samples.features)


def _snapshot(uri: str, digest: str) -> Dataset | None:
    try:
        found = sources.opened(uri, digest)
    except (ConfigError, Fault):
        return None
    return found if isinstance(found, Dataset) else None


def keep(engine: Engine, pipeline: str, found: Freshness, tick: int | None) -> None:
    """Remember what a tick found, for whoever asks later without looking at any data.

    Raises:
        Fault: the database failed.
    """
    with database.writing(engine) as connection:
        connection.execute(delete(_FRESHNESS).where(_FRESHNESS.c.pipeline == pipeline))
        row = {"pipeline": pipeline, "at": database.now(connection), "tick": tick}
        connection.execute(insert(_FRESHNESS).values({**row, "found": json.dumps(asdict(found))}))


def kept(engine: Engine) -> Mapping[str, tuple[float, Freshness]]:
    """When each pipeline was last looked at, in seconds since 1970, and what was found.

    Raises:
        Fault: the database failed.
    """
    with database.writing(engine) as connection:
        rows = connection.execute(select(_FRESHNESS).order_by(_FRESHNESS.c.pipeline)).mappings().all()
    return {row["pipeline"]: (row["at"], _read(json.loads(row["found"]))) for row in rows}


def _read(found: dict[str, Any]) -> Freshness:
    known = Freshness.__dataclass_fields__
    return Freshness(**{key: value for key, value in found.items() if key in known})
