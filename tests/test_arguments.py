"""What a forward is given, and decides by: ranks, entries of containers, records, numbers, ways to pass them."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from structures import Sum, build, conv, conv_norm, error, norm, operations, run, sample, seq
from torch import Tensor, nn

import reparamkit
from reparamkit import GuardError, InvalidInputError

X = sample((2, 4, 8, 8), torch.float32)


class Branches(nn.Module):
    """Two branches, summed by a method."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(4, 4), conv_norm(4, 4, 1)

    def sum(self, x: Tensor) -> Tensor:
        """x: shape (n, 4, h, w)."""
        return torch.relu(self.a(x) + self.b(x))


def called(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    with torch.no_grad():
        return model(*copy.deepcopy(args), **copy.deepcopy(kwargs or {}))


# --- ranks ------------------------------------------------------------------------------------------


class Batched(Branches):
    """A single image is made a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(x if x.dim() == 4 else x[None])


class BatchedInside(Branches):
    """The same, in a method that asks for another name of it."""

    def batch(self, x: Tensor) -> Tensor:
        """x: shape (4, h, w) or (n, 4, h, w)."""
        return x if x.ndim == 4 else x[None]

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(self.batch(x))


class BatchedByShape(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return self.sum(x if len(x.shape) == 4 else x[None])


class NormedMaps(nn.Module):
    """A norm that only maps with a batch get: nothing is written again but the norm's place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return self.norm(y) if y.dim() == 4 else y


@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"as_graph": True}], ids=["copy", "in place", "graph"])
@pytest.mark.parametrize("make", [Batched, BatchedInside, BatchedByShape, NormedMaps])
def test_code_that_asks_for_the_rank_gives_what_it_gave_or_refuses_another(make: Any, options: dict[str, Any]):
    model = build(make)
    wanted = run(model, X), run(model, X[0])
    fused = reparamkit.fuse(model, X, **options)
    assert error(run(fused, X), wanted[0]) <= 1e-6
    with suppress(GuardError):
        assert error(run(fused, X[0]), wanted[1]) <= 1e-6


# --- entries ----------------------------------------------------------------------------------------


class Extra(Branches):
    """An argument by any name, looked for."""

    def forward(self, x: Tensor, **more: Tensor) -> Tensor:
        return self.sum(x) + more.get("extra", 0)


