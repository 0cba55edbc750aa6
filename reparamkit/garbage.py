"""The garbage collector, while a model is fused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 10
"""How many times as many new objects as usual there may be before the collector looks at them."""


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Collect only what is made inside, and seldom: graphs and forms are many objects that live on for a while, and
    each time there are a quarter more, all of torch would be searched again.
    """
    first, *others = gc.get_threshold()
    # Who keeps his own objects out of all collections would lose that.
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
