"""``hasten check --plot``: what a run's schedules do over its horizon, as one picture.

Everything is drawn from the specification alone: nothing is trained, and torch is not needed. A study's arms
share the page: each panel draws equal arms once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import altair as alt
import numpy as np
import vl_convert
from numpy.typing import NDArray

from hasten.sweeps.plan import Plan
from hasten.sweeps.reports import charts
from hasten.trainers import averaging, curriculum, diffusion, learning_rate, momentum, weighting
from hasten.trainers.diffusion import Edm
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.specs import RunSpec

Array = NDArray[np.float64]
Arms = Mapping[str, RunSpec]

MOST_ARMS: Final = 8
"""More arms than this cannot be told apart: the first ones are drawn."""
_SUFFIXES: Final = (".html", ".png", ".svg")
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080", "#2b3036")
_DASHES: Final = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
_WIDTH: Final = 420
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
    """Arms that a panel cannot tell apart, drawn as their first one."""

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
    """One chart, as yet without its data, and that."""

    chart: alt.Chart
    rows: list[dict[str, Any]]


def draw(spec: RunSpec, path: Path) -> Path:
    """Draw one run's schedules into ``path``, or into ``schedules-NAME.html`` in that folder.

    Raises:
        ConfigError: the file is to be of another kind than .html, .png or .svg.
        Fault: it cannot be written.
    """
    target = _target(path, spec.name)
    return _write(_page({spec.name: spec}, name=spec.name), target)


def draw_plan(plan: Plan, path: Path) -> Path:
    """Draw the schedules of a study's arms into one page; see :func:`draw`."""
    specs = {trial.arm: trial.spec for trial in reversed(plan.trials)}
    arms = {arm: specs[arm] for arm in plan.arms}
    name, drawn = plan.study.name, dict(list(arms.items())[:MOST_ARMS])
    target = _target(path, name)
    return _write(_page(drawn, name=name, of=len(arms)), target)


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


def _page(arms: Arms, *, name: str, of: int = 1) -> dict[str, Any]:
    """The whole picture as one Vega-Lite specification."""
    densities = {arm: density(spec) for arm, spec in arms.items()}
    panels = [_heatmap(group) for group in _groups(arms, densities)]
    panels += [*_rates(arms), _weights(arms), _averages(arms)]
    budgets = {spec.budget.images for spec in arms.values()}
    horizon = f"over {budgets.pop():,} images" if len(budgets) == 1 else "over each run"
    drawn = f" (the first {len(arms)} of {of} arms)" if of > len(arms) else ""
    title = alt.Title(f"{name}: schedules {horizon}{drawn}", fontSize=17, offset=14)
    named = [
        panel.chart.properties(data=alt.NamedData(f"panel{index}")) for index, panel in enumerate(panels)
    ]
    chart = alt.ConcatChart(concat=named, columns=2, title=title, spacing=36)
    chart = chart.resolve_scale(color="independent", strokeDash="independent")
    with alt.theme.enable("none"):
        page: dict[str, Any] = chart.to_dict()
    # Put in only now: Altair would check every row against its schema, for a second.
    return page | {"datasets": {f"panel{index}": panel.rows for index, panel in enumerate(panels)}}


def _groups(arms: Arms, values: Mapping[str, Array]) -> list[_Group]:
    """The arms, with those together whose ``values`` are the same numbers."""
    together: dict[tuple[tuple[int, ...], bytes], list[str]] = {}
    for arm, array in values.items():
        together.setdefault((array.shape, array.astype(np.float32).tobytes()), []).append(arm)
    colours = dict(zip(arms, _COLOURS, strict=False))
    return [
        _Group(
            names=tuple(names), colour=colours[names[0]], spec=arms[names[0]], whole=len(names) == len(arms)
        )
        for names in together.values()
    ]


def _rates(arms: Arms) -> list[_Panel]:
    """Learning rate, beta1, and their quotient over the run."""
    values = {arm: _steered(spec) for arm, spec in arms.items()}
    panels = (
        (1, "learning rate", "warm-up, schedule and the momentum's factor together"),
        (2, "beta1", "the momentum"),
        (3, "learning rate / (1 - beta1)", "heavy ball's whole step; of an average, rate times length"),
    )
    found = []
    for row, title, note in panels:
        groups = _groups(arms, {arm: array[[0, row]] for arm, array in values.items()})
        lines = [
            _Line(
                name=group.label(),
                colour=group.colour,
                places=values[group.names[0]][0],
                values=values[group.names[0]][row],
            )
            for group in groups
        ]
        found.append(_lines(title, note, lines, x="progress"))
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
        {
            "x": column / moments,
            "x2": (column + 1) / moments,
            "y": row * height,
            "y2": (row + 1) * height,
            "ratio": float(ratio),
            "colour": float(np.clip(np.log2(max(ratio, 1e-9)), -_CLIP, _CLIP)),
        }
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
        .mark_rect(strokeWidth=0.6)
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
        .properties(width=_WIDTH, height=_HEIGHT, title=_title(title, note))
    )
    return _Panel(chart=chart, rows=rows)


