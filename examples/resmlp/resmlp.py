"""ResMLP: Feedforward networks for image classification with data-efficient training (arXiv 2105.03404).

Letters in the shapes: n images, c channels, t tokens. Parameters carry the names that timm gives them.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """``alpha x + beta`` per channel, in the place of a norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, c) -> (n, t, c)."""
        return self.alpha * x + self.beta


class ResBlock(nn.Module):
    """Tokens are mixed by one linear layer for all channels, then channels by a small MLP."""

    def __init__(self, dim: int, tokens: int, mlp_ratio: int, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = Affine(dim)
        self.linear_tokens = nn.Linear(tokens, tokens)
        self.norm2 = Affine(dim)
        self.mlp_channels = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(dim, dim * mlp_ratio),
                act=nn.GELU(),
                fc2=nn.Linear(dim * mlp_ratio, dim),
            )
        )
        self.ls1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.ls2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, c) -> (n, t, c)."""
        y: Tensor = x + self.ls1 * self.linear_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        z: Tensor = y + self.ls2 * self.mlp_channels(self.norm2(y))
        return z


class ResMLP(nn.Module):
    """Patches, blocks, affine, mean of the tokens, linear head. The published S12 has dim 384 and depth 12."""

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        dim: int = 384,
        depth: int = 12,
        mlp_ratio: int = 4,
        layer_scale: float = 0.1,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"images of {image_size} pixels do not divide into patches of {patch_size}")
        tokens = (image_size // patch_size) ** 2
        self.stem = nn.Sequential(OrderedDict(proj=nn.Conv2d(in_channels, dim, patch_size, patch_size)))
        self.blocks = nn.Sequential(*(ResBlock(dim, tokens, mlp_ratio, layer_scale) for _ in range(depth)))
        self.norm = Affine(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, in_channels, image_size, image_size) -> logits (n, num_classes)."""
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits
