"""How far the outputs of two models are from each other, and what rounding can explain.

Relative error is always ``max|a - b| / max|b|`` per tensor.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .capture.arguments import Inputs, run
from .layers.wide import wide, wide_module
from .running.trees import leaves, map_leaves
from .running.undone import undone

AMPLIFIED = 16
"""How far apart two ways to compute one model may be, in multiples of what one rounding of its weights does."""
ROUNDINGS = 6
"""How many roundings of the weights are tried: with few outputs, one alone may happen to move them hardly at all."""
FAN_IN, DEPTH = 4096, 64
"""Terms of a sum, and layers in a row, for which `tolerance` has room."""


def tolerance(dtype: torch.dtype) -> float:
    """The relative error that rounding alone can explain between two orders of the same arithmetic.

    Rounding errors of a sum grow with the square root of the number of its terms, those of a chain of layers with the
    square root of its depth. For half precision the bound is capped: a larger one would let anything pass.
    """
    return min(4 * torch.finfo(dtype).eps * math.sqrt(FAN_IN * DEPTH), 0.1)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """``max|found - wanted| / max|wanted|``; infinite if exactly one of them is not finite somewhere."""
    if found.shape != wanted.shape:
        return math.inf
    if wanted.numel() == 0:
        return 0.0
    a, b = found.detach().double(), wanted.detach().double()
    difference, scale = float((a - b).abs().max()), float(b.abs().max())
    if math.isfinite(difference) and math.isfinite(scale):
        return difference / scale if scale else (math.inf if difference else 0.0)
    return _error_beside_infinities(a, b)


def _error_beside_infinities(a: Tensor, b: Tensor) -> float:
    """Both must be infinite, or not a number, at the same places; the error is that of the rest."""
    finite = b.isfinite()
    if not torch.equal(a.nan_to_num(0, math.inf, -math.inf)[~finite], b.nan_to_num(0, math.inf, -math.inf)[~finite]):
        return math.inf
    return relative_error(a[finite], b[finite]) if torch.equal(a.isfinite(), finite) else math.inf


# --- whole models -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verification:
    """The comparison of two models on one input.

    Attributes:
        error: largest relative error over the output tensors: largest difference over largest magnitude.
        tolerance: the relative error that rounding can explain, for the dtypes that took part.
        where: if the error is larger, which output tensor differs and where in it; else "".
        first: path of the first module that computes something else from the same inputs, among the paths that both
            models have; None if the outputs agree, or no module stands out.
    """

    error: float
    tolerance: float
    where: str = ""
    first: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the outputs agree up to rounding."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "equal" if self.passed else "NOT equal"
        place = f"; {self.where}" if self.where else ""
        first = "" if self.first is None else f"; the first module that differs is '{self.first}'"
        return f"{verdict}: largest relative error {self.error:.2e}, rounding allows {self.tolerance:.1e}{place}{first}"


def compare(found: Any, wanted: Any, through: Iterable[Tensor] = ()) -> Verification:
    """Compare two outputs, tensor by tensor.

    through: tensors that take part in the computation, whose dtypes round as well.
    """
    found, wanted = tensors(found), tensors(wanted)
    if len(found) != len(wanted):
        return Verification(math.inf, 0.0, f"{len(found)} output tensors, not {len(wanted)}")
    floating = {t.dtype for t in (*wanted, *through) if t.is_floating_point()}
    allowed = max((tolerance(d) for d in floating), default=0.0)
    errors = [relative_error(a, b) for a, b in zip(found, wanted, strict=True)]
    if not errors or max(errors) <= allowed:
        return Verification(max(errors, default=0.0), allowed)
    worst = errors.index(max(errors))
    which = f"output {worst}: " if len(errors) > 1 else ""
    return Verification(errors[worst], allowed, which + place_of_error(found[worst], wanted[worst], allowed))


def place_of_error(found: Tensor, wanted: Tensor, allowed: float) -> str:
    """Where two tensors differ by more than `allowed`, relative to the largest number: dimension 1 is of channels,
    those behind it of pixels.
    """
    if found.shape != wanted.shape:
        return f"its shape is {tuple(found.shape)}, not {tuple(wanted.shape)}"
    a, b = found.detach().double(), wanted.detach().double()
    finite = b[b.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    wrong = ~((a - b).abs() <= allowed * scale) & ~((a == b) | (a.isnan() & b.isnan()))
    said = [f"{int(wrong.sum())} of {wrong.numel()} numbers differ"]
    for dim, size in enumerate(wrong.shape):
        places = wrong.movedim(dim, 0).reshape(size, -1).any(1).nonzero().flatten().tolist()
        if size > 1 and len(places) == 1:
            said.append(f"only in channel {places[0]}" if dim == 1 else f"only at {places[0]} of dimension {dim}")
    inner = wrong
    for dim in range(2, wrong.dim()):
        inner = inner.narrow(dim, 1, max(0, wrong.shape[dim] - 2)) if wrong.shape[dim] > 1 else inner
    if inner.numel() and not inner.any():
        said.append("only at the border")
    return ", ".join(said)


def tensors(output: Any) -> list[Tensor]:
    """All tensors in a nested structure, and numbers as tensors."""
    if hasattr(type(output), "to_tuple"):
        output = output.to_tuple()
    found = [leaf if isinstance(leaf, Tensor) else _of_number(leaf) for leaf in leaves(output)]
    return [_plain(tensor) for tensor in found if tensor is not None]


def _of_number(leaf: Any) -> Tensor | None:
    return torch.tensor(float(leaf), dtype=torch.float64) if isinstance(leaf, (bool, int, float)) else None


def _plain(tensor: Tensor) -> Tensor:
    """The numbers of a nested, quantised, sparse or complex tensor as a dense real one."""
    if tensor.is_nested:
        tensor = tensor.to_padded_tensor(0.0)
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def undisturbed(model: nn.Module, inputs: Inputs, runs: int = 1) -> list[Tensor]:
    """The output tensors of runs one after the other on copies of the inputs; the model is left as it is."""
    with undone(model):
        return [tensor for _ in range(runs) for tensor in outputs(model, inputs)]


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The output tensors of a run on copies of the inputs, in memory of their own."""
    return [tensor.clone() for tensor in tensors(run(model, inputs.copied()))]