class Several(Branches):
    """As many tensors as there are."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.sum(x) + sum(others)


class Rows(Branches):
    def forward(self, images: list[Tensor]) -> Tensor:
        return self.sum(images[0]) + sum(images[1:])


class Named(Branches):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        y = self.sum(batch["image"])
        return y * batch["mask"] if "mask" in batch else y


ENTRIES: dict[str, tuple[type[nn.Module], Any, Any]] = {
    "more names": (Extra, ((X,), {}), ((X,), {"extra": X})),
    "fewer names": (Extra, ((X,), {"extra": X}), ((X,), {})),
    "more arguments": (Several, ((X,), {}), ((X, X), {})),
    "fewer arguments": (Several, ((X, X), {}), ((X,), {})),
    "a longer list": (Rows, (([X, X],), {}), (([X, X, X],), {})),
    "a shorter list": (Rows, (([X, X],), {}), (([X],), {})),
    "more keys": (Named, (({"image": X},), {}), (({"image": X, "mask": X},), {})),
    "fewer keys": (Named, (({"image": X, "mask": X},), {}), (({"image": X},), {})),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_other_entries_are_never_ignored(name: str):
    """Where the code that goes through them was written again, what was traced is asked for."""
    make, (args, kwargs), (others, named) = ENTRIES[name]
    model = build(make)
    fused = reparamkit.fuse(model, args, example_kwargs=kwargs)
    assert len(reparamkit.report(fused).merges) == 1
    assert error(called(fused, args, kwargs), called(model, args, kwargs)) <= 1e-6
    with pytest.raises(GuardError, match="entries"):
        called(fused, others, named)


def test_names_are_not_assumed_to_be_absent():
    """Nothing was said of a call: one with a name that the code looks for is refused, and not taken for one without."""
    fused = reparamkit.fuse(build(Extra))
    with pytest.raises(GuardError, match="extra"):
        called(fused, (X,), {"extra": X})


class Ignoring(Branches):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.sum(x)


def test_what_the_code_does_not_look_at_may_be_given():
    model = build(Ignoring)
    fused = reparamkit.fuse(model, X)
    assert error(called(fused, (X,), {"verbose": True}), run(model, X)) <= 1e-6


@dataclass
class Batch:
    """What a data loader gives."""

    image: Tensor
    mask: Tensor | None = None
    scale: float = 2.0


class TakesBatch(Branches):
    def forward(self, batch: Batch) -> Tensor:
        y = self.sum(batch.image) * batch.scale
        return y if batch.mask is None else y * batch.mask


class TakesKind(Branches):
    def forward(self, x: Tensor, kind: torch.dtype) -> Tensor:
        return self.sum(x).to(kind)


GIVEN: dict[str, tuple[type[nn.Module], Any, list[Any], str]] = {
    "a record": (TakesBatch, Batch(X, X), [Batch(X)], "None"),
    "a record with None": (TakesBatch, Batch(X), [Batch(X, X)], "a tensor of shape"),
    "a number in a record": (TakesBatch, Batch(X), [Batch(X, scale=3.0)], "3.0"),
    "a dtype": (TakesKind, (X, torch.float64), [X, torch.float32], "float32"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_in_arguments_is_followed_and_checked(name: str):
    make, example, other, says = GIVEN[name]
    model = build(make)
    args = example if isinstance(example, tuple) else (example,)
    fused = reparamkit.fuse(model, args)
    assert len(reparamkit.report(fused).merges) == 1
    assert error(called(fused, args), called(model, args)) <= 1e-6
    with pytest.raises(GuardError, match=says) as guard:
        called(fused, tuple(other))
    assert len(str(guard.value)) < 250


# --- ways to pass them ------------------------------------------------------------------------------


class Positional(Branches):
    def forward(self, x: Tensor, /, scale: float = 2.0) -> Tensor:
        return self.sum(x) * scale


class Casting(Branches):
    """Takes numbers of any kind, and makes them its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(x.float())


@pytest.mark.parametrize(("make", "x"), [(Positional, X), (Casting, X.double())], ids=["positional", "cast"])
@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
def test_what_the_model_takes_is_taken(make: Any, x: Tensor, with_inputs: bool):
    model = build(make)
    fused = reparamkit.fuse(model, x if with_inputs else None)
    if with_inputs or make is Positional:
        assert operations(fused, x).count("conv") == 1
    assert error(run(fused, x), run(model, x)) <= 1e-6


class Recurrent(nn.Module):
    """Takes a PackedSequence: a named tuple that is made of nothing but its own entries."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 6), seq(nn.Linear(6, 5), nn.Linear(5, 6))

    def forward(self, packed: Any) -> Tensor:
        return self.head(self.rnn(packed)[0].data)


def test_an_argument_that_cannot_be_taken_apart_stays_whole():
    model = build(Recurrent)
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 4), torch.randn(3, 4)])
    fused = reparamkit.fuse(model, (packed,))
    for lengths in ((5, 3), (4, 4)):
        other = nn.utils.rnn.pack_sequence([torch.randn(length, 4) for length in lengths])
        assert error(fused(other), model(other)) <= 1e-6


def test_a_graph_takes_tensors_only_and_says_so():
    with pytest.raises(InvalidInputError, match="fuse without it"):
        reparamkit.fuse(build(TakesBatch), Batch(X), as_graph=True)


class Resized(nn.Module):
    """To a size that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm(4, 4)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return nn.functional.interpolate(self.a(x), size=size)


def test_an_argument_that_may_be_anything_is_no_size():
    model = build(Resized)
    fused = reparamkit.fuse(model)
    assert isinstance(fused.a[1], nn.Identity)
    assert error(fused(X, (4, 6)), model(X, (4, 6))) <= 1e-6


# --- a forward of one module ------------------------------------------------------------------------


