"""Tensors of another rank than the example's: a fused model computes what the model did, or refuses them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from structures import STRUCTURES, Model, Shape, Structure, build, conv, error, norm, operations, run, sample
from structures.blocks import conv_norm, parameter, seq
from torch import Tensor, fx, nn
from torch.nn import functional as F

import reparamkit
from reparamkit import CaptureError, GuardError
from reparamkit.algebra.size import free_size, stencil_size
from reparamkit.capture.parts import capture_parts
from reparamkit.engine.ranks import RANK, tell_ranks
from reparamkit.engine.site import Site
from reparamkit.layers.hooks import has_hooks
from reparamkit.layers.leaves import is_leaf
from reparamkit.layers.price import Cost

MAPS = (2, 4, 4, 4)
ROWS = (2, 4, 4)


def model(forward: Callable[..., Tensor], **parts: object) -> nn.Module:
    return build(lambda: Model(forward, **parts))


RANKS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "a scale per channel": (lambda: model(lambda m, x: m.c(x) * m.p, c=conv(4, 4), p=parameter(1, 4, 1, 1)), MAPS),
    "a scale of rows": (lambda: model(lambda m, x: m.c(x) * m.p, c=nn.Linear(4, 4), p=parameter(1, 1, 4)), ROWS),
    "a bias of rows": (lambda: model(lambda m, x: m.c(x) + m.p, c=nn.Linear(4, 4), p=parameter(1, 1, 4)), ROWS),
    "a raised scale": (
        lambda: model(
            lambda m, x: m.d((m.c(x) * m.p.abs()).relu()), c=conv(4, 4), d=conv(4, 4), p=parameter(1, 4, 1, 1)
        ),
        MAPS,
    ),
    "flip": (lambda: model(lambda m, x: m.d(m.c(x).flip([1])), c=conv(4, 4), d=conv(4, 4, 1)), MAPS),
    "an index": (lambda: model(lambda m, x: m.d(m.c(x)[:, [1, 0, 3, 2]]), c=conv(4, 4), d=conv(4, 4, 1)), MAPS),
    "cat": (lambda: model(lambda m, x: torch.cat([m.c(x), m.d(x)], 1), c=conv(4, 4, 1), d=conv(4, 4, 1)), MAPS),
    "a swap": (lambda: model(lambda m, x: m.d(m.c(x).transpose(1, -1)), c=conv(4, 4, 1), d=nn.Linear(4, 4)), MAPS),
    "a group norm": (lambda: model(lambda m, x: m.c(m.n(x)), n=nn.GroupNorm(2, 4), c=conv(4, 4, 1)), MAPS),
}
"""Blocks that a merge of one rank changes, at another rank that they take as well."""


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("name", RANKS)
def test_another_rank_gives_the_same_or_is_refused(name: str, with_inputs: bool):
    """A sample without its batch, which convolutions and linear layers take, is another rank."""
    make, shape = RANKS[name]
    own = make()
    fused = reparamkit.fuse(own, sample(shape, torch.float32) if with_inputs else None)
    assert error(run(fused, sample(shape, torch.float32)), run(own, sample(shape, torch.float32))) <= 1e-5
    for other in (shape[1:], (2, *shape)):
        x = sample(other, torch.float32)
        try:
            wanted = run(own, x)
        except (RuntimeError, IndexError):
            continue
        try:
            found = run(fused, x)
        except GuardError:
            continue
        assert found.shape == wanted.shape
        assert error(found, wanted) <= 1e-5


def test_more_dimensions_need_no_guard_where_a_constant_is_spread_over_them():
    """What a constant with ones before it is spread over may have more dimensions, and not fewer."""
    own = RANKS["a scale of rows"][0]()
    for given in (sample(ROWS, torch.float32), None):
        fused = reparamkit.fuse(own, given)
        x = sample((3, *ROWS), torch.float32)
        assert error(run(fused, x), run(own, x)) <= 1e-5
        with pytest.raises(GuardError, match="of rank 3 or more, found rank 2"):
            fused(sample(ROWS[1:], torch.float32))


def test_a_rank_that_the_model_does_not_take_is_not_checked():
    """A batch norm takes batches only: what is written has no guard."""
    own = model(lambda m, x: m.n(m.c(x)) * m.p, c=conv(4, 4), n=norm(4), p=parameter(1, 4, 1, 1))
    fused = reparamkit.fuse(own, sample(MAPS, torch.float32))
    assert "expect" not in str(vars(type(fused)).get("merged_changes"))


# --- without an example -----------------------------------------------------------------------------


class Dims(fx.Interpreter):
    """Runs a graph, and keeps the rank of every tensor."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        super().__init__(root, graph=graph)
        self.seen: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, Tensor):
            self.seen[n] = found.dim()
        return found


