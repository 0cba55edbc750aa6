"""Layers and tensors in float64 on the CPU, where merges are computed and proved."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64 on the CPU, if it holds real numbers; never on the fly if it is so already."""
    return tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else tensor.dtype)


def wide_module(module: nn.Module) -> nn.Module:
    """The module in float64 on the CPU; itself if it is so already."""
    tensors = [*module.parameters(), *module.buffers()]
    if all(wide(t).data_ptr() == t.data_ptr() for t in tensors):
        return module
    memo: dict[int, Any] = {id(t): _rewrapped(t) for t in tensors}
    return copy.deepcopy(module, memo)


def _rewrapped(tensor: Tensor) -> Tensor:
    made = wide(tensor)
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
