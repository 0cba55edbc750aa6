"""The same linear steps in other words, and in loops and branches, drawn for seeds from `SPELLINGS` on."""

from __future__ import annotations

from .blocks import maps, modules
from .draw import Draw, Drawn, conv_layer, norm_layer, step

SPELLINGS = 80_000_000
"""The first seed of programs that have these steps as well."""


def _dims(d: Draw, v: int) -> tuple[int, ...]:
    """Some dimensions besides the batch, from either end."""
    rank = len(d.shape(v))
    found = d.random.sample(range(1, rank), d.random.randint(1, min(2, rank - 1)))
    return tuple(n - rank if d.chance(0.5) else n for n in found)


@step(3, SPELLINGS)
def blended(d: Draw, v: int) -> Drawn | None:
    """Two values, of a layer each, added with constant weights."""
    axes, c = maps(d, v)
    size = d.one((c, *[1] * axes), (1, c, *[1] * axes), (1,), d.shape(v)[-1:])
    code = d.one(
        "torch.where({m}['w'].weight > 0, {a}, {b})",
        "torch.where({m}['w'].weight.bool(), {b}, {a})",
        "torch.lerp({a}, {b}, {m}['w'].weight)",
        "{a}.lerp({b}, 0.3)",
        "torch.addcmul({a}, {b}, {m}['w'].weight, value=0.5)",
        "torch.addcdiv({a}, {b}, {m}['w'].weight.exp())",
        "torch.sub({a}, {b}, alpha=2)",
        "torch.rsub({a}, {b})",
        "sum([{a}, {b}, {0}])",
        "torch.stack(({a}, {b}, {0}), dim=-1).sum(-1)",
        "torch.stack([{a}, {b}]).mean(0)",
        "torch.cat([{a}, {b}], 1).unflatten(1, (2, -1)).sum(1)",
        "torch.cat([{a}, {b}], 1).unflatten(1, (-1, 2)).mean(2)",
        "torch.einsum('k...,k->...', torch.stack([{a}, {b}]), {m}['s'].weight.softmax(0))",
        "-({a} - {b})",
        "{a}.neg().add({b}, alpha=-0.5)",
        "{a} / {m}['w'].weight.exp() + {b}",
        "1.5 - {a} - {b}",
        "{a}.masked_fill({m}['w'].weight > 0, 0.0) + {b}",
        "torch.cat([{a}, {b}], 1).chunk(2, 1)[0]",
    )
    a, b = d.one("{m}['a']({0})", "{0}"), d.one("{m}['b']({0})", "{m}['n']({0})", "{m}['a']({0})")
    layers = {name: conv_layer(d, c, axes, c, same=True) for name in "ab"}
    weight = f"nn.ParameterDict(dict(weight=nn.Parameter(torch.ones{size})))"
    made = modules(**layers, n=norm_layer(d, c, axes + 2), w=weight, s="nn.PReLU(2)")
    return "blended", f"{{out}} = {code.replace('{a}', a).replace('{b}', b)}", {"layer": made}


@step(3, SPELLINGS)
def reordered(d: Draw, v: int) -> Drawn | None:
    """Positions in another order, or differences of neighbours."""
    shape, dims = d.shape(v), _dims(d, v)
    dim, c = dims[0], shape[1]
    n = shape[dim]
    order = d.random.sample(range(n), n)
    code = d.one(
        f"{{0}}.flip({dims})",
        f"torch.flip({{0}}, dims={dims})",
        f"{{0}}.roll({(1,) * len(dims)}, {dims})",
        f"torch.roll({{0}}, shifts=-2, dims={dim})",
        f"{{0}}.movedim({dim}, -1)",
        f"{{0}}.swapaxes({dim}, 1)",
        "{0}[..., ::2]",
        "{0}[:, ::2]",
        f"{{0}}[:, {[*range(c)][::-1]}]",
        f"{{0}}[:, torch.tensor({[0] * 2})]",
        f"{{0}}.index_select({dim}, torch.tensor({order}))",
        f"torch.stack({{0}}.unbind({dim})[::-1], {dim})",
        f"torch.cat({{0}}.split(1, {dim})[::-1], {dim})",
        "torch.cat([{0}[:, 1:], {0}[:, :1]], 1)",
        f"{{0}} - {{0}}.roll(1, {dim})",
        f"{{0}}.cumsum({dim})",
        f"{{0}} + {{0}}.flip({dim})",
        f"{{0}}.diff(dim={dim})",
        f"{{0}}.narrow({dim}, 0, {max(1, n - 1)})",
        f"{{0}}.unsqueeze({dim}).squeeze({dim})",
        "F.pad({0}, (1, 0))[..., :-1]",
        "F.pad({0}[..., 1:], (0, 1))",
        "{0}[..., 1:] - {0}[..., :-1]",
        f"{{0}}.select({dim}, 0)",
        f"{{0}}.take_along_dim(torch.tensor({order}).view({_along(len(shape), dim, n)}), {dim})",
    )
    return "reordered", f"{{out}} = {code}", {}


