"""How the trials of a study ended, what they cost, and what was saved: nothing is swept under the mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from hasten.sweeps.records import FailureKind, TrialRecord
from hasten.sweeps.reports.document import Block, Column, Facts, Folded, Row, Table, Text
from hasten.sweeps.study import Prices

FAILURES: Final[dict[FailureKind, str]] = {
    "diverged": "diverged",
    "memory": "out of memory",
    "lost": "lost again and again",
    "data": "wrong data or configuration",
    "program": "an error in a program",
}
_SHOWN: Final = 40
"""Rows in plain sight; the others are there on request."""
_MOST: Final = 400
"""Rows that are written at all."""
_COLUMNS: Final = (
    Column(title="trial"),
    Column(title="ended"),
    Column(title="why", wide=True),
    Column(title="images", note="of the budget"),
    Column(title="attempts"),
    Column(title="outages"),
    Column(title="went on from"),
)


def summary(records: Sequence[TrialRecord], planned: int | None) -> str:
    """``18 trials: 15 finished, 2 stopped early (asha), 1 failed (diverged); 3 have not run.``"""
    states = Counter(record.state for record in records)
    rules = Counter(record.verdict.rule for record in records if record.verdict)
    failures = Counter(FAILURES[record.failure] for record in records if record.failure)
    parts = [
        f"{states['finished']:,} finished" if states["finished"] else "",
        f"{states['stopped']:,} stopped early{_named(rules)}" if states["stopped"] else "",
        f"{states['failed']:,} failed{_named(failures)}" if states["failed"] else "",
    ]
    count = max(planned or 0, len(records))
    if not count:
        return "No trials yet."
    told = ", ".join(part for part in parts if part)
    missing = count - len(records)
    waiting = f"{missing:,} {'has' if missing == 1 else 'have'} not ended yet" if missing else ""
    trials = "1 trial" if count == 1 else f"{count:,} trials"
    return f"{trials}: {'; '.join(part for part in (told, waiting) if part)}."


def notable(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials whose story is worth a row, failed ones first, then stopped ones."""
    order = {"failed": 0, "stopped": 1, "finished": 2}
    told = [record for record in records if record.state != "finished" or _had_adventures(record)]
    return sorted(told, key=lambda record: (order[record.state], record.trial))


def blocks(records: Sequence[TrialRecord], planned: int | None) -> tuple[Block, ...]:
    """A sentence on all, and a table of those that did not simply finish."""
    found: list[Block] = [Text(text=summary(records, planned))]
    rows = tuple(_row(record) for record in notable(records))
    if rows:
        found.append(Table(columns=_COLUMNS, rows=rows[:_SHOWN]))
    if len(rows) > _SHOWN:
        title = f"{len(rows) - _SHOWN:,} more"
        rest: list[Block] = [Table(columns=_COLUMNS, rows=rows[_SHOWN:_MOST])]
        if len(rows) > _MOST:
            rest.append(Text(text=f"The last {len(rows) - _MOST:,} are left out of this page."))
        found.append(Folded(title=title, blocks=tuple(rest)))
    return tuple(found)


def why(record: TrialRecord) -> str:
    """What ended a trial, as a sentence; nothing for one that ran to its end."""
    if record.verdict is not None:
        return record.verdict.reason
    kind = FAILURES[record.failure] if record.failure else ""
    return ": ".join(part for part in (kind, record.error) if part)


def cost(records: Sequence[TrialRecord], prices: Prices | None) -> Facts:
    """Hours, money, and what was not computed because it was stopped or known already."""
    cpu_hours = sum(record.occupied * record.cpus for record in records) / 3600.0
    gpu_hours = sum(record.occupied * record.gpus for record in records) / 3600.0
    shared = sum(record.forked_images for record in records)
    spared = sum(record.total - record.images for record in records if record.state == "stopped")
    seen = sum(record.images for record in records)
    pairs = [("CPU-hours", f"{cpu_hours:.3g}")]
    if not any(record.parent for record in records):  # a member of a population saw its parents' images too
        pairs.insert(0, ("images", f"{seen - shared:,} computed"))
    if gpu_hours:
        pairs.append(("GPU-hours", f"{gpu_hours:.3g}"))
    if prices is not None:
        money = cpu_hours * prices.cpu_hour + gpu_hours * prices.gpu_hour
        pairs.append(("money", f"{money:,.2f} {prices.currency}"))
    if shared:
        saved = f"{shared:,} images ({shared / seen:.0%}) taken over from trials that had computed the same"
        pairs.append(("shared prefixes", saved))
    if spared:
        pairs.append(("early stopping", f"{spared:,} images ({spared / (seen + spared):.0%}) not computed"))
    return Facts(pairs=tuple(pairs))


def _had_adventures(record: TrialRecord) -> bool:
    return record.attempts > 1 or record.lost > 0


def _row(record: TrialRecord) -> Row:
    origin = ""
    if record.forked_from:
        origin = f"{record.forked_from} at {record.forked_images:,}"
    elif record.parent:
        origin = record.parent
    share = f"{record.images / record.total:.0%}" if record.total else "–"
    return Row(
        cells=(
            record.trial,
            record.state,
            why(record),
            f"{record.images:,} ({share})",
            str(record.attempts),
            str(record.lost) if record.lost else "",
            origin,
        ),
        kind="bad" if record.state == "failed" else "",
    )


def _named(counts: Counter[str]) -> str:
    if not counts:
        return ""
    if len(counts) == 1:
        return f" ({next(iter(counts))})"
    return f" ({', '.join(f'{count} {name}' for name, count in counts.most_common())})"
