"""Which points of a space can be tried: those that are a run, and fulfil the study's constraints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from hasten.sweeps import space as spaces
from hasten.sweeps.searching import constraints
from hasten.sweeps.space import Settings, Space
from hasten.sweeps.study import StudySpec
from hasten.trainers import config
from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import RunSpec, flatten

Base = Mapping[str, Any]
_CORNERS: Final = 256  # combinations of extremes that are looked at before a study starts
_NOT_SWEPT: Final = {
    "budget.seed": "belongs to the study: use seeds",
    "name": "names the runs, and does not change them",
    "start": "is set by a population only",
    "execution": "is about where a run is computed, and does not change it: use the study's execution",
}


class Possible:
    """Tells of a point of the study's space whether all constraints hold for it.

    Raises:
        ConfigError: a constraint is malformed or looks at an unknown key; a key cannot be swept; an extreme
            of the space that the constraints allow is not a run.
    """

    def __init__(self, study: StudySpec, base: Base) -> None:
        _refuse_keys(study.space)
        corners = list(_corners(study.space))
        known = {key for corner in [{}, *corners] for key in resolved(base, corner)}
        self._base = base
        self._constraints = tuple(
            constraints.parse(text, key=f"constraints[{index}]", known=known)
            for index, text in enumerate(study.constraints)
        )
        for corner in corners:
            if self(corner):
                _check_run(study.space, base, corner)

    def __call__(self, settings: Settings) -> bool:
        if not self._constraints:
            return True
        values = resolved(self._base, settings)
        return all(constraint.holds(values) for constraint in self._constraints)


def resolved(base: Base, settings: Settings) -> dict[str, Any]:
    """All settings of a run by dotted key, with defaults; without them where it is not a possible run."""
    raw = config.override(base, settings)
    try:
        return flatten(config.validate(RunSpec, raw).model_dump(mode="json"))
    except ConfigError:
        return flatten(raw)


def _corners(space: Space) -> Iterator[Settings]:
    """Combinations of the keys' extremes: all, or where they are too many an even spread of them."""
    extremes = spaces.corners(space)
    if spaces.combinations(extremes) <= _CORNERS:
        yield from spaces.grid(extremes)
    else:
        for number in range(_CORNERS):
            yield spaces.quasi(extremes, seed=0, trial=number)


def _refuse_keys(space: Space) -> None:
    for key in space:
        for fixed, problem in _NOT_SWEPT.items():
            if key == fixed or key.startswith(f"{fixed}."):
                raise ConfigError(f"space.{key}", problem)
    for key in space:
        if inner := next((other for other in space if other.startswith(f"{key}.")), None):
            problem = f"lies in {key}, which is replaced whole"
            raise ConfigError(f"space.{inner}", problem, "Sweep one of them.")


def _check_run(space: Space, base: Base, settings: Settings) -> None:
    """Refuse a space that has an impossible run, naming the fewest of its keys that make it impossible."""
    problem = _problem(base, settings)
    if problem is None:
        return
    for key in reversed(spaces.in_order(space)):
        fewer = _without(space, settings, key)
        if _problem(base, fewer) == problem:
            settings = fewer
    subject, why = problem
    if not settings:
        raise ConfigError(subject, why)
    guilty = subject if subject in settings else next(reversed(settings))
    others = ", ".join(f"{key}: {value}" for key, value in settings.items() if key != guilty)
    raise ConfigError(
        f"space.{guilty}",
        f"{settings[guilty]}{f' with {others}' if others else ''} is no possible run: "
        + (why if subject == guilty else f"{subject}: {why}"),
        "Narrow the space, or add to constraints what must hold.",
    )


def _without(space: Space, settings: Settings, key: str) -> Settings:
    """The settings without a key and those that are there only because of it."""
    fewer: Settings = {}
    for each in spaces.in_order(space):
        if each in settings and each != key and spaces.holds(space[each].when, fewer):
            fewer[each] = settings[each]
    return fewer


def _problem(base: Base, settings: Settings) -> tuple[str, str] | None:
    """The key that makes these settings impossible, and why; None when they are a run."""
    try:
        config.validate(RunSpec, config.override(base, settings))
    except ConfigError as error:
        return error.subject, error.problem
    return None
