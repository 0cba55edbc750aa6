"""The calls of modules in one real run of a model, with what went in and came out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..errors import InvalidInputError
from ..reasons import Reason
from ..running.changing import Changing
from ..running.undone import undone
from .arguments import Inputs, run

Calls = dict[str, list[tuple[Inputs, Any]]]
"""Per path of a module the inputs and outputs of each of its calls."""


def recorded(
    model: nn.Module, inputs: Inputs, wanted: Mapping[str, nn.Module], changing: Changing, also_inputs: bool = True
) -> Calls:
    """Per path the inputs and outputs of each call in one real run. changing: receives what code changes."""
    calls: dict[nn.Module, list[tuple[Inputs, Any]]] = {module: [] for module in wanted.values()}
    given: list[Inputs] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        given.append(Inputs(args, kwargs).copied() if also_inputs else Inputs())
        changing.look_inside(module)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[module].append((given.pop(), output))

    # The last hooks of a module: forward gets what others made of the inputs, and they may change its output.
    before = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in calls]
    after = [module.register_forward_hook(leave, with_kwargs=True) for module in calls]
    try:
        # What a hook keeps is another tensor in each run: a trace would take it for a constant.
        with undone(model):
            run(model, inputs.copied())
            changing.look_inside(model)
    except Exception as error:
        raise InvalidInputError(
            f"a copy of the model fails on the example inputs ({type(error).__name__}: {error}), as code outside of it"
            " works on the original (a hook?): pass inplace=True"
        ) from error
    finally:
        for handle in (*before, *after):
            handle.remove()
    return {path: calls[module] for path, module in wanted.items()}


def called_once(
    modules: Iterable[str], calls: Calls | None, where: Reason, reasons: dict[str, Reason]
) -> Iterator[tuple[str, Inputs | None]]:
    """The modules that are called once, with their inputs; all of them, if nothing is known of their calls. `reasons`
    receives why the others are left.
    """
    for name in modules:
        found = [] if calls is None else calls[name]
        if calls is None or len(found) == 1:
            yield name, found[0][0] if found else None
        elif found:
            reasons[name] = where.within(f"it is called {len(found)} times ")


def outputs(calls: list[tuple[Inputs, Any]]) -> list[Any]:
    """What came out of some calls."""
    return [output for _, output in calls]


def alike(a: Inputs, b: Inputs) -> bool:
    """Whether two calls differ in tensors only."""
    plain = [tree_flatten((each.args, dict(each.kwargs))) for each in (a, b)]
    (ours, shape), (theirs, other) = plain
    pairs = zip(ours, theirs, strict=False)
    return shape == other and all(
        isinstance(x, Tensor) and isinstance(y, Tensor) if isinstance(x, Tensor) else _equal(x, y) for x, y in pairs
    )


def _equal(x: object, y: object) -> bool:
    return isinstance(x, (bool, int, float, str, type(None))) and type(x) is type(y) and x == y
