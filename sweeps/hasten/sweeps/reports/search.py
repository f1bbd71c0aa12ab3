"""The part of a report that belongs to a search: its best points, how it went, what mattered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from hasten.sweeps.reports import charts, exploring, points
from hasten.sweeps.reports.document import (
    Block,
    Bullets,
    Column,
    Facts,
    Folded,
    Row,
    Section,
    Table,
    Text,
    illustrated,
)
from hasten.sweeps.reports.inputs import StudyReport
from hasten.sweeps.reports.learning import Line, learning
from hasten.sweeps.reports.parallel import parallel
from hasten.sweeps.reports.standing import Standing
from hasten.sweeps.statistics.objectives import Place
from hasten.sweeps.study import StudySpec
from hasten.trainers.config import Spec

BEST: Final = 5
"""Points of a search that have a colour of their own."""
_MOST_POINTS: Final = 12
_MOST_FRONT: Final = 100


def sections(report: StudyReport, standing: Standing) -> Iterator[Section]:
    """What there is to say of points."""
    colours = colours_of(standing)
    yield Section(title="The best points", blocks=tuple(_best(standing, colours)))
    yield Section(title="What was searched", blocks=(_facts(standing.study),))
    yield from illustrated(
        exploring.history(standing),
        parallel(standing),
        _learning(standing, colours),
        exploring.front(standing),
        exploring.importance(report.importances, report.interactions, mode=standing.mode)
        if report.importances
        else None,
    )
    if report.rungs:
        sentences = Bullets(items=tuple(rung.sentence for rung in report.rungs))
        figure = exploring.trust(report.rungs)
        blocks = (sentences,) if figure is None else (figure, sentences)
        yield Section(title="Could early stopping be trusted?", blocks=blocks)


def colours_of(standing: Standing) -> dict[str, str]:
    """A colour for each of the best points."""
    return dict(zip((place.point for place in standing.ranked[:BEST]), charts.COLOURS, strict=False))


def _learning(standing: Standing, colours: Mapping[str, str]) -> charts.Figure | None:
    lines = [
        Line(name=place.point, colour=colours[place.point], dash=charts.DASHES[0], records=place.records)
        for place in standing.ranked[:BEST]
    ]
    others = [record for place in standing.places if place.point not in colours for record in place.records]
    objective = standing.study.objective
    target = objective.target if isinstance(objective.target, float | int) else None
    return learning(lines, others, metric=objective.metric, alpha=standing.alpha, target=target)


def _best(standing: Standing, colours: Mapping[str, str]) -> Iterator[Block]:
    ranked = standing.ranked
    shown, hidden = ranked[:_MOST_POINTS], ranked[_MOST_POINTS:]
    if shown:
        yield _table(standing, shown, colours)
    on_front = [place for place in hidden if place.front] if standing.study.pareto else []
    if on_front:
        title = f"{len(on_front):,} more points on the front"
        yield Folded(title=title, blocks=(_table(standing, on_front[:_MOST_FRONT], colours),))
    told = [f"{len(hidden):,} more count" if hidden else "", points.rest(standing)]
    caption = f"Beside these, {', '.join(part for part in told if part)}. " if any(told) else ""
    caption += (
        "Intervals are Student's t over seeds, for one point at a time. The best of many points looks better "
        "than it is."
    )
    yield Text(text=caption, tone="caption")


def _table(standing: Standing, places: Sequence[Place], colours: Mapping[str, str]) -> Table:
    goals = standing.study.pareto
    columns = (
        Column(title="point", wide=True),
        Column(title=standing.measure, note=f"mean ± {100 * (1 - standing.alpha):g} % interval"),
        *(Column(title=goal.metric, note="mean") for goal in goals),
        Column(title="seeds"),
        *((Column(title="front"),) if goals else ()),
    )
    return Table(columns=columns, rows=tuple(_point_row(standing, place, colours) for place in places))


def _point_row(standing: Standing, place: Place, colours: Mapping[str, str]) -> Row:
    goals = standing.study.pareto
    cells = [place.point, points.mean_text(place), *points.goal_texts(place), str(len(place.records))]
    if goals:
        cells.append("on it" if place.front else "")
    return Row(
        cells=tuple(cells),
        kind="winner" if standing.decided and place is standing.best else "",
        colour=colours.get(place.point, ""),
        below=points.settings_text(place.settings),
    )


def _facts(study: StudySpec) -> Facts:
    reaches = study.objective.measure in ("images", "seconds")
    without = ("bounds",) if reaches else ("bounds", "target")
    pairs = (
        ("objective", _words(study.objective, without=without)),
        ("bounds", "; ".join(_words(bound) for bound in study.objective.bounds)),
        ("further goals", "; ".join(_words(goal) for goal in study.pareto)),
        ("search", _words(study.search)),
        ("stopping", _words(study.stopping) if study.stopping else "none"),
        ("constraints", "; ".join(study.constraints)),
        ("base", study.base),
        ("seeds", ", ".join(str(seed) for seed in study.seeds)),
    )
    return Facts(pairs=tuple((name, value) for name, value in pairs if value))


def _words(spec: Spec, *, without: Sequence[str] = ()) -> str:
    """``kind asha, grace 0.1, reduction 3``: what a block of the study's file says."""
    fields = spec.model_dump(mode="json", exclude=set(without), exclude_none=True)
    return ", ".join(f"{key} {value}" for key, value in fields.items())
