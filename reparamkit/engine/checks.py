"""Checks of how many dimensions a value has, in the code of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..capture.reach import reached
from ..tracing.constants import called
from ..tracing.guards import expect
from .counting import PURE, reads_rank


def checked(node: fx.Node) -> fx.Node | None:
    """The value of which a node checks how many dimensions it has, and nothing else; None if it does something else."""
    if node.target not in (expect, torch._assert):
        return None
    made = reached(node.all_input_nodes, lambda n: n.all_input_nodes if _is_made(n) else [])
    given = {n for n in made if not _is_made(n)}
    return given.pop() if len(given) == 1 and any(map(reads_rank, made)) else None


def passes(node: fx.Node, rank: int) -> bool:
    """Whether such a check passes for this number of dimensions; not if it ends in an error."""
    try:
        found = _number(node.args[0], rank)
    except Exception:
        return False
    return bool(found == (node.args[1] if node.target is expect else True))


def _is_made(node: fx.Node) -> bool:
    """Whether a node is a rank, or made of ranks."""
    return reads_rank(node) or getattr(node.target, "__module__", None) in PURE


def _number(value: Any, rank: int) -> Any:
    """What code makes of a rank."""
    if not isinstance(value, fx.Node):
        return value
    return rank if reads_rank(value) else called(value, [_number(each, rank) for each in value.args], value.kwargs)
