"""Arguments that choose which layers run, by an index, a loop, a key: each choice gives what it gave, or is refused."""

from __future__ import annotations

import copy
import linecache
import textwrap
from typing import Any

import pytest
import torch
from structures import build, conv, error, norm, operations, run, sample
from structures.pieces import Causal
from torch import Tensor, nn

import reparamkit
from reparamkit import GuardError
from reparamkit.sourcecode.exposing import exposes

X = sample((2, 4, 8, 8), torch.float32)
TOKENS = sample((2, 5, 6), torch.float32)


class Domains(nn.Module):
    """A convolution and a norm per domain."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)
        self.norms = nn.ModuleList([norm(4) for _ in range(3)])
        self.named = nn.ModuleDict({"a": norm(4), "b": conv(4, 4, 1)})


class Indexed(Domains):
    def forward(self, x: Tensor, k: Any = 0) -> Tensor:
        return self.norms[k](self.conv(x))


class Keyed(Domains):
    def forward(self, x: Tensor, k: Any = 0) -> Tensor:
        return self.named["a" if k == 0 else "b"](self.conv(x))


class Computed(Domains):
    def forward(self, x: Tensor, k: Any = 0) -> Tensor:
        index = k + 1
        return self.norms[index - 1](self.conv(x))


class Counted(Domains):
    def forward(self, x: Tensor, k: Any = 1) -> Tensor:
        x = self.conv(x)
        for _ in range(k):
            x = self.norm(x)
        return x


class Stopped(Domains):
    def forward(self, x: Tensor, k: Any = 1) -> Tensor:
        x = self.conv(x)
        for i in range(3):
            x = self.norms[i](x)
            if i + 1 >= k:
                break
        return x


class Again(Domains):
    def forward(self, x: Tensor, k: Any = 0) -> Tensor:
        x = self.norm(self.conv(x))
        if k:
            x = self.norm(x)
        return x


class Listed(Domains):
    def forward(self, x: Tensor, *k: Any) -> Tensor:
        x = self.conv(x)
        for each in k or (0,):
            x = self.norms[each](x)
        return x


class Optional(Domains):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.norms[options.get("k", 0)](self.conv(x))


class Function(Domains):
    def forward(self, x: Tensor, k: Any = 0) -> Tensor:
        def normed(y: Tensor) -> Tensor:
            return self.norm(y)

        y = self.conv(x)
        return y if k else normed(y)


class Tokens(nn.Module):
    """A norm before two linear layers, which absorb it."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(6), nn.Identity()])
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)
        self.heads = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])

    def both(self, x: Tensor) -> Tensor:
        """x: (..., 6)."""
        return self.a(x) + self.b(x).relu()


class AbsorbIndexed(Tokens):
    def forward(self, x: Tensor, k: Any = 0) -> Tensor:
        x = self.norms[k](x)
        return self.a(x) + self.b(x).relu()


class AbsorbLooped(Tokens):
    def forward(self, x: Tensor, k: Any = 1) -> Tensor:
        for each in self.norms[:k]:
            x = each(x)
        return self.a(x) + self.b(x).relu()


class AbsorbCounted(Tokens):
    def forward(self, x: Tensor, k: Any = 1) -> Tensor:
        for _ in range(k):
            x = self.norms[0](x)
        return self.a(x) + self.b(x).relu()


class AbsorbPicked(Tokens):
    def forward(self, x: Tensor, k: Any = 0) -> Tensor:
        pick = self.norms[k]
        return self.both(pick(x))


class AbsorbTuple(Tokens):
    def forward(self, x: Tensor, k: Any = 0) -> Tensor:
        return self.both((self.norms[0], self.norms[1])[k](x))


class ReadIndexed(Tokens):
    def forward(self, x: Tensor, k: Any = 0) -> Tensor:
        return self.heads[k](self.norms[0](x))


