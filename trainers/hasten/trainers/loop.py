"""The training loop: the same under every launcher.

It is a generator of reports. Who runs it decides what to do with them: a progress bar, Ray Train, a Tune
trial. Killing it at any point is safe.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.trainers import (
    learning_rate,
    momentum,
    optimizers,
    philox,
    posthoc,
    randomness,
    timeline,
    tracker,
)
from hasten.trainers.averaging import PowerEma
from hasten.trainers.checkpoints import StoreWriter
from hasten.trainers.errors import Diverged
from hasten.trainers.loss import backward
from hasten.trainers.models.networks import Network
from hasten.trainers.parts import Parts
from hasten.trainers.pulse import Pulse
from hasten.trainers.records import Point, Report
from hasten.trainers.specs import Classes, RunSpec
from hasten.trainers.tracker import Tracker
from hasten.trainers.worker import Worker

_TICK: Final = 0.01  # the training loss is read from the device, and reported, a hundred times a run


def train(
    spec: RunSpec,
    parts: Parts,
    *,
    worker: Worker,
    track: Tracker,
    writer: StoreWriter,
    stop: Callable[[], bool],
    until: int | None = None,
    forks: Collection[int] = (),
) -> Iterator[Report]:
    """Train until the budget is spent, from wherever ``parts`` stand. Every rank runs this.

    Once ``stop`` is true on any rank, a checkpoint is written and all end; likewise after ``until`` images.
    After each of ``forks`` images a checkpoint is kept for other runs, which can be read before anybody hears
    of a later image.

    Raises:
        Fault: training diverged, or the storage failed.
    """
    total, seed = spec.budget.images, spec.budget.seed
    end = total if until is None else until
    pulse, saved = Pulse(worker, stop), parts.images
    record = functools.partial(recorded, parts, worker=worker, track=track, writer=writer)

    if parts.images == 0:
        metrics = tell(parts, track, 0, schedules(spec, 0.0))
        parts.scorer.ask(timeline.AT_START, averaged(parts), parts.network)
        yield from heard(parts, total, metrics, record(wait=False))
    if parts.images in forks:  # wanted only after the run had come here
        fork(parts, worker, writer)
    ticked, clock = (parts.images, parts.seconds), time.monotonic()

    while parts.images < end:
        before, progress = parts.images, parts.images / total
        batch = min(spec.optimizer.batch, total - before)

        # This rank's share of the global batch: its images, their noise, their timesteps.
        places = share(batch, worker)
        images = before + places
        clean, labels = parts.reader.batch(images)
        eps = philox.noise(seed, "noise", images, tuple(clean.shape[1:]), worker.device)
        u = uniforms(spec, images, places, batch).to(worker.device, non_blocking=True)
        t, correction = parts.sampler.draw(progress, u)

        # The forward process, the loss and its gradient. DDP takes the mean over ranks, and shares may
        # differ by one image: dividing by the mean share gives the mean over the global batch.
        network_input, condition, answer = parts.process.corrupt(clean, eps, t)
        weight = parts.weights.at(progress)[t]
        counts = worker.rank < batch  # or its one image only keeps DDP company
        parts.optimizer.zero_grad(set_to_none=True)
        error = backward(
            parts.model,
            network_input,
            condition,
            visible(spec, labels, images, parts.network.classes),
            answer,
            weight * counts if correction is None else weight * correction * counts,
            prepare=functools.partial(address, parts.network, seed, images),
            divisor=batch / worker.world_size,
            micro_batch=parts.micro_batch,
            bf16=spec.precision == "bf16",
        )
        seen = len(images) if counts else 0
        parts.sampler.observe(
            t[:seen], (weight * error)[:seen], places=places[:seen], batch=batch, total=total
        )

        # The update, with this moment's learning rate and momentum.
        if spec.optimizer.clip is not None:
            torch.nn.utils.clip_grad_norm_(parts.network.parameters(), spec.optimizer.clip, foreach=True)
        lr, beta1 = rates(spec, progress, warmed=(before + batch) / total)
        optimizers.steer(spec.optimizer, parts.optimizer, lr, beta1)
        parts.optimizer.step()
        parts.images += batch
        parts.ema.update(images=parts.images, batch=batch)
        if worker.is_first:
            keep_averages(spec, parts, before, writer)
        parts.meter.add(error * counts, t, image=before, batch=batch)

        # Tell the outside world, now and then: only here does the host wait for the device.
        marks = timeline.evaluations(spec.eval, before, parts.images, total)
        ticking = marks or timeline.crossed(before, parts.images, every=_TICK, total=total) is not None
        stopping, forking = pulse.stopping(), parts.images in forks
        if not ticking and not stopping and not forking:
            continue
        parts.seconds += max(worker.mean(time.monotonic() - clock), 1e-9)
        metrics, new = {}, 0
        if ticking:
            metrics = tell(parts, track, parts.images, gauges(spec, parts, ticked))
            if marks:
                parts.scorer.ask(marks, averaged(parts), parts.network)
            new = record(wait=parts.images == end)
            ticked = parts.images, parts.seconds

        # Keep what was done, before anybody hears of it.
        due = timeline.crossed(saved, parts.images, every=spec.execution.checkpoint_every, total=total)
        if due is not None or stopping:
            require_finite(parts)
            saved, state = parts.images, parts.state()
            if worker.is_first:
                writer.checkpoint(state)
        if forking:
            fork(parts, worker, writer)
        stopped = stopping and parts.images < total
        if ticking or stopped:
            writer.wait_for_forks()
            yield from heard(parts, total, metrics, new, stopped=stopped)
        if stopped:
            return
        clock = time.monotonic()

    if end < total:
        new = record(wait=True)
        writer.wait_for_forks()
        yield from heard(parts, total, {}, new, stopped=True)


def share(batch: int, worker: Worker) -> NDArray[np.int64]:
    """This worker's places in a global batch; the first place where there are fewer places than workers.

    A worker without images of its own must still take part in DDP's averaging: it computes one place,
    whose error the loop multiplies by zero.
    """
    places = np.arange(batch)[worker.share(batch)]
    return places if len(places) else np.zeros(1, dtype=np.int64)


def uniforms(spec: RunSpec, images: NDArray[np.int64], places: NDArray[np.int64], batch: int) -> torch.Tensor:
    """The numbers in [0, 1) that become these images' timesteps, float64 of shape (B,), on the host."""
    seed = spec.budget.seed
    if spec.curriculum.draws == "stratified":
        return torch.from_numpy(randomness.stratified(seed, "timestep", images, places, batch))
    return torch.from_numpy(randomness.uniform(seed, "timestep", images))


