"""Dtypes and devices that code takes from one tensor and hands on to a call: they follow the model when it is converted
or moved, so the graph, which has what they are, knows whose they are.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..sourcecode.origins import Place, origins, place, place_of_node, users

LENT = {"dtype": torch.dtype, "device": torch.device}
KINDS = tuple(LENT.values())
NEW = frozenset({"new_tensor", "new_full", "new_ones", "new_zeros"})
"""Methods that make a tensor of nothing but the dtype and the device of another."""


@dataclass(frozen=True, eq=False)
class Lent:
    """An attribute of the value of a node (None: of the model's parameters), and what it is."""

    node: fx.Node | None
    attribute: str
    found: object


Taken = dict[int | str, Lent]
"""Of the arguments of a call those that were read of a value, by position or name."""


class Lending:
    """What the code that is traced has read of dtypes and devices."""

    def __init__(self) -> None:
        self._read: dict[tuple[int, Place], Lent] = {}

    def note(self, by: FrameType, lent: Lent) -> None:
        """The expression that `by` is at reads an attribute."""
        self._read[id(by), place(by)] = lent

    def taken(self, by: FrameType, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Taken:
        """Of the arguments of the call that `by` is at those that were read of a value, by position or name."""
        every: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        given = {key: each for key, each in every if isinstance(each, KINDS)}
        said = origins(users(by)) if given else ()
        read = [lent for frame, node in said if (lent := self._lent(frame, node)) is not None]
        return {key: lent for key, each in given.items() for lent in read if lent.found in (each, type(each))}

    def _lent(self, frame: FrameType, node: ast.expr) -> Lent | None:
        """What an expression reads of a value, or of the model itself, as in ``next(self.parameters()).dtype``."""
        known = self._read.get((id(frame), place_of_node(node)))
        if known is not None or not isinstance(node, ast.Attribute) or node.attr not in LENT:
            return known
        names = (part.id for part in ast.walk(node) if isinstance(part, ast.Name))
        owners = [owner for name in names if isinstance(owner := frame.f_locals.get(name), nn.Module)]
        # What is kept in an attribute of its own stays as it is.
        own = bool(owners) and not any(node.attr in vars(owner) for owner in owners)
        return Lent(None, node.attr, LENT[node.attr]) if own else None


def lender(node: fx.Node) -> fx.Node | None:
    """The tensor that only lends its dtype, one of real numbers, and its device to what a call makes."""
    value = node.meta.get("val")
    if node.op != "call_method" or not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    found = node.args[node.target not in NEW : 2] if node.target in {*NEW, "to", "type_as"} else ()
    return found[0] if found and isinstance(found[0], fx.Node) else None
