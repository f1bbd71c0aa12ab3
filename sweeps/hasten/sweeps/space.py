"""A space of settings: distributions by dotted key, some of them only ``when`` others have a value.

A point is addressed, never drawn in turn: :func:`random` and :func:`quasi` are pure functions of the seed and
the point's number, so that more points later leave the earlier ones as they are.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hasten.sweeps.sweep_syntax import translated
from hasten.trainers import randomness
from hasten.trainers.config import Spec
from hasten.trainers.errors import ConfigError

Settings = dict[str, Any]
RANGES: Final = ("uniform", "log_uniform", "int_uniform", "log_int_uniform")
_KINDS: Final = ("choice", *RANGES)
_BLOCK: Final = 256  # Sobol points made at a time
_ROUNDING: Final = 1e-9  # of a step: 0.1 + 0.1 + 0.1 is not 0.3


class Distribution(Spec):
    """One of ``choice``, ``uniform``, ``log_uniform``, ``int_uniform``, ``log_int_uniform``.

    Ranges are ``[low, high]`` with both ends; with ``step``, uniform ones have only low, low + step, ... up
    to high. ``when`` maps keys to a value or a list of values; the key exists only where all of them hold.
    Parameters as Weights & Biases writes them are understood too, see ``sweep_syntax``.
    """

    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    int_uniform: tuple[int, int] | None = None
    log_int_uniform: tuple[int, int] | None = None
    step: Annotated[float, Field(gt=0.0)] | None = None
    when: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        ours = translated(raw)
        # What a validator has touched is no longer JSON to pydantic, where a list may stand for a tuple.
        ends = {key: tuple(ours[key]) for key in _KINDS if isinstance(ours.get(key), list)}
        return {**ours, **ends}

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"must have exactly one of {', '.join(_KINDS)}, got {given or 'none'}")
        if self.choice is not None:
            texts = [identity(value) for value in self.choice]
            if twice := next((text for text in texts if texts.count(text) > 1), None):
                raise ValueError(f"choice: {twice} must appear only once")
        else:
            low, high = self.range
            if not low < high:
                raise ValueError(f"{given[0]}: the lower end {low} must be below the upper end {high}")
            if self.logarithmic and low <= 0:
                raise ValueError(f"{given[0]}: the lower end must be above 0, got {low}")
        if self.step is not None:
            self._check_step(self.step, given[0])
        return self

    def _check_step(self, step: float, kind: str) -> None:
        if kind not in ("uniform", "int_uniform"):
            raise ValueError(f"step: must not go with {kind}, only with uniform or int_uniform")
        if kind == "int_uniform" and step != int(step):
            raise ValueError(f"step: {step} between whole numbers must be whole itself")
        if step > self.range[1] - self.range[0]:
            raise ValueError(f"step: {step} must fit between {self.range[0]} and {self.range[1]}")

    @property
    def range(self) -> tuple[float, float]:
        """The ends, of whatever kind of range."""
        ends = self.uniform or self.log_uniform or self.int_uniform or self.log_int_uniform
        assert ends is not None, "a choice has no range"
        return ends

    @property
    def logarithmic(self) -> bool:
        return self.log_uniform is not None or self.log_int_uniform is not None

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return self.int_uniform is not None or self.log_int_uniform is not None

    @property
    def size(self) -> int | None:
        """How many values there are; None for a continuum."""
        if self.choice is not None:
            return len(self.choice)
        if self.step is not None:
            return int((self.range[1] - self.range[0]) / self.step + _ROUNDING) + 1
        return int(self.range[1] - self.range[0]) + 1 if self.whole else None

    def at(self, u: float) -> Any:
        """The value at quantile ``u`` in [0, 1)."""
        if self.choice is not None:
            return self.choice[int(u * len(self.choice))]
        low, high = self.range
        if self.step is not None:
            assert self.size is not None
            return self._stepped(int(u * self.size))
        if self.int_uniform is not None:
            return int(low) + int(u * (high - low + 1))
        if self.log_int_uniform is not None:
            # Each whole number has the share of the interval around it, on the logarithmic scale.
            exponent = _between(math.log(low - 0.5), math.log(high + 0.5), u)
            return min(max(round(math.exp(exponent)), int(low)), int(high))
        if self.log_uniform is not None:
            return min(max(math.exp(_between(math.log(low), math.log(high), u)), low), high)
        return _between(low, high, u)

    def quantile(self, value: Any) -> float:
        """Where ``value`` lies, in [0, 1]: :meth:`at` there gives it again, but for rounding."""
        if self.choice is not None:
            return (self._index(value) + 0.5) / len(self.choice)
        low, high = self.range
        number = float(value)
        if self.step is not None:
            assert self.size is not None
            return (round((number - low) / self.step) + 0.5) / self.size
        if self.int_uniform is not None:
            return (number - low + 0.5) / (high - low + 1)
        if self.logarithmic:
            margin = 0.5 if self.whole else 0.0
            low, high, number = math.log(low - margin), math.log(high + margin), math.log(number)
        return (number - low) / (high - low)

    def extremes(self) -> tuple[Any, ...]:
        """Every choice, or both ends of the range."""
        if self.choice is not None:
            return self.choice
        low, high = self.range
        return (low, high if self.step is None else self._stepped((self.size or 1) - 1))

    def contains(self, value: Any) -> bool:
        """Whether ``value`` is one of those that can be drawn."""
        if self.choice is not None:
            return self._index(value) >= 0
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        low, high = self.range
        if not low <= value <= high:
            return False
        if self.step is None:
            return True
        steps = (value - low) / self.step
        return abs(steps - round(steps)) <= 1e-6

    def _index(self, value: Any) -> int:
        """The place of a choice, -1 for none."""
        texts = [identity(each) for each in self.choice or ()]
        return texts.index(identity(value)) if identity(value) in texts else -1

    def _stepped(self, steps: int) -> float | int:
        assert self.step is not None
        value = self.range[0] + steps * self.step
        return int(value) if self.whole else float(f"{value:.12g}")


Space = dict[str, Distribution]


def random(space: Space, *, seed: int, trial: int) -> Settings:
    """The ``trial``-th random point."""
    where = np.array([trial])
    return point(space, lambda key: float(randomness.uniform(seed, f"space/{key}", where)[0]))


def quasi(space: Space, *, seed: int, trial: int) -> Settings:
    """The ``trial``-th point of a scrambled Sobol sequence with one dimension for each key, in order.

    Owen's scrambling as in ``scipy.stats.qmc.Sobol``: the first 2^m points have just one in each of the 2^m
    equal parts of every key's range.
    """
    keys = in_order(space)
    quantiles = _sobol(len(keys), seed, trial // _BLOCK)[trial % _BLOCK]
    return point(space, dict(zip(keys, map(float, quantiles), strict=True)).__getitem__)


@functools.lru_cache(maxsize=64)
def _sobol(dimensions: int, seed: int, block: int) -> NDArray[np.float64]:
    """Points ``block * _BLOCK`` onwards, shape (_BLOCK, dimensions), in [0, 1)."""
    from scipy.stats import qmc  # takes half a second, which `hasten check` of a grid need not wait for

    generator = np.random.default_rng(randomness.integer(seed, "space/sobol"))
    sequence = qmc.Sobol(dimensions, scramble=True, rng=generator)
    if block:
        sequence.fast_forward(block * _BLOCK)
    # Scrambled points may round up to 1 itself.
    return np.minimum(sequence.random(_BLOCK), 1.0 - 2.0**-53)


def point(space: Space, quantile: Callable[[str], float]) -> Settings:
    """The point whose keys lie at these quantiles; keys whose conditions do not hold are left out."""
    settings: Settings = {}
    for key in in_order(space):
        if holds(space[key].when, settings):
            settings[key] = space[key].at(quantile(key))
    return settings


def grid(space: Space) -> Iterator[Settings]:
    """Every combination of the choices, without those that conditions make equal.

    Raises:
        ConfigError: a key has a continuous range.
    """
    keys = in_order(space)
    for key in keys:
        if space[key].size is None:
            raise ConfigError(
                f"space.{key}", "a grid needs a choice", "Use choice: [...], a step, or search.kind: random."
            )
    seen: set[str] = set()
    for values in itertools.product(*(_values(space[key]) for key in keys)):
        settings: Settings = {}
        for key, value in zip(keys, values, strict=True):
            if holds(space[key].when, settings):
                settings[key] = value
        if (text := identity(settings)) not in seen:
            seen.add(text)
            yield settings


def _values(distribution: Distribution) -> list[Any]:
    size = distribution.size
    assert size is not None
    return [distribution.at((index + 0.5) / size) for index in range(size)]


def combinations(space: Space) -> float:
    """An upper bound of how many points there are; infinite with a continuous range."""
    return math.prod(distribution.size or math.inf for distribution in space.values())


def corners(space: Space) -> Space:
    """The same space with only the extremes of every key."""
    return {key: Distribution(choice=each.extremes(), when=each.when) for key, each in space.items()}


def identity(value: Any) -> str:
    """A text that two points, or two values, share only when they are equal; ``true`` is not 1."""
    return json.dumps(value, sort_keys=True)


def contains(space: Space, settings: Settings) -> bool:
    """Whether a point has just the keys whose conditions hold, each with one of its values."""
    expected = [key for key in in_order(space) if holds(space[key].when, settings)]
    return set(expected) == set(settings) and all(space[key].contains(settings[key]) for key in expected)


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


def holds(when: Mapping[str, Any], settings: Settings) -> bool:
    """Whether all conditions hold; a key that is absent itself fulfils none."""
    return all(
        key in settings and settings[key] in (wanted if isinstance(wanted, list) else [wanted])
        for key, wanted in when.items()
    )


def _between(low: float, high: float, u: float) -> float:
    return low + u * (high - low)
