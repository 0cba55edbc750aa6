"""Proof by running: every merge is checked on its own, and the whole model on the example inputs.

Relative error is always ``max|a - b| / max|b|`` per tensor.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from .algebra.operator import Operator
from .algebra.size import Size, Symbol, roots
from .capture.buffers import other_buffers
from .capture.capture import Captured, Inputs, run
from .capture.lending import lender
from .capture.trees import leaves, map_leaves
from .errors import EquivalenceError, GuardError, NotFusable
from .layers.hooks import has_hooks
from .layers.wide import wide, wide_call, wide_module

SITE_TOLERANCE = 1e-10
"""Of one merge in float64: rounding is near 1e-15; room for cancellation between branches, none for mistakes."""
AMPLIFIED = 16
"""How much more than one rounding of the weights may separate two ways to compute one model."""
SIZES = (None, 3, 7, 12, 40)
"""What free sizes are set to in the checks; None: as in the example inputs."""
ENOUGH = 2**16
"""Elements: an input larger than this is drawn only if no smaller one could be run."""
LARGEST = 64 * ENOUGH
"""Elements: no larger input is drawn, but of the sizes of the example inputs."""


def tolerance(dtype: torch.dtype, fan_in: int = 4096, depth: int = 64) -> float:
    """What rounding alone can explain between two orders of the same arithmetic.

    Errors of sums grow with the square root of the number of summands (`fan_in`) and of the layers (`depth`);
    for half precision the bound is capped, since beyond it nothing would be said.
    """
    return min(4 * torch.finfo(dtype).eps * math.sqrt(fan_in * depth), 0.1)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """``max|found - wanted| / max|wanted|``; infinite if exactly one of them is not finite somewhere."""
    if found.shape != wanted.shape:
        return math.inf
    if wanted.numel() == 0:
        return 0.0
    a, b = found.detach().double(), wanted.detach().double()
    difference, scale = float((a - b).abs().max()), float(b.abs().max())
    if math.isfinite(difference) and math.isfinite(scale):
        return difference / scale if scale else (math.inf if difference else 0.0)
    return _error_beside_infinities(a, b)


def _error_beside_infinities(a: Tensor, b: Tensor) -> float:
    """Both must be infinite, or not a number, at the same places; the error is that of the rest."""
    finite = b.isfinite()
    if not torch.equal(a.nan_to_num(0, math.inf, -math.inf)[~finite], b.nan_to_num(0, math.inf, -math.inf)[~finite]):
        return math.inf
    return relative_error(a[finite], b[finite]) if torch.equal(a.isfinite(), finite) else math.inf


# --- whole models -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verification:
    """The comparison of two models on one input.

    error: the largest relative error over the output tensors. tolerance: what rounding can explain. where: in which
    output, and where in it, if that is more. first: the path of the first module that makes something else of the same
    inputs, if there is one of that path in both models.
    """

    error: float
    tolerance: float
    where: str = ""
    first: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the outputs agree up to rounding."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "equal" if self.passed else "NOT equal"
        place = f"; {self.where}" if self.where else ""
        first = "" if self.first is None else f"; the first module that differs is '{self.first}'"
        return f"{verdict}: largest relative error {self.error:.2e}, rounding allows {self.tolerance:.1e}{place}{first}"


def compare(found: Any, wanted: Any, through: Iterable[Tensor] = ()) -> Verification:
    """Compare two outputs, tensor by tensor.

    through: tensors that take part in the computation, whose dtypes round as well.
    """
    found, wanted = tensors(found), tensors(wanted)
    if len(found) != len(wanted):
        return Verification(math.inf, 0.0, f"{len(found)} output tensors, not {len(wanted)}")
    floating = {t.dtype for t in (*wanted, *through) if t.is_floating_point()}
    allowed = max((tolerance(d) for d in floating), default=0.0)
    errors = [relative_error(a, b) for a, b in zip(found, wanted, strict=True)]
    if not errors or max(errors) <= allowed:
        return Verification(max(errors, default=0.0), allowed)
    worst = errors.index(max(errors))
    which = f"output {worst}: " if len(errors) > 1 else ""
    return Verification(errors[worst], allowed, which + place_of_error(found[worst], wanted[worst], allowed))


def place_of_error(found: Tensor, wanted: Tensor, allowed: float) -> str:
    """Where two tensors differ by more than `allowed`, relative to the largest number: dimension 1 is of channels,
    those behind it of pixels.
    """
    if found.shape != wanted.shape:
        return f"its shape is {tuple(found.shape)}, not {tuple(wanted.shape)}"
    a, b = found.detach().double(), wanted.detach().double()
    finite = b[b.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    wrong = ~((a - b).abs() <= allowed * scale) & ~((a == b) | (a.isnan() & b.isnan()))
    said = [f"{int(wrong.sum())} of {wrong.numel()} numbers differ"]
    for dim, size in enumerate(wrong.shape):
        places = wrong.movedim(dim, 0).reshape(size, -1).any(1).nonzero().flatten().tolist()
        if size > 1 and len(places) == 1:
            said.append(f"only in channel {places[0]}" if dim == 1 else f"only at {places[0]} of dimension {dim}")
    inner = wrong
    for dim in range(2, wrong.dim()):
        inner = inner.narrow(dim, 1, max(0, wrong.shape[dim] - 2)) if wrong.shape[dim] > 1 else inner
    if inner.numel() and not inner.any():
        said.append("only at the border")
    return ", ".join(said)


def tensors(output: Any) -> list[Tensor]:
    """All tensors in a nested structure, and numbers as tensors."""
    if hasattr(output, "to_tuple"):
        output = output.to_tuple()
    found = [leaf if isinstance(leaf, Tensor) else _of_number(leaf) for leaf in leaves(output)]
    return [_plain(tensor) for tensor in found if tensor is not None]


def _of_number(leaf: Any) -> Tensor | None:
    return torch.tensor(float(leaf), dtype=torch.float64) if isinstance(leaf, (bool, int, float)) else None


def _plain(tensor: Tensor) -> Tensor:
    """The numbers of a tensor of any kind, as one that has real numbers everywhere."""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def undisturbed(model: nn.Module, inputs: Inputs) -> Any:
    """The output of a model on copies of the inputs, its buffers left as they are."""
    with other_buffers(model, Tensor.clone):
        return run(model, inputs.copied())


def sensitivity(model: nn.Module, inputs: Inputs) -> float:
    """How far one rounding of its own weights moves the output of a model, as a relative error.

    Some models amplify rounding so much that no two ways to compute them agree.
    """
    generator = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator).to(tensor)
                tensor.mul_(1 + torch.finfo(tensor.dtype).eps * noise)
    return compare(undisturbed(twin, inputs), undisturbed(model, inputs)).error


def compare_wide(found: nn.Module, wanted: nn.Module, inputs: Inputs) -> Verification | None:
    """Compare two models as if they were of float64, where nothing is left of rounding but that of their weights; None
    if they do not run so. (A choice by rank, as of the best boxes, is a matter of rounding among equals.)
    """
    twins = [wide_module(model) for model in (found, wanted)]
    given = map_leaves(
        lambda leaf: wide(leaf) if isinstance(leaf, Tensor) else leaf, (inputs.args, dict(inputs.kwargs))
    )
    try:
        a, b = (undisturbed(twin, Inputs(*given)) for twin in twins)
    except Exception:
        return None
    return compare(a, b, wanted.parameters())


# --- one merge --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a graph, from some values to one.

    sources: per value that is read, the operator that reads it.
    old, new: the value before and after the merge. members: what is merged; a source among them is merged for one
    of its readers and read by another, so its value depends on other sources.
    """

    captured: Captured
    sources: Mapping[fx.Node, Operator]
    old: fx.Node
    new: fx.Node
    members: frozenset[fx.Node] = frozenset()

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

    Raises `EquivalenceError` if it is more than rounding.
    """
    tried: list[_Try] = []
    for elements, size in sorted((_elements(piece, size), k) for k, size in enumerate(SIZES)):
        limit = ENOUGH if tried else math.inf if SIZES[size] is None else LARGEST
        if elements <= limit:
            tried += _tries(piece, SIZES[size])
    if not tried:
        raise NotFusable("the layers could not be run on any input that was tried, so the merge is not proved")
    for each in tried:
        if not each.error <= SITE_TOLERANCE:
            raise EquivalenceError(_difference(each, where))
    return max(each.error for each in tried)


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
    return max(math.prod(_number(s, size) for s in op.source_sizes) for op in piece.sources.values())


def _tries(piece: Piece, size: int | None) -> list[_Try]:
    """With free sizes as traced (None), or all set to `size`; nothing if the old piece rejects them."""
    for leading in (1, 0) if any(op.open_rank for op in piece.sources.values()) else (0,):
        try:
            values = _values(piece, size, leading)
            if not all(value.numel() for value in values.values()):
                continue
            wanted = piece.value(piece.old, values, as_traced=size is None)
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
        return [_Try(found, wanted, shapes)]
    return []


def _values(piece: Piece, size: int | None, leading: int) -> dict[fx.Node, Tensor]:
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
            values[node] = _drawn(piece.sources[node], size, drawn, leading)
        if piece.members.isdisjoint(node.users):
            # A merge in place before this one: the members read what has the value now.
            values[piece.captured.current(node)] = values[node]
    return values


def _drawn(op: Operator, size: int | None, number: int, leading: int) -> Tensor:
    """Random numbers; an open first dimension stands for `leading` dimensions."""
    generator = torch.Generator().manual_seed(number)
    shape = [_number(s, size) for s in op.source_sizes]
    if op.open_rank:
        shape[:1] = [2] * leading
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _number(size: Size, value: int | None) -> int:
    if value is None or size.known:
        return size.hint
    pins: dict[Symbol, int] = dict.fromkeys(roots(size), value)
    return size.substitute(pins).hint


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
        number = node.meta.get("val")
        if as_traced and isinstance(number, int):
            known[node] = number
            continue
        if node.op == "placeholder":
            raise LookupError(f"{node} is not given")
        wanted.add(node)
        writes = captured.aliases.writes_before(node)
        read = lends_only(captured, node)
        inputs = (n for n in node.all_input_nodes if n is not read)
        stack.extend((*inputs, *(write for write in writes if write not in without)))
    return sorted(wanted)


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

        args, kwargs = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
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

    def call(x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[2:] != (1, 1):
            return module(x)  # type: ignore[no-any-return]
        image = x.transpose(0, 2)
        return module(image).transpose(0, 2)  # type: ignore[no-any-return]

    return call
