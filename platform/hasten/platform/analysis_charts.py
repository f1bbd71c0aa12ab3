"""The plots of ``hasten analyze consistency`` and ``landscape``, and what all plots of analyses share.

Names of runs only ever enter as data values or titles, never as a field name or an expression.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import altair as alt
import numpy as np
from numpy.typing import NDArray

from hasten.sweeps.reports import charts
from hasten.trainers.checkpoints import png

Plain = Mapping[str, Any]
Rows = list[dict[str, Any]]

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
_GREY: Final = "#808080"
_SEEDS: Final = 14  # columns of the picture
_TILE: Final = 46  # its images' width in points
_MEASURES: Final = {
    "mse": "mean squared error (left is better)",
    "psnr": "PSNR in dB (right is better)",
    "ssim": "SSIM (right is better)",
    "cosine": "cosine of features (right is better)",
    "retrieval": "retrieval accuracy by pixels (right is better)",
    "retrieval_features": "retrieval accuracy by features (right is better)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One plot: its file's name, what to read in it, and its specification."""

    name: str
    caption: str
    chart: Mapping[str, Any]

    @property
    def png(self) -> bytes:
        return charts.png(self.chart)


def consistency(found: Plain, samples: Mapping[str, NDArray[np.float32]], *, pixels: bool) -> list[Figure]:
    """The agreement of every pair against its nulls, and the images themselves where there are any."""
    caption = (
        "Dots: the mean over seeds with its 95 % interval. Grey bands: the middle 95 % of the same measure "
        "with seeds shuffled. Diamonds: the agreement of the two networks with the linear denoiser's images "
        "of the same noise, the mean of the two."
    )
    figures = [Figure(name="agreement", caption=caption, chart=specification(_agreement(found)))]
    if pixels and next(iter(samples.values())).shape[1] in (1, 3):
        caption = "Columns share their noise. The last rows are what second moments alone make of it."
        figures.insert(0, Figure(name="samples", caption=caption, chart=specification(_pictures(samples))))
    return figures


def landscape(found: Plain) -> list[Figure]:
    """The loss along lines, and curvature against the bound of stability."""
    figures = []
    if found["lines"]:
        caption = (
            "Held-out loss on the straight line between two states of the weights. Dashed: the straight line "
            "between the two ends' losses; the barrier is what rises above it."
        )
        figures.append(Figure(name="lines", caption=caption, chart=specification(_lines(found))))
    caption = (
        "Dots: the largest eigenvalue in the optimizer's own metric. Bars: the bound beyond which the "
        "optimizer would be unstable on a quadratic. Rings: the plain Hessian's largest eigenvalue."
    )
    figures.append(Figure(name="sharpness", caption=caption, chart=specification(_sharpness(found))))
    return figures


def _agreement(found: Plain) -> alt.ConcatChart:
    pairs = [f"{pair['first']} · {pair['second']}" for pair in found["pairs"]]
    rows: dict[str, Rows] = {}
    for name, pair in zip(pairs, found["pairs"], strict=True):
        for each in pair["agreements"]:
            rows.setdefault(each["measure"], []).append(
                {
                    "pair": name,
                    "value": each["value"]["mean"],
                    "low": each["value"]["low"],
                    "high": each["value"]["high"],
                    "linear": each["linear"]["mean"],
                    "null_low": each["shuffled"]["low"],
                    "null_high": each["shuffled"]["high"],
                    "p": each["shuffled"]["p"],
                }
            )
    panels = [_panel(rows[measure], title, pairs) for measure, title in _MEASURES.items() if measure in rows]
    return alt.concat(*panels, columns=2, spacing=30)


