"""What schedules do over a run, drawn from specifications alone: nothing is trained, torch is not needed.

Runs share their panels, and each panel draws equal runs once: two arms that differ in their momentum have one
picture of their timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import altair as alt
import numpy as np
from numpy.typing import NDArray

from hasten.sweeps.reports import charts
from hasten.sweeps.reports.charts import Figure, Rows
from hasten.trainers import averaging, curriculum, diffusion, learning_rate, momentum, weighting
from hasten.trainers.diffusion import Edm
from hasten.trainers.specs import RunSpec

Array = NDArray[np.float64]
Runs = Mapping[str, RunSpec]

MOST_RUNS: Final = 8
"""More runs than this cannot be told apart: the first ones are drawn."""
_HEIGHT: Final = 200
_MOMENTS: Final = 200  # points of a curve over the run
_CELLS: Final = (50, 50)  # of the heatmap: over the run, over the timesteps
_CLIP: Final = 3.0  # the heatmap's colours end at 2^-3 and 2^3 of uniform
_PAST_LINEAR: Final = 50.0  # a curve whose values differ by more than this factor is drawn on a log axis


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One curve: its name in the legend, and values at places."""

    name: str
    colour: str
    places: Array
    values: Array
    dash: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Runs that a panel cannot tell apart, drawn as their first one."""

    names: tuple[str, ...]
    colour: str
    spec: RunSpec
    whole: bool

    def label(self, detail: str = "") -> str:
        """How the legend calls it: not at all where there is nothing else."""
        shown = ", ".join(self.names[:3]) + (f" and {more} more" if (more := len(self.names) - 3) > 0 else "")
        return " ".join(part for part in ("" if self.whole else shown, detail) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """One chart, as yet without its data, and that; ``shared`` by all runs where they do not differ in it."""

    title: str
    chart: alt.Chart
    rows: Rows
    shared: bool


def schedules(runs: Runs, colours: Mapping[str, str], *, differing: bool = False) -> Figure:
    """Densities over timesteps, rates, momentum, loss weights and averages.

    At least one run; the first ``MOST_RUNS`` are drawn, each in its colour. With ``differing`` panels in
    which all runs are equal are left out, unless they are equal in all.
    """
    drawn = {name: runs[name] for name in list(runs)[:MOST_RUNS]}
    densities = {name: density(spec) for name, spec in drawn.items()}
    panels = [_heatmap(group) for group in _groups(drawn, densities, colours)]
    panels += [*_rates(drawn, colours), _weights(drawn, colours), _averages(drawn, colours)]
    caption = "As the recipes say: nothing here is measured."
    apart = [panel for panel in panels if not panel.shared]
    if differing and apart:
        equal = ", ".join(panel.title for panel in panels if panel.shared)
        caption += f" Equal in all, and not drawn: {equal}." if equal else ""
        panels = apart
    specifications = [
        charts.specification(panel.chart.properties(data=alt.NamedData(f"panel{index}")))
        for index, panel in enumerate(panels)
    ]
    return Figure(
        name="schedules",
        title=f"Schedules {horizon(runs)}",
        caption=caption,
        views={"": tuple(specifications)},
        data={f"panel{index}": panel.rows for index, panel in enumerate(panels)},
    )


def horizon(runs: Runs) -> str:
    """``over 96,000 images``, and how many of the runs are drawn where not all are."""
    budgets = {spec.budget.images for spec in list(runs.values())[:MOST_RUNS]}
    over = f"over {budgets.pop():,} images" if len(budgets) == 1 else "over each run"
    return f"{over} (the first {MOST_RUNS} of {len(runs)} arms)" if len(runs) > MOST_RUNS else over


def rates(spec: RunSpec, before: int) -> tuple[float, float]:
    """``(lr, beta1)`` of the update that follows image ``before``, as the training loop sets them."""
    total = spec.budget.images
    after = min(before + spec.optimizer.batch, total)
    beta1, factor = momentum.at(spec.momentum, before / total)
    factor *= learning_rate.factor(spec.optimizer.schedule, before / total)
    return spec.optimizer.lr * factor * learning_rate.warmup(after / total, spec.optimizer.warmup), beta1


def density(spec: RunSpec) -> Array:
    """T p(t) over the run, shape (moments, bins): 1 where a timestep is as frequent as under uniform draws.

    Bins are equal ranges of timesteps, the least noise first; each holds the mean over its timesteps.
    """
    alphas_bar = diffusion.alphas_bar(spec.diffusion)
    moments, bins = _CELLS[0], min(_CELLS[1], len(alphas_bar))
    edges = np.linspace(0, len(alphas_bar), bins + 1).round().astype(np.int64)
    fixed = curriculum.density(spec.curriculum, alphas_bar)
    rows = []
    for progress in (np.arange(moments) + 0.5) / moments:
        pmf = curriculum.mixture(curriculum.share(spec.curriculum, progress), fixed)
        rows.append(np.add.reduceat(pmf, edges[:-1]) / np.diff(edges) * len(pmf))
    return np.array(rows)


def _groups(runs: Runs, values: Mapping[str, Array], colours: Mapping[str, str]) -> list[_Group]:
    """The runs, with those together whose ``values`` are the same numbers."""
    together: dict[tuple[tuple[int, ...], bytes], list[str]] = {}
    for arm, array in values.items():
        together.setdefault((array.shape, array.astype(np.float32).tobytes()), []).append(arm)
    return [
        _Group(
            names=tuple(names), colour=colours[names[0]], spec=runs[names[0]], whole=len(names) == len(runs)
        )
        for names in together.values()
    ]


def _rates(runs: Runs, colours: Mapping[str, str]) -> list[_Panel]:
    """Learning rate, beta1, and their quotient over the run."""
    values = {name: _steered(spec) for name, spec in runs.items()}
    panels = (
        (1, "learning rate", "warm-up, schedule and the momentum's factor together"),
        (2, "beta1", "the momentum"),
        (3, "learning rate / (1 - beta1)", "heavy ball's whole step; of an average, rate times length"),
    )
    found = []
    for row, title, note in panels:
        groups = _groups(runs, {name: array[[0, row]] for name, array in values.items()}, colours)
        lines = [
            _Line(
                name=group.label(),
                colour=group.colour,
                places=values[group.names[0]][0],
                values=values[group.names[0]][row],
            )
            for group in groups
        ]
        found.append(_lines(title, note, lines, x="progress", shared=len(groups) == 1))
    return found


def _steered(spec: RunSpec) -> Array:
    """Progress, lr, beta1 and lr/(1 - beta1), (4, N), evenly over the run with its first and last update."""
    total, batch = spec.budget.images, spec.optimizer.batch
    last = (total - 1) // batch
    before = np.unique(np.linspace(0, last, min(last + 1, _MOMENTS)).round().astype(np.int64)) * batch
    lr, beta1 = np.array([rates(spec, int(images)) for images in before]).T
    return np.array([before / total, lr, beta1, lr / (1.0 - beta1)])


def _heatmap(group: _Group) -> _Panel:
    spec, values = group.spec, density(group.spec)
    moments, bins = values.shape
    height = spec.diffusion.timesteps / bins
    rows = [
        {"x": column / moments, "y": row * height, "ratio": charts.number(ratio)}
        for column, line in enumerate(values)
        for row, ratio in enumerate(line)
    ]
    names = "datum.value < 0 ? '1/' + format(pow(2, -datum.value), 'd') : format(pow(2, datum.value), 'd')"
    steps = list(range(-int(_CLIP), int(_CLIP) + 1))
    legend = alt.Legend(title=None, values=steps, labelExpr=names, gradientLength=_HEIGHT, labelOverlap=False)
    scale = alt.Scale(scheme="blueorange", domain=[-_CLIP, _CLIP])
    title = f"timesteps: {label}" if (label := group.label()) else "timesteps"
    note = f"{spec.curriculum.kind}: draws relative to uniform ones"
    if curriculum.adaptive(spec.curriculum):
        note += "; adapts to the losses, drawn as it starts"
    chart: alt.Chart = (
        alt.Chart()
        .transform_calculate(
            x2=f"datum.x + {1 / moments}",
            y2=f"datum.y + {height}",
            colour=f"clamp(log(max(datum.ratio, 1e-9)) / LN2, {-_CLIP}, {_CLIP})",
        )
        .mark_rect(strokeWidth=1)
        .encode(
            x=alt.X("x:Q", title="progress", scale=alt.Scale(domain=[0, 1], nice=False), axis=_percent()),
            x2="x2:Q",
            y=alt.Y("y:Q", title="timestep (noise upwards)", scale=alt.Scale(nice=False), axis=_plain()),
            y2="y2:Q",
            color=alt.Color("colour:Q", scale=scale, legend=legend),
            stroke=alt.Stroke("colour:Q", scale=scale, legend=None),  # no seams between cells
            tooltip=[
                alt.Tooltip("x:Q", title="progress", format=".0%"),
                alt.Tooltip("y:Q", title="from timestep", format=".0f"),
                alt.Tooltip("ratio:Q", title="times uniform", format=".3~g"),
            ],
        )
        .properties(width="container", height=_HEIGHT, title=_title(title, note))
    )
    return _Panel(title="timesteps", chart=chart, rows=rows, shared=group.whole)


def _weights(runs: Runs, colours: Mapping[str, str]) -> _Panel:
    """The factor of each timestep's squared error; a twin's, which moves, at three moments."""

    def weight(spec: RunSpec, progress: float) -> Array:
        sigma_data = spec.diffusion.sigma_data if isinstance(spec.diffusion, Edm) else 0.5
        alphas_bar, predict = diffusion.alphas_bar(spec.diffusion), diffusion.prediction(spec.diffusion)
        return weighting.weights(
            spec.weighting, alphas_bar, predict, progress=progress, sigma_data=sigma_data
        )

    values = {name: np.array([weight(spec, p) for p in (0.0, 0.5, 1.0)]) for name, spec in runs.items()}
    lines = []
    groups = _groups(runs, values, colours)
    for group in groups:
        still = weighting.constant(group.spec.weighting)
        for index, moment in enumerate(("",) if still else ("at 0%", "at 50%", "at 100%")):
            curve = values[group.names[0]][index]
            chosen = np.unique(np.linspace(0, len(curve) - 1, _MOMENTS).round().astype(np.int64))
            places = chosen.astype(np.float64)
            name, colour = group.label(moment), group.colour
            lines.append(_Line(name=name, colour=colour, places=places, values=curve[chosen], dash=index))
    return _lines(
        "loss weight", "of a timestep's squared error", lines, x="timestep", shared=len(groups) == 1
    )


def _averages(runs: Runs, colours: Mapping[str, str]) -> _Panel:
    """What the averaged weights at the end are made of, per part of the run; 1 is an even share."""

    def profiles(spec: RunSpec) -> Array:
        batch, images = spec.optimizer.batch, spec.budget.images
        bins = min(_MOMENTS, -(-images // batch))
        return bins * np.array(averaging.profiles(spec.ema, images=images, batch=batch, bins=bins))

    values = {name: profiles(spec) for name, spec in runs.items()}
    lines = []
    groups = _groups(runs, values, colours)
    for group in groups:
        ema = group.spec.ema
        names = (
            [f"std {std:g}" for std in ema.stds]
            if isinstance(ema, averaging.PowerEma)
            else [f"decay {ema.decay:g}"]
        )
        for index, (name, profile) in enumerate(zip(names, values[group.names[0]], strict=True)):
            places = (np.arange(len(profile)) + 0.5) / len(profile)
            label, colour = group.label(name), group.colour
            lines.append(_Line(name=label, colour=colour, places=places, values=profile, dash=index))
    note = "how much of the last average is from when; 1 is an even share"
    return _lines("averaged weights", note, lines, x="progress", shared=len(groups) == 1)


def _lines(title: str, note: str, lines: Sequence[_Line], *, x: str, shared: bool) -> _Panel:
    rows = [
        {"line": line.name, "x": charts.number(place), "y": charts.number(value)}
        for line in lines
        for place, value in zip(line.places, line.values, strict=True)
    ]
    heights = np.concatenate([line.values for line in lines])
    logarithmic = x == "timestep" and heights.min() > 0.0 and heights.max() > _PAST_LINEAR * heights.min()
    scale, upright = alt.Scale(zero=True, nice=True), alt.Axis(tickCount=5, format="~g")
    if logarithmic:
        powers = range(math.ceil(math.log10(heights.min())), math.floor(math.log10(heights.max())) + 1)
        scale = alt.Scale(type="log", nice=False)
        upright = alt.Axis(values=[10.0**power for power in powers], format="~g")
    names = [line.name for line in lines]
    legend = (
        alt.Legend(
            title=None, orient="bottom", columns=2, symbolType="stroke", labelLimit=230, symbolSize=300
        )
        if any(names)
        else None
    )
    colour = alt.Scale(domain=names, range=[line.colour for line in lines])
    dash = alt.Scale(domain=names, range=[charts.DASHES[line.dash % len(charts.DASHES)] for line in lines])
    across = (
        alt.X("x:Q", title=x, scale=alt.Scale(domain=[0, 1], nice=False), axis=_percent())
        if x == "progress"
        else alt.X("x:Q", title=x, scale=alt.Scale(nice=False), axis=_plain())
    )
    chart: alt.Chart = (
        alt.Chart()
        .mark_line(strokeWidth=2.2)
        .encode(
            x=across,
            y=alt.Y("y:Q", title=None, scale=scale, axis=upright),
            color=alt.Color("line:N", scale=colour, legend=legend),
            strokeDash=alt.StrokeDash("line:N", scale=dash, legend=legend),
        )
        .properties(width="container", height=_HEIGHT, title=_title(title, note))
    )
    return _Panel(title=title, chart=chart, rows=rows, shared=shared)


def _title(text: str, note: str) -> alt.Title:
    return alt.Title(text, subtitle=note, subtitleFontSize=11, offset=8, frame="group")


def _percent() -> alt.Axis:
    return alt.Axis(format=".0%", tickCount=5, grid=False)


def _plain() -> alt.Axis:
    return alt.Axis(tickCount=5, format="d", grid=False)
