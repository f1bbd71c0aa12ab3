"""How long work shows itself: bars with an ETA on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hasten.sweeps.conducting.views import Snapshot, State, TrialView
from hasten.trainers.tracker import EVAL_LOSS, TRAIN_LOSS

_LINE_EVERY: Final = 0.1  # of the work, in a log
_WIDTH: Final = 20
_LINES_LEFT: Final = 5  # of a terminal, to the shell's prompt and to what is printed above
_FAILURES_TOLD: Final = 10
_COUNTED: Final[Mapping[State, str]] = {
    "finished": "finished",
    "stopped": "stopped early",
    "failed": "failed",
    "waiting": "waiting",
    "open": "to be taken up again",
}


class Report(Protocol):
    """What a bar needs of the loop's report; the loop itself would import torch."""

    @property
    def images(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def metrics(self) -> dict[str, float]: ...
    @property
    def again(self) -> bool: ...


@dataclass(slots=True)
class RunBar:
    """The progress of one run."""

    console: Console
    name: str
    _bars: Progress
    _task: TaskID
    _first: tuple[float, int] | None = None
    _printed: float = -1.0
    _quality: str = ""

    def observe(self, report: Report) -> None:
        if EVAL_LOSS in report.metrics:
            self._quality = f"eval/loss {report.metrics[EVAL_LOSS]:.4f}"
        if self._first is None or report.again:
            self._first = time.monotonic(), report.images
        loss = report.metrics.get(TRAIN_LOSS)
        text = "  ".join(
            part for part in (f"loss {loss:.4f}" if loss is not None else "", self._quality) if part
        )
        if self.console.is_terminal:
            self._bars.update(self._task, total=report.total, completed=report.images, text=text)
            return
        share = report.images / report.total
        if share - self._printed >= _LINE_EVERY or report.images == report.total:
            self._printed = share
            self.console.print(
                f"{self.name}: {report.images:,} of {report.total:,} images{self._eta(report)}  {text}",
                soft_wrap=True,
            )

    def _eta(self, report: Report) -> str:
        started, first = self._first or (0.0, 0)
        if report.images in (first, report.total):
            return ""
        seconds = (time.monotonic() - started) / (report.images - first) * (report.total - report.images)
        return f", {seconds:.0f} s to go"


@contextmanager
def run(console: Console, name: str, total: int) -> Iterator[RunBar]:
    """A bar for one run of ``total`` images."""
    with progress_bars(console, "{task.fields[text]}") as bars:
        yield RunBar(console, name, bars, bars.add_task(name, total=total, text=""))


@dataclass(slots=True)
class Board:
    """The progress of a study: one bar for all trials, and on a terminal one for each that is running.

    How many trials there will be may change while they run, and of a thousand only those that run are shown,
    as many as the terminal has lines for.
    """

    console: Console
    _bars: Progress
    _overall: TaskID
    _tasks: dict[str, TaskID] = field(default_factory=dict)
    _failures: int = 0

    def show(self, snapshot: Snapshot) -> None:
        """The study as it is now."""
        if not self.console.is_terminal:
            return
        done = snapshot.over + sum(view.images / view.total for view in snapshot.running)
        self._bars.update(self._overall, total=snapshot.trials, completed=done, text=_summary(snapshot))
        shown = snapshot.running[: max(1, self.console.height - _LINES_LEFT)]
        for trial in self._tasks.keys() - {view.trial for view in shown}:
            self._bars.remove_task(self._tasks.pop(trial))
        for view in shown:
            if view.trial not in self._tasks:
                self._tasks[view.trial] = self._bars.add_task(f"  {view.trial}", total=view.total, text="")
            self._bars.update(self._tasks[view.trial], completed=view.images, text=_how_it_runs(view))

    def ended(self, view: TrialView, snapshot: Snapshot) -> None:
        """Tell of a trial that is over; on a terminal of failures alone, and only of the first of them."""
        self._failures += view.state == "failed"
        if self.console.is_terminal and not (view.state == "failed" and self._failures <= _FAILURES_TOLD):
            return
        line = Text(f"{view.trial}: {_how_it_ended(view)} ({snapshot.over} of {snapshot.trials}")
        line.append(f"{_to_go(snapshot.seconds_left)})")
        if view.state == "failed":
            line.stylize("red")
        self.console.print(line, soft_wrap=True)


def _summary(snapshot: Snapshot) -> str:
    """What became of trials so far, and how long the rest takes."""
    shown = [state for state in _COUNTED if snapshot.counts.get(state)]
    counts = ", ".join(f"{snapshot.counts[state]} {_COUNTED[state]}" for state in shown)
    return ", ".join(filter(None, (f"{len(snapshot.running)} running", counts))) + _to_go(
        snapshot.seconds_left
    )


def _how_it_runs(view: TrialView) -> str:
    again = f"attempt {view.attempt}" if view.attempt > 1 else ""
    value = f"{view.value:.4f}" if view.value is not None else ""
    return ", ".join(filter(None, (value, again))) + _to_go(view.seconds_left)


def _how_it_ended(view: TrialView) -> str:
    match view.state:
        case "stopped" if view.verdict is not None:
            return f"stopped by {view.verdict.rule}: {view.verdict.reason}"
        case "failed":
            return f"failed{f' ({view.failure})' if view.failure else ''}: {view.error}"
        case "waiting" | "running":
            return "lost; it is tried again"
        case "open":
            return "left before its end; the same command goes on with it"
        case state:
            return state if view.value is None else f"{state} with {view.value:.4f}"


def _to_go(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f", about {seconds:.0f} s to go" if seconds < 120.0 else f", about {seconds / 60.0:.0f} min to go"


@contextmanager
def board(console: Console, name: str, trials: int) -> Iterator[Board]:
    """A board for a study of so many trials, as far as that is known."""
    with progress_bars(console, "{task.fields[text]}", ahead=False) as bars:
        yield Board(console, bars, bars.add_task(name, total=trials, text=""))


@contextmanager
def steps(console: Console, name: str, items: Iterable[str]) -> Iterator[Iterator[str]]:
    """A bar over items that are handled one after the other."""
    listed = list(items)
    with progress_bars(console, "{task.fields[text]}") as bars:
        task = bars.add_task(name, total=len(listed), text="")

        def walk() -> Iterator[str]:
            for item in listed:
                bars.update(task, text=item)
                yield item
                bars.advance(task)

        yield walk()


def progress_bars(console: Console, text: str, *, ahead: bool = True) -> Progress:
    """Bars with ``text`` behind them; ``ahead``: and with an estimate of what is to go."""
    estimate = [TextColumn("[dim]ETA"), TimeRemainingColumn(compact=True)] if ahead else []
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=_WIDTH),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *estimate,
        TextColumn(text),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
