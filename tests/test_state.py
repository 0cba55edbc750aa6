"""Models that change while they run: the user's is left as it was, and the fused one goes on as it would have."""

from __future__ import annotations

import copy
import itertools
import linecache
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from structures import Model, build, conv, conv_norm, error, norm, operations, run, sample, seq
from torch import Tensor, nn

import reparamkit
from reparamkit import CaptureError

X = sample((2, 4, 8, 8), torch.float32)
OPTIONS: dict[str, dict[str, Any]] = {
    "inputs": {"example_inputs": X},
    "no inputs": {},
    "unverified": {"example_inputs": X, "verify": False},
    "in place": {"example_inputs": X, "inplace": True},
}


class Holder:
    """Some object of the user's."""

    def __init__(self) -> None:
        self.flag, self.count, self.seen = True, 0, list[int]()


def pair(m: Any, x: Tensor) -> Tensor:
    """A convolution and its norm. x: (n, 4, h, w)."""
    return m.norm(m.conv(x))


# --- what does not matter to the output -----------------------------------------------------------------


def counts(m: Any, x: Tensor) -> Tensor:
    """A plain number."""
    m.count += 1
    return pair(m, x)


def logs(m: Any, x: Tensor) -> Tensor:
    """A list."""
    m.log.append(1)
    return pair(m, x)


def counts_inside(m: Any, x: Tensor) -> Tensor:
    """A number in a list in a dictionary."""
    m.table["k"][0] += 1
    return pair(m, x)


def counts_in_an_object(m: Any, x: Tensor) -> Tensor:
    """Of a class of the user's."""
    m.holder.count += 1
    m.holder.seen.append(1)
    return pair(m, x)


def counts_in_a_buffer(m: Any, x: Tensor) -> Tensor:
    """A tensor."""
    m.calls += 1
    return pair(m, x)


def remembers(m: Any, x: Tensor) -> Tensor:
    """A statistic."""
    y = pair(m, x)
    m.ema.copy_(y.mean((0, 2, 3)))
    return y


def shows(m: Any, x: Tensor) -> Tensor:
    """A value, in an object."""
    y = pair(m, x)
    m.holder.value = y
    return torch.relu(y)


# --- what does ------------------------------------------------------------------------------------------


def every_second(m: Any, x: Tensor) -> Tensor:
    """Twice as much in every second call."""
    m.count += 1
    y = pair(m, x)
    return y if m.count % 2 else y * 2


def collects(m: Any, x: Tensor) -> Tensor:
    """All values so far, as in a cache of keys."""
    y = pair(m, x)
    m.cache = y if m.cache is None else torch.cat([m.cache, y])
    return m.cache.sum(0)


def adds_the_last(m: Any, x: Tensor) -> Tensor:
    """A stream: what is kept in a buffer."""
    y = pair(m, x)
    last, m.last = m.last, y
    return y + last


def starts_by_data(m: Any, x: Tensor) -> Tensor:
    """A scale that the first batch sets (ActNorm)."""
    y = pair(m, x)
    if not m.count:
        m.scale.data.copy_(1 / y.std((0, 2, 3))[:, None, None])
        m.count = 1
    return y * m.scale


def halves_a_parameter(m: Any, x: Tensor) -> Tensor:
    """Through `.data`, which no version counter tells."""
    m.scale.data.mul_(0.5)
    return pair(m, x) * m.scale


def halves_without_gradients(m: Any, x: Tensor) -> Tensor:
    """In place."""
    with torch.no_grad():
        m.scale.mul_(0.5)
    return pair(m, x) * m.scale


# --- what a trace sees once, and a merge would make of it --------------------------------------------------


def sometimes(m: Any, x: Tensor) -> Tensor:
    """The norm in the first call only, by a method of the object."""
    y = m.conv(x)
    y = m.norm(y) if m.holder.flag else y
    m.holder.flag = not m.holder.flag
    return y


