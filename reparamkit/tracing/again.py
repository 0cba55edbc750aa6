"""Errors that end a trace, and that another attempt, with other settings of the tracer, may avoid."""

from __future__ import annotations

import re

from ..errors import CaptureError

UNBOUND = re.compile(r"descriptor '(\w+)' for '\S+' objects doesn't apply to a '\w*Proxy' object")
"""What Python says where a method of tensors is called as a function of a proxy. Its error has nothing but the words,
which are those of all versions.
"""


class WritesConstant(CaptureError):
    """The forward writes a traced value into a constant tensor."""


class FillsArgument(CaptureError):
    """A function that became a single node (by torch.fx.wrap) changes a list it was given, which the caller sees."""


class AsksForGradients(CaptureError):
    """The forward asks whether gradients of a value are followed."""


class CallsUnbound(CaptureError):
    """The forward calls a method of tensors as a function: ``torch.Tensor.relu(x)``. The message is its name."""


AGAIN = (WritesConstant, FillsArgument, AsksForGradients, CallsUnbound)
"""The errors after which it is worth to trace again."""


def as_again(error: Exception) -> Exception:
    """An error of Python's that ends a trace, as one of these if it is one."""
    unbound = UNBOUND.fullmatch(str(error)) if isinstance(error, TypeError) else None
    return error if unbound is None else CallsUnbound(unbound[1])
