"""Learning curves: thin lines for seeds, bold ones for their mean in its t band, grey ones for all the rest.

Against images, which is what schedules are judged by, and against seconds of training, which is what people
wait for; seconds depend on the machine and on what else it did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import altair as alt
import numpy as np

from hasten.sweeps.records import TrialRecord
from hasten.sweeps.reports import charts
from hasten.sweeps.reports.charts import Figure, Rows, Specification
from hasten.sweeps.statistics.intervals import mean_of
from hasten.trainers.tracker import SECONDS

Across = Literal["images", "time"]

_MOST_POINTS: Final = 60
"""Evaluations drawn of one curve."""
_MOST_CURVES: Final = 200
"""Curves of single trials drawn: beyond that they are a cloud."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """An arm or a point in a colour of its own, with its trials."""

    name: str
    colour: str
    dash: Sequence[int]
    records: Sequence[TrialRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The unit in which training time is shown."""

    unit: str
    seconds: float


def learning(
    lines: Sequence[Line],
    others: Sequence[TrialRecord] = (),
    *,
    metric: str,
    alpha: float,
    target: float | None = None,
) -> Figure | None:
    """The curves of ``lines`` in colour and of ``others`` in grey; None when nothing was evaluated.

    ``target`` is drawn as a dashed line. ``lines`` are also shown over their second half, on an axis of its
    own: their differences are too small to see beside the whole descent.
    """
    kept = [others[index] for index in charts.evenly(len(others), _MOST_CURVES)]
    drawn = [*(record for line in lines for record in line.records), *kept]
    clock = _clock(drawn)
    seeds = [
        row for line in lines for record in line.records for row in _rows(record, metric, line.name, clock)
    ]
    grey = [row for record in kept for row in _rows(record, metric, "", clock)]
    if not seeds and not grey:
        return None
    trials = sum(len(line.records) for line in lines)
    means = _means(lines, seeds, alpha=alpha)
    data: dict[str, Rows] = {
        "seeds": seeds if trials <= _MOST_CURVES or not means else [],
        "means": means,
        "others": grey,
    }
    data["ends"] = _ends(kept, grey)
    if target is not None and math.isfinite(target):
        data["target"] = [{"value": target}]
    half = max(row["images"] for row in [*seeds, *grey]) / 2
    views: dict[str, tuple[Specification, ...]] = {}
    for across in ("images", "time") if clock else ("images",):
        title = "images seen" if across == "images" or clock is None else f"{clock.unit} of training"
        draw = _Panels(lines=lines, data=data, across=across, title=title, metric=metric)
        whole = draw.panel("whole run")
        closing = (draw.panel("second half", since=half),) if lines else ()
        views["against images" if across == "images" else "against time"] = (whole, *closing)
    return Figure(
        name="learning",
        title=f"{metric} while training",
        caption=_caption(trials, len(others) - len(kept), data, alpha=alpha, clock=clock),
        views=views,
        data=data,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panels:
    """The two charts of a view: what they share."""

    lines: Sequence[Line]
    data: Mapping[str, Rows]
    across: Across
    title: str
    metric: str

    def panel(self, title: str, *, since: float = 0.0) -> Specification:
        """One chart of everything at or after ``since`` images."""
        values = [
            row["value"] for rows in self.data.values() for row in rows if row.get("images", 0) >= since
        ]
        axis = alt.Axis(tickCount=5, format="~g")
        y = alt.Y("value:Q", title=self.metric, scale=charts.scale(values), axis=axis)
        axis = alt.Axis(labelExpr="format(datum.value, '~s')", tickCount=5, grid=False)
        x = alt.X(f"{self.across}:Q", title=self.title, scale=alt.Scale(nice=False), axis=axis)
        layers = self._layers(x, y, since=since)
        return charts.specification(alt.LayerChart(layer=layers, width="container", height=300, title=title))

    def _layers(self, x: alt.X, y: alt.Y, *, since: float) -> list[alt.Chart]:
        """Grey curves lowest, then bands, seeds, means, and what the pointer reads.

        Strokes are faint, not lines: a picture of hundreds of see-through lines takes ten seconds.
        """
        layers = self._others(x, y, since=since)
        if not self.lines:
            return layers
        # Parameters of two charts on one page must not share a name.
        name = f"picked_{self.across}_{int(since)}"
        picked = alt.selection_point(fields=["arm"], bind="legend", name=name)
        colour, dash = self._colour(), self._dash()

        def faded(full: float) -> Any:
            return alt.when(picked).then(alt.value(full)).otherwise(alt.value(0.1 * full))

        means = _late("means", since)
        band = means.transform_filter("isValid(datum.low)").mark_area().encode(x=x, color=colour)
        layers.append(band.encode(y=alt.Y("low:Q"), y2="high:Q", opacity=faded(0.16)))
        thin = _late("seeds", since).mark_line(strokeWidth=0.9)
        layers.append(thin.encode(x=x, y=y, color=colour, detail="trial:N", strokeOpacity=faded(0.45)))
        bold = means.mark_line(strokeWidth=2.6).encode(x=x, y=y, color=colour, strokeDash=dash)
        layers.append(bold.encode(strokeOpacity=faded(1.0)).add_params(picked))
        if self.data.get("target"):
            layers.append(charts.of("target").mark_rule(strokeDash=[4, 3], opacity=0.7).encode(y=y))
        return [*layers, self._reading(means, x, y, name=f"hover_{self.across}_{int(since)}")]

    def _others(self, x: alt.X, y: alt.Y, *, since: float) -> list[alt.Chart]:
        """The trials that have no colour, and crosses where they ended before their time."""
        if not self.data["others"]:
            return []
        curves = _late("others", since).mark_line(strokeWidth=0.8, color=charts.GREY, strokeOpacity=0.35)
        ends = _late("ends", since).mark_point(
            shape="cross", angle=45, size=26, color=charts.GREY, filled=True, fillOpacity=0.8
        )
        return [curves.encode(x=x, y=y, detail="trial:N"), ends.encode(x=x, y=y, tooltip=_END)]

    def _reading(self, means: alt.Chart, x: alt.X, y: alt.Y, *, name: str) -> alt.Chart:
        """A dot on the mean nearest to the pointer, with its numbers."""
        hover = alt.selection_point(
            name=name,
            fields=["arm", "images"],
            nearest=True,
            on="pointerover",
            clear="pointerout",
            empty=False,
        )
        dots = means.mark_circle(size=60).encode(x=x, y=y, color=self._colour(), tooltip=_READ)
        shown = alt.when(hover).then(alt.value(1.0)).otherwise(alt.value(0.0))
        found: alt.Chart = dots.encode(opacity=shown).add_params(hover)
        return found

    def _colour(self) -> alt.Color:
        names = [line.name for line in self.lines]
        scale = alt.Scale(domain=names, range=[line.colour for line in self.lines])
        return alt.Color("arm:N", scale=scale, legend=self._key())

    def _dash(self) -> alt.StrokeDash:
        names = [line.name for line in self.lines]
        scale = alt.Scale(domain=names, range=[list(line.dash) for line in self.lines])
        return alt.StrokeDash("arm:N", scale=scale, legend=self._key())

    def _key(self) -> alt.Legend:
        longest = max(len(line.name) for line in self.lines)
        return alt.Legend(
            title=None,
            orient="top",
            columns=3 if longest <= 14 else 2,
            labelLimit=110,
            symbolType="stroke",
            symbolOpacity=1,
            symbolSize=320,
        )


def _late(name: str, since: float) -> alt.Chart:
    """A chart of the rows at or after ``since`` images."""
    return charts.of(name).transform_filter(f"datum.images >= {since}")


_READ: Final = [
    alt.Tooltip("arm:N", title="mean of"),
    alt.Tooltip("n:Q", title="seeds"),
    alt.Tooltip("images:Q", format=","),
    alt.Tooltip("value:Q", format=".5~g"),
    alt.Tooltip("low:Q", format=".5~g"),
    alt.Tooltip("high:Q", format=".5~g"),
]
_END: Final = [
    alt.Tooltip("trial:N"),
    alt.Tooltip("state:N"),
    alt.Tooltip("images:Q", format=","),
    alt.Tooltip("value:Q", format=".5~g"),
]


def _rows(record: TrialRecord, metric: str, name: str, clock: Clock | None) -> Rows:
    """The record's evaluations, thinned; without ``time`` where the record has kept none."""
    curve = [(images, value) for images, value in record.curves.get(metric, ()) if math.isfinite(value)]
    times = sorted(record.curves.get(SECONDS, ()))
    rows: Rows = []
    for images, value in (curve[index] for index in charts.evenly(len(curve), _MOST_POINTS)):
        row = {"arm": name, "trial": record.trial, "images": images, "value": charts.number(value)}
        if times and clock:
            seconds = np.interp(
                images, [0, *(at for at, _ in times)], [0.0, *(passed for _, passed in times)]
            )
            row["time"] = charts.number(float(seconds) / clock.seconds)
        rows.append(row)
    return rows


def _means(lines: Sequence[Line], seeds: Rows, *, alpha: float) -> Rows:
    """The mean of an arm's finished runs, where each of them was evaluated, so that no end ever bends it."""
    rows: Rows = []
    for line in lines:
        runs = {record.trial for record in line.records if record.state == "finished"}
        together: dict[int, Rows] = {}
        for row in seeds:
            if row["arm"] == line.name and row["trial"] in runs:
                together.setdefault(row["images"], []).append(row)
        for images, found in sorted(together.items()):
            estimate = mean_of([row["value"] for row in found], alpha=alpha)
            if len(found) < len(runs) or estimate is None:
                continue
            row = {"arm": line.name, "images": images, "n": len(found), "value": charts.number(estimate.mean)}
            if estimate.low is not None and estimate.high is not None:
                row |= {"low": charts.number(estimate.low), "high": charts.number(estimate.high)}
            times = [each["time"] for each in found if "time" in each]
            if len(times) == len(found):
                row["time"] = sum(times) / len(times)
            rows.append(row)
    return rows


def _ends(records: Sequence[TrialRecord], rows: Rows) -> Rows:
    """Where the curves of trials end that did not run to their end."""
    last = {row["trial"]: row for row in rows}
    return [
        {**last[record.trial], "state": record.state}
        for record in records
        if record.state != "finished" and record.trial in last
    ]


def _clock(records: Sequence[TrialRecord]) -> Clock | None:
    """The largest unit of which the longest run took more than two; None where nobody kept the time."""
    longest = max(
        (seconds for record in records for _, seconds in record.curves.get(SECONDS, ())), default=None
    )
    if longest is None:
        return None
    units = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
    unit, seconds = next(((unit, size) for unit, size in units if longest > 2 * size), units[-1])
    return Clock(unit=unit, seconds=seconds)


def _caption(
    trials: int, left_out: int, data: Mapping[str, Rows], *, alpha: float, clock: Clock | None
) -> str:
    """How to read what is there, and what is not."""
    sentences = []
    if data["seeds"]:
        sentences.append("Thin lines are seeds, bold ones the mean over the finished runs of one colour.")
    elif trials:
        sentences.append(f"The mean over finished runs; {trials:,} single seeds are left out of the drawing.")
    if any("low" in row for row in data["means"]):
        sentences.append(f"Bands: the mean's {100.0 * (1.0 - alpha):g} % interval (Student's t over seeds).")
    if data["others"]:
        sentences.append("Grey: all other trials; a cross marks where one was stopped or failed.")
    if left_out:
        sentences.append(f"{left_out:,} more are left out of the drawing.")
    if data.get("target"):
        sentences.append("Dashed: the quality to reach.")
    if clock:
        sentences.append("Time is that of training alone, on the machine and in the company it had.")
        if any("time" not in row for row in [*data["seeds"], *data["others"]]):
            sentences.append("Trials that kept no time are missing against time.")
    if trials:
        sentences.append("Click in the legend to pick one out (shift for several).")
    return " ".join(sentences)
