"""Training images on the device: all of them at once, streamed from the store, or generated.

Which reader serves a run is execution, not identity: for the same images each gives the same bits.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, Protocol

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from hasten.trainers import randomness
from hasten.trainers.datasets import order
from hasten.trainers.datasets.data import Dataset, alike
from hasten.trainers.datasets.shards import Damaged, Labels, Stored
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.specs import Data
from hasten.trainers.worker import Worker

_PIECE: Final = 64 * 2**20  # bytes that travel at once to the device where all images go there
_CONNECTIONS: Final = 4
_PATIENCE: Final = 120.0  # seconds for which a store may be away before a run gives up
_BACKOFF: Final = (0.1, 5.0)  # seconds: the first pause between attempts, and the longest

Images = NDArray[np.int64]


class Reader(Protocol):
    """Clean training images by their index among all images ever, epochs included.

    ``size`` is how many different ones there are; ``stalled`` how many seconds callers waited for the store.
    """

    size: int
    stalled: float

    def batch(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        """Images as float32 (B, C, H, W) and labels as int64 (B,), -1 for none, both on the device.

        Pixels are in [-1, 1].

        Raises:
            Fault: the storage failed for too long, or the data set is damaged.
        """
        ...

    def close(self) -> None:
        """End what goes on in the background."""
        ...


class Source(Protocol):
    """What can make the i-th clean image from its address."""

    def generate(self, seed: int, stream: str, images: Images) -> NDArray[np.float32]:
        """Shape (len(images), C, H, W)."""
        ...


def open_reader(
    dataset: Dataset,
    *,
    spec: Data,
    seed: int,
    kind: Literal["auto", "resident", "streaming"],
    worker: Worker,
) -> Reader:
    """A reader of the training images; ``auto`` keeps them in memory if they take a quarter of what is free.

    Raises:
        ConfigError: the split leaves nothing to train on.
        Fault: the storage failed, or the data set is damaged.
    """
    if kind == "auto":
        size = dataset.manifest.count - dataset.held_out(spec.holdout)
        fits = size * dataset.manifest.image_bytes <= free_memory(worker) // 4
        kind = "resident" if fits else "streaming"
    if kind == "resident":
        return Resident(dataset, spec=spec, seed=seed, device=worker.device)
    return Streaming(dataset, spec=spec, seed=seed, worker=worker)


def free_memory(worker: Worker) -> int:
    """Bytes that are free on the worker's device; of a host's memory, its share among all workers."""
    if worker.device.type == "cuda":
        return torch.cuda.mem_get_info(worker.device)[0]
    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(free, 0) // worker.world_size


class _FromStore(ABC):
    """What readers of stored images share: the order, and the way from stored numbers to clean images."""

    def __init__(self, dataset: Dataset, *, spec: Data, seed: int, device: torch.device) -> None:
        self.manifest = dataset.manifest
        self.start = dataset.held_out(spec.holdout)
        self.size = self.manifest.count - self.start
        self.stalled = 0.0
        self.device = device
        self._flip, self._seed, self._window = spec.flip, seed, spec.shuffle
        self._dtype: torch.dtype = getattr(torch, self.manifest.dtype)
        if not self.size:
            problem = f"{spec.holdout} leaves nothing to train on of {self.manifest.count} images"
            raise ConfigError("data.holdout", problem)

    def batch(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = self._stored(images)
        if self._dtype == torch.uint8:
            clean = pixels.float() / 127.5 - 1.0
        else:
            clean = pixels.float() * self.manifest.scale
        if self._flip:
            chosen = torch.from_numpy(randomness.uniform(self._seed, "flip", images) < 0.5)
            clean = torch.where(_on(self.device, chosen)[:, None, None, None], clean.flip(3), clean)
        return clean, labels

    @abstractmethod
    def _stored(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        """Stored numbers (B, C, H, W) and labels (B,) on the device."""


class Resident(_FromStore):
    """All training images on the device, as they are stored."""

    def __init__(self, dataset: Dataset, *, spec: Data, seed: int, device: torch.device) -> None:
        super().__init__(dataset, spec=spec, seed=seed, device=device)
        self._pixels = torch.empty((self.size, *self.manifest.shape), dtype=self._dtype, device=device)
        self._labels = torch.empty(self.size, dtype=torch.int64, device=device)
        piece = max(_PIECE // self.manifest.image_bytes, order.BLOCK)
        for begin in range(0, self.size, piece):
            end = min(begin + piece, self.size)
            pixels, labels = dataset.rows(np.arange(self.start + begin, self.start + end))
            self._pixels[begin:end] = torch.from_numpy(pixels)
            self._labels[begin:end] = torch.from_numpy(labels)

    def _stored(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        rows = order.rows(self._seed, images, self.size, self._window, order.lead_of(self.start))
        chosen = _on(self.device, torch.from_numpy(rows))
        return self._pixels.index_select(0, chosen), self._labels.index_select(0, chosen)

    def close(self) -> None:
        """Nothing goes on in the background."""


class Streaming(_FromStore):
    """Reads a window of the order ahead of training, on background threads, and keeps no more than two.

    Of each window it reads the lanes that this rank trains on. They never change where the number of ranks
    divides the batch and :data:`order.LANES`; elsewhere a rank comes to read all lanes. An outage of the
    store is waited for, ``patience`` seconds at most, and goes unnoticed while there are images at hand.
    """

    def __init__(
        self, dataset: Dataset, *, spec: Data, seed: int, worker: Worker, patience: float = _PATIENCE
    ) -> None:
        super().__init__(dataset, spec=spec, seed=seed, device=worker.device)
        # Images come to a rank in steps of world_size, so modulo 16 in steps of their common divisor.
        step = int(np.gcd(worker.world_size, order.LANES))
        self._lanes = frozenset(range(worker.rank % step, order.LANES, step))
        self._dataset = dataset
        self._patience = patience
        self._parts: list[_Part] = []
        self._closing = threading.Event()
        self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="hasten-reader")

    def _stored(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        pin = self.device.type == "cuda"
        pixels = torch.empty((len(images), *self.manifest.shape), dtype=self._dtype, pin_memory=pin)
        labels = torch.empty(len(images), dtype=torch.int64, pin_memory=pin)
        missing = np.arange(len(images))
        while len(missing):
            window = self._window_at(int(images[missing[0]]))
            here = (images[missing] >= window.first) & (images[missing] < window.first + len(window.rows))
            inside, missing = missing[here], missing[~here]
            self._copy(window, images, inside, pixels.numpy(), labels.numpy())
        return pixels.to(self.device, non_blocking=pin), labels.to(self.device, non_blocking=pin)

    def close(self) -> None:
        """End the threads; what they were reading is dropped."""
        self._closing.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._parts.clear()

    def _copy(
        self, window: order.Window, images: Images, places: Images, pixels: Stored, labels: Labels
    ) -> None:
        """Fill the places of a batch whose images lie in this window."""
        for part in self._read_ahead(window, images[places]):
            mine = places[np.isin(images[places] % order.LANES, list(part.lanes))]
            self._wait(part)
            slots = np.searchsorted(part.images, images[mine])
            pixels[mine], labels[mine] = part.pixels[slots], part.labels[slots]

    def _window_at(self, image: int) -> order.Window:
        return order.window_at(self._seed, image, self.size, self._window, order.lead_of(self.start))

    def _read_ahead(self, window: order.Window, asked: Images) -> list[_Part]:
        """The parts of this window, after the next window's are on their way and all others dropped."""
        self._lanes |= set((asked % order.LANES).tolist())
        following = self._window_at(window.first + len(window.rows))
        for part in [part for part in self._parts if part.first not in (window.first, following.first)]:
            self._parts.remove(part)
            for reading in part.readings:
                reading.cancel()
        for each in (window, following):
            known = frozenset[int]().union(*(part.lanes for part in self._parts if part.first == each.first))
            if self._lanes - known:
                self._parts.append(self._begin(each, self._lanes - known))
        return [part for part in self._parts if part.first == window.first]

    def _begin(self, window: order.Window, lanes: frozenset[int]) -> _Part:
        """Start to read some lanes of a window."""
        images = window.first + np.arange(len(window.rows))
        mine = np.isin(images % order.LANES, list(lanes))
        rows = self.start + window.rows[mine]
        part = _Part(
            first=window.first,
            lanes=lanes,
            images=images[mine],
            pixels=np.empty((len(rows), *self.manifest.shape), self.manifest.dtype),
            labels=np.empty(len(rows), np.int64),
        )

        def fill(group: int, slots: Images) -> None:
            part.pixels[slots], part.labels[slots] = self._patiently(group, rows[slots])

        groups = alike(self._dataset.group_of(rows))
        part.readings.extend(self._threads.submit(fill, group, slots) for group, slots in groups)
        return part

    def _patiently(self, group: int, rows: Images) -> tuple[Stored, Labels]:
        """Read rows of one row group, again and again while the store is away."""
        pause, failing_since = _BACKOFF[0], None
        while True:
            try:
                return self._dataset.group(group, rows)
            except Damaged:
                raise
            except Fault:
                failing_since = failing_since or time.monotonic()
                patient = time.monotonic() + pause < failing_since + self._patience
                if not patient or self._closing.wait(pause):
                    raise
            pause = min(2.0 * pause, _BACKOFF[1])

    def _wait(self, part: _Part) -> None:
        began = time.monotonic()
        for reading in part.readings:
            reading.result()
        part.readings.clear()
        self.stalled += time.monotonic() - began


class _Part:
    """Some lanes of a window, in memory or on their way there: ``images`` ascend, the arrays follow them."""

    def __init__(
        self, *, first: int, lanes: frozenset[int], images: Images, pixels: Stored, labels: Labels
    ) -> None:
        self.first, self.lanes = first, lanes
        self.images, self.pixels, self.labels = images, pixels, labels
        self.readings: list[Future[None]] = []


class Generated:
    """Images made from their address by a known distribution: no two are the same one."""

    def __init__(self, source: Source, *, seed: int, device: torch.device) -> None:
        self.size, self.stalled = 2**62, 0.0
        self._source, self._seed, self._device = source, seed, device

    def batch(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        clean = torch.from_numpy(self._source.generate(self._seed, "data", images))
        labels = torch.full((len(images),), -1, dtype=torch.int64, device=self._device)
        return _on(self._device, clean), labels

    def close(self) -> None:
        """Nothing goes on in the background."""


def _on(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the device; the host does not wait for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
