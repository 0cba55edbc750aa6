"""Read an affine map of which only the outputs are known, by applying it to an identity batch.

    M = f(I) - f(0),  b = f(0)

This is the paper's own conversion (RepMLPNet, section 3.3). It gives a full matrix between all dimensions but
the batch, so it is worth its price only beside another full matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import NotFusable
from ..reasons import Kind, Reason
from .build import offset
from .form import Form, apply
from .operator import Link, Operator, Role, pin
from .size import fixed, roots
from .weight import Computed

FIXED_ONLY = Reason("can be read on fixed sizes only: pass example_inputs", Kind.SIZES)

PROBE = "probe"
LARGEST = 2**13
"""Elements per sample beyond which the matrix would be absurd."""

Function = Callable[[Tensor], Tensor]


def probe(x: Form, function: Function) -> Form:
    """The form of ``function(x)``.

    function: affine, sample by sample along the first dimension, on float64 CPU tensors. All other dimensions must
        have a fixed size, or a traced one (which a guard then checks).

    Raises `NotFusable` if a size is unknown or the matrix would be very large.
    """
    if x.open_rank or len(x.sizes) < 2:
        raise NotFusable(FIXED_ONLY)
    x = _fixed(x)
    ins = [size.factor for size in x.sizes[1:]]
    if math.prod(ins) > LARGEST:
        raise NotFusable(f"a full matrix over {math.prod(ins)} elements would be needed", Kind.UNREAD)
    zero = _tried(function, ins)
    outs = list(zero.shape[1:])
    probed = apply(x, lambda below: _dense(below, ins, outs, function))
    return offset(probed, zero[0]) if bool(zero.any()) else probed


def _tried(function: Function, ins: Sequence[int]) -> Tensor:
    try:
        with torch.no_grad():
            zero = function(torch.zeros(1, *ins, dtype=torch.float64))
    except Exception as error:
        raise NotFusable(f"cannot be run on a map of {tuple(ins)} in float64 ({error})", Kind.UNREAD) from None
    if zero.dtype != torch.float64:
        raise NotFusable(f"a change of dtype, to {zero.dtype}", Kind.DTYPE)
    return zero


def _fixed(x: Form) -> Form:
    free = set().union(*(roots(size) for size in x.sizes[1:]))
    if not all(symbol.traced for symbol in free):
        raise NotFusable(FIXED_ONLY)
    pins = {symbol: symbol.hint for symbol in free}
    return x.mapped(lambda op: pin(op, pins, guard=True)) if pins else x


def _dense(below: Operator, ins: list[int], outs: list[int], function: Function) -> Operator:
    """One IN atom over all dimensions but the first, and one OUT atom per dimension of the result."""
    batch = [Link(Role.FREE, below.links[i].size_out) for i in below.value[0]]
    inner = [Link(Role.IN, fixed(n)) for n in ins]
    outer = [Link(Role.OUT, fixed(n)) for n in outs]
    first = tuple(range(len(batch)))
    source = (first, *((len(batch) + k,) for k in range(len(ins))))
    value = (first, *((len(batch) + len(ins) + k,) for k in range(len(outs))))

    def matrix() -> Tensor:
        with torch.no_grad():
            n = math.prod(ins)
            images = function(torch.eye(n, dtype=torch.float64).reshape(n, *ins))
            zero = function(torch.zeros(1, *ins, dtype=torch.float64))
            return (images - zero).reshape(*ins, *outs)

    links = (*batch, *inner, *outer)
    return Operator(links, source, value, Computed(matrix), pins=below.pins, via=frozenset({PROBE}))
