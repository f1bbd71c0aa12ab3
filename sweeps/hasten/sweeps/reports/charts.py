"""The one look of all plots, and a plot as a value: Vega-Lite specifications with their data beside them.

Texts that come from a user (arms, metrics, studies, settings) only ever enter as data values or titles, never
as a field name or an expression. Data stay apart from specifications: Altair would check every row against
its schema, and views that are drawn in turn share their rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Final, Literal

import altair as alt
import vl_convert

from hasten.sweeps.statistics.comparison import Comparison

Rows = list[dict[str, Any]]
Specification = dict[str, Any]
Width = int | Literal["container"]

# Okabe and Ito's colours, told apart with any colour vision; the baseline is grey on light and dark.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY: Final = "#808080"
DASHES: Final = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
GOOD_TO_BAD: Final = ("#0072B2", "#94a3ad", "#E69F00")
"""Ends and middle of a scale that can be read on a light and on a dark ground."""

_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LOG_RANGE: Final = 4.0
"""Positive values that differ by more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One plot: what it shows and how to read it.

    ``views`` are the alternatives between which a switch changes, by the words on the switch; each is one
    chart or several, side by side. Their rows are in ``data``, by name. A figure that cannot be squeezed is
    scrolled below ``least_width`` pixels.
    """

    name: str
    title: str
    caption: str
    views: Mapping[str, tuple[Specification, ...]]
    data: Mapping[str, Rows] = field(default_factory=dict)
    least_width: int = 0

    def picture(self, *, scale: float = 2.0) -> bytes:
        """The first view as a PNG file, on a white ground."""
        charts = next(iter(self.views.values()))
        width = 640 if len(charts) == 1 else 420
        fixed = [{**chart, "width": max(width, self.least_width)} for chart in charts]
        whole = fixed[0] if len(fixed) == 1 else side_by_side(*fixed)
        return png({**whole, "datasets": dict(self.data)}, scale=scale)


def look(*, dark: bool) -> dict[str, Any]:
    """The Vega-Lite configuration that every chart shares."""
    ink, faint = ("#d5d9de", "#3a4048") if dark else ("#2b3036", "#e3e6ea")
    words = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "background": "transparent" if dark else "white",
        "font": _FONT,
        "view": {"stroke": None},
        "title": {"color": ink, "subtitleColor": ink, "fontSize": 13, "anchor": "start", "fontWeight": 600},
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


def png(specification: Mapping[str, Any], *, scale: float = 2.0) -> bytes:
    """The chart on a white ground, ``scale`` pixels to a point."""
    picture: bytes = vl_convert.vegalite_to_png(dict(specification), config=look(dark=False), scale=scale)
    return picture


def of(name: str) -> alt.Chart:
    """A chart of the rows that the figure keeps under ``name``."""
    return alt.Chart(alt.NamedData(name))


def specification(chart: alt.Chart | alt.LayerChart) -> Specification:
    """The chart's specification, without data and without a look of its own."""
    with alt.theme.enable("none"):
        # Checking against the schema takes a tenth of a second a chart: tests compile every one instead.
        found: Specification = chart.to_dict(validate=False)
    return found


def side_by_side(*specifications: Specification) -> Specification:
    """Several charts as one, two in a row. Altair's own concatenation mixes up their parameters."""
    lifted = ("$schema", "params")
    return {
        "$schema": specifications[0]["$schema"],
        "params": [parameter for one in specifications for parameter in one.get("params", [])],
        "concat": [{key: one[key] for key in one if key not in lifted} for one in specifications],
        "columns": 2,
        "spacing": 36,
        "resolve": {"scale": {"color": "independent", "strokeDash": "independent"}},
    }


def palette(comparison: Comparison) -> dict[str, str]:
    """A colour for every arm, the same in each plot and table."""
    grey = [arm for arm in comparison.arms if arm is comparison.reference or comparison.is_control(arm)]
    colours = dict.fromkeys((arm.name for arm in comparison.arms), GREY)
    others = [arm.name for arm in comparison.arms if arm not in grey]
    return colours | dict(zip(others, cycle(COLOURS), strict=False))


def dashes(comparison: Comparison) -> dict[str, list[int]]:
    """Solid for the first round of colours, dashed where colours repeat; the A/A control is dotted."""
    rounds = {arm.name: DASHES[0] for arm in comparison.arms}
    for index, arm in enumerate(comparison.contenders):
        rounds[arm.name] = DASHES[index // len(COLOURS) % len(DASHES)]
    return rounds | {arm.name: DASHES[2] for arm in comparison.arms if comparison.is_control(arm)}


def number(value: float) -> float:
    """The value to six digits: more cannot be seen, and a page with many is half as large."""
    return float(f"{value:.6g}")


def logarithmic(values: Iterable[float]) -> bool:
    """Whether values are positive and far enough apart for a logarithmic axis."""
    found = list(values)
    return bool(found) and min(found) > 0.0 and max(found) > _LOG_RANGE * min(found)


def scale(values: Sequence[float], *, padding: float = 0.0) -> alt.Scale:
    """Linear or logarithmic, whichever shows ``values``, over their :func:`domain`.

    What lies beyond is drawn at the edge. Marks are not clipped: a mask for each of many curves makes a
    picture of them take minutes.
    """
    low, high = domain(values)
    if logarithmic([low, high]):
        return alt.Scale(type="log", domain=[low, high], nice=False, clamp=True, padding=padding)
    return alt.Scale(domain=[low, high], nice=False, zero=False, clamp=True, padding=padding)


def domain(values: Sequence[float]) -> tuple[float, float]:
    """What an axis shows of ``values``: all of them, unless very few lie far beyond the others.

    A run that diverges would flatten every other curve: then the axis ends a little above the 98th
    percentile of all values.
    """
    ordered = sorted(value for value in values if math.isfinite(value))
    if not ordered:
        return 0.0, 1.0
    usual = ordered[int(0.98 * (len(ordered) - 1))]
    far = ordered[-1] > 5.0 * abs(usual) > 0.0
    return ordered[0], usual * 1.3 if far and usual > 0.0 else ordered[-1]


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of the indices below ``count``, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]
