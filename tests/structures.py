"""The model zoo of the tests: small networks, the sizes they take, and what should be left of them."""

from __future__ import annotations

import copy
import importlib.util
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Structure:
    """A network that merges, and what is left of it.

    shapes: inputs to try; the first serves as example input. left: the operations that run afterwards, in order,
    views aside. needs_inputs: whether it can only be merged with example inputs. objective: of `fuse`. equation,
    source: what the merge is, and the paper that has it. near: the name of a near miss, which looks alike and must
    be left.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    left: str
    needs_inputs: bool = False
    objective: str = "default"
    equation: str = ""
    source: str = ""
    near: str = ""


@dataclass(frozen=True)
class Family:
    """Structures that are one kind of merge. title, text: the heading and the introduction of its page."""

    title: str
    text: str
    structures: tuple[Structure, ...]


@dataclass(frozen=True)
class NearMiss:
    """A network that looks mergeable and is not.

    left: the operations that run afterwards. reason: a pattern that some refusal of the report matches.
    needs_inputs: whether without example inputs other sizes are assumed (and guarded). objective: of `fuse`.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    left: str
    reason: str
    needs_inputs: bool = False
    objective: str = "default"


# --- running ----------------------------------------------------------------------------------------

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


class Operations(TorchDispatchMode):
    """Records the names of the operations that run inside it, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
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


# --- random networks --------------------------------------------------------------------------------


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


# --- parts ------------------------------------------------------------------------------------------


class Model(nn.Module):
    """Layers by name, and a forward given as a function of the model and its input."""

    def __init__(self, body: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


class Sum(nn.ModuleList):
    """Branches side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return reduce(operator.add, [branch(x) for branch in self])


class Scalar(nn.Module):
    """A learned factor: one number, or one per channel with `shape`."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def seq(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def conv(
    c_in: int, c_out: int, k: Any = 3, *, s: Any = 1, p: Any = None, d: int = 1, g: int = 1, bias: bool = True
) -> nn.Conv2d:
    """A convolution; by default padded to keep the size."""
    padding = d * (k // 2) if p is None else p
    return nn.Conv2d(c_in, c_out, k, s, padding, d, g, bias=bias)


def depthwise(c: int, k: Any = 3, **options: Any) -> nn.Conv2d:
    return conv(c, c, k, g=c, **options)


def conv_norm(c_in: int, c_out: int, k: Any = 3, **options: Any) -> nn.Sequential:
    return seq(conv(c_in, c_out, k, bias=False, **options), norm(c_out))


def norm(c: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(c)


def repvgg(c: int, *, out: int | None = None, s: int = 1, g: int = 1, identity: bool = True) -> nn.Module:
    """3x3, 1x1 and identity, each with its batch norm."""
    branches = [conv_norm(c, out or c, 3, s=s, g=g), conv_norm(c, out or c, 1, s=s, g=g)]
    return Sum([*branches, norm(c)] if identity else branches)


def mobileone(c: int, n: int, *, g: int = 1, k: int = 3) -> nn.Module:
    """n convolutions of one size, a 1x1 and an identity, each with its batch norm."""
    return Sum([*(conv_norm(c, c, k, g=g) for _ in range(n)), conv_norm(c, c, 1, g=g), norm(c)])


class QARepVGG(nn.Module):
    """3x3 with batch norm, 1x1 with a factor and no norm, identity without norm, one norm after the sum."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.dense, self.point, self.norm = conv_norm(c, c, 3), conv(c, c, 1), norm(c)
        self.alpha = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.dense(x) + self.alpha * self.point(x) + x)


class RepMixer(nn.Module):
    """x + gamma (mixer(x) - norm(x)) of FastViT."""

    def __init__(self, c: int, k: int = 3) -> None:
        super().__init__()
        self.norm, self.mixer = Sum([norm(c)]), mobileone(c, 1, g=c, k=k)
        self.gamma = nn.Parameter(torch.ones(c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * (self.mixer(x) - self.norm(x))


class DBB(nn.Module):
    """The diverse branch block: 3x3; 1x1; 1x1 then 3x3; 1x1 then average."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.origin, self.point = conv_norm(c, c, 3), conv_norm(c, c, 1)
        self.squeeze = seq(conv(c, c, 1, bias=False), conv(c, c, 3, bias=False), norm(c))
        self.average = seq(conv(c, c, 1, bias=False), nn.AvgPool2d(3, 1, 1), norm(c))

    def forward(self, x: Tensor) -> Tensor:
        return self.origin(x) + self.point(x) + self.squeeze(x) + self.average(x)


class OwnNorm(nn.BatchNorm2d):
    """A user's batch norm: its own forward, written with the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class FrozenNorm(nn.Module):
    """Batch norm as arithmetic on buffers, as in detectors."""

    def __init__(self, c: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.5), ("bias", 0.3), ("running_mean", 0.2), ("running_var", 1.3)):
            self.register_buffer(name, torch.linspace(value - 0.2, value + 0.2, c))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


class StdConv(nn.Conv2d):
    """A convolution with weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SummedWeights(nn.Module):
    """weight = w1 + alpha w2."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.w1, self.w2 = (nn.Parameter(torch.randn(c, c, 3, 3)) for _ in range(2))
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w1 + self.alpha * self.w2, padding=1)


class Functional(nn.Module):
    """Convolution, batch norm and linear layer as functions of parameters."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight, self.gamma, self.beta = (
            nn.Parameter(torch.randn(c, c, 3, 3)),
            nn.Parameter(torch.ones(c)),
            nn.Parameter(torch.zeros(c)),
        )
        self.head = nn.Parameter(torch.randn(2 * c, c))
        self.register_buffer("mean", torch.linspace(-0.5, 0.5, c))
        self.register_buffer("var", torch.linspace(0.5, 1.5, c))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=1)
        x = F.relu(F.batch_norm(x, self.mean, self.var, self.gamma, self.beta, eps=1e-3))
        x = F.batch_norm(x.mean((2, 3)), self.mean, self.var)
        return F.linear(x, self.head)


class RepDepthwise(nn.Module):
    """Depthwise 3x3 with norm, 1x1 without, identity; one norm after the sum (RepViT)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.conv1, self.bn = conv_norm(c, c, g=c), conv(c, c, 1, g=c), norm(c)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn((self.conv(x) + self.conv1(x)) + x)


