"""What a fused model keeps, and what fusing leaves alone: one row per promise."""

from __future__ import annotations

import copy
import inspect
import operator
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from structures import (
    MAPS,
    Model,
    Net,
    RepDepthwise,
    Residual,
    build,
    conv,
    conv_norm,
    error,
    norm,
    operations,
    repvgg,
    run,
    sample,
    seq,
    wide,
)
from structures.blocks import parameter
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import reparamkit
from reparamkit import EquivalenceError, GuardError, InvalidInputError
from reparamkit.errors import NotFusable
from reparamkit.layers.norm import read_batch_norm_layer
from reparamkit.layers.registry import READERS
from reparamkit.testing import randomize
from reparamkit.write import finish
from reparamkit.write.fold import fold

IMAGE = (2, 3, 12, 10)
X = sample(IMAGE, torch.float32)


@cache
def net_and_fused(with_inputs: bool = True) -> tuple[Net, Net]:
    net = build(Net)
    return net, reparamkit.fuse(net, X if with_inputs else None)


@pytest.fixture(params=[True, False], ids=["with inputs", "without inputs"])
def nets(request: pytest.FixtureRequest) -> tuple[Net, Net]:
    """A net, and its fused copy, both private to the test."""
    return copy.deepcopy(net_and_fused(request.param))


def same(found: Any, wanted: Any) -> None:
    assert error(found, wanted) <= 1e-6


# --- the model --------------------------------------------------------------------------------------


def test_the_class_is_kept(nets: tuple[Net, Net]):
    """The fused model is an instance of the user's class, of its name."""
    net, fused = nets
    assert isinstance(fused, Net)
    assert (type(fused).__name__, type(fused).__module__) == (type(net).__name__, type(net).__module__)
    assert fused.classes == net.classes
    assert not fused.training
    assert not any(module.training for module in fused.modules())


def test_nothing_is_left_over(nets: tuple[Net, Net]):
    """No batch norm stays, and every parameter takes part in the output."""
    _, fused = nets
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    fused(X).sum().backward()
    assert [name for name, p in fused.named_parameters() if p.grad is None] == []
    assert list(fused.buffers()) == []


def test_merged_layers_keep_a_name(nets: tuple[Net, Net]):
    """A merged layer has the name of a layer it replaces, or of the block it was in."""
    net, fused = nets
    known = {name for name, _ in net.named_modules()}
    assert {name.rpartition(".")[0] for name in fused.state_dict()} <= known


@pytest.mark.parametrize("args", [(X,), (X, 2.0), (sample((1, 3, 7, 9), torch.float32), 0.5)], ids=["1", "2", "other"])
def test_positional_arguments(nets: tuple[Net, Net], args: tuple[Any, ...]):
    """Arguments with defaults can be given, also other numbers than when it was fused."""
    net, fused = nets
    same(fused(*args), net(*args))


@pytest.mark.parametrize(
    "kwargs", [{}, {"scale": 3.0}, {"normalize": True}, {"normalize": True, "scale": 2.0}], ids=str
)
def test_keyword_arguments(nets: tuple[Net, Net], kwargs: dict[str, Any]):
    """Arguments can be given by name; a flag works, or is refused with words, but never ignored."""
    net, fused = nets
    with suppress(GuardError) if "normalize" in kwargs else nullcontext():
        same(fused(x=X, **kwargs), net(x=X, **kwargs))


def test_methods_give_what_they_gave(nets: tuple[Net, Net]):
    """Methods that forward calls give what they gave."""
    net, fused = nets
    same(fused.features(X), net.features(X))


class Extractor(nn.Module):
    """A method beside forward that uses half of a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)

    def raw(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def test_methods_that_forward_does_not_call():
    """A method that uses part of a merge gives what it gave, or says that it cannot."""
    model = build(Extractor)
    x = sample(MAPS[0], torch.float32)
    fused = reparamkit.fuse(model, x)
    if hasattr(fused, "raw"):
        same(fused.raw(x), model.raw(x))


def test_hooks_elsewhere(nets: tuple[Net, Net]):
    """A hook on a module that no merge touches is called once per forward, with the same values."""
    net = build(Net)
    seen: list[Tensor] = []
    net.act.register_forward_hook(lambda module, args, output: seen.append(output))
    fused = reparamkit.fuse(net, X)
    seen.clear()
    run(net, X), run(fused, X)
    assert len(seen) == 4
    for theirs, mine in zip(seen[:2], seen[2:], strict=True):
        same(mine, theirs)


class Row(nn.Module):
    """Convolutions without anything between them, and a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.conv, self.norm, self.b = conv(3, 4, 1), conv(4, 4), norm(4), conv(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.conv(self.a(x)))) + x


@pytest.mark.parametrize("options", [{}, {"inplace": True}], ids=["a copy", "in place"])
@pytest.mark.parametrize("changes", [False, True], ids=["looking", "changing"])
def test_hooks_around_a_merge_are_carried_along(changes: bool, options: dict[str, bool]):
    """What a hook before the first layer and one behind the last saw, and made of it, is as it was."""
    net = build(Row)
    seen: list[Tensor] = []

    def look(value: Tensor) -> Tensor | None:
        seen.append(value.detach().clone())
        return 2 * value if changes else None

    before = net.conv.register_forward_pre_hook(lambda module, args: look(args[0]))
    net.norm.register_forward_hook(lambda module, args, output: look(output))
    wanted, theirs = run(net, X), [seen.pop() for _ in range(2)]
    fused = reparamkit.fuse(net, X, **options)
    assert operations(fused, X).count("norm") == 0
    assert operations(fused, X).count("conv") == 3
    seen.clear()
    same(run(fused, X), wanted)
    for one, other in zip([seen.pop() for _ in range(2)], theirs, strict=True):
        same(one, other)
    if options:
        before.remove()
        run(fused, X)
        assert len(seen) == 1


KEPT: dict[str, Tensor] = {}
"""Where a hook of a model may keep what it sees."""


class Keeping(nn.Module):
    """Reads what a hook has kept of a layer inside, as DPT of MiDaS does: the hook knows the model, a dictionary of it,
    or that by a global name.
    """

    def __init__(self, way: str) -> None:
        super().__init__()
        self.body, self.head = seq(conv_norm(3, 4), nn.ReLU(), conv_norm(4, 3)), conv_norm(4, 4, 1)
        self.kept = kept = KEPT if way == "a global dictionary" else {}
        hooks = {
            "the model": lambda module, args, output: self.kept.__setitem__("x", output),
            "a dictionary": lambda module, args, output: kept.__setitem__("x", output),
            "a global dictionary": lambda module, args, output: KEPT.__setitem__("x", output),
        }
        self.body[1].register_forward_hook(hooks[way])

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        return self.head(self.kept["x"])


@pytest.mark.parametrize("way", ["the model", "a dictionary", "a global dictionary"])
def test_hooks_that_know_the_model_know_the_fused_one(way: str):
    """A copy of the model has its own hooks: those of the original would keep what the original sees."""
    net = build(lambda: Keeping(way))
    fused = reparamkit.fuse(net, X)
    other = X.flip(0) + 1
    wanted = run(net, other)
    run(net, X)
    same(run(fused, other), wanted)


