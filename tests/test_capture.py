"""Models as people write them: what their forward takes, returns and does must not keep it from being fused."""

from __future__ import annotations

import copy
import functools
import logging
import math
import random
from argparse import Namespace
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structures import Model, Sum, build, conv, conv_norm, error, norm, operations, run, sample, seq
from torch import Tensor, nn
from torch.autograd import Variable
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import reparamkit
from reparamkit import CaptureError, CoverageError, GuardError, InvalidInputError
from reparamkit.capture import parts
from reparamkit.capture.aliases import Aliases

X = sample((2, 4, 8, 8), torch.float32)
Pair = namedtuple("Pair", "first second")


@dataclass
class Record:
    """A batch, or a result, as a dataclass."""

    x: Tensor
    y: Tensor | None = None


class Mapped(OrderedDict):
    """A dictionary whose entries are attributes too, as results of transformers are."""

    @property
    def z(self) -> Tensor:
        return self["z"]


class Scaled:
    """An argument that is no tensor and cannot be written as code."""

    factor = 2


# --- models: each has two pairs of a convolution and a norm, and no norm may be left ----------------------


def two(body: Callable[..., Any], **parts: nn.Module) -> Callable[[], nn.Module]:
    """A model of two convolutions with norms, `a` and `b`."""
    return lambda: Model(body, a=conv_norm(4, 4), b=conv_norm(4, 4), **parts)


class Keywords(nn.Module):
    """Any number of arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(4, 4), conv_norm(4, 4)

    def forward(self, *xs: Tensor, **more: Any) -> Tensor:
        y = self.a(xs[0]) + xs[1]
        return self.b(F.relu(y) if more["flag"] else y) + more["z"]


class ScriptedChild(nn.Module):
    """A ScriptModule among the children."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = conv_norm(4, 4), conv_norm(4, 4), torch.jit.script(nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(x)))


def gated(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Signed(nn.Module):
    """Another sign for maps whose sum is negative."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps. shape of `x`."""
        return torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: -v, (x,))


@cache
def scripted() -> Any:
    """A function that torch.jit compiled."""
    return torch.jit.script(gated)


class Head(nn.Module):
    """A branch on data."""

    def __init__(self) -> None:
        super().__init__()
        self.b = conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(x)
        return y if y.sum() > 0 else -y


class Lazily(nn.Module):
    """Makes a tensor in its first forward and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.kept = conv_norm(4, 4), conv_norm(4, 4), None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None or self.kept.shape != x.shape:
            self.kept = torch.ones_like(x)
        return self.b(F.relu(self.a(x)) * self.kept)


class Growing(nn.Module):
    """Writes into an argument that is no tensor, as attention writes into a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.b = conv_norm(4, 4)

    def forward(self, x: Tensor, cache: list[Tensor]) -> Tensor:
        cache.append(self.b(F.relu(x)))
        return torch.cat(cache) if x.sum() > -1e9 else x


class Cached(nn.Module):
    """A cache for each run, and a part that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.inner = conv_norm(4, 4), Growing()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.a(x), [])


def nested(m: Any, x: Tensor) -> Tensor:
    for block in m.blocks:
        x = F.relu(block["c"](x))
    return x


def one_by_one(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    return torch.cat([m.b(y[i : i + 1]) for i in range(x.size(0))])


def checked(m: Any, x: Tensor) -> Tensor:
    channels, height = x.shape[1:3]
    assert channels == 4, f"{channels} channels"
    torch._assert(height % 4 == 0, "height")
    return m.b(F.relu(m.a(x)))


def selected(m: Any, x: Tensor) -> Tensor:
    """As old code says it."""
    places = Variable(torch.tensor([3, 0, 1, 2]))
    return m.b(F.relu(Variable(m.a(x))).index_select(1, index=places))


@torch.fx.wrap
def clip(window: list[int], size: Sequence[int]) -> None:
    """Makes a window not larger than an image."""
    for k, most in enumerate(size):
        window[k] = min(window[k], most)


def windowed(m: Any, x: Tensor) -> Tensor:
    window = [16, 4]
    clip(window, x.shape[2:])
    return m.b(F.relu(m.a(x)[:, :, : window[0], : window[1]])) * window[0]


class OwnSwish(torch.autograd.Function):
    """Has a backward of its own, so its forward runs without gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x: any shape."""
        return x * x.sigmoid()


class Swish(nn.Module):
    """Calls it."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = OwnSwish.apply(x)
        return found


class OwnWeight(nn.Module):
    """Its weight is a product whose gradient is its own, or has a sparse part."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.w, self.v, self.norm = nn.Parameter(torch.rand(4, 4)), nn.Parameter(torch.rand(4)), norm(4)
        self.sparse = sparse

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        places = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
        part = (
            torch.sparse_coo_tensor(places, self.v, (4, 4), check_invariants=False).to_dense()
            if self.sparse
            else self.v
        )
        found: Tensor = F.linear(y.mean((2, 3)), OwnSwish.apply(self.w) * self.v + part)
        return found


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], dict[str, Any]]] = {
    "dictionary": (two(lambda m, d: {"out": F.relu(m.a(d["x"])) + m.b(d["y"]), "no": None}), ({"x": X, "y": X},), {}),
    "dataclass in": (two(lambda m, d: F.relu(m.a(d.x)) + m.b(d.y)), (Record(X, X),), {}),
    "dataclass out": (two(lambda m, x: Record(F.relu(m.a(x) + m.b(x)))), (X,), {}),
    "named tuple": (two(lambda m, x: Pair(F.relu(m.a(x) + m.b(x)), x)), (X,), {}),
    "mapping": (two(lambda m, x: Mapped(z=F.relu(m.a(x) + m.b(x)), no=None)), (X,), {}),
    "list of tensors": (two(lambda m, xs: [m.a(xs[0][None]), m.b(xs[1][None])]), ([X[0], X[1]],), {}),
    "None among the results": (two(lambda m, x: (m.b(F.relu(m.a(x))), None, [None, {"no": None}])), (X,), {}),
    "any arguments": (Keywords, (X, X), {"flag": True, "z": X}),
    "checkpoint": (two(lambda m, x: m.b(F.relu(checkpoint(m.a, x, use_reentrant=False)))), (X,), {}),
    "variables": (two(selected), (X,), {}),
    "a list that a function changes": (two(windowed), (X,), {}),
    "nested containers": (
        lambda: Model(nested, blocks=nn.ModuleList(nn.ModuleDict({"c": conv_norm(4, 4)}) for _ in range(2))),
        (X,),
        {},
    ),
    "called in a loop": (two(one_by_one), (X,), {}),
    "two inputs, one encoder": (two(lambda m, x: m.b(F.relu(m.a(x))) - m.b(F.relu(m.a(x.flip(-1))))), (X,), {}),
    "scripted child": (ScriptedChild, (X,), {}),
    "scripted function": (two(lambda m, x: m.b(scripted()(m.a(x)))), (X,), {}),
    "a constant of the input's dtype": (
        two(lambda m, x: m.b(F.relu(m.a(x))) + torch.arange(4.0).to(x)[:, None, None]),
        (X,),
        {},
    ),
    "branch on data": (lambda: Model(lambda m, x: m.h(F.relu(m.a(x))), a=conv_norm(4, 4), h=Head()), (X,), {}),
    "kept tensor": (Lazily, (X,), {}),
    "cache": (Cached, (X,), {}),
    "assertions": (two(checked), (X,), {}),
    "own gradients of a weight": (lambda: OwnWeight(sparse=False), (X,), {}),
    "own gradients inside": (two(lambda m, x: m.s(m.a(x) + m.b(x)), s=Swish()), (X,), {}),
}


def tensors(output: Any) -> list[Tensor]:
    """All tensors in a result."""
    if is_dataclass(output):
        output = [getattr(output, field.name) for field in fields(output)]
    output = list(output.values()) if isinstance(output, dict) else output
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def run_on(model: nn.Module, args: Any) -> Any:
    """The output of a model, on these very arguments."""
    with torch.no_grad():
        return model(*args)


def results(model: nn.Module, args: Any, kwargs: Any) -> Any:
    with torch.no_grad():
        return model(*copy.deepcopy(args), **copy.deepcopy(kwargs))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_every_norm_is_folded(name: str):
    """Same results, of the same class, and no norm left."""
    make, args, kwargs = MODELS[name]
    model = build(make)
    fused = reparamkit.fuse(model, args, example_kwargs=kwargs)
    found, wanted = results(fused, args, kwargs), results(model, args, kwargs)
    assert type(found) is type(wanted)
    pairs = list(zip(tensors(found), tensors(wanted), strict=True))
    assert pairs
    assert all(error(a, b) <= 1e-5 for a, b in pairs)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())


def test_a_shared_module_holds_for_every_size():
    """A head that is called on maps of two sizes is merged once, for both, and says so."""
    model = build(lambda: Model(lambda m, x: (m.a(x), m.a(x[..., ::2, ::2])), a=seq(conv_norm(4, 4), nn.ReLU())))
    fused = reparamkit.fuse(model, X)
    for size in (8, 6):
        x = sample((1, 4, size, size), torch.float32)
        assert all(error(a, b) <= 1e-5 for a, b in zip(results(fused, (x,), {}), results(model, (x,), {}), strict=True))
    whole, part = reparamkit.report(fused).parts
    assert (whole.path, whole.tier, part.path, part.tier, part.calls) == ("", "values", "a", "symbolic", 2)
    assert "2 times" in part.reason


class Sometimes(nn.Module):
    """Calls a shared part with different flags."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Raw()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) + self.part(x, raw=True)


