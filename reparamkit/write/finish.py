"""From the rewritten graph to the user's own model: modules swapped, methods regenerated, nothing left over."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace

from torch import fx, nn

from ..engine.nesting import outer
from ..errors import NotFusable, Unwritable
from ..running.state import intact
from ..tracing.frame import Frame
from ..tracing.guards import expect_rank
from .classes import change, changes_of
from .consequences import (
    check_classes_kept,
    fix_places,
    fix_settings,
    hide_asking,
    hide_methods,
)
from .draft import Draft
from .expect import Expect
from .fold import fold
from .generated import method
from .moving import LISTS, move_layers
from .originals import original_class
from .places import Places
from .removal import remove_dead_modules, remove_unread
from .rewritable import without_gradients


def finish(draft: Draft, frames: Iterable[Frame] | None) -> None:
    """Change the modules of the root as it was collected, and the methods of these calls (None: of no module, and
    hide none); all of it or nothing. Raises `Unwritable` if a method cannot be written with all that goes into it.
    """
    before = dict(draft.captured.root.named_modules(remove_duplicate=False))
    classes = {module: type(module) for module in before.values()}
    draft.places = Places(draft.captured.root)
    with intact(draft.captured.root):
        draft.places.counted = draft.counted()
        draft.dead.update(draft.captured.uncalled_paths)
        move_layers(draft)
        for frame in sorted({outer(f, draft.inlined) for f in frames or ()}, key=lambda f: -f.path.count(".")):
            _regenerate(draft, frame)
        remove_unread(draft)
        for path, module in draft.swaps.items():
            draft.places.put(path, module, called=True)
        remove_dead_modules(draft)
        draft.places.replace_held()
        if frames is not None:
            hide_methods(draft, before)
            fix_settings(draft)
            fix_places(draft, before)
            check_classes_kept(draft, classes)
            hide_asking(draft)
    draft.kept |= set(map(id, draft.calls_left()))
    for done in (draft.moves, draft.swaps, draft.places, draft.sites):
        done.clear()


def _regenerate(draft: Draft, frame: Frame) -> None:
    inlined = frozenset(draft.inlined)
    try:
        graph = fold(draft.captured, frame, inlined, leaving=draft.swaps.keys())
    except NotFusable as no:
        # Each merge could be written by itself.
        raise Unwritable({frame.path: no.reason}) from no
    _keep_constants(draft, graph, frame.module)
    written = method(graph, gradients=not without_gradients(draft.captured, frame, inlined))
    change(frame.module, replace(changes_of(frame.module), forward=written))
    # A method that was set as the forward of this module alone: its code is what was written.
    vars(frame.module).pop("forward", None)


def _keep_constants(draft: Draft, graph: fx.Graph, module: nn.Module) -> None:
    """Tensors that the method made of plain numbers become buffers, which are not saved."""
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in draft.captured.held:
            name = next(f"_constant{k}" for k in itertools.count() if not hasattr(module, f"_constant{k}"))
            module.register_buffer(name, draft.captured.held[str(node.target)], persistent=False)
            node.target = name


def open_layers(draft: Draft) -> None:
    """A norm or another layer of torch by its class, whose own work is merged, is what its code still calls."""
    with intact(draft.captured.root):
        places = Places(draft.captured.root)
        for frame in draft.frames.values():
            is_left = id(frame) not in draft.inlined and places.has(frame.path) and _is_layer(frame.module)
            left = _left(draft, frame) if is_left else None
            if left is not None:
                places.put(frame.path, left, called=True)
        places.replace_held()


def _is_layer(module: nn.Module) -> bool:
    """Whether it is, by its class, one of torch's layers."""
    bases = set(original_class(module).__mro__) - {nn.Module, nn.Sequential, nn.Identity, *LISTS}
    return any(base.__module__.startswith("torch.nn.modules.") for base in bases)


def _left(draft: Draft, frame: Frame) -> nn.Module | None:
    """The modules that the code of a call still calls, one after the other; None if it does more."""
    inside = draft.captured.root.get_submodule(frame.path)
    value, *body, output = fold(draft.captured, frame, frozenset(draft.inlined), leaving=draft.swaps.keys()).nodes
    found: dict[str, nn.Module] = {}
    for node in body:
        name = str(node.target)
        if node.target is expect_rank and node.args[0] is value:
            found["expect"] = Expect(*node.args[1:]).eval()
        elif node.op == "call_module" and node.args == (value,) and not node.kwargs and "." not in name:
            found[name] = inside.get_submodule(name)
            value = node
        else:
            return None
    if output.args != (value,):
        return None
    return _row_of(draft, frame.path, found, inside.training)


def _row_of(draft: Draft, path: str, modules: dict[str, nn.Module], training: bool) -> nn.Module:
    """These modules, in a container if they need one. path: of what they are inside."""
    names = [f"{path}.{name}" for name in modules]
    if len(names) == 1 and names[0] in draft.paths.values():
        draft.retarget(names[0], path)
        return modules.popitem()[1]
    made = nn.Sequential(OrderedDict(modules)) if modules else nn.Identity()
    made.training = training
    return made
