"""The modes that a forward runs in, and whether it asks for them: another mode may take another way."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

ASKED = ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled")
Modes = tuple[bool, bool, bool, bool]


def modes() -> Modes:
    """Autocast on the CPU and on the GPU, gradients, and inference mode."""
    return (
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


@contextmanager
def modes_noted(note: Callable[[], None]) -> Iterator[None]:
    """Inside, `note` is called whenever code that is neither torch's nor ours asks torch for a mode."""
    before = {name: getattr(torch, name) for name in ASKED}
    # Another thread may trace as well.
    own = {name: getattr(function, "taken_from", function) for name, function in before.items()}
    for name, function in own.items():
        setattr(torch, name, _noting(function, note))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(torch, name, function)


def _noting(function: Callable[..., Any], note: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        caller = str(sys._getframe(1).f_globals.get("__name__")).partition(".")[0]
        if caller not in ("torch", __name__.partition(".")[0]):
            note()
        return function(*args, **kwargs)

    call.taken_from = function  # type: ignore[attr-defined]
    return call
