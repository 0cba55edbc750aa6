"""The windows of what takes the largest of some numbers: no layer that merges, but some leave all sizes as they are."""

from __future__ import annotations

import re
from numbers import Integral
from typing import Any

from torch import fx

from ..capture.aliases import ModuleOf
from .counting import called_name, plain_name

LARGEST = re.compile(r"maxpool(\d)d")
DEFAULTS = {
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
    "return_indices": False,
}


def keeps_sizes(node: fx.Node, module_of: ModuleOf) -> bool:
    """Whether a call takes the largest number of each window, of which there is one for each number."""
    kind = LARGEST.fullmatch(plain_name(called_name(node, module_of)))
    if kind is None:
        return False
    given = _made_with(module_of(node)) if node.op == "call_module" else _arguments(node)
    found = [_each(given[name], int(kind[1])) for name in ("kernel_size", "stride", "padding", "dilation")]
    known = [each for each in found if each is not None]
    if given["return_indices"] is not False or given["ceil_mode"] is not False or len(known) < len(found):
        return False
    return all(s == 1 and 2 * p == d * (k - 1) for k, s, p, d in zip(*known, strict=True))


def _made_with(module: Any) -> dict[str, Any]:
    return {name: getattr(module, name, None) for name in DEFAULTS}


def _arguments(node: fx.Node) -> dict[str, Any]:
    return {**DEFAULTS, **dict(zip(DEFAULTS, node.args[1:], strict=False)), **node.kwargs}


def _each(value: Any, dims: int) -> tuple[int, ...] | None:
    """A number per dimension; None for what is no number in the code."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims
    values = values * dims if len(values) == 1 else values
    return values if len(values) == dims and all(isinstance(each, Integral) for each in values) else None
