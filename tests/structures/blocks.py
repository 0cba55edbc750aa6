"""Parts that networks are made of."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Model(nn.Module):
    """Layers by name, and a forward given as a function of the model and its input."""

    def __init__(self, body: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


class Sum(nn.ModuleList):
    """Branches side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return reduce(operator.add, [branch(x) for branch in self])


class Scalar(nn.Module):
    """A learned factor: one number, or one per channel with `shape`."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def seq(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def conv(
    c_in: int, c_out: int, k: Any = 3, *, s: Any = 1, p: Any = None, d: int = 1, g: int = 1, bias: bool = True
) -> nn.Conv2d:
    """A convolution; by default padded to keep the size."""
    padding = d * (k // 2) if p is None else p
    return nn.Conv2d(c_in, c_out, k, s, padding, d, g, bias=bias)


def depthwise(c: int, k: Any = 3, **options: Any) -> nn.Conv2d:
    return conv(c, c, k, g=c, **options)


def conv_norm(c_in: int, c_out: int, k: Any = 3, **options: Any) -> nn.Sequential:
    return seq(conv(c_in, c_out, k, bias=False, **options), norm(c_out))


def norm(c: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(c)


def repvgg(c: int, *, out: int | None = None, s: int = 1, g: int = 1, identity: bool = True) -> nn.Module:
    """3x3, 1x1 and identity, each with its batch norm."""
    branches = [conv_norm(c, out or c, 3, s=s, g=g), conv_norm(c, out or c, 1, s=s, g=g)]
    return Sum([*branches, norm(c)] if identity else branches)


def mobileone(c: int, n: int, *, g: int = 1, k: int = 3) -> nn.Module:
    """n convolutions of one size, a 1x1 and an identity, each with its batch norm."""
    return Sum([*(conv_norm(c, c, k, g=g) for _ in range(n)), conv_norm(c, c, 1, g=g), norm(c)])


class RepMixer(nn.Module):
    """x + gamma (mixer(x) - norm(x)) of FastViT."""

    def __init__(self, c: int, k: int = 3) -> None:
        super().__init__()
        self.norm, self.mixer = Sum([norm(c)]), mobileone(c, 1, g=c, k=k)
        self.gamma = nn.Parameter(torch.ones(c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * (self.mixer(x) - self.norm(x))


class OwnNorm(nn.BatchNorm2d):
    """A user's batch norm: its own forward, written with the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Net(nn.Module):
    """A small network as a user writes it: blocks, methods, arguments with defaults."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.classes = classes
        self.stem = seq(conv_norm(3, 8, s=2), nn.ReLU())
        self.blocks = nn.ModuleList([repvgg(8), repvgg(8, g=4)])
        self.act = nn.ReLU()
        self.head = seq(nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, classes))

    def features(self, x: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, 8, H / 2, W / 2)."""
        x = self.stem(x)
        for block in self.blocks:
            x = self.act(block(x))
        return x

    def forward(self, x: Tensor, scale: float = 1.0, *, normalize: bool = False) -> Tensor:
        x = self.head(self.features(x).mean((2, 3))) * scale
        return x.softmax(-1) if normalize else x


def with_border(x: Tensor, value: Tensor, p: int) -> Tensor:
    """Zero padding whose border is overwritten, side by side."""
    y = F.pad(x, [p] * 4)
    y[:, :, 0:p, :], y[:, :, -p:, :] = value, value
    y[:, :, :, 0:p], y[:, :, :, -p:] = value, value
    return y


def nearest(factor: Any, mode: str = "nearest") -> nn.Upsample:
    return nn.Upsample(scale_factor=factor, mode=mode)


def slopes(*values: float) -> nn.PReLU:
    """A PReLU with these slopes."""
    layer = nn.PReLU(len(values))
    layer.weight.data = torch.tensor(values)
    return layer


def parameter(*shape: int) -> nn.Parameter:
    """Random numbers between 0.5 and 1.5."""
    return nn.Parameter(torch.rand(shape) + 0.5)


def in_parts(sizes: list[int], *layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Channels split into parts, a layer on each, and put together again."""
    return lambda: Model(
        lambda m, x: torch.cat([layer(part) for layer, part in zip(m.layers, x.split(sizes, 1), strict=True)], 1),
        layers=nn.ModuleList(make() for make in layers),
    )


def bias_free(ins: int, outs: int) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(ins, outs, 1, bias=False)
