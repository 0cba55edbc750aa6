"""The network of ``reparamkit demo``: a RepVGG block, and a layer over all pixels beside a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..testing import randomize

CHANNELS, SIDE = 16, 8


class Branches(nn.Module):
    """A 3 x 3 convolution, a 1 x 1 convolution and a skip, each with its batch norm (RepVGG)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3 = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.conv1 = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.skip = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, channels, height, width)."""
        out: Tensor = self.conv3(x) + self.conv1(x) + self.skip(x)
        return out.relu()


class Local(nn.Module):
    """A fully connected layer over the pixels of each channel, and a convolution beside it (RepMLP)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.fc = nn.Linear(side**2, side**2, bias=False)
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, channels, side, side)."""
        maps = x.reshape(-1, 1, self.side, self.side)
        full: Tensor = self.fc(maps.reshape(-1, self.side**2)).reshape(-1, 1, self.side, self.side)
        both: Tensor = full + self.norm(self.conv(maps))
        return both.reshape(x.shape)


def network() -> nn.Module:
    """The network with random weights and batch-norm statistics, in eval mode."""
    stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())
    return randomize(nn.Sequential(stem, Branches(CHANNELS), Local(SIDE), nn.ReLU(), Branches(CHANNELS)))


def example() -> Tensor:
    """An input of the network."""
    return torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
