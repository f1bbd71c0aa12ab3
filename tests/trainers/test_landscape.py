"""Curvature of losses whose curvature is known, and the bound that it is held against."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hasten.trainers import momentum, randomness
from hasten.trainers.analyses import landscape, probe
from hasten.trainers.diffusion import Ddpm
from hasten.trainers.errors import Fault
from hasten.trainers.models import networks
from hasten.trainers.models.architectures import Dit, Mlp, Unet
from hasten.trainers.momentum import Mdlrc
from hasten.trainers.process import Process

CPU = torch.device("cpu")
PROCESS = Process(Ddpm(kind="ddpm", timesteps=100), CPU)


class Linear(networks.Network):
    """Answers W x: the Hessian of its mean squared error is known."""

    def __init__(self, size: int) -> None:
        super().__init__(torch.nn.Linear(size, size, bias=False), shape=(size, 1, 1), classes=None)

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        del condition, labels
        return self.inner(x.flatten(1)).reshape(x.shape)


def given(shape: tuple[int, int, int], count: int = 12) -> probe.Task:
    clean = torch.from_numpy(0.5 * randomness.noise(0, "images", np.arange(count), shape))
    weight = torch.linspace(0.5, 2.0, count)
    t = probe.spread(0, 100, count, seed=0, stream="t")
    return probe.task(PROCESS, clean, t, seed=0, stream="noise", weight=weight)


def linear_hessian(task: probe.Task) -> np.ndarray:
    """Of the mean of weight * |W x - answer|^2 / D: (2/D) mean(weight x x^T), once for each row of W."""
    x = task.x.flatten(1).double().numpy()
    block = 2.0 / x.shape[1] * (x.T * task.weight.numpy()) @ x / len(x)
    return np.kron(np.eye(x.shape[1]), block)


def mlp() -> networks.Network:
    network = networks.build(Mlp(kind="mlp", width=6, layers=1), shape=(3, 1, 1), classes=None, seed=0)
    # The last layer starts at zero, where much of the Hessian is zero too.
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(weight.numel()))
    return network.eval()


def dense_hessian(network: networks.Network, task: probe.Task) -> np.ndarray:
    size = sum(weight.numel() for weight in network.parameters())
    columns = [landscape.hessian_product(network, task, row) for row in torch.eye(size)]
    return torch.stack(columns).double().numpy()


def test_the_largest_eigenvalue_of_a_linear_network_is_the_closed_form() -> None:
    task = given((4, 1, 1))
    found = landscape.largest_eigenvalue(Linear(4), task)
    assert found.value == pytest.approx(np.linalg.eigvalsh(linear_hessian(task))[-1], rel=1e-4)
    assert found.residual < landscape.TOLERANCE
    assert found.products > 0


def test_the_preconditioned_eigenvalue_is_that_of_the_scaled_hessian() -> None:
    task, diagonal = given((4, 1, 1)), torch.linspace(0.01, 3.0, 16)
    found = landscape.largest_eigenvalue(Linear(4), task, diagonal=diagonal)
    root = 1.0 / np.sqrt(diagonal.double().numpy())
    scaled = root[:, None] * linear_hessian(task) * root
    assert found.value == pytest.approx(np.linalg.eigvalsh(scaled)[-1], rel=1e-4)
    assert found.residual < landscape.TOLERANCE


def test_products_are_those_of_the_second_derivative() -> None:
    """Against finite differences of the gradient, in a network that is not linear in its weights."""
    network, task = mlp(), given((3, 1, 1))
    weights = list(network.parameters())
    size = sum(weight.numel() for weight in weights)
    direction = torch.from_numpy(randomness.noise(3, "d", np.zeros(1, np.int64), (size,))[0])

    def gradient(shift: float) -> torch.Tensor:
        moved = copy.deepcopy(network)
        flat = torch.nn.utils.parameters_to_vector(moved.parameters()).detach() + shift * direction
        torch.nn.utils.vector_to_parameters(flat, moved.parameters())
        loss = (task.weight * probe.errors(moved, task)).mean()
        return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(moved.parameters()))])

    expected = (gradient(1e-3) - gradient(-1e-3)) / 2e-3
    found = landscape.hessian_product(network, task, direction)
    assert torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())
    dense = dense_hessian(network, task)
    top = landscape.largest_eigenvalue(network, task, seed=4)
    assert top.value == pytest.approx(np.linalg.eigvalsh((dense + dense.T) / 2)[-1], rel=1e-3)


def test_the_eigenvalue_is_the_same_twice_and_hardly_depends_on_the_start() -> None:
    network, task = mlp(), given((3, 1, 1))
    first, again = (landscape.largest_eigenvalue(network, task, seed=0) for _ in range(2))
    assert first == again
    assert landscape.largest_eigenvalue(network, task, seed=1).value == pytest.approx(first.value, rel=1e-3)


def test_images_beyond_a_chunk_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, task = mlp(), given((3, 1, 1))
    whole = landscape.largest_eigenvalue(network, task).value
    monkeypatch.setattr(landscape, "_CHUNK", 5)
    assert landscape.largest_eigenvalue(network, task).value == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(
    "spec",
    [
        Unet(kind="unet", channels=8, multipliers=(1,), attention=True),
        Dit(kind="dit", patch=2, width=8, heads=2, depth=1),
    ],
    ids=["unet with attention", "dit"],
)
def test_networks_with_attention_have_second_derivatives(spec: Unet | Dit) -> None:
    network = networks.build(spec, shape=(1, 4, 4), classes=None, seed=0).eval()
    found = landscape.largest_eigenvalue(network, given((1, 4, 4), count=4))
    assert found.value > 0.0
    assert found.residual < landscape.TOLERANCE


def test_what_does_not_converge_is_a_fault_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landscape, "_RESTARTS", 1)
    monkeypatch.setattr(landscape, "_BASIS", 2)
    with pytest.raises(Fault, match="not known to 1e-12 after"):
        landscape.largest_eigenvalue(mlp(), given((3, 1, 1)), tolerance=1e-12)


def test_the_bound_is_the_tables_of_the_method() -> None:
    """method.md 2.2.4: 38/lr at 0.9; without compensation 20, 5.6, 2; with it 36.4, 29.5, 20."""
    assert landscape.stability_bound(1.0, 0.9) == pytest.approx(38.0)
    spec = Mdlrc(kind="mdlrc")
    for tau, alone, compensated in ((0.5, 20.0, 36.4), (0.9, 5.6, 29.5), (1.0, 2.0, 20.0)):
        beta, factor = momentum.at(spec, tau)
        assert landscape.stability_bound(1.0, beta) == pytest.approx(alone, abs=0.05)
        assert landscape.stability_bound(factor, beta) == pytest.approx(compensated, abs=0.05)
    assert landscape.stability_bound(0.1, 0.9, "heavy_ball") == pytest.approx(38.0)


@pytest.mark.parametrize(("share", "stable"), [(0.97, True), (1.03, False)])
@pytest.mark.parametrize("optimizer", ["adam", "average", "heavy ball"])
def test_optimizers_are_stable_below_the_bound_and_not_above(
    optimizer: str, share: float, stable: bool
) -> None:
    """A quadratic in one weight whose curvature is ``share`` of the bound; P is frozen for Adam."""
    lr, beta, steps = 0.1, 0.8, 400
    convention = "heavy_ball" if optimizer == "heavy ball" else "average"
    preconditioner = 3.0 if optimizer == "adam" else 1.0
    curvature = share * landscape.stability_bound(lr, beta, convention) * preconditioner
    weight, velocity = 1e-3, 0.0
    for _ in range(steps):
        fresh = curvature * weight * (1.0 if convention == "heavy_ball" else 1.0 - beta)
        velocity = beta * velocity + fresh
        weight -= lr * velocity / preconditioner
    assert (abs(weight) < 1e-3) == stable


def test_the_metric_is_the_step_that_adam_takes() -> None:
    """Adam moves by -lr m / P: P read from its state must reproduce its own next step."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    other = torch.nn.Parameter(torch.tensor([[3.0]]))
    optimizer = torch.optim.AdamW([weight, other], lr=0.01, betas=(0.7, 0.9), weight_decay=0.0, eps=1e-3)
    before: list[torch.Tensor] = []
    for step in range(3):
        before = [each.detach().clone() for each in (weight, other)]
        optimizer.zero_grad()
        ((weight**2).sum() * (step + 1) + other.sum() ** 3).backward()
        optimizer.step()
    found = landscape.metric(optimizer.state_dict(), "average")
    averages = torch.cat([optimizer.state[each]["exp_avg"].flatten() for each in (weight, other)])
    moved = torch.cat(
        [(after.detach() - old).flatten() for after, old in zip((weight, other), before, strict=True)]
    )
    assert found.diagonal is not None
    assert torch.allclose(-found.lr * averages / found.diagonal, moved, rtol=1e-4)
    assert (found.lr, found.beta) == (0.01, 0.7)
    assert found.bound == pytest.approx(3.4 / (0.3 * 0.01))


