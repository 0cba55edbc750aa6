"""The two ways to extend reparamkit: teach a layer, register a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from structures import MAPS, Model, build, conv, error, operations, run, sample, seq
from torch import Tensor, nn
from torch.nn import functional as F

import reparamkit
from reparamkit import Match, NotFusable, Rule, RuleError, call, reader, rule, rules, value
from reparamkit.layers.registry import READERS
from reparamkit.rulebook.builtin import RULES
from reparamkit.testing import check_reader, randomize

X = sample(MAPS[0], torch.float32)


@pytest.fixture(autouse=True)
def _clean_registries() -> Iterator[None]:
    with RULES.restored(), READERS.restored():
        yield


# --- layers of the user -----------------------------------------------------------------------------


class Affine(nn.Module):
    """y = gamma x + beta per channel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(c) + 0.5), nn.Parameter(torch.rand(c))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,c->nchw", x, self.gamma) + self.beta[:, None, None].expand(x.shape[1:])


class Blur(nn.Module):
    """A fixed 3x3 binomial filter."""

    def forward(self, x: Tensor) -> Tensor:
        row = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype) / 4
        kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def read_affine(layer: Affine, x: Any) -> Any:
    return reparamkit.scale(x, layer.gamma, 1, layer.beta)


def read_blur(layer: Blur, x: Any) -> Any:
    row = torch.tensor([1.0, 2.0, 1.0]) / 4
    return reparamkit.conv(x, torch.outer(row, row).expand(4, 1, 3, 3), padding=1, groups=4)


# --- readers ----------------------------------------------------------------------------------------


def test_a_reader_as_a_decorator():
    """A layer with a reader merges with everything, and the decorated function stays a function."""

    @reader(Affine)
    def read(layer: Affine, x: Any) -> Any:
        return read_affine(layer, x)

    model = build(lambda: seq(Affine(4), conv(4, 4, 1), Affine(4), nn.ReLU(), conv(4, 4), Affine(4)))
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == "conv relu conv"
    assert error(run(fused, X), run(model, X)) <= 1e-6
    assert callable(read)


def test_a_reader_as_a_call():
    """`reader` can be called with a function that exists."""
    reader(Blur)(read_blur)
    model = build(lambda: Model(lambda m, x: m.a(x) + m.b(x), a=conv(4, 4), b=Blur()))
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == "conv"
    assert error(run(fused, X), run(model, X)) <= 1e-6


def test_without_a_reader_a_layer_is_read_through_its_forward():
    """A layer without a reader is not guessed at: outputs stay."""
    model = build(lambda: seq(conv(4, 4), Affine(4), conv(4, 4, 1)))
    assert error(run(reparamkit.fuse(model, X), X), run(model, X)) <= 1e-6


