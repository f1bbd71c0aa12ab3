"""What an analysis found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

Plain = Mapping[str, Any]


def consistency(found: Plain) -> list[Table]:
    """A table for each pair: every measure, against its two nulls."""
    tables = []
    for pair in found["pairs"]:
        title = f"{pair['first']} and {pair['second']}, {found['count']} seeds"
        table = _table(title, "measure", "same noise", "shuffled", "p", "beyond linear")
        for each in pair["agreements"]:
            null = each["shuffled"]
            table.add_row(
                each["measure"].replace("_", ", "),
                _interval(each["value"]),
                f"{null['mean']:.2g}",
                f"{null['p']:.2g}",
                _interval(each["beyond_linear"]),
            )
        tables.append(table)
    return tables


def difficulty(found: Plain) -> list[Table]:
    """The gradients of each run by timestep, and which end is harder by which measure."""
    tables = []
    for run in found["runs"]:
        last = run["gradients"][-1]["ranges"]
        headings = ["timesteps", "grad norm²", "grad variance", "noise scale"]
        table = _table(f"{run['name']}, at the end of training", *headings)
        width = run["timesteps"] / len(last)
        for number, each in enumerate(last):
            table.add_row(
                f"{number * width:.0f} to {(number + 1) * width:.0f}",
                _interval(each["squared_norm"]),
                _interval(each["variance"]),
                "hidden by noise" if each["noise_scale"] is None else f"{each['noise_scale']:.3g}",
            )
        tables.append(table)
    if found["directions"]:
        table = _table(
            "Which end is harder: little noise minus much noise", "measure", "log ratio", "runs", ""
        )
        for each in found["directions"]:
            contrast = each["contrast"]
            table.add_row(each["measure"], _interval(contrast), str(contrast["n"]), each["finding"])
        tables.append(table)
    return tables


def landscape(found: Plain) -> list[Table]:
    """Curvature against its bound, and the barriers on lines."""
    sharp = _table("Sharpness", "run", "images", "Hessian", "preconditioned", "bound", "of bound")
    for each in found["sharpness"]:
        sharp.add_row(
            each["run"],
            f"{each['images']:,}",
            f"{each['hessian']['value']:.4g}",
            f"{each['preconditioned']['value']:.4g}",
            f"{each['bound']:.4g}",
            f"{each['share_of_bound']:.1%}",
        )
    lines = _table("Lines", "from", "to", "weights", "ends", "barrier")
    for line in found["lines"]:
        ends = f"{line['losses'][0]:.4g}, {line['losses'][-1]:.4g}"
        barrier = _interval(line["barrier"]) if line["barrier"]["mean"] > 0.0 else "none"
        lines.add_row(line["first"], line["second"], line["weights"], ends, barrier)
    return [sharp, lines] if found["lines"] else [sharp]


def _interval(value: Plain) -> str:
    if value["low"] is None:
        return f"{value['mean']:.3g}"
    return f"{value['mean']:.3g} [{value['low']:.2g}, {value['high']:.2g}]"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table