class Stored:
    """A hook that keeps what it saw, as those of fastai do."""

    stored: Tensor

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.stored = output


class Skipping(nn.Module):
    """Adds what a hook keeps of a layer elsewhere."""

    def __init__(self, hook: Stored) -> None:
        super().__init__()
        self.hook, self.a, self.b = hook, conv_norm(4, 4), conv_norm(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x) + self.b(x)) + self.hook.stored


def hooked_unet(layer: int) -> nn.Module:
    """The decoder has the hook on a layer of the encoder."""
    hook = Stored()
    encoder = seq(conv_norm(3, 4), seq(conv_norm(4, 4), nn.ReLU()), nn.Tanh())
    encoder[layer].register_forward_hook(hook)
    return seq(encoder, Skipping(hook))


@pytest.mark.parametrize("used", [False, True], ids=["new", "used before"])
@pytest.mark.parametrize("example", [X, None], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("layer", [1, 2], ids=["a block", "a layer"])
def test_what_a_hook_keeps_is_no_constant(layer: int, example: Tensor | None, used: bool):
    """Code elsewhere reads it from an object of its own: it is that of the same run, and not of the example's."""
    net = build(lambda: hooked_unet(layer))
    if used:
        run(net, X)
    fused = reparamkit.fuse(net, example)
    other = X.flip(0) + 1
    same(run(fused, other), run(net, other))
    assert operations(fused, other).count("norm") == 0


class Spelled(nn.Module):
    """Layers that follow each other in code, with what is no module between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1, bias=False), conv(4, 4), conv(4, 4)
        self.scale = parameter(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.scale * self.b(x) + self.c(x)


@pytest.mark.parametrize("options", [{}, {"as_graph": True}], ids=["as a module", "as a graph"])
def test_hooks_before_a_merge_that_is_written_are_carried_along(options: dict[str, bool]):
    """The merged layer is the only one that reads what the first layer read, and nothing else comes before it."""
    net = build(Spelled)
    net.a.register_forward_pre_hook(lambda module, args: (args[0].flip(-1) + args[0].shape[-1],))
    fused = reparamkit.fuse(net, X, **options)
    assert operations(fused, X).split().count("conv") == 1
    same(run(fused, X), run(net, X))


@pytest.mark.parametrize("verify", [True, False])
def test_a_hook_before_a_view_is_not_carried_behind_it(verify: bool):
    """The merged layer stands behind the view, and would show its hooks a tensor of another shape."""
    layers = {"a": nn.Conv1d(4, 4, 1), "b": nn.Linear(32, 32)}
    net, x = build(lambda: Model(lambda m, x: m.b(m.a(x).reshape(x.shape[0], -1)), **layers)), torch.randn(2, 4, 8)
    net.a.register_forward_pre_hook(lambda module, args: (args[0].flip(1) + args[0].shape[-1],))
    fused = reparamkit.fuse(net, x, verify=verify)
    same(run(fused, x), run(net, x))


@pytest.mark.parametrize("where", ["conv.register_forward_hook", "norm.register_full_backward_hook"])
def test_hooks_inside_a_merge_refuse_it(where: str):
    """A value that a hook sees is computed, and so is a gradient."""
    net = build(Row)
    operator.attrgetter(where)(net)(lambda *args: None)
    fused = reparamkit.fuse(net, X, without=["parallel_sum"])
    assert isinstance(fused.norm, nn.BatchNorm2d)
    assert any("hooks" in refusal.reason for refusal in reparamkit.report(fused).refusals)


def test_output_hook_on_the_model():
    """A hook on the whole model stays and is called."""
    net = build(Net)
    net.register_forward_hook(lambda module, args, output: 2 * output)
    fused = reparamkit.fuse(net, X)
    same(run(fused, X), run(net, X))


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("pre", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("changes", [False, True], ids=["looking", "changing"])
def test_hooks_on_a_block(changes: bool, pre: bool, with_inputs: bool):
    """What a block computes is merged; what its hooks saw, and made of it, is as it was."""
    net = build(lambda: seq(repvgg(4), repvgg(4), repvgg(4)))
    seen: list[Any] = []

    def look(module: nn.Module, args: tuple[Tensor], *output: Tensor) -> Tensor | None:
        (value,) = output or args
        seen.append(value)
        return 2 * value if changes else None

    (net[1].register_forward_pre_hook if pre else net[1].register_forward_hook)(look)
    x = sample(MAPS[0], torch.float32)
    fused = reparamkit.fuse(net, x if with_inputs else None)
    assert all(isinstance(each, Tensor) for each in seen)
    seen.clear()
    same(run(fused, x), run(net, x))
    same(*seen)
    assert operations(fused, x).split().count("conv") == 3
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())


@pytest.mark.parametrize("several", [True, False])
def test_a_forward_that_is_written_anew_stays_that_of_eval_mode(several: bool):
    """Dropout in it is gone in training mode too, as the FAQ says; in code that is still the user's it acts."""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = conv(3, 4), conv(3, 4), norm(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x) + self.b(x) if several else self.a(x)
            return F.dropout(self.norm(y), 0.5, self.training)

    fused = reparamkit.fuse(build(Dropping), X).train()
    assert (fused(X) == 0).any().item() is not several


@pytest.mark.parametrize("trainable", [True, False])
def test_requires_grad(trainable: bool):
    """A frozen net stays frozen, a trainable one trainable; gradients of the input are those of the original."""
    net = build(Net).requires_grad_(trainable)
    fused = reparamkit.fuse(net, X)
    assert {p.requires_grad for p in fused.parameters()} == {trainable}
    mine, theirs = X.clone().requires_grad_(), X.clone().requires_grad_()
    fused(mine).square().sum().backward()
    net(theirs).square().sum().backward()
    assert mine.grad is not None
    assert theirs.grad is not None
    assert error(mine.grad, theirs.grad) <= 1e-5


def test_no_shared_memory(nets: tuple[Net, Net]):
    """Changing the fused weights does not change the original, even in layers that were not merged."""
    model = build(lambda: seq(conv(3, 4), nn.ReLU(), conv_norm(4, 4)))
    fused = reparamkit.fuse(model, X)
    with torch.no_grad():
        for tensor in (*fused.parameters(), *fused.buffers()):
            tensor.zero_()
    same(run(model, X), run(build(lambda: seq(conv(3, 4), nn.ReLU(), conv_norm(4, 4))), X))


def test_merged_layers_have_no_children():
    """A merged layer takes the place of a layer or a block; nothing hangs below a convolution."""
    model = build(lambda: seq(nn.GELU(), RepDepthwise(3), Residual(conv_norm(3, 3, 1)), RepDepthwise(3)))
    fused = reparamkit.fuse(model, X)
    assert [m for m in fused.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and list(m.children())] == []


def test_a_list_of_blocks_keeps_its_length():
    """A list of modules is as long as before, so that code that indexes it goes on working."""
    model = build(
        lambda: Model(
            lambda m, x: torch.relu(m.branches[0](x) + m.branches[1](x)) + m.branches[2](x),
            branches=nn.ModuleList([conv(3, 4), conv(3, 4), conv(3, 4)]),
        )
    )
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == "conv relu conv add"
    assert len(fused.branches) == 3


def test_a_list_of_branches_that_became_one_layer_is_that_layer():
    """Nothing is left of what was called inside, and a method that goes through the list says why it cannot."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList([conv_norm(3, 4), nn.Sequential(nn.Dropout(), conv(3, 4, 1))])

        def forward(self, x: Tensor) -> Tensor:
            return sum(branch(x) for branch in self.branches)

        def widths(self) -> list[int]:
            return [branch[1].weight.shape[0] for branch in self.branches]

    fused = reparamkit.fuse(build(Block), X)
    assert [name for name, _ in fused.named_modules()] == ["", "branches"]
    assert isinstance(fused.branches, nn.Conv2d)
    with pytest.raises(AttributeError, match="'branches', which was merged"):
        fused.widths()


class Branches(nn.Module):
    def __init__(self, kind: type[nn.ModuleList | nn.Sequential]):
        super().__init__()
        self.parts = kind(*([conv_norm(4, 4), conv_norm(4, 4, 1)],) if kind is nn.ModuleList else conv_norm(4, 4))
        self.beside = conv_norm(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = sum(part(x) for part in self.parts) if isinstance(self.parts, nn.ModuleList) else self.parts(x)
        return torch.relu(first + self.beside(x))


LOOKS = {
    "length": lambda m, y: y * len(m.block.parts),
    "length of what a variable holds": lambda m, y: (parts := m.block.parts) and y * len(parts),
    "elements": lambda m, y: y * sum(1 for _ in m.block.parts),
    "class": lambda m, y: y * 3 if isinstance(m.block.parts, (nn.ModuleList, nn.Sequential)) else y,
}


@pytest.mark.parametrize("kind", [nn.ModuleList, nn.Sequential])
@pytest.mark.parametrize("look", LOOKS.values(), ids=list(LOOKS))
def test_code_that_stays_finds_the_lists_that_it_has_in_hand(look: Callable[..., Tensor], kind: Any):
    """The block is written again, and the code around it, which counts the parts of the block, is not."""
    model = build(lambda: Model(lambda m, x: look(m, m.block(x)), block=Branches(kind)))
    x = torch.randn(1, 4, 8, 8)
    fused = reparamkit.fuse(model, x)
    assert operations(fused, x).count("conv") == 1
    assert error(run(fused, x), run(model, x)) <= 1e-6


# --- other tools ------------------------------------------------------------------------------------


def _deepcopied(net: nn.Module, path: Path) -> Any:
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert all(p.abs().sum() > 0 for p in net.parameters())
    return copy.deepcopy(net)


def _pickled(net: nn.Module, path: Path) -> Any:
    torch.save(net, path / "net.pt")
    return torch.load(path / "net.pt", weights_only=False)


def _exported(net: nn.Module, path: Path) -> Any:
    batch = torch.export.Dim("batch", min=2, max=64)
    return torch.export.export(net, (X,), dynamic_shapes={"x": {0: batch}}).module()


def _state_dict(net: nn.Module, path: Path) -> Any:
    torch.save(net.state_dict(), path / "weights.pt")
    other = build(lambda: Net())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    fresh = reparamkit.fuse(other, X)
    fresh.load_state_dict(torch.load(path / "weights.pt", weights_only=True))
    return fresh


TOOLS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "deepcopy": _deepcopied,
    "save and load": _pickled,
    "state_dict into a freshly fused net": _state_dict,
    "torch.export": _exported,
    "torch.jit.trace": lambda net, path: torch.jit.trace(net, X, check_trace=False),
    "torch.compile": lambda net, path: torch.compile(net, backend="eager", fullgraph=True),
    "torch.fx": lambda net, path: fx.symbolic_trace(net, concrete_args={"scale": 1.0, "normalize": False}),
    "fuse": lambda net, path: reparamkit.fuse(net, X),
    "fuse without inputs": lambda net, path: reparamkit.fuse(net),
    "functional_call": lambda net, path: lambda x: torch.func.functional_call(net, dict(net.named_parameters()), x),
    "to(float64) and back": lambda net, path: copy.deepcopy(net).double().float(),
    "channels_last": lambda net, path: copy.deepcopy(net).to(memory_format=torch.channels_last),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("tool", TOOLS)
def test_tools(nets: tuple[Net, Net], tool: str, tmp_path: Path):
    """What a tool makes of the fused model gives the outputs of the original."""
    net, fused = nets
    made = TOOLS[tool](fused, tmp_path)
    for shape in (IMAGE, (5, *IMAGE[1:])):
        x = sample(shape, torch.float32)
        same(made(x).detach(), net(x).detach())


class Bordered(Net):
    """A net with a row that zero padding makes a bias with borders of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = seq(conv_norm(3, 8, s=2), nn.ReLU(), conv(8, 96, 1), norm(96), conv(96, 8), nn.ReLU())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("tool", [tool for tool in TOOLS if "state_dict" not in tool])
def test_tools_on_a_shift(tool: str, tmp_path: Path):
    """The layer that adds a bias with borders can be copied, saved, exported, compiled, traced and fused again."""
    net = build(Bordered)
    fused = reparamkit.fuse(net, X)
    assert "cat cat add" in operations(fused, X)
    made = TOOLS[tool](fused, tmp_path)
    for shape in (IMAGE, (5, *IMAGE[1:])):
        x = sample(shape, torch.float32)
        same(made(x).detach(), net(x).detach())


def test_a_map_smaller_than_its_borders_is_refused_with_words():
    """Where both borders would overlap, the merged layer has no numbers and says so."""
    net = build(Bordered)
    fused = reparamkit.fuse(net, X)
    same(run(fused, X[..., :4, :3]), run(net, X[..., :4, :3]))
    with pytest.raises(GuardError, match="at least 2 positions"):
        fused(X[..., :2, :2])


def test_loading_in_another_process(tmp_path: Path):
    """A fused model saved with torch.save loads where only the user's code and reparamkit are."""
    net, fused = net_and_fused()
    torch.save({"net": fused, "x": X, "y": run(net, X)}, tmp_path / "net.pt")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]);"
        "found = torch.load(sys.argv[2], weights_only=False);"
        "assert torch.allclose(found['net'](found['x']), found['y'], atol=1e-5);"
        "assert type(found['net']).__name__ == 'Net'"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "net.pt")], check=True)


