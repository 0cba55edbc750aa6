"""Blocks as models have them, drawn for seeds from `BLOCKS` on: older seeds draw what they always drew."""

from __future__ import annotations

from .draw import BLOCKS, Draw, Drawn, conv_layer, linear_layer, norm_layer, step


def modules(**layers: str) -> str:
    return f"nn.ModuleDict(dict({', '.join(f'{name}={layer}' for name, layer in layers.items())}))"


def maps(d: Draw, v: int) -> tuple[int, int]:
    """The number of axes of a map, and of its channels."""
    shape = d.shape(v)
    if len(shape) not in (3, 4, 5):
        raise ValueError("no map")
    return len(shape) - 2, shape[1]


def _images(d: Draw, v: int) -> tuple[int, int, int]:
    """Channels, height and width."""
    shape = d.shape(v)
    if len(shape) != 4:
        raise ValueError("no image")
    return shape[1], shape[2], shape[3]


@step(3, BLOCKS)
def attention(d: Draw, v: int) -> Drawn | None:
    """Over the tokens of (N, L, C); the parts of one layer are taken apart in several ways."""
    shape = d.shape(v)
    c = shape[-1]
    if len(shape) != 3 or c % 2:
        return None
    parts = d.one(
        "{out}_q, {out}_k, {out}_w = {m}['qkv']({0}).chunk(3, -1)",
        f"{{out}}_q, {{out}}_k, {{out}}_w = {{m}}['qkv']({{0}}).split({c}, dim=-1)",
        f"{{out}}_q, {{out}}_k, {{out}}_w = {{m}}['qkv']({{0}}).unflatten(-1, (3, {c})).unbind(2)",
        f"{{out}}_p = {{m}}['qkv']({{0}}).reshape({{0}}.shape[0], -1, 3, 2, {c // 2}).permute(2, 0, 3, 1, 4)\n"
        "{out}_q, {out}_k, {out}_w = {out}_p[0], {out}_p[1], {out}_p[2]",
        "{out}_q, {out}_k, {out}_w = {m}['qkv']({0})[..., ::3], {m}['qkv']({0})[..., 1::3], {m}['qkv']({0})[..., 2::3]",
    )
    scores = d.one(
        "{out}_s = ({out}_q * 0.5) @ {out}_k.transpose(-2, -1)",
        "{out}_s = {out}_q @ {out}_k.transpose(-2, -1) * 0.5",
        "{out}_s = torch.matmul({out}_q / 2, {out}_k.mT)",
    )
    join = "\n{out} = {out}.transpose(1, 2).reshape({0}.shape)" if ".permute(2, 0, 3, 1, 4)" in parts else ""
    last = d.one("{m}['last']({out})", "{m}['last']({out} * 2)", "{m}['last']({out}) + {0}", "{out}")
    code = f"{parts}\n{scores}\n{{out}} = {{out}}_s.softmax(-1) @ {{out}}_w{join}\n{{out}} = {last}"
    return "attention", code, {"layer": modules(qkv=linear_layer(d, c, 3 * c), last=linear_layer(d, c, c))}


@step(2, BLOCKS)
def tokens(d: Draw, v: int) -> Drawn | None:
    """Maps to tokens and back."""
    c, h, w = _images(d, v)
    code = d.one("{0}.flatten(2).transpose(1, 2)", "{0}.permute(0, 2, 3, 1)", f"{{0}}.reshape(-1, {c}, {h * w}).mT")
    back = d.one(f".transpose(1, 2).reshape(-1, {c}, {h}, {w})", f".mT.unflatten(-1, ({h}, {w}))")
    between = d.one("", "{m}({out})", "{m}({out}) + {out}", "F.layer_norm({out}, ({out}.shape[-1],))")
    back = ".permute(0, 3, 1, 2)" if "permute" in code else back
    text = f"{{out}} = {code}\n" + (f"{{out}} = {between}\n" if between else "") + f"{{out}} = {{out}}{back}"
    return "tokens", text, {"layer": linear_layer(d, c, c)} if "{m}" in between else {}


@step(2.5, BLOCKS)
def low_rank(d: Draw, v: int) -> Drawn | None:
    """A layer and a pair beside it of low rank, as LoRA."""
    c = d.shape(v)[-1]
    out, r = d.one(c, c, 4), d.one(1, 2)
    scale = d.one(" * 0.5", " * {m}['g'].weight", "", " / 2")
    code = f"{{out}} = {{m}}['base']({{0}}) + {{m}}['b']({{m}}['a']({{0}})){scale}"
    if d.chance(0.3):
        code = "{out} = F.linear({0}, {m}['base'].weight + {m}['b'].weight @ {m}['a'].weight * 0.5, {m}['base'].bias)"
    layers = {"base": f"nn.Linear({c}, {out})", "a": f"nn.Linear({c}, {r}, bias=False)"}
    return "low_rank", code, {"layer": modules(**layers, b=f"nn.Linear({r}, {out}, bias=False)", g="nn.PReLU()")}


