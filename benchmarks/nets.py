"""Networks of the benchmark ``peers.py`` that no package has: two as trained, one written by hand for inference."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# --- DBB-ResNet: the diverse branch block (Ding et al. 2021) in the places of the 3 x 3 of ResNet-18 ------------------


class BorderNorm(nn.Module):
    """A batch norm, then padding by what it makes of zero, as the published code fills it."""

    def __init__(self, channels: int, pad: int = 1) -> None:
        super().__init__()
        self.norm, self.pad = nn.BatchNorm2d(channels), pad

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, c, h, w) -> (n, c, h + 2 pad, w + 2 pad)."""
        norm, p = self.norm, self.pad
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        border = (norm.bias - norm.running_mean * scale).view(1, -1, 1, 1)
        out = F.pad(norm(x), [p] * 4)
        out[:, :, 0:p, :], out[:, :, -p:, :] = border, border
        out[:, :, :, 0:p], out[:, :, :, -p:] = border, border
        return out


def conv_norm(c_in: int, c_out: int, k: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, and its batch norm."""
    conv = nn.Conv2d(c_in, c_out, k, stride, dilation * (k // 2), dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class DiverseBranches(nn.Module):
    """3 x 3; 1 x 1; 1 x 1 then 3 x 3; 1 x 1 then average: each with its norms."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.origin, self.point = conv_norm(c_in, c_out, 3, stride), conv_norm(c_in, c_out, 1, stride)
        self.squeeze = nn.Sequential(
            nn.Conv2d(c_in, c_in, 1, bias=False),
            BorderNorm(c_in),
            nn.Conv2d(c_in, c_out, 3, stride, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.average = nn.Sequential(
            nn.Conv2d(c_in, c_out, 1, bias=False), BorderNorm(c_out), nn.AvgPool2d(3, stride), nn.BatchNorm2d(c_out)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, c_in, h, w)."""
        out: Tensor = self.origin(x) + self.point(x) + self.squeeze(x) + self.average(x)
        return out


class BasicBlock(nn.Module):
    """The block of ResNet-18, with diverse branches."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = DiverseBranches(c_in, c_out, stride), DiverseBranches(c_out, c_out)
        self.short = nn.Identity() if c_in == c_out and stride == 1 else conv_norm(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, c_in, h, w)."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


def dbb_resnet18(classes: int = 1000) -> nn.Module:
    """ResNet-18 with diverse branches in all of its blocks."""
    layers: list[nn.Module] = [conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    for c_in, c_out in pairwise(widths):
        layers.append(BasicBlock(c_in, c_out, 1 if c_in == c_out else 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


# --- UniRepLKNet-like: large depthwise kernels with dilated ones beside them (Ding et al. 2024) -----------------------

DILATED = {13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)), 3: ()}
"""(kernel, dilation) of the branches beside a large kernel."""


class LargeKernel(nn.Module):
    """A large depthwise kernel and dilated small ones, each with its norm; then one norm for the sum."""

    def __init__(self, c: int, kernel: int) -> None:
        super().__init__()
        self.large = conv_norm(c, c, kernel, groups=c)
        self.dilated = nn.ModuleList(conv_norm(c, c, k, groups=c, dilation=d) for k, d in DILATED[kernel])
        self.norm = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, c, h, w)."""
        out = self.large(x)
        for branch in self.dilated:
            out = out + branch(x)
        return self.norm(out)


class ResponseNorm(nn.Module):
    """Global response normalisation of ConvNeXt V2, over (n, h, w, c)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(c)), nn.Parameter(torch.zeros(c))

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, h, w, c)."""
        length = x.pow(2).sum((1, 2), keepdim=True).sqrt()
        return self.gamma * (x * (length / (length.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


class UniRepLKBlock(nn.Module):
    """Large kernel, squeeze and excite, two linear layers with a norm behind them, a scale, identity."""

    def __init__(self, c: int, kernel: int) -> None:
        super().__init__()
        self.mix = LargeKernel(c, kernel)
        self.down, self.up = nn.Conv2d(c, c // 4, 1), nn.Conv2d(c // 4, c, 1)
        self.fc1, self.response, self.fc2 = nn.Linear(c, 4 * c), ResponseNorm(4 * c), nn.Linear(4 * c, c, bias=False)
        self.norm, self.gamma = nn.BatchNorm2d(c), nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, c, h, w)."""
        y = self.mix(x)
        y = y * torch.sigmoid(self.up(torch.relu(self.down(y.mean((2, 3), keepdim=True)))))
        y = self.fc2(self.response(F.gelu(self.fc1(y.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return x + self.gamma.view(1, -1, 1, 1) * self.norm(y)


def unireplknet_like(classes: int = 1000) -> nn.Module:
    """Four stages of the block, of small width."""
    layers: list[nn.Module] = [conv_norm(3, 40, 3, 2), nn.GELU(), conv_norm(40, 40, 3, 2)]
    for width, depth, kernel in ((40, 2, 3), (80, 2, 13), (160, 6, 13), (320, 2, 13)):
        layers += [conv_norm(width // 2, width, 3, 2)] if width > 40 else []
        layers += [UniRepLKBlock(width, kernel) for _ in range(depth)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(320, classes))


# --- RepVGG-A0 as one would write it for inference --------------------------------------------------------------------


def repvgg_a0_plain(classes: int = 1000) -> nn.Module:
    """The limit: 3 x 3 convolutions and ReLU of the widths of RepVGG-A0, nothing else."""
    layers: list[nn.Module] = []
    c_in = 3
    for width, depth in ((48, 1), (48, 2), (96, 4), (192, 14), (1280, 1)):
        for k in range(depth):
            layers += [nn.Conv2d(c_in, width, 3, 1 if k else 2, 1), nn.ReLU()]
            c_in = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes))
