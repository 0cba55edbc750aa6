"""Layers that are called at several places are merged once for all of them, or left with a reason."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from structures import Model, build, conv, conv_norm, error, norm, operations, repvgg, run, sample, seq
from torch import Tensor, nn
from torch.nn import functional as F

import reparamkit

X = sample((2, 4, 12, 8), torch.float32)


class Head(nn.Module):
    """The head of RetinaNet: towers of convolution, norm and ReLU, called on every level of a pyramid."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.tower = seq(*(layer for _ in range(2) for layer in (*conv_norm(c, c), nn.ReLU())))
        self.score = conv(c, 3)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [self.score(self.tower(level)) for level in levels]


class Detector(nn.Module):
    """A stem, a pyramid of three levels, and one head for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.head = conv_norm(4, 4), conv(4, 4, s=2), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        large = torch.relu(self.stem(x))
        middle = self.down(large)
        small = self.down(middle)
        return torch.cat([level.flatten(1) for level in self.head([large, middle, small])], 1)


def model(body: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Model(body, **{"a": conv(4, 4), "n": norm(4), "m": norm(4), "b": conv(4, 4), **copy.deepcopy(parts)})


def two_names() -> nn.Module:
    """A row whose layers are attributes too, which come first."""
    a, n = conv(4, 4), norm(4)
    return Model(lambda m, x: m.row(x), a=a, n=n, row=seq(a, n))


def second_name() -> nn.Module:
    """A convolution that is called by the second of its names."""
    a = conv(4, 4)
    return Model(lambda m, x: m.n(m.b(x)), a=a, b=a, n=norm(4))


class Listed(nn.Module):
    """Calls its layers by a list and a dictionary of its own, which are no ModuleList, and one by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n, self.m = conv(4, 4), conv(4, 4, 1), norm(4), norm(4)
        self.layers, self.pairs = [self.a, self.b], {"last": (self.b, [self.m])}

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.n(self.layers[0](x)))
        layer, (last,) = self.pairs["last"]
        return last(layer(x))