class Chosen(Branches):
    """Chooses its forward when it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.go  # type: ignore[method-assign]

    def go(self, x: Tensor) -> Tensor:
        """x: shape (n, 4, h, w)."""
        return self.sum(x) + 1


class Partial(Branches):
    def __init__(self) -> None:
        super().__init__()
        self.forward = functools.partial(self.go, shift=2.0)  # type: ignore[method-assign]

    def go(self, x: Tensor, shift: float) -> Tensor:
        """x: shape (n, 4, h, w)."""
        return self.sum(x) + shift


class Assigned(nn.Module):
    """Has a function of its own for a forward, which is no method."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(4, 4), conv_norm(4, 4, 1)
        self.forward = lambda x: torch.relu(self.a(x) + self.b(x)) + 3  # type: ignore[method-assign]


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("inplace", [False, True], ids=["a copy", "in place"])
@pytest.mark.parametrize("outer", [False, True], ids=["the model", "a part"])
@pytest.mark.parametrize("make", [Chosen, Partial])
def test_a_forward_of_the_module_itself_is_the_one_that_is_written(
    make: Any, outer: bool, inplace: bool, with_inputs: Any
):
    model = build(lambda: seq(make(), nn.ReLU(), make()) if outer else make())
    wanted = run(model, X)
    fused = reparamkit.fuse(model, X if with_inputs else None, inplace=inplace)
    assert operations(fused, X).split().count("conv") == (2 if outer else 1)
    for each in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert error(run(each, X), wanted) <= 1e-6


def test_a_forward_that_is_no_method_stays():
    model = build(Assigned)
    wanted = run(model, X)
    found = reparamkit.report(reparamkit.fuse(model, X, inplace=True))
    assert error(run(model, X), wanted) <= 1e-6
    reasons = [refusal.reason for refusal in found.refusals]
    assert any("no method of its own" in reason for reason in reasons), reasons


# --- what the code remembers ------------------------------------------------------------------------


class Tabled(nn.Module):
    """A table in the cache of a static method."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm(4, 4)

    @staticmethod
    @functools.lru_cache
    def table(size: int) -> Tensor:
        """shape (size,)."""
        return torch.arange(size, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.table(x.shape[-1])


def test_the_cache_of_a_static_method_keeps_nothing_of_a_trace():
    model = build(Tabled)
    Tabled.table.cache_clear()
    fused = reparamkit.fuse(model, X)
    # What a real run put there.
    assert Tabled.table.cache_info().currsize == 1
    assert error(run(fused, X), run(model, X)) <= 1e-6


SHOWN: dict[str, Tensor] = {}
LISTED: list[Tensor] = []


class Showing(Branches):
    """Puts what it computes where others find it, in its file and its class."""

    seen: dict[str, Tensor] = {}  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        y = self.sum(x)
        SHOWN["y"] = y
        LISTED.append(y * 2)
        self.seen["y"] = y + 1
        return y + 3


@pytest.mark.parametrize("inplace", [False, True], ids=["a copy", "in place"])
def test_what_a_forward_puts_into_containers_of_its_file_is_there(inplace: bool):
    """Nothing of a trace is left in them, and the fused model goes on doing it."""
    model = build(Showing)
    wanted, shown, seen = run(model, X), SHOWN["y"], model.seen["y"]
    fused = reparamkit.fuse(model, X, inplace=inplace)
    assert all(type(value) is Tensor for value in (*SHOWN.values(), *LISTED, *Showing.seen.values()))
    SHOWN.clear(), LISTED.clear(), Showing.seen.clear()
    assert error(run(fused, X), wanted) <= 1e-6
    for found, what in ((SHOWN["y"], shown), (LISTED[0], shown * 2), (Showing.seen["y"], seen)):
        assert error(found, what) <= 1e-6


class Remembering(nn.Module):
    """Computes its biases once for each device, with the history that they have."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = Sum([conv_norm(4, 4), conv_norm(4, 4, 1)])
        self.bias, self.known = nn.Parameter(torch.randn(4, 1, 1)), dict[torch.device, Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        if x.device not in self.known:
            self.known[x.device] = 2 * self.bias
        return self.sum(x) + self.known[x.device]


def test_what_a_model_remembers_with_a_history_is_no_obstacle():
    model = build(Remembering)
    wanted = model(X)
    assert not model.known[X.device].is_leaf
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X).count("conv") == 1
    assert error(run(fused, X), wanted.detach()) <= 1e-6


