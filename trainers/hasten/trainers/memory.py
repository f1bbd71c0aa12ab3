"""Out of memory: noticed on every kind of device, and answered by smaller micro-batches."""

from __future__ import annotations

from typing import Final

import torch

from hasten.trainers.checkpoints import RunStore
from hasten.trainers.errors import Fault
from hasten.trainers.specs import RunSpec

# torch's allocator for the CPU has no exception class of its own.
_CPU_WORDS: Final = ("not enough memory", "can't allocate memory")


class OutOfMemory(Fault):
    """A worker ran out of memory; the run's store now asks for a smaller micro-batch."""


def is_exhausted(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_WORDS)


def micro_batch(spec: RunSpec, store: RunStore, world_size: int) -> int:
    """How many images a worker takes through the network at once."""
    share = -(-spec.optimizer.batch // world_size)
    known = [size for size in (spec.execution.micro_batch, store.micro_batch()) if size is not None]
    return min([share, *known])


def halved(store: RunStore, used: int, world_size: int) -> OutOfMemory:
    """Ask for half of the micro-batch that was ``used``; what to raise, or to go on after.

    Raises:
        Fault: not even one image fits.
    """
    if used == 1:
        remedy = "Choose a smaller model or data.resolution, or a larger device."
        raise Fault("execution.micro_batch", "not even one image at a time fits into memory", remedy)
    # Several workers may run out at once: all of them used the same size, so all write the same.
    store.write_micro_batch(used // 2)
    problem = f"{used} images at a time do not fit into memory of a worker of {world_size}"
    return OutOfMemory(
        "execution.micro_batch", problem, f"Run the same command again: it takes {used // 2} at a time."
    )
