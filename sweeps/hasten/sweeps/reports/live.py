"""A study while it runs, for a terminal or a log: how far it is, what leads, what it has used, what broke."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hasten.sweeps.conducting.ledger import OpenTrial, StudyNote
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.reports import points, trials
from hasten.sweeps.reports.standing import stand
from hasten.sweeps.study import StudySpec

Look = Literal["finished", "stopped", "failed", "running", "open", "waiting"]

_GLYPHS: Final[dict[Look, tuple[str, str]]] = {
    "finished": ("●", "green"),
    "stopped": ("■", "yellow"),
    "failed": ("×", "bold red"),
    "running": ("◐", "cyan"),
    "open": ("◌", "cyan"),
    "waiting": ("·", "dim"),
}
_BAR: Final = 24
_MOST_RUNNING: Final = 12
_MOST_FAILURES: Final = 5
_MOST_BEST: Final = 3
_MOST_GLYPHS: Final = 400


def render(note: StudyNote, records: Sequence[TrialRecord], *, now: float | None = None) -> RenderableType:
    """The state of a study from what its driver last said and from the records of what is over.

    ``records`` are those that count for the study as ``note.spec`` has it. It fits 80 columns.
    """
    now = time.time() if now is None else now
    study = StudySpec.model_validate(note.spec)
    running = {name: one for name, one in note.open.items() if one.running and note.is_alive(now)}
    looks: dict[str, Look] = {name: "running" if name in running else "open" for name in note.open}
    looks |= {record.trial: record.state for record in records}
    parts: list[RenderableType] = [_head(note, now), Text()]
    parts += [_counts(note, looks), *_map(study, looks, records), Text()]
    facts = Table.grid(padding=(0, 2, 0, 0))
    for name, value in (*_spent(note, study), *_to_go(note, records, running)):
        facts.add_row(Text(name, style="dim"), value)
    parts.append(facts)
    for title, table in (
        ("running", _running(running, study.objective.metric)),
        ("best so far", _best(study, records)),
        ("last failures", _failures(records)),
    ):
        if table is not None:
            parts += [Text(), Text(title, style="bold"), table]
    return Group(*parts)


def _head(note: StudyNote, now: float) -> Text:
    if note.state != "running":
        style = "green" if note.state == "finished" else "yellow"
        why = f": {note.why}" if note.why else ""
        return Text.assemble((note.name, "bold"), "  ", (note.state, style), why)
    passed = f"for {_duration(now - note.started)}, on {note.host} (process {note.pid})"
    if note.is_alive(now):
        return Text.assemble((note.name, "bold"), "  ", ("running", "cyan"), f" {passed}")
    silent = f"no sign of life for {_duration(now - note.heartbeat)} from {note.host} (process {note.pid}); "
    text = Text.assemble((note.name, "bold"), "  ", ("lost", "bold red"), f": {silent}")
    return text.append("the same command goes on")


def _counts(note: StudyNote, looks: Mapping[str, Look]) -> Text:
    known = list(looks.values())
    counts = {look: known.count(look) for look in _GLYPHS}
    counts["waiting"] = max(note.trials - len(known), 0)
    over = counts["finished"] + counts["stopped"] + counts["failed"]
    text = Text()
    text.append(_bar(over, note.trials), style="green")
    text.append(f"  {over:,} of {note.trials:,} trials over\n")
    for look, (glyph, style) in _GLYPHS.items():
        if counts[look]:
            text.append(f"{glyph} ", style=style).append(f"{counts[look]:,} {look}   ")
    text.rstrip()
    return text


def _map(
    study: StudySpec, looks: Mapping[str, Look], records: Sequence[TrialRecord]
) -> Iterator[RenderableType]:
    """A sign for each trial: a row per arm with its mean so far, or the points of a search in order."""
    if not study.arms:
        if 0 < len(looks) <= _MOST_GLYPHS:
            yield Text.assemble(*(_GLYPHS[looks[name]] for name in sorted(looks)))
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    for arm in dict.fromkeys([*study.arms, *(record.arm for record in records)]):
        names = [f"{arm}-s{seed}" for seed in study.seeds]
        names += [record.trial for record in records if record.arm == arm and record.trial not in names]
        signs = Text.assemble(*(_GLYPHS[looks.get(name, "waiting")] for name in names))
        table.add_row(Text(arm, overflow="ellipsis"), signs, Text(_mean(study, arm, records), style="dim"))
    yield Text()
    yield table


def _mean(study: StudySpec, arm: str, records: Sequence[TrialRecord]) -> str:
    """The arm's final metric so far; not who leads, which is said when all is over."""
    metric = study.objective.metric
    values = [
        record.metrics[metric]
        for record in records
        if record.arm == arm and record.state == "finished" and metric in record.metrics
    ]
    if not values:
        return ""
    return f"{metric} {sum(values) / len(values):.4g} over {len(values)}"


