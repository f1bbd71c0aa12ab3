"""From a study to where its points come from."""

from __future__ import annotations

from hasten.sweeps import space as spaces
from hasten.sweeps.searching.listed import COUNTABLE, listed
from hasten.sweeps.searching.possible import Base, Possible
from hasten.sweeps.searching.proposals import Proposals
from hasten.sweeps.study import Optuna, Pbt, Quasi, Random, StudySpec
from hasten.trainers.errors import ConfigError


def proposals(study: StudySpec, base: Base) -> Proposals:
    """Where the points of a study come from; ``base`` is its base recipe as written.

    Raises:
        ConfigError: the space has points that are no runs, a constraint cannot be evaluated or leaves
            hardly a point, or a population would change what cannot change in mid-run.
    """
    if study.arms:
        return listed(study, None)
    possible = Possible(study, base)
    if isinstance(study.search, Random | Quasi | Optuna):
        _require_points(study, possible, study.search.trials)
    match study.search:
        case Optuna() as search:
            # Importing Optuna takes a second, which a plan without it need not wait for.
            from hasten.sweeps.searching.optuna_search import OptunaProposals

            return OptunaProposals(study, search, possible)
        case Pbt() as search:
            from hasten.sweeps.searching.population import Population  # imports scipy

            return Population(study, search, base, possible)
        case _:
            return listed(study, possible)


def _require_points(study: StudySpec, possible: Possible, trials: int) -> None:
    """Refuse to search a small space for more points than it has."""
    if spaces.combinations(study.space) > COUNTABLE:
        return
    count = sum(1 for settings in spaces.grid(study.space) if possible(settings))
    if count < trials:
        problem = f"{trials} different points were asked for; the space has {count} possible ones"
        raise ConfigError("search.trials", problem, "Try fewer, or all of them with search.kind: grid.")