class Asked(nn.Module):
    """Whether the norm is called is told by what changes, in a method or a property."""

    def __init__(self, by_property: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.calls, self.by_property = conv(4, 4), norm(4), 0, by_property

    def asked(self) -> bool:
        """In every second call."""
        self.calls += 1
        return self.calls % 2 == 1

    @property
    def odd(self) -> bool:
        """The same."""
        return self.asked()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if (self.odd if self.by_property else self.asked()) else y


def sets_eps(m: Any, x: Tensor) -> Tensor:
    """An attribute of a layer, before it is called."""
    m.norm.eps = 0.5
    return pair(m, x)


def sets_eps_behind(m: Any, x: Tensor) -> Tensor:
    """And after it, for the next call."""
    y = pair(m, x)
    m.norm.eps = 0.5
    return y


def sets_padding(m: Any, x: Tensor) -> Tensor:
    """What the sizes depend on."""
    m.conv.padding = (2, 2)
    return pair(m, x)


def pools_what_there_is(m: Any, x: Tensor) -> Tensor:
    """A global pool of old code."""
    y = pair(m, x)
    m.pool.kernel_size = y.shape[-1]
    return m.linear(m.pool(y).flatten(1))


def exchanges_layers(m: Any, x: Tensor) -> Tensor:
    """Two convolutions take turns."""
    y = pair(m, x)
    m.conv, m.other = m.other, m.conv
    return y


def takes_turns(m: Any, x: Tensor) -> Tensor:
    """By a list that is rotated."""
    m.order.append(m.order.pop(0))
    return m.layers[m.order[0]](pair(m, x))


class Inner(nn.Module):
    """Its norm is called only if it is told to, or there is something in its table."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.flag, self.table = conv(4, 4), norm(4), False, dict[str, bool]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if self.flag or self.table.get("flag") else y


def tells(m: Any, x: Tensor) -> Tensor:
    """Differently for each of two calls."""
    m.inner.flag = True
    y = m.inner(x)
    m.inner.flag = False
    return m.inner(torch.relu(y))


def tells_by_a_table(m: Any, x: Tensor) -> Tensor:
    """That both have."""
    m.table["flag"] = True
    y = m.inner(x)
    m.table["flag"] = False
    return m.inner(torch.relu(y))


def tells_the_next(m: Any, x: Tensor) -> Tensor:
    """In each call what the next one does."""
    y = m.inner(x)
    m.inner.flag = not m.inner.flag
    return y


def tells_unseen(m: Any, x: Tensor) -> Tensor:
    """In code that cannot be traced."""
    m.layers[0].flag = False
    y = m.layers[0](x)
    m.layers[0].flag = True
    return y * 2 if float(y.sum()) > 1e9 else y


HARMLESS = (counts, logs, counts_inside, counts_in_an_object, counts_in_a_buffer, remembers, shows)
MATTERING = (
    *(every_second, collects, adds_the_last, starts_by_data, halves_a_parameter, halves_without_gradients),
    pools_what_there_is,
)
DECIDING = (sometimes, sets_eps, sets_eps_behind, sets_padding, exchanges_layers, takes_turns)
TELLING = (tells, tells_by_a_table, tells_the_next, tells_unseen)


def model_of(body: Callable[..., Any]) -> Model:
    """A model with all that the bodies need."""

    def make() -> Model:
        table: dict[str, Any] = {"k": [0]}
        model = Model(body, conv=conv(4, 4), other=conv(4, 4), norm=norm(4), holder=Holder(), log=[], table=table)
        model.pool, model.linear, model.layers = nn.AvgPool2d(2), nn.Linear(4, 4), nn.ModuleList([Inner(), Inner()])
        model.inner, model.order, model.count, model.cache = Inner(), [0, 1], 0, None
        model.inner.table, model.layers[0].flag = table, True
        model.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        for name, shape in {"calls": (), "ema": (4,), "last": (2, 4, 8, 8)}.items():
            model.register_buffer(name, torch.zeros(shape))
        return model

    made = build(make)
    assert isinstance(made, Model)
    return made


def contents(value: Any) -> Iterator[Any]:
    """All that is in a model but for what cannot be compared: plain values, tensors as lists."""
    if isinstance(value, Tensor):
        yield value.tolist()
    elif isinstance(value, dict):
        yield from (part for key, each in value.items() for part in (key, *contents(each)))
    elif isinstance(value, (list, tuple, set)):
        yield from (part for each in value for part in contents(each))
    elif isinstance(value, (nn.Module, Holder)):
        yield from contents(vars(value))
    elif isinstance(value, (bool, int, float, str, type(None))):
        yield value


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("body", [*HARMLESS, *MATTERING, *DECIDING, *TELLING])
def test_a_fused_model_goes_on_as_the_model_would(body: Callable[..., Any], options: dict[str, Any]):
    model = model_of(body)
    reference, before = copy.deepcopy(model), list(contents(model))
    fused = reparamkit.fuse(model, **options)
    if fused is not model:
        assert list(contents(model)) == before
    with torch.no_grad():
        for _ in range(3):
            assert error(fused(X), reference(X)) <= 1e-5


@pytest.mark.parametrize("body", [*HARMLESS, *MATTERING])
def test_what_a_forward_counts_keeps_nothing_from_being_merged(body: Callable[..., Any]):
    report = reparamkit.report(reparamkit.fuse(model_of(body), X))
    uncalled = tuple(f"{part.path}." for part in report.parts if not part.calls)
    assert [merge.path for merge in report.merges if not merge.path.startswith(uncalled)] == ["conv"]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("by_property", [False, True])
def test_what_a_method_tells_may_be_something_else_in_the_next_call(by_property: bool, options: dict[str, Any]):
    model = build(lambda: Asked(by_property))
    reference = copy.deepcopy(model)
    fused = reparamkit.fuse(model, **options)
    for _ in range(3):
        assert error(run(fused, X), run(reference, X)) <= 1e-5


def clip(module: nn.Module, inputs: Any) -> None:
    """A hook."""
    layer = module.conv if isinstance(module, Model) else module
    layer.weight.data.clamp_(-0.05, 0.05)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("inside", [False, True])
def test_a_weight_that_a_hook_clips_is_not_merged(inside: bool, options: dict[str, Any]):
    model = build(lambda: Model(pair, conv=conv(4, 4), norm=norm(4)))
    (model.conv if inside else model).register_forward_pre_hook(clip)
    before = model.conv.weight.detach().clone()
    fused = reparamkit.fuse(model, **options)
    assert torch.equal(model.conv.weight, before)
    assert not reparamkit.report(fused).merges
    assert error(run(fused, X), run(model, X)) <= 1e-5


def bound(module: Model) -> Callable[..., Tensor]:
    """A hook that is a method."""
    return module.hook  # type: ignore[no-any-return]


class Asking(Model):
    """Has a hook of its own."""

    def hook(self, module: nn.Module, args: Any, output: Tensor, times: int = 1) -> Tensor:
        """Uses what a merge changes."""
        return output + times * self.conv.weight.sum() * self.norm.running_var.sum()


class Object:
    """A hook that is an object."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + self.model.norm.running_var.sum()


HOOKS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "a method": bound,
    "a partial": lambda model: partial(model.hook, times=2),
    "an object": Object,
    "calls a layer": lambda model: lambda module, args, output: module.norm(output),
}


