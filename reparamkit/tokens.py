"""What a run of a model shows of its tokens: which tensors were transposed, and what grids sizes were made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .inputs import checked_inputs

Sides = tuple[int, int]
"""(h, w) of a grid."""
TRANSPOSING = (
    *("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis"),
    *(Tensor.mT.__get__, Tensor.T.__get__),  # type: ignore[attr-defined]
)
"""Functions by name, and attributes."""
COPIES = ("contiguous", "clone")
FLATTENING = ("flatten", "reshape", "view")


@dataclass(frozen=True)
class Seen:
    """reading: layers that directly read a transposed tensor. grids: pairs of sizes that a view made one size."""

    reading: frozenset[nn.Module] = frozenset()
    grids: frozenset[Sides] = frozenset()


def look(model: nn.Module, layers: Collection[nn.Module], example_inputs: Any) -> Seen:
    """Run the model, in eval mode. Raises `InvalidInputError` if it does not take the inputs."""
    reading: set[nn.Module] = set()
    views = _Views()

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and inputs[0] in views:
            reading.add(layer)

    with ExitStack() as undo:
        for layer in layers:
            undo.callback(layer.register_forward_pre_hook(note).remove)
        undo.enter_context(_in_eval_mode(model))
        with torch.no_grad(), views:
            checked_inputs(model, example_inputs, None)
    return Seen(frozenset(reading), frozenset(views.grids))


def stated_grids(model: nn.Module) -> frozenset[Sides]:
    """What modules call their grid, as timm's patch embeddings do."""
    found = [getattr(module, "grid_size", None) for module in model.modules()]
    pairs = [each for each in found if isinstance(each, tuple) and len(each) == 2]
    return frozenset((h, w) for h, w in pairs if isinstance(h, int) and isinstance(w, int))


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Views(TorchFunctionMode):
    """Remembers the tensors that were made by transposing others, and the sizes that were made one."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed: list[Any] = []
        self.grids: set[Sides] = set()

    def __contains__(self, tensor: object) -> bool:
        return any(tensor is each for each in self.transposed)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **kwargs or {})
        name = getattr(func, "__name__", "")
        copied = name in COPIES and args[0] in self
        if copied or func in TRANSPOSING or name in TRANSPOSING:
            self.transposed.append(result)
        if name in FLATTENING and args and isinstance(args[0], Tensor):
            self.grids |= set(_made_one(args[0].shape, result.shape))
        return result


def _made_one(before: Sequence[int], after: Sequence[int]) -> Iterator[Sides]:
    """The two sizes that a view made one, if it did only that."""
    for i, (h, w) in enumerate(pairwise(before)):
        if h > 1 and w > 1 and (*before[:i], h * w, *before[i + 2 :]) == tuple(after):
            yield h, w
