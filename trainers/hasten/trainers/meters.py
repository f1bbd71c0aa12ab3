"""The training loss, gathered where it arises: the host reads it now and then, never in between."""

from __future__ import annotations

import torch

from hasten.trainers.worker import Worker


class Meter:
    """Sums of the unweighted loss on this worker's device."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._loss = torch.zeros((), dtype=torch.float64, device=worker.device)
        self._bad = torch.full((2,), -1, dtype=torch.int64, device=worker.device)
        self._images = 0

    def add(self, error: torch.Tensor, t: torch.Tensor, *, image: int, batch: int) -> None:
        """Take in this worker's losses (B,), at levels ``t`` (B,), of the ``batch`` images from ``image``."""
        self._images += batch
        self._loss += error.sum()
        bad = ~torch.isfinite(error)
        first = torch.stack([torch.full_like(t[0], image), t[bad.int().argmax()]])
        self._bad = torch.where(bad.any() & (self._bad[0] < 0), first, self._bad)

    def read(self) -> float:
        """The mean loss over all images since the last reading; all workers call it and get the same."""
        loss = self._worker.sum(self._loss.clone()).item() / max(self._images, 1)
        self._loss.zero_()
        self._images = 0
        return loss

    def diverged(self) -> tuple[int, int] | None:
        """First image and level of the first batch whose loss was not a finite number, on any worker.

        None where all were. All workers must call it.
        """
        found = [(image, level) for image, level in self._worker.gather(self._bad).tolist() if image >= 0]
        return min(found, default=None)

    def state_dict(self) -> dict[str, torch.Tensor | int]:
        """The sums of all workers; all must call it."""
        return {"images": self._images, "loss": self._worker.gather(self._loss)}

    def load_state_dict(self, state: dict[str, torch.Tensor | int]) -> None:
        """Go on: exactly at the same world size, else with everything on the first worker."""
        sums = torch.as_tensor(state["loss"])
        self._images = int(state["images"])
        if len(sums) != self._worker.world_size:
            sums = torch.cat([sums.sum()[None], torch.zeros(self._worker.world_size - 1, dtype=sums.dtype)])
        self._loss.copy_(sums[self._worker.rank])