def test_channels_last():
    """An input in channels_last memory gives the same numbers."""
    net, fused = net_and_fused()
    x = X.to(memory_format=torch.channels_last)
    same(run(fused, x), run(net, x))


# --- dtypes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [Net, lambda: seq(repvgg(3), nn.ReLU(), repvgg(3))], ids=["net", "blocks"])
def test_dtypes(dtype: torch.dtype, make: Callable[[], nn.Module]):
    """Weights keep their dtype, are computed in float64 and rounded once: the fused model is no further from
    float64 than the original."""
    net = build(make).to(dtype)
    x = X.to(dtype)
    fused = reparamkit.fuse(net, x)
    assert {p.dtype for p in fused.parameters()} == {dtype}
    exact = run(wide(net), x.double())
    allowed = 1e-12 if dtype is torch.float64 else 2 * error(run(net, x), exact)
    assert error(run(fused, x), exact) <= allowed


def test_mixed_dtypes():
    """Layers of different dtypes are not merged with each other."""
    model = build(lambda: Model(lambda m, x: m.b(m.a(x).double()), a=conv_norm(3, 4), b=conv_norm(4, 4)))
    model.b.double()
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == "conv _to_copy conv"
    same(run(fused, X), run(model, X))


def helped(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.softmax(x, 1, dtype=dtype)


def kept_for_later(m: Any, y: Tensor) -> Tensor:
    before, wide_one = y.dtype, torch.float32
    return y + y.to(wide_one).pow(2).mean(1, keepdim=True).to(before)


class Cast(nn.Module):
    """Takes a dtype."""

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.softmax(1).to(dtype)


MOVED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a dtype and a device of a value": lambda m, y: y + torch.ones(y.shape[1], 1, 1, dtype=y.dtype, device=y.device),
    "those of a parameter": lambda m, y: y + torch.ones(4, 1, 1, dtype=m.b.weight.dtype, device=m.b.weight.device),
    "those of the first parameter": lambda m, y: y.to(next(m.parameters()).device, next(m.parameters()).dtype) + 1,
    "a dtype by its name, and one of a value": lambda m, y: F.softmax(y, 1, dtype=torch.float32).to(y.dtype) + y,
    "in variables": kept_for_later,
    "the dtype of another": lambda m, y: y.sigmoid().type_as(y) + y.to(y),
    "of a function, by default": lambda m, y: helped(y).to(y.dtype),
    "of a module": lambda m, y: m.c(y.float(), y.dtype) + m.c(y, torch.float16).to(y.dtype),
    "of a function, given": lambda m, y: helped(y, torch.float64).to(y.dtype) + helped(y, dtype=y.dtype),
}


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
def test_an_input_that_is_cast_to_the_dtype_of_a_merged_layer_is_cast_to_that_of_the_model(with_inputs: bool):
    layers = {"a": conv_norm(3, 4), "b": conv(3, 4, 1)}

    def body(m: Any, x: Tensor) -> Tensor:
        x = x.to(m.a[0].weight.dtype)
        return (m.a(x) + m.b(x)).relu()  # type: ignore[no-any-return]

    model = build(lambda: Model(body, **layers))
    fused = reparamkit.fuse(model, X if with_inputs else None).double()
    assert len(reparamkit.report(fused).merges) > 0
    assert error(run(fused, X), run(wide(model), X)) <= 1e-6


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("use", MOVED.values(), ids=MOVED)
def test_a_fused_model_can_be_converted_and_moved(use: Callable[[Any, Tensor], Tensor], with_inputs: bool):
    """A dtype that the code takes from a tensor is that of the tensor, and one that it names stays that one."""
    layers = {"a": conv_norm(3, 4), "b": conv(3, 4, 1), "c": Cast()}
    model = build(lambda: Model(lambda m, x: use(m, (m.a(x) + m.b(x)).relu()), **layers))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert len(reparamkit.report(fused).merges) > 0
    for dtype in (torch.float64, torch.bfloat16):
        found, wanted = (run(copy.deepcopy(each).to(dtype), X.to(dtype)) for each in (fused, model))
        assert found.dtype == wanted.dtype
        assert error(found.double(), wanted.double()) <= (1e-3 if dtype is torch.float64 else 3e-2)
    assert run(fused.to("meta"), X.to("meta")).device.type == "meta"