class Amplified(nn.Module):
    """A layer with an argument of its own beside its input, which has a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

    def forward(self, signal: Tensor, factor: float = 1.0) -> Tensor:
        return signal * self.gamma * factor


def read_amplified(layer: Amplified, signal: Any, factor: float = 1.0) -> Any:
    return reparamkit.multiply(signal, factor * layer.gamma.double())


@pytest.mark.parametrize("how", [{"signal": None}, {"factor": 2.0}, {}], ids=["by name", "factor", "plainly"])
@pytest.mark.parametrize("first", [True, False])
def test_no_call_is_left_that_the_merged_layer_does_not_take(how: dict[str, Any], first: bool):
    """Where code gives more than the input, or by another name, the code changes too."""
    reader(Amplified)(read_amplified)

    def amplify(m: Any, x: Tensor) -> Tensor:
        return m.b(**{**how, "signal": x}) if "signal" in how else m.b(x, **how)

    body = (lambda m, x: m.a(amplify(m, x))) if first else (lambda m, x: amplify(m, m.a(x)))
    model = build(lambda: Model(body, a=conv(4, 4), b=Amplified()))
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == "conv"
    assert error(run(fused, X), run(model, X)) <= 1e-6


def test_a_reader_may_refuse():
    """The reason that a reader gives is in the report."""

    @reader(Affine)
    def read(layer: Affine, x: Any) -> Any:
        raise NotFusable("not on Sundays")

    fused = reparamkit.fuse(build(lambda: seq(conv(4, 4), Affine(4))), X)
    assert any("not on Sundays" in refusal.reason for refusal in reparamkit.report(fused).refusals)


def test_a_reader_that_returns_no_form_is_refused():
    """What a reader returns must be a form; the report says what it was."""

    @reader(Affine)
    def read(layer: Affine, x: Any) -> Any:
        return 3

    fused = reparamkit.fuse(build(lambda: seq(conv(4, 4), Affine(4))), X)
    assert any("int" in refusal.reason for refusal in reparamkit.report(fused).refusals)


def fails(*args: Any) -> Any:
    raise KeyError("gama")


@pytest.mark.parametrize("inplace", [False, True])
def test_a_reader_that_fails_is_named_and_so_is_the_layer(inplace: bool):
    """The error is ours, and says where; the model is as it was."""
    reader(Affine)(fails)
    model = build(lambda: seq(conv(4, 4), Affine(4)))
    before = run(model, X)
    with pytest.raises(RuleError, match=r"reader of Affine fails on '1' \(KeyError: 'gama'\).*NotFusable"):
        reparamkit.fuse(model, X, inplace=inplace)
    assert error(run(model, X), before) == 0


@pytest.mark.parametrize(
    ("read", "says"),
    [(fails, "KeyError: 'gama'"), (lambda layer, x: layer, "returned Affine"), (lambda layer, x: (), "")],
)
def test_check_reader_names_a_reader_that_fails(read: Any, says: str):
    reader(Affine)(read)
    with pytest.raises(RuleError, match=f"reader of Affine.*{says}"):
        check_reader(lambda: Affine(4), (2, 4, 5, 5))


def test_a_reader_that_returns_nothing_at_all_is_refused():
    reader(Affine)(lambda layer, x: ())
    found = reparamkit.explain(build(lambda: seq(conv(4, 4), Affine(4))), X)
    assert any("returned tuple, not a form" in refusal.reason for refusal in found.refusals)


def test_a_subclass_with_its_own_forward_is_not_read():
    """A reader holds for subclasses that do not change the forward."""

    class Plain(Affine):
        pass

    class Clipped(Affine):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).clamp(0, 1)

    reader(Affine)(read_affine)
    left = [operations(reparamkit.fuse(build(lambda: seq(conv(4, 4), cls(4))), X), X) for cls in (Plain, Clipped)]  # noqa: B023
    assert left[0] == "conv"
    assert left[1].startswith("conv ")


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: reader(), "needs the module class"),
        (lambda: reader(3), "3"),
        (lambda: reader(nn.Conv2d)(read_affine), "already.*Conv2d"),
        (lambda: reader(Affine)(read_affine) and reader(Affine)(read_affine), "already.*Affine"),
        (lambda: reader(Affine)("read"), "function"),
    ],
    ids=["no target", "no class", "taken by us", "taken by the user", "no function"],
)
def test_malformed_readers(declare: Callable[[], Any], says: str):
    """A reader is refused when it is declared, with words."""
    with pytest.raises(RuleError, match=says):
        declare()


# --- rules ------------------------------------------------------------------------------------------


def relu_twice(**options: Any) -> Rule:
    """relu(relu(x)) = relu(x)."""

    @rule(
        name="relu_twice",
        equation="relu(relu(x)) = relu(x)",
        pattern=call(nn.ReLU, call(nn.ReLU, value("x"), name="inner"), name="outer"),
        **options,
    )
    def build_relu(match: Match) -> nn.Module:
        """Two in a row are one."""
        return nn.ReLU()

    return build_relu


def twice() -> nn.Module:
    return build(lambda: seq(conv(4, 4), nn.ReLU(), nn.ReLU(), conv(4, 4), nn.ReLU()))


def test_a_global_rule():
    """A registered rule is used by every later `fuse`, and named in the report."""
    made = relu_twice()
    assert made.doc == "Two in a row are one."
    assert made.name in rules
    model = twice()
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == "conv relu conv relu"
    assert error(run(fused, X), run(model, X)) <= 1e-6
    assert any("relu_twice" in merge.rules for merge in reparamkit.report(fused).merges)


def test_a_rule_for_one_call():
    """With register=False a rule is used only where it is passed."""
    made = relu_twice(register=False)
    assert made.name not in rules
    assert operations(reparamkit.fuse(twice(), X), X) == "conv relu relu conv relu"
    assert operations(reparamkit.fuse(twice(), X, extra_rules=[made]), X) == "conv relu conv relu"
    assert operations(reparamkit.fuse(twice(), X, rules=[made]), X) == "conv relu conv relu"


def test_a_rule_can_be_left_out():
    """`without` takes rules and names."""
    made = relu_twice()
    for unwanted in (made, "relu_twice"):
        assert operations(reparamkit.fuse(twice(), X, without=[unwanted]), X) == "conv relu relu conv relu"


def test_register_rule():
    """A Rule can be made by hand and registered."""
    made = Rule(
        "relu_once",
        "relu(relu(x)) = relu(x)",
        pattern=call(nn.ReLU, call(nn.ReLU, value("x"))),
        build=lambda m: nn.ReLU(),
    )
    assert reparamkit.register_rule(made) is made
    assert operations(reparamkit.fuse(twice(), X), X) == "conv relu conv relu"
    assert "relu_once: relu(relu(x)) = relu(x)" in repr(rules)


def test_a_rule_opens_the_way_for_the_built_in_ones():
    """What a rule builds is read like any other layer: here an activation that is none, between two layers."""

    @rule(
        name="leaky_one",
        equation="LeakyReLU_1(x) = x",
        pattern=call(nn.LeakyReLU, value("x"), name="act"),
        guard=slope_one,
    )
    def build_identity(match: Match) -> nn.Module:
        return nn.Identity()

    model = build(lambda: seq(conv(4, 8), nn.LeakyReLU(1.0), conv(8, 4, 1)))
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == "conv"
    assert error(run(fused, X), run(model, X)) <= 1e-6


def test_rules_that_undo_each_other_come_to_an_end():
    """A rule is not applied to what it wrote, nor to what another rule made of that."""

    def swap(name: str, old: type[nn.Module], new: Callable[[], nn.Module]) -> Rule:
        return rule(name=name, equation="a = b", pattern=call(old, value("x")), register=False)(lambda match: new())

    rules = [swap("to_leaky", nn.ReLU, lambda: nn.LeakyReLU(0.0)), swap("to_relu", nn.LeakyReLU, nn.ReLU)]
    model = build(lambda: seq(conv(4, 8), nn.ReLU()))
    fused = reparamkit.fuse(model, X, extra_rules=rules)
    assert [merge.rules for merge in reparamkit.report(fused).merges] == [("to_leaky",), ("to_relu",)]
    assert error(run(fused, X), run(model, X)) == 0.0


def slope_one(match: Match) -> None:
    slope = match.module("act").negative_slope
    if slope != 1:
        raise NotFusable(f"a slope of {slope} is not 1")


def test_the_reasons_of_a_guard_are_in_the_report():
    """A guard that refuses says why, where the rule would have applied."""
    made = rule(
        name="leaky_one",
        equation="LeakyReLU_1(x) = x",
        pattern=call(nn.LeakyReLU, value("x"), name="act"),
        guard=slope_one,
        register=False,
    )(lambda match: nn.Identity())
    model = build(lambda: seq(conv(4, 8), nn.LeakyReLU(0.2), conv(8, 4, 1)))
    report = reparamkit.report(reparamkit.fuse(model, X, extra_rules=[made]))
    found = [refusal for refusal in report.refusals if "a slope of 0.2 is not 1" in refusal.reason]
    assert [refusal.path for refusal in found] == ["1"]
    assert "leaky_one" in found[0].reason


def test_a_rule_on_functions():
    """Patterns match functions, methods and operators as well as modules."""
    pattern = call((torch.mul, "mul"), value("x"), call((torch.sigmoid, "sigmoid"), value("x")))
    made = rule(name="swish", equation="x sigmoid(x) = SiLU(x)", pattern=pattern, register=False)(
        lambda match: nn.SiLU()
    )
    model = build(lambda: Model(lambda m, x: gated(m.a(x)), a=conv(4, 4)))
    fused = reparamkit.fuse(model, X, extra_rules=[made])
    assert operations(fused, X) == "conv silu"
    assert error(run(fused, X), run(model, X)) <= 1e-6


def gated(x: Tensor) -> Tensor:
    return torch.mul(x, torch.sigmoid(x))


def test_a_wrong_rule_is_found():
    """A rule that builds something else raises an error that names the rule."""
    made = rule(name="wrong", equation="relu(x) = x", pattern=call(nn.ReLU, value("x")), register=False)(
        lambda match: nn.Identity()
    )
    with pytest.raises(reparamkit.EquivalenceError, match="wrong"):
        reparamkit.fuse(twice(), X, extra_rules=[made])


def test_a_rule_must_build_a_module():
    """A build that returns something else is refused with the rule's name."""
    made = rule(name="nothing", equation="relu(x) = x", pattern=call(nn.ReLU, value("x")), register=False)(
        lambda match: None
    )
    with pytest.raises(RuleError, match=r"nothing.*NoneType"):
        reparamkit.fuse(twice(), X, extra_rules=[made])


