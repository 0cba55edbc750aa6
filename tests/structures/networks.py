"""Pieces of real networks in which several merges meet."""

from __future__ import annotations

import operator
from functools import reduce

import torch
from torch import Tensor, nn

from .blocks import Model, OwnNorm, RepMixer, conv, conv_norm, norm, seq
from .dense import GATE, Affine
from .table import MAPS, TOKENS, Structure


class RepDepthwise(nn.Module):
    """Depthwise 3x3 with norm, 1x1 without, identity; one norm after the sum (RepViT)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.conv1, self.bn = conv_norm(c, c, g=c), conv(c, c, 1, g=c), norm(c)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn((self.conv(x) + self.conv1(x)) + x)


class Residual(nn.Module):
    """x + m(x)."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)


def mlp(c: int) -> nn.Module:
    """Depthwise convolution with norm, then two 1x1 with an activation between them."""
    return seq(conv_norm(c, c, 7, g=c), conv(c, 2 * c, 1), nn.GELU(), conv(2 * c, c, 1))


class Gate(nn.Module):
    """Squeeze and excite: one factor per channel, computed from the mean of the map."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.reduce, self.expand = conv(c, 2, 1), conv(2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project, each with its batch norm; then add."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.expand, self.mix, self.project = (
            conv_norm(c, 2 * c, 1),
            conv_norm(2 * c, 2 * c, g=2 * c),
            conv_norm(2 * c, c, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(torch.relu(self.mix(torch.relu(self.expand(x)))))


class DenseLayer(nn.Module):
    """Reads the sum of all earlier maps, which it is given as a list."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = conv_norm(c, c)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.relu(self.conv(reduce(operator.add, maps)) + maps[0])


class DenseBlock(nn.Module):
    """Layers that share one list, which grows after each of them."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(c) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        maps = [torch.relu(x)]
        for layer in self.layers:
            maps.append(layer(maps))
        return torch.cat(maps, 1)


def _flattened(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x).reshape(x.shape[0], -1)


class Turn(nn.Module):
    """(n, c, t) to (n, t, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


NETS = (
    Structure(
        "depthwise-bn, depthwise-bn",
        lambda: seq(conv_norm(4, 4, g=4), conv_norm(4, 4, g=4)),
        MAPS,
        "conv conv",
        equation="each norm into its own convolution; two padded windows stay two",
        near="padded 3x3, padded 3x3",
    ),
    Structure(
        "inverted residuals",
        lambda: seq(conv_norm(4, 4, 1), InvertedResidual(4), InvertedResidual(4)),
        MAPS,
        "conv conv relu conv relu conv add conv relu conv relu conv add",
        equation="each norm into its own convolution",
        near="expand then project",
    ),
    Structure(
        "squeeze and excite",
        lambda: seq(conv_norm(4, 4), nn.ReLU(), Gate(4)),
        MAPS,
        f"conv relu {GATE}",
        equation="K' = s K; the gate is computed from the input and stays",
    ),
    Structure(
        "own norm, squeeze and excite",
        lambda: seq(conv(4, 4), OwnNorm(4), nn.ReLU(), Gate(4), conv_norm(4, 4, 1)),
        MAPS,
        f"conv relu {GATE} conv",
        equation="K' = s K; the gate is computed from the input and stays",
    ),
    Structure(
        "repvit",
        lambda: seq(nn.GELU(), RepDepthwise(4), Residual(seq(conv_norm(4, 8, 1), nn.GELU(), conv_norm(8, 4, 1)))),
        MAPS,
        "gelu conv conv gelu conv add",
        equation="K' = s (s3 K3 + pad(K1) + delta), b' = s (t3 + b1) + t",
        source="RepViT, Wang et al. 2023",
    ),
    Structure(
        "fastvit",
        lambda: seq(nn.GELU(), RepMixer(4), Residual(mlp(4)), RepMixer(4), Residual(mlp(4))),
        MAPS,
        "gelu conv conv conv gelu conv add conv conv conv gelu conv add",
        equation="K' = delta + gamma (K_mixer - K_norm), and each norm into its own convolution",
        source="FastViT, Vasu et al. 2023",
    ),
    Structure(
        "a list that grows",
        lambda: DenseBlock(4),
        MAPS,
        "relu conv relu add conv add relu cat",
        equation="K' = s K; the sums of maps stay",
    ),
    Structure(
        "linear, norm of flattened tokens, reshape_as",
        lambda: Model(
            lambda m, x: (lambda y: m.norm(y.flatten(0, 1)).reshape_as(y))(m.fc(x)),
            fc=nn.Linear(5, 6, bias=False),
            norm=nn.BatchNorm1d(6),
        ),
        TOKENS[:2],
        "linear",
        needs_inputs=True,
        equation="W' = diag(s) W, b' = t",
        source="LeViT, Graham et al. 2021",
        near="norm over tokens, as many as channels",
    ),
    Structure(
        "a size read between conv and norm",
        lambda: Model(lambda m, x: _flattened(m.conv(x), m.norm), conv=conv(4, 4), norm=norm(4)),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="K' = s K; the size is read from the merged layer",
    ),
    Structure(
        "scales that are views",
        lambda: Model(
            lambda m, x: torch.relu(x) * m.a.view(1, -1, 1, 1) * m.b.view(1, -1, 1, 1),
            a=nn.Parameter(torch.rand(4)),
            b=nn.Parameter(torch.rand(4)),
        ),
        MAPS,
        "relu mul",
        equation="a (b x) = (a b) x",
    ),
    Structure(
        "patches, an affine layer, a residual, the mean of the tokens",
        lambda: Model(
            lambda m, x: m.head(m.norm((lambda t: t + m.mix(t.transpose(1, 2)).transpose(1, 2))(m.patches(x))).mean(1)),
            patches=seq(conv(4, 6, 2, s=2, p=0), nn.Flatten(2), Turn()),
            mix=nn.Linear(20, 20),
            norm=Affine(6),
            head=nn.Linear(6, 30),
        ),
        ((2, 4, 8, 10), (1, 4, 8, 10)),
        "conv linear linear",
        needs_inputs=True,
        equation="w' = 1^T (W + I) / t; H' = H diag(alpha), b' = b + H beta",
        source="ResMLP, Touvron et al. 2021",
    ),
)
