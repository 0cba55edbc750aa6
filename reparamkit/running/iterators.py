"""Iterators among the attributes of modules: who takes the next of one changes it, and nothing of it shows that."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Rewound:
    """Gives what an iterator gives. How much it has given is an attribute: put back, it gives that again."""

    __slots__ = ("__dict__", "_given", "_rest")
    position: int

    def __init__(self, rest: Iterator[Any]) -> None:
        self._given, self._rest, self.position = list[Any](), rest, 0

    def __iter__(self) -> Rewound:
        return self

    def __next__(self) -> Any:
        if self.position == len(self._given):
            self._given.append(next(self._rest))
        self.position += 1
        return self._given[self.position - 1]

    @property
    def whole(self) -> Iterator[Any]:
        """What gives all that the iterator gave at first."""
        return itertools.chain(self._given, self._rest) if self._given else self._rest


@contextmanager
def iterators_left(model: nn.Module) -> Iterator[None]:
    """Lets the code of a model take from copies of its iterators meanwhile; of a generator, which has none, from it:
    what was taken is put before it.
    """
    found = [
        (vars(module), name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Iterator) and not isinstance(value, Rewound)
    ]
    # What an iterator gives of the model is no copy.
    own = (*model.modules(), *model.parameters(), *model.buffers()) if found else ()
    memo: dict[int, Any] = {id(each): each for each in own}
    copies = {id(value): _copy(value, memo) for _, _, value in found}
    made = {place: Rewound(rest) for place, rest in copies.items()}
    try:
        for attributes, name, value in found:
            attributes[name] = made[id(value)]
        yield
    finally:
        left = {id(value): made[id(value)].whole if copies[id(value)] is value else value for _, _, value in found}
        for attributes, name, value in found:
            if name in attributes:
                attributes[name] = left[id(value)]


def _copy(iterator: Iterator[Any], memo: dict[int, Any]) -> Iterator[Any]:
    try:
        return copy.deepcopy(iterator, memo)
    except TypeError:
        return iterator
