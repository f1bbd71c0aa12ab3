"""Networks built from their spec: diffusers', a small one of our own, and anybody's by import path."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final, cast

import numpy as np
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from numpy.typing import NDArray
from torch import nn

from hasten.trainers import randomness
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.models import architectures
from hasten.trainers.models.architectures import Architecture, Dit, Imported, Mlp, Shape, Simulated, Unet
from hasten.trainers.models.dropout import AddressedDropout
from hasten.trainers.models.mlp import ResidualMlp

_DESCRIPTION: Final = "description"


class Network(nn.Module):
    """One calling convention for every network.

    Args:
        inner: diffusers', our own or anybody's module.
        shape: (C, H, W) of its data.
        classes: how many classes it knows; None when it is unconditional. Label ``classes`` is "no label".
        foreign: whether ``inner`` may draw random numbers that nobody here knows of.
    """

    def __init__(self, inner: nn.Module, *, shape: Shape, classes: int | None, foreign: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.shape = shape
        self.classes = classes
        self._foreign = foreign
        # In the weights' own file, so that they can be loaded without the data that they were trained on.
        self.register_buffer(_DESCRIPTION, torch.tensor([*shape, -1 if classes is None else classes]))
        # diffusers' DiT always has a table of labels: without classes its only row says "no label".
        self._null = 0 if classes is None and isinstance(inner, DiTTransformer2DModel) else classes
        self._dropouts = [module for module in inner.modules() if isinstance(module, AddressedDropout)]

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The answer to x (B, C, H, W) at noise level ``condition`` (B,), of x's shape.

        ``labels`` are integers (B,) in [0, classes], where ``classes`` means "no label", as does None.
        """
        if self._null is None:
            answer = self.inner(x, condition)
        else:
            if labels is None:
                labels = torch.full((len(x),), self._null, dtype=torch.int64, device=x.device)
            answer = self.inner(x, condition, labels)
        return cast(torch.Tensor, answer if isinstance(answer, torch.Tensor) else answer.sample)

    @property
    def has_dropout(self) -> bool:
        """Whether training it takes random numbers, and so :meth:`address` before every step."""
        return bool(self._dropouts) or self._foreign

    def address(self, *, seed: int, images: NDArray[np.int64]) -> None:
        """Say which images ever (B,) the next training step's rows are: its dropout masks belong to them.

        A foreign module's own dropout is seeded by the first image instead: exact again after a resumption,
        but not the same for another number of ranks.
        """
        if self._dropouts:
            uniform = randomness.uniform(seed, "dropout", images)
            host = torch.from_numpy(np.floor((uniform - 0.5) * 2.0**32).astype(np.int32))
            seeds = host.to(next(self.parameters()).device, non_blocking=True)
            for layer in self._dropouts:
                layer.seeds = seeds
        elif self._foreign:
            torch.manual_seed(randomness.integer(seed, f"dropout/{int(images[0])}"))


def build(spec: Architecture, *, shape: Shape, classes: int | None, seed: int) -> Network:
    """A freshly initialised network on the CPU; the same seed gives the same weights everywhere.

    Args:
        spec: the network.
        shape: (C, H, W) of the data.
        classes: how many classes to condition on; None for an unconditional network.
        seed: of the initial weights.

    Raises:
        ConfigError: the network does not fit the data, or cannot be imported.
    """
    problem = architectures.fits(spec, shape)
    if problem:
        raise ConfigError("data.resolution", problem)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.integer(seed, "init"))
        network = _made(spec, shape, classes)
    if isinstance(spec, Imported):
        _try_out(network, spec.path)
    return network


def load(spec: Architecture, state: Mapping[str, torch.Tensor]) -> Network:
    """The network that has these weights, on the CPU, in evaluation mode.

    Raises:
        ConfigError: the network cannot be imported.
        Fault: the weights are not of this network.
    """
    try:
        channels, height, width, classes = state[_DESCRIPTION].tolist()
        network = build(
            spec, shape=(channels, height, width), classes=None if classes < 0 else classes, seed=0
        )
        network.load_state_dict(dict(state))
    except (KeyError, ValueError, RuntimeError) as error:
        remedy = "Was the model's code changed since it was trained?"
        raise Fault("checkpoint", f"is not of this network: {_said(error)}", remedy) from error
    return network.eval()


def parameters(spec: Architecture, *, shape: Shape, classes: int | None) -> int:
    """How many weights a network has, without making them."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in _made(spec, shape, classes).parameters())


def operations(spec: Architecture, *, shape: Shape, classes: int | None) -> int:
    """Multiplications with additions for one image's forward pass, without computing it."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import, and few ask

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        _made(spec, shape, classes).eval()(torch.empty(1, *shape), torch.empty(1))
    return int(counter.get_total_flops()) // 2


def _made(spec: Architecture, shape: Shape, classes: int | None) -> Network:
    resolved = architectures.resolve(spec)
    match resolved:
        case Unet():
            inner = _unet(resolved, shape, classes)
        case Dit():
            inner = _dit(resolved, shape, classes)
        case Mlp():
            inner = ResidualMlp(
                shape=shape,
                width=resolved.width,
                layers=resolved.layers,
                dropout=resolved.dropout,
                classes=classes,
            )
        case Imported():
            inner = _imported(resolved, shape, classes)
        case Simulated():
            raise ConfigError("model.kind", "simulated runs have no network", "Choose a model that trains.")
    if not isinstance(resolved, Imported):
        _address_dropout(inner)
    return Network(inner, shape=shape, classes=classes, foreign=isinstance(resolved, Imported))


