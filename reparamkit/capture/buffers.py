"""Run a module on other buffers than its own, so that what its forward writes there is nobody's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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
