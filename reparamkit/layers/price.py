"""What a piece of a network costs, from roles and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..algebra.size import Size


@dataclass(frozen=True)
class Cost:
    """macs: multiply-adds. passes: elements written by element-wise operations. stored: numbers in parameters
    and buffers. launches: operations started. further: what passes do to their elements besides one operation. Free
    sizes count as in the example inputs.
    """

    macs: int = 0
    passes: int = 0
    stored: int = 0
    launches: int = 0
    further: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs,
            self.passes + other.passes,
            self.stored + other.stored,
            self.launches + other.launches,
            self.further + other.further,
        )

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiply-add, one per element of an element-wise pass, two if that scales
        and shifts.
        """
        return 2 * self.macs + self.passes + self.further


def numel(sizes: tuple[Size, ...]) -> int:
    """How many elements a tensor of these sizes has for the example inputs."""
    return math.prod(size.hint for size in sizes)


Objective = Callable[[Cost], float]


def _latency(cost: Cost) -> float:
    return cost.macs + 8 * cost.passes + 20_000 * cost.launches


OBJECTIVES: dict[str, Objective] = {
    "default": lambda cost: _latency(cost) + cost.stored,
    "latency": _latency,
    "flops": lambda cost: cost.flops + cost.launches,
    "params": lambda cost: cost.stored + 1e-3 * cost.launches,
    "launches": lambda cost: cost.launches + 1e-12 * cost.macs,
    "measured": _latency,
}
"""What the chooser minimises; of what is chosen for ``measured`` the device decides."""
