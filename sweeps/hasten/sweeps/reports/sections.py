"""From the values of a study to the content of its report: the question, the answer, and what it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml

from hasten.sweeps.records import TrialRecord
from hasten.sweeps.reports import arms, charts, points, schedules, search, table, trials
from hasten.sweeps.reports.contact import contact_sheet
from hasten.sweeps.reports.document import (
    Block,
    Bullets,
    Code,
    Column,
    Document,
    Facts,
    Folded,
    Links,
    Row,
    Section,
    Table,
    Text,
    illustrated,
)
from hasten.sweeps.reports.inputs import StudyReport
from hasten.sweeps.statistics.together import Together


def document(report: StudyReport) -> Document:
    """The whole report of one study."""
    standing = report.standing
    comparison = report.comparison
    if comparison is not None:
        headline, lead = table.headline(comparison), table.explanation(comparison)
        own, won = arms.sections(comparison, report.records), comparison.winner is not None
    elif standing is not None:
        headline, lead = points.headline(standing), points.explanation(standing)
        own, won = search.sections(report, standing), standing.decided
    else:
        headline, lead, own, won = "No comparison", "", iter(()), False
    return Document(
        title=report.title,
        question=report.question,
        headline=headline,
        lead=lead,
        won=won,
        sections=tuple(section for section in (*own, *_shared(report)) if section.blocks),
    )


def overview(together: Together, reports: Sequence[StudyReport]) -> Document:
    """What several studies say, each by itself and, where they are one experiment, all together."""
    whole = together.whole
    columns = (Column(title="study"), Column(title="answer", wide=True), Column(title="trials", wide=True))
    rows = []
    for report in reports:
        own = document(report)
        ended = trials.summary(report.records, report.planned)
        rows.append(Row(cells=(own.title, own.headline, ended), below=own.question))
    found = [Section(title="The studies", blocks=(Table(columns=columns, rows=tuple(rows)),))]
    if whole is not None:
        found.append(Section(title="All arms against one baseline", blocks=(arms.quality(whole),)))
    if together.notes:
        found.append(Section(title="What cannot be compared", blocks=(Bullets(items=together.notes),)))
    return Document(
        title=" and ".join(report.title for report in reports),
        question="",
        headline="No clear winner across studies" if whole is None else table.headline(whole),
        lead="" if whole is None else table.explanation(whole),
        won=whole is not None and whole.winner is not None,
        sections=tuple(found),
    )


def _shared(report: StudyReport) -> Iterator[Section]:
    """What every report has."""
    if report.specs:
        yield from illustrated(schedules.schedules(report.specs, _colours(report), differing=True))
    totals: dict[str, int] = {}
    for record in report.records:
        totals[record.arm] = max(totals.get(record.arm, 0), record.total)
    sheet = contact_sheet(report.sheets, totals)
    if sheet is not None:
        text = "All start from the same noise, so equal places show the same image to be."
        if sheet.left_out:
            text += f" Left out: {sheet.left_out}."
        yield Section(title="Samples from the same noise", blocks=(sheet, Text(text=text, tone="caption")))
    prices = report.study.prices if report.study else None
    if report.records:
        yield Section(title="How trials ended", blocks=trials.blocks(report.records, report.planned))
        yield Section(title="What it cost", blocks=(trials.cost(report.records, prices),))
    if report.expectation:
        yield Section(title="What was expected beforehand", blocks=(Text(text=report.expectation),))
    notes = dict.fromkeys([*(report.comparison.notes if report.comparison else ()), *report.notes])
    if notes:
        yield Section(title="What this cannot tell", blocks=(Bullets(items=tuple(notes)),))
    yield Section(title="How to reproduce it", blocks=tuple(_reproduction(report)))


def _colours(report: StudyReport) -> dict[str, str]:
    """The colours of what is drawn from recipes, as elsewhere on the page."""
    known = charts.palette(report.comparison) if report.comparison else {}
    free = iter((*charts.COLOURS, charts.GREY, "#2b3036") * len(report.specs))
    return {name: known.get(name) or next(free) for name in report.specs}


def _reproduction(report: StudyReport) -> Iterator[Block]:
    links = [(name, value) for name, value in report.links.items() if _is_address(value)]
    for name, value in report.links.items():
        if (name, value) not in links:
            yield Code(text=value)
    if links:
        yield Links(pairs=tuple(links))
    facts = [(key, value) for key, value in report.provenance.items() if value]
    if facts:
        yield Facts(pairs=tuple(facts))
    if report.study is not None:
        file = yaml.safe_dump(
            report.study.model_dump(mode="json", exclude_defaults=True),
            sort_keys=False,
            default_flow_style=None,
            width=100,
            allow_unicode=True,
        )
        yield Folded(title="The study's file, as it was resolved", blocks=(Code(text=file),))
    if report.records:
        yield Folded(title="Runs and their fingerprints", blocks=(_fingerprints(report.records),))


def _fingerprints(records: Sequence[TrialRecord]) -> Block:
    return Code(text="\n".join(f"{record.trial}  {record.run}" for record in records))


def _is_address(text: str) -> bool:
    """Escaping alone would let a ``javascript:`` link through."""
    return text.startswith(("http://", "https://"))
