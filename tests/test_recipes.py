"""A recipe turns any other weights of the model into weights of the fused model, without fusing again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from structures import (
    STRUCTURES,
    Net,
    Structure,
    build,
    conv,
    conv_norm,
    each,
    error,
    fused_once,
    norm,
    randomize,
    run,
    sample,
    seq,
    wide,
)
from torch import Tensor, nn

import reparamkit
from reparamkit import InvalidInputError, Recipe, RecipeError
from reparamkit.recipes import files
from reparamkit.recipes.operations import OPERATIONS

X = sample((2, 3, 12, 10), torch.float32)
Weights = dict[str, Tensor]


def other_weights(model: nn.Module) -> nn.Module:
    """The model with other random numbers everywhere."""
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return randomize(made, seed=7)


@cache
def net_and_fused() -> tuple[Net, nn.Module]:
    net = build(Net)
    return net, reparamkit.fuse(net, X)


@pytest.fixture
def pair() -> tuple[Net, nn.Module]:
    """A net and its fused copy, private to the test."""
    return copy.deepcopy(net_and_fused())


def weights(seed: int = 3) -> Weights:
    """Weights of a net with other numbers."""
    return randomize(other_weights(net_and_fused()[0]), seed).state_dict()


class Neighbours(nn.Module):
    """A graph convolution: its sparse matrix is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 5), nn.BatchNorm1d(5)
        self.register_buffer("adjacency", torch.tensor([[0.0, 2.0], [1.0, 0.0]]).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(torch.sparse.mm(self.adjacency, x)))


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("example", [torch.randn(2, 3), None], ids=["with inputs", "without inputs"])
def test_a_sparse_buffer_is_copied(example: Tensor | None):
    net = build(Neighbours)
    fused, other, x = reparamkit.fuse(net, example), other_weights(net), torch.randn(2, 3)
    assert len(reparamkit.report(fused).merges) == 1
    assert error(run(fused, x), run(net, x)) <= 1e-6
    fused.load_state_dict(reparamkit.convert_state_dict(fused, other.state_dict()))
    assert error(run(fused, x), run(other, x)) <= 1e-6


# --- what is computed -------------------------------------------------------------------------------


COMPARED = ("a border that is the norm of zero", "a border that is the bias")
"""Structures where two numbers must agree, which they do for all weights."""
DECIDED = ("slopes of 1",)
"""Structures that merge for some weights only."""


@each(*(case for case in STRUCTURES if case.name not in DECIDED))
def test_a_recipe_gives_what_fuse_gives(case: Structure):
    """For other weights the recipe, from JSON, gives the numbers that `fuse` gives, and the outputs of the model; for
    its own weights bit for bit.
    """
    model, fused, own, *_ = copy.deepcopy(fused_once(case))
    recipe = Recipe.from_json(reparamkit.recipe(fused).to_json())
    again = reparamkit.convert_state_dict(recipe, own)
    assert all(torch.equal(again[name], tensor) for name, tensor in fused.state_dict().items())
    assert again.keys() == fused.state_dict().keys()
    other = other_weights(model)
    fused.load_state_dict(reparamkit.convert_state_dict(recipe, other.state_dict()), strict=True)
    afresh = reparamkit.fuse(other, sample(case.shapes[0], torch.float32), objective=case.objective)
    for shape in case.shapes:
        x = sample(shape, torch.float32)
        assert error(run(fused, x), run(wide(other), x.double())) <= 1e-5
        assert error(run(fused, x), run(afresh, x)) <= 1e-6


def test_a_recipe_is_a_value(pair: tuple[Net, nn.Module]):
    """JSON and back is the same recipe; a copied or pickled fused model keeps it; its text counts."""
    recipe = reparamkit.recipe(pair[1])
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert reparamkit.recipe(copy.deepcopy(pair[1])) == recipe
    assert str(recipe).startswith(f"recipe for Net: {len(pair[0].state_dict())} tensors -> ")
    assert recipe.inputs.keys() == pair[0].state_dict().keys()
    assert recipe.outputs.keys() == pair[1].state_dict().keys()


def test_a_fused_model_does_for_its_recipe(pair: tuple[Net, nn.Module]):
    found = reparamkit.convert_state_dict(pair[1], weights())
    wanted = reparamkit.convert_state_dict(reparamkit.recipe(pair[1]), weights())
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_in_place_and_as_graph():
    """The recipe of a model that was fused in place, or to a graph."""
    other = other_weights(build(Net))
    for options in ({"inplace": True}, {"as_graph": True}):
        fused = reparamkit.fuse(build(Net), X, **options)
        fused.load_state_dict(reparamkit.convert_state_dict(fused, other.state_dict()))
        assert error(run(fused, X), run(other, X)) <= 1e-5