def visible(
    spec: RunSpec, labels: torch.Tensor, images: NDArray[np.int64], classes: int | None
) -> torch.Tensor | None:
    """The labels that the network is shown, some of them hidden; None where it is shown none."""
    if not isinstance(spec.conditioning, Classes) or classes is None:
        return None
    hidden = randomness.uniform(spec.budget.seed, "label", images) < spec.conditioning.dropout
    return labels.masked_fill(torch.from_numpy(hidden).to(labels.device, non_blocking=True), classes)


def averaged(parts: Parts) -> Network:
    """The averaged weights that are scored: those of the first width."""
    return cast(Network, parts.ema.networks[0])


def address(network: Network, seed: int, images: NDArray[np.int64], part: slice) -> None:
    """Tell the network whose dropout masks it needs next."""
    network.address(seed=seed, images=images[part])


def rates(spec: RunSpec, progress: float, *, warmed: float) -> tuple[float, float]:
    """``(lr, beta1)`` at ``progress``; the warm-up counts the batch about to be trained, so it is never 0."""
    beta1, factor = momentum.at(spec.momentum, progress)
    factor *= learning_rate.factor(spec.optimizer.schedule, progress)
    return spec.optimizer.lr * factor * learning_rate.warmup(warmed, spec.optimizer.warmup), beta1


def schedules(spec: RunSpec, progress: float) -> dict[str, float]:
    """The schedules' values at ``progress``, as metrics."""
    lr, beta1 = rates(spec, progress, warmed=progress)
    return {tracker.TRAIN_LR: lr, tracker.TRAIN_BETA1: beta1}


