"""``inject_locality``: the training side of Locality Injection, for models that exist already."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

from torch import nn

from .algebra.build import linear
from .algebra.form import Form
from .capture.paths import upwards
from .copies import owning, sharing_copy
from .engine.held import held_by_objects
from .errors import InvalidInputError
from .inputs import check_unwrapped
from .layers.registry import READERS
from .rulebook.injected import COMPUTE, InjectedLinear, check_mergeable
from .sourcecode.methods import read_by_forward
from .tokens import Seen, Sides, look, stated_grids
from .write.places import Places

KNOWN = (("ResBlock", "linear_tokens"), ("SpatialGatingUnit", "proj"))
"""Class and attribute of token-mixing layers in timm: ResMLP and the gate of gMLP."""
SHOWN = 8
"""Paths in a message; of more, the number."""


def inject_locality(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    layers: str | Sequence[str] | None = None,
    grid: tuple[int, int] | None = None,
    kernels: Sequence[int] = (1, 3),
    init: float = 0.0,
    compute: str = "matmul",
    inplace: bool = False,
) -> nn.Module:
    """The same model with small convolutions beside its token-mixing linear layers, to be trained.

    A linear layer that mixes the h x w tokens of an image does not know which are neighbours. Beside it, each
    kernel size k adds ``BN(conv(x))``: one kernel (k, k) for all channels, zero padded. With ``init=0`` the model
    computes what it did. After training, `fuse` writes the convolutions into the linear layers:
    ``fuse(model.eval(), rules=["locality_injection"])`` has the modules, parameter names and shapes of the
    model before injection (a linear layer without a bias gets one).

    Args:
        model: in any mode. It is left as it is, and shares no memory with the result.
        example_inputs: as for `fuse`, to find the layers by running the model: every nn.Linear from n to n features
            that directly reads a transposed tensor. Not needed for timm's ResMLP and gMLP, or with `layers`; then it
            only shows the grid.
        layers: paths of the layers, or patterns (as in fnmatch): each an nn.Linear from h*w to h*w features.
        grid: (h, w), in the order of the tokens, row by row. By default the two sizes that a view makes one in the run,
            or those that the model states (`grid_size` of timm's patch embedding); else a square.
        kernels: sizes of the convolutions, odd and distinct.
        init: the scale of each new batch norm.
        compute: "matmul" multiplies by the matrix of the convolution, "conv" convolves: the same values and
            gradients. On a CPU, where a convolution of one channel is slow, "matmul" is several times faster.
        inplace: change `model` itself; its parameters stay the same objects.

    Raises `InvalidInputError`, before anything is changed: no such layers, or they do not fit the grid.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"expected a torch.nn.Module, found {type(model).__name__}")
    check_unwrapped(model, "inject into")
    kernels = _sizes("kernels", kernels, "distinct odd sizes, such as (1, 3)")
    sides = None if grid is None else _sizes("grid", grid, "two sizes, (h, w)")
    layers = layers if layers is None or isinstance(layers, str) else _sequence("layers", layers, "paths or patterns")
    _check_options(kernels, init, compute)
    found = dict(_linear_layers(model))
    seen = None if example_inputs is None else look(model, found.values(), example_inputs)
    names = _chosen(model, found, seen, layers)
    known = stated_grids(model) | (frozenset() if seen is None else seen.grids)
    grids = {name: _grid(name, found[name], sides, known) for name in names}
    _check_only_called(model, found, names)
    changed = model if inplace else owning(sharing_copy(model), model)
    places = Places(changed)
    for name, shape in grids.items():
        fc = changed.get_submodule(name)
        assert isinstance(fc, nn.Linear)
        places.put(name, InjectedLinear(fc, shape, kernels, init=init, compute=compute), called=True)
    places.replace_held()
    return changed


@READERS.reader(InjectedLinear)
def read_injected(layer: InjectedLinear, input: Form) -> Form:
    """The linear layer it merges into, by the law `locality_injection`; refuses what its parts do not tell."""
    check_mergeable(layer)
    merged = layer.merged()
    form = linear(input, merged.weight, merged.bias)
    return form.mapped(lambda op: replace(op, via=op.via | {"locality_injection"}))


# --- which layers -------------------------------------------------------------------------------------


def _sequence(option: str, given: Any, words: str) -> tuple[Any, ...]:
    """The values of an option, each of which `_check_options` and `_named` look at."""
    try:
        return tuple(given)
    except TypeError as error:
        raise InvalidInputError(f"{option}={given!r}: give {words}, in a list") from error


def _sizes(option: str, given: Any, words: str) -> tuple[int, ...]:
    """Whole numbers, of numpy or torch as well."""
    values = _sequence(option, given, words)
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError as error:
        raise InvalidInputError(f"{option}={values}: give {words}") from error


def _check_options(kernels: Sequence[int], init: float, compute: str) -> None:
    if not isinstance(init, (int, float)) or not math.isfinite(init):
        raise InvalidInputError(f"init={init!r}: give a finite number")
    odd = all(k > 0 and k % 2 for k in kernels)
    if not kernels or not odd or len(set(kernels)) != len(kernels):
        raise InvalidInputError(f"kernels={tuple(kernels)}: give distinct odd sizes, such as (1, 3)")
    if compute not in COMPUTE:
        raise InvalidInputError(f"compute={compute!r}: choose one of {', '.join(COMPUTE)}")


