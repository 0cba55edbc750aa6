"""Layers and tensors in float64 on the CPU, where merges are computed and proved."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_map

from .hooks import WEIGHT_HOOKS

CASTS = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32, "double": torch.float64}
"""Methods that cast to a floating dtype."""


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64 on the CPU, if it holds real numbers; never on the fly if it is so already."""
    return tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else tensor.dtype)


def wide_call(target: Any, args: Any, kwargs: Any) -> Any:
    """Call a function, or a method (by name) of its first argument, with float64 for every floating dtype and the CPU
    for every device.
    """
    args, kwargs = tree_map(_wide_place, (args, dict(kwargs)))
    if isinstance(kwargs.get("device"), (str, int)):
        kwargs["device"] = "cpu"
    if not isinstance(target, str):
        return target(*args, **kwargs)
    if target == "cuda" or (target == "to" and any(isinstance(each, str) for each in args[1:2])):
        return args[0].cpu()
    return getattr(args[0], "double" if target in CASTS else target)(*args[1:], **kwargs)


def _wide_place(value: Any) -> Any:
    """A dtype or device as it is here."""
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    return torch.device("cpu") if isinstance(value, torch.device) else value


def computes_weight(module: nn.Module) -> bool:
    """Whether the module computes its weight from other parameters in each call."""
    return is_parametrized(module) or any(isinstance(h, WEIGHT_HOOKS) for h in module._forward_pre_hooks.values())


def computed_module(module: nn.Module) -> nn.Module:
    """The module in float64 on the CPU, its weight computed there."""
    if not computes_weight(module):
        return module
    made = wide_module(module)
    for hook in made._forward_pre_hooks.values():
        if isinstance(hook, WEIGHT_HOOKS):
            hook(made, None)
    return made


def wide_module(module: nn.Module) -> nn.Module:
    """The module in float64 on the CPU; itself if it is so already."""
    attributes = [value for m in module.modules() for value in vars(m).values() if isinstance(value, Tensor)]
    tensors = [*module.parameters(), *module.buffers(), *attributes]
    if all(wide(t).data_ptr() == t.data_ptr() for t in tensors):
        return module
    memo: dict[int, Any] = {id(t): _rewrapped(t) for t in tensors}
    return copy.deepcopy(module, memo)


def _rewrapped(tensor: Tensor) -> Tensor:
    made = wide(tensor)
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