# --- what fusing leaves alone -----------------------------------------------------------------------


def test_the_process_is_left_as_it_is():
    """Random states, grad mode, default dtype and thread count are those of before."""
    net = build(Net)
    random.seed(0)
    before = (torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    state = random.getstate()
    reparamkit.fuse(net, X)
    after = (torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert random.getstate() == state


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(context: Callable[[], Any]):
    """`fuse` works in every grad mode, and what it returns can be used outside of it."""
    net = build(Net)
    with context():
        fused = reparamkit.fuse(net, X)
    same(fused(X).detach(), net(X).detach())


def test_other_default_dtype():
    """A float64 default dtype does not change the dtype of the result."""
    net = build(Net)
    torch.set_default_dtype(torch.float64)
    try:
        fused = reparamkit.fuse(net, X)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in fused.parameters()} == {torch.float32}


# --- inputs and outputs -----------------------------------------------------------------------------


class Batch(nn.Module):
    """Takes a dictionary and a list, gives a dictionary with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(3, 4), repvgg(4)

    def forward(self, batch: dict[str, Any], others: list[Tensor], *, bias: Tensor | None = None) -> dict[str, Any]:
        x = self.a(batch["image"]) + others[0]
        y = self.b(x)
        return {"maps": (x, y), "sum": y if bias is None else y + bias, "size": batch["size"]}


def test_nested_inputs_and_outputs():
    """Dictionaries, lists, tuples, keyword tensors and plain numbers go in and come out as before."""
    model = build(Batch)
    args = ({"image": X, "size": 7}, [sample((2, 4, 12, 10), torch.float32)])
    kwargs = {"bias": sample((4, 1, 1), torch.float32)}
    fused = reparamkit.fuse(model, args, example_kwargs=kwargs)
    found, wanted = fused(*args, **kwargs), model(*args, **kwargs)
    assert found["size"] == wanted["size"] == 7
    for mine, theirs in zip((*found["maps"], found["sum"]), (*wanted["maps"], wanted["sum"]), strict=True):
        same(mine, theirs)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())


def test_several_tensors():
    """A model of two tensors merges what reads each of them."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv_norm(3, 4), conv_norm(3, 4)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x) + self.b(y), self.a(x)

    model = build(Pair)
    other = sample(IMAGE, torch.float32, seed=1)
    fused = reparamkit.fuse(model, (X, other))
    for mine, theirs in zip(fused(X, other), model(X, other), strict=True):
        same(mine, theirs)


def test_a_part_that_cannot_be_captured_blocks_nothing_else():
    """A head whose code depends on the data stays as it is; the backbone is merged."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 0 else -self.fc(x)

    model = build(lambda: seq(conv_norm(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Head()))
    fused = reparamkit.fuse(model, X)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    for x in (X, -X):
        same(run(fused, x), run(model, x))


# --- options ----------------------------------------------------------------------------------------


def test_the_order_of_the_rules_does_not_matter():
    """Built-in rules are permissions: in any order they give the same model."""
    model = build(Net)
    forwards, backwards = (reparamkit.fuse(model, X, rules=order) for order in _orders(list(reparamkit.rules)))
    assert forwards.state_dict().keys() == backwards.state_dict().keys()
    assert all(torch.equal(t, backwards.state_dict()[name]) for name, t in forwards.state_dict().items())


def _orders(rules: list[Any]) -> Iterator[list[Any]]:
    yield rules
    yield rules[::-1]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, "conv relu conv"),
        ({"without": ["parallel_sum"]}, "conv conv (add norm|norm add|add scale|scale add) add relu conv"),
        ({"without": ["chain", "dense_chain"]}, "norm"),
        ({"rules": []}, "norm"),
        ({"rules": ["chain"]}, "conv conv (add norm|norm add|add scale|scale add) add relu conv"),
        ({"only": "0"}, "conv relu conv norm"),
        ({"only": ["2.*"]}, "norm .*relu conv$"),
        ({"skip": "2"}, "conv relu conv norm"),
        ({"skip": ["0.0", "0.1*"]}, "norm .*relu conv$"),
        ({"skip": "*"}, "norm"),
        ({"objective": "params"}, "conv relu conv"),
        ({"objective": "flops"}, "conv relu conv"),
        ({"objective": "latency"}, "conv relu conv"),
        ({"objective": "launches"}, "conv relu conv"),
        ({"verify": False}, "conv relu conv"),
        ({"as_graph": True}, "conv relu conv"),
    ],
    ids=str,
)
def test_options_do_what_they_say(options: dict[str, Any], left: str):
    """Each option does what it says, and no option changes the outputs."""
    model = build(lambda: seq(repvgg(3), nn.ReLU(), conv_norm(3, 4)))
    fused = reparamkit.fuse(model, X, **options)
    assert re.search(left, operations(fused, X))
    same(run(fused, X), run(model, X))


class Reused(nn.Module):
    """A convolution, and one whose kernel is made of a parameter that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.kernel = conv(3, 3, p=0), nn.Parameter(torch.ones(3, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.first(x), self.kernel + self.kernel.flip(0) * 0.5, stride=2)


def test_a_parameter_that_is_read_twice_is_stored_once():
    """Stored numbers do not rise because a parameter was counted for each reading."""
    made = reparamkit.explain(build(Reused), X)
    assert made.after.stored <= made.before.stored
    assert made.after.flops <= made.before.flops


class ReadElsewhere(nn.Module):
    """A convolution before a norm, whose weight the code also uses by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 3), norm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + F.conv2d(torch.tanh(x), self.conv.weight, padding=1)


@pytest.mark.parametrize("example", [X, None], ids=["with inputs", "without inputs"])
def test_a_weight_that_stays_for_other_code_is_no_gain(example: Tensor | None):
    """A merged layer would have a second one beside it: stored numbers would rise."""
    made = reparamkit.explain(build(ReadElsewhere), example)
    assert made.after.stored <= made.before.stored
    assert any("raise stored numbers" in refusal.reason for refusal in made.refusals)


def test_a_bias_that_was_one_before_makes_no_room_for_a_weight():
    """Of two block-diagonal layers with a shuffle between, one full layer has as many FLOPs, and more numbers."""
    model = build(
        lambda: Model(
            lambda m, x: m.b(m.shuffle(m.a(x))) + m.shift,
            a=nn.Conv1d(6, 6, 1, groups=3, bias=False),
            shuffle=nn.ChannelShuffle(3),
            b=nn.Conv1d(6, 6, 1, groups=2, bias=False),
            shift=nn.Parameter(torch.ones(6, 1)),
        )
    )
    made = reparamkit.explain(model, sample((2, 6, 5), torch.float32))
    assert made.after.stored <= made.before.stored
    assert made.after.ops < made.before.ops


@pytest.mark.parametrize("example", [X, None], ids=["with inputs", "without inputs"])
def test_a_graph_module_stays_one(example: Tensor | None):
    """It is merged in its graph, and can be copied, saved and compiled again as any other."""
    net = build(lambda: seq(conv(3, 4), norm(4), nn.ReLU(), repvgg(4)))
    graph = reparamkit.fuse(fx.symbolic_trace(net), example)
    assert type(graph).__mro__[1] is fx.GraphModule
    assert operations(graph, X) == operations(reparamkit.fuse(net, example), X)
    for twin in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph)), graph):
        twin.recompile()
        same(run(twin, X), run(net, X))


def test_a_graph_module_inside_a_model_keeps_its_code():
    """Rows of layers in it merge; what would need other code is left, with the reason."""
    net = build(lambda: seq(fx.symbolic_trace(seq(conv(3, 4), norm(4), nn.ReLU(), repvgg(4)).eval()), nn.ReLU()))
    fused = reparamkit.fuse(net, X)
    assert operations(fused, X) == "conv relu conv conv norm add add relu"
    same(run(copy.deepcopy(fused), X), run(net, X))
    assert any("is a GraphModule" in refusal.reason for refusal in reparamkit.report(fused).refusals)


def test_a_graph_of_aten_operators_that_write():
    """What overwrites a value, or is a view of one, is seen in a graph that names operators."""

    def forward(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        y = F.conv2d(x, weight)
        rest = y[:, 1:]
        y.relu_()
        return F.conv2d(rest, weight[:1, :2]) * scale

    graph = make_fx(forward)(X, torch.randn(3, 3, 1, 1), torch.rand(1))
    assert any("relu_" in str(node.target) for node in graph.graph.nodes)
    fused = reparamkit.fuse(graph.eval(), (X, torch.randn(3, 3, 1, 1), torch.rand(1)))
    inputs = X, torch.randn(3, 3, 1, 1), torch.rand(1)
    same(fused(*inputs), graph(*inputs))


def test_an_exported_program():
    """A program of torch.export merges as the model does, with the inputs that it was exported with."""
    net = build(Net)
    program = torch.export.export(net, (X,))
    fused = reparamkit.fuse(program)
    # The default of an argument is a number of the program: nobody can give another, and a factor of 1 goes.
    assert operations(fused, X) == operations(reparamkit.fuse(net, X), X).removesuffix(" mul")
    same(run(fused, X), run(net, X))
    assert reparamkit.explain(program).after.ops == reparamkit.report(fused).after.ops


class UnderAutocast(nn.Module):
    """A convolution under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.conv(x)
        return self.norm(y)


def _hooked() -> nn.Module:
    model = conv_norm(4, 4)
    model.register_forward_hook(lambda module, args, output: 2 * output)
    return model


class Doubled(nn.Conv2d):
    """Has a call of its own."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: (n, 4, h, w)."""
        y: Tensor = super().__call__(x)
        return 2 * y


def _named_by_a_keyword() -> nn.Module:
    model = nn.Sequential()
    model.add_module("class", conv_norm(4, 4))
    return model


LOST: dict[str, Any] = {
    "autocast": UnderAutocast,
    "hooks": _hooked,
    "__call__": lambda: Doubled(4, 4, 3),
    "'class.*keyword": _named_by_a_keyword,
}


@pytest.mark.parametrize(("make", "says"), [(make, says) for says, make in LOST.items()], ids=list(LOST))
def test_what_a_graph_would_lose_is_refused(make: Any, says: str):
    """A region of autocast, a call of its own, hooks of the model, which a deepcopy of a GraphModule has not, and names
    that no code can have.
    """
    model = build(make)
    x = torch.randn(1, 4, 8, 8)
    for example in (x, None):
        with pytest.raises(reparamkit.CaptureError, match=says):
            reparamkit.fuse(model, example, as_graph=True)
        assert error(run(reparamkit.fuse(model, example), x), run(model, x)) <= 1e-5


def test_as_graph():
    """`as_graph=True` gives a flat GraphModule that merges the same."""
    net = build(Net)
    graph = reparamkit.fuse(net, X, as_graph=True)
    assert isinstance(graph, fx.GraphModule)
    assert operations(graph, X) == operations(reparamkit.fuse(net, X), X)
    same(run(graph, X), run(net, X))


class Overwriting(nn.Module):
    """Reads a part of what it writes into afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_norm(4, 4), conv_norm(2, 4), conv(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        part, rest = y[:, :2], y[:, 2:].relu()
        y += 1
        y[:, 1] = 2
        y *= x
        y[:, :2] = self.c(y[:, :2])
        return self.b(part.sigmoid()) + self.b(rest) + self.b(y[:, 1:3].relu())


def test_a_graph_that_writes_in_place_is_unpickled_as_it_was():
    """A plain trace, which unpickling is, takes ``y += 1`` for ``y = y + 1``."""
    net, x = build(Overwriting), torch.randn(2, 4, 6, 5)
    graph = reparamkit.fuse(net, x, as_graph=True)
    wanted, again = run(net, x), pickle.loads(pickle.dumps(graph))
    same(run(graph, x), wanted)
    same(run(again, x), wanted)
    same(run(reparamkit.fuse(again, x), x), wanted)


def test_inplace():
    """`inplace=True` returns the model itself, merged."""
    net, wanted = build(Net), run(build(Net), X)
    fused = reparamkit.fuse(net, X, inplace=True)
    assert fused is net
    assert not any(isinstance(module, _BatchNorm) for module in net.modules())
    same(run(net, X), wanted)


def test_explain_changes_nothing():
    """`explain` gives the report of `fuse` and leaves the model alone."""
    net = build(Net)
    report = reparamkit.explain(net, X)
    assert report == reparamkit.report(reparamkit.fuse(net, X))
    assert any(isinstance(module, _BatchNorm) for module in net.modules())


@pytest.mark.parametrize("asked", [reparamkit.report, reparamkit.recipe], ids=["report", "recipe"])
def test_what_fuse_leaves_needs_a_fused_model(asked: Callable[[nn.Module], object]):
    """A model that was not fused has no report and no recipe, and the error says which."""
    with pytest.raises(InvalidInputError, match=rf"no {asked.__name__}.*reparamkit\.fuse"):
        asked(build(Net))


# --- failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("with_inputs", [False, True], ids=["without inputs", "with inputs"])
@pytest.mark.parametrize("factor", [1.01, 1 + 1e-6, float("nan")])
def test_a_wrong_reader_is_found(factor: float, with_inputs: bool, inplace: bool):
    """A reader that is wrong by 1% (or less) in one scale raises an error that names the site; the model still
    gives what it gave."""
    model = build(lambda: seq(conv_norm(3, 4), nn.ReLU(), conv(4, 4), OneOff(4)))
    wanted = run(model, X)
    with READERS.restored():

        @reparamkit.reader(OneOff)
        def _wrong(layer: nn.Module, input: Any) -> Any:
            return reparamkit.scale(read_batch_norm_layer(layer, input), torch.tensor([1.0, 1.0, factor, 1.0]))

        with pytest.raises(EquivalenceError, match="'3'"):
            reparamkit.fuse(model, X if with_inputs else None, inplace=inplace)
    same(run(model, X), wanted)
    assert operations(model, X).split()[-2:] == ["conv", "norm"]


class OneOff(nn.BatchNorm2d):
    """A norm with a reader of its own."""


class Steep(nn.Module):
    """One number, a million times as sensitive as the layers before it."""

    def __init__(self):
        super().__init__()
        self.layers = conv_norm(2, 2)

    def forward(self, x):
        return torch.sin(1e6 * self.layers(x).mean())


def test_a_model_that_amplifies_rounding_is_fused():
    """What one rounding of the weights does may be next to nothing by chance: it is not asked once."""
    for seed in range(60):
        torch.manual_seed(seed)
        model = randomize(Steep()).double().eval()
        reparamkit.fuse(model, torch.randn(1, 2, 3, 3).double())


def test_verify_is_strict():
    """`verify` passes for a fused model and fails when one channel of one layer is 1% off."""
    net, fused = copy.deepcopy(net_and_fused())
    assert reparamkit.verify(fused, net, X).passed
    with torch.no_grad():
        fused.stem[0][0].weight[0] *= 1.01
    found = reparamkit.verify(fused, net, X)
    assert not found.passed
    assert found.error > 1e-4
    assert "NOT equal" in str(found)


@pytest.mark.parametrize(
    "other", [lambda x: x.conj(), lambda x: torch.complex(x.real, -2 * x.imag)], ids=["conjugate", "other"]
)
def test_verify_compares_complex_numbers(other: Callable[[Tensor], Tensor]):
    """Both parts of them."""
    spectrum = build(lambda: Model(lambda m, x: torch.fft.fft(x)))
    found = build(lambda: Model(lambda m, x: other(torch.fft.fft(x))))
    assert reparamkit.verify(spectrum, spectrum, X).passed
    assert not reparamkit.verify(found, spectrum, X).passed


def test_verify_compares_numbers():
    """Those that are no tensors, too."""
    models = [build(lambda k=k: Model(lambda m, x: (x, k))) for k in (3, 4.0)]
    assert reparamkit.verify(models[0], models[0], X).passed
    assert not reparamkit.verify(*models, X).passed


@pytest.mark.filterwarnings("ignore")
def test_verify_compares_tensors_in_one_of_unequal_sizes():
    models = [
        build(lambda k=k: Model(lambda m, x: torch.nested.nested_tensor([x[0, 0], k * x[1, 0, :2]]))) for k in (1, 2)
    ]
    assert reparamkit.verify(models[0], models[0], X).passed
    assert not reparamkit.verify(*models, X).passed


def test_a_rule_that_fails_leaves_the_model():
    """An error in a user's reader comes out with its words, and the model is as before."""
    model = build(lambda: seq(conv(3, 4), OneOff(4)))
    before = operations(model, X)
    with READERS.restored():

        @reparamkit.reader(OneOff)
        def _broken(layer: nn.Module, input: Any) -> Any:
            raise ZeroDivisionError("a bug in the reader")

        with pytest.raises(Exception, match="a bug in the reader"):
            reparamkit.fuse(model, X, inplace=True)
    assert operations(model, X) == before


class Parts(nn.Module):
    """Two pairs that merge, called in some modes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(3, 3), conv_norm(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            y = self.a(x) + x
        return y, self.b(y.relu()) + y


class Undecided(Parts):
    """Adds a branch where there are gradients."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.a(x) + x
        return (y + self.b(x) if torch.is_grad_enabled() else y,)


class Decorated(Parts):
    """Never has gradients."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.a(x) + x,)


@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("make", [Parts, Undecided, Decorated])
def test_the_grad_modes_of_the_code_stay(make: Callable[[], nn.Module], with_grad: bool):
    """What is computed without gradients has none afterwards, and code that asks for the mode gets an answer."""
    net = build(make)
    fused = reparamkit.fuse(net, X)
    assert reparamkit.report(fused).merges
    with torch.set_grad_enabled(with_grad):
        for mine, theirs in zip(fused(X), net(X), strict=True):
            same(mine.detach(), theirs.detach())
            assert mine.requires_grad == theirs.requires_grad


class Remembering(nn.Module):
    """Keeps what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.calls, self.last, self.all, self.known = conv_norm(3, 3), 0, None, [], {}

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.part(x)
        self.calls += 1
        self.all.append(self.last)
        self.known["last"] = self.last
        return self.last.relu()


@pytest.mark.parametrize("call", [reparamkit.fuse, reparamkit.explain, lambda m, x: reparamkit.verify(m, m, x)])
def test_what_a_model_remembers_is_of_its_own_calls(call: Callable[..., Any]):
    """Trying a model leaves nothing in its attributes."""
    net = build(Remembering)
    hook = net.part.register_forward_hook(lambda *args: hook.remove())
    call(net, X)
    assert (net.last, net.calls, net.all, net.known) == (None, 0, [], {})
    assert net.part._forward_hooks


@pytest.mark.parametrize("place", ["conv", "norm", "b"])
def test_a_hook_that_reads_what_went_in_gets_it(place: str):
    """A hook behind a merge is carried along only if it looks at the result alone."""
    net = build(Row)
    getattr(net, place).register_forward_hook(lambda module, args, output: output + args[0].mean())
    fused = reparamkit.fuse(net, X)
    same(run(fused, X), run(net, X))


class Pair(nn.Module):
    """Two blocks that are written again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = repvgg(4), repvgg(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


@pytest.mark.parametrize("options", [{}, {"inplace": True}], ids=["a copy", "in place"])
def test_a_method_that_cannot_be_written_in_the_end_stays(options: dict[str, bool], monkeypatch: pytest.MonkeyPatch):
    """Its merges are refused with the reason, and the others are made."""

    def folded(captured: Any, frame: Any, inlined: Any, *members: Any, **leaving: Any) -> Any:
        if frame.path == "a" and not members:
            raise NotFusable("'a' uses a value that does not reach it as an argument")
        return fold(captured, frame, inlined, *members, **leaving)

    monkeypatch.setattr(finish, "fold", folded)
    net, x = build(Pair), sample(MAPS[0], torch.float32)
    wanted, kind = run(net, x), type(net.a).forward
    fused = reparamkit.fuse(net, x, **options)
    same(run(fused, x), wanted)
    assert operations(fused, x).split().count("conv") == 3
    assert type(fused.a).forward is kind
    refused = {refusal.path for refusal in reparamkit.report(fused).refusals if "does not reach it" in refusal.reason}
    assert refused >= {name for name, layer in net.named_modules() if name[:2] == "a." and isinstance(layer, nn.Conv2d)}


class Listed(nn.Module):
    """Calls its layers from a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.rest = conv(3, 4), norm(4), conv_norm(4, 4)
        self.layers = [self.conv, self.norm, self.rest]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_parameters_of_a_fused_model_are_those_it_computes_with():
    """A layer that a plain list has as well is replaced there too."""
    fused = reparamkit.fuse(build(Listed), X)
    assert operations(fused, X) == "conv conv"
    fused(X).sum().backward()
    assert all(parameter.grad is not None for parameter in fused.parameters())


class Best(nn.Module):
    """The place of the largest value of each channel: among equals, a matter of rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.a = seq(conv(64, 32, 1), norm(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).flatten(2).argmax(-1).float()


def test_a_choice_among_equals_is_compared_in_float64(monkeypatch: pytest.MonkeyPatch):
    """Where two models choose otherwise only for rounding, they are equal."""
    monkeypatch.setattr(reparamkit.whole, "AMPLIFIED", 0)
    model = build(Best)
    with torch.no_grad():
        model.a[0].weight.copy_(model.a[0].weight[:, :1].expand_as(model.a[0].weight))
    values = torch.arange(64.0) - 20
    x = torch.stack([values[torch.randperm(64, generator=torch.Generator().manual_seed(k))] for k in range(49)], 1)
    x = x.reshape(1, 64, 7, 7)
    fused = reparamkit.fuse(model, x)
    assert not torch.equal(run(fused, x), run(model, x))
    assert reparamkit.report(fused).error == 0


class TrainsWhenCopied(Net):
    """Its copies are in training mode, as those of torchvision's feature extractors are."""

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainsWhenCopied:
        made = TrainsWhenCopied.__new__(TrainsWhenCopied)
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made.train()


def test_a_copy_that_is_in_another_mode_than_the_model_is_put_into_its_mode():
    net = build(TrainsWhenCopied)
    fused = reparamkit.fuse(net, X)
    assert not any(module.training for module in fused.modules())
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    same(run(fused, X), run(net, X))


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_a_layer_that_adds_to_the_size_stays_of_its_kind(kind: type[nn.Conv1d] | type[nn.ConvTranspose1d]):
    """Either could do what the other does; a transposed one multiplies less often, and takes longer."""
    padding = 2 if kind is nn.Conv1d else 0
    model = build(lambda: seq(kind(4, 6, 3, padding=padding), nn.BatchNorm1d(6)))
    x = sample((2, 4, 9), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert [type(layer) for layer in fused.modules() if getattr(layer, "weight", None) is not None] == [kind]
    assert error(run(fused, x), run(model, x)) <= 1e-6


class SamePadding(nn.Conv2d):
    """Pads by the sizes of its input and of its kernel, as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        """x: shape (n, c, h, w)."""
        pads: list[int] = []
        for n, k, s in zip(x.shape[:1:-1], self.weight.shape[:1:-1], self.stride[::-1], strict=True):
            whole = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [whole // 2, whole - whole // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride)


def test_a_weight_is_not_kept_for_the_code_that_reads_its_size():
    model = build(lambda: seq(SamePadding(3, 4, 3, 2), norm(4), nn.ReLU()))
    x = sample((2, 3, 11, 9), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert sum(p.numel() for p in fused.parameters()) == 3 * 4 * 9 + 4
    assert error(run(fused, x), run(model, x)) <= 1e-6


class SelfPadding(nn.Conv2d):
    """Pads by itself as much as its kernel needs, which may be nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """x: shape (n, c, h, w)."""
        p = self.kernel_size[0] // 2
        return F.conv2d(F.pad(x, (p, p, p, p)), self.weight, None, self.stride)


def test_a_padding_by_nothing_is_no_obstacle():
    model = build(lambda: seq(nn.Sequential(nn.ReLU(), SelfPadding(3, 4, 1, 2), norm(4))))
    x = sample((2, 3, 11, 9), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fused.modules())
    assert error(run(fused, x), run(model, x)) <= 1e-6


class Unfollowed(nn.Module):
    """A long row of sums, behind which the forward decides on data."""

    def forward(self, x: Tensor) -> Tensor:
        """x: shape (n, c)."""
        for _ in range(64):
            x = x + x.relu()
        return -x if x.sum() > 0 else x


def test_what_decides_on_data_is_found_out_at_once():
    """Each sum is asked once whether it is constant, not once per way to it, of which there are 2**64."""
    model = build(lambda: seq(nn.Linear(4, 4), nn.BatchNorm1d(4), Unfollowed()))
    x = sample((3, 4), torch.float32)
    assert [merge.path for merge in reparamkit.report(reparamkit.fuse(model, x)).merges] == ["1"]


class Ranked(nn.Module):
    """A block that checks the rank of what it gets, as timm's do; the written code checks it too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(4, 4), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.dim() == 4, "an image")
        return F.relu(self.a(x) + self.b(x))


def test_written_code_with_checks_is_compiled_inside_other_code():
    """Before torch 2.13 dynamo looks names of an inner function up in the module that its globals name."""
    model = build(lambda: seq(Ranked(), Ranked()))
    x = sample((2, 4, 6, 6), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert "expect_rank" in inspect.getsource(type(fused[0]).forward)
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    assert error(run(compiled, x), run(model, x)) <= 1e-6


class Rows(nn.ModuleList):
    """Branches side by side, added in place."""

    def forward(self, x: Tensor) -> Tensor:
        total = self[0](x)
        for branch in list(self)[1:]:
            total.add_(branch(x))
        return total


def scaled_parts(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.a(x[:, :1]), m.b(x[:, 1:])], 1)


def shifted_pads(m: Any, x: Tensor) -> Tensor:
    x = F.pad(m.last(torch.cat([m.a(x), x], 1)), [0, 1, -1, 0, 1, 2])
    return x + (m.n.weight / (m.n.running_var + 0.1).sqrt()).view(1, -1, 1, 1, 1)


def normed_sum(m: Any, x: Tensor) -> Tensor:
    return m.rows(m.linear(m.norm(m.branches(m.first(x)).mul_(m.slope.weight))))


def written_for_nothing(m: Any, x: Tensor) -> Tensor:
    x = m.a(x) - m.n.running_mean[..., None, None]
    y = m.b(x).flatten(2).transpose(1, 2)
    y = (m.linear(y) + y).transpose(1, 2).reshape(-1, 1, 7, 2)
    y.transpose(1, -1).add_(1)
    return x


NOTHING_RISES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "convolutions that only scale": (
        lambda: Model(scaled_parts, a=nn.Conv2d(1, 1, 1), b=nn.Conv2d(1, 1, 1)),
        (2, 2, 9, 4),
        True,
    ),
    "a sum in place": (
        lambda: Model(
            lambda m, x: m.a(x).add_(m.b(x)).mul_(m.g.weight),
            a=nn.Conv1d(1, 1, 5, dilation=2, padding=4),
            b=nn.Conv1d(1, 1, 3, padding=1),
            g=nn.PReLU(),
        ),
        (2, 1, 7),
        True,
    ),
    "the rank of a value that a merge takes in": (
        lambda: Model(shifted_pads, a=nn.Conv3d(4, 4, 3, padding="same"), last=nn.Conv3d(8, 4, 1), n=nn.BatchNorm3d(4)),
        (2, 4, 3, 4, 4),
        False,
    ),
    "the size of a value inside of another merge": (
        lambda: Model(
            normed_sum,
            first=nn.Conv2d(1, 1, 3),
            branches=Rows([nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 5, padding=2)]),
            slope=nn.PReLU(),
            norm=nn.RMSNorm(2),
            linear=nn.Linear(2, 2),
            rows=Rows(
                [
                    nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1, bias=k == 0) for k in range(2)), nn.BatchNorm2d(1)),
                    nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)),
                    nn.Identity(),
                ]
            ),
        ),
        (2, 1, 8, 4),
        True,
    ),
    "the sizes of what is merged and then read by nothing": (
        lambda: Model(
            written_for_nothing,
            a=nn.Conv2d(1, 1, 3, padding=1),
            n=nn.BatchNorm2d(1),
            b=nn.Conv2d(1, 1, 4, padding=2, dilation=2),
            linear=nn.Linear(1, 1),
        ),
        (2, 1, 9, 4),
        True,
    ),
}


@pytest.mark.parametrize("name", NOTHING_RISES)
def test_neither_flops_nor_stored_numbers_rise(name: str):
    """What is written, with the checks of sizes that it needs, does no more work than the model, and stores no more."""
    make, shape, given = NOTHING_RISES[name]
    model, x = build(make), sample(shape, torch.float32)
    fused = reparamkit.fuse(model, x if given else None)
    report = reparamkit.report(fused)
    assert report.merges
    assert report.after.flops <= report.before.flops
    assert report.after.stored <= report.before.stored
    assert error(run(fused, x), run(model, x)) <= 1e-6


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_layer_that_is_called_by_the_name_of_its_argument_is_proved(kernel: int):
    """`conv(input=x)` is a call as any other."""
    model = build(lambda: Model(lambda m, x: m.n(m.a(input=x)), a=nn.Conv2d(4, 4, kernel), n=nn.BatchNorm2d(4)))
    report = reparamkit.report(reparamkit.fuse(model))
    assert [merge.error is not None for merge in report.merges] == [True]


class MeasuredTokens(nn.Module):
    """ResMLP whose number of tokens is read from the input, and told by the map that they are."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.local = nn.Linear(16, 16), conv_norm(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        across = x.transpose(1, 2)
        maps = self.local(across.reshape(n * c, 1, 4, 4)).reshape(n, c, t)
        return torch.relu(self.tokens(across) + maps)


def test_layers_of_a_merge_that_could_not_be_proved_merge_without_the_others():
    """No input tells that x has 16 tokens, so the whole cannot be run: the norm goes into its convolution at least."""
    net, x = build(MeasuredTokens), torch.randn(2, 16, 6)
    fused = reparamkit.fuse(net)
    assert "norm" not in operations(fused, x)
    assert error(run(fused, x), run(net, x)) <= 1e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda: seq(nn.Conv2d(1, 4, (1, 400), (1, 50), (0, 175)), nn.BatchNorm2d(4)),
        lambda: seq(nn.Conv1d(4, 4, 60), nn.Conv1d(4, 4, 60), nn.BatchNorm1d(4)),
        lambda: seq(nn.Conv3d(2, 2, 50), nn.BatchNorm3d(2)),
        lambda: seq(nn.ReLU(), nn.AvgPool2d((1, 75), (1, 16)), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        lambda: seq(nn.ConvTranspose1d(4, 4, 60, padding=58), nn.BatchNorm1d(4)),
    ],
    ids=["strided", "two in a row", "three dimensions", "pool", "transposed"],
)
def test_a_window_of_any_length_is_proved_without_inputs(make: Callable[[], nn.Module]):
    """The sizes that are tried are such that it fits."""
    fused = reparamkit.fuse(build(make))
    assert not any("Norm" in type(layer).__name__ for layer in fused.modules())