def _along(rank: int, dim: int, n: int) -> str:
    """A shape with one long dimension."""
    return ", ".join(str(n if k == dim % rank else 1) for k in range(rank))


@step(2, SPELLINGS)
def averaged(d: Draw, v: int) -> Drawn | None:
    """Means and sums, and values less their means."""
    dims, shape = _dims(d, v), d.shape(v)
    dim, rank = dims[0], len(shape)
    code = d.one(
        f"{{0}} - {{0}}.mean({dims}, keepdim=True)",
        f"{{0}}.mean(dim={[*dims]})",
        f"{{0}}.sum({dim}) / {{0}}.shape[{dim}]",
        f"{{0}}.sum({dim}, keepdim=True) * 0.1",
        f"torch.mean({{0}}, {dim}, True).expand_as({{0}}) + {{0}}",
        f"{{0}}.mean({dim}).unsqueeze({dim % rank}) * 2",
        f"{{0}} * 2 - {{0}}.mean({dim}, keepdim=True)",
        "F.avg_pool2d({0}, {0}.shape[-2:])",
        "F.avg_pool2d({0}, {0}.size()[2:]).flatten(1)",
        "F.avg_pool1d({0}.flatten(2), 2)",
        "F.adaptive_avg_pool2d({0}, (1, None))",
        "F.adaptive_avg_pool2d({0}, 1).flatten(1)",
        f"F.avg_pool2d({{0}}, {list(shape[2:])}).flatten(1)",
        "F.avg_pool2d({0}, 3, 1, 1) - {0}",
    )
    return "averaged", f"{{out}} = {code}", {}


@step(2.5, SPELLINGS)
def contracted(d: Draw, v: int) -> Drawn | None:
    """Products with a matrix, of the channels or of the last dimension."""
    shape = d.shape(v)
    c, n, out = shape[1], shape[-1], d.one(2, 3, shape[1])
    channels, last = f"nn.Parameter(torch.ones({out}, {c}))", f"nn.Parameter(torch.ones({out}, {n}))"
    code, layer = d.one(
        ("torch.einsum('oc,nc...->no...', {m}, {0})", channels),
        ("torch.tensordot({0}, {m}, dims=([1], [1])).movedim(-1, 1)", channels),
        ("F.linear({0}.movedim(1, -1), {m}).movedim(-1, 1)", channels),
        ("({m} @ {0}.flatten(2)).unflatten(2, {0}.shape[2:])", channels),
        ("torch.matmul({m}, {0}.flatten(2))", channels),
        ("torch.tensordot({0}, {m}.t(), 1)", last),
        ("torch.inner({0}, {m})", last),
        ("{0}.matmul({m}.mT)", last),
        ("torch.einsum('...i,oi->...o', {0}, {m}.softmax(0))", last),
        ("F.linear({0}, {m} - {m}.mean(0), {m}.sum(1))", last),
        ("{0} @ torch.cat([{m}, -{m}]).t()", last),
        ("({0}.unsqueeze(-2) * {m}).sum(-1)", last),
        ("torch.bmm({0}.flatten(1, -2), {m}.t().expand({0}.shape[0], -1, -1))", last),
        ("{0}.flatten(1) @ {m}.t()", f"nn.Parameter(torch.ones({out}, {d.values[v][0].numel()}))"),
    )
    return "contracted", f"{{out}} = {code}", {"layer": layer}


@step(2.5, SPELLINGS)
def made_weight(d: Draw, v: int) -> Drawn | None:
    """A convolution whose weight is computed."""
    axes, c = maps(d, v)
    dims = tuple(range(2, 2 + axes))
    weight = d.one(
        "{m}.flip(-1)",
        f"{{m}} + {{m}}.flip({dims})",
        f"{{m}} - {{m}}.mean({dims}, keepdim=True)",
        "{m}.transpose(0, 1)",
        "{m} / ({m}.norm() + 1)",
        f"{{m}}.sum({dims}, keepdim=True)",
        "{m} * ({m} > 0)",
        "torch.cat([{m}, -{m}])",
        "{m}.mean(1, keepdim=True).expand_as({m})",
        "{m}.softmax(1)",
        "{m}.repeat(2, *[1] * ({m}.dim() - 1))",
        "{m}[:1]",
        "torch.tanh({m}) * 2",
        "{m}.clone()",
        "{m}.roll(1, -1)",
        "F.pad({m}, (1, 1))",
        "{m}[..., 1:]",
    )
    padding = d.one(0, 1, 1)
    extra = d.one("", " + {0}", f" * {{m}}.mean(({', '.join(map(str, range(1, axes + 2)))})).view(-1{', 1' * axes})")
    code = f"{{out}} = F.conv{axes}d({{0}}, {weight}, padding={padding}){extra}"
    return "made_weight", code, {"layer": f"nn.Parameter(torch.ones({c}, {c}{', 3' * axes}))"}