def test_fused_twice():
    """The recipe of a second fusion takes weights of the first; together they take those of the original."""
    model, other = build(Net), other_weights(build(Net))
    first = reparamkit.fuse(model, X, without=["parallel_sum"])
    second = reparamkit.fuse(first, X)
    assert reparamkit.report(second).merges
    between = reparamkit.convert_state_dict(first, other.state_dict())
    second.load_state_dict(reparamkit.convert_state_dict(second, between))
    assert error(run(second, X), run(other, X)) <= 1e-5


def test_converted_weights_are_nobody_elses(pair: tuple[Net, nn.Module]):
    """Layers that were not merged do not share memory with the checkpoint."""
    state = weights()
    before = copy.deepcopy(state)
    for tensor in reparamkit.convert_state_dict(pair[1], state).values():
        tensor.zero_()
    assert all(torch.equal(state[name], before[name]) for name in state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_checkpoints_of_another_dtype(pair: tuple[Net, nn.Module], dtype: torch.dtype):
    """They are cast as `load_state_dict` casts them."""
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in weights().items()}
    pair[0].load_state_dict(state)
    pair[1].load_state_dict(reparamkit.convert_state_dict(pair[1], state))
    assert error(run(pair[1], X), run(pair[0], X)) <= 1e-5


def test_weights_in_channels_last_memory():
    """A merged weight has the order in memory of those before, and that of a checkpoint changes nothing."""
    model, other = build(Net).to(memory_format=torch.channels_last), other_weights(build(Net))
    fused = reparamkit.fuse(model, X)
    maps = [parameter for parameter in fused.parameters() if parameter.dim() == 4]
    assert all(parameter.is_contiguous(memory_format=torch.channels_last) for parameter in maps)
    for given in (other, copy.deepcopy(other).to(memory_format=torch.channels_last)):
        fused.load_state_dict(reparamkit.convert_state_dict(fused, given.state_dict()))
        assert error(run(fused, X), run(other, X)) <= 1e-5


# --- decisions that depend on numbers ---------------------------------------------------------------


class Leaky(nn.Module):
    """Multiplies; a reader of the tests looks at the factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((4,), factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor[:, None, None]


def _looks_with_item(layer: Leaky, input: Any) -> Any:
    return input if bool((layer.factor == 1).all()) else reparamkit.scale(input, layer.factor.double())


def _looks_with_tolist(layer: Leaky, input: Any) -> Any:
    return input if layer.factor.detach().tolist() == [1.0] * 4 else reparamkit.scale(input, layer.factor.double())


def _looks_with_numpy(layer: Leaky, input: Any) -> Any:
    return input if layer.factor.detach().numpy().max() == 1 else reparamkit.scale(input, layer.factor.double())


def _looks_with_nonzero(layer: Leaky, input: Any) -> Any:
    ones = len((layer.factor - 1).nonzero()) == 0
    return input if ones else reparamkit.scale(input, layer.factor.double())


def _looks_with_a_mask(layer: Leaky, input: Any) -> Any:
    ones = layer.factor[layer.factor == 1].numel() == 4
    return input if ones else reparamkit.scale(input, layer.factor.double())


LOOKS = (_looks_with_item, _looks_with_tolist, _looks_with_numpy, _looks_with_nonzero, _looks_with_a_mask)


@pytest.mark.parametrize("look", LOOKS)
def test_decisions_are_checked_again(look: Callable[..., Any]):
    """A reader that left out a factor of exactly 1 left it out of the recipe too: another factor is refused."""
    with reparamkit.reader.__self__.restored():
        reparamkit.reader(Leaky)(look)
        ones = _set_to_one(build(lambda: seq(conv(3, 4), Leaky(1.0), norm(4))))
        fused = reparamkit.fuse(ones, X)
    recipe = Recipe.from_json(reparamkit.recipe(fused).to_json())
    same, other = other_weights(ones), other_weights(ones)
    _set_to_one(same)
    fused.load_state_dict(reparamkit.convert_state_dict(recipe, same.state_dict()))
    assert error(run(fused, X), run(same, X)) <= 1e-5
    with pytest.raises(RecipeError, match=r"'1\.factor'.*others there"):
        reparamkit.convert_state_dict(recipe, other.state_dict())


def _set_to_one(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model[1].factor.fill_(1.0)
    return model


class Deciding(nn.Module):
    """Code of the model itself goes by a parameter."""

    def __init__(self, decide: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norms = conv(3, 4), nn.ModuleList([norm(4), norm(4)])
        self.decide, self.gate = decide, nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[1 if self.decide(self.gate) else 0](self.conv(x))


DECIDES: dict[str, Callable[[Tensor], Any]] = {
    "a comparison": lambda gate: gate > 0,
    "a number": lambda gate: 0 < gate.item() < 1,
    "all of them": lambda gate: (gate > 0).all(),
    "an index": lambda gate: torch.cat([gate, -gate]).argmax() == 0,
    "max": lambda gate: max(gate.item(), 0.1) > 0.2,
}


class Masked(nn.Module):
    """Some channels of a convolution, named by a mask in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 4), norm(2)
        self.register_buffer("kept", torch.tensor([True, False, True, False]))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)[:, self.kept])


