"""The plots of ``hasten analyze difficulty``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import altair as alt

from hasten.platform.analysis_charts import Figure, Plain, Rows, chart, colours, specification

Table = Mapping[int, Sequence[float | None]]


def figures(found: Plain) -> list[Figure]:
    """Loss over training and by timestep, convergence, gradients, and how ranges pull on each other."""
    drawn = []
    if any(run["history"] for run in found["runs"]):
        caption = (
            "The averaged network's held-out loss over the optimal linear denoiser's, by range of timesteps "
            "and moment of training. Below 1 (blue) the network knows more than second moments."
        )
        drawn.append(Figure(name="loss", caption=caption, chart=specification(_losses(found))))
        caption = (
            f"Images after which a range's loss stays within {found['within']:.0%} of its final value; a "
            "triangle marks a range that only the last evaluation puts there."
        )
        drawn.append(Figure(name="convergence", caption=caption, chart=specification(_convergence(found))))
    caption = (
        "Of the loss of the network's own answer, at the end of training, with 95 % intervals over "
        "mini-batches; norm and variance are in units of the linear denoiser's loss. A noise scale or norm "
        "is left out where noise hides the gradient."
    )
    drawn.append(Figure(name="gradients", caption=caption, chart=specification(_gradients(found))))
    if any(len(run["gradients"]) > 1 for run in found["runs"]):
        caption = (
            "Over training, at the averages that the run kept: the gradient's norm, and the standard "
            "deviation of a single image's gradient, in units of the linear denoiser's loss. White: hidden "
            "by noise."
        )
        view = specification(_over_training(found))
        drawn.append(Figure(name="gradients_over_training", caption=caption, chart=view))
    caption = (
        "Cosines between the expected gradients of two ranges, early and at the end: below 0 (red) a step "
        "for one undoes the other. Grey: one of the two is hidden by noise."
    )
    drawn.append(Figure(name="interference", caption=caption, chart=specification(_interference(found))))
    return drawn


def _heatmaps(
    tables: Sequence[tuple[str, Plain, Table]], title: str, middle: float | None
) -> alt.ConcatChart:
    """A panel for each ``(title, run, {step: values by range})``, all with one scale of colours."""
    colour = alt.Color(
        "value:Q",
        title=title,
        scale=alt.Scale(type="log", scheme="blueorange", domainMid=middle)
        if middle
        else alt.Scale(type="log", scheme="viridis"),
        legend=alt.Legend(format="~g", tickCount=5),
    )
    panels = [_heatmap(name, run, table, colour) for name, run, table in tables]
    joined: alt.ConcatChart = alt.concat(*panels, columns=2, spacing=30).resolve_scale(color="shared")
    return joined


def _heatmap(title: str, run: Plain, table: Table, colour: alt.Color) -> alt.Chart:
    """A moment reaches half-way to its neighbours."""
    steps, ranges = sorted(table), len(next(iter(table.values())))
    between = [(first + second) / 2 for first, second in pairwise(steps)]
    spans = zip(steps, [steps[0], *between], [*between, steps[-1]], strict=True)
    rows = [
        {"from": start, "to": end, "low": number, "high": number + 1, "value": value, "step": step}
        for step, start, end in spans
        for number, value in enumerate(table[step])
        if value is not None and value > 0.0
    ]
    labels = alt.Axis(
        values=list(range(ranges + 1)),
        labelExpr=f"format(datum.value * {run['timesteps'] / ranges}, '~s')",
        grid=False,
    )
    steps_axis = alt.Axis(labelExpr="format(datum.value, '~s')", tickCount=5, grid=False)
    x = alt.X("from:Q", title="images seen", scale=alt.Scale(domain=[steps[0], steps[-1]]), axis=steps_axis)
    y = alt.Y(
        "low:Q", title="timestep (much noise at the top)", scale=alt.Scale(domain=[0, ranges]), axis=labels
    )
    drawn: alt.Chart = (
        chart(rows)
        .mark_rect()
        .encode(x=x, x2="to:Q", y=y, y2="high:Q", color=colour)
        .encode(tooltip=[alt.Tooltip("step:Q", format=","), alt.Tooltip("value:Q", format=".3~g")])
        .properties(width=280, height=240, title=title)
    )
    return drawn


def _losses(found: Plain) -> alt.ConcatChart:
    runs = [run for run in found["runs"] if run["history"]]
    tables = [(run["name"], run, {row["step"]: row["relative"] for row in run["history"]}) for run in runs]
    return _heatmaps(tables, "loss / linear", 1.0)


def _over_training(found: Plain) -> alt.ConcatChart:
    tables = [
        (
            f"{run['name']}: {words}",
            run,
            {moment["images"]: [each[key] for each in moment["ranges"]] for moment in run["gradients"]},
        )
        for run in found["runs"]
        if len(run["gradients"]) > 1
        for key, words in (("relative_norm", "norm"), ("relative_deviation", "deviation"))
    ]
    return _heatmaps(tables, "/ linear loss", None)


def _convergence(found: Plain) -> alt.LayerChart:
    runs = [run for run in found["runs"] if run["history"]]
    rows = [
        {
            "run": run["name"],
            "range": _middle(run, number, len(run["images_to_convergence"])),
            "images": run["history"][-1]["step"] if images is None else images,
            "never": images is None,
        }
        for run in runs
        for number, images in enumerate(run["images_to_convergence"])
    ]
    colour = colours([run["name"] for run in runs])
    x = alt.X("range:Q", title="timestep (much noise at the right)", scale=_timesteps(runs))
    y = alt.Y(
        "images:Q",
        title="images to convergence",
        axis=alt.Axis(labelExpr="format(datum.value, '~s')", tickCount=6),
    )
    shape = alt.Shape(
        "never:N", scale=alt.Scale(domain=[False, True], range=["circle", "triangle-up"]), legend=None
    )
    base = chart(rows).encode(x=x, y=y, color=colour)
    layers = [
        base.mark_line(strokeWidth=1.5, opacity=0.6),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            shape=shape, tooltip=["run:N", alt.Tooltip("images:Q", format=",")]
        ),
    ]
    return alt.LayerChart(layer=layers, width=620, height=260)


def _gradients(found: Plain) -> alt.ConcatChart:
    panels: dict[str, Rows] = {}
    for run in found["runs"]:
        last = run["gradients"][-1]["ranges"]
        for number, each in enumerate(last):
            place = {"run": run["name"], "range": _middle(run, number, len(last))}
            norm, variance = each["squared_norm"], each["variance"]
            unit = each["relative_variance"] / variance["mean"]
            if norm["low"] is not None and norm["low"] > 0.0:
                ends = [math.sqrt(norm[key] * unit) for key in ("mean", "low", "high")]
                panels.setdefault("gradient norm / linear loss", []).append(place | _ends(*ends))
                panels.setdefault("gradient noise scale in images", []).append(
                    place | _ends(each["noise_scale"])
                )
            ends = [max(variance[key] * unit, 1e-12) for key in ("mean", "low", "high")]
            panels.setdefault("gradient variance / (linear loss)²", []).append(place | _ends(*ends))
    colour = colours([run["name"] for run in found["runs"]])
    return alt.concat(
        *[_by_range(rows, title, colour, found["runs"]) for title, rows in sorted(panels.items())],
        columns=2,
        spacing=30,
    )


def _by_range(rows: Rows, title: str, colour: alt.Color, runs: Sequence[Plain]) -> alt.LayerChart:
    x = alt.X("range:Q", title="timestep", scale=_timesteps(runs))
    scale = alt.Scale(type="log", nice=True)
    y = alt.Y("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=4, format="~g"))
    base = chart(rows).encode(x=x, color=colour)
    return alt.LayerChart(
        layer=[
            base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(y=alt.Y("low:Q"), y2="high:Q"),
            base.mark_line(strokeWidth=1.5, opacity=0.7).encode(y=y),
            base.mark_circle(size=45, opacity=1).encode(
                y=y, tooltip=["run:N", alt.Tooltip("value:Q", format=".3~g")]
            ),
        ],
        width=270,
        height=200,
    )


def _interference(found: Plain) -> alt.ConcatChart:
    panels = []
    shown = [(run, moment) for run in found["runs"] for moment in _ends_of(run["gradients"])]
    for run, moment in shown:
        matrix = moment["interference"]
        # Vega leaves rows without a value out, and with them their places on the axes.
        rows = [
            {"a": i, "b": j, "cosine": value or 0.0, "seen": value is not None}
            for i, row in enumerate(matrix)
            for j, value in enumerate(row)
        ]
        axis = alt.Axis(
            labelExpr=f"format(datum.value * {run['timesteps'] / len(matrix)}, '~s')", labelAngle=0
        )
        panels.append(
            chart(rows)
            .mark_rect()
            .encode(
                x=alt.X("a:O", title="timestep from", axis=axis),
                y=alt.Y("b:O", title="timestep from", sort="descending", axis=axis),
                color=alt.condition(
                    "datum.seen",
                    alt.Color("cosine:Q", scale=alt.Scale(scheme="redblue", domain=[-1, 1])),
                    alt.value("#b8bcc2"),
                ),
                tooltip=[alt.Tooltip("cosine:Q", format=".2f")],
            )
            .properties(
                width=alt.Step(24), height=alt.Step(24), title=f"{run['name']}, {moment['images']:,} images"
            )
        )
    return alt.concat(*panels, columns=2, spacing=30)


def _ends_of(moments: Sequence[Plain]) -> Sequence[Plain]:
    return moments if len(moments) < 2 else [moments[0], moments[-1]]


def _ends(value: float, low: float | None = None, high: float | None = None) -> dict[str, float]:
    return {"value": value, "low": value if low is None else low, "high": value if high is None else high}


def _middle(run: Plain, number: int, ranges: int) -> float:
    return float((number + 0.5) * run["timesteps"] / ranges)


def _timesteps(runs: Sequence[Plain]) -> alt.Scale:
    return alt.Scale(domain=[0, max(run["timesteps"] for run in runs)], nice=False)
