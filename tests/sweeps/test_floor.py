"""Between the conductor and the processes: who hears what, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hasten.sweeps import floor as floors
from hasten.sweeps.attempt import Last, News, Task
from hasten.sweeps.conducting.terms import Assignment, Ending
from hasten.sweeps.floor import Event, Floor
from hasten.sweeps.plan import Trial
from hasten.trainers import specs
from hasten.trainers.datasets import sources
from hasten.trainers.errors import Fault
from hasten.trainers.records import Report
from hasten.trainers.tracker import NullTracker


class Conductor:
    """Hands out trials by name and remembers all that it hears."""

    def __init__(self, names: str, stops: frozenset[int] = frozenset()) -> None:
        self.left = [*names]
        self.stops = stops
        self.heard: list[Any] = []
        self.wrong = ""

    def next(self) -> Assignment | None:
        self._say("next")
        return assignment(self.left.pop(0)) if self.left else None

    @property
    def over(self) -> bool:
        return not self.left

    def report(self, trial: str, report: Report) -> bool:
        self._say("report")
        self.heard.append((trial, report.images))
        return report.images in self.stops

    def ended(self, trial: str, ending: Ending) -> None:
        self._say("ended")
        self.heard.append((trial, ending.how, ending.failure))

    def _say(self, what: str) -> None:
        if what == self.wrong:
            raise Fault("ledger", "the disk is full")


class Actor:
    """A process that remembers its orders; ``actor.halt.remote(...)`` is how Ray's are given theirs."""

    def __init__(self) -> None:
        self.orders: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        orders = self.orders

        class Method:
            @staticmethod
            def remote(argument: Any) -> None:
                orders.append((name, argument.trial if isinstance(argument, Task) else argument))

        return Method


class Place:
    """A floor with fake processes."""

    def __init__(self, conductor: Conductor) -> None:
        self.conductor = conductor
        self.events: list[Event] = []
        self.stop = False
        self.floor = Floor(
            conductor,
            task=lambda each: Task(trial=each.trial.name, job=each.job, open_tracker=NullTracker),
            observe=self.events.append,
            stop=lambda: self.stop,
        )

    def begin(self, place: str) -> Actor:
        assert self.floor.hand_out(place) is not None
        actor = Actor()
        self.floor.started(place, actor)
        return actor

    def tell(self, place: str, *images: int, last: Last | None = None) -> None:
        self.floor.heard(place, News(reports=tuple(map(report, images)), last=last))


def assignment(name: str) -> Assignment:
    spec = specs.load("simulated")
    trial = Trial(name=name, arm=name, seed=0, spec=spec, changes={})
    return Assignment(trial=trial, job=sources.bind(spec, str(Path("nowhere"))), attempt=1)


def report(images: int) -> Report:
    return Report(images=images, total=100, seconds=1.0, metrics={}, evaluated=True)


@pytest.fixture
def place() -> Callable[..., Place]:
    return lambda *arguments: Place(Conductor(*arguments))


def test_what_a_trial_says_reaches_the_conductor_in_order(place: Any) -> None:
    here = place("ab")
    first, second = here.begin("1"), here.begin("2")
    assert (first.orders, second.orders) == ([("begin", "a")], [("begin", "b")])
    here.tell("1", 0, 10)
    here.tell("2", 0)
    here.tell("1", 20, last=Last(how="finished"))
    assert here.conductor.heard == [("a", 0), ("a", 10), ("b", 0), ("a", 20), ("a", "finished", None)]
    assert [(event.trial, event.state) for event in here.events] == [
        ("a", "running"),
        ("a", "running"),
        ("b", "running"),
        ("a", "running"),
        ("a", "finished"),
    ]


def test_a_stopped_trial_is_told_once_and_not_listened_to_any_more(place: Any) -> None:
    here = place("a", frozenset({20, 30}))
    actor = here.begin("1")
    here.tell("1", 10, 20, 30)
    here.tell("1", 40, last=Last(how="stopped"))
    assert actor.orders == [("begin", "a"), ("halt", "finished")]
    assert here.conductor.heard == [("a", 10), ("a", 20), ("a", "stopped", None)]


def test_an_attempt_ends_once(place: Any) -> None:
    """Tune speaks of the end of a trial that has told its own end."""
    here = place("a")
    here.begin("1")
    here.tell("1", last=Last(how="failed", failure="diverged", error="train/loss: is nan"))
    here.floor.ended("1", Last(how="stopped"))
    assert here.conductor.heard == [("a", "failed", "diverged")]
    assert here.events[-1].error == "train/loss: is nan"


def test_asked_to_stop_it_halts_all_and_hands_out_nothing(place: Any) -> None:
    here = place("abc")
    first = here.begin("1")
    assert here.floor.hand_out("2") is not None  # its process is still on its way
    here.floor.look()
    assert (first.orders, here.floor.is_idle) == ([("begin", "a")], False)
    here.stop = True
    here.floor.look()
    assert first.orders == [("begin", "a"), ("halt", "stopped")]
    assert here.floor.is_over
    assert here.floor.hand_out("3") is None
    late = Actor()
    here.floor.started("2", late)
    assert late.orders == [], "it ends without a task"
    here.tell("2", last=Last(how="stopped"))
    assert not here.floor.is_idle
    here.tell("1", last=Last(how="stopped"))
    assert here.floor.is_idle
    assert here.conductor.heard == [("b", "stopped", None), ("a", "stopped", None)]


def test_it_waits_for_those_that_stop_only_so_long(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "_SECONDS_TO_STOP", 0.0)
    here = place("ab")
    here.begin("1")
    here.stop = True
    here.floor.look()
    assert here.floor.is_idle
    here.floor.ended("1", Last(how="failed", failure="lost", error="its process died"))
    assert here.conductor.heard == [("a", "stopped", None)], "it was killed for not stopping"


def test_a_trial_that_failed_while_others_are_stopped_has_failed(place: Any) -> None:
    here = place("a")
    here.begin("1")
    here.stop = True
    here.floor.look()
    here.tell("1", last=Last(how="failed", failure="diverged"))
    assert here.conductor.heard == [("a", "failed", "diverged")]


@pytest.mark.parametrize("wrong", ["next", "report", "ended"])
def test_a_conductor_that_fails_is_asked_nothing_more(place: Any, wrong: str) -> None:
    here = place("abc")
    actor = here.begin("1")
    here.conductor.wrong = wrong
    assert (here.floor.hand_out("2") is None) == (wrong == "next")
    here.tell("1", 10)
    here.tell("1", 20, last=Last(how="stopped"))
    assert str(here.floor.trouble) == "ledger: the disk is full"
    assert here.floor.is_over
    here.conductor.wrong = ""
    here.floor.clear()
    heard = {"next": [], "report": [], "ended": [("a", 10), ("a", 20)]}
    assert here.conductor.heard == heard[wrong]
    assert (("halt", "stopped") in actor.orders) == (wrong != "ended")


def test_whatever_is_left_in_the_end_was_stopped(place: Any) -> None:
    here = place("ab")
    here.begin("1")
    here.floor.hand_out("2")
    here.floor.clear()
    here.floor.clear()
    assert here.conductor.heard == [("a", "stopped", None), ("b", "stopped", None)]
