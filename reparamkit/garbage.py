"""The garbage collector, while a model is fused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

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
