from __future__ import annotations

import pytest
import torch

from hasten.trainers import networks
from hasten.trainers.specs import Unet


def build(seed: int, **fields: object) -> torch.nn.Module:
    spec = Unet.model_validate({"kind": "unet", "channels": 8, **fields})
    return networks.build(spec, resolution=8, channels=1, seed=seed)


def test_weights_are_a_function_of_the_seed_alone() -> None:
    first = build(3).state_dict()
    torch.manual_seed(99)
    torch.rand(10)
    second, other = build(3).state_dict(), build(4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    build(3)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("fields", [{}, {"multipliers": (1,)}, {"attention": True}, {"layers": 2}])
@pytest.mark.parametrize("channels", [1, 3])
def test_prediction_has_the_shape_of_its_input(fields: dict[str, object], channels: int) -> None:
    spec = Unet.model_validate({"kind": "unet", "channels": 8, **fields})
    network = networks.build(spec, resolution=8, channels=channels, seed=0)
    x = torch.randn(2, channels, 8, 8)
    assert network(x, torch.tensor([0, 999])).sample.shape == x.shape