def _running(running: Mapping[str, OpenTrial], metric: str) -> Table | None:
    if not running:
        return None
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, trial in list(running.items())[:_MOST_RUNNING]:
        share = trial.images / trial.total if trial.total else 0.0
        value = "" if trial.value is None else f"{metric} {trial.value:.4g}"
        again = f"attempt {trial.attempts}" if trial.attempts > 1 else ""
        bar = Text(_bar(trial.images, trial.total, width=_BAR // 2), style="cyan")
        table.add_row(Text(name, overflow="fold"), bar, f"{share:4.0%}", value, Text(again, style="yellow"))
    if len(running) > _MOST_RUNNING:
        table.add_row(Text(f"and {len(running) - _MOST_RUNNING} more", style="dim"))
    return table


def _best(study: StudySpec, records: Sequence[TrialRecord]) -> Table | None:
    """The leading points of a search; arms are not ranked before their time."""
    if study.arms:
        return None
    found = stand(study, records)
    if not found.ranked:
        return None
    table = Table.grid(padding=(0, 2, 0, 0))
    for place in found.ranked[:_MOST_BEST]:
        settings = points.settings_text(place.settings)
        table.add_row(place.point, f"{found.measure} {points.mean_text(place)}", Text(settings, style="dim"))
    return table


def _failures(records: Sequence[TrialRecord]) -> Table | None:
    failed = [record for record in records if record.state == "failed"]
    if not failed:
        return None
    table = Table.grid(padding=(0, 2, 0, 0))
    for record in failed[-_MOST_FAILURES:]:
        told = Text(f"{trials.why(record)} (after {record.images:,} images)", overflow="fold")
        table.add_row(Text(record.trial, style="red"), told)
    if len(failed) > _MOST_FAILURES:
        table.add_row(Text(f"and {len(failed) - _MOST_FAILURES} before", style="dim"))
    return table


def _spent(note: StudyNote, study: StudySpec) -> Iterator[tuple[str, Text]]:
    """What is used, each beside its limit."""
    used, limits = note.spent, study.limits
    currency = study.prices.currency if study.prices else ""
    for name, spent, limit, unit in (
        ("hours", used.hours, limits.hours, ""),
        ("CPU-hours", used.cpu_hours, limits.cpu_hours, ""),
        ("GPU-hours", used.gpu_hours, limits.gpu_hours, ""),
        ("cost", used.cost, limits.cost, f" {currency}"),
    ):
        if not spent and limit is None:
            continue
        text = Text(f"{spent:,.3g}{unit}")
        if limit is not None:
            near = "bold red" if spent >= limit else "yellow" if spent >= 0.8 * limit else ""
            text = Text(f"{spent:,.3g} of {limit:g}{unit}", style=near)
        yield name, text


def _to_go(
    note: StudyNote, records: Sequence[TrialRecord], running: Mapping[str, OpenTrial]
) -> Iterator[tuple[str, Text]]:
    """Time left if the rest is like what is over, as many at a time as now."""
    if not running or not records:
        return
    mean = sum(record.occupied for record in records) / len(records)
    left = note.trials - len(records) - sum(one.images / one.total for one in running.values() if one.total)
    if mean > 0.0 and left > 0.0:
        yield "to go", Text(f"about {_duration(left * mean / len(running))}, {len(running)} at a time")


def _bar(done: float, of: float, *, width: int = _BAR) -> str:
    """Blocks that can also be read in a log without colours."""
    full = round(width * min(done / of, 1.0)) if of else 0
    return "█" * full + "░" * (width - full)


def _duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{max(seconds, 0.0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
