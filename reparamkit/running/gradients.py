"""Whether it matters to a model that gradients are followed: code may take another way to the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .draws import random_state_kept
from .trees import leaves, map_leaves
from .undone import undone

ROUNDING = 1e-4
"""How much the outputs of two ways through one forward may differ, in single precision and any number of layers."""


def same_with_gradients(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a module gives the same whether gradients are followed or not, as far as a run on copies of these inputs
    tells.
    """
    args, kwargs = copy.deepcopy((args, dict(kwargs)))
    try:
        plain, followed = (_outputs(module, args, kwargs, gradients) for gradients in (False, True))
    except Exception:
        return False
    return len(plain) == len(followed) and all(map(_alike, plain, followed))


def _outputs(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], gradients: bool) -> list[Tensor]:
    def followed(leaf: Any) -> Any:
        # What was computed, here by a factor of 1, may be written into.
        real = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.detach().requires_grad_(gradients) * 1 if real else copy.deepcopy(leaf)

    with random_state_kept(), undone(module), torch.set_grad_enabled(gradients):
        made = module(*map_leaves(followed, args), **map_leaves(followed, dict(kwargs)))
    return [leaf.detach().double() for leaf in leaves(made) if isinstance(leaf, Tensor)]


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs are the same but for rounding."""
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    return bool((a - b).abs().max() <= ROUNDING * b.abs().max())
