"""A report as Markdown, for a pull request: the same facts, its plots left to the page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from hasten.sweeps.reports.charts import Figure
from hasten.sweeps.reports.contact import ContactSheet
from hasten.sweeps.reports.document import (
    Block,
    Bullets,
    Code,
    Document,
    Facts,
    Folded,
    Links,
    Table,
    Text,
)

_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>#|~@$!&])")
_MOST_ROWS: Final = 60


def markdown(documents: Sequence[Document]) -> str:
    """The reports below each other; texts of users stay texts."""
    return "\n".join(line for document in documents for line in _document(document))


def escape(text: str) -> str:
    """A text in one line of Markdown, in which nothing means anything."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _document(document: Document) -> Iterator[str]:
    yield from (f"# {escape(document.title)}: {escape(document.headline)}", "")
    if document.question:
        yield from (f"> {escape(document.question)}", "")
    if document.lead:
        yield from (escape(document.lead), "")
    for section in document.sections:
        lines = [line for block in section.blocks for line in _block(block)]
        if lines:
            yield from (f"## {escape(section.title)}", "", *lines)


def _block(block: Block) -> Iterator[str]:
    match block:
        case Text(tone="caption"):
            yield from (f"<sub>{escape(block.text)}</sub>", "")
        case Text():
            yield from (escape(block.text), "")
        case Facts() | Links():
            yield from (f"- {escape(name)}: {escape(value)}" for name, value in block.pairs)
            yield ""
        case Bullets():
            yield from (f"- {escape(item)}" for item in block.items)
            yield ""
        case Table():
            yield from _table(block)
        case Code():
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
            yield from (fence, block.text.rstrip("\n"), fence, "")
        case Folded():
            yield from ("<details>", f"<summary>{escape(block.title)}</summary>", "")
            for inner in block.blocks:
                yield from _block(inner)
            yield from ("</details>", "")
        case Figure() | ContactSheet():
            pass  # pictures are in the page


def _table(table: Table) -> Iterator[str]:
    yield _line(
        [f"{column.title} ({column.note})" if column.note else column.title for column in table.columns]
    )
    yield "|" + " --- |" * len(table.columns)
    for row in table.rows[:_MOST_ROWS]:
        first = f"{row.cells[0]}: {row.below}" if row.below else row.cells[0]
        yield _line([first, *row.cells[1:]], bold=row.kind == "winner")
    if len(table.rows) > _MOST_ROWS:
        yield from ("", f"{len(table.rows) - _MOST_ROWS:,} more rows are in the page.")
    yield ""


def _line(cells: Sequence[str], *, bold: bool = False) -> str:
    texts = [escape(cell) for cell in cells]
    return "| " + " | ".join(f"**{text}**" if bold and text else text for text in texts) + " |"
