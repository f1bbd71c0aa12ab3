"""Addressed noise on a device: the numbers of :mod:`randomness`, made where they are used.

On the CPU numpy's Philox is the fastest. On an accelerator the host would be too slow, and copying would
stall it: there the same Philox-4x64-10 (Salmon et al., SC'11) runs in integer tensor arithmetic. The words
are the same on every device; the normal numbers made of them agree to float32 rounding.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.trainers import randomness

_ROUNDS: Final = 10
_MULTIPLIERS: Final = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS: Final = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW: Final = 0xFFFFFFFF


def noise(
    seed: int, stream: str, images: NDArray[np.int64], shape: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    """Standard normal numbers, float32 of shape (len(images), *shape) on ``device``."""
    if device.type == "cpu":
        return torch.from_numpy(randomness.noise(seed, stream, images, shape))
    size = int(np.prod(shape))
    pairs = words(seed, stream, torch.from_numpy(images).to(device), (size + 1) // 2)
    # Box and Muller, as in randomness.noise: two 32-bit uniforms a word.
    high = (((pairs >> 32) & _LOW).double() + 0.5) * 2.0**-32
    low = ((pairs & _LOW).double() + 0.5) * 2.0**-32
    radius, angle = torch.sqrt(-2.0 * torch.log(high)), 2.0 * torch.pi * low
    normal = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return normal.flatten(1)[:, :size].reshape(len(images), *shape).float()


def words(seed: int, stream: str, images: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` 64-bit words for each image index, shape (len(images), count), as int64 bit patterns."""
    counters = -(-count // 4)
    key = randomness.key(seed, stream)
    # numpy counts up before it makes a block, so the block of counter c is that of c + 1.
    block = images[:, None] * counters + torch.arange(1, counters + 1, device=images.device)
    zeros = torch.zeros_like(block)
    x0, x1, x2, x3 = block, zeros, zeros, zeros
    k0, k1 = key & (2**64 - 1), key >> 64
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(x0, _MULTIPLIERS[0])
        high1, low1 = _multiply(x2, _MULTIPLIERS[1])
        x0, x1, x2, x3 = high1 ^ x1 ^ _signed(k0), low1, high0 ^ x3 ^ _signed(k1), low0
        k0, k1 = (k0 + _KEY_STEPS[0]) % 2**64, (k1 + _KEY_STEPS[1]) % 2**64
    return torch.stack([x0, x1, x2, x3], dim=-1).flatten(1)[:, :count]


def _multiply(a: torch.Tensor, constant: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The high and the low 64 bits of an unsigned product, by 32-bit halves: int64 has no wider type."""
    b_high, b_low = constant >> 32, constant & _LOW
    a_high, a_low = (a >> 32) & _LOW, a & _LOW
    middle = a_high * b_low + (((a_low * b_low) >> 32) & _LOW)
    cross = a_low * b_high + (middle & _LOW)
    high = a_high * b_high + ((middle >> 32) & _LOW) + ((cross >> 32) & _LOW)
    return high, a * _signed(constant)


def _signed(value: int) -> int:
    """The same 64 bits as a signed integer."""
    return value - 2**64 if value >= 2**63 else value
