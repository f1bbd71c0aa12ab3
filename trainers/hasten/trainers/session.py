"""One run from resumption to result, the same for every launcher."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
import yaml

from hasten.trainers import data, diffusion, loop, networks, tracker
from hasten.trainers.checkpoints import RunStore, StoreWriter
from hasten.trainers.ema import PowerEma
from hasten.trainers.errors import ConfigError
from hasten.trainers.evaluation import Evaluator
from hasten.trainers.loop import Parts, Report
from hasten.trainers.records import RunResult
from hasten.trainers.specs import RunSpec
from hasten.trainers.tracker import Tracker
from hasten.trainers.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run and its addresses: small, picklable, free of secrets."""

    spec: RunSpec
    data_uri: str
    data_digest: str
    storage_uri: str

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
        return yaml.safe_dump(
            self.spec.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100
        )


def job(spec: RunSpec, storage_uri: str) -> Job:
    """Bind a run to the data that it will see.

    Raises:
        ConfigError: the data set is missing, or does not fit the recipe.
    """
    location = data.uri(spec.data.source, storage_uri)
    manifest = data.read_manifest(location)
    if manifest.resolution != spec.data.resolution:
        problem = (
            f"is {spec.data.resolution}, but the images of {location} are {manifest.resolution} pixels wide"
        )
        raise ConfigError("data.resolution", problem, f"Set it to {manifest.resolution}, or import again.")
    training = int(manifest.count * (1.0 - spec.data.holdout))
    if spec.optimizer.batch > training:
        problem = f"{spec.optimizer.batch} is more than the {training} training images of {location}"
        raise ConfigError("optimizer.batch", problem)
    return Job(spec=spec, data_uri=location, data_digest=manifest.digest, storage_uri=storage_uri)


def never() -> bool:
    return False


def run(job: Job, *, worker: Worker, track: Tracker, stop: Callable[[], bool] = never) -> Iterator[Report]:
    """Bring a run to its end from wherever it stands.

    A finished run yields nothing: it only tells ``track`` again what it measured, for a tracker that missed
    some of it.

    The result is in the store afterwards (``RunStore(job.uri).result()``), unless the run was stopped.

    Raises:
        Fault: training diverged, or the storage failed.
    """
    store, started = RunStore(job.uri), time.monotonic()
    if worker.agree("finished" if worker.is_first and store.result() else None):
        retell(job, track)
        return
    make_deterministic(job.spec.execution.threads)
    track.artifact(tracker.RESOLVED_CONFIG, job.resolved().encode())
    parts = assemble(job, worker)
    latest = worker.agree(store.latest() if worker.is_first else None)
    resumed_from = None
    if latest:
        parts.restore(store.load(latest))
        resumed_from = parts.images
    writer = StoreWriter(store)
    try:
        yield from loop.train(job.spec, parts, worker=worker, track=track, writer=writer, stop=stop)
        checkpoint = writer.wait()
    finally:
        writer.close()
    if worker.is_first and parts.images >= job.spec.budget.images:
        measured = result(job, parts, worker=worker, resumed_from=resumed_from)
        ending = {
            "checkpoint": checkpoint or (store.checkpoint_uri(latest) if latest else None),
            "wall_seconds": time.monotonic() - started,
        }
        store.write_result(measured.model_copy(update=ending))
    worker.agree(None)  # no rank returns before the result is there


def retell(job: Job, track: Tracker) -> None:
    """Tell ``track`` everything about a finished run, from the store."""
    store = RunStore(job.uri)
    result = store.result()
    if result is None:
        return
    track.artifact(tracker.RESOLVED_CONFIG, job.resolved().encode())
    for point in result.history:
        track.metrics(point.metrics, step=point.step)
    for step, picture in store.sheets():
        track.image(tracker.FIXED_NOISE_GRID, picture, step=step)


def assemble(job: Job, worker: Worker) -> Parts:
    """A run's parts as they are before the first image."""
    spec = job.spec
    dataset = data.read(job.data_uri, job.data_digest)
    train, held_out = dataset.split(spec.data.holdout)
    if not len(held_out):
        raise ConfigError(
            "data.holdout", f"{spec.data.holdout} leaves nothing held out of {len(train)} images"
        )
    alphas_bar = diffusion.alphas_bar(spec.diffusion)
    network = networks.build(
        spec.model,
        resolution=spec.data.resolution,
        channels=dataset.manifest.channels,
        seed=spec.budget.seed,
    ).to(worker.device)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=spec.optimizer.lr,
        betas=(0.9, spec.optimizer.beta2),
        weight_decay=spec.optimizer.weight_decay,
        fused=True,
    )
    evaluator = Evaluator(
        spec.eval,
        diffusion=spec.diffusion,
        alphas_bar=alphas_bar,
        train=dataset.pixels[train],
        held_out=dataset.pixels[held_out],
        worker=worker,
    )
    return Parts(
        network=network,
        model=distributed(network, worker),
        optimizer=optimizer,
        ema=PowerEma(network, spec.ema.stds),
        pixels=torch.from_numpy(dataset.pixels[train]).to(worker.device),
        alphas_bar=alphas_bar,
        evaluator=evaluator,
    )


def distributed(network: torch.nn.Module, worker: Worker) -> torch.nn.Module:
    """The network in DDP where there are several workers."""
    if worker.world_size == 1:
        return network
    ids = [worker.device.index] if worker.device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(
        network, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=True
    )


def make_deterministic(threads: int) -> None:
    """Same input, same bits: on one machine, at equal world size, threads and versions."""
    torch.set_num_threads(threads)
    # cuBLAS is deterministic only with a fixed workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def result(job: Job, parts: Parts, *, worker: Worker, resumed_from: int | None) -> RunResult:
    """What a finished run measured."""
    metrics: dict[str, float] = functools.reduce(
        lambda known, point: known | point.metrics, parts.history, {}
    )
    return RunResult(
        run=job.run,
        fingerprint=job.fingerprint,
        status="finished",
        images=parts.images,
        resumed_from=resumed_from,
        seconds=parts.seconds,
        metrics=metrics,
        history=sorted(parts.history, key=lambda point: point.step),
        spec=job.spec.model_dump(mode="json"),
        data_digest=job.data_digest,
        environment=environment(job, worker),
    )


def environment(job: Job, worker: Worker) -> dict[str, str]:
    """What may change the last bits of a run without changing what it computes."""
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(worker.device)
        if worker.device.type == "cuda"
        else platform.machine(),
        "world_size": worker.world_size,
        "threads": job.spec.execution.threads,
        "launcher": job.spec.execution.launcher,
        "python": platform.python_version(),
        "system": platform.system(),
    }
    versions = {name: metadata.version(name) for name in ("hasten", "torch", "diffusers", "numpy")}
    return {key: str(value) for key, value in {**facts, **versions}.items()}