class Raw(nn.Module):
    """A flag that ends the forward before the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)

    def forward(self, x: Tensor, raw: bool = False) -> Tensor:
        y = self.conv(x)
        if raw:
            return y
        return self.norm(y)


class Chosen(Raw):
    """A flag that chooses the result at the end."""

    def forward(self, x: Tensor, raw: bool = False) -> Tensor:
        y = self.conv(x)
        z = self.norm(y)
        return y if raw else z


@pytest.mark.parametrize("make", [Raw, Chosen])
@pytest.mark.parametrize("example", [None, X])
def test_a_flag_is_never_ignored(make: Callable[[], nn.Module], example: Tensor | None):
    """The other value of a flag gives what it gave, or is refused with words."""
    model = build(make)
    fused = reparamkit.fuse(model, example)
    assert error(results(fused, (X,), {}), results(model, (X,), {})) <= 1e-5
    with pytest.raises(GuardError, match="False"):
        fused(X, raw=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("example", [X, None])
def test_a_scripted_part_with_modules_inside_stays_as_it_is(example: Tensor | None):
    scripted_row = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
    model = build(lambda: seq(conv_norm(4, 4), scripted_row, conv_norm(4, 4)))
    fused = reparamkit.fuse(model, example)
    assert len(reparamkit.report(fused).merges) == 2
    assert error(run(fused, X), run(model, X)) <= 1e-5


@pytest.mark.parametrize("example", [X, None])
def test_what_runs_functions_as_torch_cond_does_stays_a_call(example: Tensor | None):
    model = build(lambda: seq(conv_norm(4, 4), Signed(), conv_norm(4, 4)))
    fused = reparamkit.fuse(model, example)
    assert len(reparamkit.report(fused).merges) == 2
    assert all(error(run(fused, x), run(model, x)) <= 1e-5 for x in (X, -X, X.abs()))


@pytest.mark.parametrize("example", [X, None])
def test_a_scalar_of_numpy_is_a_number_on_either_side(example: Tensor | None):
    model = build(two(lambda m, x: numpy.float64(2) * m.b(m.a(x)) / numpy.int64(3) - x * numpy.float32(0.5)))
    for as_graph in (False, True):
        fused = reparamkit.fuse(model, example, as_graph=as_graph, objective="launches")
        assert error(run(fused, X), run(model, X)) <= 1e-5
        assert len(operations(fused, X)) < len(operations(model, X)) - 3


@pytest.mark.parametrize("example", [X, None])
def test_settings_of_layers_may_be_numbers_of_numpy(example: Tensor | None):
    """As sizes are that a builder of models computes: of a product, a rounded width, a list of strides."""
    one, two_, three = numpy.int64(1), numpy.int32(2), numpy.int64(3)
    model = build(
        lambda: seq(
            nn.Conv2d(4, 4, (three, three), (one, two_), (one, one)),
            nn.BatchNorm2d(4, eps=numpy.float64(1e-3)),
            nn.MaxPool2d(three, one, one),
            nn.ConvTranspose2d(4, 4, two_, two_, groups=two_),
            nn.AvgPool2d(two_, two_),
            nn.BatchNorm2d(4),
        )
    )
    fused = reparamkit.fuse(model, example)
    assert operations(fused, X) == "conv max_pool2d_with_indices conv"
    assert error(run(fused, X), run(model, X)) <= 1e-5


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_scripted_part_needs_no_example():
    """A layer that torch.jit.script compiled is one call, and what is around it merges."""
    model = build(lambda: seq(conv_norm(4, 4), torch.jit.script(nn.Conv2d(4, 4, 1)), conv_norm(4, 4)))
    fused = reparamkit.fuse(model)
    assert len(reparamkit.report(fused).merges) == 2
    assert error(results(fused, (X,), {}), results(model, (X,), {})) <= 1e-5


def test_calls_with_different_flags_are_not_alike():
    """A shared module whose calls take different ways is left."""
    model = build(Sometimes)
    fused = reparamkit.fuse(model, X)
    assert error(results(fused, (X,), {}), results(model, (X,), {})) <= 1e-5
    assert any(isinstance(module, _BatchNorm) for module in fused.modules())


class TakesObject(nn.Module):
    """Gets an argument that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.c = conv_norm(4, 4)

    def forward(self, x: Tensor, scaled: Scaled) -> Tensor:
        return F.relu(self.c(x)) * scaled.factor


def test_an_argument_that_cannot_be_written_is_a_reason():
    """A merge that needs code is refused where the code hands on an object."""
    model = build(two(lambda m, x: m.kid(F.relu(m.a(x) + m.b(x)), Scaled()), kid=TakesObject()))
    fused = reparamkit.fuse(model, X)
    assert error(results(fused, (X,), {}), results(model, (X,), {})) <= 1e-5
    assert any("Scaled" in refusal.reason for refusal in reparamkit.report(fused).refusals)


class Filling(nn.Module):
    """Puts what it computes into a list or dictionary that it gets, beside what it returns."""

    def __init__(self, fill: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.fill = conv_norm(4, 4), conv_norm(4, 4), fill

    def forward(self, x: Tensor, found: Any) -> Tensor:
        y = self.a(x) + self.b(x)
        self.fill(found, y)
        return F.relu(y)


FILLS: dict[str, tuple[Any, Callable[[Any, Tensor], Any]]] = {
    "a list grows": ([], lambda found, y: found.append(y)),
    "an item is replaced": ([None], lambda found, y: found.__setitem__(0, y)),
    "a dictionary gets a name": ({}, lambda found, y: found.update({f"y{len(found)}": y})),
    "a list in a tuple": (([],), lambda found, y: found[0].append(y)),
    "a list loses its items": ([X], lambda found, y: found.clear()),
}


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("inside", [False, True])
def test_what_a_forward_puts_into_its_arguments_is_there(name: str, inside: bool):
    """Code that is written again would put it nowhere, so it stays; what needs no new code is merged."""
    empty, fill = FILLS[name]

    def body(m: Any, x: Tensor) -> Any:
        found = copy.deepcopy(empty)
        return m.second(m.first(x, found), found), found

    model = build(lambda: Model(body, first=Filling(fill), second=Filling(fill)) if inside else Filling(fill))
    args = (X,) if inside else (X, empty)
    fused = reparamkit.fuse(model, args)
    ours, theirs = (copy.deepcopy(args) for _ in range(2))
    pairs = zip(tensors((run_on(fused, ours), ours)), tensors((run_on(model, theirs), theirs)), strict=True)
    assert all(error(found, wanted) <= 1e-6 for found, wanted in pairs)
    assert any("a list, dictionary or object that it gets" in each.reason for each in reparamkit.report(fused).refusals)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())


class Collecting(nn.Module):
    """Puts what the next layer reads into what it gets."""

    def __init__(self, fill: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.fill = conv_norm(4, 4), conv(4, 4, 1), fill

    def forward(self, x: Tensor, found: Any) -> Tensor:
        y = self.a(x)
        self.fill(found, y)
        return self.b(y)


KEPT: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Any]]] = {
    "in a list": (list, lambda found, y: found.append(y)),
    "in a dictionary": (dict, lambda found, y: found.update(y=y)),
    "in an object": (SimpleNamespace, lambda found, y: setattr(found, "y", y)),
    "in an object of Python's": (Namespace, lambda found, y: setattr(found, "y", y)),
    "in a list of an object": (lambda: SimpleNamespace(seen=[]), lambda found, y: found.seen.append(y)),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
def test_a_value_that_an_argument_keeps_is_what_it_was(name: str, with_inputs: bool):
    """Whoever calls the model sees it; so the layer behind does not take the norm before it."""
    empty, fill = KEPT[name]
    model = build(lambda: Collecting(fill))
    example = (X, empty()) if with_inputs else None
    try:
        fused = reparamkit.fuse(model, example)
    except CaptureError:
        assert not with_inputs
        return
    assert example is None or not kept_in(example[1])
    ours, theirs = (X.clone(), empty()), (X.clone(), empty())
    assert error(run_on(fused, ours), run_on(model, theirs)) <= 1e-5
    for found, wanted in zip(kept_in(ours[1]), kept_in(theirs[1]), strict=True):
        assert error(found, wanted) <= 1e-5


def kept_in(found: Any) -> list[Tensor]:
    """The tensors that a forward has put there."""
    return tensors(vars(found) if isinstance(found, (SimpleNamespace, Namespace)) else found)


class Gridded(nn.Module):
    """Keeps a grid of the last size, as the heads of YOLO do, and makes a new one for another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.grids = conv_norm(4, 4), conv_norm(4, 4), [torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + self.b(x)
        if self.grids[0].shape[-2:] != y.shape[-2:]:
            self.grids[0] = torch.arange(y.shape[-1]).expand(y.shape[-2:]).to(y)
        return F.relu(y) + self.grids[0]


@pytest.mark.parametrize("ran", [False, True])
def test_what_a_forward_keeps_for_a_size_is_made_again_for_another(ran: bool):
    """A trace sees what the last run has left, and would check that it still fits."""
    model = build(Gridded)
    if ran:
        run(model, X)
    fused = reparamkit.fuse(model, X)
    for size in (X.shape[-1], 5, 12):
        x = sample((1, 4, 7, size), torch.float32)
        assert error(run(fused, x), run(model, x)) <= 1e-6
    why = "what it keeps in 'grids'" if ran else "sets attributes"
    assert any(why in each.reason for each in reparamkit.report(fused).refusals)


DTYPES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "to(dtype)": lambda m, y: y.relu() * m.t.to(y.dtype),
    "to(tensor)": lambda m, y: y.relu() * m.t.to(y),
    "type_as": lambda m, y: y.relu() * m.t.type_as(y),
    "type": lambda m, y: y.float().relu().type(y.dtype),
    "softmax and back": lambda m, y: torch.softmax(y, 1, dtype=torch.float32).to(y.dtype),
    "to(device, dtype)": lambda m, y: y.relu() * m.t.to(device=y.device, dtype=y.dtype),
    "sum": lambda m, y: y.relu().double().sum(-1, dtype=y.dtype),
    "new tensor of a size": lambda m, y: y.relu() + torch.ones(y.shape[0], 1, 1, 1, dtype=y.dtype),
    "one's own dtype": lambda m, y: y.double().relu().to(torch.float16) if y.dtype == torch.int8 else upcast(y),
}


def upcast(y: Tensor) -> Tensor:
    """As transformers writes its norms."""
    before = y.dtype
    y = y.to(torch.float32)
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(before)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("as_graph", [False, True])
def test_a_fused_model_is_converted_as_the_model_is(name: str, as_graph: bool):
    """A dtype that code reads of a tensor is read again where code is written, not taken as it was in the trace."""
    spelled = DTYPES[name]
    make = two(lambda m, x: spelled(m, m.a(x) + m.b(x)))
    model = build(make)
    model.register_buffer("t", sample((1, 1, 8, 8), torch.float32))
    fused = reparamkit.fuse(model, X, as_graph=as_graph)
    again = reparamkit.fuse(fused, X, as_graph=True)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 5e-2)):
        *found, wanted = (run(copy.deepcopy(each).to(dtype), X.to(dtype)) for each in (fused, again, model))
        assert all(each.dtype == wanted.dtype for each in found)
        assert all(error(each, wanted) <= tolerance for each in found)


class Frozen(nn.Module):
    """Two branches without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(4, 4), conv_norm(4, 4)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x) + self.b(x))


@pytest.mark.parametrize("inside", [False, True])
def test_a_forward_without_gradients_stays_without(inside: bool):
    """Its code may be written again, and that of a module which calls it, too."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.inner(x)
        return m.a(y) + m.b(y)

    model = build(two(body, inner=Frozen()) if inside else Frozen)
    fused = reparamkit.fuse(model, X)
    found, wanted = fused(X), model(X)
    assert error(found, wanted) <= 1e-6
    assert found.requires_grad == wanted.requires_grad == inside
    assert len([m for m in fused.modules() if isinstance(m, nn.Conv2d)]) == 1 + inside
    assert not copy.deepcopy(fused).get_submodule("inner" if inside else "")(X).requires_grad


class Factor(nn.Module):
    """A factor of 1 by default."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm(4, 4)

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return F.relu(self.a(x) * factor)


