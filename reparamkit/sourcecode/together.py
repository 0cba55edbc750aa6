"""Whether code runs several modules one after the other, whatever the attributes are that it goes by."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .flow import BRANCHES, FUNCTIONS, keys_of, locals_of, place_in
from .parse import ASKING, method_source, once, path_of

Way = tuple[object, ...]
"""The branches, loops and functions around a call, from the outermost in."""
REPEATED = (ast.For, ast.AsyncFor, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
APART = (ast.BoolOp, ast.Match)
"""Of these each part is a branch."""
Codes = Mapping[str, Callable[..., Any]]
"""The methods of a module that run, by name: forward and those that it calls."""


@dataclass(frozen=True)
class Event:
    """What code does with a part of its module, in the order in which it does. path: of the part, "" for the module
    itself, None for what may be anything. way: to its call; None if it does not just call it. name: nothing but the
    name of an attribute of something else, or a text.
    """

    path: str | None = None
    way: Way | None = None
    name: str = ""


def parted_by(
    codes: Codes, places: Collection[str], is_part: Callable[[str], bool], enters: bool, leaves: bool
) -> frozenset[str] | None:
    """The names by which methods of a module may run the modules at some places not one after the other, with only
    other parts of the module between them; None if it may be any.

    enters, leaves: whether what goes into the first of them comes from other code, and what the last gives goes there.
    """
    events = list(_expanded(codes, "forward", (), ()))
    found = [at for place in places if (at := _only(events, place)) is not None]
    if len(found) < len(places):
        return None
    first, last = 0 if enters else min(found), len(events) if leaves else max(found)
    ways = {events[at].way for at in found}
    straight = all(each.name or (each.way is not None and is_part(str(each.path))) for each in events[first:last])
    if straight and (ways == {()} or not (enters or leaves or len(ways) > 1)):
        return frozenset()
    return frozenset().union(*(_names(each) for each in events[: last + 1]))


def hands_over(codes: Codes) -> bool:
    """Whether methods of a module give the module itself to other code, which may do anything with it."""
    return any(event.path == "" and not event.name for event in _expanded(codes, "forward", (), ()))


def _names(event: Event) -> set[str]:
    return {event.name, *(event.path or "").split(".")} - {""}


def _only(events: list[Event], place: str) -> int | None:
    """Where the only call of what is at a place is; None if there may be others."""
    found = [at for at, each in enumerate(events) if _concerns(each, place)]
    is_call = len(found) == 1 and events[found[0]].path == place and events[found[0]].way is not None
    return found[0] if is_call else None


def _concerns(event: Event, place: str) -> bool:
    """Whether code that does something with a part may run what is at a place."""
    if event.path is None:
        return False
    around = not event.path or f"{place}.".startswith(f"{event.path}.")
    return around or (event.way is not None and event.path.startswith(f"{place}."))


def _expanded(codes: Codes, name: str, around: Way | None, inside: tuple[str, ...]) -> Iterator[Event]:
    """What a method does, and what those do that it calls. around: the way to its call. inside: the methods around."""
    for event in _events(codes[name]):
        way = None if around is None or event.way is None else (*around, *event.way)
        if event.path is not None and event.path in codes and event.path not in inside:
            yield from _expanded(codes, event.path, way, (*inside, name))
        else:
            yield replace(event, way=way)


@once
def assigned(method: Callable[..., Any]) -> frozenset[str]:
    """The names of the attributes, of anything, that a method sets."""
    tree = method_source(method)
    nodes = ast.walk(tree) if tree is not None else ()
    return frozenset(n.attr for n in nodes if isinstance(n, ast.Attribute) and not isinstance(n.ctx, ast.Load))


@once
def _events(method: Callable[..., Any]) -> tuple[Event, ...]:
    """What the code of a method does, those that it calls aside."""
    tree = method_source(method)
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)) if tree is not None else iter(())
    function = next(functions, None)
    if function is None:
        return (Event(""),)
    found = _Events(function.name, locals_of(function))
    for statement in function.body:
        found.visit(statement)
    return tuple(found.events)


@dataclass
class _Events(ast.NodeVisitor):
    """Notes what is done, in order. name: of the method. own: its variables. around: what the node is in."""

    name: str
    own: frozenset[str]
    around: Way = ()
    events: list[Event] = field(default_factory=list)

    def visit(self, node: ast.AST) -> None:
        """Any node; what it has inside may be a branch each."""
        around = self.around
        if isinstance(node, BRANCHES):
            self.events.append(Event())
            for branch, part in _branches(node):
                self.around = (*around, *branch)
                self.visit(part)
        elif isinstance(node, (*FUNCTIONS, *REPEATED)):
            self.events.append(Event())
            self.around = (*around, (self.name, *place_in(node)))
            self.generic_visit(node)
        else:
            super().visit(node)
        self.around = around

    def visit_Call(self, node: ast.Call) -> None:
        """A call of a module, of a method, or of anything."""
        is_plain = bool(path_of(node.func)) and all(isinstance(key, ast.Constant) for key in keys_of(node.func))
        asked = 1 if _asks(node) else 0
        for each in (*([] if is_plain else [node.func]), *node.args[asked:], *node.keywords):
            self.visit(each)
        if is_plain:
            self.events.append(Event(path_of(node.func), self.around))
        elif not isinstance(node.func, ast.Attribute) and getattr(node.func, "id", "self") in {*self.own, "self"}:
            self.events.append(Event())

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Something of the module that is not just called, or of anything else."""
        if not path_of(node):
            self.events += [Event(name=node.attr)] if isinstance(node, ast.Attribute) else []
            self.generic_visit(node)
            return
        self.events.append(Event(path_of(node)))
        for key in keys_of(node):
            self.visit(key)

    visit_Subscript = visit_Attribute  # type: ignore[assignment]

    def visit_Constant(self, node: ast.Constant) -> None:
        """A text may name an attribute."""
        self.events += [Event(name=node.value)] if isinstance(node.value, str) else []

    def visit_Name(self, node: ast.Name) -> None:
        """The module itself is handed to anything."""
        if node.id == "self":
            self.events.append(Event(""))


def _asks(node: ast.Call) -> bool:
    """Whether a call only asks something about its first argument, a name."""
    asks = isinstance(node.func, ast.Name) and node.func.id in ASKING - {"getattr"}
    return asks and isinstance(next(iter(node.args), None), ast.Name)


def _branches(node: ast.AST) -> Iterator[tuple[Way, ast.AST]]:
    """The parts of a node that has several ways, each with what stands for its way; a test is on none."""
    for number, (name, part) in enumerate(ast.iter_fields(node)):
        parts = part if isinstance(part, list) else [part]
        for index, each in enumerate(each for each in parts if isinstance(each, ast.AST)):
            inside = (*place_in(node), number, index if isinstance(node, APART) else 0)
            yield () if name == "test" and not isinstance(node, ast.While) else (inside,), each