def _chosen(
    model: nn.Module, found: dict[str, nn.Linear], seen: Seen | None, layers: str | Sequence[str] | None
) -> list[str]:
    """One path of each layer to be injected. found: all linear layers by path. seen: in a run, if there was one."""
    if layers is not None:
        return _once_each(found, _named(found, (layers,) if isinstance(layers, str) else layers))
    names = {name for name in found if _is_known(model, name)}
    reading = set() if seen is None else {name for name, layer in found.items() if layer in seen.reading}
    names |= {name for name in reading if _is_square(found[name])}
    if not names:
        raise InvalidInputError(_none_found(found, reading, seen is not None))
    return _once_each(found, names)


def _none_found(found: dict[str, nn.Linear], reading: set[str], ran: bool) -> str:
    """What to do where no layer was found. reading: layers that read a transposed tensor. ran: if that is known."""
    if reading:
        first = next(name for name in found if name in reading)
        return f"no linear layer mixes tokens and keeps their number: {_changes(first, found[first])}"
    square = _some([name for name in found if _is_square(found[name])])
    if not square:
        return "no token-mixing linear layer was found: the model has no nn.Linear from n to n features to inject into"
    way = "name them with layers=[...]" if ran else "pass example_inputs, or name them with layers=[...]"
    return f"no token-mixing linear layer was found: {way}; nn.Linear from n to n features: {square}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _linear_layers(model: nn.Module) -> Iterable[tuple[str, nn.Linear]]:
    """Paths of the linear layers, but for those that are injected already."""
    modules = list(model.named_modules(remove_duplicate=False))
    inside = tuple(f"{name}." for name, module in modules if isinstance(module, InjectedLinear))
    for name, module in modules:
        if type(module) is nn.Linear and name and not name.startswith(inside or "\0"):
            yield name, module


def _named(found: dict[str, nn.Linear], patterns: Sequence[str]) -> set[str]:
    if not patterns:
        raise InvalidInputError("layers=[] names no layer: leave it out to have the token-mixing layers found")
    names: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidInputError(f"layers={pattern!r}: give the path of a layer, or a pattern, as a string")
        matching = {name for name in found if fnmatch(name, pattern)}
        if not matching:
            raise InvalidInputError(
                f"layers={pattern!r} names no nn.Linear (or an injected one): see model.named_modules() for the paths"
            )
        names |= matching
    return names


def _once_each(found: dict[str, nn.Linear], names: set[str]) -> list[str]:
    """The names in the order of the model, without further names of the same layer."""
    return list({id(found[name]): name for name in reversed(found) if name in names}.values())[::-1]


def _is_square(layer: nn.Linear) -> bool:
    return layer.in_features == layer.out_features


def _is_known(model: nn.Module, name: str) -> bool:
    parent, _, attribute = name.rpartition(".")
    return (type(model.get_submodule(parent)).__name__, attribute) in KNOWN


def _changes(name: str, layer: nn.Linear) -> str:
    """Why a layer can have no convolution beside it."""
    return (
        f"'{name}' is a linear layer from {layer.in_features} to {layer.out_features} features, and what a convolution "
        "makes of a grid, with zero padding, is a grid of the same size: no sum of the two is defined"
    )


def _check_only_called(model: nn.Module, found: dict[str, nn.Linear], names: list[str]) -> None:
    """Raises `InvalidInputError` if code may use a layer by something else than a call of what has its place."""
    held = held_by_objects(model)
    for name in names:
        _check_not_read(model, name)
        if found[name] in held:
            raise InvalidInputError(f"'{name}' cannot be replaced: {held[found[name]]}; leave it out of layers=")


def _check_not_read(model: nn.Module, name: str) -> None:
    """Raises `InvalidInputError` if the forward of a module around the layer reads its weight or bias itself."""
    for outer in ("", *upwards(name.rpartition(".")[0])):
        owner = model.get_submodule(outer)
        path = name.removeprefix(f"{outer}.")
        read = read_by_forward(type(owner)) & {f"{path}.weight", f"{path}.bias"}
        if read:
            raise InvalidInputError(
                f"the forward of {type(owner).__name__} reads '{min(read)}' itself, where the convolutions beside "
                f"'{name}' would be missing; leave it out of layers="
            )


def _grid(name: str, layer: nn.Linear, grid: tuple[int, ...] | None, known: frozenset[Sides]) -> Sides:
    """The grid of one layer. known: grids of the model. Raises `InvalidInputError` if it has none."""
    tokens = layer.in_features
    if not _is_square(layer):
        raise InvalidInputError(f"{_changes(name, layer)}; leave it out of layers=")
    if grid is None:
        return _inferred(name, tokens, sorted(sides for sides in known if math.prod(sides) == tokens))
    if len(grid) != 2 or min(grid) < 1:
        raise InvalidInputError(f"grid={grid}: give two sizes, (h, w)")
    if math.prod(grid) != tokens:
        raise InvalidInputError(f"grid={grid} does not have the {tokens} tokens that '{name}' mixes")
    return grid[0], grid[1]


def _inferred(name: str, tokens: int, known: list[Sides]) -> Sides:
    """The grid of so many tokens: the one that is known, or a square."""
    side = math.isqrt(tokens)
    if len(known) > 1:
        raise InvalidInputError(
            f"'{name}' mixes {tokens} tokens, which are {' or '.join(map(str, known))} in this model: pass grid=(h, w)"
        )
    if not known and side * side != tokens:
        raise InvalidInputError(
            f"'{name}' mixes {tokens} tokens, which are no square: pass grid=(h, w); tokens that are no pixels, "
            "such as one for the class, have no place on a grid"
        )
    return known[0] if known else (side, side)
