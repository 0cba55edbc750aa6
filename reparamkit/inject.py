"""``inject_locality``: the training side of Locality Injection, for models that exist already."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .algebra.build import linear
from .algebra.form import Form
from .capture.paths import upwards
from .errors import InvalidInputError
from .inputs import checked_inputs
from .layers.registry import READERS
from .rulebook.injected import COMPUTE, InjectedLinear, check_mergeable
from .sourcecode.methods import read_by_forward

KNOWN = (("ResBlock", "linear_tokens"), ("SpatialGatingUnit", "proj"))
"""Class and attribute of token-mixing layers in timm: ResMLP and the gate of gMLP."""
TRANSPOSING = (
    *("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis"),
    *(Tensor.mT.__get__, Tensor.T.__get__),  # type: ignore[attr-defined]
)
"""Functions by name, and attributes."""
COPIES = ("contiguous", "clone")


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
            that directly reads a transposed tensor. Not needed for timm's ResMLP and gMLP, or with `layers`.
        layers: paths of the layers, or patterns (as in fnmatch): each an nn.Linear from h*w to h*w features.
        grid: (h, w), in the order of the tokens, row by row; default: a square.
        kernels: sizes of the convolutions, odd and distinct.
        init: the scale of each new batch norm.
        compute: "matmul" multiplies by the matrix of the convolution, "conv" convolves: the same values and
            gradients. On a CPU, where a convolution of one channel is slow, "matmul" is several times faster.
        inplace: change `model` itself; its parameters stay the same objects.

    Raises `InvalidInputError`, before anything is changed: no such layers, or they do not fit the grid.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"expected a torch.nn.Module, found {type(model).__name__}")
    kernels = _sequence("kernels", kernels, "distinct odd sizes, such as (1, 3)")
    layers = layers if layers is None or isinstance(layers, str) else _sequence("layers", layers, "paths or patterns")
    _check_options(kernels, init, compute)
    found = dict(_linear_layers(model))
    grids = {name: _grid(name, found[name], grid) for name in _chosen(model, found, example_inputs, layers)}
    for name in grids:
        _check_only_called(model, name)
    changed = model if inplace else copy.deepcopy(model)
    for name, sides in grids.items():
        fc = changed.get_submodule(name)
        assert isinstance(fc, nn.Linear)
        made = InjectedLinear(fc, sides, tuple(kernels), init=init, compute=compute)
        # A layer with two names is one layer.
        for other in [path for path, layer in _linear_layers(changed) if layer is fc]:
            parent, _, attribute = other.rpartition(".")
            changed.get_submodule(parent)._modules[attribute] = made
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


def _check_options(kernels: Sequence[int], init: float, compute: str) -> None:
    if not isinstance(init, (int, float)) or not math.isfinite(init):
        raise InvalidInputError(f"init={init!r}: give a finite number")
    odd = all(isinstance(k, int) and k > 0 and k % 2 for k in kernels)
    if not kernels or not odd or len(set(kernels)) != len(kernels):
        raise InvalidInputError(f"kernels={tuple(kernels)}: give distinct odd sizes, such as (1, 3)")
    if compute not in COMPUTE:
        raise InvalidInputError(f"compute={compute!r}: choose one of {', '.join(COMPUTE)}")


def _chosen(
    model: nn.Module, found: dict[str, nn.Linear], example_inputs: Any, layers: str | Sequence[str] | None
) -> list[str]:
    """One path of each layer to be injected. found: all linear layers by path."""
    if layers is not None:
        return _once_each(found, _named(found, (layers,) if isinstance(layers, str) else layers))
    names = {name for name in found if _is_known(model, name)}
    reading = set() if example_inputs is None else _reading_transposed(model, found, example_inputs)
    names |= {name for name in reading if _is_square(found[name])}
    if not names:
        raise InvalidInputError(_none_found(found, reading, example_inputs is not None))
    return _once_each(found, names)


def _none_found(found: dict[str, nn.Linear], reading: set[str], ran: bool) -> str:
    """What to do where no layer was found. reading: layers that read a transposed tensor. ran: if that is known."""
    if reading:
        first = next(name for name in found if name in reading)
        return f"no linear layer mixes tokens and keeps their number: {_changes(first, found[first])}"
    square = ", ".join(name for name in found if _is_square(found[name])) or "none"
    way = "name them with layers=[...]" if ran else "pass example_inputs, or name them with layers=[...]"
    return f"no token-mixing linear layer was found: {way}; nn.Linear from n to n features: {square}"


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


class _Transposed(TorchFunctionMode):
    """Remembers the tensors that were made by transposing others."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Any] = []

    def __contains__(self, tensor: object) -> bool:
        return any(tensor is each for each in self.made)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **kwargs or {})
        copied = getattr(func, "__name__", "") in COPIES and args[0] in self
        if copied or func in TRANSPOSING or getattr(func, "__name__", "") in TRANSPOSING:
            self.made.append(result)
        return result


def _reading_transposed(model: nn.Module, found: dict[str, nn.Linear], example_inputs: Any) -> set[str]:
    """Layers that read a transposed tensor in a run."""
    reading: set[nn.Module] = set()
    transposed = _Transposed()

    def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs[0] in transposed:
            reading.add(layer)

    handles = [layer.register_forward_pre_hook(look) for layer in found.values()]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), transposed:
            checked_inputs(model.eval(), example_inputs, None)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return {name for name, layer in found.items() if layer in reading}


def _changes(name: str, layer: nn.Linear) -> str:
    """Why a layer can have no convolution beside it."""
    return (
        f"'{name}' is a linear layer from {layer.in_features} to {layer.out_features} features, and what a convolution "
        "makes of a grid, with zero padding, is a grid of the same size: no sum of the two is defined"
    )


def _check_only_called(model: nn.Module, name: str) -> None:
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


def _grid(name: str, layer: nn.Linear, grid: tuple[int, int] | None) -> tuple[int, int]:
    """The grid of one layer. Raises `InvalidInputError` if it has none."""
    tokens = layer.in_features
    if not _is_square(layer):
        raise InvalidInputError(f"{_changes(name, layer)}; leave it out of layers=")
    if grid is None:
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise InvalidInputError(f"'{name}' mixes {tokens} tokens, which are no square: pass grid=(h, w)")
        return side, side
    sides = _sequence("grid", grid, "two sizes, (h, w)")
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InvalidInputError(f"grid={grid!r}: give two sizes, (h, w)")
    if math.prod(sides) != tokens:
        raise InvalidInputError(f"grid={sides} does not have the {tokens} tokens that '{name}' mixes")
    return sides[0], sides[1]
