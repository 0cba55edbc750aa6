"""Checks that stay in a captured graph and run in the code that is generated from it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sized
from typing import Any

from torch import Tensor, fx

from ..errors import GuardError


def _recorded(check: Callable[..., None]) -> Callable[..., None]:
    """When a fused model is traced again, the check becomes a node of the new graph."""

    @functools.wraps(check)
    def guard(value: Any, *expected: Any) -> None:
        if isinstance(value, fx.Proxy):
            value.tracer.create_proxy("call_function", guard, (value, *expected), {})
        else:
            check(value, *expected)

    return guard


def is_guard(target: object) -> bool:
    """Whether a node's target is one of the checks of this module."""
    return getattr(target, "__module__", None) == __name__


@_recorded
def expect(found: Any, traced: Any) -> None:
    """A branch was taken for `traced`; another value would need the other branch."""
    # Under torch.jit.trace a size, or what is computed of it, is a tensor of one number.
    number = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
    if isinstance(number, Tensor) or number != traced:
        now = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise GuardError(
            f"this model was fused for inputs where a size or condition is {traced!r}, now it is {now}:"
            " fuse again with example_inputs of this kind"
        )


@_recorded
def expect_entries(found: Any, *traced: Any) -> None:
    """Code went through a list of so many elements, or a dictionary of these keys, or looked for others."""
    if not isinstance(found, Sized):
        raise GuardError(
            f"this model was fused for an argument with the entries {list(traced)}, now it is {found!r}:"
            " fuse again with example_inputs of this kind"
        )
    names = tuple(found) if isinstance(found, Mapping) else tuple(range(len(found)))
    if set(names) != set(traced):
        raise GuardError(
            f"this model was fused for an argument with the entries {list(traced)}, now it has {list(names)}:"
            " fuse again with example_inputs of this kind"
        )


@_recorded
def expect_keywords(found: Mapping[str, Any], defaults: Collection[tuple[str, Any]], *traced: str) -> None:
    """As `expect_entries`; what says no more than what the code takes for it anyway may be there too. defaults: pairs
    of a name that the code reads and what it takes if there is none.
    """
    for name, value in found.items():
        said = value is None or value is False
        if name not in traced and not (said and all(default is value for n, default in defaults if n == name)):
            expect_entries(found, *traced)
    expect_entries({name: None for name in found if name in traced}, *traced)


@_recorded
def expect_given(value: Any) -> None:
    """An argument was a tensor; code that tests it for None would take another branch without."""
    if value is None:
        raise GuardError(
            "this model was fused for calls with a tensor where there is None now:"
            " fuse again with example_inputs of this kind"
        )


@_recorded
def expect_tensor(value: Any) -> None:
    """Code that tests the type of a value took the branch for tensors."""
    if not isinstance(value, Tensor):
        raise GuardError(
            f"this model was fused for calls with a tensor where there is a {type(value).__name__} now:"
            " fuse again with example_inputs of this kind"
        )


@_recorded
def expect_size(tensor: Tensor, dim: int, size: int) -> None:
    """A merge was proved for one size of a dimension."""
    found = tensor.shape[dim] if -tensor.dim() <= dim < tensor.dim() else "none"
    if found != size:
        raise GuardError(
            f"this model was fused for tensors of size {size} in dimension {dim}, found {found}:"
            " fuse again with example_inputs of this size"
        )


@_recorded
def expect_multiple(tensor: Tensor, dim: int, count: int) -> None:
    """A merge was proved for the multiples of a number."""
    if tensor.shape[dim] % count:
        raise GuardError(
            f"this model was fused for tensors whose size in dimension {dim} is a multiple of {count}, found"
            f" {tensor.shape[dim]}: fuse again with example_inputs of this size"
        )


@_recorded
def expect_rank(tensor: Tensor, rank: int, or_more: bool = False) -> None:
    """A merge was proved for one rank, or from one on."""
    found = tensor.dim()
    if found < rank or (found > rank and not or_more):
        raise GuardError(f"this model was fused for tensors of rank {rank}{' or more' * or_more}, found rank {found}")
