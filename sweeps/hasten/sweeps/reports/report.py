"""A study's report: one HTML page that needs no network, and its plots as PNG.

The page opens from disk and inside a sandboxed frame: script, data and pictures are in it, and its own
security policy forbids any request. Everything that a user may have written is escaped.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import vl_convert
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hasten.sweeps.records import TrialResult
from hasten.sweeps.reports import charts, table
from hasten.sweeps.statistics.comparison import Arm, Comparison
from hasten.trainers.specs import flatten

Facts = list[tuple[str, str]]

PAGE: Final = "report.html"
_ELSEWHERE: Final = ("name", "execution", "budget.seed")
"""Recipe keys in which runs may differ without being different arms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One plot: the charts it is made of in the page, and the same as one picture."""

    name: str
    title: str
    caption: str
    charts: Mapping[str, Mapping[str, Any]]
    png: bytes

    @property
    def picture(self) -> str:
        return _data_uri(self.png)


def write_report(
    comparison: Comparison,
    results: Sequence[TrialResult],
    folder: Path,
    *,
    title: str,
    question: str = "",
    notes: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
    samples: Mapping[str, bytes] | None = None,
    expectation: str = "",
) -> list[Path]:
    """Write ``report.html``, ``curves.png``, ``differences.png`` and ``speedups.png`` into ``folder``.

    A plot that has nothing to show is left out, and removed if an earlier report left it there. ``notes``
    follow the comparison's own. A link that is not an http(s) address is shown as a command. ``samples``
    holds one PNG per arm, ``expectation`` what was predicted before the runs. Returns the files written,
    the page first.

    Raises ``OSError`` where the folder cannot be written.
    """
    figures = _figures(comparison)
    # One script block can be ended from within: the text must not hold its closing tag.
    bundle = Markup(_bundle().replace("</script", "<\\/script")) if figures else ""
    page = _template().render(
        comparison=comparison,
        title=title,
        question=question,
        expectation=expectation,
        headline=table.headline(comparison),
        explanation=table.explanation(comparison),
        won=comparison.winner is not None,
        percent=table.percent(comparison),
        facts=_facts(comparison, results),
        rows=[_row(comparison, arm, results) for arm in comparison.arms],
        figures=figures,
        samples=[(arm, _data_uri(png)) for arm, png in _in_order(comparison, samples or {})],
        notes=list(dict.fromkeys([*comparison.notes, *notes])),
        commands=[(name, value) for name, value in (links or {}).items() if not _is_address(value)],
        links=[(name, value) for name, value in (links or {}).items() if _is_address(value)],
        provenance=_provenance(results),
        charts={name: chart for figure in figures for name, chart in figure.charts.items()},
        looks={"light": charts.look(dark=False), "dark": charts.look(dark=True)},
        bundle=bundle,
    )
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {f"{figure.name}.png": figure.png for figure in figures}
    for stale in {"curves.png", "differences.png", "speedups.png"} - pictures.keys():
        (folder / stale).unlink(missing_ok=True)
    for name, content in {PAGE: page.encode(), **pictures}.items():
        (folder / name).write_bytes(content)
    return [folder / PAGE, *(folder / name for name in pictures)]


def _figures(comparison: Comparison) -> list[Figure]:
    whole = charts.curves(comparison, width="container")
    closing = charts.curves(comparison, width="container", closing=True)
    apart = charts.differences(comparison, width="container")
    speed = charts.speedups(comparison, width="container")
    figures = []
    if whole is not None and closing is not None:
        caption = (
            "Thin lines are seeds, bold ones the mean of an arm's finished runs. "
            "Hover to read the means; click an arm in the legend to pick it out (shift for several)."
        )
        if comparison.target is not None:
            final = "the baseline's mean final value" if comparison.target == "baseline" else "the target"
            caption += f" Dashed: {final}."
        views = {"curves": charts.vegalite(whole), "closing": charts.vegalite(closing)}
        figures.append(_figure("curves", f"{comparison.metric} while training", caption, views, width=420))
    if apart is not None:
        caption = (
            f"Filled: the mean with its {table.percent(comparison)} interval. Rings: single seeds. "
            "An interval across the dashed line means that the arm may as well be no different."
        )
        views = {"differences": charts.vegalite(apart)}
        figures.append(_figure("differences", f"Differences to {comparison.baseline}", caption, views))
    if speed is not None:
        goal = "the baseline's own final quality" if comparison.target == "baseline" else "the target"
        caption = (
            f"Images until {goal} is reached and kept, as a ratio. Rings: single seeds. A triangle is a seed "
            "that never reached it: its speed-up is at most that. An arm has a mean only if every seed did."
        )
        figures.append(_figure("speedups", "Speed-up", caption, {"speedups": charts.vegalite(speed)}))
    return figures


def _figure(
    name: str, title: str, caption: str, views: Mapping[str, dict[str, Any]], *, width: int = 640
) -> Figure:
    """The picture is of the very specifications that the page draws, at a width of its own."""
    fixed = [{**view, "width": width} for view in views.values()]
    whole = fixed[0] if len(fixed) == 1 else charts.side_by_side(*fixed)
    shown = {f"chart-{key}": view for key, view in views.items()}
    return Figure(name=name, title=title, caption=caption, charts=shown, png=charts.png(whole))


def _row(comparison: Comparison, arm: Arm, results: Sequence[TrialResult]) -> dict[str, str]:
    difference, p = table.against_text(comparison, arm)
    quiet = arm.name == comparison.baseline or comparison.is_control(arm)
    return {
        "name": arm.name,
        "kind": "winner" if arm.name == comparison.winner else "quiet" if quiet else "",
        "colour": charts.palette(comparison)[arm.name],
        "changes": _changes(comparison, arm, results),
        "seeds": str(arm.n) if arm.n == arm.expected else f"{arm.n} of {arm.expected}",
        "mean": table.mean_text(arm),
        "difference": difference,
        "p": p,
        "speedup": table.speedup_text(arm),
    }


def _changes(comparison: Comparison, arm: Arm, results: Sequence[TrialResult]) -> str:
    """The recipe keys in which an arm differs from the baseline, as ``key=value``."""
    specs = {trial.arm: _recipe(trial.result.spec) for trial in reversed(results)}
    ours, theirs = specs.get(arm.name), specs.get(comparison.baseline)
    if ours is None or theirs is None or arm.name == comparison.baseline:
        return ""
    return ", ".join(f"{key}={value}" for key, value in ours.items() if theirs.get(key, ...) != value)


def _recipe(spec: Mapping[str, Any]) -> dict[str, Any]:
    flat = flatten(dict(spec))
    return {key: value for key, value in flat.items() if not _under(key, _ELSEWHERE)}


def _under(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _facts(comparison: Comparison, results: Sequence[TrialResult]) -> Facts:
    better = "lower" if comparison.mode == "min" else "higher"
    target = (
        f"{comparison.baseline}'s own final value at the same seed"
        if comparison.target == "baseline"
        else str(comparison.target)
    )
    evaluations = _distinct(_words(trial.result.spec.get("eval")) for trial in results)
    facts = [
        ("baseline", comparison.baseline),
        ("metric", f"{comparison.metric}, {better} is better, at the end of a run"),
        ("seeds", ", ".join(str(seed) for seed in comparison.reference.outcomes)),
        ("target", target if comparison.target is not None else ""),
        ("images a run", _distinct(f"{trial.result.images:,}" for trial in results)),
        ("evaluation", evaluations),
    ]
    return [(name, value) for name, value in facts if value]


def _provenance(results: Sequence[TrialResult]) -> Facts:
    environments = [trial.result.environment for trial in results]
    keys = sorted({key for environment in environments for key in environment})
    fingerprints = _distinct(f"{trial.trial} {trial.result.fingerprint}" for trial in results)
    facts = [("data", _distinct(trial.result.data_digest for trial in results))]
    facts += [(key, _distinct(environment.get(key, "") for environment in environments)) for key in keys]
    facts.append(("runs", fingerprints))
    return [(name, value) for name, value in facts if value]


def _words(block: object) -> str:
    if not isinstance(block, Mapping):
        return ""
    return ", ".join(f"{key} {value}" for key, value in flatten(dict(block)).items())


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))


def _in_order(comparison: Comparison, samples: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    known = [arm.name for arm in comparison.arms if arm.name in samples]
    return [(arm, samples[arm]) for arm in dict.fromkeys([*known, *samples])]


def _is_address(text: str) -> bool:
    """Escaping alone would let a ``javascript:`` link through."""
    return text.startswith(("http://", "https://"))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script; making it takes a second."""
    script: str = vl_convert.javascript_bundle()
    return script


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(
        files("hasten.sweeps.reports").joinpath("report.html.j2").read_text("utf-8")
    )
