"""Networks from diffusers, built from their spec."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel

from hasten.trainers import randomness
from hasten.trainers.specs import Unet


def build(spec: Unet, *, resolution: int, channels: int, seed: int) -> torch.nn.Module:
    """A freshly initialised network on the CPU; the same seed gives the same weights everywhere.

    Its ``forward(x, t)`` takes x of shape (B, channels, resolution, resolution) and integer timesteps of
    shape (B,), and returns an object whose ``sample`` has the shape of x.
    """
    levels = len(spec.multipliers)
    down, up = ("AttnDownBlock2D", "AttnUpBlock2D") if spec.attention else ("DownBlock2D", "UpBlock2D")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.integer(seed, "init"))
        network: torch.nn.Module = UNet2DModel(
            sample_size=resolution,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=spec.layers,
            block_out_channels=tuple(spec.channels * multiplier for multiplier in spec.multipliers),
            down_block_types=("DownBlock2D",) * (levels - 1) + (down,),
            up_block_types=(up,) + ("UpBlock2D",) * (levels - 1),
            add_attention=spec.attention,
            norm_num_groups=8,
        )
    return network
