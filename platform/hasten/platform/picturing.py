"""``hasten sample``: images of a trained model from addressed noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from hasten.platform import models
from hasten.platform.exporting import refuse_full
from hasten.platform.models import Model
from hasten.trainers.checkpoints import png
from hasten.trainers.datasets import data
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.generation import packaged, pictures, sampling
from hasten.trainers.process import Process
from hasten.trainers.specs import Sampler

_SUFFIXES: Final = (".png", ".npz", "")


def sample(
    source: str,
    out: Path,
    *,
    count: int = 36,
    seed: int = 0,
    labels: Sequence[int] = (),
    guidance: float | None = None,
    steps: int | None = None,
    sampler: Sampler | None = None,
    raw: bool = False,
    ema_std: float | None = None,
    console: Console,
) -> dict[str, Any]:
    """Write samples of the model that ``source`` names; what ``hasten sample --json`` prints.

    Args:
        source: see :func:`hasten.platform.models.load`, as for ``raw`` and ``ema_std``.
        out: ``.png`` for one picture of all, ``.npz`` for arrays, or a new folder of PNG files.
        count: how many samples.
        seed: of their noise: sample i is the same for every count.
        labels: classes in turn; all of the model's by default.
        guidance: w of classifier-free guidance; the evaluation's by default, as are steps and sampler.
        steps: network evaluations a sample.
        sampler: how the probability-flow ODE is solved.
        console: where to say things.

    Raises:
        ConfigError: no such model, a label or guidance that it does not know, no such kind of output.
        Fault: a service failed, or the output cannot be written.
    """
    _check(out, count, steps)
    model = models.load(source, raw=raw, ema_std=ema_std, console=console)
    trained, defaults = model.trained, model.trained.spec.eval.samples
    if out.suffix != ".npz" and not (model.makes_images and trained.network.shape[0] in (1, 3)):
        shape = " x ".join(map(str, trained.network.shape))
        raise ConfigError(
            str(out), f"the model makes no pictures but arrays of {shape}", "Name an .npz file."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shown = packaged.in_turn(trained.network, count, labels)
    made = sampling.sample(
        trained.network.to(device),
        Process(trained.spec.diffusion, device),
        packaged.noise(seed, count, trained.network.shape),
        steps=steps or defaults.steps,
        sampler=sampler or defaults.sampler,
        labels=shown,
        guidance=(defaults.guidance if shown is not None else 1.0) if guidance is None else guidance,
        clip=model.makes_images,
    )
    try:
        _write(out, made.cpu().numpy(), shown, model)
    except OSError as error:
        raise Fault(str(out), f"cannot be written: {error.strerror or error}") from error
    console.print(f"{out}: {count} samples of {source}, {trained.weights}, {trained.images:,} images")
    return {
        "status": "finished",
        "source": source,
        "checkpoint": trained.checkpoint,
        "images": trained.images,
        "weights": trained.weights,
        "samples": count,
        "out": str(out.absolute()),
    }


def _check(out: Path, count: int, steps: int | None) -> None:
    if count < 1:
        raise ConfigError("count", f"{count} is no number of samples")
    if steps is not None and steps < 1:
        raise ConfigError("steps", f"{steps} is no number of network evaluations")
    if out.suffix not in _SUFFIXES:
        raise ConfigError(str(out), f"no kind of output: {out.suffix}", "Name a .png, an .npz or a folder.")
    if not out.suffix:
        refuse_full(out)


def _write(out: Path, made: NDArray[np.float32], labels: NDArray[np.int64] | None, model: Model) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {} if labels is None else {"labels": labels}
    if not model.makes_images:
        values = data.to_pixels(made, model.manifest) if model.manifest else made
        return np.savez(out, samples=values, **known)
    images = np.round((made + 1.0) * 127.5).astype(np.uint8)
    match out.suffix:
        case ".npz":
            np.savez(out, images=images.transpose(0, 2, 3, 1), **known)
        case ".png":
            columns = labels if labels is not None and 2 * len(np.unique(labels)) <= len(labels) else None
            out.write_bytes(png(pictures.contact_sheet(images, labels=columns)))
        case _:
            _write_folder(out, images, labels)


def _write_folder(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> None:
    """A PNG file for each image; with labels in a folder for each class, as is usual for image folders."""
    for index, image in enumerate(images):
        place = folder if labels is None else folder / f"{labels[index]:04d}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(place / f"{index:05d}.png")