def check_told(own: nn.Module, shape: Shape) -> None:
    """What is told of ranks is what a run finds."""
    try:
        (part, *others) = capture_parts(own, None, is_leaf, has_hooks).captured
    except CaptureError:
        pytest.skip("cannot be traced without an example")
    if others or part.root is not own or part.held:
        pytest.skip("no one graph of the model's own parts")
    tell_ranks(part)
    dims = Dims(part.graph, own)
    with torch.no_grad():
        dims.run(sample(shape, torch.float32))
    told = {node: node.meta[RANK][0] for node in part.graph.nodes if RANK in node.meta}
    assert {n: told[n] for n in dims.seen if n in told} == {n: r for n, r in dims.seen.items() if n in told}


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in STRUCTURES])
def test_ranks_that_calls_tell_are_those_of_a_run(case: Structure):
    """What is told of ranks without an example holds for the inputs that a model is made for."""
    check_told(build(case.make), case.shapes[0])


SPELLINGS: tuple[Callable[[Tensor], Any], ...] = (
    lambda x: x.flatten(start_dim=1),
    lambda x: torch.flatten(x, end_dim=1),
    lambda x: torch.flatten(start_dim=2, input=x),
    lambda x: x.mean(keepdim=False, dim=(2, 3)),
    lambda x: x.mean(dim=1, keepdim=True),
    lambda x: x.mean() + x,
    lambda x: x.sum(1, True),
    lambda x: x.amax((2, 3)),
    lambda x: x.amax(),
    lambda x: x.mean(axis=(2, 3)),
    lambda x: x.permute(dims=(0, 2, 3, 1)),
    lambda x: x.unsqueeze(dim=0),
    lambda x: x @ torch.ones(4),
    lambda x: torch.ones(4) @ x,
    lambda x: x[0],
    lambda x: x[:, None, ..., 0],
    lambda x: x[:, [1, 0]],
    lambda x: x[x > 0],
    lambda x: x.chunk(2, 1)[1],
    lambda x: x.unbind(1)[0],
    lambda x: torch.stack([x, x]),
    lambda x: torch.cat([x, x], dim=1)[0, 0],
    lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    lambda x: nn.functional.adaptive_avg_pool2d(x, 1).reshape(x.size(0), -1),
    lambda x: torch.where(x > 0, x, torch.zeros(4)),
    lambda x: x.view(x.shape[0], -1) * x.size()[1],
    lambda x: x.view(torch.int32),
    lambda x: x.transpose(-1, 1).squeeze(0),
)


@pytest.mark.parametrize("number", range(len(SPELLINGS)))
def test_what_is_told_of_a_call_holds_however_it_is_spelled(number: int):
    """Behind a norm, whose rank is certain, no call is said to make other dimensions than it does."""
    own = build(lambda: Model(lambda m, x: SPELLINGS[number](m.norm(x)), norm=norm(4)))
    check_told(own, MAPS)


def cropped(m: Any, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x[:, :, 1:-1, :]) + m.c(x[:, :, :, 1:-1])


