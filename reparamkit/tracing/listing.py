"""Which lists of its own parts a forward asks torch for while it is traced: what it finds there is in no graph."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import nn

from ..running.patches import noting, patched

LISTS = ("modules", "named_modules", "parameters", "named_parameters", "buffers", "named_buffers", "state_dict")


def lists_noted(noted: set[str]) -> AbstractContextManager[None]:
    """Inside, `noted` receives the methods of LISTS that are called by code that is neither torch's nor ours."""
    return patched(nn.Module, dict.fromkeys(LISTS, noting(noted.add)))
