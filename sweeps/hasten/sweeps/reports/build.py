"""Write a study's report: one HTML page, the same as Markdown, and pictures of plots on request."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from hasten.sweeps.reports.document import Document
from hasten.sweeps.reports.inputs import StudyReport as StudyReport
from hasten.sweeps.reports.inputs import provenance_of as provenance_of
from hasten.sweeps.reports.inputs import records_of as records_of
from hasten.sweeps.reports.markdown import markdown
from hasten.sweeps.reports.page import html
from hasten.sweeps.reports.search import BEST
from hasten.sweeps.reports.sections import document, overview
from hasten.sweeps.statistics.together import Together

PAGE: Final = "report.html"
TEXT: Final = "report.md"
PICTURES: Final[tuple[str, ...]] = ("learning", "differences", "speed", "history", "parallel")
"""The plots of which there can be a picture beside the page; each takes up to a second."""


def write(report: StudyReport, folder: Path, *, pictures: Collection[str] = ()) -> list[Path]:
    """Write ``report.html``, ``report.md`` and a PNG of each of ``pictures`` into ``folder``.

    A picture that has nothing to show is left out; pictures of an earlier report that were not asked for
    are removed. Returns the files written, the page first.

    Raises ``OSError`` where the folder cannot be written.
    """
    return _write([document(report)], folder, title=report.title, pictures=pictures)


def write_together(together: Together, reports: Sequence[StudyReport], folder: Path) -> list[Path]:
    """One page for several studies: what they say together, and the report of each below."""
    title = " and ".join(report.title for report in reports)
    return _write([overview(together, reports), *map(document, reports)], folder, title=title)


def pictured(report: StudyReport) -> list[str]:
    """The trials whose samples a page has room for: the first of each arm, or of each of the best points."""
    standing = report.standing
    if standing is not None:
        return [place.records[0].trial for place in standing.ranked[:BEST]]
    return list({record.arm: record.trial for record in reversed(report.records)}.values())[::-1]


def _write(
    documents: Sequence[Document], folder: Path, *, title: str, pictures: Collection[str] = ()
) -> list[Path]:
    figures = {figure.name: figure for figure in documents[0].figures}
    drawn = {name: figures[name].picture() for name in PICTURES if name in pictures and name in figures}
    contents = {
        PAGE: html(documents, title=f"{title}: {documents[0].headline}", pictures=drawn).encode(),
        TEXT: markdown(documents).encode(),
        **{f"{name}.png": png for name, png in drawn.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        (folder / f"{name}.png").unlink(missing_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]
