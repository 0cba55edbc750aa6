"""Which attributes of modules a forward changes while it is traced, or runs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from torch import Tensor, nn

from .memory import memory
from .state import State


@dataclass
class Changed:
    """names: per module (by identity) the attributes that were seen to be other than they were at first, or to have
    something else inside. setters: the modules (by identity) whose code sets attributes, or was running then.
    """

    names: dict[int, set[str]] = field(default_factory=dict)
    setters: set[int] = field(default_factory=set)


class Changing:
    """Looks at the modules of a model while their code runs. found: what it has changed."""

    def __init__(self, model: nn.Module) -> None:
        self.state, self.found = State(model), Changed()
        held = (value for value in self.state.now() if isinstance(value, Tensor))
        self._memories = set(map(memory, itertools.chain(model.parameters(), held)))

    def keeps(self, tensor: Tensor) -> bool:
        """Whether modules had this tensor, or one that shares its memory, at first."""
        return memory(tensor) in self._memories

    def look(self, module: nn.Module, running: nn.Module) -> None:
        """Note what has changed in a module since the last look, and whose code is running."""
        known = self.found.names.get(id(module), set())
        if new := self.state.changed(module) - known:
            self.found.names[id(module)] = known | new
            self.found.setters.update((id(module), id(running)))

    def forget(self) -> None:
        """Keep nothing alive: what is merged in place is freed."""
        del self.state

    def look_inside(self, module: nn.Module) -> None:
        """Note what has changed in a module and those inside it, whoever did it."""
        for inner in module.modules():
            self.look(inner, inner)
