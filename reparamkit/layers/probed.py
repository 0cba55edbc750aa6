"""Layers that are affine and have no form of their own: read as full matrices, on fixed sizes."""

from __future__ import annotations

from torch import nn

from ..algebra.form import Form
from ..algebra.probe import probe
from ..errors import NotFusable
from .wide import wide_module


def probe_module(layer: nn.Module, x: Form) -> Form:
    """The form of an affine module."""
    return probe(x, lambda tensor: wide_module(layer)(tensor))


def check_rank(x: Form, rank: int) -> None:
    """Refuse a tensor without a batch."""
    if x.open_rank:
        raise NotFusable("the rank of this tensor is unknown: pass example_inputs")
    if len(x.sizes) != rank:
        raise NotFusable(f"expected a tensor of rank {rank}, a batch, found {len(x.sizes)}")
