"""A packaged model as MLflow's pyfunc model: from code, without a pickle, with a signature and an example."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata as packages
from pathlib import Path
from typing import Any, Final

import mlflow.pyfunc
import pandas
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.type_hints import AnyType

PIPELINE: Final = "artifacts/pipeline"
"""Where the packaged model lies in what MLflow keeps."""
EXAMPLE: Final = {"n": 2, "seed": 0}
_CODE: Final = Path(__file__).with_name("served.py")
_NEEDED: Final = ("mlflow", "torch", "diffusers", "safetensors", "pandas", "pillow")


def signature() -> ModelSignature:
    """Rows of ``n``, ``seed`` and perhaps ``label`` in; a row for each image out.

    The parameters are negative where nobody gives them: as the model was evaluated.
    """
    wishes = [
        ColSpec(DataType.long, "n"),
        ColSpec(DataType.long, "seed"),
        ColSpec(AnyType(), "label", required=False),
    ]
    images = [ColSpec(DataType.long, name) for name in ("seed", "index", "label")]
    images += [ColSpec(DataType.string, name) for name in ("format", "data")]
    params = [ParamSpec("steps", DataType.long, -1), ParamSpec("guidance", DataType.double, -1.0)]
    return ModelSignature(inputs=Schema(wishes), outputs=Schema(images), params=ParamSchema(params))


@contextmanager
def packed(folder: Path, metadata: Mapping[str, Any]) -> Iterator[Path]:
    """A folder that MLflow loads and serves, while it is needed; it names no path of this machine."""
    with tempfile.TemporaryDirectory(prefix="hasten-model-") as place:
        made, pipeline = Path(place, "model"), Path(place, Path(PIPELINE).name)
        shutil.copytree(folder, pipeline)
        with _quiet():
            mlflow.pyfunc.save_model(
                str(made),
                python_model=str(_CODE),
                artifacts={"pipeline": str(pipeline)},
                signature=signature(),
                input_example=(pandas.DataFrame([EXAMPLE]), {}),
                pip_requirements=[f"hasten=={packages.version('hasten')}", *_requirements()],
                metadata=dict(metadata),
            )
        _forget_paths(made, pipeline)
        yield made


def _requirements() -> list[str]:
    return [f"{name}=={packages.version(name).partition('+')[0]}" for name in _NEEDED]


def _forget_paths(made: Path, folder: Path) -> None:
    """MLmodel records where files came from, which means nothing to anybody else."""
    described = made / "MLmodel"
    text = described.read_text(encoding="utf-8")
    for path in (_CODE, folder):
        text = text.replace(str(path), path.name)
    described.write_text(text, encoding="utf-8")
    for cache in made.rglob("__pycache__"):
        shutil.rmtree(cache, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings that no user can act on."""
    log = logging.getLogger("mlflow")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        log.setLevel(before)