def unpacked(m: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    return m.b(F.interpolate(m.a(x), size=(h * 2, w * 2)).reshape(n, 4, h * 2, w * 2))


TOLD: dict[str, tuple[Callable[[], nn.Module], Shape, str]] = {
    "a norm before a 1-d convolution": (lambda: seq(nn.BatchNorm1d(4), nn.Conv1d(4, 3, 3)), (2, 4, 9), "conv"),
    "crops of the input": (
        lambda: model(
            cropped, a=conv_norm(4, 4, 3, p=0), b=conv_norm(4, 4, (1, 3), p=0), c=conv_norm(4, 4, (3, 1), p=0)
        ),
        MAPS,
        "conv",
    ),
    "a shape that is unpacked": (
        lambda: model(unpacked, a=conv(4, 4, 1), b=norm(4)),
        MAPS,
        "conv upsample_nearest2d",
    ),
}
"""Models, of which layers and code tell the rank of the input, and what is left of them."""


@pytest.mark.parametrize("name", TOLD)
def test_what_calls_tell_of_ranks_needs_no_example(name: str):
    """A model merges without an example as with one, where only the rank of a tensor is asked for."""
    make, shape, left = TOLD[name]
    own = build(make)
    fused, x = reparamkit.fuse(own), sample(shape, torch.float32)
    assert operations(fused, x) == left
    assert error(run(fused, x), run(own, x)) <= 1e-6


def test_the_likelier_of_two_ranks_is_guarded():
    """A norm and a convolution of one dimension take a batch of vectors too, if it is as large as the channels."""
    own = build(lambda: seq(nn.BatchNorm1d(4), nn.Conv1d(4, 3, 3)))
    run(own, sample((4, 4), torch.float32))
    with pytest.raises(GuardError, match="of rank 3, found rank 2"):
        reparamkit.fuse(own)(sample((4, 4), torch.float32))


def test_sizes_that_are_given_as_an_argument_are_no_values():
    """Without an example nothing tells that an argument is a pair of numbers; fuse ended with an error of a reader."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n = conv(4, 4), norm(4)

        def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
            b, _, c = x.shape
            h, w = size
            return self.n(self.a(x.transpose(1, 2).view(b, c, h, w))) + x.transpose(1, 2).reshape(b, c, h, w)

    own, x = build(Positions), sample((2, 12, 4), torch.float32)
    fused = reparamkit.fuse(own)
    with torch.no_grad():
        assert error(fused(x, (3, 4)), own(x, (3, 4))) <= 1e-6


def test_calls_that_contradict_each_other_tell_nothing():
    """An argument may be a list of tensors of several ranks, which look like rows of one tensor."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.n = conv_norm(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, maps: list[Tensor]) -> Tensor:
            return self.a(maps[0]).mean((2, 3)) + self.n(self.b(maps[1]))

    own = build(Heads)
    given = [sample(MAPS, torch.float32), sample((2, 4), torch.float32)]
    fused = reparamkit.fuse(own)
    with torch.no_grad():
        assert error(fused(given), own(given)) <= 1e-6
    assert [type(m).__name__ for m in fused.modules() if "Norm" in type(m).__name__] == []


def test_sizes_of_a_value_whose_rank_the_code_tells_are_read():
    """An unpacked shape tells the rank of what it is read of; the sizes are those of that rank."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a, _ = x.split([2, 2], 1)
        y = x.clone()
        y[:, :2] += m.a(a)
        n, c, h, w = y.shape
        return y.reshape(n, c, h * w).transpose(1, 2)

    model, x = build(lambda: Model(forward, a=conv(2, 2, 1))), sample((2, 4, 5, 6), torch.float32)
    assert error(run(reparamkit.fuse(model), x), run(model, x)) <= 1e-6


def squeeze_and_excite(m: Any, x: Tensor) -> Tensor:
    """Takes the shape of a value apart, and needs some of it."""
    y = m.norm(m.conv(x))
    b, c, _, _ = y.size()
    return y * m.gate(y.mean((2, 3)).view(b, c)).sigmoid().view(b, c, 1, 1)


def test_sizes_that_no_code_uses_keep_no_layer():
    """The width and height behind a stride are those of no value before the convolution."""
    strided = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False)
    made = model(squeeze_and_excite, conv=strided, norm=norm(4), gate=nn.Linear(4, 4))
    x = torch.randn(2, 4, 8, 8)
    fused = reparamkit.fuse(made, x)
    assert [merge.members for merge in reparamkit.report(fused).merges] == [("conv", "norm")]
    assert error(fused(x[:1]), made(x[:1])) < 1e-6


def _sized(read: str, m: Any, x: Tensor) -> Tensor:
    """A map, and its mean shown at the size of a value on the way to it."""
    a = m.conv(x)
    b = m.norm(a)
    c = b + m.short(x)
    d = m.last(c)
    height, width = {"a": a, "b": b, "c": c, "d": d}[read].shape[2:]
    y = d.relu()
    return F.interpolate(F.avg_pool2d(y, 2), (height, width)) + y


@pytest.mark.parametrize("read", ["a", "b", "c", "d"])
def test_a_size_is_read_of_what_a_merge_gives(read: str):
    """Code that asks what is merged for its size gets that of a value that stays, and keeps no layer apart."""
    parts = {"conv": nn.Conv2d(4, 4, 3, 2, 1), "short": nn.Conv2d(4, 4, 1, 2), "norm": norm(4), "last": norm(4)}
    net, x = model(partial(_sized, read), **parts), sample((2, 4, 8, 8), torch.float32)
    fused = reparamkit.fuse(net, x)
    assert operations(fused, x).split().count("conv") == 1
    assert "norm" not in operations(fused, x)
    for size in (8, 12):
        other = sample((3, 4, size, size), torch.float32)
        assert error(run(fused, other), run(net, other)) <= 1e-5


def test_the_size_of_a_norm_that_an_activation_reads_keeps_no_layer():
    """Without inputs too."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        height, width = y.shape[2:]
        y = y.relu()
        return F.interpolate(F.max_pool2d(y, 2), (height, width)) + y

    net = model(forward, conv=nn.Conv2d(4, 4, 3, 2, 1), norm=norm(4))
    fused, x = reparamkit.fuse(net), sample((2, 4, 8, 8), torch.float32)
    assert "norm" not in operations(fused, x)
    assert error(run(fused, x), run(net, x)) <= 1e-5


class Keeping(nn.Module):
    """Keeps something of what it gives, for whoever asks later."""

    def __init__(self, kept: Callable[[Tensor], Any]):
        super().__init__()
        self.kept, self.latest = kept, None
        self.conv, self.norm = nn.Conv2d(4, 4, 3, 2), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        """x: shape (n, 4, h, w)."""
        y = self.norm(self.conv(x))
        self.latest = self.kept(y)
        return y.relu()


def _shape(y: Tensor) -> torch.Size:
    return y.shape


def _map_size(y: Tensor) -> torch.Size:
    return y.shape[-2:]


def _numbers(y: Tensor) -> Tensor:
    return y.detach()


@pytest.mark.parametrize("kept", [_shape, _map_size, _numbers])
def test_a_forward_keeps_the_size_and_the_numbers_of_what_is_merged(kept: Callable[[Tensor], Any]):
    """Whoever asks has what the row gives, which is as it was."""
    net, x = build(lambda: Keeping(kept)), sample((2, 4, 9, 9), torch.float32)
    for fused in (reparamkit.fuse(net), reparamkit.fuse(net, x)):
        assert operations(fused, x) == "conv relu"
        for other in (x, sample((1, 4, 11, 13), torch.float32)):
            assert error(run(fused, other), run(net, other)) <= 1e-6
            if isinstance(net.latest, Tensor):
                assert error(fused.latest, net.latest) <= 1e-6
            else:
                assert fused.latest == net.latest


def test_the_code_that_calls_fuse_is_none_of_the_model():
    """What the forward sets is there for it to read."""
    net = build(lambda: Keeping(_shape))
    fused = reparamkit.fuse(net)
    assert fused.latest is None
    assert isinstance(fused.norm, nn.Identity)


class Embedding(nn.Module):
    """A map as tokens, and its height and width, as in PVT, SegFormer and SegNeXt."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        _, _, height, width = x.shape
        return self.norm(x).flatten(2).transpose(1, 2), height, width


class Tokens(nn.Module):
    """Gets the sizes of the map that its tokens were."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x.transpose(1, 2).reshape(x.shape[0], -1, height, width)
        return (x + self.conv(self.norm(x)).relu()).flatten(2).transpose(1, 2)


class Embedded(nn.Module):
    """Two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Embedding(3, 4), Embedding(4, 6)
        self.blocks = nn.ModuleList([Tokens(4), Tokens(6)])

    def forward(self, x: Tensor) -> Tensor:
        for embedding, block in zip((self.first, self.second), self.blocks, strict=True):
            y, height, width = embedding(x)
            x = block(y, height, width).transpose(1, 2).reshape(x.shape[0], -1, height, width)
        return x


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
def test_sizes_that_calls_return_and_take_keep_no_layer(with_inputs: bool):
    """They are read of the norm behind the layer, whose code returns them."""
    net, x = build(Embedded), sample((2, 3, 8, 12), torch.float32)
    fused = reparamkit.fuse(net, x if with_inputs else None)
    assert "norm" not in operations(fused, x)
    for size in (8, 12):
        other = sample((3, 3, size, 8), torch.float32)
        assert error(run(fused, other), run(net, other)) <= 1e-5


class Taking(nn.Module):
    """Takes a size, and may have no use for it."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.used = used

    def forward(self, x: Tensor, height: int) -> Tensor:
        return x.relu() * height if self.used else x.relu()


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("used", [True, False])
def test_a_size_that_a_call_takes_is_not_read_of_what_comes_later(used: bool, with_inputs: bool):
    """A call that takes it before the norm is computed still gets it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        height = y.shape[2]
        z = m.taking(x, height)
        return (m.norm(y) * 2).reshape(x.shape[0], -1, height) + z.mean()  # type: ignore[no-any-return]

    net = model(forward, conv=nn.Conv2d(3, 4, 3, 2, 1), norm=norm(4), taking=Taking(used))
    x = sample((2, 3, 8, 8), torch.float32)
    fused = reparamkit.fuse(net, x if with_inputs else None)
    for size in (8, 12):
        other = sample((3, 3, size, 8), torch.float32)
        assert error(run(fused, other), run(net, other)) <= 1e-5


@pytest.mark.parametrize("compared", [lambda a, b: a.shape == b.shape, lambda a, b: a.size() == b.shape[:]])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_comparison_of_shapes_keeps_no_layer(compared: Callable[[Tensor, Tensor], bool], stride: int):
    """A skip where the shape stays is merged; a map so small that it stays by chance takes the other branch."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.n(m.c(x))
        return y + x if compared(y, x) else y

    own = model(forward, c=conv(4, 4, s=stride), n=norm(4))
    fused = reparamkit.fuse(own, sample(MAPS, torch.float32))
    assert operations(fused, sample(MAPS, torch.float32)) == "conv"
    for shape in (MAPS, (1, 4, 7, 5), (1, 4, 2, 2)):
        x = sample(shape, torch.float32)
        assert error(run(fused, x), run(own, x)) <= 1e-5
    small = sample((1, 4, 1, 1), torch.float32)
    if stride == 1:
        assert error(run(fused, small), run(own, small)) <= 1e-5
    else:
        with pytest.raises(GuardError):
            fused(small)


def test_sizes_of_weights_need_no_check():
    """Code that computes with the shape of a parameter has plain numbers, and is written again without."""

    def forward(m: Any, x: Tensor) -> Tensor:
        wide, one, height, width = m.deep.size()
        deep = m.deep.view(4, int(wide / 4), one, height, width)
        weight = torch.einsum("gtihw,ogt->ogihw", deep, m.point.view(4, 4, -1))
        return m.norm(F.conv2d(x, weight.reshape(4, int(4 * one), height, width) + m.own, padding=1))

    def layer() -> nn.Module:
        weights = {"deep": parameter(8, 1, 3, 3), "point": parameter(4, 8, 1, 1), "own": parameter(4, 4, 3, 3)}
        return Model(forward, norm=norm(4), **weights)

    net, x = build(lambda: seq(layer(), nn.ReLU(), layer())), sample(MAPS, torch.float32)
    for fused in (reparamkit.fuse(net), reparamkit.fuse(net, x)):
        assert operations(fused, x) == "conv relu conv"
        assert error(run(fused, x), run(net, x)) <= 1e-5


def test_a_list_as_long_as_the_rank_asks_for_ends_in_no_error():
    """The number of dimensions is no tensor, and a list of numbers times it has no rank."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        b, c = y.shape[:2]
        return y * m.gate(y.mean((2, 3))).sigmoid().view([b, c] + [1] * (y.ndim - 2))

    net = model(forward, conv=conv(4, 4), norm=norm(4), gate=nn.Linear(4, 4))
    fused, x = reparamkit.fuse(net), sample((2, 4, 8, 8), torch.float32)
    assert "norm" not in operations(fused, x)
    assert error(run(fused, x), run(net, x)) <= 1e-5


def test_a_shape_of_fewer_dimensions_than_the_code_reads_ends_in_no_error():
    """For all that is known, nothing is left of the value behind ``[..., 0]``."""

    def forward(m: Model, x: Tensor) -> Tensor:
        y = m.norm(F.conv3d(x, m.weight + m.weight.flip(0)))[..., 0]
        row = y.view(y.shape[0], -1)
        row += 1
        return y

    weight = nn.Parameter(torch.rand(4, 4, 2, 2, 2))
    model = build(lambda: Model(forward, norm=nn.BatchNorm3d(4), weight=weight))
    x = sample((2, 4, 5, 3, 4), torch.float32)
    assert error(run(reparamkit.fuse(model), x), run(model, x)) <= 1e-6


TURNED: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "chunks": (lambda y: torch.cat(y.chunk(2, 1)[::-1], 1), False),
    "chunks by name": (lambda y: torch.cat(torch.chunk(y, chunks=2, dim=1)[::-1], dim=1), False),
    "parts of some lengths": (lambda y: torch.cat(y.split([1, 3], 1)[::-1], 1), False),
    "sections": (lambda y: torch.cat((parts := y.tensor_split(4, 1))[2:] + parts[:2], 1), False),
    "elements": (lambda y: torch.stack(y.unbind(1)[::-1], 1), True),
}


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("name", TURNED)
def test_parts_that_are_turned_around_are_another_order_of_channels(name: str, with_inputs: bool):
    """Channels in another order go into the layer behind them."""
    turn, only_with_inputs = TURNED[name]
    own = model(lambda m, x: m.d(turn(m.n(m.c(x)))), c=conv(4, 4), n=norm(4), d=conv(4, 4, 1))
    fused = reparamkit.fuse(own, sample(MAPS, torch.float32) if with_inputs else None)
    x = sample((3, 4, 7, 5), torch.float32)
    assert error(run(fused, x), run(own, x)) <= 1e-5
    if with_inputs or not only_with_inputs:
        assert operations(fused, x) == "conv"


def test_samples_that_are_turned_around_may_be_any_number():
    """A slice of them is no decision."""
    own = model(lambda m, x: torch.cat(m.n(m.c(x)).chunk(4)[::-1]), c=conv(4, 4), n=norm(4))
    fused = reparamkit.fuse(own, sample((4, 4, 4, 4), torch.float32))
    for batch in (3, 4, 8):
        x = sample((batch, 4, 4, 4), torch.float32)
        assert error(run(fused, x), run(own, x)) <= 1e-5


def test_code_may_go_through_chunks_without_an_example():
    """There are as many as it asks for, which is guarded: of few positions there are less."""
    body = partial(_sum_of_chunks, 2)
    net = build(lambda: Model(body, layers=conv_norm(4, 4)))
    fused = reparamkit.fuse(net)
    x = sample((2, 4, 6, 6), torch.float32)
    assert operations(fused, x) == operations(net, x).replace("conv norm", "conv")
    assert error(run(fused, x), run(net, x)) <= 1e-5


@pytest.mark.parametrize(
    "split", [torch.hsplit, torch.vsplit, torch.dsplit, torch.tensor_split], ids=lambda f: f.__name__
)
def test_code_may_go_through_equal_parts_without_an_example(split: Callable[..., Any]):
    """The call itself says how many there are."""
    net = build(lambda: Model(partial(_sum_of_parts, split), layers=conv_norm(4, 4)))
    fused = reparamkit.fuse(net)
    x = sample((2, 4, 6, 6), torch.float32)
    assert operations(fused, x) == operations(net, x).replace("conv norm", "conv")
    assert error(run(fused, x), run(net, x)) <= 1e-5


def _sum_of_parts(split: Callable[..., Any], m: Any, x: Tensor) -> Tensor:
    return torch.stack([part.relu() for part in split(m.layers(x), 2)]).sum(0)


def _sum_of_chunks(number: int, m: Any, x: Tensor) -> Tensor:
    return torch.stack([part.relu() for part in m.layers(x).chunk(number, -1)]).sum(0)


@pytest.mark.parametrize("name", ["cat", "stack", "hstack"])
@pytest.mark.parametrize("as_graph", [False, True])
def test_a_list_that_a_call_makes_is_put_together(name: str, as_graph: bool):
    """The parts are no values of the code."""
    model = build(lambda: Model(lambda m, x: getattr(torch, name)(m.layer(x).split(2, 1)), layer=conv(4, 4)))
    x = sample(MAPS, torch.float32)
    fused = reparamkit.fuse(model, as_graph=as_graph)
    assert error(run(fused, x), run(model, x)) <= 1e-6


@pytest.mark.parametrize("turn", [lambda x: x.flip(1), lambda x: torch.roll(x, 1, 1), lambda x: x.chunk(2, dim=1)[0]])
def test_a_dimension_that_is_counted_behind_a_linear_layer_is_of_no_known_rank(turn: Callable[[Tensor], Tensor]):
    """Features or tokens: both are taken, as the model took them."""
    net = build(lambda: Model(lambda m, x: m.b(turn(m.a(x))), a=nn.Linear(6, 6), b=nn.LayerNorm(6)))
    fused = reparamkit.fuse(net)
    for x in (torch.randn(2, 4, 6), torch.randn(2, 6)):
        if turn(x).shape[-1] == 6:
            assert error(run(fused, x), run(net, x)) <= 1e-6


def test_the_size_of_a_convolved_map_may_come_first_where_a_size_is_read():
    """A site that reads such a value is asked where another size of it is."""
    node = fx.Graph().placeholder("x")
    height, width = free_size("x", -2), free_size("x", -1)
    rows = stencil_size(height, stride=2, c=-3)
    site = Site(node, frozenset({node}), (), Cost(), Cost(), sizes={"rows": (rows, width), "x": (height, width)})
    assert ("rows", -1) in site.readable(width.symbols[0])


KEEPING: dict[str, Callable[[Tensor], Tensor]] = {
    "LeakyReLU": nn.LeakyReLU(0.1),
    "LogSoftmax": nn.LogSoftmax(1),
    "InstanceNorm2d": nn.InstanceNorm2d(4),
    "sin": torch.sin,
    "normalize": F.normalize,
    "a power": lambda x: x**2,
    "a quotient": lambda x: x / (1 + x.abs()),
}


@pytest.mark.parametrize("kept", KEEPING)
def test_what_keeps_the_shape_of_its_input_is_known_without_an_example(kept: str):
    """A norm goes into both layers whose results are added, if these are of one shape."""
    parts = {"c": conv(4, 4, 1), "d": conv(4, 4, 1), "n": norm(4), "k": KEEPING[kept]}
    own = model(lambda m, x: m.n(m.c(m.k(x)) + m.d(x)), **parts)
    fused = reparamkit.fuse(own)
    assert {"n", "c", "d"} <= {name for merge in reparamkit.report(fused).merges for name in merge.members}
    x = sample(MAPS, torch.float32)
    assert error(run(fused, x), run(own, x)) <= 1e-5


def test_a_layer_of_the_name_of_one_of_torch_says_nothing_of_its_shape():
    """A class of the user's own may do anything, whatever it is called."""

    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, :1, :1] if float(x.detach().sum()) < 1e9 else x

    own = model(lambda m, x: m.n(m.c(m.k(x)) + m.d(x)), c=conv(4, 4, 1), d=conv(4, 4, 1), n=norm(4), k=Threshold())
    fused = reparamkit.fuse(own)
    assert not [merge for merge in reparamkit.report(fused).merges if "n" in merge.members]


