"""An import from its beginning to its end: look, decode, judge, and write what is new."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, get_args

import pyarrow as pa
from rich.console import Console

from hasten.platform import importing
from hasten.platform.importing import places, report, sources
from hasten.platform.importing.decoding import Fit
from hasten.platform.importing.in_process import InProcess
from hasten.platform.importing.lines import counting
from hasten.platform.importing.report import Findings
from hasten.platform.importing.rows import AnyTarget, Layout
from hasten.platform.importing.samples import Part
from hasten.platform.importing.sources import Source
from hasten.trainers.datasets import data
from hasten.trainers.datasets.data import Manifest
from hasten.trainers.datasets.shards import Shard
from hasten.trainers.errors import ConfigError
from hasten.trainers.store import Folder

_SMALL_IMAGES: Final = 4_000
_SMALL_BYTES: Final = 2**25
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Engine(Protocol):
    """Who does the work. ``advance`` is told of rows decoded, of shards written."""

    def decode(self, parts: Sequence[Part], target: AnyTarget, advance: Callable[[int], None]) -> None: ...
    def small_columns(self) -> pa.Table: ...
    def write(self, layout: Layout, advance: Callable[[int], None]) -> list[Shard]: ...


def import_source(
    address: str,
    name: str,
    storage_uri: str,
    *,
    format: str,  # noqa: A002
    resolution: int | None,
    fit: Fit,
    channels: int | None,
    labels: str,
    max_rejected: float,
    scale: float | None,
    workers: int | None,
    console: Console | None,
) -> tuple[Manifest, bool]:
    """See :func:`hasten.platform.importing.import_dataset`."""
    show = console or Console(quiet=True)
    _check(name, fit=fit, max_rejected=max_rejected, scale=scale, workers=workers)
    folder = Folder(data.uri(name, storage_uri))
    source = sources.open_source(address, format=format, labels=labels)
    target = _target(source, resolution=resolution, channels=channels, fit=fit, scale=scale)
    labelled = labels != "none"
    with _engine(source, workers, show) as engine:
        with counting(show, f"reading {name}", "images", source.images) as advance:
            engine.decode(source.parts, target, advance)
        found = report.find(
            engine.small_columns(), source, target, labelled=labelled, max_rejected=max_rejected, scale=scale
        )
        before = importing.existing(folder)
        if before is not None and before.digest == found.digest:
            return before, False
        dtype, shape = report.layout_of(target)
        names = {} if source.classes else {text: number for number, text in enumerate(found.class_names)}
        layout = Layout(
            folder=places.absolute(folder.uri),
            bounds=found.bounds,
            classes=names,
            labelled=labelled,
            shape=shape,
            dtype=dtype,
        )
        with counting(show, f"writing {name}", "shards", len(found.bounds) + 1) as advance:
            shards = engine.write(layout, advance)
    manifest = _finish(folder, name, source, found, shards, layout)
    assert manifest.digest == found.digest, "what was written is what was found"
    return manifest, True


def _finish(
    folder: Folder, name: str, source: Source, found: Findings, shards: list[Shard], layout: Layout
) -> Manifest:
    document = json.dumps(found.document(source), indent=2, ensure_ascii=False)
    folder.write(report.NAME, document.encode())
    return data.finish(
        folder,
        name=name,
        source=source.address,
        shards=shards,
        shape=layout.shape,
        dtype=layout.dtype,
        classes=found.classes,
        scale=found.scale,
        class_names=found.class_names,
        report=found.counts,
    )


def _check(name: str, *, fit: str, max_rejected: float, scale: float | None, workers: int | None) -> None:
    is_address = "://" in name or name.startswith((".", "/"))
    if not is_address and not _NAME.fullmatch(name):
        raise ConfigError("NAME", f"{name!r} is no name", "Use letters, digits, '.', '_' and '-'.")
    if fit not in get_args(Fit):
        raise ConfigError("--fit", f"no such fit: {fit}", f"Choose from {', '.join(get_args(Fit))}.")
    if not 0.0 <= max_rejected <= 1.0:
        raise ConfigError("--max-rejected", f"{max_rejected:g} is not from 0 to 1")
    if scale is not None and not 0.0 < scale < float("inf"):
        raise ConfigError("--scale", f"{scale:g} is not a positive number")
    if workers is not None and workers < 1:
        raise ConfigError("--workers", f"{workers} is not at least 1")


def _target(
    source: Source, *, resolution: int | None, channels: int | None, fit: Fit, scale: float | None
) -> AnyTarget:
    if source.format != "latents":
        if scale is not None:
            raise ConfigError("--scale", "is for latents, and these are images", "Leave it out.")
        return sources.image_target(source, resolution=resolution, channels=channels, fit=fit)
    if resolution is not None or channels is not None:
        raise ConfigError(
            "--resolution", "latents cannot be resized", "Leave out --resolution and --channels."
        )
    return sources.latent_target(source)


@contextmanager
def _engine(source: Source, workers: int | None, console: Console) -> Iterator[Engine]:
    if workers is None and source.images <= _SMALL_IMAGES and source.bytes <= _SMALL_BYTES:
        yield InProcess()
        return
    from hasten.platform import cluster
    from hasten.platform.connection import connected

    services = connected(console, ray=True)
    from hasten.platform.importing import ray_data  # not before Ray's variables are set

    is_guest = ray_data.is_attached()
    cluster.attach(services)
    try:
        with ray_data.quiet(workers) as engine:
            yield engine
    finally:
        if not is_guest:
            cluster.detach()
