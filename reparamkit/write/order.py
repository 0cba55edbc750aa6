"""Views that a tensor has only if its numbers lie in order, as they do behind a layer, and may not do before it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx

from ..capture.aliases import MAY_ALIAS, target_name
from ..capture.captured import Captured
from ..errors import NotFusable
from ..reasons import Kind

ANY_ORDER = {"view": "reshape", "view_as": "reshape_as"}
"""Such methods, with those that copy the numbers where there is no view."""


def needs_order(node: fx.Node) -> bool:
    """Whether a node takes such a view."""
    return node.op == "call_method" and node.target in ANY_ORDER


def in_any_order(copy: fx.Node) -> None:
    """Let the copy of a node, which reads another value, take it in any order."""
    if needs_order(copy):
        copy.target = ANY_ORDER[str(copy.target)]


def is_ordered(captured: Captured, node: fx.Node) -> bool:
    """Whether the numbers of a value are known to lie in order, or a layer has just made them."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return value.is_contiguous()
    return node.op.startswith("call") and target_name(node, captured.module) not in MAY_ALIAS


def check_order(captured: Captured, before: fx.Node, views: Iterable[fx.Node]) -> None:
    """Raises `NotFusable` if code would take one of these views of a value that may not have it."""
    if any(map(needs_order, views)) and not is_ordered(captured, before):
        raise NotFusable("its code takes a view() of what it gives, which what it gets may not have", Kind.ORDER)
