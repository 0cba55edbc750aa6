"""Who has a value at a point of the code of a method, and by which modules it goes."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .flow import given_to, is_absent
from .parse import TORCHS, path_of

LISTING = TORCHS - {"training"}
"""What every module has by which code may come to any module inside."""


@dataclass(frozen=True)
class Passing:
    """The modules below one by which a value goes. makers: paths of those that give it. readers: that are called with
    it.
    """

    module: nn.Module
    makers: Set[str]
    readers: Set[str]

    def gives(self, path: str) -> bool:
        """Whether a path is that of a module that gives the value, or of one around it."""
        return _is_around(path, self.makers)

    def reads(self, path: str) -> bool:
        """Whether a path is that of a module that reads the value, or one around it; or of none, so that a call of it
        ends in an error.
        """
        return _is_around(path, self.readers) or is_absent(self.module, path)

    def has(self, path: str) -> bool:
        """Whether at a path there is a module that gives or reads the value, one around it, or something inside of it
        that can be computed with.
        """
        passing = self.makers | self.readers
        inside = self.is_inside(path) and self._computes(path)
        return inside or _is_around(path, passing) or self.lists(path)

    def lists(self, path: str) -> bool:
        """Whether what is at a path tells what modules there are."""
        return path.partition(".")[0] in LISTING

    def is_inside(self, path: str) -> bool:
        """Whether a path leads into one of these modules."""
        return any(path.startswith(f"{each}.") for each in self.makers | self.readers)

    def is_module(self, path: str) -> bool:
        """Whether there is a module at a path."""
        return bool(path) and isinstance(self._at(path), nn.Module)

    def _computes(self, path: str) -> bool:
        found = self._at(path)
        return isinstance(found, Tensor) or callable(found)

    def _at(self, path: str) -> Any:
        start: Any = self.module
        return functools.reduce(lambda found, name: getattr(found, name, None), path.split("."), start)


def _is_around(path: str, inner: Iterable[str]) -> bool:
    return bool(path) and any(f"{each}.".startswith(f"{path}.") for each in inner)


@dataclass(frozen=True)
class Held:
    """At one point of the code. names: what may have the value in it, variables and attributes of the module. chosen:
    what has it on one way by the arguments to this point, and something else on another. left: what had it where the
    arguments may have ended the code.
    """

    names: frozenset[str]
    chosen: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()

    def assign(self, target: ast.expr, value: Set[str], held: bool, chosen: bool) -> Held:
        """Behind a statement that gives variables the value, or something else. value: the names in what they get."""
        new, kept = _bound(target)
        names = self.names | new | kept if held else self.names - new
        left = new | kept if held and value & self.left else frozenset()
        return Held(names, (self.chosen - new) | (new | kept if chosen else frozenset()), (self.left - new) | left)

    def fill(self, name: str) -> Held:
        """Behind a call that puts the value into what a variable has."""
        return Held(self.names | {name}, self.chosen, self.left)

    def forget(self, names: frozenset[str]) -> Held:
        """Behind what takes the value out of what variables have."""
        return Held(self.names - names, self.chosen, self.left)

    def join(self, other: Held, deciding: bool) -> Held:
        """Where two ways meet. deciding: the arguments choose between them."""
        differing = self.names ^ other.names if deciding else frozenset[str]()
        return Held(self.names | other.names, self.chosen | other.chosen | differing, self.left | other.left)

    def leave(self) -> Held:
        """Behind what may have ended the code."""
        return Held(self.names, self.chosen, self.left | self.names)


def _bound(target: ast.expr) -> tuple[frozenset[str], frozenset[str]]:
    """What is something else behind an assignment, and what has something more: a container of which an item is set."""
    if isinstance(target, ast.Name):
        return frozenset({target.id}), frozenset()
    if isinstance(target, (ast.Tuple, ast.List, ast.Starred)):
        inner = [_bound(each) for each in ast.iter_child_nodes(target) if isinstance(each, ast.expr)]
        return frozenset().union(*(new for new, _ in inner)), frozenset().union(*(kept for _, kept in inner))
    path = path_of(target)
    return frozenset(), frozenset({attribute(path)} if path else given_to(target))


def attribute(path: str) -> str:
    """How an attribute is told from a variable."""
    return f"self.{path}"
