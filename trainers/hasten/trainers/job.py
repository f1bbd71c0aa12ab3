"""A run bound to its data and its store: what travels to the process that trains it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import yaml

from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import RunSpec

# libyaml's, ten times as fast, where PyYAML was built with it.
_DUMPER: Final[Any] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A checkpoint to start from: that of the run at ``uri`` (its folder in the store) after ``images``."""

    uri: str
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run and its addresses: small, picklable, free of secrets.

    ``origin`` is a shortcut and never changes what is computed: a checkpoint of a run that is known to be
    the same as this one until then; where it is missing, the run starts at its beginning. ``until`` ends the
    run unfinished, with a checkpoint, after that many images. At each of ``forks`` images a checkpoint is
    written that stays, for other runs to start from. An update must end at each of them: they are the
    budget, or multiples of the batch, counted from where the recipe starts.
    """

    spec: RunSpec
    data_uri: str
    data_digest: str
    storage_uri: str
    origin: Origin | None = None
    until: int | None = None
    forks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what the run would pass by.

        Raises:
            ConfigError: no update ends at ``until`` or at one of ``forks``.
        """
        first = self.spec.start.images if self.spec.start else 0
        batch, total = self.spec.optimizer.batch, self.spec.budget.images
        for images in (*self.forks, *([] if self.until is None else [self.until])):
            if images != total and not (first < images < total and (images - first) % batch == 0):
                problem = f"with {batch} images in a batch, no update ends after image {images:,}"
                raise ConfigError("optimizer.batch", problem, "Choose a batch that divides it.")

    @property
    def fingerprint(self) -> str:
        return self.spec.fingerprint(self.data_digest)

    @property
    def run(self) -> str:
        return f"{self.spec.name}-{self.fingerprint}"

    @property
    def uri(self) -> str:
        """The run's folder in the store."""
        return f"{self.storage_uri.rstrip('/')}/runs/{self.run}"

    def resolved(self) -> str:
        """The whole recipe with its defaults, as YAML."""
        known = self.spec.model_dump(mode="json")
        return str(yaml.dump(known, Dumper=_DUMPER, sort_keys=False, default_flow_style=None, width=100))
