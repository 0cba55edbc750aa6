"""Interpolation, averages and padding by positions of the map: they stay, and what is free there passes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Model, Sum, conv, conv_norm, norm, seq
from .table import MAPS, MAPS_1D, Structure


def bilinear(factor: int) -> nn.Upsample:
    """Upsampling between positions."""
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)


def padded(mode: str, **options: int) -> nn.Conv2d:
    """A convolution that pads with positions of the map."""
    return nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode, **options)


class Pyramid(nn.Module):
    """Two maps of different sizes, each through a layer of its own, the smaller one up-sampled; their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.down = conv(4, 6, s=2)
        self.top, self.side, self.norm = conv(6, 4, 1), conv(4, 4, 1), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        top = F.interpolate(self.top(self.down(x).relu()), size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.norm(self.side(x) + top).relu()


class Head(nn.Module):
    """Maps of two sizes, projected, up-sampled, put together and mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.down = conv(4, 6, s=2)
        self.a, self.b, self.mix, self.norm = conv(6, 4, 1), conv(4, 4, 1), conv(8, 4, 1, bias=False), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        small = F.interpolate(self.a(self.down(x).relu()), size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.norm(self.mix(torch.cat([self.b(x), small], 1))).relu()


class Elsewhere(nn.Module):
    """Maps of two sizes, projected and brought to the size of a map that no layer of the merge reads, and mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = conv(4, 6, s=2), conv(6, 6, s=2)
        self.a, self.b, self.mix, self.norm = conv(6, 4, 1), conv(6, 4, 1), conv(8, 4, 1, bias=False), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        large = self.down(x).relu()
        maps = self.a(large), self.b(self.deep(large).relu())
        same = [F.interpolate(y, size=x.size()[2:], mode="bilinear", align_corners=False) for y in maps]
        return self.norm(self.mix(torch.cat(same, 1))).relu()


RESAMPLED = (
    Structure(
        "3x3, bilinear, norm",
        lambda: seq(conv(4, 6), bilinear(2), norm(6)),
        MAPS,
        "conv upsample_bilinear2d",
        equation="s R(f) + t = R(s f + t), the weights of R sum to 1",
        near="3x3, bilinear, 3x3",
    ),
    Structure(
        "1x1, bilinear, 1x1",
        lambda: seq(conv(4, 8, 1), bilinear(2), conv(8, 4, 1)),
        MAPS,
        "conv upsample_bilinear2d",
        equation="W2 R(W1 x) = R(W2 W1 x), on the smaller side",
    ),
    Structure(
        "norm, reflection, 3x3",
        lambda: seq(norm(4), nn.ReflectionPad2d(1), conv(4, 6, p=0)),
        MAPS,
        "reflection_pad2d conv",
        equation="no zeros come in, so the shift passes",
        source="Johnson et al. 2016",
        near="norm before padding",
    ),
    Structure(
        "3x3 by reflection, 1x1 and identity",
        lambda: Sum([seq(padded("reflect"), norm(4)), conv_norm(4, 4, 1), norm(4)]),
        MAPS,
        "reflection_pad2d conv",
        equation="what reads no border reads x as the inside of R(x): K' = s3 K3 + pad(s1 K1) + s0 delta",
        near="reflected padding",
    ),
    Structure(
        "5x5 and 3x3 by circles, identity",
        lambda: Sum([nn.Conv2d(4, 4, 5, padding=2, padding_mode="circular"), padded("circular"), norm(4)]),
        MAPS,
        "new_empty conv",
        equation="padding by 1 is the inside of padding by 2: K' = K5 + pad(K3) + s0 delta",
        near="reflected padding",
    ),
    Structure(
        "3x3, replication, norm",
        lambda: seq(conv(4, 6), nn.ReplicationPad2d(1), norm(6)),
        MAPS,
        "conv replication_pad2d",
        equation="s R(f) + t = R(s f + t)",
    ),
    Structure(
        "3x3 by reflection, norm",
        lambda: seq(padded("reflect"), norm(4)),
        MAPS,
        "reflection_pad2d conv",
        equation="K' = s K",
    ),
    Structure(
        "norm, strided 3x3 by circles, in groups",
        lambda: seq(norm(4), padded("circular", stride=2, groups=2), norm(4)),
        MAPS,
        "new_empty conv",
        equation="K' = s2 K s1",
    ),
    Structure(
        "norm, 3 by replication, in one dimension",
        lambda: seq(nn.BatchNorm1d(4), nn.Conv1d(4, 5, 3, padding=1, padding_mode="replicate")),
        MAPS_1D,
        "replication_pad1d conv",
    ),
    Structure(
        "1x1, average of windows, norm",
        lambda: seq(conv(4, 6, 1), nn.AvgPool2d(4, 1), norm(6)),
        MAPS,
        "pool conv",
        equation="s A(W x) + t = (s W) A(x) + t",
        near="norm before a padded average",
    ),
    Structure(
        "3x3, an average that leaves out its padding, norm",
        lambda: seq(conv(4, 4), nn.AvgPool2d(3, 1, 1, count_include_pad=False), norm(4)),
        MAPS,
        "conv pool",
        equation="each window divides by what is in it",
        near="norm before a padded average",
    ),
    Structure(
        "3x3, an adaptive average, norm",
        lambda: seq(conv(4, 6), nn.AdaptiveAvgPool2d((3, 2)), norm(6)),
        MAPS,
        "conv _adaptive_avg_pool2d",
        equation="windows of any size",
    ),
    Structure(
        "branches, each up-sampled",
        lambda: Sum([seq(conv_norm(4, 4), bilinear(2)), seq(conv_norm(4, 4, 1), bilinear(2))]),
        MAPS,
        "conv upsample_bilinear2d",
        equation="R(f) + R(g) = R(f + g)",
    ),
    Structure(
        "a pyramid, its norm",
        Pyramid,
        MAPS,
        "conv relu conv upsample_bilinear2d conv add relu",
        needs_inputs=True,
        equation="s (f + R(g)) + t = s f + R(s g) + t",
        source="FPN, Lin et al. 2017",
    ),
    Structure(
        "maps of two sizes, put together and mixed",
        Head,
        MAPS,
        "conv relu conv upsample_bilinear2d conv add relu",
        equation="W [f, R(g)] = W1 f + R(W2 g)",
        source="SegFormer, Xie et al. 2021",
    ),
    Structure(
        "maps brought to the size of one that no layer reads",
        Elsewhere,
        MAPS,
        "conv relu conv relu conv upsample_bilinear2d conv upsample_bilinear2d add relu",
        equation="W [R(f), R(g)] = R(W1 f) + R(W2 g)",
        source="SegFormer, Xie et al. 2021",
    ),
    Structure(
        "interpolated between lines, in one dimension",
        lambda: Model(
            lambda m, x: m.norm(F.interpolate(m.conv(x), scale_factor=3, mode="linear")),
            conv=nn.Conv1d(4, 5, 3, padding=1),
            norm=nn.BatchNorm1d(5),
        ),
        MAPS_1D,
        "conv upsample_linear1d",
    ),
    Structure(
        "brought to half the size between lines",
        lambda: Model(
            lambda m, x: m.head(F.interpolate(m.norm(x), scale_factor=0.5, mode="bilinear")),
            norm=norm(4),
            head=conv(4, 5, 1),
        ),
        MAPS,
        "upsample_bilinear2d conv",
        equation="K R(D x + t) + b = (K D) R(x) + (b + K t)",
        near="brought to a third of the size, a norm before",
    ),
)
