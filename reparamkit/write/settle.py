"""The numbers of merged layers, cast once from float64."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, fx, nn

from ..capture.captured import Captured
from ..capture.reach import reached
from ..errors import NotFusable
from ..reasons import Kind
from ..recipes.tape import Tape
from .splice import Written

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Per number of dimensions the order in memory that convolutions of images and volumes may ask for."""


def settle(captured: Captured, written: Written, tape: Tape) -> None:
    """Cast the merged layers once, to the dtype and device of the layers they replace. The tape records the cast.

    Raises `NotFusable` if a number is finite in float64 and not in that dtype, if all of a layer are too small for it,
    or if the dtype is not known.
    """
    tensors = list(_tensors(captured, written.site.members))
    floating = [t for t in tensors if t.is_floating_point()]
    trainable = any(t.requires_grad for t in floating)
    last = {dim for dim, order in CHANNELS_LAST.items() if any(_is_in(order, t) for t in floating if t.dim() == dim)}
    for name, module in written.layers.items():
        like = next(iter(_tensors(captured, [written.anchors[name]])), None)
        like = like if like is not None and like.is_floating_point() else next(iter(floating), None)
        like = _as_precise(like, floating, written.site.value.meta.get("val"))
        if any(True for _ in module.parameters()):
            like = _computed(captured, written) if like is None else like
            written.warnings += _cast(module, like, trainable, last, tape)


def _computed(captured: Captured, written: Written) -> Tensor:
    """A tensor of the dtype and device of what a merge gives that reads no weights."""
    value = written.site.value.meta.get("val")
    found = value if isinstance(value, Tensor) else next(captured.root.parameters(), None)
    if found is None or not found.is_floating_point():
        raise NotFusable(
            "its dtype and device are not known, as the model has no weights: pass example_inputs", Kind.SIZES
        )
    return found


def _as_precise(like: Tensor | None, others: Iterable[Tensor], value: object) -> Tensor | None:
    """A tensor of the dtype that a value has, if this one would round it: a sum with a coarser one is as precise."""
    if like is None or not isinstance(value, Tensor) or not value.is_floating_point():
        return like
    rounds = torch.finfo(like.dtype).eps > torch.finfo(value.dtype).eps
    return next((t for t in others if t.dtype == value.dtype), like) if rounds else like


def _tensors(captured: Captured, nodes: Iterable[fx.Node]) -> Iterable[Tensor]:
    """Parameters and buffers that nodes read, also through parameter arithmetic."""
    starts = sorted(nodes, key=lambda n: n.name)
    for node in reached(starts, lambda n: [m for m in n.all_input_nodes if m in captured.constants]):
        if node.op == "call_module":
            module = captured.module(node)
            yield from module.parameters()
            yield from module.buffers()
        elif node.op == "get_attr" and isinstance(value := captured.attribute(node), Tensor):
            yield value


def _is_in(order: torch.memory_format, tensor: Tensor) -> bool:
    """Whether the numbers of a tensor lie in this order in memory, and not in the plain one."""
    return tensor.is_contiguous(memory_format=order) and not tensor.is_contiguous()


def _cast(module: nn.Module, like: Tensor, requires_grad: bool, last: Collection[int], tape: Tape) -> list[str]:
    """Cast one layer to the dtype and device of a tensor; returns warnings. last: the numbers of dimensions of the
    weights whose channels lie last in memory.
    """
    warnings: list[str] = []
    peaks = {name: _peaks(parameter.data) for name, parameter in module.named_parameters()}
    if 0 < max((float(peak.max()) for peak in peaks.values() if len(peak)), default=0) < _tiny(like.dtype) / 4:
        # All that the layer gives would lose its digits.
        raise NotFusable(f"all numbers of a merged layer are too small for {_short(like.dtype)}", Kind.DTYPE)
    for name, parameter in module.named_parameters():
        data, peak = parameter.data, peaks[name]
        with tape:
            cast = data.to(like.device, like.dtype).contiguous()
        if cast.dim() in last:
            with tape:
                cast = cast.contiguous(memory_format=CHANNELS_LAST[cast.dim()])
        if _is_finite(peak) and not _is_finite(peak.to(cast.dtype)):
            raise NotFusable(f"a merged {name} overflows {_short(cast.dtype)}", Kind.DTYPE)
        if lossy := _lossy(data, peak, cast.dtype):
            shown = ", ".join(map(str, lossy[:4])) + ", ..." * (len(lossy) > 4)
            warnings.append(f"channel {shown} of the {name} is too small for {_short(cast.dtype)} and loses digits")
        owner, _, own_name = name.rpartition(".")
        made = nn.Parameter(cast, requires_grad=requires_grad)
        module.get_submodule(owner).register_parameter(own_name, made)
    return warnings


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tiny(dtype: torch.dtype) -> float:
    """The smallest normal number."""
    return torch.finfo(dtype).tiny


def _peaks(numbers: Tensor) -> Tensor:
    """The largest magnitude in each channel of a weight, or the magnitude of each number of a vector."""
    if numbers.dim() < 2 or not numbers.numel():
        return numbers.abs().flatten()
    rows = numbers.flatten(1)
    return torch.maximum(rows.amax(1), -rows.amin(1))


def _lossy(weight: Tensor, peak: Tensor, dtype: torch.dtype) -> list[int]:
    """The channels of a weight all of whose numbers are below the smallest normal one, where digits get lost."""
    if weight.dim() < 2:
        return []
    found: list[int] = ((peak > 0) & (peak < _tiny(dtype))).nonzero().flatten().tolist()
    return found


def _is_finite(peak: Tensor) -> bool:
    return bool(peak.isfinite().all())