class Residual(nn.Module):
    """x + m(x)."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)


def mlp(c: int) -> nn.Module:
    """Depthwise convolution with norm, then two 1x1 with an activation between them."""
    return seq(conv_norm(c, c, 7, g=c), conv(c, 2 * c, 1), nn.GELU(), conv(2 * c, c, 1))


class Gate(nn.Module):
    """Squeeze and excite: one factor per channel, computed from the mean of the map."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.reduce, self.expand = conv(c, 2, 1), conv(2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project, each with its batch norm; then add."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.expand, self.mix, self.project = (
            conv_norm(c, 2 * c, 1),
            conv_norm(2 * c, 2 * c, g=2 * c),
            conv_norm(2 * c, c, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(torch.relu(self.mix(torch.relu(self.expand(x)))))


class DenseLayer(nn.Module):
    """Reads the sum of all earlier maps, which it is given as a list."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = conv_norm(c, c)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.relu(self.conv(reduce(operator.add, maps)) + maps[0])


class DenseBlock(nn.Module):
    """Layers that share one list, which grows after each of them."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(c) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        maps = [torch.relu(x)]
        for layer in self.layers:
            maps.append(layer(maps))
        return torch.cat(maps, 1)


class TokenMixer(nn.Module):
    """The token-mixing linear layer of ResMLP beside a convolution that all channels share."""

    def __init__(self, h: int, w: int) -> None:
        super().__init__()
        self.h, self.w, self.tokens = h, w, nn.Linear(h * w, h * w)
        self.local = conv_norm(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        across = x.transpose(1, 2)
        maps = self.local(across.reshape(n * c, 1, self.h, self.w)).reshape(n, c, t)
        return (self.tokens(across) + maps).transpose(1, 2)


class Affine(nn.Module):
    """alpha x + beta over channels, the norm of ResMLP."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(1, 1, c)), nn.Parameter(torch.zeros(1, 1, c))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


class PartitionMixer(nn.Module):
    """RepMLP: a map in partitions, plus what a perceptron makes of their averages; then a grouped fully connected layer
    beside convolutions, each with its norm. The partitions are reshaped to (-1, numbers).
    """

    def __init__(self, c: int, h: int, w: int) -> None:
        super().__init__()
        self.c, self.h, self.w, inner = c, h, w, 4 * c
        self.average = nn.AvgPool2d((h, w))
        self.perceptron = seq(nn.BatchNorm1d(inner), nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, inner))
        self.fc = nn.Conv2d(c * h * w, c * h * w, 1, groups=4, bias=False)
        self.fc_norm, self.local = nn.BatchNorm1d(c * h * w), Sum(conv_norm(c, c, k, g=4) for k in (1, 3))

    def forward(self, x: Tensor) -> Tensor:
        c, h, w = self.c, self.h, self.w
        context = self.perceptron(self.average(x).reshape(x.size(0), -1)).view(-1, c, 2, 1, 2, 1)
        parts = (x.view(-1, c, 2, h, 2, w) + context).permute(0, 2, 4, 1, 3, 5)
        out = self.fc_norm(self.fc(parts.reshape(-1, c * h * w, 1, 1)).view(-1, c * h * w)).view(-1, 2, 2, c, h, w)
        out += self.local(parts.reshape(-1, c, h, w)).view(-1, 2, 2, c, h, w)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(-1, c, 2 * h, 2 * w)


class FlatMap(nn.Module):
    """A fully connected layer over a flattened map beside a convolution: the plainest locality injection."""

    def __init__(self, c: int, h: int, w: int) -> None:
        super().__init__()
        self.fc, self.local = nn.Linear(c * h * w, c * h * w), conv_norm(c, c, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)).reshape(x.shape) + self.local(x)


def repmlp_block(h: int, w: int, kernels: tuple[int, ...] = (1, 3)) -> nn.Module:
    """The block of the RepMLPNet example: a grouped fully connected layer over partitions beside convolutions."""
    name = "repmlpnet_model"
    if name not in sys.modules:
        path = Path(__file__).resolve().parents[1] / "examples" / "repmlpnet" / "model.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name].RepMLPBlock(8, h, w, share_sets=2, kernels=kernels)


class Net(nn.Module):
    """A small network as a user writes it: blocks, methods, arguments with defaults."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.classes = classes
        self.stem = seq(conv_norm(3, 8, s=2), nn.ReLU())
        self.blocks = nn.ModuleList([repvgg(8), repvgg(8, g=4)])
        self.act = nn.ReLU()
        self.head = seq(nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, classes))

    def features(self, x: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, 8, H / 2, W / 2)."""
        x = self.stem(x)
        for block in self.blocks:
            x = self.act(block(x))
        return x

    def forward(self, x: Tensor, scale: float = 1.0, *, normalize: bool = False) -> Tensor:
        x = self.head(self.features(x).mean((2, 3))) * scale
        return x.softmax(-1) if normalize else x


# --- structures that merge --------------------------------------------------------------------------

MAPS_1D: tuple[Shape, ...] = ((2, 4, 9), (1, 4, 16), (3, 4, 7))
MAPS: tuple[Shape, ...] = ((2, 4, 8, 10), (1, 4, 9, 7), (3, 4, 12, 12))
MAPS_3D: tuple[Shape, ...] = ((2, 4, 5, 6, 7), (1, 4, 6, 5, 8))
ROWS: tuple[Shape, ...] = ((4, 6), (1, 6), (7, 6))
TOKENS: tuple[Shape, ...] = ((2, 12, 5), (1, 12, 5), (3, 12, 7))
TOKENS_8: tuple[Shape, ...] = ((2, 5, 8), (1, 7, 8), (3, 4, 8))
FIXED: tuple[Shape, ...] = ((2, 4, 4, 6), (1, 4, 4, 6), (5, 4, 4, 6))

CHAINS = (
    Structure("conv1d-bn", lambda: seq(nn.Conv1d(4, 5, 3, padding=1), nn.BatchNorm1d(5)), MAPS_1D, "conv"),
    Structure(
        "conv2d-bn",
        lambda: conv_norm(4, 5),
        MAPS,
        "conv",
        equation="K' = s K, b' = s (b - mu) + beta, s = gamma / sqrt(var + eps)",
        source="Ioffe and Szegedy 2015",
        near="relu between",
    ),
    Structure("conv3d-bn", lambda: seq(nn.Conv3d(4, 5, 3, padding=1), nn.BatchNorm3d(5)), MAPS_3D, "conv"),
    Structure("grouped conv-bn", lambda: conv_norm(4, 6, g=2), MAPS, "conv"),
    Structure("depthwise conv-bn", lambda: seq(depthwise(4), norm(4)), MAPS, "conv"),
    Structure("depth multiplier conv-bn", lambda: conv_norm(4, 8, g=4), MAPS, "conv"),
    Structure("strided dilated conv-bn", lambda: conv_norm(4, 5, s=2, d=2), MAPS, "conv"),
    Structure("conv 'same'-bn", lambda: seq(nn.Conv2d(4, 5, 3, padding="same"), norm(5)), MAPS, "conv"),
    Structure("conv-bn-relu-conv-bn", lambda: seq(conv_norm(4, 8), nn.ReLU(), conv_norm(8, 5)), MAPS, "conv relu conv"),
    Structure(
        "bn-conv unpadded",
        lambda: seq(norm(4), conv(4, 5, 3, p=0)),
        MAPS,
        "conv",
        equation="K' = K s, b' = b + sum K t",
        near="norm before padding",
    ),
    Structure(
        "bn-linear",
        lambda: seq(nn.BatchNorm1d(6), nn.Linear(6, 3)),
        ROWS,
        "linear",
        equation="W' = W diag(s), b' = b + W t",
        source="LeViT, Graham et al. 2021",
        near="norm over channels, mix of tokens",
    ),
    Structure(
        "linear-bn",
        lambda: seq(nn.Linear(6, 3), nn.BatchNorm1d(3)),
        ROWS,
        "linear",
        equation="W' = diag(s) W",
        source="LeViT, Graham et al. 2021",
        near="norm over tokens, as many as channels",
    ),
    Structure(
        "linear-linear",
        lambda: seq(nn.Linear(6, 20), nn.Linear(20, 3)),
        ROWS,
        "linear",
        equation="W' = W2 W1, b' = W2 b1 + b2",
        source="ExpandNets, Guo et al. 2020",
        near="expand then project",
    ),
    Structure(
        "linear-bn-dropout-linear",
        lambda: seq(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.Linear(20, 3)),
        ROWS,
        "linear",
    ),
    Structure(
        "1x1 then 3x3 unpadded",
        lambda: seq(conv(4, 8, 1), conv(8, 4, 3, p=0), norm(4)),
        MAPS,
        "conv",
        equation="K'[o,i] = sum_m K2[o,m] K1[m,i]",
        near="bias before padding",
    ),
    Structure(
        "bias-free 1x1 then 3x3",
        lambda: seq(conv(4, 8, 1, bias=False), conv(8, 4, 3)),
        MAPS,
        "conv",
        equation="K'[o,i] = sum_m K2[o,m] K1[m,i]",
        source="DBB, Ding et al. 2021",
        near="bias before padding",
    ),
    Structure(
        "3x3 then 1x1",
        lambda: seq(conv_norm(4, 8), conv_norm(8, 4, 1)),
        MAPS,
        "conv",
        equation="K'[o,i] = sum_m K2[o,m] K1[m,i]",
        source="SESR, Bhardwaj et al. 2022",
        near="padded 3x3, padded 3x3",
    ),
    Structure(
        "3x3 stride 2 then 1x1",
        lambda: seq(conv(4, 8, s=2), conv(8, 4, 1)),
        MAPS,
        "conv",
        equation="K' = K2 K1, stride 2",
        near="depthwise then pointwise",
    ),
    Structure(
        "bias-free 1x7 then 7x1",
        lambda: seq(conv(4, 16, (1, 7), p=(0, 3), bias=False), conv(16, 2, (7, 1), p=(3, 0))),
        MAPS,
        "conv",
        equation="K'[h,w] = K2[h] K1[w]",
        source="RepNeXt, Zhao et al. 2024",
    ),
    Structure(
        "F.pad then conv",
        lambda: Model(lambda m, x: m.norm(m.conv(F.pad(x, (1, 1, 1, 1)))), conv=conv(4, 5, p=0), norm=norm(5)),
        MAPS,
        "conv",
        equation="the padding moves into the layer",
        near="F.pad with a value",
    ),
    Structure("zero pad layer then conv", lambda: seq(nn.ZeroPad2d(1), conv_norm(4, 5, p=0)), MAPS, "conv"),
    Structure(
        "asymmetric pad, then conv-bn",
        lambda: seq(nn.ZeroPad2d((0, 1, 0, 1)), conv_norm(4, 5, p=0, s=2)),
        MAPS,
        "pad conv",
    ),
    Structure(
        "bn-gap-linear",
        lambda: seq(norm(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        MAPS,
        "mean linear",
        equation="W mean(s x + t) + b = W s mean(x) + (W t + b)",
        source="RepMLPNet, Ding et al. 2022",
        near="norm before a padded average",
    ),
    Structure(
        "bn-mean-linear",
        lambda: Model(lambda m, x: m.fc(m.norm(x).mean((2, 3))), norm=norm(4), fc=nn.Linear(4, 3)),
        MAPS,
        "mean linear",
        equation="W mean(s x + t) + b = W s mean(x) + (W t + b)",
        near="norm before a padded average",
    ),
    Structure(
        "distilled heads",
        lambda: Model(
            lambda m, x: (m.a(x) + m.b(x)) / 2,
            a=seq(nn.BatchNorm1d(6), nn.Linear(6, 3)),
            b=seq(nn.BatchNorm1d(6), nn.Linear(6, 3)),
        ),
        ROWS,
        "linear",
        equation="W' = (W1 + W2) / 2",
        source="LeViT, Graham et al. 2021",
    ),
    Structure(
        "conv then layer scale",
        lambda: seq(conv(4, 5), Scalar(5, 1, 1)),
        MAPS,
        "conv",
        equation="K' = gamma K, b' = gamma b",
        source="CaiT, Touvron et al. 2021",
    ),
    Structure(
        "linear then layer scale",
        lambda: seq(nn.Linear(5, 3), Scalar(3)),
        TOKENS[:2],
        "linear",
        equation="W' = diag(gamma) W",
        source="CaiT, Touvron et al. 2021",
    ),
    Structure("conv-bn, an outer bn", lambda: seq(conv_norm(4, 5), norm(5)), MAPS, "conv"),
    Structure(
        "linear on tokens, bn on flattened tokens",
        lambda: Model(
            lambda m, x: m.norm(m.fc(x).flatten(0, 1)).reshape(x.shape[0], -1, 3),
            fc=nn.Linear(5, 3),
            norm=nn.BatchNorm1d(3),
        ),
        ((2, 12, 5), (1, 7, 5)),
        "linear",
        needs_inputs=True,
    ),
)

BRANCHES = (
    Structure(
        "repvgg",
        lambda: seq(repvgg(4), nn.ReLU()),
        MAPS,
        "conv relu",
        equation="K' = s3 K3 + pad(s1 K1) + s0 delta, b' = t3 + t1 + t0",
        source="RepVGG, Ding et al. 2021",
        near="a sum that broadcasts channels",
    ),
    Structure(
        "repvgg grouped",
        lambda: repvgg(4, g=2),
        MAPS,
        "conv",
        equation="delta[i, i mod (C / g)] = 1",
        source="RepVGG, Ding et al. 2021",
    ),
    Structure("repvgg stride 2", lambda: repvgg(4, out=8, s=2, identity=False), MAPS, "conv"),
    Structure("repvgg without identity", lambda: repvgg(4, identity=False), MAPS, "conv"),
    Structure(
        "mobileone depthwise",
        lambda: mobileone(4, 4, g=4),
        MAPS,
        "conv",
        equation="K' = sum_n s_n K_n + pad(s1 K1) + s0 delta",
        source="MobileOne, Vasu et al. 2023",
    ),
    Structure("mobileone pointwise", lambda: mobileone(4, 3, k=1), MAPS, "conv"),
    Structure("mobileone 5x5", lambda: mobileone(4, 2, g=4, k=5), MAPS, "conv"),
    Structure(
        "qarepvgg",
        lambda: seq(QARepVGG(4), nn.ReLU()),
        MAPS,
        "conv relu",
        equation="K' = s (s3 K3 + alpha pad(K1) + delta)",
        source="QARepVGG, Chu et al. 2022",
        near="an output used elsewhere",
    ),
    Structure(
        "acnet",
        lambda: Sum([conv_norm(4, 5), conv_norm(4, 5, (3, 1), p=(1, 0)), conv_norm(4, 5, (1, 3), p=(0, 1))]),
        MAPS,
        "conv",
        equation="K' = K_square + embed(K_column) + embed(K_row)",
        source="ACNet, Ding et al. 2019",
        near="strips of a large cross",
    ),
    Structure(
        "3x3 + average pool",
        lambda: Sum([conv_norm(4, 4), seq(nn.AvgPool2d(3, 1, 1), norm(4))]),
        MAPS,
        "conv",
        equation="avg_k = 1 / k^2 on the diagonal",
        source="DBB, Ding et al. 2021",
        near="averages that do not count padding",
    ),
    Structure(
        "dbb",
        lambda: DBB(4),
        MAPS,
        "conv",
        equation="K' = K + pad(K1) + K2 K1 + (1 / k^2) K1",
        source="DBB, Ding et al. 2021",
        near="norm before padding",
    ),
    Structure(
        "dense and dilated",
        lambda: Sum([seq(depthwise(4, 7), norm(4)), *(seq(depthwise(4, 3, d=d), norm(4)) for d in (1, 2, 3))]),
        MAPS,
        "conv",
        equation="taps of a dilated kernel are d apart",
        source="UniRepLKNet, Ding et al. 2024",
        near="strips of a large cross",
    ),
    Structure(
        "3x3 + 2x2 dilated",
        lambda: Sum([depthwise(4), depthwise(4, 2, d=2, p=1)]),
        MAPS,
        "conv",
        equation="offsets {d j - p}: the corners of the 3x3",
        source="RepNeXt, Zhao et al. 2024",
    ),
    Structure(
        "4x4 + 2x2, stride 2",
        lambda: Sum([conv(4, 4, 4, s=2, p=1), conv(4, 4, 2, s=2, p=0)]),
        MAPS,
        "conv",
        equation="the union of the offsets, at one stride",
        near="strides that differ",
    ),
    Structure(
        "3x3 + 1x1, unpadded by crop",
        lambda: Model(
            lambda m, x: m.dense(x) + m.point(F.pad(x, (-1, -1, -1, -1))), dense=conv(4, 4, p=0), point=conv(4, 4, 1)
        ),
        MAPS,
        "conv",
        equation="a crop is a negative padding",
        source="ACNet, Ding et al. 2019",
    ),
    Structure(
        "repnext",
        lambda: Sum(
            [
                depthwise(4, 7),
                depthwise(4, (5, 3), p=(2, 1)),
                seq(depthwise(4, (1, 7), p=(0, 3), bias=False), depthwise(4, (7, 1), p=(3, 0))),
            ]
        ),
        MAPS,
        "conv",
        equation="K' = K7 + embed(K5x3) + K7x1 K1x7",
        source="RepNeXt, Zhao et al. 2024",
    ),
    Structure(
        "repmixer",
        lambda: RepMixer(4),
        MAPS,
        "conv",
        equation="K' = delta + gamma (K_mixer - K_norm)",
        source="FastViT, Vasu et al. 2023",
    ),
    Structure(
        "repmixer on a row",
        lambda: Model(lambda m, x: x + m.mix(x), mix=nn.Conv1d(4, 4, 5, padding=2, groups=4)),
        MAPS_1D,
        "conv",
    ),
    Structure(
        "x + depthwise(x)",
        lambda: Model(lambda m, x: x + m.conv(x), conv=depthwise(4)),
        MAPS,
        "conv",
        equation="K' = K + delta",
        source="CPVT, Chu et al. 2021",
        near="a sum that broadcasts channels",
    ),
    Structure("x + conv-bn(x)", lambda: Model(lambda m, x: x + m.conv(x), conv=conv_norm(4, 4)), MAPS, "conv"),
    Structure("x - conv(x)", lambda: Model(lambda m, x: x - m.conv(x), conv=conv(4, 4)), MAPS, "conv"),
    Structure(
        "scalar alpha",
        lambda: Sum([seq(conv_norm(4, 4), Scalar()), seq(conv_norm(4, 4, 1), Scalar(1))]),
        MAPS,
        "conv",
        equation="K' = alpha K3 + beta pad(K1)",
        source="PP-YOLOE, Xu et al. 2022",
    ),
    Structure(
        "gated residual",
        lambda: Model(
            lambda m, x: torch.sigmoid(m.gate) * x + (1 - torch.sigmoid(m.gate)) * m.conv(x),
            conv=depthwise(4),
            gate=nn.Parameter(torch.tensor(0.3)),
        ),
        MAPS,
        "conv",
        equation="K' = (1 - a) K + a delta, a = sigmoid(gate)",
        source="EfficientViM, Lee et al. 2024",
    ),
    Structure(
        "linear + linear",
        lambda: Sum([nn.Linear(5, 3), nn.Linear(5, 3)]),
        TOKENS[:2],
        "linear",
        equation="W' = W1 + W2",
    ),
    Structure("x + linear(x)", lambda: Model(lambda m, x: x + m.fc(x), fc=nn.Linear(5, 5)), TOKENS[:2], "linear"),
    Structure(
        "a 3-d cross",
        lambda: Sum(nn.Conv3d(4, 4, k, padding=k // 2, groups=4) for k in (3, 1)),
        MAPS_3D,
        "conv",
    ),
)

FUNCTIONS = (
    Structure("functional conv, bn, linear", lambda: Functional(4), MAPS, "conv relu mean linear", needs_inputs=True),
    Structure(
        "functional norm after a layer",
        lambda: seq(conv(4, 5), OwnNorm(5)),
        MAPS,
        "conv",
        equation="F.batch_norm with training=False",
        near="functional norm in training mode",
    ),
    Structure(
        "frozen batch norm",
        lambda: seq(conv(4, 5), FrozenNorm(5)),
        MAPS,
        "conv",
        equation="arithmetic on buffers is a scale and a shift",
        source="torchvision, DETR",
        near="norm in training mode",
    ),
    Structure(
        "weight standardisation",
        lambda: seq(StdConv(4, 5, 3, padding=1), norm(5)),
        MAPS,
        "conv",
        equation="W = (V - mean(V)) / std(V), computed once",
        source="Qiao et al. 2019",
        near="a class with its own forward",
    ),
    Structure(
        "weight = w1 + alpha w2",
        lambda: seq(SummedWeights(4), norm(4)),
        MAPS,
        "conv",
        equation="the kernel is a sum of parameters",
        source="OREPA, Hu et al. 2022",
    ),
    Structure(
        "weight norm",
        lambda: seq(nn.utils.parametrizations.weight_norm(conv(4, 5)), norm(5)),
        MAPS,
        "conv",
        equation="W = g V / |V|, computed once",
        source="Salimans and Kingma 2016",
        near="tied weights",
    ),
    Structure(
        "spectral norm",
        lambda: seq(nn.utils.parametrizations.spectral_norm(conv(4, 5)), norm(5)),
        MAPS,
        "conv",
        equation="W = V / sigma(V), computed once",
        source="Miyato et al. 2018",
    ),
    Structure(
        "product with a constant matrix",
        lambda: Model(
            lambda m, x: (x @ m.a) @ m.b, a=nn.Parameter(torch.randn(6, 9)), b=nn.Parameter(torch.randn(9, 2))
        ),
        ROWS,
        "linear",
    ),
)

GATE = "mean conv relu conv sigmoid mul"
GATED = f"conv {GATE}"
DENSE = (
    Structure(
        "repmlp 1, 3",
        lambda: repmlp_block(4, 4),
        ((2, 8, 8, 8), (1, 8, 4, 12)),
        GATED,
        needs_inputs=True,
        equation="F' = s F + T(sum_k s_k K_k), T(K): the matrix of a convolution",
        source="RepMLPNet, Ding et al. 2022",
        near="reflected padding",
    ),
    Structure(
        "repmlp 1, 3, 5, 7",
        lambda: repmlp_block(5, 4, (1, 3, 5, 7)),
        ((2, 8, 5, 8), (1, 8, 10, 4)),
        GATED,
        needs_inputs=True,
    ),
    Structure(
        "repmlp, one partition", lambda: repmlp_block(3, 7), ((2, 8, 3, 7), (1, 8, 3, 7)), GATED, needs_inputs=True
    ),
    Structure(
        "repmlp, as first published",
        lambda: PartitionMixer(8, 4, 4),
        ((2, 8, 8, 8), (3, 8, 8, 8)),
        "pool linear relu linear add conv",
        needs_inputs=True,
        equation="F' = s F + T(sum_k s_k K_k)",
        source="RepMLP, Ding et al. 2021",
        near="reflected padding",
    ),
    Structure(
        "resmlp, behind an affine layer",
        lambda: seq(Affine(5), TokenMixer(3, 4)),
        ((2, 12, 5), (3, 12, 5)),
        "scale linear add",
        needs_inputs=True,
        equation="A' = A + T(k), over alpha x + beta",
        source="ResMLP, Touvron et al. 2021",
    ),
    Structure(
        "resmlp token linear + shared conv",
        lambda: TokenMixer(3, 4),
        TOKENS,
        "linear add",
        needs_inputs=True,
        equation="A' = A + T(k)",
        source="ResMLP with locality injection, Ding et al. 2022",
    ),
    Structure(
        "linear over a map + conv",
        lambda: FlatMap(4, 4, 6),
        FIXED,
        "linear",
        needs_inputs=True,
        equation="W' = W + T(K)",
        source="RepMLP, Ding et al. 2021",
    ),
)


def _flattened(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x).reshape(x.shape[0], -1)


def _spelled(body: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """3x3, 1x1 and identity branches, added up as `body` says."""
    return lambda: Model(body, a=conv_norm(4, 4), b=conv_norm(4, 4, 1), c=norm(4))


def _in_place(m: Any, x: Tensor) -> Tensor:
    out = m.a(x)
    out += m.b(x)
    out += m.c(x)
    return out


def _in_place_method(m: Any, x: Tensor) -> Tensor:
    return m.a(x).add_(m.b(x)).add_(m.c(x))


def _accumulated(m: Any, x: Tensor) -> Tensor:
    out: Any = 0
    for branch in (m.a, m.b, m.c):
        out += branch(x)
    return out


def _maybe(m: Any, x: Tensor) -> Tensor:
    identity = 0 if m.c is None else m.c(x)
    return m.a(x) + m.b(x) + identity


BODIES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a + b + c": lambda m, x: m.a(x) + m.b(x) + m.c(x),
    "a + (b + c)": lambda m, x: m.a(x) + (m.b(x) + m.c(x)),
    "+=": _in_place,
    "add_": _in_place_method,
    "0, then +=": _accumulated,
    "a branch that may be missing": _maybe,
    "torch.add": lambda m, x: torch.add(torch.add(m.a(x), m.b(x)), other=m.c(x)),
    "alpha": lambda m, x: torch.add(m.a(x).add(m.b(x), alpha=0.5), m.c(x), alpha=-2),
    "sum of a list": lambda m, x: sum([m.a(x), m.b(x), m.c(x)]),
    "sum of a generator": lambda m, x: sum(branch(x) for branch in m.children()),
    "reduce": lambda m, x: reduce(operator.add, (branch(x) for branch in m.children())),
    "layers called one by one": lambda m, x: m.a[1](m.a[0](x)) + m.b[1](m.b[0](x)) + m.c(x),
    "keyword": lambda m, x: m.a(input=x) + m.b(input=x) + m.c(input=x),
    "numbers": lambda m, x: 1 * m.a(x) + m.b(x) / 1 + 0 - (-m.c(x)),
}
SPELLINGS = (
    *(Structure(name, _spelled(body), MAPS, "conv") for name, body in BODIES.items()),
    Structure("nested", lambda: seq(seq(seq(conv(4, 5)), seq(nn.Identity(), seq(norm(5))))), MAPS, "conv"),
    Structure(
        "a list of blocks",
        lambda: Model(
            lambda m, x: reduce(lambda y, block: F.relu(block(y)), m.blocks, x),
            blocks=nn.ModuleList(repvgg(4) for _ in range(3)),
        ),
        MAPS,
        "conv relu conv relu conv relu",
    ),
    Structure(
        "a dict of branches",
        lambda: Model(
            lambda m, x: sum(m.branches[k](x) for k in ("three", "one")),
            branches=nn.ModuleDict({"one": conv_norm(4, 4, 1), "three": conv_norm(4, 4)}),
        ),
        MAPS,
        "conv",
    ),
)

NETS = (
    Structure("depthwise-bn, depthwise-bn", lambda: seq(conv_norm(4, 4, g=4), conv_norm(4, 4, g=4)), MAPS, "conv conv"),
    Structure(
        "inverted residuals",
        lambda: seq(conv_norm(4, 4, 1), InvertedResidual(4), InvertedResidual(4)),
        MAPS,
        "conv conv relu conv relu conv add conv relu conv relu conv add",
    ),
    Structure("squeeze and excite", lambda: seq(conv_norm(4, 4), nn.ReLU(), Gate(4)), MAPS, f"conv relu {GATE}"),
    Structure(
        "own norm, squeeze and excite",
        lambda: seq(conv(4, 4), OwnNorm(4), nn.ReLU(), Gate(4), conv_norm(4, 4, 1)),
        MAPS,
        f"conv relu {GATE} conv",
    ),
    Structure(
        "repvit",
        lambda: seq(nn.GELU(), RepDepthwise(4), Residual(seq(conv_norm(4, 8, 1), nn.GELU(), conv_norm(8, 4, 1)))),
        MAPS,
        "gelu conv conv gelu conv add",
    ),
    Structure(
        "fastvit",
        lambda: seq(nn.GELU(), RepMixer(4), Residual(mlp(4)), RepMixer(4), Residual(mlp(4))),
        MAPS,
        "gelu conv conv conv gelu conv add conv conv conv gelu conv add",
    ),
    Structure("a list that grows", lambda: DenseBlock(4), MAPS, "relu conv relu add conv add relu cat"),
    Structure(
        "linear, norm of flattened tokens, reshape_as",
        lambda: Model(
            lambda m, x: (lambda y: m.norm(y.flatten(0, 1)).reshape_as(y))(m.fc(x)),
            fc=nn.Linear(5, 6, bias=False),
            norm=nn.BatchNorm1d(6),
        ),
        TOKENS[:2],
        "linear",
        needs_inputs=True,
    ),
    Structure(
        "a size read between conv and norm",
        lambda: Model(lambda m, x: _flattened(m.conv(x), m.norm), conv=conv(4, 4), norm=norm(4)),
        MAPS,
        "conv",
        needs_inputs=True,
    ),
    Structure(
        "scales that are views",
        lambda: Model(
            lambda m, x: torch.relu(x) * m.a.view(1, -1, 1, 1) * m.b.view(1, -1, 1, 1),
            a=nn.Parameter(torch.rand(4)),
            b=nn.Parameter(torch.rand(4)),
        ),
        MAPS,
        "relu mul",
    ),
)
"""Pieces of real networks in which several merges meet."""


class BorderNorm(nn.Module):
    """A batch norm, then padding by what it makes of zero: the way DBB keeps 1x1 - 3x3 rows exact."""

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.norm, self.pad = norm(channels), pad

    def forward(self, x: Tensor) -> Tensor:
        n, p = self.norm, self.pad
        assert n.running_mean is not None
        assert n.running_var is not None
        border = (n.bias - n.running_mean * n.weight / torch.sqrt(n.running_var + n.eps)).view(1, -1, 1, 1)
        return with_border(n(x), border, p)


def with_border(x: Tensor, value: Tensor, p: int) -> Tensor:
    """Zero padding whose border is overwritten, side by side."""
    y = F.pad(x, [p] * 4)
    y[:, :, 0:p, :], y[:, :, -p:, :] = value, value
    y[:, :, :, 0:p], y[:, :, :, -p:] = value, value
    return y


class Upsampling(nn.Module):
    """Two transposed convolutions side by side, as in a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.a = seq(nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2, bias=False), norm(6))
        self.b = seq(nn.ConvTranspose2d(4, 6, 2, 2, groups=2), norm(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


def nearest(factor: Any, mode: str = "nearest") -> nn.Upsample:
    return nn.Upsample(scale_factor=factor, mode=mode)


def _upsampled_branches(m: Any, x: Tensor) -> Tensor:
    y = F.interpolate(x, size=(2 * x.shape[2], 2 * x.shape[3]))
    return m.a(y) + m.b(y) + y


def _slopes(*values: float) -> nn.PReLU:
    layer = nn.PReLU(len(values))
    layer.weight.data = torch.tensor(values)
    return layer


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(shape) + 0.5)


RESAMPLING = (
    Structure(
        "transposed conv-bn",
        lambda: seq(nn.ConvTranspose2d(4, 6, 4, 2, 1), norm(6)),
        MAPS,
        "conv",
        equation="the scale is on axis 1 of the weight",
        source="DCGAN, Radford et al. 2015",
        near="norm before a transposed conv",
    ),
    Structure(
        "grouped transposed conv-bn",
        lambda: seq(nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), norm(6)),
        MAPS,
        "conv",
    ),
    Structure(
        "transposed conv1d-bn",
        lambda: seq(nn.ConvTranspose1d(4, 6, 5, 3, dilation=2), nn.BatchNorm1d(6)),
        MAPS_1D,
        "conv",
    ),
    Structure("transposed branches", Upsampling, MAPS, "conv"),
    Structure(
        "1x1, transposed, 1x1",
        lambda: seq(bias_free(4, 4), nn.ConvTranspose2d(4, 4, 2, 2), conv(4, 4, 1)),
        MAPS,
        "conv",
    ),
    Structure(
        "conv, pixel shuffle, bn",
        lambda: seq(conv(4, 16), nn.PixelShuffle(2), norm(4)),
        MAPS,
        "conv pixel_shuffle",
        equation="a permutation of channels and pixels",
        source="ESPCN, Shi et al. 2016",
    ),
    Structure(
        "conv-bn, channel shuffle, 1x1",
        lambda: seq(conv_norm(4, 4), nn.ChannelShuffle(2), conv(4, 4, 1)),
        MAPS,
        "conv",
        equation="a permutation of channels",
        source="ShuffleNet, Zhang et al. 2018",
    ),
)
UPSAMPLED = (
    Structure(
        "nearest, padded conv, norm",
        lambda: seq(nearest(2), conv_norm(4, 5)),
        MAPS,
        "conv",
        needs_inputs=True,
        objective="flops",
        equation="K'[2 h + a] = sum of the taps that read pixel h: k + 1 taps, stride 2",
        source="FPN, Lin et al. 2017",
    ),
    Structure(
        "nearest x3, grouped conv",
        lambda: seq(nearest(3), conv(4, 6, 5, g=2)),
        MAPS,
        "conv",
        needs_inputs=True,
        objective="flops",
    ),
    Structure(
        "nearest-exact x7, depthwise conv",
        lambda: seq(nearest(7, "nearest-exact"), depthwise(4)),
        MAPS,
        "conv",
        needs_inputs=True,
        objective="flops",
    ),
    Structure(
        "nearest, conv1d",
        lambda: seq(nearest(2), nn.Conv1d(4, 5, 3, padding=1)),
        MAPS_1D,
        "conv",
        needs_inputs=True,
        objective="flops",
    ),
    Structure(
        "nearest, conv3d",
        lambda: seq(nearest((1, 2, 2)), nn.Conv3d(4, 5, 3, padding=1)),
        MAPS_3D,
        "conv",
        needs_inputs=True,
        objective="flops",
    ),
    Structure(
        "nearest to twice the size, branches, skip",
        lambda: Model(lambda m, x: _upsampled_branches(m, x), a=conv_norm(4, 4), b=conv(4, 4, 1)),
        MAPS,
        "conv",
        needs_inputs=True,
        objective="flops",
    ),
    Structure(
        "nearest, branches",
        lambda: seq(nn.UpsamplingNearest2d(scale_factor=2), repvgg(4)),
        MAPS,
        "upsample_nearest2d conv",
    ),
    Structure("nearest, strided conv", lambda: seq(nearest(2), conv(4, 5, s=2)), MAPS, "conv", needs_inputs=True),
)
"""A transposed convolution has fewer FLOPs than up-sampling and a convolution, but more numbers."""
BORDERS = (
    Structure(
        "1x1, norm, padded 3x3",
        lambda: seq(conv(4, 64, 1), norm(64), conv(64, 4)),
        MAPS,
        "conv cat cat add",
        equation="K' = K2 K1; the bias is sum K2 b1 inside, and less where the window reads padding",
        source="ECBSR, Zhang et al. 2021",
        near="norm before padding",
    ),
    Structure(
        "biased 1x7 then 7x1",
        lambda: seq(conv(4, 64, (1, 7), p=(0, 3)), conv(64, 4, (7, 1), p=(3, 0))),
        MAPS,
        "conv cat add",
    ),
    Structure(
        "biased rows through zero padding, side by side",
        lambda: Sum([conv(4, 4), seq(conv(4, 32, 1), conv(32, 4)), seq(conv(4, 4, 1), depthwise(4, 5)), norm(4)]),
        MAPS,
        "conv cat cat add",
    ),
    Structure(
        "1x1, norm, padded 3x3 in one dimension",
        lambda: seq(nn.Conv1d(4, 256, 1), nn.BatchNorm1d(256), nn.Conv1d(256, 4, 3, padding=1)),
        MAPS_1D,
        "conv cat add",
    ),
    Structure(
        "mean and deviation before padding",
        lambda: Model(
            lambda m, x: m.c((x - m.mean) / m.std),
            c=conv(4, 4),
            mean=_parameter(1, 4, 1, 1),
            std=_parameter(1, 4, 1, 1),
        ),
        MAPS,
        "sub conv",
    ),
)
"""What zero padding makes of a shift before it is added behind the merged layer."""
SPELLED = (
    Structure(
        "synchronised norm, no momentum",
        lambda: seq(conv(4, 4), nn.SyncBatchNorm(4), nn.BatchNorm2d(4, momentum=None)),
        MAPS,
        "conv",
    ),
    Structure(
        "instance norm with statistics",
        lambda: seq(conv(4, 4), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
        MAPS,
        "conv",
    ),
    Structure(
        "instance norm as a function",
        lambda: Model(
            lambda m, x: F.instance_norm(m.a(x), m.n.running_mean, m.n.running_var, m.n.weight, use_input_stats=False),
            a=conv(4, 4),
            n=norm(4),
        ),
        MAPS,
        "conv",
    ),
    Structure(
        "torch.batch_norm",
        lambda: Model(
            lambda m, x: torch.batch_norm(
                m.a(x), m.n.weight, m.n.bias, m.n.running_mean, m.n.running_var, False, 0.1, 1e-3, False
            ),
            a=conv(4, 4),
            n=norm(4),
        ),
        MAPS,
        "conv",
    ),
    Structure(
        "batch norm by keywords",
        lambda: Model(
            lambda m, x: F.batch_norm(
                running_var=m.n.running_var, running_mean=m.n.running_mean, bias=m.n.bias, input=m.a(x), eps=0.1
            ),
            a=conv(4, 4),
            n=norm(4),
        ),
        MAPS,
        "conv",
    ),
    Structure(
        "slopes of 1",
        lambda: seq(conv(4, 4), _slopes(1.0, 1.0, 1.0, 1.0), norm(4)),
        MAPS,
        "conv",
    ),
    Structure(
        "true_divide and negative",
        lambda: Model(lambda m, x: torch.true_divide(torch.negative(m.a(x)), m.w), a=conv(4, 4), w=_parameter(4, 1, 1)),
        MAPS,
        "conv",
    ),
    Structure(
        "averages with a divisor of their own",
        lambda: Sum([conv(4, 4), nn.AvgPool2d(3, 1, 1, count_include_pad=False, divisor_override=5)]),
        MAPS,
        "conv",
    ),
    Structure(
        "averages with ceil_mode that cuts nothing",
        lambda: Sum([conv(4, 4), nn.AvgPool2d(3, 1, 1, ceil_mode=True)]),
        MAPS,
        "conv",
    ),
    Structure(
        "an adaptive average of equal windows",
        lambda: Model(
            lambda m, x: (lambda y: m.b(y) + F.adaptive_avg_pool2d(y, (2, None)))(x.reshape(-1, 4, 4, 6)),
            b=conv(4, 4, (2, 1), s=(2, 1), p=0),
        ),
        FIXED,
        "conv",
        needs_inputs=True,
    ),
)
"""Readers of rarer spellings."""
PARAMETERS = (
    Structure(
        "a border that is the norm of zero",
        lambda: seq(bias_free(4, 4), BorderNorm(4, 1), nn.Conv2d(4, 6, 3, bias=False), norm(6)),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="pad(s x + t) with t = s pad(x) + t",
        source="DBB, Ding et al. 2021",
        near="a border that is no bias",
    ),
    Structure(
        "a border that is the bias",
        lambda: Model(
            lambda m, x: m.b(with_border(m.a(x), m.a.bias.view(1, -1, 1, 1), 1)), a=conv(4, 4, 1), b=nn.Conv2d(4, 6, 3)
        ),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="pad(K x + b) with b = K pad(x) + b",
        source="ECBSR, Zhang et al. 2021",
        near="a border that is no bias",
    ),
    Structure(
        "weight standardisation alone",
        lambda: Model(
            lambda m, x: F.conv2d(x, m.w - m.w.mean((1, 2, 3), keepdim=True), m.b),
            w=_parameter(6, 4, 3, 3),
            b=_parameter(6),
        ),
        MAPS,
        "conv",
    ),
    Structure(
        "weight norm alone", lambda: seq(torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3))), MAPS, "conv"
    ),
    Structure(
        "lora",
        lambda: LowRank(8, 2),
        TOKENS_8,
        "linear",
        equation="W' = W + scale B A",
        source="LoRA, Hu et al. 2021",
        near="expand then project",
    ),
    Structure(
        "implicit add and multiply",
        lambda: Model(
            lambda m, x: m.c(x + m.a) * m.b, c=conv(4, 6, 1), a=_parameter(1, 4, 1, 1), b=_parameter(1, 6, 1, 1)
        ),
        MAPS,
        "conv",
        equation="K' = m K, b' = m (b + K a)",
        source="YOLOR, Wang et al. 2021",
    ),
    Structure("gated by lerp", lambda: Model(lambda m, x: torch.lerp(x, m.c(x), 0.3), c=conv_norm(4, 4)), MAPS, "conv"),
    Structure(
        "a kernel that is written in place",
        lambda: seq(Edges(4), nn.PReLU()),
        MAPS,
        "conv _prelu_kernel",
        needs_inputs=True,
        equation="K' = K3 + (a M) K1, M a Sobel mask",
        source="ECBSR, Zhang et al. 2021",
    ),
    Structure(
        "both statistics of a weight",
        lambda: seq(Standardised(4, 5, 3, padding=1), norm(5)),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="W = (V - mean(V)) / std(V), computed once",
        source="BiT, Kolesnikov et al. 2020",
    ),
    Structure(
        "a rotation by blocks",
        lambda: Rotated(8, 2),
        TOKENS_8,
        "linear",
        needs_inputs=True,
        equation="W' = W R, R = (I - S) inverse(I + S)",
        source="OFT, Qiu et al. 2023",
    ),
    Structure(
        "a spectrum",
        lambda: Spectrum(8),
        TOKENS_8,
        "linear",
        needs_inputs=True,
        equation="W' = W + real(ifft(E)), E sparse",
        source="FourierFT, Gao et al. 2024",
    ),
    Structure(
        "factors that are integers",
        lambda: Model(
            lambda m, x: m.c(x) * (m.a // 2).view(-1, 1, 1) * m.b, c=conv(4, 4), a=torch.arange(4), b=torch.tensor(True)
        ),
        MAPS,
        "conv",
    ),
    Structure(
        "a number decides",
        lambda: Model(
            lambda m, x: m.a(x) + m.b(x) * m.s if m.s else m.a(x), a=conv(4, 4), b=conv(4, 4, 1), s=_parameter(1)
        ),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="`if self.alpha:` is decided by the parameter",
        source="PP-YOLOE, Xu et al. 2022",
    ),
    Structure(
        "a constant matrix on the left",
        lambda: Model(lambda m, x: m.b @ (m.a @ x) + x, a=_parameter(9, 5), b=_parameter(5, 9)),
        ((2, 5, 8), (1, 5, 7)),
        "conv",
    ),
    Structure(
        "einsum after linear",
        lambda: Model(lambda m, x: torch.einsum("bnc,dc->bnd", m.a(x), m.w), a=nn.Linear(8, 8), w=_parameter(6, 8)),
        TOKENS_8,
        "linear",
        needs_inputs=True,
    ),
)


def _in_parts(sizes: list[int], *layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Channels split into parts, a layer on each, and put together again."""
    return lambda: Model(
        lambda m, x: torch.cat([layer(part) for layer, part in zip(m.layers, x.split(sizes, 1), strict=True)], 1),
        layers=nn.ModuleList(make() for make in layers),
    )


PARTS = (
    Structure(
        "a norm behind a concatenation",
        lambda: Model(
            lambda m, x: m.norm(torch.cat([m.a(x.relu()), m.b(x.sigmoid())], 1)),
            a=conv(4, 6),
            b=conv(4, 3, 1),
            norm=norm(9),
        ),
        MAPS,
        "relu sigmoid conv conv cat",
    ),
    Structure(
        "mixed depthwise kernels",
        lambda: seq(_in_parts([2, 2], lambda: depthwise(2, 3), lambda: depthwise(2, 5))(), norm(4)),
        MAPS,
        "conv conv cat",
        needs_inputs=True,
    ),
    Structure(
        "equal convolutions on equal parts",
        _in_parts([2, 2], lambda: conv_norm(2, 3), lambda: conv_norm(2, 3)),
        MAPS,
        "conv",
        needs_inputs=True,
    ),
    Structure(
        "grouped convolutions on chunks",
        lambda: Model(
            lambda m, x: torch.cat([m.a(x.chunk(2, 1)[0]), m.b(x.chunk(2, 1)[1])], dim=1),
            a=conv(2, 4, g=2),
            b=conv(2, 4, g=2),
        ),
        MAPS,
        "conv",
        needs_inputs=True,
    ),
    Structure(
        "convolutions of one value, side by side",
        lambda: Model(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=conv_norm(4, 5), b=conv_norm(4, 3)),
        MAPS,
        "conv",
    ),
    Structure(
        "side by side, then 1x1",
        lambda: Model(
            lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(4, 8, 1), b=conv(4, 8, 1), c=conv(16, 4, 1)
        ),
        MAPS,
        "conv",
    ),
    Structure(
        "channels in reverse order, then a convolution",
        lambda: Model(lambda m, x: m.b(m.a(x.flip(1))[:, [2, 0, 1]]), a=conv_norm(4, 3), b=conv(3, 3, 1)),
        MAPS,
        "conv",
        needs_inputs=True,
    ),
    Structure(
        "a stack of branches, weighted and summed",
        lambda: Model(
            lambda m, x: (torch.stack([m.a(x), m.b(x)]) * m.w.softmax(0)).sum(0),
            a=conv_norm(4, 4),
            b=conv_norm(4, 4, 1),
            w=_parameter(2, 1, 1, 1, 1),
        ),
        MAPS,
        "conv",
        needs_inputs=True,
    ),
    Structure(
        "a split that reads a layer, a norm on each part",
        lambda: Model(
            lambda m, x: (lambda a, b: torch.cat([m.a(a).relu(), m.b(b)], 1))(*m.conv(x).split([3, 3], 1)),
            conv=conv(4, 6),
            a=norm(3),
            b=norm(3),
        ),
        MAPS,
        "conv relu conv cat",
        needs_inputs=True,
    ),
)


class Edges(nn.Module):
    """A convolution whose kernel is written entry by entry, as ECB does in its own eval mode: 3x3 + scaled Sobel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.dense, self.point, self.scale = conv(c, c), conv(c, c, 1), _parameter(c, 1, 1)
        self.register_buffer("sobel", torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]))

    def forward(self, x: Tensor) -> Tensor:
        mask, edges = self.scale * self.sobel, torch.zeros(self.dense.weight.shape, dtype=self.dense.weight.dtype)
        for k in range(len(edges)):
            edges[k, k] = mask[k]
        kernel = self.dense.weight + F.conv2d(edges, self.point.weight.permute(1, 0, 2, 3))
        inner = torch.ones(1, len(edges), 3, 3, dtype=kernel.dtype) * self.point.bias.view(1, -1, 1, 1)
        return F.conv2d(x, kernel, F.conv2d(inner, edges).view(-1) + self.dense.bias, padding=1)


