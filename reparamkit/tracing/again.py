"""Errors that end a trace, and what another attempt does otherwise, which may avoid them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

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


@dataclass
class Manner:
    """How to trace a module, as attempts have found out.

    heedless: whether the model was seen to give the same with gradients and without; None if nobody has asked.
    through: whether functions that torch.fx.wrap names are gone through, which is needed only if they change a list
    that they are given. factories: whether tensors that are made of nothing are traced, which is needed only if the
    forward writes into them. unbound: the methods of tensors that code calls as functions. where: paths of the modules
    whose code asks for any of this.
    """

    heedless: bool | None = None
    through: bool = False
    factories: bool = False
    unbound: set[str] = field(default_factory=set)
    where: set[str] = field(default_factory=set)

    def learn(self, error: CaptureError, is_heedless: Callable[[], bool | None]) -> None:
        """What may not end in this error; raises it if there is nothing. is_heedless: tells of gradients."""
        self.where.add(error.path or "")
        asks = isinstance(error, AsksForGradients) and self.heedless is None
        if asks and (found := is_heedless()) is not None:
            self.heedless, self.through, self.factories = found, False, False
        elif isinstance(error, FillsArgument) and not self.through:
            self.through, self.factories = True, False
        elif isinstance(error, WritesConstant) and not self.factories:
            self.factories = True
        elif isinstance(error, CallsUnbound) and str(error) not in self.unbound:
            self.unbound.add(str(error))
        else:
            raise error
