"""Which calls draw random numbers: torch marks the operators that do, and Python and numpy count what they drew."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._ops import OpOverload

from ..errors import CaptureError
from .dispatch import AllOperators


class Draws(AllOperators):
    """Notices whether an operator that may draw random numbers runs inside it, on real values or on fake ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What an operator on functions, such as `torch.cond`, runs inside is not seen.
        self.found |= not isinstance(func, OpOverload) or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


@contextmanager
def no_plain_draws() -> Iterator[None]:
    """Raises `CaptureError` if plain random numbers were drawn inside: a trace would keep them."""
    before = [pickle.dumps(get()) for get, _ in _generators()]
    yield
    after = [pickle.dumps(get()) for get, _ in _generators()]
    if after[: len(before)] != before:
        raise CaptureError("the forward draws random numbers that are no tensors: every call would get the same ones")


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Inside, random numbers may be drawn; afterwards Python, numpy and every device have the state of before."""
    # Asking a GPU that nothing has used would start it.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    before = [(put, get()) for get, put in _generators()]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for put, state in before:
                put(state)


def _generators() -> list[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """How to get and put the state of what draws plain numbers."""
    numpy = sys.modules.get("numpy.random")
    return [(random.getstate, random.setstate), *([(numpy.get_state, numpy.set_state)] if numpy else [])]