class Standardised(nn.Conv2d):
    """Weight standardisation with one call for both statistics (BiT)."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(var + 1e-10), self.bias, padding=self.padding)


class Rotated(nn.Module):
    """A linear layer behind a rotation by blocks (OFT): R = (I - S) inverse(I + S), S skew."""

    def __init__(self, features: int, blocks: int) -> None:
        super().__init__()
        self.base, self.s = nn.Linear(features, features), _parameter(blocks, features // blocks, features // blocks)

    def forward(self, x: Tensor) -> Tensor:
        skew = self.s - self.s.transpose(1, 2)
        eye = torch.eye(skew.shape[1], dtype=skew.dtype)
        turns = torch.bmm(eye - skew, torch.inverse(eye + skew))
        return self.base(x @ torch.block_diag(*torch.unbind(turns)))


class Spectrum(nn.Module):
    """A linear layer and the transform of a few learned frequencies (FourierFT)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.base, self.entries = nn.Linear(features, features), _parameter(3)
        self.register_buffer("at", torch.tensor([[0, 1, 2], [1, 3, 2]]))

    def forward(self, x: Tensor) -> Tensor:
        dense = torch.zeros(self.base.weight.shape, dtype=self.entries.dtype)
        dense[self.at[0], self.at[1]] = self.entries
        return self.base(x) + F.linear(x, torch.fft.ifft2(dense).real)


