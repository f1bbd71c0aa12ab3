"""Dropout whose masks belong to an image, not to a generator's state.

``torch.nn.Dropout`` consumes the process's generator, so its masks depend on the batch's cut over ranks and
on everything drawn before. Here the mask of an image in a layer is a hash of (the image's seed, the layer,
the element): the same on every rank and device, after every resumption, and in a recomputed forward pass.
"""

from __future__ import annotations

from typing import Final

import torch

_BITS: Final = 24  # of the hash that decide whether an element is kept


class AddressedDropout(torch.nn.Module):
    """Zeroes elements with probability ``p`` while training, and scales the others by 1/(1 - p).

    Args:
        p: in [0, 1).
        layer: tells this layer's masks from others'.

    ``seeds`` int32 (B,), one a row of the next input, are set before each step by
    :func:`hasten.trainers.models.networks.Network.address`.
    """

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self.p = p
        self.layer = layer
        self.seeds: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0.0:
            return x
        if self.seeds is None or len(x) % len(self.seeds):
            raise RuntimeError(
                "dropout has no addresses for this batch: call Network.address before the step"
            )
        return x * (keep(self.seeds, self.layer, x[0].numel(), self.p).reshape(x.shape) / (1.0 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def keep(seeds: torch.Tensor, layer: int, count: int, p: float) -> torch.Tensor:
    """Which of ``count`` elements of each row stay, bool (B, count), each with probability 1 - p."""
    salt = torch.full_like(seeds, layer + 1)
    elements = _mixed(torch.arange(count, dtype=torch.int32, device=seeds.device))
    bits = _mixed(elements[None] ^ _mixed(seeds ^ _mixed(salt))[:, None])
    return ((bits >> (32 - _BITS)) & (2**_BITS - 1)) >= int(p * 2**_BITS)


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit words after which every bit depends on all (MurmurHash3's finaliser)."""
    words = (words ^ (words >> 16) & 0xFFFF) * -2048144789  # 0x85ebca6b
    words = (words ^ (words >> 13) & 0x7FFFF) * -1028477387  # 0xc2b2ae35
    return words ^ (words >> 16) & 0xFFFF
