"""Random networks, and what is measured of them: outputs, errors, operations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

from .table import Shape

NAMES = {
    "convolution": "conv",
    "addmm": "linear",
    "mm": "linear",
    "native_batch_norm": "norm",
    "_native_batch_norm_legit_no_training": "norm",
    "cudnn_batch_norm": "norm",
    "avg_pool2d": "pool",
    "constant_pad_nd": "pad",
    "addcmul": "scale",
    "add_": "add",
    "relu_": "relu",
}


VIEWS = frozenset(
    [
        "view",
        "_unsafe_view",
        "_reshape_alias",
        "t",
        "permute",
        "transpose",
        "expand",
        "unsqueeze",
        "squeeze",
        "clone",
        "alias",
        "detach",
        "slice",
        "select",
        "as_strided",
        "split",
        "split_with_sizes",
        "lift_fresh",
        "empty",
        "empty_like",
        "copy_",
        "unbind",
    ]
)
"""What is not counted."""
CHECKS = frozenset(["remainder"])
"""Nor this, by which some versions of torch let positions count from the end (take_along_dim)."""


class Operations(TorchDispatchMode):
    """Records the names of the operations that run inside it, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS | CHECKS:
            self.names.append(NAMES.get(name, name))
        return func(*args, **(kwargs or {}))


def operations(model: nn.Module, x: Tensor) -> str:
    """What runs when the model is called, in order, views aside: "conv relu conv"."""
    with torch.no_grad(), Operations() as found:
        model(x.clone())
    return " ".join(found.names)


def sample(shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """A random input; its first element is large, so that what reads a border is seen to."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(dtype)


def run(model: nn.Module, x: Tensor) -> Tensor:
    """The output of a model on a copy of its input."""
    with torch.no_grad():
        return model(x.clone())


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest number of the reference."""
    assert found.shape == wanted.shape
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm random statistics and a random affine part, some scales negative, and every scale of
    a user's layer a random value; set eval mode.

    A fresh batch norm is almost the identity: whoever folds it wrongly gets nearly the right answer.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _NormBase):
            _randomize_norm(module, generator)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)):
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5 * (name == "weight"))
        elif not type(module).__module__.startswith("torch."):
            for parameter in module.parameters(recurse=False):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return model.eval()


def _randomize_norm(norm: _NormBase, generator: torch.Generator) -> None:
    uniform = torch.rand(4, norm.num_features, generator=generator)
    signs = torch.randint(0, 2, (norm.num_features,), generator=generator) * 2 - 1
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.copy_(uniform[0] - 0.5)
        norm.running_var.copy_(uniform[1] + 0.5)
    if norm.affine:
        norm.weight.copy_((uniform[2] + 0.5) * signs)
        norm.bias.copy_(uniform[3] - 0.5)


def build(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A randomised network from a recipe, the same one each time."""
    torch.manual_seed(0)
    return randomize(make()).to(dtype)


def wide(model: nn.Module) -> nn.Module:
    """A copy of the model in float64."""
    return copy.deepcopy(model).double()
