"""A training run as data: what is computed (identity) and where and how it runs (execution)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from hasten.trainers import config
from hasten.trainers.config import Spec
from hasten.trainers.curriculum import Curriculum
from hasten.trainers.diffusion import Diffusion
from hasten.trainers.momentum import Momentum
from hasten.trainers.weighting import Weighting

RECIPES: Final = Path(__file__).with_name("recipes")

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Data(Spec):
    """Images of one size. ``source`` is an imported data set's name, a folder or an s3:// prefix."""

    source: Annotated[str, Field(min_length=1)]
    resolution: Annotated[int, Field(ge=4, le=1024)]
    holdout: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2


class Unet(Spec):
    """diffusers' ``UNet2DModel``: ``channels`` times each multiplier, one resolution a multiplier."""

    kind: Literal["unet"]
    channels: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2)
    layers: Count = 1
    attention: bool = False


class AdamW(Spec):
    """AdamW; ``warmup`` is the fraction of the budget over which the rate rises linearly."""

    kind: Literal["adamw"]
    lr: Annotated[float, Field(gt=0.0)]
    batch: Count = 64
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.03
    beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0


class PowerEma(Spec):
    """EDM2's power-function average; each of ``stds`` is a width relative to the training length."""

    kind: Literal["power"]
    stds: Annotated[tuple[Annotated[float, Field(gt=0.0, lt=0.289)], ...], Field(min_length=1)] = (0.05,)


class Budget(Spec):
    """How long to train, and the seed of everything random."""

    images: Count
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class LossEval(Spec):
    """Held-out loss on fixed noise, at multiples of ``every`` of the budget, on up to ``images`` images."""

    every: Fraction = 0.1
    images: Count = 360


class SampleEval(Spec):
    """Fréchet distance on ``images`` samples of ``steps`` DDIM steps, at these fractions of the budget."""

    at: tuple[Fraction, ...] = (1.0,)
    images: Annotated[int, Field(ge=2)] = 600
    steps: Count = 25


class GridEval(Spec):
    """A grid of samples from the same noise, at the start and at multiples of ``every`` of the budget."""

    every: Fraction = 0.25
    images: Count = 36
    steps: Count = 25


class Eval(Spec):
    """How quality is measured: never a function of the curriculum, recorded with every score."""

    loss: LossEval = LossEval()
    samples: SampleEval = SampleEval()
    grid: GridEval = GridEval()


class Execution(Spec):
    """Where and how a run is computed. Nothing here enters the fingerprint."""

    launcher: Literal["local", "ray"] = "local"
    workers: Count = 1
    threads: Count = 1
    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    checkpoint_every: Fraction = 0.1


class RunSpec(Spec):
    """One training run. See ``recipes/`` for examples and ``README.md`` for every key."""

    name: Name
    data: Data
    model: Unet
    diffusion: Diffusion
    curriculum: Curriculum
    weighting: Weighting
    optimizer: AdamW
    momentum: Momentum
    ema: PowerEma
    precision: Literal["fp32", "bf16"] = "fp32"
    budget: Budget
    eval: Eval = Eval()
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        batch, levels = self.optimizer.batch, len(self.model.multipliers)
        if batch > self.budget.images:
            raise ValueError(f"optimizer.batch: {batch} is more than budget.images ({self.budget.images})")
        if self.execution.workers > batch:
            raise ValueError(f"execution.workers: {self.execution.workers} cannot share a batch of {batch}")
        if self.data.resolution % 2 ** (levels - 1):
            problem = f"{self.data.resolution} cannot be halved {levels - 1} times (model.multipliers)"
            raise ValueError(f"data.resolution: {problem}")
        return self

    def identity(self, data_digest: str) -> dict[str, Any]:
        """What is computed, as plain data: the data by its digest, never by its address."""
        fields = self.model_dump(mode="json", exclude={"name", "execution"})
        fields["data"] = {
            "digest": data_digest,
            "resolution": self.data.resolution,
            "holdout": self.data.holdout,
        }
        return fields

    def fingerprint(self, data_digest: str) -> str:
        """Twelve hexadecimal digits of the identity's SHA-256."""
        text = json.dumps(self.identity(data_digest), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def load(recipe: str, overrides: dict[str, Any] | None = None) -> RunSpec:
    """The run that a recipe (a path or a shipped name) and overrides by dotted key describe.

    Raises:
        ConfigError: no such recipe, unknown or ill-typed keys, impossible values.
    """
    return config.validate(RunSpec, load_raw(recipe, overrides))


def load_raw(recipe: str, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """The recipe as written, with overrides applied, not yet validated."""
    path = config.find(recipe, RECIPES, "recipe")
    return config.override(config.read_yaml(path), overrides or {})


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested blocks as dotted keys: ``{"curriculum.kind": "clts", ...}``."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
