"""Networks as data: what a recipe says about its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from hasten.trainers.config import Spec

Count = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Shape = tuple[int, int, int]


class Unet(Spec):
    """diffusers' ``UNet2DModel``: ``channels`` times each multiplier, one resolution a multiplier.

    ``attention`` lists the resolutions at which self-attention sits (and then also in the middle); true means
    the lowest one. ``head_dim`` null is one head. ``scale_shift`` and ``resampling: resnet`` are ADM's
    (arXiv 2105.05233): the condition scales features too, and residual blocks change the resolution.
    """

    kind: Literal["unet"]
    channels: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2)
    layers: Count = 1
    attention: bool | tuple[Count, ...] = False
    head_dim: Count | None = 8
    groups: Count = 8
    dropout: Dropout = 0.0
    scale_shift: bool = False
    resampling: Literal["conv", "resnet"] = "conv"

    @model_validator(mode="after")
    def _divides(self) -> Self:
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        for width in widths:
            if width % self.groups:
                raise ValueError(f"groups: {width} channels cannot be normalised in {self.groups} groups")
            if self.attention and self.head_dim is not None and width % self.head_dim:
                raise ValueError(f"head_dim: {width} channels cannot be split into heads of {self.head_dim}")
        return self


class Dit(Spec):
    """DiT (arXiv 2212.09748): diffusers' ``DiTTransformer2DModel``. A token is ``patch``^2 pixels."""

    kind: Literal["dit"]
    patch: Count = 2
    width: Annotated[int, Field(ge=8, multiple_of=4)] = 384
    heads: Count = 6
    depth: Count = 12
    dropout: Dropout = 0.0

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads: a width of {self.width} cannot be split into {self.heads} heads")
        return self


class Mlp(Spec):
    """A residual multi-layer perceptron on flattened data: for the analytic mixtures."""

    kind: Literal["mlp"]
    width: Annotated[int, Field(ge=2, multiple_of=2)] = 128
    layers: Count = 3
    dropout: Dropout = 0.0


class Named(Spec):
    """A network of a known size, see :data:`NAMED`; ``dropout``, where given, replaces its own."""

    kind: Literal["named"]
    name: Annotated[str, Field(min_length=1)]
    dropout: Dropout | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in NAMED:
            raise ValueError(f"name: {self.name!r} is none of {', '.join(NAMED)}")
        return self


class Imported(Spec):
    """Any ``torch.nn.Module`` class by import path, for people with their own.

    ``path`` is ``package.module:Class``; it is called with ``arguments`` and the keywords ``shape`` and
    ``classes`` (null for an unconditional network). Its ``forward(x, condition)``, or
    ``forward(x, condition, labels)`` where there are classes, returns a tensor of x's shape or an object
    whose ``sample`` is one.
    """

    kind: Literal["import"]
    path: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    arguments: dict[str, Any] = {}


class Failure(Spec):
    """A fault on demand, once ``at`` of the budget is done.

    ``nan`` and ``memory`` fail as training does, ``error`` is a defect in a program, ``crash`` kills the
    process, ``hang`` never goes on. With ``once`` only an attempt from the run's beginning fails.
    """

    at: Annotated[float, Field(ge=0.0, lt=1.0)]
    how: Literal["nan", "memory", "error", "crash", "hang"]
    once: bool = False


class Simulated(Spec):
    """No network: a run that sleeps for ``seconds`` in all, and reports a plausible learning curve.

    For measuring the platform and trying out searches; :mod:`hasten.trainers.simulation` has the formula.
    ``reports`` are told, and more where evaluations are due. The held-out loss falls from ``start`` towards
    ``final``, the faster the higher ``rate`` is; ``best_lr`` and CLTS with ``best_mu`` are what a search can
    find. ``noise`` is the standard deviation of what trials of one seed share, and of what each has alone;
    ``items`` are the groups of held-out images. ``images`` asks for sheets of samples, too.
    """

    kind: Literal["simulated"]
    seconds: Annotated[float, Field(ge=0.0)] = 0.05
    reports: Count = 20
    start: Annotated[float, Field(gt=0.0)] = 1.0
    final: Annotated[float, Field(gt=0.0)] = 0.15
    rate: Annotated[float, Field(gt=0.0)] = 5.0
    noise: Annotated[float, Field(ge=0.0)] = 0.002
    best_lr: Annotated[float, Field(gt=0.0)] = 2e-3
    best_mu: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3
    items: Count = 16
    images: bool = False
    fails: Failure | None = None