def test_sgd_has_no_preconditioner_and_the_bound_of_its_convention() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    found = landscape.metric(optimizer.state_dict(), "heavy_ball")
    assert found.diagonal is None
    assert found.bound == pytest.approx(38.0)


def test_a_lines_ends_are_the_networks_losses_and_its_barrier_stands_above_the_chord() -> None:
    first, second = mlp(), mlp()
    for weight in second.parameters():
        weight.data.mul_(-1.0)
    task = given((3, 1, 1))
    line = landscape.interpolate(first, first.state_dict(), second.state_dict(), task, points=11)
    for network, loss in ((first, line.losses[0]), (second, line.losses[-1])):
        expected = (task.weight * probe.errors(network, task)).mean().item()
        assert loss == pytest.approx(expected, rel=1e-6)
    chord = np.interp(line.fractions, [0.0, 1.0], [line.losses[0], line.losses[-1]])
    above = np.array(line.losses) - chord
    assert line.barrier.mean == pytest.approx(above.max(), abs=1e-9)
    assert line.place == line.fractions[int(above.argmax())]


def test_a_convex_loss_has_no_barrier_and_a_hill_has_its_height() -> None:
    network, task = Linear(3), given((3, 1, 1))
    weights = network.state_dict()
    far = weights | {"inner.weight": weights["inner.weight"] + 1.0}
    line = landscape.interpolate(network, weights, far, task, points=5)
    assert line.barrier.mean == pytest.approx(0.0, abs=1e-7)
    assert line.place in (0.0, 1.0)
    assert all(torch.equal(network.state_dict()[name], weights[name]) for name in weights)


class Hill(Linear):
    """Answers with its task's noise plus 4 w (1 - w): the loss along w from 0 to 1 is a hill of height 1."""

    def __init__(self, task: probe.Task) -> None:
        super().__init__(1)
        self.task = task

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        del x, condition, labels
        weight = self.inner.weight
        return self.task.answer + 4.0 * weight * (1.0 - weight)


def test_the_height_of_a_hill() -> None:
    task = given((1, 1, 1))
    network = Hill(task)
    low, high = (network.state_dict() | {"inner.weight": torch.full((1, 1), value)} for value in (0.0, 1.0))
    line = landscape.interpolate(network, low, high, task, points=21)
    assert line.place == 0.5
    assert line.barrier.mean == pytest.approx(task.weight.mean().item())
