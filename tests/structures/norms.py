"""Norms whose scale and shift go into what reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Model, Scalar, conv, depthwise, norm, parameter, seq
from .table import MAPS, TOKENS_8, Structure


class Attention(nn.Module):
    """Queries, keys and values of one head, by three linear layers."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(c, c), nn.Linear(c, c, bias=False), nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        return (torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)).view(shape)


class PreNorm(nn.Module):
    """x + inner(norm(x))."""

    def __init__(self, norm: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = norm, inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


class GatedMLP(nn.Module):
    """down(silu(gate(x)) up(x))."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(c, c, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class HandRMSNorm(nn.Module):
    """The root-mean-square norm of language models: statistics in float32, then a product with a weight; `plus`: with
    1 + weight, in float32 as well.
    """

    def __init__(self, c: int, plus: bool = False) -> None:
        super().__init__()
        self.weight, self.plus = parameter(c), plus

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (wide * (1 + self.weight.float())).type_as(x) if self.plus else self.weight * wide.to(x.dtype)


class FunctionNorm(nn.Module):
    """A layer norm as a call of the function, over dimension 1 of maps with `permuted`."""

    def __init__(self, c: int, permuted: bool = False) -> None:
        super().__init__()
        self.weight, self.bias, self.permuted = parameter(c), parameter(c), permuted

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1) if self.permuted else x
        x = F.layer_norm(x, self.weight.shape, self.weight, self.bias)
        return x.permute(0, 3, 1, 2) if self.permuted else x


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, layer norm over channels, two linear layers, a scale per channel, identity."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.norm = depthwise(c, 3), nn.LayerNorm(c)
        self.fc1, self.fc2, self.gamma = nn.Linear(c, 2 * c), nn.Linear(2 * c, c), parameter(c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(F.gelu(self.fc1(y)))
        return x + y.permute(0, 3, 1, 2)


def _two_readers(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.c(x))
    return m.a(y).relu() * m.b(y)


ATTENTION = "linear linear bmm _softmax linear bmm add"
RMS = "pow mean add rsqrt mul"
NORMS = (
    Structure(
        "layer norm, then queries, keys and values",
        lambda: PreNorm(nn.LayerNorm(8), Attention(8)),
        TOKENS_8,
        f"native_layer_norm {ATTENTION}",
        equation="W (gamma * n + beta) + b = (W diag(gamma)) n + (W beta + b), in all readers or in none",
        source="SliceGPT, Ashkboos et al. 2024",
        near="layer norm, read by a residual too",
    ),
    Structure(
        "F.layer_norm, then queries, keys and values",
        lambda: PreNorm(FunctionNorm(8), Attention(8)),
        TOKENS_8,
        f"native_layer_norm {ATTENTION}",
        equation="W (gamma * n + beta) + b = (W diag(gamma)) n + (W beta + b), in all readers or in none",
        source="SliceGPT, Ashkboos et al. 2024",
        near="layer norm, looked at by a gate",
    ),
    Structure(
        "RMS norm by hand, then queries, keys and values",
        lambda: PreNorm(HandRMSNorm(8), Attention(8)),
        TOKENS_8,
        f"{RMS} {ATTENTION}",
        needs_inputs=True,
        equation="W' = W diag(gamma), in all readers or in none",
        source="SliceGPT, Ashkboos et al. 2024",
        near="a weight rounded on the way",
    ),
    Structure(
        "RMS norm by hand with 1 + weight, then a gated mlp",
        lambda: PreNorm(HandRMSNorm(8, plus=True), GatedMLP(8)),
        TOKENS_8,
        f"{RMS} linear silu linear mul linear add",
        needs_inputs=True,
        equation="W' = W diag(1 + gamma), in both readers",
        near="a weight rounded on the way",
    ),
    Structure(
        "RMS norm, then a gated mlp",
        lambda: PreNorm(nn.RMSNorm(8), GatedMLP(8)),
        TOKENS_8,
        f"{RMS} linear silu linear mul linear add",
        equation="W' = W diag(gamma), in both readers",
        source="SliceGPT, Ashkboos et al. 2024",
        near="layer norm, read by a residual too",
    ),
    Structure(
        "group norm, then two 1x1",
        lambda: Model(
            _two_readers, c=conv(4, 4), norm=nn.GroupNorm(2, 4), a=conv(4, 6, 1), b=conv(4, 6, 1, bias=False)
        ),
        MAPS,
        "conv native_group_norm conv relu conv mul",
        equation="K' = K diag(gamma), b' = b + K beta, in both readers",
        near="group norm before padding",
    ),
    Structure(
        "layer norm, dropout, linear, scale",
        lambda: seq(nn.LayerNorm(8), nn.Dropout(0.1), nn.Linear(8, 6), Scalar(6)),
        TOKENS_8,
        "native_layer_norm linear",
        equation="W' = diag(a) W diag(gamma), b' = a (b + W beta)",
    ),
    Structure(
        "layer norm over channels, then 1x1",
        lambda: seq(FunctionNorm(4, permuted=True), conv(4, 6, 1)),
        MAPS,
        "native_layer_norm conv",
        equation="K' = K diag(gamma), b' = b + K beta, through the permutation",
        near="layer norm over channels, mix of tokens",
    ),
    Structure(
        "layer norm, mean over tokens, head",
        lambda: Model(lambda m, x: m.head(m.norm(x).mean(1)), norm=nn.LayerNorm(8), head=nn.Linear(8, 3)),
        TOKENS_8,
        "native_layer_norm mean linear",
        needs_inputs=True,
        equation="W mean(gamma * n + beta) + b = W diag(gamma) mean(n) + (W beta + b)",
        near="layer norm, head tied to an embedding",
    ),
    Structure(
        "layer norm of maps, flattened, head",
        lambda: seq(nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 5)),
        ((2, 3, 4), (1, 3, 4)),
        "native_layer_norm linear",
        equation="W' = W diag(flat(gamma)), b' = b + W flat(beta)",
    ),
    Structure(
        "batch norm, then two 1x1",
        lambda: Model(_two_readers, c=nn.ReLU(), norm=norm(4), a=conv(4, 6, 1), b=conv(4, 6, 1, bias=False)),
        MAPS,
        "relu conv relu conv mul",
        equation="K' = K diag(s), b' = b + K t, in both readers",
        near="an output used elsewhere",
    ),
    Structure(
        "convnext",
        lambda: ConvNeXtBlock(4),
        MAPS,
        "conv native_layer_norm linear gelu linear add",
        equation="W1' = W1 diag(gamma_n), b1' = b1 + W1 beta_n; W2' = diag(gamma) W2, b2' = gamma b2",
        source="ConvNeXt, Liu et al. 2022",
    ),
)
