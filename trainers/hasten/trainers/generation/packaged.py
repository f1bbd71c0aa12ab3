"""A trained model in a folder of its own, and images from it: what a registry keeps and a server asks.

The folder is what :func:`export.write` writes, and beside it ``hasten.json``: the recipe, how the network is
made, and what is known of its training. Nothing in it can run code: safetensors, JSON and text.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import diffusers
import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from PIL import Image

from hasten.trainers import randomness
from hasten.trainers.errors import ConfigError
from hasten.trainers.generation import export, sampling
from hasten.trainers.generation.export import Trained
from hasten.trainers.models import networks
from hasten.trainers.models.networks import Network
from hasten.trainers.process import Process
from hasten.trainers.specs import RunSpec

DESCRIPTION: Final = "hasten.json"
MOST: Final = 4096
"""Images that one request may ask for."""
_STREAM: Final = "sample"
_PARTS: Final = {"unet": diffusers.UNet2DModel, "transformer": diffusers.DiTTransformer2DModel}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """``n`` images of noise addressed by ``seed``; of class ``label``, or of all classes in turn."""

    n: int
    seed: int
    label: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """A model from its folder, in evaluation mode; ``images`` says that it makes pixels in [-1, 1]."""

    network: Network
    spec: RunSpec
    images: bool
    device: torch.device


def write(trained: Trained, folder: Path, *, images: bool) -> None:
    """Write a model's folder.

    Args:
        trained: the network.
        folder: where to write.
        images: the data are images in [-1, 1], not latents or points.
    """
    export.write(trained, folder, images=images)
    result, network = trained.result, trained.network
    described = {
        "recipe": trained.spec.model_dump(mode="json"),
        "shape": list(network.shape),
        "classes": network.classes,
        "images": images,
        "weights": trained.weights,
        "trained_images": trained.images,
        "run": trained.run_uri.rpartition("/")[2],
        "data_digest": None if result is None else result.data_digest,
        "metrics": {} if result is None else result.metrics,
        "evaluation": {} if result is None else result.evaluation,
        "environment": {} if result is None else result.environment,
    }
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> Packaged:
    """The model of a folder, on a GPU where there is one.

    Raises:
        ConfigError: this is no such folder, or its weights are not of its network.
    """
    try:
        described = json.loads((folder / DESCRIPTION).read_bytes())
        spec = RunSpec.model_validate(described["recipe"])
        network = _network(folder, spec, tuple(described["shape"]), described["classes"])
        images = bool(described["images"])
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise ConfigError(str(folder), f"is no folder of a packaged model: {error}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Packaged(network=network.to(device).eval(), spec=spec, images=images, device=device)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def answer(
    model: Packaged, wishes: Sequence[Wish], *, steps: int | None = None, guidance: float | None = None
) -> list[dict[str, Any]]:
    """A row for each image of each wish: ``seed``, ``index``, ``label`` (-1 for none), ``format``, ``data``.

    ``data`` is a PNG file in base64, or for what is no picture a NumPy file of float32 (C, H, W).

    Raises:
        ConfigError: with the name of the field that is wrong.
    """
    _check(wishes, steps)
    defaults, rows = model.spec.eval.samples, []
    for wish in wishes:
        labels = in_turn(model.network, wish.n, () if wish.label is None else (wish.label,))
        made = sampling.sample(
            model.network,
            Process(model.spec.diffusion, model.device),
            noise(wish.seed, wish.n, model.network.shape),
            steps=steps or defaults.steps,
            sampler=defaults.sampler,
            labels=labels,
            guidance=(defaults.guidance if labels is not None else 1.0) if guidance is None else guidance,
            clip=model.images,
        )
        for index, values in enumerate(made.cpu().numpy()):
            label = -1 if labels is None else int(labels[index])
            rows.append({"seed": wish.seed, "index": index, "label": label, **_encoded(values, model)})
    return rows


def noise(seed: int, count: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Where samples begin: float32 (count, C, H, W). Sample i is the same for every count and every model."""
    return randomness.noise(seed, _STREAM, np.arange(count), shape)


def in_turn(network: Network, count: int, wanted: Sequence[int]) -> NDArray[np.int64] | None:
    """The class of each sample: those wanted in turn, else all; None for a network that knows none.

    Raises:
        ConfigError: the network knows no such class.
    """
    if network.classes is None and not wanted:
        return None
    if network.classes is None:
        raise ConfigError("label", "the model knows no classes", "Leave it out.")
    chosen = np.array(list(wanted) or range(network.classes), dtype=np.int64)
    strange = chosen[(chosen < 0) | (chosen >= network.classes)]
    if len(strange):
        raise ConfigError("label", f"{strange[0]} is not one of the model's, 0 to {network.classes - 1}")
    return chosen[np.arange(count) % len(chosen)]


def _network(folder: Path, spec: RunSpec, shape: Any, classes: int | None) -> Network:
    for name, kind in _PARTS.items():
        if (folder / name).is_dir():
            network = networks.build(spec.model, shape=shape, classes=classes, seed=0)
            state = kind.from_pretrained(str(folder / name), low_cpu_mem_usage=False).state_dict()
            network.inner.load_state_dict(state)
            return network
    return export.read_components(folder)


def _check(wishes: Sequence[Wish], steps: int | None) -> None:
    for wish in wishes:
        if wish.n < 1 or wish.seed < 0:
            key, value = ("n", wish.n) if wish.n < 1 else ("seed", wish.seed)
            raise ConfigError(key, f"must be {1 if key == 'n' else 0} or more, is {value}")
    if sum(wish.n for wish in wishes) > MOST:
        raise ConfigError("n", f"asks for more than {MOST:,} images at once", "Ask several times.")
    if steps is not None and steps < 1:
        raise ConfigError("steps", f"must be 1 or more, is {steps}")


def _encoded(values: NDArray[np.float32], model: Packaged) -> dict[str, str]:
    content = io.BytesIO()
    if model.images and values.shape[0] in (1, 3):
        pixels = np.round((values + 1.0) * 127.5).astype(np.uint8)
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        image.save(content, "PNG")
        return {"format": "png", "data": base64.b64encode(content.getvalue()).decode()}
    np.save(content, values, allow_pickle=False)
    return {"format": "npy", "data": base64.b64encode(content.getvalue()).decode()}
