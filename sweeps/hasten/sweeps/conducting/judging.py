"""Asks a stopping rule about running trials, with those that it may compare them to."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence

from hasten.sweeps.conducting.courses import Course
from hasten.sweeps.conducting.stopping import Curve, StoppingRule, curve_of, metric_of
from hasten.sweeps.records import TrialRecord, Verdict
from hasten.sweeps.study import StudySpec


class Judge:
    """A stopping rule and all that it has to compare with.

    A trial is held against those of its own seed whose points lie at least ``ahead`` before: all of them
    were over when it started, so nobody waits, and the order in which others end does not matter.

    Args:
        rule: that of the study's ``stopping``.
        study: says what the rule looks at, and the lag.
    """

    def __init__(self, rule: StoppingRule, study: StudySpec) -> None:
        assert study.stopping is not None, "a rule comes from the study's stopping"
        self._rule = rule
        self._metric = metric_of(study.stopping, study.objective)
        self._ahead = study.ahead
        self._points = 0
        self._curves: dict[int, list[Curve]] = defaultdict(list)  # by seed, in order of points

    def learn(self, leading: Sequence[Mapping[int, TrialRecord]]) -> None:
        """How the first points ended, by seed: all that were told before, and perhaps more."""
        for number in range(self._points, len(leading)):
            for seed, record in leading[number].items():
                if record.state != "failed":
                    self._curves[seed].append(curve_of(number, record, self._metric))
        self._points = len(leading)

    def verdict(self, course: Course) -> Verdict | None:
        """On a trial at its newest evaluation; None lets it go on."""
        curves = self._curves[course.trial.seed]
        until = bisect_left(curves, course.number + 1 - self._ahead, key=lambda curve: curve.number)
        return self._rule.decide(course.curve(self._metric), curves[:until])
