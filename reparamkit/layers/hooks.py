"""Hooks on modules: which there are, and how those of a forward go on to a merged layer."""

from __future__ import annotations

import dis
from types import MethodType

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""Pre-hooks that compute the weight of a layer from other tensors."""
BEFORE, AFTER = "_forward_pre_hooks", "_forward_hooks"
FORWARD = (
    *(BEFORE, "_forward_pre_hooks_with_kwargs"),
    *(AFTER, "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
)
"""Tables of the hooks of a forward, and of how they are called."""
GRADIENTS = ("_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module, *tables: str) -> bool:
    """Whether calling the module runs more than its forward and the computation of its weight.

    tables: where to look; default: all.
    """
    hooks = (hook for name in tables or (BEFORE, AFTER, *GRADIENTS) for hook in getattr(module, name).values())
    return any(not isinstance(hook, WEIGHT_HOOKS) for hook in hooks)


def reads_arguments(module: nn.Module) -> bool:
    """Whether a hook after the forward may look at what went in, and not only at what came out."""
    return any(_reads_arguments(hook) for hook in module._forward_hooks.values())


def _reads_arguments(hook: object) -> bool:
    code = getattr(getattr(hook, "__func__", hook), "__code__", None)
    first = 1 + isinstance(hook, MethodType)
    # With keyword arguments, or an unknown signature, it may.
    if code is None or code.co_argcount != first + 2:
        return True
    name = code.co_varnames[first]
    used = (i.argval for i in dis.get_instructions(code) if i.opname.startswith("LOAD"))
    return name in code.co_cellvars or any(name == one or (isinstance(one, tuple) and name in one) for one in used)


def carry_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let the hooks of a module's forward be another's too; one that is removed is removed from both."""
    for name in FORWARD:
        if table := getattr(old, name):
            setattr(new, name, table)
