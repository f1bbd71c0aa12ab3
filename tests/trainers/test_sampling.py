from __future__ import annotations

import functools
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from pydantic import TypeAdapter

from hasten.trainers import diffusion, randomness
from hasten.trainers.diffusion import Ddpm, Diffusion, Edm, alphas_bar
from hasten.trainers.errors import ConfigError
from hasten.trainers.generation import sampling, solvers
from hasten.trainers.generation.pictures import contact_sheet
from hasten.trainers.models.networks import Network
from hasten.trainers.process import Process
from hasten.trainers.specs import Sampler

CPU = torch.device("cpu")
SAMPLERS: tuple[Sampler, ...] = ("ddim", "dpm++", "heun")


def process(**fields: Any) -> Diffusion:
    return TypeAdapter[Diffusion](Diffusion).validate_python(fields)


PROCESSES = {
    "linear-epsilon": process(kind="ddpm", schedule="linear"),
    "linear-x0": process(kind="ddpm", schedule="linear", predict="x0"),
    "linear-v": process(kind="ddpm", schedule="linear", predict="v"),
    "cosine-epsilon": process(kind="ddpm"),
    "cosine-x0": process(kind="ddpm", predict="x0"),
    "cosine-v": process(kind="ddpm", predict="v"),
    "shifted": process(kind="ddpm", predict="v", shift=2.0),
    "edm": process(kind="edm"),
    "flow": process(kind="flow"),
    "flow-shifted": process(kind="flow", shift=2.0),
}


class Exact(Network):
    """The best answer there is for data that is N(mean, std^2) in every pixel, for each label its own mean.

    From the processes' definitions and Bayes' rule; of the code under test it uses a chain's alphas only.
    """

    def __init__(self, spec: Diffusion, mean: float, std: float, means: tuple[float, ...] = ()) -> None:
        super().__init__(torch.nn.Linear(1, 1), shape=(1, 4, 4), classes=len(means) or None)
        self.spec, self.std = spec, std
        self.means = torch.tensor([*means, mean], dtype=torch.float64)
        self.alphas_bar = alphas_bar(spec)
        self.asked: list[float] = []

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert condition.shape == (len(x),)
        self.asked.append(float(condition[0]))
        level, spec = self.asked[-1], self.spec
        rows = torch.full((len(x),), len(self.means) - 1) if labels is None else labels
        mean = self.means[rows][:, None, None, None]
        match spec:
            case Ddpm():
                assert level == int(level), "a chain's networks know its own levels only"
                abar = self.alphas_bar[int(level)]
                signal, noise, scale = math.sqrt(abar), math.sqrt(1.0 - abar), 1.0
            case Edm():
                signal, noise = 1.0, math.exp(4.0 * level)
                scale = 1.0 / math.hypot(noise, spec.sigma_data)
            case _:
                signal, noise, scale = 1.0 - level / 1000.0, level / 1000.0, 1.0
        noisy = x.double() / scale
        variance = signal**2 * self.std**2 + noise**2
        clean = mean + signal * self.std**2 / variance * (noisy - signal * mean)
        eps = noise / variance * (noisy - signal * mean)
        match diffusion.prediction(spec):
            case "epsilon":
                answer = eps
            case "x0":
                answer = clean
            case "v":
                answer = signal * eps - noise * clean
            case "velocity":
                answer = eps - clean
            case "edm":
                assert isinstance(spec, Edm)
                skip = spec.sigma_data**2 / (noise**2 + spec.sigma_data**2)
                answer = (clean - skip * noisy) / (noise * spec.sigma_data * scale)
        return answer.float()


def noise(count: int) -> NDArray[np.float32]:
    return randomness.noise(0, "test", np.arange(count), (1, 4, 4))