class InMethod(Tokens):
    def normed(self, x: Tensor, k: Any) -> Tensor:
        """x: (..., 6)."""
        return self.norms[k](x)

    def forward(self, x: Tensor, k: Any = 0) -> Tensor:
        return self.both(self.normed(x, k))


class Passing(nn.Module):
    """Hands its arguments on."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.inside(x, **options).relu()


class Followed(nn.Module):
    """A module that chooses, before layers of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.a, self.b = AbsorbOnly(), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor, k: Any = 0) -> Tensor:
        x = self.part(x, k)
        return self.a(x) + self.b(x).relu()


class AbsorbOnly(Tokens):
    def forward(self, x: Tensor, k: Any = 0) -> Tensor:
        return self.norms[k](x)


CHOOSING = [Indexed, Keyed, Computed, Counted, Stopped, Again, Optional, Function]
ABSORBING = [AbsorbIndexed, AbsorbLooped, AbsorbCounted, AbsorbPicked, AbsorbTuple, ReadIndexed, InMethod, Followed]


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("passing", [False, True], ids=["the model", "a part"])
@pytest.mark.parametrize("make", [*CHOOSING, *ABSORBING])
def test_another_choice_of_layers_is_never_ignored(make: Any, passing: bool, with_inputs: bool):
    x = TOKENS if make in ABSORBING else X
    model = build(lambda: Passing(make()) if passing else make())
    fused = reparamkit.fuse(model, x if with_inputs else None)
    assert error(run(fused, x), run(model, x)) <= 1e-5
    for k in (0, 1, 2) if make not in ABSORBING else (0, 1):
        assert agrees(fused, model, x, k=k)