def test_the_ranks_of_many_parts_are_found_part_by_part():
    """Of twenty parts of unknown rank there are far too many combinations."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.norm(m.conv(torch.cat([x * k for k in range(1, 21)], 1)))  # type: ignore[no-any-return,operator]

    own = model(forward, conv=conv(80, 4, 1), norm=norm(4))
    fused = reparamkit.fuse(own)
    x = sample(MAPS, torch.float32)
    assert len(operations(fused, x).split()) == len(operations(own, x).split()) - 1
    assert error(run(fused, x), run(own, x)) <= 1e-5


class Cropping(nn.Module):
    """Crops what a transposed convolution gives to a length that it is told, as Demucs does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.ConvTranspose1d(4, 4, 4, 2), nn.BatchNorm1d(4)

    def forward(self, x: Tensor, length: int) -> Tensor:
        return self.norm(self.conv(x))[..., 1 : 1 + length]  # type: ignore[no-any-return]


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
def test_a_slice_up_to_a_number_that_is_an_argument_is_left(with_inputs: bool):
    """What is before it merges."""
    net, x = build(Cropping), sample((2, 4, 5), torch.float32)
    fused = reparamkit.fuse(net, (x, 6) if with_inputs else None)
    with torch.no_grad():
        assert error(fused(x, 6), net(x, 6)) <= 1e-5
    assert len(reparamkit.report(fused).merges) == 1