@step(2, BLOCKS)
def shuffled(d: Draw, v: int) -> Drawn | None:
    """Pixels made of channels and back, between layers; and channels of groups in turn."""
    c, _, _ = _images(d, v)
    if d.chance(0.5):
        layer = f"nn.Sequential(nn.Conv2d({c}, {4 * c}, {d.one(1, 3)}, padding=1), nn.PixelShuffle(2))"
        layer = (
            layer[:-1] + d.one("", f", nn.BatchNorm2d({c})", f", nn.Conv2d({c}, 2, 1)", ", nn.PixelUnshuffle(2)") + ")"
        )
        return "shuffle_pixels", "{out} = {m}({0})", {"layer": layer}
    if c % 2:
        return None
    code = "{out} = {m}['b'](F.channel_shuffle({m}['a']({0}), 2))"
    if d.chance(0.5):
        code = "{out} = {m}['b']({m}['a']({0}).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))"
    pair = (f"nn.Conv2d({c}, {c}, {d.one(1, 3)}, padding=1, groups={d.one(1, 2)})" for _ in range(2))
    return "shuffle_channels", code, {"layer": modules(a=next(pair), b=next(pair))}


@step(2.5, BLOCKS)
def concatenated(d: Draw, v: int) -> Drawn | None:
    """Branches side by side, joined along the channels, and a layer that mixes them."""
    axes, c = maps(d, v)
    rows = {name: conv_layer(d, c, axes, c, same=True) for name in ("a", "b")[: d.random.randint(1, 2)]}
    parts = [f"{{m}}['{name}']({{0}})" for name in rows] + ["{0}"] * d.chance(0.6)
    if d.chance(0.3):
        parts[0] = f"F.relu({parts[0]})"
    joined = d.one(f"torch.cat([{', '.join(parts)}], 1)", f"torch.cat(tensors=({', '.join(parts)},), dim=1)")
    n = c * len(parts)
    last = d.one(f"nn.Conv{axes}d({n}, {c}, 1)", norm_layer(d, n, axes + 2), conv_layer(d, n, axes))
    return "concatenated", f"{{out}} = {{m}}['last']({joined})", {"layer": modules(**rows, last=last)}


@step(2.5, BLOCKS)
def on_parts(d: Draw, v: int) -> Drawn | None:
    """Layers on parts of the channels, which are put together again: by a concatenation, or written into a tensor."""
    axes, c = maps(d, v)
    if c < 2:
        return None
    h = c // 2
    a, b = conv_layer(d, h, axes, h, same=True), conv_layer(d, c - h, axes, c - h, same=True)
    right = d.one("{m}['b']({out}_b)", "{out}_b", "{m}['b']({out}_b) + {out}_b")
    code = f"{{out}}_a, {{out}}_b = {{0}}.split([{h}, {c - h}], 1)\n"
    code += d.one(
        f"{{out}} = torch.cat([{{m}}['a']({{out}}_a), {right}], 1)",
        f"{{out}} = torch.zeros_like({{0}})\n{{out}}[:, :{h}] = {{m}}['a']({{out}}_a)\n{{out}}[:, {h}:] = {right}",
        f"{{out}} = {{0}}.clone()\n{{out}}[:, :{h}] = {{m}}['a']({{out}}_a)",
        f"{{out}} = {{0}}.clone()\n{{out}}[:, :{h}] += {{m}}['a']({{out}}_a)",
    )
    return "on_parts", code, {"layer": modules(a=a, b=b)}


@step(2, BLOCKS)
def by_keyword(d: Draw, v: int) -> Drawn | None:
    """Arguments by name."""
    axes, c = maps(d, v)
    k = d.one(1, 3)
    code = d.one(
        "{out} = {m}['a'](input={0})",
        f"{{out}} = F.conv{axes}d(input={{0}}, weight={{m}}['a'].weight, bias={{m}}['a'].bias, padding={d.one(0, 1)})",
        "{out} = F.batch_norm(input={0}, running_mean={m}['n'].running_mean, running_var={m}['n'].running_var,"
        " weight={m}['n'].weight, bias={m}['n'].bias, training=False, eps=0.1)",
        f"{{out}} = F.avg_pool{axes}d(input={{0}}, kernel_size=3, stride=1, padding=1)",
        "{out} = torch.add(input={0}, other={m}['n']({0}), alpha=2)",
        "{out} = torch.mul(other=2.0, input={0})",
        "{out} = torch.flatten(input={0}, start_dim=1)",
        "{out} = {0}.transpose(dim0=1, dim1=-1)",
    )
    return "by_keyword", code, {"layer": modules(a=f"nn.Conv{axes}d({c}, {c}, {k})", n=norm_layer(d, c, axes + 2))}


