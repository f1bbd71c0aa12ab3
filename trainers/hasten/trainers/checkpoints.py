"""A run's folder in the store: checkpoints, sample sheets and the result.

Payload first, manifest last: a checkpoint without its manifest does not exist. ``result.json`` comes last
of all and says that the run is finished.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import time
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
from hasten.trainers.store import Folder

State = dict[str, Any]
Picture = NDArray[np.uint8]

_FOLDER: Final = "checkpoints"
_PAYLOAD: Final = "state.pt"
_MANIFEST: Final = "manifest.json"
_RECIPE: Final = "recipe.yaml"
_RESULT: Final = "result.json"
_SHEETS: Final = "samples"
_AVERAGES: Final = "ema"
_MICRO_BATCH: Final = "micro_batch.json"
_KEPT: Final = 2


class RunStore:
    """Checkpoints and results of one run, at ``{storage}/runs/{name}-{fingerprint}``."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._folder = Folder(uri)

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

    def checkpoints(self) -> list[str]:
        """Names of the complete checkpoints, oldest first."""
        names = self._folder.names(_FOLDER)
        return [name for name in names if self._folder.read(f"{_FOLDER}/{name}/{_MANIFEST}") is not None]

    def latest(self) -> str | None:
        """Name of the newest complete checkpoint, or None."""
        for name in reversed(self._folder.names(_FOLDER)):
            if self._folder.read(f"{_FOLDER}/{name}/{_MANIFEST}") is not None:
                return name
        return None

    def load(self, name: str) -> State:
        """The state in a checkpoint, on the CPU.

        Raises:
            Fault: the checkpoint is damaged.
        """
        place = f"{_FOLDER}/{name}"
        manifest = json.loads(self._folder.read(f"{place}/{_MANIFEST}") or b"{}")
        payload = self._folder.read(f"{place}/{_PAYLOAD}")
        if payload is None or hashlib.sha256(payload).hexdigest() != manifest.get("sha256"):
            raise Fault(
                f"{self.uri}/{place}",
                "the checkpoint is damaged",
                "Delete this folder: an older one is used.",
            )
        # weights_only: a checkpoint is data and never runs code.
        state: State = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        return state

    def save(self, state: State) -> str:
        """Write a checkpoint and drop all but the newest; returns its URI."""
        # A name of its own for each attempt: large objects are never overwritten.
        place = f"{_FOLDER}/{state['images']:012d}-{secrets.token_hex(4)}"
        sink = io.BytesIO()
        torch.save(state, sink)
        payload = sink.getvalue()
        manifest = {
            "images": state["images"],
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self._folder.write(f"{place}/{_PAYLOAD}", payload)
        self._folder.write(f"{place}/{_MANIFEST}", json.dumps(manifest).encode())
        # Only whole checkpoints count; halves that are older than those kept go with the rest.
        oldest_kept = self.checkpoints()[-_KEPT:][0]
        for name in self._folder.names(_FOLDER):
            if name < oldest_kept:
                self._folder.delete_folder(f"{_FOLDER}/{name}")
        return f"{self.uri}/{place}"

    def checkpoint_uri(self, name: str) -> str:
        return f"{self.uri}/{_FOLDER}/{name}"


class StoreWriter:
    """Writes to a run's store behind the training thread's back, one thing at a time and in order."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-writer")
        self._checkpoint: Future[str] | None = None
        self._others: list[Future[None]] = []

    def checkpoint(self, state: State) -> None:
        """Copy ``state`` now and write it soon.

        Raises:
            Fault: something given *earlier* could not be written.
        """
        self.wait()
        self._checkpoint = self._executor.submit(self._store.save, _copied(state))

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
        return self._checkpoint.result() if self._checkpoint else None

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
