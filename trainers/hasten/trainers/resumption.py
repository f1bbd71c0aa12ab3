"""Where a run goes on: from its own furthest state, from another run's fork, or from the beginning.

A job's ``origin`` is a shortcut: the other run computed the same until there, so it is used where it is
further, and done without where it cannot be read. A recipe's ``start`` is part of what is computed: weights,
moments, averages and history are the other run's, settings this one's, and it must be there. A recipe's
``initial`` brings nothing but weights to a run that begins.
"""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from hasten.trainers import config, optimizers
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.curriculum import Clusters, Curriculum, SecondMoment
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.job import Job
from hasten.trainers.parts import Parts
from hasten.trainers.specs import Initial, RunSpec, Start, flatten
from hasten.trainers.states import State, images_of
from hasten.trainers.worker import Worker

log = logging.getLogger(__name__)

# What must be as it was, for the other run's weights and history to mean the same in this one.
_SAME: Final = (
    "data",
    "model",
    "diffusion",
    "conditioning",
    "ema",
    "eval",
    "optimizer.kind",
    "optimizer.convention",
    "budget.images",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a state lies: at ``name`` in the folder ``uri`` of the run that left it.

    ``whose`` it is: the run's own, its origin's, or that of the run which its recipe starts from.
    """

    whose: Literal["own", "origin", "start"]
    uri: str
    name: str

    @property
    def address(self) -> str:
        return f"{self.uri}/{self.name}"


def resume(job: Job, parts: Parts, worker: Worker) -> Place | None:
    """Put ``parts`` where the run goes on, see :func:`find`; None where that is the beginning."""
    found = find(job, worker)
    if found is None:
        if job.spec.initial is not None:
            _begin(job, parts, job.spec.initial)
        return None
    place, state = found
    parts.restore(_adapted(job, parts, place, state) if place.whose == "start" else state)
    return place


def find(job: Job, worker: Worker) -> tuple[Place, State] | None:
    """Where the run goes on, the same on every worker; None where that is the beginning.

    Raises:
        ConfigError: the recipe does not fit the run that it starts from.
        Fault: the run's own state is damaged, or what its recipe starts from is missing or damaged.
    """
    found = _search(job) if worker.is_first else None
    chosen = worker.agree(None if found is None else json.dumps(asdict(found[0])))
    if found is not None or chosen is None:
        return found
    place = Place(**json.loads(chosen))
    return place, RunStore(place.uri).read(place.name)


def _adapted(job: Job, parts: Parts, place: Place, state: State) -> State:
    """Another run's state with this run's settings."""
    adapted = state | {"optimizer": optimizers.adopted(parts.optimizer, state["optimizer"])}
    if not _fits(job.spec.curriculum, _recipe(RunStore(place.uri)).curriculum):
        adapted["sampler"] = parts.sampler.state_dict()
    return adapted


def _begin(job: Job, parts: Parts, initial: Initial) -> None:
    """Give a run's network and its averages the averaged weights of a finished run.

    Raises:
        ConfigError: that run's network, or what it predicts, is another one.
        Fault: there is no such finished run, or its checkpoint is damaged.
    """
    donor = RunStore(f"{job.storage_uri.rstrip('/')}/runs/{initial.run}")
    result, name = donor.result(), donor.latest()
    if result is None or name is None:
        raise Fault("initial.run", f"there is no finished run at {donor.uri}", "Run it to its end first.")
    theirs = RunSpec.model_validate(result.spec)
    for key in ("model", "diffusion", "conditioning.kind"):
        if _at(job.spec, key) != _at(theirs, key):
            problem = f"is another one than that of {initial.run}, whose weights this run is to begin with"
            raise ConfigError(key, problem, "Begin from scratch, or keep it as it was.")
    try:
        parts.begin_with(donor.load(name)["ema"][0])
    except RuntimeError:
        problem = f"has images or classes of other numbers than that of {initial.run}"
        raise ConfigError("data.source", problem, "Begin from scratch.") from None


def _at(spec: RunSpec, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), spec)


def _search(job: Job) -> tuple[Place, State] | None:
    store, origin = RunStore(job.uri), job.origin
    end = job.spec.budget.images if job.until is None else job.until
    name = store.furthest(end)
    own = images_of(name.rpartition("/")[2]) if name else 0
    if origin is not None and own < origin.images <= end:
        try:
            return _at_fork("origin", RunStore(origin.uri), origin.images)
        except Fault as fault:
            log.warning("%s: %s; the run computes by itself what it has in common", job.run, fault)
    if name is not None:
        return Place(whose="own", uri=store.uri, name=name), store.read(name)
    return None if job.spec.start is None else _start(job, job.spec.start)


def _at_fork(whose: Literal["origin", "start"], donor: RunStore, images: int) -> tuple[Place, State]:
    name = donor.fork(images)
    return Place(whose=whose, uri=donor.uri, name=name), donor.read(name)


def _start(job: Job, start: Start) -> tuple[Place, State]:
    donor = RunStore(f"{job.storage_uri.rstrip('/')}/runs/{start.run}")
    _check(job, start, _recipe(donor))
    known = donor.forks()
    if start.images not in known:
        problem = f"{start.run} has no checkpoint to start from after {start.images:,} images"
        after = ", ".join(f"{images:,}" for images in known)
        there = f"It has some after {after}. " if known else ""
        raise Fault("start.run", problem, f"{there}Run the study that this run belongs to: it makes them.")
    try:
        return _at_fork("start", donor, start.images)
    except Fault as fault:
        problem = f"{fault.subject}: {fault.problem}"
        raise Fault("start.run", problem, "Delete that folder and run that run again so far.") from None


def _recipe(donor: RunStore) -> RunSpec:
    """The recipe of the run that another one starts from.

    Raises:
        Fault: there is no such run.
    """
    text = donor.recipe()
    if text is None:
        remedy = "Its name is RECIPE-FINGERPRINT, as `hasten train` prints it; run it first."
        raise Fault("start.run", f"there is no run at {donor.uri}", remedy)
    return config.validate(RunSpec, config.parse_yaml(text, donor.uri))


def _check(job: Job, start: Start, theirs: RunSpec) -> None:
    """Refuse to go on with weights and a history that mean something else in this run.

    Raises:
        ConfigError: with the first key in which the recipes differ and must not.
    """
    remedy = f"What a run that starts from another one must share with it: {', '.join(_SAME)}."
    ours, others = _identity(job.spec), _identity(theirs)
    for key in sorted(ours.keys() | others.keys()):
        shared = any(key == name or key.startswith(f"{name}.") for name in _SAME)
        if shared and ours.get(key) != others.get(key):
            problem = f"is {ours.get(key)}, but {start.run} was trained with {others.get(key)}"
            raise ConfigError(key, problem, remedy)
    # The run is named by the fingerprint of its recipe and its data.
    if theirs.fingerprint(job.data_digest) != start.run.rpartition("-")[2]:
        raise ConfigError("data.source", f"{start.run} was trained on other data", remedy)


def _identity(spec: RunSpec) -> dict[str, Any]:
    return flatten(spec.identity(""))


def _fits(ours: Curriculum, theirs: Curriculum) -> bool:
    """Whether what a timestep sampler has learnt under one curriculum means the same under another."""
    match ours, theirs:
        case SecondMoment(), SecondMoment():
            return ours.history == theirs.history
        case Clusters(), Clusters():
            return (ours.clusters, ours.coordinate) == (theirs.clusters, theirs.coordinate)
        case _:
            return ours.kind == theirs.kind