@pytest.mark.parametrize("options", [{}, {"example_inputs": X}], ids=["without inputs", "with inputs"])
@pytest.mark.parametrize("kind", HOOKS)
def test_what_a_hook_uses_is_not_merged(kind: str, options: dict[str, Any]):
    """Whatever can be called, the numbers it reads and the layers it calls are those of the model."""
    model = build(lambda: Asking(pair, conv=conv(4, 4), norm=norm(4)))
    model.register_forward_hook(HOOKS[kind](model))
    fused = reparamkit.fuse(model, **options)
    assert error(run(fused, X), run(model, X)) <= 1e-5
    assert any(
        "hook" in refusal.reason or "called 2 times" in refusal.reason for refusal in reparamkit.report(fused).refusals
    )


# fmt: off
class OneLine(Model):
    """All in one line: the code of the lambda is that of the line it is in."""

    def watch(self) -> None: self.register_forward_hook(lambda module, args, output: output + module.conv.bias.sum())
# fmt: on


def test_a_lambda_is_not_taken_for_the_function_around_it():
    model = build(lambda: OneLine(pair, conv=conv(4, 4), norm=norm(4)))
    model.watch()
    fused = reparamkit.fuse(model)
    assert error(run(fused, X), run(model, X)) <= 1e-5


@pytest.mark.parametrize("body", DECIDING)
def test_code_that_goes_by_what_changes_is_left_with_words(body: Callable[..., Any]):
    made = reparamkit.explain(model_of(body), X)
    assert not [merge for merge in made.merges if {"conv", "norm"} <= {*merge.members}]
    reasons = [refusal.reason for refusal in made.refusals]
    assert any("change" in reason or "only some of" in reason for reason in reasons), reasons


