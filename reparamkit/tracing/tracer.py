"""Trace a model's forward into one flat torch.fx graph, remembering which call of which module made each node.

Every proxy whose value follows from parameters and from the example inputs, if there are any, carries a fake tensor, so
ranks, sizes, dtypes and devices are known while sizes stay symbolic in the graph: a size can be iterated, unpacked
and computed with, and a branch on a size is taken and recorded as a guard. The rest is plain symbolic tracing.
"""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from numbers import Number
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.fx.node import Target

from ..errors import CaptureError
from ..running.buffers import assignments_seen
from ..running.changing import Changing
from ..running.draws import no_plain_draws
from ..running.patches import Function, patched
from ..running.state import Contents, held_in, traced_in
from ..running.trees import leaves, map_leaves
from ..sourcecode.origins import is_users
from ..sourcecode.writes import AUGMENTED
from .again import AGAIN, AsksForGradients, FillsArgument, Manner, WritesConstant, as_again
from .builtin import builtins_told
from .callstack import code_running, methods_running, outside
from .constants import constant, writes
from .evaluate import evaluate_node, is_known
from .fakes import as_fake, failing_quietly
from .frame import Frame
from .guards import is_guard
from .lending import Lending
from .listing import lists_noted
from .modes import modes, modes_noted
from .opaque import GoingOn, Opaque
from .proxies import ValueProxy, attribute, where
from .questions import unanswered
from .scripts import scripts_opened
from .seeding import seeds_noted
from .settings import settings_read
from .torch_calls import TorchCalls, reads_traced, writes_constant
from .unbound import unbound_taken
from .variables import variables_read
from .variadic import traced_numbers_taken
from .wrapped import wraps_opened

OPERATORS = frozenset(getattr(operator, f"i{name}") for name in AUGMENTED)
CALLING = ("__call__", "_call_impl", "_wrapped_call_impl")
"""The way from a call of a module to its forward."""
ROWS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
"""Modules that are made of others, and have a length."""
NUMBERS = frozenset({"item", "tolist"})
"""Methods that give the numbers in a tensor."""
HOOKING = ("register_forward_hook", "register_forward_pre_hook")
"""Methods of modules that set hooks on calls."""


class Named:
    """Stands for a tensor among the inputs of the model. (No dataclass: those are containers.)"""

    def __init__(self, name: str) -> None:
        self.name = name


def _number(value: Any) -> Any:
    """A number, also one that a tensor holds; None for anything else."""
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return value if isinstance(value, (int, float)) else None


def _is_renamed(value: Any, by: fx.Node) -> bool:
    """Whether a node gives the tensor that it writes into, one that the call of a module it is in, or one inside that,
    made: who has the tensor then has what the node gives. A method that writes is of tensors only, and so are layers;
    what an operator writes into may be a number.
    """
    made = type(value) is ValueProxy and value.node.op.startswith("call")
    if not made or by.meta["frame"] not in value.node.meta["frame"].stack:
        return False
    if by.op == "call_method":
        return hasattr(Tensor, str(by.target))
    return isinstance(value.value, Tensor) or by.target not in OPERATORS


