"""Saved states of a run in one folder of its store: its checkpoints, or its forks.

Payload first, manifest last: a state without its manifest does not exist. Each lies in a folder of its own,
whose name starts with the images that were done.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import time
from typing import Any, Final

import torch

from hasten.trainers.errors import Fault
from hasten.trainers.store import Folder
from hasten.trainers.tracker import EVAL_LOSS

State = dict[str, Any]
Manifest = dict[str, Any]

_PAYLOAD: Final = "state.pt"
_MANIFEST: Final = "manifest.json"


class States:
    """The saved states in ``folder`` of a run's store."""

    def __init__(self, store: Folder, folder: str) -> None:
        self.folder = folder
        self._store = store

    def manifests(self) -> dict[str, Manifest]:
        """What the manifests of the complete states say, by name, oldest first."""
        return self._manifests(self._store.names(self.folder))

    def latest(self, most: int | None = None) -> str | None:
        """The name of the complete state with the most images (up to ``most``); None without any."""
        for name in reversed(self._store.names(self.folder)):
            if (most is None or images_of(name) <= most) and self._manifest(name) is not None:
                return name
        return None

    def best(self) -> str | None:
        """The name of the complete state with the lowest held-out loss in its manifest, the newest of equals.

        None where no loss was known as yet.
        """
        return _best(self.manifests())

    def read(self, name: str) -> State:
        """A state, on the CPU.

        Raises:
            Fault: it is missing or damaged.
        """
        manifest = self._manifest(name) or {}
        payload = self._store.read(f"{self.folder}/{name}/{_PAYLOAD}")
        if payload is None or hashlib.sha256(payload).hexdigest() != manifest.get("sha256"):
            raise Fault(
                f"{self._store.uri}/{self.folder}/{name}",
                "the checkpoint is damaged",
                "Delete this folder: an older one is used.",
            )
        # weights_only: a checkpoint is data and never runs code.
        state: State = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        return state

    def write(self, state: State) -> str:
        """Save a state; returns its name.

        The manifest has the newest held-out loss that the state knows of: perhaps that of earlier weights.
        """
        # A name of its own for each attempt: large objects are never overwritten.
        name = f"{state['images']:012d}-{secrets.token_hex(4)}"
        sink = io.BytesIO()
        torch.save(state, sink)
        payload = sink.getvalue()
        losses = [(step, told[EVAL_LOSS]) for step, told in state.get("history", []) if EVAL_LOSS in told]
        manifest = {
            "images": state["images"],
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            EVAL_LOSS: max(losses)[1] if losses else None,
        }
        self._store.write(f"{self.folder}/{name}/{_PAYLOAD}", payload)
        self._store.write(f"{self.folder}/{name}/{_MANIFEST}", json.dumps(manifest).encode())
        return name

    def prune(self, newest: int) -> None:
        """Drop all but the ``newest`` complete states and the best one."""
        names = self._store.names(self.folder)
        if len(names) == 1:
            return
        manifests = self._manifests(names)
        oldest, best = list(manifests)[-newest:][0], _best(manifests)
        # Only whole states count; halves that are older than those kept go with the rest.
        for name in names:
            if name < oldest and name != best:
                self._store.delete_folder(f"{self.folder}/{name}")

    def _manifests(self, names: list[str]) -> dict[str, Manifest]:
        found = {name: self._manifest(name) for name in names}
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    def _manifest(self, name: str) -> Manifest | None:
        content = self._store.read(f"{self.folder}/{name}/{_MANIFEST}")
        if content is None:
            return None
        try:
            manifest: Manifest = json.loads(content)
        except ValueError:
            return {}  # no checksum: whoever reads the state hears that it is damaged
        return manifest


def _best(manifests: dict[str, Manifest]) -> str | None:
    losses = {name: manifest.get(EVAL_LOSS) for name, manifest in manifests.items()}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    return min(reversed(known), key=known.__getitem__, default=None)


def images_of(name: str) -> int:
    """After how many images a state was saved."""
    return int(name.partition("-")[0])
