"""What an attribute of something may be, and the methods that Python calls by itself."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

from torch import Tensor, nn

from .parse import is_torchs, once, tables_of
from .uses import Uses
from .values import (
    OWN,
    Bound,
    Group,
    Inner,
    Item,
    Part,
    Super,
    Value,
    all_of,
    elements,
    one,
    tensors_of,
    text,
    union,
)

NAMES: dict[type[ast.AST], str] = {
    **{ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.FloorDiv: "floordiv", ast.Mod: "mod"},
    **{ast.Pow: "pow", ast.MatMult: "matmul", ast.LShift: "lshift", ast.RShift: "rshift", ast.BitAnd: "and"},
    **{ast.BitOr: "or", ast.BitXor: "xor", ast.Invert: "invert", ast.UAdd: "pos", ast.USub: "neg", ast.Not: "bool"},
    **{ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge"},
    **{ast.In: "contains", ast.NotIn: "contains"},
}
"""Of the methods that operators call."""
NOT_SPECIAL = (Tensor, Group, Inner, Bound, Super, type, list, tuple, set, frozenset, dict)
NOT_NUMBERS = frozenset(
    {"device", "dtype", "is_cuda", "layout", "requires_grad", "is_floating_point", "is_complex", "is_meta"}
)
"""Attributes of a tensor that a merge keeps."""
CHILDREN = frozenset({"children", "named_children", "values", "items", "_modules"})
MODULES = frozenset({"modules", "named_modules"})
"""Methods of a module that list what is beneath it, at any depth."""


@once
def methods_of(cls: type) -> frozenset[str]:
    """The methods of a class that are not torch's, nor what packages give to all modules."""
    found = {name: inspect.getattr_static(cls, name, None) for name in dir(cls)}
    own = {name: each for name, each in found.items() if vars(nn.Module).get(name) is not each}
    return frozenset(name for name, each in own.items() if isinstance(each, FunctionType) and not is_torchs(each))


def names_in(thing: object) -> list[str]:
    """The names of all attributes of an object; of a module, of what is in it."""
    tables = tables_of(thing) if isinstance(thing, nn.Module) else ()
    return [*dict.fromkeys(chain(*tables, getattr(thing, "__dict__", {}), dir(type(thing))))]


@dataclass(frozen=True, eq=False)
class Attributes:
    """Finds them. uses: gets what is done on the way."""

    uses: Uses

    def get(self, item: Item, name: str) -> Value:
        thing = item.thing
        if isinstance(thing, nn.Module):
            return self._of_module(thing, name, item.listed)
        if isinstance(thing, Tensor):
            if name not in NOT_NUMBERS:
                self.uses.note(thing, item.listed)
            return {}
        if isinstance(thing, Super):
            return self._of_super(thing, name)
        if isinstance(thing, (Group, list, tuple, set, dict)):
            return self.uses.same(Bound(name, thing))
        if isinstance(thing, (ModuleType, type)):
            return one(getattr(thing, name, None))
        return self._of_object(thing, name, item.listed)

    def _of_super(self, thing: Super, name: str) -> Value:
        mro = type(thing.owner).__mro__
        later = mro[mro.index(thing.cls) + 1 :] if thing.cls in mro else ()
        found = next((vars(cls)[name] for cls in later if name in vars(cls)), None)
        if isinstance(found, property) and found.fget is not None:
            return self.method(Item(thing.owner), found.fget, [])
        if isinstance(found, (staticmethod, classmethod)):
            return self._of_class(found, type(thing.owner))
        return self.uses.same(Bound(found, thing.owner))

    def _of_class(self, found: staticmethod[..., Any] | classmethod[Any, ..., Any], cls: type) -> Value:
        function = found.__func__
        return one(function) if isinstance(found, staticmethod) else self.uses.same(Bound(function, cls))

    def _of_module(self, module: nn.Module, name: str, listed: str) -> Value:
        for table in tables_of(module):
            if name in table:
                return self._member(module, table[name], listed)
        if name in ("forward", "__call__"):
            return one(module, listed)
        if name in CHILDREN | OWN and name.startswith("_"):
            return self.listed(module, name)
        return self._of_object(module, name, listed)

    def member(self, module: nn.Module, name: str) -> Value:
        """What torch's own ``__getattr__`` finds."""
        return union(self._member(module, table[name], "") for table in tables_of(module) if name in table)

    def _member(self, module: nn.Module, found: Part | None, listed: str) -> Value:
        if isinstance(found, Tensor):
            # It may be looked at for its size, which a merge may change as well.
            self.uses.note(found, listed)
            self.uses.note(module, listed)
        return one(found, listed)

    def _of_object(self, thing: object, name: str, listed: str) -> Value:
        found = inspect.getattr_static(type(thing), name, None)
        if isinstance(found, property) and found.fget is not None and not is_torchs(found.fget):
            return self.method(Item(thing, listed), found.fget, [])
        if isinstance(found, property) or name == "__dict__":
            self.uses.use(one(thing, listed))
        if inspect.isfunction(found):
            return self.uses.same(Bound(found, thing))
        if isinstance(found, (staticmethod, classmethod)):
            return self._of_class(found, type(thing))
        if isinstance(thing, nn.Module):
            self.uses.note(thing, listed)
        held = getattr(thing, "__dict__", {}).get(name)
        if held is None and found is None:
            return self.special(one(thing, listed), "__getattr__", given=text(name))
        return one(held, listed)

    def elements(self, value: Value) -> Value:
        """What comes out of a value when it is iterated, by code of its own too."""
        return {**elements(value), **elements(self.special(value, "__iter__")), **self.special(value, "__getitem__")}

    def operated(self, value: Value, *operators: ast.AST) -> Value:
        """What operators give, if there is code for them."""
        names = [NAMES[type(each)] for each in operators if type(each) in NAMES]
        return self.special(value, *(f"__{side}{name}__" for name in names for side in ("", "r", "i")))

    def special(self, value: Value, *names: str, given: Value | None = None) -> Value:
        """What methods of these names give that Python calls by itself, if there are some that are not torch's. given:
        the argument, if it is known.
        """
        args = [] if given is None else [given]
        found: Value = {}
        for item in list(value.values()):
            cls = type(item.thing)
            for name in methods_of(cls).intersection(names) if not isinstance(item.thing, NOT_SPECIAL) else ():
                found.update(self.method(item, inspect.getattr_static(cls, name), args))
        return found

    def method(
        self, item: Item, method: object, args: list[Value], kwargs: Mapping[str, Value] = MappingProxyType({})
    ) -> Value:
        """A method of a thing is called, if there is something of a model in what it has or gets."""
        if isinstance(item.thing, nn.Module):
            self.uses.methods.add((item.thing, str(getattr(method, "__name__", ""))))
        known = self.uses.depths.holds({(0, ""): item, **union([*args, *kwargs.values()])})
        return self.uses.run_of(item, method, args, kwargs) if known else {}

    def listed(self, module: nn.Module, name: str) -> Value:
        """What a method or table of torch lists."""
        if name in CHILDREN:
            found = all_of(module.children())
        elif name in OWN:
            found = all_of([t for t in vars(module)[name].values() if t is not None], name)
        else:
            found = all_of(module.modules() if name in MODULES else tensors_of(module), name)
        return self.uses.list_of(module, name, found)
