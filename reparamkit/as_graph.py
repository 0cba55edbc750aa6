"""Whether one flat graph, as `as_graph=True` asks for, can do what the model does."""

from __future__ import annotations

import keyword

from torch import Tensor, fx, nn

from .capture.parts import Parts
from .capture.paths import module_at
from .errors import CaptureError
from .inputs import depends_on_calls
from .layers.hooks import has_hooks
from .request import Request
from .running.gradients import same_with_gradients
from .running.state import held_in
from .running.trees import leaves
from .sourcecode.flow import remembered
from .tracing.frame import Frame


def check_graph(model: nn.Module, parts: Parts, request: Request) -> None:
    """Raises `CaptureError` if one graph cannot do what the model does, in its first call or a later one."""
    found = (
        {path: str(why) for path, why in parts.opaque.items()}
        | _lost(parts)
        | _asked(model, parts, request)
        | _changed(model, parts, request)
    )
    for path, reason in found.items():
        raise CaptureError(f"as_graph=True needs the whole model as one graph: {reason}", path)


def _lost(parts: Parts) -> dict[str, str]:
    """What a flat graph cannot express, by the path of the module that has it."""
    lost: dict[str, str] = {}
    for part in parts.captured:
        outer = part.frames[0].modes[:2]
        cast = [n for n in part.graph.nodes if n.meta.get("context", outer)[:2] != outer]
        lost |= {part.frame(n).path: "a graph has no autocast regions, and the forward has one" for n in cast[:1]}
        named = [path for path in part.targets if any(map(keyword.iskeyword, path.split(".")))]
        lost |= {path: f"its code has no way to name '{path}', which is a keyword of Python" for path in named[:1]}
        others = {type(value).__name__ for value in part.held.values() if not isinstance(value, (Tensor, nn.Module))}
        if others:
            lost[part.frames[0].path] = f"a graph keeps tensors and modules, and the forward uses a {min(others)}"
    root, returned = parts.captured[0].root, leaves(parts.captured[0].frames[0].output)
    if made := {type(leaf).__name__ for leaf in returned if held_in(leaf)}:
        lost[""] = f"a graph makes no objects, and the forward returns a {min(made)}"
    if has_hooks(root):
        lost[""] = "the model has hooks, which copies of a graph lose: give them to the result instead"
    if type(root).__call__ is not nn.Module.__call__ and not isinstance(root, fx.GraphModule):
        lost[""] = "the class of the model has a __call__ of its own, which a graph has not"
    return lost


def _asked(model: nn.Module, parts: Parts, request: Request) -> dict[str, str]:
    """The module whose code takes another branch, with another result, when gradients are enabled; and why."""
    asking = [frame.path for part in parts.captured for frame in part.frames if frame.asks]
    given = request.inputs
    if not asking or (given is not None and same_with_gradients(model, given.args, given.kwargs)):
        return {}
    known = " (pass example_inputs, which tells whether)" if given is None else ""
    return {asking[0]: f"a graph has one way, and the forward asks torch for modes, which makes a difference{known}"}


def _changed(model: nn.Module, parts: Parts, request: Request) -> dict[str, str]:
    """The modules whose state a forward changes so that later calls differ from the first, which a graph repeats."""
    changed = parts.captured[0].code.changed
    layers = [path for path in parts.captured[0].targets if id(module_at(model, path)) in changed.names]
    setters = [path for path, module in model.named_modules() if id(module) in changed.setters]
    why = "a graph does in every call what the first call does, and the forward changes "
    if layers:
        return {layers[0]: f"{why}attributes of a layer"}
    if setters and (request.example is None or request.example.varies or depends_on_calls(model, request.example)):
        known = "pass example_inputs, which tells whether" if request.example is None else "here"
        return {setters[0]: f"{why}attributes: {known} the output differs from call to call"}
    frames = parts.captured[0].frames if setters else []
    counted = ((frame.path, name) for frame in frames for name in _counts(frame))
    return {path: f"{why}'{name}', by which it takes branches" for path, name in counted}


def _counts(frame: Frame) -> set[str]:
    """Names of the numeric attributes that the code of a call both changes and branches on."""
    codes = frame.user_codes
    names = frozenset[str]().union(*map(remembered, codes))
    return {name for name in names if type(getattr(frame.module, name, None)) in (int, float)}