@pytest.mark.parametrize(
    ("guard", "made", "says"),
    [
        (fails, lambda match: nn.ReLU(), r"the guard of rule 'mine' fails \(KeyError: 'gama'\).*without"),
        (None, fails, r"the build of rule 'mine' fails \(KeyError: 'gama'\).*without"),
        (None, lambda match: match.module("nothing"), "mine.*no call.*name=.nothing.*names of its calls: none"),
        (lambda match: False, lambda match: nn.ReLU(), r"returned False.*NotFusable\(reason\)"),
    ],
    ids=["guard", "build", "a wrong name", "a guard that answers"],
)
def test_a_rule_that_fails_is_named(guard: Any, made: Any, says: str):
    """An error in the code of a rule is ours; a guard that says no by its answer is not taken for one that agrees."""
    mine = rule(name="mine", equation="a = b", pattern=call(nn.ReLU, value("x")), guard=guard, register=False)(made)
    with pytest.raises(RuleError, match=says):
        reparamkit.fuse(twice(), X, extra_rules=[mine])


def test_a_rule_that_is_not_among_those_of_the_call_may_be_left_out():
    for options in ({"rules": ["chain"], "without": ["parallel_sum"]}, {"without": ["chain", "chain"]}):
        reparamkit.fuse(twice(), X, **options)
    with pytest.raises(RuleError, match="nothing"):
        reparamkit.fuse(twice(), X, without=["nothing"])


