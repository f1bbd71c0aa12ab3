"""Pictures of trials against progress, from the same noise: what to show of them, and small enough."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from PIL import Image

from hasten.sweeps.reports import charts

Pictures = Mapping[int, bytes]
"""PNG files by the images seen when they were made."""

MOST_TRIALS: Final = 8
_MOST_MOMENTS: Final = 6
_HEAVY: Final = 40_000  # bytes beyond which a picture is made smaller
_WIDEST: Final = 320  # pixels then


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One picture as a data URI, and of what."""

    trial: str
    images: int
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactSheet:
    """A row per trial, a column per moment; a cell is None where a trial has no picture of that moment.

    ``left_out`` says what is not shown.
    """

    moments: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    left_out: str = ""


def contact_sheet(pictures: Mapping[str, Pictures], totals: Mapping[str, int]) -> ContactSheet | None:
    """Up to eight trials at up to six moments, the first and the last among them; None without pictures.

    ``totals`` are the budgets in images: moments are equal progress, so that runs of different lengths
    stand beside each other.
    """
    known = {name: found for name, found in pictures.items() if found}
    shown = dict(list(known.items())[:MOST_TRIALS])
    by_progress = {
        name: {round(100 * images / max(totals.get(name, 0), *found, 1)): images for images in found}
        for name, found in shown.items()
    }
    moments = sorted({moment for found in by_progress.values() for moment in found})
    if not moments:
        return None
    kept = [moments[index] for index in charts.evenly(len(moments), _MOST_MOMENTS)]
    rows = []
    for name, found in shown.items():
        cells = [
            Cell(trial=name, images=images, address=address_of(found[images]))
            if (images := by_progress[name].get(moment)) is not None
            else None
            for moment in kept
        ]
        rows.append((name, tuple(cells)))
    left = [f"{len(known) - len(shown)} more trials"] if len(known) > len(shown) else []
    left += [f"{len(moments) - len(kept)} moments between"] if len(moments) > len(kept) else []
    return ContactSheet(
        moments=tuple(f"{moment} %" for moment in kept), rows=tuple(rows), left_out=" and ".join(left)
    )


def address_of(png: bytes) -> str:
    """The picture as a data URI; a heavy one smaller, and as WebP."""
    kind, content = "png", png
    if len(png) > _HEAVY:
        kind, content = "webp", _smaller(png)
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def _smaller(png: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB")
        small.thumbnail((_WIDEST, _WIDEST))
        small.save(buffer, format="WEBP", quality=80)
    return buffer.getvalue()
