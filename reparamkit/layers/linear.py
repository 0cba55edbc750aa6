"""Linear layers and products with constant matrices."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra.build import linear
from ..algebra.form import Form
from ..errors import NotFusable
from .registry import READERS


@READERS.reader(nn.Linear)
def read_linear_layer(layer: nn.Linear, input: Form) -> Form:
    return linear(input, layer.weight, layer.bias)


@READERS.reader(F.linear)
def read_linear(input: Form, weight: Tensor, bias: Tensor | None = None) -> Form:
    if not isinstance(input, Form):
        raise NotFusable("the weight is computed from the input")
    return linear(input, weight, bias)


@READERS.reader(operator.matmul, torch.matmul, "matmul", "__matmul__")
def read_matmul(input: Form, other: Tensor) -> Form:
    if not isinstance(input, Form) or not isinstance(other, Tensor) or other.dim() != 2:
        raise NotFusable("a product of two values, or with a constant that is not a matrix on the right")
    return linear(input, other.t())
