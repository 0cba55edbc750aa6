"""Code that seeds torch's random numbers: what it does is no tensor, and no node of a graph does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from ..running.patches import noting, patched

SEEDING = {
    torch: ("manual_seed", "seed", "set_rng_state"),
    torch.random: ("manual_seed", "seed", "set_rng_state", "fork_rng"),
    torch.cuda: ("manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state"),
}
"""Functions that change what is drawn next, or what is drawn behind a block, per module of torch."""


def seeds_noted(note: Callable[[str], None]) -> Iterator[AbstractContextManager[None]]:
    """Inside, `note` gets the name of each such function that the user's code calls."""
    yield from (patched(module, dict.fromkeys(names, noting(note))) for module, names in SEEDING.items())
