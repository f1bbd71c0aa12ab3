"""All trials of a study that are known by now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from hasten.sweeps.conducting import views
from hasten.sweeps.conducting.courses import Course
from hasten.sweeps.conducting.ledger import OpenTrial
from hasten.sweeps.conducting.views import State, TrialView
from hasten.sweeps.plan import Trial
from hasten.sweeps.records import TrialRecord
from hasten.trainers.job import Job


class Roster:
    """The known trials by name and by point, in the order in which they became known.

    ``metric`` is the objective's, whose newest value is shown of each.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._courses: dict[str, Course] = {}
        self._points: list[Sequence[Course]] = []
        self._begun: set[str] = set()  # with an attempt and without an end
        self._endings: Counter[State] = Counter()
        self._held = (0, 0.0)  # how many of those that are over held resources, and for how long together

    def __len__(self) -> int:
        return len(self._courses)

    def get(self, trial: str) -> Course | None:
        return self._courses.get(trial)

    def point(self, number: int) -> Sequence[Course]:
        """The trials of a known point."""
        return self._points[number]

    @property
    def ended(self) -> int:
        """How many trials are over."""
        return self._endings.total()

    @property
    def mean_occupied(self) -> float | None:
        """For how many seconds a trial that is over held its resources; None where that is not known."""
        count, seconds = self._held
        return seconds / count if count else None

    def add(self, courses: Sequence[Course]) -> None:
        """The trials of the next point."""
        self._points.append(courses)
        self._courses.update({course.name: course for course in courses})
        self._begun.update(course.name for course in courses if course.attempts)

    def begin(self, course: Course) -> None:
        course.begin()
        self._begun.add(course.name)

    def end(self, course: Course, record: TrialRecord) -> None:
        course.phase, course.record = "over", record
        self._begun.discard(course.name)
        self._endings[record.state] += 1
        if record.occupied:
            self._held = self._held[0] + 1, self._held[1] + record.occupied

    def trials(self) -> tuple[Trial, ...]:
        """All known trials, by point."""
        return tuple(course.trial for course in self._courses.values())

    def jobs(self) -> dict[str, Job]:
        """All known trials as jobs."""
        return {name: course.job for name, course in self._courses.items()}

    def records(self) -> dict[str, TrialRecord]:
        """The records that count."""
        return {name: course.record for name, course in self._courses.items() if course.record is not None}

    def states(self) -> dict[str, State]:
        """Where every known trial is; when nothing runs any more, ``waiting`` ones have not begun."""
        return {name: views.state_of(course) for name, course in self._courses.items()}

    def counts(self) -> dict[State, int]:
        """How many trials are in each state."""
        begun = Counter(views.state_of(self._courses[name]) for name in self._begun)
        rest: Counter[State] = Counter({"waiting": len(self) - self.ended - begun.total()})
        return dict(self._endings + begun + rest)

    def reasons(self) -> dict[str, str]:
        """Why trials that are over are not finished: their verdict, or their error."""
        return {
            name: record.verdict.reason if record.verdict else record.error
            for name, record in self.records().items()
            if record.state != "finished"
        }

    def view(self, trial: str) -> TrialView:
        """A known trial as a display shows it."""
        return views.view(self._courses[trial], self._metric)

    def views(self) -> tuple[TrialView, ...]:
        """Every known trial as a display shows it."""
        return tuple(views.view(course, self._metric) for course in self._courses.values())

    def running(self) -> tuple[TrialView, ...]:
        """Those that run now, in order."""
        begun = [course for course in self._open() if course.phase == "running"]
        return tuple(views.view(course, self._metric) for course in begun)

    def opened(self, held: Callable[[str], float]) -> dict[str, OpenTrial]:
        """Those that have begun and are not over; ``held``: how long the attempt that runs now has run."""
        return {
            course.name: course.opened(held=held(course.name), metric=self._metric) for course in self._open()
        }

    def _open(self) -> list[Course]:
        return sorted(self._courses[name] for name in self._begun)
