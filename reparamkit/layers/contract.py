"""Products of a value with constant tensors, summed over common dimensions: einsum, and what is one in other words."""

from __future__ import annotations

import operator
import string
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra.build import contracted, linear, matrix, shift
from ..algebra.form import Form
from ..algebra.operator import Role
from ..algebra.regroup import NO_RANK, known_rank, permute, ranked
from ..algebra.size import ONE
from ..algebra.spread import CONSTANT_BROADCASTS
from ..errors import NotFusable
from ..reasons import Kind
from .elementwise import PRODUCT, Operand, read_add, read_mul, scaled
from .plans import broadcast
from .registry import READERS
from .views import flat, read_unsqueeze

REST = "..."


@READERS.reader(torch.einsum)
def read_einsum(*operands: Any) -> Form:
    """Of one value and any number of constants: ``"...i,oi->...o"``, ``"bhnd,hdo->bno"``, or without the part behind
    the arrow; as lists of numbers too. Refuses a value whose name stands twice in its dimensions.
    """
    return _contracted(*_parsed(*operands))


def _parsed(*given: Any) -> tuple[list[Any], list[list[str]], list[str]]:
    """The operands, the names of their dimensions, and those of the result."""
    if not isinstance(given[0], str):
        names = [_named(each) for each in given[1::2]]
        end = len(given) // 2
        return [*given[: 2 * end : 2]], names, _named(given[-1]) if len(given) % 2 else _in_order(names)
    inputs, arrow, output = given[0].replace(" ", "").partition("->")
    names = [_letters(part) for part in inputs.split(",")]
    return flat(given[1:]), names, _letters(output) if arrow else _in_order(names)


def _letters(part: str) -> list[str]:
    """The names in a part of an equation."""
    before, dots, after = part.partition(REST)
    return [*before, *[dots] * bool(dots), *after]


def _named(numbers: Sequence[Any]) -> list[str]:
    """The names that a list of numbers means."""
    return [REST if n is Ellipsis else string.ascii_letters[n] for n in numbers]


def _in_order(names: Sequence[Sequence[str]]) -> list[str]:
    """The names of a result that is not spelled out: those that occur once, by the alphabet, behind the rest."""
    seen = [name for each in names for name in each]
    return [REST] * (REST in seen) + sorted(n for n in {*seen} - {REST} if seen.count(n) == 1)


def _contracted(operands: Sequence[Any], names: Sequence[Sequence[str]], result: Sequence[str]) -> Form:
    """An einsum. names, result: as in its equation, one each; `REST` for any number of dimensions."""
    operands = _as_tensors(operands, names)
    values = [(x, of_x) for x, of_x in zip(operands, names, strict=True) if isinstance(x, Form)]
    constants = [(c, of_c) for c, of_c in zip(operands, names, strict=True) if not isinstance(c, Form)]
    if len(values) != 1 or not all(isinstance(c, Tensor) for c, _ in constants):
        raise NotFusable(PRODUCT)
    ((x, of_x),) = values
    if REST not in of_x:
        x = known_rank(x, [len(of_x)])
    known = [(c, _spelled(of_c, c.dim() - len(of_c) + 1)) for c, of_c in constants]
    most = max((sum(n.startswith(REST) for n in of_c) for _, of_c in known), default=0)
    if x.open_rank and (most or of_x[0] != REST or result[:1] != [REST]):
        raise NotFusable(NO_RANK)
    own = 0 if x.open_rank else len(x.sizes) - len(of_x) + 1
    of_x, of_value = _spelled(of_x, own), _spelled(result, max(own, most))
    if not known and sorted(of_x) == sorted(of_value):
        return permute(x, [of_x.index(name) for name in of_value])
    return contracted(x, of_x, known, of_value)


def _as_tensors(operands: Sequence[Any], names: Sequence[Sequence[str]]) -> list[Any]:
    """With constants that are given sizes of the value, as a batch of matrices that are all one, as tensors. Raises
    `NotFusable`: an axis of theirs is not one of the value that is as long.
    """
    values = [(x, of_x) for x, of_x in zip(operands, names, strict=True) if isinstance(x, Form) and not x.vanishes]
    if len(values) != 1:
        return [*operands]
    spread = [isinstance(x, Form) and x.vanishes for x in operands]
    each = zip(operands, names, spread, strict=True)
    return [_beside(x, of_x, *values[0]) if is_spread else x for x, of_x, is_spread in each]


def _beside(constant: Form, names: Sequence[str], x: Form, of_x: Sequence[str]) -> Tensor:
    """The constant as a tensor, of which an axis of one position is one of the value that is as long."""
    names = _spelled(names, len(ranked(constant).sizes) - len(names) + 1)
    sizes = dict(zip(_spelled(of_x, len(ranked(x).sizes) - len(of_x) + 1), x.sizes, strict=True))
    found, pins = _unspread(constant), x.pins
    for name, size, length in zip(names, constant.sizes, found.shape, strict=True):
        if length == 1 and size != ONE and sizes.get(name) != size.substitute(pins):
            raise NotFusable(CONSTANT_BROADCASTS)
    return found


