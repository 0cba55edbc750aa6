"""Code that goes by what a value is, and not by its numbers: None, a list, a size, a tensor that fails a check."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from structures import Model, build, conv, error, norm, operations, run, sample
from torch import Tensor, nn

import reparamkit
from reparamkit import CaptureError, GuardError

X = sample((2, 4, 8, 8), torch.float32)
Body = Callable[[Any, Any], Any]


def layers(body: Body) -> nn.Module:
    """One way runs both layers, the other one without the other."""
    return build(lambda: Model(body, conv=conv(4, 4, 1), norm=norm(4), last=conv(4, 4, 1)))


def both(m: Any, x: Tensor) -> Tensor:
    out: Tensor = m.norm(m.conv(x))
    return out


def other(m: Any, x: Tensor) -> Tensor:
    out: Tensor = m.last(m.conv(x).relu())
    return out


def is_list(x: Any) -> bool:
    return isinstance(x, list)


def of_a_class(m: Any, x: Any) -> Tensor:
    match x:
        case Tensor():
            return both(m, x)
        case _:
            return other(m, x[0])


def of_several(m: Any, x: Any) -> Tensor:
    match x:
        case (first,):
            return other(m, first)
        case _:
            return both(m, x)


LISTS: dict[str, Body] = {
    "isinstance": lambda m, x: other(m, x[0]) if isinstance(x, (list, tuple)) else both(m, x),
    "an abstract class": lambda m, x: other(m, x[0]) if isinstance(x, Sequence) else both(m, x),
    "is_tensor": lambda m, x: both(m, x) if torch.is_tensor(x) else other(m, x[0]),
    "hasattr": lambda m, x: other(m, x[0]) if hasattr(x, "append") else both(m, x),
    "a function": lambda m, x: other(m, x[0]) if is_list(x) else both(m, x),
    "__class__": lambda m, x: both(m, x) if x.__class__ is Tensor else other(m, x[0]),
    "a pattern of a class": of_a_class,
    "a pattern of several": of_several,
}


@pytest.mark.parametrize("inputs", [X, None], ids=["with inputs", "without"])
@pytest.mark.parametrize("name", LISTS)
def test_what_goes_by_the_kind_of_an_argument_gives_what_it_gave_or_refuses_another(name: str, inputs: Tensor | None):
    """Layers were merged for tensors, and the other way, which runs one of them alone, was wrong in silence."""
    model = layers(LISTS[name])
    fused = reparamkit.fuse(model, inputs)
    assert error(run(fused, X), run(model, X)) <= 1e-5
    with torch.no_grad():
        try:
            found = fused([X])
        except GuardError:
            return
        assert error(found, model([X])) <= 1e-5


class Gated(nn.Module):
    """Without a gate the norm is not called."""

    def __init__(self, ask: Callable[[Any], bool]) -> None:
        super().__init__()
        self.conv, self.norm, self.last, self.ask = conv(4, 4, 1), norm(4), conv(4, 4, 1), ask

    def forward(self, gate: Any, x: Tensor) -> Tensor:
        if gate is None:
            return other(self, x)
        return both(self, x)


class GatedByMethod(Gated):
    def forward(self, gate: Any, x: Tensor) -> Tensor:
        return self._second(gate, self.conv(x))

    def _second(self, given: Any, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x) if given is not None else self.last(x.relu())
        return out


class GatedByName(Gated):
    def forward(self, gate: Any, x: Tensor) -> Tensor:
        given = gate
        there = given is not None
        return both(self, x) if there else other(self, x)


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("kind", [Gated, GatedByMethod, GatedByName])
def test_an_argument_that_is_none_now_is_no_tensor(kind: type[Gated], with_inputs: bool):
    """Also the first one, and one without a default."""
    model = build(lambda: kind(bool))
    fused = reparamkit.fuse(model, (X, X)) if with_inputs else reparamkit.fuse(model)
    with torch.no_grad():
        assert error(fused(X, X), model(X, X)) <= 1e-5
        try:
            found = fused(None, X)
        except GuardError:
            return
        assert error(found, model(None, X)) <= 1e-5


class Features(nn.Module):
    """A method has both layers, and a branch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)

    def features(self, x: Any) -> Tensor:
        """Of one tensor, or of several side by side."""
        if isinstance(x, (list, tuple)):
            x = torch.cat(x)
        out: Tensor = self.norm(self.conv(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).relu()


@pytest.mark.parametrize("inputs", [X, None], ids=["with inputs", "without"])
def test_a_method_keeps_its_layers_where_its_branches_do_not_part_them(inputs: Tensor | None):
    model = build(Features)
    fused = reparamkit.fuse(model, inputs)
    assert operations(fused, X) == "conv relu"
    with torch.no_grad():
        assert error(fused.features([X, X]), model.features([X, X])) <= 1e-5


def of_sizes(m: Any, x: Tensor) -> Tensor:
    match x.shape:
        case (_, 4, _, _):
            return other(m, x)
        case _:
            return both(m, x)


def of_parts(m: Any, x: Tensor) -> Tensor:
    match x.chunk(2, 1):
        case (a, b):
            return other(m, torch.cat([b, a], 1))
        case _:
            return both(m, x)


SILENT: dict[str, Body] = {
    "a pattern of sizes": of_sizes,
    "a pattern of parts": of_parts,
    "type": lambda m, x: other(m, x) if type(x) is Tensor else both(m, x),
    "type of a size": lambda m, x: other(m, x) if type(x.shape[1]) is int else both(m, x),
}


@pytest.mark.parametrize("inputs", [X, None], ids=["with inputs", "without"])
@pytest.mark.parametrize("name", SILENT)
def test_what_no_trace_can_answer_is_not_traced(name: str, inputs: Tensor | None):
    """The trace took the way of what is no tensor, and no size: wrong in silence, or an `EquivalenceError`."""
    model = layers(SILENT[name])
    try:
        fused = reparamkit.fuse(model, inputs)
    except CaptureError:
        return
    assert error(run(fused, X), run(model, X)) <= 1e-5


OF_ONE_DTYPE = (torch.FloatTensor, torch.DoubleTensor)
HELPERS: dict[str, Callable[[Any], bool]] = {
    "is": lambda v: type(v) is Tensor,
    "equals": lambda v: type(v) == Tensor,  # noqa: E721
    "in a table": lambda v: {Tensor: True}.get(type(v), False),
    "among others": lambda v: type(v) in (Tensor, nn.Parameter),
    "subclass": lambda v: issubclass(type(v), Tensor),
    "name": lambda v: type(v).__name__ == "Tensor",
    "words": lambda v: "Tensor" in str(type(v)),
    "a class": lambda v: isinstance(type(v), type) and type(v).__mro__[0] is Tensor,
    "of a size": lambda v: type(v.shape[0]) is int,
    "for one dtype": lambda v: isinstance(v, torch.FloatTensor),
    "for one of several dtypes": lambda v: isinstance(v, OF_ONE_DTYPE),
    "by torch": lambda v: torch.typename(v) == "torch.FloatTensor",
    "a class made meanwhile": lambda v: type("Made", (), {"kind": type(v)}).kind is Tensor,
}
"""What the code of a function asks that computes nothing where the answer is no."""


@pytest.mark.parametrize("inputs", [X, None], ids=["with inputs", "without"])
@pytest.mark.parametrize("asks", HELPERS.values(), ids=HELPERS)
def test_a_function_that_asks_for_the_type_of_a_value_gets_it(asks: Callable[[Any], bool], inputs: Tensor | None):
    """It was told the class of what stands for the value, in silence. Types of one dtype ended the process."""

    def doubled(x: Tensor) -> Tensor:
        return 2 * x if asks(x) else x

    model = layers(lambda m, x: m.norm(doubled(m.conv(x))))
    try:
        fused = reparamkit.fuse(model, inputs)
    except CaptureError:
        return
    assert error(run(fused, X), run(model, X)) <= 1e-5


class Same(nn.Module):
    """Goes by whether its two arguments are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4, 1), norm(4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out * 2 if x is y else out + y


@pytest.mark.parametrize("given", [(X, X), (X, X.clone()), None], ids=["one", "two", "without inputs"])
def test_two_arguments_may_be_one(given: tuple[Tensor, Tensor] | None):
    """A trace sees two, whatever is given."""
    model = build(Same)
    try:
        fused = reparamkit.fuse(model, given)
    except CaptureError:
        return
    for x in ((X, X), (X, X + 1)):
        with torch.no_grad():
            assert error(fused(*x), model(*x)) <= 1e-5


LENGTHS: dict[str, Body] = {
    "a view": lambda m, y: y.view(len(y), 4 * 64),
    "an order": lambda m, y: y[len(y) - 1],
    "a mean": lambda m, y: y.sum(0) / len(y),
    "a constant": lambda m, y: y.flatten(1) + torch.arange(len(y))[:, None],
    "parts": lambda m, y: torch.cat(y.split(len(y))),
    "copies": lambda m, y: y.flatten(1) + torch.ones(1).expand(len(y), -1),
    "a factor": lambda m, y: y * math.sqrt(len(y)),
}


@pytest.mark.parametrize("inputs", [X, None], ids=["with inputs", "without"])
@pytest.mark.parametrize("body", LENGTHS.values(), ids=LENGTHS)
def test_the_length_of_a_value_is_a_size_like_others(body: Body, inputs: Tensor | None):
    """Python has it as a number, which would hold for one batch only."""
    model = layers(lambda m, x: body(m, both(m, x)))
    fused = reparamkit.fuse(model, inputs)
    assert "norm" not in operations(fused, X)
    for batch in (1, 2, 5):
        x = sample((batch, 4, 8, 8), torch.float32)
        assert error(run(fused, x), run(model, x)) <= 1e-5


def test_the_names_of_a_model_s_code_are_as_they_were():
    reparamkit.fuse(layers(both), X)
    assert {"type", "len"}.isdisjoint(globals())


def checked(m: Any, x: Tensor) -> Tensor:
    if x.dim() != 4 or x.shape[1] != 4:
        raise ValueError(f"maps of 4 channels, not {x.shape}")
    out = both(m, x)
    if x.shape[-1] < 2:
        raise ValueError("small")
    return out


def checked_numbers(m: Any, x: Tensor) -> Tensor:
    out = both(m, x)
    if not torch.isfinite(out).all():
        raise ValueError("not finite")
    return out


@pytest.mark.parametrize("body", [checked, checked_numbers])
@pytest.mark.parametrize("inputs", [X, None], ids=["with inputs", "without"])
def test_a_check_that_only_raises_is_no_branch(body: Body, inputs: Tensor | None):
    """Without inputs the sizes, and always the numbers, are not known, but there is one way to go on."""
    model = layers(body)
    fused = reparamkit.fuse(model, inputs)
    assert "norm" not in operations(fused, X)
    for shape in ((1, 4, 5, 3), (3, 4, 2, 2)):
        x = sample(shape, torch.float32)
        assert error(run(fused, x), run(model, x)) <= 1e-5
    bad = X[..., :1] if body is checked else X * torch.inf
    for one in (model, fused):
        with torch.no_grad(), pytest.raises((ValueError, GuardError)):
            one(bad)
