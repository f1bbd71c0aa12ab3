"""``hasten check --plot``: what a run's schedules do over its horizon, as one picture.

A study's arms share the page: each panel draws equal arms once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import vl_convert

from hasten.sweeps.plan import Plan
from hasten.sweeps.reports import charts, schedules
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.specs import RunSpec

_SUFFIXES: Final = (".html", ".png", ".svg")
_COLOURS: Final = (*charts.COLOURS, charts.GREY, "#2b3036")
_WIDTH: Final = 420


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
    target = _target(path, plan.study.name)
    return _write(_page(arms, name=plan.study.name), target)


def _page(runs: schedules.Runs, *, name: str) -> dict[str, Any]:
    """The whole picture as one Vega-Lite specification."""
    figure = schedules.schedules(runs, dict(zip(runs, _COLOURS, strict=False)))
    panels = [{**panel, "width": _WIDTH} for panels in figure.views.values() for panel in panels]
    title = {"text": f"{name}: schedules {schedules.horizon(runs)}", "fontSize": 17, "offset": 14}
    return charts.side_by_side(*panels) | {"title": title, "datasets": dict(figure.data)}


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
