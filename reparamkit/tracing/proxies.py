"""The proxies of a trace: values that Python code computes with, and asks questions about, before there are any.

A question is answered as the model would be, from the (fake) value of the example inputs. Where the answer may differ
for other inputs the graph gets a check that it does not; where it cannot be known, the module is not traced.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator
from functools import partial
from numbers import Number
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from ..errors import CaptureError
from ..running.trees import map_leaves
from ..sourcecode.writes import AUGMENTED
from .anyway import decided_anyway
from .guards import expect, expect_tensor
from .lending import LENT, Lent
from .questions import asks, asks_class, asks_for_dtype, catches, goes_on_if, sought, unpacked, words_message

RANK_METHODS = frozenset({"dim", "ndimension", "is_floating_point", "is_complex"})
FIXED_ATTRIBUTES = frozenset({"ndim", "dtype", "device", "is_cuda", "layout"})
LIKE = {"view_as": "view", "reshape_as": "reshape", "expand_as": "expand"}
"""Methods that take a tensor for its shape."""
SPLITS = (torch.split, Tensor.split, "split", "split_with_sizes")
"""Functions and methods that split a tensor into parts."""
CHUNKS, UNBINDS = (torch.chunk, "chunk"), (torch.unbind, "unbind")
"""Those that are told how many parts there are at most; those that make a part of each element."""
SECTIONS = (torch.tensor_split, "tensor_split", torch.hsplit, "hsplit", torch.vsplit, "vsplit", torch.dsplit, "dsplit")
"""Those that are told where parts begin, or how many there are."""
ANSWERS = (bool, str, type, torch.dtype, torch.device, torch.layout, type(None))
"""Values that code compares, and no more: an attribute that has one is no node."""
OWN = frozenset({"node", "tracer", "name"})
"""Attributes of a proxy that a tensor has as well."""
A_TENSOR = torch.empty(1, 1)
"""Has what every tensor has; what is None here may be None elsewhere."""
UNPACKED = "unpacked"
"""What the meta of a value has that code takes apart: into how many."""
UNKNOWN = object()
"""The value of a proxy that follows from inputs of which there is no example."""
WHOLE = frozenset({operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, max, min})
"""What is an integer if all it is given are."""
COMPARISONS = frozenset(
    {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.contains}
)
OPERATORS = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "power": operator.pow,
    "equal": operator.eq,
    "not_equal": operator.ne,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
}
"""Python's operators, by the names that numpy has for them."""
OF_MATH = {each.__name__: each for each in (math.prod, math.sqrt, math.exp, math.log, math.log2, math.log10)}
"""Functions that numpy has too, under the same name."""
Plain = TypeVar("Plain")


