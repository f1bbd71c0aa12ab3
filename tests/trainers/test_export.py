from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, DiTTransformer2DModel

from hasten.trainers import averaging, ema, posthoc
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.generation import export, sampling
from hasten.trainers.job import Job
from hasten.trainers.metrics import examination
from hasten.trainers.models import networks
from hasten.trainers.models.networks import Network
from hasten.trainers.process import Process
from hasten.trainers.records import Report
from hasten.trainers.specs import RunSpec
from hasten.trainers.store import Folder

SpecOf = Callable[[dict[str, Any]], RunSpec]

# Two channels a group: with one, the normalisation would take out what condition and label add.
UNET = {"kind": "unet", "channels": 8, "multipliers": [1], "groups": 4}
DIT = {"kind": "dit", "width": 32, "heads": 2, "depth": 2, "dropout": 0.1}
MLP = {"kind": "mlp", "width": 16}
PROCESSES: dict[str, dict[str, Any]] = {
    "ddpm": {"kind": "ddpm"},
    "ddpm-x0": {"kind": "ddpm", "predict": "x0"},
    "ddpm-v": {"kind": "ddpm", "predict": "v"},
    "edm": {"kind": "edm"},
    "flow": {"kind": "flow", "shift": 2.0},
}


def stirred(network: Network) -> Network:
    generator = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    return network


def unfinished_run(place: Path, spec: RunSpec, classes: int | None) -> tuple[str, Network]:
    """A run's folder as it is after its first checkpoint, and its averaged network."""
    uri = str(place / "runs" / "tiny")
    Folder(uri).write(export.RECIPE, yaml.safe_dump(spec.model_dump(mode="json")).encode())
    raw = networks.build(spec.model, shape=(1, 8, 8), classes=classes, seed=0)
    average = stirred(networks.build(spec.model, shape=(1, 8, 8), classes=classes, seed=0))
    second = networks.build(spec.model, shape=(1, 8, 8), classes=classes, seed=2)
    states = [average.state_dict(), second.state_dict()]
    RunStore(uri).save({"images": 64, "network": raw.state_dict(), "ema": states})
    return uri, average.eval()


def exported(spec: RunSpec, place: Path, classes: int | None) -> tuple[Path, Network]:
    uri, network = unfinished_run(place, spec, classes)
    export.write(export.load(uri), place / "out")
    return place / "out", network


def noise() -> torch.Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.manual_seed(0))


@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("process", PROCESSES)
def test_diffusers_samples_a_unet_as_we_do(
    process: str, classes: int | None, tmp_path: Path, spec_of: SpecOf
) -> None:
    """By ``from_pretrained`` and a pipeline of diffusers' own, from the same noise to the same images."""
    spec = spec_of({"model": UNET, "diffusion": PROCESSES[process]})
    folder, network = exported(spec, tmp_path, classes)
    steps, labels = 25, None if classes is None else np.array([3, 7])
    pipeline = DiffusionPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    told = {} if labels is None else {"class_labels": labels.tolist()}
    made = pipeline(
        batch_size=2,
        num_inference_steps=steps,
        generator=torch.manual_seed(0),
        output_type="np",
        **told,
    ).images
    ours = sampling.sample(
        network, Process(spec.diffusion, torch.device("cpu")), noise().numpy(), steps=steps, labels=labels
    )
    # Flow's schedulers space their steps a little otherwise, EDM's start is sqrt(80^2 + 1) wide.
    tolerance = 1e-5 if process.startswith("ddpm") else 0.05
    np.testing.assert_allclose(made[..., 0] * 2.0 - 1.0, ours[:, 0].numpy(), atol=tolerance)


@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("process", ["ddpm-v", "edm", "flow"])
def test_diffusers_loads_a_dit(process: str, classes: int | None, tmp_path: Path, spec_of: SpecOf) -> None:
    """As its own class with its own embedding for each block, and as a pipeline without a decoder."""
    folder, network = exported(spec_of({"model": DIT, "diffusion": PROCESSES[process]}), tmp_path, classes)
    loaded = DiTTransformer2DModel.from_pretrained(str(folder), subfolder="transformer").eval()
    t, labels = torch.tensor([1.0, 2.0]), torch.tensor([0, 0] if classes is None else [3, 10])
    with torch.no_grad():
        ours = network(noise(), t, None if classes is None else labels)
        assert torch.equal(loaded(noise(), t, labels).sample, ours)
    assert type(DiffusionPipeline.from_pretrained(str(folder), vae=None)).__name__ == "DiTPipeline"


def test_a_network_that_diffusers_lacks_is_written_all_the_same(tmp_path: Path, spec_of: SpecOf) -> None:
    folder, network = exported(spec_of({"model": MLP}), tmp_path, 10)
    loaded = export.read_components(folder)
    t = torch.ones(2)
    assert torch.equal(loaded(noise(), t, torch.tensor([3, 10])), network(noise(), t, torch.tensor([3, 10])))
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    with pytest.raises(ConfigError, match="not an exported network"):
        export.read_components(tmp_path)


@pytest.mark.parametrize("model", [UNET, DIT, MLP])
def test_nothing_but_data_is_written(model: dict[str, Any], tmp_path: Path, spec_of: SpecOf) -> None:
    folder, _ = exported(spec_of({"model": model}), tmp_path, 10)
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds == {".json", ".md", ".safetensors"}


