"""The code that the user wrote for a module, whatever its class is now."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from torch import fx, nn

from ..capture.captured import Captured
from ..sourcecode.flow import names_in, tested
from ..sourcecode.parse import forward_of
from ..tracing.frame import Frame


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


def assumed(captured: Captured, call: Frame) -> dict[str, Any]:
    """The arguments of a call that are defaults of the first call, or were handed on from there: others may be given,
    if nothing is known of how that is called.
    """
    if call.parent is None:
        parameters = inspect.signature(call.module.forward).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}
    around, named = assumed(captured, call.parent), names_in(original_forward(call.parent.module))
    handed = [value for name, value in around.items() if named is None or name in named]
    return {name: value for name, value in bound(call).items() if any(value is one for one in handed)}


def _code(function: Callable[..., Any]) -> CodeType | None:
    return getattr(inspect.unwrap(function), "__code__", None)
