from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from pydantic import TypeAdapter, ValidationError

from hasten.trainers import randomness
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.models import architectures, networks
from hasten.trainers.models.architectures import NAMED, Architecture, Named, Shape
from hasten.trainers.models.dropout import keep
from hasten.trainers.models.networks import Network

IMAGES = np.arange(70, 78)


def spec(**fields: Any) -> Architecture:
    return TypeAdapter[Architecture](Architecture).validate_python(fields)


UNET = {"kind": "unet", "channels": 8}
DIT = {"kind": "dit", "width": 32, "heads": 2, "depth": 2}
MLP = {"kind": "mlp", "width": 16, "layers": 2}


def build(
    fields: dict[str, Any], *, shape: Shape = (1, 8, 8), classes: int | None = None, seed: int = 3
) -> Network:
    return networks.build(spec(**fields), shape=shape, classes=classes, seed=seed)


def stirred(network: Network) -> Network:
    """With weights that let every input through: a fresh DiT answers zero, whatever it is asked."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data.normal_(std=0.2, generator=generator)
    return network


@pytest.mark.parametrize("fields", [UNET, DIT, MLP])
@pytest.mark.parametrize("classes", [None, 10])
def test_weights_are_a_function_of_the_seed_alone(fields: dict[str, Any], classes: int | None) -> None:
    first = build(fields, classes=classes).state_dict()
    torch.manual_seed(99)
    torch.rand(10)
    second = build(fields, classes=classes).state_dict()
    other = build(fields, classes=classes, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    build(UNET)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("attention", [False, True])
def test_a_unet_starts_with_the_weights_that_it_always_had(attention: bool) -> None:
    """Numbers of earlier versions stay: this is how 0.1.0 made its networks."""
    down, up = ("AttnDownBlock2D", "AttnUpBlock2D") if attention else ("DownBlock2D", "UpBlock2D")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.integer(3, "init"))
        before = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", down),
            up_block_types=(up, "UpBlock2D"),
            add_attention=attention,
            norm_num_groups=8,
        )
    network = build({"kind": "unet", "channels": 16, "attention": attention})
    known = before.state_dict()
    assert known.keys() == network.inner.state_dict().keys()
    assert all(torch.equal(known[name], value) for name, value in network.inner.state_dict().items())
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0, 999])
    assert torch.equal(network(x, t.float()), before(x, t).sample)


@pytest.mark.parametrize(
    "fields",
    [
        UNET,
        {**UNET, "multipliers": (1,)},
        {**UNET, "attention": True, "layers": 2},
        {**UNET, "attention": (8, 4), "scale_shift": True, "resampling": "resnet", "head_dim": None},
        DIT,
        {**DIT, "patch": 4},
        MLP,
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [None, 10])
def test_an_answer_has_the_shape_of_its_input(
    fields: dict[str, Any], channels: int, classes: int | None
) -> None:
    network = build(fields, shape=(channels, 8, 8), classes=classes)
    x = torch.randn(2, channels, 8, 8)
    assert network(x, torch.tensor([0.0, 999.0])).shape == x.shape


def test_a_perceptron_takes_data_of_any_shape() -> None:
    assert build(MLP, shape=(5, 1, 1))(torch.randn(3, 5, 1, 1), torch.ones(3)).shape == (3, 5, 1, 1)


@pytest.mark.parametrize("fields", [UNET, DIT, MLP])
def test_labels_matter_and_none_is_the_last_one(fields: dict[str, Any]) -> None:
    network = stirred(build(fields, classes=10)).eval()
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([1.0, 2.0, 3.0])
    unlabelled = network(x, t)
    assert torch.equal(unlabelled, network(x, t, torch.full((3,), 10)))
    assert not torch.allclose(unlabelled, network(x, t, torch.tensor([0, 1, 2])))
    # Training hides labels elsewhere, where randomness is addressed: the network never does.
    assert torch.equal(network.train()(x, t, torch.tensor([0, 1, 2])), network(x, t, torch.tensor([0, 1, 2])))


@pytest.mark.parametrize("fields", [UNET, DIT, MLP])
def test_every_condition_is_seen(fields: dict[str, Any]) -> None:
    """DDPM's and flow's hundreds, and EDM's quarter logarithms, which differ by a thousandth."""
    network = stirred(build(fields)).eval()
    x = torch.randn(1, 1, 8, 8).expand(4, 1, 8, 8)
    answers = network(x, torch.tensor([1.0, 900.0, -1.5, -1.51])).flatten(1)
    distances = torch.pdist(answers)
    assert (distances > 1e-4).all()


def test_an_untrained_dit_is_silent() -> None:
    """adaLN-Zero: the paper's start, which diffusers leaves to who trains."""
    network = build(DIT)
    assert not network(torch.randn(2, 1, 8, 8), torch.ones(2)).any()
    embeddings = {id(block.norm1.emb) for block in network.inner.transformer_blocks}  # type: ignore[union-attr]
    assert len(embeddings) == 1


