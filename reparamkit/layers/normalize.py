"""Layer, RMS and group norms: a normalisation by statistics of the input, then a scale and a shift.

y = (x - mean(x)) / sqrt(var(x) + eps) * gamma + beta. The first part is not affine, the second is.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra.build import multiply, offset, scale, shift
from ..algebra.form import Form
from ..algebra.regroup import known_rank
from ..errors import NotFusable
from ..reasons import Kind
from .registry import READERS

NORM_INTO_LINEAR = "norm_into_linear"
"""The permission to read the second part by itself."""
FLAGS: dict[type[nn.Module], str] = {
    nn.LayerNorm: "elementwise_affine",
    nn.RMSNorm: "elementwise_affine",
    nn.GroupNorm: "affine",
}
"""Norms, and the attribute that tells whether they have a second part."""
FUNCTIONS = frozenset({F.layer_norm, F.rms_norm, F.group_norm})
CHANNELS = (nn.GroupNorm, F.group_norm)
"""Scale dimension 1; the others scale the last dimensions."""


def affine(input: Tensor, weight: Tensor | None, bias: Tensor | None, channels: bool) -> Tensor:
    """``input * weight + bias``: the second part of a norm, while a model is being fused.

    weight, bias: shape (channels,) if `channels`, for dimension 1 of the input; else its last dimensions; or None.
    """
    shape = (-1, *[1] * (input.dim() - 2))
    for parameter, function in ((weight, Tensor.mul), (bias, Tensor.add)):
        if parameter is not None:
            input = function(input, parameter.reshape(shape) if channels else parameter)
    return input


@READERS.reader(affine)
def read_affine(input: Form, weight: Tensor | None, bias: Tensor | None, channels: bool) -> Form:
    """The second part of a norm, by the permission `NORM_INTO_LINEAR`. weight, bias: as `affine` takes them."""
    if not isinstance(input, Form) or isinstance(weight, Form) or isinstance(bias, Form):
        raise NotFusable("a scale that is computed from the input", Kind.NONLINEAR)
    if channels or all(p is None or p.dim() == 1 for p in (weight, bias)):
        # The norm takes no other size, so unlike that of a product this form needs no guard.
        dim = 1 if channels else -1
        # A group norm takes dimension 1 of a tensor without a batch for its channels as well.
        input = (
            known_rank(input, [len(input.sizes)], certain=False)
            if channels and input.open_rank and len(input.sizes) > 1
            else input
        )
        made = shift(input if weight is None else scale(input, weight, dim), bias, dim)
    else:
        scaled = input if weight is None else multiply(input, weight)
        made = scaled if bias is None else offset(scaled, bias)
    return made.made_by(NORM_INTO_LINEAR)


def norm_class(module: nn.Module) -> type[nn.Module] | None:
    """The norm of torch whose forward a module has, if all that it holds is a weight and a bias."""
    # The class of a ScriptModule has none.
    forward = getattr(type(module), "forward", None)
    found = next((cls for cls in FLAGS if forward is cls.forward), None)
    if found is None:
        return None
    bare = module._parameters.keys() <= {"weight", "bias"} and not module._buffers and not module._modules
    return found if bare else None


def without_affine(norm: nn.Module) -> nn.Module:
    """The same norm (its class and settings) without its second part."""
    cls = norm_class(norm)
    assert cls is not None
    made = copy.copy(norm)
    made._parameters = dict.fromkeys(norm._parameters)
    setattr(made, FLAGS[cls], False)
    return made


def arguments(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of one of `FUNCTIONS`, by name, defaults included."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)
