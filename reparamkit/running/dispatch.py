"""Dispatch modes that see all operators, those on functions too."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class AllOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that operators on functions, such as `torch.cond`, are handed to like any other."""

    supports_higher_order_operators = True

    def __enter__(self) -> Self:
        if not hasattr(TorchDispatchMode, "supports_higher_order_operators"):
            # Older versions of torch ask for a rule per mode and operator; some operators are made only when needed.
            for operator in torch._ops._higher_order_ops.values():
                operator.python_key_table.setdefault(type(self), partial(_hand, operator))
        return super().__enter__()  # type: ignore[no-any-return,no-untyped-call]


def _hand(operator: Any, mode: AllOperators, *args: Any, **kwargs: Any) -> Any:
    return mode.__torch_dispatch__(operator, (), args, kwargs)  # type: ignore[no-untyped-call]
