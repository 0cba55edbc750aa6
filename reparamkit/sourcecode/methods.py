"""Which layers the methods of a class call, for methods that were not running while the model was traced.

Forward is among them: it may be that only others are called.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator

from .flow import Way, ways
from .parse import ASKING, Paths, is_shown, method_source, once, owner_of_class, path_of

TABLE = "_modules"
"""What has all children of a module by their names."""
LISTING = frozenset({"tuple", "list", "set", "sorted", "len", "iter"})
"""Functions that take of a dictionary its keys only."""
SETTING = frozenset({"setattr", "delattr", "hasattr"})
"""Functions that go by the name of an attribute, and do not give what has it."""


@once
def called_by_methods(cls: type) -> Paths:
    """The modules that the methods call."""
    found = {name: frozenset(_called(tree)) for name, tree in methods_in(cls)}
    return {name: called for name, called in found.items() if called}


@once
def ways_of_methods(cls: type) -> dict[str, dict[str, frozenset[Way]]]:
    """Per method in which branches it calls what, as `ways` has it."""
    return {name: ways(tree, _variables(tree, results=False)) for name, tree in methods_in(cls)}


@once
def read_by_methods(cls: type) -> Paths:
    """What the methods read and did not set themselves.

    A call of ``self.a`` is ``a()``; ``self.a`` as an argument is ``a.*``, or ``a.**`` if it is given to a method of the
    module, which may look deep into it; a loop over it is ``a.__iter__``; all children are ``**``.
    """
    return {name: frozenset(_read(tree)) for name, tree in methods_in(cls)}


@once
def classes_in_methods(cls: type) -> Paths:
    """The modules whose very class the methods ask for; a list of modules for those in it."""
    return {name: frozenset(_classes(tree)) for name, tree in methods_in(cls)}


@once
def spreading_calls(cls: type) -> Paths:
    """The modules that the methods call with the entries of a dictionary as keyword arguments, "" for the module
    itself; the dictionary of a method's own keyword arguments aside.
    """
    return {name: frozenset(_spreading(tree)) for name, tree in methods_in(cls)}


@once
def read_by_forward(cls: type) -> frozenset[str]:
    """What the forward reads, and the methods of the object that it calls."""
    read, waiting, found = read_by_methods(cls), {"forward"}, frozenset[str]()
    while waiting:
        new = frozenset[str]().union(*(read.get(name, frozenset()) for name in waiting)) - found
        found |= new
        waiting = {path.removesuffix("()") for path in new if path.endswith("()")}
    return found


def methods_in(cls: type) -> Iterator[tuple[str, ast.AST]]:
    """The methods of a user's class, inherited ones too, each with its code."""
    seen: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.startswith("torch.") or base is object:
            continue
        for name, function in vars(base).items():
            if inspect.isfunction(function) and name not in seen:
                seen.add(name)
                tree = method_source(function)
                if tree is not None:
                    yield name, tree


