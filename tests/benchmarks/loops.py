"""Other people's training loops, on the network and the images that ours trains on.

A loop is made once and then called with a number of steps. Images are tensors in memory for all of them, as
the loop is compared, not the loader. Whatever else a project does in every step by default, it does here.
denoising-diffusion-pytorch's is its own ``Trainer``. The other two projects keep theirs in a script that
cannot be imported (diffusers' examples/unconditional_image_generation/train_unconditional.py, k-diffusion's
train.py): theirs are written anew, call for call, after those scripts.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image

from hasten.trainers import diffusion
from hasten.trainers.models.networks import Network

Loop = Callable[[int], None]

LEARNING_RATE: Final = 2e-3
TIMESTEPS: Final = 1000
PACKAGES: Final = ("accelerate", "denoising_diffusion_pytorch")
INSTALL: Final = (
    "Install them into a folder of their own, and name it in PYTHONPATH:\n"
    "    pip install --target DIR --no-deps accelerate einops ema-pytorch denoising-diffusion-pytorch"
)
_HORIZON: Final = 1_000_000  # steps that schedules are made for: no benchmark gets there


def lacking() -> list[str]:
    """The packages that are not installed here."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def batches(images: torch.Tensor, batch: int) -> Iterator[torch.Tensor]:
    """Shuffled uint8 batches (B, C, H, W) for ever, an epoch's last images left out as loaders do."""
    while True:
        order = torch.randperm(len(images))
        for first in range(0, len(images) - batch + 1, batch):
            yield images[order[first : first + batch]]


def bare(network: Network, images: torch.Tensor, batch: int) -> Loop:
    """Nothing but the update, as fast as we know how: what every loop would be without its platform."""
    levels = diffusion.levels(diffusion.Ddpm(kind="ddpm", schedule="cosine", timesteps=TIMESTEPS))
    signal = torch.as_tensor(np.asarray(levels.signal), dtype=torch.float32)[:, None, None, None]
    noise_rate = torch.as_tensor(np.asarray(levels.noise), dtype=torch.float32)[:, None, None, None]
    parameters = list(network.parameters())
    weights = [parameter.detach() for parameter in parameters]
    averages = [weight.clone() for weight in weights]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    source = batches(images, batch)

    def run(steps: int) -> None:
        for _ in range(steps):
            clean = next(source).float() / 127.5 - 1.0
            t = torch.randint(TIMESTEPS, (batch,))
            noise = torch.randn_like(clean)
            noisy = signal[t] * clean + noise_rate[t] * noise
            optimizer.zero_grad(set_to_none=True)
            F.mse_loss(network(noisy, t.float()), noise).backward()
            optimizer.step()
            torch._foreach_lerp_(averages, weights, 0.001)

    return run


