"""A training run as data: what is computed (identity) and where and how it runs (execution)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from hasten.trainers import config, learning_rate, momentum, weighting
from hasten.trainers.averaging import Averaging
from hasten.trainers.config import Spec
from hasten.trainers.curriculum import Curriculum
from hasten.trainers.diffusion import Diffusion
from hasten.trainers.learning_rate import LearningRate
from hasten.trainers.models import architectures
from hasten.trainers.models.architectures import Architecture
from hasten.trainers.momentum import Momentum
from hasten.trainers.weighting import Weighting

RECIPES: Final = Path(__file__).with_name("recipes")

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Data(Spec):
    """What to train on: an imported data set's name, a folder or s3:// prefix of one, or ``mixture:NAME``.

    ``shuffle`` is the window, in images, within which a larger data set is shuffled each epoch; ``flip``
    mirrors every other image at random.
    """

    source: Annotated[str, Field(min_length=1)]
    resolution: Annotated[int, Field(ge=1, le=1024)]
    holdout: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    flip: bool = False
    shuffle: Annotated[int, Field(ge=1024)] = 16_384


class Unconditional(Spec):
    """Labels are not looked at."""

    kind: Literal["none"]


class Classes(Spec):
    """Class-conditional: each image's label is hidden from the network with probability ``dropout``.

    A network that was trained with some dropout can be guided (arXiv 2207.12598).
    """

    kind: Literal["classes"]
    dropout: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1


Conditioning = Annotated[Unconditional | Classes, Field(discriminator="kind")]


class _Optimizer(Spec):
    """``lr`` is the base rate, which ``schedule``, ``momentum`` and the warm-up multiply.

    ``batch`` images are in an update, over all workers; over the first ``warmup`` of the budget the rate
    rises linearly; gradients longer than ``clip`` are shortened to it.
    """

    lr: Annotated[float, Field(gt=0.0)]
    batch: Count = 64
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.03
    schedule: LearningRate = learning_rate.Constant(kind="constant")
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    clip: Annotated[float, Field(gt=0.0)] | None = None


class AdamW(_Optimizer):
    """AdamW (arXiv 1711.05101); its momentum is an average of gradients."""

    kind: Literal["adamw"]
    beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999

    @property
    def convention(self) -> Literal["average", "heavy_ball"]:
        return "average"


class Sgd(_Optimizer):
    """Stochastic gradient descent with momentum.

    ``convention: heavy_ball`` adds gradients up, v = beta v + g, so that the whole step is lr / (1 - beta);
    ``average`` averages them, v = beta v + (1 - beta) g.
    """

    kind: Literal["sgd"]
    convention: Literal["average", "heavy_ball"] = "heavy_ball"


Optimizer = Annotated[AdamW | Sgd, Field(discriminator="kind")]


class Budget(Spec):
    """How long to train, and the seed of everything random."""

    images: Count
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class LossEval(Spec):
    """Held-out loss on fixed noise, at multiples of ``every`` of the budget, on up to ``images`` images.

    Overall, and in ``bins`` equal ranges of timesteps.
    """

    every: Fraction = 0.1
    images: Count = 360
    bins: Annotated[int, Field(ge=1, le=100)] = 10


class Pixels(Spec):
    """The pixels themselves, scaled to [0, 1]: for small images."""

    kind: Literal["pixels"]


class Classifier(Spec):
    """The last hidden layer of the small classifier that is kept with a labelled data set."""

    kind: Literal["classifier"]


class Inception(Spec):
    """Inception v3's pool features; ``weights`` is a path or URI of the published FID weights."""

    kind: Literal["inception"]
    weights: Annotated[str, Field(min_length=1)]


Features = Annotated[Pixels | Classifier | Inception, Field(discriminator="kind")]
Metric = Literal["frechet", "kid", "precision", "recall", "memorization"]
Sampler = Literal["ddim", "dpm++", "heun"]


class SampleEval(Spec):
    """``metrics`` on ``images`` samples of ``steps`` network evaluations, at these fractions of the budget.

    ``guidance`` w > 1 (class-conditional networks only) answers with unconditional + w (conditional -
    unconditional); ``reference`` is how many training images the samples are compared with, at most.
    """

    at: tuple[Fraction, ...] = (1.0,)
    images: Annotated[int, Field(ge=2)] = 600
    steps: Count = 25
    sampler: Sampler = "ddim"
    guidance: Annotated[float, Field(ge=0.0)] = 1.0
    features: Features = Pixels(kind="pixels")
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = ("frechet",)
    reference: Annotated[int, Field(ge=2)] = 50_000


class GridEval(Spec):
    """A grid of samples from the same noise, at the start and at multiples of ``every`` of the budget."""

    every: Fraction = 0.25
    images: Count = 36
    steps: Count = 25


