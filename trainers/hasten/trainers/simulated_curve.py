"""A made-up learning curve, in which a search has something to find: what a simulated run reports.

    loss(p) = floor + (begin - floor) exp(-E(p))          p = progress
    floor   = final (1 + 0.05 ln(lr / best_lr)^2)         the optimizer's rate has a best value
    E(p)    = rate (p + 0.5 bell S(p))                    and so has the centre of CLTS:
    S(p)    = integral over [0, p] of the curriculum's share, bell = exp(-(mu - best_mu)^2 / 0.08)

Half of the noise is shared by all runs of a seed at equal images. The other half is addressed by what has
told a run from others by then: runs whose schedules agree until some progress agree until there to the last
bit, as real ones do.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hasten.trainers import curriculum, diffusion, learning_rate, momentum, randomness
from hasten.trainers.curriculum import Clts, Static
from hasten.trainers.job import Job
from hasten.trainers.models.architectures import Simulated
from hasten.trainers.specs import RunSpec

Array = NDArray[np.float64]

_BOWL: Final = 0.05  # how much worse a wrong learning rate ends
_GAIN: Final = 0.5  # how much faster the best curriculum learns
_WIDTH: Final = 0.2  # of the range of good centres
_SPREAD: Final = 0.3  # of the difficulty of groups of held-out images, on a logarithmic scale
_GRID: Final = 50  # points of the integral of the curriculum's share
_SIDE: Final = 32  # pixels of a sheet of samples


class Curve:
    """What a run would measure after some images, as a function of its settings."""

    def __init__(self, job: Job) -> None:
        self.spec, self._model = job.spec, model_of(job.spec)
        self._total = job.spec.budget.images
        density = curriculum.density(job.spec.curriculum, diffusion.alphas_bar(job.spec.diffusion))
        self._density = hashlib.sha256(density.tobytes()).hexdigest()
        fields = job.spec.identity(job.data_digest)
        if not curriculum.adaptive(job.spec.curriculum):
            del fields["curriculum"]
        del fields["momentum"], fields["optimizer"]["schedule"]
        self._constant = json.dumps(fields, sort_keys=True)

    def loss(self, images: int, begun: tuple[int, float]) -> float:
        """The held-out loss without noise; ``begun``: where these settings took over, and the loss there."""
        floor = self._model.final * (
            1.0 + _BOWL * math.log(self.spec.optimizer.lr / self._model.best_lr) ** 2
        )
        since, begin = begun
        exponent = self._exponent(images / self._total) - self._exponent(since / self._total)
        return floor + (begin - floor) * math.exp(-exponent)

    def _exponent(self, progress: float) -> float:
        spec, bell = self.spec.curriculum, 0.0
        if isinstance(spec, Clts | Static):
            bell = math.exp(-((spec.mu - self._model.best_mu) ** 2) / (2.0 * _WIDTH**2))
        # By the midpoint rule.
        shares = [curriculum.share(spec, progress * (cell + 0.5) / _GRID) for cell in range(_GRID)]
        return self._model.rate * progress * (1.0 + _GAIN * bell * sum(shares) / _GRID)

    def train_loss(self, images: int, loss: float) -> float:
        """The loss of training, where the held-out one is ``loss``."""
        return loss * math.exp(0.1 * self._own("train", images, 1)[0])

    def frechet(self, images: int, loss: float) -> float:
        """The distance of samples from the data."""
        noise = self._shared("frechet", images, 1)[0] + self._own("frechet", images, 1)[0]
        return float(2.0 * max(loss - 0.5 * self._model.final, 0.0) * math.exp(0.02 * noise))

    def items(self, images: int, loss: float) -> Array:
        """The held-out error of each group of images: some are always harder, and noise comes on top."""
        count, noise = self._model.items, self._model.noise
        difficulty = np.exp(_SPREAD * _normal(0, "simulated/difficulty", 0, count))
        trembling = self._shared("loss", images, 1) + self._own("loss", images, 1)
        scatter = self._shared("items", images, count) + self._own("items", images, count)
        errors = (loss + noise * trembling) * difficulty / difficulty.mean() + noise * scatter
        return np.asarray(np.maximum(errors, 0.0))

    def sheet(self, images: int) -> NDArray[np.uint8]:
        """Noise out of which a disc appears, shape (32, 32, 3)."""
        progress = images / self._total
        noise = _normal(self.spec.budget.seed, "simulated/sheet", 0, _SIDE * _SIDE).reshape(_SIDE, _SIDE)
        y, x = np.mgrid[:_SIDE, :_SIDE] - (_SIDE - 1) / 2
        disc = np.where(np.hypot(x, y) < _SIDE / 3, 1.0, 0.0)
        grey = np.clip(progress * disc + (1.0 - progress) * (0.5 + 0.25 * noise), 0.0, 1.0)
        return np.repeat((255 * grey).astype(np.uint8)[:, :, None], 3, axis=2)

    def _shared(self, stream: str, images: int, count: int) -> Array:
        return _normal(self.spec.budget.seed, f"simulated/{stream}", images, count)

    def _own(self, stream: str, images: int, count: int) -> Array:
        """Noise addressed by all that had a part in the last update."""
        progress = max(images - self.spec.optimizer.batch, 0) / self._total
        share = curriculum.share(self.spec.curriculum, progress)
        now = (
            self._constant,
            momentum.at(self.spec.momentum, progress),
            learning_rate.factor(self.spec.optimizer.schedule, progress),
            (share, self._density) if share else None,
        )
        told = hashlib.sha256(repr(now).encode()).hexdigest()
        return _normal(self.spec.budget.seed, f"simulated/{stream}/{told}", images, count)


def model_of(spec: RunSpec) -> Simulated:
    assert isinstance(spec.model, Simulated), "only a simulated run has a made-up curve"
    return spec.model


def _normal(seed: int, stream: str, address: int, count: int) -> Array:
    """``count`` standard normal numbers that belong to an address."""
    return np.asarray(randomness.noise(seed, stream, np.array([address]), (count,))[0], dtype=np.float64)