class Heads(nn.Module):
    """Convolutions whose results go through one norm, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.norm = nn.ModuleDict({name: conv(4, 4) for name in "abc"}), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        found = {name: self.norm(head(x)) for name, head in self.heads.items()}
        return found["a"].relu() * found["b"].sigmoid() + found["c"]


def one_activation() -> nn.Module:
    """Blocks that are given one activation, as the class of a convolution may have one for all."""
    act = nn.ReLU()
    one, two = (Model(lambda m, x: m.act(m.a(x) + m.b(x)), a=conv(4, 4), b=conv(4, 4, 1), act=act) for _ in range(2))
    return seq(one, two)


def upsampled(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:])


MERGED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a pair on three levels": (Detector, "conv relu conv conv " + " ".join(["conv relu conv relu conv"] * 3) + " cat"),
    "a pair applied twice": (model(lambda m, x: m.n(m.a(torch.relu(m.n(m.a(x)))))), "conv relu conv"),
    "a block called twice": (
        lambda: Model(lambda m, x: m.block(torch.relu(m.block(x))), block=conv_norm(4, 4)),
        "conv relu conv",
    ),
    "a row of three": (
        lambda: Model(lambda m, x: m.row(torch.relu(m.row(x))), row=seq(norm(4), conv(4, 4, 1), norm(4))),
        "conv relu conv",
    ),
    "a pair on two sizes": (
        model(lambda m, x: m.n(m.a(x)) * upsampled(m.n(m.a(F.max_pool2d(x, 2))), x)),
        "conv max_pool2d_with_indices conv upsample_nearest2d mul",
    ),
    "a pair under two names": (two_names, "conv"),
    "a layer called by its second name": (second_name, "conv"),
    "layers in a plain list": (Listed, "conv relu conv"),
    "one norm, two convolutions": (
        model(lambda m, x: m.n(m.a(x)) * torch.relu(m.n(m.b(torch.relu(x))))),
        "conv relu conv relu mul",
    ),
    "one norm, heads in a dictionary": (Heads, "conv conv conv relu sigmoid mul add"),
    "one norm, two convolutions that are added": (model(lambda m, x: m.n(m.a(x)) + m.n(m.b(x))), "conv"),
    "blocks with one activation": (one_activation, "conv relu conv relu"),
}

LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "each place its own norm": (
        model(lambda m, x: m.n(m.a(x)) * torch.relu(m.m(m.a(torch.relu(x))))),
        "conv norm relu conv norm relu mul",
    ),
    "once with the norm, once without": (
        model(lambda m, x: m.n(m.a(x)) * torch.relu(m.a(torch.relu(x)))),
        "conv norm relu conv relu mul",
    ),
    "the value between them is read at one place": (
        model(lambda m, x: m.n(m.a(x)) * (lambda y: m.n(y) * torch.sigmoid(y))(m.a(torch.relu(x)))),
        "conv norm relu conv norm sigmoid mul mul",
    ),
    "the other way round at one place": (
        model(lambda m, x: m.n(m.a(torch.relu(m.a(m.n(x)))))),
        "norm conv relu conv norm",
    ),
}


def both(table: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("make", "left"), table.values(), ids=table)


@both(MERGED)
@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"as_graph": True}], ids=["copy", "in place", "graph"])
@pytest.mark.parametrize("with_inputs", [True, False])
def test_what_is_alike_everywhere_is_merged(make: Callable[[], nn.Module], left: str, options: Any, with_inputs: bool):
    """One merged layer serves all places: outputs are equal, and no number is stored twice."""
    net, wanted = build(make), run(build(make), X)
    before = sum(p.numel() for p in net.parameters())
    fused = reparamkit.fuse(net, X if with_inputs else None, **options)
    assert operations(fused, X) == left
    assert error(run(fused, X), wanted) <= 1e-6
    assert sum(p.numel() for p in fused.parameters()) < before
    other = sample((1, 4, 16, 12), torch.float32)
    assert error(run(fused, other), run(build(make), other)) <= 1e-6


@both(LEFT)
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
def test_what_differs_somewhere_is_left(make: Callable[[], nn.Module], left: str, inplace: bool):
    """It runs as before, and the report says at how many places it is called."""
    net, wanted = build(make), run(build(make), X)
    fused = reparamkit.fuse(net, X, inplace=inplace)
    assert operations(fused, X) == left
    assert torch.equal(run(fused, X), wanted)
    assert any("called at 2 places" in refusal.reason for refusal in reparamkit.report(fused).refusals)


def test_the_rank_of_all_calls_is_known():
    """A row that a run calls with maps of one rank is merged for that rank, which need not be the lowest."""
    make = lambda: Model(lambda m, x: m.row(torch.relu(m.row(x))), row=seq(nn.BatchNorm1d(4), nn.BatchNorm1d(4)))  # noqa: E731
    maps = sample((2, 4, 9), torch.float32)
    fused = reparamkit.fuse(build(make), maps)
    assert len(operations(fused, maps).split()) < len(operations(build(make), maps).split())
    assert error(run(fused, maps), run(build(make), maps)) <= 1e-6


def test_a_map_that_has_no_room_for_borders():
    """No merge of a block that several calls share needs a larger map than the smallest of a run."""
    parts = {"a": nn.Conv1d(1, 1, 1), "b": nn.Conv1d(1, 1, 5, padding=2), "c": nn.Conv1d(1, 1, 3, padding=1)}
    block = Model(lambda m, x: m.b(m.a(x)) + m.c(x) + m.n(x) + x, n=nn.BatchNorm1d(1), **parts)
    make = lambda: Model(lambda m, x: m.block(torch.relu(m.block(x))), block=copy.deepcopy(block))  # noqa: E731
    maps = sample((2, 1, 3), torch.float32)
    assert error(run(reparamkit.fuse(build(make), maps), maps), run(build(make), maps)) <= 1e-6


UNKNOWN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "its calls differ in rank": lambda m, x: m.row(x) * m.row(x.mean(-1)).unsqueeze(-1),
    "it is lost on the way": lambda m, x: m.block(torch.relu(m.block(x))),
}


@pytest.mark.parametrize("body", UNKNOWN.values(), ids=UNKNOWN)
def test_no_rank_is_assumed_where_a_run_is_known(body: Any):
    """A row whose rank is unknown is left, with that reason: an assumed rank could be one that no call has."""

    def make() -> nn.Module:
        row = seq(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
        return Model(body, row=row, block=Model(lambda m, x: m.row(x.cumsum(-1)), row=row))

    maps = sample((2, 4, 9), torch.float32)
    fused = reparamkit.fuse(build(make), maps)
    assert error(run(fused, maps), run(build(make), maps)) <= 1e-6
    assert any("rank" in refusal.reason for refusal in reparamkit.report(fused).refusals)


HOLDERS: dict[str, Callable[[nn.Module], Any]] = {
    "a namespace": lambda layer: SimpleNamespace(call=layer),
    "a partial": lambda layer: SimpleNamespace(call=partial(layer)),
    "a queue": lambda layer: SimpleNamespace(call=lambda x, queue=deque([layer]): queue[0](x)),
    "a function": lambda layer: SimpleNamespace(call=lambda x: layer(x)),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_a_layer_that_an_object_holds_is_left(hold: Callable[[nn.Module], Any]):
    """Where code calls it by another object of the model's than a list, its norm is not merged into it."""

    def make() -> nn.Module:
        net = Model(lambda m, x: m.n(m.held.call(x)), a=conv(4, 4), n=norm(4))
        net.held = hold(net.a)
        return net

    net, wanted = build(make), run(build(make), X)
    fused = reparamkit.fuse(net, inplace=True)
    assert torch.equal(run(fused, X), wanted)
    assert any("holds it in an object" in refusal.reason for refusal in reparamkit.report(fused).refusals)


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
def test_a_shared_block_with_a_sum(inplace: bool):
    """A block that is called as a whole is merged as a whole, for all calls."""
    make = lambda: Model(lambda m, x: m.block(torch.relu(m.block(x))), block=repvgg(4))  # noqa: E731
    fused = reparamkit.fuse(build(make), X, inplace=inplace)
    assert operations(fused, X) == "conv relu conv"
    assert error(run(fused, X), run(build(make), X)) <= 1e-6


