"""The numbers of a merged layer, cast once from float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import NotFusable
from ..recipes.tape import Tape


def settle(module: nn.Module, like: Tensor | None, requires_grad: bool, tape: Tape) -> list[str]:
    """Cast a merged layer once, to the dtype and device of the layers it replaces; returns warnings. The tape records
    the cast.

    Raises `NotFusable` if a number is finite in float64 and not in that dtype.
    """
    warnings: list[str] = []
    for name, parameter in module.named_parameters():
        data = parameter.data
        with tape:
            cast = (data if like is None else data.to(like.device, like.dtype)).contiguous()
        if cast.dtype != data.dtype and _overflows(cast) and not _overflows(data):
            raise NotFusable(f"a merged {name} overflows {_short(cast.dtype)}")
        if lossy := _lossy(data, cast.dtype):
            shown = ", ".join(map(str, lossy[:4])) + ", ..." * (len(lossy) > 4)
            warnings.append(f"channel {shown} of the {name} is too small for {_short(cast.dtype)} and loses digits")
        owner, _, own_name = name.rpartition(".")
        made = nn.Parameter(cast, requires_grad=requires_grad)
        module.get_submodule(owner).register_parameter(own_name, made)
    return warnings


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _lossy(weight: Tensor, dtype: torch.dtype) -> list[int]:
    """The channels of a weight all of whose numbers are below the smallest normal one, where digits get lost."""
    if weight.dim() < 2 or not weight.numel():
        return []
    rows = weight.flatten(1)
    peak = torch.maximum(rows.amax(1), -rows.amin(1))
    found: list[int] = ((peak > 0) & (peak < torch.finfo(dtype).tiny)).nonzero().flatten().tolist()
    return found


def _overflows(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and not all(bool(bound.isfinite()) for bound in torch.aminmax(tensor))