class Eval(Spec):
    """How quality is measured: never a function of the curriculum, recorded with every score.

    ``raw`` scores the last weights too, beside the averaged ones.
    """

    loss: LossEval = LossEval()
    samples: SampleEval = SampleEval()
    grid: GridEval = GridEval()
    raw: bool = False


def _one_or_range(value: Any) -> str:
    return "range" if isinstance(value, (list, tuple)) else "one"


Workers = Annotated[
    Annotated[Count, Tag("one")] | Annotated[tuple[Count, Count], Tag("range")], Discriminator(_one_or_range)
]


class Execution(Spec):
    """Where and how a run is computed. Nothing here enters the fingerprint.

    ``workers`` is a number, or with Ray a range [least, most]: the run then takes what the cluster has, and
    looks for more every ``resize_seconds``. The global batch is the same for any of them. ``micro_batch`` is
    how many images a worker takes through the network at once; out of memory, it is halved.
    """

    launcher: Literal["local", "ray"] = "local"
    workers: Workers = 1
    threads: Count = 1
    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    checkpoint_every: Fraction = 0.1
    resize_seconds: Annotated[float, Field(gt=0.0)] = 60.0
    reader: Literal["auto", "resident", "streaming"] = "auto"
    evaluation: Literal["inline", "background"] = "inline"
    micro_batch: Count | None = None
    channels_last: bool = False
    compile: Literal["no", "default", "reduce-overhead", "max-autotune-no-cudagraphs"] = "no"

    @property
    def least(self) -> int:
        """The fewest workers to train with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """The most workers to train with."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"workers: [{self.least}, {self.most}] must be [least, most]")
        if self.least < self.most and self.launcher != "ray":
            raise ValueError(f"workers: a range [{self.least}, {self.most}] needs launcher: ray")
        return self


class Start(Spec):
    """Go on from another run's checkpoint after ``images``, with this recipe: part of what is computed.

    ``run`` is the other run's folder in the store, NAME-FINGERPRINT.
    """

    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}-[0-9a-f]{12}$")]
    images: Count


class Initial(Spec):
    """Begin with the averaged weights that another, finished run ended with; all else begins anew.

    ``run`` is the other run's folder in the store, NAME-FINGERPRINT. Its data may be other data.
    """

    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}-[0-9a-f]{12}$")]


class RunSpec(Spec):
    """One training run. See ``recipes/`` for examples and ``README.md`` for every key."""

    name: Name
    data: Data
    model: Architecture
    diffusion: Diffusion
    conditioning: Conditioning = Unconditional(kind="none")
    curriculum: Curriculum
    weighting: Weighting
    optimizer: Optimizer
    momentum: Momentum
    ema: Averaging
    precision: Literal["fp32", "bf16"] = "fp32"
    budget: Budget
    start: Start | None = None
    initial: Initial | None = None
    eval: Eval = Eval()
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        batch = self.optimizer.batch
        if batch > self.budget.images:
            raise ValueError(f"optimizer.batch: {batch} is more than budget.images ({self.budget.images})")
        if self.execution.most > batch:
            raise ValueError(f"execution.workers: {self.execution.most} cannot share a batch of {batch}")
        if self.start is not None and self.start.images >= self.budget.images:
            raise ValueError(
                f"start.images: {self.start.images} leaves nothing of budget.images ({self.budget.images})"
            )
        if self.start is not None and self.initial is not None:
            raise ValueError("initial: means nothing beside `start`, which brings weights of its own")
        side = self.data.resolution
        if problem := architectures.fits(self.model, (1, side, side)):
            raise ValueError(f"data.resolution: {problem}")
        if problem := weighting.conflict(self.curriculum, self.weighting):
            raise ValueError(f"weighting: {problem}")
        convention, schedule = self.optimizer.convention, self.optimizer.schedule
        if problem := momentum.conflict(self.momentum, convention=convention, schedule=schedule):
            raise ValueError(f"momentum: {problem}")
        if self.eval.samples.guidance != 1.0 and isinstance(self.conditioning, Unconditional):
            raise ValueError("eval.samples.guidance: needs conditioning: {kind: classes}")
        return self

    def identity(self, data_digest: str) -> dict[str, Any]:
        """What is computed, as plain data: the data by its digest, never by its address."""
        fields = self.model_dump(mode="json", exclude={"name", "execution"})
        for later in ("start", "initial"):  # runs were fingerprinted before there were such keys
            if getattr(self, later) is None:
                del fields[later]
        fields["data"] = self.data.model_dump(mode="json", exclude={"source"}) | {"digest": data_digest}
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
