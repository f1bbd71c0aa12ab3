"""Which settings matter: functional ANOVA of a random forest that predicts the objective (fANOVA).

Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing hyperparameter importance", ICML 2014.
With V the variance of the forest's prediction f over the space, and f_K its mean over all keys but K,

    importance of a   V_a = Var f_a / V        interaction of a and b   Var f_ab / V - V_a - V_b

The measure is the space's own: logarithmic where the study's range is. Means are taken over a Sobol sequence,
not exactly over the forest's boxes: that is as good as the forest, and takes a second for a thousand points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hasten.sweeps import space as spaces
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching.outcomes import Trials, by_point, outcome, settings_of
from hasten.sweeps.space import Distribution, Settings, Space
from hasten.sweeps.study import StudySpec

LEAST: Final = 12
"""Points that say anything about a forest's importances."""

_TREES: Final = 64
_BACKGROUND: Final = 256  # points that a marginal is averaged over
_LEVELS: Final = 16  # values of a continuous key

Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Importances:
    """The share of the objective's variance that each key explains alone.

    A key has None where too few points have it; one that exists only under a condition is judged on the
    points that have it. ``images`` is None where final objectives were compared; in a study that stops
    trials early the finished ones are a selection, so that all points are compared after ``images`` instead,
    the last evaluation that all have. ``explained`` is the forest's R^2 on points that a tree has not seen:
    near or below 0 it predicts nothing, and the shares mean nothing.
    """

    shares: Mapping[str, float | None]
    points: int
    images: int | None
    explained: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """How two keys act together: the predicted objective, averaged over all others.

    ``predicted[i][j]`` is that at ``first_values[i]`` and ``second_values[j]``; ``share`` the part of the
    variance that neither explains alone.
    """

    first: str
    second: str
    first_values: tuple[Any, ...]
    second_values: tuple[Any, ...]
    predicted: tuple[tuple[float, ...], ...]
    share: float


def importances(study: StudySpec, records: Iterable[TrialRecord], *, seed: int = 0) -> Importances:
    """How much each key of the space matters to the objective; failed points are left out."""
    table = _Table.of(study, records)
    shares: dict[str, float | None] = {}
    always = [key for key in study.space if not study.space[key].when]
    whole = _Forest.of(table, always, seed)
    for key in study.space:
        forest = whole if key in always else _Forest.of(table, [*_always_with(study.space, key)], seed)
        shares[key] = None if forest is None else forest.share(key)
    return Importances(
        shares=shares,
        points=len(table.values),
        images=table.images,
        explained=0.0 if whole is None else whole.explained,
    )


def interaction(
    study: StudySpec, records: Iterable[TrialRecord], first: str, second: str, *, seed: int = 0
) -> Interaction | None:
    """How two keys act together, on the points that have both; None where they are too few."""
    keys = dict.fromkeys((*_always_with(study.space, first), *_always_with(study.space, second)))
    forest = _Forest.of(_Table.of(study, records), list(keys), seed)
    return None if forest is None else forest.interaction(first, second)


