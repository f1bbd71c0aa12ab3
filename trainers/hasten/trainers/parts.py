"""Everything that a run trains with, and what of it a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hasten.trainers.datasets.readers import Reader
from hasten.trainers.ema import Average
from hasten.trainers.loss import LossWeights
from hasten.trainers.meters import Meter
from hasten.trainers.metrics.scoring import Scorer
from hasten.trainers.models.networks import Network
from hasten.trainers.process import Process
from hasten.trainers.records import Point, Report
from hasten.trainers.samplers import TimestepSampler
from hasten.trainers.states import State
from hasten.trainers.tracker import SECONDS


@dataclass(slots=True, kw_only=True)
class Parts:
    """Everything that a run trains with.

    ``network`` holds the weights; ``model`` is what the loop calls: the network, compiled where that was
    asked for, in DDP where there are several workers. ``by_timestep`` has a row for each evaluation of the
    loss: its step, and the loss of each range of timesteps and of each group of images; ``workers`` a row for
    each number of workers that there were: the image from which on, and the number.
    """

    network: Network
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: Average
    reader: Reader
    process: Process
    sampler: TimestepSampler
    weights: LossWeights
    meter: Meter
    scorer: Scorer
    micro_batch: int
    images: int = 0
    seconds: float = 0.0
    history: list[Point] = field(default_factory=list)
    by_timestep: list[dict[str, Any]] = field(default_factory=list)
    workers: list[list[int]] = field(default_factory=list)

    def state(self) -> State:
        """What a checkpoint holds: with it, a run goes on as if nothing had happened. All ranks call it."""
        return {
            "images": self.images,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "sampler": self.sampler.state_dict(),
            "meter": self.meter.state_dict(),
            "scorer": self.scorer.state_dict(),
            "history": [[point.step, dict(point.metrics)] for point in self.history],
            "by_timestep": list(self.by_timestep),
            "workers": [list(row) for row in self.workers],
        }

    def evaluations(self, total: int, *, after: int = 0) -> list[Report]:
        """A report of every evaluation of the loss but the first ``after``, in order.

        They come from the history alone, so that a run that goes on tells them as they were told first.
        """
        return [
            self._evaluation(row["step"], row.get("items", []), total) for row in self.by_timestep[after:]
        ]

    def _evaluation(self, step: int, items: list[float], total: int) -> Report:
        metrics: dict[str, float] = {}
        seconds = {0: 0.0}
        for point in self.history:
            if point.step == step:
                metrics |= point.metrics
            if SECONDS in point.metrics:
                seconds[point.step] = point.metrics[SECONDS]
        # It was asked for at the first tick that reached its step.
        asked = min((reached for reached in seconds if reached >= step), default=None)
        return Report(
            images=step,
            total=total,
            seconds=self.seconds if asked is None else seconds[asked],
            metrics=metrics,
            evaluated=True,
            items=tuple(items),
        )

    def close(self) -> None:
        """End the threads and processes that work for this run."""
        self.reader.close()
        self.scorer.close()

    def begin_with(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over the weights of a network of the same kind, for the network and its averages."""
        self.network.load_state_dict(weights)
        self.ema.load_state_dict([dict(weights)] * len(self.ema.networks))

    def restore(self, state: State) -> None:
        self.images, self.seconds = state["images"], state["seconds"]
        for name in ("network", "optimizer", "ema", "sampler", "meter", "scorer"):
            getattr(self, name).load_state_dict(state[name])
        self.history = [Point(step=step, metrics=metrics) for step, metrics in state["history"]]
        self.by_timestep = list(state["by_timestep"])
        self.workers = [list(row) for row in state["workers"]]
