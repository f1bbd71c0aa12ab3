"""A run's folder in the store: checkpoints, forks, sample sheets and the result.

A fork is a checkpoint that stays, for other runs to start from. ``result.json`` comes last of all and says
that the run is finished.
"""

from __future__ import annotations

import io
import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hasten.trainers import posthoc
from hasten.trainers.errors import Fault
from hasten.trainers.posthoc import Profile, Snapshot
from hasten.trainers.records import RunResult
from hasten.trainers.states import State, States, images_of
from hasten.trainers.store import Folder

__all__ = ["Picture", "RunStore", "State", "StoreWriter", "png"]

Picture = NDArray[np.uint8]

_RECIPE: Final = "recipe.yaml"
_RESULT: Final = "result.json"
_SHEETS: Final = "samples"
_AVERAGES: Final = "ema"
_MICRO_BATCH: Final = "micro_batch.json"
_NEWEST: Final = 2  # checkpoints that stay, beside the best one


class RunStore:
    """Checkpoints, forks and results of one run, at ``{storage}/runs/{name}-{fingerprint}``."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._folder = Folder(uri)
        self._checkpoints = States(self._folder, "checkpoints")
        self._forks = States(self._folder, "forks")

    def result(self) -> RunResult | None:
        """The result of a finished run, or None.

        Raises:
            Fault: the result is damaged.
        """
        content = self._folder.read(_RESULT)
        if content is None:
            return None
        try:
            return RunResult.model_validate_json(content)
        except ValueError as error:
            problem = f"is damaged: {str(error).splitlines()[0]}"
            raise Fault(
                f"{self.uri}/{_RESULT}", problem, "Delete it: the run's end is computed again."
            ) from None

    def write_result(self, result: RunResult) -> None:
        self._folder.write(_RESULT, result.model_dump_json(indent=2).encode())

    def write_recipe(self, resolved: str) -> None:
        """Keep the run's recipe beside its checkpoints: a model can be used before the run has ended."""
        self._folder.write(_RECIPE, resolved.encode())

    def recipe(self) -> str | None:
        """The resolved recipe as YAML, or None where no such run was ever started."""
        content = self._folder.read(_RECIPE)
        return None if content is None else content.decode()

    def write_sheet(self, step: int, png: bytes) -> None:
        self._folder.write(f"{_SHEETS}/{step:012d}.png", png)

    def sheets(self) -> list[tuple[int, Picture]]:
        """Every sheet of samples with its step, oldest first."""
        files = [(name, self._folder.read(f"{_SHEETS}/{name}")) for name in self._folder.names(_SHEETS)]
        return [
            (int(name.partition(".")[0]), np.array(Image.open(io.BytesIO(file))))
            for name, file in files
            if file
        ]

    def sheet_files(self) -> dict[int, bytes]:
        """Every sheet of samples as a PNG file, by its step."""
        files = {name: self._folder.read(f"{_SHEETS}/{name}") for name in self._folder.names(_SHEETS)}
        return {int(name.partition(".")[0]): file for name, file in files.items() if file}

    def last_sheet(self) -> bytes | None:
        """The newest sheet of samples as a PNG file, or None."""
        names = self._folder.names(_SHEETS)
        return self._folder.read(f"{_SHEETS}/{names[-1]}") if names else None

    def write_average(self, snapshot: Snapshot) -> None:
        """Keep averaged weights as they were at one moment, to make other averages of them later."""
        self._folder.write(f"{_AVERAGES}/{posthoc.file_name(snapshot)}", posthoc.pack(snapshot.state))

    def averages(self) -> list[Profile]:
        """What averages were kept, oldest first."""
        return [posthoc.parse(name) for name in self._folder.names(_AVERAGES)]

    def read_average(self, profile: Profile) -> Snapshot:
        """Averaged weights that were kept.

        Raises:
            Fault: they are missing or damaged.
        """
        content = self._folder.read(f"{_AVERAGES}/{posthoc.file_name(profile)}")
        if content is None:
            raise Fault(f"{self.uri}/{_AVERAGES}", f"has no {posthoc.file_name(profile)}")
        return Snapshot(images=profile.images, std=profile.std, state=posthoc.unpack(content))

    def micro_batch(self) -> int | None:
        """How many images fit into a worker's memory, as far as an earlier attempt found out."""
        content = self._folder.read(_MICRO_BATCH)
        return int(json.loads(content)["images"]) if content else None

    def write_micro_batch(self, images: int) -> None:
        self._folder.write(_MICRO_BATCH, json.dumps({"images": images}).encode())

    def inherit(self, donor: RunStore, images: int) -> None:
        """Copy another run's sheets and averages until ``images``: this run goes on from there."""
        for folder in (_SHEETS, _AVERAGES):
            here = self._folder.names(folder)
            for name in donor._folder.names(folder):
                if name not in here and int(name[:12]) <= images:
                    self._folder.write(f"{folder}/{name}", donor._folder.read(f"{folder}/{name}") or b"")

    def checkpoints(self) -> list[str]:
        """Names of the complete checkpoints, oldest first."""
        return list(self._checkpoints.manifests())

    def latest(self) -> str | None:
        """Name of the newest complete checkpoint, or None."""
        return self._checkpoints.latest()

    def best(self) -> str | None:
        """Name of the kept checkpoint with the lowest held-out loss known when it was written.

        None where none was known as yet.
        """
        return self._checkpoints.best()

    def load(self, name: str) -> State:
        """The state in a checkpoint, on the CPU.

        Raises:
            Fault: the checkpoint is damaged.
        """
        return self._checkpoints.read(name)

    def save(self, state: State) -> str:
        """Write a checkpoint and drop all but the newest and the best; returns its URI."""
        name = self._checkpoints.write(state)
        self._checkpoints.prune(_NEWEST)
        return self.checkpoint_uri(name)

    def checkpoint_uri(self, name: str) -> str:
        return f"{self.uri}/{self._checkpoints.folder}/{name}"

    def forks(self) -> list[int]:
        """After how many images there are complete forks, ascending."""
        return sorted({images_of(name) for name in self._forks.manifests()})

    def load_fork(self, images: int) -> State:
        """The state in the fork after ``images``, on the CPU.

        Raises:
            Fault: there is none, or it is damaged.
        """
        return self.read(self.fork(images))

    def write_fork(self, state: State) -> str:
        """Write a checkpoint that stays; returns its URI."""
        return f"{self.uri}/{self._forks.folder}/{self._forks.write(state)}"

    def fork(self, images: int) -> str:
        """The place, in the run's folder, of the fork after ``images``.

        Raises:
            Fault: there is none.
        """
        name = self._forks.latest(images)
        if name is None or images_of(name) != images:
            raise Fault(f"{self.uri}/{self._forks.folder}", f"has no checkpoint after {images:,} images")
        return f"{self._forks.folder}/{name}"

    def furthest(self, most: int) -> str | None:
        """The place of the checkpoint or fork with the most images up to ``most``; None without any."""
        found = [(states.latest(most), states.folder) for states in (self._checkpoints, self._forks)]
        known = [(images_of(name), f"{folder}/{name}") for name, folder in found if name is not None]
        return max(known, key=lambda each: each[0])[1] if known else None

    def read(self, place: str) -> State:
        """The state in the checkpoint or fork at a place in the run's folder, on the CPU.

        Raises:
            Fault: it is damaged.
        """
        folder, _, name = place.partition("/")
        return States(self._folder, folder).read(name)


