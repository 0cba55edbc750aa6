"""Constants that a value meets: vectors, batches of one matrix, masks, positions in another order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Model, conv, norm, parameter
from .table import MAPS, ROWS, TOKENS_8, Structure

PLANES = ((2, 5, 3, 4), (1, 7, 3, 4), (3, 2, 3, 4))


class Masked(nn.Module):
    """Some channels of a convolution, named by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 6), norm(4)
        self.register_buffer("kept", torch.tensor([True, False, True, True, False, True]))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)[:, self.kept])


def _folded(m: Model, x: Tensor) -> Tensor:
    return m.norm(F.fold(m.mix(F.unfold(x, (2, 1), stride=(2, 1))), x.shape[2:], (2, 1), stride=(2, 1)))


def _scored(m: Model, x: Tensor) -> Tensor:
    width = x.shape[-1]
    return m.query(x) * (width // 2) ** -0.5 @ m.key(x).transpose(1, 2)


CONSTANTS = (
    Structure(
        "a linear layer, summed by a vector",
        lambda: Model(lambda m, x: F.linear(m.fc(x), m.v), fc=nn.Linear(6, 6), v=parameter(6)),
        ROWS,
        "linear",
        needs_inputs=True,
        equation="W' = v^T W",
    ),
    Structure(
        "a full matrix and one of rank one",
        lambda: Model(
            lambda m, x: m.fc(x) + torch.outer(x @ m.u, m.v) + (x @ m.v).unsqueeze(-1) * m.u,
            fc=nn.Linear(6, 6),
            u=parameter(6),
            v=parameter(6),
        ),
        ROWS,
        "linear",
        needs_inputs=True,
        equation="W' = W + v u^T + u v^T",
        near="a full matrix and one of rank one, behind a nonlinearity",
    ),
    Structure(
        "a reflection of the input",
        lambda: Model(
            lambda m, x: m.fc(x - 2 * (x * m.v).sum(-1, keepdim=True) * m.v), fc=nn.Linear(6, 6), v=parameter(6)
        ),
        ROWS,
        "linear",
        equation="W' = W (I - 2 v v^T)",
        source="Householder",
    ),
    Structure(
        "a sum over two dimensions at once",
        lambda: Model(
            lambda m, x: m.fc(torch.tensordot(x, m.w, dims=([2, 3], [0, 1]))), fc=nn.Linear(6, 3), w=parameter(3, 4, 6)
        ),
        PLANES,
        "linear",
        needs_inputs=True,
        equation="W'[o, (h, w)] = sum_k V[o, k] W[h, w, k]",
    ),
    Structure(
        "windows of a map, one axis after the other, and a kernel",
        lambda: Model(
            lambda m, x: m.norm(torch.einsum("nchwij,ocij->nohw", x.unfold(2, 3, 1).unfold(3, 2, 1), m.kernel)),
            norm=norm(6),
            kernel=parameter(6, 4, 3, 2),
        ),
        MAPS,
        "conv",
        needs_inputs=True,
    ),
    Structure(
        "a batch of matrices that are all one",
        lambda: Model(
            lambda m, x: torch.bmm(m.fc(x), m.w.expand(x.shape[0], -1, -1)), fc=nn.Linear(8, 8), w=parameter(8, 3)
        ),
        TOKENS_8,
        "linear",
        needs_inputs=True,
        equation="W' = w^T W",
        near="a batch of matrices that the input makes",
    ),
    Structure(
        "the sum up to each position, before a matrix of these",
        lambda: Model(lambda m, x: torch.cumsum(x, 1) @ m.w, w=parameter(6, 3)),
        ROWS,
        "linear",
        needs_inputs=True,
        equation="W' = W L, L of ones at and below the diagonal",
    ),
    Structure("channels that a mask names", Masked, MAPS, "conv", equation="W'[o] = s W[kept[o]]"),
    Structure(
        "an affine layer of patches that are put back side by side",
        lambda: Model(_folded, mix=nn.Conv1d(8, 8, 1), norm=norm(4)),
        ((2, 4, 8, 10), (1, 4, 6, 7)),
        "im2col conv col2im",
        needs_inputs=True,
        equation="W'[(c, k)] = s[c] W[(c, k)]",
        source="MobileViT v2, Mehta and Rastegari 2022",
    ),
    Structure(
        "a factor of queries that is computed from their number",
        lambda: Model(_scored, query=nn.Linear(8, 8), key=nn.Linear(8, 8)),
        TOKENS_8,
        "linear linear bmm",
        needs_inputs=True,
        equation="s (W x + b) = (s W) x + s b",
    ),
    Structure(
        "one matrix, twice in a row",
        lambda: Model(lambda m, x: m.w @ (m.w @ x), w=parameter(5, 5)),
        ((2, 5, 8), (1, 5, 7)),
        "conv",
        needs_inputs=True,
        equation="W' = W W",
    ),
    Structure(
        "a convolution of a map and of its mirror image",
        lambda: Model(lambda m, x: (m.conv(x) + m.conv(x.flip(3)).flip(3)) / 2, conv=conv(4, 6)),
        MAPS,
        "conv",
        equation="K' = (K + mirrored K) / 2",
        source="test-time augmentation",
        near="a convolution of a map and of its mirror image, which stays mirrored",
    ),
    Structure(
        "a convolution of a map that is turned to all four sides",
        lambda: Model(
            lambda m, x: m.norm(sum(m.conv(x.rot90(k, (2, 3))).rot90(-k, (2, 3)) for k in range(4))),
            conv=conv(4, 6, bias=False),
            norm=norm(6),
        ),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="K' = s (K + K turned by 90, 180 and 270 degrees)",
        source="test-time augmentation",
    ),
    Structure(
        "a convolution between flips of both axes",
        lambda: Model(
            lambda m, x: m.norm(m.conv(x.flip(2, 3)).flip([2, 3])),
            conv=nn.Conv2d(4, 6, (3, 2), padding=1),
            norm=norm(6),
        ),
        MAPS,
        "conv",
    ),
)
