"""Regenerate one method: the part of the flat graph that one call of one module made, as its new forward.

Calls of child modules that no merge reached into stay calls. The module gets a subclass of its own class, of the
same name, that carries the method as source and rebuilds itself when it is copied or unpickled.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import keyword
import linecache
import operator
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
import torch.fx.immutable_collections
from torch import Tensor, fx, nn

from ..capture.captured import Captured
from ..capture.paths import start_of
from ..engine.sizes import size_of
from ..errors import NotFusable
from ..layers.hooks import has_hooks
from ..running.trees import fields_of, is_record
from ..sourcecode.defaults import Default, defaults_of
from ..sourcecode.flow import catches, names_in, remembered, tested
from ..sourcecode.methods import spreading_calls
from ..sourcecode.parse import forward_of, names_of
from ..tracing.frame import Frame
from ..tracing.guards import expect, expect_entries, expect_given, expect_keywords, expect_rank, expect_tensor
from ..tracing.lending import Taken
from ..tracing.modes import Modes
from ..tracing.proxies import attribute
from .fixed import assignment

PLAIN = (bool, int, float, str, type(None))
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
WRITABLE = (*PLAIN, complex, torch.dtype, torch.device, torch.memory_format, torch.layout, type(...))
"""What is no container and can be written as code."""
_files = itertools.count()


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
        absent = self.captured.absent.get(self.frame.path, frozenset())
        for position, (name, (parameter, node)) in enumerate(made.items()):
            given = name in bound.arguments
            value = bound.arguments[name] if given else parameter.default
            if self._is_guess(parameter, value):
                raise NotFusable(f"whether it gets an argument '{name}' is not known: pass example_inputs")
            if isinstance(value, fx.Node) and not {position, name}.isdisjoint(absent):
                raise NotFusable(f"argument '{name}' of its forward is None in a run, and was a tensor in the trace")
            self._known(node, value, parameter, given, position == 0)
            if parameter.kind in VARIADIC and not given:
                self._each(node, {}, parameter)

    def _is_guess(self, parameter: inspect.Parameter, value: Any) -> bool:
        """Whether it was only assumed that nothing is given for a parameter, or that a tensor is where code asks."""
        if not self.captured.guessed:
            return False
        first = self.frame is self.captured.frames[0]
        return (first and parameter.default is not parameter.empty) or self._is_asked_for(value)

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
            raise NotFusable(f"parameter '{parameter.name}' of its forward has a default that cannot be written")
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
            raise NotFusable(f"argument '{parameter.name}' is a {type(value).__name__}, which cannot be checked")

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
        child = _left(self.captured, self.frame, node, self.inlined)
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
        raise NotFusable(f"the code of '{self.frame.path}' hands on a {type(value).__name__}, which cannot be written")

    def _made(self, kind: type, items: dict[Any, Any]) -> Any:
        """A dictionary, or an object that is made from its entries."""
        if issubclass(dict, kind) or kind is fx.immutable_collections.immutable_dict:
            return items
        if kind is OrderedDict:
            return self.graph.call_function(kind, (items,))
        if not all(isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name) for name in items):
            raise NotFusable(f"a {kind.__name__} whose keys are not names cannot be written")
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
            raise NotFusable(f"{where} uses a value that does not reach it as an argument")
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
            raise NotFusable(f"module '{self.frame.path}' uses '{path}', which is not inside it")
        return found


def _left(captured: Captured, frame: Frame, node: fx.Node, inlined: frozenset[int]) -> Frame | None:
    """The call below a frame that made a node, if it stays a call."""
    stack = captured.frame(node).stack
    return next((each for each in stack[stack.index(frame) + 1 :] if id(each) not in inlined), None)


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
    _check(captured, frame, inlined, going(captured, merged))
    return _Fold(captured, frame, inlined, leaving).run()


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is torch's and has none inside; a row that is empty by now had some."""
    own = {forward_of(module).__module__, type(module).__module__}
    return (
        all(str(each).startswith("torch.nn.modules.") for each in own)
        and not isinstance(module, nn.Sequential)
        and not any(True for _ in module.children())
    )


def going(captured: Captured, merged: Iterable[fx.Node]) -> set[fx.Node]:
    """The parameter arithmetic that only what will be merged reads."""
    gone = set(merged)
    waiting = list(gone)
    while waiting:
        new = {n for n in waiting.pop().all_input_nodes if n in captured.constants and n.users.keys() <= gone} - gone
        gone |= new
        waiting += new
    # What takes the place of the merge itself runs, in the modes that its members ran in.
    return gone.intersection(captured.constants)


