"""What is known of a captured graph beside its nodes: how it came about, and what the code around it does."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

from torch import Tensor, fx, nn

from ..reasons import Reason
from ..running.changing import Changed
from ..tracing.frame import Frame, Method

Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Apart:
    """A call as it was, before the graph had it as two, or elsewhere."""

    op: str
    target: Any
    args: Any
    kwargs: Any


@dataclass
class Origin:
    """How a graph was captured, and how the model runs it.

    tier: "symbolic" or "values". why: it is not part of the graph around it; "" for the model itself.
    guessed: whether it is a part, and nothing is known of how it is called.
    times: how often a run of the model runs it; 0 if nothing calls it.
    absent: per path of a module the positions and names of arguments that are None in a real run.
    ranks_vary: whether the model takes inputs of another rank than the example's.
    """

    tier: str
    why: str = ""
    guessed: bool = False
    times: int = 1
    absent: Mapping[str, Set[int | str]] = field(default_factory=dict)
    ranks_vary: bool = False


@dataclass(eq=False)
class Code:
    """What the code of a graph does that is no node of it.

    changed: the attributes that it changes. stored: values that it keeps there, or puts into its arguments.
    attributes: paths of the parameters and buffers that it reads itself, with the calls that it is of.
    callers: per path of a module that it calls the calls around it, of modules that do nothing as well.
    lists: the lists of its own parts for which it asks torch.
    overwritten: the parameters that a run wrote into, by name.
    written_over: paths of layers into whose value it writes.
    """

    changed: Changed
    stored: set[fx.Node] = field(default_factory=set)
    attributes: dict[str, list[Frame]] = field(default_factory=dict)
    callers: dict[str, list[Frame]] = field(default_factory=dict)
    lists: set[str] = field(default_factory=set)
    overwritten: Set[str] = frozenset()
    written_over: set[str] = field(default_factory=set)


@dataclass(eq=False)
class Unused:
    """What code does for nothing, which the graph does not show any more.

    shapes: values of which it reads the shape, with that of a layer's value. ranks: those of which it reads the rank.
    calls: modules that it calls, each with the call of that code. methods: per value those that read it. computes:
    whether it computes anything so. inputs: values with which it does. ended: how often each module was called so by
    code that is written again, and calls it no more. hinders: whether a merge may not be made for any of this. (Of a
    module that is freed, another may have the identity.)
    """

    shapes: dict[fx.Node, object] = field(default_factory=dict)
    ranks: set[fx.Node] = field(default_factory=set)
    calls: list[tuple[ref[nn.Module], Frame]] = field(default_factory=list)
    methods: dict[fx.Node, set[Method]] = field(default_factory=dict)
    computes: bool = False
    inputs: set[fx.Node] = field(default_factory=set)
    ended: WeakKeyDictionary[nn.Module, int] = field(default_factory=WeakKeyDictionary)
    hinders: bool = False

    def in_the_way(self, found: Found) -> Found:
        """Note that this is in the way of a merge, if it is anything."""
        self.hinders |= bool(found)
        return found

    @property
    def called(self) -> list[nn.Module]:
        """The modules that code calls, one per call, of those that are there."""
        return [module for there, _ in self.calls if (module := there()) is not None]

    def end(self, module: nn.Module | None) -> None:
        """Code that is written again calls this module no more."""
        if module is not None:
            self.ended[module] = self.ended.get(module, 0) + 1

    def goes_on(self, node: fx.Node, constants: Set[fx.Node]) -> None:
        """A node that is taken out of the graph still runs, on what it reads, where no code is written again."""
        self.shapes.update(dict.fromkeys(set(node.all_input_nodes) - constants))
        self.inputs.update(node.all_input_nodes)


@dataclass(eq=False)
class Outside:
    """What code outside of a graph does, with words. used: modules and tensors that it uses by themselves. whole:
    modules that another graph goes through as well. methods: that it may run. idle: modules whose forward no call runs:
    it is a method as any other. keeping: per path of a module why it has to keep parameters. exact: modules whose
    class code asks for.
    """

    used: dict[nn.Module | Tensor, Reason] = field(default_factory=dict)
    whole: dict[nn.Module, Reason] = field(default_factory=dict)
    methods: set[Method] = field(default_factory=set)
    idle: set[nn.Module] = field(default_factory=set)
    keeping: dict[str, Reason] = field(default_factory=dict)
    exact: dict[nn.Module, Reason] = field(default_factory=dict)
