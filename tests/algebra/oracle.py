"""The oracle: what a form means, written down once more as plainly as possible.

Nothing here uses the laws, the dense forms or the writers: a form is evaluated by the definition of the
roles of its atoms, on tensors whose sizes take the place of the free ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reparamkit.algebra.form import Form, source_form
from reparamkit.algebra.operator import FLIP, Link, Operator, Resampling, Role, closed, pin
from reparamkit.algebra.size import Pin, Size, Symbol, fixed, roots
from reparamkit.layers.writers import plan, turned


def source(x: Tensor, name: str = "x") -> Form:
    """The form of a tensor of known sizes."""
    return source_form(name, tuple(fixed(n) for n in x.shape))


def written(form: Form) -> nn.Module:
    """The one layer that computes a form of one source."""
    return plan(form.sample, form.bias).build()


def written_turned(form: Form) -> nn.Module:
    """The same with views around it."""
    made = turned(form.sample, form.bias)
    joined = [("flatten", (made.joined[0], made.joined[-1]))] if made.joined else []
    return nn.Sequential(*itertools.starmap(Method, joined), made.build(), *itertools.starmap(Method, made.calls))


class Method(nn.Module):
    """A method of tensors as a layer."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.name, self.arguments = name, arguments

    def forward(self, x: Tensor) -> Tensor:
        found = getattr(x, self.name)(*self.arguments)
        assert isinstance(found, Tensor)
        return found


def evaluate(form: Form, **sources: Tensor) -> Tensor:
    """The value of `form` for tensors given by the names of its sources."""
    form = at_sizes_of(form, sources)
    value = sum(apply_operator(term.op, sources[name]) for name, term in form.terms.items())
    if form.bias is not None:
        value = value + apply_operator(form.bias, torch.ones_like(value))
    return value


def apply_operator(op: Operator, x: Tensor) -> Tensor:
    """``op(x)`` by the definition of the roles; all sizes are numbers.

    Index letters are pairs: (i, "at") is a position on atom i, (i, "tap") an offset from it.
    """
    axes = [i for dim in op.source for i in dim]
    x = x.reshape([op.links[i].size_in.factor for i in axes])
    for place, i in enumerate(axes):
        x = gathered(x, place, op.links[i].maps)
    letters: list[tuple[int, str]] = [(i, "at") for i in axes]
    for i in axes:
        place = letters.index((i, "at"))
        x = x.narrow(place, op.links[i].cut[0], x.shape[place] - sum(op.links[i].cut))
        if op.links[i].role is Role.MEAN:
            x = x.mean(place)
            letters.remove((i, "at"))
        elif op.links[i].role is Role.STENCIL:
            x = windows(x, place, op.links[i])
            letters.insert(place + 1, (i, "tap"))
    legs = [(i, "tap" if op.links[i].role is Role.STENCIL else "at") for i in op.legs]
    value = [(i, "at") for dim in op.value for i in dim]
    weight = op.weight.tensor()
    for place, i in enumerate(op.legs):
        if op.links[i].role is Role.BORDER:
            weight = weight.index_select(place, torch.tensor(border_entries(op.links[i])))
    number = {letter: n for n, letter in enumerate(dict.fromkeys([*letters, *legs]))}
    y = torch.einsum(x, [number[k] for k in letters], weight, [number[k] for k in legs], [number[k] for k in value])
    for place, (i, _) in enumerate(value):
        y = torch.nn.functional.pad(y.movedim(place, -1), op.links[i].pad).movedim(-1, place)
        y = gathered(y, place, op.links[i].after)
    return y.reshape([size.factor for size in op.value_sizes])


def gathered(x: Tensor, dim: int, maps: Sequence[Resampling]) -> Tensor:
    """The only resamplings of these tests take positions of an axis, as padding by reflection does."""
    for each in maps:
        kind, positions = each.name if each.name != FLIP else ("positions", tuple(range(x.shape[dim]))[::-1])
        assert kind == "positions"
        assert isinstance(positions, tuple)
        x = x.index_select(dim, torch.tensor(positions))
    return x


def border_entries(link: Link) -> list[int]:
    """Per position the number that a border gives it."""
    n = link.size.factor
    assert n >= link.low + link.high
    return [at if at < link.low else max(link.low, link.low + 1 + at - (n - link.high)) for at in range(n)]


def windows(x: Tensor, dim: int, link: Link) -> Tensor:
    """What each output position reads along `dim`, (.., n_out, taps, ..): zeros outside the tensor, and, of a
    transposed window, ``up - 1`` zeros after each sample."""
    if link.up > 1:
        spread = x.new_zeros(*x.shape[:dim], link.up * x.shape[dim], *x.shape[dim + 1 :])
        spread.movedim(dim, 0)[:: link.up] = x.movedim(dim, 0)
        x = spread
    n = x.shape[dim]
    n_out = max(0, (n + link.c) // link.stride + 1)
    reads = link.stride * torch.arange(n_out)[:, None] + torch.tensor(link.taps)
    inside = (reads >= 0) & (reads < n)
    taken = x.movedim(dim, -1)[..., torch.where(inside, reads, 0)] if n else x.new_zeros(())
    return torch.where(inside, taken, 0.0).movedim((-2, -1), (dim, dim + 1))


def at_sizes_of(form: Form, sources: dict[str, Tensor]) -> Form:
    """`form` with every free size replaced by that of the tensor it belongs to."""
    if form.open_rank:
        (name,) = form.terms
        hidden = sources[name].dim() - (len(form.sample.source) - 1)
        form = form.mapped(lambda op: closed(op, hidden))
    pins = {symbol: size_of(symbol, sources) for symbol in free_symbols(form)}
    return form.mapped(lambda op: pin(op, pins))


def free_symbols(form: Form) -> set[Symbol]:
    """The sizes of sources that are not known before run time."""
    operators = [term.op for term in form.terms.values()] + ([] if form.bias is None else [form.bias])
    return set().union(*(roots(link.size) for op in operators for link in op.links))


def size_of(symbol: Symbol, sources: dict[str, Tensor]) -> int:
    """The size that a symbol stands for; of an open first dimension, how many dimensions it stands for."""
    name, dim = symbol.origin
    assert isinstance(name, str)
    assert isinstance(dim, int)
    return sources[name].shape[dim] if dim < 0 else sources[name].dim() - dim


def guards_hold(form: Form, **sources: Tensor) -> bool:
    """Whether the form is meant for tensors of these sizes."""
    return all(_is_as_pinned(size_of(symbol, sources), pin) for symbol, pin in form.guards)


def _is_as_pinned(size: int, pin: Pin) -> bool:
    return size % pin.factor == 0 if isinstance(pin, Size) else size == pin


def has_room(form: Form, **sources: Tensor) -> bool:
    """Whether tensors of these sizes are no smaller than the borders of the form's bias."""
    bias = at_sizes_of(form, sources).bias
    return bias is None or all(link.size.factor >= link.low + link.high for link in bias.links)
