"""Trained models by what people call them: a run's name, a URI, or a registered model's version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from rich.console import Console

from hasten.platform import runs
from hasten.platform.connection import connected
from hasten.platform.registry import RUN_URI, Registry
from hasten.trainers.datasets import data, sources
from hasten.trainers.datasets.data import Manifest
from hasten.trainers.errors import ConfigError
from hasten.trainers.generation import export
from hasten.trainers.generation.export import Trained

_REGISTERED: Final = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A trained network and the manifest of its data, which is None where that is no longer there."""

    trained: Trained
    manifest: Manifest | None

    @property
    def makes_images(self) -> bool:
        """Whether it makes pixels in [-1, 1]: not latents, nor points of a mixture."""
        channels, height, _ = self.trained.network.shape
        if sources.is_mixture(self.trained.spec.data.source):
            return False
        if self.manifest is not None:
            return self.manifest.dtype == "uint8"
        return channels in (1, 3) and height > 1


def load(source: str, *, raw: bool = False, ema_std: float | None = None, console: Console) -> Model:
    """The model that ``source`` names; says so where its run is not finished.

    Args:
        source: a run's name, the URI of a run or of one of its checkpoints, or ``models:/NAME@ALIAS`` or
            ``models:/NAME/VERSION``.
        raw: the last weights instead of averaged ones.
        ema_std: the relative width of the average.
        console: where to say things.

    Raises:
        ConfigError: there is no such model.
        Fault: a service failed, or the checkpoint is damaged.
    """
    services = connected(console, tracking=source.startswith("models:"))
    uri = address(source, storage_uri=services.storage_uri, tracking_uri=services.tracking_uri)
    trained = export.load(uri, raw=raw, ema_std=ema_std)
    if trained.result is None:
        total = trained.spec.budget.images
        console.print(
            f"{source} is not finished: its newest checkpoint has {trained.images:,} of {total:,} images"
        )
    return Model(trained=trained, manifest=_manifest(trained))


def address(source: str, *, storage_uri: str, tracking_uri: str) -> str:
    """The URI of the run or checkpoint that ``source`` names.

    Raises:
        ConfigError: no such run or registered model.
        Fault: the model registry failed.
    """
    if source.startswith("models:"):
        return _registered(source, tracking_uri)
    return runs.locate(source, storage_uri)


def _registered(source: str, tracking_uri: str) -> str:
    asked = _REGISTERED.fullmatch(source)
    if asked is None:
        raise ConfigError(source, "is not the address of a registered model", "Write models:/NAME@ALIAS.")
    registry = Registry(tracking_uri, asked["name"])
    versions = registry.versions()
    if asked["alias"]:
        version = registry.aliased(asked["alias"])
    else:
        version = next((one for one in versions if one.number == asked["version"]), None)
    if version is None:
        known = ", ".join(one.number for one in versions) or "none"
        raise ConfigError(source, f"no such version; registered versions of {asked['name']}: {known}")
    if RUN_URI not in version.tags:
        raise ConfigError(source, "was not registered by hasten: it does not say of which run it is")
    return version.tags[RUN_URI]


def _manifest(trained: Trained) -> Manifest | None:
    """The manifest of the data that it was trained on, beside its run or where its recipe says."""
    if sources.is_mixture(trained.spec.data.source):
        return None
    storage_uri = trained.run_uri.rpartition("/runs/")[0]
    try:
        return data.read_manifest(data.uri(trained.spec.data.source, storage_uri))
    except ConfigError:  # sampling needs no data
        return None
