"""The flat graph of a model, with what the later stages ask about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.utils.weak import WeakIdKeyDictionary

from ..running.trees import leaves, map_leaves
from ..tracing.frame import Frame, Method
from ..tracing.guards import expect
from ..tracing.proxies import attribute
from .aliases import Aliases
from .facts import Apart, Code, Origin, Outside, Unused
from .paths import module_at

LOOKUPS = (nn.Embedding, nn.EmbeddingBag)
"""Layers that write into their weight, if its rows have a largest norm."""
POSITIONS = ("targets", "owners", "made_in", "deciding")
"""What `Captured` knows of where nodes are."""


@dataclass(eq=False)
class Captured:
    """The flat graph of a model.

    root: the model that was traced; the graph's targets are its submodules and parameters.
    frames: every call of a module that was traced through, the root's first.
    origin, code, unused, outside: see these.
    held: what the graph names and the model has not: constant tensors, merged layers that have no place yet.
    replaced: merged values -> the nodes that have them now.
    constants: values that depend on parameters and buffers only. numbers: what code makes of sizes.
    folded: per module (by identity) the code that calls it on constants, where the graph has arithmetic.
    opened: calls (by identity) that are made no more, as their code is part of other code.
    apart: per node that has the value of a call, what there was before the call was taken apart.
    raised: scales that stand elsewhere than in the code, until something absorbs them.
    finite: whether all numbers of a tensor are, of those that were asked about.
    dropped: calls that only hand on what they get, which the graph does not show any more.
    """

    root: nn.Module
    graph: fx.Graph
    frames: list[Frame]
    origin: Origin
    code: Code
    unused: Unused = field(default_factory=Unused)
    outside: Outside = field(default_factory=Outside)
    held: dict[str, Any] = field(default_factory=dict)
    replaced: dict[fx.Node, fx.Node] = field(default_factory=dict)
    constants: set[fx.Node] = field(default_factory=set)
    numbers: set[fx.Node] = field(default_factory=set)
    folded: dict[int, list[Frame]] = field(default_factory=dict)
    opened: set[int] = field(default_factory=set)
    apart: dict[fx.Node, Apart] = field(default_factory=dict)
    raised: set[fx.Node] = field(default_factory=set)
    finite: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)
    dropped: set[fx.Node] = field(default_factory=set)

    def current(self, node: fx.Node) -> fx.Node:
        """The node that has the value of `node` now, after merges."""
        while node in self.replaced:
            node = self.replaced[node]
        return node

    def scaled(self, scale: fx.Node) -> fx.Node:
        """The value that a scale is of."""
        (value,) = (n for n in scale.all_input_nodes if n not in self.constants and n not in self.numbers)
        return value

    def nodes_in(self, *values: object) -> set[fx.Node]:
        """The nodes in arguments or results of calls, as they are now, after merges."""
        return {self.current(leaf) for leaf in leaves(values) if isinstance(leaf, fx.Node)}

    def hand_on(self, renamed: Mapping[fx.Node, fx.Node]) -> None:
        """Let calls that were traced through take and return other nodes."""

        def given_now(leaf: Any) -> Any:
            return renamed.get(self.current(leaf), leaf) if isinstance(leaf, fx.Node) else leaf

        for frame in self.frames:
            given = frame.args, frame.kwargs, frame.output
            frame.args, frame.kwargs, frame.output = map_leaves(given_now, given)

    @cached_property
    def aliases(self) -> Aliases:
        """Who shares memory with whom."""
        return Aliases(self.graph, self.module)

    @cached_property
    def module_calls(self) -> Counter[int]:
        """How often each module object is called, as a node or as a frame (by identity)."""
        calls = Counter([*(id(frame.module) for frame in self.frames), *map(id, self.unused.called)])
        calls.update(id(self.module(n)) for n in self.graph.nodes if n.op == "call_module")
        calls.update({module: len(frames) for module, frames in self.folded.items()})
        return calls

    def calls_left(self, module: int) -> int:
        """How often a module (by identity) is called on what is no constant."""
        return self.module_calls[module] - len(self.folded.get(module, ()))

    def open_call(self, frame: Frame) -> None:
        """Let the code of a call on constants be of the code around it."""
        around, inside = frame.parent, {frame, *self.called_in[frame]}
        assert around is not None
        for node in self.made_in[frame]:
            node.meta["frame"] = around
        for each in inside:
            self.folded.setdefault(id(each.module), []).append(around)
            around.asks, around.ranks = around.asks or each.asks, around.ranks or each.ranks
            around.lists |= each.lists
            around.codes |= each.codes
            for module, read in each.read.items():
                around.read.setdefault(module, set()).update(read)
        self.frames = [each for each in self.frames if each not in inside]
        for table in (self.code.attributes, self.code.callers):
            table.update({path: [around if f in inside else f for f in frames] for path, frames in table.items()})
        del self.called_in
        self.forget()

    def fold(self, call: fx.Node, result: fx.Node, nodes: Iterable[fx.Node]) -> None:
        """Nodes that read the parameters of a module stand for a call of it on constants."""
        around = self.frame(call)
        self.folded.setdefault(id(self.module(call)), []).append(around)
        for node in nodes:
            if node.op == "get_attr":
                self.code.attributes.setdefault(str(node.target), []).append(around)
        self.replaced[call] = result
        call.replace_all_uses_with(result, propagate_meta=False)
        self.graph.erase_node(call)
        self.forget()

    @property
    def is_hindered(self) -> bool:
        """Whether more might merge if code did nothing for nothing: also what it decides may be for that."""
        unused = self.unused
        return unused.computes and bool(unused.hinders or unused.calls or self.decisions)

    @cached_property
    def parameter_uses(self) -> Counter[int]:
        """How many modules and attribute reads hold each parameter or buffer storage."""
        uses: Counter[int] = Counter()
        gone = {module_at(self.root, path) for path in self.uncalled_paths}
        for module in (module for module in self.root.modules() if module not in gone):
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            uses.update({storage(t) for t in tensors if t.numel()})
        return uses

    @property
    def uncalled_paths(self) -> list[str]:
        """Paths of modules that only code called which is part of other code now, where it calls them no more."""
        return [
            path
            for path, frames in self.code.callers.items()
            if path not in self.targets and all(id(frame) in self.opened for frame in frames)
        ]

    def names(self, path: str) -> Sequence[str]:
        """All paths of the module at a path: it may be registered at several places."""
        return self._several_names.get(path, (path,))

    @cached_property
    def _several_names(self) -> dict[str, list[str]]:
        return {path: names for names in self.paths.values() if len(names) > 1 for path in names}

    @cached_property
    def paths(self) -> Mapping[nn.Module, list[str]]:
        """The paths of each module of the model. In place, modules that are merged away are freed."""
        paths: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
        for path, module in self.root.named_modules(remove_duplicate=False):
            paths.setdefault(module, []).append(path)
        return paths

    @cached_property
    def written(self) -> set[int]:
        """The memory of parameters and buffers that the forward writes into."""
        named = {n for writer in self.aliases.writers for n in self.aliases.of(writer) if n.op == "get_attr"}
        called = [m for n in self.graph.nodes if n.op == "call_module" for m in self.module(n).modules()]
        found = [self.attribute(n) for n in named]
        found += [buffer for m in called if m.training for buffer in m.buffers(recurse=False)]
        found += [m.weight for m in called if isinstance(m, LOOKUPS) and m.max_norm is not None]
        found += [parameter for name, parameter in self.root.named_parameters() if name in self.code.overwritten]
        return {storage(t) for t in found if isinstance(t, Tensor) and t.numel()}

    @property
    def passed(self) -> set[fx.Node]:
        """Values that are arguments or results of a call that was traced through."""
        return self.nodes_in([(frame.args, frame.kwargs, frame.output) for frame in self.frames])

    @cached_property
    def methods(self) -> dict[Method, set[fx.Node]]:
        """The nodes that each method made, of those that ran."""
        found: dict[Method, set[fx.Node]] = {}
        for node in self.graph.nodes:
            for method in node.meta.get("methods", ()):
                found.setdefault(method, set()).add(node)
        return found

    @cached_property
    def named(self) -> dict[str, fx.Node]:
        """The nodes by their names."""
        return {node.name: node for node in self.graph.nodes}

    @cached_property
    def asked(self) -> Mapping[nn.Module, list[tuple[Frame, str]]]:
        """Per module the attributes of it that the code of other modules reads, tensors aside, each with the call."""
        found: WeakKeyDictionary[nn.Module, list[tuple[Frame, str]]] = WeakKeyDictionary()
        for frame in self.frames:
            for module, names in frame.read.items():
                if module is not frame.module:
                    found.setdefault(module, []).extend((frame, name) for name, _ in names)
        return found

    @cached_property
    def targets(self) -> dict[str, list[fx.Node]]:
        """The nodes that call a module or read an attribute, by its path."""
        found: dict[str, list[fx.Node]] = {}
        for node in self.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                found.setdefault(str(node.target), []).append(node)
        return found

    @cached_property
    def owners(self) -> set[str]:
        """Paths of the modules that have, at any depth, a tensor which the code reads itself."""
        # The graph has only what is used of it; the code reads all.
        read = [name.split(".") for name, nodes in self.targets.items() if nodes[0].op == "get_attr"]
        read += [name.split(".") for name in self.code.attributes]
        return {".".join(parts[:k]) for parts in read for k in range(1, len(parts))}

    @cached_property
    def made_in(self) -> dict[Frame, list[fx.Node]]:
        """Per call the nodes that it made, itself or by a call inside it, in program order."""
        found: dict[Frame, list[fx.Node]] = {frame: [] for frame in self.frames}
        for node in self.graph.nodes:
            for frame in self.frame(node).stack:
                found[frame].append(node)
        return found

    @cached_property
    def called_in(self) -> dict[Frame, list[Frame]]:
        """Per call the calls inside it, at any depth."""
        found: dict[Frame, list[Frame]] = {frame: [] for frame in self.frames}
        for frame in self.frames:
            for outer in frame.stack[:-1]:
                found[outer].append(frame)
        return found

    @cached_property
    def deciding(self) -> set[Frame]:
        """The calls in whose own code a branch was taken, or may have been by the rank of a tensor."""
        ranks = {frame for frame in self.frames if frame.ranks}
        return ranks | {self.frame(node) for node in self.graph.nodes if node.target is expect}

    @cached_property
    def decisions(self) -> list[fx.Node]:
        """The checks of numbers that code decided by, or took as plain numbers, in program order."""
        return [node for node in self.graph.nodes if node.target is expect and self._is_decision(node)]

    def _is_decision(self, check: fx.Node) -> bool:
        """Whether a check is of a number that other inputs may have otherwise; not of what a tensor is or has."""
        found, traced = check.args[:2]
        if not isinstance(found, fx.Node) or not isinstance(traced, (bool, int, float)):
            return False
        return found not in self.constants and found.target is not getattr and found.target is not hasattr

    def decided_outside(self, node: fx.Node, frame: Frame | None) -> bool:
        """Whether a plain number in the code of a node may be another for other inputs, which no code of `frame` (None:
        of any call) checks.
        """
        return any(check < node and self.frame(check) is not frame for check in self.decisions)

    def forget(self) -> None:
        """The graph was changed: what was computed from it is computed again."""
        facts = ("named", "asked", "decisions", "aliases", "written", "module_calls", "parameter_uses", "methods")
        for name in (*facts, *POSITIONS):
            vars(self).pop(name, None)

    def moved(self, added: Iterable[fx.Node] = ()) -> None:
        """Nodes were added or erased and no value changed: only where nodes are is found again."""
        self.named.update((node.name, node) for node in added)
        for name in POSITIONS:
            vars(self).pop(name, None)

    def module(self, node: fx.Node) -> nn.Module:
        """The module a call_module node calls."""
        name = str(node.target)
        # `get_submodule` is slow, and this is asked often.
        found = self.held[name] if name in self.held else module_at(self.root, name)
        assert isinstance(found, nn.Module)
        return found

    def attribute(self, node: fx.Node) -> Any:
        """The value of a get_attr node."""
        name = str(node.target)
        return self.held[name] if name in self.held else attribute(self.root, name)

    def frame(self, node: fx.Node) -> Frame:
        """The call that made a node."""
        found = node.meta["frame"]
        assert isinstance(found, Frame)
        return found

    def path(self, node: fx.Node) -> str:
        """Where a node is in the model: its module's path, or the path of the method that made it."""
        if node.op in ("call_module", "get_attr") and str(node.target) not in self.held:
            return str(node.target)
        # What is held has a name of ours.
        return str(node.meta.get("place") or self.frame(node).path or "(root)")


def storage(tensor: Tensor) -> int:
    """What two tensors of one memory have in common. (Sparse ones have no memory of their own kind.)"""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)
