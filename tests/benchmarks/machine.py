"""The machine while something is measured: two clocks, and what everybody else was doing meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

ROOT: Final = Path(__file__).resolve().parents[2]
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_VERSIONS: Final = (
    "hasten",
    "torch",
    "numpy",
    "diffusers",
    "ray",
    "accelerate",
    "denoising-diffusion-pytorch",
)

Processes = Callable[[], Iterable[psutil.Process]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """``cpu_seconds`` are those of our processes; ``foreign`` and ``stolen`` are in cores, on average."""

    wall_seconds: float
    cpu_seconds: float
    foreign: float
    stolen: float


class Clocks:
    """Wall time and the processor time of this process, of all that it started, and of ``others``.

    Servers that detach themselves are nobody's children: ``others`` names them (a local Ray, Swift).
    """

    def __init__(self, others: Processes = tuple) -> None:
        self._others = others
        self.restart()

    def restart(self) -> None:
        self._began = self._read()

    def span(self) -> Span:
        """What passed since the last ``restart``."""
        wall, cpu, busy, stolen = (now - then for now, then in zip(self._read(), self._began, strict=True))
        return Span(
            wall_seconds=wall,
            cpu_seconds=cpu,
            foreign=max(0.0, busy - cpu) / wall,
            stolen=stolen / wall,
        )

    def _read(self) -> tuple[float, float, float, float]:
        busy, stolen = machine_seconds()
        return time.perf_counter(), tree_seconds(self._others()), busy, stolen


def machine_seconds() -> tuple[float, float]:
    """Seconds, over all cores since boot, of work and of work that the hypervisor held back.

    Zeros where there is no /proc/stat: foreign load is then not known.
    """
    try:
        first = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return 0.0, 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(n) / _TICKS for n in first.split()[1:9])
    return user + nice + system + irq + softirq, steal


def tree_seconds(others: Iterable[psutil.Process] = ()) -> float:
    """Processor seconds of this process, of ``others`` and of all their descendants, ended ones included."""
    seen: dict[int, float] = {}
    for root in [psutil.Process(), *others]:
        with contextlib.suppress(psutil.Error):
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    # What ended children used, and their ended children, is in the last two.
                    seen[process.pid] = sum(times[:4])
    return sum(seen.values())


def fingerprint() -> dict[str, Any]:
    """What a reader must know of this machine to judge the numbers."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len(_git("status", "--porcelain").splitlines()),
        "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
        "load_average": list(os.getloadavg()),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _git(*arguments: str) -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()
    return ""
