"""RepMLPNet with a head in the manner of UPerNet (arXiv 1807.10221): one class per pixel.

Letters in the shapes: n images, H x W pixels, k classes, c channels of the head.
"""

from __future__ import annotations

import torch
from model import RepMLPNet, RepMLPNetConfig, create_model
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = RepMLPNetConfig(
    channels=(16, 32, 64, 128),
    partitions=(8, 4, 4, 2),
    units=(1, 1, 2, 1),
    share_sets=(1, 2, 8, 32),
    image_size=32,
    patch_size=2,
    ffn_ratio=2,
    in_channels=1,
)
"""For canvases of 32 pixels: maps of 16, 8, 4 and 2 pixels, the first two in 2 x 2 partitions."""


def conv_bn_relu(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    """(n, c_in, H, W) -> (n, c_out, H, W), not negative."""
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


def resized(x: Tensor, like: Tensor) -> Tensor:
    """`x` with the height and width of `like`."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """The coarsest map together with its averages over 1 x 1, 2 x 2, ... regions."""

    def __init__(self, c_in: int, c: int, regions: tuple[int, ...]) -> None:
        super().__init__()
        self.regions = regions
        self.branches = nn.ModuleList(conv_bn_relu(c_in, c, 1) for _ in regions)
        self.fuse = conv_bn_relu(c_in + c * len(regions), c, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c_in, H, W) -> (n, c, H, W)."""
        parts = [x]
        for size, branch in zip(self.regions, self.branches, strict=True):
            parts.append(resized(branch(F.adaptive_avg_pool2d(x, size)), x))
        pooled: Tensor = self.fuse(torch.cat(parts, 1))
        return pooled


class UPerHead(nn.Module):
    """Pyramid pooling, a feature pyramid from coarse to fine, all its levels side by side, a class per pixel."""

    def __init__(self, channels: tuple[int, ...], classes: int, c: int, regions: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.pooling = PyramidPooling(channels[-1], c, regions)
        self.lateral = nn.ModuleList(conv_bn_relu(width, c, 1) for width in channels[:-1])
        self.smooth = nn.ModuleList(conv_bn_relu(c, c, 3) for _ in channels[:-1])
        self.fuse = conv_bn_relu(c * len(channels), c, 3)
        self.classify = nn.Conv2d(c, classes, 1)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Maps (n, channels[i], H_i, W_i), fine to coarse -> logits (n, k, H_0, W_0)."""
        levels = [self.pooling(maps[-1])]
        for x, lateral in zip(reversed(maps[:-1]), reversed(self.lateral), strict=True):
            side = lateral(x)
            levels.append(side + resized(levels[-1], side))
        smoothed = [smooth(x) for x, smooth in zip(levels[:0:-1], self.smooth, strict=True)]
        parts = [smoothed[0], *(resized(x, smoothed[0]) for x in (*smoothed[1:], levels[0]))]
        logits: Tensor = self.classify(self.fuse(torch.cat(parts, 1)))
        return logits


class Segmenter(nn.Module):
    """Images (n, in_channels, H, W) -> logits (n, k, H, W)."""

    def __init__(self, backbone: RepMLPNet, classes: int, c: int = 32) -> None:
        super().__init__()
        # The parts of the backbone that only classify whole images would be trained for nothing.
        backbone.head_norm, backbone.head = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.backbone = backbone
        self.head = UPerHead(backbone.config.channels, classes, c)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units of the backbone, in order."""
        return self.backbone.blocks

    def forward(self, x: Tensor) -> Tensor:
        """One logit per class and pixel."""
        return resized(self.head(self.backbone.forward_features(x)), x)


def new_segmenter(name: str, in_channels: int, classes: int, c: int) -> Segmenter:
    """An untrained model: "small", or with the backbone of this name among the published ones."""
    if name == "small":
        config = SMALL if in_channels == 1 else RepMLPNetConfig(**{**vars(SMALL), "in_channels": in_channels})
        return Segmenter(RepMLPNet(config), classes, c)
    return Segmenter(create_model(name, in_channels=in_channels), classes, c)
