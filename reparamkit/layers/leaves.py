"""Which modules a graph calls, and which are traced through."""

from __future__ import annotations

import torch
from torch import nn

from .registry import READERS


def is_leaf(module: nn.Module) -> bool:
    """Whether the graph calls a module instead of tracing through: torch's own layers, and those with a reader. A layer
    whose class overrides what its forward uses is traced.
    """
    if READERS.of_module(module) is not None or isinstance(module, torch.jit.ScriptModule):
        return True
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) or type(module).forward is nn.Module.forward:
        # What has no forward of its class has one of its own, as what torch.compile makes of a module.
        return False
    return str(type(module).forward.__module__).startswith(("torch.nn", "torch.ao")) and not READERS.is_changed(module)
