"""Parallel coordinates: every point of a search as one line across its settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import altair as alt

from hasten.sweeps.reports import charts
from hasten.sweeps.reports.charts import Figure, Rows, Specification
from hasten.sweeps.reports.standing import Standing
from hasten.sweeps.space import Distribution
from hasten.sweeps.statistics.objectives import Place

_MOST_AXES: Final = 10
_MOST_POINTS: Final = 300
_ABSENT: Final = -0.16
"""Height of a key that a point does not have: below its axis, which goes from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One upright axis: its name, and either the choices from bottom to top or the ends of a scale."""

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    logarithmic: bool = False

    def place(self, value: Any) -> float:
        """The height of a value in [0, 1]."""
        if self.choices:
            known = self.choices.index(words(value)) if words(value) in self.choices else 0
            return (known + 0.5) / len(self.choices)
        ends = (float(value), self.low, self.high)
        at, low, high = (math.log(end) for end in ends) if self.logarithmic else ends
        return min(max((at - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Heights and their labels: every choice, or both ends and the middle."""
        if self.choices:
            return [((index + 0.5) / len(self.choices), name) for index, name in enumerate(self.choices)]
        if self.high <= self.low:
            return [(0.5, words(self.low))]
        middle = math.sqrt(self.low * self.high) if self.logarithmic else (self.low + self.high) / 2
        return [(0.0, f"{self.low:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{self.high:.3g}")]


def parallel(standing: Standing) -> Figure | None:
    """The points across the keys of the space, coloured by their ranks; None with too little to draw.

    An axis is as its distribution is: logarithmic, or with the choices in their order. Points that were
    stopped, failed or keep no bound are faint and have no colour.
    """
    tried, space = standing.places, standing.study.space
    kept = [tried[index] for index in charts.evenly(len(tried), _MOST_POINTS)]
    keys = [key for key in space if any(key in place.settings for place in kept)][:_MOST_AXES]
    if len(keys) < 2 or len(kept) < 2:
        return None
    axes = [_axis(key, space[key]) for key in keys]
    outcome = _outcome(standing, kept)
    # The best are drawn last, on top of the others.
    lines = [
        row
        for rank, place in reversed(list(enumerate(kept)))
        for row in _line(place, axes, outcome, rank=rank / len(kept))
    ]
    absent = {row["x"] for row in lines if row["y"] == _ABSENT}
    posts = [*axes, outcome] if outcome else axes
    caption = f"A line is a point, from blue for the best {standing.measure} to orange for the worst."
    if any(place.state != "ranked" for place in kept):
        caption += " Faint grey ones were stopped, failed, or are out of bounds."
    if absent:
        caption += " A setting that a point does not have lies at \u201cabsent\u201d."
    if len(kept) < len(tried):
        caption += f" Drawn: {len(kept):,} of {len(tried):,} points, evenly by rank."
    if len(keys) < len(space):
        caption += f" Left out: {', '.join(key for key in space if key not in keys)}."
    return Figure(
        name="parallel",
        title="What was tried",
        caption=caption,
        views={"": (_chart(len(posts)),)},
        data={
            "lines": lines,
            "ticks": [
                {"x": index, "y": at, "text": text}
                for index, axis in enumerate(posts)
                for at, text in axis.ticks
            ]
            + [{"x": index, "y": _ABSENT, "text": "absent"} for index in sorted(absent)],
            "posts": [
                {"x": index, "y": 0.0, "y2": 1.0, "text": _in_two_lines(axis.name)}
                for index, axis in enumerate(posts)
            ],
        },
        least_width=105 * len(posts),
    )


def _in_two_lines(name: str) -> str:
    """A key broken at its last dot or slash, so that long ones leave each other room."""
    at = max(name.rfind("."), name.rfind("/")) + 1
    return f"{name[:at]}\n{name[at:]}"


def words(value: Any) -> str:
    """A setting as it is read: four digits of a fraction, no braces around nothing."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _axis(key: str, distribution: Distribution) -> Axis:
    if distribution.choice is not None:
        return Axis(name=key, choices=tuple(words(choice) for choice in distribution.choice))
    low, high = distribution.range
    return Axis(name=key, low=low, high=high, logarithmic=distribution.logarithmic)


def _outcome(standing: Standing, places: Sequence[Place]) -> Axis | None:
    """The last axis: the objective of the points that count."""
    means = [place.mean.mean for place in places if place.state == "ranked" and place.mean]
    if not means:
        return None
    low, high = charts.domain(means)
    return Axis(name=standing.measure, low=low, high=high, logarithmic=charts.logarithmic([low, high]))


def _line(place: Place, axes: Sequence[Axis], outcome: Axis | None, *, rank: float) -> Rows:
    """Where one point crosses each axis; ``rank`` is 0 for the best, near 1 for the worst."""
    crossings = [(axis, place.settings.get(axis.name)) for axis in axes]
    shared: dict[str, Any] = {"point": place.point}
    if outcome and place.state == "ranked" and place.mean:
        crossings.append((outcome, place.mean.mean))
        shared |= {"value": charts.number(place.mean.mean), "rank": charts.number(rank)}
    return [
        {
            **shared,
            "x": index,
            "y": _ABSENT if value is None else charts.number(axis.place(value)),
            "at": axis.name,
            "is": "absent" if value is None else words(value),
        }
        for index, (axis, value) in enumerate(crossings)
    ]


def _chart(count: int) -> Specification:
    """``count`` posts with names above and ticks beside them, and the lines through them."""
    x = alt.X("x:Q", scale=alt.Scale(domain=[-0.3, count - 0.45], nice=False), axis=None)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[_ABSENT, 1.0], nice=False), axis=None)
    colour = alt.Color(
        "rank:Q", scale=alt.Scale(range=list(charts.GOOD_TO_BAD), interpolate="rgb"), legend=None
    )
    lines, whole = charts.of("lines"), "isValid(datum.value)"
    posts, ticks = charts.of("posts"), charts.of("ticks")
    shown = [alt.Tooltip("point:N"), alt.Tooltip("at:N"), alt.Tooltip("is:N"), alt.Tooltip("value:Q")]
    layers: list[alt.Chart] = [
        lines.transform_filter(f"!{whole}")
        .mark_line(strokeWidth=0.8, color=charts.GREY, strokeOpacity=0.22)
        .encode(x=x, y=y, detail="point:N"),
        posts.mark_rule(opacity=0.6).encode(x=x, y=y, y2="y2:Q"),
        lines.transform_filter(whole)
        .mark_line(strokeWidth=1.4, strokeOpacity=0.6)
        .encode(x=x, y=y, detail="point:N", color=colour),
        lines.transform_filter(whole)
        .mark_circle(size=26, opacity=0.9)
        .encode(x=x, y=y, color=colour, tooltip=shown),
        posts.mark_text(lineBreak="\n", baseline="bottom", dy=-26, lineHeight=14, fontWeight=600).encode(
            x=x, y=alt.Y("y2:Q", axis=None), text="text:N"
        ),
        ticks.mark_text(align="right", baseline="middle", dx=-7, fontSize=11, limit=90).encode(
            x=x, y=y, text="text:N"
        ),
    ]
    return charts.specification(alt.LayerChart(layer=layers, width="container", height=300))