def agrees(fused: nn.Module, model: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> bool:
    """Whether a fused model gives what the model gives, or says that it does not take that; errors are no numbers."""
    with torch.no_grad():
        try:
            wanted = model(x, *args, **kwargs)
        except (IndexError, RuntimeError):
            return True
        try:
            return error(fused(x, *args, **kwargs), wanted) <= 1e-5
        except GuardError:
            return True


@pytest.mark.parametrize("k", [(), (0,), (1,), (0, 1)], ids=str)
def test_any_number_of_choices_is_never_ignored(k: tuple[int, ...]):
    model = build(Listed)
    for example in (X, (X, 0), None):
        assert agrees(reparamkit.fuse(model, example), model, X, *k)


class PerDomain(Domains):
    """The layer and its norm are of the same domain."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(4, 4) for _ in range(3)])

    def forward(self, x: Tensor, k: int = 0) -> Tensor:
        return self.norms[k](self.convs[k](x))


def test_layers_that_one_argument_chooses_together_are_merged_for_any_choice():
    model = build(PerDomain)
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == "conv"
    for k in range(3):
        assert error(fused(X, k), model(X, k)) <= 1e-5


class Flagged(Domains):
    """A flag that has nothing to do with which layers run."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(4, 4) for _ in range(3)])

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        for i in range(3):
            x = self.norms[i](self.convs[i](x)).relu()
        return 2 * x if twice else x


def test_a_loop_of_a_fixed_length_is_merged_beside_a_flag():
    model = build(Flagged)
    fused = reparamkit.fuse(model, X)
    assert "norm" not in operations(fused, X)
    for twice in (False, True):
        assert error(fused(X, twice), model(X, twice)) <= 1e-5


class Attending(nn.Module):
    """Reads a context, or what it has itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.LayerNorm(6), nn.LayerNorm(6)
        self.q, self.k = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor, k: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        context = x if k is None else self.other(k)
        return self.q(x) @ self.k(context).mT


class Defaulting(Attending):
    def forward(self, x: Tensor, k: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        return self.q(x) @ self.k(default(k, x)).mT


def default(given: Tensor | None, other: Tensor) -> Tensor:
    return other if given is None else given


class Growing(Domains):
    def forward(self, x: Tensor, k: Any = ()) -> Tensor:
        y = self.conv(x)
        for each in k:
            y = y + each
        return self.norm(y)


class Applying(Domains):
    def forward(self, x: Tensor, k: Any = lambda y: y) -> Tensor:
        return self.norm(k(self.conv(x)))


class Ordered(Domains):
    def forward(self, x: Tensor, k: Any = (0, 1, 2, 3)) -> Tensor:
        return self.norm(self.conv(x).permute(k))


SQUARE = sample((4, 4, 4, 4), torch.float32)
BETWEEN: dict[str, tuple[Any, Tensor, tuple[Any, ...]]] = {
    "a context": (Attending, TOKENS, (None, TOKENS[:, 1:] * 2)),
    "a default": (Defaulting, TOKENS, (None, TOKENS[:, 1:] * 2)),
    "summands": (Growing, X, ((), (X.flip(0),))),
    "a function": (Applying, X, (lambda y: y, torch.tanh)),
    "an order": (Ordered, SQUARE, ((0, 1, 2, 3), (1, 0, 2, 3))),
}


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("number", [None, 0, 1], ids=["without inputs", "the default", "the other"])
def test_what_stands_between_two_layers_by_choice_is_never_ignored(name: str, number: int | None):
    make, x, choices = BETWEEN[name]
    model = build(make)
    fused = reparamkit.fuse(model, None if number is None else (x, choices[number]))
    for choice in choices:
        assert agrees(fused, model, x, choice)


class Inner(nn.Module):
    """Attention of one tensor; `context` is for others that use it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        return self.q(x) @ self.k(source).mT


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(6), Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(self.norm(x))


def test_an_argument_that_nobody_gives_chooses_nothing():
    model = build(Outer)
    fused = reparamkit.fuse(model, TOKENS)
    assert len(reparamkit.report(fused).merges) == 2
    assert error(run(fused, TOKENS), run(model, TOKENS)) <= 1e-5


class Several(nn.Module):
    """Hands on a list, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.head = Chosen(), conv(4, 4, 1)

    def forward(self, x: Tensor, k: Any = None) -> Tensor:
        return self.head(self.part(x) if k is None else self.part(x, k)).relu()


class Chosen(Domains):
    def forward(self, x: Tensor, k: Any = (0,)) -> Tensor:
        x = self.conv(x)
        for each in k:
            x = self.norms[each](x)
        return x


def test_nothing_in_the_place_of_a_list_is_refused_with_words():
    fused = reparamkit.fuse(build(Several), (X, (0,)))
    with pytest.raises(GuardError, match="None"):
        fused(X)


def test_a_list_among_keyword_arguments_is_followed():
    model = build(lambda: Passing(Chosen()))
    fused = reparamkit.fuse(model, X, example_kwargs={"k": (0,)})
    for k in ((0,), (1,), (0, 1)):
        assert agrees(fused, model, X, k=k)


class Interleaved(nn.Module):
    """Skip connections that are summed while the layers run, as in WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.skips, self.norm = nn.ModuleList([conv(4, 4, 1) for _ in range(4)]), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | int = 0
        for skip in self.skips:
            x = torch.tanh(x)
            total = total + skip(x)
        return self.norm(total)


def test_a_norm_behind_a_sum_that_grows_step_by_step_goes_into_all_of_it():
    model = build(Interleaved)
    fused = reparamkit.fuse(model, X)
    assert "norm" not in operations(fused, X)
    assert error(run(fused, X), run(model, X)) <= 1e-5


def matched(self: Any, x: Tensor, mode: int = 0, other: Tensor | None = None) -> Any:
    """Where no case matches, `x` is what it was."""
    match mode:
        case 1:
            x = self.first(x)
    return x if other is None else x * other


def chosen_by_if(self: Any, x: Tensor, mode: int = 0, other: Tensor | None = None) -> Any:
    """It is another on both ways."""
    if self.deep:
        x = self.first(x)
        x = torch.relu(x)
    else:
        x = self.second(x)
    return x if other is None else x * other


@pytest.mark.parametrize(("code", "found"), [(matched, True), (chosen_by_if, False)])
def test_a_variable_holds_a_value_behind_branches_if_one_way_leaves_it(code: Any, found: bool):
    module = nn.ModuleDict({"first": nn.Identity(), "second": nn.Identity()})
    assert exposes(code, module, {"x"}, frozenset(), frozenset({"first", "second"})) is found


class Ways(nn.Module):
    """Two layers, of which the second merges into the first, and others; a test makes its forward of some lines."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.row = nn.Sequential(copy.deepcopy(first), copy.deepcopy(second))


def begin(self: Any, x: Tensor) -> Tensor:
    """What the first layer gives. shape of `x`."""
    return self.first(x)


def end(self: Any, y: Tensor, flag: bool) -> Tensor:
    """What it gets, or what the second layer gives. shape of `y`."""
    z = self.second(y)
    return y if flag else z


def choose(self: Any, y: Tensor, z: Tensor, flag: bool) -> Tensor:
    """One of them. shape of `y`."""
    return y if flag else z


def both(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """What both layers give. shape of `x`, both."""
    y = self.first(x)
    return self.second(y), y


HELPERS = {"begin": begin, "end": end, "choose": choose, "both": both}
"""Methods that a forward may call; a module has those that its forward names."""

ELSEWHERE = {
    "another value": "y = self.first(x)\nif flag: y = x\nreturn self.second(y)",
    "another name": "y = self.first(x)\nif flag: z = x\nelse: z = y\nreturn self.second(z)",
    "a computed value": "y = self.first(x)\nif flag: y = torch.tanh(x)\nz = y\nreturn self.second(z)",
    "a loop": "y = self.first(x)\nfor _ in range(int(flag)): y = x\nreturn self.second(y)",
    "a while": "y = self.first(x)\nwhile flag:\n  y = x\n  break\nreturn self.second(y)",
    "an assignment in an expression": "z = self.second(y := self.first(x))\nreturn y if flag else z",
    "several targets": "y, w = self.first(x), x\nz = self.second(y)\nreturn (z, y)[flag]",
    "a star": "y = self.first(x)\na, *b = (self.second(y), y)\nreturn b[0] if flag else a",
    "a dictionary": "y = self.first(x)\nd = dict(a=self.second(y), b=y)\nreturn d['b' if flag else 'a']",
    "items of a dictionary": (
        "y = self.first(x)\nd = {}\nd['y'] = y\nd['z'] = self.second(y)\nreturn d['y'] if flag else d['z']"
    ),
    "a list that grows": "y = self.first(x)\nr = [self.second(y)]\nr.append(y)\nreturn r[int(flag)]",
    "a list that is added to": "y = self.first(x)\nz = self.second(y)\nr = []\nr += [y]\nreturn r[0] if flag else z",
    "an attribute": "y = self.first(x)\nself.kept = y\nz = self.second(y)\nreturn self.kept if flag else z",
    "a comprehension": "r = [self.second(y := self.first(x)), y]\nreturn [v for k, v in enumerate(r) if flag == k][0]",
    "an index": "k = 1\nif flag: k = 0\ny = self.first(x)\nreturn (y, self.second(y))[k]",
    "a lambda": "y = self.first(x)\nz = self.second(y)\nf = lambda: y\nreturn f() if flag else z",
    "a function": "y = self.first(x)\nz = self.second(y)\ndef f(): return y\nreturn f() if flag else z",
    "all variables": "y = self.first(x)\nz = self.second(y)\nreturn locals()['y' if flag else 'z']",
    "a copy": "y = self.first(x)\nz = self.second(y)\nw = y.clone()\nif flag: z = w\nreturn z",
    "a write": "y = self.first(x)\nif flag: y[:] = 0\nreturn self.second(y)",
    "a write through a view": "y = self.first(x)\nw = y[:1]\nif flag: w.zero_()\nreturn self.second(y)",
    "a method": "y = self.begin(x)\nz = self.second(y)\nreturn y if flag else z",
    "a method that returns it": "return self.end(self.first(x), flag)",
    "a method that chooses": "y = self.first(x)\nreturn self.choose(y, self.second(y), flag)",
    "a method that returns both": "z, y = self.both(x)\nreturn y if flag else z",
    "another layer": "y = self.first(x)\nz, w = self.second(y), self.row[1](y)\nreturn w if flag else z",
    "another layer behind a view": (
        "y = self.first(x)\nv = y.view(y.shape)\nz = self.second(v)\nw = self.row[1](v)\nreturn w if flag else z"
    ),
    "a way out before": "y = self.first(x)\nz = self.second(y)\nif not flag: return z\nreturn y",
    "a way out before a view": "y = self.first(x)\nz = self.second(y)\nif not flag: return z\nw = y[:1]\nreturn w",
    "a way out of a loop": ("y = self.first(x)\nz = self.second(y)\nfor _ in 'a':\n  if not flag: return z\nreturn y"),
    "a way out of a block": (
        "y = self.first(x)\nz = self.second(y)\nwith torch.no_grad():\n  if not flag: return z\nreturn y"
    ),
    "a way out of a case": "y = self.first(x)\nz = self.second(y)\nmatch flag:\n  case False: return z\nreturn y",
    "another name of a layer": (
        "f = self.second\nz = f(self.first(x)) if flag else self.second(self.first(x))\nreturn z + f(x) * flag"
    ),
    "the children": (
        "z = self.second(self.first(x))\nfor m in self.children():\n"
        "  if flag and m is self.first: return m(x)\nreturn z"
    ),
    "the table of children": "z = self.second(self.first(x))\nif flag: return self._modules['first'](x)\nreturn z",
    "a child by its name": "z = self.second(self.first(x))\nreturn self.get_submodule('first')(x) if flag else z",
    "an attribute by its name": "z = self.second(self.first(x))\nreturn getattr(self, 'first' if flag else 'row')(z)",
    "a weight": "z = self.second(self.first(x))\nreturn z + self.first.weight.sum() if flag else z",
    "a part of a row": "y = x\nfor m in self.row[: 1 if flag else 2]: y = m(y)\nreturn y",
    "an exit from a row": (
        "y = x\nfor k, m in enumerate(self.row):\n  y = m(y)\n  if flag and k == 0: return y\nreturn y"
    ),
    "a case": "y = self.first(x)\nmatch flag:\n  case True: z = y\n  case _: z = self.second(y)\nreturn z",
    "an error": (
        "y = self.first(x)\ntry:\n  if flag: raise ValueError\n  y = self.second(y)\nexcept ValueError: pass\nreturn y"
    ),
}


def of_lines(name: str, lines: str, *layers: nn.Module) -> nn.Module:
    """A module with this forward, whose code can be read as that of any class."""
    file, text = f"<{name}>", f"def forward(self, x, flag=False):\n{textwrap.indent(lines, '    ')}\n"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(text, file, "exec"), scope)
    helpers = {name: method for name, method in HELPERS.items() if f"self.{name}(" in lines}
    return build(lambda: type("OfLines", (Ways,), {"forward": scope["forward"], **helpers})(*layers))


@pytest.mark.parametrize("layers", [lambda: (conv(4, 4), norm(4)), lambda: (nn.LayerNorm(8), nn.Linear(8, 8))])
@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_value_that_goes_elsewhere_by_a_flag_is_never_taken_for_another(name: str, with_inputs: bool, layers: Any):
    model = of_lines(name, ELSEWHERE[name], *layers())
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert error(run(fused, X), run(model, X)) <= 1e-5
    assert agrees(fused, model, X, True)


LENT = {
    "a list": "seen = [] if flag is False else flag\ny = self.first(x)\nseen.append(y)\nreturn self.second(y)",
    "a list in a branch": ("y = self.first(x)\nif flag is False: flag = []\nflag += [y]\nz = self.second(y)\nreturn z"),
    "a list in a list": (
        "seen = [[] if flag is False else flag]\ny = self.first(x)\nseen[0].append(y)\nreturn self.second(y)"
    ),
    "a list and a lambda": (
        "seen = [] if flag is False else flag\ny = self.first(x)\n(lambda v: seen.append(v))(y)\nreturn self.second(y)"
    ),
    "a list and a function": (
        "seen = [] if flag is False else flag\ndef keep(v): seen.append(v)\ny = self.first(x)\nkeep(y)\n"
        "return self.second(y)"
    ),
    "a slice": "seen = [] if flag is False else flag\ny = self.first(x)\nseen[:] = [y]\nreturn self.second(y)",
    "an inner list": (
        "seen = [[]] if flag is False else [flag]\ny = self.first(x)\nfor s in seen: s.insert(0, y)\n"
        "return self.second(y)"
    ),
    "a place that is overwritten by a flag": (
        "seen = [x] if flag is False else flag\ny = self.first(x)\nseen[:] = [y]\nz = self.second(y)\n"
        "if flag is False: seen[:] = [z]\nreturn z"
    ),
    "another place that is overwritten": (
        "seen = [x, x] if flag is False else flag\nseen += [x, x]\ni, y = -1, self.first(x)\nseen[i] = y\n"
        "i = -2\nseen[i] = z = self.second(y)\nreturn z"
    ),
    "two targets": (
        "seen = {} if flag is False else {0: flag}\ny = seen[1] = self.first(x)\nflag = seen.get(0, [])\nflag += [y]\n"
        "return self.second(y)"
    ),
    "another layer": (
        "seen = [] if flag is False else flag\ny = self.first(x)\nseen.append(self.row[1](y))\nreturn self.second(y)"
    ),
}
"""Bodies of a forward that put what the first layer gives into a list of their own, or into the one they get."""


@pytest.mark.parametrize("layers", [lambda: (conv(4, 4), norm(4)), lambda: (nn.LayerNorm(8), nn.Linear(8, 8))])
@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("name", LENT)
def test_what_a_forward_puts_into_a_list_of_its_caller_is_what_the_model_puts_there(
    name: str, with_inputs: bool, layers: Any
):
    model = of_lines(name, LENT[name], *layers())
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert error(run(fused, X), run(model, X)) <= 1e-5
    expected, found = list[Tensor](), list[Tensor]()
    model(X, expected)
    try:
        fused(X, found)
    except GuardError:
        return
    assert all(error(a, b) <= 1e-5 for a, b in zip(found, expected, strict=True))


class Filling(Ways):
    """Puts what the first layer gives into what it gets."""

    def forward(self, x: Tensor, seen: Any) -> Tensor:
        """Maps. shape of `x`."""
        y = self.first(x)
        seen["y"] = y
        return self.second(y)


class Giving(Ways):
    """Gives what the first layer gives as well."""

    def forward(self, x: Tensor, seen: Any) -> tuple[Tensor, Tensor]:
        """Maps, twice. shape of `x`, both."""
        y = self.first(x)
        return self.second(y), y


class Asking(nn.Module):
    """Returns all that a module inside gives, if it is asked to."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, flag: bool = False) -> Any:
        """Maps, or more of them. shape of `x`, or (K, *x)."""
        seen: dict[str, Tensor] = {}
        found = self.inner(x, seen)
        y, *others = found if isinstance(found, tuple) else (found,)
        return torch.stack([*others, *seen.values()]) if flag else y


@pytest.mark.parametrize("inner", [Filling, Giving])
@pytest.mark.parametrize("layers", [lambda: (conv(4, 4), norm(4)), lambda: (nn.LayerNorm(8), nn.Linear(8, 8))])
@pytest.mark.parametrize("with_inputs", [True, False])
def test_what_a_module_inside_gives_besides_is_what_the_model_gives(inner: Any, layers: Any, with_inputs: bool):
    model = build(lambda: Asking(inner(*layers())))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert error(run(fused, X), run(model, X)) <= 1e-5
    assert agrees(fused, model, X, True)


def filling(self: Any, x: Tensor, seen: list[Tensor]) -> list[Tensor]:
    """What both layers give; the first result is put into a list too. shape of `x`, each."""
    y = self.first(x)
    seen.append(y)
    return [self.second(y)]


def leaving(self: Any, x: Tensor, seen: Any = None) -> list[Tensor]:
    """What both layers give, or the first. shape of `x`, each."""
    y = self.first(x)
    z = self.second(y)
    if seen is None:
        return [z]
    return [y]


def giving(self: Any, x: Tensor, seen: Any = None) -> list[Tensor]:
    """What both layers give, and the first. shape of `x`, each."""
    y = self.first(x)
    return [self.second(y), y]


def through_features(self: Any, x: Tensor) -> Tensor:
    """What both layers give. shape of `x`."""
    return torch.relu(self.features(x)[0])


def through_filling(self: Any, x: Tensor) -> Tensor:
    """What both layers give. shape of `x`."""
    return torch.relu(self.features(x, [])[0])


METHODS = {
    "filling": (filling, through_filling),
    "leaving": (leaving, through_features),
    "giving": (giving, through_features),
}
"""Methods that show what the first layer gives to those who call them otherwise than the forward beside them."""
KEPT = {"another layer": "self.row[1](y)", "a mean": "y.mean()", "a view": "y[:1]", "a part": "[y, 1]"}


@pytest.mark.parametrize("layers", [lambda: (conv(4, 4), norm(4)), lambda: (nn.LayerNorm(8), nn.Linear(8, 8))])
@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_what_a_forward_keeps_is_computed_of_what_it_was_computed_of(kept: str, with_inputs: bool, layers: Any):
    model = of_lines(kept, f"y = self.first(x)\nself.kept = {kept}\nreturn self.second(y)", *layers())
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert error(run(fused, X), run(model, X)) <= 1e-5
    (found, wanted) = (each.kept[0] if kept.startswith("[") else each.kept for each in (fused, model))
    assert error(found, wanted) <= 1e-5


def test_a_scale_that_code_reads_for_nothing_keeps_its_place_with_that_reason():
    lines = "y = self.first(x)\nz, w = self.second(y), self.row[1](y)\nreturn w if flag else z"
    report = reparamkit.explain(of_lines("for nothing", lines, nn.LayerNorm(8), nn.Linear(8, 8)), X)
    assert any("something else that may be asked for" in refusal.reason for refusal in report.refusals)


@pytest.mark.parametrize("layers", [lambda: (conv(4, 4), norm(4)), lambda: (nn.LayerNorm(8), nn.Linear(8, 8))])
@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_others_than_forward_what_it_gave(name: str, with_inputs: bool, layers: Any):
    features, forward = METHODS[name]
    model = build(lambda: type("Called", (Ways,), {"features": features, "forward": forward})(*layers()))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert error(run(fused, X), run(model, X)) <= 1e-5
    found, wanted = list[Tensor](), list[Tensor]()
    wanted += model.features(X, wanted)
    if hasattr(fused, "features"):
        found += fused.features(X, found)
        assert all(error(a, b) <= 1e-5 for a, b in zip(found, wanted, strict=True))


def test_a_gate_that_is_not_there_keeps_no_norm_apart():
    model = build(Gated)
    fused = reparamkit.fuse(model, TOKENS)
    assert fused.norm.weight is None
    assert all(agrees(fused, model, TOKENS, mask) for mask in (None, torch.ones(1, 5, 1)))


class Gated(nn.Module):
    """As attention is written: what is optional is None."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.values, self.out, self.gate = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6), None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        gate = self.gate(y) if self.gate is not None else None
        z = self.values(y)
        if mask is not None:
            z = z * mask
        if gate is not None:
            z = z * gate
        return self.out(z.tanh())


class Surroundings(nn.Module):
    """A norm behind maps of one value, near and far, one after the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), nn.BatchNorm2d(4 * len(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return self.norm(torch.cat([layer(x) for layer in self.layers], 1))


SURROUNDINGS: dict[str, list[nn.Module]] = {
    "small and large windows": [conv(4, 4, 3), conv(4, 4, 5), conv(4, 4, 1)],
    "near and far": [
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False),
    ],
    "with a norm each": [nn.Sequential(conv(4, 4, 3), norm(4)), nn.Sequential(conv(4, 4, 1), norm(4))],
}


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_norm_behind_layers_of_one_value_goes_into_each(name: str, with_inputs: bool):
    """One layer of them all would have the largest of their windows everywhere."""
    net = build(lambda: Surroundings(*copy.deepcopy(SURROUNDINGS[name])))
    x = sample((2, 4, 8, 8), torch.float32)
    fused = reparamkit.fuse(net, x if with_inputs else None)
    assert operations(fused, x) == "relu " + "conv " * len(SURROUNDINGS[name]) + "cat"
    for other in (x, sample((1, 4, 5, 9), torch.float32)):
        assert error(run(fused, other), run(net, other)) <= 1e-5
    assert reparamkit.report(reparamkit.fuse(fused, x)).merges == ()


POOLS: dict[str, Any] = {
    "a layer": nn.MaxPool2d(3, 1, 1),
    "a layer, by dimension": nn.MaxPool2d((3, 5), stride=1, padding=(1, 2)),
    "a function": lambda x: nn.functional.max_pool2d(x, 3, stride=1, padding=1),
}


class Inception(nn.Module):
    """Maps of windows of several sizes and of the largest numbers, and a norm behind."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.pool, self.norm = pool, nn.BatchNorm2d(12)
        self.small, self.large, self.last = conv(4, 4), conv(4, 4, 5), conv(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return self.norm(torch.cat([self.small(x), self.large(x), self.last(self.pool(x))], 1)).relu()


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("name", POOLS)
def test_a_pool_that_keeps_all_sizes_is_known_to(name: str, with_inputs: bool):
    """What is made of it can be concatenated with what is made of its input, whatever the sizes are."""
    net = build(lambda: Inception(POOLS[name]))
    x = sample((2, 4, 8, 8), torch.float32)
    fused = reparamkit.fuse(net, x if with_inputs else None)
    assert "norm" not in operations(fused, x)
    for other in (x, sample((1, 4, 5, 9), torch.float32)):
        assert error(run(fused, other), run(net, other)) <= 1e-5


@pytest.mark.parametrize("length", [None, 10, 40])
@pytest.mark.parametrize("dilation", [2, 3, 8])
def test_a_norm_behind_a_crop_of_any_width_goes_into_the_convolution(dilation: int, length: int | None):
    """A kernel that is wider, and needs no crop, has less work on a short input; it has more numbers too."""
    net = build(lambda: Causal(3, dilation))
    x = sample((2, 4, length or 40), torch.float32)
    fused = reparamkit.fuse(net, x if length else None)
    assert operations(fused, x) == "conv relu"
    for other in (x, sample((1, 4, 50), torch.float32)):
        assert error(run(fused, other), run(net, other)) <= 1e-5


@pytest.mark.parametrize("with_inputs", [True, False])
def test_a_pool_of_other_sizes_is_not(with_inputs: bool):
    """One pixel stands for many there."""
    net = build(lambda: Inception(nn.Sequential(nn.MaxPool2d(8, 1), nn.Upsample((8, 8)))))
    x = sample((2, 4, 8, 8), torch.float32)
    assert error(run(reparamkit.fuse(net, x if with_inputs else None), x), run(net, x)) <= 1e-5