class Weighted(nn.Module):
    """Knows its own parts by identity, which a copy does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(4, 4), conv_norm(4, 4, 1)
        self.factors = _Factors({self.a: 3.0})

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.factors.get(self.a, 5.0) + self.b(x)


class _Factors(dict[nn.Module, float]):
    def __deepcopy__(self, memo: Any) -> _Factors:
        return self


def test_a_model_whose_copy_computes_something_else_is_refused():
    """It is no rounding, though weights that differ by rounding seem to make as large a difference."""
    model = build(Weighted)
    wanted = run(model, X)
    with pytest.raises(InvalidInputError, match="inplace=True"):
        reparamkit.fuse(model, X)
    assert error(run(reparamkit.fuse(model, X, inplace=True), X), wanted) <= 1e-6


class Locked(Branches):
    """Has what cannot be copied, and says what of it can."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = _Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.lock = _Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(x)


class _Lock:
    def __reduce__(self) -> Any:
        raise TypeError("cannot be copied")


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_what_a_module_says_of_its_state_holds_for_the_fused_one(way: Callable[[nn.Module], nn.Module]):
    model = build(Locked)
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X).count("conv") == 1
    made = way(fused)
    assert isinstance(made.lock, _Lock)
    assert error(run(made, X), run(model, X)) <= 1e-6


class Words(nn.Module):
    """Parts with words of Python as names."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: Branches() for name in ("class", "from", "a b", "größe")})

    def forward(self, x: Tensor) -> Tensor:
        return sum(torch.relu(head.a(x) + head.b(x)) for head in self.heads.values())


@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"without_inputs": True}], ids=["copy", "in place", "free"])
def test_words_of_python_may_be_names(options: dict[str, bool]):
    model = build(Words)
    wanted = run(model, X)
    x = None if options.pop("without_inputs", False) else X
    fused = reparamkit.fuse(model, x, **options)
    assert operations(fused, X).split().count("conv") == 4
    assert error(run(pickle.loads(pickle.dumps(fused)), X), wanted) <= 1e-6


class Sized(nn.Module):
    """Two branches in one, in a shape that has the batch of what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(8, 8, 1), nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + self.b(x)
        return y.reshape(y.shape[0], 8, 3, 2)


class WritesFirst(nn.Module):
    """Changes a part of a value, and hands it on."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.scale, self.inner = nn.Conv1d(4, 4, 1), nn.Parameter(torch.rand(4, 1) + 0.5), Sized()

    def forward(self, x: Tensor) -> Tensor:
        y = (x * x).clone()
        y[:, :4] += self.c(x[:, :4] * self.scale)
        return self.inner(y)


def test_a_call_sees_what_was_written_to_its_argument_before():
    """The size that it reads is known before, and does not move the call."""
    model, x = build(WritesFirst), sample((2, 8, 6), torch.float32)
    assert error(reparamkit.fuse(model, x, verify=False)(x), model(x)) <= 1e-6


class Padding(nn.Module):
    """Pads small inputs, and needs a branch for it."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pair[0](x)
        return self.pair[1](nn.functional.pad(y, (0, 1)) if 9 - x.shape[-1] < 0 else y)


