"""What code outside of a part that was traced does with the modules and tensors of that part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..capture.capture import Captured, Outside
from ..capture.proxies import attribute
from ..sourcecode.uses import OWN, Uses, is_torchs
from ..sourcecode.values import Part

IsLeaf = Callable[[nn.Module], bool]
VANISHING = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
"""Layers in whose place there is another class after a merge; the weights that take them up stay of their class."""


def look_outside(parts: Sequence[Captured], is_leaf: IsLeaf) -> None:
    """Tell every part what code outside of it uses. is_leaf: whether a module's own code is not of interest."""
    untraced = _untraced(parts, is_leaf)
    listed = _listed(parts)
    for part in parts:
        found = Outside({**listed, **untraced.used}, methods=untraced.methods)
        for other in parts:
            if other is not part:
                _share(found, part, other)
        part.outside = found


def _untraced(parts: Sequence[Captured], is_leaf: IsLeaf) -> Outside:
    """What the code does that no trace has seen."""
    traced = {frame.module for part in parts for frame in part.frames}
    found = Outside()
    for path, module in parts[0].root.named_modules():
        if module not in traced and not is_leaf(module) and not is_torchs(type(module).forward):
            uses = Uses()
            uses.follow(module)
            found.methods |= uses.methods
            why = f"the forward of '{path or type(module).__name__}', which could not be traced, uses it by itself"
            found.used.update(dict.fromkeys((*uses.called, *uses.read), why))
    return found


def _listed(parts: Sequence[Captured]) -> dict[Part, str]:
    """What the code that was traced finds in lists of torch, and reads there: the graph has not the parameters, but
    the numbers they had. And layers that it asks for their class.
    """
    uses = Uses()
    frames = {frame.module: None for part in parts for frame in part.frames}
    for module in frames:
        if not is_torchs(type(module).forward):
            uses.follow(module)
    # The code is followed on all its branches; these lists were asked for.
    made = set().union(OWN, *(part.lists for part in parts))
    lists = {part: min(names & made) for part, names in uses.read.items() if names & made}
    found: dict[Part, str] = {part: f"code of the model reads it in what {name} lists" for part, name in lists.items()}
    asked: dict[Part, str] = {
        module: "code of the model reads its class, which a merge changes"
        for module, names in uses.asked.items()
        if module not in frames and names & {"", *made} and isinstance(module, VANISHING)
    }
    return {**asked, **found}


def _share(found: Outside, part: Captured, other: Captured) -> None:
    """The modules that another part has as well: how often they run is not known."""
    where = f"it is also used in '{other.frames[0].path}', which was traced apart"
    owners = {path.rpartition(".")[0] for path in part.attributes} - {""}
    mine = {*part.module_calls, *(id(attribute(part.root, path)) for path in owners)}
    found.used.update(
        {m: where for n in other.graph.nodes if n.op == "call_module" and id(m := other.module(n)) in mine}
    )
    found.whole.update({frame.module: where for frame in other.frames if id(frame.module) in mine})