def _check(captured: Captured, frame: Frame, inlined: frozenset[int], gone: set[fx.Node]) -> None:
    if frame.fills:
        raise NotFusable(
            f"the forward of {frame.path or 'the model'} changes a list, dictionary or object that it gets"
        )
    swallowed = [f for f in captured.called_in[frame] if id(f) in inlined]
    for each in (frame, *swallowed):
        where = each.path or "the model"
        if _is_layer(each.module):
            raise NotFusable(f"{where} is a single layer of torch, whose forward is not written again")
        if isinstance(each.module, fx.GraphModule):
            raise NotFusable(f"{where} is a GraphModule, whose code is that of its graph: fuse it by itself")
        # The hooks of the outermost call are run around what is written.
        if each.parent is not None and has_hooks(each.module):
            raise NotFusable(f"{where} has hooks, and its forward would have to be written again")
        own = vars(each.module).get("forward")
        if own is not None and getattr(getattr(own, "func", own), "__self__", None) is not each.module:
            raise NotFusable(f"the forward of {where} is a function that was set on it, and no method of its own")
        if id(each.module) in captured.changed.setters:
            raise NotFusable(
                f"the forward of {where} sets attributes of the module, or puts values into containers of its file"
            )
        codes = codes_of(captured, each.module)
        if each in captured.deciding and (names := frozenset().union(*map(remembered, codes))):
            raise NotFusable(f"the forward of {where} takes branches by what it keeps in '{min(names)}'")
        if each.asks:
            raise NotFusable(f"the forward of {where} asks torch for autocast or grad mode")
        if any(map(catches, codes)):
            raise NotFusable(f"the forward of {where} catches errors")
    _check_callers(captured, frame)
    contexts = _contexts(captured, frame, inlined, gone)
    if not (contexts <= {frame.modes} or without_gradients(captured, frame, inlined)):
        raise NotFusable(f"the forward of {frame.path or 'the model'} changes autocast or grad mode")


def _check_callers(captured: Captured, frame: Frame) -> None:
    """What is written takes the arguments of the example only: no method may give it others, which a trace has not
    seen.
    """
    parameters = inspect.signature(frame.module.forward).parameters.values()
    given = bound(frame)
    if all(p.name in given and p.kind is not p.VAR_KEYWORD for p in parameters):
        return
    for outer in frame.stack:
        path = frame.path.removeprefix(start_of(outer.path)) if outer is not frame else ""
        for name, called in spreading_calls(original_class(outer.module)).items():
            if name != "forward" and path in called and (outer.module, name) not in captured.methods:
                where = frame.path or "the model"
                raise NotFusable(f"'{name}' may call the forward of {where} with other arguments than the example's")


def _contexts(
    captured: Captured, frame: Frame, inlined: frozenset[int], gone: Collection[fx.Node] = frozenset()
) -> set[Modes]:
    """The modes that the code of a call runs in, and makes the calls in that stay calls. gone: what does not run."""
    nodes = [n for n in captured.made_in[frame] if n.op not in ("placeholder", "output") and n not in gone]
    calls = {node: _left(captured, frame, node, inlined) for node in nodes}
    return {node.meta["context"] if call is None else call.modes for node, call in calls.items()}


def without_gradients(captured: Captured, frame: Frame, inlined: frozenset[int]) -> bool:
    """Whether all of a call runs without gradients, though it was called with them."""
    autocast = frame.modes[:2]
    without = _contexts(captured, frame, inlined) == {(*autocast, False, False)}
    return frame.modes == (*autocast, True, False) and without


# --- classes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A generated forward. source: its text. names: what its global names refer to (module, qualified name)."""

    source: str
    names: tuple[tuple[str, str, str], ...]

    def function(self) -> FunctionType:
        """Compile it; the source stays visible to inspect, tracebacks and torch.compile."""
        # Without a __name__: before torch 2.13 dynamo looks names up in the module of that name.
        names: dict[str, Any] = {name: _imported(module, path) for name, module, path in self.names}
        filename = f"<reparamkit {next(_files)}>"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[filename] = (len(self.source), None, lines, filename)
        exec(compile(self.source, filename, "exec"), names)
        forward = names["forward"]
        assert isinstance(forward, FunctionType)
        forward.__module__ = __name__
        return forward


MARK = "<keyword>"
"""Makes of a word of Python a name that fx looks up by getattr."""


def method(graph: fx.Graph, gradients: bool = True) -> Method:
    """The graph, which is used up, as the source of a forward method."""
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            path = str(node.target).split(".")
            node.target = ".".join(MARK + name if keyword.iskeyword(name) else name for name in path)
    spare_self(graph)
    code = graph.python_code("self")
    code.src = code.src.replace(MARK, "")
    source = code.src.lstrip() if gradients else f"@torch.no_grad()\n{code.src.lstrip()}"
    used = set(names_of(compile(source, "<written>", "exec", dont_inherit=True)))
    names = {name: value for name, value in (code.globals | {"torch": torch}).items() if name in used}
    return Method(source, tuple((name, *_importable(name, value)) for name, value in sorted(names.items())))


def spare_self(graph: fx.Graph) -> None:
    """Let no value have the name of the module in the code: that of a call of a layer is the name of the layer."""
    for node in graph.nodes:
        if node.name == "self":
            node._rename("self_value")


def _importable(name: str, value: Any) -> tuple[str, str]:
    if isinstance(value, ModuleType):
        return value.__name__, ""
    module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    for candidate, where in (
        (module, path),
        ("torch", name),
        ("builtins", path),
        ("typing", name),
        ("math", name),
        ("types", name),
    ):
        if candidate and where and _resolves(candidate, where, value):
            return candidate, where
    raise NotFusable(f"the generated method would need {value!r}, which cannot be imported by name")