class Channels(nn.Module):
    """A norm of the last dimension, as that of the channels: by a swap that leaves a matrix as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.out = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.layer(x).transpose(-1, 1)).transpose(-1, 1))  # type: ignore[no-any-return]


def test_who_swaps_two_dimensions_has_two():
    """Of the ranks that the norm takes, 2 and 3, the swap does something for the second only. The other is refused."""
    net, x = build(Channels), sample((2, 7, 8), torch.float32)
    fused = reparamkit.fuse(net)
    assert len(reparamkit.report(fused).merges) == 1
    assert error(run(fused, x), run(net, x)) <= 1e-6
    with pytest.raises(GuardError):
        fused(x[:, 0])


ROWS_AS_MAPS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "-1": lambda m, y: y.view(-1, 4, 2, 2),
    "its size": lambda m, y: y.view(y.size(0), 4, 2, 2),
    "of its shape": lambda m, y: y.reshape((y.shape[0], 4, 2, 2)),
    "behind what keeps features": lambda m, y: (z := m.n(y)).view(z.shape[0], 4, 2, 2),
}


@pytest.mark.parametrize("tail", [nn.Identity(), nn.Sequential(nn.Flatten(), nn.Linear(16, 4))], ids=["map", "rows"])
@pytest.mark.parametrize("name", ROWS_AS_MAPS)
def test_who_makes_maps_of_features_has_rows_of_them(name: str, tail: nn.Module):
    """The norm of a generator goes into the linear layer before it, for one vector per sample."""

    def forward(m: Any, x: Tensor) -> Tensor:
        found: Tensor = m.t(m.b(ROWS_AS_MAPS[name](m, m.l(x))))
        return found

    own = model(forward, l=nn.Linear(8, 16), n=nn.BatchNorm1d(16), b=norm(4), t=tail)
    fused = reparamkit.fuse(own)
    assert operations(fused, sample((3, 8), torch.float32)) == "linear"
    for batch in (1, 3):
        x = sample((batch, 8), torch.float32)
        assert error(run(fused, x), run(own, x)) <= 1e-5
    # Torch takes that too where the dimensions between are 1.
    with pytest.raises(GuardError, match="rank 2"):
        fused(sample((3, 1, 8), torch.float32))


def test_heads_of_all_tokens_are_of_no_known_rank():
    """A -1 and two numbers may be of a sequence as well."""
    own = model(lambda m, x: m.n(m.l(x).view(-1, 4, 4)), l=nn.Linear(8, 16), n=nn.BatchNorm1d(4))
    x = sample((2, 3, 8), torch.float32)
    assert error(run(reparamkit.fuse(own), x), run(own, x)) <= 1e-5


def test_beside_what_an_example_might_make_linear_is_no_nonlinearity():
    """A norm behind a view whose sizes are not known is told what to do."""
    own = model(lambda m, x: m.b(m.l(x).view(x.numel() // 8, 4, -1, 2)), l=nn.Linear(8, 16), b=norm(4))
    refusals = {each.path: each for each in reparamkit.report(reparamkit.fuse(own)).refusals}
    assert refusals["b"].kind == refusals["l"].kind == "sizes"


@pytest.mark.parametrize("key", [slice(2), slice(None, 2), slice(1, 3), slice(-2, None), slice(-3, -1)], ids=str)
def test_a_slice_of_a_shape_has_as_many_sizes_as_it_says(key: slice):
    """Whatever the rank; code may take them one by one without an example."""

    class Cut(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y.relu().reshape(*y.shape[key], -1)

    own = build(lambda: Cut(conv(4, 4), norm(4)))
    fused = reparamkit.fuse(own)
    x = sample(MAPS, torch.float32)
    assert operations(fused, x) == "conv relu"
    assert error(run(fused, x), run(own, x)) < 1e-6


class Waves(nn.Module):
    """Sines beside cosines, in the other order: the code around it says how many."""

    def forward(self, t: Tensor, count: int) -> Tensor:
        y = t[:, None] * torch.arange(count, dtype=torch.float32)
        y = torch.cat([torch.sin(y), torch.cos(y)], -1)
        return torch.cat([y[:, count:], y[:, :count]], -1)


def test_a_part_of_what_was_put_together_stays_where_that_may_be_another():
    """It would be what was put there, which was there before the merge and has other readers."""

    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.waves, self.layer = Waves(), nn.Linear(8, 8)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            count = int(x.shape[1] // 2)
            return self.layer(x) + self.waves(t, count)  # type: ignore[no-any-return]

    own = build(Timed)
    given = sample((2, 8), torch.float32), sample((2,), torch.float32)
    assert error(reparamkit.fuse(own, given)(*given), own(*given)) < 1e-6


class Same(nn.Conv2d):
    """A convolution that pads by as much as its stride needs, with code that takes sizes of a trace as well."""

    def forward(self, x: Tensor) -> Tensor:
        high, wide = (
            self.around(size, k, s) for size, k, s in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride)

    @staticmethod
    def around(size: int | Tensor, kernel: int, stride: int) -> Any:
        if isinstance(size, Tensor):
            return torch.clamp((size // stride - 1) * stride + kernel - size, min=0)
        return max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)


class Asserting(nn.BatchNorm2d):
    """A norm that says how many dimensions it takes, and is not torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias).relu()