@step(2.5, BLOCKS)
def computed_weight(d: Draw, v: int) -> Drawn | None:
    """A convolution whose weight is computed in the forward."""
    axes, c = maps(d, v)
    k = d.one(1, 3)
    ones = (1,) * axes
    weight = d.one(
        "{m}['a'].weight * {m}['n'].weight.reshape(-1, 1" + ", 1" * axes + ")",
        "{m}['a'].weight + {m}['b'].weight",
        "torch.cat([{m}['a'].weight, {m}['b'].weight.flip(0)], 0)",
        f"F.pad({{m}}['a'].weight, {(1, 1) * axes})",
        "{m}['a'].weight - {m}['a'].weight.mean(1, keepdim=True)",
        "{m}['a'].weight * ({m}['b'].weight > 0)",
        f"{{m}}['a'].weight / {{m}}['a'].weight.flatten(1).norm(dim=1).reshape{(-1, 1, *ones)}",
        "{m}['a'].weight.transpose(0, 1)",
    )
    layer = f"nn.Conv{axes}d({c}, {c}, {k})"
    code = f"{{out}} = F.conv{axes}d({{0}}, {weight}, None, {d.one(1, 2)}, {d.one(0, 1)})"
    return "computed_weight", code, {"layer": modules(a=layer, b=layer, n=norm_layer(d, c, axes + 2))}


@step(2.5, BLOCKS)
def per_channel(d: Draw, v: int) -> Drawn | None:
    """A vector of a layer made as wide as a map in one of the ways there are."""
    shape = d.shape(v)
    c, rest = shape[1], len(shape) - 2
    wide = d.one(
        f".view(1, -1{', 1' * rest})", f".reshape({c}{', 1' * rest})", f"[None, :{', None' * rest}]",
        f".expand({c})[(...,) + (None,) * {rest}]", f"[:{', None' * rest}]",
    )  # fmt: skip
    vector = d.one("{m}.weight", "{m}.bias", "{m}.running_mean", "{m}.weight / ({m}.running_var + 0.1).sqrt()")
    sign = d.one("*", "*", "+", "-", "/ 2 +")
    code = f"{{out}} = {{0}} {sign} ({vector}){wide}"
    return "per_channel", code, {"layer": norm_layer(d, c, len(shape)).replace(", affine=False", "")}


@step(2, BLOCKS)
def masked(d: Draw, v: int) -> Drawn | None:
    """Positions or channels that a constant mask keeps."""
    shape = d.shape(v)
    size = d.one(shape[-1:], shape[1:], (shape[1], *[1] * (len(shape) - 2)))
    code = d.one(
        "{0} * ({m} > 0)",
        "{0}.masked_fill({m} > 0, 0.0)",
        "{0}.masked_fill({m} > 0, 1.5)",
        "torch.where({m} > 0, {0}, {0} * 2)",
        "{0} * ({m} > 0).to({0}.dtype)",
        "torch.where({m} > 0, {0}, torch.zeros_like({0}))",
    )
    return "masked", f"{{out}} = {code}", {"layer": f"nn.Parameter(torch.ones{tuple(size)})"}


@step(2, BLOCKS)
def weighted(d: Draw, v: int) -> Drawn | None:
    """Branches with learned weights, or one gating another."""
    axes, c = maps(d, v)
    a, b = (conv_layer(d, c, axes, c, same=True) for _ in range(2))
    code = d.one(
        "{m}['g'].weight * {m}['a']({0}) + (1 - {m}['g'].weight) * {m}['b']({0})",
        "{m}['a']({0}) * {m}['b']({0})",
        "{m}['a']({0}) * torch.sigmoid({m}['g'].weight) + {0}",
        "sum(w * m({0}) for w, m in zip({m}['w'].weight.softmax(0), ({m}['a'], {m}['b'])))",
        "({m}['a']({0}) + {m}['b']({0})) / 2",
        "torch.stack([{m}['a']({0}), {m}['b']({0})]).mean(0)",
        "{m}['a']({0}).add_({m}['b']({0})).mul_({m}['g'].weight)",
    )
    layers = modules(a=a, b=b, g="nn.PReLU()", w="nn.PReLU(2)")
    return "weighted", f"{{out}} = {code}", {"layer": layers}