def _unspread(constant: Form) -> Tensor:
    """A constant that was given sizes, as a tensor of one position along the axes along which it is alike.

    Raises `NotFusable`: zeros, or a dimension that is partly alike.
    """
    bias = constant.bias
    if bias is None or not constant.vanishes or bias.has(Role.BORDER):
        raise NotFusable(PRODUCT)
    if any(0 < sum(i in bias.legs for i in dim) < len(dim) for dim in bias.value):
        raise NotFusable("a constant along a dimension that is partly free", Kind.SIZES)
    found = broadcast(bias)
    return found.reshape((1,) * (len(bias.value) - found.dim()) + found.shape)


def _spelled(names: Sequence[str], rest: int) -> list[str]:
    """With a name for each of the dimensions that `REST` stands for, counted from the right."""
    return [each for n in names for each in ([f"{REST}{k}" for k in range(rest, 0, -1)] if n == REST else [n])]


@READERS.reader(operator.matmul, torch.matmul, "matmul", "__matmul__", torch.bmm, "bmm", torch.mm, "mm", torch.mv, "mv")
def read_matmul(input: Form | Tensor, other: Form | Tensor) -> Form:
    """A matrix along the last dimension, (in, out) behind the value; or along the last but one, (out, in) before it. A
    constant of more dimensions has one per position of those; a vector sums the dimension.
    """
    if isinstance(input, Form) and isinstance(other, Form):
        return read_einsum("...oi,...in->...on", input, other)
    constant = other if isinstance(input, Form) else input
    if not isinstance(constant, Tensor):
        raise NotFusable(PRODUCT)
    if constant.dim() == 2:
        return linear(input, constant.t()) if isinstance(input, Form) else matrix(other, constant, -2)  # type: ignore[arg-type]
    vector = "...i,i->..." if isinstance(input, Form) else "i,...in->...n"
    return read_einsum(vector if constant.dim() == 1 else "...oi,...in->...on", input, other)


@READERS.reader(torch.addmm, "addmm", torch.addmv, "addmv", torch.baddbmm, "baddbmm")
def read_addmm(input: Operand, mat1: Form | Tensor, mat2: Form | Tensor, *, beta: float = 1, alpha: float = 1) -> Form:
    """``beta input + alpha mat1 mat2``: a value or a constant, and a product of a value with a constant."""
    return read_add(scaled(read_matmul(mat1, mat2), alpha), input, alpha=beta)


@READERS.reader(torch.tensordot)
def read_tensordot(a: Form | Tensor, b: Form | Tensor, dims: int | Sequence[Any] = 2) -> Form:
    """Sums over pairs of dimensions: the last so many of `a` with the first of `b`, or as two lists name them."""
    left, right = (range(-dims, 0), range(dims)) if isinstance(dims, int) else (flat((each,)) for each in dims)
    of_a, of_b = _dims(a, left, string.ascii_lowercase), _dims(b, right, string.ascii_uppercase)
    same = {of_b[j]: of_a[i] for i, j in zip(left, right, strict=True)}
    result = [name for name in (*of_a, *of_b) if name not in {*same, *same.values()}]
    return _contracted([a, b], [of_a, [same.get(name, name) for name in of_b]], result)


def _dims(x: Form | Tensor, named: Sequence[int], names: str) -> list[str]:
    """Names for the dimensions of a tensor; of a value of unknown rank for as many as `named` counts from the right."""
    if isinstance(x, Tensor):
        return list(names[: x.dim()])
    if x.open_rank and any(d >= 0 for d in named):
        raise NotFusable(NO_RANK)
    return [REST, *names[: -min(named, default=0)]] if x.open_rank else list(names[: len(x.sizes)])


@READERS.reader(torch.inner, "inner")
def read_inner(input: Form | Tensor, other: Form | Tensor) -> Form:
    """Sums over the last dimensions of both."""
    return read_tensordot(input, other, ([-1], [-1]))


@READERS.reader(torch.outer, torch.ger, "outer", "ger")
def read_outer(input: Form, vec2: Tensor) -> Form:
    """A number per sample times a constant vector."""
    return read_mul(read_unsqueeze(known_rank(input, [1]), -1), vec2)


@READERS.reader(F.bilinear)
def read_bilinear(input1: Form | Tensor, input2: Form | Tensor, weight: Tensor, bias: Tensor | None = None) -> Form:
    """Linear in each of its inputs, of which one is constant. weight: (out, in1, in2). bias: (out,)."""
    return shift(read_einsum("...i,oij,...j->...o", input1, weight, input2), bias)