class Stem(nn.Module):
    """Has a method of its own for its features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = Same(4, 4, 3, 2, bias=False), Asserting(4), conv(4, 4)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("with_inputs", [True, False])
def test_padding_that_code_computes_of_sizes_keeps_no_norm(with_inputs: bool):
    """The map has as many dimensions as it had, whatever is put around it; a method that makes it stays."""
    own = build(Stem)
    fused = reparamkit.fuse(own, sample(MAPS, torch.float32)) if with_inputs else reparamkit.fuse(own)
    for shape in (MAPS, (3, 4, 7, 9)):
        x = sample(shape, torch.float32)
        assert operations(fused, x) == "pad conv relu conv"
        assert error(run(fused, x), run(own, x)) < 1e-6
        assert error(fused.features(x), own.features(x)) < 1e-6
    with pytest.raises((AssertionError, GuardError)):
        fused(sample((4, 4, 4), torch.float32))


@pytest.mark.parametrize(
    "padded",
    [
        lambda m, x, n: F.pad(m.p, (n, n)),
        lambda m, x, n: F.pad(pad=[n] * 4, input=x),
        lambda m, x, n: F.pad(x, (n,) * 8),
        lambda m, x, n: F.pad(x, ()),
    ],
)
def test_padding_by_a_size_is_what_it_was(padded: Callable[..., Tensor]):
    """Of a parameter, of all dimensions, of none."""
    own = model(lambda m, x: m.row(x) + padded(m, x, x.shape[-1] % 2).sum(), row=conv_norm(4, 4), p=parameter(4, 4))
    fused = reparamkit.fuse(own)
    for width in (4, 5):
        x = sample((2, 4, 4, width), torch.float32)
        assert error(run(fused, x), run(own, x)) < 1e-6


def test_a_slice_whose_length_is_a_rank_needs_an_example():
    own = model(lambda m, x: m.norm(m.conv(x)).view(-1, *x.shape[2:]), conv=conv(4, 4), norm=norm(4))
    with pytest.raises(CaptureError, match="number of parts"):
        reparamkit.fuse(own)
