"""What common layers make of a fake tensor: torch needs a hundred times as long to find that out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from .observers import has_forward_hooks

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)
NORMING = {
    functional.batch_norm: ("training", torch.preserve_format),
    functional.instance_norm: ("use_input_stats", torch.contiguous_format),
}
"""Norms that are functions: the argument by which they use the statistics of the input, and the memory they give."""


def made_by(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Fake tensors as a call of a module gives them; None where that is not known at once, or the call fails."""
    changed = "forward" in vars(module) or has_forward_hooks(module)
    if changed or kwargs or not args or not isinstance(args[0], Tensor):
        return None
    if isinstance(module, RECURRENT) and type(module) in RECURRENT:
        return _recurred(module, args[0], tuple(args[1:]))
    if len(args) != 1:
        return None
    if type(module) in NORMS:
        module._check_input_dim(args[0])  # type: ignore[operator]
        own = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
        return None if module.training or len(own) < 2 else _normed(args[0], own)
    if isinstance(module, (nn.Linear, *CONVS)) and type(module) in (nn.Linear, *CONVS) and _fit(args[0], module):
        return _multiplied(module, args[0]) if isinstance(module, nn.Linear) else _convolved(module, args[0])
    return None


def normed_by(target: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """As `made_by`, of a norm that is called as a function, with fixed statistics.

    Old versions of torch write those of an instance norm again: nothing else that is read tells so.
    """
    norming = next((each for norm, each in NORMING.items() if norm is target), None)
    if norming is None:
        return None
    of_input, memory = norming
    names = ("input", "running_mean", "running_var", "weight", "bias")
    given = {**dict(zip((*names, of_input), args, strict=False)), **kwargs}
    x, mean, var, *affine = map(given.get, names)
    own = [mean, var, *(each for each in affine if each is not None)]
    fixed = given.get(of_input) is False and all(isinstance(each, Tensor) for each in own)
    return _normed(x, own, memory) if fixed and isinstance(x, Tensor) and x.dim() > 1 else None


def _normed(x: Tensor, own: Sequence[Tensor], memory: torch.memory_format = torch.preserve_format) -> Tensor | None:
    """What comes out is like what goes in."""
    fit = all((t.dtype, t.device, len(t)) == (x.dtype, x.device, x.shape[1]) for t in own)
    return torch.empty_like(x, memory_format=memory) if fit else None


def _fit(x: Tensor, layer: nn.Linear | _ConvNd) -> bool:
    """Whether a tensor and the weights it meets are of one kind, with numbers in the order of their dimensions."""
    own = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    plain = all(type(t) is nn.Parameter and (t.dtype, t.device) == (x.dtype, x.device) for t in own)
    ordered = plain and all(t.layout is torch.strided and t.is_contiguous() for t in (x, *own))
    return ordered and own[-1].shape[0] == len(own[0]) and not torch.is_autocast_enabled(x.device.type)


def _recurred(layer: nn.RNNBase, x: Tensor, given: Sequence[Any]) -> tuple[Tensor, Any] | None:
    """All steps, and the last state. (torch finds it out step by step.) given: the first state, if there is one."""
    own = all((t.dtype, t.device) == (x.dtype, x.device) for t in layer.parameters())
    plain = own and not layer.proj_size and not (layer.training and layer.dropout)
    fits = x.dim() == 3 and x.shape[2] == layer.input_size and 0 not in x.shape
    if not plain or not fits or torch.is_autocast_enabled(x.device.type):
        return None
    steps, batch = x.shape[1::-1] if layer.batch_first else x.shape[:2]
    both, size = 1 + layer.bidirectional, layer.hidden_size
    made = x.new_empty((steps, batch, both * size))
    state, cell = (x.new_empty((both * layer.num_layers, batch, size)) for _ in range(2))
    last = (state, cell) if isinstance(layer, nn.LSTM) else state
    if given not in ((), (None,)) and not _alike(given, (last,)):
        return None
    return made.transpose(0, 1) if layer.batch_first else made, last


def _alike(found: Any, wanted: Any) -> bool:
    """Whether tensors, or tuples of them, have the same shapes and are of one kind."""
    if isinstance(found, tuple) and isinstance(wanted, tuple):
        return len(found) == len(wanted) and all(map(_alike, found, wanted))
    if not isinstance(found, Tensor) or not isinstance(wanted, Tensor):
        return found is None and wanted is None
    return (found.shape, found.dtype, found.device) == (wanted.shape, wanted.dtype, wanted.device)


def _multiplied(linear: nn.Linear, x: Tensor) -> Tensor | None:
    rows, columns = linear.weight.shape
    return x.new_empty((*x.shape[:-1], rows)) if x.shape[-1:] == (columns,) else None


def _convolved(conv: _ConvNd, x: Tensor) -> Tensor | None:
    rows, columns, *kernel = conv.weight.shape
    pads = conv.padding if isinstance(conv.padding, tuple) and conv.padding_mode == "zeros" else ()
    known = pads and isinstance(conv.stride, tuple) and isinstance(conv.dilation, tuple)
    if not known or x.dim() != conv.weight.dim() or x.shape[1] != columns * conv.groups:
        return None
    # Where a size is 1 the order of the dimensions may be another all the same.
    if any(suggest_memory_format(t) is not torch.contiguous_format for t in (x, conv.weight)):
        return None
    # One number may stand for all dimensions, in a tuple of its own too.
    if {len(kernel)} != {*map(len, (conv.stride, pads, conv.dilation))}:
        return None
    windows = zip(x.shape[2:], kernel, conv.stride, pads, conv.dilation, strict=True)
    sizes = [(n + 2 * pad - step * (size - 1) - 1) // stride + 1 for n, size, stride, pad, step in windows]
    return x.new_empty((x.shape[0], rows, *sizes)) if min(sizes) > 0 else None
