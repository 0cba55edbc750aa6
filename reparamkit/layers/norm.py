"""Norms with fixed statistics: a scale and a shift per channel.

y = (x - mu) / sqrt(var + eps) * gamma + beta = s x + t,  s = gamma / sqrt(var + eps),  t = beta - mu s.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..algebra.build import scale
from ..algebra.form import Form
from ..algebra.regroup import known_rank
from ..algebra.weight import Vector
from ..errors import NotFusable
from ..reasons import Kind
from .registry import READERS

RANKS: dict[type, tuple[int, ...]] = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
}
ANY = tuple(range(2, 10))


@READERS.reader(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, _BatchNorm)
def read_batch_norm_layer(layer: nn.BatchNorm2d, input: Form) -> Form:
    """A scale and a shift of each channel, along dimension 1; refuses statistics of the batch."""
    if layer.training:
        raise NotFusable(
            "batch norm in training mode uses the statistics of the batch: call model.eval()", Kind.TRAINING
        )
    if layer.running_mean is None or layer.running_var is None:
        raise NotFusable("batch norm without running statistics uses those of the batch", Kind.TRAINING)
    ranks = _accepted(layer)
    # A BatchNorm1d takes (N, C) and (N, C, L): the rank is that of the example, or assumed, and guarded.
    x = known_rank(input, ranks, certain=len(ranks) == 1)
    return _normalized(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)


def _accepted(layer: nn.Module) -> tuple[int, ...]:
    """The ranks that a batch norm takes. One with a check of its own may take any."""
    check = getattr(type(layer), "_check_input_dim", None)
    return next((ranks for cls, ranks in RANKS.items() if check is cls._check_input_dim), ANY)  # type: ignore[attr-defined]


@READERS.reader(F.batch_norm)
def read_batch_norm(
    input: Form,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Form:
    """A scale and a shift along dimension 1; refuses `training`. Each tensor: (channels,)."""
    if training or running_mean is None or running_var is None:
        raise NotFusable("batch norm with training=True uses the statistics of the batch", Kind.TRAINING)
    return _normalized(_batched(input), running_mean, running_var, weight, bias, eps)


@READERS.reader(torch.batch_norm)
def read_torch_batch_norm(
    input: Form,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Form:
    """What `F.batch_norm` itself calls, with its arguments in another order."""
    return read_batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _batched(x: Form) -> Form:
    # The functions normalise dimension 1 of any tensor; of an open rank, a batch of one dimension is assumed.
    return known_rank(x, [len(x.sizes)], certain=False)


def _normalized(
    x: Form, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dim: int = 1
) -> Form:
    @torch.no_grad()
    def s() -> Tensor:
        bare = (var.double() + eps).rsqrt()
        return bare if weight is None else bare * weight.double()

    @torch.no_grad()
    def t() -> Tensor:
        bare = -mean.double() * s()
        return bare if bias is None else bare + bias.double()

    return scale(x, Vector(mean.numel(), s), dim, Vector(mean.numel(), t))


@READERS.reader(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def read_instance_norm_layer(layer: nn.InstanceNorm2d, input: Form) -> Form:
    """A scale and a shift of each channel, with a batch or without; refuses statistics of the input itself."""
    if layer.training or not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        raise NotFusable(
            "InstanceNorm without running statistics uses those of each input, which is not affine", Kind.TRAINING
        )
    axes = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}
    axis = next(n for cls, n in axes.items() if isinstance(layer, cls))
    return _normalized(input, layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps, dim=-1 - axis)


@READERS.reader(F.instance_norm)
def read_instance_norm(
    input: Form,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Form:
    """A scale and a shift along dimension 1; refuses use_input_stats, the default. Each tensor: (channels,)."""
    if use_input_stats or running_mean is None or running_var is None:
        raise NotFusable(
            "instance_norm with use_input_stats=True uses those of each input, which is not affine", Kind.NONLINEAR
        )
    return _normalized(_batched(input), running_mean, running_var, weight, bias, eps)
