"""RepMLPNet: Hierarchical Vision MLP with Re-parameterized Locality (CVPR 2022, arXiv 2112.11081).

Letters in the shapes: n images, c channels, H x W the map, h x w one partition of it, s share-sets.
Parameters carry the names of the released checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields, replace
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn(c_in: int, c_out: int, kernel: int, *, stride: int = 1, padding: int = 0, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, then batch norm: (n, c_in, H, W) -> (n, c_out, H', W')."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(c_out)))


def patch_embedding(c_in: int, c_out: int, patch: int) -> nn.Sequential:
    """Disjoint patches to channels: (n, c_in, H, W) -> (n, c_out, H / patch, W / patch), not negative."""
    layer = conv_bn(c_in, c_out, patch, stride=patch)
    layer.add_module("relu", nn.ReLU())
    return layer


class GlobalPerceptron(nn.Module):
    """One gate per channel, computed from the mean of the map."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, H, W) -> gates in (0, 1) of shape (n, c, 1, 1)."""
        hidden = F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))
        return torch.sigmoid(self.fc2(hidden))


class RepMLPBlock(nn.Module):
    """A fully connected layer over h x w partitions, with convolutions beside it while training.

    Channel k belongs to share-set k mod s; all channels of a share-set use the same weights. The convolutions
    see a partition at a time: their zero padding is the border of the partition, not of the image.
    """

    def __init__(
        self,
        channels: int,
        h: int,
        w: int,
        *,
        share_sets: int = 1,
        kernels: tuple[int, ...] = (1, 3),
        gate_ratio: int | None = 4,
    ) -> None:
        super().__init__()
        self.channels, self.h, self.w, self.share_sets, self.kernels = channels, h, w, share_sets, kernels
        self.gp = None if gate_ratio is None else GlobalPerceptron(channels, channels // gate_ratio)
        width = share_sets * h * w
        self.fc3 = nn.Conv2d(width, width, 1, bias=False, groups=share_sets)
        self.fc3_bn = nn.BatchNorm2d(share_sets)
        for k in kernels:
            branch = conv_bn(share_sets, share_sets, k, padding=k // 2, groups=share_sets)
            self.add_module(f"repconv{k}", branch)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, H, W) -> (n, c, H, W), for any H and W that are multiples of h and w."""
        origin_shape = x.shape
        h_parts, w_parts = origin_shape[2] // self.h, origin_shape[3] // self.w
        # The batch size is named, not -1: a batch of 64 maps of 9 x 9 also has the size of 81 maps of 8 x 8.
        parts = x.reshape(origin_shape[0], self.channels, h_parts, self.h, w_parts, self.w)
        out = self.mix(parts.permute(0, 2, 4, 1, 3, 5))
        # c, not s as in the published code, whose last reshape puts partitions in the place of channels.
        out = out.reshape(-1, h_parts, w_parts, self.channels, self.h, self.w)
        out = out.permute(0, 3, 1, 4, 2, 5).reshape(*origin_shape)
        return out if self.gp is None else out * self.gp(x)

    def mix(self, parts: Tensor) -> Tensor:
        """Channel and local perceptron: (n, H/h, W/w, c, h, w) -> (n * H/h * W/w * c/s, s, h, w)."""
        out = self.fc3(parts.reshape(-1, self.share_sets * self.h * self.w, 1, 1))
        mixed: Tensor = self.fc3_bn(out.reshape(-1, self.share_sets, self.h, self.w))
        maps = parts.reshape(-1, self.share_sets, self.h, self.w)
        branches = [getattr(self, f"repconv{k}")(maps) for k in self.kernels]
        return mixed + reduce(torch.add, branches) if branches else mixed


class FFNBlock(nn.Module):
    """Two 1x1 convolutions with a GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.ffn_fc1 = conv_bn(channels, hidden, 1)
        self.act = nn.GELU()
        self.ffn_fc2 = conv_bn(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, H, W) -> (n, c, H, W)."""
        out: Tensor = self.ffn_fc2(self.act(self.ffn_fc1(x)))
        return out


class RepMLPUnit(nn.Module):
    """y = x + RepMLPBlock(BN(x)), then y + FFN(BN(y))."""

    def __init__(self, block: RepMLPBlock, ffn_ratio: int = 4) -> None:
        super().__init__()
        self.prebn1 = nn.BatchNorm2d(block.channels)
        self.repmlp_block = block
        self.prebn2 = nn.BatchNorm2d(block.channels)
        self.ffn_block = FFNBlock(block.channels, block.channels * ffn_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, H, W) -> (n, c, H, W)."""
        y: Tensor = x + self.repmlp_block(self.prebn1(x))
        z: Tensor = y + self.ffn_block(self.prebn2(y))
        return z


@dataclass(frozen=True)
class RepMLPNetConfig:
    """What tells one RepMLPNet from another; the tuples have one entry per stage."""

    channels: tuple[int, ...]
    partitions: tuple[int, ...]
    """Side h = w of a partition. The published nets use the side of the whole map: one partition."""
    units: tuple[int, ...]
    share_sets: tuple[int, ...]
    image_size: int = 224
    """The side the net was designed for; every multiple that cuts into whole partitions works."""
    patch_size: int = 4
    in_channels: int = 3
    kernels: tuple[int, ...] = (1, 3)
    """Sizes of the local perceptron's convolutions; none: no local perceptron."""
    gate_ratio: int | None = 4
    """Channels per hidden channel of the global perceptron; None: no global perceptron."""
    ffn_ratio: int = 4

    def __post_init__(self) -> None:
        if len({len(self.channels), len(self.partitions), len(self.units), len(self.share_sets)}) != 1:
            raise ValueError("channels, partitions, units and share_sets need one entry per stage each")
        if any(c % s for c, s in zip(self.channels, self.share_sets, strict=True)):
            raise ValueError(f"channels {self.channels} are not multiples of the share-sets {self.share_sets}")
        if len(set(self.kernels)) != len(self.kernels) or any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise ValueError(f"kernels must be distinct odd numbers, not {self.kernels}")


CONFIGS = {
    "repmlpnet_t224": RepMLPNetConfig((64, 128, 256, 512), (56, 28, 14, 7), (2, 2, 6, 2), (1, 4, 16, 128), 224),
    "repmlpnet_b224": RepMLPNetConfig((96, 192, 384, 768), (56, 28, 14, 7), (2, 2, 12, 2), (1, 4, 32, 128), 224),
    "repmlpnet_t256": RepMLPNetConfig((64, 128, 256, 512), (64, 32, 16, 8), (2, 2, 6, 2), (1, 4, 16, 128), 256),
    "repmlpnet_b256": RepMLPNetConfig((96, 192, 384, 768), (64, 32, 16, 8), (2, 2, 12, 2), (1, 4, 32, 128), 256),
    "repmlpnet_d256": RepMLPNetConfig((80, 160, 320, 640), (64, 32, 16, 8), (2, 2, 18, 2), (1, 4, 16, 128), 256),
    "repmlpnet_l256": RepMLPNetConfig((96, 192, 384, 768), (64, 32, 16, 8), (2, 2, 18, 2), (1, 4, 32, 256), 256),
    # Ours, for small images: its first stage has 2 x 2 partitions at 32 px; it also runs at 64 px and beyond.
    "repmlpnet_tiny32": RepMLPNetConfig((32, 64, 128), (4, 4, 2), (2, 2, 2), (2, 8, 32), 32),
}


class RepMLPNet(nn.Module):
    """Stem, stages of units with a patch embedding between stages, batch norm, mean, linear head."""

    def __init__(self, config: RepMLPNetConfig, num_classes: int = 1000) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.conv_embedding = patch_embedding(config.in_channels, channels[0], config.patch_size)
        self.stages = nn.ModuleList(self._stage(i) for i in range(len(channels)))
        self.embeds = nn.ModuleList(patch_embedding(c_in, c_out, 2) for c_in, c_out in pairwise(channels))
        self.head_norm = nn.BatchNorm2d(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units of all stages, in order."""
        return [unit for stage in self.stages for unit in stage]  # type: ignore[union-attr]

    def _stage(self, i: int) -> nn.Sequential:
        return nn.Sequential(*(RepMLPUnit(self._block(i), self.config.ffn_ratio) for _ in range(self.config.units[i])))

    def _block(self, i: int) -> RepMLPBlock:
        c, side = self.config, self.config.partitions[i]
        return RepMLPBlock(
            c.channels[i], side, side, share_sets=c.share_sets[i], kernels=c.kernels, gate_ratio=c.gate_ratio
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, in_channels, H, W) -> logits (n, num_classes)."""
        x = self.head_norm(self.forward_features(x)[-1])
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (n, in_channels, H, W) -> one map per stage, (n, channels[i], H / 2^(i+2), W / 2^(i+2)).

        With four stages and 4x4 patches: the strides 4, 8, 16 and 32 that a segmentation head reads.
        """
        maps = [self.stages[0](self.conv_embedding(x))]
        for i, embed in enumerate(self.embeds, start=1):
            maps.append(self.stages[i](embed(maps[-1])))
        return tuple(maps)


def create_model(name: str, num_classes: int = 1000, **overrides: Any) -> RepMLPNet:
    """The net called `name` in `CONFIGS`, with fields of its configuration replaced by `overrides`."""
    if name not in CONFIGS:
        raise ValueError(f"no model is called {name!r}; there are: {', '.join(CONFIGS)}")
    known = {field.name for field in fields(RepMLPNetConfig)}
    if unknown := sorted(set(overrides) - known):
        raise ValueError(f"no option is called {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
    return RepMLPNet(replace(CONFIGS[name], **overrides), num_classes)


@torch.no_grad()
def randomize_batch_norm(model: nn.Module, seed: int = 0) -> None:
    """Give every batch norm of `model` random statistics and a random affine part, some scales negative.

    A fresh batch norm is almost the identity: whoever folds it wrongly gets nearly the right answer.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            _randomize(module, generator)


def _randomize(norm: nn.BatchNorm2d, generator: torch.Generator) -> None:
    uniform = torch.rand(4, norm.num_features, generator=generator)
    signs = torch.randint(0, 2, (norm.num_features,), generator=generator) * 2 - 1
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.copy_(uniform[0] - 0.5)
        norm.running_var.copy_(uniform[1] + 0.5)
    if norm.affine:
        norm.weight.copy_((uniform[2] + 0.5) * signs)
        norm.bias.copy_(uniform[3] - 0.5)
