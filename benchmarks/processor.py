"""Time that other programs on the machine do not count in."""

from __future__ import annotations

import time
from collections.abc import Callable


def processor_seconds(call: Callable[[], object]) -> float:
    """The processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start
