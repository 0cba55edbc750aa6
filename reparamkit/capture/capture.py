"""Trace a model's forward into one flat graph, in another way where the first fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..errors import CaptureError, ReparamkitError
from ..running.caches import Shelves
from ..running.changing import Changing
from ..running.draws import random_state_kept
from ..running.gradients import same_with_gradients
from ..running.trees import map_leaves, traced
from ..tracing.again import AGAIN, Manner, as_again
from ..tracing.fakes import as_fake, new_mode
from ..tracing.frame import Frame
from ..tracing.opaque import GoingOn, Opaque
from ..tracing.proxies import attribute
from ..tracing.tracer import Tracer
from .arguments import Inputs, named_arguments
from .captured import Captured
from .facts import Code, Origin


def know_sizes(captured: Captured, module: nn.Module, calls: Sequence[Inputs]) -> None:
    """Note the least sizes of the arguments of a graph without sizes, where all calls agree on the rank."""
    found = [{name: value.shape for name, value in named_arguments(module, each).values.items()} for each in calls]
    for node in captured.graph.find_nodes(op="placeholder"):
        shapes = [each[str(node.target)] for each in found if str(node.target) in each]
        if len(shapes) == len(calls) and len(set(map(len, shapes))) == 1:
            node.meta[SIZES] = tuple(map(min, zip(*shapes, strict=True)))


SIZES = "sizes"
"""What the meta of a node has of a tensor of which only the rank is known: what each size is at least."""


def capture(
    model: nn.Module,
    path: str,
    inputs: Inputs | None,
    is_leaf: Callable[[nn.Module], bool],
    opaque: Mapping[str, Opaque],
    changing: Changing,
    sized: bool = True,
    going_on: GoingOn | None = None,
    manner: Manner | None = None,
) -> Captured:
    """Trace the submodule at `path` of `model` (in place: it is a private copy).

    opaque: modules to call and not to trace, by path. changing: receives the attributes that the forward changes.
    sized: use the sizes of the inputs, which are those of any call. manner: what is known of how to trace it, and
    receives what this finds out.
    Raises `CaptureError` if its forward cannot be traced, saying where and what to do.
    """
    manner = manner or Manner()
    attempt = _Attempt(model, path, inputs, is_leaf, opaque, changing, sized and inputs is not None, going_on, manner)
    while True:
        try:
            return attempt.captured()
        except AGAIN as error:
            manner.learn(error, attempt.is_heedless_of_gradients)


@dataclass(frozen=True)
class _Attempt:
    """A trace, which may be tried again in another manner, see `capture`."""

    model: nn.Module
    path: str
    inputs: Inputs | None
    is_leaf: Callable[[nn.Module], bool]
    opaque: Mapping[str, Opaque]
    changing: Changing
    sized: bool
    going_on: GoingOn | None
    manner: Manner

    @property
    def module(self) -> nn.Module:
        """What is traced."""
        return self.model.get_submodule(self.path)

    def is_heedless_of_gradients(self) -> bool | None:
        """Whether a run with gradients gives the same as one without; None if there are no inputs."""
        return None if self.inputs is None else same_with_gradients(self.module, self.inputs.args, self.inputs.kwargs)

    def captured(self) -> Captured:
        """Trace it. Raises `CaptureError`."""
        mode = new_mode()
        tracer = Tracer(self.is_leaf, mode, self.changing, self.manner, self.opaque.values(), self.going_on)
        try:
            graph, stored, held = self._traced(tracer, mode)
        except MemoryError:
            # Tracing the parts one by one would not be the remedy.
            raise
        except Exception as error:
            raise self._error(error, self.path if tracer.failed is None else tracer.failed.path) from error
        self._check(tracer)
        return Captured(
            *(self.model, graph, tracer.frames, Origin("values" if self.sized else "symbolic")),
            Code(
                *(self.changing.found, stored | tracer.handed_out),
                attributes=_named_in(graph, "get_attr"),
                callers=_named_in(graph, "call_module"),
                lists=tracer.lists,
            ),
            held=held,
        )

    def _check(self, tracer: Tracer) -> None:
        """Raises `CaptureError` if a trace has nothing of what a call is given, or does."""
        if self.inputs is not None and (holder := self.inputs.out_of_sight) is not None:
            raise CaptureError(
                f"the tensors that it is given are in an object of class {holder}, where a trace would take them for"
                " constants: pass tensors, lists, dicts or dataclasses of them, or fuse without example_inputs",
                self.path,
            )
        if self.inputs is None and _calls_nothing(tracer, self.module):
            raise CaptureError(
                "the forward calls none of its modules where all its arguments have their defaults:"
                " pass example_inputs",
                self.path,
            )

    def _traced(self, tracer: Tracer, mode: FakeTensorMode) -> tuple[fx.Graph, set[fx.Node], dict[str, Any]]:
        """The graph, the values that code stored, and the constant tensors."""
        names = named_arguments(self.module, self.inputs)
        values = map_leaves(as_fake(mode), names.values) if self.sized else {}
        # With gradients, as a model is called by default: code without them can be told then.
        with random_state_kept(), _state_kept(self.model, self.changing) as stored, torch.enable_grad():
            graph = tracer.traced_call(self.model, self.path, names.args, names.kwargs, values)
            self.changing.look_inside(self.model)
            named = {str(n.target): attribute(self.model, str(n.target)) for n in graph.find_nodes(op="get_attr")}
        return graph, stored, _missing(self.model, named)

    def _error(self, error: Exception, where: str) -> Exception:
        """The error that says where tracing stopped."""
        again = as_again(error)
        if isinstance(again, AGAIN):
            return type(again)(str(again), where)
        return CaptureError(why_not(where, self.inputs, error, self.opaque), where)


def _calls_nothing(tracer: Tracer, module: nn.Module) -> bool:
    """Whether a trace was given nothing, as no argument has to be given, and came by no layer."""
    given = any(node.op in ("placeholder", "call_module") for node in tracer.graph.nodes)
    return not given and len(tracer.frames) == 1 and any(module.children())


def _named_in(graph: fx.Graph, op: str) -> dict[str, list[Frame]]:
    """Per path that nodes of a kind name the calls whose code they are of."""
    found: dict[str, list[Frame]] = {}
    for node in graph.find_nodes(op=op):
        found.setdefault(str(node.target), []).append(node.meta["frame"])
    return found


@contextmanager
def _state_kept(model: nn.Module, changing: Changing) -> Iterator[set[fx.Node]]:
    """Undo what a forward does to its modules, and to containers in its files, while it is traced; yields the nodes of
    the values that were stored. changing: receives the modules that were changed, or whose code did that.
    """
    shelves, stored, before = Shelves(model), set[fx.Node](), changing.state
    try:
        yield stored
    finally:
        stored |= shelves.cleared()
        changing.found.setters |= {id(frame.module) for node in stored for frame in node.meta["frame"].stack}
        stored |= traced(before.now())
        before.drop_constants()
        changing.found.setters |= before.restore()


def _missing(model: nn.Module, named: Mapping[str, Any]) -> dict[str, Any]:
    """Constant tensors that fx kept on the root, and only while it traced."""
    return {name: value for name, value in named.items() if not hasattr(model, name.partition(".")[0])}


def why_not(path: str, inputs: Inputs | None, error: Exception, opaque: Mapping[str, Opaque]) -> str:
    """Why the module at a path cannot be traced, with what to do."""
    if isinstance(error, ReparamkitError):
        return str(error)
    advice = (
        "pass example_inputs, which lets sizes and branches on sizes be traced"
        if inputs is None
        else "fuse its submodules one by one (model.part = reparamkit.fuse(model.part, ...))"
    )
    reason = f"{type(error).__name__}: {error}"
    # The code may rely on the hooks of a module inside.
    hooked = next((name for name, each in opaque.items() if each.module._forward_hooks), None)
    if hooked is not None:
        reason += f"; the hooks of '{hooked}' do not run in a trace, which may be why"
    return f"the forward of {path or 'the model'} cannot be traced ({reason}); {advice}"
