"""What a window makes of a bias at the borders of an axis: the first and the last positions differ from the rest.

A bias f along n positions has ``f.low`` numbers at the beginning, ``f.high`` at the end, and one for all between. A
window g reads zeros outside. Its output i reads f at ``s*i + o`` for each tap o, so it is as inside unless

    s*i + first < f.low            the first  ceil((f.low - first) / s)            outputs
    s*i + last >= n - f.high       the last   (s*n_out - n + last + f.high) // s   outputs

``s*n_out - n``, how far the outputs reach beyond the end, is ``c + 1`` for stride 1. For another stride it depends on
the size, and is known where the size is, or where it is known to be a multiple of the stride.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .operator import Link, Role


def windowed(f: Link, g: Link) -> Link | None:
    """The BORDER link of what the window `g` makes of a bias along `f`, which is BORDER or FREE.

    None if that is not a bias of this kind for all sizes.
    """
    beyond, first, last = _beyond(f, g), g.taps[0], g.taps[-1]
    if g.up > 1 or (beyond is None and g.c + last + f.high >= 0):
        return None
    low = max(0, -((first - f.low) // g.stride))
    high = 0 if beyond is None else max(0, (beyond + last + f.high) // g.stride)
    # No output may see both borders.
    least = max(f.low + f.high, (low - 1) * g.stride + last + f.high + 1 if low else 0)
    if high and beyond is not None:
        least = max(least, f.low - first + g.stride * high - beyond)
    if low and high and not f.size.known:
        while g.stride * (low + high - 1) - g.c < least:
            low += 1
    size = g.resized(f.size).size_out
    if f.size.known and (f.size.factor < least or size.factor < low + high):
        return None
    return Link(Role.BORDER, size, low=low, high=high)


def _beyond(f: Link, g: Link) -> int | None:
    """How far the outputs of `g` reach beyond the end; None if that depends on the size."""
    if f.size.known:
        return g.stride * g.resized(f.size).size_out.factor - f.size.factor
    reach = g.resized(f.size).reach
    return None if reach is None else reach + 1


def hits(f: Link, g: Link, made: Link) -> Tensor:
    """Which numbers of the bias each number of the new one sums, per tap: (numbers of f * taps, numbers of made)."""
    found = torch.zeros(f.low + 1 + f.high, len(g.taps), made.leg_size, dtype=torch.float64)
    for number in range(made.leg_size):
        for tap, entry in enumerate(_entries(f, g, made, number)):
            if entry is not None:
                found[entry, tap, number] = 1
    return found.flatten(0, 1)


def _entries(f: Link, g: Link, made: Link, number: int) -> Iterator[int | None]:
    """Per tap the number of f that is read; None for the zeros outside."""
    for tap in g.taps:
        if number < made.low:
            at = g.stride * number + tap
            yield None if at < 0 else min(at, f.low)
        elif number == made.low:
            yield f.low
        else:
            # From the end, which is at 0.
            at = g.stride * (number - made.leg_size) + (_beyond(f, g) or 0) + tap
            yield None if at >= 0 else f.low + max(0, at + f.high + 1)