def _unet(spec: Unet, shape: Shape, classes: int | None) -> nn.Module:
    attended = architectures.attended(spec, shape[-1])
    down = ["AttnDownBlock2D" if here else "DownBlock2D" for here in attended]
    up = ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attended)]
    if spec.resampling == "resnet":
        # diffusers has no plain block that resamples by a residual block; blocks with attention do by option.
        down = ["ResnetDownsampleBlock2D" if name == "DownBlock2D" else name for name in down]
        up = ["ResnetUpsampleBlock2D" if name == "UpBlock2D" else name for name in up]
    network: nn.Module = UNet2DModel(
        sample_size=shape[-1],
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=spec.layers,
        block_out_channels=tuple(spec.channels * multiplier for multiplier in spec.multipliers),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        add_attention=bool(spec.attention),
        attention_head_dim=spec.head_dim,
        norm_num_groups=spec.groups,
        attn_norm_num_groups=spec.groups if spec.scale_shift else None,
        resnet_time_scale_shift="scale_shift" if spec.scale_shift else "default",
        downsample_type=spec.resampling,
        upsample_type=spec.resampling,
        dropout=spec.dropout,
        num_class_embeds=None if classes is None else classes + 1,
    )
    return network


def _dit(spec: Dit, shape: Shape, classes: int | None) -> nn.Module:
    network: nn.Module = DiTTransformer2DModel(
        num_attention_heads=spec.heads,
        attention_head_dim=spec.width // spec.heads,
        in_channels=shape[0],
        out_channels=shape[0],
        num_layers=spec.depth,
        dropout=spec.dropout,
        sample_size=shape[-1],
        patch_size=spec.patch,
        num_embeds_ada_norm=classes or 0,
    )
    share_embedding(network)
    _initialise_dit(network)
    return network


def share_embedding(network: Any) -> None:
    """One embedding of condition and label for all blocks, as in the paper; diffusers makes one a block.

    Its own random hiding of labels is switched off: labels are hidden where randomness is addressed.
    """
    first = network.transformer_blocks[0].norm1.emb
    first.class_embedder.dropout_prob = 0.0
    for block in network.transformer_blocks[1:]:
        block.norm1.emb = first


def _initialise_dit(network: Any) -> None:
    """The paper's start (section 3.2, adaLN-Zero): every block is the identity, and the answer is zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    patches = network.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
    nn.init.zeros_(patches.bias)
    embedding = network.transformer_blocks[0].norm1.emb
    for linear in (embedding.timestep_embedder.linear_1, embedding.timestep_embedder.linear_2):
        nn.init.normal_(linear.weight, std=0.02)
    nn.init.normal_(embedding.class_embedder.embedding_table.weight, std=0.02)
    for linear in (*(block.norm1.linear for block in network.transformer_blocks), network.proj_out_1):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(network.proj_out_2.weight)


def _address_dropout(network: nn.Module) -> None:
    """Replace every dropout layer by one that is addressed; layers are told apart by their order."""
    places = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Dropout)
    ]
    for layer, (parent, name, child) in enumerate(places):
        setattr(parent, name, AddressedDropout(child.p, layer) if child.p else nn.Identity())


def _imported(spec: Imported, shape: Shape, classes: int | None) -> nn.Module:
    module_name, _, class_name = spec.path.partition(":")
    remedy = "Every machine that trains must be able to import it: install it, or set PYTHONPATH."
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError("model.path", f"no module {error.name!r}", remedy) from error
    except Exception as error:
        raise ConfigError("model.path", f"importing {module_name} fails: {_said(error)}", remedy) from error
    made = getattr(module, class_name, None)
    if not isinstance(made, type) or not issubclass(made, nn.Module):
        raise ConfigError("model.path", f"{module_name} has no torch.nn.Module class {class_name}")
    try:
        return made(**spec.arguments, shape=shape, classes=classes)
    except Exception as error:
        raise ConfigError(
            "model.arguments", f"{class_name} does not take them: {_said(error)}", "See model.path."
        ) from error


@torch.no_grad()
def _try_out(network: Network, path: str) -> None:
    """Find out before training whether somebody's module keeps the convention."""
    x, condition = torch.zeros(2, *network.shape), torch.zeros(2)
    training = network.training
    try:
        with torch.random.fork_rng(devices=[]):
            answer = network.eval()(x, condition)
    except Exception as error:
        raise ConfigError(
            "model.path", f"{path} fails on zeros of shape {tuple(x.shape)}: {_said(error)}"
        ) from error
    finally:
        network.train(training)
    if not isinstance(answer, torch.Tensor) or answer.shape != x.shape:
        found = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise ConfigError("model.path", f"{path} answers {tuple(x.shape)} with {found}")


def _said(error: Exception) -> str:
    """What went wrong, on one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
