"""Sums, differences, products with constants, and the layers that do nothing at inference."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra.build import multiply, offset
from ..algebra.form import OPEN_SUM, Form, plus
from ..algebra.operator import zeros
from ..algebra.segments import selected
from ..algebra.size import ONE, Share, Size, fixed
from ..algebra.spread import broadcasts, multiplied, shifted
from ..algebra.views import Mean
from ..errors import NotFusable
from ..reasons import Kind, Reason
from .plans import Scale
from .registry import READERS
from .wide import wide

PRODUCT = Reason("a product of two values is not affine", Kind.NONLINEAR)
QUOTIENT = Reason("a division by a value is not affine", Kind.NONLINEAR)

Operand = Form | Tensor | float
COMPUTED = Reason("an argument that is computed at run time, and no number of what was summed", Kind.SIZES)
"""Why a value is not multiplied or divided."""


@READERS.reader(operator.add, operator.iadd, torch.add, "add")
def read_add(input: Operand, other: Operand, *, alpha: float = 1) -> Form:
    """``input + alpha other``: of two values of one shape, or of a value and a constant that broadcasts to it."""
    return total(input, _times(other, alpha))


@READERS.reader(operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "subtract")
def read_sub(input: Operand, other: Operand, *, alpha: float = 1) -> Form:
    """``input - alpha other``: of two values of one shape, or of a value and a constant, either way round."""
    return total(input, _times(other, -alpha))


@READERS.reader(torch.rsub)
def read_rsub(input: Operand, other: Operand, *, alpha: float = 1) -> Form:
    """``other - alpha input``, as for ``1 - x``."""
    return total(other, _times(input, -alpha))


@READERS.reader(operator.mul, operator.imul, torch.mul, torch.multiply, sizes=True, divides=True)
@READERS.reader("mul", "multiply", sizes=True, divides=True)
def read_mul(input: Operand | Share | Size, other: Operand | Share | Size) -> Form:
    """A value times a constant that broadcasts to it, or a sum times a share of it; refuses a product of two values."""
    if isinstance(input, Form) and isinstance(other, Form):
        return scaled(other, input) if input.vanishes else scaled(input, other)
    value, factor = (input, other) if isinstance(input, Form) else (other, input)
    return _shared(value, factor) if isinstance(value, Form) and isinstance(factor, Share) else scaled(value, factor)


@READERS.reader(
    operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide, sizes=True, divides=True
)
@READERS.reader("div", "divide", "true_divide", sizes=True, divides=True)
def read_div(input: Operand, other: Operand | Size) -> Form:
    """A value times one over a constant, or a sum by how many numbers it is of; refuses to divide by a value."""
    if not isinstance(input, Form) or isinstance(other, Form):
        raise NotFusable(QUOTIENT)
    if isinstance(other, Size) or (isinstance(other, int) and input.times != ONE):
        return _shared(input, Share(1.0, other if isinstance(other, Size) else fixed(other)))
    return scaled(input, 1 / wide(constant(other)))


def _shared(x: Form, share: Share) -> Form:
    """A share of a sum, which is a mean once nothing is left to divide it by."""
    times = x.times.substitute(x.pins)
    left = Size(1, times.symbols).divide(Size(1, share.of.symbols))
    if left is None or not share.of.factor:
        raise NotFusable(COMPUTED if x.times == ONE else OPEN_SUM)
    x = scaled(x, share.number * times.factor / share.of.factor)
    views = tuple(replace(view, spelled=True) if isinstance(view, Mean) else view for view in x.recent)
    return replace(x, recent=views, times=left)


@READERS.reader(torch.lerp, "lerp")
def read_lerp(input: Form, end: Form, weight: Operand) -> Form:
    """Input + weight (end - input)."""
    return total(input, scaled(total(end, _times(input, -1)), weight))


@READERS.reader(torch.addcmul, "addcmul")
def read_addcmul(input: Operand, tensor1: Operand, tensor2: Operand, *, value: float = 1) -> Form:
    """Input + value tensor1 tensor2."""
    return total(input, _times(_product(tensor1, tensor2), value))


@READERS.reader(torch.addcdiv, "addcdiv")
def read_addcdiv(input: Operand, tensor1: Operand, tensor2: Operand, *, value: float = 1) -> Form:
    """Input + value tensor1 / tensor2; refuses to divide by a value."""
    if isinstance(tensor2, Form):
        raise NotFusable(QUOTIENT)
    return total(input, _times(_product(tensor1, 1 / wide(constant(tensor2))), value))


@READERS.reader(torch.where)
def read_where(condition: Tensor, input: Operand, other: Operand) -> Form:
    """``c input + (1 - c) other`` for a constant mask c; refuses constants that are not finite."""
    if condition.dtype is not torch.bool:
        raise NotFusable(f"a factor or summand that is not a constant: a mask of {condition.dtype}", Kind.NONLINEAR)
    return total(_kept(input, condition), _kept(other, ~condition))


@READERS.reader("where")
def read_where_method(input: Operand, condition: Tensor, other: Operand) -> Form:
    """As `read_where`, for ``x.where(c, other)``."""
    return read_where(condition, input, other)


@READERS.reader(torch.masked_fill, "masked_fill")
def read_masked_fill(input: Operand, mask: Tensor, value: Operand) -> Form:
    """A constant in the place of what a constant mask names; refuses one that is not finite."""
    return read_where(mask, value, input)


def _kept(operand: Operand, mask: Tensor) -> Operand:
    """What a mask names of a value or a constant, and zeros."""
    if isinstance(operand, Form):
        return scaled(operand, mask)
    kept = torch.where(mask, wide(constant(operand)), 0.0)
    if not bool(kept.isfinite().all()):
        raise NotFusable("numbers that are not finite are filled in", Kind.NUMBERS)
    return kept


@READERS.reader(operator.neg, torch.neg, torch.negative, "neg", "negative")
def read_neg(input: Form) -> Form:
    """A value times -1."""
    return scaled(input, -1.0)


@READERS.reader(torch.zeros_like)
def read_zeros_like(input: Form) -> Form:
    """Zeros of the same shape, for a sum to begin with."""
    return replace(input.mapped(zeros), bias=None, recent=(None,))


def total(a: Operand, b: Operand) -> Form:
    """The form of a + b, where at least one is a form."""
    if isinstance(a, Form) and isinstance(b, Form):
        spread = next(((x, c) for x, c in ((a, b), (b, a)) if broadcasts(c, x) and c.bias is not None), None)
        return plus(*_of_one_shape(a, b)) if spread is None else shifted(*spread)
    value, other = (a, b) if isinstance(a, Form) else (b, a)
    if not isinstance(value, Form):
        raise NotFusable("a sum of constants", Kind.NONLINEAR)
    if isinstance(other, (int, float)) and other == 0:
        return value
    summand = constant(other)
    return offset(_as_long(value, summand.shape), summand)


def _of_one_shape(a: Form, b: Form) -> tuple[Form, Form]:
    """Two values; the one position that one of them has along an axis as often as the other has positions, if that is
    a known number.
    """
    if a.open_rank or b.open_rank or len(a.sizes) != len(b.sizes):
        return a, b
    sizes_a, sizes_b = ([size.factor if size.known else 1 for size in x.sizes] for x in (a, b))
    return _as_long(a, sizes_b), _as_long(b, sizes_a)


def _as_long(x: Form, sizes: Sequence[int]) -> Form:
    """The one position that a value has along an axis, as often as `sizes`, of the last dimensions, say."""
    for dim in range(-min(len(sizes), len(x.sizes) - x.open_rank), 0):
        if x.sizes[dim] == ONE and sizes[dim] != 1:
            x = selected(x, dim, [0] * sizes[dim])
    return x


def scaled(value: Operand | Share | Size, factor: Operand | Share | Size) -> Form:
    """The form times a constant."""
    if not isinstance(value, Form) or (isinstance(factor, Form) and not factor.vanishes):
        raise NotFusable(PRODUCT)
    if isinstance(factor, Form):
        return multiplied(value, factor)
    if isinstance(factor, (int, float)) and factor == 1:
        return value
    number = constant(factor)
    return multiply(_as_long(value, number.shape), number)


def _times(summand: Operand, factor: float) -> Operand:
    """A value or a constant, times a number."""
    return summand if factor == 1 else _product(summand, factor)


def _product(a: Operand, b: Operand) -> Operand:
    """The product of a value and a constant, or of two constants."""
    if isinstance(a, Form) or isinstance(b, Form):
        return read_mul(a, b)
    return wide(constant(a)) * wide(constant(b))


def constant(value: Any) -> Tensor:
    """A number or tensor as a tensor."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (Share, Size)):
        raise NotFusable(COMPUTED)
    if isinstance(value, (bool, int, float)):
        return torch.tensor(float(value), dtype=torch.float64)
    raise NotFusable(f"a factor or summand that is not a constant: {value}", Kind.NONLINEAR)


