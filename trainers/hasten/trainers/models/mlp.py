"""A residual multi-layer perceptron for data without an image's structure."""

from __future__ import annotations

import math

import torch
from torch import nn

from hasten.trainers.models.architectures import Shape


class ResidualMlp(nn.Module):
    """Blocks ``h + W2 silu(W1 norm(h) + condition)`` on flattened data.

    Args:
        shape: (C, H, W) of the data.
        width: of every layer, even.
        layers: blocks.
        dropout: before each block's last layer.
        classes: labels 0..classes, of which the last says "no label"; None without labels.
    """

    def __init__(
        self, *, shape: Shape, width: int, layers: int, dropout: float = 0.0, classes: int | None = None
    ) -> None:
        super().__init__()
        size = math.prod(shape)
        self.width = width
        self.entry = nn.Linear(size, width)
        self.embedding = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = None if classes is None else nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.exit = nn.Linear(width, size)

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The answer to x (B, C, H, W) at ``condition`` (B,), of x's shape."""
        embedded = self.embedding(sinusoids(condition, self.width))
        if self.labels is not None and labels is not None:
            embedded = embedded + self.labels(labels)
        hidden = self.entry(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, embedded)
        return torch.as_tensor(self.exit(self.norm(hidden)).reshape(x.shape))


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.condition = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        inside = nn.functional.silu(self.first(self.norm(hidden)) + self.condition(embedded))
        return hidden + torch.as_tensor(self.second(self.dropout(inside)))


def sinusoids(condition: torch.Tensor, width: int) -> torch.Tensor:
    """Cosines and sines of (B,) at ``width`` / 2 frequencies from 10 to 1e-4, shape (B, width).

    A condition is 0..T (DDPM), 0..1000 (flow) or ln(sigma)/4 (EDM), about -1.5..1: frequencies above 1 tell
    neighbours of the last apart.
    """
    half = width // 2
    exponents = torch.linspace(1.0, -4.0, half, dtype=torch.float32, device=condition.device)
    angles = condition.float()[:, None] * torch.pow(10.0, exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
