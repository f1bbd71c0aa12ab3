"""The training loop: the same under every launcher.

It is a generator of reports. Who runs it decides what to do with them: a progress bar, Ray Train, a Tune
trial. Killing it at any point is safe.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.trainers import curriculum, momentum, randomness, timeline, tracker, weighting
from hasten.trainers.checkpoints import State, StoreWriter
from hasten.trainers.ema import PowerEma
from hasten.trainers.errors import Fault
from hasten.trainers.evaluation import Evaluator
from hasten.trainers.records import Point
from hasten.trainers.specs import RunSpec
from hasten.trainers.tracker import Tracker
from hasten.trainers.worker import Worker

_TICK: Final = 0.01  # the training loss is read from the device, and reported, a hundred times a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the outside hears now and then; equal on every rank, so that all can decide alike.

    ``images`` of ``total`` are done after ``seconds`` of training; ``evaluated`` says that held-out metrics
    are among ``metrics``; ``stopped`` that the run ends here, unfinished.
    """

    images: int
    total: int
    seconds: float
    metrics: dict[str, float]
    evaluated: bool
    stopped: bool = False


@dataclass(slots=True, kw_only=True)
class Parts:
    """Everything that a run trains with. ``model`` is ``network``, wrapped in DDP where there are several."""

    network: torch.nn.Module
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: PowerEma
    pixels: torch.Tensor  # uint8 (N, C, H, W): the training images, on the device
    alphas_bar: NDArray[np.float64]  # (T,)
    evaluator: Evaluator
    images: int = 0
    seconds: float = 0.0
    history: list[Point] = field(default_factory=list)

    def state(self) -> State:
        """What a checkpoint holds: with it, a run goes on as if nothing had happened."""
        return {
            "images": self.images,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "history": [[point.step, dict(point.metrics)] for point in self.history],
        }

    def restore(self, state: State) -> None:
        self.images, self.seconds = state["images"], state["seconds"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.history = [Point(step=step, metrics=metrics) for step, metrics in state["history"]]


def train(
    spec: RunSpec,
    parts: Parts,
    *,
    worker: Worker,
    track: Tracker,
    writer: StoreWriter,
    stop: Callable[[], bool],
) -> Iterator[Report]:
    """Train until the budget is spent, from wherever ``parts`` stand. Every rank runs this.

    ``stop`` is asked at every tick; once it is true on any rank, a checkpoint is written and all end.

    Raises:
        Fault: training diverged, or the storage failed.
    """
    total, seed = spec.budget.images, spec.budget.seed
    squared_error = torch.zeros((), dtype=torch.float64, device=worker.device)
    saved = parts.images

    if parts.images == 0:
        metrics = tell(parts, track, 0, schedules(spec, 0.0))
        metrics |= evaluate(parts, timeline.AT_START, worker=worker, track=track, writer=writer)
        yield Report(images=0, total=total, seconds=0.0, metrics=metrics, evaluated=True)
    ticked, clock = parts.images, time.monotonic()

    while parts.images < total:
        before, progress = parts.images, parts.images / total
        batch = min(spec.optimizer.batch, total - before)

        # This rank's share of the global batch: its images, their noise, their timesteps.
        places = share(batch, worker)
        images = before + places
        chosen = data_order(seed, images, len(parts.pixels)).to(worker.device)
        clean = parts.pixels[chosen].float() / 127.5 - 1.0
        eps = torch.from_numpy(randomness.noise(seed, "noise", images, clean.shape[1:])).to(worker.device)
        t = draw(
            curriculum.pmf(spec.curriculum, progress, parts.alphas_bar),
            randomness.stratified(seed, "timestep", images, places, batch),
        )

        # The forward process, the loss and its gradient. DDP takes the mean over ranks, and shares may
        # differ by one image: dividing by the mean share gives the mean over the global batch.
        signal, sigma, weight = coefficients(spec, parts.alphas_bar, t, worker.device)
        parts.optimizer.zero_grad(set_to_none=True)
        noisy, steps = signal * clean + sigma * eps, torch.from_numpy(t).to(worker.device)
        with torch.autocast(worker.device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            predicted = parts.model(noisy, steps).sample
        error = (predicted.float() - eps).square().mean(dim=(1, 2, 3)) * (1.0 if worker.rank < batch else 0.0)
        (weight * error).sum().div(batch / worker.world_size).backward()
        squared_error += error.detach().sum()

        # The update, with this moment's learning rate and momentum.
        lr, beta1 = rates(spec, progress, warmed=(before + batch) / total)
        for group in parts.optimizer.param_groups:
            group["lr"], group["betas"] = lr, (beta1, spec.optimizer.beta2)
        parts.optimizer.step()
        parts.images += batch
        parts.ema.update(images=parts.images, batch=batch)

        # Tell the outside world, now and then: only here does the host wait for the device.
        marks = timeline.evaluations(spec.eval, before, parts.images, total)
        if not marks and timeline.crossed(before, parts.images, every=_TICK, total=total) is None:
            continue
        elapsed = time.monotonic() - clock
        loss, seconds, stopping = agree(worker, squared_error, elapsed, stop())
        parts.seconds += seconds
        metrics = tell(
            parts,
            track,
            parts.images,
            {
                tracker.TRAIN_LOSS: loss / (parts.images - ticked),
                tracker.TRAIN_GRAD_NORM: gradient_norm(parts.network),
                tracker.IMAGES_PER_SECOND: (parts.images - ticked) / seconds,
                **schedules(spec, parts.images / total),
            },
        )
        metrics |= evaluate(parts, marks, worker=worker, track=track, writer=writer)

        # Keep what was done, before anybody hears of it.
        due = timeline.crossed(saved, parts.images, every=spec.execution.checkpoint_every, total=total)
        if due is not None or stopping:
            saved = parts.images
            if worker.is_first:
                writer.checkpoint(parts.state())
        stopped = stopping and parts.images < total
        yield Report(
            images=parts.images,
            total=total,
            seconds=parts.seconds,
            metrics=metrics,
            evaluated=marks.loss is not None,
            stopped=stopped,
        )
        if stopped:
            return
        squared_error.zero_()
        ticked, clock = parts.images, time.monotonic()


def share(batch: int, worker: Worker) -> NDArray[np.int64]:
    """This worker's places in a global batch; the first place where there are fewer places than workers.

    A worker without images of its own must still take part in DDP's averaging: it computes one place,
    whose error the loop multiplies by zero.
    """
    places = np.arange(batch)[worker.share(batch)]
    return places if len(places) else np.zeros(1, dtype=np.int64)


def data_order(seed: int, images: NDArray[np.int64], size: int) -> torch.Tensor:
    """Which training image comes as the i-th: every epoch is a new random order of all ``size`` images."""
    epochs, positions = images // size, images % size
    chosen = [
        _epoch_order(seed, int(epoch), size)[position]
        for epoch, position in zip(epochs, positions, strict=True)
    ]
    return torch.tensor(chosen)


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    return randomness.permutation(seed, "order", epoch, size)


def draw(pmf: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.int64]:
    """Timesteps by the inverse of the distribution function, for ``u`` in [0, 1)."""
    return np.minimum(np.searchsorted(np.cumsum(pmf), u, side="right"), len(pmf) - 1)


def coefficients(
    spec: RunSpec, alphas_bar: NDArray[np.float64], t: NDArray[np.int64], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """sqrt(abar_t) and sqrt(1 - abar_t), each (B, 1, 1, 1), and the loss weight (B,), as float32."""
    weights = weighting.weights(spec.weighting, alphas_bar, spec.diffusion.predict)[t]
    signal, sigma = np.sqrt(alphas_bar[t]), np.sqrt(1.0 - alphas_bar[t])
    on_device = [
        torch.from_numpy(values.astype(np.float32)).to(device) for values in (signal, sigma, weights)
    ]
    return on_device[0][:, None, None, None], on_device[1][:, None, None, None], on_device[2]


def rates(spec: RunSpec, progress: float, *, warmed: float) -> tuple[float, float]:
    """``(lr, beta1)`` at ``progress``; the warm-up counts the batch about to be trained, so it is never 0."""
    beta1, factor = momentum.at(spec.momentum, progress)
    warmup = min(1.0, warmed / spec.optimizer.warmup) if spec.optimizer.warmup else 1.0
    return spec.optimizer.lr * factor * warmup, beta1


def schedules(spec: RunSpec, progress: float) -> dict[str, float]:
    """The schedules' values at ``progress``, as metrics."""
    lr, beta1 = rates(spec, progress, warmed=progress)
    return {tracker.TRAIN_LR: lr, tracker.TRAIN_BETA1: beta1}


def agree(
    worker: Worker, squared_error: torch.Tensor, seconds: float, stop: bool
) -> tuple[float, float, bool]:
    """The loss summed over ranks, the mean of their seconds, and whether any was asked to stop."""
    local = torch.tensor([seconds, float(stop)], dtype=torch.float64, device=worker.device)
    loss, total_seconds, stops = worker.sum(torch.cat([squared_error[None], local])).tolist()
    return loss, max(total_seconds / worker.world_size, 1e-9), stops > 0


def gradient_norm(network: torch.nn.Module) -> float:
    """The Euclidean norm of all gradients together."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients, foreach=True))


def evaluate(
    parts: Parts, marks: timeline.Marks, *, worker: Worker, track: Tracker, writer: StoreWriter
) -> dict[str, float]:
    """Measure what is due, with averaged weights, and record it; all ranks take part."""
    network = parts.ema.networks[0]
    scores: dict[str, float] = {}
    if marks.loss is not None:
        scores |= tell(parts, track, marks.loss, {tracker.EVAL_LOSS: parts.evaluator.loss(network)})
    if marks.samples is not None:
        scores |= tell(parts, track, marks.samples, {tracker.EVAL_FRECHET: parts.evaluator.frechet(network)})
    if marks.sheet is not None:
        picture = parts.evaluator.sheet(network)
        track.image(tracker.FIXED_NOISE_GRID, picture, step=marks.sheet)
        if worker.is_first:
            writer.sheet(marks.sheet, picture)
    return scores


def tell(parts: Parts, track: Tracker, step: int, metrics: dict[str, float]) -> dict[str, float]:
    """Remember metrics for the result, send them on their way, and give them back.

    Raises:
        Fault: one of them is not a finite number: training diverged.
    """
    for key, value in metrics.items():
        if not np.isfinite(value):
            raise Fault(key, f"is {value} at image {step}", "Training diverged. Try a lower optimizer.lr.")
    parts.history.append(Point(step=step, metrics=metrics))
    track.metrics(metrics, step=step)
    return dict(metrics)
