"""The comparison in words and numbers, and as a table for a terminal of 80 columns."""

from __future__ import annotations

import math

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hasten.sweeps.statistics.comparison import NO_WINNER, Arm, Comparison
from hasten.sweeps.statistics.intervals import Estimate
from hasten.sweeps.statistics.together import Together

NOTHING = "–"


def render(comparison: Comparison) -> RenderableType:
    """Arms with means, differences and what the target costs, the verdict below, then what is uncertain."""
    notes = Table.grid(padding=(0, 1))
    for note in comparison.notes:
        notes.add_row("-", Text(note), style="dim")
    below: list[RenderableType] = [Text(), notes] if comparison.notes else []
    tables: list[RenderableType] = [_quality(comparison), Text()]
    if any(arm.reached is not None for arm in comparison.arms):
        tables += [_speed(comparison), Text()]
    return Group(
        Text(_title(comparison), style="bold"),
        Text(),
        *tables,
        Text(headline(comparison), style="bold green" if comparison.winner else "bold yellow"),
        Text(explanation(comparison)),
        *below,
    )


def render_together(together: Together) -> RenderableType:
    """What each of several studies says, and all of them as one where they may be taken so."""
    table = _table("study", "arms", "answer")
    for one in together.studies:
        table.add_row(one.study, str(len(one.arms)), Text(headline(one)))
    notes = [Text(f"- {note}", style="dim") for note in together.notes]
    if together.whole is None:
        return Group(table, Text(), Text("No clear winner across studies", style="bold yellow"), *notes)
    return Group(table, Text(), render(together.whole), *notes)


def _quality(comparison: Comparison) -> Table:
    level = percent(comparison)
    headings = (
        f"{comparison.metric}\nmean ± {level}",
        f"minus {comparison.baseline}\n± {level}",
        "p\n(Holm)",
        "more seeds\nto settle",
    )
    table = _table("arm", "n", *headings)
    for arm in comparison.arms:
        cells = [arm.name, str(arm.n), mean_text(arm), *against_text(comparison, arm), settle_text(arm)]
        table.add_row(*(Text(cell, style=_style(comparison, arm)) for cell in cells))
    return table


def _speed(comparison: Comparison) -> Table:
    level = percent(comparison)
    headings = (
        "reached\nthe target",
        "images to it\nmedian",
        f"speed-up in images\n[{level}]",
        f"in seconds\n[{level}]",
    )
    table = _table("arm", *headings)
    for arm in comparison.arms:
        cells = [arm.name, reached_text(arm), median_text(arm), ratio_text(arm.speedup)]
        cells.append(ratio_text(arm.seconds_speedup))
        table.add_row(*(Text(cell, style=_style(comparison, arm)) for cell in cells))
    return table


