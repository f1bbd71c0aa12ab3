"""The plots of a comparison as Vega-Lite specifications: one look for the report and for PNG files.

Texts that come from a user (arms, metric, study) only ever enter as data values or titles, never as a
field name or an expression.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, Final, Literal

import altair as alt
import vl_convert

from hasten.sweeps.statistics.comparison import Arm, Comparison

Rows = list[dict[str, Any]]
Width = int | Literal["container"]

# Okabe and Ito's colours, told apart with any colour vision; the baseline is grey on light and dark.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY: Final = "#808080"
_DASHES: Final = ([1, 0], [6, 3], [2, 2])
_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LOG_RANGE: Final = 4.0
"""A curve that falls by more than this factor is drawn on a logarithmic axis."""


_TICKS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 50, 100)
_FINE_TICKS: Final = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5)


def look(*, dark: bool) -> dict[str, Any]:
    """The Vega-Lite configuration that every chart shares."""
    ink, faint = ("#d5d9de", "#3a4048") if dark else ("#2b3036", "#e3e6ea")
    words = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "background": "transparent" if dark else "white",
        "font": _FONT,
        "view": {"stroke": None},
        "title": {"color": ink, "fontSize": 13, "anchor": "start", "fontWeight": 600},
        "axis": {
            **words,
            "titleFontWeight": "normal",
            "gridColor": faint,
            "domainColor": ink,
            "tickColor": ink,
            "domainOpacity": 0.4,
            "tickOpacity": 0.4,
            "labelLimit": 160,
        },
        "legend": {**words, "symbolStrokeWidth": 3, "labelLimit": 160, "columnPadding": 14},
        "text": {"color": ink, "fontSize": 12},
        "rule": {"color": ink},
    }


def curves(comparison: Comparison, *, width: Width, closing: bool = False) -> alt.LayerChart | None:
    """Metric against images: thin lines for seeds, a bold one for their mean, dashed at the target.

    ``closing`` shows only the second half, on an axis of its own: differences between arms are too small
    to see beside the whole descent. ``None`` when no run was evaluated.
    """
    seeds = _seed_rows(comparison)
    if closing and seeds:
        half = max(row["images"] for row in seeds) / 2
        seeds = [row for row in seeds if row["images"] >= half]
    if not seeds:
        return None
    values = [row["value"] for row in seeds]
    logarithmic = min(values) > 0 and max(values) > _LOG_RANGE * min(values)
    scale = alt.Scale(type="log", nice=False) if logarithmic else alt.Scale(zero=False, nice=False)
    axis = alt.Axis(labelExpr="format(datum.value, '~s')", tickCount=5, grid=False)
    x = alt.X(
        "images:Q",
        title="images seen",
        scale=alt.Scale(nice=False),
        axis=axis,
    )
    y = alt.Y("value:Q", title=comparison.metric, scale=scale, axis=alt.Axis(tickCount=5))
    panel = "_closing" if closing else ""  # parameters of two charts side by side must not share a name
    picked = alt.selection_point(fields=["arm"], bind="legend", name=f"picked{panel}")
    means = _mean_rows(comparison, seeds)
    bold = _chart(means).mark_line(strokeWidth=2.6)
    layers: list[alt.Chart] = [
        _chart(seeds)
        .mark_line(strokeWidth=0.9)
        .encode(x=x, y=y, color=_colour(comparison, legend=True), detail="seed:N")
        .encode(opacity=alt.when(picked).then(alt.value(0.4)).otherwise(alt.value(0.04))),
        bold.encode(x=x, y=y, color=_colour(comparison, legend=True), strokeDash=_dash(comparison))
        .encode(opacity=alt.when(picked).then(alt.value(1.0)).otherwise(alt.value(0.12)))
        .add_params(picked),
        *_target(comparison, y),
        *_reading(comparison, means, x, y, name=f"hover{panel}"),
    ]
    title = "second half" if closing else "whole run"
    return alt.LayerChart(layer=layers, width=width, height=300, title=title)


def differences(comparison: Comparison, *, width: Width) -> alt.LayerChart | None:
    """Arm minus baseline: a dot per seed, the mean with its t interval, and the line of no difference."""
    arms = [arm for arm in comparison.arms[1:] if arm.difference is not None]
    dots = [
        {"arm": arm.name, "seed": str(seed), "value": value}
        for arm in arms
        for seed, value in arm.differences.items()
        if math.isfinite(value)
    ]
    means: Rows = [
        {"arm": arm.name, "value": d.mean, "low": d.low, "high": d.high}
        for arm in arms
        if (d := arm.difference) is not None
    ]
    if not means:
        return None
    side = "left" if comparison.mode == "min" else "right"
    title = f"{comparison.metric} minus {comparison.baseline}'s ({side} is better)"
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5, format="~g"))
    order = [arm.name for arm in arms]
    return _dot_plot(comparison, dots, means, x=x, none=0.0, order=order, width=width)


def speedups(comparison: Comparison, *, width: Width) -> alt.LayerChart | None:
    """Images the baseline needs over images the arm needs, to the same target, on a logarithmic axis.

    A seed that never reached the target is a triangle at the most that its speed-up can be. ``None``
    when no arm shares a seed with a target.
    """
    rows = {arm.name: _ratios(arm, comparison.reference) for arm in comparison.arms[1:]}
    dots = [row for found in rows.values() for row in found]
    if not dots:
        return None
    means: Rows = [
        {"arm": arm.name, "value": s.mean, "low": s.low, "high": s.high}
        for arm in comparison.arms[1:]
        if (s := arm.speedup) is not None
    ]
    domain = _ratio_domain(
        [row[key] for row in (*dots, *means) for key in ("value", "low", "high") if row.get(key) is not None]
    )
    x = alt.X(
        "value:Q",
        title="speed-up in images (right is better)",
        scale=alt.Scale(type="log", domain=domain, nice=False),
        axis=alt.Axis(values=_ratio_ticks(*domain), format="~g"),
    )
    order = [name for name, found in rows.items() if found]
    chart = _dot_plot(comparison, dots, means, x=x, none=1.0, order=order, width=width)
    words = [
        {"arm": arm.name, "text": f"{arm.reached} of {len(arm.images_to_target)} seeds reached it"}
        for arm in comparison.arms[1:]
        if arm.name in order and arm.speedup is None
    ]
    labels = (
        _chart(words)
        .mark_text(align="right", dy=-12, opacity=0.75)
        .encode(x=alt.value("width"), y=_rows_of_arms(order), text="text:N")
    )
    return chart + labels if words else chart


def png(specification: Mapping[str, Any], *, scale: float = 2.0) -> bytes:
    """The chart on a white ground, ``scale`` pixels to a point."""
    picture: bytes = vl_convert.vegalite_to_png(dict(specification), config=look(dark=False), scale=scale)
    return picture


def vegalite(chart: alt.LayerChart) -> dict[str, Any]:
    """The chart's specification with its data inside, and without a look of its own."""
    with alt.data_transformers.enable("default", max_rows=None), alt.theme.enable("none"):
        specification: dict[str, Any] = chart.to_dict()
    return specification


