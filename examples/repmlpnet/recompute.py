"""Gradient checkpointing: blocks keep their input only, and compute the rest again when the gradient needs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """While the with-block runs, `blocks` forget what they computed."""
    with ExitStack() as undo:
        for block in blocks:
            twice = partial(_first_and_second, block)
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=twice)  # type: ignore[method-assign]
            undo.callback(delattr, block, "forward")
        yield


def _first_and_second(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The second pass sees the same batch: batch norms must not count it again."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Without a momentum and a counter, the statistics move by 0.
        norm.momentum = norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