@pytest.mark.parametrize("body", [counts, logs, counts_inside, counts_in_an_object])
def test_a_fused_model_starts_to_count_where_the_model_was(body: Callable[..., Any]):
    model = model_of(body)
    model(X)
    fused = reparamkit.fuse(model, X)
    for found, wanted in ((fused.count, model.count), (fused.log, model.log), (fused.table, model.table)):
        assert found == wanted
    assert vars(fused.holder) == vars(model.holder)


def joins_later(m: Any, x: Tensor) -> Tensor:
    """The norm, after three calls."""
    m.count += 1
    return pair(m, x) if m.count > 3 else m.conv(x)


def keeps_the_first(m: Any, x: Tensor) -> Tensor:
    """What all calls are compared with."""
    y = pair(m, x)
    m.log.append(y.mean())
    return y - m.log[0]


@pytest.mark.parametrize("body", [every_second, collects, sets_eps, joins_later, keeps_the_first])
def test_a_graph_that_would_do_the_same_in_every_call_is_refused(body: Callable[..., Any]):
    with pytest.raises(CaptureError, match="does in every call what the first call does"):
        reparamkit.fuse(model_of(body), X, as_graph=True)
    with pytest.raises(CaptureError, match="does in every call what the first call does"):
        reparamkit.fuse(model_of(body), as_graph=True)


def by_mode(m: Any, x: Tensor) -> Tensor:
    """Another layer where gradients are followed."""
    return m.norm(m.conv(x)) if torch.is_grad_enabled() else m.norm(m.other(x))


@pytest.mark.parametrize("options", [{"example_inputs": X}, {}], ids=["inputs", "no inputs"])
def test_a_graph_that_would_take_one_way_whether_gradients_are_followed_or_not_is_refused(options: dict[str, Any]):
    with pytest.raises(CaptureError, match="asks torch for modes"):
        reparamkit.fuse(model_of(by_mode), as_graph=True, **options)


def test_a_counter_that_changes_nothing_is_left_out_of_a_graph():
    model = model_of(counts)
    fused = reparamkit.fuse(model, X, as_graph=True)
    assert error(fused(X), model(X)) <= 1e-5


def sets_a_hook(m: Any, x: Tensor) -> Tensor:
    """For the time of a call."""
    handle = m.conv.register_forward_hook(lambda module, args, output: output * 2)
    y = pair(m, x)
    handle.remove()
    return y


@pytest.mark.parametrize("options", [{"example_inputs": X}, {}], ids=["inputs", "no inputs"])
def test_what_a_hook_sees_that_a_forward_sets_is_left(options: dict[str, Any]):
    model = build(lambda: seq(Model(sets_a_hook, conv=conv(4, 4), norm=norm(4)), conv_norm(4, 4)))
    fused = reparamkit.fuse(model, **options)
    assert error(run(fused, X), run(model, X)) <= 1e-5
    assert [merge.path for merge in reparamkit.report(fused).merges] == ["1.0"]


TABLES: dict[str, Callable[..., nn.Module]] = {"embedding": nn.Embedding, "bag": nn.EmbeddingBag}


def looks_up(m: Any, i: Tensor) -> Tensor:
    """By the layer."""
    return m.table(i)


def looks_up_by_function(m: Any, i: Tensor) -> Tensor:
    """By the function of its kind."""
    lookup = torch.nn.functional.embedding if isinstance(m.table, nn.Embedding) else torch.nn.functional.embedding_bag
    return lookup(i, m.table.weight, max_norm=m.table.max_norm)


@pytest.mark.parametrize("options", [{"example_inputs": torch.arange(6).view(2, 3)}, {}], ids=["inputs", "no inputs"])
@pytest.mark.parametrize("by", [looks_up, looks_up_by_function])
@pytest.mark.parametrize("kind", TABLES)
def test_a_table_whose_rows_a_lookup_scales_is_not_merged(
    kind: str, by: Callable[..., Tensor], options: dict[str, Any]
):
    """Its numbers are others behind the lookup than before."""

    def forward(m: Any, i: Tensor) -> Tensor:
        return torch.nn.functional.linear(m.linear(by(m, i)), m.table.weight)

    model = build(lambda: Model(forward, table=TABLES[kind](6, 8, max_norm=0.5), linear=nn.Linear(8, 8)))
    reference, fused = copy.deepcopy(model), reparamkit.fuse(model, **options)
    i = torch.arange(6).flip(0).view(2, 3)
    assert error(run(fused, i), run(reference, i)) <= 1e-5


