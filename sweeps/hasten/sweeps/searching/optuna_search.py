"""The door to Optuna: its tree-structured Parzen estimator proposes points, its storage shows them.

Optuna's own state is never kept: a study in memory is filled from the outcomes of the points that are over,
in order of number, and a sampler with the point's own seed answers once. Killed and continued, or asked in
another process, it proposes the same. What lies in a durable storage is a view, for optuna-dashboard.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hasten.sweeps import space as spaces
from hasten.sweeps.records import TrialRecord
from hasten.sweeps.searching.listed import Draws, numbered
from hasten.sweeps.searching.outcomes import Trials, by_point, goals, outcome, settings_of
from hasten.sweeps.searching.possible import Possible
from hasten.sweeps.searching.proposals import Point
from hasten.sweeps.space import Distribution, Settings, Space
from hasten.sweeps.statistics import objectives
from hasten.sweeps.study import Optuna, StudySpec
from hasten.trainers import randomness
from hasten.trainers.errors import Fault

_ASKS: Final = 16  # until a point is possible and new; then a random one is taken

optuna.logging.set_verbosity(optuna.logging.WARNING)


class OptunaProposals:
    """Points of a space that Optuna proposes; the first ``startup`` are the random ones of the same seed.

    A point learns from all that are at least ``ahead`` before it; those in between count as running, which
    repels it from them (the constant liar).
    """

    def __init__(self, study: StudySpec, search: Optuna, possible: Possible) -> None:
        self._study = study
        self._search = search
        self._possible = possible
        self._random = Draws(study.space, spaces.random, search.seed, possible)
        self._estimator = _Estimator(study, search)
        # What was proposed from these outcomes: it stands as long as they do.
        self._basis: list[Trials] = []
        self._proposed: dict[int, Settings] = {}

    @property
    def count(self) -> int:
        return self._search.trials

    def needs(self, number: int) -> int:
        return 0 if number < self._search.startup else max(0, number + 1 - self._study.ahead)

    def point(self, number: int, outcomes: Sequence[Trials]) -> Point:
        over = list(outcomes[: self.needs(number)])
        if not all(map(_same, self._basis, over)):
            self._proposed.clear()
            self._estimator.forget()
            self._basis = over
        self._basis = max(self._basis, over, key=len)
        return numbered(number, dict(self._settings(number, over)))

    def _settings(self, number: int, over: Sequence[Trials]) -> Settings:
        """The settings of a point that is over, or may be proposed from points that are."""
        if number < self._search.startup:
            return self._random[number]
        if number < len(over):
            return settings_of(over[number])
        if number not in self._proposed:
            self._proposed[number] = self._propose(number, over)
        return self._proposed[number]

    def _propose(self, number: int, over: Sequence[Trials]) -> Settings:
        needed = self.needs(number)
        earlier = [self._settings(each, over) for each in range(number)]
        taken = set(map(spaces.identity, earlier))
        self._estimator.learn(over[:needed])
        with self._estimator.running(earlier[needed:]):
            for attempt in range(_ASKS):
                seed = randomness.integer(self._search.seed, f"optuna/{number}/{attempt}")
                settings = self._estimator.ask(seed)
                if spaces.identity(settings) not in taken and self._possible(settings):
                    return settings
        # The estimator insists on what cannot be tried.
        others = (self._random[index] for index in itertools.count())
        return next(settings for settings in others if spaces.identity(settings) not in taken)


def _same(one: Trials, other: Trials) -> bool:
    """Whether both are the very same records."""
    return one.keys() == other.keys() and all(one[seed] is other[seed] for seed in one)


class _Estimator:
    """A study in memory that learns what is over, in order, and is asked with a fresh sampler each time.

    Candidates and points that are running are marked as failed after an answer, which Optuna ignores: so the
    study only ever grows, and an answer does not depend on earlier ones.
    """

    def __init__(self, study: StudySpec, search: Optuna) -> None:
        self._spec = study
        self._search = search
        self.forget()

    def forget(self) -> None:
        self._study = optuna.create_study(directions=_directions(self._spec))
        self._learnt = 0

    def learn(self, over: Sequence[Trials]) -> None:
        """Know these points, of which those that were told before are the first."""
        if self._learnt > len(over):
            self.forget()
        for trials in over[self._learnt :]:
            self._study.add_trial(_trial(self._spec, trials))
        self._learnt = len(over)

    @contextmanager
    def running(self, points: Sequence[Settings]) -> Iterator[None]:
        """Hold these points for running."""
        first = len(self._study.get_trials(deepcopy=False))
        for settings in points:
            distributions = _distributions(self._spec.space, settings)
            params = _params(self._spec.space, settings)
            state = TrialState.RUNNING
            self._study.add_trial(create_trial(state=state, params=params, distributions=distributions))
        try:
            yield
        finally:
            for index in range(len(points)):
                self._study.tell(first + index, state=TrialState.FAIL)

    def ask(self, seed: int) -> Settings:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`
            self._study.sampler = TPESampler(
                n_startup_trials=1,  # the random ones are ours
                multivariate=self._search.multivariate,
                group=self._search.multivariate,
                constant_liar=True,
                seed=seed % 2**32,
            )
        trial = self._study.ask()
        settings: Settings = {}
        for key in spaces.in_order(self._spec.space):
            distribution = self._spec.space[key]
            if spaces.holds(distribution.when, settings):
                settings[key] = _suggested(trial, key, distribution)
        self._study.tell(trial, state=TrialState.FAIL)
        return settings


def _trial(study: StudySpec, trials: Trials, attributes: Mapping[str, Any] | None = None) -> FrozenTrial:
    """A point that is over, as Optuna's trial.

    A stopped point is pruned at its last evaluation. A hopeless one is pruned before its first: that ranks
    it behind all others, so that the search avoids it, without inventing a value for it.
    """
    found = outcome(study, trials)
    state = {"valued": TrialState.COMPLETE, "unknown": TrialState.FAIL}.get(found.state, TrialState.PRUNED)
    settings = settings_of(trials)
    bounds = study.objective.bounds
    return create_trial(
        state=state,
        values=found.values or None,
        params=_params(study.space, settings),
        distributions=_distributions(study.space, settings),
        user_attrs=dict(attributes or {}),
        # Optuna compares pruned trials by one goal only, and refuses curves where there are several.
        intermediate_values=dict(found.curve) if found.state != "hopeless" and not study.pareto else {},
        constraints={
            f"{number}: {bound.metric}": excess
            for number, (bound, excess) in enumerate(zip(bounds, found.violations, strict=False))
        },
    )


def _directions(study: StudySpec) -> list[StudyDirection]:
    ours = [objectives.direction(goal) for goal in goals(study)]
    return [StudyDirection.MINIMIZE if each == "min" else StudyDirection.MAXIMIZE for each in ours]


def _distributions(space: Space, settings: Settings) -> dict[str, BaseDistribution]:
    return {key: _distribution(space[key]) for key in settings}


def _params(space: Space, settings: Settings) -> dict[str, Any]:
    return {key: _labels(space[key]).get(spaces.identity(value), value) for key, value in settings.items()}


def _labels(ours: Distribution) -> dict[str, str]:
    """The choices as Optuna can keep them, by identity: blocks and lists too, and ``true`` apart from 1."""
    texts = all(isinstance(value, str) for value in ours.choice or ())
    return {spaces.identity(value): value if texts else spaces.identity(value) for value in ours.choice or ()}


def _distribution(ours: Distribution) -> BaseDistribution:
    if ours.choice is not None:
        return CategoricalDistribution(list(_labels(ours).values()))
    low, high = ours.extremes()
    if ours.whole:
        return IntDistribution(low, high, log=ours.logarithmic, step=int(ours.step or 1))
    return FloatDistribution(low, high, log=ours.logarithmic, step=ours.step)


def _suggested(trial: optuna.Trial, key: str, ours: Distribution) -> Any:
    theirs = _distribution(ours)
    match theirs:
        case CategoricalDistribution():
            assert ours.choice is not None
            return ours.choice[theirs.choices.index(trial.suggest_categorical(key, theirs.choices))]
        case IntDistribution():
            return trial.suggest_int(key, theirs.low, theirs.high, step=theirs.step, log=theirs.log)
        case FloatDistribution():
            value = trial.suggest_float(key, theirs.low, theirs.high, step=theirs.step, log=theirs.log)
            return value if ours.step is None else ours.at(ours.quantile(value))
    raise AssertionError(theirs)


def mirror(storage_url: str, study: StudySpec, records: Iterable[TrialRecord]) -> int:
    """Write the points that are over into an Optuna storage, for optuna-dashboard; how many were new.

    The Optuna study has the name of ours. A point is written once all its seeds are over, and never twice.
    When what was written is no longer true (more seeds, a trial that was tried again) all is written anew:
    the storage is a view of our records.

    Args:
        storage_url: a database, as SQLAlchemy writes it.

    Raises:
        Fault: the database does not answer.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        address = make_url(storage_url).render_as_string(hide_password=True)
    except ArgumentError:
        raise Fault("database", "is not the address of a database", "Such as sqlite:///optuna.db") from None
    points = {name: found for name, found in by_point(records).items() if found.keys() >= set(study.seeds)}
    try:
        storage = optuna.storages.RDBStorage(storage_url)
        try:
            return _write(storage, study, points)
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError) as error:
        raise Fault(address, f"does not serve as Optuna's storage: {type(error).__name__}") from None


