"""What long work shows: bars for what runs on a terminal, a line for each end in a log."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from hasten.platform import progress
from hasten.sweeps.conducting.limits import Spent
from hasten.sweeps.conducting.views import Snapshot, State, TrialView
from hasten.sweeps.records import Verdict


def trial(number: int, state: State = "running", *, images: int = 500) -> TrialView:
    return TrialView(
        trial=f"{number:04d}-s0",
        arm=f"{number:04d}",
        seed=0,
        state=state,
        images=images,
        total=1000,
        value=0.25,
        attempt=1,
    )


def snapshot(running: list[TrialView], *, trials: int, **counts: int) -> Snapshot:
    return Snapshot(
        running=tuple(running),
        counts=dict(Counter({"running": len(running), **counts})),
        trials=trials,
        spent=Spent(),
        seconds_left=90.0,
        why_stopped=None,
    )


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, height=24, color_system=None)


def written(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def test_a_log_has_a_line_for_each_trial_that_ended_and_says_how() -> None:
    log = console(terminal=False)
    verdict = Verdict(
        rule="asha", images=300, value=0.9, threshold=0.5, reason="0.9 at 300 images is too much"
    )
    ends = [
        trial(0, "finished", images=1000),
        replace(trial(1, "stopped"), verdict=verdict),
        replace(trial(2, "failed"), failure="memory", error="[bold] out of memory"),
    ]
    with progress.board(log, "study", 64) as board:
        for over, view in enumerate(ends, start=1):
            now = snapshot([trial(9)], trials=64, finished=over)
            board.show(now)
            board.ended(view, now)
    lines = written(log).splitlines()
    assert lines == [
        "0000-s0: finished with 0.2500 (1 of 64, about 90 s to go)",
        "0001-s0: stopped by asha: 0.9 at 300 images is too much (2 of 64, about 90 s to go)",
        "0002-s0: failed (memory): [bold] out of memory (3 of 64, about 90 s to go)",
    ]


def test_a_terminal_shows_all_and_what_runs() -> None:
    screen = console(terminal=True)
    with progress.board(screen, "study", 8) as board:
        board.show(snapshot([trial(3), trial(4, images=250)], trials=8, finished=2, stopped=1, waiting=3))
        board._bars.refresh()
    shown = written(screen)
    for words in (
        "study",
        "3/8",
        "2 running",
        "2 finished",
        "1 stopped early",
        "3 waiting",
        "0004-s0",
        "250/1000",
    ):
        assert words in shown


@pytest.mark.parametrize("running", [1, 40])
def test_a_thousand_trials_leave_the_terminal_readable(running: int) -> None:
    """As many bars as there are lines, none of a trial that is over, and ten failures are told, not all."""
    screen = console(terminal=True)
    with progress.board(screen, "study", 1000) as board:
        for first in range(0, 1000 - running, running):
            views = [trial(number) for number in range(first, first + running)]
            now = snapshot(views, trials=1000, finished=first)
            board.show(now)
            assert len(board._tasks) == min(running, 24 - 5)
            assert set(board._tasks) <= {view.trial for view in views}
            board.ended(replace(trial(first, "failed"), error="no"), now)
            board.ended(trial(first, "stopped"), now)
    assert written(screen).count("failed: no") == 10


def test_a_study_may_grow_while_it_runs() -> None:
    screen = console(terminal=True)
    with progress.board(screen, "study", 2) as board:
        board.show(snapshot([], trials=2, finished=2))
        board.show(snapshot([trial(2)], trials=3, finished=2))
        assert board._bars.tasks[0].total == 3
        assert board._bars.tasks[0].completed == 2.5
