"""A report's content, apart from how it is written down: the page and the Markdown file say the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hasten.sweeps.reports.charts import Figure
from hasten.sweeps.reports.contact import ContactSheet


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A paragraph; a ``caption`` explains what stands above it."""

    text: str
    tone: Literal["plain", "caption"] = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Names and values."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column's heading, and what is to know about its numbers. ``wide`` columns may break their lines."""

    title: str
    note: str = ""
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A cell for each column. ``below`` stands small under the first, ``colour`` marks it in plots."""

    cells: tuple[str, ...]
    kind: Literal["", "winner", "quiet", "bad"] = ""
    colour: str = ""
    below: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A command, or a file."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Names and addresses."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """Content that is there on request."""

    title: str
    blocks: tuple[Block, ...]


Block = Text | Facts | Table | Bullets | Code | Links | Figure | ContactSheet | Folded


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A report: what was asked, the answer, and the rest. ``won`` says that the answer is a clear one."""

    title: str
    question: str
    headline: str
    lead: str
    won: bool
    sections: tuple[Section, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All plots, in order."""
        return tuple(
            block for section in self.sections for block in section.blocks if isinstance(block, Figure)
        )


def illustrated(*figures: Figure | None) -> Iterator[Section]:
    """A section for each plot that there is."""
    for figure in figures:
        if figure is not None:
            yield Section(title=figure.title, blocks=(figure,))