def _always_with(space: Space, key: str) -> list[str]:
    """The keys that every point with ``key`` has, in the space's order, as far as conditions tell."""
    wanted = {key}
    for each in reversed(spaces.in_order(space)):
        if each in wanted:
            wanted |= set(space[each].when)
    return [each for each in space if each in wanted or not space[each].when]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The points of a study and what each is worth."""

    space: Space
    settings: Sequence[Settings]
    values: Rows
    images: int | None

    @classmethod
    def of(cls, study: StudySpec, records: Iterable[TrialRecord]) -> _Table:
        points = list(by_point(records).values())
        images, values = _values(study, points)
        known = [index for index, value in enumerate(values) if value is not None and np.isfinite(value)]
        return cls(
            space=study.space,
            settings=[settings_of(points[index]) for index in known],
            values=np.array([values[index] for index in known], dtype=np.float64),
            images=images,
        )


def _values(study: StudySpec, points: Sequence[Trials]) -> tuple[int | None, list[float | None]]:
    """What each point is worth, and after how many images; at the end of the runs where none was stopped."""
    found = [outcome(study, trials) for trials in points]
    if not any(each.state == "stopped" for each in found):
        # Generations of a population before the last are not at the end.
        whole = [all(record.images >= record.total for record in trials.values()) for trials in points]
        return None, [
            each.values[0] if each.values and end else None for each, end in zip(found, whole, strict=True)
        ]
    curves = [each.curve if each.state in ("valued", "stopped") else {} for each in found]
    common = set.intersection(*(set(curve) for curve in curves if curve))
    last = max(common, default=0)
    return last, [curve.get(last) for curve in curves]


class _Forest:
    """A random forest over some keys of a space, each as its quantile; choices as one column for each.

    It has the settings of Optuna's fANOVA: 64 whole trees.
    """

    def __init__(self, space: Space, keys: Sequence[str], rows: Rows, values: Rows, seed: int) -> None:
        # Importing scikit-learn takes a second, which a comparison of arms need not wait for.
        from sklearn.ensemble import RandomForestRegressor

        self._space = space
        self._keys = list(keys)
        forest = RandomForestRegressor(n_estimators=_TREES, random_state=seed, oob_score=True)
        self._forest = forest.fit(self._columns(rows), values)
        self.explained = float(forest.oob_score_)
        background = {key: Distribution(uniform=(0.0, 1.0)) for key in keys}
        points = [spaces.quasi(background, seed=seed, trial=trial) for trial in range(_BACKGROUND)]
        self._background = np.array([[point[key] for key in keys] for point in points])
        self._variance = float(np.var(self._predict(self._background)))

    @classmethod
    def of(cls, table: _Table, keys: Sequence[str], seed: int) -> _Forest | None:
        """Fitted to the points that have all keys; None where they are too few, or all alike."""
        having = [index for index, each in enumerate(table.settings) if all(key in each for key in keys)]
        values = table.values[having]
        if not keys or len(having) < LEAST or not np.ptp(values):
            return None
        rows = [[table.space[key].quantile(table.settings[index][key]) for key in keys] for index in having]
        return cls(table.space, keys, np.array(rows), values, seed)

    def share(self, *keys: str) -> float:
        """The share of the variance that these keys explain, together."""
        return float(np.var(self._marginal(*keys)) / self._variance) if self._variance else 0.0

    def interaction(self, first: str, second: str) -> Interaction:
        predicted = self._marginal(first, second)
        alone = self.share(first) + self.share(second)
        together = float(np.var(predicted) / self._variance) if self._variance else 0.0
        return Interaction(
            first=first,
            second=second,
            first_values=tuple(map(self._space[first].at, self._levels(first))),
            second_values=tuple(map(self._space[second].at, self._levels(second))),
            predicted=tuple(tuple(map(float, row)) for row in predicted),
            share=max(0.0, together - alone),
        )

    def _marginal(self, *keys: str) -> Rows:
        """The mean prediction at every level of one key, or every pair of levels of two."""
        levels = np.array(np.meshgrid(*map(self._levels, keys), indexing="ij"))
        combined = levels.reshape(len(keys), -1).T
        rows = np.tile(self._background, (len(combined), 1))
        rows[:, [self._keys.index(key) for key in keys]] = np.repeat(combined, _BACKGROUND, axis=0)
        means = self._predict(rows).reshape(len(combined), _BACKGROUND).mean(axis=1)
        return np.asarray(means.reshape(levels.shape[1:]))

    def _levels(self, key: str) -> Rows:
        """Quantiles in the middle of equal parts: the values of a key, or an even choice of them."""
        count = min(self._space[key].size or _LEVELS, _LEVELS)
        if self._space[key].choice is not None:
            count = len(self._space[key].choice or ())
        return (np.arange(count) + 0.5) / count

    def _predict(self, rows: Rows) -> Rows:
        return np.asarray(self._forest.predict(self._columns(rows)), dtype=np.float64)

    def _columns(self, rows: Rows) -> Rows:
        columns = []
        for key, quantiles in zip(self._keys, rows.T, strict=True):
            choices = self._space[key].choice
            if choices is None:
                columns.append(quantiles)
            else:
                index = np.minimum((quantiles * len(choices)).astype(int), len(choices) - 1)
                columns.extend((index == choice).astype(np.float64) for choice in range(len(choices)))
        return np.column_stack(columns)
