"""One process of a training run, and the few things that processes do together."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """This process's place among ``world_size`` equals; rank 0 speaks for all."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The places of ``range(count)`` that are this worker's: every world_size-th one."""
        return slice(self.rank, count, self.world_size)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of every worker's ``values``; all workers must call it."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, value: float) -> float:
        """The mean of every worker's ``value``; all workers must call it."""
        return self.sum(torch.tensor(value, dtype=torch.float64, device=self.device)).item() / self.world_size

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Every worker's ``values``, stacked by rank; all workers must call it."""
        everyone = values.new_zeros((self.world_size, *values.shape))
        everyone[self.rank] = values
        return self.sum(everyone)

    def agree(self, value: str | None) -> str | None:
        """Rank 0's ``value``, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]