def test_a_mask_is_a_decision():
    """Weights with another mask, which names as many positions, are refused."""
    model = build(Masked)
    fused = reparamkit.fuse(model, X)
    same = other_weights(model)
    fused.load_state_dict(reparamkit.convert_state_dict(fused, same.state_dict()))
    assert error(run(fused, X), run(same, X)) <= 1e-5
    same.kept.logical_not_()
    with pytest.raises(RecipeError, match=r"'kept'.*others there"):
        reparamkit.convert_state_dict(fused, same.state_dict())


@pytest.mark.parametrize("inputs", [X, None], ids=["with inputs", "without"])
@pytest.mark.parametrize("decide", DECIDES)
def test_what_code_decided_is_decided_again(decide: str, inputs: Tensor | None):
    """Weights for which the forward takes another branch were converted, to a model that takes this one."""
    model = build(lambda: Deciding(DECIDES[decide]))
    model.gate.data.fill_(0.5)
    fused = reparamkit.fuse(model, inputs)
    for gate in (0.7, -0.5):
        other = other_weights(model)
        other.gate.data.fill_(gate)
        if gate > 0:
            fused.load_state_dict(reparamkit.convert_state_dict(fused, other.state_dict()))
            assert error(run(fused, X), run(other, X)) <= 1e-5
        else:
            with pytest.raises(RecipeError, match=r"'gate'.*others there"):
                reparamkit.convert_state_dict(fused, other.state_dict())


@pytest.mark.parametrize("inputs", [X, None], ids=["with inputs", "without"])
def test_a_decision_by_numbers_that_code_makes_has_no_recipe(inputs: Tensor | None):
    """A branch by a parameter and a tensor that the forward makes beside it: fusing such a model raised an error."""
    model = build(lambda: Deciding(lambda gate: (gate * torch.ones(1)).sum() > 0))
    model.gate.data.fill_(0.5)
    fused = reparamkit.fuse(model, inputs)
    assert len(reparamkit.report(fused).merges) == 1
    assert error(run(fused, X), run(model, X)) <= 1e-5
    with pytest.raises(RecipeError, match="unknown origin"):
        reparamkit.convert_state_dict(fused, other_weights(model).state_dict())


@each(*(case for case in STRUCTURES if case.name in DECIDED))
def test_what_merges_for_some_weights_only(case: Structure):
    """Its own weights are converted, others are refused."""
    model, fused, *_ = fused_once(case)
    own = reparamkit.convert_state_dict(fused, model.state_dict())
    assert all(torch.equal(own[name], tensor) for name, tensor in fused.state_dict().items())
    with pytest.raises(RecipeError, match="depends on numbers"):
        reparamkit.convert_state_dict(fused, other_weights(model).state_dict())


@each(*(case for case in STRUCTURES if case.name in COMPARED))
def test_what_was_compared_is_compared_again(case: Structure):
    """A border that equals a bias is a comparison that the recipe repeats."""
    recipe = reparamkit.recipe(fused_once(case).fused)
    assert recipe.tests
    assert all(isinstance(test.expected, bool) for test in recipe.tests)


def _by_numpy(layer: Leaky, input: Any) -> Any:
    """Numbers that no operation made of the parameter."""
    return reparamkit.scale(input, torch.from_numpy(layer.factor.detach().numpy().astype("float64")))


