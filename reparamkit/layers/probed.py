"""Layers that are affine and have no form of their own: read as full matrices, on fixed sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra.form import Form
from ..algebra.probe import probe
from ..errors import NotFusable
from .registry import READERS
from .wide import wide, wide_module

RANKS: dict[object, int] = {F.unfold: 4, F.fold: 3}
"""Of a batch: without one, the first dimension is none of samples."""


def probe_module(layer: nn.Module, x: Form) -> Form:
    """The form of an affine module."""
    return probe(x, lambda tensor: wide_module(layer)(tensor))


@READERS.reader(nn.Fold)
def read_fold_layer(layer: nn.Fold, input: Form) -> Form:
    """A full matrix over all dimensions but the first, on fixed sizes; refuses a tensor without a batch."""
    _check_rank(input, RANKS[F.fold])
    return probe_module(layer, input)


def _check_rank(x: Form, rank: int) -> None:
    if x.open_rank:
        raise NotFusable("the rank of this tensor is unknown: pass example_inputs")
    if len(x.sizes) != rank:
        raise NotFusable(f"expected a tensor of rank {rank}, a batch, found {len(x.sizes)}")


def probed_function(function: Callable[..., Tensor]) -> Callable[..., Form]:
    """The reader of an affine function, whose first argument is a value."""

    def read_affine_function(input: Form, *args: Any, **kwargs: Any) -> Form:
        if not isinstance(input, Form) or any(isinstance(a, Form) for a in (*args, *kwargs.values())):
            raise NotFusable("more than one value goes in")
        if function is torch.cumsum:
            _check_dims(input, args, kwargs)
        else:
            _check_rank(input, RANKS[function])
        constants = [wide(a) if isinstance(a, Tensor) else a for a in args]
        named = {k: wide(a) if isinstance(a, Tensor) else a for k, a in kwargs.items()}
        return probe(input, lambda tensor: function(tensor, *constants, **named))

    return read_affine_function


def _check_dims(x: Form, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The last positional argument, or dim / dims, must leave the batch alone."""
    dims = kwargs.get("dim", kwargs.get("dims", args[-1] if args else None))
    listed = [dims] if isinstance(dims, int) else list(dims or ())
    if not listed or x.open_rank or any(d % len(x.sizes) == 0 for d in listed):
        raise NotFusable("mixes the samples of a batch")


for _function in (F.fold, torch.cumsum):
    READERS.reader(_function)(probed_function(_function))
