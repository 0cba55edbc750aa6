"""One call of one module, and what a trace sees of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..sourcecode.flow import catches
from ..sourcecode.parse import forward_of
from .lending import Taken
from .modes import Modes, modes

Reading = tuple[str, CodeType]
"""The name of an attribute, and code that reads it."""


@dataclass(eq=False)
class Frame:
    """One call of one module that was traced through.

    args, kwargs, output: as in the call, with graph nodes in the place of tensors.
    modes: those that it was called in. asks: whether its code asks for them. lists: the lists and rows of modules that
    its code has in hand, which it may count. fills: whether its code changes a container that it is given.
    ranks: whether its code asks for the rank of a tensor. lent: as of a node. codes: the user's code that made nodes.
    read: per module the attributes that its code reads, see `settings_read`, each with the code that does.
    """

    path: str
    module: nn.Module = field(repr=False)
    parent: Frame | None = field(repr=False)
    args: Any = ()
    kwargs: Any = field(default_factory=dict)
    output: Any = None
    modes: Modes = field(default_factory=modes)
    asks: bool = False
    lists: set[nn.Module] = field(default_factory=set)
    fills: bool = False
    ranks: bool = False
    lent: Taken = field(default_factory=dict)
    codes: set[CodeType] = field(default_factory=set, repr=False)
    read: WeakKeyDictionary[nn.Module, set[Reading]] = field(default_factory=WeakKeyDictionary, repr=False)

    @cached_property
    def stack(self) -> tuple[Frame, ...]:
        """The calls this one is inside of, from the root's to this one."""
        return (*self.parent.stack, self) if self.parent else (self,)

    @property
    def user_codes(self) -> set[CodeType]:
        """The code of its forward, and of all that made nodes in it."""
        # An object that stands for a forward has none.
        forward = getattr(forward_of(self.module), "__code__", None)
        return self.codes if forward is None else {forward, *self.codes}

    @cached_property
    def goes_on_after_errors(self) -> bool:
        """Whether its code, or that of a call around it, catches errors."""
        return any(catches(code) for call in self.stack for code in call.user_codes)


Method = tuple[nn.Module, str]
"""A method of one module, by its name; forward, if it is not run by calls of the module alone."""