def diffusers_example(network: Network, images: torch.Tensor, batch: int) -> Loop:
    """train_unconditional.py with --use_ema, without a tracker (which would cost it more)."""
    from accelerate import Accelerator
    from tqdm.auto import tqdm

    accelerator = Accelerator(cpu=True)
    model = network.inner
    schedule = DDPMScheduler(num_train_timesteps=TIMESTEPS)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    lr_scheduler = get_scheduler(
        "cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=_HORIZON
    )
    model, optimizer, lr_scheduler = accelerator.prepare(model, optimizer, lr_scheduler)
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    progress = tqdm(total=_HORIZON, file=io.StringIO())
    source = batches(images, batch)
    done = 0

    def run(steps: int) -> None:
        nonlocal done
        model.train()
        for _ in range(steps):
            clean = next(source).float() / 127.5 - 1.0
            noise = torch.randn(clean.shape, dtype=clean.dtype, device=clean.device)
            t = torch.randint(
                0, schedule.config.num_train_timesteps, (len(clean),), device=clean.device
            ).long()
            noisy = schedule.add_noise(clean, noise, t)
            with accelerator.accumulate(model):
                answer = model(noisy, t).sample
                loss = F.mse_loss(answer.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                average.step(model.parameters())
                progress.update(1)
                done += 1
            logs = {"loss": loss.detach().item(), "lr": lr_scheduler.get_last_lr()[0], "step": done}
            logs["ema_decay"] = average.cur_decay_value
            progress.set_postfix(**logs)
            accelerator.log(logs, step=done)

    return run


def k_diffusion(network: Network, images: torch.Tensor, batch: int) -> Loop:
    """k-diffusion's train.py on an image data set, with its preconditioned loss and stratified levels."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=LEARNING_RATE, betas=(0.95, 0.999), weight_decay=1e-3
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - 0.99 ** (step + 1))
    model, optimizer = accelerator.prepare(network, optimizer)
    average = copy.deepcopy(model)
    source = batches(images, batch)
    normal = torch.distributions.Normal(-1.2, 1.2)
    data_std, step = 0.5, 0

    def losses(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        wide = sigma[:, None, None, None]
        total = wide**2 + data_std**2
        skip, out, inward = data_std**2 / total, wide * data_std / total**0.5, 1 / total**0.5
        noisy = clean + noise * wide
        answer = model(noisy * inward, sigma.log() / 4)
        return ((answer - (clean - skip * noisy) / out) ** 2).flatten(1).mean(1)

    @torch.no_grad()
    def average_weights(decay: float) -> None:
        own, averaged = dict(model.named_parameters()), dict(average.named_parameters())
        for name, parameter in own.items():
            averaged[name].lerp_(parameter, 1 - decay)
        own, averaged = dict(model.named_buffers()), dict(average.named_buffers())
        for name, buffer in own.items():
            averaged[name].copy_(buffer)

    def run(steps: int) -> None:
        nonlocal step
        for _ in range(steps):
            with accelerator.accumulate(model):
                clean = next(source).float() / 127.5 - 1.0
                noise = torch.randn_like(clean)
                strata = (torch.arange(batch) + torch.rand(batch)) / batch
                sigma = normal.icdf(strata * (1 - 2e-7) + 1e-7).exp()
                each = losses(clean, noise, sigma)
                loss = accelerator.gather(each).mean()
                accelerator.backward(each.mean())
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:
                    average_weights(min(0.9999, 1 - (1 + step) ** -0.75))
            if step % 25 == 0:
                loss.item()
            step += 1

    return run


class _ForTrainer(torch.nn.Module):
    """The network with what denoising-diffusion-pytorch asks of its own."""

    self_condition = False

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.channels = self.out_dim = network.shape[0]

    def forward(self, x: torch.Tensor, t: torch.Tensor, x_self_cond: None = None) -> torch.Tensor:
        del x_self_cond
        return self.network(x, t)


def denoising_diffusion_pytorch(network: Network, images: torch.Tensor, batch: int, folder: Path) -> Loop:
    """Its ``Trainer`` itself, with batches from memory in place of its loader; it never saves nor samples.

    ``folder`` is for the hundred pictures that it insists on.
    """
    with _torchvision():
        from denoising_diffusion_pytorch import denoising_diffusion_pytorch as theirs

        pictures = folder / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        for number in range(100):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(pictures / f"{number}.png")
        process = theirs.GaussianDiffusion(
            _ForTrainer(network), image_size=network.shape[-1], timesteps=TIMESTEPS
        )
        trainer: Any = theirs.Trainer(
            process,
            str(pictures),
            train_batch_size=batch,
            train_lr=LEARNING_RATE,
            save_and_sample_every=_HORIZON,
            calculate_fid=False,
            results_folder=str(folder / "results"),
        )
    trainer.dl = (images_.float() / 255.0 for images_ in batches(images, batch))

    def run(steps: int) -> None:
        trainer.train_num_steps = trainer.step + steps
        nowhere = io.StringIO()
        with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
            trainer.train()

    return run


@contextlib.contextmanager
def _torchvision() -> Iterator[None]:
    """An empty torchvision where there is none: only its loader would ask it for more than names."""
    if importlib.util.find_spec("torchvision"):
        yield
        return
    empty = mock.MagicMock(spec=types.ModuleType("torchvision"))
    empty.transforms, empty.utils = mock.MagicMock(), mock.MagicMock()
    with mock.patch.dict(sys.modules, {"torchvision": empty}):
        yield
