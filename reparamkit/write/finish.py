"""From the rewritten graph to the user's own model: modules swapped, methods regenerated, nothing left over."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from ..capture.capture import Captured
from ..capture.guards import expect_rank
from ..capture.tracer import Frame
from ..engine.scope import innermost
from ..errors import NotFusable
from .frames import fold, method, original_class, regenerated
from .splice import Written, place_of


class Expect(nn.Identity):
    """What is left of a merged layer where the merge was proved for one rank of its input: a check."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, input: Tensor) -> Tensor:
        """input: any shape of `rank` dimensions; returned as it is."""
        expect_rank(input, self.rank)
        return input


@dataclass(eq=False)
class Finisher:
    """Collects what has to change, then changes the modules.

    swaps: per module path its replacement, for rows of module calls. frames: calls to write again, with the
    calls inlined into them. moves: temporary name of a merged layer -> the path whose place it takes.
    dead: paths of layers that were merged. paths: temporary name of a merged layer -> its final path.
    """

    captured: Captured
    swaps: dict[str, nn.Module] = field(default_factory=dict)
    frames: dict[int, Frame] = field(default_factory=dict)
    inlined: set[int] = field(default_factory=set)
    moves: dict[str, tuple[str, Frame]] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    paths: dict[str, str] = field(default_factory=dict)

    # --- collecting ------------------------------------------------------------------------------

    def below(self, frame: Frame, members: Iterable[fx.Node]) -> set[int]:
        """The calls inside `frame` that these members are in."""
        return {
            id(inner)
            for node in members
            for inner in self.captured.frame(node).stack
            if frame in inner.stack and inner is not frame
        }

    def check(self, frame: Frame, members: Iterable[fx.Node]) -> None:
        """Raises `NotFusable` if the frame cannot be written again."""
        method(fold(self.captured, frame, frozenset(self.inlined | self.below(frame, members))))

    def touches(self, members: Iterable[fx.Node]) -> bool:
        """Whether code that calls some of these members is written again."""
        frames = [self.captured.frame(node) for node in members]
        around = innermost(frames)
        calls = {id(f) for frame in frames for f in frame.stack if around in f.stack}
        return bool(calls & (self.inlined | self.frames.keys()))

    def passed(self) -> set[fx.Node]:
        """Arguments of the calls that stay calls in code that is written again, whether they are read there or not."""
        written = self.inlined | self.frames.keys()
        busy = {id(f) for node in self.captured.graph.nodes for f in self.captured.frame(node).stack}
        left = busy - self.inlined
        calls = [f for f in self.captured.frames if id(f.parent) in written and id(f) in left]
        leaves = tree_flatten([(f.args, f.kwargs) for f in calls])[0]
        return {self.captured.current(leaf) for leaf in leaves if isinstance(leaf, fx.Node)}

    def rewrite(self, frame: Frame, members: Iterable[fx.Node]) -> None:
        """The method of this call will be written again, and what the members are in goes into it."""
        self.frames[id(frame)] = frame
        self.inlined |= self.below(frame, members)

    def chain(self, written: Written) -> None:
        """A row of module calls: the layer takes one place, the others become identities."""
        (name,) = written.layers
        anchor = place_of(written.anchors[name])
        placed = written.site.placed
        assert placed is not None
        layers = {step.node for step in placed.terms[0].trail if step.is_layer}
        members = [m for m in written.site.members if m.name in layers]
        others = sorted({place_of(m) for m in members} - {anchor})
        if placed.form.guards and others:
            # The check comes first, and the layer, which stands anywhere in the row as well, last.
            by_name = {m.name: place_of(m) for m in members}
            *others, anchor = [by_name[step.node] for step in placed.terms[0].trail if step.node in by_name]
        self.swaps |= {path: nn.Identity().eval() for path in others}
        if placed.form.guards and others:
            self.swaps[others[0]] = Expect(len(placed.form.sizes)).eval()
        used = any(node.target == name for node in self.captured.graph.nodes)
        layer = self.captured.held.pop(name)
        # A layer that was merged further has its place in the swaps of that merge.
        self.swaps[anchor] = layer if used else nn.Identity().eval()
        self.dead -= {anchor, *others}
        self._retarget(name, anchor)

    def region(self, written: Written) -> None:
        """Any other site."""
        for name, anchor in written.anchors.items():
            if any(node.target == name for node in self.captured.graph.nodes):
                self.moves[name] = place_of(anchor), written.frame
            else:
                del self.captured.held[name]
        self.dead |= _targets(written)

    # --- changing --------------------------------------------------------------------------------

    def finish(self, rewrite: bool) -> None:
        """Change the modules of the root; `rewrite`: and the methods."""
        self._move_layers()
        for frame in sorted(self.frames.values(), key=lambda f: -f.path.count(".")):
            if rewrite and id(frame) not in self.inlined:
                self._regenerate(frame)
        self._remove_unread()
        for path, module in self.swaps.items():
            _set(self.captured.root, path, module)
        self._remove_dead_modules()

    def _move_layers(self) -> None:
        """Give every merged layer the place of the layer it stands for, as high as that place is free."""
        live = self._live()
        for name, (path, frame) in self.moves.items():
            target = self._place(path, frame, live)
            live.add(target)
            _set(self.captured.root, target, self.captured.held.pop(name))
            self.dead.discard(target)
            self._retarget(name, target)

    def _live(self) -> set[str]:
        """Paths of modules, parameters and buffers that something still uses."""
        nodes = self.captured.graph.nodes
        used = {str(n.target) for n in nodes if n.op in ("call_module", "get_attr")}
        names = {name for name, _ in self.captured.root.named_modules() if name}
        swallowed = {f.path for f in self.captured.frames if id(f) in self.inlined}
        gone = tuple(f"{path}." for path in self.dead)
        return used | {n for n in names if n not in self.dead and n not in swallowed and not n.startswith(gone)}

    def _place(self, path: str, frame: Frame, live: set[str]) -> str:
        prefix = f"{frame.path}." if frame.path else ""
        if not path.startswith(prefix) or not path:
            path = self._fresh(prefix, live)
        parts = path[len(prefix) :].split(".")
        for depth in range(1, len(parts) + 1):
            candidate = prefix + ".".join(parts[:depth])
            if not any(p == candidate or p.startswith(f"{candidate}.") for p in live):
                return candidate
        return self._fresh(prefix, live)

    def _fresh(self, prefix: str, live: set[str]) -> str:
        taken = {*live, *(n for n, _ in self.captured.root.named_modules())}
        return next(f"{prefix}merged{k}" for k in range(10**6) if f"{prefix}merged{k}" not in taken)

    def _retarget(self, old: str, new: str) -> None:
        self.paths[old] = new
        for node in self.captured.graph.nodes:
            if node.op == "call_module" and node.target == old:
                node.target = new

    def _regenerate(self, frame: Frame) -> None:
        graph = fold(self.captured, frame, frozenset(self.inlined))
        self._keep_constants(graph, frame.module)
        frame.module.__class__ = regenerated(original_class(frame.module), method(graph))

    def _remove_unread(self) -> None:
        """Parameters that only code read which is written again, and which reads them no more."""
        used = {str(n.target) for n in self.captured.graph.nodes if n.op == "get_attr"}
        written = {f.path for f in self.captured.frames if id(f) in self.inlined or id(f) in self.frames}
        for path in self.captured.attributes - used:
            owner, _, name = path.rpartition(".")
            if owner and not _exists(self.captured.root, owner):
                continue
            module = self.captured.root.get_submodule(owner)
            if isinstance(module, nn.ParameterDict):
                if owner.rpartition(".")[0] in written:
                    module.pop(name)
            elif owner in written:
                # Not deleted: a subclass of a torch layer shows them in its repr.
                table = module._parameters if name in module._parameters else module._buffers
                table[name] = None

    def _keep_constants(self, graph: fx.Graph, module: nn.Module) -> None:
        """Tensors that the method made of plain numbers become buffers, which are not saved."""
        for node in graph.nodes:
            if node.op == "get_attr" and node.target in self.captured.held:
                name = next(f"_constant{k}" for k in itertools.count() if not hasattr(module, f"_constant{k}"))
                module.register_buffer(name, self.captured.held[str(node.target)], persistent=False)
                node.target = name

    def _remove_dead_modules(self) -> None:
        used = {str(n.target) for n in self.captured.graph.nodes if n.op in ("call_module", "get_attr")}
        for path in sorted(self.dead, key=lambda p: -p.count(".")):
            if path not in used and self._is_old(path):
                self._remove(path, used)
        for frame in sorted(self.captured.frames, key=lambda f: -f.path.count(".")):
            if id(frame) in self.inlined and self._is_old(frame.path):
                self._hollow(frame.path, used)

    def _is_old(self, path: str) -> bool:
        """Whether a path still is that of the model's own module, and not of one inside a merged layer."""
        inside = any(path.startswith(f"{merged}.") for merged in self.paths.values())
        return not inside and _exists(self.captured.root, path)

    def _remove(self, path: str, used: set[str]) -> None:
        """A merged layer: gone, but for parameters that the code reads itself."""
        read = {name.rpartition(".")[2] for name in used if name.rpartition(".")[0] == path}
        if not read:
            _delete(self.captured.root, path)
            return
        module = self.captured.root.get_submodule(path)
        for name in {*module._parameters, *module._buffers} - read:
            delattr(module, name)
        _set(self.captured.root, path, _container(module))

    def _hollow(self, path: str, used: set[str]) -> None:
        """A module whose work is done in its caller now: gone, or a container of what is still used."""
        module = self.captured.root.get_submodule(path)
        if any(name == path for name in used) or not any(True for _ in self._calls(path)):
            return
        for name in list(module._parameters) + list(module._buffers):
            if f"{path}.{name}" not in used:
                delattr(module, name)
        if not (module._modules or module._parameters or module._buffers):
            _delete(self.captured.root, path)
        elif not isinstance(module, nn.Sequential):
            _set(self.captured.root, path, _container(module))

    def _calls(self, path: str) -> Iterable[Frame]:
        return (f for f in self.captured.frames if f.path == path and id(f) in self.inlined)


