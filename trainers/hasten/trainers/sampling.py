"""Images from noise: DDIM (arXiv 2010.02502) with diffusers' scheduler."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray

from hasten.trainers import diffusion
from hasten.trainers.diffusion import Diffusion

_CHUNK = 256


def scheduler(spec: Diffusion) -> DDIMScheduler:
    """diffusers' DDIM scheduler for this forward process, as exported with a model."""
    return DDIMScheduler(
        num_train_timesteps=spec.timesteps,
        trained_betas=diffusion.betas(spec).astype(np.float32),
        prediction_type=spec.predict,
        timestep_spacing="trailing",
        clip_sample=True,
    )


@torch.no_grad()
def sample(
    network: torch.nn.Module, spec: Diffusion, noise: NDArray[np.float32], *, steps: int
) -> torch.Tensor:
    """Deterministic samples, uint8 of noise's shape (N, C, H, W), on the network's device.

    ``steps`` is the number of network evaluations an image, at most the length of the chain.
    """
    device = next(network.parameters()).device
    ddim = scheduler(spec)
    ddim.set_timesteps(min(steps, spec.timesteps), device=device)
    chunks = []
    for start in range(0, len(noise), _CHUNK):
        x = torch.from_numpy(noise[start : start + _CHUNK]).to(device)
        for t in ddim.timesteps:
            x = ddim.step(network(x, t.expand(len(x))).sample, t, x).prev_sample
        chunks.append(((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8))
    return torch.cat(chunks) if chunks else torch.empty(noise.shape, dtype=torch.uint8, device=device)


def contact_sheet(
    images: NDArray[np.uint8], *, padding: int = 2, smallest_tile: int = 64
) -> NDArray[np.uint8]:
    """One RGB picture (height, width, 3) of images (N, C, H, W), C = 1 or 3, as square as it goes.

    Small images are enlarged by whole factors without smoothing, and set apart: digits touch their edges.
    """
    count, channels, height, width = images.shape
    scale = max(1, -(-smallest_tile // height))
    tiles = images.repeat(scale, axis=2).repeat(scale, axis=3)
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    cell_height, cell_width = height * scale + padding, width * scale + padding
    sheet = np.full((rows * cell_height + padding, columns * cell_width + padding, 3), 96, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top = padding + (index // columns) * cell_height
        left = padding + (index % columns) * cell_width
        pixels = np.broadcast_to(
            tile.transpose(1, 2, 0), (height * scale, width * scale, 3 if channels == 1 else channels)
        )
        sheet[top : top + height * scale, left : left + width * scale] = pixels
    return sheet