@READERS.reader(Scale)
def read_scale(layer: Scale, input: Form) -> Form:
    """``weight * input + bias``, where either may be missing; both broadcast to the input."""
    scaled_input = input if layer.weight is None else multiply(input, layer.weight)
    return scaled_input if layer.bias is None else offset(scaled_input, layer.bias)


@READERS.reader(nn.Identity)
def read_identity(layer: nn.Identity, input: Form) -> Form:
    """The same form; the call itself is merged away."""
    return input


@READERS.reader(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
def read_dropout_layer(layer: nn.Dropout, input: Form) -> Form:
    """The same form in eval mode, or with p = 0."""
    return read_dropout(input, layer.p, layer.training)


@READERS.reader(F.dropout, torch.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)
def read_dropout(input: Form, p: float = 0.5, training: bool = True, inplace: bool = False) -> Form:
    """The same form; refuses `training`, which is the default, unless p is 0."""
    if training and p != 0:
        raise NotFusable(
            "dropout in training mode is random: call model.eval() (F.dropout defaults to training)", Kind.TRAINING
        )
    return input


@READERS.reader(nn.LeakyReLU)
def read_leaky_relu_layer(layer: nn.LeakyReLU, input: Form) -> Form:
    """The same form where the slope of the module is exactly 1; refused elsewhere."""
    return read_leaky_relu(input, layer.negative_slope)


@READERS.reader(F.leaky_relu)
def read_leaky_relu(input: Form, negative_slope: float = 0.01, inplace: bool = False) -> Form:
    """The same form; refuses any slope but 1."""
    # VanillaNet moves the slope to 1 during training: only exactly there it is the identity.
    if negative_slope != 1:
        raise NotFusable(f"LeakyReLU of slope {negative_slope} is not affine", Kind.NONLINEAR)
    return input


@READERS.reader(nn.PReLU)
def read_prelu_layer(layer: nn.PReLU, input: Form) -> Form:
    """The same form where every slope of the module is exactly 1; refused elsewhere."""
    return read_prelu(input, layer.weight)


@READERS.reader(F.prelu, torch.prelu)
def read_prelu(input: Form, weight: Tensor) -> Form:
    """The same form; refuses if a slope is not 1. weight: (channels,) or (1,)."""
    if not bool((weight == 1).all()):
        raise NotFusable("PReLU of slopes other than 1 is not affine", Kind.NONLINEAR)
    return input
