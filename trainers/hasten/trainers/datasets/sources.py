"""What a run trains on, found and opened: an imported data set, or an analytic mixture that needs none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hasten.trainers.datasets import data, mixtures, readers
from hasten.trainers.datasets.data import Dataset
from hasten.trainers.datasets.mixtures import Mixture
from hasten.trainers.datasets.readers import Reader
from hasten.trainers.errors import ConfigError
from hasten.trainers.job import Job
from hasten.trainers.specs import RunSpec
from hasten.trainers.worker import Worker

Source = Dataset | Mixture

_MIXTURE: Final = "mixture:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where data lies and what names its content; ``images`` to train on, None where there is no end."""

    uri: str
    digest: str
    shape: tuple[int, int, int]
    classes: int
    images: int | None


def is_mixture(source: str) -> bool:
    """Whether a recipe's ``data.source`` means an analytic mixture."""
    return source.startswith(_MIXTURE)


def mixture(source: str) -> Mixture:
    """The mixture that ``mixture:NAME`` means.

    Raises:
        ConfigError: there is none of that name.
    """
    return mixtures.get(source.removeprefix(_MIXTURE))


def find(spec: RunSpec, storage_uri: str) -> Found:
    """Look the data of a recipe up, and check that they fit each other.

    Raises:
        ConfigError: the data set is missing, or does not fit the recipe.
    """
    location = address(spec, storage_uri)
    if is_mixture(location):
        known = mixture(location)
        found = Found(
            uri=location, digest=known.digest, shape=known.shape, classes=known.classes, images=None
        )
    else:
        manifest = data.read_manifest(location)
        found = Found(
            uri=location,
            digest=manifest.digest,
            shape=manifest.shape,
            classes=manifest.classes,
            images=int(manifest.count * (1.0 - spec.data.holdout)),
        )
    _require_fit(spec, found)
    return found


def bind(spec: RunSpec, storage_uri: str) -> Job:
    """A run bound to the data that it will see.

    Raises:
        ConfigError: the data set is missing, or does not fit the recipe.
    """
    found = find(spec, storage_uri)
    return Job(spec=spec, data_uri=found.uri, data_digest=found.digest, storage_uri=storage_uri)


def address(spec: RunSpec, storage_uri: str) -> str:
    """Where the data of a recipe lie; nothing is looked up."""
    name = spec.data.source
    return name if is_mixture(name) else data.uri(name, storage_uri)


def opened(uri: str, digest: str) -> Source:
    """The data at an address that :func:`find` gave, as they were with this digest.

    Raises:
        Fault: they are damaged or no longer there, or the storage failed.
    """
    return mixture(uri) if is_mixture(uri) else data.read(uri, digest)


def shape(source: Source) -> tuple[int, int, int]:
    """(C, H, W) of an image."""
    return source.shape if isinstance(source, Mixture) else source.manifest.shape


def classes(source: Source) -> int:
    """How many classes there are; 0 where there are no labels."""
    return source.classes if isinstance(source, Mixture) else source.manifest.classes


def reader(source: Source, spec: RunSpec, worker: Worker) -> Reader:
    """The training images of a run."""
    if isinstance(source, Mixture):
        return readers.Generated(source, seed=spec.budget.seed, device=worker.device)
    return readers.open_reader(
        source, spec=spec.data, seed=spec.budget.seed, kind=spec.execution.reader, worker=worker
    )


def _require_fit(spec: RunSpec, found: Found) -> None:
    width = found.shape[-1]
    if width != spec.data.resolution:
        problem = f"is {spec.data.resolution}, but the images of {found.uri} are {width} pixels wide"
        raise ConfigError("data.resolution", problem, f"Set it to {width}, or import again.")
    if found.images is not None and spec.optimizer.batch > found.images:
        problem = f"{spec.optimizer.batch} is more than the {found.images} training images of {found.uri}"
        raise ConfigError("optimizer.batch", problem)
    if spec.conditioning.kind == "classes" and not found.classes:
        raise ConfigError("conditioning.kind", f"classes, but the images of {found.uri} have no labels")
