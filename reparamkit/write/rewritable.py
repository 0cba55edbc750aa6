"""Whether the forward of a call can be written again."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator

from torch import fx, nn

from ..capture.captured import Captured
from ..capture.paths import start_of
from ..errors import NotFusable
from ..layers.hooks import has_hooks
from ..reasons import Kind
from ..sourcecode.flow import catches, remembered
from ..sourcecode.methods import spreading_calls
from ..sourcecode.parse import forward_of
from ..tracing.frame import Frame
from ..tracing.modes import Modes
from .originals import bound, codes_of, original_class


def call_left(captured: Captured, frame: Frame, node: fx.Node, inlined: frozenset[int]) -> Frame | None:
    """The call below a frame that made a node, if it stays a call."""
    stack = captured.frame(node).stack
    return next((each for each in stack[stack.index(frame) + 1 :] if id(each) not in inlined), None)


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


def check_rewritable(captured: Captured, frame: Frame, inlined: frozenset[int], gone: set[fx.Node]) -> None:
    """Raises `NotFusable` if the code of a call, with that of the calls in it that go into it, cannot be written again.

    gone: what does not run any more.
    """
    if frame.fills:
        raise NotFusable(
            f"the forward of {frame.path or 'the model'} changes a list, dictionary or object that it gets", Kind.CODE
        )
    swallowed = [f for f in captured.called_in[frame] if id(f) in inlined]
    why = next((why for call in (frame, *swallowed) for why in _reasons(captured, call)), None)
    if why is not None:
        raise NotFusable(why, Kind.CODE)
    _check_callers(captured, frame)
    contexts = _contexts(captured, frame, inlined, gone)
    if not (contexts <= {frame.modes} or without_gradients(captured, frame, inlined)):
        raise NotFusable(f"the forward of {frame.path or 'the model'} changes autocast or grad mode", Kind.CODE)


def _reasons(captured: Captured, call: Frame) -> Iterator[str]:
    """Why the code of a call can be written again neither by itself nor in that of another."""
    where, module = call.path or "the model", call.module
    if _is_layer(module):
        yield f"{where} is a single layer of torch, whose forward is not written again"
    if isinstance(module, fx.GraphModule):
        yield f"{where} is a GraphModule, whose code is that of its graph: fuse it by itself"
    # The hooks of the outermost call are run around what is written.
    if call.parent is not None and has_hooks(module):
        yield f"{where} has hooks, and its forward would have to be written again"
    if _was_set(module):
        yield f"the forward of {where} is a function that was set on it, and no method of its own"
    if id(module) in captured.code.changed.setters:
        yield f"the forward of {where} sets attributes of the module, or puts values into containers of its file"
    codes = codes_of(captured, module)
    if call in captured.deciding and (names := frozenset().union(*map(remembered, codes))):
        yield f"the forward of {where} takes branches by what it keeps in '{min(names)}'"
    if call.asks:
        yield f"the forward of {where} asks torch for autocast or grad mode"
    if any(map(catches, codes)):
        yield f"the forward of {where} catches errors"


def _was_set(module: nn.Module) -> bool:
    """Whether a module has a forward of its own that is not a method of it."""
    own = vars(module).get("forward")
    return own is not None and getattr(getattr(own, "func", own), "__self__", None) is not module


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
                raise NotFusable(
                    f"'{name}' may call the forward of {where} with other arguments than the example's", Kind.CODE
                )


def _contexts(
    captured: Captured, frame: Frame, inlined: frozenset[int], gone: Collection[fx.Node] = frozenset()
) -> set[Modes]:
    """The modes that the code of a call runs in, and makes the calls in that stay calls. gone: what does not run."""
    nodes = [n for n in captured.made_in[frame] if n.op not in ("placeholder", "output") and n not in gone]
    calls = {node: call_left(captured, frame, node, inlined) for node in nodes}
    return {node.meta["context"] if call is None else call.modes for node, call in calls.items()}


def without_gradients(captured: Captured, frame: Frame, inlined: frozenset[int]) -> bool:
    """Whether all of a call runs without gradients, though it was called with them."""
    autocast = frame.modes[:2]
    without = _contexts(captured, frame, inlined) == {(*autocast, False, False)}
    return frame.modes == (*autocast, True, False) and without
