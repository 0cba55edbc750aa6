"""Methods that are the forward of their class without some layers inside: what a model runs once those are merged.

Blocks bring one along for that (``forward_fuse``); before, it computes nothing of use. (What has only the first layers
of forward, or the last, is of use: it gives features, or takes them.)
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from .methods import methods_in
from .parse import once, path_of

SUM = "+"


@dataclass(frozen=True)
class Value:
    """What a call gives, of the module at a path. `SUM` stands for a sum, "" for the argument of the method."""

    path: str = ""
    inputs: tuple[Value, ...] = ()


@once
def shortened_forwards(cls: type) -> frozenset[str]:
    """The methods that give what forward does, but for some layers inside and terms of sums that are left out."""
    results = {name: value for name, tree in methods_in(cls) if (value := _result(tree)) is not None}
    if (whole := results.get("forward")) is None:
        return frozenset()
    return frozenset(name for name, short in results.items() if whole.path == short.path and _leaves(whole, short))


def _leaves(whole: Value, short: Value) -> bool:
    """Whether one value is another from which layers and terms are left out, but for the first layer."""
    if not short.path:
        return not whole.path
    if any(_leaves(each, short) for each in whole.inputs):
        return True
    if whole.path != short.path:
        return False
    rest = iter(whole.inputs)
    return all(any(_leaves(each, wanted) for each in rest) for wanted in short.inputs)


def _result(tree: ast.AST) -> Value | None:
    """What a method of one argument returns, if it only calls modules and adds up; None for any other."""
    function = tree.body[0] if isinstance(tree, ast.Module) else None
    if not isinstance(function, ast.FunctionDef) or len(function.args.args) != 2:
        return None
    values = {function.args.args[1].arg: Value()}
    for statement in function.body:
        match statement:
            case ast.Expr(value=ast.Constant()):
                continue
            case ast.Assign(targets=[ast.Name(id=name)], value=node) if value := _value(node, values):
                values[name] = value
            case ast.Return(value=ast.expr() as node):
                return _value(node, values)
            case _:
                return None
    return None


def _value(node: ast.expr, values: dict[str, Value]) -> Value | None:
    match node:
        case ast.Name(id=name):
            return values.get(name)
        case ast.Call(func=func, args=[argument], keywords=[]) if (path := path_of(func)) and (
            inner := _value(argument, values)
        ):
            return Value(path, (inner,))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            terms = [_value(left, values), _value(right, values)]
            return Value(SUM, tuple(filter(None, terms))) if all(terms) else None
        case _:
            return None
