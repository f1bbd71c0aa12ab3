"""How fresh champions are: their age and what is new in the data, as the last tick found it.

Light to import: `hasten status` shows it without looking at any data. ``observing`` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Engine, Float, String, Table, Text, delete, insert, select

from hasten.platform import database

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