class StoreWriter:
    """Writes to a run's store behind the training thread's back, one thing at a time and in order."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-writer")
        self._checkpoint: Future[str] | None = None
        self._forks: list[Future[str]] = []
        self._others: list[Future[None]] = []

    def checkpoint(self, state: State) -> None:
        """Copy ``state`` now and write it soon.

        Raises:
            Fault: something given *earlier* could not be written.
        """
        self.wait()
        self._checkpoint = self._executor.submit(self._store.save, _copied(state))

    def fork(self, state: State) -> None:
        """Copy ``state`` now and write it soon, to stay."""
        self._forks.append(self._executor.submit(self._store.write_fork, _copied(state)))

    def sheet(self, step: int, picture: Picture) -> None:
        """Write a picture of samples soon."""
        self._others.append(self._executor.submit(lambda: self._store.write_sheet(step, png(picture))))

    def average(self, snapshot: Snapshot) -> None:
        """Write averaged weights soon."""
        held = replace(snapshot, state=_copied(snapshot.state))
        self._others.append(self._executor.submit(self._store.write_average, held))

    def wait(self) -> str | None:
        """Wait until all is written; returns the newest checkpoint's URI, None when there was none.

        Raises:
            Fault: something could not be written.
        """
        for other in self._others:
            other.result()
        self._others.clear()
        self.wait_for_forks()
        return self._checkpoint.result() if self._checkpoint else None

    def wait_for_forks(self) -> None:
        """Wait until all forks can be read.

        Raises:
            Fault: one could not be written.
        """
        for fork in self._forks:
            fork.result()
        self._forks.clear()

    def close(self) -> None:
        self._executor.shutdown(wait=True)


def png(picture: Picture) -> bytes:
    """An RGB picture (height, width, 3) as a PNG file."""
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, format="PNG", optimize=True)
    return sink.getvalue()


def _copied(value: Any) -> Any:
    """The same nest of containers with every tensor cloned to the CPU: training goes on changing it."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
