"""Caches: those that a trace filled with values that stand for others, of functions (functools.lru_cache) and
containers; and those that a run filled with what follows from parameters.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, fx, nn

from ..sourcecode.parse import is_torchs
from .state import CONTAINERS, TABLES, refill, same_items
from .trees import leaves, traced
from .undone import undone

Cached = functools._lru_cache_wrapper


@contextmanager
def caches_left(model: nn.Module) -> Iterator[None]:
    """At the end, caches that the code of a model sees, and that got something new, are emptied."""
    before = {id(cached): (cached, cached.cache_info().misses) for cached in _caches(model)}
    try:
        yield
    finally:
        for cached, misses in before.values():
            if cached.cache_info().misses != misses:
                cached.cache_clear()


class Shelves:
    """The containers that have a name in the files and classes of a model, for its code to put something into."""

    def __init__(self, model: nn.Module) -> None:
        found = {id(value): value for name, value in _named(model) if type(value) in CONTAINERS and name[:2] != "__"}
        self._kept = [(each, each.copy()) for each in found.values()]

    def cleared(self) -> set[fx.Node]:
        """The nodes of traced values that were put there; the containers that got some have what they had."""
        nodes: set[fx.Node] = set()
        for container, before in self._kept:
            found = set() if same_items(container, before) else _traced(container)
            if found:
                refill(container, before)
            nodes |= found
        return nodes

    def restore(self) -> None:
        """Let each container have what it had."""
        for container, before in self._kept:
            if not same_items(container, before):
                refill(container, before)


def _traced(container: Any) -> set[fx.Node]:
    entries = [*container.items()] if isinstance(container, dict) else [*container]
    return traced(entries)


def _caches(model: nn.Module) -> Iterator[functools._lru_cache_wrapper[Any]]:
    """Methods with a cache, and such functions of the files that the methods are in."""
    # A static method is in the class as what it is made of. (What stands for a package that is missing can be asked
    # for nothing.)
    functions = (value.__func__ if type(value) in (staticmethod, classmethod) else value for _, value in _named(model))
    yield from (function for function in functions if type(function) is Cached)


def _named(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What the classes of a model have, and the files that they are in."""
    bases = {base for module in model.modules() for base in type(module).__mro__ if not is_torchs(base)}
    files = {base.__module__ for base in bases} & sys.modules.keys()
    for names in [vars(base) for base in bases] + [vars(sys.modules[file]) for file in files]:
        yield from list(names.items())


def tables_of(model: nn.Module) -> list[dict[Any, Any]]:
    """The dictionaries among the attributes of modules that have tensors in them."""
    named = ((name, value) for module in model.modules() for name, value in vars(module).items())
    dicts = {id(value): value for name, value in named if isinstance(value, dict) and name not in TABLES}
    return [each for each in dicts.values() if any(isinstance(leaf, Tensor) for leaf in leaves(list(each.values())))]


def empty_tables(model: nn.Module, run: Callable[[], Any], same: Callable[[Any, Any], bool]) -> None:
    """Empty the dictionaries that a run fills again with what they had: it follows from parameters, and a trace would
    take it for constants. run: of the model, gives its output. same: whether two values are equal.
    """
    tables = tables_of(model)
    with undone(model) if tables else nullcontext():
        again = _filled_again(tables, run, same) if tables else []
    for table in again:
        table.clear()


def _filled_again(
    tables: Sequence[dict[Any, Any]], run: Callable[[], Any], same: Callable[[Any, Any], bool]
) -> list[dict[Any, Any]]:
    """The dictionaries that a run fills with what they have; none if it gives something else without them."""
    before = [table.copy() for table in tables]
    output = run()
    for table in tables:
        table.clear()
    try:
        known = same(run(), output)
    except Exception:
        return []
    pairs = zip(tables, before, strict=True)
    return [table for table, had in pairs if known and table and all(_has(had, *each, same) for each in table.items())]


def _has(table: dict[Any, Any], key: Any, value: Any, same: Callable[[Any, Any], bool]) -> bool:
    return key in table and same(value, table[key])