def _by_list(layer: Leaky, input: Any) -> Any:
    return reparamkit.scale(input, torch.tensor(layer.factor.tolist(), dtype=torch.float64))


def _by_deepcopy(layer: Leaky, input: Any) -> Any:
    return reparamkit.scale(input, copy.deepcopy(layer.factor.detach()).double())


def _by_item(layer: Leaky, input: Any) -> Any:
    return reparamkit.scale(input, torch.full((4,), float(layer.factor[0]), dtype=torch.float64))


@pytest.mark.parametrize("reader", [_by_numpy, _by_list, _by_deepcopy, _by_item])
def test_numbers_that_cannot_be_followed(reader: Callable[..., Any]):
    """A merge that used them is fused all the same; no other checkpoint gets the old numbers."""
    with reparamkit.reader.__self__.restored():
        reparamkit.reader(Leaky)(reader)
        model = seq(conv(3, 4), Leaky(1.5)).eval()
        fused = reparamkit.fuse(model, X)
    assert reparamkit.report(fused).merges
    with pytest.raises(RecipeError, match=r"no recipe for '0.weight'|depends on numbers in '1.factor'"):
        reparamkit.convert_state_dict(fused, other_weights(model).state_dict())


def test_a_model_without_a_recipe_says_why():
    with reparamkit.reader.__self__.restored():
        reparamkit.reader(Leaky)(_by_deepcopy)
        fused = reparamkit.fuse(seq(conv(3, 4), Leaky(1.5)).eval(), X)
    for function in (reparamkit.recipe, lambda model: reparamkit.convert_state_dict(model, {})):
        with pytest.raises(RecipeError, match=r"no recipe for '0\.weight'"):
            function(fused)


class Found(nn.Module):
    """A block to merge; its parent also computes with the weights of another layer, of which it gets hold somehow."""

    def __init__(self, found: Callable[[Any], Any]) -> None:
        super().__init__()
        self.a, self.b, self.other, self.found = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 1),
            nn.Linear(4, 4),
            found,
        )
        self.row, self.box = [self.other.bias], SimpleNamespace(weight=self.other.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x) + self.b(x)) + sum(each.sum() for each in self.found(self))


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("as_graph", [True, False], ids=["graph", "module"])
@pytest.mark.parametrize(
    "found",
    [
        lambda self: self.other.parameters(),
        lambda self: self.other.state_dict().values(),
        lambda self: self.other._parameters.values(),
        lambda self: vars(self.other)["_parameters"].values(),
        lambda self: [each.data for each in self.row],
        lambda self: [self.box.weight.t()],
    ],
    ids=["parameters", "state dict", "table", "vars", "list", "object"],
)
def test_parameters_that_code_finds_elsewhere_are_no_constants(
    found: Callable[[Any], Any], as_graph: bool, trained: bool
):
    model = build(lambda: Found(found)).requires_grad_(trained)
    x = sample((2, 4, 8, 8), torch.float32)
    fused, others = reparamkit.fuse(model, x, as_graph=as_graph), other_weights(model)
    assert error(run(fused, x), run(model, x)) <= 1e-5
    fused.load_state_dict(reparamkit.convert_state_dict(fused, others.state_dict()))
    assert error(run(fused, x), run(others, x)) <= 1e-5


