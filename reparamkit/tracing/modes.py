"""The modes that a forward runs in, and whether it asks for them: another mode may take another way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from ..running.patches import noting, patched

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


def modes_noted(note: Callable[[], None]) -> AbstractContextManager[None]:
    """Inside, `note` is called whenever code that is neither torch's nor ours asks torch for a mode."""
    return patched(torch, dict.fromkeys(ASKED, noting(lambda name: note())))
