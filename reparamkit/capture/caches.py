"""Caches of functions (functools.lru_cache) that a trace filled: with values that stand for others."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..sourcecode.uses import is_torchs

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


def _caches(model: nn.Module) -> Iterator[functools._lru_cache_wrapper[Any]]:
    """Methods with a cache, and such functions of the files that the methods are in."""
    bases = {base for module in model.modules() for base in type(module).__mro__ if not is_torchs(base)}
    for names in [vars(base) for base in bases] + [vars(sys.modules.get(base.__module__, base)) for base in bases]:
        yield from (value for value in list(names.values()) if isinstance(value, Cached))
