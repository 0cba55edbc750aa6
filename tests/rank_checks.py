"""Checks of the rank of a tensor as code has them: here, since pytest writes the assertions of tests anew."""

from __future__ import annotations

import torch
from torch import Tensor


def asserts(x: Tensor) -> None:
    assert x.ndim == 4, f"expected 4 dimensions, got {x.ndim}"


def asserts_by_torch(x: Tensor) -> None:
    torch._assert(x.ndim == 4, f"expected 4 dimensions (got {x.ndim})")


def raises(x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError("expected 4 dimensions")


def raises_outside(x: Tensor) -> None:
    if x.dim() < 4 or x.dim() > 4:
        raise ValueError("expected 4 dimensions")


def counts_the_shape(x: Tensor) -> None:
    if len(x.shape) != 4:
        raise ValueError(f"expected 4 dimensions, got {tuple(x.shape)}")


def looks_among_two(x: Tensor) -> None:
    assert x.dim() in (3, 4)


def looks_among(x: Tensor) -> None:
    assert x.dim() in (4, 5)


def looks_among_others(x: Tensor) -> None:
    if x.dim() not in [4, 5]:
        raise ValueError("expected 4 dimensions")


def divides(x: Tensor) -> None:
    torch._assert(8 // (x.dim() - 3) == 8, "expected 4 dimensions")


CHECKS = (asserts, asserts_by_torch, raises, raises_outside, counts_the_shape, looks_among, looks_among_others, divides)
