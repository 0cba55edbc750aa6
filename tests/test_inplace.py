"""In place each merge is proved and swapped before the next; a failure leaves a model that computes the same."""

from __future__ import annotations

import gc
import weakref
from itertools import count
from typing import Any

import pytest
import torch
from structures import (
    NEAR_MISSES,
    STRUCTURES,
    Model,
    NearMiss,
    Net,
    Structure,
    Sum,
    build,
    conv,
    conv_norm,
    each,
    error,
    fused_once,
    operations,
    run,
    sample,
    seq,
)
from torch import Tensor, nn
from torch.nn import functional as F

import reparamkit
from reparamkit import garbage, pieces, pipeline
from reparamkit.write import finish, places, write

X = sample((2, 3, 12, 10), torch.float32)


@each(*STRUCTURES, *NEAR_MISSES)
def test_in_place_is_what_a_copy_is(case: Structure | NearMiss):
    """The model has the weights of the fused copy, by the same names, and runs the same operations. Scales that linear
    layers absorb come last in place, so that some numbers are rounded once more.
    """
    x = sample(case.shapes[0], torch.float32)
    _, copied, _, _, wanted = fused_once(case)
    model = build(case.make)
    assert reparamkit.fuse(model, x, objective=case.objective, inplace=True) is model
    assert model.state_dict().keys() == wanted.keys()
    torch.testing.assert_close(model.state_dict(), wanted, rtol=1e-5, atol=1e-6)
    assert operations(model, x) == operations(copied, x)
    mine, theirs = reparamkit.report(model), reparamkit.report(copied)
    assert (mine.before, mine.after) == (theirs.before, theirs.after)


# --- failures ---------------------------------------------------------------------------------------

PLACES: dict[str, tuple[Any, str]] = {
    "proof": (pieces, "check"),
    "numbers": (write, "settle"),
    "place": (finish, "move_layers"),
    "code": (finish, "remove_unread"),
    "removal": (finish, "remove_dead_modules"),
    "swap": (places.Places, "_fill"),
    "splice": (write.Splicer, "commit"),
    "report": (pipeline, "summarize"),
}
ERRORS = (MemoryError, KeyboardInterrupt, ZeroDivisionError)


def failing(monkeypatch: pytest.MonkeyPatch, place: str, number: int, kind: type[BaseException]) -> None:
    """Let the call of this number raise."""
    owner, name = PLACES[place]
    calls, whole = count(), getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise kind("injected")
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def listed(notes: list[str]) -> list[str]:
    """The paths in the note of an error."""
    return [path for note in notes for path in note.partition(": ")[2].partition(";")[0].split(", ")]


@pytest.mark.parametrize("place", PLACES)
def test_a_failure_at_any_site_leaves_the_function(place: str, monkeypatch: pytest.MonkeyPatch):
    """Whichever call fails, and how: the outputs are those of before, and a note lists what is merged."""
    wanted, before = run(build(Net), X), operations(build(Net), X)
    merged = []
    for number in count():
        model, kind = build(Net), ERRORS[number % len(ERRORS)]
        with monkeypatch.context() as patch:
            failing(patch, place, number, kind)
            found = raised(model)
        if found is None:
            break
        assert (type(found), str(found)) == (kind, "injected")
        merged.append(listed(getattr(found, "__notes__", [])))
        assert bool(merged[-1]) == (operations(model, X) != before)
        assert all(type(model.get_submodule(path)) in (nn.Conv2d, nn.Linear) for path in merged[-1])
        assert error(run(model, X), wanted) <= 1e-6
    assert merged[-1]
    assert len(merged[0]) <= len(merged[-1])


def raised(model: nn.Module) -> BaseException | None:
    """What fusing in place raises."""
    try:
        reparamkit.fuse(model, X, inplace=True)
    except ERRORS as error:
        return error
    return None


def test_a_failure_can_be_taken_up_again(monkeypatch: pytest.MonkeyPatch):
    """What a failed run left is a model like any other: fused once more it is as if nothing had happened."""
    model = build(Net)
    with monkeypatch.context() as patch:
        failing(patch, "proof", 2, MemoryError)
        with pytest.raises(MemoryError):
            reparamkit.fuse(model, X, inplace=True)
    fused = reparamkit.fuse(model, X, inplace=True)
    assert operations(fused, X) == operations(reparamkit.fuse(build(Net), X), X)
    assert error(run(fused, X), run(build(Net), X)) <= 1e-6


# --- memory -----------------------------------------------------------------------------------------


def test_old_layers_are_freed_one_by_one(monkeypatch: pytest.MonkeyPatch):
    """When a merge is proved, the weights of all merges before it are gone: what is needed besides the model is one
    merged layer.
    """
    model = build(lambda: seq(*(layer for _ in range(6) for layer in (conv_norm(3, 3), nn.ReLU()))))
    old = [weakref.ref(model[2 * k][0].weight) for k in range(6)]
    proved = count(1)
    whole = pieces.check

    def check(*args: Any) -> float:
        alive = sum(weight() is not None for weight in old)
        assert alive == 7 - next(proved)
        return whole(*args)

    monkeypatch.setattr(pieces, "check", check)
    reparamkit.fuse(model, X, inplace=True)
    assert next(proved) == 7
    assert [weight() for weight in old] == [None] * 6