def test_a_value_read_elsewhere_protects_a_pattern():
    """A rule never removes a value that something else reads."""
    model = build(
        lambda: Model(
            lambda m, x: (lambda y: m.b(y) + torch.sigmoid(y))(m.a(m.c(x))), a=nn.ReLU(), b=nn.ReLU(), c=conv(4, 4)
        )
    )
    fused = reparamkit.fuse(model, X, extra_rules=[relu_twice(register=False)])
    assert error(run(fused, X), run(model, X)) <= 1e-6
    assert any("read elsewhere" in refusal.reason for refusal in reparamkit.report(fused).refusals)


def declared(**changes: Any) -> Rule:
    """A rule that is fine, but for `changes`."""
    fine: dict[str, Any] = {"name": "fine", "equation": "f(x) = g(x)", "pattern": call(nn.ReLU, value("x"))}
    return rule(**(fine | changes))(lambda match: nn.ReLU())


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: declared(name="Fine"), "lower case"),
        (lambda: declared(name="two words"), "lower case"),
        (lambda: declared(name=""), "lower case"),
        (lambda: declared(name=None), "lower case"),
        (lambda: declared(equation=" "), "equation"),
        (lambda: declared(pattern=value("x")), "must be a call"),
        (lambda: declared(pattern=nn.ReLU), "pattern"),
        (lambda: declared(pattern=None), "pattern"),
        (lambda: declared(guard=True), "guard"),
        (lambda: declared(pattern=call(nn.ReLU, call(nn.ReLU, value("x"), name="a"), name="a")), "'a'"),
        (lambda: call(nn.ReLU), "at least one"),
        (lambda: call(nn.ReLU, "x"), "value"),
        (lambda: call(3, value("x")), "3"),
        (lambda: declared(name="chain"), "already"),
        (lambda: (declared(), declared()), "already"),
        (lambda: Rule("half", "f = g", pattern=call(nn.ReLU, value("x"))), "both"),
        (lambda: reparamkit.register_rule(lambda match: nn.ReLU()), "Rule"),
        (lambda: rules["nothing"], "chain"),
    ],
)
def test_malformed_rules(declare: Callable[[], Any], says: str):
    """A rule is refused when it is declared: malformed, or its name is taken; the message says which and why."""
    with pytest.raises(RuleError, match=says):
        declare()
    assert "fine" not in rules or says == "already"


@pytest.mark.parametrize("each", list(rules), ids=lambda each: each.name)
def test_built_in_rules_are_documented(each: Rule):
    """Every built-in rule has an equation and a sentence about it."""
    assert "=" in each.equation
    assert each.doc.strip().endswith(".")
    assert str(each).startswith(each.name)


class Silent(nn.Linear):
    """Forgets to return itself, as the backbones of OpenMMLab."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


def test_randomize_returns_a_model_whose_train_returns_nothing():
    """It is in eval mode then."""
    model = Silent(4, 4)
    assert randomize(model) is model
    assert not model.training