def _weights(arms: Arms) -> _Panel:
    """The factor of each timestep's squared error; a twin's, which moves, at three moments."""

    def weight(spec: RunSpec, progress: float) -> Array:
        sigma_data = spec.diffusion.sigma_data if isinstance(spec.diffusion, Edm) else 0.5
        alphas_bar, predict = diffusion.alphas_bar(spec.diffusion), diffusion.prediction(spec.diffusion)
        return weighting.weights(
            spec.weighting, alphas_bar, predict, progress=progress, sigma_data=sigma_data
        )

    values = {arm: np.array([weight(spec, p) for p in (0.0, 0.5, 1.0)]) for arm, spec in arms.items()}
    lines = []
    for group in _groups(arms, values):
        still = weighting.constant(group.spec.weighting)
        for index, moment in enumerate(("",) if still else ("at 0%", "at 50%", "at 100%")):
            curve = values[group.names[0]][index]
            chosen = np.unique(np.linspace(0, len(curve) - 1, _MOMENTS).round().astype(np.int64))
            places = chosen.astype(np.float64)
            name, colour = group.label(moment), group.colour
            lines.append(_Line(name=name, colour=colour, places=places, values=curve[chosen], dash=index))
    return _lines("loss weight", "of a timestep's squared error", lines, x="timestep")


def _averages(arms: Arms) -> _Panel:
    """What the averaged weights at the end are made of, per part of the run; 1 is an even share."""

    def profiles(spec: RunSpec) -> Array:
        batch, images = spec.optimizer.batch, spec.budget.images
        bins = min(_MOMENTS, -(-images // batch))
        return bins * np.array(averaging.profiles(spec.ema, images=images, batch=batch, bins=bins))

    values = {arm: profiles(spec) for arm, spec in arms.items()}
    lines = []
    for group in _groups(arms, values):
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
    return _lines("averaged weights", note, lines, x="progress")


def _lines(title: str, note: str, lines: Sequence[_Line], *, x: str) -> _Panel:
    rows = [
        {"line": line.name, "x": float(place), "y": float(value)}
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
            title=None, orient="bottom", columns=2, symbolType="stroke", labelLimit=190, symbolSize=300
        )
        if any(names)
        else None
    )
    colour = alt.Scale(domain=names, range=[line.colour for line in lines])
    dash = alt.Scale(domain=names, range=[_DASHES[line.dash % len(_DASHES)] for line in lines])
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
        .properties(width=_WIDTH, height=_HEIGHT, title=_title(title, note))
    )
    return _Panel(chart=chart, rows=rows)


def _title(text: str, note: str) -> alt.Title:
    return alt.Title(
        text, subtitle=note, subtitleFontSize=11, subtitleColor="#5b636d", offset=8, frame="group"
    )


def _percent() -> alt.Axis:
    return alt.Axis(format=".0%", tickCount=5, grid=False)


def _plain() -> alt.Axis:
    return alt.Axis(tickCount=5, format="d", grid=False)


def _target(path: Path, name: str) -> Path:
    target = path / f"schedules-{name}.html" if path.is_dir() else path
    if target.suffix.lower() not in _SUFFIXES:
        problem = f"is no kind of picture that can be drawn: {target.suffix or 'it has no suffix'}"
        raise ConfigError(
            str(path), problem, f"Give a folder, or a file that ends in {', '.join(_SUFFIXES)}."
        )
    return target


def _write(page: dict[str, Any], target: Path) -> Path:
    look = charts.look(dark=False)
    match target.suffix.lower():
        case ".png":
            content: bytes = charts.png(page)
        case ".svg":
            content = vl_convert.vegalite_to_svg(page, config=look).encode()
        case _:
            content = vl_convert.vegalite_to_html(page, config=look, bundle=True).encode()
    try:
        target.write_bytes(content)
    except OSError as error:
        raise Fault(str(target), f"cannot be written: {error.strerror}") from None
    return target
