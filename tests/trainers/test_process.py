from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.trainers import diffusion
from hasten.trainers.diffusion import Ddpm, Diffusion, Edm, Flow
from hasten.trainers.process import Process

PROCESSES: dict[str, Diffusion] = {
    "epsilon": Ddpm(kind="ddpm", predict="epsilon"),
    "x0": Ddpm(kind="ddpm", predict="x0"),
    "v": Ddpm(kind="ddpm", predict="v"),
    "linear": Ddpm(kind="ddpm", schedule="linear", predict="v", timesteps=200),
    "shifted": Ddpm(kind="ddpm", predict="v", shift=4.0),
    "edm": Edm(kind="edm"),
    "flow": Flow(kind="flow"),
    "shifted flow": Flow(kind="flow", shift=3.0),
}


@pytest.fixture(params=PROCESSES.values(), ids=PROCESSES.keys())
def process(request: pytest.FixtureRequest) -> Process:
    return Process(request.param, torch.device("cpu"))


def test_answers_give_back_image_and_noise(process: Process) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, eps = (torch.randn(64, 1, 4, 4, generator=generator) for _ in range(2))
    t = torch.randint(0, len(process.levels), (64,), generator=generator)
    seen, condition, answer = process.corrupt(clean, eps, t)
    assert condition.shape == (64,)
    # x0 prediction leaves eps badly determined at little noise, and eps prediction x_0 at much noise:
    # the arithmetic is exact up to the float32 rounding that the tables' own ratio magnifies.
    to_eps = torch.from_numpy(process.levels.epsilon_error)[t].float()[:, None, None, None]
    assert ((process.epsilon(answer, seen, t) - eps).abs() <= 1e-5 * (1.0 + to_eps)).all()
    ratio = torch.from_numpy(np.abs(process.levels.noise / process.levels.determinant))[t].float()
    assert ((process.clean(answer, seen, t) - clean).abs() <= 1e-5 * (1.0 + ratio[:, None, None, None])).all()


def test_an_answer_speaks_of_the_image_that_it_was_made_of(process: Process) -> None:
    clean, eps = torch.full((3, 2), 0.25), torch.full((3, 2), -1.5)
    t = torch.tensor([0, len(process.levels) // 2, len(process.levels) - 1])
    seen, _, answer = process.corrupt(clean, eps, t)
    torch.testing.assert_close(process.answer(clean, seen, t), answer, rtol=1e-3, atol=1e-3)


def test_levels_go_from_little_noise_to_much(process: Process) -> None:
    tables = process.levels
    assert (np.diff(tables.alphas_bar) < 0.0).all()
    assert ((tables.alphas_bar > 0.0) & (tables.alphas_bar < 1.0)).all()
    assert tables.alphas_bar[0] > 0.99
    assert tables.alphas_bar[-1] < 0.01
    assert diffusion.alphas_bar(process.spec) == pytest.approx(tables.alphas_bar)


def test_epsilon_prediction_asks_for_the_noise_itself() -> None:
    process = Process(PROCESSES["epsilon"], torch.device("cpu"))
    clean, eps = torch.randn(8, 1, 2, 2), torch.randn(8, 1, 2, 2)
    t = torch.arange(8) * 100
    _, condition, answer = process.corrupt(clean, eps, t)
    assert torch.equal(answer, eps)
    assert torch.equal(condition, t.float())


def test_edm_is_its_papers_table_1() -> None:
    """c_skip, c_out, c_in and c_noise at sigma, put together again as D(x) = c_skip x + c_out F."""
    spec = Edm(kind="edm", sigma_data=0.7)
    tables = diffusion.levels(spec)
    sigma, data = tables.noise, spec.sigma_data
    c_skip = data**2 / (sigma**2 + data**2)
    c_out = sigma * data / np.sqrt(sigma**2 + data**2)
    clean, eps = 0.3, -1.1
    answer = tables.clean * clean + tables.eps * eps
    assert c_skip * (clean + sigma * eps) + c_out * answer == pytest.approx(np.full_like(sigma, clean))
    assert tables.scale == pytest.approx(1.0 / np.sqrt(sigma**2 + data**2))
    assert tables.condition == pytest.approx(np.log(sigma) / 4.0)
    assert (sigma[0], sigma[-1]) == pytest.approx((0.002, 80.0))


def test_edms_answers_and_inputs_have_unit_variance() -> None:
    """What the preconditioning is for, for data of variance sigma_data^2 (arXiv 2206.00364, appendix B.6)."""
    tables = diffusion.levels(Edm(kind="edm", sigma_data=0.5))
    assert tables.scale**2 * (0.25 + tables.noise**2) == pytest.approx(np.ones(1000))
    assert tables.clean**2 * 0.25 + tables.eps**2 == pytest.approx(np.ones(1000))


def test_flow_is_a_straight_line() -> None:
    tables = diffusion.levels(PROCESSES["flow"])
    assert tables.signal + tables.noise == pytest.approx(np.ones(1000))
    assert tables.condition == pytest.approx(1000.0 * tables.noise)
    shifted = diffusion.levels(PROCESSES["shifted flow"]).noise
    assert shifted == pytest.approx(3.0 * tables.noise / (1.0 + 2.0 * tables.noise))


def test_a_shift_divides_the_signal_to_noise_ratio_by_its_square() -> None:
    plain = diffusion.alphas_bar(PROCESSES["v"])
    shifted = diffusion.alphas_bar(PROCESSES["shifted"])
    # Not at the very end: there the cosine's bound of 0.999 on beta acts before the shift.
    assert (shifted / (1.0 - shifted))[:-1] == pytest.approx((plain / (1.0 - plain))[:-1] / 16.0)
    betas = diffusion.betas(Ddpm(kind="ddpm", shift=4.0))
    assert ((betas > 0.0) & (betas < 1.0)).all()


@pytest.mark.parametrize("name", ["epsilon", "x0", "v", "edm", "flow"])
def test_errors_of_answers_become_errors_of_eps_at_the_stated_rate(name: str) -> None:
    process = Process(PROCESSES[name], torch.device("cpu"))
    clean, eps = torch.zeros(10, 1), torch.zeros(10, 1)
    t = torch.arange(50, 1000, 100)
    seen, _, answer = process.corrupt(clean, eps, t)
    off = process.epsilon(answer + 1.0, seen, t) - process.epsilon(answer, seen, t)
    assert off.abs()[:, 0].numpy() == pytest.approx(process.levels.epsilon_error[t.numpy()], rel=1e-4)


def test_what_a_process_predicts() -> None:
    assert [diffusion.prediction(spec) for spec in PROCESSES.values()] == [
        "epsilon",
        "x0",
        "v",
        "v",
        "v",
        "edm",
        "velocity",
        "velocity",
    ]