def _resolves(module: str, path: str, value: Any) -> bool:
    try:
        return _imported(module, path) is value
    except (ImportError, AttributeError):
        return False


def _imported(module: str, path: str) -> Any:
    found = importlib.import_module(module)
    for part in path.split(".") if path else ():
        found = getattr(found, part)
    return found


class Absent:
    """Stands for a method that cannot work any more."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            # Who looks at the forward of a class does not call it.
            return self
        raise AttributeError(self.reason)


@dataclass(frozen=True)
class Changes:
    """How the class of a module differs from the one the user wrote.

    forward: the written one, None for the user's own. hidden: methods that are not there any more, and why.
    settings: attributes that have to stay what they are. merged: children that no code calls any more.
    """

    forward: Method | None = None
    hidden: tuple[tuple[str, str], ...] = ()
    settings: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()

    def applied(self, base: type[nn.Module]) -> type[nn.Module]:
        """A subclass of `base`, of its name."""
        body: dict[str, Any] = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": lambda module, protocol: (_rebuilt, (base, self), module.__getstate__()),
            "merged_changes": self,
            "extra_repr": _settings,
        }
        if self.forward is not None:
            body["forward"] = self.forward.function()
        if self.hidden:
            # An error of a descriptor is lost, since nn.Module looks among its children next.
            body |= {name: Absent(reason) for name, reason in self.hidden}
            body["__getattr__"] = _looked_up(base, dict(self.hidden))
        if self.settings or self.merged:
            body["__setattr__"] = assignment(base, frozenset(self.settings), frozenset(self.merged))
            body["__setstate__"] = _restored(base)
        return type(base.__name__, (base,), body)


def _settings(self: nn.Module) -> str:
    """What the class says of its modules, if all that it names is still there."""
    with suppress(AttributeError, TypeError):
        return original_class(self).extra_repr(self)
    return ""


def _looked_up(base: type[nn.Module], hidden: Mapping[str, str]) -> Callable[[nn.Module, str], Any]:
    def look_up(self: nn.Module, name: str) -> Any:
        if name in hidden:
            raise AttributeError(hidden[name])
        return base.__getattr__(self, name)

    return look_up


def _restored(base: type[nn.Module]) -> Callable[[nn.Module, Any], None]:
    """A ``__setstate__`` that may set everything, since there is nothing yet: that of a view of einops runs its
    ``__init__``.
    """

    def restore(self: nn.Module, state: Any) -> None:
        changed = type(self)
        object.__setattr__(self, "__class__", base)
        try:
            base.__setstate__(self, state)  # type: ignore[no-untyped-call]
        finally:
            object.__setattr__(self, "__class__", changed)

    return restore


def _rebuilt(base: type[nn.Module], changes: Changes) -> nn.Module:
    cls = changes.applied(base)
    return cls.__new__(cls)


def changes_of(module: nn.Module) -> Changes:
    """How its class was changed so far."""
    found = vars(type(module)).get("merged_changes", Changes())
    assert isinstance(found, Changes)
    return found


def change(module: nn.Module, changes: Changes) -> None:
    """Change the class of a module, from the one the user wrote."""
    module.__class__ = changes.applied(original_class(module))


def original_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward that the user wrote, for its class or for this module alone."""
    return forward_of(module, original_class(module))


def codes_of(captured: Captured, module: nn.Module) -> list[Callable[..., Any]]:
    """The forward of a module, and those methods of it that ran."""
    names = [name for one, name in captured.methods if one is module and name != "forward"]
    methods = [inspect.getattr_static(original_class(module), name, None) for name in names]
    return [original_forward(module), *(found for found in methods if isinstance(found, FunctionType))]


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that the user wrote."""
    cls = type(module)
    return cls.__mro__[1] if "merged_changes" in vars(cls) else cls


def asked_of(captured: Captured, frame: Frame) -> tuple[set[fx.Node], set[fx.Node]]:
    """The values that a call gets of which its code, or that of calls in it, asks whether they are None, and those of
    which it asks what they are.
    """
    given, kinds = set[fx.Node](), set[fx.Node]()
    for call in (frame, *captured.called_in[frame]):
        forward = original_forward(call.module)
        own, others = tested(forward), [tested(code) for code in call.codes if code is not _code(forward)]
        for name, value in bound(call).items():
            if isinstance(value, fx.Node):
                # Under which name another function gets it is not known.
                given |= {value} if name in own.given or any(other.given for other in others) else set()
                kinds |= {value} if name in own.kinds or any(other.kinds for other in others) else set()
    return given, kinds


def bound(call: Frame) -> dict[str, Any]:
    """What a call is given, by the names of the parameters."""
    return inspect.signature(call.module.forward).bind(*call.args, **call.kwargs).arguments


def _code(function: Callable[..., Any]) -> CodeType | None:
    return getattr(inspect.unwrap(function), "__code__", None)
