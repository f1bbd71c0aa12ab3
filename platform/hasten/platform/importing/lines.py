"""The import's progress: a bar with an ETA on a terminal, a line every tenth of the work in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.markup import escape

from hasten.platform import progress

_EVERY: Final = 0.1  # of the work
_PATIENCE: Final = 5.0  # seconds before the first line in a log


@contextmanager
def counting(console: Console, what: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with how many more are done. ``total`` may be an estimate: if low, it grows."""
    started, done, told = time.monotonic(), 0, 0.0
    with progress.progress_bars(console, "{task.fields[text]}") as bars:
        task = bars.add_task(escape(what), total=total, text=unit)

        def advance(count: int) -> None:
            nonlocal done, told
            done += count
            whole, seconds = max(total, done), time.monotonic() - started
            bars.update(task, completed=done, total=whole)
            share = done / max(whole, 1)
            if (
                not console.is_terminal
                and seconds > _PATIENCE
                and (share - told >= _EVERY or told < share == 1)
            ):
                told = share
                left = f", {seconds / done * (whole - done):.0f} s to go" if done < whole else ""
                console.print(f"{what}: {done:,} of {whole:,} {unit}{left}", soft_wrap=True, markup=False)

        yield advance
