"""What the variables of a function may be."""

from __future__ import annotations

import ast
import builtins
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import CellType, FunctionType

from .uses import Uses
from .values import Group, Inner, Value, one, union

UNKNOWN = "*"
"""The name of arguments that come out of a container, for any parameter."""
NAMED = "**"
"""The same of a dictionary: for any parameter that is not given otherwise."""


@dataclass(eq=False)
class Variables:
    """Those of one call. result: what it may return. names: what each variable may be. elsewhere: those of them that
    other code reads as well.
    """

    uses: Uses
    function: FunctionType
    result: Value
    names: dict[str, Value] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    inner: dict[Inner, None] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)

    @cached_property
    def around(self) -> Mapping[str, object]:
        """The variables that the function sees and does not set."""
        cells = zip(self.function.__code__.co_freevars, self.function.__closure__ or (), strict=False)
        held = {name: cell.cell_contents for name, cell in cells if cell != CellType()}
        return ChainMap(held, self.function.__globals__, vars(builtins))

    def known(self) -> int:
        """How much the variables, and all that was made, can be."""
        made = sum(len(group.items) for group in self.groups.values())
        results = (self.result, *(inner.result for inner in self.inner))
        return sum(map(len, (*self.names.values(), *results))) + made

    def bind_arguments(self, spec: ast.arguments, args: list[Value], kwargs: Mapping[str, Value]) -> None:
        names = [each.arg for each in (*spec.posonlyargs, *spec.args)]
        for name, value in zip(names, args, strict=False):
            self.bind(name, value)
        rest = union(args[len(names) :])
        if spec.vararg is not None and rest:
            self.bind(spec.vararg.arg, self.group(spec.vararg, rest))
        for name, value in kwargs.items():
            if name in (UNKNOWN, NAMED):
                given = {*names[: len(args)], *kwargs} if name == NAMED else set[str]()
                every = (each.arg for each in (*spec.kwonlyargs, spec.vararg, spec.kwarg) if each is not None)
                for each in (*names, *every):
                    self.bind(each, {} if each in given else value)
            elif name in {*names, *(each.arg for each in spec.kwonlyargs)}:
                self.bind(name, value)
            elif spec.kwarg is not None:
                self.bind(spec.kwarg.arg, self.group(spec.kwarg, value))

    def bind(self, name: str, value: Value) -> None:
        self.names.setdefault(name, {}).update(value)

    def group(self, place: ast.AST, items: Value) -> Value:
        group = self.groups[id(place)] = self.uses.group(place)
        group.items.update(items)
        return one(group)
