"""``hasten registry verify``: a version's files, its answers, and the first steps of its training again."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow.fs as pafs
import torch
from rich.console import Console

from hasten.platform.registry import RUN_URI, Registry, Version
from hasten.trainers import session
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.generation import export, packaged
from hasten.trainers.job import Job
from hasten.trainers.records import RunResult
from hasten.trainers.specs import Execution, RunSpec
from hasten.trainers.store import filesystem
from hasten.trainers.tracker import EVAL_LOSS, TRAIN_LOSS, NullTracker
from hasten.trainers.worker import Worker

FILES: Final = "hasten.files"
"""The tag of a version with the digest of its packaged model's files."""
TOLERANCE: Final = 1e-2
"""How far a loss may be off, relatively, where the machine, its threads or versions are others."""
_POINTS: Final = 3  # of the training loss that are computed again
_SAME: Final = ("device", "threads", "world_size", "torch", "diffusers", "numpy", "hasten")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at, whether it is as it should be, and what was seen."""

    name: str
    ok: bool
    said: str


def digest_of(folder: Path) -> str:
    """What names the files of a packaged model."""
    text = json.dumps(packaged.digests(folder), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(registry: Registry, version: Version, *, console: Console) -> Iterator[Check]:
    """Check a version, one thing after another.

    Raises:
        ConfigError: it was not registered by hasten, or its run or data are gone: nobody can check it.
        Fault: a service failed.
    """
    uri = version.tags.get(RUN_URI)
    if uri is None or FILES not in version.tags:
        raise ConfigError(f"models:/{registry.model}/{version.number}", "was not registered by this hasten")
    with tempfile.TemporaryDirectory(prefix="hasten-verify-") as place:
        folder = registry.download(version, Path(place))
        whole = digest_of(folder) == version.tags[FILES]
        yield Check(
            name="files", ok=whole, said="as they were registered" if whole else "are not those registered"
        )
        yield _weights(folder, uri)
        console.print("training the first steps again", style="dim")
        yield _trace(uri, Path(place, "again"))


def _weights(folder: Path, uri: str) -> Check:
    """Whether the model loads, answers, and has the weights of its run."""
    try:
        model = packaged.load(folder)
        (row,) = packaged.answer(model, [packaged.Wish(n=1, seed=0)], steps=2)
    except ConfigError as error:
        return Check(name="weights", ok=False, said=error.problem)
    expected = export.load(uri).network.state_dict()
    found = model.network.to("cpu").state_dict()
    equal = expected.keys() == found.keys() and all(
        torch.equal(expected[key].cpu(), found[key]) for key in expected
    )
    said = f"are those of the run, and make a {row['format']}" if equal else "are not those of the run"
    return Check(name="weights", ok=equal, said=said)


def _trace(uri: str, place: Path) -> Check:
    """Whether the run's first steps come to the losses that it recorded."""
    result = RunStore(uri).result()
    if result is None:
        raise ConfigError(uri, "has no result any more: its training cannot be checked")
    again, images = _again(result, uri, place)
    pairs = [
        (expected, again[metric, step])
        for metric in (TRAIN_LOSS, EVAL_LOSS)
        for step, expected in result.series(metric)
        if step <= images and (metric, step) in again
    ]
    if not pairs:
        raise ConfigError(uri, "recorded no loss in its first steps: its training cannot be checked")
    exact = _is_like_here(result)
    furthest = max(abs(found - expected) / max(abs(expected), 1e-12) for expected, found in pairs)
    ok = furthest == 0.0 if exact else math.isfinite(furthest) and furthest <= TOLERANCE
    where = (
        "to the bit" if exact and ok else f"within {furthest:.1e}, {0 if exact else TOLERANCE:g} is allowed"
    )
    return Check(
        name="trace", ok=ok, said=f"{len(pairs)} losses of the first {images:,} images come again {where}"
    )


def _again(result: RunResult, uri: str, place: Path) -> tuple[dict[tuple[str, int], float], int]:
    """The losses of the first steps, computed anew in a folder of their own, and of how many images."""
    spec = RunSpec.model_validate(result.spec)
    steps = [step for step, _ in result.series(TRAIN_LOSS)]
    if not steps:
        raise ConfigError(uri, "recorded no training loss: its training cannot be checked")
    images = steps[min(_POINTS, len(steps)) - 1]
    storage = uri.rpartition("/runs/")[0]
    for donor in (spec.start, spec.initial):
        if donor is not None:
            _bring(f"{storage}/runs/{donor.run}", place / "runs" / donor.run)
    execution = Execution(threads=spec.execution.threads, checkpoint_every=1.0)
    short = spec.model_copy(update={"execution": execution})
    try:
        sources.opened(sources.address(spec, storage), result.data_digest)
    except Fault as fault:
        raise ConfigError("data.source", f"{fault.problem}: its training cannot be checked") from None
    job = Job(
        spec=short,
        data_uri=sources.address(spec, storage),
        data_digest=result.data_digest,
        storage_uri=str(place),
        until=None if images == spec.budget.images else images,
    )
    heard = _Listener()
    for _ in session.run(job, worker=Worker(), track=heard):
        pass
    return heard.heard, images


def _bring(uri: str, place: Path) -> None:
    """A copy of the run that this one began with."""
    system, path = filesystem(uri)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        pafs.copy_files(
            path, str(place), source_filesystem=system, destination_filesystem=pafs.LocalFileSystem()
        )
    except OSError as error:
        raise ConfigError(uri, "is gone: what began with it cannot be checked") from error


def _is_like_here(result: RunResult) -> bool:
    """Whether the run was computed where the same input gives the same bits as here."""
    spec = RunSpec.model_validate(result.spec)
    here = session.facts(spec.execution.threads, Worker())
    return all(result.environment.get(key) == here[key] for key in _SAME)


class _Listener(NullTracker):
    """Remembers the metrics that it is told."""

    def __init__(self) -> None:
        self.heard: dict[tuple[str, int], float] = {}

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        self.heard |= {(key, step): value for key, value in values.items()}
