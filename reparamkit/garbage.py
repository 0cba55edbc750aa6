"""The garbage collector, while a model is fused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

LEAST = 2**26
"""Bytes that are not worth a search of all new objects."""
PATIENCE = 10
"""How many times as many new objects as usual there may be before the collector looks at them."""


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Inside, the collector runs seldom, and looks at new objects only.

    Graphs and forms are many objects that live for a while; each time their number grows by a quarter, a full
    collection would search all objects of torch again.
    """
    first, *others = gc.get_threshold()
    # If the caller has frozen objects already, gc.unfreeze would thaw those as well.
    freezes = not gc.get_freeze_count()
    try:
        gc.set_threshold(first * PATIENCE, *others)
        if freezes:
            gc.freeze()
        yield
    finally:
        if freezes:
            gc.unfreeze()
        gc.set_threshold(first, *others)


@dataclass
class Waiting:
    """The memory of layers that made way for merged ones, and may wait for the collector: modules are parts of cycles.

    limit, size: bytes. Where as much may wait as the limit, the collector runs.
    """

    limit: int
    size: int = 0

    def add(self, layer: nn.Module) -> None:
        """A layer made way for one of this size."""
        self.size += sum(map(_bytes, layer.parameters()))
        if self.size >= self.limit:
            gc.collect()
            self.size = 0

    @classmethod
    def of(cls, model: nn.Module) -> Waiting:
        """As much as the largest tensor of a model may wait, and `LEAST`."""
        return cls(max([LEAST, *map(_bytes, model.parameters())]))


def _bytes(tensor: nn.Parameter) -> int:
    return tensor.numel() * tensor.element_size()