def side_by_side(*specifications: Mapping[str, Any]) -> dict[str, Any]:
    """Several charts as one. Altair's own concatenation mixes up the parameters of layered charts."""
    lifted = ("$schema", "params", "datasets")
    return {
        "$schema": specifications[0]["$schema"],
        "params": [parameter for one in specifications for parameter in one["params"]],
        "datasets": {name: rows for one in specifications for name, rows in one["datasets"].items()},
        "hconcat": [{key: one[key] for key in one if key not in lifted} for one in specifications],
        "spacing": 36,
    }


def palette(comparison: Comparison) -> dict[str, str]:
    """A colour for every arm, the same in each plot and table."""
    grey = [arm for arm in comparison.arms if arm is comparison.reference or comparison.is_control(arm)]
    colours = dict.fromkeys((arm.name for arm in comparison.arms), _GREY)
    others = [arm.name for arm in comparison.arms if arm not in grey]
    return colours | dict(zip(others, cycle(_COLOURS), strict=False))


def _dot_plot(
    comparison: Comparison,
    dots: Rows,
    means: Rows,
    *,
    x: alt.X,
    none: float,
    order: Sequence[str],
    width: Width,
) -> alt.LayerChart:
    y, colour = _rows_of_arms(order), _colour(comparison, legend=False)
    shape = alt.Shape("limit:N", scale=alt.Scale(domain=[False, True], range=["circle", "triangle-left"]))
    layers: list[alt.Chart] = [
        _chart([{"value": none}]).mark_rule(strokeDash=[4, 3], opacity=0.7).encode(x=x),
        _chart([row for row in means if row["low"] is not None])
        .mark_rule(strokeWidth=3, strokeCap="round")
        .encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour),
        _chart([{"limit": False, **row} for row in dots])
        .mark_point(filled=False, size=42, yOffset=13, opacity=0.8)
        .encode(x=x, y=y, color=colour, shape=shape.legend(None))
        .encode(tooltip=[alt.Tooltip("arm:N"), alt.Tooltip("seed:N"), alt.Tooltip("value:Q", format=".4~g")]),
        _chart(means)
        .mark_circle(size=120, opacity=1)
        .encode(x=x, y=y, color=colour)
        .encode(tooltip=[alt.Tooltip(f"{key}:{kind}") for key, kind in _MEAN_FIELDS.items()]),
    ]
    return alt.LayerChart(layer=layers, width=width, height=alt.Step(46))


_MEAN_FIELDS: Final = {"arm": "N", "value": "Q", "low": "Q", "high": "Q"}


