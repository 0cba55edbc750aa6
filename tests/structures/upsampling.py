"""Convolutions behind nearest upsampling."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Model, conv, conv_norm, depthwise, nearest, repvgg, seq
from .table import MAPS, MAPS_1D, MAPS_3D, Structure


def _upsampled_branches(m: Any, x: Tensor) -> Tensor:
    y = F.interpolate(x, size=(2 * x.shape[2], 2 * x.shape[3]))
    return m.a(y) + m.b(y) + y


def _twice(x: Tensor) -> Tensor:
    """Nearest up-sampling, spelled out."""
    return x.repeat_interleave(2, -1).repeat_interleave(2, dim=-2)


UPSAMPLED = (
    Structure(
        "nearest, padded conv, norm",
        lambda: seq(nearest(2), conv_norm(4, 5)),
        MAPS,
        "conv",
        objective="flops",
        equation="K'[2 h + a] = sum of the taps that read pixel h: k + 1 taps, stride 2",
        source="FPN, Lin et al. 2017",
    ),
    Structure(
        "nearest x3, grouped conv",
        lambda: seq(nearest(3), conv(4, 6, 5, g=2)),
        MAPS,
        "conv",
        objective="flops",
        equation="taps that read one pixel are summed; stride 3",
        near="nearest by a factor that float32 does not hold",
    ),
    Structure(
        "nearest-exact x7, depthwise conv",
        lambda: seq(nearest(7, "nearest-exact"), depthwise(4)),
        MAPS,
        "conv",
        objective="flops",
        equation="taps that read one pixel are summed; stride 7",
        near="nearest by a half",
    ),
    Structure(
        "nearest, conv1d",
        lambda: seq(nearest(2), nn.Conv1d(4, 5, 3, padding=1)),
        MAPS_1D,
        "conv",
        objective="flops",
        equation="taps that read one pixel are summed; stride 2",
        near="bilinear, padded conv",
    ),
    Structure(
        "nearest, conv3d",
        lambda: seq(nearest((1, 2, 2)), nn.Conv3d(4, 5, 3, padding=1)),
        MAPS_3D,
        "conv",
        objective="flops",
        equation="taps that read one pixel are summed; stride (1, 2, 2)",
    ),
    Structure(
        "pixels repeated, conv",
        lambda: Model(lambda m, x: m.a(_twice(x)), a=conv(4, 5)),
        MAPS,
        "conv",
        objective="flops",
        equation="taps that read one pixel are summed; stride 2",
    ),
    Structure(
        "conv, pixels repeated, 1x1 conv",
        lambda: Model(lambda m, x: m.b(_twice(m.a(x))), a=conv(4, 5), b=conv(5, 4, 1)),
        MAPS,
        "conv",
        equation="W R(K x) = R(W K x)",
    ),
    Structure(
        "nearest to twice the size, branches, skip",
        lambda: Model(lambda m, x: _upsampled_branches(m, x), a=conv_norm(4, 4), b=conv(4, 4, 1)),
        MAPS,
        "conv",
        objective="flops",
        equation="taps that read one pixel are summed, of s3 K3 + pad(K1) + delta",
        near="nearest to a size that is no multiple for others",
    ),
    Structure(
        "nearest, branches",
        lambda: seq(nn.UpsamplingNearest2d(scale_factor=2), repvgg(4)),
        MAPS,
        "upsample_nearest2d conv",
        equation="K' = s3 K3 + pad(s1 K1) + s0 delta; the upsampling would cost more numbers and stays",
        near="nearest, padded conv",
    ),
    Structure(
        "nearest, strided conv",
        lambda: seq(nearest(2), conv(4, 5, s=2)),
        MAPS,
        "conv",
        equation="K'[-1] = K[-1], K'[0] = K[0] + K[1]; the strides cancel",
    ),
)
