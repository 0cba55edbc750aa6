"""The part of the flat graph that one call of one module made, as a graph of its own.

Calls of child modules that no merge reached into stay calls.
"""

from __future__ import annotations

import inspect
import keyword
import operator
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.fx.immutable_collections
from torch import Tensor, fx

from ..capture.captured import Captured
from ..engine.sizes import size_of
from ..errors import NotFusable
from ..reasons import Kind
from ..running.trees import fields_of, is_record
from ..sourcecode.defaults import Default, defaults_of
from ..sourcecode.flow import names_in, tested
from ..tracing.frame import Frame
from ..tracing.guards import expect, expect_entries, expect_given, expect_keywords, expect_rank, expect_tensor
from ..tracing.lending import Taken
from ..tracing.proxies import attribute
from .originals import asked_of, assumed, bound, original_forward
from .rewritable import call_left, check_rewritable, going

PLAIN = (bool, int, float, str, type(None))
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
WRITABLE = (*PLAIN, complex, torch.dtype, torch.device, torch.memory_format, torch.layout, type(...))
"""What is no container and can be written as code."""


@dataclass(eq=False)
class _Fold:
    """Builds the graph of one frame.

    inlined: frames whose nodes belong to the caller. leaving: see `fold`. here: per node of the flat graph its copy.
    """

    captured: Captured
    frame: Frame
    inlined: frozenset[int]
    leaving: Collection[str] = ()
    graph: fx.Graph = field(default_factory=fx.Graph)
    here: dict[fx.Node, Any] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    @cached_property
    def asked(self) -> tuple[set[fx.Node], set[fx.Node]]:
        """See `asked_of`."""
        return asked_of(self.captured, self.frame)

    @cached_property
    def assumed(self) -> dict[str, Any]:
        """See `originals.assumed`."""
        return assumed(self.captured, self.frame)

    def run(self) -> fx.Graph:
        self._parameters()
        for node in self.captured.made_in[self.frame]:
            if node.op not in ("placeholder", "output"):
                self._node(node)
        self.graph.output(self._mapped(self.frame.output))
        return self.graph

    # --- arguments -------------------------------------------------------------------------------

    def _parameters(self) -> None:
        """The arguments, and checks that they are what was traced where the code may go by it."""
        signature = inspect.signature(self.frame.module.forward)
        bound = signature.bind(*self.frame.args, **self.frame.kwargs)
        made = {p.name: (p, self._placeholder(p)) for p in signature.parameters.values()}
        absent = self.captured.origin.absent.get(self.frame.path, frozenset())
        for position, (name, (parameter, node)) in enumerate(made.items()):
            given = name in bound.arguments
            value = bound.arguments[name] if given else parameter.default
            if self._is_guess(parameter, value):
                raise NotFusable(f"whether it gets an argument '{name}' is not known: pass example_inputs", Kind.SIZES)
            if isinstance(value, fx.Node) and not {position, name}.isdisjoint(absent):
                raise NotFusable(
                    f"argument '{name}' of its forward is None in a run, and was a tensor in the trace", Kind.CODE
                )
            self._known(node, value, parameter, given, position == 0)
            if parameter.kind in VARIADIC and not given:
                self._each(node, {}, parameter)

    def _is_guess(self, parameter: inspect.Parameter, value: Any) -> bool:
        """Whether it was only assumed that nothing is given for a parameter, or that a tensor is where code asks."""
        if not self.captured.origin.guessed:
            return False
        return parameter.name in self.assumed or self._is_asked_for(value)

    def _is_asked_for(self, value: Any) -> bool:
        """Whether code compares an argument of the model with None, here or in a call below that it is handed to."""
        if not isinstance(value, fx.Node) or value.op != "placeholder":
            return False
        calls = (self.frame, *self.captured.called_in[self.frame])
        asking = ((bound(call), tested(original_forward(call.module)).given) for call in calls)
        return any(given.get(name) is value for given, names in asking for name in names)

    def _placeholder(self, parameter: inspect.Parameter) -> fx.Node:
        stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        if parameter.default is parameter.empty:
            return self.graph.create_node("placeholder", stars + parameter.name)
        if not isinstance(parameter.default, PLAIN):
            raise NotFusable(
                f"parameter '{parameter.name}' of its forward has a default that cannot be written", Kind.CODE
            )
        return self.graph.create_node("placeholder", parameter.name, (parameter.default,))

    def _known(
        self, node: fx.Node, value: Any, parameter: inspect.Parameter, given: bool = True, first: bool = False
    ) -> None:
        """Follow tensors into containers; check the rest against what was traced."""
        if isinstance(value, fx.Node):
            if value in self.asked[1] and isinstance(value.meta.get("val"), (Tensor, type(None))):
                self.graph.call_function(expect_tensor, (node,))
            elif value in self.asked[0] or not first:
                self.graph.call_function(expect_given, (node,))
            self._check_rank(node, value)
            self.here[self.captured.current(value)] = node
        elif isinstance(value, (list, tuple)):
            self._each(node, dict(enumerate(value)), parameter)
        elif isinstance(value, Mapping):
            self._each(node, value, parameter)
        elif is_record(value):
            for name, each in fields_of(value).items():
                self._known(self.graph.call_function(getattr, (node, name)), each, parameter)
        elif isinstance(value, WRITABLE):
            self.graph.call_function(expect, (node, value))  # type: ignore[arg-type]
        elif value is not parameter.empty:
            raise NotFusable(
                f"argument '{parameter.name}' is a {type(value).__name__}, which cannot be checked", Kind.CODE
            )

    def _check_rank(self, node: fx.Node, value: fx.Node) -> None:
        """Where the code asks for the number of dimensions of a tensor, it is that of the arguments it follows from."""
        tensor = value.meta.get("val")
        asked = any(each.ranks for each in (self.frame, *self.captured.called_in[self.frame]))
        if asked and isinstance(tensor, Tensor):
            self.graph.call_function(expect_rank, (node, tensor.dim()))

    def _each(self, node: fx.Node, values: Mapping[Any, Any], parameter: inspect.Parameter) -> None:
        named = names_in(original_forward(self.frame.module))
        if parameter.kind not in VARIADIC or named is None or parameter.name in named:
            keywords = parameter.kind is parameter.VAR_KEYWORD and node.op == "placeholder"
            defaults = self._defaults() if keywords else None
            if defaults is None:
                self.graph.call_function(expect_entries, (node, *values))
            else:
                self.graph.call_function(expect_keywords, (node, defaults, *values))
        for key, value in values.items():
            self._known(self.graph.call_function(operator.getitem, (node, key)), value, parameter)

    def _defaults(self) -> tuple[Default, ...] | None:
        """What the code takes for keyword arguments that are not given; None if that is not known."""
        calls = (self.frame, *self.captured.called_in[self.frame])
        forwards = [inspect.unwrap(original_forward(call.module)) for call in calls]
        codes = {code for forward in forwards if (code := getattr(forward, "__code__", None)) is not None}
        found = defaults_of(codes.union(*(call.codes for call in calls)))
        return None if found is None else tuple(found)

    # --- body ------------------------------------------------------------------------------------

    def _node(self, node: fx.Node) -> None:
        child = call_left(self.captured, self.frame, node, self.inlined)
        if child is not None:
            self._call(child)
            return
        if node.op == "call_module":
            args, kwargs = self._mapped(node.args), self._mapped(node.kwargs)
            call = self.graph.call_module(self._relative(str(node.target)), args, kwargs)
            self._read_lent(node.meta.get("lent", {}), call)
            self.here[node] = call
            return
        copy = self.graph.node_copy(node, self._argument)
        if node.op == "get_attr":
            copy.target = self._relative(str(node.target))
        self._read_lent(node.meta.get("lent", {}), copy)
        self.here[node] = copy

    def _read_lent(self, taken: Taken, copy: fx.Node) -> None:
        read_lent(self.captured, taken, copy, self.here, self._parameter)

    def _parameter(self) -> fx.Node | None:
        """A parameter of a layer that is called here."""
        for node in self.captured.made_in[self.frame]:
            if node.op == "call_module" and str(node.target) not in self.leaving:
                for name, tensor in self.captured.module(node).named_parameters():
                    if tensor.is_floating_point():
                        return self.graph.get_attr(f"{self._relative(str(node.target))}.{name}")
        return None

    def _call(self, child: Frame) -> None:
        if id(child) in self.done:
            return
        self.done.add(id(child))
        args, kwargs = self._mapped(child.args), self._mapped(child.kwargs)
        call = self.graph.call_module(self._relative(child.path), args, kwargs)
        self._read_lent(child.lent, call)
        self._result(call, child.output)

    def _result(self, call: fx.Node, output: Any) -> None:
        if isinstance(output, fx.Node):
            self.here.setdefault(self.captured.current(output), call)
        elif isinstance(output, (list, tuple, Mapping)):
            items = output.items() if isinstance(output, Mapping) else enumerate(output)
            for key, value in items:
                self._result(self.graph.call_function(operator.getitem, (call, key)), value)

    def _mapped(self, value: Any) -> Any:
        """A value that the code hands on: nodes are found here, and containers are made anew."""
        if isinstance(value, fx.Node):
            return self._argument(value)
        if isinstance(value, slice):
            return slice(*(self._mapped(each) for each in (value.start, value.stop, value.step)))
        if isinstance(value, (list, tuple)):
            parts = [self._mapped(each) for each in value]
            if hasattr(value, "_fields"):
                return self.graph.call_function(type(value), tuple(parts))
            return parts if isinstance(value, list) else tuple(parts)
        if isinstance(value, Mapping) or is_record(value):
            items = dict(value) if isinstance(value, Mapping) else fields_of(value)
            return self._made(type(value), {name: self._mapped(each) for name, each in items.items()})
        if isinstance(value, WRITABLE):
            return value
        raise NotFusable(
            f"the code of '{self.frame.path}' hands on a {type(value).__name__}, which cannot be written", Kind.CODE
        )

    def _made(self, kind: type, items: dict[Any, Any]) -> Any:
        """A dictionary, or an object that is made from its entries."""
        if issubclass(dict, kind) or kind is fx.immutable_collections.immutable_dict:
            return items
        if kind is OrderedDict:
            return self.graph.call_function(kind, (items,))
        if not all(isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name) for name in items):
            raise NotFusable(f"a {kind.__name__} whose keys are not names cannot be written", Kind.CODE)
        return self.graph.call_function(kind, (), items)

    def _argument(self, node: fx.Node) -> Any:
        node = self.captured.current(node)
        for tensor, dim in node.meta.get("also", ()) if node not in self.here else ():
            seen = self.here.get(self.captured.current(tensor))
            if seen is not None:
                self.here[node] = size_of(self.graph, seen, dim)
                break
        if node not in self.here:
            where = f"module '{self.frame.path}'" if self.frame.path else "the model"
            raise NotFusable(f"{where} uses a value that does not reach it as an argument", Kind.CODE)
        return self.here[node]

    def _relative(self, path: str) -> str:
        prefix = self.frame.path
        if path in self.captured.held:
            return path
        if prefix and not path.startswith(f"{prefix}."):
            return self._own_name(path)
        return path[len(prefix) + 1 :] if prefix else path

    def _own_name(self, path: str) -> str:
        """The name that this module has for what the graph names by the path of its first owner, as a shared
        activation.
        """
        what, own = attribute(self.captured.root, path), self.frame.module
        lists = (own.named_modules, own.named_parameters, own.named_buffers)
        named = (pair for each in lists for pair in each(remove_duplicate=False))
        found = next((name for name, each in named if each is what), None)
        if found is None:
            raise NotFusable(f"module '{self.frame.path}' uses '{path}', which is not inside it", Kind.CODE)
        return found


