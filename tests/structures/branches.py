"""Layers side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Model, RepMixer, Scalar, Sum, conv, conv_norm, depthwise, mobileone, norm, parameter, repvgg, seq
from .table import MAPS, MAPS_1D, MAPS_3D, ROWS, TOKENS, Structure


class QARepVGG(nn.Module):
    """3x3 with batch norm, 1x1 with a factor and no norm, identity without norm, one norm after the sum."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.dense, self.point, self.norm = conv_norm(c, c, 3), conv(c, c, 1), norm(c)
        self.alpha = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.dense(x) + self.alpha * self.point(x) + x)


class DBB(nn.Module):
    """The diverse branch block: 3x3; 1x1; 1x1 then 3x3; 1x1 then average."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.origin, self.point = conv_norm(c, c, 3), conv_norm(c, c, 1)
        self.squeeze = seq(conv(c, c, 1, bias=False), conv(c, c, 3, bias=False), norm(c))
        self.average = seq(conv(c, c, 1, bias=False), nn.AvgPool2d(3, 1, 1), norm(c))

    def forward(self, x: Tensor) -> Tensor:
        return self.origin(x) + self.point(x) + self.squeeze(x) + self.average(x)


BRANCHES = (
    Structure(
        "repvgg",
        lambda: seq(repvgg(4), nn.ReLU()),
        MAPS,
        "conv relu",
        equation="K' = s3 K3 + pad(s1 K1) + s0 delta, b' = t3 + t1 + t0",
        source="RepVGG, Ding et al. 2021",
        near="a sum that broadcasts channels",
    ),
    Structure(
        "repvgg grouped",
        lambda: repvgg(4, g=2),
        MAPS,
        "conv",
        equation="delta[i, i mod (C / g)] = 1",
        source="RepVGG, Ding et al. 2021",
    ),
    Structure(
        "repvgg stride 2",
        lambda: repvgg(4, out=8, s=2, identity=False),
        MAPS,
        "conv",
        equation="K' = s3 K3 + pad(s1 K1), at stride 2",
        source="RepVGG, Ding et al. 2021",
        near="strides that differ",
    ),
    Structure(
        "repvgg without identity",
        lambda: repvgg(4, identity=False),
        MAPS,
        "conv",
        equation="K' = s3 K3 + pad(s1 K1), b' = t3 + t1",
        source="RepVGG, Ding et al. 2021",
        near="a sum that broadcasts channels",
    ),
    Structure(
        "mobileone depthwise",
        lambda: mobileone(4, 4, g=4),
        MAPS,
        "conv",
        equation="K' = sum_n s_n K_n + pad(s1 K1) + s0 delta",
        source="MobileOne, Vasu et al. 2023",
    ),
    Structure(
        "mobileone pointwise",
        lambda: mobileone(4, 3, k=1),
        MAPS,
        "conv",
        equation="K' = sum_n s_n K_n + s0 delta, of 1x1 kernels",
        source="MobileOne, Vasu et al. 2023",
    ),
    Structure(
        "mobileone 5x5",
        lambda: mobileone(4, 2, g=4, k=5),
        MAPS,
        "conv",
        equation="K' = sum_n s_n K_n + pad(s1 K1) + s0 delta, of 5x5 kernels",
        source="MobileOne, Vasu et al. 2023",
    ),
    Structure(
        "qarepvgg",
        lambda: seq(QARepVGG(4), nn.ReLU()),
        MAPS,
        "conv relu",
        equation="K' = s (s3 K3 + alpha pad(K1) + delta)",
        source="QARepVGG, Chu et al. 2022",
        near="an output used elsewhere",
    ),
    Structure(
        "acnet",
        lambda: Sum([conv_norm(4, 5), conv_norm(4, 5, (3, 1), p=(1, 0)), conv_norm(4, 5, (1, 3), p=(0, 1))]),
        MAPS,
        "conv",
        equation="K' = K_square + embed(K_column) + embed(K_row)",
        source="ACNet, Ding et al. 2019",
        near="strips of a large cross",
    ),
    Structure(
        "3x3 + average pool",
        lambda: Sum([conv_norm(4, 4), seq(nn.AvgPool2d(3, 1, 1), norm(4))]),
        MAPS,
        "conv",
        equation="avg_k = 1 / k^2 on the diagonal",
        source="DBB, Ding et al. 2021",
        near="averages that do not count padding",
    ),
    Structure(
        "dbb",
        lambda: DBB(4),
        MAPS,
        "conv",
        equation="K' = K + pad(K1) + K2 K1 + (1 / k^2) K1",
        source="DBB, Ding et al. 2021",
        near="norm before padding",
    ),
    Structure(
        "dense and dilated",
        lambda: Sum([seq(depthwise(4, 7), norm(4)), *(seq(depthwise(4, 3, d=d), norm(4)) for d in (1, 2, 3))]),
        MAPS,
        "conv",
        equation="taps of a dilated kernel are d apart",
        source="UniRepLKNet, Ding et al. 2024",
        near="strips of a large cross",
    ),
    Structure(
        "3x3 + 2x2 dilated",
        lambda: Sum([depthwise(4), depthwise(4, 2, d=2, p=1)]),
        MAPS,
        "conv",
        equation="offsets {d j - p}: the corners of the 3x3",
        source="RepNeXt, Zhao et al. 2024",
    ),
    Structure(
        "4x4 + 2x2, stride 2",
        lambda: Sum([conv(4, 4, 4, s=2, p=1), conv(4, 4, 2, s=2, p=0)]),
        MAPS,
        "conv",
        equation="the union of the offsets, at one stride",
        near="strides that differ",
    ),
    Structure(
        "3x3 + 1x1, unpadded by crop",
        lambda: Model(
            lambda m, x: m.dense(x) + m.point(F.pad(x, (-1, -1, -1, -1))), dense=conv(4, 4, p=0), point=conv(4, 4, 1)
        ),
        MAPS,
        "conv",
        equation="a crop is a negative padding",
        source="ACNet, Ding et al. 2019",
    ),
    Structure(
        "repnext",
        lambda: Sum(
            [
                depthwise(4, 7),
                depthwise(4, (5, 3), p=(2, 1)),
                seq(depthwise(4, (1, 7), p=(0, 3), bias=False), depthwise(4, (7, 1), p=(3, 0))),
            ]
        ),
        MAPS,
        "conv",
        equation="K' = K7 + embed(K5x3) + K7x1 K1x7",
        source="RepNeXt, Zhao et al. 2024",
    ),
    Structure(
        "repmixer",
        lambda: RepMixer(4),
        MAPS,
        "conv",
        equation="K' = delta + gamma (K_mixer - K_norm)",
        source="FastViT, Vasu et al. 2023",
    ),
    Structure(
        "repmixer on a row",
        lambda: Model(lambda m, x: x + m.mix(x), mix=nn.Conv1d(4, 4, 5, padding=2, groups=4)),
        MAPS_1D,
        "conv",
        equation="K' = K + delta",
        source="FastViT, Vasu et al. 2023",
    ),
    Structure(
        "x + depthwise(x)",
        lambda: Model(lambda m, x: x + m.conv(x), conv=depthwise(4)),
        MAPS,
        "conv",
        equation="K' = K + delta",
        source="CPVT, Chu et al. 2021",
        near="a sum that broadcasts channels",
    ),
    Structure(
        "x + conv-bn(x)",
        lambda: Model(lambda m, x: x + m.conv(x), conv=conv_norm(4, 4)),
        MAPS,
        "conv",
        equation="K' = s K + delta, b' = t",
        near="a sum that broadcasts channels",
    ),
    Structure(
        "x - conv(x)",
        lambda: Model(lambda m, x: x - m.conv(x), conv=conv(4, 4)),
        MAPS,
        "conv",
        equation="K' = delta - K, b' = -b",
    ),
    Structure(
        "scalar alpha",
        lambda: Sum([seq(conv_norm(4, 4), Scalar()), seq(conv_norm(4, 4, 1), Scalar(1))]),
        MAPS,
        "conv",
        equation="K' = alpha K3 + beta pad(K1)",
        source="PP-YOLOE, Xu et al. 2022",
    ),
    Structure(
        "gated residual",
        lambda: Model(
            lambda m, x: torch.sigmoid(m.gate) * x + (1 - torch.sigmoid(m.gate)) * m.conv(x),
            conv=depthwise(4),
            gate=nn.Parameter(torch.tensor(0.3)),
        ),
        MAPS,
        "conv",
        equation="K' = (1 - a) K + a delta, a = sigmoid(gate)",
        source="EfficientViM, Lee et al. 2024",
    ),
    Structure(
        "linear + linear",
        lambda: Sum([nn.Linear(5, 3), nn.Linear(5, 3)]),
        TOKENS[:2],
        "linear",
        equation="W' = W1 + W2",
    ),
    Structure(
        "x + linear(x)",
        lambda: Model(lambda m, x: x + m.fc(x), fc=nn.Linear(5, 5)),
        TOKENS[:2],
        "linear",
        equation="W' = W + I",
        near="a sum that broadcasts channels",
    ),
    Structure(
        "a 3-d cross",
        lambda: Sum(nn.Conv3d(4, 4, k, padding=k // 2, groups=4) for k in (3, 1)),
        MAPS_3D,
        "conv",
        equation="K' = K3 + pad(K1), in three dimensions",
    ),
    Structure(
        "a shift behind a sum with the input",
        lambda: Model(lambda m, x: m.a(x.relu()) + x + m.shift, a=conv_norm(4, 4), shift=parameter(4, 1, 1)),
        MAPS,
        "relu conv add",
        near="a sum that broadcasts channels",
    ),
    Structure(
        "a norm behind layers that read products with constant matrices",
        lambda: Model(
            lambda m, x: m.norm(m.a(x @ m.left) + m.b(x @ m.right)),
            a=conv(4, 6, 1),
            b=conv(4, 6, 1),
            norm=norm(6),
            left=parameter(6, 6),
            right=parameter(6, 6),
        ),
        ((2, 4, 9, 6), (1, 4, 12, 6), (3, 4, 7, 6)),
        "linear linear conv conv add",
        equation="s (Ka x A + Kb x B) = (s Ka) (x A) + (s Kb) (x B)",
        source="2s-AGCN, Shi et al. 2019",
    ),
    Structure(
        "one layer, twice on one value",
        lambda: Model(lambda m, x: m.norm(m.a(x) + m.a(x)), a=conv(4, 5), norm=norm(5)),
        MAPS,
        "conv",
        equation="s (K x + K x) = 2 s K x",
        near="one layer, twice on one value and once on another",
    ),
    Structure(
        "one head behind several dropouts",
        lambda: Model(
            lambda m, x: sum(m.head(drop(x)) for drop in m.drops) / len(m.drops),
            head=nn.Linear(6, 3),
            drops=nn.ModuleList(nn.Dropout(0.5) for _ in range(4)),
        ),
        ROWS,
        "linear",
        equation="(W x + b + ... + W x + b) / n = W x + b",
        source="multi-sample dropout, Inoue 2019",
    ),
    Structure(
        "a skip around a layer over a concatenation",
        lambda: Model(
            lambda m, x: m.fuse(torch.cat([x, F.gelu(m.grow(x))], 1)) * 0.2 + x, grow=conv(4, 6), fuse=conv(10, 4)
        ),
        MAPS,
        "conv gelu cat conv",
        needs_inputs=True,
        equation="0.2 K [x; y] + x = (0.2 K + [I 0]) [x; y]",
        source="ESRGAN, Wang et al. 2018",
        near="a skip around a concatenation of what is computed from it",
    ),
    Structure(
        "a norm behind a 1x1 and a depthwise branch, which are no one layer at that price",
        lambda: Model(lambda m, x: m.n(m.a(x) + m.b(x)), a=conv_norm(4, 4, 1), b=depthwise(4, 5), n=norm(4)),
        MAPS,
        "conv conv add",
        equation="s (A x + K x) + t = (s A) x + (s K) x + t",
    ),
)