def test_constants_of_the_model_are_in_the_recipe():
    """Buffers that are not saved and numbers in the code are the same for every checkpoint."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(3, 4), norm(4)
            self.register_buffer("mask", (torch.arange(9).reshape(3, 3) % 2).float(), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.conv.weight * self.mask * torch.tensor([0.5, 2.0, 3.0])[:, None, None]
            return self.norm(nn.functional.conv2d(x, weight, self.conv.bias, padding=1))

    model = build(Masked)
    other = other_weights(model)
    fused = reparamkit.fuse(model, X)
    assert reparamkit.report(fused).merges
    fused.load_state_dict(
        reparamkit.convert_state_dict(Recipe.from_json(reparamkit.recipe(fused).to_json()), other.state_dict())
    )
    assert error(run(fused, X), run(other, X)) <= 1e-5


# --- checkpoints that do not fit --------------------------------------------------------------------


def _without(name: str) -> Callable[[Weights], Weights]:
    return lambda state: {n: t for n, t in state.items() if n != name}


def _with(name: str, change: Callable[[Tensor], Any]) -> Callable[[Weights], Weights]:
    return lambda state: {**state, name: change(state[name])}


FIRST, FIRST_NORM = "stem.0.0.weight", "stem.0.1.running_var"
BAD: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "a name is missing": (_without(FIRST_NORM), f"lacks '{FIRST_NORM}'"),
    "a name too many": (lambda s: {**s, "extra": torch.ones(1)}, "has 'extra', which the model did not have"),
    "wrapped": (lambda s: {f"module.{n}": t for n, t in s.items()}, "has 'module"),
    "another shape": (_with(FIRST, lambda t: t[:1]), f"'{FIRST}' has shape"),
    "another rank": (_with(FIRST_NORM, lambda t: t[None]), f"'{FIRST_NORM}' has shape"),
    "no tensor": (_with(FIRST, lambda t: "weights"), f"lacks '{FIRST}'"),
    "complex numbers": (_with(FIRST, lambda t: t + 1j), f"'{FIRST}' is of torch.complex64, and was of torch.float32"),
    "quantised to bytes": (_with(FIRST, lambda t: (t * 100).to(torch.int8)), "numbers of another kind"),
    "NaN": (_with(FIRST_NORM, lambda t: t * torch.nan), f"'{FIRST_NORM}' is merged, and has infinite"),
    "overflow": (_with(FIRST, lambda t: t * 0 + 3e38), "overflows float32"),
    "empty": (lambda s: {}, "lacks"),
    "no checkpoint": (lambda s: [*s], "dict of tensors or a path"),
    "fused already": (lambda s: net_and_fused()[1].state_dict(), "one of the fused model already"),
}


def test_names_of_the_tests():
    assert {FIRST, FIRST_NORM} <= net_and_fused()[0].state_dict().keys()


@pytest.mark.parametrize(("damage", "message"), BAD.values(), ids=BAD)
def test_checkpoints_that_do_not_fit_are_refused(damage: Callable[[Weights], Any], message: str, tmp_path: Path):
    with pytest.raises(RecipeError, match=message):
        reparamkit.convert_state_dict(net_and_fused()[1], damage(weights()))
    with pytest.raises(RecipeError, match=message):
        reparamkit.convert_state_dict(net_and_fused()[1], damage(weights()), tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_needed_may_be_anything():
    """A counter that no layer reads may be missing, and tensors that are only copied may be infinite."""
    model = build(lambda: seq(conv_norm(3, 4), nn.PReLU()))
    fused = reparamkit.fuse(model, X)
    state = {**other_weights(model).state_dict(), "1.weight": torch.tensor([float("nan")])}
    del state["0.1.num_batches_tracked"]
    assert reparamkit.convert_state_dict(fused, state)["1.weight"].isnan().all()


def test_tied_tensors():
    """One tensor of two names may be in the checkpoint once or twice, but not with different numbers."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), conv_norm(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    model = build(Tied)
    fused, state = reparamkit.fuse(model, X), other_weights(model).state_dict()
    assert reparamkit.recipe(fused).inputs["b.weight"].tied == "a.weight"
    wanted = reparamkit.convert_state_dict(fused, state)
    for name in ("a.weight", "b.weight"):
        found = reparamkit.convert_state_dict(fused, _without(name)(state))
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    with pytest.raises(RecipeError, match="are one tensor"):
        reparamkit.convert_state_dict(fused, {**state, "b.weight": state["a.weight"] + 1})


def test_only_a_fused_model_has_a_recipe():
    for function in (reparamkit.recipe, lambda m: reparamkit.convert_state_dict(m, {})):
        with pytest.raises(InvalidInputError, match=r"reparamkit\.fuse"):
            function(build(Net))


# --- recipes that are not ours ----------------------------------------------------------------------


def _edited(change: Callable[[dict[str, Any]], Any]) -> str:
    data = json.loads(reparamkit.recipe(net_and_fused()[1]).to_json())
    change(data)
    return json.dumps(data)


def _steps(data: dict[str, Any]) -> list[Any]:
    return (
        data["outputs"]["stem.0.weight"]["program"]["steps"]
        if "stem.0.weight" in data["outputs"]
        else next(o["program"]["steps"] for o in data["outputs"].values() if len(o["program"]["steps"]) > 1)
    )


MALFORMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another schema": lambda d: d.update(schema="report"),
    "a newer version": lambda d: d.update(version=2),
    "no outputs": lambda d: d.pop("outputs"),
    "outputs are a list": lambda d: d.update(outputs=[1]),
    "code": lambda d: _steps(d)[1].__setitem__(0, "__import__"),
    "a method": lambda d: _steps(d)[1].__setitem__(0, "save.default"),
    "reads a file": lambda d: _steps(d)[1].__setitem__(0, "from_file.default"),
    "a step is a number": lambda d: _steps(d).__setitem__(1, 3),
    "a value that is not made": lambda d: _steps(d)[1].__setitem__(1, [{"tensor": 10**6}]),
    "a value that is no number": lambda d: _steps(d)[1].__setitem__(1, [{"tensor": "x"}]),
    "a list for a value": lambda d: _steps(d)[1].__setitem__(1, [{"tensor": []}]),
    "no input name": lambda d: _steps(d)[0].__setitem__(1, []),
    "made is text": lambda d: _steps(d)[0].__setitem__(3, "0"),
    "an order that is none": lambda d: d["inputs"][FIRST].update(order=[0, 0, 1, 2]),
    "a shape of text": lambda d: d["inputs"][FIRST].update(shape="4"),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_malformed_recipes_are_refused(change: Callable[[dict[str, Any]], Any]):
    with pytest.raises(RecipeError):
        Recipe.from_json(_edited(change))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, '{"schema": NaN}'])
def test_other_texts_are_no_recipes(text: str):
    with pytest.raises(RecipeError):
        Recipe.from_json(text)


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an argument that is none": lambda d: _steps(d)[1].__setitem__(1, [{"tensor": 0}, "text", {"dtype": 3}]),
    "an argument of a kind that is none": lambda d: _steps(d)[1].__setitem__(1, [{"module": "os"}]),
    "a dtype that is none": lambda d: d["inputs"][FIRST].update(dtype="save"),
    "an absurd size": lambda d: _steps(d).__setitem__(1, ["ones.default", [[2**60]], {}, [1]]),
    "an input that is none": lambda d: _steps(d)[0].__setitem__(1, ["no.such.name"]),
    "another result": lambda d: [o["program"].update(result=0) for o in d["outputs"].values()],
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_recipes_that_fail_are_refused(change: Callable[[dict[str, Any]], Any]):
    """What cannot be seen from the recipe alone is an error of ours when it is used."""
    with pytest.raises(RecipeError):
        reparamkit.convert_state_dict(Recipe.from_json(_edited(change)), weights())


def test_the_table_has_numbers_only():
    """No operation of the table draws random numbers, or reads files or memory that nobody wrote."""
    assert not {
        name for name in OPERATIONS if any(w in name for w in ("rand", "file", "empty", "set_", "resize", "strided"))
    }
    for name, function in OPERATIONS.items():
        if "." in name:
            assert torch.Tag.nondeterministic_seeded not in function.tags


# --- files ------------------------------------------------------------------------------------------


def _saved(state: Weights, folder: Path) -> Path:
    """A checkpoint in three files."""
    names = sorted(state)
    parts = {f"model-{k}.safetensors": names[k::3] for k in range(3)}
    for file, part in parts.items():
        save_file({name: state[name].contiguous() for name in part}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}))
    return index


def test_a_file_gives_what_the_dict_gives(pair: tuple[Net, nn.Module], tmp_path: Path):
    """A file gives what the dict gives, also as a file, which safetensors reads."""
    wanted = reparamkit.convert_state_dict(pair[1], weights())
    save_file(weights(), tmp_path / "in.safetensors")
    found = reparamkit.convert_state_dict(pair[1], tmp_path / "in.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (
        reparamkit.convert_state_dict(pair[1], str(tmp_path / "in.safetensors"), tmp_path / "out.safetensors") is None
    )
    loaded = load_file(tmp_path / "out.safetensors")
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_numbers_of_all_sizes_in_one_file(tmp_path: Path):
    """Buffers of one byte, of two and of eight lie beside weights of four."""
    model = build(lambda: seq(conv_norm(3, 4), nn.ReLU()))
    for name, dtype in (("f", torch.bool), ("h", torch.bfloat16), ("w", torch.float64), ("s", torch.int8)):
        model.register_buffer(name, torch.tensor([1, 0, 1]).to(dtype))
    fused = reparamkit.fuse(model, X)
    reparamkit.convert_state_dict(fused, model.state_dict(), tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == fused.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in fused.state_dict().items())