def test_a_factor_that_a_caller_may_change_stays():
    model = build(Factor)
    fused = reparamkit.fuse(model, X)
    assert error(fused(X, factor=2.0).detach(), model(X, factor=2.0).detach()) <= 1e-6
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())


def test_a_constant_that_is_computed_is_spread_as_before():
    """Distances to the entries of a codebook: a column plus a row, of which only a run tells that it is a column."""
    model = build(
        lambda: Model(
            lambda m, x: x.pow(2).sum(-1, keepdim=True) + m.codes.pow(2).sum(1), codes=nn.Parameter(torch.randn(5, 8))
        )
    )
    fused = reparamkit.fuse(model)
    assert error(run(fused, X), run(model, X)) <= 1e-6


class Masked(nn.Module):
    """Two branches, and an argument that may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(4, 4), conv_norm(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = F.relu(self.a(x) + self.b(x))
        return y if mask is None else y * mask


def test_an_argument_that_only_a_trace_gives():
    """As transformers makes a mask only where it sees that it is traced: what needs other code is refused."""

    def body(m: Any, x: Tensor) -> Tensor:
        return m.inner(x, torch.ones_like(x) if isinstance(x, Proxy) else None)

    model = build(lambda: Model(body, inner=Masked()))
    fused = reparamkit.fuse(model, X)
    assert error(results(fused, (X,), {}), results(model, (X,), {})) <= 1e-5
    assert any("'mask' of its forward is None" in refusal.reason for refusal in reparamkit.report(fused).refusals)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())


class Called(nn.Module):
    """Cannot be traced, and calls a module with an argument that has a default."""

    def __init__(self, inner: Callable[[], nn.Module] = Masked) -> None:
        super().__init__()
        self.inner = inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, torch.ones(x.shape) if x.shape[0] else None)


def test_a_default_that_was_only_assumed():
    """Without example inputs a part is traced with its defaults; its code is not written again on that ground."""
    model = build(Called)
    fused = reparamkit.fuse(model)
    assert error(results(fused, (X,), {}), results(model, (X,), {})) <= 1e-5
    assert any("argument 'mask' is not known" in refusal.reason for refusal in reparamkit.report(fused).refusals)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())


class HandingOn(nn.Module):
    """Hands an argument that may be missing on to a module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inside = norm(4), Masked()

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return self.inside(F.relu(self.norm(x)), mask) * scale


def test_a_default_that_was_only_assumed_and_handed_on():
    """Of a call inside of such a part, what is handed on is as little known; what is not is as it is."""
    model = build(lambda: Called(HandingOn))
    fused = reparamkit.fuse(model)
    assert error(results(fused, (X,), {}), results(model, (X,), {})) <= 1e-5
    assert any("argument 'mask' is not known" in refusal.reason for refusal in reparamkit.report(fused).refusals)
    given = reparamkit.fuse(model, X)
    assert error(results(given, (X,), {}), results(model, (X,), {})) <= 1e-5


class InThree(nn.Module):
    """Three layers in a row; whoever asks for it gets a value from between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(4, 4, 1), conv(4, 4, 1), conv(4, 4, 1)

    def forward(self, x: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        y = self.second(self.first(x))
        if kept is not None:
            kept.append(y)
        return self.third(y)


class Asking(Called):
    """Cannot be traced, and asks a module for a value from inside of it."""

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        y = self.inner(x, kept if x.shape[0] else None)
        return torch.cat([y, *kept])


@pytest.mark.parametrize("example", [(), (X,)], ids=["without inputs", "with inputs"])
def test_a_row_that_merged_in_part_still_gives_what_is_between_it_and_the_rest(example: tuple[Tensor, ...]):
    """Two of the layers are one, in the place of the first: what the second gives now is still the value that the code
    may hand on."""
    model = build(lambda: Asking(InThree))
    fused = reparamkit.fuse(model, *example)
    assert error(results(fused, (X,), {}), results(model, (X,), {})) <= 1e-5
    assert operations(fused, X) < operations(model, X)


class Padded(Raw):
    """Computes with a size as a plain number."""

    def forward(self, x: Tensor) -> Tensor:
        width = int(x.shape[-1])
        left = 1 if width % 2 == 0 else 2
        x = self.conv(F.pad(x, (left, 1, 1, 1)))
        return self.norm(x)


def test_a_size_taken_as_a_number():
    """A merge that holds for every size does not make a model refuse other sizes."""
    model = build(Padded)
    fused = reparamkit.fuse(model, X)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    x = sample((1, 4, 7, 9), torch.float32)
    assert error(results(fused, (x,), {}), results(model, (x,), {})) <= 1e-5


class Reaching(nn.Module):
    """Decides on numbers, and calls what is inside a module that it does not call (decoders of transformers)."""

    def __init__(self) -> None:
        super().__init__()
        self.wrapper = nn.Module()
        self.wrapper.inner = conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.wrapper.inner(x) if x.sum() > 1e9 else self.wrapper.inner(x).relu()


def test_a_module_that_is_passed_by():
    """It is not called; what is inside it is."""
    model = build(Reaching)
    fused = reparamkit.fuse(model, X)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    assert error(results(fused, (X,), {}), results(model, (X,), {})) <= 1e-5


class Heads(nn.Module):
    """Takes its output apart by the sizes of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.q(x) * 0.5).view(*x.shape[:-1], 2, 2).relu()


class Tokens(nn.Module):
    """Gives the module inside as many pixels as it has computed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        count = int(x.shape[2] * x.shape[3])
        return self.inner(x.relu().reshape(x.shape[0], 4, count).transpose(1, 2))


class Pooled(nn.Module):
    """A layer behind as many averages of windows as it has weights."""

    def __init__(self) -> None:
        super().__init__()
        self.row = seq(nn.AdaptiveAvgPool1d(4), nn.Conv1d(4, 4, 4, groups=4))

    def forward(self, x: Tensor) -> Tensor:
        return self.row(x.transpose(1, 2)).relu()


@pytest.mark.parametrize("inner", [Heads, Pooled])
def test_a_size_that_code_around_it_took_as_a_number(inner: Callable[[], nn.Module]):
    """What is merged inside a module is for all the sizes that this may get, not for a number of the trace."""
    model = build(lambda: Tokens(inner()))
    fused = reparamkit.fuse(model, X, objective="launches")
    for shape in [(2, 4, 8, 8), (1, 4, 8, 16), (3, 4, 6, 10)]:
        x = sample(shape, torch.float32)
        assert error(results(fused, (x,), {}), results(model, (x,), {})) <= 1e-5


class Watching(nn.Module):
    """Needs a hook that puts a value into it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.seen = conv_norm(4, 4), conv_norm(4, 4), None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = None
        y = self.b(F.relu(self.a(x)))
        return y * self.seen


def test_a_model_that_cannot_be_copied():
    """A hook that writes into the original fails in the copy: said with words."""
    model = build(Watching)
    known = [model]
    model.a.register_forward_hook(lambda module, args, output: setattr(known[0], "seen", output))
    with pytest.raises(InvalidInputError, match="inplace=True"):
        reparamkit.fuse(model, X)


class Tapped(nn.Module):
    """Reads what a hook kept of a block on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(4, 4), conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.a.seen = None
        return self.b(F.relu(self.a(x))) + self.a.seen[:1]


def test_code_that_relies_on_a_hook_is_told_by_the_hook():
    """A module with hooks is called, and its hooks do not run while the code around it is traced."""
    model = build(Tapped)
    model.a.register_forward_hook(lambda module, args, output: setattr(module, "seen", output))
    fused = reparamkit.fuse(model, X)
    reasons = " ".join(refusal.reason for refusal in reparamkit.report(fused).refusals)
    assert "not subscriptable; the hooks of 'a' do not run in a trace, which may be why" in reasons
    assert error(results(fused, (X,), {}), results(model, (X,), {})) <= 1e-5


class Counting(nn.Module):
    """Code that cannot be traced, with a table of sizes that it might write into."""

    def forward(self, x: Tensor, table: Tensor, sizes: tuple[int, int]) -> Tensor:
        return x.flatten(2)[..., : int(table.prod())].sum(-1) / sizes[0]


class Noting(nn.Module):
    """Writes the sizes of a value into a table, and hands both on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.count = conv_norm(4, 4, s=2), Counting()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        height, width = y.shape[-2:]
        table = torch.empty(2, dtype=torch.long)
        table[0] = height
        table[1] = width
        return self.count(F.relu(y), table, (height, width))


def test_a_size_is_not_in_the_memory_of_what_has_it():
    """What is written into a table of sizes changes nothing of the values whose sizes they are."""
    model = build(Noting)
    fused = reparamkit.fuse(model, X)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    assert error(results(fused, (X,), {}), results(model, (X,), {})) <= 1e-5


# --- what code asks of its inputs -------------------------------------------------------------------


def both(m: Any, x: Tensor) -> Tensor:
    """Two branches that merge if the code around them can be written again."""
    return F.relu(m.a(x) + m.b(x))


def messages(m: Any, x: Tensor) -> Tensor:
    """Sizes in the messages of assertions, as in the norms of timm."""
    torch._assert(x.ndim == 4, f"expected 4 dimensions (got {x.ndim})")
    torch._assert(x.shape[2] > 0, message=f"height {x.shape[2]:d} of {x.shape}")
    return both(m, x)


def looked_up(m: Any, x: Tensor) -> Tensor:
    """A message that depends on the text of a size, and a factor that does."""
    told = f"{x.shape[2]}"
    torch._assert(x.ndim == 4, {"8": "eight"}.get(f"{x.shape[2]}", "other"))
    torch._assert(x.ndim == 4, told)
    return both(m, x) * {"8": 5.0}.get(told, 1.0)


def made(value: Any) -> Any:
    return value() if callable(value) else value


def checked_by_torch(m: Any, x: Tensor) -> Tensor:
    torch._check(x.shape[2] == x.shape[3], lambda: f"{x.shape[2]} is not {x.shape[3]}")
    torch._check_value(x.shape[1] == 4)
    return both(m, x)