def test_a_place_that_merges_more_than_another():
    """Where only one place can take a further layer in, it gets a layer of its own."""
    make = lambda: Model(  # noqa: E731
        lambda m, x: m.c(m.n(m.a(torch.relu(m.n(m.a(x)))))), a=conv(4, 4, 1), n=norm(4), c=conv(4, 4, 1)
    )
    fused = reparamkit.fuse(build(make), X)
    assert operations(fused, X) == "conv relu conv"
    assert error(run(fused, X), run(build(make), X)) <= 1e-6


class Untraceable(nn.Module):
    """Looks at numbers, and calls a module of its parent."""

    def __init__(self, pair: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = pair[0], pair[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if float(x.sum()) > -1e9 else self.conv(x)


def test_calls_that_were_not_traced():
    """If a run calls a pair more often than the trace, it is left."""

    def make() -> nn.Module:
        pair = conv_norm(4, 4)
        return Model(lambda m, x: m.odd(m.pair(torch.relu(m.pair(x)))), pair=pair, odd=Untraceable(pair))

    fused = reparamkit.fuse(build(make), X)
    assert torch.equal(run(fused, X), run(build(make), X))
    assert operations(fused, X).split().count("norm") == 3
    assert any("times in a run" in refusal.reason for refusal in reparamkit.report(fused).refusals)


class CalledForNothing(nn.Module):
    """A layer that is also called where nobody reads what it gives, on a map without borders."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.blur = nn.Conv2d(9, 1, 1), nn.Conv2d(1, 1, 3, bias=False)

    def forward(self, x):
        self.mix(x.mean((2, 3), keepdim=True))
        return self.blur(self.mix(x))


@pytest.mark.parametrize("with_inputs", [False, True])
def test_a_call_that_nobody_reads_is_a_call(with_inputs: bool):
    model, x = build(CalledForNothing), torch.randn(2, 9, 7, 6)
    fused = reparamkit.fuse(model, *[x] * with_inputs, objective="launches")
    assert torch.equal(fused(x), model(x))
    assert "called at 2 places" in str(reparamkit.report(fused))


def test_a_method_written_again_leaves_shared_pairs():
    """A pair that is called in a method whose code changes stays as it is, or is merged; the outputs are equal."""
    make = lambda: Model(  # noqa: E731
        lambda m, x: m.n(m.a(torch.relu(m.n(m.a(x))))) + (m.b(x) + m.c(x)),
        a=conv(4, 4),
        n=norm(4),
        b=conv(4, 4),
        c=conv(4, 4, 1),
    )
    for options in ({}, {"inplace": True}):
        fused = reparamkit.fuse(build(make), X, **options)
        assert error(run(fused, X), run(build(make), X)) <= 1e-6


def test_other_weights_of_a_shared_pair():
    """The recipe has the shared layer once; a pickled or copied model still shares it."""
    net = build(Detector)
    fused, other = reparamkit.fuse(net, X), build(Detector)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    fused.load_state_dict(reparamkit.convert_state_dict(fused, other.state_dict()))
    assert error(run(fused, X), run(other, X)) <= 1e-5
    assert error(run(copy.deepcopy(fused), X), run(other, X)) <= 1e-5


def test_a_hook_behind_a_shared_pair_goes_on_to_the_merged_layer():
    net = build(MERGED["a pair applied twice"][0])
    net.n.register_forward_hook(lambda module, args, output: 2 * output)
    wanted = run(net, X)
    fused = reparamkit.fuse(net, X)
    assert operations(fused, X) == "conv mul relu conv mul"
    assert error(run(fused, X), wanted) <= 1e-5


def test_a_shared_pair_with_a_hook_between_is_left():
    net = build(MERGED["a pair applied twice"][0])
    net.n.register_forward_pre_hook(lambda module, args: 2 * args[0])
    wanted = run(net, X)
    fused = reparamkit.fuse(net, X)
    assert operations(fused, X) == "conv mul norm relu conv mul norm"
    assert torch.equal(run(fused, X), wanted)


# --- one module, several names --------------------------------------------------------------------------


class Inner(nn.Module):
    """Two branches, added."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


def listed(*layers: nn.Module) -> dict[str, nn.Module]:
    return {"layers": nn.ModuleList(layers), "a": layers[0], "b": layers[1]}


def sliced(*layers: nn.Module) -> dict[str, nn.Module]:
    return {"features": (features := seq(*layers)), "stem": features[:2], "head": features[2:]}


NAMES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    # As in DGCNN.
    "the norm of a row is an attribute as well": (
        lambda: Model(lambda m, x: m.row(x), norm=(n := norm(4)), row=seq(conv(4, 4), n)),
        "conv",
    ),
    "a list beside attributes": (lambda: Model(lambda m, x: m.b(m.a(x)), **listed(conv(4, 4), norm(4))), "conv"),
    "parts of a row": (
        lambda: Model(
            lambda m, x: m.head(torch.relu(m.stem(x))), **sliced(conv(4, 4), norm(4), *conv_norm(4, 4).children())
        ),
        "conv relu conv",
    ),
    "branches in a list": (
        lambda: Model(lambda m, x: m.a(x) + m.b(x), **listed(conv_norm(4, 4), conv_norm(4, 4, 1))),
        "conv",
    ),
    "branches that were attributes before": (
        lambda: Model(
            lambda m, x: m.block(x), a=(a := conv_norm(4, 4)), b=(b := conv_norm(4, 4, 1)), block=Inner(a, b)
        ),
        "conv",
    ),
}


@both(NAMES)
@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"as_graph": True}], ids=["copy", "in place", "graph"])
def test_a_module_of_several_names(make: Callable[[], nn.Module], left: str, options: Any):
    """What takes its place does so under all of its names, and other weights are converted under all of them."""
    net, wanted = build(make), run(build(make), X)
    fused = reparamkit.fuse(net, **options)
    assert operations(fused, X) == left
    assert error(run(fused, X), wanted) <= 1e-6
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    fused.load_state_dict(reparamkit.convert_state_dict(fused, build(make).state_dict()))
    assert error(run(fused, X), wanted) <= 1e-6