def sample(network: Exact, count: int, *, steps: int, **arguments: Any) -> NDArray[np.float64]:
    made = sampling.sample(network, Process(network.spec, CPU), noise(count), steps=steps, **arguments)
    assert made.dtype == torch.float32
    assert made.shape == (count, 1, 4, 4)
    return made.double().numpy()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_exact_network_gives_its_data(name: str, sampler: Sampler) -> None:
    """Not only its mean and deviation: the ODE takes noise z to mean + std z, each number to its own.

    A wrong condition, scale, sign or start would show.
    """
    mean, std = 0.2, 0.15
    expected = mean + std * noise(50)
    made = sample(Exact(PROCESSES[name], mean, std), 50, steps=201, sampler=sampler)
    assert np.abs(made - expected).max() < 0.03
    assert made.mean() == pytest.approx(expected.mean(), abs=0.001)
    assert made.std() == pytest.approx(expected.std(), rel=0.06)


@functools.cache
def deviation_error(name: str, sampler: Sampler, steps: int) -> float:
    mean, std = 0.2, 0.15
    made = sample(Exact(PROCESSES[name], mean, std), 50, steps=steps, sampler=sampler)
    return float(np.sqrt(np.mean((made - mean - std * noise(50)) ** 2)) / std)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", PROCESSES)
def test_more_steps_come_closer(name: str, sampler: Sampler) -> None:
    """Also where a chain cannot be cut into equal steps: diffusers' own DDIM goes astray at 101 and 201."""
    errors = [deviation_error(name, sampler, steps) for steps in (12, 51, 101)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1


@pytest.mark.parametrize("sampler", ["dpm++", "heun"])
@pytest.mark.parametrize("name", PROCESSES)
def test_second_order_is_worth_it(name: str, sampler: Sampler) -> None:
    """At equal evaluations a second-order solver is closer than DDIM."""
    for steps, share in ((51, 0.7), (101, 0.3)):
        assert deviation_error(name, sampler, steps) < share * deviation_error(name, "ddim", steps)


@pytest.mark.parametrize("name", ["cosine-v", "edm", "flow"])
def test_all_samplers_go_the_same_way(name: str) -> None:
    """From the same noise to the same data, in the limit of many steps."""
    network = Exact(PROCESSES[name], -0.3, 0.2)
    made = [sample(network, 20, steps=401, sampler=sampler) for sampler in SAMPLERS]
    assert np.abs(made[1] - made[0]).max() < 0.02
    assert np.abs(made[2] - made[1]).max() < 0.002


def test_ddim_is_diffusers_to_the_last_bit() -> None:
    """What 0.1.0 computed: earlier scores stay."""
    spec = Ddpm(kind="ddpm")
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        trained_betas=diffusion.betas(spec).astype(np.float32),
        prediction_type="epsilon",
        timestep_spacing="trailing",
        clip_sample=True,
    )
    scheduler.set_timesteps(25)
    network, x = Exact(spec, 0.8, 0.3), torch.from_numpy(noise(20))
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(len(x)).float()), t, x).prev_sample
    assert np.array_equal(sample(network, 20, steps=25), x.clamp(-1.0, 1.0).double().numpy())


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["cosine-epsilon", "edm", "flow"])
def test_an_image_depends_on_its_own_noise_alone(name: str, sampler: Sampler) -> None:
    """More than one chunk, fewer images, another order: the same image for the same noise."""
    network = Exact(PROCESSES[name], 0.1, 0.2)
    whole = sample(network, 300, steps=5, sampler=sampler)
    assert np.array_equal(whole, sample(network, 300, steps=5, sampler=sampler))
    assert np.array_equal(whole[:10], sample(network, 10, steps=5, sampler=sampler))
    order = np.random.default_rng(0).permutation(300)
    shuffled = sampling.sample(
        network, Process(network.spec, CPU), noise(300)[order], steps=5, sampler=sampler
    )
    assert np.array_equal(whole[order], shuffled.double().numpy())


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["cosine-epsilon", "edm", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 7, 25])
def test_steps_are_network_evaluations(name: str, sampler: Sampler, steps: int) -> None:
    """Heun's method cannot use an even one: it evaluates twice a step but for the last."""
    network = Exact(PROCESSES[name], 0.0, 0.2)
    sample(network, 2, steps=steps, sampler=sampler)
    assert len(network.asked) == (steps if sampler != "heun" or steps % 2 else steps - 1)
    # From most noise downwards; Heun's looks at each level twice.
    assert network.asked == sorted(network.asked, reverse=True)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_chain_has_no_more_steps_than_levels(sampler: Sampler) -> None:
    network = Exact(process(kind="ddpm", timesteps=10), 0.0, 0.2)
    sample(network, 2, steps=50, sampler=sampler)
    assert set(network.asked) == set(range(10))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", PROCESSES)
