"""A space of settings: distributions by dotted key, some of them only ``when`` others have a value."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from hasten.trainers import randomness
from hasten.trainers.config import Spec
from hasten.trainers.errors import ConfigError

Settings = dict[str, Any]
_KINDS = ("choice", "uniform", "log_uniform", "int_uniform")


class Distribution(Spec):
    """One of ``choice``, ``uniform``, ``log_uniform``, ``int_uniform`` (with both ends), and conditions.

    ``when`` maps keys to a value or a list of values; the key exists only where all of them hold.
    """

    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    int_uniform: tuple[int, int] | None = None
    when: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"must have exactly one of {', '.join(_KINDS)}, got {given or 'none'}")
        if given != ["choice"]:
            low, high = getattr(self, given[0])
            if not low < high:
                raise ValueError(f"{given[0]}: the lower end {low} must be below the upper end {high}")
            if self.log_uniform and low <= 0:
                raise ValueError(f"log_uniform: the lower end must be above 0, got {low}")
        return self

    def at(self, u: float) -> Any:
        """The value at quantile ``u`` in [0, 1)."""
        if self.choice is not None:
            return self.choice[int(u * len(self.choice))]
        if self.uniform is not None:
            low, high = self.uniform
            return low + u * (high - low)
        if self.log_uniform is not None:
            low, high = math.log(self.log_uniform[0]), math.log(self.log_uniform[1])
            return math.exp(low + u * (high - low))
        assert self.int_uniform is not None
        first, last = self.int_uniform
        return first + int(u * (last - first + 1))


Space = dict[str, Distribution]


def random(space: Space, *, seed: int, trial: int) -> Settings:
    """The ``trial``-th random point: a pure function, so that adding trials never changes earlier ones."""
    settings: Settings = {}
    for key in in_order(space):
        if _holds(space[key].when, settings):
            u = randomness.uniform(seed, f"space/{key}", np.array([trial]))
            settings[key] = space[key].at(float(u[0]))
    return settings


def grid(space: Space) -> Iterator[Settings]:
    """Every combination of the choices, without those that conditions make equal."""
    keys = in_order(space)
    for key in keys:
        if space[key].choice is None:
            raise ConfigError(
                f"space.{key}", "a grid needs a choice", "Use choice: [...], or search.kind: random."
            )
    seen: list[Settings] = []
    for values in itertools.product(*(space[key].choice or () for key in keys)):
        settings: Settings = {}
        for key, value in zip(keys, values, strict=True):
            if _holds(space[key].when, settings):
                settings[key] = value
        if settings not in seen:
            seen.append(settings)
            yield settings


def in_order(space: Space) -> list[str]:
    """The keys, each after those that its condition looks at.

    Raises:
        ConfigError: a condition looks at a key that is not in the space, or two look at each other.
    """
    order: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [key for key in waiting if all(needed in order for needed in space[key].when)]
        if not ready:
            key = waiting[0]
            missing = [needed for needed in space[key].when if needed not in space]
            problem = (
                f"depends on {missing[0]}, which is not in the space" if missing else "depends on itself"
            )
            raise ConfigError(f"space.{key}.when", problem)
        order.extend(ready)
        waiting = [key for key in waiting if key not in ready]
    return order


def _holds(when: Mapping[str, Any], settings: Settings) -> bool:
    """Whether all conditions hold; a key that is absent itself fulfils none."""
    return all(
        key in settings and settings[key] in (wanted if isinstance(wanted, list) else [wanted])
        for key, wanted in when.items()
    )