def _table(first: str, *headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(Text(heading), no_wrap=True, justify="right" if heading == "n" else "left")
    return table


def headline(comparison: Comparison) -> str:
    """The verdict as it opens a report: ``No clear winner`` or ``ARM beats BASELINE``."""
    return "No clear winner" if comparison.verdict == NO_WINNER else comparison.verdict


def explanation(comparison: Comparison) -> str:
    """A few plain sentences on what the verdict rests on, and which arms are worse than the baseline."""
    winner = next((arm for arm in comparison.arms if arm.name == comparison.winner), None)
    sentences = [_undecided(comparison) if winner is None else _winning(comparison, winner)]
    for arm in comparison.contenders:
        if _worse(comparison, arm):
            sentences.append(f"{arm.name} is worse than {comparison.baseline} (p {p_text(arm.p_adjusted)}).")
    return " ".join(sentences)


def mean_text(arm: Arm) -> str:
    """``0.1234 ± 0.0056``, or the bare mean of a single seed."""
    return NOTHING if arm.mean is None else plus_minus(arm.mean, half(arm.low, arm.high))


def difference_text(arm: Arm) -> str:
    """Arm minus baseline with its interval, signed."""
    if arm.difference is None:
        return NOTHING
    width = half(arm.difference.low, arm.difference.high)
    return plus_minus(arm.difference.mean, width, signed=True)


def speedup_text(arm: Arm) -> str:
    """``1.52× [1.21, 1.90]``, or how many seeds reached the target where there is no such number."""
    if arm.speedup is not None:
        return ratio_text(arm.speedup)
    return NOTHING if arm.reached is None else f"{reached_text(arm)} reached"


def ratio_text(found: Estimate | None) -> str:
    """``1.52× [1.21, 1.90]``."""
    if found is None:
        return NOTHING
    ratio = f"{_ratio(found.mean)}×"
    if found.low is None or found.high is None:
        return ratio
    return f"{ratio} [{_ratio(found.low)}, {_ratio(found.high)}]"


def reached_text(arm: Arm) -> str:
    """``2 of 3`` seeds reached the target."""
    return NOTHING if arm.reached is None else f"{arm.reached} of {len(arm.images_to_target)}"


def median_text(arm: Arm) -> str:
    """The Kaplan-Meier median of images to the target, with its interval where so many seeds give one."""
    found = arm.median
    if found is None:
        return NOTHING
    if found.median is None:
        return "beyond"
    text = f"{found.median:,.0f}"
    if found.low is None:
        return text
    return f"{text} [{found.low:,.0f}, {'…' if found.high is None else format(found.high, ',.0f')}]"


def settle_text(arm: Arm) -> str:
    """How many more seeds would probably settle the difference, ``settled``, or nothing to say."""
    if arm.difference is None or arm.seeds_to_settle is None:
        return ""
    return "settled" if arm.seeds_to_settle == 0 else f"{arm.seeds_to_settle:,}"


def p_text(p: float | None) -> str:
    """A p-value to two digits; ``<0.001`` below that."""
    if p is None:
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.095 else f"{p:.2f}"


def plus_minus(mean: float, half: float | None, *, signed: bool = False) -> str:
    """``mean ± half`` with two digits of the half-width, which is all that the interval supports."""
    sign = "+" if signed else ""
    if half is None or half == 0.0 or not math.isfinite(half):
        text = f"{mean:{sign}.4g}"
        return text if half is None else f"{text} ± {half:.2g}"
    decimals = 1 - math.floor(math.log10(half))
    if not -5 < decimals < 7:
        return f"{mean:{sign}.3g} ± {half:.1e}"
    places = max(decimals, 0)
    return f"{mean:{sign}.{places}f} ± {half:.{places}f}"


def against_text(comparison: Comparison, arm: Arm) -> tuple[str, str]:
    """The cells that set an arm against the baseline: its difference and its p-value."""
    if arm.name == comparison.baseline:
        return "baseline", ""
    return difference_text(arm), "A/A" if comparison.is_control(arm) else p_text(arm.p_adjusted)


def percent(comparison: Comparison) -> str:
    """The level of the intervals, ``95 %``."""
    return f"{100.0 * (1.0 - comparison.alpha):g} %"


def _winning(comparison: Comparison, winner: Arm) -> str:
    difference = winner.difference
    if difference is None:
        return ""
    direction = "lower" if difference.mean < 0.0 else "higher"
    sentence = (
        f"{comparison.metric} ends {_size(difference)} {direction} over {_seeds(difference.n)} "
        f"(Holm-adjusted p {p_text(winner.p_adjusted)})."
    )
    if winner.speedup is not None:
        goal = f"{comparison.baseline}'s quality" if comparison.target == "baseline" else "the target"
        sentence += f" It reaches {goal} {speedup_text(winner)} as fast, counted in images."
    return sentence


def _undecided(comparison: Comparison) -> str:
    best = _closest(comparison)
    if best is None or best.difference is None:
        return "There is nothing that could be compared."
    difference, over = best.difference, f"over {_seeds(best.difference.n)}"
    if difference.mean == 0.0:
        return f"{best.name} and {comparison.baseline} are level {over}, and no arm is ahead."
    if not comparison.better(difference.mean):
        behind = f"{best.name}, the closest, is behind by {_size(difference)} {over}"
        return f"No arm is ahead of {comparison.baseline}: {behind}."
    ahead = f"{best.name} is furthest ahead of {comparison.baseline}, by {_size(difference)} {over}"
    if difference.n < 3 or best.p_adjusted is None:
        return f"{ahead}: too few to tell a gain from luck."
    tested = sum(arm.p_adjusted is not None for arm in comparison.contenders)
    arms = f"with {tested} arms tried, " if tested > 1 else ""
    if best.p_adjusted >= comparison.alpha:
        return (
            f"{ahead} (Holm-adjusted p {p_text(best.p_adjusted)}): "
            f"{arms}luck alone does this too often to call it a gain."
        )
    return f"{ahead}, but it diverged elsewhere."


def _closest(comparison: Comparison) -> Arm | None:
    """The arm furthest ahead, whether or not the lead means anything."""
    sign = 1.0 if comparison.mode == "min" else -1.0
    compared = {arm.name: sign * arm.difference.mean for arm in comparison.contenders if arm.difference}
    return min(
        (arm for arm in comparison.contenders if arm.name in compared),
        key=lambda arm: compared[arm.name],
        default=None,
    )


def _style(comparison: Comparison, arm: Arm) -> str:
    if arm.name == comparison.winner:
        return "bold green"
    if arm.name == comparison.baseline or comparison.is_control(arm):
        return "dim"
    return "red" if _worse(comparison, arm) else ""


def _worse(comparison: Comparison, arm: Arm) -> bool:
    """Worse than the baseline by the same standard by which an arm wins."""
    if arm.difference is None or arm.difference.n < 3 or arm.p_adjusted is None:
        return False
    return arm.p_adjusted < comparison.alpha and not comparison.better(arm.difference.mean)


def _title(comparison: Comparison) -> str:
    better = "lower" if comparison.mode == "min" else "higher"
    return f"{comparison.study}: {comparison.metric} at the end ({better} is better)"


def _size(difference: Estimate) -> str:
    return plus_minus(abs(difference.mean), half(difference.low, difference.high))


def half(low: float | None, high: float | None) -> float | None:
    """Half the width of an interval, None where there is none."""
    return None if low is None or high is None else (high - low) / 2.0


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 99.5 else f"{value:.3g}"


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"