class Tracer(fx.Tracer):
    """Traces a module; see the module docstring.

    is_leaf: whether a module is one node of the graph rather than traced through.
    mode: the fake mode of the values that are known. changing: the attributes that code changes.
    manner: what this attempt does otherwise than the first.
    opaque: further modules that are one node, which may not even run on fake values.
    going_on: where a module cannot be traced, the trace goes on with what a call of it gives.
    failed: the call in which tracing stopped. refusals: why it cannot go on.
    handed_out: the values that are in the arguments when the forward is through.
    made: the tensors that code makes of no traced ones, by identity, if there are hooks.
    device_types: where the tensors of the model are.
    """

    def __init__(
        self,
        is_leaf: Callable[[nn.Module], bool],
        mode: FakeTensorMode,
        changing: Changing,
        manner: Manner,
        opaque: Iterable[Opaque],
        going_on: GoingOn | None,
    ) -> None:
        super().__init__()
        self.manner, self._going_on = manner, going_on
        self.outputs = {id(each.module): list(each.outputs) for each in opaque}
        self._is_leaf: Callable[[nn.Module], bool] = lambda module: id(module) in self.outputs or is_leaf(module)
        self.mode, self._changing = mode, changing
        self.failed: Frame | None = None
        self.refusals: list[tuple[FrameType, int, str]] = []
        self.frame: Frame | None = None
        self.frames: list[Frame] = []
        self.busy = False
        self._thread = threading.get_ident()
        self.lending = Lending()
        self._asked: list[tuple[FrameType, int, fx.Node]] = []
        self._tensor_names: dict[int, str] = {}
        self.device_types: set[str] = set()
        self.made: dict[int, Any] | None = None
        self.handed_out: set[fx.Node] = set()
        self._call: tuple[tuple[Any, ...], dict[str, Any], Mapping[str, Any]] = ((), {}, {})

    @property
    def idle(self) -> bool:
        """Whether a call is none of the trace's: fx patches torch.nn for all threads, and others may run models."""
        return self.busy or threading.get_ident() != self._thread

    def traced_call(
        self, root: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], values: Mapping[str, Any]
    ) -> fx.Graph:
        """The graph of a call of the submodule at `path`; each `Named` in its arguments is a placeholder."""
        self._call = args, kwargs, values
        named = (*root.named_parameters(), *root.named_buffers())
        self._tensor_names = {id(tensor): name for name, tensor in reversed(named)}
        self.device_types = {tensor.device.type for _, tensor in named}
        self.made = {} if any(map(_is_hooked, root.modules())) else None
        self.frame = Frame(path, root.get_submodule(path), None)
        self.frames = [self.frame]
        self.lists: set[str] = set()
        with ExitStack() as stack:
            for each in self._contexts(root):
                stack.enter_context(each)
            graph = self.trace(root)
        if self.refusals:
            # Code that caught the error took another way than it takes with tensors.
            raise CaptureError(self.refusals[0][-1])
        return graph

    def _contexts(self, root: nn.Module) -> Iterator[AbstractContextManager[Any]]:
        """What torch does otherwise while this traces."""
        yield from (TorchCalls(self), traced_numbers_taken(), no_plain_draws(), scripts_opened())
        yield from (assignments_seen(self._look), settings_read(self._read))
        yield patched(nn.Module, dict.fromkeys(HOOKING, self._hooks))
        yield from seeds_noted(self._seeds)
        yield from (variables_read(), builtins_told(root), lists_noted(self.lists))
        yield from (modes_noted(self._asks_for_modes), failing_quietly())
        if self.manner.through:
            yield wraps_opened()
        yield unbound_taken(self.manner.unbound)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        args, kwargs, values = self._call
        frame = self.frames[0]
        given = map_leaves(lambda leaf: self._input(leaf, values), (args, kwargs))
        frame.args, frame.kwargs = map_leaves(as_node, given)

        def forward(root: nn.Module) -> Any:
            before = Contents(given)
            output = frame.module.forward(*given[0], **given[1])
            frame.output = map_leaves(as_node, output)
            frame.fills |= not before.stay
            self.handed_out.update(traced_in(given))
            return map_leaves(self._in_graph, output)

        return forward, [self.root]

    def _in_graph(self, leaf: Any) -> Any:
        """Of an object that the forward returns, as a cache, a graph has the traced values in it."""
        found = held_in(leaf)
        return tuple(map(self.proxy, sorted(found, key=str))) if found else leaf

    def _input(self, leaf: Any, values: Mapping[str, Any]) -> Any:
        if not isinstance(leaf, Named):
            return leaf
        proxy = self.create_proxy("placeholder", leaf.name, (), {})
        if leaf.name in values:
            proxy.node.meta["val"] = values[leaf.name]
        return proxy

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m)

    def proxy(self, node: fx.Node) -> ValueProxy:
        return ValueProxy(node, self)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.idle or m not in (self.submodule_paths or {}):
            # A leaf is run on fake values: what is inside it is not traced. A module that the forward makes is code.
            return forward(*args, **kwargs)
        self._check_call(m)
        self._look(m)
        if self._is_leaf(m):
            return self._layer(m, forward, args, kwargs)
        outer, before = self.frame, Contents((args, kwargs))
        given = map_leaves(as_node, (args, kwargs))
        frame = Frame(self.path_of_module(m), m, outer, given[0], given[1])
        frame.lent = self.lending.taken(sys._getframe(1), args, kwargs)
        self.frames.append(frame)
        self.frame, before_it = frame, (len(self.refusals), len(self.module_stack))
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception as error:
            self.frame = outer
            if self._going_on is None or self.failed is not None or isinstance(as_again(error), AGAIN):
                self.failed = self.failed or frame
                raise
            self._leave(frame, error, self._going_on, *before_it)
            return self._leaf(m, forward, args, kwargs)
        finally:
            self.frame = outer
        frame.output = map_leaves(as_node, output)
        frame.fills |= not before.stay
        self._changing.look(m, m)
        return output

    def put(self, value: Any) -> None:
        """The forward makes a value an attribute of something that it was given."""
        self.handed_out.update(traced_in(value))
        for frame in self.frame.stack if self.frame is not None else ():
            frame.fills = True

    def _look(self, module: nn.Module) -> None:
        """Note what the code that runs has changed in a module. (A layer that runs on fake values changes nothing.)"""
        if self.frame is not None and not self.idle:
            self._changing.look(module, self.frame.module)

    def _read(self, module: nn.Module, name: str, by: CodeType) -> None:
        if self.frame is not None and not self.idle:
            self.frame.read.setdefault(module, set()).add((name, by))

    def _leave(self, frame: Frame, error: Exception, going_on: GoingOn, refusals: int, depth: int) -> None:
        """From now on the module of a call is one node. The trace is good for nothing but what fails behind it.

        refusals, depth: how many refusals, and calls around it, there were before the call.
        """
        del self.refusals[refusals:]
        while len(self.module_stack) > depth:
            # torch.fx leaves there what it was in.
            self.module_stack.popitem()
        going_on.failed[frame.path] = error
        begun = sum(each.module is frame.module for each in self.frames)
        self.outputs[id(frame.module)] = list(going_on.outputs.get(id(frame.module), ())[begun - 1 :])

    def _layer(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call of a layer. What hands on None, or another plain value, is no node: code may go by the value."""
        plain = isinstance(m, nn.Identity) and not reads_traced(args, kwargs)
        return forward(*args, **kwargs) if plain else self._leaf(m, forward, args, kwargs)

    def _leaf(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call of a module that is one node."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if id(m) not in self.outputs:
                # One of torch that decides on data: what it gave in a real run will do.
                self.failed = self.failed or Frame(self.path_of_module(m), m, self.frame)
            raise

    def _check_call(self, m: nn.Module) -> None:
        """Raises `CaptureError` if a call of a module runs more of the user's code than its forward and hooks."""
        names = CALLING[:1] if self._is_leaf(m) else CALLING
        theirs = [name for name in names if not _is_torchs(type(m), name)]
        if theirs:
            raise self.refusal(f"{type(m).__name__} overrides {theirs[0]}: a call of it is more than its forward")

    def create_node(self, kind: str, target: Target, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        here, begin = sys._getframe(1), Tracer.traced_call.__code__
        node.meta["frame"] = self.frame
        node.meta["opaque"] = kind == "call_module" and id(self.root.get_submodule(str(target))) in self.outputs
        node.meta["methods"] = methods_running(here, begin, self._called(), self.submodule_paths or ())
        node.meta["context"] = modes()
        if self.frame is not None:
            running = code_running(here, begin, Tracer.call_module.__code__)
            self.frame.codes.update(frame.f_code for frame in running)
            if asked := next(filter(None, map(unanswered, running)), None):
                why = f"the code asks {asked.what}{where(self)}, which a trace cannot answer{asked.instead}"
                raise self.refusal(why)
        return node

    def _called(self) -> Collection[nn.Module]:
        """The modules whose calls are running."""
        return {frame.module for frame in self.frame.stack} if self.frame is not None else ()

    def create_proxy(
        self,
        kind: str,
        target: Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *rest: Any,
        **options: Any,
    ) -> Any:
        if writes_constant(target, args, kwargs):
            raise WritesConstant(f"the forward writes a traced value into a tensor that is not traced{where(self)}")
        if not is_guard(target):
            self._asked.clear()
        if target is operator.getitem:
            args = (args[0], map_leaves(_as_index, args[1]))
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        proxy.node.meta["lent"] = self.lending.taken(sys._getframe(1), args, kwargs)
        if args and self._gives_argument(proxy.node) and _is_renamed(args[0], proxy.node):
            args[0].node = proxy.node
            proxy = args[0]
        if kind not in ("placeholder", "output") and not is_guard(target) and is_known(proxy.node):
            self._evaluate(proxy.node)
        if proxy.node.meta.get("fills"):
            # Who calls sees what is in it then, and the graph has what was in it before.
            raise FillsArgument(f"{proxy.node} changes a list that it is given{where(self)}")
        return proxy

    def _evaluate(self, node: fx.Node) -> None:
        """Tell a node its value, a fake one, where there is one."""
        self.busy = True
        try:
            node.meta["val"] = self._value(node)
        except DataDependentOutputException as error:
            # A number that follows from parameters is known where it is needed; that of a tensor is not known.
            known = node.target in NUMBERS or _number(constant(node, self.root)) is not None
            if not known:
                raise self.refusal(f"{node} depends on the data of its input{where(self)}") from error
        except (UnsupportedFakeTensorException, DynamicOutputShapeException):
            # Of quantised tensors there are no fake ones, and how many numbers a mask picks only data tell: what
            # follows from this value is not known.
            pass
        finally:
            self.busy = False

    def _gives_argument(self, node: fx.Node) -> bool:
        """Whether a node gives its first argument, which it writes into."""
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            return _is_torchs(type(module), "forward") and bool(getattr(module, "inplace", False))
        named = node.target is not operator.setitem and "out" not in node.kwargs and writes(node.target, {})
        return named or (node.op == "call_function" and bool(node.kwargs.get("inplace")))

    def _value(self, node: fx.Node) -> Any:
        recorded = self.outputs.get(id(self.root.get_submodule(str(node.target)))) if node.op == "call_module" else None
        fake = as_fake(self.mode)
        return map_leaves(fake, recorded.pop(0)) if recorded else evaluate_node(node, self.root, self.mode)

    def asked(self, by: FrameType) -> None:
        """The last decision is about an index that C code asks for, called by the instruction that `by` is at."""
        self._asked.append((by, by.f_lasti, next(iter(reversed(self.graph.nodes)))))

    @property
    def is_given(self) -> bool:
        """Whether there are example inputs: what is not known all the same depends on their numbers."""
        return bool(self._call[2])

    def refusal(self, reason: str) -> CaptureError:
        """An error that ends the trace, even if the code that is traced catches it."""
        by = outside(sys._getframe(1))
        self.refusals.append((by, by.f_lasti, reason))
        return CaptureError(reason)

    def check_write(self, tensor: Tensor) -> None:
        """Raises `CaptureError` if code may not write into a tensor that is not traced."""
        if self._changing.keeps(tensor):
            raise self.refusal(
                f"the forward writes into a tensor of the model{where(self)} that it does not read as a parameter or"
                " buffer of a module (register_buffer)"
            )

    def asks_for_rank(self, by: FrameType) -> None:
        """The code that `by` runs gets to know how many dimensions a tensor has."""
        if self.frame is not None and is_users(outside(by)):
            self.frame.ranks = True

    def _asks_for_modes(self) -> None:
        if self.frame is not None and not self.idle:
            self.frame.asks = True

    def _hooks(self, register: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A hook that the forward sets runs in no trace."""
        if self.idle:
            return register(*args, **kwargs)
        raise self.refusal(f"the forward sets hooks on modules{where(self)}, which a trace does not run")

    def _seeds(self, name: str) -> None:
        if not self.idle:
            raise self.refusal(f"the forward calls torch's {name}(){where(self)}, after which others would be drawn")

    def withdraw(self, by: FrameType) -> None:
        """The instruction that `by` is at calls a function of torch, which asks its arguments whether they could be
        numbers, and then hands them on as they are: no decision.
        """
        while self._asked and self._asked[-1][:2] == (by, by.f_lasti):
            self.graph.erase_node(self._asked.pop()[2])
        self._asked.clear()
        by = outside(by)
        self.refusals = [each for each in self.refusals if each[:2] != (by, by.f_lasti)]

    def is_heedless_of_gradients(self) -> bool:
        """Whether the way that code takes where no gradients are followed is as good as the other."""
        if self.manner.heedless is None:
            raise AsksForGradients(f"the forward asks whether gradients are followed{where(self)}")
        return self.manner.heedless

    def attribute_of(self, value: Any, name: str) -> Any:
        """The attribute of a (fake) value or a module, at a name or dotted path, as it is."""
        self.busy, before = True, self.busy
        try:
            return attribute(value, name)
        finally:
            self.busy = before

    def real(self, node: fx.Node) -> Any:
        """The real value of a node that depends on parameters and buffers only, if it is one number."""
        self.busy = True
        try:
            return _number(constant(node, self.root))
        finally:
            self.busy = False

    def follows_from_own(self, found: Any, args: Any, kwargs: Any) -> bool:
        """Whether a call gives numbers that follow from parameters or buffers, which have a name."""
        given = {id(leaf) for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if given.isdisjoint(self._tensor_names):
            return False
        computed = (leaf for leaf in leaves(found) if not isinstance(leaf, Tensor) or id(leaf) not in given)
        return any(isinstance(leaf, (Tensor, float)) or _is_array(leaf) for leaf in computed)

    def own(self, leaf: Any) -> Any:
        """A parameter or buffer as a traced value; anything else as it is."""
        name = self._tensor_names.get(id(leaf)) if isinstance(leaf, Tensor) else None
        return leaf if name is None else self.create_proxy("get_attr", name, (), {})

    def create_arg(self, a: Any) -> Any:
        """An argument of a node. What a hook has kept of a run, this one or one before, is no constant: it is neither a
        parameter nor made in the trace.
        """
        plain = isinstance(a, Tensor) and id(a) not in self._tensor_names
        if plain and (isinstance(a, FakeTensor) or (self.made is not None and id(a) not in self.made)):
            raise self.refusal(f"the forward reads what a hook keeps{where(self)}")
        if plain and isinstance(a, nn.Parameter):
            raise self.refusal(
                f"the forward uses a parameter that the model does not have (modules in a plain list or dictionary are"
                f" no part of it: use nn.ModuleList or nn.ModuleDict){where(self)}"
            )
        # A scalar of numpy is to torch the number that it is.
        return super().create_arg(a.item() if isinstance(a, Number) and hasattr(a, "item") else a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers are nodes, everything else is what it is (fx would search them all, each time)."""
        name = None if self.idle else self._tensor_names.get(id(attr_val))
        if name is None:
            if isinstance(attr_val, ROWS) and not self.idle and self.frame is not None:
                self.frame.lists.add(attr_val)
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]


def _is_hooked(module: nn.Module) -> bool:
    """Whether hooks that are not torch's own see the values of a forward."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(type(hook).__module__.partition(".")[0] != "torch" for hook in hooks)


def _is_torchs(cls: type, name: str) -> bool:
    """Whether a class has its method of this name from torch."""
    owner = next(base for base in cls.__mro__ if name in vars(base))
    return owner.__module__.partition(".")[0] == "torch"


def _as_index(leaf: Any) -> Any:
    """What torch takes an array of numpy for that picks positions."""
    return torch.as_tensor(leaf) if _is_array(leaf) else leaf


def _is_array(leaf: Any) -> bool:
    return not isinstance(leaf, (Tensor, Number, fx.Proxy)) and hasattr(type(leaf), "__array_interface__")


def as_node(leaf: Any) -> Any:
    """The node of a proxy; anything else as it is."""
    return leaf.node if isinstance(leaf, fx.Proxy) else leaf
