"""Proof by running: every merge is checked on its own, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from .algebra.operator import Operator
from .algebra.size import Pin, Size, Symbol, roots
from .capture.captured import Captured
from .compare import place_of_error, relative_error
from .errors import EquivalenceError, GuardError, NotFusable
from .layers.hooks import has_hooks
from .layers.wide import wide, wide_call, wide_module
from .reasons import Kind
from .running.trees import filled
from .tracing.lending import lender

SITE_TOLERANCE = 1e-10
"""Of one merge in float64: rounding is near 1e-15; room for cancellation between branches, none for mistakes."""
SIZES = (None, 3, 7, 12, 40)
"""What free sizes are set to in the checks; None: as in the example inputs."""
SMALL = 3
"""What free sizes are set to where others are looked at."""
ENOUGH = 2**16
"""Elements: an input larger than this is drawn only if no smaller one could be run."""
LARGEST = 64 * ENOUGH
"""Elements: no larger input is drawn, but of the sizes of the example inputs."""


Dims = Set[tuple[fx.Node, int]]
"""Dimensions of values."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a graph, from some values to one.

    sources: per value that is read, the operator that reads it.
    old, new: the value before and after the merge. members: what is merged; a source among them is merged for one
    of its readers and read by another, so its value depends on other sources. beside: per value that members read
    besides an operator of its sizes: what they make of it may be cut off before the end.
    """

    captured: Captured
    sources: Mapping[fx.Node, Operator]
    old: fx.Node
    new: fx.Node
    members: frozenset[fx.Node] = frozenset()
    beside: Mapping[fx.Node, Operator] = field(default_factory=dict)
    numbers_vary: bool = False

    @cached_property
    def smallest(self) -> Mapping[Symbol, int]:
        """What free sizes have to be at least for the windows over them to fit."""
        found: dict[Symbol, int] = {}
        for op in (*self.sources.values(), *self.beside.values()):
            for symbol, number in op.smallest:
                found[symbol] = max(number, found.get(symbol, 1))
        return found

    def shape(self, op: Operator, size: int | None) -> list[int]:
        """The sizes that an operator reads, with free ones as in the example inputs (None) or all set to `size`: to as
        much more, where smaller ones do not fit.
        """
        return [each.hint if size is None or each.known else self._number(each, size) for each in op.source_sizes]

    def _number(self, size: Size, value: int) -> int:
        smallest = {symbol: self.smallest.get(symbol, 1) for symbol in roots(size)}
        pins: dict[Symbol, Pin] = {s: value if value >= least else least - 1 + value for s, least in smallest.items()}
        return size.substitute(pins).hint

    @cached_property
    def runner(self) -> _Wide:
        """Runs nodes in float64."""
        return _Wide(self.captured)

    @cached_property
    def earlier(self) -> set[fx.Node]:
        """Writes into a source before a member reads it first: they are part of what it is taken to be."""
        aliases = self.captured.aliases
        sources = [node for node in self.sources if node in aliases.order]
        firsts = {node: aliases.first_reader(node, self.members & aliases.order.keys()) for node in sources}
        return {write for node, first in firsts.items() for write in aliases.writes_between(node, node, first)}

    def value(self, result: fx.Node, given: Mapping[fx.Node, Any], as_traced: bool) -> Any:
        """The value of a node in float64, given the values of some nodes it depends on."""
        known: dict[fx.Node, Any] = {node: value.clone() for node, value in given.items()}
        for node in needed(self.captured, result, known, as_traced, self.earlier):
            known[node] = self.runner.call(node, known)
        return known[result]


def check(piece: Piece, where: str) -> float:
    """The largest relative error of a merge in float64, over inputs of several sizes.

    Raises `EquivalenceError` if it is more than rounding, `NotFusable` if the layers give no numbers to compare with.
    """
    tried: list[_Try] = []
    for elements, size in sorted((_elements(piece, size), k) for k, size in enumerate(SIZES)):
        limit = ENOUGH if tried else math.inf if SIZES[size] is None else LARGEST
        if elements <= limit:
            tried += _tries(piece, SIZES[size])
    if not tried:
        raise NotFusable(
            "the layers could not be run on any input that was tried, so the merge is not proved", Kind.UNREAD
        )
    for each in tried:
        if not each.error <= SITE_TOLERANCE:
            if not bool(each.wanted.isfinite().all()):
                raise NotFusable(
                    "the layers give numbers that are not finite, so the merge is not proved", Kind.NUMBERS
                )
            raise EquivalenceError(_difference(each, where))
    if piece.numbers_vary:
        _check_numbers(piece)
    return max(each.error for each in tried)


def _check_numbers(piece: Piece) -> None:
    """Raises `NotFusable` if the merge holds only for a size of its inputs that is a plain number."""
    sizes = [(node, d, s.hint) for node, op in piece.sources.items() for d, s in enumerate(op.source_sizes) if s.known]
    alike = [frozenset((node, d) for node, d, n in sizes if n == number) for number in {n for *_, n in sizes}]
    for dims in dict.fromkeys((*alike, *(frozenset({(node, d)}) for node, d, _ in sizes))):
        if not all(each.error <= SITE_TOLERANCE for each in _tries(piece, SMALL, dims)):
            number = next(n for node, d, n in sizes if (node, d) in dims)
            raise NotFusable(
                f"it holds only for tensors of size {number}, which code before it has as a plain number, and no code"
                " of it would check",
                Kind.CODE,
            )


@dataclass(frozen=True)
class _Try:
    """Old and new piece on the same inputs. shapes: of the inputs, which are drawn with the seeds 0, 1, ..."""

    found: Tensor
    wanted: Tensor
    shapes: list[tuple[int, ...]]

    @cached_property
    def error(self) -> float:
        return relative_error(self.found, self.wanted)


def _difference(tried: _Try, where: str) -> str:
    place = place_of_error(tried.found, tried.wanted, SITE_TOLERANCE)
    drawn = "torch.randn(shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)"
    return (
        f"the merge at {where} differs from the layers it replaces (relative error {tried.error:.2e} in float64;"
        f" {place}): a reader of your own must compute in float64; otherwise please report it, and pass skip=[...] with"
        f" this path to fuse the rest. Its inputs, of shapes {tried.shapes}, were {drawn} for k = 0, 1, ..."
    )


def _elements(piece: Piece, size: int | None) -> int:
    return max(math.prod(piece.shape(op, size)) for op in piece.sources.values())


def _tries(piece: Piece, size: int | None, doubled: Dims = frozenset()) -> list[_Try]:
    """With free sizes as traced (None), or all set to `size`; nothing if the old piece rejects them.

    Raises `NotFusable` if the new one does, and the old one does not.
    """
    for leading in (2, 1, 0) if any(op.open_rank for op in piece.sources.values()) else (0,):
        try:
            values = _values(piece, size, leading, doubled)
            if not all(value.numel() for value in values.values()):
                continue
            wanted = _wanted(piece, values, size, leading)
        except Exception:
            # The layers as they were do not take these sizes: nothing to compare.
            continue
        shapes = [tuple(value.shape) for value in values.values()]
        values |= {piece.captured.current(node): value for node, value in values.items()}
        try:
            found = piece.value(piece.new, values, as_traced=size is None)
        except GuardError:
            # The merged layer says itself that it is not meant for this size.
            continue
        except Exception as error:
            raise NotFusable(
                "the merged layer does not take tensors of all ranks and sizes that these layers take: pass"
                f" example_inputs (of shapes {shapes}: {error})",
                Kind.SIZES,
            ) from error
        return [_Try(found, wanted, shapes)]
    return []


def _values(piece: Piece, size: int | None, leading: int, doubled: Dims) -> dict[fx.Node, Tensor]:
    """Inputs for the sources, and for the nodes that have their values now; one that depends on others gets the
    numbers that these give.
    """
    aliases = piece.captured.aliases
    values: dict[fx.Node, Tensor] = {}
    for drawn, node in enumerate(sorted(piece.sources, key=aliases.order.__getitem__)):
        if node in piece.members or not values.keys().isdisjoint(aliases.of(node)):
            with suppress(LookupError):
                values[node] = piece.value(node, values, as_traced=size is None)
        if node not in values:
            dims = {d for each, d in doubled if each is node}
            op = piece.sources[node]
            values[node] = _drawn(op, piece.shape(op, size), drawn, leading, dims)
        if piece.members.isdisjoint(node.users):
            # A merge in place before this one: the members read what has the value now.
            values[piece.captured.current(node)] = values[node]
    return values


def _wanted(piece: Piece, values: dict[fx.Node, Tensor], size: int | None, leading: int) -> Any:
    """The value of the old piece. values: of its sources; receives those beside them, if it cannot do without."""
    try:
        return piece.value(piece.old, values, as_traced=size is None)
    except LookupError:
        for node, op in piece.beside.items():
            try:
                values[node] = piece.value(node, values, as_traced=size is None)
            except LookupError:
                values[node] = _drawn(op, piece.shape(op, size), len(values), leading, ())
        return piece.value(piece.old, values, as_traced=size is None)


def _drawn(op: Operator, sizes: Sequence[int], number: int, leading: int, doubled: Collection[int]) -> Tensor:
    """Random numbers; an open first dimension stands for `leading` dimensions. doubled: dimensions of twice their
    size.
    """
    generator = torch.Generator().manual_seed(number)
    shape = [size * (2 if d in doubled else 1) for d, size in enumerate(sizes)]
    if op.open_rank:
        shape[:1] = [2] * leading
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def needed(
    captured: Captured,
    result: fx.Node,
    known: dict[fx.Node, Any],
    as_traced: bool,
    without: Collection[fx.Node] = (),
) -> list[fx.Node]:
    """The nodes between the known values and `result`, in program order. without: writes that are in what is known."""
    wanted: set[fx.Node] = set()
    stack = [result]
    while stack:
        node = stack.pop()
        if node in wanted or node in known:
            continue
        numbers = node.meta.get("val")
        if as_traced and _is_size(numbers):
            known[node] = numbers
            continue
        if node.op == "placeholder":
            raise LookupError(f"{node} is not given")
        wanted.add(node)
        writes = captured.aliases.writes_before(node)
        read = lends_only(captured, node)
        inputs = (n for n in node.all_input_nodes if n is not read)
        stack.extend((*inputs, *(write for write in writes if write not in without)))
    return sorted(wanted)


def _is_size(value: Any) -> bool:
    """Whether a value is a number of elements, or several (`x.size()`)."""
    return isinstance(value, (int, torch.Size)) or (
        type(value) is tuple and bool(value) and all(isinstance(each, int) for each in value)
    )


def lends_only(captured: Captured, node: fx.Node) -> fx.Node | None:
    """The input of parameter arithmetic that nothing but the dtype and device is read of."""
    return lender(node) if node in captured.constants else None


@dataclass(frozen=True, eq=False)
class _Wide:
    """Runs nodes in float64. modules: what the nodes called that were run."""

    captured: Captured
    modules: dict[fx.Node, Callable[..., Any]] = field(default_factory=dict)

    def call(self, node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
        read = lends_only(self.captured, node)

        def value(n: fx.Node) -> Any:
            return torch.zeros((), dtype=torch.float64) if n is read and n not in known else known[n]

        args, kwargs = filled((node.args, node.kwargs), value)
        with torch.no_grad():
            found = self._found(node, args, kwargs)
        # Parameter arithmetic may begin with a tensor of the model's own dtype.
        return wide(found) if isinstance(found, Tensor) and node in self.captured.constants else found

    def _found(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "get_attr":
            return self.captured.attribute(node)
        if node.op == "call_module":
            if node not in self.modules:
                module = wide_module(self.captured.module(node))
                # What a hook does comes before or after all that is merged.
                self.modules[node] = module.forward if has_hooks(module) else _pixelwise(module)
            return self.modules[node](*args, **kwargs)
        return wide_call(node.target, args, kwargs)


def _pixelwise(module: nn.Module) -> Callable[..., Any]:
    """A 1x1 convolution of single pixels, as of one image whose pixels they are: one product instead of many."""
    if not isinstance(module, nn.Conv2d) or {*module.kernel_size, *module.stride} != {1} or module.padding != (0, 0):
        return module

    def call(input: Tensor) -> Tensor:
        if input.dim() != 4 or input.shape[2:] != (1, 1):
            return module(input)  # type: ignore[no-any-return]
        image = input.transpose(0, 2)
        return module(image).transpose(0, 2)  # type: ignore[no-any-return]

    return call
