"""Out of memory: a run goes on with smaller micro-batches, and says so when nothing helps."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hasten.trainers import memory
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.errors import Fault
from hasten.trainers.job import Job
from hasten.trainers.records import Report

JobOf = Callable[..., Job]
Run = Callable[..., Iterator[Report]]
Outcome = Callable[[Job], dict[str, Any]]
AssertSame = Callable[[Any, Any], None]

# Runs out of memory where it must remember more than `limit` images for their gradient, after `after` times.
GREEDY = """
import torch


class Greedy(torch.nn.Module):
    def __init__(self, shape, classes, limit=None, after=0):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(shape[0] + 1, 8, 3, padding=1),
            torch.nn.SiLU(),
            torch.nn.Conv2d(8, shape[0], 3, padding=1),
        )
        self.limit, self.left = limit, after

    def forward(self, x, condition):
        if torch.is_grad_enabled() and self.limit is not None and len(x) > self.limit:
            self.left -= 1
            if self.left < 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        level = (condition / 1000.0).float().reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.layers(torch.cat([x, level], dim=1))
"""


@pytest.fixture
def greedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_of: JobOf) -> JobOf:
    """A run of a network that somebody else wrote, in batches of 64."""
    (tmp_path / "greedy_network.py").write_text(GREEDY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "greedy_network", raising=False)

    def job(limit: int | None, after: int = 0, **changes: Any) -> Job:
        arguments = {"limit": limit, "after": after}
        model = {"kind": "import", "path": "greedy_network:Greedy", "arguments": arguments}
        return job_of({"model": model, "momentum": {"kind": "constant", "beta": 0.9}, **changes})

    return job


def test_a_run_out_of_memory_goes_on_in_micro_batches(
    greedy: JobOf, run: Run, outcome: Outcome, assert_same: AssertSame, caplog: pytest.LogCaptureFixture
) -> None:
    """In place and to the bit what it would have been with that micro-batch from the start; to rounding what
    it would have been with memory enough."""
    caplog.set_level(logging.WARNING)
    job = greedy(20)
    reports = list(run(job))
    assert reports[-1].images == 640
    assert RunStore(job.uri).micro_batch() == 16, "64, 32 and 16 were tried"
    assert [word in caplog.text for word in ("64 images", "32 images", "16 images")] == [True, True, False]

    told = greedy(20, **{"name": "told", "execution.micro_batch": 16})
    list(run(told))
    assert RunStore(told.uri).micro_batch() is None
    assert_same(outcome(job), outcome(told))

    roomy = greedy(None)
    list(run(roomy))
    assert len(outcome(roomy)["history"]) == len(outcome(job)["history"])
    for (step, expected), (_, found) in zip(outcome(roomy)["history"], outcome(job)["history"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4), step


def test_a_run_out_of_memory_half_way_goes_on_from_its_checkpoint(greedy: JobOf, run: Run) -> None:
    """A device that somebody else fills up meanwhile: what is done is not done again."""
    job = greedy(40, after=5)
    assert [report.images for report in run(job)][-1] == 640
    result = RunStore(job.uri).result()
    assert result is not None
    assert result.resumed_from == 320, "the newest checkpoint before the sixth update failed"
    assert RunStore(job.uri).micro_batch() == 32


def test_the_next_attempt_knows_what_fits(greedy: JobOf, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    job = greedy(20)
    running = run(job)
    for _ in range(6):
        next(running)
    running.close()
    caplog.clear()
    list(run(job))
    assert not caplog.records


def test_not_even_one_image(greedy: JobOf, run: Run) -> None:
    with pytest.raises(Fault, match="not even one image") as caught:
        list(run(greedy(0)))
    assert caught.value.subject == "execution.micro_batch"
    assert "smaller model" in caught.value.remedy


@pytest.mark.parametrize(
    ("error", "exhausted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (np._core._exceptions._ArrayMemoryError((10**9,), np.dtype("f8")), True),
        (RuntimeError("err == 0. DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)  # fmt: skip
def test_what_says_that_memory_ran_out(error: BaseException, exhausted: bool) -> None:
    assert memory.is_exhausted(error) == exhausted


@pytest.mark.slow
def test_an_allocation_that_the_system_refuses_is_recognised() -> None:
    """Not a made-up exception: a process with a limit on its memory, on the CPU."""
    script = """
import resource
import numpy as np
import torch
from hasten.trainers import memory

held = torch.zeros(1)
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, resource.RLIM_INFINITY))
layer = torch.nn.Conv2d(8, 64, 3, padding=1)
tries = {
    "empty": lambda: torch.empty(16 << 30, dtype=torch.uint8),
    "numpy": lambda: np.zeros(16 << 30, dtype=np.uint8),
    "network": lambda: layer(torch.empty(1 << 12, 8, 128, 128)),
    "bytes": lambda: bytearray(16 << 30),
}
for name, attempt in tries.items():
    try:
        attempt()
    except BaseException as error:
        print(name, memory.is_exhausted(error), type(error).__name__, str(error)[:200].replace("\\n", " "))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [name, "True"] for name in ("empty", "numpy", "network", "bytes")
    ], done.stdout + done.stderr
