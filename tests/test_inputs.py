"""Bad input is refused with an error that says what, where and what to do next; the model is left as it is."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from structures import Model, build, conv, conv_norm, run, sample, seq
from torch import nn

import reparamkit
from reparamkit import InvalidInputError, ReparamkitError, RuleError

X = sample((2, 3, 8, 8), torch.float32)


def net() -> nn.Module:
    return build(lambda: seq(conv_norm(3, 4), nn.ReLU(), conv_norm(4, 4)))


def on_meta() -> nn.Module:
    model = net()
    model[2].to("meta")
    return model


def lazy() -> nn.Module:
    return seq(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)).eval()


class Shard(nn.Parameter):
    """Stands for a DTensor, which only a process group makes."""

    __module__ = "torch.distributed.tensor"


def sharded() -> nn.Module:
    model = net()
    model[2][0].weight = torch.Tensor._make_subclass(Shard, model[2][0].weight.data)
    return model


@dataclass(frozen=True)
class Bad:
    """model: what is given to `fuse`. options: its other arguments. says: patterns the message matches."""

    name: str
    model: Callable[[], Any]
    says: tuple[str, ...]
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    error: type[ReparamkitError] = InvalidInputError


BAD = (
    Bad("a function", lambda: torch.relu, ("nn.Module",)),
    Bad("a state dict", lambda: net().state_dict(), ("nn.Module", "OrderedDict", "into the model")),
    Bad("a class", lambda: nn.Identity, ("nn.Module", "type|class")),
    Bad("training mode", lambda: net().train(), ("training mode", r"model\.eval\(\)")),
    Bad("exported", lambda: torch.export.export(net(), (X,)).module(), ("exported program", "fuse the program")),
    Bad("meta weights", on_meta, ("'2.0.weight'", "meta", "load")),
    Bad("sharded weights", sharded, ("'2.0.weight'", "a Shard", "before you shard")),
    Bad("lazy weights", lazy, ("'0.weight'", "not initialised", "run")),
    Bad("too few dimensions", net, ("rejects the example inputs", "RuntimeError"), (X[0, 0],)),
    Bad("other channels", net, ("rejects the example inputs", "channels"), (X[:, :2],)),
    Bad("too many arguments", net, ("rejects the example inputs", "TypeError"), ((X, X),)),
    Bad("a wrong name", net, ("rejects the example inputs", "TypeError"), (X,), {"example_kwargs": {"nothing": 1}}),
    Bad("a list of arguments", net, ("rejects the example inputs", "the list is one argument", "tuple"), ([X],)),
    Bad("not a tensor", net, ("rejects the example inputs", "tensor"), ("cat.jpg",)),
    Bad("another dtype", net, ("float64", "float32", "cast"), (X.double(),)),
    Bad("integers", net, ("rejects the example inputs",), (X.long(),)),
    Bad("another device", net, ("meta", "cpu", "move"), (X.to("meta"),)),
    Bad("compiled", lambda: torch.compile(net(), backend="eager"), ("torch.compile", "_orig_mod")),
    Bad("DataParallel", lambda: nn.DataParallel(net()).eval(), ("DataParallel", r"\.module")),
    Bad("scripted", lambda: torch.jit.trace(net(), X), ("ScriptModule", "before scripting")),
    Bad("an unknown objective", net, ("'speed'", "default", "latency"), (), {"objective": "speed"}),
    Bad("an unknown rule to leave out", net, ("'sums'", "parallel_sum"), (), {"without": ["sums"]}, RuleError),
    Bad("an unknown rule to use", net, ("'sums'", "parallel_sum"), (), {"rules": ["sums"]}, RuleError),
    Bad("no rule", net, ("Rule", "int"), (), {"extra_rules": [3]}, RuleError),
    Bad("a rule twice", net, ("already", "'chain'"), (), {"rules": ["chain", "chain"]}, RuleError),
    Bad("a path of no module", net, ("'stem'", "named_modules"), (), {"only": "stem"}),
    Bad("a path with a slip", net, ("'2.0.'", "did you mean 2.0"), (), {"only": "2.0."}),
    Bad("no pattern", net, ("only=3", "module path"), (), {"only": 3}),
    Bad("no patterns", net, (r"skip=\[None\]", "module path"), (), {"skip": [None]}),
    Bad("no share", net, ("min_coverage='all'", "from 0 to 1"), (), {"min_coverage": "all"}),
    Bad("no arguments by name", net, ("example_kwargs", "dict"), (), {"example_kwargs": [1]}),
    Bad("an unknown rule by itself", net, ("'sums'", "parallel_sum"), (), {"rules": "sums"}, RuleError),
    Bad("a pattern of no module", net, (r"'stem\.\*'",), (), {"skip": ["stem.*"]}),
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
def test_bad_input(bad: Bad, inplace: bool):
    """The error is one of ours, and its message says what is wrong, where, and what to do."""
    with pytest.raises(bad.error) as caught:
        reparamkit.fuse(bad.model(), *bad.args, inplace=inplace, **bad.options)
    for pattern in bad.says:
        assert caught.match(pattern)
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize("bad", [b for b in BAD if b.model is net], ids=lambda bad: bad.name)
def test_the_model_is_left(bad: Bad):
    """After a refusal the model is what it was, also with inplace=True."""
    model, wanted = net(), run(net(), X)
    with pytest.raises(ReparamkitError):
        reparamkit.fuse(model, *bad.args, inplace=True, **bad.options)
    assert torch.equal(run(model, X), wanted)
    assert [type(m) for m in model.modules()] == [type(m) for m in net().modules()]


@pytest.mark.parametrize(
    "inputs", [X, (X,), (sample((1, 3, 5, 9), torch.float32),), None], ids=["tensor", "tuple", "odd", "none"]
)
def test_good_input(inputs: Any):
    """A tensor, a tuple of arguments, or nothing."""
    model = net()
    assert torch.allclose(run(reparamkit.fuse(model, inputs), X), run(model, X), atol=1e-5)


def test_keyword_inputs():
    """All inputs may be given by name."""
    model = net()
    fused = reparamkit.fuse(model, example_kwargs={"input": X})
    assert torch.allclose(run(fused, X), run(model, X), atol=1e-5)


def test_a_batch_of_size_zero_is_no_proof():
    """An empty example is refused or still proved; it never passes unproved."""
    model = net()
    fused = reparamkit.fuse(model, X[:0])
    assert torch.allclose(run(fused, X), run(model, X), atol=1e-5)
    assert all(merge.error is not None for merge in reparamkit.report(fused).merges)


def test_buffers_are_not_changed_by_trying_the_inputs():
    """Running the example inputs writes into no buffer of the model."""

    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            return self.conv(x)

    model = build(Counter)
    reparamkit.fuse(model, X)
    assert model.calls == 0


def test_data_dependent_code_is_refused_with_words():
    """A forward that cannot be captured raises an error that names the place and the next step."""
    model = build(lambda: Model(lambda m, x: m.a(x) if float(x.sum()) > 0 else x, a=conv(3, 3)))
    with pytest.raises(reparamkit.CaptureError, match=r"submodules|example_inputs"):
        reparamkit.fuse(model)


class Single(nn.Module):
    """Is never copied."""

    def __init__(self) -> None:
        super().__init__()
        self.part = conv_norm(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x)

    def __deepcopy__(self, memo: Any) -> Single:
        return self


class Made(Single):
    """A copy of it has new weights."""

    def __deepcopy__(self, memo: Any) -> Made:
        return Made().eval()


@pytest.mark.parametrize("make", [Single, Made, lambda: seq(conv(3, 3), Single())])
def test_a_copy_that_is_none_is_refused(make: Callable[[], nn.Module]):
    """What is changed would be the model itself, or another one would be fused."""
    model = build(make)
    with pytest.raises(InvalidInputError, match="inplace=True"):
        reparamkit.fuse(model, X)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_a_model_that_fails_is_not_verified():
    """The error names which of the two does not take the inputs."""
    other = seq(conv(4, 3)).eval()
    with pytest.raises(InvalidInputError, match="model a rejects the example inputs"):
        reparamkit.verify(other, net(), X)
    with pytest.raises(InvalidInputError, match="the reference b rejects the example inputs"):
        reparamkit.verify(net(), other, X)


def test_weights_of_inference_mode():
    """They can be fused as any others."""
    with torch.inference_mode():
        model = net()
    assert reparamkit.report(reparamkit.fuse(model, X)).merges


class Attributes(dict[str, Any]):
    """Its entries are attributes; for others it raises what a dictionary does, as such classes often do."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]


@pytest.mark.parametrize("hold", [Attributes, SimpleNamespace, lambda x: UserDict(x=x)])
def test_tensors_in_objects_are_no_constants(hold: Callable[..., Any]):
    """A trace sees no tensor in them: the whole model was taken for a constant, and nothing merged without a reason."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv_norm(3, 4), conv_norm(4, 4)

        def forward(self, batch: Any) -> Any:
            x = batch["x"] if isinstance(batch, UserDict) else batch.x
            return Attributes(x=self.b(self.a(x).relu()))

    held = hold(X) if isinstance(hold, FunctionType) else hold(x=X)
    model = build(Model)
    fused = reparamkit.fuse(model, held)
    (refusal,) = reparamkit.report(fused).refusals
    assert "are in an object of class" in refusal.reason
    assert len(reparamkit.report(fused).merges) == 2
    assert reparamkit.verify(fused, model, held).error <= 1e-5
