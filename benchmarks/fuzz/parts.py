# ruff: noqa: D102
"""Layers of users that random programs call besides torch's own; a reproducer prints those it needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenNorm(nn.Module):
    """Batch norm as arithmetic on buffers."""

    def __init__(self, c: int, rank: int) -> None:
        super().__init__()
        self.shape = (1, c) + (1,) * (rank - 2)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight * (self.running_var + 1e-5).rsqrt()).reshape(self.shape)
        return x * scale + (self.bias.reshape(self.shape) - self.running_mean.reshape(self.shape) * scale)


class FunctionalNorm(nn.BatchNorm2d):
    """A batch norm whose forward is written with the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Unpadded(nn.Conv2d):
    """A convolution that pads in its forward, whatever it was given."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


class StdConv(nn.Conv2d):
    """A convolution with weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SamePad(nn.Module):
    """Pads as in tensorflow, by an amount computed from the size."""

    def __init__(self, k: int, s: int) -> None:
        super().__init__()
        self.k, self.s = k, s

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        ph, pw = (max((-(n // -self.s) - 1) * self.s + self.k - n, 0) for n in (h, w))
        return F.pad(x, [pw // 2, pw - pw // 2, ph // 2, ph - ph // 2])


class Branching(nn.Module):
    """Takes another path for wide inputs."""

    def __init__(self, a: nn.Module, b: nn.Module, width: int) -> None:
        super().__init__()
        self.a, self.b, self.width = a, b, width

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > self.width:
            return self.a(x)
        return self.b(x)


class Deciding(nn.Module):
    """Takes another path for other numbers: it cannot be traced."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else self.b(x)


class Sum(nn.ModuleList):
    """Branches side by side."""

    def forward(self, x: Tensor) -> Tensor:
        total = self[0](x)
        for branch in list(self)[1:]:
            total = total + branch(x)
        return total


class SumInPlace(nn.ModuleList):
    """Branches side by side, added in place."""

    def forward(self, x: Tensor) -> Tensor:
        total = self[0](x)
        for branch in list(self)[1:]:
            total += branch(x)
        return total


class Residual(nn.Module):
    """x + gamma m(x)."""

    def __init__(self, m: nn.Module, gamma: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.m = m
        self.gamma = nn.Parameter(torch.ones(gamma))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.m(x)


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.m(x)


class Early(nn.Module):
    """Returns early where an attribute says so, as blocks do that can be deployed."""

    def __init__(self, a: nn.Module, n: nn.Module) -> None:
        super().__init__()
        self.a, self.n, self.deploy = a, n, False

    def forward(self, x: Tensor) -> Tensor:
        if self.deploy:
            return self.a(x)
        if hasattr(self, "merged"):
            return self.merged(x)
        return self.n(self.a(x)) + x


class Listed(nn.Module):
    """Calls its layers by a plain list, or by their names."""

    def __init__(self, a: nn.Module, n: nn.Module) -> None:
        super().__init__()
        self.a, self.n = a, n
        self.layers, self.names = [a, n], ["n", "a"]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        x = F.relu(x)
        for name in self.names:
            x = getattr(self, name)(x)
        return x


class Optional(nn.Module):
    """Has a layer that may be None, and an argument that nobody gives."""

    def __init__(self, a: nn.Module, n: nn.Module) -> None:
        super().__init__()
        self.a, self.n, self.skip = a, n, None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.n(self.a(x))
        if mask is not None:
            y = y * mask
        return y if self.skip is None else y + self.skip(x)


class Nested(nn.Module):
    """Values in dictionaries and tuples between its methods."""

    def __init__(self, a: nn.Module, n: nn.Module) -> None:
        super().__init__()
        self.a, self.n = a, n

    def features(self, x: Tensor) -> dict[str, tuple[Tensor, ...]]:
        return {"maps": (x, self.a(x))}

    def head(self, maps: tuple[Tensor, ...]) -> Tensor:
        return self.n(maps[1]) + maps[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(**self.features(x))


class Pair(nn.Module):
    """Two layers one after the other, of which the forward keeps the value between as an attribute."""

    def __init__(self, a: nn.Module, n: nn.Module) -> None:
        super().__init__()
        self.row = nn.Sequential(a, n)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.row(x)
        return self.last + x