Architecture = Annotated[Unet | Dit | Mlp | Named | Imported | Simulated, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A known network: for images of ``shape`` (and others that it fits), and what it was taken from.

    ``note`` says in what it differs from its source.
    """

    spec: Unet | Dit
    shape: Shape
    source: str
    note: str = ""


def _ddpm(**fields: Any) -> Unet:
    """Ho et al. (arXiv 2006.11239, appendix B): two blocks a resolution, one head, 32 groups."""
    return Unet(**{"kind": "unet", "channels": 128, "layers": 2, "head_dim": None, "groups": 32} | fields)


def _dit(width: int, heads: int, depth: int) -> Dit:
    return Dit(kind="dit", patch=2, width=width, heads=heads, depth=depth)


_DIT_NOTE: Final = "answers with one value a channel: the paper's also predict a variance"

# A name is part of a run's identity: an entry never changes once it was released.
NAMED: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "tiny-8": Size(
            spec=Unet(kind="unet", channels=16, multipliers=(1, 2)),
            shape=(1, 8, 8),
            source="recipe digits",
        ),
        "small-28": Size(
            spec=Unet(kind="unet", channels=32, multipliers=(1, 2, 2), layers=2, attention=(7,)),
            shape=(1, 28, 28),
            source="own, for MNIST-sized images",
        ),
        "ddpm-cifar10": Size(
            spec=_ddpm(multipliers=(1, 2, 2, 2), attention=(16,), dropout=0.1),
            shape=(3, 32, 32),
            source="DDPM, CIFAR-10, 35.7 M (arXiv 2006.11239, appendix B)",
        ),
        "ddpm-64": Size(
            spec=_ddpm(multipliers=(1, 2, 2, 4), attention=(16,), dropout=0.1),
            shape=(3, 64, 64),
            source="own: DDPM's blocks at 64x64",
        ),
        "ddpm-256": Size(
            spec=_ddpm(multipliers=(1, 1, 2, 2, 4, 4), attention=(16,)),
            shape=(3, 256, 256),
            source="DDPM, LSUN and CelebA-HQ, 114 M (arXiv 2006.11239, appendix B)",
        ),
        "adm-64": Size(
            spec=Unet(
                kind="unet",
                channels=192,
                multipliers=(1, 2, 3, 4),
                layers=3,
                attention=(32, 16, 8),
                head_dim=64,
                groups=32,
                dropout=0.1,
                scale_shift=True,
                resampling="resnet",
            ),
            shape=(3, 64, 64),
            source="ADM, ImageNet-64, 296 M (arXiv 2105.05233, table 4)",
            note="answers with one value a channel: the paper's also predicts a variance",
        ),
        "unet-latent-32": Size(
            spec=Unet(
                kind="unet",
                channels=224,
                multipliers=(1, 2, 3, 4),
                layers=2,
                attention=(32, 16, 8),
                head_dim=32,
                groups=32,
            ),
            shape=(4, 32, 32),
            source="LDM-4's U-Net, 274 M for 64x64x3 latents (arXiv 2112.10752, table 12)",
            note="on 32x32x4 latents; no cross-attention, classes are added to the time embedding",
        ),
        "dit-s/2": Size(
            spec=_dit(384, 6, 12),
            shape=(4, 32, 32),
            source="DiT-S/2, 33 M (arXiv 2212.09748, table 1)",
            note=_DIT_NOTE,
        ),
        "dit-b/2": Size(
            spec=_dit(768, 12, 12),
            shape=(4, 32, 32),
            source="DiT-B/2, 130 M (arXiv 2212.09748, table 1)",
            note=_DIT_NOTE,
        ),
        "dit-l/2": Size(
            spec=_dit(1024, 16, 24),
            shape=(4, 32, 32),
            source="DiT-L/2, 458 M (arXiv 2212.09748, table 1)",
            note=_DIT_NOTE,
        ),
        "dit-xl/2": Size(
            spec=_dit(1152, 16, 28),
            shape=(4, 32, 32),
            source="DiT-XL/2, 675 M (arXiv 2212.09748, table 1)",
            note=_DIT_NOTE,
        ),
    }
)


def resolve(spec: Architecture) -> Unet | Dit | Mlp | Imported | Simulated:
    """The network that a name stands for; any other spec itself."""
    if not isinstance(spec, Named):
        return spec
    known = NAMED[spec.name].spec
    return known if spec.dropout is None else known.model_copy(update={"dropout": spec.dropout})


def attended(spec: Unet, resolution: int) -> tuple[bool, ...]:
    """For each of the U-Net's resolutions, highest first, whether self-attention sits there."""
    levels = len(spec.multipliers)
    if isinstance(spec.attention, bool):
        return (False,) * (levels - 1) + (spec.attention,)
    return tuple(resolution // 2**level in spec.attention for level in range(levels))


def fits(spec: Architecture, shape: Shape) -> str | None:
    """Why a network cannot take data of shape (C, H, W), as a clause about the data; None where it can."""
    resolved, (_, height, width) = resolve(spec), shape
    if isinstance(resolved, Mlp | Imported | Simulated):
        return None
    if height != width:
        return f"{height}x{width} is not square"
    if isinstance(resolved, Dit):
        if height % resolved.patch:
            return f"{height} cannot be cut into patches of {resolved.patch} (model.patch)"
        return None
    halvings = len(resolved.multipliers) - 1
    if height % 2**halvings:
        return f"{height} cannot be halved {halvings} times (model.multipliers)"
    if not isinstance(resolved.attention, bool):
        known = [height // 2**level for level in range(halvings + 1)]
        strange = [size for size in resolved.attention if size not in known]
        if strange:
            sizes = ", ".join(map(str, known))
            return f"{height} gives resolutions {sizes}, none of them {strange[0]} (model.attention)"
    return None