def _ratios(arm: Arm, baseline: Arm) -> Rows:
    """The speed-up at each seed; an upper limit, by the images it saw, where the target was never reached."""
    rows: Rows = []
    for seed, ours in arm.images_to_target.items():
        theirs, seen = baseline.images_to_target.get(seed), arm.outcomes[seed].images
        needed = seen if ours is None else ours
        if theirs and needed:
            rows.append({"arm": arm.name, "seed": str(seed), "value": theirs / needed, "limit": ours is None})
    return rows


def _ratio_domain(ratios: Sequence[float]) -> list[float]:
    """From below the least to above the greatest, with 1 and some room on either side of it."""
    return [min(*ratios, 0.9) / 1.08, max(*ratios, 1.12) * 1.08]


def _ratio_ticks(low: float, high: float) -> list[float]:
    ticks = _FINE_TICKS if high < 2.5 * low else _TICKS
    return [tick for tick in ticks if low <= tick <= high]


def _seed_rows(comparison: Comparison) -> Rows:
    return [
        {"arm": arm.name, "seed": str(seed), "images": images, "value": value}
        for arm in comparison.arms
        for seed, outcome in arm.outcomes.items()
        for images, value in outcome.series
        if math.isfinite(value)
    ]


def _mean_rows(comparison: Comparison, seeds: Rows) -> Rows:
    """The mean of an arm's finished runs, where each of them was evaluated, so that no end ever bends it."""
    runs = {arm.name: {str(seed) for seed in arm.values} for arm in comparison.arms}
    by_point: dict[tuple[str, int], list[float]] = {}
    for row in seeds:
        if row["seed"] in runs[row["arm"]]:
            by_point.setdefault((row["arm"], row["images"]), []).append(row["value"])
    return [
        {"arm": arm, "images": images, "value": sum(values) / len(values)}
        for (arm, images), values in by_point.items()
        if len(values) == len(runs[arm])
    ]


def _target(comparison: Comparison, y: alt.Y) -> Iterable[alt.Chart]:
    """The mean of the baseline's own final values, or the number asked for."""
    final = comparison.reference.mean if comparison.target == "baseline" else comparison.target
    if isinstance(final, float | int):
        yield _chart([{"value": final}]).mark_rule(strokeDash=[4, 3], opacity=0.7).encode(y=y)


def _reading(comparison: Comparison, means: Rows, x: alt.X, y: alt.Y, *, name: str) -> Iterable[alt.Chart]:
    """A rule that follows the pointer and reads every arm's mean."""
    # Arms get numbered fields, since a name with a dot or a bracket in it would be read as a path.
    fields = {arm.name: f"arm{index}" for index, arm in enumerate(comparison.arms)}
    read: dict[int, dict[str, Any]] = {}
    for row in means:
        read.setdefault(row["images"], {"images": row["images"]})[fields[row["arm"]]] = row["value"]
    shown = {row["arm"] for row in means}
    hover = alt.selection_point(
        name=name, fields=["images"], nearest=True, on="pointerover", clear="pointerout", empty=False
    )
    tooltip = [alt.Tooltip("images:Q", format=",")] + [
        alt.Tooltip(f"{field}:Q", title=name, format=".5~g")
        for name, field in fields.items()
        if name in shown
    ]
    yield (
        _chart(list(read.values()))
        .mark_rule(strokeWidth=1)
        .encode(x=x, tooltip=tooltip)
        .encode(opacity=alt.when(hover).then(alt.value(0.5)).otherwise(alt.value(0.0)))
        .add_params(hover)
    )
    yield (
        _chart(means)
        .mark_circle(size=45, opacity=1)
        .encode(x=x, y=y, color=_colour(comparison, legend=True))
        .transform_filter(hover)
    )


def _chart(rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))


def _colour(comparison: Comparison, *, legend: bool) -> alt.Color:
    colours = palette(comparison)
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color("arm:N", scale=scale, legend=_key(comparison) if legend else None)


def _dash(comparison: Comparison) -> alt.StrokeDash:
    """Solid for the first round of colours, dashed where colours repeat; the A/A control is dotted."""
    rounds = {arm.name: _DASHES[0] for arm in comparison.arms}
    for index, arm in enumerate(comparison.contenders):
        rounds[arm.name] = next(islice(cycle(_DASHES), index // len(_COLOURS), None))
    rounds |= {arm.name: _DASHES[2] for arm in comparison.arms if comparison.is_control(arm)}
    scale = alt.Scale(domain=list(rounds), range=list(rounds.values()))
    return alt.StrokeDash("arm:N", scale=scale, legend=_key(comparison))


def _key(comparison: Comparison) -> alt.Legend:
    longest = max(len(arm.name) for arm in comparison.arms)
    return alt.Legend(
        title=None,
        orient="top",
        columns=3 if longest <= 14 else 2,
        labelLimit=110,
        symbolType="stroke",
        symbolOpacity=1,
        symbolSize=320,
    )


def _rows_of_arms(order: Sequence[str]) -> alt.Y:
    axis = alt.Axis(title=None, domain=False, ticks=False, grid=True, labelPadding=8)
    return alt.Y("arm:N", scale=alt.Scale(domain=list(order)), axis=axis)