def _targets(written: Written) -> set[str]:
    return {str(n.target) for n in written.site.members if n.op == "call_module"}


def _container(module: nn.Module) -> nn.Sequential:
    made = nn.Sequential(OrderedDict(module._modules.items()))  # type: ignore[arg-type]
    made._parameters, made._buffers = module._parameters, module._buffers
    return made.train(module.training)


def _parent(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return root.get_submodule(parent), name


def _set(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, name = _parent(root, path)
    if name in parent._modules:
        parent._modules[name] = module
    else:
        parent.add_module(name, module)


def _delete(root: nn.Module, path: str) -> None:
    parent, name = _parent(root, path)
    if isinstance(parent, nn.ModuleList):
        parent._modules[name] = nn.Identity().train(parent.training)
    else:
        delattr(parent, name)


def _exists(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return bool(path)


# --- numbers ----------------------------------------------------------------------------------------


def settle(module: nn.Module, like: Tensor | None, requires_grad: bool) -> list[str]:
    """Cast a merged layer once, to the dtype and device of the layers it replaces; returns warnings.

    Raises `NotFusable` if a number is finite in float64 and not in that dtype.
    """
    warnings: list[str] = []
    for name, parameter in module.named_parameters():
        data = parameter.data
        cast = data if like is None else data.to(like.device, like.dtype)
        if cast.dtype != data.dtype and _overflows(cast) and not _overflows(data):
            raise NotFusable(f"a merged {name} overflows {_short(cast.dtype)}")
        if lossy := _lossy(data, cast.dtype):
            shown = ", ".join(map(str, lossy[:4])) + ", ..." * (len(lossy) > 4)
            warnings.append(f"channel {shown} of the {name} is too small for {_short(cast.dtype)} and loses digits")
        owner, _, own_name = name.rpartition(".")
        made = nn.Parameter(cast.contiguous(), requires_grad=requires_grad)
        module.get_submodule(owner).register_parameter(own_name, made)
    return warnings


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _lossy(weight: Tensor, dtype: torch.dtype) -> list[int]:
    """The channels of a weight all of whose numbers are below the smallest normal one, where digits get lost."""
    if weight.dim() < 2 or not weight.numel():
        return []
    rows = weight.flatten(1)
    peak = torch.maximum(rows.amax(1), -rows.amin(1))
    found: list[int] = ((peak > 0) & (peak < torch.finfo(dtype).tiny)).nonzero().flatten().tolist()
    return found


def _overflows(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and not all(bool(bound.isfinite()) for bound in torch.aminmax(tensor))
