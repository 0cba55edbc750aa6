"""Shifts before zero padding: biases with borders of their own."""

from __future__ import annotations

from torch import nn

from .blocks import Model, Sum, conv, depthwise, norm, parameter, seq
from .table import MAPS, MAPS_1D, Structure

BORDERS = (
    Structure(
        "1x1, norm, padded 3x3",
        lambda: seq(conv(4, 64, 1), norm(64), conv(64, 4)),
        MAPS,
        "conv cat cat add",
        equation="K' = K2 K1; the bias is sum K2 b1 inside, and less where the window reads padding",
        source="ECBSR, Zhang et al. 2021",
        near="norm before padding",
    ),
    Structure(
        "biased 1x7 then 7x1",
        lambda: seq(conv(4, 64, (1, 7), p=(0, 3)), conv(64, 4, (7, 1), p=(3, 0))),
        MAPS,
        "conv cat add",
        equation="K'[h,w] = K2[h] K1[w]; the bias is sum K2 b1, and less in the first and last rows",
        source="RepNeXt, Zhao et al. 2024",
        near="norm before padding",
    ),
    Structure(
        "biased rows through zero padding, side by side",
        lambda: Sum([conv(4, 4), seq(conv(4, 32, 1), conv(32, 4)), seq(conv(4, 4, 1), depthwise(4, 5)), norm(4)]),
        MAPS,
        "conv cat cat add",
        equation="K' = K + K2 K1 + K4 K3 + s delta; of the biases the wider border is kept",
        near="norm before padding",
    ),
    Structure(
        "1x1, norm, padded 3x3 in one dimension",
        lambda: seq(nn.Conv1d(4, 256, 1), nn.BatchNorm1d(256), nn.Conv1d(256, 4, 3, padding=1)),
        MAPS_1D,
        "conv cat add",
        equation="K' = K2 s K1; the bias is sum K2 t1, and less at both ends",
        near="norm before padding",
    ),
    Structure(
        "mean and deviation before padding",
        lambda: Model(
            lambda m, x: m.c((x - m.mean) / m.std),
            c=conv(4, 4),
            mean=parameter(1, 4, 1, 1),
            std=parameter(1, 4, 1, 1),
        ),
        MAPS,
        "sub conv",
        equation="K (x - m) / d = (K / d) (x - m); the shift stays before the padding",
        near="scale and shift before padding",
    ),
)
