"""One run from resumption to result, the same for every launcher."""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib import metadata
from typing import Any, Final, cast

import torch

from hasten.trainers import ema, loop, memory, optimizers, resumption, samplers, simulation, tracker
from hasten.trainers.checkpoints import Picture, RunStore, StoreWriter
from hasten.trainers.datasets import sources
from hasten.trainers.datasets.sources import Source
from hasten.trainers.job import Job
from hasten.trainers.loss import LossWeights
from hasten.trainers.meters import Meter
from hasten.trainers.metrics.evaluation import Evaluator
from hasten.trainers.metrics.scoring import Background, Inline, Scorer
from hasten.trainers.metrics.subject import subject_of
from hasten.trainers.models import networks
from hasten.trainers.models.architectures import Simulated
from hasten.trainers.models.networks import Network
from hasten.trainers.parts import Parts
from hasten.trainers.process import Process
from hasten.trainers.records import Point, Report, RunResult
from hasten.trainers.specs import Classes, RunSpec
from hasten.trainers.tracker import Tracker
from hasten.trainers.worker import Worker

log = logging.getLogger(__name__)

_BUCKET_MB: Final = 64


def never() -> bool:
    return False


def run(job: Job, *, worker: Worker, track: Tracker, stop: Callable[[], bool] = never) -> Iterator[Report]:
    """Bring a run to its end, or as far as ``job.until``, from wherever it stands.

    A run that goes on yields first, once more, a report of each evaluation that was made until there. A
    finished run yields nothing: it only tells ``track`` again what it measured, for a tracker that missed
    some of it.

    The result is in the store afterwards (``RunStore(job.uri).result()``), unless the run was stopped.

    Raises:
        ConfigError: the recipe does not fit the run that it starts from.
        Fault: training diverged, the storage failed, or what the recipe starts from is missing.
    """
    store = RunStore(job.uri)
    if worker.agree("finished" if worker.is_first and store.result() else None):
        retell(job, track)
        return
    make_deterministic(job.spec.execution.threads)
    resolved = job.resolved()
    track.artifact(tracker.RESOLVED_CONFIG, resolved.encode())
    if worker.is_first:
        store.write_recipe(resolved)
    if isinstance(job.spec.model, Simulated):
        forks = missing_forks(job, store, worker)
        yield from simulation.run(job, worker=worker, track=track, stop=stop, forks=forks)
        return
    while True:
        micro_batch = int(worker.agree(str(memory.micro_batch(job.spec, store, worker.world_size))) or 1)
        try:
            yield from _attempt(job, store, micro_batch, worker=worker, track=track, stop=stop)
            return
        except Exception as error:
            if not memory.is_exhausted(error):
                raise
            smaller = memory.halved(store, micro_batch, worker.world_size)
            if worker.world_size > 1:
                raise smaller from error  # the others wait for this worker: all must start anew
            log.warning("%s: %s; going on with %d", job.run, smaller.problem, micro_batch // 2)
        if worker.device.type == "cuda":
            torch.cuda.empty_cache()


def _attempt(
    job: Job,
    store: RunStore,
    micro_batch: int,
    *,
    worker: Worker,
    track: Tracker,
    stop: Callable[[], bool],
) -> Iterator[Report]:
    """From where the run stands to the end."""
    started = time.monotonic()
    parts = assemble(job, worker, micro_batch=micro_batch)
    writer = StoreWriter(store)
    try:
        place = resumption.resume(job, parts, worker)
        resumed_from = parts.images if place else None
        if place is not None and worker.is_first:
            sheets: Iterable[tuple[int, Picture]] = ()
            if place.whose != "own":
                store.inherit(RunStore(place.uri), parts.images)
                sheets = store.sheets()
            # Of its own, too: a process that was killed may not have sent all that it measured.
            tell(track, parts.history, parts.by_timestep, sheets)
        if not parts.workers or parts.workers[-1][1] != worker.world_size:
            parts.workers.append([parts.images, worker.world_size])
        for report in parts.evaluations(job.spec.budget.images):
            yield replace(report, again=True)
        yield from loop.train(
            job.spec,
            parts,
            worker=worker,
            track=track,
            writer=writer,
            stop=stop,
            until=job.until,
            forks=missing_forks(job, store, worker),
        )
        checkpoint = writer.wait()
    finally:
        writer.close()
        parts.close()
    if worker.is_first and parts.images >= job.spec.budget.images:
        measured = result(job, parts, worker=worker, resumed_from=resumed_from)
        ending = {
            "checkpoint": checkpoint or (place.address if place else None),
            "wall_seconds": time.monotonic() - started,
        }
        store.write_result(measured.model_copy(update=ending))
    worker.agree(None)  # no rank returns before the result is there


def missing_forks(job: Job, store: RunStore, worker: Worker) -> frozenset[int]:
    """After how many images checkpoints are to be kept that are not there yet, the same on every worker."""
    wanted = {*job.forks}
    if job.until is not None and job.until < job.spec.budget.images:
        wanted.add(job.until)
    if not wanted:
        return frozenset()
    there = worker.agree(json.dumps(store.forks()) if worker.is_first else None)
    return frozenset(wanted.difference(json.loads(there or "[]")))


def retell(job: Job, track: Tracker) -> None:
    """Tell ``track`` everything about a finished run, from the store."""
    store = RunStore(job.uri)
    result = store.result()
    if result is None:
        return
    track.artifact(tracker.RESOLVED_CONFIG, job.resolved().encode())
    tell(track, result.history, result.by_timestep, store.sheets())


def tell(
    track: Tracker,
    history: Iterable[Point],
    by_timestep: list[dict[str, Any]],
    sheets: Iterable[tuple[int, Picture]],
) -> None:
    """Tell ``track`` what was measured when nobody told it."""
    track.artifact(tracker.LOSS_BY_TIMESTEP, loop.by_timestep(by_timestep))
    for point in history:
        track.metrics(point.metrics, step=point.step)
    for step, picture in sheets:
        track.image(tracker.FIXED_NOISE_GRID, picture, step=step)


def assemble(job: Job, worker: Worker, *, micro_batch: int | None = None) -> Parts:
    """A run's parts as they are before the first image."""
    spec = job.spec
    source = sources.opened(job.data_uri, job.data_digest)
    network = fresh_network(spec, source).to(worker.device)
    if spec.execution.channels_last:
        network = cast(Network, network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    process = Process(spec.diffusion, worker.device)
    share = -(-spec.optimizer.batch // worker.world_size)
    micro_batch = min(micro_batch or share, share)
    return Parts(
        network=network,
        model=launched(network, spec, worker, whole_batches=micro_batch == share),
        optimizer=optimizers.build(spec.optimizer, network.parameters()),
        ema=ema.build(spec.ema, network),
        reader=sources.reader(source, spec, worker),
        process=process,
        sampler=samplers.build(
            spec.curriculum, process.levels.alphas_bar, device=worker.device, worker=worker
        ),
        weights=LossWeights(spec.weighting, process, worker.device),
        meter=Meter(worker),
        scorer=scorer(job, source, network, worker),
        micro_batch=micro_batch,
    )


def fresh_network(spec: RunSpec, source: Source) -> Network:
    """The run's network before training, on the CPU."""
    conditional = isinstance(spec.conditioning, Classes)
    return networks.build(
        spec.model,
        shape=sources.shape(source),
        classes=sources.classes(source) if conditional else None,
        seed=spec.budget.seed,
    )


def evaluator(spec: RunSpec, source: Source, worker: Worker) -> Evaluator:
    """What scores networks on the run's data."""
    conditional = isinstance(spec.conditioning, Classes)
    subject = subject_of(source, spec.eval, holdout=spec.data.holdout, conditional=conditional)
    process = Process(spec.diffusion, worker.device)
    return Evaluator(spec.eval, process=process, subject=subject, worker=worker)


def scorer(job: Job, source: Source, network: Network, worker: Worker) -> Scorer:
    """How the run is evaluated: by its workers, or by another process."""
    raw, execution = job.spec.eval.raw, job.spec.execution
    if execution.evaluation == "inline":
        return Inline(evaluator(job.spec, source, worker), raw=raw, blank=network)
    make = functools.partial(alone, job, str(spare_device(worker)))
    return Background(make, raw=raw, threads=execution.threads, worker=worker)


def alone(job: Job, device: str) -> tuple[Evaluator, Network]:
    """An evaluator and a network of the run on a device, for a process that does nothing else."""
    source, worker = sources.opened(job.data_uri, job.data_digest), Worker(device=torch.device(device))
    network = fresh_network(job.spec, source).to(worker.device).eval()
    return evaluator(job.spec, source, worker), network


def spare_device(worker: Worker) -> torch.device:
    """The last GPU where it trains nothing; else the one that this worker trains on."""
    if worker.device.type == "cuda" and torch.cuda.device_count() > worker.world_size:
        return torch.device("cuda", torch.cuda.device_count() - 1)
    return worker.device


def launched(
    network: torch.nn.Module, spec: RunSpec, worker: Worker, *, whole_batches: bool
) -> torch.nn.Module:
    """The network as the loop calls it: compiled where asked for, in DDP where there are several workers."""
    model = network
    if spec.execution.compile != "no":
        # A short last batch compiles again: cheaper than dynamic shapes throughout.
        model = cast(torch.nn.Module, torch.compile(network, mode=spec.execution.compile, dynamic=False))
    if worker.world_size == 1:
        return model
    return torch.nn.parallel.DistributedDataParallel(
        model,
        device_ids=[worker.device.index] if worker.device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        # One bucket for a small network: splitting its gradient costs more than it could hide.
        bucket_cap_mb=_BUCKET_MB,
        static_graph=whole_batches,
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
        by_timestep=parts.by_timestep,
        evaluation=parts.scorer.record(),
        spec=job.spec.model_dump(mode="json"),
        data_digest=job.data_digest,
        environment=environment(job, parts, worker),
    )


def environment(job: Job, parts: Parts, worker: Worker) -> dict[str, str]:
    """What may change the last bits of a run without changing what it computes."""
    sizes = ", ".join(f"{size} from image {first:,}" for first, size in parts.workers)
    known = facts(job.spec.execution.threads, worker)
    return {**known, "world_sizes": sizes, "launcher": job.spec.execution.launcher}


def facts(threads: int, worker: Worker) -> dict[str, str]:
    """The machine and the versions that a worker computes with, and how many of its kind there are."""
    on_gpu = worker.device.type == "cuda"
    known: dict[str, Any] = {
        "device": torch.cuda.get_device_name(worker.device) if on_gpu else platform.machine(),
        "world_size": worker.world_size,
        "threads": threads,
        "python": platform.python_version(),
        "system": platform.system(),
    }
    versions = {name: metadata.version(name) for name in ("hasten", "torch", "diffusers", "numpy")}
    return {key: str(value) for key, value in {**known, **versions}.items()}
