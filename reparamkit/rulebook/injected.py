"""Locality Injection as it is trained: a token-mixing linear layer with small convolutions beside it.

Ding et al., "RepMLPNet: Hierarchical Vision MLP with Re-parameterized Locality" (CVPR 2022), sections 3.3 and 5.4.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import NotFusable
from ..reasons import Kind
from .pattern import Match

COMPUTE = ("conv", "matmul")
"""Ways to compute the branches; the values and gradients are the same."""


class InjectedLinear(nn.Module):
    """``fc(x) + sum over k of BN_k(conv_k(x))`` along the last axis, which holds the pixels of an h x w grid.

    Each convolution has one kernel (k, k) for all rows of x, with zero padding; each batch norm has one mean and
    one variance, over all rows and pixels. `reparamkit.fuse` puts one nn.Linear in its place.

    fc: a linear layer h*w -> h*w. kernels: their sizes, odd. init: the scales of the batch norms to start from; with
    0 the module computes what `fc` does. compute: "matmul" multiplies by the matrices of the convolutions, "conv"
    convolves.
    """

    def __init__(
        self,
        fc: nn.Linear,
        grid: tuple[int, int],
        kernels: tuple[int, ...] = (1, 3),
        *,
        init: float = 0.0,
        compute: str = "matmul",
    ) -> None:
        super().__init__()
        self.fc, self.grid, self.kernels, self.compute = fc, grid, kernels, compute
        self.in_features, self.out_features = fc.in_features, fc.out_features
        for k in kernels:
            self.add_module(f"repconv{k}", _branch(k, init, fc.weight))
        self.train(fc.training)

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            raise AttributeError(
                f"an injected layer has no {name} of its own: it computes fc and convolutions; reparamkit.fuse makes "
                f"one linear layer of them, and '.fc.{name}' is that without the convolutions"
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        return f"grid={self.grid}, kernels={self.kernels}, compute={self.compute!r}"

    def forward(self, x: Tensor) -> Tensor:
        """(..., h*w) -> (..., h*w)."""
        rows = x.reshape(-1, x.shape[-1])
        local = [self._local(k, rows) for k in self.kernels]
        out: Tensor = reduce(torch.add, local, self.fc(rows))
        return out.reshape(x.shape)

    def _local(self, k: int, rows: Tensor) -> Tensor:
        """One branch on the rows (n, h*w) -> (n, h*w)."""
        branch = self.get_submodule(f"repconv{k}")
        maps = rows.reshape(-1, 1, *self.grid)
        if self.compute == "conv":
            local: Tensor = branch(maps)
        else:
            kernel = branch.get_submodule("conv").weight[0, 0]  # type: ignore[index]
            # A kernel of one number is a product; as a matrix it would be almost all zeros.
            product = maps * kernel if k == 1 else F.linear(rows, toeplitz(kernel, self.grid)).reshape(maps.shape)
            local = branch.get_submodule("bn")(product)
        return local.reshape(rows.shape)

    def parts(self) -> Iterator[tuple[str, type[nn.Module]]]:
        """The path and kind of each layer that computes."""
        yield "fc", nn.Linear
        for k in self.kernels:
            yield from ((f"repconv{k}.conv", nn.Conv2d), (f"repconv{k}.bn", nn.BatchNorm2d))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer (h*w -> h*w, float64) that computes the same in eval mode."""
        # Copies, as parametrized weights are computed from others, in float64 as well.
        exact = {name: copy.deepcopy(part).double() for name, part in self.named_children()}
        fc: Any = exact["fc"]
        weight, shift = fc.weight, torch.zeros((), dtype=torch.float64, device=fc.weight.device)
        for k in self.kernels:
            kernel, bias = _folded(exact[f"repconv{k}"])
            weight, shift = weight + toeplitz(kernel, self.grid), shift + bias
        bias = shift.expand(len(weight)) if fc.bias is None else fc.bias + shift
        # On the meta device no random number is drawn for weights that are replaced.
        made = nn.Linear(self.in_features, self.out_features, device="meta")
        made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias.clone())
        return made


def toeplitz(kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    """The matrix (h*w, h*w) that convolves maps of `grid` (h, w) with `kernel` (k, k) and zero padding k // 2.

    Differentiable: ``sum over i, j of kernel[i, j] S_i (x) S_j``, a Kronecker product of shifts of rows and columns.
    """
    rows, columns = (_shifts(len(kernel), size, kernel) for size in grid)
    return torch.einsum("ij,iac,jbd->abcd", kernel, rows, columns).reshape(math.prod(grid), -1)


def _shifts(k: int, size: int, like: Tensor) -> Tensor:
    """(k, size, size): matrix i moves a vector by i - k // 2 places, with zeros from outside."""
    places = torch.arange(size, device=like.device)
    moves = torch.arange(k, device=like.device) - k // 2
    return (places - places[:, None] == moves[:, None, None]).to(like.dtype)


def _branch(k: int, init: float, like: Tensor) -> nn.Sequential:
    conv = nn.Conv2d(1, 1, k, padding=k // 2, bias=False, device=like.device, dtype=like.dtype)
    bn = nn.BatchNorm2d(1, device=like.device, dtype=like.dtype)
    nn.init.constant_(bn.weight, init)
    return nn.Sequential(OrderedDict(conv=conv, bn=bn))


def _folded(branch: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel (k, k) and bias () of a convolution with the batch norm behind it, all in float64."""
    conv, bn = (branch.get_submodule(name) for name in ("conv", "bn"))
    values = (conv.weight[0, 0], bn.weight[0], bn.bias[0], bn.running_mean[0], bn.running_var[0])  # type: ignore[index]
    kernel, gamma, beta, mean, variance = values
    factor = gamma / (variance + bn.eps).sqrt()  # type: ignore[operator]
    return kernel * factor, beta - mean * factor


def check_mergeable(layer: InjectedLinear) -> None:
    """Raises `NotFusable` if the layer computes something else than `merged` reads from its parts."""
    if any(module.training for module in layer.modules()):
        raise NotFusable("its batch norms are in training mode: call model.eval() first", Kind.TRAINING)
    for path, module in layer.named_modules():
        if path and (module._forward_hooks or module._forward_pre_hooks):
            raise NotFusable(
                f"its '{path}' has hooks, which see or change values inside: remove them first", Kind.HOOKS
            )
    for path, kind in layer.parts():
        # A class of the same forward may have another weight: a parametrization, which is read as it is.
        if type(layer.get_submodule(path)).forward not in (kind.forward, nn.SyncBatchNorm.forward):
            found = type(layer.get_submodule(path)).__name__
            raise NotFusable(
                f"its '{path}' is now of class {found}: merge it, or put back what was there", Kind.REPLACED
            )


def is_mergeable(match: Match) -> None:
    """The guard of the rule `locality_injection`."""
    check_mergeable(_layer(match))


def merge(match: Match) -> nn.Module:
    """The build of the rule `locality_injection`."""
    return _layer(match).merged()


def _layer(match: Match) -> InjectedLinear:
    layer = match.module("layer")
    assert isinstance(layer, InjectedLinear)
    return layer
