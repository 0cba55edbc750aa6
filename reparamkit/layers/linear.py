"""Linear layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra.build import linear
from ..algebra.form import Form
from ..errors import NotFusable
from ..reasons import Kind
from .contract import read_matmul
from .registry import READERS


@READERS.reader(nn.Linear)
def read_linear_layer(layer: nn.Linear, input: Form) -> Form:
    """A full matrix along the last dimension, and a bias."""
    return linear(input, layer.weight, layer.bias)


@READERS.reader(F.linear)
def read_linear(input: Form, weight: Tensor, bias: Tensor | None = None) -> Form:
    """A full matrix along the last dimension; a vector sums it. weight: (out, in) or (in,). bias: (out,)."""
    if bias is not None and bias.dim() > 1:
        raise NotFusable("a bias that is added as a matrix: broadcasting is not merged", Kind.SHAPES)
    if weight.dim() == 1 and bias is None:
        return read_matmul(input, weight)
    return linear(input, weight, bias)
