"""A tensor of which a part is overwritten, as a call that gives the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..algebra.build import offset
from ..algebra.form import Form
from ..algebra.operator import zeros
from ..algebra.regroup import known_rank, permute
from ..algebra.segments import concatenated, cropped, padded, selected
from ..errors import NotFusable
from ..reasons import Kind, Reason
from .elementwise import constant
from .registry import READERS
from .views import keys_of, read_unsqueeze

FREE_PART = Reason("a part is overwritten in place, of an axis whose size is free", Kind.SIZES)
PART_BROADCASTS = Reason("a part is overwritten by what may differ in shape: broadcasting is not merged", Kind.IN_PLACE)


def overwrite_(input: Tensor, key: Any, value: Any, passes: int = 1) -> Tensor:
    """``input[key] = value``, and the input. key: slices and numbers.

    passes: what that costs; 0 if the code computes the value there.
    """
    input[key] = value
    return input


def is_static(key: Any) -> bool:
    """Whether a key is made of slices and numbers that are known."""
    return all(k is Ellipsis or type(k) is int or _is_plain(k) for k in keys_of(key))


def _is_plain(key: Any) -> bool:
    bounds = (key.start, key.stop, key.step) if isinstance(key, slice) else ("",)
    return all(bound is None or type(bound) is int for bound in bounds)


@READERS.reader(overwrite_, moves=lambda key, value, passes: passes)
def read_overwrite(input: Form, key: Any, value: Form | Tensor | float, passes: int) -> Form:
    """The parts before and behind as they are, and the value between them; refuses an axis of free size."""
    if input.open_rank or not is_static(key):
        raise NotFusable(
            "a part is overwritten in place, of a tensor of unknown rank or at unknown positions", Kind.SIZES
        )
    if keys_of(key)[0] is not Ellipsis:
        # Counted from the left, another rank has other dimensions.
        input = known_rank(input, [len(input.sizes)], certain=False)
    keys = _spelled(keys_of(key), len(input.sizes))
    if isinstance(value, Form):
        for dim in [d for d, k in enumerate(keys) if isinstance(k, int)]:
            value = read_unsqueeze(value, dim)
    # What stays is no view of its own: the whole is one step.
    made = replace(_replaced(input, [_span(k) for k in keys], value), recent=(None,))
    if any(term.op.is_identity for term in made.terms.values()):
        raise NotFusable("all of a tensor is overwritten in place, by a value that is there already", Kind.IN_PLACE)
    return made


def _spelled(keys: tuple[Any, ...], rank: int) -> list[Any]:
    """One key per dimension."""
    place = keys.index(Ellipsis) if Ellipsis in keys else len(keys)
    before, after = keys[:place], keys[place + 1 :]
    return [*before, *[slice(None)] * (rank - len(before) - len(after)), *after]


def _span(key: Any) -> slice:
    return slice(key, key + 1 or None) if isinstance(key, int) else key


def _replaced(x: Form, keys: list[slice], value: Form | Tensor | float) -> Form:
    """The value in the place of the part that the keys of the last dimensions name."""
    dim = next((d for d, key in enumerate(keys, start=-len(keys)) if key != slice(None)), None)
    if dim is None:
        return _filled(x, value)
    size = x.sizes[dim]
    if not size.known and isinstance(value, Form) and x.vanishes and x.bias is None:
        return _surrounded(x, keys, value)
    if not size.known:
        raise NotFusable(FREE_PART)
    start, stop, step = keys[dim].indices(size.factor)
    if start >= stop:
        raise NotFusable("a part of no positions is overwritten in place", Kind.IN_PLACE)
    if step > 1:
        return _replaced_each(x, dim, range(start, stop, step), keys[dim + 1 :] if dim + 1 else [], value)
    inside = _replaced(cropped(x, dim, start, stop, 1), keys[dim + 1 :] if dim + 1 else [], value)
    before = [cropped(x, dim, 0, start, 1)] if start else []
    after = [cropped(x, dim, stop, size.factor, 1)] if stop < size.factor else []
    return concatenated([*before, inside, *after], dim) if before or after else inside


def _surrounded(zeros: Form, keys: list[slice], value: Form) -> Form:
    """The value inside of zeros, by keys that count from both ends: zero padding."""
    ends = [(key.start or 0, -(key.stop or 0)) for key in keys]
    if any(key.step not in (None, 1) for key in keys) or any(n < 0 for pair in ends for n in pair):
        raise NotFusable(FREE_PART)
    made = padded(value, ends)
    if made.sizes != zeros.sizes:
        raise NotFusable(PART_BROADCASTS)
    return made + zeros


def _replaced_each(x: Form, dim: int, positions: range, rest: list[slice], value: Form | Tensor | float) -> Form:
    """The value in the place of some positions of a dimension: the others as they are, and all in order again."""
    others = [n for n in range(x.sizes[dim].factor) if n not in positions]
    inside = _replaced(selected(x, dim, positions), rest, value)
    order = [*others, *positions]
    parts = [*([selected(x, dim, others)] if others else []), inside]
    return selected(concatenated(parts, dim), dim, [order.index(n) for n in range(len(order))])


def _filled(x: Form, value: Form | Tensor | float) -> Form:
    """The value in the place of all of x."""
    if not isinstance(value, Form):
        return offset(replace(x, bias=None).mapped(zeros), constant(value))
    if value.sizes != x.sizes:
        raise NotFusable(PART_BROADCASTS)
    return permute(value, range(len(value.sizes)))