class ValueProxy(fx.Proxy):
    """A proxy that knows the (fake) value of its node, if that follows from what is known."""

    tracer: Any

    def __array_ufunc__(self, function: Any, how: str, *args: Any, **kwargs: Any) -> Any:
        """An operator of numpy with a scalar on the left leaves it to the proxy, as to a tensor."""
        left, ours = args[0], OPERATORS.get(function.__name__)
        if how == "__call__" and ours is not None and isinstance(left, Number) and hasattr(left, "item"):
            return ours(left.item(), *args[1:])
        return self._by_numpy(function.__name__, getattr(function, how), args, kwargs)

    def __array_function__(self, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._by_numpy(function.__name__, function, args, kwargs)

    def _by_numpy(self, name: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function of numpy: of sizes it is that of `math`, where there is one, else it is computed now."""
        if name in OF_MATH and len(args) == 1 and not kwargs and self.is_of_sizes(several=name == "prod"):
            return self.tracer.create_proxy("call_function", OF_MATH[name], args, {})
        args, kwargs = map_leaves(partial(_decided_leaf, f"numpy.{name}"), (args, kwargs))
        return call(*args, **kwargs)

    def is_of_sizes(self, several: bool) -> bool:
        """Whether it is several sizes of a tensor, or one number that is computed of them."""
        if self.value is UNKNOWN:
            return _counts(self.node) and _has_several(self.node) == several
        return isinstance(self.value, torch.Size if several else (int, float))

    @property
    def value(self) -> Any:
        return self.node.meta.get("val", UNKNOWN)

    def __getattr__(self, name: str) -> Any:
        value = self.value
        if name.startswith("__array_") and _counts(self.node):
            raise AttributeError("a size is no array")
        holder = Tensor if isinstance(value, Tensor) or value is UNKNOWN else value
        if not hasattr(holder, name):
            return self._missing(name, sys._getframe(1))
        if value is UNKNOWN:
            if getattr(A_TENSOR, name) is None:
                raise self._needs_values(f"the attribute '{name}' of the value {self.node}")
            return _Attribute(self, name)
        if name == "requires_grad" and self._is_made() and self.tracer.is_heedless_of_gradients():
            return False
        found = self.tracer.attribute_of(value, name)
        if isinstance(value, Tensor) and name in FIXED_ATTRIBUTES:
            if name == "ndim":
                self.tracer.asks_for_rank(sys._getframe(1))
            if name in LENT:
                self.tracer.lending.note(sys._getframe(1), Lent(self.node, name, found))
            return found
        return self._decision(name, found) if isinstance(found, ANSWERS) else _Attribute(self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What cannot be called is called only behind `callable`, which takes every proxy for a function."""
        if args or kwargs or callable(self.value):
            return super().__call__(*args, **kwargs)
        if self.value is UNKNOWN:
            raise self._needs_values(f"whether the value {self.node} can be called")
        return self if isinstance(self.value, Tensor) else self._decided("a call", lambda value: value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "requires_grad" and value is False and self.node.op.startswith("call"):
            self.requires_grad_(False)
        elif hasattr(Tensor, name) and name not in OWN:
            raise self.tracer.refusal(f"the forward sets the attribute '{name}' of {self.node}{where(self.tracer)}")
        else:
            super().__setattr__(name, value)
            if type(self) is ValueProxy and name not in OWN:
                self.tracer.put(value)

    def _needs_values(self, what: str) -> CaptureError:
        why = f"the model needs {what} while it is traced: pass example_inputs to reparamkit.fuse"
        if self.tracer.is_given:
            why = f"the model needs {what}, which depends on the data of its inputs{where(self.tracer)}"
        error: CaptureError = self.tracer.refusal(why)
        return error

    def _decision(self, name: str, found: Any) -> Any:
        """An attribute that code compares by identity."""
        attribute = self.tracer.create_proxy("call_function", getattr, (self, name), {})
        self.tracer.create_proxy("call_function", expect, (attribute, found), {})
        return found

    def _missing(self, name: str, by: FrameType) -> Any:
        """An attribute that tensors do not have, nor the value if it is known."""
        if self.node.op == "get_attr":
            return self.tracer.attribute_of(self.tracer.root, f"{self.node.target}.{name}")
        asked = asks(by, "hasattr", "getattr")
        if self.value is UNKNOWN and not asked:
            return _Attribute(self, name)
        if self.value is UNKNOWN and not self._is_tensor():
            raise self._needs_values(f"whether the value {self.node} has an attribute '{name}'")
        if self.node.op == "placeholder" and asked:
            # Other callers may give what has it.
            found = self.tracer.create_proxy("call_function", hasattr, (self, name), {})
            self.tracer.create_proxy("call_function", expect, (found, False), {})
        raise AttributeError(f"a {Tensor if self.value is UNKNOWN else type(self.value)} has no attribute '{name}'")

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """What isinstance() goes by. C code of torch that asks would take a proxy for a tensor in memory."""
        frame = sys._getframe(1)
        if not asks_class(frame):
            return type(self)
        if asks_for_dtype(frame):
            # C code of torch would look into the proxy as if it was the tensor.
            why = f"the code asks for a type of tensors of one dtype{where(self.tracer)}: use x.dtype"
            raise self.tracer.refusal(why)
        return self.kind()

    def kind(self) -> type:
        """The class that it stands for."""
        if isinstance(self.value, Tensor):
            return nn.Parameter if isinstance(self.value, nn.Parameter) else Tensor
        if self.value is not UNKNOWN:
            return type(self.value)
        if self.is_of_sizes(several=True):
            return torch.Size
        if self.is_of_sizes(several=False) and _is_whole(self.node):
            return int
        if not self._is_tensor():
            raise self._needs_values(f"the type of the value {self.node}")
        if self.node.op == "placeholder":
            self.tracer.create_proxy("call_function", expect_tensor, (self,), {})
        return Tensor

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor, or taken for one."""
        return isinstance(self.value, Tensor) or (self.value is UNKNOWN and self._is_tensor())

    def _is_made(self) -> bool:
        """Whether it is a tensor that a run makes or gets, no parameter."""
        return isinstance(self.value, Tensor) and self.node.op != "get_attr"

    def _is_tensor(self) -> bool:
        """Whether a value that is not known is taken for a tensor: an argument, or what a module says it returns."""
        if self.node.op != "call_module":
            return self.node.op == "placeholder"
        forward = type(self.tracer.root.get_submodule(str(self.node.target))).forward
        return forward.__annotations__.get("return") in (Tensor, "Tensor")

    def __hash__(self) -> int:
        if isinstance(self.value, Tensor):
            return id(self)
        if catches(sys._getframe(1), TypeError):
            # einops keeps what it found for a shape, and does without for one that is no key, as torch's own symbols.
            raise TypeError("a size that is being traced is no key")
        return self._decided("a key", hash)

    def __str__(self) -> str:
        return repr(self) if isinstance(self.value, Tensor) else self._decided("str()", str)

    def __format__(self, how: str) -> str:
        if words_message(sys._getframe(1)):
            return "?"
        return repr(self) if isinstance(self.value, Tensor) else self._decided("format()", lambda v: format(v, how))

    def __iter__(self) -> Iterator[Any]:
        # As many as the code itself says are no decision.
        counted = self.value is UNKNOWN or isinstance(self.value, tuple)
        wanted = unpacked(sys._getframe(1)) if counted else None
        if wanted is not None:
            self.node.meta[UNPACKED] = wanted
        return iter([operator.getitem(self, i) for i in range(len(self) if wanted is None else wanted)])

    def __getitem__(self, key: Any) -> Any:
        # Some of the parts of a tensor are a list of them: a merge takes each for itself.
        number = self._taken_by(key) if isinstance(key, slice) else None
        if number is None:
            return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})
        return tuple(self[each] for each in range(number)[key])

    def _taken_by(self, key: slice) -> int | None:
        """How many parts a split has of which a slice takes some; None if that is not known, or is left open."""
        if not all(each is None or type(each) is int for each in (key.start, key.stop, key.step)):
            return None
        told = _parts(self.node)
        if told is not None or (key.step or 1) > 0:
            return told
        # Who turns parts around has so many of them in mind, if they are not samples.
        chunked = self.node.target in CHUNKS
        many = chunked or (self.node.target in UNBINDS and self.value is not UNKNOWN)
        return len(self) if many and _argument(self.node, "dim", 2 if chunked else 1) not in (0, None) else None

    def __len__(self) -> int:
        parts = _parts(self.node)
        if parts is not None:
            return parts
        if self.is_of_sizes(several=False):
            raise TypeError("a size has no len()")
        if self.value is UNKNOWN:
            sizes = _sliced(self.node)
            return self._chunks() if sizes is None else sizes
        if isinstance(self.value, torch.Size):
            self.tracer.asks_for_rank(sys._getframe(1))
            return len(self.value)
        tensor = isinstance(self.value, Tensor)
        return int(self.size(0) if tensor else self.tracer.create_proxy("call_function", len, (self,), {}))

    def length(self) -> Any:
        """The first size of a tensor that a run makes, or is known to get; the rank, of a shape of which nothing is
        known; None of anything else.
        """
        if self.value is UNKNOWN and _is_shape(self.node):
            return self.tracer.proxy(self.node.args[0]).dim()
        made = self.value is not UNKNOWN or self.node.op != "placeholder"
        return self.size(0) if made and self.is_tensor and _parts(self.node) is None else None

    def _chunks(self) -> int:
        """As many as the code asks for, which all sizes but the least give."""
        wanted = _argument(self.node, "chunks") if self.node.target in CHUNKS else None
        if not isinstance(wanted, int):
            raise self._needs_values(f"the number of parts of the value {self.node}")
        number = self.tracer.create_proxy("call_function", len, (self,), {})
        self.tracer.create_proxy("call_function", expect, (number, wanted), {})
        return wanted

    def __reversed__(self) -> Any:
        return self.flip(0) if isinstance(self.value, Tensor) else iter([*self][::-1])

    def __bool__(self) -> bool:
        frame = sys._getframe(1)
        if self._is_open() and self.node.target is operator.eq and (constants := sought(frame)) is not None:
            return self._found_in(constants)
        if self._is_open() and (anyway := decided_anyway(frame)) is not None:
            return anyway
        answer = goes_on_if(frame) if self._is_open() else None
        answer = self._likely() if answer is None else answer
        return self._decided("a branch", bool) if answer is None else self._expected(answer)

    def _likely(self) -> bool | None:
        """The answer for inputs as the model gets them, whatever they are; None if there is none."""
        return None

    def _is_open(self) -> bool:
        """Whether the value depends on inputs of which there is no example, or on their numbers."""
        return self.tracer.real(self.node) is None and (self.value is UNKNOWN or isinstance(self.value, Tensor))

    def _expected(self, answer: bool) -> bool:
        """The answer with which code goes on, or goes for most; the graph checks that it is this one."""
        is_answer = self.node.target in COMPARISONS or getattr(self.value, "dtype", None) is torch.bool
        ask, others = (operator.ne, (0,)) if isinstance(self.value, Tensor) else (operator.truth, ())
        asked = self if is_answer else self.tracer.create_proxy("call_function", ask, (self, *others), {})
        self.tracer.create_proxy("call_function", expect, (asked, answer), {})
        return answer

    def _found_in(self, constants: tuple[Any, ...]) -> bool:
        """The answer of each comparison of a number with constants, if code only goes on where it is one of them."""
        number = self.tracer.proxy(self.node.args[0])
        found = self.tracer.create_proxy("call_function", operator.contains, (constants, number), {})
        return found._expected(True)  # type: ignore[no-any-return]

    def __int__(self) -> int:
        return self._decided("int()", int)

    def __index__(self) -> int:
        answer = self._decided("an index", operator.index)
        self.tracer.asked(sys._getframe(1))
        return answer

    def __float__(self) -> float:
        return self._decided("float()", float)

    def _decided(self, what: str, convert: Callable[[Any], Plain]) -> Plain:
        """The value, for Python code that needs it now; the graph checks that it stays the same."""
        value = self.tracer.real(self.node)
        value = self.value if value is None else value
        if value is UNKNOWN:
            raise self._needs_values(f"{what} on the value {self.node}")
        if isinstance(value, Tensor):
            raise self.tracer.refusal(
                f"{what} depends on the data of {self.node}{where(self.tracer)}: such code cannot be captured;"
                " compute it with tensor operations, such as torch.where"
            )
        answer = convert(value)
        if isinstance(value, torch.Size):
            # Size by size, so that a merge for which they are free knows that they are not.
            for size in self:
                size._decided(what, int)
            return answer
        self.tracer.create_proxy("call_function", expect, (self, value), {}).node.meta["taken"] = convert
        return answer

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Any, Any]:
        return other // self, other % self

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _counts(node: fx.Node) -> bool:
    """Whether a node is sizes of a tensor, or computed of nothing else."""
    if _is_shape(node) or (node.op, node.target) == ("call_method", "size"):
        return True
    plain = node.op == "call_function" and getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")
    return plain and bool(node.all_input_nodes) and all(map(_counts, node.all_input_nodes))


def _is_whole(node: fx.Node) -> bool:
    """Whether a number that is computed of sizes is an integer."""
    if node.target is operator.getitem or node.op == "call_method" or node.target in (math.ceil, math.floor):
        return True
    plain = [each for each in node.args if not isinstance(each, fx.Node)]
    whole = node.target in WHOLE and all(type(each) is int for each in plain)
    return whole and all(map(_is_whole, node.all_input_nodes))


def _has_several(node: fx.Node) -> bool:
    """Whether such a node is several sizes: a shape, or a part of one."""
    return isinstance(node.args[1], slice) if node.target is operator.getitem else _is_shape(node)


def _is_shape(node: fx.Node) -> bool:
    """Whether a node is all sizes of a tensor."""
    asked = node.target is getattr and node.args[1] == "shape"
    return bool(asked or (node.target == "size" and len(node.args) + len(node.kwargs) == 1))


def _decided_leaf(what: str, leaf: Any) -> Any:
    return leaf._decided(what, _as_is) if issubclass(type(leaf), ValueProxy) else leaf


def _as_is(value: Plain) -> Plain:
    return value


def _rounding(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: ValueProxy, *digits: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *digits), {})

    return method


def _augmented(name: str) -> Callable[..., Any]:
    in_place = getattr(operator, f"i{name}")
    plain = getattr(operator, name if hasattr(operator, name) else f"{name}_")

    def method(self: ValueProxy, other: Any) -> Any:
        number = self.value is not UNKNOWN and not isinstance(self.value, Tensor)
        return self.tracer.create_proxy("call_function", plain if number else in_place, (self, other), {})

    return method


for _name, _function in (("round", round), ("trunc", math.trunc), ("floor", math.floor), ("ceil", math.ceil)):
    setattr(ValueProxy, f"__{_name}__", _rounding(_function))


# Plain fx records ``x += y`` as ``x + y``, which is another program when x has an alias.
for _name in AUGMENTED:
    setattr(ValueProxy, f"__i{_name}__", _augmented(_name))


class _Attribute(ValueProxy):
    """An attribute of a proxy: a node only if it is used as a value, not if it is called."""

    def __init__(self, root: ValueProxy, name: str) -> None:
        self.root, self.name, self.tracer = root, name, root.tracer
        self._made: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        if self._made is None:
            made = self.tracer.create_proxy("call_function", getattr, (self.root, self.name), {})
            self._made = made.node
        return self._made

    def length(self) -> Any:
        # The rank of a tensor, of which no sizes are read.
        return self.root.dim() if self.name == "shape" and self.root.value is UNKNOWN else super().length()

    def _likely(self) -> bool | None:
        # A model gets its inputs on the device that it is on.
        kinds = self.tracer.device_types if self.name == "is_cuda" and self.value is UNKNOWN else ()
        return "cuda" in kinds if len(kinds) == 1 else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.name in LIKE and isinstance(args[0], fx.Proxy):
            return getattr(self.root, LIKE[self.name])(args[0].shape)
        if self.name in ("type_as", "to") and len(args) == 1 and not kwargs and _on_one_device(self.root, args[0]):
            made = self.root.to(args[0].value.dtype)
            made.node.meta["lent"] = {1: Lent(args[0].node, "dtype", args[0].value.dtype)}
            return made
        made = self.tracer.create_proxy("call_method", self.name, (self.root, *args), kwargs)
        value = made.value
        if self.name in RANK_METHODS and value is not UNKNOWN:
            if isinstance(value, int):
                self.tracer.asks_for_rank(sys._getframe(1))
            return value
        return made


def _parts(node: fx.Node) -> int | None:
    """How many parts a split has, if its arguments tell: their sizes, where they begin, or the number itself."""
    if node.target in SECTIONS:
        how = _argument(node, "indices_or_sections")
        return how if isinstance(how, int) else len(how) + 1 if isinstance(how, (list, tuple)) else None
    sizes = node.args[1] if len(node.args) > 1 and node.target in SPLITS else None
    return len(sizes) if isinstance(sizes, (list, tuple)) else None


def _sliced(node: fx.Node) -> int | None:
    """How many sizes a slice of a shape has, if that is one number for all ranks but the least."""
    whole, key = node.args if node.target is operator.getitem else (None, None)
    if not (isinstance(whole, fx.Node) and isinstance(key, slice) and key.step in (None, 1) and _is_shape(whole)):
        return None
    start, stop = key.start or 0, 0 if key.stop is None else key.stop
    known = isinstance(start, int) and isinstance(stop, int)
    # Both ends are counted from one side.
    return stop - start if known and stop >= start and ((start < 0) is (stop < 0 or key.stop is None)) else None


def _argument(node: fx.Node, name: str, place: int = 1) -> Any:
    """An argument of a call, that is given by its place or its name; None if it is not."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _on_one_device(a: Any, b: Any) -> bool:
    """Whether both are known to be tensors of one device."""
    values = [proxy.value for proxy in (a, b) if isinstance(proxy, ValueProxy)]
    return len(values) == 2 and all(isinstance(v, Tensor) for v in values) and values[0].device == values[1].device


def where(tracer: Any) -> str:
    """The module that is being traced, for an error."""
    path = tracer.frame.path if tracer.frame else ""
    return f" in module '{path}'" if path else ""


def attribute(root: Any, path: str) -> Any:
    """The attribute of `root` at a dotted path."""
    return operator.attrgetter(path)(root)
