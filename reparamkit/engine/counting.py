"""Numbers that the code of a model makes of sizes: shapes and ranks that it asks for, and arithmetic with them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..algebra.operator import identity, with_rank
from ..algebra.size import Share, Size, fixed, free_size, product, share, stencil_size
from ..capture.aliases import ModuleOf, target_name, target_of
from ..tracing.guards import is_guard

PURE = frozenset([operator.neg.__module__, math.sqrt.__module__])
"""Modules of functions that make numbers of numbers."""
ARITHMETIC = frozenset({"add", "sub", "mul", "div", "truediv"})
"""Names of calls that combine two values element by element."""
UNKNOWN = object()
"""A Python value that is some size, or made of sizes."""
Shape = tuple[tuple[Size, ...], bool]
"""The sizes of a tensor, and whether the first stands for any number of dimensions."""


@dataclass(frozen=True)
class OpenShape:
    """The shape of a tensor of unknown rank, whose first size stands for any number of dimensions."""

    sizes: tuple[Size, ...]

    def get(self, key: object) -> Size | tuple[Size, ...] | None:
        """What code takes of it that counts from the end: a size, or several; None of anything else."""
        if isinstance(key, int):
            return self._size(key) if key < 0 else None
        ends = (key.start, key.stop, key.step) if isinstance(key, slice) else ()
        start, stop, step = ends or (None, None, None)
        if not isinstance(start, int) or start >= 0 or step not in (None, 1):
            return None
        last = 0 if stop is None else stop
        counts = isinstance(last, int) and (last < 0 or stop is None)
        return tuple(map(self._size, range(start, last))) if counts else None

    def _size(self, dim: int) -> Size:
        return with_rank(identity(self.sizes, open_rank=True), -dim).value_sizes[dim]


SAME_SHAPE = frozenset(
    str.split("""
    abs add alphadropout batchnorm batchnorm1d batchnorm2d batchnorm3d ceil celu clamp clip clone cos detach div dropout
    dropout1d dropout2d dropout3d elu emptylike erf exp featurealphadropout flip floor gelu groupnorm hardshrink
    hardsigmoid hardswish hardtanh iadd identity imul instancenorm1d instancenorm2d instancenorm3d isub itruediv
    layernorm leakyrelu localresponsenorm log logsigmoid logsoftmax maximum minimum mish mul neg normalize oneslike pow
    prelu randlike randnlike reciprocal relu relu6 rmsnorm roll round rrelu rsqrt selu sigmoid silu sin softmax
    softmax2d softmin softplus softshrink softsign sqrt square sub syncbatchnorm tanh tanhshrink threshold truediv
    """)
)
"""Calls that are not read but give a tensor of the shape of their first argument (unless they broadcast), by their
plain names."""
MAY_BROADCAST = frozenset(str.split("mul add sub div imul iadd addcmul isub itruediv maximum minimum pow truediv"))


def called_name(node: fx.Node, module_of: ModuleOf) -> str:
    """The name of what a node calls; of a layer, that of the class of torch whose forward it has."""
    if node.op != "call_module":
        return target_name(node, module_of).rstrip("_") if node.op.startswith("call") else ""
    module = module_of(node)
    known = (c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules"))
    # A scripted class has none to ask for.
    forward = getattr(type(module), "forward", None)
    return next((c.__name__.lower() for c in known if getattr(c, "forward", ...) is forward), "")


def plain_name(name: str) -> str:
    """What a function and the layer of it have in common: ``leaky_relu`` and `LeakyReLU`."""
    return name.replace("_", "")


def is_arithmetic(node: fx.Node, one: fx.Node, other: fx.Node) -> bool:
    """Whether a node is a sum, difference, product or quotient of these two values, and writes into neither."""
    return target_of(node) in ARITHMETIC and not node.kwargs and node.args in ((one, other), (other, one))


def checks(node: fx.Node) -> bool:
    """Whether a node is there to raise an error: a guard or an assertion."""
    return is_guard(node.target) or "assert" in str(getattr(node.target, "__name__", ""))


def shape_read(node: fx.Node, shape: Shape) -> Any:
    """What a node gives that asks a tensor of this shape for it, or for its rank; None if it asks for neither."""
    sizes, open_rank = shape
    if reads_rank(node):
        return UNKNOWN if open_rank else fixed(len(sizes))
    if reads_number(node):
        return opaque(node) if open_rank else product(sizes)
    if not reads_shape(node):
        return None
    dim = node.args[1] if node.target is not getattr and len(node.args) == 2 else None
    if open_rank:
        return OpenShape(sizes) if dim is None else OpenShape(sizes).get(dim) or opaque(node)
    return sizes[dim] if isinstance(dim, int) else tuple(sizes)


def least_rank(node: fx.Node) -> int:
    """How many dimensions a value has at least, since two of them are swapped by their number."""
    swapped = [d for d in node.args[1:3] if isinstance(d, int)] if _is_swap(node) else []
    swapped += [-2] if node.target is getattr and node.args[1] in ("mT", "mH") else []
    return max((d + 1 if d >= 0 else -d for d in swapped), default=1)


def _is_swap(node: fx.Node) -> bool:
    return target_of(node) in ("transpose", "swapaxes", "swapdims")


def reads_shape(node: fx.Node) -> bool:
    """Whether a node is the shape of a tensor, or a size of it."""
    is_attribute = node.target is getattr and node.args[1] == "shape"
    return bool(is_attribute or (node.op == "call_method" and node.target == "size"))


def reads_rank(node: fx.Node) -> bool:
    """Whether a node is the number of dimensions of a tensor."""
    is_attribute = node.target is getattr and node.args[1] == "ndim"
    return bool(is_attribute or (node.op == "call_method" and node.target in ("dim", "ndimension")))


def reads_number(node: fx.Node) -> bool:
    """Whether a node is how many numbers a tensor has."""
    return (node.op, node.target) == ("call_method", "numel") or node.target is torch.numel


def computed(node: fx.Node, args: list[Any]) -> Any:
    """The size, or the sizes, that a call gives for these."""
    if node.target is operator.getitem and isinstance(args[0], OpenShape):
        return args[0].get(args[1]) or opaque(node)
    if node.target is operator.getitem and isinstance(args[0], tuple) and isinstance(args[1], (int, slice)):
        return opaque(node) if _is_outside(*args) else args[0][args[1]]
    if node.target is operator.add and all(isinstance(each, tuple) for each in args):
        return _joined(*args) or opaque(node)
    if node.target is math.prod and len(args) == 1 and _are_sizes(args[0]):
        return product(args[0])
    numbers = [_sized(each) for each in args]
    result = calculated(node, [a.factor if isinstance(a, Size) and a.known else a for a in numbers])
    if result is not None:
        # What is no size is a number as any other that the code knows.
        return fixed(result) if isinstance(result, int) else None
    if (found := _shared(node.target, *numbers)) is not None:
        return found
    are_two = len(numbers) == 2 and all(isinstance(a, Size) for a in numbers)
    return (_of_two(node.target, *numbers) if are_two else None) or opaque(node)


def _is_outside(sizes: tuple[Size, ...], index: int | slice) -> bool:
    """Whether a shape has no such entry: the rank may be another, for all that is known."""
    return isinstance(index, int) and not -len(sizes) <= index < len(sizes)


def _of_two(target: object, first: Size, second: Size) -> Size | None:
    """What arithmetic with two sizes gives, if that is a size."""
    if target is operator.mul:
        return first * second
    if target in (operator.floordiv, operator.truediv):
        return first.divide(second) or _floored(target, first, second)
    if target is operator.add and any(size.known and size.factor >= 0 for size in (first, second)):
        return _more(*sorted((first, second), key=lambda size: size.known))
    if target is operator.sub and second.known and second.factor >= 0:
        return stencil_size(first, 1, -second.factor - 1)
    return None


def _shared(target: object, *numbers: Any) -> Share | None:
    """A number divided by free sizes, as ``1 / (h * w)`` is; None of all others."""
    if len(numbers) != 2 or not all(isinstance(each, (Share, Size, float)) for each in numbers):
        return None
    if target is operator.pow and numbers[1] == fixed(-1):
        return share((), numbers[:1])
    if target is operator.mul:
        return share(numbers, ())
    return share(numbers[:1], numbers[1:]) if target is operator.truediv else None


def _sized(value: Any) -> Any:
    """A whole number as the size that it is; anything else as it is."""
    return fixed(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _joined(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Size, ...] | None:
    """A shape of the entries of two, as in ``x.shape[:-1] + (8,)``; None if one of them is no size."""
    sizes = tuple(_sized(each) for each in (*first, *second))
    return sizes if _are_sizes(sizes) else None


def _are_sizes(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, Size) for each in value)


def calculated(node: fx.Node, numbers: Sequence[Any]) -> int | float | None:
    """What a function that makes a number of numbers gives for these; None if it is none, or they are not all there."""
    plain = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in numbers)
    if not (plain and numbers) or node.kwargs or getattr(node.target, "__module__", None) not in PURE:
        return None
    try:
        result = node.target(*numbers)  # type: ignore[operator]
    except (ArithmeticError, ValueError):
        return None
    return result if isinstance(result, (int, float)) and not isinstance(result, bool) else None


def _floored(divide: object, size: Size, by: Size) -> Size | None:
    """``n // k`` of a free size: as many as a window of k positions with stride k finds, which is how layers halve."""
    whole = divide is operator.floordiv and by.known and by.factor > 0
    return stencil_size(size, by.factor, -by.factor) if whole else None


def _more(size: Size, by: Size) -> Size:
    """``n + k`` of a free size: as many as a window finds behind a padding that adds so many."""
    return stencil_size(size, 1, by.factor - 1)


def opaque(node: fx.Node) -> Any:
    """A number nothing is known of but its value for the example inputs."""
    value = node.meta.get("val")
    return free_size(node.name, -1, value) if isinstance(value, int) and not isinstance(value, bool) else UNKNOWN
