"""Whether a model takes inputs of another rank than the example's: one sample without its batch, or several batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr
from io import StringIO

from torch import Tensor, nn

from ..running.caches import Shelves, caches_left
from ..running.state import State
from ..running.trees import map_leaves
from ..running.undone import undone
from ..tracing.fakes import as_fake, failing_quietly, new_mode
from .arguments import Inputs, run

CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda tensor: tensor[0] if tensor.dim() > 1 else tensor,
    lambda tensor: tensor[0] if tensor.dim() else tensor,
    lambda tensor: tensor[None],
)
"""What makes inputs of another rank of the example's. (Numbers per sample, as time steps, may stay a vector.)"""


def takes_other_ranks(model: nn.Module, inputs: Inputs) -> bool:
    """Whether `model` (a private copy) runs on tensors of other ranks, which are fake ones: only sizes are computed."""
    before, shelves = State(model), Shelves(model)
    with ExitStack() as stack:
        # A graph module prints what fails inside it.
        quiet = failing_quietly(), warnings.catch_warnings(action="ignore"), redirect_stderr(StringIO())
        for context in (caches_left(model), undone(model), *quiet):
            stack.enter_context(context)
        try:
            return any(_runs(model, inputs, change) for change in CHANGES)
        finally:
            before.restore()
            shelves.restore()


def _runs(model: nn.Module, inputs: Inputs, change: Callable[[Tensor], Tensor]) -> bool:
    fake, own = as_fake(new_mode()), inputs.copied()

    def changed(leaf: object) -> object:
        return fake(change(leaf)) if isinstance(leaf, Tensor) else leaf

    try:
        run(model, Inputs(*map_leaves(changed, (own.args, dict(own.kwargs)))))
    except Exception:
        return False
    return True
