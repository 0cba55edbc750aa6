"""Draw random programs: each function of the catalogue draws one step for a value, or None where it does not fit."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .program import Program, Step, namespace

LARGEST = 3000
"""Elements of a value, per sample; steps that make more are not taken."""
Drawn = tuple[str, str] | tuple[str, str, dict[str, Any]]
"""The kind of a step, its code, and what else it has."""


@dataclass
class Draw:
    """A program that grows. Every step is run when it is added, so shapes are those of real tensors."""

    seed: int
    random: random.Random
    values: dict[int, Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=namespace)
    holder: nn.Module = field(default_factory=nn.Module)

    # --- small choices ------------------------------------------------------------------------------

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.random.random() < p

    def one(self, *options: Any) -> Any:
        """One of the options."""
        return self.random.choice(options)

    def shape(self, v: int) -> tuple[int, ...]:
        """The shape of a value."""
        return tuple(self.values[v].shape)

    def latest(self) -> int:
        """A value, most often one of the last."""
        numbers = list(self.values)
        return numbers[-1] if self.chance(0.6) else self.random.choice(numbers[-5:])

    def like(self, v: int) -> list[int]:
        """Other values of the same shape and dtype."""
        wanted = self.values[v]
        return [n for n, t in self.values.items() if n != v and t.shape == wanted.shape and t.dtype == wanted.dtype]

    def owners(self, kind: str) -> list[Step]:
        """Steps with a layer of their own."""
        return [s for s in self.steps if s.layer and s.kind == kind]

    # --- growing ------------------------------------------------------------------------------------

    def add(self, kind: str, inputs: tuple[int, ...], code: str, **more: Any) -> bool:
        """Run a step and keep it, if it runs."""
        number = max(self.values) + 1
        step = Step(number, kind, inputs, code, **more)
        layer = number if step.shared is None else step.shared
        kept = {n: t.clone() for n, t in self.values.items()} if "_" in code or "=" in code.partition("=")[2] else None
        env = self.names | {f"v{n}": t for n, t in self.values.items()} | {"self": self.holder}
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if step.layer:
                    made = eval(step.layer, env)
                    made = made.double().eval() if isinstance(made, nn.Module) else nn.Parameter(made.double())
                    setattr(self.holder, f"m{number}", made)
                    for line in step.after:
                        exec(line.format(m=f"self.m{number}"), env)
                exec(step.code.format(*(f"v{n}" for n in inputs), out=f"v{number}", m=f"self.m{layer}"), env)
        except Exception:
            if kept is not None:
                self.values.update(kept)
            return False
        found = env.get(f"v{number}")
        if not isinstance(found, Tensor) or found.dim() == 0 or not 0 < found.numel() <= LARGEST * found.shape[0]:
            if kept is not None:
                self.values.update(kept)
            return False
        self.values[number] = found
        self.steps.append(step)
        return True


BLOCKS = 1_000_000
"""The first seed of programs that have blocks in them as well."""
CATALOGUE: list[tuple[float, int, Callable[[Draw, int], Drawn | None]]] = []


def step(
    weight: float, since: int = 0
) -> Callable[[Callable[[Draw, int], Drawn | None]], Callable[[Draw, int], Drawn | None]]:
    """Put a function into the catalogue. since: the first seed whose program may have such a step."""

    def put(function: Callable[[Draw, int], Drawn | None]) -> Callable[[Draw, int], Drawn | None]:
        CATALOGUE.append((weight, since, function))
        return function

    return put


def program(seed: int, steps: tuple[int, int] = (2, 9)) -> Program:
    """The program of a seed."""
    draw = Draw(seed, random.Random(seed))
    shapes = _inputs(draw)
    generator = torch.Generator().manual_seed(seed)
    for k, shape in enumerate(shapes):
        draw.values[k] = torch.randn(shape, generator=generator, dtype=torch.float64)
    wanted = draw.random.randint(*steps)
    known = [(function, weight) for weight, since, function in CATALOGUE if since <= seed]
    functions, weights = [function for function, _ in known], [weight for _, weight in known]
    for _ in range(8 * wanted):
        if len(draw.steps) >= wanted:
            break
        v = draw.latest()
        function = draw.random.choices(functions, weights)[0]
        with suppress(ValueError, LookupError):
            drawn = function(draw, v)
            if drawn is not None:
                more = dict(drawn[2]) if len(drawn) == 3 else {}
                draw.add(drawn[0], more.pop("inputs", (v,)), drawn[1], **more)
    return _finished(draw, shapes)


def _inputs(draw: Draw) -> tuple[tuple[int, ...], ...]:
    c = draw.one(1, 2, 3, 4, 4, 6, 8)
    rank = draw.random.choices((2, 3, 4, 5), (1, 2, 8, 1))[0]
    sizes = [draw.random.randint(3, 9 if rank < 5 else 5) for _ in range(rank - 2)]
    if len(sizes) == 2 and draw.chance(0.3):
        sizes[1] = sizes[0]
    shape = (2, c, *sizes)
    return (shape, shape) if draw.chance(0.1) else (shape,)


def _finished(draw: Draw, shapes: tuple[tuple[int, ...], ...]) -> Program:
    made = [s.number for s in draw.steps]
    form = draw.random.choices(("tensor", "tuple", "dict"), (7, 2, 1))[0]
    outputs = [made[-1] if made else 0]
    if form != "tensor":
        outputs += [n for n in draw.random.sample(made, min(len(made), 2)) if n not in outputs]
    groups: list[tuple[int, ...]] = []
    start = 0
    while start < len(made) and draw.chance(0.5):
        start += draw.random.randint(0, 3)
        group = tuple(made[start : start + draw.random.randint(2, 5)])
        if len(group) >= 2:
            groups.append(group)
        start += len(group)
    narrow = draw.chance(0.08)
    steps = tuple(draw.steps)
    return Program(draw.seed, shapes, steps, tuple(outputs), tuple(groups), form, "float32" if narrow else "float64")


# --- convolutions -------------------------------------------------------------------------------------


def _axes(d: Draw, v: int) -> int:
    rank = len(d.shape(v))
    if rank not in (3, 4, 5):
        raise ValueError("no map")
    return rank - 2


def _each(d: Draw, axes: int, *options: int) -> Any:
    """One number, or one per axis."""
    return d.one(*options) if d.chance(0.6) else tuple(d.one(*options) for _ in range(axes))


def _groups(d: Draw, c: int) -> int:
    return d.random.choice([1, 1, 1, c, *[g for g in (2, 3, 4) if c % g == 0]])


def conv_layer(d: Draw, c: int, axes: int, out: int | None = None, same: bool = False) -> str:
    """The expression of a convolution; `same`: it keeps the sizes."""
    g = _groups(d, c)
    out = out or d.random.choice([n for n in (c, c, 2 * c, 2, 4, 6, 8) if n % g == 0])
    if out % g:
        g = 1
    if same:
        k, dil = d.one(1, 1, 3, 3, 5), d.one(1, 1, 1, 2)
        odd = {"padding": dil * (k // 2)} if d.chance(0.9) else {"padding": "same"}
        options: dict[str, Any] = {"dilation": dil, "groups": g, **odd}
    else:
        k = _each(d, axes, 1, 1, 2, 3, 3, 3, 4, 5)
        options = {
            "stride": _each(d, axes, 1, 1, 1, 2, 3),
            "padding": _each(d, axes, 0, 0, 1, 1, 2, 3) if d.chance(0.9) else "valid",
            "dilation": _each(d, axes, 1, 1, 1, 2),
            "groups": g,
        }
        if d.chance(0.06):
            options["padding_mode"] = d.one("reflect", "circular", "replicate")
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    text = "".join(f", {n}={x!r}" for n, x in options.items() if defaults.get(n) != x)
    bias = "" if d.chance(0.5) else ", bias=False"
    return f"nn.Conv{axes}d({c}, {out}, {k!r}{text}{bias})"


@step(10)
def conv(d: Draw, v: int) -> Drawn | None:
    axes = _axes(d, v)
    return "conv", "{out} = {m}({0})", {"layer": conv_layer(d, d.shape(v)[1], axes)}


@step(6)
def conv_same(d: Draw, v: int) -> Drawn | None:
    axes, c = _axes(d, v), d.shape(v)[1]
    return "conv", "{out} = {m}({0})", {"layer": conv_layer(d, c, axes, c, same=True)}


@step(1.5)
def conv_transpose(d: Draw, v: int) -> Drawn | None:
    axes, c = _axes(d, v), d.shape(v)[1]
    g = _groups(d, c)
    s = d.one(1, 2)
    text = f", stride={s}, padding={d.one(0, 1)}, groups={g}" + (f", output_padding={d.one(0, 1)}" if s == 2 else "")
    return (
        "conv_transpose",
        "{out} = {m}({0})",
        {"layer": f"nn.ConvTranspose{axes}d({c}, {g * 2}, {d.one(1, 2, 3)}{text})"},
    )


@step(1.5)
def functional_conv(d: Draw, v: int) -> Drawn | None:
    axes, c = _axes(d, v), d.shape(v)[1]
    k, out = d.one(1, 2, 3), d.one(2, 4, c)
    shape = (out, c, *[k] * axes)
    if d.chance(0.5):
        code = f"{{out}} = F.conv{axes}d({{0}}, {{m}}, padding={d.one(0, 1)})"
        return "functional_conv", code, {"layer": f"nn.Parameter(torch.ones{shape})"}
    holder = f"nn.ParameterDict(dict(w=torch.ones{shape}, b=torch.ones({out})))"
    code = f"{{out}} = F.conv{axes}d({{0}}, {{m}}.w + {{m}}.w.flip(0) * 0.5, {{m}}.b, {d.one(1, 2)}, {d.one(0, 1)})"
    return "functional_conv", code, {"layer": holder}


@step(1)
def parametrized_conv(d: Draw, v: int) -> Drawn | None:
    axes, c = _axes(d, v), d.shape(v)[1]
    layer = conv_layer(d, c, axes, c, same=True)
    if d.chance(0.5) and axes == 2:
        cls = d.one("StdConv", "Unpadded") if ", groups" not in layer and "dilation" not in layer else "StdConv"
        return f"conv_{cls}", "{out} = {m}({0})", {"layer": layer.replace("nn.Conv2d", cls)}
    return "conv_weight_norm", "{out} = {m}({0})", {"layer": f"nn.utils.parametrizations.weight_norm({layer})"}


# --- norms, scales, linear layers -----------------------------------------------------------------------


def norm_layer(d: Draw, c: int, rank: int) -> str:
    """The expression of a batch norm for a value of this rank."""
    name = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}[rank]
    option = d.one("", "", "", "", ", affine=False", ", eps=0.1", ", momentum=None")
    return f"nn.BatchNorm{name}({c}{option})"


@step(8)
def norm(d: Draw, v: int) -> Drawn | None:
    shape = d.shape(v)
    return "norm", "{out} = {m}({0})", {"layer": norm_layer(d, shape[1], len(shape))}


@step(1.5)
def odd_norm(d: Draw, v: int) -> Drawn | None:
    shape = d.shape(v)
    c, rank = shape[1], len(shape)
    layer = norm_layer(d, c, rank)
    kind = d.one("frozen", "functional", "train", "untracked", "instance", "group", "layer", "sync")
    if kind == "frozen":
        return "norm_frozen", "{out} = {m}({0})", {"layer": f"FrozenNorm({c}, {rank})"}
    if kind == "functional":
        return "norm_functional", "{out} = {m}({0})", {"layer": f"FunctionalNorm({c})"}
    if kind == "train":
        return "norm_train", "{out} = {m}({0})", {"layer": layer, "after": ("{m}.train()",)}
    if kind == "untracked":
        return "norm_untracked", "{out} = {m}({0})", {"layer": layer[:-1] + ", track_running_stats=False)"}
    if kind == "instance" and rank > 2:
        tracked = d.one("", ", track_running_stats=True")
        return "norm_instance", "{out} = {m}({0})", {"layer": f"nn.InstanceNorm{rank - 2}d({c}, affine=True{tracked})"}
    if kind == "layer":
        return "norm_layer", "{out} = {m}({0})", {"layer": f"nn.LayerNorm({shape[-1]})"}
    return "norm_group", "{out} = {m}({0})", {"layer": f"nn.GroupNorm(1, {c})"}


@step(3)
def scale(d: Draw, v: int) -> Drawn | None:
    shape = d.shape(v)
    rank = len(shape)
    which = d.one("number", "parameter", "channel", "last", "div", "neg", "offset", "alpha", "rsub")
    if which == "number":
        return "scale_number", f"{{out}} = {{0}} * {d.one(0.5, -2, 3, 1, 0)}", {}
    if which == "div":
        return "scale_div", f"{{out}} = {{0}} / {d.one(2.0, -3, 'float(' + '{0}.shape[-1])')}", {}
    if which == "neg":
        return "scale_neg", "{out} = -{0}", {}
    if which == "rsub":
        return "offset_rsub", "{out} = 1.5 - {0}", {}
    if which == "alpha":
        return (
            "offset_alpha",
            "{out} = torch.add({0}, {m}, alpha=0.5)",
            {"layer": f"nn.Parameter(torch.ones({shape[-1]}))"},
        )
    size = {"parameter": d.one("()", "(1,)"), "last": f"({shape[-1]},)"}.get(which)
    if size is None:
        size = repr((shape[1], *[1] * (rank - 2)))
        if d.chance(0.2):
            size = repr((1, *shape[1:]))
    sign = d.one("+", "-") if which == "offset" else d.one("*", "*", "+")
    code = f"{{out}} = {{0}} {sign} {{m}}" if d.chance(0.7) else f"{{out}} = {{m}} {sign} {{0}}"
    return f"scale_{which}", code, {"layer": f"nn.Parameter(torch.ones{size})"}


def linear_layer(d: Draw, n: int, out: int) -> str:
    """The expression of a linear layer."""
    return f"nn.Linear({n}, {out}{d.one('', '', ', bias=False')})"


@step(4)
def linear(d: Draw, v: int) -> Drawn | None:
    n = d.shape(v)[-1]
    out = d.one(n, n, 2, 4, 5, 2 * n)
    which = d.one("layer", "layer", "layer", "function", "matmul", "einsum")
    if which == "layer":
        bias = d.one("", ", bias=False")
        return "linear", "{out} = {m}({0})", {"layer": f"nn.Linear({n}, {out}{bias})"}
    if which == "function":
        return "linear_function", "{out} = F.linear({0}, {m})", {"layer": f"nn.Parameter(torch.ones({out}, {n}))"}
    if which == "matmul":
        sign = d.one("{0} @ {m}", "torch.matmul({0}, {m})", "torch.matmul({0}, {m}.t().t())")
        return "linear_matmul", f"{{out}} = {sign}", {"layer": f"nn.Parameter(torch.ones({n}, {out}))"}
    return (
        "linear_einsum",
        "{out} = torch.einsum('...i,oi->...o', {0}, {m})",
        {"layer": f"nn.Parameter(torch.ones({out}, {n}))"},
    )


@step(2)
def linear_flat(d: Draw, v: int) -> Drawn | None:
    """A full matrix over all but the batch, the shape kept: what locality injection writes into."""
    shape = d.shape(v)
    c, n = shape[1], 1
    for size in shape[2:]:
        n *= size
    if n * c > 200 or len(shape) < 3:
        return None
    flat = d.one("{0}.flatten(1)", "{0}.reshape({0}.shape[0], -1)", f"{{0}}.view(-1, {n * c})")
    back = d.one("{0}.shape", "(-1, " + ", ".join(map(str, shape[1:])) + ")")
    if d.chance(0.4):
        code = f"{{out}} = {{m}}({{0}}.reshape(-1, {n})).reshape({back})"
        return "linear_pixels", code, {"layer": f"nn.Linear({n}, {n})"}
    return "linear_flat", f"{{out}} = {{m}}({flat}).reshape({back})", {"layer": f"nn.Linear({n * c}, {n * c})"}


# --- pools, pads, slices, resampling --------------------------------------------------------------------


@step(2.5)
def pool(d: Draw, v: int) -> Drawn | None:
    axes = _axes(d, v)
    which = d.one("avg", "avg", "avg", "max", "adaptive", "global", "mean", "function")
    k, s = d.one(2, 3, 3), d.one(1, 2, 3)
    more = ", ceil_mode=True" if d.chance(0.25) else ""
    count = ", count_include_pad=False" if d.chance(0.25) else ""
    if which == "avg":
        divisor = f", divisor_override={d.one(1, 5)}" if axes > 1 and d.chance(0.15) else ""
        return (
            "pool_avg",
            "{out} = {m}({0})",
            {"layer": f"nn.AvgPool{axes}d({k}, {s}, {d.one(0, 1)}{more}{count}{divisor})"},
        )
    if which == "function":
        return "pool_function", f"{{out}} = F.avg_pool{axes}d({{0}}, {k}, {s}, {d.one(0, 1)}{more}{count})", {}
    if which == "max":
        return "pool_max", "{out} = {m}({0})", {"layer": f"nn.MaxPool{axes}d({k}, {s}, {d.one(0, 1)}{more})"}
    if which == "adaptive":
        return "pool_adaptive", "{out} = {m}({0})", {"layer": f"nn.AdaptiveAvgPool{axes}d({d.one(1, 1, 2, 3)})"}
    if which == "global":
        return "pool_global", f"{{out}} = F.adaptive_avg_pool{axes}d({{0}}, 1)", {}
    dims = tuple(range(2, axes + 2)) if d.chance(0.6) else d.one(-1, 1, 2)
    keep = d.one("", ", keepdim=True")
    return "pool_mean", f"{{out}} = {{0}}.{d.one('mean', 'mean', 'sum')}({dims}{keep})", {}


@step(2)
def pad(d: Draw, v: int) -> Drawn | None:
    axes = _axes(d, v)
    amounts = [d.one(0, 1, 1, 2, -1) for _ in range(2 * axes)]
    which = d.one("pad", "pad", "layer", "same", "value", "reflect")
    if which == "layer":
        return "pad_layer", "{out} = {m}({0})", {"layer": f"nn.ZeroPad{axes}d({tuple(amounts)})"}
    if which == "same" and axes == 2:
        return "pad_same", "{out} = {m}({0})", {"layer": f"SamePad({d.one(2, 3)}, {d.one(1, 2)})"}
    if which == "reflect":
        return (
            "pad_reflect",
            f"{{out}} = F.pad({{0}}, {[1] * (2 * axes)}, mode='{d.one('reflect', 'replicate', 'circular')}')",
            {},
        )
    value = ", value=0.5" if which == "value" else ""
    return "pad", f"{{out}} = F.pad({{0}}, {amounts}{value})", {}


@step(2)
def sliced(d: Draw, v: int) -> Drawn | None:
    rank = len(d.shape(v))
    key = d.one("..., 1:", "..., :-1", "..., ::2", ":, :1", ":, 1:", ":, ::2", ":, -1:", ":, [0, -1]", ":, 0")
    if rank >= 4:
        key = d.one(key, ":, :, 1:-1, 1:", ":, :, ::2, ::2", "..., 0")
    return "slice", f"{{out}} = {{0}}[{key}]", {}


@step(1.5)
def resampled(d: Draw, v: int) -> Drawn | None:
    axes = _axes(d, v)
    which = d.one("nearest", "linear", "shuffle", "unshuffle", "roll", "flip", "size")
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes]
    code = {
        "nearest": "F.interpolate({0}, scale_factor=2)",
        "linear": f"F.interpolate({{0}}, scale_factor=2, mode='{mode}', align_corners={d.one(True, False)})",
        "size": "F.interpolate({0}, size={0}.shape[2:])",
        "shuffle": "F.pixel_shuffle({0}, 2)",
        "unshuffle": "F.pixel_unshuffle({0}, 2)",
        "roll": f"torch.roll({{0}}, {d.one(1, -1)}, {d.one(1, -1)})",
        "flip": f"torch.flip({{0}}, [{d.one(1, -1)}])",
    }[which]
    return f"resample_{which}", f"{{out}} = {code}", {}


# --- views ----------------------------------------------------------------------------------------------


@step(4)
def view(d: Draw, v: int) -> Drawn | None:
    shape = d.shape(v)
    rank = len(shape)
    order = list(range(1, rank))
    d.random.shuffle(order)
    codes = [
        f"{{0}}.permute(0, {', '.join(map(str, order))})",
        "{0}.transpose(1, -1)",
        "{0}.transpose(1, 2)",
        "{0}.flatten(1)",
        "{0}.flatten(2)",
        "torch.flatten({0}, 1)",
        "{0}.flatten(1, 2)",
        "{0}.reshape({0}.shape[0], {0}.shape[1], -1)",
        "{0}.reshape({0}.size(0), -1)",
        "{0}.contiguous().view({0}.size(0), -1)",
        "{0}.unsqueeze(-1)",
        "{0}.unsqueeze(1)",
        "{0}.squeeze(-1)",
        "{0}.squeeze(1)",
        "{0}.movedim(1, -1)",
        f"{{0}}.unflatten(1, (2, {shape[1] // 2}))",
        "torch.swapaxes({0}, 1, -1)",
        "{0}[:, :, None]",
        "{0}.reshape(-1, {0}.shape[-1])" if d.chance(0.2) else "{0}.flatten(2)",
        "{0}.expand(-1, -1, 3, -1)",
        "{0}.contiguous()",
        "{0}.clone()",
        "{0}.to({0}.dtype)",
    ]
    if rank == 3:
        n = shape[2]
        factors = [a for a in range(2, n) if n % a == 0]
        codes += [f"{{0}}.reshape({{0}}.shape[0], {shape[1]}, {a}, {n // a})" for a in factors]
        codes += [f"{{0}}.view(-1, {shape[1]}, {a}, {n // a})" for a in factors]
    return "view", "{out} = " + d.random.choice(codes), {}


@step(1.2)
def unpacked_sizes(d: Draw, v: int) -> Drawn | None:
    shape = d.shape(v)
    if len(shape) != 4:
        return None
    n, c, h, w = (f"{{out}}_{x}" for x in "nchw")
    g = d.one(2, 2, 1)
    rest = d.one(
        f"{{0}}.reshape({n}, {g}, {c} // {g}, {h}, {w}).transpose(1, 2).reshape({n}, {c}, {h}, {w})",
        f"{{0}}.reshape({n}, {c}, {h} * {w}).transpose(1, 2)",
        f"{{0}}.permute(0, 2, 3, 1).reshape({n} * {h} * {w}, {c})",
        f"{{0}}.reshape({n} * {c}, 1, {h}, {w})",
    )
    return "view_sizes", f"{n}, {c}, {h}, {w} = {{0}}.shape\n{{out}} = {rest}", {}


@step(1.5)
def chunked(d: Draw, v: int) -> Drawn | None:
    shape = d.shape(v)
    if shape[1] < 2:
        return None
    half = shape[1] // 2
    codes = [
        "{out}_a, {out}_b = {0}.chunk(2, 1)\n{out} = torch.cat([{out}_b, {out}_a], 1)",
        "{out}_a, {out}_b = {0}.chunk(2, dim=1)\n{out} = {out}_a + {out}_b",
        f"{{out}}_a, {{out}}_b = torch.split({{0}}, [{half}, {shape[1] - half}], 1)\n"
        "{out} = torch.cat(({out}_a, {out}_b * 2), 1)",
        "{out} = {0}.chunk(2, 1)[1]",
        "{out} = sum(torch.unbind({0}, 1))",
        "{out} = torch.stack([{0}, {0} * 2], 1)",
    ]
    code = d.random.choice(codes)
    return "chunk", code, {}


# --- several values -------------------------------------------------------------------------------------


@step(9)
def joined(d: Draw, v: int) -> Drawn | None:
    others = d.like(v)
    if not others:
        return None
    w = d.random.choice(others)
    code = d.random.choices(
        ["{0} + {1}", "{1} + {0}", "{0} - {1}", "torch.add({0}, {1}, alpha=2)", "{0}.add({1})", "{0} * {1}",
         "torch.cat([{0}, {1}], 1)", "torch.cat([{0}, {1}], -1)", "torch.stack([{0}, {1}]).sum(0)",
         "torch.maximum({0}, {1})", "torch.lerp({0}, {1}, 0.3)"],
        (10, 4, 3, 2, 2, 1, 2, 1, 1, 0.5, 0.5),
    )[0]  # fmt: skip
    return "join", "{out} = " + code, {"inputs": (v, w)}


@step(1)
def broadcast(d: Draw, v: int) -> Drawn | None:
    others = [n for n in d.values if n != v and d.values[n].dtype == d.values[v].dtype]
    return "broadcast", "{out} = {0} + {1}", {"inputs": (v, d.random.choice(others))} if others else {"inputs": (v, v)}


def _branch(d: Draw, c: int, axes: int) -> str:
    """A row of layers that keeps the shape."""
    layers = [conv_layer(d, c, axes, c, same=True)] if d.chance(0.85) else []
    layers += [norm_layer(d, c, axes + 2)] if d.chance(0.7) or not layers else []
    if d.chance(0.2):
        layers.insert(0, conv_layer(d, c, axes, c, same=True))
    if d.chance(0.15):
        layers.append(f"nn.AvgPool{axes}d(3, 1, 1)")
    if d.chance(0.1):
        layers.append(d.one("nn.Dropout(0.3)", "nn.Identity()", "nn.ReLU()", "nn.ReLU(inplace=True)"))
    return f"nn.Sequential({', '.join(layers)})"


@step(8)
def branches(d: Draw, v: int) -> Drawn | None:
    axes, c = _axes(d, v), d.shape(v)[1]
    if d.chance(0.3):
        gamma = d.one("()", "()", repr((c, *[1] * axes)))
        return "residual", "{out} = {m}({0})", {"layer": f"Residual({_branch(d, c, axes)}, {gamma})"}
    rows = [_branch(d, c, axes) for _ in range(d.random.randint(2, 3))]
    rows += ["nn.Identity()"] if d.chance(0.4) else []
    kind = d.random.choices(("Sum", "SumInPlace"), (4, 1))[0]
    return kind.lower(), "{out} = {m}({0})", {"layer": f"{kind}([{', '.join(rows)}])"}


@step(3)
def row(d: Draw, v: int) -> Drawn | None:
    axes, c = _axes(d, v), d.shape(v)[1]
    first = conv_layer(d, c, axes)
    out = int(first.split("(")[1].split(",")[1])
    layers = [first, norm_layer(d, out, axes + 2)]
    layers += (
        [conv_layer(d, out, axes)] if d.chance(0.5) else [d.one("nn.ReLU()", "nn.ReLU(True)", "nn.Hardswish(True)")]
    )
    return "row", "{out} = {m}({0})", {"layer": f"nn.Sequential({', '.join(layers)})"}


# --- sharing, state, hooks ------------------------------------------------------------------------------


@step(3)
def again(d: Draw, v: int) -> Drawn | None:
    """A layer that was called before, on another value."""
    owners = [s for s in d.steps if s.layer and s.code == "{out} = {m}({0})"]
    if not owners:
        return None
    return "again", "{out} = {m}({0})", {"shared": d.random.choice(owners).number}


@step(1)
def tied(d: Draw, v: int) -> Drawn | None:
    owners = [s for s in d.steps if s.kind in ("conv", "linear", "norm") and s.layer and s.inputs]
    if not owners:
        return None
    owner = d.random.choice(owners)
    return f"tied_{owner.kind}", "{out} = {m}({0})", {"layer": owner.layer, "tied": owner.number}


@step(1.2)
def hooked(d: Draw, v: int) -> Drawn | None:
    shape = d.shape(v)
    rank, c = len(shape), shape[1]
    layer = norm_layer(d, c, rank) if d.chance(0.5) else conv_layer(d, c, _axes(d, v), c, same=True)
    hook = d.one(
        "{m}.register_forward_hook(lambda m, a, out: out * out.shape[-1])",
        "{m}.register_forward_pre_hook(lambda m, a: (a[0] + a[0].shape[-1],))",
        "{m}.register_forward_hook(lambda m, a, out: None)",
        "{m}.register_forward_hook(lambda m, a, out: out + a[0])",
    )
    if d.chance(0.3):
        hook = hook.replace("{m}.", "{m}[0].")
        layer = f"nn.Sequential({layer}, {norm_layer(d, c, rank)})"
    return "hook", "{out} = {m}({0})", {"layer": layer, "after": (hook,)}


@step(1)
def stateful(d: Draw, v: int) -> Drawn | None:
    axes, c = _axes(d, v), d.shape(v)[1]
    which = d.one("Counting", "Branching", "Deciding")
    if which == "Counting":
        return "counting", "{out} = {m}({0})", {"layer": f"Counting({_branch(d, c, axes)})"}
    width = f", {d.random.randint(2, 8)}" if which == "Branching" else ""
    return which.lower(), "{out} = {m}({0})", {"layer": f"{which}({_branch(d, c, axes)}, {_branch(d, c, axes)}{width})"}


@step(0.8)
def float32_island(d: Draw, v: int) -> Drawn | None:
    shape = d.shape(v)
    axes, c = _axes(d, v), shape[1]
    layer = d.one(conv_layer(d, c, axes), norm_layer(d, c, len(shape)), _branch(d, c, axes))
    return "float32", "{out} = {m}({0}.float()).to({0}.dtype)", {"layer": layer, "after": ("{m}.float()",)}


@step(0.5)
def noise_free_dropout(d: Draw, v: int) -> Drawn | None:
    return "dropout", "{out} = " + d.one("F.dropout({0}, 0.5, self.training)", "F.dropout({0}, 0.0)"), {}


# --- in place -------------------------------------------------------------------------------------------


@step(3)
def in_place(d: Draw, v: int) -> Drawn | None:
    others = d.like(v)
    codes = [
        "F.relu_({0})\n{out} = {0}",
        "{out} = F.relu({0}, inplace=True)",
        "{0} *= 2\n{out} = {0}",
        "{0} += 1\n{out} = {0}",
        "{out} = {0}.mul_(0.5)",
        "{out} = {0}.add_(1)",
        "{0}[:, :1] = 0\n{out} = {0}",
        "{0}[:, :1] += 1\n{out} = {0}",
        "{out}_w = {0}.view({0}.shape[0], -1)\n{out}_w += 1\n{out} = {0}",
        "{out}_w = {0}[:, :1]\n{out}_w.mul_(3)\n{out} = {0} * 1",
        "{out} = {0}.sigmoid_()",
        "{out} = {0}.transpose(1, -1).add_(1).transpose(1, -1)",
    ]
    if others and d.chance(0.6):
        codes = [
            "{0} += {1}\n{out} = {0}",
            "{0} -= {1}\n{out} = {0}",
            "{out} = {0}.add_({1})",
            "{out} = {0}.add_({1}, alpha=2)",
            "{out} = {0}.copy_({1})",
            "{0}[:, :1] = {1}[:, :1]\n{out} = {0}",
            "{out} = torch.add({0}, {1}, out={0})",
            "{out} = {0}.clone()\n{out} += {1}",
            "{out} = torch.zeros_like({0})\n{out}[:] = {1}\n{out} += {0}",
        ]
        return "in_place", d.random.choice(codes), {"inputs": (v, d.random.choice(others))}
    return "in_place", d.random.choice(codes), {}


@step(1)
def in_place_layer(d: Draw, v: int) -> Drawn | None:
    layer = d.one("nn.ReLU(inplace=True)", "nn.Hardswish(inplace=True)", "nn.Dropout(0.1, inplace=True)",
                  "nn.LeakyReLU(1.0, inplace=True)", "nn.SiLU(inplace=True)")  # fmt: skip
    return "in_place_layer", "{out} = {m}({0})", {"layer": layer}


# --- not affine -----------------------------------------------------------------------------------------


@step(4)
def nonlinear(d: Draw, v: int) -> Drawn | None:
    code = d.one(
        "F.relu({0})", "torch.sigmoid({0})", "{0}.tanh()", "F.gelu({0})", "{0}.softmax(-1)", "{0} * torch.sigmoid({0})",
        "F.leaky_relu({0}, 1.0)", "{0}.abs()", "{0}.clamp(-1, 1)", "{0}.pow(2)", "{0} * {0}",
        "F.layer_norm({0}, {0}.shape[-1:])",
    )  # fmt: skip
    return "nonlinear", "{out} = " + code, {}


@step(1)
def gate(d: Draw, v: int) -> Drawn | None:
    """Squeeze and excite."""
    axes, c = _axes(d, v), d.shape(v)[1]
    dims = tuple(range(2, axes + 2))
    code = f"{{out}} = {{0}} * torch.sigmoid({{m}}({{0}}.mean({dims}, keepdim=True)))"
    return "gate", code, {"layer": f"nn.Conv{axes}d({c}, {c}, 1)"}
