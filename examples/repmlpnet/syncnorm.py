"""Batch norms that see the batch of all processes, on any device: torch has them for GPUs only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from parallel import processes
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def synchronized(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While the with-block runs, the batch norms among `modules` have the statistics of whole batches.

    Every process has a part of the same size.
    """
    with ExitStack() as undo:
        for norm in modules if processes() > 1 else ():
            if isinstance(norm, _BatchNorm):
                norm.forward = partial(_forward, norm)  # type: ignore[method-assign]
                undo.callback(delattr, norm, "forward")
        yield


class _Sum(torch.autograd.Function):
    """The sum over all processes: each value goes into the losses of all of them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.forward(ctx, gradient)


def _total(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return total


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    """(n, c, ...) -> (n, c, ...), each channel with the mean and variance that it has in all processes."""
    over, channel = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    count = x.numel() // x.shape[1] * processes()
    with torch.autocast(x.device.type, enabled=False):
        mean = _total(x.float().sum(over)) / count
        centred = x.float() - mean.reshape(channel)
        variance = _total(centred.square().sum(over)) / count
        _track(norm, mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + norm.eps).rsqrt() * norm.weight
        return (centred * scale.reshape(channel) + norm.bias.reshape(channel)).to(x.dtype)


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    # Where a pass is computed a second time there is no counter: see recompute.py.
    if norm.num_batches_tracked is not None and norm.momentum is not None:
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)  # type: ignore[union-attr]
        norm.running_var.lerp_(variance, norm.momentum)  # type: ignore[union-attr]
