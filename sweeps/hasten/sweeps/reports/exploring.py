"""The other plots of a search: when it got better, what mattered, what is traded off, whom to trust early."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import altair as alt

from hasten.sweeps.reports import charts
from hasten.sweeps.reports.charts import Figure, Rows, Specification
from hasten.sweeps.reports.standing import Standing
from hasten.sweeps.searching.importance import Importances, Interaction
from hasten.sweeps.statistics.objectives import Mode
from hasten.sweeps.statistics.rungs import ENOUGH, Rung

_MOST_KEYS: Final = 12
_MOST_PAIRS: Final = 3
_MOST_LABELS: Final = 5
_PREDICTS: Final = 0.1
"""A forest that explains less of what it has not seen predicts next to nothing."""


def history(standing: Standing) -> Figure | None:
    """The objective of each point in order of number, and the best so far; None without any value."""
    # Names of points are their numbers, of the same length: they sort as they were proposed.
    ordered = sorted(standing.places, key=lambda place: place.point)
    dots: Rows = []
    ends: Rows = []
    steps: Rows = []
    best: float | None = None
    for number, place in enumerate(ordered):
        row = {"number": number, "point": place.point, "state": place.state}
        if place.mean is None or not math.isfinite(place.mean.mean) or place.state in ("stopped", "failed"):
            ends.append(row)
            continue
        value = charts.number(place.mean.mean)
        dots.append({**row, "value": value})
        ahead = best is None or (value < best if standing.mode == "min" else value > best)
        if place.state == "ranked" and ahead:
            best = value
            steps.append({"number": number, "value": value})
    if not dots:
        return None
    if best is not None:
        steps.append({"number": len(ordered) - 1, "value": best})
    scale = charts.scale([row["value"] for row in dots], padding=8)
    x = alt.X(
        "number:Q",
        title="point",
        axis=alt.Axis(format="d", grid=False, tickCount=8, tickMinStep=1),
        scale=alt.Scale(nice=False),
    )
    y = alt.Y("value:Q", title=standing.measure, scale=scale, axis=alt.Axis(tickCount=5, format="~g"))
    tooltip = [alt.Tooltip("point:N"), alt.Tooltip("value:Q", format=".5~g"), alt.Tooltip("state:N")]
    faint = alt.when("datum.state == 'ranked'").then(alt.value(0.75)).otherwise(alt.value(0.2))
    layers: list[alt.Chart] = [
        charts.of("dots")
        .mark_circle(size=46, color=charts.COLOURS[0])
        .encode(x=x, y=y, opacity=faint, tooltip=tooltip),
        charts.of("steps")
        .mark_line(interpolate="step-after", strokeWidth=2, color=charts.COLOURS[1])
        .encode(x=x, y=y),
        charts.of("ends")
        .mark_tick(orient="vertical", size=9, thickness=1.4, color=charts.GREY)
        .encode(x=x, y=alt.value("height"), tooltip=[alt.Tooltip("point:N"), alt.Tooltip("state:N")]),
    ]
    chart = alt.LayerChart(layer=layers, width="container", height=260)
    caption = "Dots: the mean of a point over its seeds. Line: the best so far."
    if any(row["state"] != "ranked" for row in dots):
        caption += " Faint dots are out of bounds or lack a seed."
    if ends:
        caption += " Ticks below: points without a final value, stopped or failed."
    return Figure(
        name="history",
        title="How the search went",
        caption=caption,
        views={"": (charts.specification(chart),)},
        data={"dots": dots, "steps": steps, "ends": ends},
    )


def importance(found: Importances, interactions: Sequence[Interaction], *, mode: Mode) -> Figure | None:
    """A bar for what each setting explains alone, a map for each pair; None without numbers."""
    known = {key: share for key, share in found.shares.items() if share is not None}
    keys = sorted(known, key=lambda key: -known[key])[:_MOST_KEYS]
    if not keys:
        return None
    data: dict[str, Rows] = {"bars": [{"key": key, "share": charts.number(known[key])} for key in keys]}
    axis = alt.Axis(title=None, domain=False, ticks=False, labelPadding=6, labelLimit=150)
    bar = (
        charts.of("bars")
        .mark_bar(color=charts.COLOURS[0], height={"band": 0.65})
        .encode(y=alt.Y("key:N", sort=keys, axis=axis))
        .encode(x=alt.X("share:Q", title="share of the variance", axis=alt.Axis(format=".0%", tickCount=4)))
        .encode(tooltip=[alt.Tooltip("key:N"), alt.Tooltip("share:Q", format=".1%")])
        .properties(width="container", height=alt.Step(30), title="alone")
    )
    views = [charts.specification(bar)]
    for index, pair in enumerate(interactions[:_MOST_PAIRS]):
        data[f"pair{index}"] = [
            {"x": _short(one), "y": _short(other), "value": charts.number(value)}
            for one, row in zip(pair.first_values, pair.predicted, strict=True)
            for other, value in zip(pair.second_values, row, strict=True)
        ]
        views.append(_pair(pair, f"pair{index}", best_low=mode == "min"))
    return Figure(
        name="importance",
        title="What mattered",
        caption=_importance_caption(found, interactions),
        views={"": tuple(views)},
        data=data,
    )


def _importance_caption(found: Importances, interactions: Sequence[Interaction]) -> str:
    when = "at the end" if found.images is None else f"after {found.images:,} images"
    sentences = [
        f"How much of the objective's variance {when} a setting explains by itself, by a random forest "
        f"(fANOVA) of {found.points:,} points that explains {max(found.explained, 0.0):.0%} of points unseen."
    ]
    if found.explained < _PREDICTS:
        sentences.append("That is next to nothing: do not read anything into the shares.")
    if interactions:
        sentences.append("Maps: what the forest predicts for a pair, all else averaged.")
    if unknown := [key for key, share in found.shares.items() if share is None]:
        sentences.append(f"Too few points to tell: {', '.join(unknown)}.")
    return " ".join(sentences)


def _pair(pair: Interaction, name: str, *, best_low: bool) -> Specification:
    colours = list(charts.GOOD_TO_BAD if best_low else charts.GOOD_TO_BAD[::-1])

    def axis(key: str, values: Sequence[Any], **more: Any) -> dict[str, Any]:
        labels = [_short(value) for value in values]
        shown = [labels[index] for index in charts.evenly(len(labels), _MOST_LABELS)]
        return {
            "sort": labels,
            "title": key,
            "axis": alt.Axis(values=shown, ticks=False, domain=False, **more),
        }

    scale = alt.Scale(range=colours, interpolate="rgb")
    legend = alt.Legend(title=None, format="~g", gradientLength=150)
    chart = (
        charts.of(name)
        .mark_rect()
        .encode(
            x=alt.X("x:O", **axis(pair.first, pair.first_values, labelAngle=0)),
            # The largest value on top, as on an axis of numbers.
            y=alt.Y("y:O", **axis(pair.second, pair.second_values[::-1])),
            color=alt.Color("value:Q", scale=scale, legend=legend),
            stroke=alt.Stroke("value:Q", scale=scale, legend=None),  # no seams between cells
            tooltip=[
                alt.Tooltip("x:N", title=pair.first),
                alt.Tooltip("y:N", title=pair.second),
                alt.Tooltip("value:Q", title="predicted", format=".4~g"),
            ],
        )
        .properties(width="container", height=220, title=f"together: {pair.share:.1%} beyond the two alone")
    )
    return charts.specification(chart)


def trust(rungs: Sequence[Rung]) -> Figure | None:
    """Rank correlation of each rung with the end; None where no rung has one."""
    rows: Rows = [
        {
            "images": rung.images,
            "n": rung.n,
            "stopped": rung.stopped,
            "value": rung.spearman,
            "low": rung.low,
            "high": rung.high,
        }
        for rung in rungs
        if rung.spearman is not None
    ]
    if not rows:
        return None
    axis = alt.Axis(labelExpr="format(datum.value, '~s')", values=[row["images"] for row in rows], grid=False)
    x = alt.X("images:Q", title="images at the rung", axis=axis, scale=alt.Scale(zero=True))
    least = min(0.0, *(row[key] for row in rows for key in ("value", "low") if row[key] is not None))
    y = alt.Y(
        "value:Q",
        title="rank correlation with the end",
        scale=alt.Scale(domain=[least, 1.0]),
        axis=alt.Axis(tickCount=5),
    )
    tooltip = [
        alt.Tooltip("images:Q", format=","),
        alt.Tooltip("value:Q", format=".2f"),
        alt.Tooltip("n:Q", title="whole runs"),
        alt.Tooltip("stopped:Q", title="stopped later"),
    ]
    marks, colour = charts.of("rungs"), charts.COLOURS[0]
    layers: list[alt.Chart] = [
        charts.of("enough").mark_rule(strokeDash=[4, 3], opacity=0.7).encode(y=y),
        marks.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=3, color=colour, opacity=0.35)
        .encode(x=x, y=alt.Y("low:Q"), y2="high:Q"),
        marks.mark_line(strokeWidth=1.5, color=colour, opacity=0.6).encode(x=x, y=y),
        marks.mark_circle(size=110, color=colour, opacity=1).encode(x=x, y=y, tooltip=tooltip),
    ]
    chart = alt.LayerChart(layer=layers, width="container", height=220)
    return Figure(
        name="rungs",
        title="Could early stopping be trusted?",
        caption="1: trials stood at the rung as they stood in the end; 0: it said nothing about the end. "
        "Bars: 95 % intervals, where there are enough whole runs. Dashed: what early stopping needs.",
        views={"": (charts.specification(chart),)},
        data={"rungs": rows, "enough": [{"value": ENOUGH}]},
    )


def front(standing: Standing) -> Figure | None:
    """The objective against the first further goal; solutions that nothing dominates are joined by a line."""
    if not standing.study.pareto:
        return None
    goal = standing.study.pareto[0]
    rows: Rows = [
        {"point": place.point, "x": charts.number(one), "y": charts.number(other), "front": place.front}
        for place in standing.ranked
        if (one := place.goals[0]) is not None and (other := place.goals[1]) is not None
    ]
    if not rows:
        return None

    axis = alt.Axis(tickCount=5, format="~g")
    across, up = (charts.scale([row[key] for row in rows], padding=12) for key in ("x", "y"))
    x = alt.X("x:Q", title=f"{standing.measure} ({_better(standing.mode)})", scale=across, axis=axis)
    y = alt.Y("y:Q", title=f"{goal.metric} ({_better(goal.mode)})", scale=up, axis=axis)
    tooltip = [alt.Tooltip("point:N"), alt.Tooltip("x:Q", format=".5~g"), alt.Tooltip("y:Q", format=".5~g")]
    points, colour = charts.of("points"), charts.COLOURS[1]
    layers: list[alt.Chart] = [
        points.transform_filter("!datum.front")
        .mark_circle(size=40, color=charts.GREY, opacity=0.5)
        .encode(x=x, y=y, tooltip=tooltip),
        points.transform_filter("datum.front")
        .mark_line(strokeWidth=1.2, color=colour, opacity=0.6)
        .encode(x=x, y=y, order="x:Q"),
        points.transform_filter("datum.front")
        .mark_circle(size=90, color=colour, opacity=1)
        .encode(x=x, y=y, tooltip=tooltip),
    ]
    chart = alt.LayerChart(layer=layers, width="container", height=300)
    caption = "Orange: no other point is at least as good in every goal and better in one."
    if len(standing.study.pareto) > 1:
        caption += " There are more goals than axes here: the table of points has all of them."
    return Figure(
        name="front",
        title="What is traded off",
        caption=caption,
        views={"": (charts.specification(chart),)},
        data={"points": rows},
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _better(mode: str) -> str:
    return "lower is better" if mode == "min" else "higher is better"