def read_lent(
    captured: Captured, taken: Taken, copy: fx.Node, here: Mapping[fx.Node, Any], own: Callable[[], fx.Node | None]
) -> None:
    """Let the copy of a call read the dtypes and devices that it is given where the code read them, not take what they
    were.

    here: the values that the code has, by their nodes in the captured graph. own: gives a parameter of the model.
    """
    for key, lent in taken.items():
        with copy.graph.inserting_before(copy):
            seen = None if lent.node is None else here.get(captured.current(lent.node))
            # A parameter that was asked may be merged by now: any other of the model does as well.
            seen = own() if seen is None else seen
            read = copy.graph.call_function(getattr, (seen, lent.attribute)) if isinstance(seen, fx.Node) else None
        if read is not None and isinstance(key, int):
            copy.update_arg(key, read)
        elif read is not None:
            copy.update_kwarg(str(key), read)


def fold(
    captured: Captured,
    frame: Frame,
    inlined: frozenset[int],
    merged: Iterable[fx.Node] = (),
    leaving: Collection[str] = (),
) -> fx.Graph:
    """The graph of one call, with the calls of its children that are not inlined. merged: what will be in it no more.
    leaving: paths of layers in whose place there will be others, with other parameters.

    Raises `NotFusable` if its method cannot be written again.
    """
    check_rewritable(captured, frame, inlined, going(captured, merged))
    return _Fold(captured, frame, inlined, leaving).run()