def test_only_images_are_clipped(name: str, sampler: Sampler) -> None:
    network = Exact(PROCESSES[name], 3.0, 0.2)
    assert np.abs(sample(network, 5, steps=9, sampler=sampler)).max() <= 1.0
    assert sample(network, 5, steps=101, sampler=sampler, clip=False).mean() == pytest.approx(3.0, abs=0.15)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["cosine-epsilon", "cosine-v", "edm", "flow"])
def test_guidance_pushes_past_the_class(name: str, sampler: Sampler) -> None:
    """With normal classes of one deviation, guidance w goes to mean_none + w (mean_class - mean_none)."""
    network = Exact(PROCESSES[name], 0.0, 0.1, means=(0.2, -0.1))
    labels = np.arange(40) % 2
    for guidance in (0.0, 2.0):
        made = sample(network, 40, steps=75, sampler=sampler, labels=labels, guidance=guidance)
        expected = guidance * np.array([0.2, -0.1])[labels]
        assert (
            np.abs(made.mean(axis=(1, 2, 3)) - expected - 0.1 * noise(40).mean(axis=(1, 2, 3))).max() < 0.02
        )
    unlabelled = sample(network, 40, steps=15, sampler=sampler)
    none = sample(network, 40, steps=15, sampler=sampler, labels=np.full(40, 2))
    assert np.array_equal(unlabelled, none)


def test_guidance_evaluates_both_at_once() -> None:
    network = Exact(PROCESSES["flow"], 0.0, 0.1, means=(0.2,))
    sample(network, 4, steps=9, labels=np.zeros(4, dtype=np.int64), guidance=3.0)
    assert len(network.asked) == 9


@pytest.mark.parametrize(
    ("means", "arguments", "subject"),
    [
        ((), {"guidance": 2.0}, "guidance"),
        ((), {"labels": np.zeros(4, dtype=np.int64)}, "label"),
        ((0.1,), {"guidance": 2.0}, "guidance"),
        ((0.1,), {"labels": np.array([0, 1, 2, 0])}, "label"),
        ((0.1,), {"labels": np.array([0, -1, 0, 0])}, "label"),
    ],
)
def test_what_a_network_does_not_know_is_refused(
    means: tuple[float, ...], arguments: dict[str, Any], subject: str
) -> None:
    network = Exact(PROCESSES["flow"], 0.0, 0.1, means=means)
    with pytest.raises(ConfigError) as refused:
        sample(network, 4, steps=3, **arguments)
    assert refused.value.subject == subject
    assert not network.asked


def test_no_noise_no_samples() -> None:
    assert sample(Exact(PROCESSES["flow"], 0.0, 0.2), 0, steps=5).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_exported_scheduler_has_the_training_chain(schedule: Literal["linear", "cosine"]) -> None:
    spec = Ddpm(kind="ddpm", schedule=schedule)
    ours = solvers.exported(spec)
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


def test_contact_sheet_gives_every_class_a_column() -> None:
    labels = np.array([7, 3, 7, 7, 3])
    sheet = contact_sheet(tiles(5), labels=labels, padding=0, smallest_tile=8)
    assert sheet[::8, ::8, 0].tolist() == [[2, 1], [5, 3], [96, 4]]


def test_no_images_no_sheet() -> None:
    assert contact_sheet(tiles(0)).shape == (2, 2, 3)
