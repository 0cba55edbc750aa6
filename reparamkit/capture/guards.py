"""Checks that stay in a captured graph and run in the code that is generated from it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import GuardError


def expect(found: Any, traced: Any) -> None:
    """A branch was taken for `traced`; another value would need the other branch."""
    if found != traced:
        raise GuardError(
            f"this model was fused for inputs where a size or condition is {traced!r}, now it is {found!r}:"
            " fuse again with example_inputs of this kind"
        )


def expect_size(tensor: Tensor, dim: int, size: int) -> None:
    """A merge was proved for one size of a dimension."""
    if tensor.shape[dim] != size:
        raise GuardError(
            f"this model was fused for tensors of size {size} in dimension {dim}, found {tensor.shape[dim]}:"
            " fuse again with example_inputs of this size"
        )


def expect_rank(tensor: Tensor, rank: int) -> None:
    """A merge was proved for one rank."""
    if tensor.dim() != rank:
        raise GuardError(f"this model was fused for tensors of rank {rank}, found rank {tensor.dim()}")
