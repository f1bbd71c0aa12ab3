"""Points that are known before anything has run: arms, grids, and draws from a space."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from hasten.sweeps import space as spaces
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching.possible import Possible
from hasten.sweeps.searching.proposals import Point
from hasten.sweeps.space import Settings, Space
from hasten.sweeps.study import Grid, Quasi, Random, StudySpec
from hasten.trainers.errors import ConfigError

AA: Final = "-aa"  # the A/A control's name is the baseline's with this
COUNTABLE: Final = 4096
"""Points of a space that are counted one by one."""

_PATIENCE: Final = 2000  # draws in a row that give nothing new
_REPEATS: Final = 20  # more of them for each point of a small space: the last is missed once in e^20 times


class Listed:
    """Points that wait for none. A study with ``stopping`` still starts them in order, at its lag."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = tuple(points)

    @property
    def count(self) -> int:
        return len(self._points)

    def needs(self, number: int) -> int:  # noqa: ARG002
        return 0

    def point(self, number: int, outcomes: Sequence[Mapping[int, TrialRecord]]) -> Point:  # noqa: ARG002
        return self._points[number]


class Draws:
    """The possible and different ones among the points that ``draw`` makes of 0, 1, 2, ..., by index.

    Args:
        space: what is drawn from.
        draw: :func:`hasten.sweeps.space.random` or ``quasi``.

    Raises (on access):
        ConfigError: hardly any point is left that is possible and different.
    """

    def __init__(self, space: Space, draw: Callable[..., Settings], seed: int, possible: Possible) -> None:
        self._draw = functools.partial(draw, space, seed=seed)
        self._possible = possible
        size = spaces.combinations(space)
        self._patience = _PATIENCE + (int(_REPEATS * size) if size <= COUNTABLE else 0)
        self._found: list[Settings] = []
        self._seen: set[str] = set()
        self._drawn = 0

    def __getitem__(self, index: int) -> Settings:
        while len(self._found) <= index:
            self._found.append(self._next())
        return dict(self._found[index])

    def _next(self) -> Settings:
        refused = 0
        for _ in range(self._patience):
            settings = self._draw(trial=self._drawn)
            self._drawn += 1
            if (text := spaces.identity(settings)) in self._seen:
                continue
            self._seen.add(text)
            if self._possible(settings):
                return settings
            refused += 1
        if refused:
            share = f"{len(self._found):,} of {len(self._seen):,} different points fulfil them"
            raise ConfigError("constraints", share, "Loosen them, or narrow the space to where they hold.")
        raise ConfigError(
            "search.trials",
            f"there are hardly more than {len(self._found):,} different points in the space",
            "Try fewer, or all of them with search.kind: grid.",
        )


def listed(study: StudySpec, possible: Possible | None) -> Listed:
    """The points of a study whose search looks at no results; ``possible`` unless it has arms.

    Raises:
        ConfigError: no, or too few, points are possible.
    """
    if possible is None:
        return Listed(_arms(study))
    match study.search:
        case Grid():
            found = [settings for settings in spaces.grid(study.space) if possible(settings)]
            if not found:
                raise ConfigError("constraints", "no point of the grid fulfils them", "Loosen them.")
        case Random(trials=trials, seed=seed):
            draws = Draws(study.space, spaces.random, seed, possible)
            found = [draws[index] for index in range(trials)]
        case Quasi(trials=trials, seed=seed):
            draws = Draws(study.space, spaces.quasi, seed, possible)
            found = [draws[index] for index in range(trials)]
        case _:
            raise AssertionError(f"{study.search.kind} looks at results")
    return Listed([numbered(number, settings) for number, settings in enumerate(found)])


def numbered(number: int, settings: Settings) -> Point:
    """A point of a space, named by its number."""
    return Point(number=number, name=f"{number:04d}", settings=settings)


def _arms(study: StudySpec) -> list[Point]:
    arms = dict(study.arms)
    if study.aa:
        arms[f"{study.baseline}{AA}"] = arms[study.baseline]
    return [Point(number=n, name=name, settings=arms[name]) for n, name in enumerate(arms)]
