"""The names of nodes and modules, for reports and for patterns."""

from __future__ import annotations

from fnmatch import fnmatch

from torch import fx


def place_of(node: fx.Node) -> str:
    """The path of the module a node calls, or stands for; "" for a function."""
    place = node.meta.get("place", node.target if node.op == "call_module" else "")
    return str(place)


def name_of(node: fx.Node) -> str:
    """The name of what a node calls, or stands for."""
    target = node.meta.get("stands for", node.target)
    return str(getattr(target, "__name__", target))


def shown_name(node: fx.Node) -> str:
    """How a report names a node: by the place of its layer, or what it computes."""
    return place_of(node) or name_of(node)


def called_plainly(node: fx.Node) -> bool:
    """Whether a module is called as any layer of torch can be: with its input alone."""
    return (len(node.args), *node.kwargs) in ((1,), (0, "input"))


def matches(path: str, pattern: str) -> bool:
    """Whether a module path is meant by a path or pattern (as in fnmatch), or is below one that is."""
    return fnmatch(path, pattern) or path.startswith(f"{pattern}.") or fnmatch(path, f"{pattern}.*")
