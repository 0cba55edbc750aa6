"""Axes that are cut into pieces, cropped or shuffled around a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Model, Sum, conv, conv_norm, norm, seq
from .table import MAPS_1D, Shape, Structure

EVEN: tuple[Shape, ...] = ((2, 4, 8, 12), (1, 4, 6, 10), (3, 4, 12, 8))


def focused(x: Tensor) -> Tensor:
    """Every other pixel, four times, as channels."""
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def _sorted_parts(x: Tensor, y: Tensor) -> Tensor:
    """Of channels that have four parts each the first parts, then the second ones..., of half the size of x."""
    n, c, h, w = x.shape
    return y.reshape(n, c, 4, h // 2, w // 2).transpose(1, 2).reshape(n, 4 * c, h // 2, w // 2)


class Causal(nn.Module):
    """A dilated convolution that is padded on both sides and cropped behind, with its norm."""

    def __init__(self, k: int, d: int) -> None:
        super().__init__()
        self.pad = (k - 1) * d
        self.conv, self.norm = nn.Conv1d(4, 4, k, padding=self.pad, dilation=d), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)[:, :, : -self.pad].contiguous()).relu()


PIECES = (
    Structure(
        "causal branches, by zeros at one end",
        lambda: Model(
            lambda m, x: m.a(F.pad(x, (2, 0))) + m.b(F.pad(x, (4, 0))) + x,
            a=nn.Conv1d(4, 4, 3, groups=4),
            b=nn.Conv1d(4, 4, 3, dilation=2, groups=4),
        ),
        MAPS_1D,
        "pad conv",
        equation="K'[j] = K_a[j + 2] + K_b[j / 2 + 2] + delta[j], j = -4..0: zeros are put before the sequence once",
    ),
    Structure(
        "causal, by a crop",
        lambda: seq(Causal(3, 1), Causal(3, 2)),
        MAPS_1D,
        "conv relu conv relu",
        equation="norm(crop(f)) = crop(s f + t)",
        source="TCN, Bai et al. 2018",
        near="a norm behind zero padding",
    ),
    Structure(
        "causal, cut to the length of its input",
        lambda: Model(
            lambda m, x: m.a(x)[..., : x.shape[-1]] + m.b(x).narrow(-1, 0, x.size(-1)) + x,
            a=nn.Conv1d(4, 4, 4, padding=3, groups=4),
            b=nn.Conv1d(4, 4, 2, padding=1, groups=4),
        ),
        MAPS_1D,
        "conv",
        needs_inputs=True,
        equation="n of n + k - 1 positions are all but the last k - 1",
        source="Mamba, Gu and Dao 2023",
        near="a slice up to a position that is computed otherwise",
    ),
    Structure(
        "kernels of the cross on what is cropped by sizes",
        lambda: Model(
            lambda m, x: m.a(x) + m.b(x[:, :, 1 : x.shape[2] - 1]) + m.c(x.narrow(3, 1, x.size(3) - 2)),
            a=conv(4, 6, p=0),
            b=conv(4, 6, (1, 3), p=0),
            c=conv(4, 6, (3, 1), p=0),
        ),
        EVEN,
        "conv",
        source="ACNet, Ding et al. 2019",
        near="a slice up to a position that is computed otherwise",
    ),
    Structure(
        "a crop that makes it unpadded",
        lambda: Model(lambda m, x: m.norm(m.conv(x)[:, :, 1:-1, 1:-1]), conv=conv(4, 6), norm=norm(6)),
        EVEN,
        "conv",
        equation="the taps that are left read no padding",
    ),
    Structure(
        "pixel unshuffle, 3x3, norm",
        lambda: seq(nn.PixelUnshuffle(2), conv_norm(16, 6)),
        EVEN,
        "conv",
        needs_inputs=True,
        equation="tap 2t + q of the map is tap t of part q; at sizes that are multiples of 2",
    ),
    Structure(
        "pixel unshuffle, twice, 1x1",
        lambda: seq(nn.PixelUnshuffle(2), nn.PixelUnshuffle(2), conv(64, 6, 1)),
        ((2, 4, 8, 12), (1, 4, 4, 8)),
        "conv",
        needs_inputs=True,
    ),
    Structure(
        "focus",
        lambda: Model(lambda m, x: m.layer(focused(x)), layer=conv_norm(16, 6)),
        EVEN,
        "conv",
        needs_inputs=True,
        equation="four strided windows of one tap, side by side, then a convolution",
        source="YOLOv5",
    ),
    Structure(
        "3x3 beside an average of 2x2, both of stride 2",
        lambda: Sum([conv_norm(4, 6, s=2), seq(nn.AvgPool2d(2), conv(4, 6, 1))]),
        EVEN,
        "conv",
        equation="both have n/2 outputs if n is even",
        near="strides that differ",
    ),
    Structure(
        "norm behind zero padding, cropped again",
        lambda: Model(
            lambda m, x: m.norm(m.conv(F.pad(x, (2, 2, 2, 2)))[..., 1:-1, 1:-1]), conv=conv(4, 6, p=0), norm=norm(6)
        ),
        EVEN,
        "conv",
    ),
    Structure(
        "wavelet, parts sorted, 1x1",
        lambda: Model(
            lambda m, x: m.c(_sorted_parts(x, m.w(x))),
            w=nn.Conv2d(4, 16, 2, stride=2, groups=4, bias=False),
            c=conv(16, 6, 1),
        ),
        EVEN,
        "conv",
        equation="a window of two positions, of stride 2, is at n // 2 places",
        source="invertible networks, Ardizzone et al. 2019",
    ),
)
