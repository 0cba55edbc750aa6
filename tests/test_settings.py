"""Settings that are changed after a model was fused work as they did, or cannot be changed; nothing is in silence."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from structures import build, conv, error, norm, operations, run, sample
from torch import Tensor, nn

import reparamkit
from reparamkit import GuardError

X = sample((2, 4, 8, 8))
OPTIONS: dict[str, dict[str, Any]] = {
    "inputs": {"example_inputs": X},
    "no inputs": {},
    "in place": {"example_inputs": X, "inplace": True},
}


class Layers(nn.Module):
    """Layers, and a setting of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.wide = conv(4, 4), norm(4), conv(4, 4, 1)
        self.norms = nn.ModuleList(norm(4) for _ in range(3))
        self.by_name = nn.ModuleDict({"a": norm(4), "b": norm(4)})
        self.act: nn.Module = nn.Identity()
        self.index, self.flag, self.off, self.factor, self.name = 0, True, False, 2.0, "norm"
        self.order, self.both, self.function, self.nothing = ["conv", "norm"], (0, 1), torch.abs, None

    @property
    def domain(self) -> int:
        return self.index

    @domain.setter
    def domain(self, index: int) -> None:
        self.index = index


class Indexed(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.index](self.conv(x))


class ByProperty(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.domain](self.conv(x))


class ByVariable(Layers):
    def forward(self, x: Tensor, index: int | None = None) -> Tensor:
        index = self.index if index is None else index
        norm = self.norms[index]
        return norm(self.conv(x))