@pytest.mark.filterwarnings("ignore")
def test_layers_that_merge_again_are_freed_one_by_one(monkeypatch: pytest.MonkeyPatch):
    """Adapters go into their layers, and then the scales of norms: the weights of no more than two merges are there
    beside those of the model.
    """
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, vocab_size=50, use_cache=False)
    options = peft.LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=2, init_lora_weights=False)
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), options).eval()
    whole, beside = pieces.check, list[int]()

    def check(*args: Any) -> float:
        own = {id(parameter) for parameter in model.parameters()}
        there = (each for each in gc.get_objects() if isinstance(each, nn.Parameter) and each.shape == (32, 32))
        beside.append(sum(id(each) not in own and each.device.type == "cpu" for each in there))
        return whole(*args)

    monkeypatch.setattr(pieces, "check", check)
    monkeypatch.setattr(garbage, "LEAST", 0)
    fused = reparamkit.fuse(model, example_kwargs={"input_ids": torch.randint(0, 50, (2, 7))}, inplace=True)
    assert "(merged further)" in [merge.path for merge in reparamkit.report(fused).merges]
    assert max(beside) <= 4


def test_a_graph_leaves_the_model():
    """`as_graph=True` makes another model; with inplace it shares the tensors that it did not merge."""
    model = build(lambda: seq(conv_norm(3, 4), nn.PReLU()))
    graph = reparamkit.fuse(model, X, as_graph=True, inplace=True)
    assert graph is not model
    assert operations(model, X) == "conv norm _prelu_kernel"
    assert error(run(graph, X), run(model, X)) <= 1e-6
    assert graph.state_dict()["1.weight"].data_ptr() == model.state_dict()["1.weight"].data_ptr()


class Unread(nn.Module):
    """A layer that computes for nothing; its weight is arithmetic that would be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(conv(4, 4))

    def forward(self, x: Tensor) -> None:
        self.layer(x)


def test_a_layer_that_nothing_reads_goes_with_what_is_merged_before_it():
    """It is no merge of its own then."""
    model = build(lambda: Model(lambda m, x: (lambda y: (y, m.b(y))[0])(m.a(x)), a=conv_norm(3, 4), b=Unread()))
    wanted = run(model, X)
    assert error(run(reparamkit.fuse(model, X, inplace=True), X), wanted) <= 1e-6


class Beside(nn.Module):
    """Branches behind a norm, and what it gets besides, for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.norm = nn.Parameter(torch.rand(4, 1, 1)), nn.BatchNorm2d(4)
        self.branches = Sum([conv_norm(4, 4, g=4), seq(conv_norm(4, 4, 1, g=4), nn.AvgPool2d(3, 1, 1))])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y - self.shift
        return self.branches(self.norm(x))


def test_a_scale_that_a_later_merge_absorbs_leaves_code_that_was_written_before():
    """The merge of what is computed for nothing writes the code that calls the norm, which is gone after the next."""
    x = sample((2, 4, 9, 8), torch.float32)
    model = build(lambda: Model(lambda m, x: m.beside(x, m.row(x)), row=conv_norm(4, 4, 1, g=4), beside=Beside()))
    wanted = run(model, x)
    assert error(run(reparamkit.fuse(model, x, inplace=True), x), wanted) <= 1e-6


class Behind(nn.Module):
    """A norm, in code that calls a layer for nothing too."""

    def __init__(self) -> None:
        super().__init__()
        self.unread, self.norm = nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.unread(y)
        return self.norm(x)


def test_what_a_row_leaves_in_the_code_of_a_module_stays_when_only_the_code_around_is_written_again():
    """The module still calls what stands there for its norm: a check of the rank."""

    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.layer(m.behind(x, m.twice(m.twice(x).relu())))
        return y, F.conv1d(y.relu(), torch.cat([m.a.weight, m.b.weight.flip(0)]))

    layers = {name: nn.Conv1d(4, 4, 1) for name in ("twice", "layer", "a", "b")}
    model = build(lambda: Model(forward, behind=Behind(), **layers))
    x = sample((2, 4, 9), torch.float32)
    wanted = run(model, x)
    fused = reparamkit.fuse(model, inplace=True, skip="twice")
    assert len(reparamkit.report(fused).merges) == 2
    assert all(error(a, b) <= 1e-6 for a, b in zip(run(fused, x), wanted, strict=True))


class FeedForward(nn.Module):
    """Layers in a method, behind a norm and beside a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

    def mixed(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(x).relu())  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixed(self.norm(x))


def test_a_method_that_a_merge_before_hid_is_read_for_the_next():
    """Its last layer merged with what comes behind the module: the scale of the norm goes into its first."""
    layers = {"inner": FeedForward(), "out": nn.Linear(8, 2), "last": nn.Linear(2, 1)}
    model, x = build(lambda: Model(lambda m, x: m.last(m.out(m.inner(x))), **layers)), sample((2, 5, 8), torch.float32)
    wanted = run(model, x)
    fused = reparamkit.fuse(model, x, inplace=True)
    assert not hasattr(fused.inner, "mixed")
    assert {"wide" in str(merge.members) for merge in reparamkit.report(fused).merges} == {True, False}
    assert error(run(fused, x), wanted) <= 1e-6