def test_names_that_methods_and_options_use():
    """A method that uses a part of a pair by another name keeps the pair; skip= means all names of a module."""

    class Told(Model):
        def normed(self, x: Tensor) -> Tensor:
            return self.norm(x)

    make = lambda kind: lambda: kind(lambda m, x: m.row(x), row=seq(conv(4, 4), n := norm(4)), norm=n)  # noqa: E731
    for kind, skip in ((Told, None), (Model, "norm")):
        fused = reparamkit.fuse(build(make(kind)), X, skip=skip)
        assert operations(fused, X) == "conv norm"


# --- calls for nothing ---------------------------------------------------------------------------------


def called_for_nothing(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(m.n(x))
    m.n(x)
    return y + y


def returned_for_nothing(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(m.n(x)).relu()
    m.n(x)
    return y


@pytest.mark.parametrize("given", [True, False], ids=["with inputs", "without inputs"])
def test_a_call_for_nothing_goes_with_the_code_that_makes_it(given: bool):
    """It does not count where the method is written again; fusing again finds nothing more."""
    network = build(model(called_for_nothing, a=conv(4, 4, 1)))
    fused = reparamkit.fuse(network, X if given else None)
    assert operations(fused, X) == "conv"
    assert error(run(fused, X), run(network, X)) < 1e-6
    assert reparamkit.report(reparamkit.fuse(fused, X)).merges == ()


def part_of_itself(m: nn.Module, x: Tensor) -> Tensor:
    y = m.b(torch.cat([x, m.a(x)], 1).chunk(2, 1)[0])
    for layer in (m.c, m.n, F.relu, m.n, m.c):
        y = layer(y)
    return y


def test_a_layer_that_is_called_no_more_pays_for_no_copy_of_another():
    """It stays in the model: its numbers are no room for a merged layer beside the layers that other calls need."""
    network = build(model(part_of_itself, b=conv(4, 4, 1), c=conv(4, 4)))
    fused = reparamkit.fuse(network, X)
    assert error(run(fused, X), run(network, X)) < 1e-6
    report = reparamkit.report(fused)
    assert report.merges
    assert report.after.stored <= report.before.stored


def test_a_call_for_nothing_counts_where_the_code_stays():
    network = build(model(returned_for_nothing, a=conv(4, 4, 1)))
    fused = reparamkit.fuse(network, X)
    assert error(run(fused, X), run(network, X)) < 1e-6
    assert "called at 2 places" in str(reparamkit.report(fused).refusals)


def test_the_shape_of_a_layer_that_stays_is_known():
    """It is in no merge; what adds its result to others is in one."""
    body = lambda m, x: torch.relu(m.b(x) + m.a(x) + m.c(x)) + m.a(-x)  # noqa: E731
    made = build(lambda: Model(body, a=conv(4, 4), b=conv(4, 4), c=conv(4, 4)))
    for example in (X, None):
        fused = reparamkit.fuse(made, example, skip="a")
        assert operations(fused, X).split().count("conv") == 3
        assert error(run(fused, X), run(made, X)) <= 1e-5


def scaled_at_one_place(m: nn.Module, x: Tensor) -> Tensor:
    x = F.conv2d(x, m.weight, padding=1)
    m.counter(x)
    return m.counter(m.counter(x) * m.scale)


class Counter(nn.Module):
    """A convolution and its norm, behind code that cannot be written again."""

    def __init__(self) -> None:
        super().__init__()
        self.row = conv_norm(4, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.row(x)


@pytest.mark.parametrize("example", [X, None], ids=["with inputs", "without inputs"])
def test_a_scale_before_one_of_the_calls_is_in_no_layer_for_all(example: Tensor | None):
    """The calls would merge to rows of the same modules, one of them with a scale more."""
    parts = {"counter": Counter(), "scale": nn.Parameter(torch.rand(4, 1, 1) + 1)}
    network = build(lambda: Model(scaled_at_one_place, weight=nn.Parameter(torch.rand(4, 4, 3, 3)), **parts))
    fused = reparamkit.fuse(network, example)
    assert error(run(fused, X), run(network, X)) <= 1e-6


# --- calls on constants ---------------------------------------------------------------------------------


class Dora(nn.Module):
    """A layer and a pair of low rank, their rows normalised: the pair's numbers are what it makes of unit vectors."""

    def __init__(self, pair: nn.Module) -> None:
        super().__init__()
        self.base, self.pair, self.size = nn.Linear(6, 8), pair, nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base.weight + self.pair(torch.eye(6)).T
        scale = (self.size / weight.norm(dim=1)).view(1, -1)
        return scale * (self.base(x) - self.base.bias + self.pair(x)) + self.base.bias


class LowRank(nn.Module):
    """A pair of layers and a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.b(self.a(x))  # type: ignore[no-any-return]


class Helping(nn.Module):
    """Calls a layer that it is given on a constant."""

    def forward(self, layer: nn.Module) -> Tensor:
        return layer(torch.ones(1, 4, 3, 3)).mean()  # type: ignore[no-any-return]


def low_rank_row() -> nn.Module:
    return Dora(seq(nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)))


def position(*layers: nn.Module) -> Callable[[], nn.Module]:
    """A table that goes through the same layers as the input."""

    def make() -> nn.Module:
        found = Model(lambda m, x: m.n(m.row(x) + m.row(m.table)), n=norm(4), row=seq(*copy.deepcopy(layers)))
        found.table = nn.Parameter(torch.rand(1, 4, 12, 8))
        return found

    return make


ON_CONSTANTS: dict[str, Callable[[], nn.Module]] = {"a row": low_rank_row, "a module": lambda: Dora(LowRank())}


def tokens(*shape: int) -> Tensor:
    return sample(shape, torch.float32)


@pytest.mark.parametrize("make", ON_CONSTANTS.values(), ids=ON_CONSTANTS)
@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"as_graph": True}], ids=["copy", "in place", "graph"])
@pytest.mark.parametrize("with_inputs", [True, False])
def test_a_call_on_constants_is_arithmetic(make: Callable[[], nn.Module], options: Any, with_inputs: bool):
    """It is no place at which a module is called, for other weights and ranks as well."""
    net, x = build(make), tokens(2, 5, 6)
    fused = reparamkit.fuse(copy.deepcopy(net), x if with_inputs else None, **options)
    assert operations(fused, x) == "linear"
    for each in (x, tokens(1, 1, 6), tokens(0, 3, 6), tokens(4, 6)):
        torch.testing.assert_close(run(fused, each), run(net, each), rtol=1e-5, atol=1e-5)
    other = {name: torch.rand_like(tensor) + 0.1 for name, tensor in net.state_dict().items()}
    fused.load_state_dict(reparamkit.convert_state_dict(fused, other))
    net.load_state_dict(other)
    assert error(run(fused, x), run(net, x)) <= 1e-6


def test_a_block_with_a_call_on_constants_that_is_called_twice():
    """It is merged by itself."""
    net = build(lambda: Model(lambda m, x: m.d(torch.relu(m.d(x)[..., :6])), d=Dora(LowRank())))
    x = tokens(2, 5, 6)
    fused = reparamkit.fuse(net, x)
    assert operations(fused, x) == "linear relu linear"
    assert error(run(fused, x), run(net, x)) <= 1e-6


CONSTANTS_ELSEWHERE: dict[str, Callable[[], nn.Module]] = {
    "in code that stays": model(lambda m, x: torch.relu(m.n(m.a(x))) * m.h(m.a), h=Helping()),
    "a pool": model(
        lambda m, x: torch.relu(m.b(m.p(x))) * m.p(m.a.weight.abs()).mean(), p=nn.AvgPool2d(2), b=conv(4, 4, 1)
    ),
    "a norm": model(lambda m, x: m.n(m.a(x)) * torch.relu(m.n(m.b.weight))[:1, :, :1, :1]),
    "layers with a function between them": position(conv(4, 4, 1), nn.ReLU(), conv(4, 4, 1)),
    "a pair with a norm": position(conv(4, 4, 1), norm(4)),
}


@pytest.mark.parametrize("make", CONSTANTS_ELSEWHERE.values(), ids=CONSTANTS_ELSEWHERE)
@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"objective": "launches"}], ids=str)
@pytest.mark.parametrize("with_inputs", [True, False])
def test_a_layer_that_code_calls_on_constants_too_does_the_same_there(
    make: Callable[[], nn.Module], options: Any, with_inputs: bool
):
    """Whatever is merged beside it."""
    net = build(make)
    fused = reparamkit.fuse(copy.deepcopy(net), X if with_inputs else None, **options)
    for x in (X, X[:1]):
        assert error(run(fused, x), run(net, x)) <= 1e-6


@pytest.mark.parametrize("options", [{}, {"as_graph": True}], ids=["written", "as a graph"])
@pytest.mark.parametrize("example", [sample((2, 4, 6, 6), torch.float32), None], ids=["with inputs", "without inputs"])
def test_a_module_is_not_absorbed_by_another_call_of_itself(example: torch.Tensor | None, options: dict[str, Any]):
    """In its place there is what absorbs it, which the first call would run as well."""
    model = build(lambda: Model(lambda m, x: m.n(F.avg_pool2d(m.n(x), 2, 1)), n=norm(4)))
    fused = reparamkit.fuse(model, example, **options)
    assert len(reparamkit.report(fused).merges) == 1
    x = sample((2, 4, 6, 6), torch.float32)
    assert error(run(fused, x), run(model, x)) <= 1e-6


def test_what_has_to_run_anyway_goes_into_no_layer_for_nothing():
    """A layer behind a centring that the model returns as well would read another value, and save nothing."""

    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x - x.mean(1, keepdim=True)
        return m.c(y), y

    fused = reparamkit.fuse(build(lambda: Model(forward, c=conv(4, 4, 1))), X)
    report = reparamkit.report(fused)
    assert not report.merges
    assert any("save nothing" in refusal.reason for refusal in report.refusals)
