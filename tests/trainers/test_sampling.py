from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch

from hasten.trainers import randomness
from hasten.trainers.diffusion import Ddpm, alphas_bar
from hasten.trainers.sampling import contact_sheet, sample, scheduler


class GaussianNetwork(torch.nn.Module):
    """The exact noise predictor of data that is N(mean, std^2) in every pixel."""

    def __init__(self, spec: Ddpm, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.place = torch.nn.Parameter(torch.zeros(1))
        self.signal = torch.from_numpy(alphas_bar(spec))
        self.asked: list[int] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> SimpleNamespace:
        assert t.shape == (len(x),)
        self.asked.append(int(t[0]))
        abar = self.signal[t].float()[:, None, None, None]
        # x is N(sqrt(abar) mean, abar std^2 + 1 - abar), and eps is jointly Gaussian with it.
        variance = abar * self.std**2 + 1.0 - abar
        return SimpleNamespace(sample=(1.0 - abar).sqrt() * (x - abar.sqrt() * self.mean) / variance)


def ddpm(schedule: Literal["linear", "cosine"] = "cosine", timesteps: int = 1000) -> Ddpm:
    return Ddpm(kind="ddpm", schedule=schedule, timesteps=timesteps)


def noise(count: int, size: int = 8) -> np.ndarray:
    return randomness.noise(0, "test", np.arange(count), (1, size, size))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("mean", "std"), [(0.2, 0.1), (-0.4, 0.15), (0.0, 0.25)])
def test_ddim_samples_an_analytic_gaussian(
    schedule: Literal["linear", "cosine"], mean: float, std: float
) -> None:
    spec = ddpm(schedule)
    samples = sample(GaussianNetwork(spec, mean, std), spec, noise(200), steps=1000)
    assert samples.dtype == torch.uint8
    values = samples.double() / 127.5 - 1.0
    assert values.mean().item() == pytest.approx(mean, abs=0.01)
    assert values.std().item() == pytest.approx(std, rel=0.025)


def test_more_steps_come_closer() -> None:
    spec = ddpm()
    errors = []
    for steps in (5, 25, 125):
        values = sample(GaussianNetwork(spec, 0.0, 0.2), spec, noise(100), steps=steps).double() / 127.5 - 1.0
        errors.append(abs(values.std().item() - 0.2))
    assert errors == sorted(errors, reverse=True)


def test_an_image_depends_on_its_own_noise_alone() -> None:
    """More than one chunk, fewer images, another order: the same image for the same noise."""
    spec, network = ddpm(), GaussianNetwork(ddpm(), 0.1, 0.2)
    whole = sample(network, spec, noise(300), steps=5)
    assert whole.shape == (300, 1, 8, 8)
    assert torch.equal(whole, sample(network, spec, noise(300), steps=5))
    assert torch.equal(whole[:10], sample(network, spec, noise(300)[:10], steps=5))
    order = np.random.default_rng(0).permutation(300)
    assert torch.equal(whole[order], sample(network, spec, noise(300)[order], steps=5))


@pytest.mark.parametrize(("steps", "timesteps", "evaluations"), [(25, 1000, 25), (1, 1000, 1), (50, 10, 10)])
def test_steps_are_network_evaluations(steps: int, timesteps: int, evaluations: int) -> None:
    spec = ddpm(timesteps=timesteps)
    network = GaussianNetwork(spec, 0.0, 0.2)
    sample(network, spec, noise(2), steps=steps)
    assert len(network.asked) == evaluations
    # From pure noise downwards.
    assert network.asked[0] == timesteps - 1
    assert network.asked == sorted(network.asked, reverse=True)


def test_no_noise_no_samples() -> None:
    spec = ddpm()
    empty = sample(GaussianNetwork(spec, 0.0, 0.2), spec, noise(2)[:0], steps=5)
    assert empty.shape == (0, 1, 8, 8)
    assert empty.dtype == torch.uint8


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_scheduler_has_the_training_chain(schedule: Literal["linear", "cosine"]) -> None:
    spec = ddpm(schedule)
    ours = scheduler(spec)
    np.testing.assert_allclose(ours.alphas_cumprod.numpy(), alphas_bar(spec), rtol=2e-4, atol=1e-8)
    assert ours.config.prediction_type == "epsilon"


def tiles(count: int, channels: int = 1, size: int = 8) -> np.ndarray:
    pixels = np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(pixels, (count, channels, size, size))


@pytest.mark.parametrize(
    ("count", "size", "columns", "rows", "tile"),
    [
        (1, 8, 1, 1, 64),
        (2, 8, 2, 1, 64),
        (4, 8, 2, 2, 64),
        (5, 8, 3, 2, 64),
        (36, 8, 6, 6, 64),
        (7, 32, 3, 3, 64),
        (3, 28, 2, 2, 84),
        (2, 64, 2, 1, 64),
        (2, 100, 2, 1, 100),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_contact_sheet_geometry(
    count: int, size: int, columns: int, rows: int, tile: int, channels: int
) -> None:
    sheet = contact_sheet(tiles(count, channels, size))
    padding = 2
    assert sheet.dtype == np.uint8
    assert sheet.shape == (rows * (tile + padding) + padding, columns * (tile + padding) + padding, 3)
    for index in range(count):
        top = padding + (index // columns) * (tile + padding)
        left = padding + (index % columns) * (tile + padding)
        assert (sheet[top : top + tile, left : left + tile] == index + 1).all()
    # Nothing else but the images and what sets them apart.
    assert (sheet != 96).sum() == count * tile * tile * 3
    assert (sheet[0] == 96).all()
    assert (sheet[:, -padding:] == 96).all()


def test_contact_sheet_enlarges_without_smoothing_and_keeps_colours() -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(1, 3, 8, 8), dtype=np.uint8)
    sheet = contact_sheet(images, padding=0, smallest_tile=16)
    np.testing.assert_array_equal(sheet[::2, ::2], images[0].transpose(1, 2, 0))
    np.testing.assert_array_equal(sheet[1::2, 1::2], images[0].transpose(1, 2, 0))
