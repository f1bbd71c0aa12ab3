"""The local launcher: this process alone, or the processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import RunSpec
from hasten.trainers.worker import Worker


@contextmanager
def worker(spec: RunSpec) -> Iterator[Worker]:
    """This process's place in the run, in a process group of its own where torchrun started several.

    Raises:
        ConfigError: the recipe asks for several workers, but nothing started them.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if spec.execution.most not in (1, world_size):
        remedy = (
            "Set execution.launcher: ray, or start it with torchrun --nproc-per-node N -m hasten.platform ..."
        )
        problem = f"{spec.execution.most}, but the local launcher runs in {world_size} process(es)"
        raise ConfigError("execution.workers", problem, remedy)
    if world_size == 1:
        yield Worker(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Worker(rank=dist.get_rank(), world_size=world_size, device=device)
    finally:
        dist.destroy_process_group()