class LowRank(nn.Module):
    """A linear layer and a product of two thin ones beside it."""

    def __init__(self, features: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(features, features)
        self.a, self.b = nn.Linear(features, rank, bias=False), nn.Linear(rank, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.b(self.a(x))


def bias_free(ins: int, outs: int) -> nn.Conv2d:
    return nn.Conv2d(ins, outs, 1, bias=False)


FAMILIES = (
    Family("Rows", "Layers one after the other become one layer: g(f(x)).", CHAINS),
    Family("Branches", "Layers side by side over one value become one layer: f(x) + g(x).", BRANCHES),
    Family("Concatenation and split", "Parts of an axis are layers of their own; equal parts become groups.", PARTS),
    Family("Views", "A view that does not mix numbers lets layers through.", RESAMPLING),
    Family("Upsampling", "A convolution behind nearest upsampling is one transposed convolution.", UPSAMPLED),
    Family("Borders", "What zero padding makes of a shift is a bias with borders of its own.", BORDERS),
    Family("Full matrices", "A convolution beside a full matrix becomes part of it: locality injection.", DENSE),
    Family("Parameter arithmetic", "What depends on parameters only is computed once.", (*FUNCTIONS, *PARAMETERS)),
    Family("Spellings", "One layer or sum, written in the ways that code writes it.", (*SPELLINGS, *SPELLED)),
    Family("Pieces of networks", "Several merges meet.", NETS),
)
STRUCTURES = tuple(structure for family in FAMILIES for structure in family.structures)


# --- near misses ------------------------------------------------------------------------------------


class OwnForward(nn.Conv2d):
    """A convolution whose class says more than its weights: the output is clipped."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1, 1)


class TwoReaders(nn.Module):
    """A convolution whose output is read by a norm and by an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) * torch.sigmoid(y)


class AlwaysTraining(nn.BatchNorm2d):
    """A batch norm that ignores eval()."""

    def train(self, mode: bool = True) -> AlwaysTraining:
        return super().train(True)


def hooked(model: nn.Module, path: str, *, before: bool = False) -> nn.Module:
    """The model, with a hook on one module that doubles its output (or input)."""
    module = model.get_submodule(path)
    if before:
        module.register_forward_pre_hook(_double_input)
    else:
        module.register_forward_hook(_double_output)
    return model


def _double_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


def _double_input(module: nn.Module, args: Any) -> Any:
    return (2 * args[0],)


def tied(first: nn.Module, second: nn.Module) -> nn.Module:
    """Two layers in a row, with a norm between them, that share one weight."""
    second.weight = first.weight
    return seq(first, norm(4), nn.ReLU(), second)


def _overwrites_its_source(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(x)
    a = m.a(y)
    y.mul_(2)
    return a + m.b(y)


def _overwrites_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :1] = 0
    return m.norm(y)


def _writes_into_its_input(m: Any, x: Tensor) -> Tensor:
    x += m.a(x)
    return m.norm(x)


def _writes_into_a_shared_value(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    z = m.b(x)
    y += z
    return y * torch.sigmoid(m.norm(z))


def _activates_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    z = F.relu(y, inplace=True)
    return m.norm(y) + z


def _autocast(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    with torch.autocast("cpu", torch.bfloat16):
        x = m.b(x)
    return m.norm(x.to(m.norm.weight.dtype))


def _branches(body: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Model(body, a=conv(4, 4), b=conv(4, 4), norm=norm(4))


SQUARE: tuple[Shape, ...] = ((2, 5, 5), (1, 5, 5))

NEAR_MISSES = (
    NearMiss("relu between", lambda: seq(conv(4, 4), nn.ReLU(), norm(4)), MAPS, "conv relu norm", "ReLU|not affine"),
    NearMiss("padded 3x3, padded 3x3", lambda: seq(conv(4, 8, bias=False), conv(8, 4)), MAPS, "conv conv", "padding"),
    NearMiss("bias before padding", lambda: seq(conv(4, 8, 1), conv(8, 4)), MAPS, "conv conv", "padding"),
    NearMiss("norm before padding", lambda: seq(norm(4), conv(4, 4)), MAPS, "norm conv", "padding"),
    NearMiss(
        "bias before padding that is sampled",
        lambda: seq(conv(4, 16, 1), norm(16), conv(16, 4, s=2)),
        MAPS,
        "conv conv",
        "padding.*free",
    ),
    NearMiss(
        "scale and shift before padding",
        lambda: Model(
            lambda m, x: m.c(x * m.scale + m.shift),
            c=conv(4, 4),
            scale=_parameter(1, 4, 1, 1),
            shift=_parameter(1, 4, 1, 1),
        ),
        MAPS,
        "mul add conv",
        "padding.*raise",
    ),
    NearMiss("average, then padded conv", lambda: seq(nn.AvgPool2d(2, 1), conv(4, 4)), MAPS, "pool conv", "padding"),
    NearMiss("norm before a padded average", lambda: seq(norm(4), nn.AvgPool2d(3, 1, 1)), MAPS, "norm pool", "padding"),
    NearMiss(
        "expand then project",
        lambda: seq(conv(8, 2, 1, bias=False), conv(2, 8, 1)),
        ((2, 8, 6, 6), (1, 8, 5, 7)),
        "conv conv",
        "raise FLOPs",
    ),
    NearMiss(
        "depthwise then pointwise",
        lambda: seq(depthwise(8), conv(8, 8, 1)),
        ((2, 8, 6, 6), (1, 8, 5, 7)),
        "conv conv",
        "raise FLOPs",
    ),
    NearMiss(
        "strips of a large cross",
        lambda: Sum([depthwise(4, (11, 1), p=(5, 0)), depthwise(4, (1, 11), p=(0, 5))]),
        MAPS,
        "conv conv add",
        "raise FLOPs",
    ),
    NearMiss(
        "norm before a transposed conv",
        lambda: seq(norm(4), nn.ConvTranspose2d(4, 6, 3, 2)),
        MAPS,
        "norm conv",
        "zero padding|nothing linear",
    ),
    NearMiss(
        "a border that is no bias",
        lambda: Model(
            lambda m, x: m.b(with_border(m.a(x), m.v, 1)),
            a=conv(4, 4, 1),
            b=nn.Conv2d(4, 6, 3),
            v=_parameter(1, 4, 1, 1),
        ),
        MAPS,
        "conv pad conv",
        "other values than the bias",
        needs_inputs=True,
    ),
    NearMiss(
        "strides that differ",
        lambda: Model(
            lambda m, x: m.a(x) + F.interpolate(m.b(x), size=m.a(x).shape[2:]), a=conv(4, 4), b=conv(4, 4, s=2)
        ),
        MAPS[:1],
        "conv conv conv upsample_nearest2d add",
        "called at 2 places|not affine|interpolate",
    ),
    NearMiss(
        "nearest, padded conv",
        lambda: seq(nearest(2), conv(4, 4)),
        MAPS,
        "upsample_nearest2d conv",
        "raise stored numbers|rank",
    ),
    NearMiss(
        "1x1, then nearest",
        lambda: seq(conv(4, 4, 1), nearest(2)),
        MAPS,
        "conv upsample_nearest2d",
        "raise",
        objective="flops",
    ),
    NearMiss(
        "nearest by a factor that float32 does not hold",
        lambda: seq(nearest(25), conv(4, 4)),
        MAPS,
        "upsample_nearest2d conv",
        "full matrix|fixed sizes|rank",
        objective="flops",
    ),
    NearMiss(
        "nearest by a half",
        lambda: seq(nearest(1.5), conv(4, 4)),
        MAPS,
        "upsample_nearest2d conv",
        "full matrix|fixed sizes|rank",
        objective="flops",
    ),
    NearMiss(
        "nearest to a size that is no multiple for others",
        lambda: Model(lambda m, x: m.a(F.interpolate(x, size=(16, 20))), a=conv(4, 4)),
        MAPS,
        "upsample_nearest2d conv",
        "full matrix|fixed sizes|rank",
        objective="flops",
    ),
    NearMiss(
        "bilinear, padded conv",
        lambda: seq(nn.UpsamplingBilinear2d(scale_factor=2), conv(4, 4)),
        MAPS,
        "upsample_bilinear2d conv",
        "full matrix|fixed sizes|rank",
        objective="flops",
    ),
    NearMiss(
        "a sum that broadcasts channels",
        lambda: Model(lambda m, x: x + m.a(x), a=conv(4, 1)),
        MAPS,
        "conv add",
        "broadcast",
    ),
    NearMiss(
        "a sum that broadcasts pixels",
        lambda: Model(lambda m, x: x + m.a(F.adaptive_avg_pool2d(x, 1)), a=conv(4, 4, 1)),
        MAPS,
        "mean conv add",
        "broadcast",
    ),
    NearMiss(
        "norm in training mode", lambda: seq(conv(4, 4), AlwaysTraining(4)), MAPS, "conv add norm", "training mode"
    ),
    NearMiss(
        "norm without running statistics",
        lambda: seq(conv(4, 4), nn.BatchNorm2d(4, track_running_stats=False)),
        MAPS,
        "conv norm",
        "statistics",
    ),
    NearMiss(
        "functional norm in training mode",
        lambda: Model(
            lambda m, x: F.batch_norm(m.a(x), None, None, m.norm.weight, m.norm.bias, training=True),
            a=conv(4, 4),
            norm=norm(4),
        ),
        MAPS,
        "conv norm",
        "training=True",
    ),
    NearMiss(
        "instance norm", lambda: seq(conv(4, 4), nn.InstanceNorm2d(4)), MAPS, "conv norm", "InstanceNorm|not affine"
    ),
    NearMiss(
        "a convolution called twice",
        lambda: Model(lambda m, x: m.norm(m.a(torch.relu(m.a(x)))), a=conv(4, 4), norm=norm(4)),
        MAPS,
        "conv relu conv norm",
        "called at 2 places",
    ),
    NearMiss(
        "a norm called twice",
        lambda: Model(lambda m, x: m.norm(m.a(torch.relu(m.norm(x)))), a=conv(4, 4), norm=norm(4)),
        MAPS,
        "norm relu conv norm",
        "called at 2 places",
    ),
    NearMiss("an output used elsewhere", TwoReaders, MAPS, "conv norm sigmoid mul", "elsewhere|add work"),
    NearMiss("a hook on the convolution", lambda: hooked(conv_norm(4, 4), "0"), MAPS, "conv mul norm", "hooks"),
    NearMiss("a hook on the norm", lambda: hooked(conv_norm(4, 4), "1", before=True), MAPS, "conv mul norm", "hooks"),
    NearMiss(
        "a hook around one of them",
        lambda: hooked(seq(seq(conv(4, 4)), norm(4)), "0"),
        MAPS,
        "conv mul norm",
        "hooks",
    ),
    NearMiss(
        "averages that do not count padding",
        lambda: Sum([conv(4, 4), nn.AvgPool2d(3, 1, 1, count_include_pad=False)]),
        MAPS,
        "conv pool add",
        "count_include_pad|full matrix|fixed sizes",
    ),
    NearMiss(
        "instance norm by statistics of the input",
        lambda: Model(lambda m, x: F.instance_norm(m.a(x), eps=1e-3), a=conv(4, 4)),
        MAPS,
        "conv norm",
        "use_input_stats",
    ),
    NearMiss(
        "slopes of which one is not 1",
        lambda: seq(conv(4, 4), _slopes(1.0, 1.0, 1.0 - 1e-6, 1.0), norm(4)),
        MAPS,
        "conv _prelu_kernel norm",
        "PReLU",
    ),
    NearMiss(
        "a shrinkage of nearly nothing",
        lambda: seq(conv(4, 4), nn.Softshrink(1e-6), norm(4)),
        MAPS,
        "conv softshrink norm",
        "not affine",
    ),
    NearMiss(
        "a division that rounds",
        lambda: Model(lambda m, x: m.b(torch.div(m.a(x), 1e-6, rounding_mode="floor")), a=conv(4, 4), b=norm(4)),
        MAPS,
        "conv div norm",
        "not understood|rounding",
    ),
    NearMiss(
        "an adaptive average of windows that differ",
        lambda: Model(lambda m, x: m.b(F.adaptive_avg_pool2d(x, 3)), b=conv(4, 4, 1)),
        MAPS,
        "_adaptive_avg_pool2d conv",
        "depend on the input",
    ),
    NearMiss(
        "averages with ceil_mode",
        lambda: Sum([conv(4, 4, 2, s=2, p=0), nn.AvgPool2d(2, 2, ceil_mode=True)]),
        ((2, 4, 8, 8), (1, 4, 6, 4)),
        "conv pool add",
        "ceil_mode|full matrix|fixed sizes",
    ),
    NearMiss(
        "reflected padding",
        lambda: seq(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), norm(4)),
        MAPS,
        "reflection_pad2d conv norm",
        "padding_mode='reflect'|full matrix|fixed sizes",
    ),
    NearMiss(
        "F.pad with a value",
        lambda: Model(lambda m, x: m.a(F.pad(x, (1, 1, 1, 1), value=0.5)), a=conv(4, 4, p=0)),
        MAPS,
        "pad conv",
        "value 0.5",
    ),
    NearMiss(
        "convolutions on unequal parts",
        _in_parts([1, 3], lambda: conv(1, 4), lambda: conv(3, 6)),
        MAPS,
        "conv conv cat",
        "raise FLOPs",
        needs_inputs=True,
    ),
    NearMiss(
        "depthwise on all channels but some",
        _in_parts([1, 3], nn.Identity, lambda: depthwise(3)),
        MAPS,
        "conv cat",
        "raise FLOPs",
        needs_inputs=True,
    ),
    NearMiss(
        "a norm behind an activation and a convolution",
        lambda: Model(lambda m, x: m.norm(torch.cat([x.relu(), m.a(x)], 1)), a=conv(4, 4), norm=norm(8)),
        MAPS,
        "relu conv cat norm",
        "raise FLOPs|nothing linear",
    ),
    NearMiss(
        "concatenated along the batch",
        lambda: Model(lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 0)), a=conv(4, 4), b=conv(4, 4), norm=norm(4)),
        MAPS[:1],
        "conv conv cat norm",
        "raise|nothing linear|several dimensions",
    ),
    NearMiss("tied weights", lambda: tied(conv(4, 4), conv(4, 4)), MAPS, "conv norm relu conv", "tied"),
    NearMiss(
        "F.dropout by default",
        lambda: Model(lambda m, x: m.norm(F.dropout(m.a(x), 1e-9)), a=conv(4, 4), norm=norm(4)),
        MAPS,
        "conv bernoulli_ div_ mul norm",
        "dropout",
    ),
    NearMiss(
        "a leaky slope near 1",
        lambda: seq(conv(4, 4), nn.LeakyReLU(0.999), norm(4)),
        MAPS,
        "conv leaky_relu norm",
        "LeakyReLU|not affine",
    ),
    NearMiss(
        "a class with its own forward",
        lambda: seq(OwnForward(4, 4, 3, padding=1), norm(4)),
        MAPS,
        "conv clamp norm",
        "not affine|forward",
    ),
    NearMiss(
        "an input overwritten in between",
        _branches(_overwrites_its_source),
        MAPS,
        "relu conv mul_ conv add",
        "in-place|in place",
    ),
    NearMiss(
        "a slice that is overwritten", _branches(_overwrites_a_view), MAPS, "conv fill_ norm", "in-place|in place"
    ),
    NearMiss(
        "the input of the model is overwritten",
        _branches(_writes_into_its_input),
        MAPS,
        "conv add norm",
        "in-place|in place",
    ),
    NearMiss(
        "an activation in place, its input read again",
        _branches(_activates_in_place),
        MAPS,
        "conv relu norm add",
        "in-place|in place",
    ),
    NearMiss(
        "autocast between", _branches(_autocast), MAPS, "conv _to_copy _to_copy _to_copy conv _to_copy norm", "autocast"
    ),
    NearMiss(
        "norm over tokens, as many as channels",
        lambda: seq(nn.Linear(5, 5), nn.BatchNorm1d(5)),
        SQUARE,
        "linear norm",
        "dimension|axis|axes|fixed|raise",
        needs_inputs=True,
    ),
    NearMiss(
        "norm over channels, mix of tokens",
        lambda: Model(lambda m, x: m.fc(m.norm(x)), norm=nn.BatchNorm1d(5), fc=nn.Linear(5, 5)),
        SQUARE,
        "norm linear",
        "dimension|axis|axes|fixed|raise",
        needs_inputs=True,
    ),
)