def test_an_index_gives_an_index_of_as_many_files(pair: tuple[Net, nn.Module], tmp_path: Path):
    """An index of several files gives an index of as many, each with a part."""
    wanted = reparamkit.convert_state_dict(pair[1], weights())
    index = _saved(weights(), tmp_path)
    (tmp_path / "out").mkdir()
    reparamkit.convert_state_dict(pair[1], index, tmp_path / "out" / "fused.safetensors.index.json")
    made = json.loads((tmp_path / "out" / "fused.safetensors.index.json").read_text())
    assert set(made["weight_map"].values()) == {f"fused-{k:05}-of-00003.safetensors" for k in (1, 2, 3)}
    assert made["metadata"]["total_size"] == sum(t.nbytes for t in wanted.values())
    for name, file in made["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "out" / file)[name], wanted[name])
    again = files.source(tmp_path / "out" / "fused.safetensors.index.json")
    assert again.names() == wanted.keys()


def test_an_index_may_take_the_place_of_the_one_that_is_read(
    pair: tuple[Net, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The files that are read have the names of those that are written: none is replaced before all are made, and if
    that fails, all are as they were.
    """
    index, state, wanted = tmp_path / "in.json", weights(), reparamkit.convert_state_dict(pair[1], weights())
    names = sorted(state)
    parts = {f"in-{k:05}-of-00003.safetensors": names[k - 1 :: 3] for k in (1, 2, 3)}
    for file, part in parts.items():
        save_file({name: state[name].contiguous() for name in part}, tmp_path / file)
    index.write_text(json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    left, written = list(wanted)[1:], files.raw
    monkeypatch.setattr(files, "raw", lambda tensor: left.pop() and written(tensor))
    with pytest.raises(IndexError):
        reparamkit.convert_state_dict(pair[1], index, index)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    reparamkit.convert_state_dict(pair[1], index, index)
    assert set(tmp_path.iterdir()) == before.keys()
    made = json.loads(index.read_text())["weight_map"]
    assert made.keys() == wanted.keys()
    assert all(torch.equal(load_file(tmp_path / file)[name], wanted[name]) for name, file in made.items())


def test_tensors_are_written_one_by_one(pair: tuple[Net, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No two tensors of the fused model are held at once."""
    alive: list[Any] = []
    written = files.raw

    def counted(tensor: Tensor) -> memoryview:
        storage = tensor.untyped_storage()
        assert not [s for s in alive if s() is not None]
        alive[:] = [torch.multiprocessing.reductions.StorageWeakRef(storage)]
        alive[:] = [_Alive(alive[0])]
        return written(tensor)

    monkeypatch.setattr(files, "raw", counted)
    reparamkit.convert_state_dict(pair[1], weights(), tmp_path / "out.safetensors")
    assert alive


class _Alive:
    """Whether a storage is still held."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def __call__(self) -> Any:
        return None if self.reference.expired() else self


@pytest.mark.parametrize(
    "file", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", 3, "c:\\x.safetensors"]
)
def test_an_index_names_files_beside_it(file: Any, tmp_path: Path):
    save_file(weights(), tmp_path / "secret.safetensors")
    (tmp_path / "folder").mkdir()
    index = tmp_path / "folder" / "index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights(), file)}))
    with pytest.raises(RecipeError, match="beside it"):
        reparamkit.convert_state_dict(net_and_fused()[1], index)


def test_other_files_are_refused(tmp_path: Path):
    """Pickles are not opened; what is no safetensors file or index is named."""
    torch.save(weights(), tmp_path / "weights.pt")
    (tmp_path / "text.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "gone.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    save_file({"b": torch.ones(1)}, tmp_path / "held.safetensors")
    (tmp_path / "wrong.json").write_text(json.dumps({"weight_map": {"a": "held.safetensors"}}))
    for path in [tmp_path, tmp_path / "none.safetensors", *sorted(tmp_path.iterdir())]:
        with pytest.raises(RecipeError):
            reparamkit.convert_state_dict(net_and_fused()[1], path)


@pytest.mark.parametrize("target", ["out.pt", "no/out.safetensors"])
def test_targets_that_cannot_be_written(target: str, tmp_path: Path):
    with pytest.raises(RecipeError):
        reparamkit.convert_state_dict(net_and_fused()[1], weights(), tmp_path / target)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_target(tmp_path: Path):
    (tmp_path / "out.safetensors").mkdir()
    with pytest.raises(RecipeError, match="that is a folder"):
        reparamkit.convert_state_dict(net_and_fused()[1], weights(), tmp_path / "out.safetensors")
    with pytest.raises(RecipeError, match="found int"):
        reparamkit.convert_state_dict(net_and_fused()[1], weights(), 3)
    assert list((tmp_path / "out.safetensors").iterdir()) == []
    assert len(list(tmp_path.iterdir())) == 1


# --- loading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_the_original_are_refused(pair: tuple[Net, nn.Module], strict: bool):
    """The error names the function to call, before anything is loaded; also in a larger model and in a copy."""
    _, fused = pair
    before = copy.deepcopy(fused.state_dict())
    for model, prefix in ((fused, ""), (copy.deepcopy(fused), ""), (seq(fused), "0.")):
        state = {f"{prefix}{name}": tensor for name, tensor in weights().items()}
        with pytest.raises(RecipeError, match="convert_state_dict"):
            model.load_state_dict(state, strict=strict)
    assert all(torch.equal(before[name], tensor) for name, tensor in fused.state_dict().items())


def test_weights_of_a_part_of_the_original_are_refused(pair: tuple[Net, nn.Module]):
    """Not strictly, they were loaded: the layers that have the names of merged ones got weights without the norms."""
    model, fused = pair
    for path in ("stem", "head", "blocks"):
        with pytest.raises(RecipeError, match=f"'{path}' is one"):
            fused.get_submodule(path).load_state_dict(model.get_submodule(path).state_dict(), strict=False)


def test_weights_of_what_was_put_in_a_place_again_load(pair: tuple[Net, nn.Module]):
    model, fused = pair
    fused.head = copy.deepcopy(model.head)
    copy.deepcopy(fused).load_state_dict(fused.state_dict())


def test_weights_of_a_fused_model_load_into_a_freshly_fused_one(pair: tuple[Net, nn.Module]):
    other = other_weights(pair[0])
    fresh = reparamkit.fuse(other, X)
    pair[1].load_state_dict(fresh.state_dict())
    assert error(run(pair[1], X), run(other, X)) <= 1e-6


# --- real models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "fastvit_t8"])
def test_models_of_timm(name: str, tmp_path: Path):
    """Trained weights are converted in the file, without the model."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = randomize(timm.create_model(name, num_classes=7))
    x = sample((2, 3, 64, 64), torch.float32)
    fused = reparamkit.fuse(model, x)
    other = randomize(copy.deepcopy(model), seed=7)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape))
    save_file(other.state_dict(), tmp_path / "in.safetensors")
    reparamkit.convert_state_dict(fused, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    fused.load_state_dict(load_file(tmp_path / "out.safetensors"), strict=True)
    assert error(run(fused, x), run(other, x)) <= 1e-4


class Caching(nn.Module):
    """Keeps what it computes of a parameter, per device."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(4, 4), conv_norm(4, 4, 1)
        self.table, self.cache = nn.Parameter(torch.randn(4)), dict[str, Tensor]()

    def bias(self, device: str) -> Tensor:
        """shape (4, 1, 1)."""
        if device not in self.cache:
            self.cache[device] = self.table[[1, 0, 3, 2]].sigmoid()[:, None, None]
        return self.cache[device]

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) + self.b(x)).relu() * self.bias(str(x.device))


@pytest.mark.parametrize("before", [False, True], ids=["new", "used before"])
def test_a_cache_of_what_follows_from_parameters_is_no_constant(before: bool):
    """Its numbers are those of the first checkpoint: with others, loaded or converted, they are computed anew."""
    x, model, other = sample((2, 4, 6, 6), torch.float32), build(Caching), other_weights(build(Caching))
    if before:
        run(model, x)
    fused, wanted = reparamkit.fuse(model, x), run(other, x)
    loaded = copy.deepcopy(fused)
    loaded.load_state_dict(reparamkit.convert_state_dict(fused, other.state_dict()))
    assert error(run(loaded, x), wanted) <= 1e-5
    fused.load_state_dict(reparamkit.fuse(other, x).state_dict())
    assert error(run(fused, x), wanted) <= 1e-5
    assert bool(model.cache) == before


class CachingOnce(Caching):
    """Keeps it for all devices."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) + self.b(x)).relu() * self.bias("any")


def test_without_an_example_a_cache_is_a_constant_and_there_is_no_recipe():
    """Without a run nothing tells whether what a dictionary has would be there again."""
    model = build(CachingOnce)
    run(model, sample((2, 4, 6, 6), torch.float32))
    fused = reparamkit.fuse(model)
    with pytest.raises(RecipeError, match="keeps tensors in a dictionary"):
        reparamkit.convert_state_dict(fused, model.state_dict())
