"""Which layers we can read: a table from module classes and functions to readers.

A reader is a function shaped like the layer's own forward. It gets `Form`s for the values, tensors for
constants, and returns the form of the output or raises `NotFusable`. Its signature is the full list of
arguments it understands; a call with any other argument is not read.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from numbers import Number
from typing import Any, TypeVar

from torch import nn

from ..algebra.form import OPEN_SUM, Form
from ..algebra.size import ONE
from ..errors import NotFusable, RuleError
from ..reasons import Kind

Function = Callable[..., Any]
F = TypeVar("F", bound=Callable[..., Any])
HARMLESS = frozenset(
    [
        "__init__",
        "__repr__",
        "extra_repr",
        "_check_input_dim",
        "reset_parameters",
        "reset_running_stats",
        "__setstate__",
        "__getstate__",
        "__new__",
        "_load_from_state_dict",
        "_save_to_state_dict",
        "__annotations__",
        "__doc__",
        "__module__",
        "__constants__",
    ]
)
"""What a subclass may override and still compute the same."""
NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim"}
"""Names that functions of torch take as well, for what they call otherwise."""
CALLING = ("__call__", "_call_impl", "_wrapped_call_impl")
"""The way from a call of a module to its forward."""
VALUES = frozenset({"Form", "Operand", "Scale", "Any", "object"})
"""What the declaration of an argument of a reader has in it if the argument may be a value."""


@dataclass(frozen=True)
class Reader:
    """How to read one kind of layer or function.

    sizes: whether it takes sizes that are computed at run time (the shape arguments of views).
    shape: from the sizes of the input and the other arguments to the sizes of the output (None: unknown),
        for a call that cannot be read.
    divides: whether it takes what is still to be divided, see `Form`.
    moves: for a call that only moves numbers, how many operations that takes: 0 for a view, 1 for a copy; or a
        function of the other arguments that says so.
    """

    targets: tuple[object, ...]
    read: Function
    sizes: bool = False
    shape: Function | None = None
    moves: int | Callable[..., int] | None = None
    divides: bool = False

    @property
    def name(self) -> str:
        """The readable name of what it reads."""
        return ", ".join(dict.fromkeys(getattr(t, "__name__", str(t)) for t in self.targets))

    @cached_property
    def signature(self) -> inspect.Signature:
        """The arguments that it understands."""
        return inspect.signature(self.read)

    @cached_property
    def takes_values(self) -> frozenset[str]:
        """Those of them that may be values."""
        return frozenset(name for name, each in self.signature.parameters.items() if _takes_values(each))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        signature = self.signature
        named = [n for n, p in signature.parameters.items() if p.kind is p.VAR_POSITIONAL and n in kwargs]
        # ``permute(x, dims=(0, 2, 1))`` for a reader of ``*dims``.
        args = (*map(_with_plain_numbers, args), *(kwargs.pop(name) for name in named))
        kwargs = {_renamed(n, signature): v for n, v in kwargs.items() if not (n == "out" and v is None)}
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise NotFusable(f"an argument of {self.name} that is not understood ({error})", Kind.UNREAD) from None
        forms = [each for value in given.values() for each in _each(value) if isinstance(each, Form)]
        if any(x.times != ONE for x in forms) and not (self.divides and len(forms) == 1):
            raise NotFusable(OPEN_SUM)
        for name, value in given.items():
            if name not in self.takes_values and any(isinstance(each, Form) for each in _each(value)):
                raise NotFusable(
                    f"its {name} is computed from the input, or written in place while the forward runs", Kind.IN_PLACE
                )
        return self.read(*args, **kwargs)


def _takes_values(parameter: inspect.Parameter) -> bool:
    """Whether an argument of a reader may be a value, by its declaration, if there is one."""
    declared = parameter.annotation
    if declared is parameter.empty:
        return True
    return not VALUES.isdisjoint(re.findall(r"\w+", declared if isinstance(declared, str) else str(declared)))


def _each(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _with_plain_numbers(value: Any) -> Any:
    """A layer whose settings are numbers of Python: a scalar of numpy is to torch the number that it is."""
    if not isinstance(value, nn.Module):
        return value
    others = {name: plain for name, each in vars(value).items() if (plain := _plain(each)) is not each}
    if others:
        value = copy.copy(value)
        vars(value).update(others)
    return value


def _plain(value: Any) -> Any:
    if type(value) is tuple:
        found = tuple(map(_plain, value))
        return found if any(new is not old for new, old in zip(found, value, strict=True)) else value
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def _renamed(name: str, signature: inspect.Signature) -> str:
    """The name that a reader has for an argument which torch knows by two."""
    other = NUMPY_NAMES.get(name, name)
    return other if name not in signature.parameters and other in signature.parameters else name


class Readers:
    """The table of readers. `reader` and `forget` change it, the rest looks things up."""

    def __init__(self) -> None:
        self._table: dict[object, Reader] = {}
        self._spread: dict[object, Reader] = {}

    def __iter__(self) -> Iterator[Reader]:
        return iter(dict.fromkeys([*self._table.values(), *self._spread.values()]))

    def reader(
        self,
        *targets: object,
        sizes: bool = False,
        shape: Function | None = None,
        moves: int | Callable[..., int] | None = None,
        divides: bool = False,
    ) -> Callable[[F], F]:
        """Declare how to read modules of a class, a function, or a method (by name).

        Use as a decorator, ``@reparamkit.reader(MyLayer)``, or call: ``reparamkit.reader(MyLayer)(read)``. The
        function gets the module (only for a class) and the call's arguments, in which values are forms.
        Raises `RuleError`: no target, a target that is already taken, or not a function.
        """
        if not targets:
            raise RuleError("reader() needs the module class or function to read: @reader(MyLayer)")
        for target in targets:
            if not (callable(target) or isinstance(target, str)):
                raise RuleError(f"reader({target!r}): expected a module class, a function or a method name")
            if target in self._table:
                raise RuleError(f"there is already a reader for {target!r}; forget(it) first to replace it")

        def declare(read: F) -> F:
            if not callable(read):
                raise RuleError(f"the reader of {targets} must be a function, found {read!r}")
            made = Reader(targets, read, sizes, shape, moves, divides)
            self._table.update(dict.fromkeys(targets, made))
            return read

        return declare

    def spread(self, *targets: object, moves: int) -> Callable[[F], F]:
        """Declare how to read calls of constants alone that are given sizes of a value: the form of the value is the
        first argument.
        """

        def declare(read: F) -> F:
            self._spread.update(dict.fromkeys(targets, Reader(targets, read, sizes=True, moves=moves)))
            return read

        return declare

    def of_spread(self, target: object) -> Reader | None:
        """The reader of a call that gives a constant sizes of a value."""
        return self._spread.get(target)

    def forget(self, *targets: object) -> None:
        """Remove the readers of these targets."""
        for target in targets:
            self._table.pop(target, None)

    def of_module(self, module: nn.Module) -> Reader | None:
        """The reader of a module: of its class, or of the class whose forward it inherits unchanged."""
        for cls in type(module).__mro__:
            if cls in self._table:
                return self._table[cls] if _unchanged(module, cls) else None
        return None

    def is_changed(self, module: nn.Module) -> bool:
        """Whether the class of a layer overrides a method that the forward it inherits uses."""
        classes = [cls for cls in type(module).__mro__ if cls in self._table]
        theirs = _overridden(type(module), classes[0]) if classes else []
        return bool(theirs) and not {"forward", *CALLING}.intersection(theirs)

    def of_function(self, target: object) -> Reader | None:
        """The reader of a function or a method name."""
        found = self._table.get(target)
        if found is None and isinstance(target, str) and target.endswith("_") and not target.endswith("__"):
            return self._table.get(target[:-1])
        return found

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Undo, at the end, what is declared inside; for tests."""
        before = dict(self._table)
        try:
            yield
        finally:
            self._table = before


def either(*readings: Callable[[], Form]) -> tuple[Form, ...]:
    """The forms of a call that can be read in several ways.

    Raises `NotFusable`, with the reason of the first, if none can.
    """
    forms: list[Form] = []
    reasons: list[NotFusable] = []
    for reading in readings:
        try:
            forms.append(reading())
        except NotFusable as no:
            reasons.append(no)
    if not forms:
        raise reasons[0]
    return tuple(forms)


def _unchanged(module: nn.Module, cls: type) -> bool:
    """Whether a module and its class override nothing of `cls` that a call of it may use."""
    return not _overridden(type(module), cls) and vars(module).keys().isdisjoint(_used(cls))


def _overridden(found: type, cls: type) -> list[str]:
    """What a subclass has otherwise of what a call of a module of `cls` may use."""
    return [n for n in _used(cls) if getattr(found, n, None) is not getattr(cls, n, None)]


def _used(cls: type) -> list[str]:
    """The methods that a call of a module of `cls` may use."""
    functions = [n for n, value in vars(cls).items() if inspect.isfunction(value) and n not in HARMLESS]
    return ["forward", *CALLING, *functions]


READERS = Readers()
"""The table that `reparamkit.reader` fills."""