class Flagged(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.flag:
            x = self.norm(x)
        return x


class OneOfTwo(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if self.flag else self.conv(x)


class Between(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.off:
            x = x.relu()
        return self.norm(x)


class BetweenIfThere(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.nothing is not None:
            x = self.nothing(x)
        if hasattr(self, "extra"):
            x = self.extra(x)
        return self.norm(x)


class Exchanged(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.conv(x)))


class Scaled(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x) * self.factor)


class Named(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(self.conv(x))


class InOrder(Layers):
    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)
        return x


class Counted(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for k in range(self.index):
            x = self.norms[k](x)
        return self.norm(x)


class Several(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return sum(self.norms[k](y) for k in self.both)


class Keyed(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.by_name["a" if self.flag else "b"](self.conv(x))


class InSum(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if self.flag:
            y = y + self.norms[0](self.wide(x))
        return y


class Handed(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Choosing()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, self.flag)


class Choosing(Layers):
    def forward(self, x: Tensor, flag: bool) -> Tensor:
        x = self.conv(x)
        return self.norm(x) if flag else x


SETTINGS: list[tuple[type[Layers], str, Any]] = [
    (Indexed, "index", 1),
    (Indexed, "domain", 2),
    (ByProperty, "index", 1),
    (ByVariable, "index", 1),
    (Flagged, "flag", False),
    (OneOfTwo, "flag", False),
    (Between, "off", True),
    (BetweenIfThere, "nothing", nn.ReLU()),
    (BetweenIfThere, "extra", nn.ReLU()),
    (Exchanged, "act", nn.ReLU()),
    (Scaled, "factor", 3.0),
    (Named, "name", "wide"),
    (InOrder, "order", ["norm", "conv"]),
    (Counted, "index", 2),
    (Several, "both", (1, 2)),
    (Keyed, "flag", False),
    (InSum, "flag", False),
    (Handed, "flag", False),
]
NAMES = [f"{kind.__name__}-{name}" for kind, name, _ in SETTINGS]


def is_loud(fused: nn.Module, name: str, value: Any, x: Tensor = X) -> bool:
    """Whether a fused model cannot be set, or run as it is set."""
    try:
        setattr(fused, name, value)
        run(fused, x)
    except GuardError as no:
        return "fuse" in str(no)
    return False


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("kind", "name", "value"), SETTINGS, ids=NAMES)
def test_a_setting_that_merges_rely_on_cannot_be_changed_in_silence(
    kind: type[Layers], name: str, value: Any, options: dict[str, Any]
):
    model = build(kind, torch.float64)
    wanted = run(model, X)
    fused = reparamkit.fuse(model, **options)
    assert reparamkit.report(fused).merges
    if hasattr(fused, name):
        now = getattr(fused, name)
        setattr(fused, name, type(now)() if isinstance(now, nn.Module) else copy.copy(now))
    assert error(run(fused, X), wanted) < 1e-12
    assert is_loud(fused, name, value)


@pytest.mark.parametrize(("kind", "name", "value"), SETTINGS, ids=NAMES)
def test_a_setting_that_no_merge_relies_on_can_be_changed(kind: type[Layers], name: str, value: Any):
    """Nothing is merged: all settings work as they did."""
    model = build(kind, torch.float64)
    fused = reparamkit.fuse(model, X, skip=["*"])
    assert not reparamkit.report(fused).merges
    setattr(model, name, copy.copy(value))
    setattr(fused, name, copy.copy(value))
    assert error(run(fused, X), run(model, X)) < 1e-12


class Around(Layers):
    """A branch around both layers, and branches before and behind them."""

    def features(self, x: Tensor) -> Tensor:
        if self.off:
            x = x.relu()
        return self.norm(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.flag:
            x = self.features(x)
        if self.index:
            x = x.tanh() * self.factor
        return x


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("name", "value"), [("off", True), ("flag", False), ("index", 1)])
def test_settings_that_part_no_merge_work_as_they_did(name: str, value: Any, options: dict[str, Any]):
    model = build(Around, torch.float64)
    changed = copy.deepcopy(model)
    setattr(changed, name, value)
    fused = reparamkit.fuse(model, **options)
    assert len(reparamkit.report(fused).merges) == 1
    setattr(fused, name, value)
    assert error(run(fused, X), run(changed, X)) < 1e-12


class Switch(nn.Module):
    """Does nothing, as long as it is off."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if self.on else x


class Switched(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.switch, self.last = Switch(), Switch()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.switch(self.conv(x))))


class Factor(nn.Module):
    """A scale that is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.by = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


class Inside(Layers):
    """Sets a number of a module inside, that it knows by its class."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Factor()

    def scale_by(self, factor: float) -> None:
        for module in self.modules():
            if isinstance(module, Factor):
                module.by = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.scale(self.conv(x)) + x)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_module_that_does_nothing_is_watched_inside_a_merge_only(options: dict[str, Any]):
    fused = reparamkit.fuse(build(Switched, torch.float64), **options)
    fused.last.on = True
    assert run(fused, X).min() == 0
    with pytest.raises(GuardError, match="'on' of Switch"):
        fused.switch.on = True


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_module_that_a_method_sets_something_of_stays(options: dict[str, Any]):
    """Were its code written into that around it, the method would find nothing to set."""
    model = build(Inside, torch.float64)
    wanted = run(model, X)
    fused = reparamkit.fuse(model, **options)
    assert isinstance(fused.scale, Factor)
    assert error(run(fused, X), wanted) < 1e-12
    fused.scale_by(2.0)
    try:
        fused.scale_by(3.0)
    except GuardError:
        return
    changed = build(Inside, torch.float64)
    changed.scale_by(3.0)
    assert error(run(fused, X), run(changed, X)) < 1e-12


def copied(fused: nn.Module) -> nn.Module:
    return copy.deepcopy(fused)


def pickled(fused: nn.Module) -> nn.Module:
    found = pickle.loads(pickle.dumps(fused))
    assert isinstance(found, nn.Module)
    return found


def again(fused: nn.Module) -> nn.Module:
    return reparamkit.fuse(fused, X)


@pytest.mark.parametrize("make", [copied, pickled, again])
@pytest.mark.parametrize("kind", [Flagged, InSum])
def test_copies_are_as_strict(kind: type[Layers], make: Callable[[nn.Module], nn.Module]):
    fused = reparamkit.fuse(build(kind, torch.float64), X)
    made = make(fused)
    assert error(run(made, X), run(fused, X)) < 1e-12
    assert is_loud(made, "flag", False)


class Branches(nn.Module):
    """Three branches, of which one layer stays."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.point, self.skip = conv(4, 4), nn.Sequential(conv(4, 4, 1), norm(4)), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.dense(x) + self.point(x) + self.skip(x)).relu()


class Opened(nn.Module):
    """The forward of what is inside goes into this one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = Inner(), nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        first, second, gate = self.inner(x)
        return (first * self.scale + second).relu() * gate


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.point, self.gate = conv(4, 4), conv(4, 4, 1), conv(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.dense(x), self.point(x), self.gate(x).sigmoid()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("make", [copied, pickled, again, lambda fused: fused])
def test_no_layer_is_put_where_one_was_merged(make: Callable[[nn.Module], nn.Module], options: dict[str, Any]):
    """The code would not call it; in the place of the merged layer it would."""
    model = make(reparamkit.fuse(build(Branches, torch.float64), **options))
    (kept,) = dict(model.named_children())
    for name in {"dense", "point", "skip"} - {kept}:
        for other in (nn.Identity(), norm(4), None):
            with pytest.raises(GuardError, match=f"'{name}' of Branches was merged"):
                setattr(model, name, other)
    setattr(model, kept, nn.Identity())
    assert torch.equal(model(X), X.relu())


def test_no_layer_is_put_where_code_calls_what_is_inside():
    """What its own name calls is what it was."""
    model = reparamkit.fuse(build(Opened, torch.float64), X)
    assert operations(model, X) == "conv sigmoid conv relu mul"
    model.inner = model.inner
    with pytest.raises(GuardError, match="'inner' of Opened was merged"):
        model.inner = build(Inner)


class Tokens(nn.Module):
    """A view that keeps what it was made with, and is made anew from that."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last
        self.sizes = {True: (0, 2, 1), False: (0, 1, 2)}

    def __getstate__(self) -> dict[str, Any]:
        return {"last": self.last}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Tokens.__init__(self, **state)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).permute(*self.sizes[self.last])


@pytest.mark.parametrize("make", [copied, pickled, again])
def test_what_a_module_sets_when_it_is_made_anew_is_no_change(make: Callable[[nn.Module], nn.Module]):
    """As a view of einops does, which a merge goes through."""
    model = build(lambda: nn.Sequential(conv(4, 4), Tokens(True), nn.Linear(4, 3)), torch.float64)
    fused = reparamkit.fuse(model, X)
    assert len(reparamkit.report(fused).merges) == 1
    made = make(fused)
    assert error(run(made, X), run(model, X)) < 1e-12
    assert is_loud(made[1], "last", False)  # type: ignore[index]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", [Flagged, InSum])
def test_tools_take_a_model_whose_settings_are_fixed(kind: type[Layers]):
    fused = reparamkit.fuse(build(kind, torch.float64), X)
    wanted = run(fused, X)
    made = [
        torch.export.export(fused, (X,), strict=True).module(),
        torch.export.export(fused, (X,)).module(),
        torch.compile(fused, fullgraph=True, backend="eager"),
        torch.jit.trace(fused, X),
        torch.jit.script(fused) if kind is Flagged else fused,
        torch.fx.symbolic_trace(fused),
    ]
    assert max(error(each(X), wanted) for each in made) < 1e-12


def test_the_words_say_which_attribute_and_what_to_do():
    fused = reparamkit.fuse(build(Indexed), X.float())
    with pytest.raises(GuardError) as told:
        fused.index = 2
    assert str(told.value) == (
        "'index' of Indexed was 0 when this model was fused, and merges rely on it: to have 2, set it before"
        " reparamkit.fuse, or keep the layers around it apart with skip=[...]"
    )
    assert fused.index == 0


class Cached(Layers):
    """Keeps a tensor, and a dictionary of them that it empties when it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.mask, self.cache = torch.ones(8, dtype=torch.float64), {"cpu": torch.ones(8, dtype=torch.float64)}

    def train(self, mode: bool = True) -> Cached:
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)) + self.wide(x)
        return y.relu() * self.mask * self.cache.get(str(x.device), 1.0)


def test_a_tensor_that_an_attribute_keeps_is_no_setting():
    fused = reparamkit.fuse(build(Cached, torch.float64), X)
    fused.mask = fused.mask * 1
    fused.train().eval()
    assert run(fused, X).isfinite().all()


class Ending(nn.Module):
    """Has a setting that a method sets, and a layer that a merge around it leaves where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.size = nn.Linear(4, 4), nn.Linear(4, 4), 2

    def set_size(self, size: int) -> None:
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh()
        return self.last(y) if self.size == 2 else y


class Scaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gamma = Ending(), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) * self.gamma).relu()


def test_what_has_the_layers_of_a_module_takes_none_of_its_settings():
    model, x = build(Scaling), sample((2, 4), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert error(run(fused, x), run(model, x)) <= 1e-6
    assert "mul" not in operations(fused, x).split()
    with pytest.raises(GuardError, match="size"):
        fused.inner.size = 3


# --- what code asks of layers that are merged --------------------------------------------------------------


class Asked(nn.Module):
    """Two rows of layers without biases, and code that asks them something."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.body = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), body
        self.point, self.wide = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.child = Asking()

    def has_bias(self, layer: nn.Module) -> bool:
        """A helper."""
        return layer.bias is not None

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class Asking(nn.Module):
    """Code of another module than that of the layers."""

    def forward(self, y: Tensor, layer: Any) -> Tensor:
        return torch.relu(y) if layer.bias is None else -y


def by_a_bias(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.conv(x))
    return torch.relu(y) if m.conv.bias is None else y + 1


def by_a_helper(m: Any, x: Tensor) -> Tensor:
    y = m.wide(m.point(x))
    return y + 1 if m.has_bias(m.point) else torch.relu(y)


def by_a_child(m: Any, x: Tensor) -> Tensor:
    return m.child(m.norm(m.conv(x)), m.conv)


def by_a_size(m: Any, x: Tensor) -> Tensor:
    return torch.relu(m.wide(m.point(x)))[..., m.point.kernel_size[0] :]


def by_a_number(m: Any, x: Tensor) -> Tensor:
    return torch.relu(m.norm(m.conv(x))) * m.norm.eps


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("body", [by_a_bias, by_a_helper, by_a_child, by_a_size, by_a_number])
def test_code_gets_the_answers_that_the_layers_gave(body: Callable[[Any, Tensor], Tensor], with_inputs: bool):
    """A merge may give a layer a bias, or leave nothing of it."""
    model = build(lambda: Asked(body), torch.float64)
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert error(run(fused, X), run(model, X)) <= 1e-5


def test_a_merge_is_made_where_no_answer_changes():
    """A kernel that takes in a norm is as large as before."""
    model = build(lambda: Asked(lambda m, x: torch.relu(m.norm(m.conv(x))) * m.conv.kernel_size[0]))
    fused = reparamkit.fuse(model)
    assert isinstance(fused.norm, nn.Identity)
