"""The port through which a training run tells the outside world about itself.

``hasten.platform.tracking`` implements it for MLflow. Every call returns at once: an
implementation queues what it is given and never makes the training thread wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

EndStatus = Literal["finished", "failed", "stopped"]

# Metric names, as the tracking server shows them. ``step`` is always images seen.
TRAIN_LOSS: Final = "train/loss"
TRAIN_LR: Final = "train/lr"
TRAIN_BETA1: Final = "train/beta1"
TRAIN_GRAD_NORM: Final = "train/grad_norm"
EVAL_LOSS: Final = "eval/loss"
EVAL_EXCESS: Final = "eval/excess_loss"
EVAL_FRECHET: Final = "eval/frechet"
IMAGES_PER_SECOND: Final = "perf/images_per_second"
SECONDS: Final = "perf/seconds"  # of training so far, over all attempts
FIXED_NOISE_GRID: Final = "samples/fixed_noise"
LOSS_BY_TIMESTEP: Final = "eval/loss_by_timestep.json"
RESOLVED_CONFIG: Final = "config/resolved.yaml"


class Tracker(Protocol):
    """Where one run's metrics, images and small files go."""

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Record ``values`` at ``step`` images seen. The same key and step twice counts once."""

    def image(self, key: str, image: NDArray[np.uint8], *, step: int) -> None:
        """Record an RGB image of shape (height, width, 3) under ``key`` at ``step`` images seen."""

    def artifact(self, path: str, content: bytes) -> None:
        """Record a small file under a slash-separated ``path``."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags on the run; a later value replaces an earlier one."""

    def close(self, status: EndStatus) -> None:
        """Say how the run ended, and wait a bounded time until everything queued has arrived."""


class NullTracker:
    """Keeps nothing: ranks other than 0, and runs that nobody watches."""

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        pass

    def image(self, key: str, image: NDArray[np.uint8], *, step: int) -> None:
        pass

    def artifact(self, path: str, content: bytes) -> None:
        pass

    def tags(self, values: Mapping[str, str]) -> None:
        pass

    def close(self, status: EndStatus) -> None:
        pass
