"""Code that no trace has seen: merges leave it what it uses by itself, and are made where it does not."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from structures import Model, build, conv_norm, error, run, sample, seq
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import reparamkit
from reparamkit import InvalidInputError, pipeline
from reparamkit.sourcecode.following import Following
from reparamkit.sourcecode.values import Group

X = sample((2, 4, 8, 8), torch.float32).abs()


class Pair(nn.Module):
    """A convolution and a norm, with other ways to use them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm(4, 4)

    @property
    def mean(self) -> Tensor:
        """Of the statistics. shape (4, 1, 1)."""
        found = self.norm.running_mean
        assert isinstance(found, Tensor)
        return found[:, None, None]

    def raw(self, x: Tensor) -> Tensor:
        """Without the norm."""
        return self.conv(x)

    def __enter__(self) -> nn.Module:
        return self.conv

    def __exit__(self, *exception: Any) -> None:
        """Nothing."""

    def __getitem__(self, key: int) -> nn.Module:
        return (self.conv, self.norm)[key]

    def __add__(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def layers(self) -> Iterator[nn.Module]:
        """One by one."""
        yield self.conv
        yield from (self.norm,)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Calls:
    """An object that has a block, and calls its first layer."""

    def __init__(self, block: nn.Sequential) -> None:
        self.block = block

    def __call__(self, x: Tensor) -> Tensor:
        return self.block[0](x)


class Branching(nn.Module):
    """Calls its pair as a whole, or, for other data, does something else."""

    def __init__(self, otherwise: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.pair, self.blocks = conv_norm(4, 4), Pair(), nn.ModuleList([conv_norm(4, 4), conv_norm(4, 4)])
        self.otherwise = otherwise.__get__(self)
        self.kept = {"first": partial(first, self.a), "raw": self.pair.raw, "calls": Calls(self.a)}

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.a(x)) if x.sum() > 0 else self.otherwise(x)


def first(row: nn.Sequential, x: Tensor) -> Tensor:
    return row[0](x)


def made(make: Callable[[], Any]) -> Any:
    return make()


def applied(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def runs(block: nn.Sequential) -> Callable[[], nn.Module]:
    return lambda: block[0]


def seen_elsewhere(x: Tensor) -> Tensor:
    return SEEN(x)  # type: ignore[no-any-return, misc]


SEEN: Any = None


def by_a_handed_function(self: Any, x: Tensor) -> Any:
    def run(block: nn.Module) -> Any:
        return block(x)

    return applied(run, self.a)


def whole(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


def relu_behind_each(self: Any, x: Tensor) -> Tensor:
    for layer in self.a:
        x = torch.relu(layer(x))
    return x


def children_by_name(self: Any, x: Tensor) -> Tensor:
    for name, layer in self.a.named_children():
        x = layer(x) if name == "0" else torch.relu(x)
    return x


def unpacked(self: Any, x: Tensor) -> Tensor:
    first, _ = self.a
    return first(x)


def collected(self: Any, x: Tensor) -> Tensor:
    layers = []
    for k in range(2):
        layers.append(self.a[k])
    return layers[0](x)


def by_class(self: Any, x: Tensor) -> Tensor:
    for module in self.modules():
        if isinstance(module, nn.Conv2d):
            x = module(x)
    return x


def by_a_local_function(self: Any, x: Tensor) -> Tensor:
    def run(block: nn.Sequential) -> Tensor:
        return block[0](x)

    return run(self.a)


def in_a_lambda(self: Any, x: Tensor) -> Tensor:
    run = lambda block: block[0](x)  # noqa: E731
    return run(self.a)


def with_other_weights(self: Any, x: Tensor) -> Tensor:
    return torch.func.functional_call(self.a, {"0.weight": torch.ones(4, 4, 3, 3)}, x)


def chosen(self: Any, x: Tensor) -> Tensor:
    block = self.a if x.sum() > 0 else self.a[0]
    return block(x)


def kept_in_an_attribute(self: Any, x: Tensor) -> Tensor:
    self.rows = [self.a]
    row = self.rows[0]
    return row[0](x)


def added_to_a_list(self: Any, x: Tensor) -> Tensor:
    layers: list[nn.Module] = []
    layers += self.a
    return layers[0](x)


def put_in_the_place_of_a_part_of_a_list(self: Any, x: Tensor) -> Tensor:
    blocks: list[Any] = []
    blocks[:] = [self.a]
    return blocks[0][0](x)


def rows_joined(self: Any, x: Tensor) -> Tensor:
    for block in self.blocks + nn.ModuleList([self.a]):
        x = block[0](x)
    return x


def in_a_pattern(self: Any, x: Tensor) -> Tensor:
    match {"block": self.a}:
        case {"block": block}:
            return block[0](x)
    return x


def of_a_generator(self: Any, x: Tensor) -> Tensor:
    for layer in self.pair.layers():
        x = torch.relu(layer(x))
    return x


def defaults_of_a_local_function(self: Any, x: Tensor) -> Tensor:
    def run(x: Tensor, layer: nn.Module = self.a[0]) -> Tensor:
        return layer(x)

    return run(x)


def entered(self: Any, x: Tensor) -> Tensor:
    with self.pair as layer:
        return layer(x)


def iterated_by_its_own_code(self: Any, x: Tensor) -> Tensor:
    for layer in self.pair:
        x = torch.relu(layer(x))
    return x


def given_to_an_object(self: Any, x: Tensor) -> Tensor:
    calls = Calls(nn.Sequential(nn.Identity()))
    calls.block = self.a
    return calls(x)


def by_a_global_name(self: Any, x: Tensor) -> Tensor:
    global SEEN
    SEEN = self.a[0]
    return seen_elsewhere(x)


PIECES: dict[str, Callable[[Any, Tensor], Any]] = {
    "a layer": lambda self, x: self.a[0](x),
    "both, with a relu between": lambda self, x: self.a[1](torch.relu(self.a[0](x))),
    "a layer of a block": lambda self, x: self.pair.conv(x),
    "a method of a block": lambda self, x: self.pair.raw(x),
    "a property of a block": lambda self, x: x + self.pair.mean,
    "statistics": lambda self, x: x + self.pair.norm.running_mean[:, None, None],
    "a weight": lambda self, x: F.conv2d(x, self.a[0].weight, padding=1),
    "a function": lambda self, x: first(self.a, x),
    "a function, by keywords": lambda self, x: first(x=x, row=self.a),
    "a function, of a tuple": lambda self, x: first(*(self.a, x)),
    "the table of modules": lambda self, x: next(iter(self.a._modules.values()))(x),
    "an attribute by its name": lambda self, x: getattr(self, "a")[0](x),  # noqa: B009
    "a part of a row": lambda self, x: self.a[:1](x),
    "all parameters": lambda self, x: self.a(x) + sum(p.sum() for p in self.parameters()),
    "a path": lambda self, x: self.get_submodule("a.0")(x),
    "the path of a weight": lambda self, x: x * self.get_parameter("a.0.weight").sum(),
    "what a handed lambda returns": lambda self, x: made(lambda: self.a[0])(x),
    "what a handed lambda does": lambda self, x: applied(lambda block: block[0](x), self.a),
    "what a returned lambda returns": lambda self, x: runs(self.a)()(x),
    "an operator of a block": lambda self, x: self.pair + x,
    "an element of a block": lambda self, x: self.pair[0](x),
    "a method by a computed name": lambda self, x: getattr(self.pair, "ra" + "w")(x),
    "a partial function": lambda self, x: self.kept["first"](x),
    "a bound method": lambda self, x: self.kept["raw"](x),
    "an object that can be called": lambda self, x: self.kept["calls"](x),
    "the variables of an object": lambda self, x: vars(self)["_modules"]["a"][0](x),
    "a dictionary by keywords": lambda self, x: dict(block=self.a)["block"][0](x),  # noqa: C408
    "evaluated text": lambda self, x: eval("self.a[0](x)"),
    "a name for it in passing": lambda self, x: (row := self.a)[0](row[0](x)),
    **{
        each.__name__.replace("_", " "): each
        for each in (
            relu_behind_each,
            children_by_name,
            unpacked,
            collected,
            by_class,
            by_a_local_function,
            in_a_lambda,
            with_other_weights,
            chosen,
            kept_in_an_attribute,
            added_to_a_list,
            put_in_the_place_of_a_part_of_a_list,
            rows_joined,
            in_a_pattern,
            of_a_generator,
            defaults_of_a_local_function,
            entered,
            iterated_by_its_own_code,
            given_to_an_object,
            by_a_global_name,
        )
    },
}
WHOLE: dict[str, Callable[[Any, Tensor], Any]] = {
    "nothing": lambda self, x: x,
    "calls": lambda self, x: self.pair(torch.relu(self.a(x))),
    "calls of elements": lambda self, x: [self.blocks[k](x) for k in range(len(self.blocks))][1],
    "a loop": lambda self, x: [block(x) * k for k, block in enumerate(self.blocks)][1],
    "two lists": lambda self, x: [block(x) * k for block, k in zip([self.a, self.pair], (1, 2), strict=True)][1],
    "a part of a list": lambda self, x: [block(x) for block in [self.a, self.pair][:2]][1],
    "a function that calls": lambda self, x: whole(self.a, x),
    "a device": lambda self, x: self.a(x.to(next(self.parameters()).device)),
    "a checkpoint": lambda self, x: checkpoint(self.a, x, use_reentrant=False),
    "copies on several devices": lambda self, x: nn.parallel.data_parallel(self.a, x) if x.is_cuda else self.a(x),
    "a handed function": by_a_handed_function,
    "attributes by computed names": lambda self, x: [getattr(self, name)(x) for name in ("a", "pair")][1],
}


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("otherwise", PIECES.values(), ids=PIECES)
def test_what_an_untraced_forward_uses_in_pieces_is_left(otherwise: Callable[[Any, Tensor], Any], with_inputs: bool):
    """Both ways through a forward that cannot be traced give what they gave, and a reason names it."""
    model = build(lambda: Branching(otherwise))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-5
        assert error(fused(-X), model(-X)) <= 1e-5
    reasons = [refusal.reason for refusal in reparamkit.report(fused).refusals]
    assert any("Branching" in reason and "could not be traced" in reason for reason in reasons)


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("otherwise", WHOLE.values(), ids=WHOLE)
def test_what_an_untraced_forward_calls_as_a_whole_is_merged(
    otherwise: Callable[[Any, Tensor], Any], with_inputs: bool
):
    """Code that cannot be traced does not block the blocks that it calls."""
    model = build(lambda: Branching(otherwise))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-5
        assert error(fused(-X), model(-X)) <= 1e-5
    assert len(reparamkit.report(fused).merges) == 4


class Ways(nn.Module):
    """Goes another way for another argument, to a head that nothing else calls."""

    def __init__(self, otherwise: Callable[[Any, Tensor], Any], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.head, self.otherwise = conv_norm(4, 4), head, otherwise.__get__(self)

    def forward(self, x: Tensor, other: bool = False) -> Any:
        x = self.stem(x).relu()
        return self.otherwise(x) if other else x

    def features(self, x: Tensor) -> Any:
        """Some of them use what is inside the head."""
        return self.otherwise(x)


class Several(nn.Module):
    """Two layers with a norm each, by code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_norm(4, 4), conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())  # type: ignore[no-any-return]


def one_by_one(m: Any, x: Tensor) -> Tensor:
    found = [x]
    for layer in m.head:
        found.append(layer(found[-1]))
    return torch.cat(found)


@pytest.mark.parametrize("given", [(X,), ()], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize(
    "otherwise",
    [lambda m, x: m.head(x), lambda m, x: m.head(x) + m.head(-x)],
    ids=["a call", "two calls"],
)
def test_what_nothing_calls_is_merged(otherwise: Callable[[Any, Tensor], Any], given: tuple[Tensor, ...]):
    """A head for another task, or for an argument that the example has not, merges as what is called does; in a run of
    the model it costs nothing.
    """
    for head, merges in ((conv_norm(4, 4), 2), (Several(), 3)):
        model = build(lambda head=head: Ways(otherwise, head))
        fused = reparamkit.fuse(model, *given)
        found = reparamkit.report(fused)
        assert (len(found.merges), len(found.refusals)) == (merges, 0)
        assert (found.before.ops, found.after.ops) == (3, 2)
        (part,) = (part for part in found.parts if part.path == "head")
        assert (part.calls, part.reason) == (0, "nothing calls it")
        for other in (False, True):
            assert error(fused(X, other), model(X, other)) <= 1e-5


@pytest.mark.parametrize("given", [(X,), ()], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize(
    "otherwise",
    [
        lambda m, x: m.head[0](x) + m.head[1](x),
        one_by_one,
        lambda m, x: F.conv2d(x, m.head[0].weight),
        lambda m, x: x * m.head.state_dict()["0.weight"].mean(),
        lambda m, x: x * sum(tensor.sum() for tensor in m.head.parameters()),
    ],
    ids=["by themselves", "a loop", "a weight", "a state", "all weights"],
)
def test_what_nothing_calls_but_by_its_parts_is_left(
    otherwise: Callable[[Any, Tensor], Any], given: tuple[Tensor, ...]
):
    """Code that the example does not run may do otherwise with the layers of a row than call it."""
    model = build(lambda: Ways(otherwise, conv_norm(4, 4)))
    fused = reparamkit.fuse(model, *given)
    found = reparamkit.report(fused)
    assert [merge.path for merge in found.merges] == ["stem.0"]
    assert {refusal.path for refusal in found.refusals} == {"head.0", "head.1"}
    with torch.no_grad():
        assert error(fused(X, True), model(X, True)) <= 1e-5
        assert error(fused.features(X), model.features(X)) <= 1e-5


def test_what_nothing_calls_and_cannot_be_traced_is_told():
    """No example is known for it."""

    class Deciding(Several):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(x) if x.sum() > 0 else self.first(x)  # type: ignore[no-any-return]

    model = build(lambda: Ways(lambda m, x: m.head(x), Deciding()))
    fused = reparamkit.fuse(model, X)
    (refusal,) = reparamkit.report(fused).refusals
    assert (refusal.path, refusal.reason[:35]) == ("head", "nothing calls it, and without an ex")
    assert len(reparamkit.report(fused).merges) == 3
    assert error(fused(X, True), model(X, True)) <= 1e-5


class PerSample(nn.Module):
    """A head for the pixels of each sample that are positive, however many there are."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = conv_norm(4, 4), head

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.stem(x)
        found = [each.flatten(1).t()[each[0].flatten() > 0] for each in y]
        return [self.head(each) for each in found if len(each)]


def test_what_code_that_cannot_be_traced_calls_several_times_is_merged_for_all_calls():
    """As without inputs, where no call is known."""

    def head() -> nn.Module:
        return seq(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))

    model = build(lambda: PerSample(head()))
    fused = reparamkit.fuse(model, X)
    found = reparamkit.report(fused)
    assert sorted(merge.path.split(".")[0] for merge in found.merges) == ["head", "stem"]
    assert [(part.path, part.calls) for part in found.parts if part.calls > 1] == [("head", len(X))]
    assert all(error(*pair) <= 1e-5 for x in (X, X[:1], -X) for pair in zip(fused(x), model(x), strict=True))


class Hooked(nn.Module):
    """Code that cannot be traced calls what a container has, with the module itself. fill: what it does with it."""

    def __init__(self, fill: Callable[[Any, Callable[..., Tensor]], object]) -> None:
        super().__init__()
        self.row = conv_norm(4, 4)
        self.hooks: dict[int, Callable[..., Tensor]] = {}
        self.fill = fill

    def forward(self, x: Tensor) -> Tensor:
        for hook in self.hooks.values():
            x = hook(self, x)
        if x.sum() > 1e9:
            self.fill(self, lambda module, x: module.row[0](x))
        return self.row(x)


def by_another_name(self: Any, hook: Callable[..., Tensor]) -> None:
    hooks = self.hooks
    hooks.setdefault(0, hook)


FILLING: dict[str, Callable[[Any, Callable[..., Tensor]], object]] = {
    "an index": lambda self, hook: self.hooks.__setitem__(0, hook),
    "a method": lambda self, hook: self.hooks.update({0: hook}),
    "another name": by_another_name,
    "another container": lambda self, hook: setattr(self, "hooks", {0: hook}),
}


def test_hooks_of_its_own_that_nobody_has_set_use_nothing():
    """As those of every layer of torch_geometric."""
    model = build(lambda: Hooked(lambda self, hook: None))
    fused = reparamkit.fuse(model, X)
    assert [type(layer) for layer in fused.row] == [nn.Conv2d, nn.Identity]
    assert error(run(fused, X), run(model, X)) <= 1e-6


@pytest.mark.parametrize("fill", FILLING.values(), ids=FILLING)
def test_hooks_that_code_may_set_may_use_anything(fill: Callable[[Any, Callable[..., Tensor]], object]):
    model = build(lambda: Hooked(fill))
    assert isinstance(reparamkit.fuse(model, X).row[1], nn.BatchNorm2d)


def zipped(self: Any, x: Tensor) -> Tensor:
    for y, block in zip([x, x * 2], self.blocks, strict=True):
        x = x + block(y)
    return x


def counted(self: Any, x: Tensor) -> Tensor:
    for k, (block, y) in enumerate(zip(self.blocks, [x, x * 2], strict=True)):
        x = x + block(y) * k
    return x


def gathered(self: Any, x: Tensor) -> Tensor:
    return sum(block(y) for y, block in zip([x, x * 2], self.blocks, strict=True))  # type: ignore[return-value]


def looked_up(self: Any, x: Tensor) -> Tensor:
    return taken({"x": x}, x, **{"first": self.a, "second": self.pair}, rows=self.blocks)


def taken(known: dict[str, Tensor], x: Tensor, rows: Any, first: Any = None, second: Any = None) -> Tensor:
    return first(known["x"]) + second(x) + rows[0](x) + rows[1](x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("otherwise", [zipped, counted, gathered, looked_up])
def test_data_that_code_takes_beside_the_layers_is_no_layer(otherwise: Callable[[Any, Tensor], Any]):
    """The code does not hand on the layers that it calls."""
    model = build(lambda: Branching(otherwise))
    fused = reparamkit.fuse(model)
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-5
        assert error(fused(-X), model(-X)) <= 1e-5
    assert len(reparamkit.report(fused).merges) == 4


def packed(rows: Any, otherwise: Any) -> Any:
    return [rows, [rows, otherwise], (otherwise, rows)]


def packed_twice(rows: Any, otherwise: Any) -> Any:
    return [packed(rows, otherwise), packed([rows], packed(otherwise, rows))]


def packed_often(rows: Any, otherwise: Any) -> Any:
    return packed_twice(packed_twice(rows, [otherwise]), packed_twice([rows], otherwise))


def handed_around(self: Any, x: Tensor) -> Tensor:
    rows: Any = [self.blocks]
    for _ in range(4):
        rows = packed_often(rows, [rows])
        rows = packed_often(packed_often(rows, rows), packed_often(packed_often(rows, [rows]), [rows]))
    return self.a(x)


def test_code_that_packs_lists_into_lists_is_followed_in_a_moment():
    """What a place in the code makes is one thing for each object whose method it is."""
    uses = Following()
    uses.follow(build(lambda: Branching(handed_around)))
    assert len(uses.called) == 2
    assert sum(isinstance(each, Group) for each in uses._made.values()) < 20


def every(*functions: Any) -> Any:
    def run_all(x: Any) -> Any:
        return [function(x) for function in functions]

    return run_all


def first_of(*functions: Any) -> Any:
    def run_first(x: Any) -> Any:
        return functions[0](x)

    return run_first


def closed_over(self: Any, x: Tensor) -> Tensor:
    found = every(self.a)
    found = every(first_of(found, every(first_of(found))), first_of(every(found, first_of(found))))
    for _ in range(9):
        found = first_of(every(found, first_of(found)), found)
    found([found, self.blocks])
    return self.a(x)


def test_functions_that_call_functions_are_followed_so_far():
    """However deep they are in each other, it takes a moment, and what they call counts as used."""
    uses = Following()
    uses.follow(build(lambda: Branching(closed_over)))
    assert len(uses.called) == 2


class Inside(Pair):
    """Has a method and an attribute."""

    factor = 2.0

    def total(self) -> Tensor:
        return self.conv.weight.sum()  # type: ignore[no-any-return]


class Wrapping(nn.Module):
    """Has what is inside by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Inside()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inside, name)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inside(x)
        return y * self.factor if y.sum() > 0 else y


def test_a_wrapper_has_one_attribute_by_one_name():
    """What it finds inside by a name is no other method of what is inside."""
    model = build(Wrapping)
    fused = reparamkit.fuse(model, X)
    assert len(reparamkit.report(fused).merges) == 1
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-6


class Calling(nn.Module):
    """A call of it may leave out the norm, and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm(4, 4)

    def __call__(self, x: Tensor, raw: bool = False) -> Any:
        return self.conv(x) if raw else torch.relu(super().__call__(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize(
    "make", [lambda: seq(Calling(), conv_norm(4, 4)), lambda: Branching(lambda self, x: self.pair(x, raw=True))]
)
def test_a_module_with_a_call_of_its_own_goes_on_being_called(make: Callable[[], nn.Module], with_inputs: bool):
    """What it may use alone is left."""

    def calling() -> nn.Module:
        model = make()
        if isinstance(model, Branching):
            model.pair = Calling()  # type: ignore[assignment]
        return model

    model = build(calling)
    fused = reparamkit.fuse(model, X if with_inputs else None)
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-5
        assert error(fused(-X), model(-X)) <= 1e-5
    assert len(reparamkit.report(fused).merges) >= 1


class Twice(nn.Module):
    """Two children that share a pair, in a forward that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        pair = conv_norm(4, 4)
        self.a, self.b = seq(pair, nn.ReLU()), seq(pair[0], nn.ReLU(), pair[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x) if x.sum() > 0 else self.b(x)


def test_a_pair_that_two_parts_share_is_left():
    """How often it is called is not known without inputs."""
    model = build(Twice)
    fused = reparamkit.fuse(model)
    with torch.no_grad():
        assert torch.equal(fused(X), model(X))
        assert torch.equal(fused(-X), model(-X))
    assert any("traced apart" in refusal.reason for refusal in reparamkit.report(fused).refusals)


# --- lists of parameters ------------------------------------------------------------------------------


class Penalty(nn.Module):
    """A pair, and a number that is computed from its weights."""

    def __init__(self, penalty: Callable[[Any], Any]) -> None:
        super().__init__()
        self.a = conv_norm(4, 4)
        self.penalty = penalty.__get__(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return self.a(x), self.penalty()


def of_convolutions(self: Any) -> Any:
    return sum(m.weight.square().sum() for m in self.modules() if isinstance(m, nn.Conv2d))


def of_norms(self: Any) -> Any:
    return sum(m.weight.square().sum() for m in self.modules() if isinstance(m, nn.BatchNorm2d))


LISTS: dict[str, Callable[[Any], Any]] = {
    "parameters": lambda self: sum(p.square().sum() for p in self.parameters()),
    "named parameters": lambda self: sum(p.square().sum() for name, p in self.named_parameters() if "weight" in name),
    "a dictionary of them": lambda self: dict(self.named_parameters())["a.0.weight"].sum(),
    "buffers": lambda self: sum(b.double().sum() for b in self.buffers()),
    "the state dict": lambda self: self.state_dict()["a.0.weight"].sum(),
    "of convolutions": of_convolutions,
    "of norms": of_norms,
}


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("penalty", LISTS.values(), ids=LISTS)
def test_what_the_code_finds_in_lists_of_parameters_is_left(penalty: Callable[[Any], Any], with_inputs: bool):
    """A penalty of the weights is what it was."""
    model = build(lambda: Penalty(penalty))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    with torch.no_grad():
        for found, wanted in zip(fused(X), model(X), strict=True):
            assert error(found, wanted) <= 1e-6
    assert any("lists" in refusal.reason for refusal in reparamkit.report(fused).refusals)


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
def test_a_weight_by_its_name_in_the_table_of_a_layer_is_what_an_attribute_is(with_inputs: bool):
    """It stays for what else is computed from it, and is the same number."""
    model = build(lambda: Penalty(lambda self: self.a[0]._parameters["weight"].sum()))
    other = build(lambda: Penalty(lambda self: self.a[0].weight.sum()))
    fused, plain = (reparamkit.fuse(each, X if with_inputs else None) for each in (model, other))
    assert reparamkit.report(fused).refusals == reparamkit.report(plain).refusals != ()
    with torch.no_grad():
        for found, wanted in zip(fused(X), model(X), strict=True):
            assert error(found, wanted) <= 1e-6


def test_a_device_that_is_found_in_a_list_of_parameters_blocks_nothing():
    model = build(lambda: Penalty(lambda self: next(self.parameters()).device.index))
    assert len(reparamkit.report(reparamkit.fuse(model, X)).merges) == 1


class Asking(nn.Module):
    """Does something else behind norms."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.a:
            x = layer(x)
            if isinstance(layer, nn.BatchNorm2d):
                x = torch.relu(x)
        return x


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
def test_a_layer_that_is_asked_for_its_class_keeps_it(with_inputs: bool):
    model = build(Asking)
    fused = reparamkit.fuse(model, X if with_inputs else None)
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-6
    assert any("reads its class" in refusal.reason for refusal in reparamkit.report(fused).refusals)


class Branches(nn.Module):
    """A block whose code is written again where it is merged, and layers of which none is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.c = conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.a(x) + self.b(x)))


class Staged(nn.Module):
    """Has its stages by their names, as the networks of OpenMMLab; another of its methods asks for norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = ["first", "second"]
        self.first, self.second = conv_norm(4, 4), conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for k, name in enumerate(self.stages):
            stage = getattr(self, name)
            x = torch.relu(stage(x)) + k
        return x

    def freeze(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
def test_stages_that_are_called_by_names_in_a_list_merge(with_inputs: bool):
    """The names are known: no method is one of them."""
    model = build(Staged)
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert len(reparamkit.report(fused).merges) == 2
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-6


class Named(nn.Module):
    """Has its norm by a name that it keeps, as the blocks of OpenMMLab; another of its methods asks for norms."""

    usual = "bn1"

    def __init__(self, find: Callable[[Any], nn.Module]) -> None:
        super().__init__()
        self.norm_name, self.names, self.prefix = "bn1", ["conv", "bn1"], "bn"
        self.conv, self.bn1 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.find = find

    @property
    def norm(self) -> nn.Module:
        return self.find(self)

    def named(self, name: str) -> nn.Module:
        return getattr(self, name)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, deep: bool = False) -> Tensor:
        if deep:
            return getattr(self, self.deep_name)(x)  # type: ignore[no-any-return,operator]
        return torch.relu(self.norm(self.conv(x)))

    def freeze(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


KEPT: dict[str, Callable[[Any], nn.Module]] = {
    "an attribute": lambda self: getattr(self, self.norm_name),
    "a variable": lambda self: named_by_variable(self),
    "put together": lambda self: getattr(self, f"{self.prefix}{1}"),
    "in a list": lambda self: getattr(self, self.names[1]),
    "of the class": lambda self: getattr(self, self.usual),
    "or a default": lambda self: getattr(self, getattr(self, "other_name", "bn1")),
    "given to a method": lambda self: self.named("bn1"),
}


def named_by_variable(self: Any) -> nn.Module:
    name = self.norm_name
    return getattr(self, name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("name", KEPT)
def test_a_norm_that_is_found_by_a_name_in_an_attribute_merges(name: str, with_inputs: bool):
    """The name is known: no method has it. (Where there is no such attribute, the code is not run.)"""
    model = build(lambda: Named(KEPT[name]))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert [merge.members for merge in reparamkit.report(fused).merges] == [("bn1", "conv")]
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-6


class Table(nn.Module):
    """Has buffers by their names, as the buffer dictionaries of adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(4, 1, 1) + 0.5)

    def __getitem__(self, name: str) -> Tensor:
        return self._buffers[name]  # type: ignore[return-value]


class Tabled(nn.Module):
    """Scales by a buffer of a table, which it may compute with before."""

    def __init__(self, spelled: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.table, self.spelled = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), Table(), spelled

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.spelled(self.table["scale"]))  # type: ignore[no-any-return]


SPELLED: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda scale: scale,
    "computed": lambda scale: scale.clamp(min=0.6) * 2,
    "a part of it": lambda scale: scale[:4],
}


@pytest.mark.parametrize("spelled", SPELLED.values(), ids=SPELLED)
def test_a_buffer_by_its_name_in_the_table_of_a_module_is_what_an_attribute_is(spelled: Callable[[Tensor], Tensor]):
    """Also in what is converted: the buffer of another checkpoint counts."""
    model, other = build(lambda: Tabled(spelled)), build(lambda: Tabled(spelled))
    with torch.no_grad():
        other.table.scale.mul_(3)  # type: ignore[union-attr,operator]
    fused = reparamkit.fuse(model, X)
    assert len(reparamkit.report(fused).merges) == 1
    fused.load_state_dict(reparamkit.convert_state_dict(fused, other.state_dict()))
    with torch.no_grad():
        assert error(fused(X), other(X)) <= 1e-6


class Fetching(Named):
    """Cannot be traced, and finds a layer by its name; another of its methods asks for the very classes."""

    def __init__(self, find: Callable[[Any], nn.Module]) -> None:
        super().__init__(find)
        self.inside = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor, deep: bool = False) -> Tensor:
        y = self.find(self)(x)
        return y if y.sum() > 1e9 else self.inside(y)  # type: ignore[no-any-return]

    def kinds(self) -> list[type]:
        return [module.__class__ for module in self.modules()]


@pytest.mark.parametrize("name", KEPT)
def test_code_that_is_not_traced_runs_no_method_that_has_another_name(name: str):
    """What it finds by a name it knows is one layer, and none of its methods."""
    model = build(lambda: Fetching(KEPT[name]))
    fused = reparamkit.fuse(model, X)
    assert [merge.members for merge in reparamkit.report(fused).merges] == [("inside.0", "inside.1")]
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-6


class Plugged(Named):
    """Has plugins behind its norm by names that it hands on, as the bottlenecks of OpenMMLab."""

    def __init__(self, plugins: list[str] | None) -> None:
        super().__init__(lambda self: getattr(self, self.norm_name))
        self.first, self.second = nn.Tanh(), nn.Sigmoid()
        self.has_plugins = plugins is not None
        if plugins is not None:
            self.plugins = plugins

    def plug(self, x: Tensor, names: list[str]) -> Tensor:
        for name in names:
            x = getattr(self, name)(x)
        return x

    def forward(self, x: Tensor, deep: bool = False) -> Tensor:
        y = self.norm(self.conv(x))
        return self.plug(y, self.plugins) if self.has_plugins else torch.relu(y)


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("plugins", [["first", "second"], [], None], ids=["two", "none", "no list"])
def test_names_in_a_list_that_is_handed_on_are_known(plugins: list[str] | None, with_inputs: bool):
    """Also where there are none, or no such list."""
    model = build(lambda: Plugged(plugins))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert [merge.members for merge in reparamkit.report(fused).merges] == [("bn1", "conv")]
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-6


class Delegating(nn.Module):
    """Finds in another module what it has not itself; its forward asks for many names."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.ModuleDict({f"layer{k}": nn.Conv2d(4, 4, 1) for k in range(9)})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("layer"):
            return self.inside.__getattr__(name)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.layer0, self.layer1, self.layer2, self.layer3, self.layer4, self.layer5, self.layer6, self.layer7]
        return found[0](x) + self.layer8(x)  # type: ignore[no-any-return]


def test_each_name_that_is_asked_for_is_followed():
    """However many there are."""
    uses = Following()
    model = build(Delegating)
    uses.follow(model)
    assert model.inside["layer8"] in uses.called  # type: ignore[operator]


def set_here(self: Any, name: str) -> None:
    self.asked = name


def set_by_name(self: Any, name: str) -> None:
    setattr(self, "asked", name)  # noqa: B010


class NameChanging(nn.Module):
    """Asks for the class of a layer by a name that an argument may change."""

    def __init__(self, change: Callable[[Any, str], None]) -> None:
        super().__init__()
        self.asked = "conv"
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.change = change

    def forward(self, x: Tensor, name: str | None = None) -> Tensor:
        y = self.bn(self.conv(x))
        y = y * 2 if isinstance(getattr(self, self.asked), nn.BatchNorm2d) else y
        if name is not None:
            self.change(self, name)
        return y


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("change", [set_here, set_by_name])
def test_a_name_that_code_may_change_is_not_known(change: Callable[[Any, str], None], with_inputs: bool):
    """Also where the code that changes it did not run, and is behind that which goes by it."""
    model = build(lambda: NameChanging(change))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    with torch.no_grad():
        for given in (None, "bn", None):
            assert error(fused(X, given), model(X, given)) <= 1e-6


LIMITS = {Branches: 0.5}
ASKED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "type is": lambda self, y: y * 2 if type(self.block) is Branches else y,
    "type is not": lambda self, y: y if type(self.blocks[-1]) is not Branches else y * 2,
    "type in": lambda self, y: y * 2 if type(self.block) in (Branches, Asking) else y,
    "a table": lambda self, y: y.clamp(max=LIMITS.get(type(self.block), 5.0)),
    "its class": lambda self, y: y * 2 if self.block.__class__ == Branches else y,
}


class AskingFor(nn.Module):
    """Goes by the very class of a block, in its forward or in another method."""

    def __init__(self, asks: Callable[[Any, Tensor], Tensor], running: bool) -> None:
        super().__init__()
        self.block, self.blocks = Branches(), nn.ModuleList([Branches()])
        self.asks, self.running = asks, running

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks[0](self.block(x))
        return self.asks(self, y) if self.running else y


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("asks", ASKED)
def test_a_block_whose_very_class_the_forward_asks_for_is_not_written_again(asks: str, with_inputs: bool):
    """What is written again is of a class of its own; what is merged in a place of its own stays of its class."""
    model = build(lambda: AskingFor(ASKED[asks], running=True))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-6
    report = reparamkit.report(fused)
    asked = "blocks.0" if asks == "type is not" else "block"
    merged = {path for merge in report.merges for path in merge.members}
    assert f"{asked}.c.0" in merged
    assert f"{asked}.b" not in merged
    assert any("very class" in r.reason for r in report.refusals if r.path == f"{asked}.b")


@pytest.mark.parametrize("kind", [nn.ModuleList, nn.Sequential])
def test_of_a_list_only_the_element_whose_class_is_asked_for_is_left(kind: type[nn.Module]):
    """``type(self.blocks[-1])`` says nothing of the others."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if type(self.blocks[-1]) is Branches else x * 2

    blocks = [Branches() for _ in range(3)]
    model = build(lambda: Model(forward, blocks=nn.Sequential(*blocks) if kind is nn.Sequential else kind(blocks)))
    fused = reparamkit.fuse(model, X)
    merged = {path for merge in reparamkit.report(fused).merges for path in merge.members}
    assert {"blocks.0.b", "blocks.1.b"} <= merged
    assert "blocks.2.b" not in merged
    assert error(run(fused, X), run(model, X)) <= 1e-6


class WithMethod(nn.Module):
    """A method reads the norm, which is hidden where that merges: the block is of another class then."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]

    def normed(self, x: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]


def test_all_blocks_whose_very_class_is_asked_for_are_found_out_at_once(monkeypatch: pytest.MonkeyPatch):
    """A model of many would be fused once more for each."""
    runs, whole = list[int](), pipeline._fused_whole
    monkeypatch.setattr(pipeline, "_fused_whole", lambda *args: (runs.append(1), whole(*args))[1])

    def forward(m: Any, x: Tensor) -> Tensor:
        for block in m.blocks:
            x = block(x).relu() if type(block) is WithMethod else block(x)
        return x

    model = build(lambda: Model(forward, blocks=nn.ModuleList([WithMethod() for _ in range(4)])))
    fused = reparamkit.fuse(model, X)
    assert len(runs) == 2
    assert sum("very class" in refusal.reason for refusal in reparamkit.report(fused).refusals) >= 4
    assert error(run(fused, X), run(model, X)) <= 1e-6


class Late(AskingFor):
    """Has methods that forward does not run."""

    def late(self, x: Tensor) -> Tensor:
        return self(x) * 2 if type(self.block) is Branches else self(x)

    def last(self, x: Tensor) -> Tensor:
        return self(x) if type(self.blocks[-1]) is not Branches else self(x) * 2

    def calling(self, x: Tensor) -> Tensor:
        return self.late(x)

    def named(self, x: Tensor) -> Tensor:
        return self(x) * len(f"{type(self.block)} {self.block.__class__.__name__}" + str(type(self.block)))

    def kind(self, x: Tensor) -> Tensor:
        return self(x) * 2 if isinstance(self.block, Branches) else self(x)


def test_a_method_that_asks_for_a_class_that_is_another_one_now_says_so():
    """It would do something else, and nobody would notice."""
    model = build(lambda: Late(lambda self, y: y, running=False))
    fused = reparamkit.fuse(model, X)
    for name in ("late", "last"):
        assert not hasattr(fused, name)
    with pytest.raises(AttributeError, match="the class of 'block', which is another one now"):
        fused.late(X)
    with pytest.raises(AttributeError, match="which is another one now"):
        fused.calling(X)
    with torch.no_grad():
        for name in ("named", "kind"):
            assert error(getattr(fused, name)(X), getattr(model, name)(X)) <= 1e-6


# --- refused with words -------------------------------------------------------------------------------


class Remembering(nn.Module):
    """Keeps what is the same in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.factor = conv_norm(4, 4), None

    def forward(self, x: Tensor) -> Tensor:
        if self.factor is None:
            self.factor = 2
        return torch.relu(self.a(x)) * self.factor


def test_a_model_that_remembers_something_is_merged():
    assert len(reparamkit.report(reparamkit.fuse(build(Remembering), X)).merges) == 1


def test_hooks_on_all_modules_are_refused():
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        with pytest.raises(InvalidInputError, match="hooks for all modules"):
            reparamkit.fuse(build(Remembering))
    finally:
        hook.remove()


class Scaled(nn.Module):
    """A factor for each channel."""

    def __init__(self, last: float) -> None:
        super().__init__()
        self.a = conv_norm(4, 4)
        self.register_buffer("factor", torch.tensor([1.0, 0.0, 2.0, last]).view(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.factor


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_numbers_that_are_not_finite_are_not_merged(number: float):
    """The rest is, and the reason says so."""
    model = build(lambda: Scaled(number))
    report = reparamkit.explain(model, X)
    assert len(report.merges) == 1
    assert any("not finite" in refusal.reason for refusal in report.refusals)


# --- forwards that no call runs -----------------------------------------------------------------------


class Inner(nn.Module):
    """A network of which others call methods."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.tail, self.head = *conv_norm(4, 4), conv_norm(4, 4), nn.Linear(4, 3)

    def features(self, x: Tensor) -> Tensor:
        """Without the head."""
        return self.tail(torch.relu(self.norm(self.stem(x))))

    def raw(self, x: Tensor) -> Tensor:
        """Without the first norm."""
        return self.tail(torch.relu(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Raw(Inner):
    """Its own forward leaves out a norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tail(torch.relu(self.stem(x))).mean((2, 3)))


class Outer(nn.Module):
    """Calls a method of a network inside."""

    def __init__(self, inner: type[Inner], method: str) -> None:
        super().__init__()
        self.inner, self.method = inner(), method

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.inner, self.method)(x)


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("method", ["features", "forward"])
def test_a_module_of_which_only_methods_run_is_merged(method: str, with_inputs: bool):
    """Its other methods give what they gave, or say that they cannot."""
    model = build(lambda: Outer(Inner, method))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    with torch.no_grad():
        assert error(fused(X), model(X)) <= 1e-5
        assert error(fused.inner(X), model.inner(X)) <= 1e-5
    assert not hasattr(fused.inner, "raw")
    with pytest.raises(AttributeError, match="what was merged"):
        fused.inner.raw(X)


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
def test_a_forward_that_nothing_calls_is_hidden_if_it_uses_a_part_of_a_merge(with_inputs: bool):
    model = build(lambda: Outer(Raw, "features"))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert error(fused(X), model(X)) <= 1e-5
    again = reparamkit.fuse(pickle.loads(pickle.dumps(fused)), X if with_inputs else None)
    for each in (fused, again):
        assert error(each(X), model(X)) <= 1e-5
        with pytest.raises(AttributeError, match=r"Raw\.forward uses"):
            each.inner(X)


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("what", ["next(parameters)", "parameters for", "buffers", "dtype of a state dict"])
def test_what_a_forward_asks_of_the_first_in_a_list_stays(what: str, with_inputs: bool):
    """A layer that is asked for its first parameter keeps one."""
    ask: dict[str, Callable[[Any], Any]] = {
        "next(parameters)": lambda self: next(self.a[1].parameters()).dtype.itemsize,
        "parameters for": lambda self: next(p.dtype for p in self.a[1].parameters() if p.is_floating_point()).itemsize,
        "buffers": lambda self: next(self.buffers()).dtype.itemsize,
        "dtype of a state dict": lambda self: next(iter(self.a[1].state_dict().values())).dtype.itemsize,
    }
    model = build(lambda: Penalty(ask[what]))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    with torch.no_grad():
        assert error(fused(X)[0], model(X)[0]) <= 1e-6
    assert any("asks" in refusal.reason for refusal in reparamkit.report(fused).refusals)


def test_a_dtype_that_is_found_in_a_list_of_all_parameters_blocks_nothing():
    def found(self: Any) -> Any:
        return next(p.dtype for p in self.parameters() if p.is_floating_point()).itemsize

    model = build(lambda: Penalty(found))
    assert len(reparamkit.report(reparamkit.fuse(model, X)).merges) == 1


def test_a_class_that_no_merge_gives_or_takes_may_be_asked_for():
    class Flat(Penalty):
        def forward(self, x: Tensor) -> tuple[Tensor, Any]:
            for layer in self.a:
                x = layer[0](x) if isinstance(layer, (nn.Sequential, nn.ModuleList)) else layer(x)
            return x, 0

    model = build(lambda: Flat(lambda self: 0))
    fused = reparamkit.fuse(model, X)
    assert len(reparamkit.report(fused).merges) == 1
    assert error(fused(X)[0], model(X)[0]) <= 1e-5


def test_what_a_package_gives_to_all_modules_is_no_method_of_a_model(monkeypatch: pytest.MonkeyPatch):
    """As transformers does, once one of its models was made."""
    monkeypatch.setattr(nn.Module, "everywhere", lambda self, x: [part(x) for part in self.modules()], raising=False)
    another = type("Another", (Branching,), {})
    model = build(lambda: another(WHOLE["attributes by computed names"]))
    assert len(reparamkit.report(reparamkit.fuse(model, X)).merges) == 4


class Filtering(nn.Module):
    """Hands on the keyword arguments that its forward takes, in code that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.log = conv_norm(4, 4), [""]

    def forward(self, x: Tensor) -> Tensor:
        return self.row(x)  # type: ignore[no-any-return]

    def filtered(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Only with those."""
        known = inspect.signature(self.forward).parameters
        return self(x, **{name: value for name, value in kwargs.items() if name in known})  # type: ignore[no-any-return]

    def describe(self) -> Tensor:
        """A method that would use the parts by themselves."""
        return self.row[0](torch.zeros(1, 4, 5, 5)) + self.row[1].weight.sum()  # type: ignore[no-any-return]


def test_to_ask_for_the_signature_of_a_method_uses_nothing():
    """What Python does to find it out is not followed: it goes through all that the object has."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.inner.filtered(x, other=None)
        return y if float(y.sum()) > 0 else -y

    model = build(lambda: Model(body, inner=Filtering()))
    fused = reparamkit.fuse(model, X)
    assert len(reparamkit.report(fused).merges) == 1
    assert error(run(fused, X), run(model, X)) <= 1e-6


def _by_fstring(m: Any, k: int) -> Any:
    return getattr(m, f"block{k + 1}")


def _by_sum(m: Any, k: int) -> Any:
    return getattr(m, "block" + str(k + 1))


def _by_format(m: Any, k: int) -> Any:
    return getattr(m, "block{}".format(k + 1))  # noqa: UP032


def _by_percent(m: Any, k: int) -> Any:
    name = "block%d" % (k + 1)  # noqa: UP031
    return getattr(m, name)


class Numbered(nn.Module):
    """Blocks under numbered names, and a method that looks at classes (VAN, SegFormer)."""

    def __init__(self, find: Callable[[Any, int], Any]) -> None:
        super().__init__()
        self.block1, self.block2, self.find = conv_norm(4, 4), conv_norm(4, 4), find

    def forward(self, x: Tensor) -> Tensor:
        for k in range(2):
            x = self.find(self, k)(x)
        return x if float(x.sum()) > 0 else -x

    def check(self, x: Tensor) -> Tensor:
        """Computes with the parts of the blocks by themselves."""
        return self.block1[0](x) if type(self.block1[1]) is nn.BatchNorm2d else self.block2[0](x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("find", [_by_fstring, _by_sum, _by_format, _by_percent])
def test_a_name_that_code_puts_together_is_no_other(find: Callable[[Any, int], Any]):
    """Which other methods there are does not matter: they have other names."""
    model = build(lambda: seq(Numbered(find), nn.ReLU()))
    fused = reparamkit.fuse(model, X)
    assert len(reparamkit.report(fused).merges) == 2
    assert error(run(fused, X), run(model, X)) <= 1e-6
