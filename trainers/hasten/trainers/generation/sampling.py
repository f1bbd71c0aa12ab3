"""Images from noise by a trained network, with or without labels and guidance."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.trainers.errors import ConfigError
from hasten.trainers.generation import solvers
from hasten.trainers.models.networks import Network
from hasten.trainers.process import Process
from hasten.trainers.specs import Sampler

_CHUNK: Final = 256


@torch.no_grad()
def sample(
    network: Network,
    process: Process,
    noise: NDArray[np.float32],
    *,
    steps: int,
    sampler: Sampler = "ddim",
    labels: NDArray[np.int64] | None = None,
    guidance: float = 1.0,
    clip: bool = True,
) -> torch.Tensor:
    """Deterministic samples, float32 of noise's shape (N, C, H, W), on the network's device.

    Args:
        network: predicts what ``process`` says, in evaluation mode.
        process: its forward process.
        noise: standard normal, one block for each sample.
        steps: network evaluations a sample, at most the length of a DDPM chain.
        sampler: how the probability-flow ODE is solved.
        labels: (N,), what each sample shall be of; None is "no label".
        guidance: w in unconditional + w (conditional - unconditional) (arXiv 2207.12598).
        clip: the data are images in [-1, 1], and so are the samples.

    Raises:
        ConfigError: labels or guidance for a network that knows no classes, guidance towards nothing.
    """
    _check(network, labels, guidance)
    device = next(network.parameters()).device
    chunks = []
    for start in range(0, len(noise), _CHUNK):
        part = slice(start, start + _CHUNK)
        wanted = None if labels is None else torch.from_numpy(labels[part]).to(device)
        x = solvers.solve(
            _answer(network, wanted, guidance),
            process.spec,
            torch.from_numpy(noise[part]).to(device),
            steps=steps,
            sampler=sampler,
            clip=clip,
        )
        chunks.append(x.clamp(-1.0, 1.0) if clip else x)
    return torch.cat(chunks) if chunks else torch.empty(noise.shape, dtype=torch.float32, device=device)


def _answer(network: Network, labels: torch.Tensor | None, guidance: float) -> solvers.Answer:
    def plain(x: torch.Tensor, condition: float) -> torch.Tensor:
        answer: torch.Tensor = network(x, torch.full((len(x),), condition, device=x.device), labels)
        return answer.float()

    def guided(x: torch.Tensor, condition: float) -> torch.Tensor:
        assert labels is not None
        both = torch.cat([labels, torch.full_like(labels, network.classes or 0)])
        level = torch.full((2 * len(x),), condition, device=x.device)
        answer: torch.Tensor = network(torch.cat([x, x]), level, both)
        conditional, unconditional = answer.float().chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return plain if guidance == 1.0 else guided


def _check(network: Network, labels: NDArray[np.int64] | None, guidance: float) -> None:
    if network.classes is None:
        if labels is not None or guidance != 1.0:
            what = "label" if labels is not None else "guidance"
            remedy = "Train with -s conditioning.kind=classes on labelled data."
            raise ConfigError(what, "the model knows no classes", remedy)
    elif labels is None:
        if guidance != 1.0:
            raise ConfigError("guidance", "needs labels to guide towards")
    elif len(labels) and not 0 <= labels.min() <= labels.max() <= network.classes:
        strange = labels[(labels < 0) | (labels > network.classes)][0]
        raise ConfigError("label", f"{strange} is not one of the model's, 0 to {network.classes - 1}")