# What the papers say, in millions, to the digits that they give.
PUBLISHED = {
    "ddpm-cifar10": (None, 35.7),
    "ddpm-256": (None, 114),
    "adm-64": (1000, 296),
    "dit-s/2": (1000, 33),
    "dit-b/2": (1000, 130),
    "dit-l/2": (1000, 458),
    "dit-xl/2": (1000, 675),
}
OWN = {
    "tiny-8": 159_697,
    "small-28": 1_623_169,
    "ddpm-cifar10": 35_746_307,
    "ddpm-64": 68_793_091,
    "ddpm-256": 113_673_219,
    "adm-64": 295_900_035,
    "unet-latent-32": 258_987_236,
    "dit-s/2": 32_858_896,
    "dit-b/2": 130_303_504,
    "dit-l/2": 457_824_272,
    "dit-xl/2": 674_816_272,
}


@pytest.mark.parametrize("name", NAMED)
def test_named_networks_are_as_large_as_they_say(name: str) -> None:
    classes, published = PUBLISHED.get(name, (None, None))
    found = networks.parameters(Named(kind="named", name=name), shape=NAMED[name].shape, classes=classes)
    assert found == OWN[name]
    if published is not None:
        digits = 1 if published < 100 and published != int(published) else 0
        assert round(found / 1e6, digits) == published


def test_a_dit_differs_from_the_papers_by_its_predicted_variance_alone() -> None:
    """DiT-XL/2's published weights are 675,129,632, with 256 x 1152 fixed positions among them."""
    found = networks.parameters(Named(kind="named", name="dit-xl/2"), shape=(4, 32, 32), classes=1000)
    variance, positions = 16 * 1152 + 16, 256 * 1152
    assert found + variance + positions == 675_129_632


def test_operations_are_the_papers() -> None:
    """6.06 and 118.6 G multiplications with additions an image (arXiv 2212.09748, tables 1 and 4)."""
    small = networks.operations(Named(kind="named", name="dit-s/2"), shape=(4, 32, 32), classes=1000)
    assert small / 1e9 == pytest.approx(6.06, rel=0.01)
    # A dense layer of m inputs and n outputs takes m n of them: the perceptron's, counted by hand.
    width, data = 16, 5
    by_hand = 2 * width * data + (2 + 2 * 3) * width * width
    assert networks.operations(spec(**MLP), shape=(5, 1, 1), classes=None) == by_hand


@pytest.mark.parametrize("fields", [UNET, DIT, MLP])
@pytest.mark.parametrize("classes", [None, 10])
def test_weights_alone_give_the_network_back(fields: dict[str, Any], classes: int | None) -> None:
    network = stirred(build(fields, classes=classes)).eval()
    loaded = networks.load(spec(**fields), network.state_dict())
    x, t = torch.randn(2, 1, 8, 8), torch.ones(2)
    assert (loaded.shape, loaded.classes, loaded.training) == ((1, 8, 8), classes, False)
    assert torch.equal(loaded(x, t), network(x, t))
    with pytest.raises(Fault, match="not of this network"):
        networks.load(spec(**(UNET if fields is MLP else MLP)), network.state_dict())


@pytest.mark.parametrize("fields", [UNET, DIT, MLP])
def test_dropout_belongs_to_images(fields: dict[str, Any]) -> None:
    """The same masks for an image in another batch, after other draws, in a copy; others for another."""
    network = stirred(build(fields | {"dropout": 0.3}))
    assert network.has_dropout
    x, t = torch.randn(8, 1, 8, 8), torch.arange(8.0)

    def answers(rows: slice, seed: int = 0, of: Network = network) -> torch.Tensor:
        torch.rand(5)
        of.address(seed=seed, images=IMAGES[rows])
        return of(x[rows], t[rows])

    whole = answers(slice(None))
    torch.testing.assert_close(answers(slice(3, 5)), whole[3:5])
    assert torch.equal(answers(slice(None), of=copy.deepcopy(network)), whole)
    assert not torch.allclose(answers(slice(None), seed=1), whole)
    assert not torch.allclose(network.eval()(x, t), whole)
    assert torch.equal(network(x, t), network(x, t))


def test_dropout_that_nobody_addressed_is_a_mistake() -> None:
    network = build({**MLP, "dropout": 0.5})
    with pytest.raises(RuntimeError, match="addresses"):
        network(torch.randn(2, 1, 8, 8), torch.ones(2))
    assert not build(MLP).has_dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_are_fair_coins(p: float) -> None:
    """Means over all, over images and over elements, and no image, element or layer like another."""
    seeds = torch.arange(1000, dtype=torch.int32) * 3
    mask = keep(seeds, 0, 1024, p).double()
    deviation = math.sqrt(p * (1 - p))
    assert abs(mask.mean() - (1 - p)) < 4 * deviation / 1024
    assert mask.mean(1).std() == pytest.approx(deviation / 32, rel=0.15)
    assert mask.mean(0).std() == pytest.approx(deviation / math.sqrt(1000), rel=0.15)
    alike = torch.corrcoef(mask[:100]).fill_diagonal_(0.0)
    assert alike.abs().max() < 6 / 32
    layers = torch.corrcoef(torch.stack([keep(seeds, layer, 64, p).double().flatten() for layer in range(3)]))
    assert layers.fill_diagonal_(0.0).abs().max() < 6 / math.sqrt(64_000)


