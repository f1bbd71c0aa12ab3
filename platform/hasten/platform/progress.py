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

from hasten.trainers.tracker import EVAL_LOSS, TRAIN_LOSS

_LINE_EVERY: Final = 0.1  # of the work, in a log
_WIDTH: Final = 20


class Report(Protocol):
    """What a bar needs of the loop's report; the loop itself would import torch."""

    @property
    def images(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def metrics(self) -> dict[str, float]: ...


class Event(Protocol):
    """What the board needs of a sweep's event; the sweep itself would import Ray."""

    @property
    def trial(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def report(self) -> Report | None: ...
    @property
    def error(self) -> str: ...


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
        if self._first is None:
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
    """The progress of a study: all images together, and a bar for each trial that is running."""

    console: Console
    _bars: Progress
    _overall: TaskID
    _totals: Mapping[str, int]
    _started: float = field(default_factory=time.monotonic)
    _seen: dict[str, int] = field(default_factory=dict)
    _resumed: dict[str, int] = field(default_factory=dict)
    _tasks: dict[str, TaskID] = field(default_factory=dict)
    _ended: int = 0

    def observe(self, event: Event) -> None:
        if event.report is not None:
            self._progress(event.trial, event.report)
        if event.state != "running":
            self._end(event)

    def _progress(self, trial: str, report: Report) -> None:
        self._resumed.setdefault(trial, report.images)
        self._seen[trial] = report.images
        if not self.console.is_terminal:
            return
        if trial not in self._tasks:
            self._tasks[trial] = self._bars.add_task(f"  {trial}", total=report.total, text="")
        self._bars.update(self._tasks[trial], completed=report.images)
        if EVAL_LOSS in report.metrics:
            self._bars.update(self._tasks[trial], text=f"eval/loss {report.metrics[EVAL_LOSS]:.4f}")
        self._bars.update(self._overall, completed=sum(self._seen.values()))

    def _end(self, event: Event) -> None:
        self._ended += 1
        if event.state == "finished":
            self._seen[event.trial] = self._totals[event.trial]
        if event.trial in self._tasks:
            self._bars.remove_task(self._tasks.pop(event.trial))
        self._bars.update(
            self._overall,
            completed=sum(self._seen.values()),
            text=f"{self._ended} of {len(self._totals)} trials",
        )
        if event.state == "failed":
            self.console.print(f"[red]{event.trial} failed:[/] {event.error}", soft_wrap=True)
        elif not self.console.is_terminal:
            self.console.print(
                f"{event.trial}: {event.state} ({self._ended} of {len(self._totals)}){self._eta()}"
            )

    def _eta(self) -> str:
        total, seen = sum(self._totals.values()), sum(self._seen.values())
        done = seen - sum(self._resumed.values())
        if done <= 0 or seen >= total:
            return ""
        return f", about {(time.monotonic() - self._started) / done * (total - seen):.0f} s to go"


@contextmanager
def board(console: Console, name: str, totals: Mapping[str, int]) -> Iterator[Board]:
    """A board for the trials of a study; ``totals`` are their images."""
    with progress_bars(console, "{task.fields[text]}") as bars:
        text = f"0 of {len(totals)} trials"
        yield Board(console, bars, bars.add_task(name, total=sum(totals.values()), text=text), totals)


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


def progress_bars(console: Console, text: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=_WIDTH),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]ETA"),
        TimeRemainingColumn(compact=True),
        TextColumn(text),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