def _write(storage: optuna.storages.RDBStorage, study: StudySpec, points: Mapping[str, Trials]) -> int:
    wanted = {name: _digest(study, found) for name, found in points.items()}
    view = _view(storage, study)
    kept = {trial.user_attrs.get("point"): trial.user_attrs.get("digest") for trial in view.trials}
    if not kept.items() <= wanted.items():
        optuna.delete_study(study_name=study.name, storage=storage)
        view, kept = _view(storage, study), {}
    new = [name for name in points if name not in kept]
    for name in new:
        attributes = {"point": name, "digest": wanted[name], **_attributes(points[name])}
        view.add_trial(_trial(study, points[name], attributes))
    return len(new)


def _view(storage: optuna.storages.RDBStorage, study: StudySpec) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the names of metrics
        view = optuna.create_study(
            study_name=study.name, storage=storage, directions=_directions(study), load_if_exists=True
        )
        view.set_metric_names([goal.metric for goal in goals(study)])
    return view


def _digest(study: StudySpec, trials: Trials) -> str:
    """Of all that a mirrored trial shows."""
    text = spaces.identity(
        {"settings": settings_of(trials), "outcome": asdict(outcome(study, trials)), **_attributes(trials)}
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _attributes(trials: Trials) -> dict[str, Any]:
    return {
        "runs": {str(seed): record.run for seed, record in trials.items()},
        "states": {str(seed): record.state for seed, record in trials.items()},
        "failures": {str(seed): record.failure for seed, record in trials.items() if record.failure},
    }