def test_dropout_keeps_the_mean() -> None:
    layer = networks.AddressedDropout(0.4, 0).train()
    layer.seeds = torch.arange(500, dtype=torch.int32)
    kept = layer(torch.ones(500, 40))
    assert kept.mean().item() == pytest.approx(1.0, abs=0.03)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.6])


@pytest.mark.parametrize(
    ("fields", "shape", "problem"),
    [
        ({**UNET, "multipliers": (1, 2, 2)}, (1, 6, 6), "6 cannot be halved 2 times"),
        ({**UNET, "attention": (16,)}, (1, 8, 8), "gives resolutions 8, 4, none of them 16"),
        ({**DIT, "patch": 3}, (1, 8, 8), "patches of 3"),
        (UNET, (1, 8, 6), "not square"),
        (MLP, (7, 1, 1), None),
        ({"kind": "named", "name": "ddpm-cifar10"}, (3, 64, 64), None),
        ({"kind": "named", "name": "ddpm-cifar10"}, (3, 28, 28), "28 cannot be halved 3 times"),
    ],
)
def test_data_that_do_not_fit(fields: dict[str, Any], shape: Shape, problem: str | None) -> None:
    found = architectures.fits(spec(**fields), shape)
    assert found is None if problem is None else problem in str(found)
    if problem:
        with pytest.raises(ConfigError, match=r"data\.resolution"):
            build(fields, shape=shape)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "unet", "channels": 8, "groups": 3},
        {"kind": "unet", "channels": 8, "attention": True, "head_dim": 3},
        {"kind": "dit", "width": 32, "heads": 5},
        {"kind": "named", "name": "ddpm-cifar11"},
        {"kind": "mlp", "dropout": 1.0},
    ],
)
def test_impossible_networks_are_refused_before_torch_is_asked(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec(**fields)


def test_a_named_networks_dropout_can_be_changed() -> None:
    assert architectures.resolve(Named(kind="named", name="ddpm-cifar10")).dropout == 0.1  # type: ignore[union-attr]
    changed = architectures.resolve(Named(kind="named", name="ddpm-cifar10", dropout=0.0))
    assert changed == NAMED["ddpm-cifar10"].spec.model_copy(update={"dropout": 0.0})


MODULE = """
import torch
from types import SimpleNamespace

class Good(torch.nn.Module):
    def __init__(self, gain, *, shape, classes):
        super().__init__()
        self.layer = torch.nn.Conv2d(shape[0], shape[0], 1)
        self.drop, self.gain, self.classes = torch.nn.Dropout(0.5), gain, classes

    def forward(self, x, condition, labels=None):
        assert (labels is None) == (self.classes is None)
        return SimpleNamespace(sample=self.drop(self.layer(x)) * self.gain)

class Narrow(Good):
    def forward(self, x, condition, labels=None):
        return x[:, :, 1:]

class Broken(Good):
    def forward(self, x):
        return x

class Odd(Good):
    def forward(self, x, condition, labels=None):
        return {"sample": x}

NotAClass = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "somebodys.py").write_text(MODULE)
    (tmp_path / "unimportable.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "somebodys"


@pytest.mark.parametrize("classes", [None, 10])
def test_a_module_by_import_path(module: str, classes: int | None) -> None:
    fields = {"kind": "import", "path": f"{module}:Good", "arguments": {"gain": 2.0}}
    network = build(fields, shape=(3, 8, 8), classes=classes)
    x, t = torch.randn(2, 3, 8, 8), torch.ones(2)
    assert network(x, t).shape == x.shape
    assert network.training
    # Its own dropout is exact again when the same images come again.
    assert network.has_dropout
    network.address(seed=0, images=IMAGES)
    first = network(x, t)
    network.address(seed=0, images=IMAGES)
    assert torch.equal(network(x, t), first)
    network.address(seed=0, images=IMAGES + 8)
    assert not torch.equal(network(x, t), first)


@pytest.mark.parametrize(
    ("name", "arguments", "key", "problem"),
    [
        ("nobodys:Good", {}, "model.path", "no module 'nobodys'"),
        ("unimportable:Good", {}, "model.path", "ZeroDivisionError"),
        ("somebodys:Missing", {}, "model.path", "no torch.nn.Module class Missing"),
        ("somebodys:NotAClass", {}, "model.path", "no torch.nn.Module class NotAClass"),
        ("somebodys:Good", {"lost": 1}, "model.arguments", "unexpected keyword argument 'lost'"),
        ("somebodys:Narrow", {"gain": 1}, "model.path", r"answers \(2, 1, 8, 8\) with \(2, 1, 7, 8\)"),
        ("somebodys:Broken", {"gain": 1}, "model.path", "TypeError"),
        ("somebodys:Odd", {"gain": 1}, "model.path", "no attribute 'sample'"),
    ],
)
def test_a_module_that_cannot_be_used(
    module: str, name: str, arguments: dict[str, Any], key: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        build({"kind": "import", "path": name, "arguments": arguments})
    assert refused.value.subject == key