ASKING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "len": lambda m, x: both(m, x) / len(x),
    "len as a method": lambda m, x: both(m, x) / x.__len__(),
    "loop": lambda m, x: torch.stack([row * 2 for row in both(m, x)]),
    "list": lambda m, x: torch.stack(list(both(m, x))),
    "sum": lambda m, x: sum(both(m, x)) + both(m, x),
    "reversed": lambda m, x: torch.stack([row * (k + 1) for k, row in enumerate(reversed(both(m, x)))]),
    "number of chunks": lambda m, x: both(m, x) * len(x.chunk(3)),
    "parts of a split": lambda m, x: torch.stack([part.sum() for part in both(m, x).split(2)]),
    "unpacked rest": lambda m, x: (lambda first, *rest: both(m, x) * (1 + len(rest)))(*x.unbind(0)),
    "attribute that tensors lack": lambda m, x: both(m, x) * (1 if getattr(x, "mask", None) is None else 2),
    "attribute of a result": lambda m, x: (lambda y: y.logits if hasattr(y, "logits") else y)(both(m, x)),
    "type of a size": lambda m, x: both(m, x) * (x.shape[0] if isinstance(x.shape[0], int) else 7),
    "type of an input": lambda m, x: both(m, x) * (2 if isinstance(x, Tensor) else 7),
    "one of several types": lambda m, x: both(m, x) * (7 if isinstance(x, (list, dict)) else 2),
    "is_tensor, of torch.jit": lambda m, x: both(m, x) * (2 if torch.jit.isinstance(x, Tensor) else 7),
    "list of tensors, of torch.jit": lambda m, x: both(m, x) * (2 if torch.jit.isinstance([x], list[Tensor]) else 7),
    "is_tensor": lambda m, x: both(m, x) * (2 if torch.is_tensor(x) else 7),
    "abstract type of a shape": lambda m, x: both(m, x) * (2 if isinstance(x.shape, Sequence) else 7),
    "type of a layer's result": lambda m, x: both(m, x) * (7 if isinstance(m.a[0](x), tuple) else 2),
    "type of a parameter": lambda m, x: both(m, x) * (2 if isinstance(m.a[0].weight, nn.Parameter) else 7),
    "size as a key": lambda m, x: both(m, x) * {2: 5.0}.get(x.shape[0], 1.0),
    "shape as a key": lambda m, x: both(m, x) * {(2, 4, 8, 8): 5.0}.get(x.shape, 1.0),
    "dtype as a key": lambda m, x: both(m, x) * {torch.float32: 2.0}.get(x.dtype, 1.0),
    "size as text": lambda m, x: both(m, x) * {"8": 5.0}.get(str(x.shape[2]), 1.0),
    "size in a text": lambda m, x: both(m, x) * {"a08": 5.0}.get(f"a{x.shape[2]:02d}", 1.0),
    "text of a size in a message": looked_up,
    "device as text": lambda m, x: both(m, x) * (2 if "cpu" in str(x.device) else 7),
    "gradient function": lambda m, x: both(m, x) * (2 if both(m, x).grad_fn is None else 7),
    "requires_grad": lambda m, x: both(m, x) * (2 if m.a[0].weight.requires_grad is True else 7),
    "value of a parameter": lambda m, x: both(m, x) + x * m.a[0].weight[0, 0, 0, 0].item(),
    "branch on a parameter": lambda m, x: both(m, x) * (2 if m.a[0].weight[0, 0, 0, 0].item() > 0 else 7),
    "divmod": lambda m, x: both(m, x) * divmod(x.shape[2], 3)[0] + divmod(17, x.shape[2])[1],
    "product": lambda m, x: both(m, x) / math.prod(x.shape[1:]),
    "a function, or a number": lambda m, x: (
        both(m, x) * (1 + made(x.shape[0] == 2)) * made(lambda: 3.0) * made(x).mean()
    ),
    "a check of torch": checked_by_torch,
    "product by numpy": lambda m, x: both(m, x) / int(numpy.prod(x.shape[1:])),
    "power by numpy": lambda m, x: both(m, x) / numpy.exp2(x.shape[1]),
}
"""Merged or not, what they give is right."""

FREE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "window of a whole map": lambda m, x: F.avg_pool2d(both(m, x), x.size()[2:]),
    "window of one size": lambda m, x: F.avg_pool2d(both(m, x), x.size(2)),
    "zeros of a shape": lambda m, x: both(m, x) + torch.zeros(x.size()),
    "filled": lambda m, x: both(m, x) + torch.empty(x.shape).fill_(1.0),
    "zeros of sizes in a tuple": lambda m, x: both(m, x) + torch.zeros((x.size(0), 1, 1, 1)),
    "ones of several sizes": lambda m, x: both(m, x) + torch.ones(x.size(0), 4, x.size(2), 1),
    "a constant for each input": lambda m, x: both(m, x) + torch.ones(4, 1, 1).expand(x.size(0), -1, 1, 1),
    "zeros like a constant": lambda m, x: both(m, x) + torch.ones(1).new_zeros(x.size(0), 4, 1, 1),
    "identity matrix": lambda m, x: both(m, x) @ torch.eye(x.shape[3]),
    "range": lambda m, x: both(m, x) + torch.arange(x.shape[3]),
    "tensor of a size": lambda m, x: both(m, x) * torch.tensor(x.shape[2]),
    "rounded size": lambda m, x: both(m, x)[..., : round(x.shape[3] * 0.5)],
    "rounded up": lambda m, x: both(m, x)[..., : math.ceil(x.shape[3] * 0.5)],
    "root by numpy": lambda m, x: both(m, x) / numpy.sqrt(x.shape[1]),
    "shape multiplied by numpy": lambda m, x: both(m, x) / numpy.prod(x.shape[1:]),
    "sizes multiplied by numpy": lambda m, x: both(m, x) / numpy.prod((x.shape[1], x.shape[2])),
    "positions of numpy": lambda m, x: both(m, x)[:, numpy.array([2, 0])],
    "messages": messages,
    "module made in the forward": lambda m, x: nn.ReLU()(m.a(x) + m.b(x)),
}
"""Two branches that merge, for every size."""
ASKING |= FREE


def test_a_weight_with_a_sparse_part_is_left():
    """The rest of the weight is computed once."""
    model = build(lambda: seq(conv_norm(4, 4), OwnWeight(sparse=True)))
    fused = reparamkit.fuse(model, X)
    assert [merge.path for merge in reparamkit.report(fused).merges] == ["0.0", "1.merged0"]
    assert error(run(fused, X), run(model, X)) <= 1e-5


@pytest.mark.parametrize("name", ["a function, or a number", "a check of torch"])
def test_questions_that_take_proxies_for_what_they_are_not_are_answered(name: str):
    model, fused = asking(name, with_inputs=True)
    assert reparamkit.report(fused).tier == "values"
    assert len(reparamkit.report(fused).merges) == 1
    assert error(run(fused, X), run(model, X)) <= 1e-5


@cache
def asking(name: str, with_inputs: bool) -> tuple[nn.Module, nn.Module]:
    model = build(two(ASKING[name]))
    return model, reparamkit.fuse(model, X if with_inputs else None)


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("name", ASKING)
@given(batch=st.integers(1, 6), size=st.integers(4, 9))
@settings(max_examples=8)
def test_an_answer_holds_for_the_sizes_it_was_given_for(name: str, with_inputs: bool, batch: int, size: int):
    """What code asks of a size is answered as in the model, or the call is refused."""
    model, fused = asking(name, with_inputs)
    x = sample((batch, 4, size, size), torch.float32)
    with suppress(GuardError):
        assert error(results(fused, (x,), {}), results(model, (x,), {})) <= 1e-5


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("name", FREE)
def test_a_size_that_torch_takes_is_no_decision(name: str, with_inputs: bool):
    """Sizes that are only handed on stay what they are: the branches merge, and all sizes are taken."""
    model, fused = asking(name, with_inputs)
    assert any("parallel_sum" in merge.rules for merge in reparamkit.report(fused).merges)
    for shape in ((2, 4, 8, 8), (3, 4, 12, 12), (1, 4, 5, 5)):
        x = sample(shape, torch.float32)
        assert error(results(fused, (x,), {}), results(model, (x,), {})) <= 1e-5


DRAWING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "numbers of a literal size": lambda m, x: both(m, x) * torch.rand(4, 1, 1),
    "integers": lambda m, x: both(m, x) * torch.randint(1, 1000, (4, 1, 1)),
    "a permutation": lambda m, x: both(m, x)[:, torch.randperm(4).repeat(8)],
    "drawn in place": lambda m, x: both(m, x) * torch.empty(4, 1, 1).normal_(),
    "plain numbers": lambda m, x: both(m, x) * random.random(),
    "numbers of numpy": lambda m, x: both(m, x) * float(numpy.random.rand()),
    "a random function of a constant": lambda m, x: both(m, x) * F.dropout(torch.ones(4, 8, 8), 0.5, True),
    "a random function of a parameter": lambda m, x: (
        both(m, x) * F.gumbel_softmax(m.a[0].weight[0, :, 0, 0])[:, None, None]
    ),
    "a random slope": lambda m, x: (
        both(m, x) * (1 + F.rrelu(m.a[0].weight[:, :, :1, :1].neg().exp().neg(), training=True).sum())
    ),
}


def seed() -> None:
    """Seed all generators of random numbers."""
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("name", DRAWING)
def test_numbers_are_drawn_in_every_call(name: str, with_inputs: bool):
    """The same numbers as in the model for the same seed, others in the next call, and no number is used up."""
    model = build(two(DRAWING[name]))
    seed()
    fused = reparamkit.fuse(model, X if with_inputs else None)
    found, again = results(fused, (X,), {}), results(fused, (X,), {})
    assert not torch.equal(found, again)
    seed()
    assert error(found, results(model, (X,), {})) <= 1e-5


def seeded(m: Any, x: Tensor) -> Tensor:
    torch.manual_seed(2)
    return F.dropout(both(m, x), 0.5, True)