@step(2, BLOCKS)
def wrapped(d: Draw, v: int) -> Drawn | None:
    """Modules that ask their attributes which layers to run, keep them in plain lists, or return several values."""
    axes, c = maps(d, v)
    first, last = conv_layer(d, c, axes, c, same=True), norm_layer(d, c, axes + 2)
    cls = d.one("Early", "Listed", "Optional", "Nested", "Pair")
    return cls.lower(), "{out} = {m}({0})", {"layer": f"{cls}({first}, {last})"}


@step(2, BLOCKS)
def windows(d: Draw, v: int) -> Drawn | None:
    """A layer on windows of a map, or a mean over them."""
    c, h, w = _images(d, v)
    if h % 2 or w % 2:
        return None
    part = f"{{0}}.reshape(-1, {c}, {h // 2}, 2, {w // 2}, 2)"
    code = d.one(
        f"{{out}} = {{m}}({part}.permute(0, 1, 2, 4, 3, 5).flatten(-2)).unflatten(-1, (2, 2))"
        f".permute(0, 1, 2, 4, 3, 5).reshape(-1, {c}, {h}, {w})",
        f"{{out}} = {{m}}({part}.permute(0, 2, 4, 1, 3, 5).reshape(-1, {h // 2}, {w // 2}, {4 * c})[..., :4])",
        f"{{out}} = {part}.mean((3, 5))",
        f"{{out}} = {part}.sum(-1).sum(3) / 4",
    )
    return "windows", code, {"layer": "nn.Linear(4, 4)"} if "{m}" in code else {}


@step(1.5, BLOCKS)
def repeated(d: Draw, v: int) -> Drawn | None:
    """Numbers several times."""
    rest = len(d.shape(v)) - 2
    code = d.one(
        f"{{0}}.repeat(1, 2{', 1' * rest})", "{0}.repeat_interleave(2, 1)", "{0}.repeat_interleave(2, dim=-1)",
        f"torch.tile({{0}}, (1, 2{', 1' * rest}))", "torch.cat([{0}, {0}], 1)", "{0}.flip(1)", "{0}.narrow(1, 0, 1)",
        "{0}.index_select(1, torch.arange({0}.shape[1]).flip(0))", "{0}.mean(1, True).expand_as({0})", "{0}.cumsum(1)",
    )  # fmt: skip
    return "repeated", f"{{out}} = {code}", {}


@step(2, BLOCKS)
def down_and_up(d: Draw, v: int) -> Drawn | None:
    """Two ways to a smaller map, or a smaller map and back."""
    c, _, _ = _images(d, v)
    layers = {
        "a": f"nn.Conv2d({c}, {c}, 3, stride=2, padding=1, groups={d.one(1, c)})",
        "b": d.one(f"nn.Conv2d({c}, {c}, 1, stride=2)", "nn.AvgPool2d(2, 2, ceil_mode=True)", "nn.AvgPool2d(3, 2, 1)"),
        "up": d.one(f"nn.ConvTranspose2d({c}, {c}, 2, stride=2)", "nn.Upsample(scale_factor=2)"),
        "n": f"nn.BatchNorm2d({c})",
    }
    code = d.one(
        "{m}['a']({0}) + {m}['b']({0})",
        "{m}['n']({m}['a']({0})) + {m}['n']({m}['b']({0}))",
        "{m}['n']({m}['up']({0}))",
        "{m}['up']({m}['a']({0}))",
        "{m}['a']({m}['up']({0})) + {m}['n']({0})",
        "{m}['n']({m}['b']({m}['n']({0})))",
        "{0} + F.interpolate({m}['a']({0}), size={0}.shape[-2:])",
    )
    return "down_and_up", f"{{out}} = {code}", {"layer": modules(**layers)}


@step(2, BLOCKS)
def normalized(d: Draw, v: int) -> Drawn | None:
    """A norm of each token or sample, whose affine part goes into what reads it."""
    c = d.shape(v)[-1]
    norm = d.one(
        f"nn.LayerNorm({c})",
        f"nn.LayerNorm({c}, bias=False)",
        f"nn.RMSNorm({c})",
        f"nn.LayerNorm({c}, elementwise_affine=False)",
    )
    code = d.one(
        "{m}['a']({m}['n']({0}))", "{m}['a']({m}['n']({0})) * {m}['b']({m}['n']({0}))", "{m}['a']({m}['n']({0})) + {0}"
    )
    own = "({0} * ({0}.pow(2).mean(-1, keepdim=True) + 0.1).rsqrt() * {m}['n'].weight)"
    if d.chance(0.3) and "affine" not in norm:
        code = code.replace("{m}['n']({0})", own)
    return (
        "normalized",
        f"{{out}} = {code}",
        {"layer": modules(n=norm, a=linear_layer(d, c, c), b=linear_layer(d, c, c))},
    )