def _panel(rows: Rows, title: str, pairs: Sequence[str]) -> alt.LayerChart:
    axis = alt.Axis(title=None, domain=False, ticks=False, grid=True, labelPadding=8, labelLimit=170)
    y = alt.Y("pair:N", sort=list(pairs), axis=axis)
    scale = alt.Scale(zero=False, nice=True, padding=8)
    tooltip = [alt.Tooltip(f"{key}:Q", format=".4~g") for key in ("value", "low", "high", "linear", "p")]
    x = alt.X("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5, format="~g"))
    layers = [
        chart(rows).mark_rule(strokeWidth=11, color=_GREY, opacity=0.35)
        .encode(x="null_low:Q", x2="null_high:Q", y=y),
        chart(rows).mark_rule(strokeWidth=2.5, color=_COLOURS[0]).encode(x="low:Q", x2="high:Q", y=y),
        chart(rows).mark_point(shape="diamond", filled=False, size=70, strokeWidth=1.8, color=_COLOURS[1])
        .encode(x="linear:Q", y=y),
        chart(rows).mark_circle(size=70, opacity=1, color=_COLOURS[0]).encode(x=x, y=y, tooltip=tooltip),
    ]  # fmt: skip
    return alt.LayerChart(layer=layers, width=240, height=alt.Step(30))


def _pictures(samples: Mapping[str, NDArray[np.float32]]) -> alt.LayerChart:
    shown = min(_SEEDS, len(next(iter(samples.values()))))
    rows = [{"model": name, "url": _strip(images[:shown])} for name, images in samples.items()]
    axis = alt.Axis(title=None, domain=False, ticks=False, grid=False, labelPadding=8, labelLimit=220)
    strips = (
        chart(rows)
        .mark_image(width=shown * _TILE, height=_TILE - 4, align="left", aspect=False, smooth=False)
        .encode(
            x=alt.value(0),
            y=alt.Y("model:N", sort=list(samples), axis=axis),
            url="url:N",
        )
    )
    return alt.LayerChart(
        layer=[strips],
        width=shown * _TILE,
        height=alt.Step(_TILE),
        title="One column of noise, each network's image of it",
    )


def _strip(images: NDArray[np.float32]) -> str:
    """Images (n, C, H, W) in [-1, 1] side by side, enlarged by whole factors, as a data URI."""
    count, _, height, width = images.shape
    pixels = np.round((images.clip(-1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    factor = max(1, 2 * _TILE // max(height, width))
    large = pixels.repeat(factor, axis=2).repeat(factor, axis=3)
    gap = max(1, factor * width // 22)
    strip = np.full((height * factor, count * (width * factor + gap), 3), 150, dtype=np.uint8)
    for place, tile in enumerate(large):
        left = place * (width * factor + gap)
        strip[:, left : left + width * factor] = np.broadcast_to(
            tile.transpose(1, 2, 0), (height * factor, width * factor, 3)
        )
    return f"data:image/png;base64,{b64encode(png(strip)).decode()}"


def _lines(found: Plain) -> alt.VConcatChart:
    """Lines within a run and lines between runs differ by an order of magnitude: a panel for each."""
    within = [line for line in found["lines"] if line["kind"] == "within"]
    between = [line for line in found["lines"] if line not in within]
    titles = {"between runs": between, "within a run": within}
    joined: alt.VConcatChart = alt.vconcat(
        *[_line_panel(lines, title) for title, lines in titles.items() if lines], spacing=24
    ).resolve_scale(color="independent")
    return joined


def _line_panel(lines: Sequence[Plain], title: str) -> alt.LayerChart:
    names = [f"{line['first']} → {line['second']} ({line['weights']} weights)" for line in lines]
    rows = [
        {"line": name, "fraction": fraction, "loss": loss, "chord": chord}
        for name, line in zip(names, lines, strict=True)
        for fraction, loss, chord in zip(
            line["fractions"],
            line["losses"],
            np.interp(line["fractions"], [0.0, 1.0], [line["losses"][0], line["losses"][-1]]).tolist(),
            strict=True,
        )
    ]
    losses = [row["loss"] for row in rows]
    logarithmic = min(losses) > 0 and max(losses) > 4 * min(losses)
    scale = alt.Scale(type="log", nice=False) if logarithmic else alt.Scale(zero=False, nice=False)
    legend = alt.Legend(title=None, orient="right", labelLimit=420, symbolType="stroke")
    colour = colours(names, field="line", legend=legend)
    axis = alt.Axis(format="~g", tickCount=5)
    x = alt.X("fraction:Q", title="share of the way from the first to the second", axis=axis)
    base = chart(rows).encode(x=x, color=colour)
    return alt.LayerChart(
        layer=[
            base.mark_line(strokeDash=[4, 3], strokeWidth=1, opacity=0.7).encode(y=alt.Y("chord:Q")),
            base.mark_line(strokeWidth=2.4).encode(
                y=alt.Y("loss:Q", title="held-out loss", scale=scale, axis=alt.Axis(tickCount=5, format="~g"))
            ),
        ],
        width=440,
        height=240,
        title=title,
    )


def _sharpness(found: Plain) -> alt.LayerChart:
    rows = [
        {
            "moment": f"{each['run']}, {each['images']:,} images",
            "bound": each["bound"],
            "preconditioned": each["preconditioned"]["value"],
            "hessian": each["hessian"]["value"],
            "share": each["share_of_bound"],
        }
        for each in found["sharpness"]
    ]
    kept = [row for row in rows if row["preconditioned"] > 0 and row["hessian"] > 0]
    axis = alt.Axis(title=None, domain=False, ticks=False, grid=True, labelPadding=8, labelLimit=260)
    y = alt.Y("moment:N", sort=[row["moment"] for row in rows], axis=axis)
    x = alt.X(
        "bound:Q",
        title="largest eigenvalue",
        scale=alt.Scale(type="log", padding=16),
        axis=alt.Axis(tickCount=6, format="~s"),
    )
    tooltip = [
        alt.Tooltip(f"{key}:Q", format=".4~g") for key in ("preconditioned", "bound", "share", "hessian")
    ]
    return alt.LayerChart(
        layer=[
            chart(kept).mark_tick(thickness=3, size=22, color=_COLOURS[1]).encode(x=x, y=y, tooltip=tooltip),
            chart(kept).mark_point(size=70, strokeWidth=2, color=_GREY)
            .encode(x="hessian:Q", y=y, tooltip=tooltip),
            chart(kept).mark_circle(size=90, opacity=1, color=_COLOURS[0])
            .encode(x="preconditioned:Q", y=y, tooltip=tooltip),
        ],
        width=520,
        height=alt.Step(34),
    )  # fmt: skip


def colours(names: Sequence[str], *, field: str = "run", legend: alt.Legend | None = None) -> alt.Color:
    """A colour for each name in ``field``, the same in every plot that has the same names."""
    colours = [_COLOURS[place % len(_COLOURS)] for place in range(len(names))]
    key = legend or alt.Legend(title=None, orient="top", columns=3, labelLimit=200, symbolType="stroke")
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=list(names), range=colours), legend=key)


def specification(drawn: alt.TopLevelMixin) -> dict[str, Any]:
    """A chart's specification with its data inside, and without a look of its own."""
    with alt.data_transformers.enable("default", max_rows=None), alt.theme.enable("none"):
        found: dict[str, Any] = drawn.to_dict()
    return found


def chart(rows: Rows) -> alt.Chart:
    """A chart with its data inside."""
    return alt.Chart(alt.InlineData(values=rows))
