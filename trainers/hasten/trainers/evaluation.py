"""How good a network is, measured in the same way for every arm.

Fixed held-out images, fixed noise, timesteps uniform over the whole chain, averaged weights. Nothing here
knows the curriculum, the run's seed or the batch size.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.trainers import frechet, randomness, sampling
from hasten.trainers.diffusion import Diffusion
from hasten.trainers.specs import Eval
from hasten.trainers.worker import Worker

SEED: Final = 0  # of the evaluation's own noise: the same for all runs, so that differences are paired
_CHUNK: Final = 256


class Evaluator:
    """Scores networks on one data set.

    Args:
        spec: what to measure.
        diffusion: the forward process.
        alphas_bar: shape (T,).
        train: training images, uint8 (N, C, H, W); the reference of the Fréchet distance.
        held_out: held-out images, uint8 (M, C, H, W).
    """

    def __init__(
        self,
        spec: Eval,
        *,
        diffusion: Diffusion,
        alphas_bar: NDArray[np.float64],
        train: NDArray[np.uint8],
        held_out: NDArray[np.uint8],
        worker: Worker,
    ) -> None:
        self._spec = spec
        self._diffusion = diffusion
        self._alphas_bar = alphas_bar
        self._train = train
        self._held_out = held_out[: spec.loss.images]
        self._worker = worker
        self._shape = train.shape[1:]

    @torch.no_grad()
    def loss(self, network: torch.nn.Module) -> float:
        """Mean squared error of the predicted noise on the held-out images, whatever the loss weighting."""
        count = len(self._held_out)
        places = np.arange(count)[self._worker.share(count)]
        jitter = randomness.uniform(SEED, "eval/timestep", places)
        steps = ((places + jitter) / count * len(self._alphas_bar)).astype(np.int64)
        eps = randomness.noise(SEED, "eval/noise", places, self._shape)
        abar = self._alphas_bar[steps].astype(np.float32)[:, None, None, None]
        clean = self._held_out[places].astype(np.float32) / 127.5 - 1.0
        noisy = np.sqrt(abar) * clean + np.sqrt(1.0 - abar) * eps
        total = torch.zeros((), dtype=torch.float64, device=self._worker.device)
        for start in range(0, len(places), _CHUNK):
            part = slice(start, start + _CHUNK)
            x, t, target = (torch.from_numpy(a[part]).to(self._worker.device) for a in (noisy, steps, eps))
            total += (network(x, t).sample - target).double().square().mean(dim=(1, 2, 3)).sum()
        return self._worker.sum(total).item() / count

    def frechet(self, network: torch.nn.Module) -> float:
        """Fréchet distance of samples to the training images, on pixels scaled to [0, 1]."""
        samples = self._samples(network, self._spec.samples.images, self._spec.samples.steps)
        return frechet.distance(frechet.moments(_features(samples)), self._reference)

    def sheet(self, network: torch.nn.Module) -> NDArray[np.uint8]:
        """Samples from the fixed noise as one RGB picture."""
        return sampling.contact_sheet(self._samples(network, self._spec.grid.images, self._spec.grid.steps))

    @functools.cached_property
    def _reference(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return frechet.moments(_features(self._train))

    def _samples(self, network: torch.nn.Module, count: int, steps: int) -> NDArray[np.uint8]:
        """``count`` samples in order of their noise, each made by one worker and known to all."""
        mine = self._worker.share(count)
        noise = randomness.noise(SEED, "eval/samples", np.arange(count)[mine], self._shape)
        samples = torch.zeros((count, *self._shape), dtype=torch.uint8, device=self._worker.device)
        samples[mine] = sampling.sample(network, self._diffusion, noise, steps=steps)
        return self._worker.sum(samples).cpu().numpy()


def _features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return images.reshape(len(images), -1) / 255.0