def forked(m: Any, x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return F.dropout(both(m, x), 0.5, True)


def put_back(m: Any, x: Tensor) -> Tensor:
    before = torch.get_rng_state()
    y = F.dropout(both(m, x), 0.5, True)
    torch.set_rng_state(before)
    return y


def of_its_own(m: Any, x: Tensor) -> Tensor:
    return both(m, x) * torch.rand(4, 1, 1, generator=torch.Generator().manual_seed(2))


SEEDING = [seeded, forked, put_back, of_its_own]


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("forward", SEEDING)
def test_code_that_seeds_draws_what_it_did(forward: Callable[[Any, Tensor], Tensor], with_inputs: bool):
    """A seed is in no graph: a forward that was written again drew other numbers than the model."""
    model = build(two(forward))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    drawn = []
    for each in (fused, model):
        seed()
        drawn.append((results(each, (X,), {}), results(each, (X,), {}), torch.rand(4)))
    assert all(error(a, b) <= 1e-5 for a, b in zip(*drawn, strict=True))
    with pytest.raises(CaptureError):
        reparamkit.fuse(model, X if with_inputs else None, as_graph=True)


# --- methods ----------------------------------------------------------------------------------------


class Dense(nn.Module):
    """Half of a pair in a method that the forward calls, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)

    def bottleneck(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def again(self, x: Tensor) -> Tensor:
        return self.bottleneck(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.bottleneck(x))


def test_a_method_of_a_block_that_the_forward_calls():
    """Inside a model the pair is merged, and the method is hidden with a reason; on the model itself it is kept."""
    model = build(lambda: seq(Dense(), nn.ReLU()))
    fused = reparamkit.fuse(model, X)
    assert error(results(fused, (X,), {}), results(model, (X,), {})) <= 1e-5
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    for name in ("bottleneck", "again"):
        assert not hasattr(fused[0], name)
        with pytest.raises(AttributeError, match=rf"Dense\.{name} uses .* merged"):
            getattr(fused[0], name)
    assert not hasattr(copy.deepcopy(fused)[0], "bottleneck")
    alone = build(Dense)
    assert error(reparamkit.fuse(alone, X).bottleneck(X), alone.bottleneck(X)) <= 1e-6


class Tail(nn.Module):
    """Ends a public method with a scale that the head could take."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.rand(4) + 0.5), nn.Linear(4, 3)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(x).mean((2, 3)) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def test_a_public_method_keeps_its_value():
    """What a method of the model computes without layers stays there as well."""
    model = build(Tail)
    fused = reparamkit.fuse(model, X)
    assert error(fused.features(X), model.features(X)) <= 1e-6


class Folding(nn.Module):
    """Has a method that folds it, as blocks of timm have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def extra(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * 2

    def fuse(self) -> nn.Module:
        conv, norm = self.conv, self.norm
        conv.weight.data *= (norm.weight / norm.running_var.sqrt())[:, None, None, None]
        return conv


def test_methods_that_read_a_merged_layer_are_hidden():
    """A method that looks into a layer that is gone is hidden; one that calls the layers in order still works."""
    model = build(lambda: seq(Folding(), nn.ReLU()))
    fused = reparamkit.fuse(model, X)
    assert isinstance(fused[0], Folding)
    assert not hasattr(fused[0], "fuse")
    assert error(fused[0].extra(X), model[0].extra(X)) <= 1e-5


class Whole(nn.Module):
    """Does all of its work in a method, as models of torchvision do."""

    def __init__(self) -> None:
        super().__init__()
        self.features = conv_norm(4, 4)

    def work(self, x: Tensor) -> Tensor:
        return F.relu(self.features(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.work(x)


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
def test_a_method_that_the_forward_goes_on_calling(inplace: bool):
    """A scale before it is taken in, and a forward whose code stays still finds its method."""

    def make() -> nn.Module:
        return Model(lambda m, x: m.inner(x / m.std), inner=Whole(), std=nn.Parameter(torch.rand(4, 1, 1) + 0.5))

    fused = reparamkit.fuse(build(make), X, inplace=inplace)
    assert error(results(fused, (X,), {}), results(build(make), (X,), {})) <= 1e-5
    (merge,) = reparamkit.report(fused).merges
    assert set(merge.members) == {"truediv", "inner.features.0", "inner.features.1"}


class Summing(nn.Module):
    """Adds up a branch that it can do without, once it is folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.side, self.act = conv(4, 4), norm(4), conv(4, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x) + self.side(x)))  # type: ignore[no-any-return]

    def forward_fuse(self, x: Tensor) -> Tensor:
        """As the forward, without a branch."""
        y = self.norm(self.conv(x))
        return self.act(y)  # type: ignore[no-any-return]


class Activated(Folding):
    """A block of YOLO."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))  # type: ignore[no-any-return]

    def forward_fuse(self, x: Tensor) -> Tensor:
        """As the forward, without the norm."""
        return self.act(self.conv(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("block", [Activated, Summing])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "the model itself"])
def test_a_second_forward_that_leaves_a_layer_out_is_hidden(inside: bool, block: Callable[[], nn.Module]):
    """It would now include the norm."""
    model = build(lambda: seq(block(), nn.ReLU())) if inside else build(block)
    fused = reparamkit.fuse(model, X)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    assert error(run(fused, X), run(model, X)) <= 1e-6
    with pytest.raises(AttributeError, match="forward_fuse uses a part of what was merged"):
        (fused[0] if inside else fused).forward_fuse(X)


class Featuring(Activated):
    """Has a public method that uses one layer, for something else."""

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x))


class Beginning(Activated):
    """Has a public method that is the beginning of the forward."""

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Ending(Activated):
    """Has a public method that is the end of the forward."""

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("block", [Featuring, Beginning, Ending])
def test_another_method_of_the_model_that_uses_a_part_keeps_it(block: Callable[[], nn.Module]):
    """A method of the model itself is public: there the merge is refused."""
    report = reparamkit.explain(build(block), X)
    assert any("method 'features' of the model" in refusal.reason for refusal in report.refusals)


class Tapping(nn.Module):
    """A row of a convolution and a norm, twice, with methods that call both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act, self.row = conv(4, 4), norm(4), nn.ReLU(), conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        for layer in self.row:
            x = layer(x)
        return x

    def tapped(self, x: Tensor, at: tuple[int, ...] = (0, 1)) -> list[Tensor]:
        """As forward_intermediates of timm."""
        found = []
        x = self.conv(x)
        if 0 in at:
            found.append(x)
        x = self.norm(x)
        return [*found, x]

    def scaled(self, x: Tensor) -> Tensor:
        """Something between them."""
        return self.norm(2 * self.conv(x))  # type: ignore[no-any-return]

    def reversed(self, x: Tensor) -> Tensor:
        """The other order."""
        y = self.norm(x)
        return self.conv(y)  # type: ignore[no-any-return]

    def listed(self, x: Tensor) -> list[Tensor]:
        """What each layer gives, as of a network that compares images."""
        found, layers = [], self.row
        for layer in layers:
            x = layer(x)
            found.append(x)
        return found

    def in_order(self, x: Tensor, flag: bool = True) -> Tensor:
        """As the forward does it."""
        y = self.conv(x)
        y = self.norm(y) if self.norm is not None else y
        if flag:
            y = self.act(y)
        for _, layer in enumerate(self.row):
            y = layer(y)
        return y + 1


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["tapped", "scaled", "reversed", "listed", "in_order"])
def test_a_method_that_uses_what_is_between_keeps_its_value_or_is_hidden(name: str, inside: bool):
    """It is not enough to call the layers of a merge: the first hands its result on to the next, and to nobody else."""
    model = build(lambda: seq(Tapping(), nn.ReLU()) if inside else Tapping())
    fused = reparamkit.fuse(model, X)
    assert error(run(fused, X), run(model, X)) <= 1e-5
    (found, wanted) = (each[0] if inside else each for each in (fused, model))
    if name == "in_order" or hasattr(found, name):
        pairs = zip(tensors(getattr(found, name)(X)), tensors(getattr(wanted, name)(X)), strict=True)
        assert all(error(a, b) <= 1e-5 for a, b in pairs)


@pytest.mark.parametrize("last", [nn.BatchNorm1d(4), seq(nn.LayerNorm(64), nn.Linear(64, 3))], ids=["batch", "layer"])
@pytest.mark.parametrize("dims", [(1, 2), (-2, -1)])
def test_dimensions_that_are_not_known_are_no_error(dims: tuple[int, int], last: nn.Module):
    """A transpose by numbers from the left, or from the right, of a tensor of unknown rank."""
    tokens = Model(
        lambda m, x: m.last(torch.relu(m.conv(x).flatten(2).transpose(*dims)).transpose(*dims)),
        conv=conv(4, 4),
        last=last,
    )
    model = build(lambda: tokens)
    assert error(results(reparamkit.fuse(model), (X,), {}), results(model, (X,), {})) <= 1e-5


# --- coverage and log -------------------------------------------------------------------------------


def test_min_coverage():
    """Below the share the error names what was left and why; above it nothing is said."""
    model = build(two(lambda m, x: m.b(F.relu(m.a(x)))))
    assert reparamkit.report(reparamkit.fuse(model, X, min_coverage=1.0)).coverage.share == 1.0
    with pytest.raises(CoverageError, match=r"b\.1 \(BatchNorm2d\): left out by skip="):
        reparamkit.fuse(model, X, skip="b", min_coverage=0.9)


def test_each_call_is_logged_in_one_line(caplog: pytest.LogCaptureFixture):
    """One line per call, one more per merge and refusal for those who want them."""
    model = build(two(lambda m, x: m.b(F.relu(m.a(x)))))
    with caplog.at_level(logging.DEBUG, logger="reparamkit"):
        reparamkit.fuse(model, X)
    levels = [record.levelno for record in caplog.records if record.name == "reparamkit"]
    assert levels == [logging.INFO, logging.DEBUG, logging.DEBUG]


