"""The README.md of an exported model: what it is, how good, by what measure, and how to sample it."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Final

import yaml

from hasten.trainers.diffusion import Ddpm, Edm
from hasten.trainers.models.architectures import Dit, Unet, resolve
from hasten.trainers.models.networks import Network
from hasten.trainers.records import RunResult
from hasten.trainers.specs import RunSpec

_CARD: Final = """\
---
license: {licence}
library_name: {library}
tags: [diffusion, hasten]
---

# {name}

A diffusion model of data of shape {shape} (channels, height, width), {classes}, trained with
hasten {version}.

| | |
|---|---|
| run | `{run}` |
| weights | {weights}, after {images:,} images{unfinished} |
| parameters | {parameters:,} |
| process | {kind}: {process} |
| data | `{source}`, digest `{digest}` |
| licence | {licence} |

## Scores

{scores}

Measured as said here, and comparable with nothing that was measured otherwise:

```yaml
{evaluation}```

## Sampling

{sampling}

## Recipe

```yaml
{recipe}```
"""

_PIPELINE: Final = """\
```python
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({folder!r})
samples = pipeline(
    batch_size=4, {labels}num_inference_steps={steps}, generator=torch.manual_seed(0), output_type="np"
).images
```

`samples` has shape (4, height, width, channels) and lies in [0, 1]."""

_COMPONENTS: Final = """\
```python
import torch
from diffusers import {model}, {scheduler}

network = {model}.from_pretrained({folder!r}, subfolder="transformer").eval()
scheduler = {scheduler}.from_pretrained({folder!r}, subfolder="scheduler")
scheduler.set_timesteps({steps})
labels = torch.tensor({labels})
x = {start}torch.randn(4, {shape}, generator=torch.manual_seed(0))
with torch.no_grad():
    for t in scheduler.timesteps:
        network_input = {network_input}
        answer = network(network_input, timestep=t.expand(len(x)), class_labels=labels).sample
        x = scheduler.step(answer, t, x).prev_sample
samples = x
```

`samples` has shape (4, channels, height, width){note}.
`DiffusionPipeline.from_pretrained({folder!r}, vae=None)` loads the folder as a `DiTPipeline`; to sample, that
one wants a `vae`, and takes label 1000 for none."""

_OWN: Final = """\
diffusers has no class for this network. `hasten sample` samples it; in Python:

```python
from pathlib import Path
from hasten.trainers.generation import export

network = export.read_components(Path({folder!r}))  # called as network(x, condition, labels)
```"""

_SCHEDULERS: Final = {
    "ddpm": "DDIMScheduler",
    "edm": "EDMEulerScheduler",
    "flow": "FlowMatchEulerDiscreteScheduler",
}


def render(
    spec: RunSpec,
    network: Network,
    *,
    result: RunResult | None,
    images: int,
    weights: str,
    licence: str = "unknown",
    folder: str = ".",
) -> str:
    """The card as Markdown; ``folder`` is where its code looks for the model."""
    recipe = spec.model_dump(mode="json", exclude={"execution"})
    own = not isinstance(resolve(spec.model), Unet | Dit)
    return _CARD.format(
        licence=licence,
        library="hasten" if own else "diffusers",
        name=spec.name,
        shape=" x ".join(map(str, network.shape)),
        classes="unconditional" if network.classes is None else f"conditional on {network.classes} classes",
        version=metadata.version("hasten"),
        run=result.run if result else spec.name,
        weights=weights,
        images=images,
        unfinished="" if result else f" of {spec.budget.images:,}: the run is not finished",
        parameters=sum(weight.numel() for weight in network.parameters()),
        process=", ".join(f"{key} {value}" for key, value in recipe["diffusion"].items() if key != "kind"),
        kind=recipe["diffusion"]["kind"],
        source=spec.data.source,
        digest=result.data_digest if result else "not known before the end",
        scores=_scores(result),
        evaluation=_yaml(recipe["eval"]),
        sampling=sampling(spec, network, folder),
        recipe=_yaml(recipe),
    )


def sampling(spec: RunSpec, network: Network, folder: str) -> str:
    """How to sample an exported model, with code that runs."""
    conditional, steps = network.classes is not None, _steps(spec)
    shown = [(index % network.classes) if network.classes else 0 for index in range(4)]
    match resolve(spec.model):
        case Unet():
            labels = f"class_labels={shown}, " if conditional else ""
            text = _PIPELINE.format(folder=folder, labels=labels, steps=steps)
            note = f"Label {network.classes} means none; this pipeline does not guide, `hasten sample` does."
            return f"{text}\n\n{note}" if conditional else text
        case Dit():
            is_flow = (
                spec.diffusion.kind == "flow"
            )  # its schedulers leave the start and the input as they are
            return _COMPONENTS.format(
                model="DiTTransformer2DModel",
                scheduler=_SCHEDULERS[spec.diffusion.kind],
                folder=folder,
                steps=steps,
                labels=shown,
                shape=", ".join(map(str, network.shape)),
                start="scheduler.init_noise_sigma * " if isinstance(spec.diffusion, Edm) else "",
                network_input="x" if is_flow else "scheduler.scale_model_input(x, t)",
                note=f"; label {network.classes} means none" if conditional else "",
            )
        case _:
            return _OWN.format(folder=folder)


def _steps(spec: RunSpec) -> int:
    """The evaluation's steps, or the next fewer that divide the chain, as diffusers' DDIM needs."""
    steps = spec.eval.samples.steps
    if isinstance(spec.diffusion, Ddpm):
        length = spec.diffusion.timesteps
        return max(number for number in range(1, min(steps, length) + 1) if length % number == 0)
    return steps


def _scores(result: RunResult | None) -> str:
    if result is None:
        return "None yet: the run is not finished."
    scores = {key: value for key, value in result.metrics.items() if key.startswith("eval/")}
    rows = "\n".join(f"| {key} | {value:.6g} |" for key, value in sorted(scores.items()))
    return f"At the end of training, of the first averaged weights:\n\n| metric | value |\n|---|---|\n{rows}"


def _yaml(fields: dict[str, Any]) -> str:
    return yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, width=100)
