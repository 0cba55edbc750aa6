"""What a forward writes into buffers: it runs on others than the module's own, so that this is nobody's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from .patches import Function, patched


@contextmanager
def other_buffers(model: nn.Module, make: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, every buffer of the model is what `make` made of it; ties stay ties.

    torch.func.functional_call does not restore the buffers of a module that is registered under two names.
    """
    made: dict[int, Tensor] = {}
    # The buffers of a ScriptModule cannot be exchanged.
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(module, dict(module._buffers)) for module in modules]
    try:
        for module, buffers in before:
            for name, buffer in buffers.items():
                if buffer is not None:
                    made[id(buffer)] = made[id(buffer)] if id(buffer) in made else make(buffer)
                    module._buffers[name] = made[id(buffer)]
        yield
    finally:
        for module, buffers in before:
            module._buffers.clear()
            module._buffers.update(buffers)


def assignments_seen(note: Callable[[nn.Module], None]) -> AbstractContextManager[None]:
    """Inside, a buffer may become a traced value, as by ``self.calls += 1``: torch may take tensors only. note: gets
    each module of which an attribute was set.
    """

    def assigned(assign: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        module, name, value = args
        if isinstance(value, fx.Proxy) and name in module.__dict__.get("_buffers", ()):
            module._buffers[name] = value
        else:
            assign(module, name, value)
        note(module)

    return patched(nn.Module, {"__setattr__": assigned})