def fills_a_tensor(m: Any, x: Tensor) -> Tensor:
    """One that is neither a parameter nor a buffer."""
    m.plain += 1
    return pair(m, x) + m.plain


def test_a_plain_tensor_that_a_forward_writes_into_is_refused():
    model = build(lambda: Model(fills_a_tensor, conv=conv(4, 4), norm=norm(4), plain=torch.zeros(4, 1, 1)))
    for options in OPTIONS.values():
        with pytest.raises(CaptureError, match="writes into a tensor of the model"):
            reparamkit.fuse(model, **options)
    assert not model.plain.any()


def scaled_by_a_tensor(m: Any, x: Tensor) -> Tensor:
    """A plain one."""
    return torch.relu(pair(m, x)) * m.holder.value[0] * m.plain


def test_a_fused_model_has_its_own_plain_tensors():
    model = model_of(scaled_by_a_tensor)
    model.plain, model.holder = torch.rand(4, 1, 1), SimpleNamespace(value=(torch.rand(4, 1, 1),))
    fused = reparamkit.fuse(model, X)
    assert error(fused(X), model(X)) <= 1e-5
    assert fused.plain.data_ptr() != model.plain.data_ptr()
    assert fused.holder.value[0].data_ptr() != model.holder.value[0].data_ptr()


# --- what a forward changes elsewhere ---------------------------------------------------------------------

COUNTS = [0]
TURNS = itertools.count()
TURN = 0


def counter() -> None:
    """A function that has an attribute."""


class Turning(nn.Module):
    """Norms that take turns, by something that no module has."""

    turn = 0

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms, self.own = conv(4, 4), nn.ModuleList(norm(4) for _ in range(2)), 0


class ByClass(Turning):
    def forward(self, x: Tensor) -> Tensor:
        ByClass.turn += 1
        return self.norms[self.turn % 2](self.conv(x))


class ByItsType(Turning):
    def forward(self, x: Tensor) -> Tensor:
        type(self).turn += 1
        x = self.conv(x)
        if type(self).turn % 2:
            return self.norms[1](x)
        return self.norms[0](x)


class ByGlobal(Turning):
    def forward(self, x: Tensor) -> Tensor:
        global TURN
        TURN += 1
        return self.norms[TURN % 2](self.conv(x))


class ByList(Turning):
    def forward(self, x: Tensor) -> Tensor:
        COUNTS[0] += 1
        return self.norms[COUNTS[0] % 2](self.conv(x))


class ByFunction(Turning):
    def forward(self, x: Tensor) -> Tensor:
        counter.turn = 1 - counter.turn  # type: ignore[attr-defined]
        return self.norms[counter.turn](self.conv(x))  # type: ignore[attr-defined]


class ByIterator(Turning):
    def forward(self, x: Tensor) -> Tensor:
        return self.norms[next(TURNS) % 2](self.conv(x))


class ByItsOwn(Turning):
    def forward(self, x: Tensor) -> Tensor:
        self.own += 1
        return self.norms[self.own % 2](self.conv(x))


class InASum(Turning):
    def forward(self, x: Tensor) -> Tensor:
        COUNTS[0] += 1
        return self.norms[COUNTS[0] % 2](self.conv(x)) + x


def start() -> None:
    """As if nothing had run."""
    global TURN, TURNS
    TURN, COUNTS[0], TURNS = 0, 0, itertools.count()
    ByClass.turn = ByItsType.turn = counter.turn = 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    "kind", [ByClass, ByItsType, ByGlobal, ByList, ByFunction, ByIterator, ByItsOwn, InASum], ids=lambda k: k.__name__
)
def test_layers_that_take_turns_by_what_a_forward_changes_anywhere(kind: type[Turning], options: dict[str, Any]):
    start()
    model = build(kind)
    reference = copy.deepcopy(model)
    fused = reparamkit.fuse(model, **options)
    start()
    found = [run(fused, X) for _ in range(4)]
    start()
    wanted = [run(reference, X) for _ in range(4)]
    assert error(wanted[0], wanted[1]) > 0.01
    assert max(map(error, found, wanted)) <= 1e-5


