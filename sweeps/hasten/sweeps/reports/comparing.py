"""Arms against the baseline: differences at the end, and what the way to the target costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import altair as alt

from hasten.sweeps.reports import charts
from hasten.sweeps.reports.charts import Figure, Rows, Specification
from hasten.sweeps.statistics.comparison import Arm, Comparison
from hasten.sweeps.statistics.intervals import Estimate

_TICKS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 50, 100)
_FINE_TICKS: Final = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5)


def differences(comparison: Comparison) -> Figure | None:
    """Arm minus baseline: a ring per seed, the mean with its t interval, and the line of no difference."""
    arms = [arm for arm in comparison.arms[1:] if arm.difference is not None]
    dots: Rows = [
        {"arm": arm.name, "seed": str(seed), "value": value}
        for arm in arms
        for seed, value in arm.differences.items()
        if math.isfinite(value)
    ]
    means = [row for arm in arms for row in _estimated(arm, arm.difference)]
    if not means:
        return None
    side = "left" if comparison.mode == "min" else "right"
    title = f"{comparison.metric} minus {comparison.baseline}'s ({side} is better)"
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5, format="~g"))
    layers = _forest(comparison, x, [arm.name for arm in arms], "")
    caption = (
        f"Filled: the mean with its {100 * (1 - comparison.alpha):g} % interval. Rings: single seeds. "
        "An interval across the dashed line means that the arm may as well be no different."
    )
    return Figure(
        name="differences",
        title=f"Differences to {comparison.baseline}",
        caption=caption,
        views={"": (_specification(layers),)},
        data={"dots": dots, "means": means, "none": [{"value": 0.0}]},
    )


def speed(comparison: Comparison) -> Figure | None:
    """What the target costs each arm, and how many times less than the baseline; in images and in seconds.

    A seed that never reached the target is an arrow at the last image it saw. None without a target.
    """
    arms = [arm for arm in comparison.arms if arm.reached is not None]
    if not any(arm.speedup or arm.reached is not None for arm in arms[1:]):
        return None
    data: dict[str, Rows] = {"none": [{"value": 1.0}]}
    views = {"in images": _view(comparison, arms, data, "images")}
    if any(value is not None for arm in arms for value in arm.seconds_to_target.values()):
        views["in seconds"] = _view(comparison, arms, data, "seconds")
    goal = f"{comparison.baseline}'s final quality" if comparison.target == "baseline" else "the target"
    caption = (
        f"Left: until {goal} is reached and kept; rings are seeds, an arrow is one that saw that much and "
        "never reached it, a bar the Kaplan-Meier median. Right: how many times less than "
        f"{comparison.baseline}, to the quality that both reached: the mean with its "
        f"{100 * (1 - comparison.alpha):g} % interval; rings are seeds."
    )
    return Figure(name="speed", title="Speed", caption=caption, views=views, data=data)


def _view(
    comparison: Comparison, arms: Sequence[Arm], data: dict[str, Rows], unit: str
) -> tuple[Specification, ...]:
    """The costs, and the ratios where there are any, in one unit; their rows go into ``data``."""
    costs = [row for arm in arms for row in _costs(arm, unit)]
    ratios = arms[1:]
    found = {arm.name: arm.speedup if unit == "images" else arm.seconds_speedup for arm in ratios}
    means = [row for arm in ratios for row in _estimated(arm, found[arm.name])]
    dots = [
        {"arm": arm.name, "seed": str(seed), "value": ratio}
        for arm in ratios
        for seed, ratio in (arm.ratios.items() if unit == "images" else ())
    ]
    data |= {f"costs_{unit}": costs, f"means_{unit}": means, f"dots_{unit}": dots}
    data[f"medians_{unit}"] = [
        {"arm": arm.name, "value": arm.median.median, "low": arm.median.low, "high": arm.median.high}
        for arm in arms
        if unit == "images" and arm.median is not None and arm.median.median is not None
    ]
    views = [_costs_chart(comparison, [arm.name for arm in arms], unit)]
    if means or dots:
        order = [arm.name for arm in ratios if any(row["arm"] == arm.name for row in (*means, *dots))]
        views.append(_ratios_chart(comparison, order, [*means, *dots], unit))
    return tuple(views)


def _costs(arm: Arm, unit: str) -> Rows:
    """What each seed needed; where it never got there, what it had spent, and that this is a limit."""
    needed: Mapping[int, float | None] = arm.images_to_target if unit == "images" else arm.seconds_to_target
    rows: Rows = []
    for seed, value in needed.items():
        outcome = arm.outcomes[seed]
        spent: float | None = outcome.images
        if unit == "seconds":
            spent = outcome.seconds[-1][1] if outcome.seconds else None
        shown = spent if value is None else value
        if shown is not None:
            rows.append({"arm": arm.name, "seed": str(seed), "value": shown, "limit": value is None})
    return rows


def _costs_chart(comparison: Comparison, order: Sequence[str], unit: str) -> Specification:
    y, colour = _rows_of(order), _colour_of(comparison)
    axis = alt.Axis(tickCount=4, labelExpr="format(datum.value, '~s')")
    title = "images to the target" if unit == "images" else "seconds of training to the target"
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=True), axis=axis)
    limits = alt.Scale(domain=[False, True], range=["circle", "triangle-right"])
    seeds, medians = charts.of(f"costs_{unit}"), charts.of(f"medians_{unit}")
    tooltip = [alt.Tooltip("arm:N"), alt.Tooltip("seed:N"), alt.Tooltip("value:Q", format=",.5~r")]
    layers: list[alt.Chart] = [
        medians.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(strokeWidth=3, strokeCap="round", opacity=0.5)
        .encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour),
        medians.mark_tick(thickness=4, size=22).encode(x=x, y=y, color=colour, tooltip=_MEDIAN),
        seeds.mark_point(filled=False, size=46, opacity=0.85, strokeWidth=1.4).encode(
            x=x, y=y, color=colour, shape=alt.Shape("limit:N", scale=limits, legend=None), tooltip=tooltip
        ),
    ]
    return _specification(layers)


def _ratios_chart(comparison: Comparison, order: Sequence[str], rows: Rows, unit: str) -> Specification:
    ratios = [row[key] for row in rows for key in ("value", "low", "high") if row.get(key) is not None]
    # Beyond a factor of 20 an interval of few seeds tells nothing more.
    low, high = max(min(*ratios, 0.9) / 1.08, 1 / 20), min(max(*ratios, 1.12) * 1.08, 20.0)
    ticks = [tick for tick in (_FINE_TICKS if high < 2.5 * low else _TICKS) if low <= tick <= high]
    x = alt.X(
        "value:Q",
        title=f"speed-up in {unit} (right is better)",
        scale=alt.Scale(type="log", domain=[low, high], nice=False, clamp=True),
        axis=alt.Axis(values=ticks, format="~g"),
    )
    return _specification(_forest(comparison, x, order, f"_{unit}"))


def _forest(comparison: Comparison, x: alt.X, order: Sequence[str], suffix: str) -> list[alt.Chart]:
    """A row per arm: the line of no difference, the interval, rings for seeds below, a dot for the mean."""
    y, colour = _rows_of(order), _colour_of(comparison)
    means, dots = charts.of(f"means{suffix}"), charts.of(f"dots{suffix}")
    return [
        charts.of("none").mark_rule(strokeDash=[4, 3], opacity=0.7).encode(x=x),
        means.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=3, strokeCap="round")
        .encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour),
        dots.mark_point(filled=False, size=42, yOffset=13, opacity=0.8).encode(
            x=x, y=y, color=colour, tooltip=_SEED
        ),
        means.mark_circle(size=120, opacity=1).encode(x=x, y=y, color=colour, tooltip=_MEAN),
    ]


_SEED: Final = [alt.Tooltip("arm:N"), alt.Tooltip("seed:N"), alt.Tooltip("value:Q", format=".4~g")]
_MEAN: Final = [alt.Tooltip("arm:N")] + [
    alt.Tooltip(f"{key}:Q", format=".4~g") for key in ("value", "low", "high")
]
_MEDIAN: Final = [
    alt.Tooltip("arm:N"),
    alt.Tooltip("value:Q", title="median", format=","),
    alt.Tooltip("low:Q", format=","),
    alt.Tooltip("high:Q", format=","),
]


def _estimated(arm: Arm, found: Estimate | None) -> Rows:
    if found is None:
        return []
    return [{"arm": arm.name, "value": found.mean, "low": found.low, "high": found.high}]


def _rows_of(order: Sequence[str]) -> alt.Y:
    axis = alt.Axis(title=None, domain=False, ticks=False, grid=True, labelPadding=8)
    return alt.Y("arm:N", scale=alt.Scale(domain=list(order)), axis=axis)


def _colour_of(comparison: Comparison) -> alt.Color:
    colours = charts.palette(comparison)
    return alt.Color(
        "arm:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=None
    )


def _specification(layers: Sequence[alt.Chart]) -> Specification:
    return charts.specification(alt.LayerChart(layer=list(layers), width="container", height=alt.Step(46)))
