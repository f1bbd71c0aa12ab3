"""Inception v3 as Fréchet inception distances are published with: its published weights, read safely.

The network of Szegedy et al. (arXiv 1512.00567) in the form that TensorFlow's 2015 file has: average pools
leave out the padding, the last block pools by maximum, images are enlarged without half-pixel centres. The
libraries that hold it unpickle its weights unchecked and import torchvision, whose wheel does not load beside
a CPU build of torch; so the network is here, its weights come from the user, and nothing is fetched.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Final

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from hasten.trainers.errors import ConfigError
from hasten.trainers.store import Folder

_KEY: Final = "eval.samples.features.weights"
_SIZE: Final = 299
_CHUNK: Final = 32

Size = int | tuple[int, int]
Step = tuple[str, int, Size]  # the convolution's published name, its output channels, its kernel
Path = tuple[Step | tuple[Step, Step], ...]  # one after another; two at once make a fork


class Inception(nn.Module):
    """Pool features of RGB images: uint8 (B, 3, H, W) to float32 (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, padded=False)
        self.Mixed_5b = _block_a(192, pooled=32)
        self.Mixed_5c = _block_a(256, pooled=64)
        self.Mixed_5d = _block_a(288, pooled=64)
        self.Mixed_6a = _Reduction(
            288,
            (("branch3x3", 384, 3),),
            (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        )
        self.Mixed_6b = _block_c(128)
        self.Mixed_6c = _block_c(160)
        self.Mixed_6d = _block_c(160)
        self.Mixed_6e = _block_c(192)
        self.Mixed_7a = _Reduction(
            768,
            (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)),
            (
                ("branch7x7x3_1", 192, 1),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, 3),
            ),
        )
        self.Mixed_7b = _block_e(1280, largest=False)
        self.Mixed_7c = _block_e(2048, largest=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = (_enlarged(images.float()) - 128.0) / 128.0
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return torch.mean(x, dim=(2, 3))


class InceptionFeatures:
    """Features by the weights of one file; ``digest`` is the file's SHA-256."""

    def __init__(self, network: Inception, digest: str, device: torch.device) -> None:
        self.digest = digest
        self._network = network.requires_grad_(False).eval().to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (N, 1 or 3, H, W) to (N, 2048); grey images are shown as RGB."""
        chunks = [np.empty((0, 2048), dtype=np.float32)]
        for start in range(0, len(images), _CHUNK):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + _CHUNK])).to(self._device)
            chunks.append(self._network(part.expand(-1, 3, -1, -1)).cpu().numpy())
        return np.concatenate(chunks)


def load(location: str, device: torch.device) -> InceptionFeatures:
    """The features that a file of weights computes.

    Args:
        location: path or URI of ``pt_inception-2015-12-05-6726825d.pth`` (the TensorFlow weights as
            pytorch-fid and torch-fidelity publish them), or of the same tensors as safetensors.
        device: where to compute.

    Raises:
        ConfigError: no file there, or not these weights.
        Fault: the storage failed.
    """
    folder, _, name = location.rpartition("/")
    content = Folder(folder or ".").read(name)
    remedy = (
        "hasten fetches nothing by itself: download pt_inception-2015-12-05-6726825d.pth "
        "(pytorch-fid's or torch-fidelity's release page) and name the file."
    )
    if content is None:
        raise ConfigError(_KEY, f"no file at {location}", remedy)
    network = Inception()
    try:
        state = _tensors(content)
        network.load_state_dict({key: state[key] for key in state if not key.startswith("fc.")})
    except (RuntimeError, ValueError, TypeError, KeyError, EOFError, AttributeError) as error:
        problem = f"{location} does not hold Inception's weights ({str(error).strip().splitlines()[0][:120]})"
        raise ConfigError(_KEY, problem, remedy) from None
    return InceptionFeatures(network, hashlib.sha256(content).hexdigest(), device)


def _tensors(content: bytes) -> dict[str, torch.Tensor]:
    """What a file of either format holds; nothing in it is executed."""
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError:
        pass
    try:
        found: dict[str, torch.Tensor] = torch.load(io.BytesIO(content), weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(str(error)) from None
    return found


def _enlarged(images: torch.Tensor) -> torch.Tensor:
    """Bilinear, to 299 x 299: output pixel i lies at input place i * size / 299, as in TensorFlow 1."""
    for axis in (2, 3):
        size = images.shape[axis]
        place = torch.arange(_SIZE, device=images.device, dtype=torch.float32) * (size / _SIZE)
        before = place.long().clamp(max=size - 1)
        shape = [-1 if index == axis else 1 for index in range(4)]
        first = images.index_select(axis, before)
        second = images.index_select(axis, (before + 1).clamp(max=size - 1))
        images = first + (second - first) * (place - before).reshape(shape)
    return images


class _Convolution(nn.Module):
    def __init__(self, into: int, out: int, size: Size, *, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        padding = (height // 2, width // 2) if padded and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(into, out, (height, width), stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Branches of convolutions beside each other, their outputs stacked."""

    def __init__(self, into: int, *paths: Path, stride: int = 1) -> None:
        super().__init__()
        self._paths = paths
        for path in paths:
            width = into
            for place, step in enumerate(path):
                pair = (step,) if isinstance(step[0], str) else step
                last = stride if place == len(path) - 1 else 1
                for name, out, size in pair:
                    self.add_module(name, _Convolution(width, out, size, stride=last))
                width = sum(out for _, out, _ in pair)

    def branches(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for path in self._paths:
            y = x
            for step in path:
                pair = (step,) if isinstance(step[0], str) else step
                y = torch.cat([self.get_submodule(name)(y) for name, _, _ in pair], dim=1)
            found.append(y)
        return found


class _Pooled(_Block):
    """A block that keeps the size: its last branch is a pool, then ``pooled`` channels."""

    def __init__(self, into: int, *paths: Path, pooled: int, largest: bool = False) -> None:
        super().__init__(into, *paths)
        self._largest = largest
        self.branch_pool = _Convolution(into, pooled, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pool = (
            F.max_pool2d(x, 3, stride=1, padding=1)
            if self._largest
            else F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        )
        return torch.cat([*self.branches(x), self.branch_pool(pool)], dim=1)


class _Reduction(_Block):
    """A block that halves the size; the input's own pool is its last branch."""

    def __init__(self, into: int, *paths: Path) -> None:
        super().__init__(into, *paths, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([*self.branches(x), F.max_pool2d(x, 3, stride=2)], dim=1)


def _block_a(into: int, *, pooled: int) -> _Pooled:
    return _Pooled(
        into,
        (("branch1x1", 64, 1),),
        (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        pooled=pooled,
    )


def _block_c(width: int) -> _Pooled:
    return _Pooled(
        768,
        (("branch1x1", 192, 1),),
        (("branch7x7_1", width, 1), ("branch7x7_2", width, (1, 7)), ("branch7x7_3", 192, (7, 1))),
        (
            ("branch7x7dbl_1", width, 1),
            ("branch7x7dbl_2", width, (7, 1)),
            ("branch7x7dbl_3", width, (1, 7)),
            ("branch7x7dbl_4", width, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        ),
        pooled=192,
    )


def _block_e(into: int, *, largest: bool) -> _Pooled:
    return _Pooled(
        into,
        (("branch1x1", 320, 1),),
        (("branch3x3_1", 384, 1), (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1)))),
        (
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))),
        ),
        pooled=192,
        largest=largest,
    )
