"""Layers that are affine and have no form of their own: read as full matrices, on fixed sizes."""

from __future__ import annotations

from torch import nn

from ..algebra.form import Form
from ..algebra.probe import probe
from .wide import wide_module


def probe_module(layer: nn.Module, x: Form) -> Form:
    """The form of an affine module."""
    return probe(x, lambda tensor: wide_module(layer)(tensor))