@step(4, SPELLINGS)
def looped(d: Draw, v: int) -> Drawn | None:
    """Layers that are called in a loop, each in its way."""
    axes, c = maps(d, v)
    layers = [
        d.one(conv_layer(d, c, axes, c, same=True), norm_layer(d, c, axes + 2)) for _ in range(d.random.randint(2, 3))
    ]
    code = d.one(
        "{out} = {0}\nfor {out}_l in {m}:\n    {out} = {out}_l({out})",
        "{out} = {0}\nfor {out}_l in reversed({m}):\n    {out} = {out}_l({out}) + {out}",
        "{out} = {0}\nfor {out}_i, {out}_l in enumerate({m}):\n    {out} = {out}_l({out}) * ({out}_i + 1)",
        "{out} = 0\nfor {out}_l, {out}_s in zip({m}, (0.5, -1, 2)):\n    {out} = {out} + {out}_s * {out}_l({0})",
        "{out} = sum({out}_l({0}) for {out}_l in {m})",
        "{out} = torch.cat([{out}_l({0}) for {out}_l in {m}], 1)",
        "{out}_i, {out} = 0, {0}\nwhile {out}_i < len({m}):\n    {out}, {out}_i = {m}[{out}_i]({out}), {out}_i + 1",
        "{out}_y = [{0}]\nfor l in {m}:\n    {out}_y.append(l({out}_y[-1]))\n{out} = {out}_y[-1] + {out}_y[1]",
        "{out}_y = [{0}]\nfor {out}_l in {m}:\n    {out}_y.append({out}_l(sum({out}_y)))\n{out} = sum({out}_y[1:])",
        "{out}_y = {{n: l({0}) for n, l in {m}.named_children()}}\n{out} = {out}_y['0'] - {out}_y['1']",
        "{out} = {m}[1]({m}[0]({0})) if {0}.shape[1] > 1 else {m}[0]({0})",
        "{out} = {m}[0]({0})\nif {out}.dim() == {0}.dim():\n    {out} = {m}[1]({out})",
        "{out} = {m}[-1](*({out}_l({0}) for {out}_l in {m}[:1]))",
        "{out} = {m}[0]({0})\n{out} += {m}[1]({0})",
        "with torch.no_grad():\n    {out} = {m}[0]({0})\n{out} = {m}[1]({out})",
        "assert {0}.dim() > 2\n{out}, {out}_b = (l({0}) for l in list({m})[:2])\n{out} = {out} + {out}_b",
        "try:\n    {out} = {m}[0]({0}) + {m}[1]({0})\nexcept ValueError:\n    {out} = {0}",
        "{out}_f = lambda t, k=0: {m}[k](t)\n{out} = {out}_f({out}_f({0}), k=1)",
    )
    return "looped", code, {"layer": f"nn.ModuleList([{', '.join(layers)}])"}


@step(1.5, SPELLINGS)
def unfolded(d: Draw, v: int) -> Drawn | None:
    """Windows as columns, and a matrix over them."""
    c = d.shape(v)[1]
    if len(d.shape(v)) != 4 or c > 4:
        return None
    k, out = d.one(2, 3), d.one(2, c)
    how = d.one(f"{k}, stride={k}", f"{k}", f"{k}, padding=1")
    code = d.one(
        f"{{m}}(F.unfold({{0}}, {how}).mT)",
        f"{{m}}(F.unfold({{0}}, {how}).transpose(1, 2)).transpose(1, 2)",
        f"{{m}}.weight @ F.unfold({{0}}, {how})",
        f"{{m}}({{0}}.unfold(2, {k}, {k}).unfold(3, {k}, {k}).permute(0, 2, 3, 1, 4, 5).flatten(3))",
    )
    return "unfolded", f"{{out}} = {code}", {"layer": f"nn.Linear({c * k * k}, {out})"}


@step(1.5, SPELLINGS)
def widened(d: Draw, v: int) -> Drawn | None:
    """Channels or positions of zeros, ones or copies beside a value, and a layer over them."""
    axes, c = maps(d, v)
    code = d.one(
        f"F.pad({{0}}, (0, 0{', 0, 0' * (axes - 1)}, 1, 2))",
        "torch.cat([{0}, torch.zeros_like({0})], 1)",
        "torch.cat([{0}, {0}.new_ones({0}.shape)], 1)",
        "torch.cat([torch.ones_like({0}[:, :1]), {0}], dim=1)",
        f"F.pad({{0}}, (1, 1{', 1, 1' * (axes - 1)}), mode='circular')",
        f"F.pad({{0}}, (1, 0{', 0, 1' * (axes - 1)}), value=0.5)",
        f"F.pad({{0}}, (-1, 0{', 0, 0' * (axes - 1)}))",
        f"{{0}}.repeat(1, 2{', 1' * axes})",
        "torch.cat((-{0}, {0}, {0} * 2), 1)",
        f"F.pad({{0}}, (1, 1{', 1, 1' * (axes - 1)}), 'replicate')",
    )
    wide = {"F.pad({0}, (0, 0": c + 3, "torch.cat([torch.ones_like": c + 1, "torch.cat((": 3 * c, "F.pad": c}
    n = next((n for begin, n in wide.items() if code.startswith(begin)), 2 * c)
    return "widened", f"{{out}} = {{m}}({code})", {"layer": conv_layer(d, n, axes, c)}
