"""Calls of torch that no traced tensor is an argument of, and that a trace has to have all the same."""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping
from types import MethodDescriptorType, WrapperDescriptorType
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Target
from torch.overrides import TorchFunctionMode

from ..running.draws import Draws
from ..running.trees import leaves, map_leaves
from .constants import writes
from .variadic import plain

CONVERSIONS = frozenset({"__float__", "__int__", "__bool__", "__index__"})
"""Methods by which Python takes a tensor for a number."""
FACTORIES = frozenset({torch.zeros, torch.ones, torch.empty, torch.full, torch.eye, torch.arange, torch.linspace})
"""Functions that make a tensor of nothing, for the forward to fill."""


class TorchCalls(TorchFunctionMode):
    """Makes nodes of calls of torch that no traced tensor is an argument of, and that are no constants all the same:
    they draw random numbers, take a traced size, or make a tensor of nothing that the forward writes into.
    """

    def __init__(self, tracer: Any) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func, kwargs = plain(func), kwargs or {}
        if self.tracer.idle:
            return func(*args, **kwargs)
        if any(issubclass(kind, fx.Proxy) for kind in types) or reads_traced(args, kwargs):
            self.tracer.withdraw(sys._getframe(1))
            # Not all methods are in the list of those that torch hands on.
            method = isinstance(func, MethodDescriptorType)
            return self._node(func, args, kwargs) if method else fx.Proxy.__torch_function__(func, types, args, kwargs)
        if func in FACTORIES and self.tracer.manner.factories:
            return self._node(func, args, kwargs)
        if writes_constant(func, args, kwargs) and func is not Tensor.requires_grad_:
            self.tracer.check_write(kwargs.get("out", *args[:1]))
        with Draws() as draws:
            found = func(*args, **kwargs)
        if self.tracer.made is not None:
            self.tracer.made.update((id(leaf), leaf) for leaf in leaves(found))
        if self.tracer.follows_from_own(found, args, kwargs):
            return self._of_own(func, *map_leaves(self.tracer.own, (args, kwargs)))
        return self._node(func, args, kwargs) if draws.found else found

    def _of_own(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What follows from tensors of the model that code got hold of otherwise than as attributes of modules."""
        if getattr(func, "__name__", "") == "__get__":
            return getattr(args[0], func.__self__.__name__)
        if func.__name__ in CONVERSIONS:
            return getattr(args[0], func.__name__)()
        return self._node(func, args, kwargs)

    def _node(self, func: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(func, MethodDescriptorType):
            return self.tracer.create_proxy("call_method", func.__name__, args, kwargs)
        if isinstance(func, WrapperDescriptorType):
            # What a sign or brackets call, which code can only write as these.
            func = getattr(operator, func.__name__, func)
        return self.tracer.create_proxy("call_function", func, args, kwargs)


def reads_traced(args: Any, kwargs: Any) -> bool:
    """Whether a traced value is among the arguments of a call, in a container or not."""
    return any(isinstance(leaf, fx.Proxy) for leaf in leaves((args, kwargs)))


def writes_constant(target: Target, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call writes into a tensor that is not traced."""
    return writes(target, kwargs) and isinstance(kwargs.get("out", *args[:1]), Tensor)
