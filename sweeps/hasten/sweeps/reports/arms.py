"""The part of a report that belongs to a comparison: its arms, their differences, their speed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from hasten.sweeps.records import TrialRecord
from hasten.sweeps.reports import charts, comparing, points, table
from hasten.sweeps.reports.document import Block, Column, Facts, Row, Section, Table, Text, illustrated
from hasten.sweeps.reports.learning import Line, learning
from hasten.sweeps.statistics.comparison import Arm, Comparison
from hasten.trainers.specs import flatten


def sections(comparison: Comparison, records: Sequence[TrialRecord]) -> Iterator[Section]:
    """What there is to say of arms; ``records`` have their curves."""
    yield Section(title="The arms", blocks=(quality(comparison), Text(text=_CAPTION, tone="caption")))
    yield Section(title="What was compared", blocks=(_facts(comparison, records),))
    yield from illustrated(_learning(comparison, records), comparing.differences(comparison))
    speed = comparing.speed(comparison)
    if speed is not None:
        yield Section(title=speed.title, blocks=(_pace(comparison), speed))
    if comparison.interactions:
        yield Section(title="Do changes add up?", blocks=tuple(_interactions(comparison)))


def quality(comparison: Comparison) -> Table:
    """Every arm with its mean and its difference to the baseline."""
    level = table.percent(comparison)
    columns = (
        Column(title="arm", wide=True),
        Column(title="seeds"),
        Column(title=f"{comparison.metric} at the end", note=f"mean ± {level} interval"),
        Column(title=f"minus {comparison.baseline}", note=f"± {level} interval"),
        Column(title="p", note="Holm-adjusted"),
        Column(title="more seeds", note="to settle it"),
    )
    rows = [
        _row(
            comparison,
            arm,
            str(arm.n) if arm.n == arm.expected else f"{arm.n} of {arm.expected}",
            table.mean_text(arm),
            *table.against_text(comparison, arm),
            table.settle_text(arm),
            below=points.settings_text(
                {key: "default" if value is None else value for key, value in arm.changes.items()}
            ),
        )
        for arm in comparison.arms
    ]
    return Table(columns=columns, rows=tuple(rows))


def _pace(comparison: Comparison) -> Table:
    """What the target costs every arm."""
    level = table.percent(comparison)
    columns = (
        Column(title="arm", wide=True),
        Column(title="reached", note="the target"),
        Column(title="images to it", note="Kaplan-Meier median"),
        Column(title="speed-up in images", note=f"[{level} interval]"),
        Column(title="speed-up in seconds", note=f"[{level} interval]"),
    )
    rows = [
        _row(
            comparison,
            arm,
            table.reached_text(arm),
            table.median_text(arm),
            table.ratio_text(arm.speedup),
            table.ratio_text(arm.seconds_speedup),
        )
        for arm in comparison.arms
    ]
    return Table(columns=columns, rows=tuple(rows))


def _row(comparison: Comparison, arm: Arm, *cells: str, below: str = "") -> Row:
    quiet = arm.name == comparison.baseline or comparison.is_control(arm)
    return Row(
        cells=(arm.name, *cells),
        kind="winner" if arm.name == comparison.winner else "quiet" if quiet else "",
        colour=charts.palette(comparison)[arm.name],
        below=below,
    )


def _learning(comparison: Comparison, records: Sequence[TrialRecord]) -> charts.Figure | None:
    colours, dashes = charts.palette(comparison), charts.dashes(comparison)
    lines = [
        Line(
            name=arm.name,
            colour=colours[arm.name],
            dash=dashes[arm.name],
            records=[record for record in records if record.arm == arm.name],
        )
        for arm in comparison.arms
    ]
    final = comparison.reference.mean if comparison.target == "baseline" else comparison.target
    target = float(final) if isinstance(final, float | int) else None
    return learning(lines, metric=comparison.metric, alpha=comparison.alpha, target=target)


def _interactions(comparison: Comparison) -> Iterator[Block]:
    columns = (
        Column(title="changes"),
        Column(title="together in"),
        Column(title="beyond their sum", note=f"± {table.percent(comparison)} interval"),
        Column(title="p", note="not adjusted"),
    )
    rows = []
    for one in comparison.interactions:
        beyond = one.contrast
        text = table.plus_minus(beyond.mean, table.half(beyond.low, beyond.high), signed=True)
        rows.append(Row(cells=(f"{one.first} and {one.second}", one.both, text, table.p_text(beyond.p))))
    yield Table(columns=columns, rows=tuple(rows))
    caption = "What two changes do together beyond the sum of what each does alone; at 0 they just add up."
    yield Text(text=caption, tone="caption")


def _facts(comparison: Comparison, records: Sequence[TrialRecord]) -> Facts:
    better = "lower" if comparison.mode == "min" else "higher"
    target = comparison.target
    own = f"{comparison.baseline}'s own final value at the same seed"
    pairs = (
        ("baseline", comparison.baseline),
        ("metric", f"{comparison.metric}, {better} is better, at the end of a run"),
        ("target", "" if target is None else own if target == "baseline" else f"{target:g}"),
        ("seeds", ", ".join(str(seed) for seed in comparison.reference.outcomes)),
        ("images a run", ", ".join(f"{total:,}" for total in sorted({record.total for record in records}))),
        ("evaluated", "; ".join(_words(text) for text in comparison.conditions.evaluations)),
    )
    return Facts(pairs=tuple((name, value) for name, value in pairs if value))


def _words(text: str) -> str:
    """A canonical JSON object as ``key value`` pairs."""
    return ", ".join(f"{key} {value}" for key, value in flatten(json.loads(text)).items())


_CAPTION: Final = (
    "Below an arm's name: where its recipe differs from the baseline's. Intervals are Student's t for one "
    "arm at a time; the verdict also corrects for the number of arms tried (Holm) and never names a winner "
    "by fewer than three seeds. Differences are between runs of one seed, which share data order and noise, "
    "so they are known better than the means."
)