def _called(tree: ast.AST) -> Iterator[str]:
    """The paths of the modules that are called."""
    variables = _variables(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            callee = node.func
            names = variables.get(callee.id, ()) if isinstance(callee, ast.Name) else [path_of(callee)]
            yield from (name for name in names if name)


def _classes(tree: ast.AST) -> Iterator[str]:
    variables = _variables(tree, results=False)
    for node in ast.walk(tree):
        owner = owner_of_class(node)
        if owner is not None and isinstance(node, ast.expr) and not is_shown(tree, node):
            names = variables.get(owner.id, ()) if isinstance(owner, ast.Name) else [path_of(owner)]
            yield from filter(None, names)


def _spreading(tree: ast.AST) -> Iterator[str]:
    own = {node.kwarg.arg for node in ast.walk(tree) if isinstance(node, ast.arguments) and node.kwarg}
    for node in ast.walk(tree):
        spread = [each.value for each in node.keywords if each.arg is None] if isinstance(node, ast.Call) else []
        if any(not (isinstance(each, ast.Name) and each.id in own) for each in spread):
            assert isinstance(node, ast.Call)
            path = path_of(node.func)
            if path or (isinstance(node.func, ast.Name) and node.func.id == "self"):
                *owner, last = path.split(".")
                yield ".".join(owner if last in ("forward", "__call__") else [*owner, last])


def _read(tree: ast.AST) -> Iterator[str]:
    """The paths of what is read, marked as in `read_by_methods`."""
    variables = _variables(tree, results=False)
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own = {path_of(node) for node in attributes if isinstance(node.ctx, ast.Store)}

    def paths(node: ast.AST) -> Iterable[str]:
        found = variables.get(node.id, ()) if isinstance(node, ast.Name) else [path_of(node)]
        return (path for path in found if path and path.partition(".")[0] not in own)

    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (f"{path}()" for path in paths(node.func))
            asks = isinstance(node.func, ast.Name) and node.func.id in ASKING
            yield from (f"{path}.*" for argument in node.args if not asks for path in paths(argument))
            yield from (f"{path}.**" for argument in node.args if path_of(node.func) and (path := path_of(argument)))
        elif isinstance(node, (ast.For, ast.comprehension)):
            # As in ``for k, layer in enumerate(self.layers)``.
            over = node.iter.args if isinstance(node.iter, ast.Call) else [node.iter]
            yield from (f"{path}.__iter__" for value in over for path in paths(value))
    whole = not _takes_only_names(tree)
    for node in attributes:
        yield from (["**"] if whole else []) if path_of(node) == TABLE else paths(node)
        if isinstance(node.value, ast.Name):
            yield from (f"{path}.{node.attr}" for path in paths(node.value))


def _takes_only_names(tree: ast.AST) -> bool:
    """Whether code looks at the names of all children, as in ``for name in self._modules``, and has no way from a name
    to a child.
    """
    nodes = list(ast.walk(tree))
    listed = {id(table) for node in nodes for table in _listed(node)}
    tables = (node for node in nodes if isinstance(node, ast.Attribute) and path_of(node) == TABLE)
    return all(id(table) in listed for table in tables) and not any(map(_may_find, nodes))


def _listed(node: ast.AST) -> list[ast.expr]:
    """Of what a piece of code takes the elements, or asks for one; of a dictionary these are its keys."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=[table], keywords=[]) if name in LISTING:
            return [table]
        case ast.For() | ast.comprehension():
            return [node.iter]
        case ast.Compare(ops=[ast.In() | ast.NotIn()]):
            return node.comparators
        case ast.Attribute(attr="keys"):
            return [node.value]
    return []


def _may_find(node: ast.AST) -> bool:
    """Whether a piece of code may have a child by its name: by an index, or by a call that gets the module."""
    match node:
        case ast.Subscript(value=ast.Name(id="self")):
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name not in LISTING | SETTING
        case ast.Call(func=ast.Attribute(value=owner)):
            given = (owner, *node.args, *(each.value for each in node.keywords))
            return any(isinstance(part, ast.Name) and part.id == "self" for each in given for part in ast.walk(each))
        case ast.Call():
            return True
    return False


def _variables(tree: ast.AST, results: bool = True) -> dict[str, set[str]]:
    """Per local variable the attributes of self that it may come from: by assignment or in a loop; `results`: also
    what their calls return.
    """
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.comprehension)):
            _bound(found, [node.target], node.iter)
        elif isinstance(node, ast.Assign) and (results or not isinstance(node.value, ast.Call)):
            _bound(found, node.targets, node.value)
    return found


def _bound(found: dict[str, set[str]], targets: Iterable[ast.AST], value: ast.AST) -> None:
    parts = list(ast.walk(value))
    paths = {path for part in parts if (path := path_of(part))}
    paths |= {path for part in parts if isinstance(part, ast.Name) for path in found.get(part.id, ())}
    for target in targets:
        for part in ast.walk(target):
            if isinstance(part, ast.Name):
                found.setdefault(part.id, set()).update(paths)
