"""The smallest window, of a convolution or a transposed one, that holds the taps of a stencil."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..algebra.operator import Link, Role
from ..errors import NotFusable
from ..reasons import Kind

F, S = Role.FREE, Role.STENCIL


@dataclass(frozen=True)
class Window:
    """A convolution window: taps ``dilation * j - padding``, j < k, `padding` on both sides."""

    k: int
    stride: int
    padding: int
    dilation: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Spread:
    """The window of a transposed convolution: tap index t is offset ``padding - dilation * t``."""

    k: int
    stride: int
    padding: int
    extra: int
    dilation: int
    places: tuple[int, ...]


def spread(link: Link | None) -> Spread:
    """The smallest transposed window that holds the taps of a stencil (None: of a free axis)."""
    if link is None or link.role is F:
        return Spread(1, 1, 0, 0, 1, (0,))
    if link.stride > 1:
        raise NotFusable("an upsampling that is sampled again", Kind.SHAPES)
    steps = {b - a for a, b in zip(link.taps, link.taps[1:], strict=False)}
    for dilation in dict.fromkeys((math.gcd(*steps) if steps else 1, 1)):
        for more in range(2 * link.up + 2):
            for above in range(more + 1):
                found = _spread(link, dilation, above, more - above)
                if found is not None:
                    return found
    raise NotFusable("an upsampling that no symmetric padding gives", Kind.BORDER)


def _spread(link: Link, dilation: int, above: int, below: int) -> Spread | None:
    """With `above` and `below` zero taps more."""
    padding = link.taps[-1] + dilation * above
    first = link.taps[0] - dilation * below
    k = (padding - first) // dilation + 1
    extra = link.c + link.up + 2 * padding - dilation * (k - 1)
    if padding < 0 or not 0 <= extra < max(link.up, dilation):
        return None
    return Spread(k, link.up, padding, extra, dilation, tuple((padding - tap) // dilation for tap in link.taps))


def window(link: Link | None) -> Window:
    """The smallest symmetric window that holds the taps of a stencil (None: of a free axis)."""
    if link is None or link.role is F:
        return Window(1, 1, 0, 1, (0,))
    steps = {b - a for a, b in zip(link.taps, link.taps[1:], strict=False)}
    for dilation in (math.gcd(*steps) if steps else 1, 1):
        found = [made for c in _ends(link) if (made := _window(link, c, dilation)) is not None]
        if found:
            return min(found, key=lambda window: window.k)
    raise NotFusable("a window that no symmetric padding gives", Kind.BORDER)


def _ends(link: Link) -> Sequence[int]:
    """The values of c that give the same outputs, its own first; of a size that is known since a later layer insists
    on it only its own, as a method may run this layer without that one.
    """
    reach = None if link.size.known else link.reach
    return [link.c] if reach is None else [link.c, *range(reach - link.stride + 1, reach + 1)]


def _window(link: Link, c: int, dilation: int) -> Window | None:
    first, last = link.taps[0], link.taps[-1]
    low, high = -first, c + last + 1
    # Widen with zero taps: to padding that is not negative, then to the same padding on both sides.
    target = max(low, high, 0)
    if (target - low) % dilation or (target - high) % dilation:
        target = next(
            (t for t in range(target, target + dilation) if not ((t - low) % dilation or (t - high) % dilation)), -1
        )
    if target < 0:
        return None
    first, last = first - (target - low), last + (target - high)
    places = tuple((tap - first) // dilation for tap in link.taps)
    return Window((last - first) // dilation + 1, link.stride, target, dilation, places)


def is_full(link: Link) -> bool:
    """Whether a transposed window that is no larger than the plain one holds the taps."""
    try:
        return spread(link).k <= window(link).k
    except NotFusable:
        return False


def keeps_size(link: Link | None) -> bool:
    """Whether a window is padded as padding="same" does it: by one more at the end, if not by as much."""
    return link is None or link.role is F or (link.shape_preserving and link.taps[0] + link.taps[-1] in (0, 1))


def is_uneven(link: Link | None) -> bool:
    """Whether a window is padded by more at one end than at the other."""
    if link is None or link.role is not S or link.up > 1:
        return False
    low, high = ends_padded(link)
    return low != high


def ends_padded(link: Link) -> tuple[int, int]:
    """By how much a window is padded before and after."""
    return (0, 0) if link.role is F else (-link.taps[0], link.c + link.taps[-1] + 1)


def unpadded(link: Link | None) -> Window:
    """The window without zero taps at its ends."""
    if link is None or link.role is F:
        return window(link)
    steps = {b - a for a, b in itertools.pairwise(link.taps)}
    dilation = math.gcd(*steps) if steps else 1
    places = tuple((tap - link.taps[0]) // dilation for tap in link.taps)
    return Window(places[-1] + 1, link.stride, 0, dilation, places)