def test_a_condition_that_is_checked_can_be_recorded_by_torch():
    """To torch.jit.trace a size is a tensor, and a condition one of truth."""
    model = build(Padding)
    fused = reparamkit.fuse(model, X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        recorded = torch.jit.trace(fused, X, check_trace=False)
    assert error(recorded(X), model(X)) <= 1e-6


class Partitioned(nn.Module):
    """A dense layer and two convolutions on parts of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.a, self.b = nn.Linear(16, 16), conv_norm(1, 1, 1), conv_norm(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        parts = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 1, 2, 4, 3, 5)
        maps = parts.reshape(-1, 1, 4, 4)
        return self.fc(parts.reshape(-1, 16)).reshape(-1, 1, 4, 4) + (self.a(maps) + self.b(maps))


def test_a_size_is_checked_where_an_argument_has_it():
    """The size is that of the model's input, which the call inside does not see: a norm keeps it."""
    model = build(lambda: seq(norm(4), Partitioned()))
    fused = reparamkit.fuse(model, X)
    (merge,) = reparamkit.report(fused).merges
    assert "locality_injection" in merge.rules
    larger = sample((3, 4, 12, 4), torch.float32)
    assert error(fused(larger), model(larger)) <= 1e-6
    with pytest.raises((GuardError, RuntimeError)):
        fused(sample((2, 4, 9, 8), torch.float32))


def activated(x: Tensor, sharp: bool = True, **options: Any) -> Tensor:
    x = x.tanh() if options.get("flat", False) else x.sigmoid()
    return x * x if sharp else x


class CachedKeys(nn.Module):
    """Keys that are computed unless they are given, and further arguments for others (attention of transformers)."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.more = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, cache: Tensor | None = None, **options: Any) -> Tensor:
        k = self.k(x) + self.more(x) if cache is None else cache
        return activated(k, **options)


class Handing(nn.Module):
    """Hands on any arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), CachedKeys()

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.inner(self.norm(x), **options)


TOKENS = sample((2, 5, 8), torch.float32)


@pytest.mark.parametrize("given", [{"flat": False}, {"unread": None, "also": False}], ids=str)
def test_keywords_that_say_nothing_new(given: dict[str, Any]):
    """`generate` of transformers gives what the example has not: what the code takes anyway."""
    model = build(Handing)
    fused = reparamkit.fuse(model, TOKENS)
    assert reparamkit.report(fused).merges
    assert error(called(fused, (TOKENS,), given), called(model, (TOKENS,), given)) <= 1e-6


@pytest.mark.parametrize("given", [{"flat": True}, {"flat": None}, {"sharp": False}, {"unread": 1}], ids=str)
def test_keywords_that_may_say_something_new(given: dict[str, Any]):
    fused = reparamkit.fuse(build(Handing), TOKENS)
    with pytest.raises(GuardError):
        fused(TOKENS, **given)


class Masked(nn.Module):
    """Adds a mask, if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.first(x).relu() if mask is None else (self.first(x) + mask).relu()
        return self.last(x) * self.scale


class Around(nn.Module):
    """Has no mask; cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Masked()

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().sum()) > 1e9 else x + self.inner(x, None)


def test_a_part_may_be_called_without_an_argument_that_its_code_asks_for():
    """Without an example nobody knows, and nothing is assumed."""
    model = build(Around)
    for fused in (reparamkit.fuse(model), reparamkit.fuse(model, TOKENS)):
        assert error(run(fused, TOKENS), run(model, TOKENS)) <= 1e-6


class Shift(nn.Module):
    """Adds a learned number per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.rand(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.implicit + x


class Scale(Shift):
    """Multiplies by it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.implicit * x


class Detect(nn.Module):
    """Puts what it makes of each element of its list in its place, as the heads of YOLO do."""

    def __init__(self) -> None:
        super().__init__()
        self.add, self.layers, self.scale = (
            nn.ModuleList(make() for _ in range(2)) for make in (Shift, self.layer, Scale)
        )

    @staticmethod
    def layer() -> nn.Module:
        return nn.Conv2d(4, 4, 1)

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        for i in range(2):
            x[i] = self.layers[i](self.add[i](x[i]))
            x[i] = self.scale[i](x[i])
            n, c, h, w = x[i].shape
            x[i] = x[i].view(n, 2, c // 2, h, w)
        return x


class Detector(nn.Module):
    """Hands on a list of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(4, 4), Detect()

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x).relu()
        return self.head([x, x[..., ::2].relu()])


def test_what_is_put_into_an_element_is_not_put_into_its_number():
    """``x[i] = layer(x[i])`` leaves i as it was: which layer runs follows from no argument."""
    model = build(Detector)
    fused = reparamkit.fuse(model, X)
    assert len(reparamkit.report(fused).merges) == 2
    for found, wanted in zip(called(fused, (X,)), called(model, (X,)), strict=True):
        assert error(found, wanted) <= 1e-5
