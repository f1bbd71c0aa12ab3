"""A small classifier that is kept with a labelled data set: features that see content, not pixels.

It is trained once, by a recipe that knows nothing of any run, on the first use; its accuracy on images that
it did not see is kept beside the weights. Whoever measures with it records the file's digest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from hasten.trainers import randomness
from hasten.trainers.datasets import data
from hasten.trainers.datasets.data import Dataset
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.worker import Worker

FEATURES: Final = 64

_RECIPE: Final = "1"  # to be raised with every change below: an older file is then trained again
_RECORD: Final = "hasten"
_SEED: Final = 0
_UNSEEN: Final = 0.2
_MOST: Final = 50_000  # images to train on
_IMAGES: Final = 60_000  # shown at least, over all epochs
_BATCH: Final = 128
_LR: Final = 2e-3
_CHUNK: Final = 512


class SmallCnn(nn.Module):
    """Halves images to 4 pixels or less, averages over places, and classifies 64 features."""

    def __init__(self, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        width = 32
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
        while size > 4:
            wider = min(2 * width, 128)
            layers += [
                nn.Conv2d(width, wider, 3, stride=2, padding=1),
                nn.GroupNorm(8, wider),
                nn.SiLU(),
            ]
            width, size = wider, -(-size // 2)
        layers += [nn.Conv2d(width, 128, 3, padding=1), nn.GroupNorm(8, 128), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Linear(128, FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) as a diffusion model sees it; float32 (B, 64)."""
        return F.silu(self.hidden(self.trunk(x).mean(dim=(2, 3))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(x))
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """A trained network with its record; ``digest`` is its file's SHA-256, ``accuracy`` is in [0, 1]."""

    network: SmallCnn
    digest: str
    accuracy: float

    @torch.no_grad()
    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features (N, 64) of images (N, C, H, W) as a diffusion model sees them."""
        device = next(self.network.parameters()).device
        chunks = [np.empty((0, FEATURES), dtype=np.float32)]
        for start in range(0, len(images), _CHUNK):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + _CHUNK])).to(device)
            chunks.append(self.network.features(part).cpu().numpy())
        return np.concatenate(chunks)


def find(dataset: Dataset, worker: Worker) -> Classifier:
    """The data set's classifier, trained by the first worker if it is not there; all workers call this.

    Raises:
        ConfigError: the data set has no labels.
        Fault: the storage failed, or the file is damaged.
    """
    manifest = dataset.manifest
    if manifest.classes < 2:
        problem = f"classifier needs labels, and {manifest.name} has none"
        raise ConfigError("eval.samples.features.kind", problem, "Use pixels or inception.")
    name = f"classifier-{manifest.digest[:12]}.safetensors"
    if worker.is_first and not _is_current(dataset.folder.read(name)):
        dataset.folder.write(name, train(dataset, worker.device))
    worker.agree(None)  # no rank looks for it before it is there
    content = dataset.folder.read(name)
    place = f"{dataset.folder.uri}/{name}"
    if content is None:
        raise Fault(place, "was there a moment ago, and is missing", "Run the command again.")
    network = _network(dataset)
    try:
        network.load_state_dict(safetensors.torch.load(content))
        accuracy = float(_record(content)["accuracy"])
    except (safetensors.SafetensorError, RuntimeError, ValueError, KeyError):
        raise Fault(place, "is damaged", "Delete it: it is trained again.") from None
    return Classifier(
        network=network.requires_grad_(False).eval().to(worker.device),
        digest=hashlib.sha256(content).hexdigest(),
        accuracy=accuracy,
    )


def train(dataset: Dataset, device: torch.device) -> bytes:
    """A safetensors file of weights, a function of the data set (and, in its last bits, of the device)."""
    manifest = dataset.manifest
    seen, unseen = dataset.split(_UNSEEN)
    clean, labels = _shown(dataset, seen[:_MOST])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.integer(_SEED, "classifier"))
        network = _network(dataset).to(device)
    steps = max(_IMAGES, 4 * len(labels)) // _BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_LR, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        chosen = _batch(step, len(labels))
        x, y = (torch.from_numpy(values[chosen]).to(device) for values in (clean, labels))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(network(x), y))
        optimizer.step()
        schedule.step()
    record = {
        "recipe": _RECIPE,
        "accuracy": f"{_accuracy(network, *_shown(dataset, unseen[:_MOST])):.4f}",
        "data": manifest.digest,
    }
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    # As one entry: the format keeps entries in no particular order, and equal networks shall be equal files.
    return safetensors.torch.save(state, metadata={_RECORD: json.dumps(record)})


def _network(dataset: Dataset) -> SmallCnn:
    channels, height, width = dataset.manifest.shape
    return SmallCnn(channels=channels, size=min(height, width), classes=dataset.manifest.classes)


def _shown(dataset: Dataset, indices: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Labelled images as a model sees them, with their labels."""
    stored, labels = dataset.rows(indices)
    labelled = labels >= 0
    return data.to_model(stored[labelled], dataset.manifest), labels[labelled]


def _batch(step: int, size: int) -> NDArray[np.int64]:
    """The images of one step: every epoch in a new order."""
    places = np.arange(step * _BATCH, (step + 1) * _BATCH)
    orders = {
        int(epoch): randomness.permutation(_SEED, "classifier/order", int(epoch), size)
        for epoch in np.unique(places // size)
    }
    return np.array([orders[int(place // size)][place % size] for place in places])


@torch.no_grad()
def _accuracy(network: SmallCnn, clean: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    device, right = next(network.parameters()).device, 0
    for start in range(0, len(labels), _CHUNK):
        part = slice(start, start + _CHUNK)
        answers = network(torch.from_numpy(clean[part]).to(device)).argmax(dim=1).cpu().numpy()
        right += int((answers == labels[part]).sum())
    return right / max(len(labels), 1)


def _is_current(content: bytes | None) -> bool:
    return content is not None and _record(content).get("recipe", _RECIPE) == _RECIPE


def _record(content: bytes) -> dict[str, str]:
    """What a safetensors file says of itself; nothing where it is damaged."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        found: dict[str, str] = json.loads(header["__metadata__"][_RECORD])
    except (ValueError, KeyError, TypeError):
        return {}
    return found