class Catching(nn.Module):
    """Tries something, and goes on without it."""

    def __init__(self, ask: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.ask, self.conv, self.norm, self.other = ask, conv(4, 4), norm(4), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        try:
            self.ask(y)
        except Exception:
            return self.norm(y)
        return self.other(y)


class Retrying(Catching):
    """Leaves out the norm where something fails."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            y = self.norm(self.conv(x))
            self.ask(torch.relu(y))
        except Exception:
            return self.conv(x)
        return y


@pytest.mark.parametrize("example", [None, X], ids=["without inputs", "with inputs"])
@pytest.mark.parametrize("make", [Catching, Retrying])
@pytest.mark.parametrize("ask", [lambda y: float(y.sum()), lambda y: y.sum().item(), lambda y: y.view(7, -1)])
def test_an_error_that_the_code_catches_is_its_own(
    make: Callable[..., nn.Module], ask: Callable[[Tensor], Any], example: Tensor | None
):
    """What only a trace cannot do is no error of the model: another branch would be merged."""
    model = build(lambda: make(ask))
    with suppress(CaptureError):
        fused = reparamkit.fuse(model, example)
        for x in (X, sample((1, 4, 5, 6), torch.float32), sample((3, 4, 5, 7), torch.float32)):
            assert error(run(fused, x), run(model, x)) <= 1e-5


class Numbering(nn.Module):
    """Reads a number of its input."""

    def __init__(self, use: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.use = conv_norm(4, 4), conv(4, 4, 1), use

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.use(torch.relu(self.a(x)), x.abs().max().item()))


@pytest.mark.parametrize("example", [None, X], ids=["without inputs", "with inputs"])
@pytest.mark.parametrize("use", [lambda y, n: y, lambda y, n: y / n, lambda y, n: y + n], ids=["unused", "by", "plus"])
def test_a_number_of_a_tensor_is_a_value(use: Callable[[Tensor, Any], Tensor], example: Tensor | None):
    """`item()` of what a run gives, with example inputs as without."""
    model = build(lambda: Numbering(use))
    fused = reparamkit.fuse(model, example)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    for x in (X, 3 * X):
        assert error(run(fused, x), run(model, x)) <= 1e-5


@pytest.mark.parametrize("use", [lambda y, n: y if n > 1 else -y, lambda y, n: y * int(n)], ids=["branch", "int"])
def test_a_decision_by_a_number_of_a_tensor_is_told(use: Callable[[Tensor, Any], Tensor]):
    model = build(lambda: Numbering(use))
    fused = reparamkit.fuse(model, X)
    assert "depends on the data of" in reparamkit.report(fused).refusals[0].reason
    for x in (X, X / 20):
        assert error(run(fused, x), run(model, x)) <= 1e-5


class Assigning(nn.Module):
    """Puts other numbers into a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.data = y.data * 2
        return self.norm(y)


@pytest.mark.parametrize("example", [None, X])
def test_an_attribute_of_a_tensor_that_is_set_is_not_overlooked(example: Tensor | None):
    """A graph has no such thing."""
    with pytest.raises(CaptureError, match="sets the attribute 'data'"):
        reparamkit.fuse(build(Assigning), example)


class WithoutGradient(nn.Module):
    """Says of a tensor that it made that no gradient is wanted of it, as the warping of optical flow does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        grid = torch.arange(y.size(-1)).type_as(y).expand(y.size())
        grid.requires_grad = False
        return y.sigmoid() * grid


@pytest.mark.parametrize("example", [None, X])
def test_that_no_gradient_is_wanted_of_what_a_call_gives_is_set_in_the_graph(example: Tensor | None):
    """What is set so is no number."""
    model = build(WithoutGradient)
    fused = reparamkit.fuse(model, example)
    assert len(reparamkit.report(fused).merges) == 1
    assert error(fused(X[:1]), model(X[:1])) < 1e-6
    fused(X).sum().backward()


@pytest.mark.parametrize("example", [None, X], ids=["without inputs", "with inputs"])
def test_methods_of_tensors_may_be_called_as_functions(example: Tensor | None):
    """Each of them, in the model and in a part of it; with a tensor that is not traced they are what they were."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = Tensor.relu(m.inside(x))
        found: Tensor = Tensor.mul(m.b(y), Tensor.abs(torch.tensor(-2.0)))
        return found

    inside = two(lambda m, x: m.b(torch.Tensor.tanh(m.a(x))))()
    model = build(two(forward, inside=inside))
    fused = reparamkit.fuse(model, example)
    assert error(fused(X), model(X)) <= 1e-6
    assert operations(fused, X) == "conv tanh conv relu conv"
    assert "relu" not in vars(Tensor)


class Elsewhere(Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


class OnSeveralDevices(nn.Module):
    """The generator of a GAN, as PyTorch's example has it."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.main, self.other, self.inside = conv_norm(4, 4), conv(4, 4), inside

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = nn.parallel.data_parallel(self.main, x) if x.is_cuda else self.main(x)
        return found + self.other(x) if self.inside else found


@pytest.mark.parametrize("inside", [False, True])
def test_a_branch_on_where_the_inputs_are_is_that_for_the_device_of_the_model(inside: bool):
    """Without an example; code that is written again for it checks that it is so."""
    model = build(lambda: OnSeveralDevices(inside))
    fused = reparamkit.fuse(model)
    assert operations(fused, X) == "conv"
    assert error(fused(X), model(X)) < 1e-6
    if inside:
        with pytest.raises(GuardError, match="False, now it is True"):
            fused(X.as_subclass(Elsewhere))


def test_that_inputs_have_to_be_elsewhere_is_no_branch():
    """The code goes on only there."""

    def on_a_gpu(m: Any, x: Tensor) -> Tensor:
        assert x.is_cuda
        return m.a(x)

    merges = reparamkit.report(reparamkit.fuse(build(two(on_a_gpu)))).merges
    assert [merge.path for merge in merges] == ["a.0", "b.0"]


class Divided(nn.Module):
    """Says which size it takes, in the end of code that has several ways there."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.row, self.beside, self.how = conv_norm(4, 4), conv(4, 4), how

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        if self.how == "an expression" and (h % 4 != 0 or w % 4 != 0):
            taller = (h // 4 + 1) * 4 if h % 4 != 0 else h
            raise ValueError(f"{taller} rows")
        if self.how == "a loop" and h % 4:
            for size in (4, 8):
                if h < size:
                    break
            raise ValueError("rows")
        if self.how == "two errors" and h % 4:
            if h < 4:
                raise ValueError("few")
            raise ValueError("many")
        return self.row(x) + self.beside(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["an expression", "a loop", "two errors"])
def test_code_that_ends_in_an_error_whichever_way_it_takes_is_not_gone_through(how: str):
    """Without an example; what is written checks that it is not."""
    model = build(lambda: Divided(how))
    fused = reparamkit.fuse(model)
    assert operations(fused, X) == "conv"
    assert error(fused(X), model(X)) < 1e-6
    with pytest.raises((GuardError, ValueError)):
        fused(X[:, :, :3])


def test_a_number_that_many_calls_make_ends_in_no_error():
    """What a layer may take of it is not looked for in all of them."""

    def forward(m: Any, x: Tensor) -> Tensor:
        t = torch.argmax(x, 3)[0, 0]
        for _ in range(600):
            t = t + 0
        return m.b(m.a(x)[:, :, t])  # type: ignore[no-any-return]

    model = build(two(forward))
    assert error(run(reparamkit.fuse(model, X), X), run(model, X)) < 1e-6


def check_norms_merge(make: Callable[[], nn.Module], with_inputs: bool) -> None:
    """No norm is left, and the numbers stay."""
    model = build(make)
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    assert error(run(fused, X), run(model, X)) < 1e-5


@pytest.mark.parametrize("with_inputs", [True, False])
def test_products_of_several_tensors_are_in_memory_of_their_own(with_inputs: bool):
    """What is added to them in place is added to nothing else."""

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row, self.behind, self.weight = conv_norm(4, 4), conv_norm(4, 4), nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.row(x)
            z = torch.einsum("nchw,cd->ndhw", y, self.weight)
            z += 1
            return self.behind(z.relu()) + y.relu()  # type: ignore[no-any-return]

    check_norms_merge(Mixing, with_inputs)


class WritingIntoEither(nn.Module):
    """Cannot be traced, and may write into either of two values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = conv(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.mean() > 100:
            return x
        return self.relu(self.conv(x) + y)  # type: ignore[no-any-return]


class Decoding(nn.Module):
    """A decoder that reads what its encoder gave, the last first."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.ModuleList(nn.Sequential(conv(4, 4), norm(4), nn.ReLU(inplace=True)) for _ in range(3))
        self.joins = nn.ModuleList(WritingIntoEither() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first = self.rows[0](x)
        second = self.rows[1](first)
        return self.joins[1](self.joins[0](self.rows[2](second), second), first)  # type: ignore[no-any-return]


@pytest.mark.parametrize("with_inputs", [True, False])
def test_what_a_later_call_may_join_is_not_written_into_before(with_inputs: bool):
    """The result of code that cannot be traced may be in the memory of either of its arguments: these stay apart."""
    check_norms_merge(Decoding, with_inputs)


class Alternating(nn.Module):
    """Takes another way at every second call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.m, self.calls = conv(4, 4), norm(4), norm(4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.n(self.a(x)) if self.calls % 2 else self.m(self.a(x))


def test_a_branch_on_what_a_forward_changes_is_one():
    """The trace has seen one of the ways only."""
    model = build(Alternating)
    fused = reparamkit.fuse(model)
    for _ in range(3):
        assert error(run(fused, X), run(model, X)) <= 1e-6


class Doubled(nn.Conv2d):
    """Doubles what its forward gives, when it is called."""

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)  # type: ignore[no-any-return]


def test_a_call_that_is_more_than_a_forward_is_no_node():
    """A trace would see what it adds, and the node would do it again."""
    model = build(lambda: seq(conv_norm(4, 4), nn.ReLU(), seq(Doubled(4, 4, 1), norm(4))))
    fused = reparamkit.fuse(model, X)
    assert error(run(fused, X), run(model, X)) <= 1e-5


class Tabled(nn.Module):
    """Keeps what it computes of a size."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm(4, 4)

    @functools.lru_cache  # noqa: B019
    def table(self, size: int) -> Tensor:
        """Numbers from 0 on. shape (size,)."""
        return torch.arange(size, dtype=torch.float32)

    @functools.lru_cache  # noqa: B019
    def norm(self) -> Tensor:
        """Of the statistics. shape ()."""
        return self.a[1].running_var.norm()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) + self.table(x.shape[-1])
        return y.relu() * self.norm()


def test_the_caches_of_methods_keep_nothing_of_a_trace():
    model, x = build(Tabled), sample((2, 4, 8, 8), torch.float32)
    fused = reparamkit.fuse(model, x)
    for size in (8, 6):
        assert error(run(fused, x[..., :size]), run(model, x[..., :size])) <= 1e-5


# --- code that torch has compiled, and layers that decide on data --------------------------------------


class Compiled(nn.Module):
    """Has a compiled method, or a compiled part."""

    def __init__(self, part: bool) -> None:
        super().__init__()
        made = seq(conv_norm(4, 4), nn.ReLU())
        self.first = torch.compile(made, backend="eager") if part else made
        self.second, self.third = conv_norm(4, 4), conv_norm(4, 4)

    @torch.compile(backend="eager")
    def sum(self, x: Tensor) -> Tensor:
        """Two branches. x: shape (n, 4, h, w)."""
        return self.second(x) + self.third(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(self.first(x))


@pytest.mark.parametrize("part", [False, True])
def test_what_torch_compiles_is_merged_as_other_code(part: bool):
    model = build(lambda: Compiled(part))
    fused = reparamkit.fuse(model, X)
    assert error(run(fused, X), run(model, X)) <= 1e-5
    assert len(reparamkit.report(fused).merges) == 2
    assert not any(isinstance(m, _BatchNorm) for m in fused.modules())
    assert isinstance(fused.first, type(model.first))


class Translating(nn.Module):
    """A transformer, which looks whether its mask is the causal one, between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = seq(nn.Linear(5, 9), nn.Linear(9, 8)), seq(nn.LayerNorm(8), nn.Linear(8, 3))
        self.body = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mask = self.body.generate_square_subsequent_mask(y.shape[1], dtype=y.dtype)
        return self.last(self.body(self.first(x), self.first(y), tgt_mask=mask))  # type: ignore[no-any-return]


def test_a_layer_of_torch_that_decides_on_data_is_a_call():
    """What it gives is known of a real run, and all around it is merged."""
    model = build(Translating)
    first, other = [(sample((2, n, 5), torch.float32), sample((2, n - 2, 5), torch.float32)) for n in (9, 7)]
    fused = reparamkit.fuse(model, first)
    for x in (first, other):
        assert torch.allclose(fused(*x), model(*x), atol=1e-5)
    assert {m.path for m in reparamkit.report(fused).merges} >= {"last.1"}


class Attending(nn.Module):
    """Linear layers behind one of torch that gives two values."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.a, self.b = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x)
        return self.b(self.a(y))  # type: ignore[no-any-return]


def test_several_values_in_one_are_no_tensor_of_unknown_rank():
    report = reparamkit.report(reparamkit.fuse(build(Attending), sample((2, 5, 8), torch.float32)))
    assert [m.members for m in report.merges] == [("a", "b")]
    assert [refusal.path for refusal in report.refusals] == ["attention"]


@pytest.mark.parametrize("name", ["variables", "a list that a function changes"])
def test_what_c_code_or_fx_would_refuse_is_a_part_of_one_graph(name: str):
    """Also what a function does to a list, which the code around it sees."""
    model = build(MODELS[name][0])
    fused = reparamkit.fuse(model, X, as_graph=True)
    for x in (X, sample((3, 4, 8, 6), torch.float32)):
        assert error(run(fused, x), run(model, x)) <= 1e-5


class Deciding(nn.Module):
    """A branch on data between two pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(4, 4), seq(conv_norm(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y if y.sum() > 0 else y.abs())  # type: ignore[no-any-return]


@pytest.mark.parametrize("example", [None, X])
def test_one_trace_finds_what_cannot_be_traced(example: Tensor | None, monkeypatch: pytest.MonkeyPatch):
    """A model of many such modules is not traced once for each of them."""
    traces: list[str] = []
    capture = parts.capture

    def counted(model: nn.Module, path: str, *given: Any, **more: Any) -> Any:
        traces.append(path)
        return capture(model, path, *given, **more)

    monkeypatch.setattr(parts, "capture", counted)
    model = build(lambda: seq(*(each for _ in range(6) for each in (conv_norm(4, 4), Deciding()))))
    fused = reparamkit.fuse(model, example)
    for x in (X, -X, sample((1, 4, 5, 6), torch.float32)):
        assert error(run(fused, x), run(model, x)) <= 1e-5
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    assert traces.count("") <= 5


# --- what hooks hand on, and code that went elsewhere -----------------------------------------------------


class Store:
    """What hooks put somewhere."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """A hook. output: any shape."""
        self.found = [*self.found, output]

    def taken(self) -> list[Tensor]:
        """What was put there, once."""
        found, self.found = self.found, []
        return found


class Keeping(nn.Module):
    """Hooks keep what its layers give; its own code, or that of its head, goes on with that."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.act, self.last = (
            conv_norm(4, 4),
            conv_norm(4, 4),
            nn.ReLU(),
            seq(nn.ReLU(), conv_norm(4, 4)),
        )
        self.head, self.store = head, Store()
        for layer in (self.act, self.last):
            layer.register_forward_hook(self.store)

    def forward(self, x: Tensor) -> Any:
        y = self.last(self.act(self.a(x) + self.b(x)))
        found = [*self.store.taken(), y]
        return found if self.head is None else self.head(found)


class Joining(nn.Module):
    """Of several values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)

    def forward(self, found: list[Tensor]) -> Tensor:
        return self.norm(self.conv(found[0] - found[1]))  # type: ignore[no-any-return]


def in_eval_mode_only(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    if y.numel() == 0 and m.training:
        return y * 0
    return m.b(y)  # type: ignore[no-any-return]


def where_it_is_on(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    if y.sum() > 1e9 or m.on:
        y = y * 3
    return m.b(y)  # type: ignore[no-any-return]


def by_several_parts(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    off = not m.on
    if (m.on and (y.sum() > 0 and not off and m.training)) or (y.mean() > 0 and off):
        y = y * 3
    return m.b(y)  # type: ignore[no-any-return]


def in_a_loop(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    while y.sum() > 0 and m.training:
        y = y - 1
    return m.b(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("given", [(X,), ()], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("body", [in_eval_mode_only, where_it_is_on, by_several_parts, in_a_loop])
def test_a_condition_that_its_other_parts_decide_is_no_branch_on_a_value(
    body: Callable[..., Tensor], given: tuple[Tensor, ...]
):
    """As the convolutions of detectron2 ask. What the other parts are asked for is watched."""

    def switched() -> nn.Module:
        model = two(body)()
        model.on = True
        return model

    model = build(switched)
    fused = reparamkit.fuse(model, *given)
    report = reparamkit.report(fused)
    assert (len(report.parts), len(report.refusals), len(report.merges)) == (1, 0, 2)
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-5
    with suppress(reparamkit.GuardError), torch.no_grad():
        fused.on = model.on = False
        assert error(fused(X), model(X)) <= 1e-5


def test_a_condition_that_its_other_parts_leave_to_a_value_is_a_branch():
    def decides(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        return m.b(y * 3 if y.sum() > 0 and not m.training else y)  # type: ignore[no-any-return]

    (refusal,) = reparamkit.explain(build(two(decides)), X).refusals
    assert "branch" in refusal.reason


@pytest.mark.parametrize("head", [None, Joining], ids=["itself", "head"])
def test_what_hooks_hand_on_is_not_lost(head: type[nn.Module] | None):
    """No trace runs them: code around them stays, and a head that uses what they keep is traced by itself."""
    model = build(lambda: Keeping(None if head is None else head()))
    fused = reparamkit.fuse(model, X)
    for x in (X, sample((1, 4, 5, 6), torch.float32)):
        found, wanted = tensors(run_on(fused, (x,))), tensors(run_on(model, (x,)))
        assert all(error(a, b) <= 1e-5 for a, b in zip(found, wanted, strict=True))
    assert isinstance(fused.last[1][1], nn.Identity)
    assert head is None or not isinstance(fused.head.norm, _BatchNorm)


class Crossing(nn.Module):
    """A norm that is taken in by the block before, with a method beside its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.skip = norm(4), conv(4, 4), conv(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.conv(F.relu(y)) + self.skip(y)  # type: ignore[no-any-return]

    def tapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result, and what is inside."""
        y = self.norm(x)
        return self.conv(F.relu(y)) + self.skip(y), y


class Blocks(nn.Module):
    """A row of such blocks, that methods go through."""

    def __init__(self) -> None:
        super().__init__()
        self.row = seq(conv(4, 4), *(Crossing() for _ in range(3)), nn.ReLU())

    def features(self, x: Tensor) -> Tensor:
        """What the forward calls."""
        return self.row(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))

    def taps(self, x: Tensor) -> list[Tensor]:
        """As forward_intermediates of timm."""
        found = []
        for block in self.row:
            if isinstance(block, Crossing):
                x, tap = block.tapped(x)
                found.append(tap)
            else:
                x = block(x)
        return found

    def through(self, x: Tensor) -> Tensor:
        """The blocks one by one."""
        for block in self.row:
            x = block(x)
        return x


@pytest.mark.parametrize("name", ["features", "taps", "through"])
def test_a_method_that_calls_modules_whose_code_went_elsewhere_is_hidden(name: str):
    """What is left of such a module is no module of its kind."""
    model = build(lambda: seq(Blocks(), nn.ReLU()))
    fused = reparamkit.fuse(model, X)
    assert error(run(fused, X), run(model, X)) <= 1e-5
    assert reparamkit.report(fused).merges
    if hasattr(fused[0], name):
        pairs = zip(tensors(getattr(fused[0], name)(X)), tensors(getattr(model[0], name)(X)), strict=True)
        assert all(error(a, b) <= 1e-5 for a, b in pairs)


class Missing:
    """What stands for a package that is not installed: it can be asked for nothing (as in MONAI)."""

    def __getattribute__(self, name: str) -> Any:
        raise ImportError("no such package")


MISSING = Missing()


class WithAnOption(nn.Module):
    """Its code might use a package that is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.block = conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return MISSING.norm(self.block(x)) if x.sum() > 1e9 else self.block(x)


@pytest.mark.parametrize("make", [lambda: conv_norm(4, 4), WithAnOption])
def test_a_package_that_is_missing(make: Callable[[], nn.Module]):
    """Names of the model's files are looked at, and what they stand for is asked for nothing."""
    fused = reparamkit.fuse(build(make), X)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())


class Handing(nn.Module):
    """Hands on whatever it gets, as wrappers do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = build(lambda: Sum([conv_norm(4, 4), conv_norm(4, 4, 1)]))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.module(*args, **kwargs)


def test_a_wrapper_that_hands_on_any_arguments_needs_no_example():
    """Without one its own forward has nothing to hand on; what is inside it is traced by itself."""
    model = Handing().eval()
    fused = reparamkit.fuse(model)
    x = sample((2, 4, 6, 6), torch.float32)
    assert operations(fused, x) == "conv"
    assert error(run(fused, x), run(model, x)) <= 1e-6


class Pyramid(nn.Module):
    """Gives maps by their numbers, as the backbones of torchvision's detectors do."""

    def __init__(self, kind: Callable[[dict[str, Tensor]], Any]) -> None:
        super().__init__()
        self.kind, self.a, self.b = kind, conv(4, 4, bias=False), norm(4)

    def forward(self, x: Tensor) -> Any:
        y = self.b(self.a(x) + x)
        return self.kind({"0": y, "class": y.relu()})


class Maps(OrderedDict[str, Tensor]):
    """A dictionary of one's own."""


@pytest.mark.parametrize("kind", [dict, OrderedDict, Maps])
def test_a_dictionary_whose_keys_are_no_names(kind: Callable[[dict[str, Tensor]], Any]):
    """Keys of any kind are given back, in a dictionary of the same kind."""
    model = build(lambda: Pyramid(kind))
    x = sample((2, 4, 6, 6), torch.float32)
    fused = reparamkit.fuse(model, x)
    with torch.no_grad():
        found, wanted = fused(x), model(x)
    assert type(found) is type(wanted)
    assert list(found) == list(wanted)
    assert all(error(found[name], wanted[name]) <= 1e-6 for name in wanted)


class Adapted(nn.Module):
    """Gives what it does not have itself as its model's, and asks a weight for what only some have (as PEFT does)."""

    def __init__(self) -> None:
        super().__init__()
        self.model = conv_norm(4, 4)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.model[0].weight
        return self.model(x) if getattr(weight, "quant_state", None) is None else x


def test_a_parameter_may_be_asked_for_what_it_does_not_have():
    """Whoever gives the parameter, and by whatever name."""
    model = build(Adapted)
    fused = reparamkit.fuse(model, X)
    assert not reparamkit.report(fused).refusals
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    assert error(run(fused, X), run(model, X)) <= 1e-6


class TwoWays(nn.Module):
    """A frozen batch norm that saves memory where no gradients are followed (as in detectron2)."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        for name, value in (("weight", 1.5), ("bias", 0.3), ("mean", 0.2), ("var", 1.3)):
            self.register_buffer(name, torch.linspace(value - 0.2, value + 0.2, 4))

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            scale = self.weight * (self.var + 1e-5).rsqrt() * self.factor
            shift = self.bias - self.mean * scale
            return x * scale.reshape(1, -1, 1, 1).to(x.dtype) + shift.reshape(1, -1, 1, 1).to(x.dtype)
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, training=False, eps=1e-5)


def test_a_forward_that_asks_for_gradients_and_gives_the_same():
    """Both ways give one output, so that one is traced, and no guard asks for the other."""
    model = build(lambda: seq(conv(4, 4), TwoWays(), nn.ReLU(), conv(4, 4, 1), TwoWays()))
    fused = reparamkit.fuse(model, X)
    assert not any(isinstance(module, TwoWays) for module in fused.modules())
    assert error(run(fused, X), run(model, X)) <= 1e-6
    assert error(fused(X.clone().requires_grad_()), model(X)) <= 1e-6


def test_a_forward_that_asks_for_gradients_and_gives_something_else():
    """A way that another mode would not take is guarded, or its module stays."""
    model = build(lambda: seq(conv(4, 4), TwoWays(1.01), nn.ReLU()))
    fused = reparamkit.fuse(model, X)
    assert error(run(fused, X), run(model, X)) <= 1e-6
    with suppress(GuardError):
        assert error(fused(X.clone().requires_grad_()), model(X.clone().requires_grad_())) <= 1e-6


class Windows(nn.Module):
    """Averages that code writes one by one into a tensor."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.layers = number, conv_norm(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape[0], 3, self.number, 1)
        for k in range(self.number):
            out[:, :, k, 0] = x[:, :, k : k + 2].mean((2, 3))
        return self.layers(out)


def test_writes_into_many_parts_of_a_tensor_are_followed_in_a_moment(monkeypatch: pytest.MonkeyPatch):
    """Whether a write passes by a value is asked for those alone that are read behind it."""
    asked = []
    passes_by = Aliases.passes_by
    monkeypatch.setattr(Aliases, "passes_by", lambda *args: asked.append(args[1]) or passes_by(*args))
    model = build(lambda: Windows(24))
    assert len(reparamkit.report(reparamkit.fuse(model, torch.randn(2, 3, 26, 4))).merges) == 1
    assert len(asked) < 24


class Refused(nn.Module):
    """A part that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight.data = self.conv.weight.data.clone()
        return self.conv(x)


class Several(nn.Module):
    """Parts that cannot be traced, with others between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.pair = Refused(), Refused(), Refused(), conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.c(torch.relu(self.b(torch.relu(self.a(x))))))


def test_several_parts_that_cannot_be_traced_leave_the_code_around_them_traced():
    """Each is a refusal of its own, and the code around them is none."""
    report = reparamkit.explain(build(lambda: nn.Sequential(Several(), Several())), torch.randn(2, 4, 6, 6))
    refused = {refusal.path for refusal in report.refusals if "sets the attribute" in refusal.reason}
    assert refused == {f"{k}.{name}" for k in (0, 1) for name in "abc"}
    assert not any("cannot be traced" in refusal.reason for refusal in report.refusals)
    assert len(report.merges) == 2


def test_modules_in_a_plain_list_are_named_as_the_reason():
    """They are no part of the model, and their parameters none of its own: in eval mode too, and when it is moved."""
    model = Model(lambda m, x: m.b(m.layers[0](x)), b=norm(4)).eval()
    model.layers = [conv(4, 4, 1)]
    with pytest.raises(reparamkit.CaptureError, match=r"nn\.ModuleList"):
        reparamkit.fuse(model, sample((2, 4, 5, 5), torch.float32))
    part = reparamkit.explain(seq(model, conv(4, 4, 1), norm(4)).eval(), sample((2, 4, 5, 5), torch.float32))
    assert any("nn.ModuleList" in refusal.reason for refusal in part.refusals)


class HandsOn(nn.Module):
    """Has a layer for an optional value, which is none in some models (Perceiver)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other, self.row = nn.Identity(), nn.Identity(), conv_norm(4, 4)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x, other = self.first(x), self.other(other)
        return self.row(x) if other is None else self.row(x) + other  # type: ignore[no-any-return]


@pytest.mark.parametrize("example", [X, None], ids=["with inputs", "without inputs"])
def test_an_identity_of_none_is_none(example: Tensor | None):
    """Code goes by it."""
    model = build(HandsOn)
    fused = reparamkit.fuse(model, example)
    assert len(reparamkit.report(fused).merges) == 1
    assert error(run(fused, X), run(model, X)) <= 1e-6


@pytest.mark.parametrize("numbers", [{"stride": (2,)}, {"padding": (1,)}, {"dilation": (2,)}], ids=str)
@pytest.mark.parametrize("example", [None, X])
def test_a_tuple_of_one_number_stands_for_all_dimensions_of_a_window(numbers: dict[str, Any], example: Tensor | None):
    """As torch takes it."""
    model = build(lambda: seq(nn.Conv2d(4, 4, 3, **numbers), norm(4), nn.ReLU(), conv_norm(4, 4)))
    fused = reparamkit.fuse(model, example)
    assert not reparamkit.report(fused).refusals
    assert error(run(fused, X), run(model, X)) <= 1e-6


class Remembered(nn.Module):
    """Keeps sizes of this call in an attribute, for a method that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n, self.c = conv_norm(4, 4), conv_norm(4, 4), norm(4), conv(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [torch.relu(self.a(x)), torch.relu(self.b(x))]
        self.sizes = [y.shape[-2:] for y in maps]
        return self.joined([self.c(self.n(y)) for y in maps])

    def joined(self, maps: list[Tensor]) -> Tensor:
        return torch.cat([y.flatten(2) * (h * w) for y, (h, w) in zip(maps, self.sizes, strict=True)], 2)


def test_what_code_calls_merges_inside_whatever_attributes_the_code_changes():
    """It may put its own layers together otherwise, but not what is inside of those."""
    model = build(Remembered)
    fused = reparamkit.fuse(model, X)
    assert {merge.members for merge in reparamkit.report(fused).merges} == {("a.0", "a.1"), ("b.0", "b.1")}
    assert any("which code changes while the model runs" in r.reason for r in reparamkit.report(fused).refusals)
    for x in (X, X[:1], torch.cat([X, X], -1)):
        assert error(run(fused, x), run(model, x)) <= 1e-6


def _joined(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[0], shape[2] * shape[3], shape[1]


remembered = functools.lru_cache(16)(_joined)


def _as_tokens(x: Tensor) -> Tensor:
    """A view of sizes that are kept for a shape, if it can be a key, as those of torch.export cannot."""
    try:
        sizes = remembered(tuple(x.shape))
    except TypeError:
        sizes = _joined(tuple(x.shape))
    return x.permute(0, 2, 3, 1).reshape(sizes)


def test_sizes_that_need_not_be_a_key_stay_free():
    """What einops does: a merge would hold for the batch and the image size of the example only."""
    model = build(lambda: Model(lambda m, x: m.b(_as_tokens(m.a(x))), a=conv(4, 4, 1), b=nn.Linear(4, 3)))
    _as_tokens(X)
    fused = reparamkit.fuse(model, X)
    assert len(reparamkit.report(fused).merges) == 1
    for x in (X, X[:1], torch.cat([X, X], -1)):
        assert error(run(fused, x), run(model, x)) <= 1e-6


class Mixing(nn.Module):
    """Takes the number of samples as a plain number, which a reshape of the block before has told already."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        samples = len(q)
        y = torch.softmax(q / 3 @ k.transpose(1, 2), -1) @ k
        return x + self.o(y.reshape(samples, -1, 8).relu())


def test_a_size_that_the_code_before_takes_as_a_plain_number_is_checked_again():
    """That code may run as it is, for any number."""
    model = build(lambda: seq(Mixing(), Mixing(), Mixing()))
    x = sample((2, 6, 8), torch.float32)
    fused = reparamkit.fuse(model, x)
    for samples in (x, x[:1], torch.cat([x, x])):
        assert error(run(fused, samples), run(model, samples)) <= 1e-5


class EitherOr(nn.Module):
    """What may be given is an image, or a text, or both, as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = conv_norm(4, 4), nn.Linear(4, 4)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        return None if image is None else self.image(image), None if text is None else self.text(text)


def test_a_model_that_is_given_nothing_is_fused_inside():
    """Without inputs nothing of it runs: what it has inside is traced by itself, and the report says why."""
    model, x = build(EitherOr), sample((2, 4, 8, 8), torch.float32)
    fused = reparamkit.fuse(model)
    assert "the forward calls none of its modules" in str(reparamkit.report(fused))
    assert len(reparamkit.report(fused).merges) == 1
    with torch.no_grad():
        assert error(fused(x)[0], model(x)[0]) <= 1e-6


class Picking(nn.Module):
    """Of its samples it takes those that their data pick, between two merges."""

    def __init__(self, picked: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.picked = picked
        self.conv, self.norm = conv(4, 3), norm(3)
        self.fc, self.last = nn.Linear(3, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.norm(self.conv(x)).mean((2, 3))
        return self.last(self.fc(self.picked(pooled)))


PICKED: dict[str, Callable[[Tensor], Tensor]] = {
    "a mask": lambda y: y[y[:, 0] > y[:, 1]],
    "nonzero": lambda y: y[(y[:, 0] > y[:, 1]).nonzero().squeeze(1)],
    "where": lambda y: y[torch.where(y[:, 0] > y[:, 1])[0]],
    "repeats": lambda y: torch.repeat_interleave(y, (y[:, 0] > y[:, 1]).long() + 1, 0),
}


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("how", PICKED)
def test_how_many_samples_go_on_may_follow_from_the_data(how: str, with_inputs: bool):
    """What is not known of a value then stands in the way of no merge before it or behind."""
    model = build(lambda: Picking(PICKED[how]))
    fused = reparamkit.fuse(model, X) if with_inputs else reparamkit.fuse(model)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    for seed in (1, 2):
        x = sample((7, 4, 9, 8), torch.float32, seed)
        assert error(run(fused, x), run(model, x)) < 1e-5


class Stem(nn.Module):
    """Asks for the channels of an input that the model around it need not be given."""

    def __init__(self) -> None:
        super().__init__()
        self.row = conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 4:
            raise ValueError("four channels")
        return self.row(x).relu()  # type: ignore[no-any-return]


class Body(nn.Module):
    """A stem, and more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.row = Stem(), conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.row(self.stem(x))  # type: ignore[no-any-return]


class Headed(nn.Module):
    """Its input has a default, with which nothing can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()

    def forward(self, x: Tensor | None = None) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def test_what_is_traced_with_the_module_around_it_in_the_end_is_no_part_of_its_own():
    """The stem fails first, and its module behind it, which can be traced by itself."""
    model = build(Headed)
    fused = reparamkit.fuse(model)
    assert [part.path for part in reparamkit.report(fused).parts] == ["body"]
    assert len(reparamkit.report(fused).merges) == 2
    x = sample((2, 4, 6, 6), torch.float32)
    assert error(fused(x), model(x)) <= 1e-6
