"""A trained network: taken from a run's folder, and written as other people's tools load it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import diffusers
import safetensors
import safetensors.torch
import torch
from diffusers import (
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDPMPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)
from pydantic import TypeAdapter

from hasten.trainers import config, posthoc
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.diffusion import Ddpm, Diffusion, Flow
from hasten.trainers.errors import ConfigError
from hasten.trainers.generation import model_card, solvers
from hasten.trainers.models import networks
from hasten.trainers.models.architectures import Architecture
from hasten.trainers.models.networks import Network
from hasten.trainers.records import RunResult
from hasten.trainers.specs import RunSpec
from hasten.trainers.store import Folder

RECIPE: Final = "recipe.yaml"
"""The run's resolved recipe in its folder, there from its first moment on."""
_CHECKPOINTS: Final = "/checkpoints/"
_ARCHITECTURE: Final[TypeAdapter[Architecture]] = TypeAdapter(Architecture)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A network from a run's folder, and what is known of it.

    ``images`` were trained on; ``weights`` says which of the run's weights these are; ``result`` is None
    while the run is not finished.
    """

    run_uri: str
    checkpoint: str
    spec: RunSpec
    network: Network
    images: int
    weights: str
    result: RunResult | None


def load(uri: str, *, raw: bool = False, ema_std: float | None = None) -> Trained:
    """The network of a run (its folder's URI) or of one of its checkpoints, on the CPU.

    Args:
        uri: ``.../runs/NAME``, or ``.../runs/NAME/checkpoints/CHECKPOINT``; of a run the newest one is taken.
        raw: the last weights instead of averaged ones.
        ema_std: the relative width of the average; the run's first one by default. A width that was not kept
            while training is reconstructed from the run's snapshots.

    Raises:
        ConfigError: there is no such run, checkpoint or average.
        Fault: the checkpoint is damaged, or the storage failed.
    """
    if raw and ema_std is not None:
        raise ConfigError("raw", "the last weights are no average", "Give either raw or a width.")
    run_uri, _, wanted = uri.rstrip("/").partition(_CHECKPOINTS)
    store = RunStore(run_uri)
    name = wanted or store.latest()
    if name is None:
        raise ConfigError(run_uri, "has no checkpoint", "Is this the folder of a run that was started?")
    if wanted and wanted not in store.checkpoints():
        kept = ", ".join(store.checkpoints()) or "none"
        raise ConfigError(uri, "no such checkpoint", f"Of this run's, these are kept: {kept}.")
    result, state = store.result(), store.load(name)
    spec = _spec(run_uri, result)
    weights, described = _weights(store, spec, state, raw=raw, std=ema_std)
    return Trained(
        run_uri=run_uri,
        checkpoint=store.checkpoint_uri(name),
        spec=spec,
        network=networks.load(spec.model, weights),
        images=state["images"],
        weights=described,
        result=result,
    )


def write(trained: Trained, folder: Path, *, licence: str = "unknown", images: bool = True) -> None:
    """Write a network for diffusers: safetensors and JSON only, with a model card.

    ``diffusers.DiffusionPipeline.from_pretrained`` loads the folder of every network that diffusers has a
    class for (a DiT's with ``vae=None``), and the model card says how to sample. Others are written as their
    weights and recipe: :func:`read_components` loads them.

    Args:
        trained: the network.
        folder: where to write.
        licence: the model card's, for example ``apache-2.0``.
        images: the data are images in [-1, 1], not latents or points.
    """
    network, process = trained.network, trained.spec.diffusion
    inner = network.inner
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(inner, UNet2DModel):
        made = _unet_pipeline(inner, process, conditional=network.classes is not None, clip=images)
        made.save_pretrained(str(folder), safe_serialization=True)
    elif isinstance(inner, DiTTransformer2DModel):
        _dit_pipeline(inner, solvers.exported(process, clip=images), folder)
    else:
        _components(trained, folder, clip=images)
    card = model_card.render(
        trained.spec,
        network,
        result=trained.result,
        images=trained.images,
        weights=trained.weights,
        licence=licence,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _unet_pipeline(inner: UNet2DModel, process: Diffusion, *, conditional: bool, clip: bool) -> Any:
    """A pipeline of diffusers whose loop is right for this process.

    ConsistencyModelPipeline's is the general one, whatever its name: it scales the start and the network's
    input as the scheduler says, and passes labels. It takes no scheduler without these two, so a
    class-conditional flow is given DPM-Solver++.
    """
    scheduler = solvers.exported(process, clip=clip)
    match process:
        case Ddpm() if not conditional:
            return DDIMPipeline(unet=inner, scheduler=scheduler)
        case Flow() if not conditional:
            return DDPMPipeline(unet=inner, scheduler=scheduler)
        case Flow():
            scheduler = DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=process.shift
            )
    return ConsistencyModelPipeline(unet=inner, scheduler=scheduler)


def _dit_pipeline(inner: DiTTransformer2DModel, scheduler: Any, folder: Path) -> None:
    """A ``DiTPipeline`` without its decoder of latents, which diffusers loads with ``vae=None`` or any other.

    The DiT gets diffusers' own embedding for each block: safetensors stores no shared weights.
    """
    apart = DiTTransformer2DModel.from_config(inner.config)
    apart.load_state_dict(inner.state_dict())
    apart.eval().save_pretrained(str(folder / "transformer"), safe_serialization=True)
    scheduler.save_pretrained(str(folder / "scheduler"))
    index = {
        "_class_name": "DiTPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _components(trained: Trained, folder: Path, *, clip: bool) -> None:
    """The weights, the recipe that builds their network, and the scheduler: for networks diffusers lacks."""
    network = folder / "network"
    network.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.detach().clone() for key, tensor in trained.network.state_dict().items()}
    safetensors.torch.save_file(state, str(network / "diffusion_pytorch_model.safetensors"))
    described = trained.spec.model.model_dump(mode="json")
    (network / "config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    solvers.exported(trained.spec.diffusion, clip=clip).save_pretrained(str(folder / "scheduler"))


def _spec(run_uri: str, result: RunResult | None) -> RunSpec:
    if result is not None:
        return RunSpec.model_validate(result.spec)
    content = Folder(run_uri).read(RECIPE)
    if content is None:
        raise ConfigError(run_uri, f"is not finished and has no {RECIPE}", "Run its command again.")
    return config.validate(RunSpec, config.parse_yaml(content.decode(), f"{run_uri}/{RECIPE}"))


def _weights(
    store: RunStore, spec: RunSpec, state: dict[str, Any], *, raw: bool, std: float | None
) -> tuple[dict[str, torch.Tensor], str]:
    """The asked weights of a checkpoint, and how to call them."""
    if raw:
        return state["network"], "the last weights"
    kept: tuple[float, ...] = getattr(spec.ema, "stds", ())
    if std is None:
        described = f"a power-function average of relative width {kept[0]:g}" if kept else "an average"
        return state["ema"][0], described
    for index, width in enumerate(kept):
        if math.isclose(width, std):
            return state["ema"][index], f"a power-function average of relative width {width:g}"
    profiles = [profile for profile in store.averages() if profile.images <= state["images"]]
    if not profiles:
        remedy = "Train with ema.snapshots to choose a width afterwards."
        widths = ", ".join(f"{width:g}" for width in kept) or "none"
        raise ConfigError("ema-std", f"{std:g} was not kept; the run's widths: {widths}", remedy)
    weights = posthoc.coefficients(profiles, std, state["images"])
    states = (store.read_average(profile).state for profile in profiles)
    rebuilt = posthoc.combine(states, weights)
    return rebuilt, f"a power-function average of relative width {std:g}, made after training"


def read_components(folder: Path) -> Network:
    """The network of an exported folder that holds one which diffusers has no class for.

    Raises:
        ConfigError: there is no such folder, or its network cannot be imported.
        Fault: the weights are not of this network.
    """
    network = folder / "network"
    try:
        spec = _ARCHITECTURE.validate_json((network / "config.json").read_bytes())
        state = safetensors.torch.load_file(str(network / "diffusion_pytorch_model.safetensors"))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ConfigError(str(folder), f"is not an exported network: {error}") from error
    return networks.load(spec, state)
