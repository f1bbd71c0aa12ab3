from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.trainers import loss
from hasten.trainers.curriculum import Clts
from hasten.trainers.diffusion import Ddpm, Edm
from hasten.trainers.loss import LossWeights
from hasten.trainers.process import Process
from hasten.trainers.weighting import MinSnr, Twin, Unweighted

CPU = torch.device("cpu")


class Linear(torch.nn.Module):
    """Answers with a linear map of the flattened input, and remembers how much it was shown at once."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 16).reshape(4, 4))
        self.shown: list[int] = []

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.shown.append(len(x))
        shift = 0.0 if labels is None else labels[:, None].float()
        return x @ self.weight + condition[:, None] + shift


def gradient(
    micro_batch: int, labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, Linear]:
    generator = torch.Generator().manual_seed(0)
    model = Linear()
    x, answer = torch.randn(7, 4, generator=generator), torch.randn(7, 4, generator=generator)
    condition, weight = torch.rand(7, generator=generator), torch.rand(7, generator=generator)
    parts: list[slice] = []
    error = loss.backward(
        model,
        x,
        condition,
        labels,
        answer,
        weight,
        prepare=parts.append,
        divisor=3.5,
        micro_batch=micro_batch,
        bf16=False,
    )
    assert len(parts) == len(model.shown)
    expected = (model(x, condition, labels) - answer).square().mean(dim=1)
    torch.testing.assert_close(error, expected.detach())
    (expected * weight).sum().div(3.5).backward(inputs=[other := model.weight])
    assert other.grad is not None
    # The second backward pass doubled the gradient that the first one left.
    return other.grad / 2.0, expected.detach(), model


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7, 100])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro_batch: int) -> None:
    whole, _, _ = gradient(7)
    split, _, model = gradient(micro_batch)
    torch.testing.assert_close(split, whole)
    assert max(model.shown[:-1]) <= micro_batch


def test_labels_are_split_with_their_images() -> None:
    labels = torch.arange(7)
    torch.testing.assert_close(gradient(2, labels)[0], gradient(7, labels)[0])


def test_constant_weights_are_made_once_and_a_twin_moves() -> None:
    process = Process(Ddpm(kind="ddpm"), CPU)
    plain = LossWeights(Unweighted(kind="none"), process, CPU)
    assert plain.at(0.0) is plain.at(1.0)
    assert torch.equal(plain.at(0.5), torch.ones(1000))
    twin = LossWeights(Twin(kind="twin", of=Clts(kind="clts", sigma=0.2)), process, CPU)
    assert torch.equal(twin.at(0.0), torch.ones(1000))
    assert twin.at(1.0)[300] > 2.0 > twin.at(1.0)[900]


def test_weights_know_the_prediction_and_the_data() -> None:
    snr = MinSnr(kind="min_snr", gamma=5.0)
    edm = Edm(kind="edm", sigma_data=0.25)
    table = LossWeights(snr, Process(edm, CPU), CPU).at(0.0).numpy()
    sigma = Process(edm, CPU).levels.noise
    in_eps = np.minimum(sigma**-2.0, 5.0) * sigma**2
    assert table == pytest.approx(in_eps * 0.0625 / (sigma**2 + 0.0625), rel=1e-5)
