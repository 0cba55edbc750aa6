"""Names that code puts together, or keeps: of ``getattr(self, f"block{i}")`` and ``getattr(self, self.norm_name)`` only
some attributes come into question.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence

from .values import Function

ANY = ".*"
HOLES = re.compile(r"%[\d.]*[a-z]|\{[^{}]*\}")
"""What ``%`` and ``format`` fill in."""
NONE = "(?!)"
"""What no name looks like."""
Kept = Callable[[ast.expr], Sequence[str] | None]
"""The texts that an attribute may be, or have in a list; None if that is not known."""


def spelling(node: ast.AST | None, tree: Function, kept: Kept) -> re.Pattern[str] | None:
    """What a name that an expression gives looks like; None if no part of it is known. tree: the code it is in."""
    text = _text(node, tree, kept, frozenset())
    return re.compile(text, re.DOTALL) if text.replace(ANY, "") else None


def _text(node: ast.AST | None, tree: Function, kept: Kept, inside: frozenset[str]) -> str:
    """inside: the variables whose text this is a part of."""
    match node:
        case ast.Constant(value=value):
            return re.escape(str(value))
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, tree, kept, inside) for part in parts)
        case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
            return _text(value, tree, kept, inside)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left, tree, kept, inside) + _text(right, tree, kept, inside)
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod()):
            return _filled(text)
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
            return _filled(text)
        case ast.Name(id=name) if name not in inside and len(values := [*_values(name, tree)]) == 1:
            return _text(values[0], tree, kept, inside | {name})
        case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(attribute)), default]):
            ways = [_text(way, tree, kept, inside) for way in (ast.Attribute(owner, attribute, ast.Load()), default)]
            return ANY if ANY in ways else f"(?:{'|'.join(ways)})"
        case ast.Attribute() | ast.Subscript(value=ast.Attribute()) if (texts := kept(node)) is not None:
            return f"(?:{'|'.join(map(re.escape, texts))})" if texts else NONE
        case _:
            return ANY


def _filled(text: str) -> str:
    return ANY.join(map(re.escape, HOLES.split(text)))


def _values(name: str, tree: Function) -> Iterator[ast.AST | None]:
    """What a variable is given; None for what is no plain assignment."""
    assigned = (node for node in ast.walk(tree) if isinstance(node, ast.Assign) and len(node.targets) == 1)
    plain = {id(node.targets[0]): node.value for node in assigned}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load):
            yield plain.get(id(node))
        elif isinstance(node, ast.arg) and node.arg == name:
            yield None


def looped_over(tree: Function, name: str) -> ast.expr | None:
    """The attribute of self, the list, or the variable, whose elements a variable is, one after the other, and nothing
    else.
    """
    first = [each.arg for each in tree.args.args[:1]]
    nodes = list(ast.walk(tree))
    bound = [n for n in nodes if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store)]
    loops = [n.iter for n in nodes if isinstance(n, ast.For) and not {*bound}.isdisjoint(ast.walk(n.target))]
    if first != ["self"] or len(bound) != 1 or len(loops) != 1:
        return None
    (over,) = loops
    if isinstance(over, ast.Call) and isinstance(over.func, ast.Name) and over.func.id == "enumerate" and over.args:
        over = over.args[0]
    of_self = isinstance(over, ast.Attribute) and isinstance(over.value, ast.Name)
    return over if of_self or isinstance(over, (ast.Name, ast.Tuple, ast.List)) else None