@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize(
    ("model", "process"), [(UNET, "edm"), (DIT, "ddpm"), (DIT, "edm"), (DIT, "flow"), (MLP, "edm")]
)
def test_the_cards_code_runs(
    model: dict[str, Any],
    process: str,
    classes: int | None,
    tmp_path: Path,
    spec_of: SpecOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = exported(spec_of({"model": model, "diffusion": PROCESSES[process]}), tmp_path, classes)
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(code, found)
    if model is not MLP:
        assert tuple(found["samples"].shape) == ((4, 8, 8, 1) if model is UNET else (4, 1, 8, 8))
        assert np.isfinite(np.asarray(found["samples"])).all()


def test_which_weights(tmp_path: Path, spec_of: SpecOf) -> None:
    """The recipe keeps widths 0.05 and 0.1."""
    uri, average = unfinished_run(tmp_path, spec_of({"model": UNET}), None)
    first, wide, raw = export.load(uri), export.load(uri, ema_std=0.1), export.load(uri, raw=True)
    x, t = noise(), torch.ones(2)
    assert torch.equal(first.network(x, t), average(x, t))
    assert len({float(one.network(x, t).sum()) for one in (first, wide, raw)}) == 3
    assert [one.weights for one in (first, wide, raw)] == [
        "a power-function average of relative width 0.05",
        "a power-function average of relative width 0.1",
        "the last weights",
    ]
    assert (first.images, first.result) == (64, None)
    with pytest.raises(ConfigError, match=r"0.07 was not kept; the run's widths: 0.05, 0.1"):
        export.load(uri, ema_std=0.07)
    with pytest.raises(ConfigError, match="either"):
        export.load(uri, ema_std=0.1, raw=True)


def test_a_width_that_is_made_after_training(tmp_path: Path, spec_of: SpecOf) -> None:
    """From snapshots of two widths, the very average that a third width would have been."""
    spec = spec_of({"model": MLP})
    uri, network = unfinished_run(tmp_path, spec, None)
    average = ema.build(averaging.PowerEma(kind="power", stds=(0.05, 0.1)), network)
    wanted = ema.build(averaging.PowerEma(kind="power", stds=(0.08,)), network)
    store, generator = RunStore(uri), torch.Generator().manual_seed(0)
    for step in range(1, 101):
        for weight in network.parameters():
            weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.01)
        for one in (average, wanted):
            one.update(images=64 * step, batch=64)
        if step % 10 == 0:
            for snapshot in posthoc.take(average, 64 * step):
                store.write_average(snapshot)
    store.save({"images": 6400, "network": network.state_dict(), "ema": average.state_dict()})
    trained = export.load(uri, ema_std=0.08)
    assert "made after training" in trained.weights
    x, t = noise(), torch.ones(2)
    expected, narrow = wanted.networks[0](x, t), average.networks[0](x, t)
    error = (trained.network(x, t) - expected).norm() / (narrow - expected).norm()
    assert error < 0.1


def test_what_is_not_there(tmp_path: Path, spec_of: SpecOf) -> None:
    with pytest.raises(ConfigError, match="has no checkpoint"):
        export.load(str(tmp_path / "runs" / "nothing"))
    uri, _ = unfinished_run(tmp_path, spec_of({"model": UNET}), None)
    name = RunStore(uri).latest()
    assert export.load(f"{uri}/checkpoints/{name}").images == 64
    with pytest.raises(ConfigError, match=f"these are kept: {name}"):
        export.load(f"{uri}/checkpoints/000000000001-abcdef")
    with pytest.raises(ConfigError, match="no finished run"):
        examination.trained(uri)
    (Path(uri) / export.RECIPE).write_text(yaml.safe_dump(spec_of({"model": MLP}).model_dump(mode="json")))
    with pytest.raises(Fault, match="not of this network"):
        export.load(uri)
    (Path(uri) / export.RECIPE).unlink()
    with pytest.raises(ConfigError, match="is not finished"):
        export.load(uri)


def test_a_finished_run(
    job_of: Callable[..., Job], run: Callable[[Job], Iterator[Report]], tmp_path: Path
) -> None:
    """Its card tells its scores and how they were measured; another job can judge it as its own did."""
    job = job_of()
    list(run(job))
    result = RunStore(job.uri).result()
    assert result is not None
    known = examination.trained(job.uri)
    assert examination.Examination(job).loss(known) == pytest.approx(result.metrics["eval/loss"], rel=1e-6)
    export.write(known, tmp_path / "out")
    assert type(DiffusionPipeline.from_pretrained(str(tmp_path / "out"))).__name__ == "DDIMPipeline"
    card = (tmp_path / "out" / "README.md").read_text()
    for told in (
        job.run,
        job.data_digest,
        "license: unknown",
        f"{result.metrics['eval/loss']:.6g}",
        "kind: clts",
    ):
        assert told in card
    assert "not finished" not in card
    header, evaluation = (
        re.match(r"---\n(.*?)---", card, re.DOTALL),
        re.search(r"```yaml\n(.*?)```", card, re.DOTALL),
    )
    assert header is not None
    assert evaluation is not None
    assert yaml.safe_load(header[1])["library_name"] == "diffusers"
    assert yaml.safe_load(evaluation[1]) == job.spec.eval.model_dump(mode="json")
