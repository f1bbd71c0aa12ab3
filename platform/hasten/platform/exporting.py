"""``hasten export``: a trained model as a folder that diffusers loads."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from hasten.platform import models
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.generation import export as exports


def export(
    source: str,
    folder: Path,
    *,
    raw: bool = False,
    ema_std: float | None = None,
    licence: str = "unknown",
    console: Console,
) -> dict[str, Any]:
    """Write the model that ``source`` names to ``folder``; what ``hasten export --json`` prints.

    See :func:`hasten.platform.models.load` for the arguments. The folder is there when all of it is.

    Raises:
        ConfigError: there is no such model, or the folder has something in it.
        Fault: a service failed, or the folder cannot be written.
    """
    refuse_full(folder)
    model = models.load(source, raw=raw, ema_std=ema_std, console=console)
    partial = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        exports.write(model.trained, partial, licence=licence, images=model.makes_images)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise Fault(str(folder), f"cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    trained, pipeline = model.trained, _pipeline(folder)
    loads = f"DiffusionPipeline.from_pretrained gives a {pipeline}" if pipeline else "see its README.md"
    console.print(f"{source}: {trained.weights}, {trained.images:,} images, in {folder}: {loads}")
    return {
        "status": "finished",
        "source": source,
        "checkpoint": trained.checkpoint,
        "images": trained.images,
        "weights": trained.weights,
        "folder": str(folder.absolute()),
        "pipeline": pipeline,
    }


def refuse_full(folder: Path) -> None:
    """Never mix with, or overwrite, what somebody has.

    Raises:
        ConfigError: the folder is a file, or has something in it.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(str(folder), "exists already", "Name a new folder, or an empty one.")


def _pipeline(folder: Path) -> str | None:
    index = folder / "model_index.json"
    return str(json.loads(index.read_text(encoding="utf-8"))["_class_name"]) if index.is_file() else None
