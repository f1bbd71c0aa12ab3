"""The points of a search in words and numbers, and as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hasten.sweeps.reports.standing import LEAST_SEEDS, Standing
from hasten.sweeps.reports.table import NOTHING, p_text, plus_minus
from hasten.sweeps.statistics.intervals import Estimate
from hasten.sweeps.statistics.objectives import Place

_STATES: Final = {
    "partial": "lack a seed or an end",
    "infeasible": "are out of bounds",
    "stopped": "were stopped early",
    "failed": "failed",
}


def headline(standing: Standing) -> str:
    """The answer of a search as it opens a report; never the name of a point that luck may have put first."""
    best = standing.best
    if best is None:
        return "No point counts yet" if standing.places else "Nothing was tried yet"
    return f"{best.point} is best" if standing.decided else "No clear best point"


def explanation(standing: Standing) -> str:
    """What the first place rests on, in a few plain sentences."""
    best = standing.best
    if best is None:
        return f"Of {_count(len(standing.places), 'point')}, {rest(standing)}." if standing.places else ""
    better = "lowest" if standing.mode == "min" else "highest"
    seeds = _count(len(best.records), "seed")
    sentences = [
        f"{best.point} has the {better} {standing.measure} of {_count(len(standing.ranked), 'point')} that "
        f"count: {mean_text(best)} over {seeds} ({settings_text(best.settings) or 'as the base'})."
    ]
    if standing.lead is not None:
        sentences.append(_against_second(standing, standing.ranked[1], standing.lead))
    return " ".join(sentences)


def rest(standing: Standing) -> str:
    """What became of the points that do not count: ``3 failed, 12 were stopped early``."""
    states = [place.state for place in standing.places]
    told = [f"{states.count(state)} {words}" for state, words in _STATES.items() if state in states]
    return ", ".join(reversed(told))


def render(standing: Standing, *, most: int = 10) -> RenderableType:
    """The best points as a table, the answer below it."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("point", no_wrap=True)
    table.add_column(Text(standing.measure), overflow="fold")
    for goal in standing.study.pareto:
        table.add_column(Text(goal.metric), overflow="fold")
    table.add_column("seeds", justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold", ratio=1)
    for place in standing.ranked[:most]:
        first = place is standing.best and standing.decided
        cells = [_name(standing, place), mean_text(place), *goal_texts(place), str(len(place.records))]
        cells.append(settings_text(place.settings))
        table.add_row(*(Text(cell, style="bold green" if first else "") for cell in cells))
    below = f"Beside these, {others}." if (others := rest(standing)) else ""
    if standing.study.pareto:
        below = f"* on the Pareto front. {below}"
    return Group(
        Text(f"{standing.study.name}: best points by {standing.measure}", style="bold"),
        Text(),
        table,
        Text(),
        Text(headline(standing), style="bold green" if standing.decided else "bold yellow"),
        Text(explanation(standing)),
        Text(below, style="dim"),
    )


def mean_text(place: Place) -> str:
    """``0.1234 ± 0.0056``; with a mark where seeds that missed the target are in it as a penalty."""
    if place.mean is None:
        return NOTHING
    text = plus_minus(place.mean.mean, _half(place.mean))
    return f"{text} ({place.censored} of {len(place.records)} missed it)" if place.censored else text


def goal_texts(place: Place) -> list[str]:
    """The means of the goals beside the objective."""
    return [NOTHING if value is None else f"{value:.4g}" for value in place.goals[1:]]


def settings_text(settings: Mapping[str, Any]) -> str:
    """``optimizer.lr=0.002, curriculum.kind=clts``."""
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in settings.items()
    )


def _name(standing: Standing, place: Place) -> str:
    return f"{place.point}*" if standing.study.pareto and place.front else place.point


def _against_second(standing: Standing, second: Place, lead: Estimate) -> str:
    behind = f"{second.point}, the next, is behind by {plus_minus(abs(lead.mean), _half(lead))}"
    if lead.n < LEAST_SEEDS:
        return (
            f"{behind} over {_count(lead.n, 'seed')}: too few to tell a gain from luck. The best of many "
            f"looks better than it is; repeat the best few with {LEAST_SEEDS} seeds or more."
        )
    if not standing.decided:
        return f"{behind} (p {p_text(lead.p)}): luck alone does this too often to call it a lead."
    return f"{behind} (p {p_text(lead.p)}, for these two alone)."


def _half(found: Estimate) -> float | None:
    return None if found.low is None or found.high is None else (found.high - found.low) / 2.0


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