def sensitivity(model: nn.Module, inputs: Inputs) -> float:
    """How far one rounding of its own weights moves the output of a model, as a relative error; the most of several.

    Some models amplify rounding so much that no two ways to compute them agree.
    """
    generator = torch.Generator().manual_seed(0)
    # Of copies: a copy may compute something else than the model, which is no matter of rounding.
    wanted = undisturbed(copy.deepcopy(model), inputs)
    twins = (_rounded_anew(model, generator) for _ in range(ROUNDINGS))
    return max(compare(undisturbed(twin, inputs), wanted).error for twin in twins)


def _rounded_anew(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy of the model whose numbers differ from its own by one rounding."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator).to(tensor)
                tensor.mul_(1 + torch.finfo(tensor.dtype).eps * noise)
    return twin


def compare_wide(found: nn.Module, wanted: nn.Module, inputs: Inputs, runs: int) -> Verification | None:
    """Compare two models in so many runs as if they were of float64, where nothing is left of rounding but that of
    their weights; None if they do not run so. (A choice by rank, as of the best boxes, is a matter of rounding among
    equals.)
    """
    twins = [wide_module(model) for model in (found, wanted)]
    given = map_leaves(
        lambda leaf: wide(leaf) if isinstance(leaf, Tensor) else leaf, (inputs.args, dict(inputs.kwargs))
    )
    try:
        a, b = (undisturbed(twin, Inputs(*given), runs) for twin in twins)
    except Exception:
        return None
    return compare(a, b, wanted.parameters())