class Counting(Turning):
    def forward(self, x: Tensor) -> Tensor:
        type(self).turn += 1
        COUNTS[0] += 1
        return self.norms[0](self.conv(x)).relu()


def test_what_is_only_counted_elsewhere_keeps_nothing_from_being_merged():
    fused = reparamkit.fuse(build(Counting), X)
    assert len(reparamkit.report(fused).merges) == 1
    start()
    run(fused, X)
    assert COUNTS == [1]


def test_a_hook_that_stands_in_a_page_of_text_is_read_by_its_own_lines():
    """No file, but a page or a transcript, that is no code as a whole."""
    line = "hook = lambda module, args, output: output * 2\n"
    linecache.cache["<page>"] = (0, None, ["A page, not code:\n", line], "<page>")
    names: dict[str, Any] = {}
    exec(compile("\n" + line, "<page>", "exec"), names)
    model = build(lambda: seq(conv_norm(4, 4), nn.ReLU()))
    model[0][1].register_forward_hook(names["hook"])
    fused = reparamkit.fuse(model, X)
    assert error(run(fused, X), run(model, X)) <= 1e-6
    assert "norm" not in operations(fused, X)


# --- iterators ------------------------------------------------------------------------------------------


class Taking(nn.Module):
    """Takes what an iterator among its attributes gives: a number, an index or a layer."""

    def __init__(self, iterate: Callable[[Any], Iterator[Any]], take: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.convs, self.norm = nn.ModuleList([conv(4, 4), conv(4, 4)]), norm(4)
        self.iterator, self.take = iterate(self), take

    def forward(self, x: Tensor) -> Tensor:
        return self.take(self, x)


def of_next_number(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.convs[0](x)) * next(m.iterator)  # type: ignore[no-any-return]


def of_next_layer(m: Any, x: Tensor) -> Tensor:
    return m.norm(next(m.iterator)(x))  # type: ignore[no-any-return]


def of_next_in_a_loop(m: Any, x: Tensor) -> Tensor:
    for layer in m.iterator:
        return m.norm(layer(x))  # type: ignore[no-any-return]
    return x


ITERATORS: dict[str, tuple[Callable[[Any], Iterator[Any]], Callable[[Any, Tensor], Tensor]]] = {
    "cycle": (lambda m: itertools.cycle([1.0, 2.0, 3.0]), of_next_number),
    "count": (lambda m: itertools.count(2.0), of_next_number),
    "list": (lambda m: iter([float(k) for k in range(1, 9)]), of_next_number),
    "layers": (lambda m: itertools.cycle(m.convs), of_next_layer),
    "layers in a loop": (lambda m: itertools.cycle(m.convs), of_next_in_a_loop),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("iterate", "take"), ITERATORS.values(), ids=ITERATORS)
def test_iterators_give_next_what_they_would_have_given(
    iterate: Callable[[Any], Iterator[Any]], take: Callable[[Any, Tensor], Tensor], options: dict[str, Any]
):
    """The user's and the fused one's: what traces and runs took is given again, and code goes by what is taken."""
    model, twin = (build(partial(Taking, iterate, take)) for _ in range(2))
    wanted = [run(twin, X) for _ in range(4)]
    fused = reparamkit.fuse(model, **options)
    models = [fused] if options.get("inplace") else [fused, model]
    assert all(error(run(each, X), one) <= 1e-6 for each in models for one in wanted)


def test_a_generator_gives_next_what_it_would_have_given():
    """It cannot be copied, nor can the model."""
    made = [build(partial(Taking, lambda m: (float(k) for k in range(1, 9)), of_next_number)) for _ in range(2)]
    wanted = [run(made[0], X) for _ in range(4)]
    with pytest.raises(reparamkit.InvalidInputError, match="cannot be copied"):
        reparamkit.fuse(made[1], X)
    fused = reparamkit.fuse(made[1], X, inplace=True)
    assert all(error(run(fused, X), one) <= 1e-6 for one in wanted)
