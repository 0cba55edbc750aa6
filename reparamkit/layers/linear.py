"""Linear layers and products with constant matrices."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra.build import linear, matrix, offset, permute
from ..algebra.form import Form
from ..errors import NotFusable
from .registry import READERS


@READERS.reader(nn.Linear)
def read_linear_layer(layer: nn.Linear, input: Form) -> Form:
    """A full matrix along the last dimension, and a bias."""
    return linear(input, layer.weight, layer.bias)


@READERS.reader(F.linear)
def read_linear(input: Form, weight: Tensor, bias: Tensor | None = None) -> Form:
    """A full matrix along the last dimension; refuses a vector for a weight. weight: (out, in). bias: (out,)."""
    if bias is not None and bias.dim() > 1:
        raise NotFusable("a bias that is added as a matrix: broadcasting is not merged")
    return linear(input, weight, bias)


@READERS.reader(torch.addmm, "addmm")
def read_addmm(input: Tensor, mat1: Form, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Form:
    """Beta input + alpha mat1 mat2."""
    return offset(linear(mat1, alpha * mat2.double().t()), beta * input.double())


@READERS.reader(torch.einsum)
def read_einsum(equation: str, first: Form | Tensor, second: Form | Tensor) -> Form:
    """A full matrix along one dimension of a value: ``"bnc,dc->bnd"`` or ``"dc,bnc->bnd"``."""
    x, w, y = equation.replace(" ", "").replace("->", ",").split(",")
    input, weight = first, second
    if isinstance(second, Form):
        input, weight, x, w = second, first, w, x
    if not isinstance(input, Form) or not isinstance(weight, Tensor) or input.open_rank:
        raise NotFusable("an einsum of two values, or of a value of unknown rank")
    inner, outer = set(w) & set(x) - set(y), set(w) & set(y) - set(x)
    if len(w) != 2 or len(inner) != 1 or len(outer) != 1 or len(x) != len(input.sizes) or "." in equation:
        raise NotFusable(f"an einsum that is not a matrix along one dimension: {equation}")
    (i,), (o,) = inner, outer
    made = matrix(input, weight if w == o + i else weight.t(), x.index(i) - len(x))
    order = [x.replace(i, o).index(letter) for letter in y]
    return made if order == sorted(order) else permute(made, order)


@READERS.reader(operator.matmul, torch.matmul, "matmul", "__matmul__")
def read_matmul(input: Form | Tensor, other: Form | Tensor) -> Form:
    """A matrix along the last dimension, (in, out) behind the value; or along the last but one, (out, in) before it."""
    if isinstance(input, Form) and isinstance(other, Tensor) and other.dim() == 2:
        return linear(input, other.t())
    if isinstance(other, Form) and isinstance(input, Tensor) and input.dim() == 2:
        return matrix(other, input, -2)
    raise NotFusable("a product of two values, or with a constant that is not a matrix")