def keep_averages(spec: RunSpec, parts: Parts, before: int, writer: StoreWriter) -> None:
    """Store the averaged weights where that is due, for other averages to be made of them."""
    every = spec.ema.snapshots if isinstance(spec.ema, PowerEma) else None
    if every and timeline.crossed(before, parts.images, every=every, total=spec.budget.images) is not None:
        for snapshot in posthoc.take(parts.ema, parts.images):
            writer.average(snapshot)


def gauges(spec: RunSpec, parts: Parts, since: tuple[int, float]) -> dict[str, float]:
    """What there is to say about the training since that many images and seconds.

    Raises:
        Diverged: training diverged.
    """
    require_finite(parts)
    return {
        tracker.TRAIN_LOSS: parts.meter.read(),
        tracker.TRAIN_GRAD_NORM: gradient_norm(parts.network),
        tracker.IMAGES_PER_SECOND: (parts.images - since[0]) / (parts.seconds - since[1]),
        tracker.SECONDS: parts.seconds,
        **schedules(spec, parts.images / spec.budget.images),
    }


def require_finite(parts: Parts) -> None:
    """Refuse to go on, or to keep anything, once a loss was not a finite number. All ranks call it.

    Raises:
        Diverged: with the image and the range of timesteps where that was first seen.
    """
    diverged = parts.meter.diverged()
    if diverged is None:
        return
    image, level = diverged
    width = max(1, len(parts.process.levels) // 10)
    low = level // width * width
    raise Diverged(
        tracker.TRAIN_LOSS,
        f"is not a finite number from image {image:,} on, first at timesteps {low} to {low + width - 1}",
        "Training diverged. Try a lower optimizer.lr, or optimizer.clip: 1.0.",
    )


def gradient_norm(network: torch.nn.Module) -> float:
    """The Euclidean norm of all gradients together."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients, foreach=True))


def recorded(parts: Parts, *, wait: bool, worker: Worker, track: Tracker, writer: StoreWriter) -> int:
    """Tell what has become known of evaluations; returns how many of the loss there are among them."""
    before = len(parts.by_timestep)
    for one in parts.scorer.collect(wait=wait):
        for step, metrics in one.metrics:
            tell(parts, track, step, metrics)
        if one.by_timestep is not None:
            parts.by_timestep.append(one.by_timestep)
            track.artifact(tracker.LOSS_BY_TIMESTEP, by_timestep(parts.by_timestep))
        if one.sheet is not None:
            step, picture = one.sheet
            track.image(tracker.FIXED_NOISE_GRID, picture, step=step)
            if worker.is_first:
                writer.sheet(step, picture)
    return len(parts.by_timestep) - before


def heard(
    parts: Parts, total: int, metrics: dict[str, float], new: int, *, stopped: bool = False
) -> list[Report]:
    """What the outside hears now: the ``new`` evaluations, and how far the run is unless they say it."""
    told = parts.evaluations(total, after=len(parts.by_timestep) - new)
    if told and told[-1].images == parts.images and not stopped:
        return told
    now = Report(
        images=parts.images,
        total=total,
        seconds=parts.seconds,
        metrics=metrics,
        evaluated=False,
        stopped=stopped,
    )
    return [*told, now]


def fork(parts: Parts, worker: Worker, writer: StoreWriter) -> None:
    """Keep the state as it is now for other runs. All ranks call it."""
    require_finite(parts)
    state = parts.state()
    if worker.is_first:
        writer.fork(state)


def by_timestep(rows: list[dict[str, Any]]) -> bytes:
    """The loss by ranges of timesteps at each evaluation, as a file."""
    kept = [{key: value for key, value in row.items() if key != "items"} for row in rows]
    return json.dumps(kept, indent=1).encode()


def tell(parts: Parts, track: Tracker, step: int, metrics: dict[str, float]) -> dict[str, float]:
    """Remember metrics for the result, send them on their way, and give them back.

    Raises:
        Diverged: one of them is not a finite number.
    """
    for key, value in metrics.items():
        if not np.isfinite(value):
            raise Diverged(key, f"is {value} at image {step}", "Training diverged. Try a lower optimizer.lr.")
    parts.history.append(Point(step=step, metrics=metrics))
    track.metrics(metrics, step=step)
    return dict(metrics)
