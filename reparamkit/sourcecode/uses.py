"""What code does with the modules and tensors of a model, found by reading it: for code that no trace has seen.

The code is followed, on all its branches, with what each variable may stand for, into the methods and functions that
it calls. What is handed to code that cannot be read counts as used, with all that is beneath it.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections import ChainMap, Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import CellType, FunctionType, MethodType, ModuleType

from torch import Tensor, nn

from .parse import ASKING, forward_of, source
from .values import (
    Bound,
    Group,
    Item,
    Part,
    Super,
    Value,
    all_of,
    elements,
    fingerprint,
    holdings,
    one,
    reached,
    relevant,
    tensors_of,
    union,
)

Function = ast.FunctionDef | ast.Lambda
TENSORS = frozenset({"parameters", "named_parameters", "buffers", "named_buffers", "state_dict"})
MODULES = frozenset({"modules", "named_modules"})
"""Methods of a module that list what is beneath it, at any depth."""
CHILDREN = frozenset({"children", "named_children", "values", "items", "_modules"})
KEEPING = frozenset({"eval", "train", "to", "requires_grad_", "cuda", "cpu", "float", "half", "double", "bfloat16"})
"""Methods of a module that return it."""
OWN = frozenset({"_parameters", "_buffers"})
PASSING = frozenset({"iter", "list", "tuple", "set", "dict", "enumerate", "zip", "reversed", "sorted", "next", "vars"})
"""Functions whose result has the elements of their arguments."""
NOT_NUMBERS = frozenset(
    {"device", "dtype", "is_cuda", "layout", "requires_grad", "is_floating_point", "is_complex", "is_meta"}
)
"""Attributes of a tensor that a merge keeps."""
WRITTEN = (nn.Identity, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What may stand in the place of a layer after a merge."""
SAME_THING = (ast.Is, ast.IsNot, ast.In, ast.NotIn)
PAIRS = frozenset({"enumerate", "zip", "items", "named_children", "named_modules", "named_parameters"})
UNKNOWN = "*"
"""The name of arguments that come out of a container, for any parameter."""
DEEPEST, MOST, FEW = 30, 3000, 6
"""How many calls inside each other are followed, how many in all, and how many of one function by its containers."""


def is_torchs(function: object) -> bool:
    """Whether a function is torch's, or Python's."""
    return str(getattr(function, "__module__", None)).partition(".")[0] in ("torch", "builtins", "None")


def _lambda(function: object) -> ast.Lambda | None:
    """The code of a lambda in the middle of a statement, if it is the only one that begins in its line."""
    try:
        lines, _ = inspect.findsource(function)  # type: ignore[arg-type]
        tree = ast.parse("".join(lines))
    except (OSError, SyntaxError, TypeError):
        return None
    line = getattr(getattr(function, "__code__", None), "co_firstlineno", None)
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda) and node.lineno == line]
    return found[0] if len(found) == 1 else None


def _makes_pairs(node: ast.AST) -> bool:
    """Whether an expression calls what gives numbers or names with the elements of something."""
    callee = node.func if isinstance(node, ast.Call) else None
    return (callee.id if isinstance(callee, ast.Name) else getattr(callee, "attr", "")) in PAIRS


@dataclass(eq=False)
class Uses:
    """What code does, all that was followed together. called: modules that it calls as they are. read: modules and
    tensors that it uses in any other way, with the methods of torch by which it found them ("" for none). methods:
    that may run. asked: modules whose class is asked for, with the same. lists: those that torch makes of tensors of a
    module, by the method. stored: what attributes may have got.
    """

    called: dict[nn.Module, None] = field(default_factory=dict)
    read: dict[Part, set[str]] = field(default_factory=dict)
    methods: set[tuple[nn.Module, str]] = field(default_factory=set)
    asked: dict[nn.Module, set[str]] = field(default_factory=dict)
    lists: dict[nn.Module, set[str]] = field(default_factory=dict)
    stored: dict[str, Value] = field(default_factory=dict)
    _trees: dict[object, Function | None] = field(default_factory=dict)
    _results: dict[object, Value] = field(default_factory=dict)
    _made: dict[object, Group | Bound | Super] = field(default_factory=dict)
    _times: Counter[object] = field(default_factory=Counter)
    _depth: int = 0
    _runs: int = 0

    def follow(self, module: nn.Module) -> None:
        """The forward of a module."""
        forward = forward_of(module)
        for again in (False, True):
            # What is stored in an attribute may be read by what ran before.
            if not again or self.stored:
                self._runs, self._results = 0, {} if again else self._results
                self._times.clear()
                self.run(forward, [one(module)], {})

    def run(self, function: object, args: list[Value], kwargs: Mapping[str, Value]) -> Value:
        """A call of a function; returns what it may return."""
        given = [("", value) for value in args] + sorted(kwargs.items(), key=lambda pair: pair[0])
        key = self._key(function, given)
        if key not in self._results:
            self._times[function] += 1
            result = self._results[key] = {}
            tree = self._tree(function)
            inner = inspect.unwrap(function)  # type: ignore[arg-type]
            known = tree is not None and self._depth < DEEPEST and self._runs < MOST
            if not known or not isinstance(inner, FunctionType):
                self.use(union(value for _, value in given))
            else:
                self._depth, self._runs = self._depth + 1, self._runs + 1
                _Code(self, inner, result).run(tree, args, kwargs)  # type: ignore[arg-type]
                self._depth -= 1
        return self._results[key]

    def _key(self, function: object, given: list[tuple[str, Value]]) -> object:
        """What tells a call from others: containers that the code makes, each time anew, tell it only a few times."""
        tell = fingerprint if self._times[function] < FEW else holdings
        return function, tuple((name, *tell(value)) for name, value in given)

    def _tree(self, function: object) -> Function | None:
        if function not in self._trees:
            found = source(function)
            nodes = ast.walk(found) if found is not None else iter([_lambda(function)])
            self._trees[function] = next((n for n in nodes if isinstance(n, (ast.FunctionDef, ast.Lambda))), None)
        return self._trees[function]

    def same(self, made: Bound | Super) -> Value:
        """Such an object, the same one each time that it is asked for."""
        first = made.function if isinstance(made, Bound) else made.cls
        return one(self._made.setdefault((first if isinstance(first, str) else id(first), id(made.owner)), made))

    def list_of(self, module: nn.Module, name: str, parts: Value) -> Value:
        """A list that torch made, the same one each time."""
        if name in TENSORS | OWN:
            self.lists.setdefault(module, set()).add(name)
        return one(self._made.setdefault(("list", name, id(module)), Group(parts)))

    def note(self, part: Part, listed: str) -> None:
        """A module or tensor is used otherwise than by a call."""
        self.read.setdefault(part, set()).add(listed)

    def use(self, value: Value) -> None:
        """Hand values to code that cannot be read."""
        for item in reached(value).values():
            thing = item.thing
            if isinstance(thing, nn.Module):
                for inner in thing.modules():
                    self.note(inner, item.listed)
                for tensor in tensors_of(thing):
                    self.note(tensor, item.listed)
            elif isinstance(thing, Tensor):
                self.note(thing, item.listed)
            elif isinstance(thing, Bound) and not is_torchs(thing.function):
                self.run(thing.function, [one(thing.owner)], {})


@dataclass(eq=False)
class _Code:
    """The code of one call. result: what it may return. names: what its variables may be."""

    uses: Uses
    function: FunctionType
    result: Value
    names: dict[str, Value] = field(default_factory=dict)
    own: Value = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    inner: dict[int, Function] = field(default_factory=dict)

    @cached_property
    def around(self) -> Mapping[str, object]:
        """The variables that the function sees and does not set."""
        cells = zip(self.function.__code__.co_freevars, self.function.__closure__ or (), strict=False)
        held = {name: cell.cell_contents for name, cell in cells if cell != CellType()}
        return ChainMap(held, self.function.__globals__, vars(builtins))

    def run(self, tree: Function, args: list[Value], kwargs: Mapping[str, Value]) -> None:
        """Follow the body until no variable can be more than it was."""
        self.own = args[0] if args else {}
        self._bind_arguments(tree.args, args, kwargs)
        before = -1
        while before < (before := self._known()):
            self._body(tree)

    def _body(self, tree: Function) -> None:
        if isinstance(tree, ast.Lambda):
            self.result.update(self.value(tree.body))
        else:
            for statement in tree.body:
                self._follow(statement)

    def _known(self) -> int:
        """How much the variables, and all that was made, can be."""
        made = sum(len(group.items) for group in self.groups.values())
        return sum(map(len, self.names.values())) + made + len(self.result)

    def _bind_arguments(self, spec: ast.arguments, args: list[Value], kwargs: Mapping[str, Value]) -> None:
        names = [each.arg for each in (*spec.posonlyargs, *spec.args)]
        for name, value in zip(names, args, strict=False):
            self._bind(name, value)
        rest = union(args[len(names) :])
        if spec.vararg is not None and rest:
            self._bind(spec.vararg.arg, self._group(spec.vararg, rest))
        for name, value in kwargs.items():
            if name == UNKNOWN:
                every = [
                    *names,
                    *(each.arg for each in (*spec.kwonlyargs, spec.vararg, spec.kwarg) if each is not None),
                ]
                for each in every:
                    self._bind(each, value)
            elif name in {*names, *(each.arg for each in spec.kwonlyargs)}:
                self._bind(name, value)
            elif spec.kwarg is not None:
                self._bind(spec.kwarg.arg, self._group(spec.kwarg, value))

    def _bind(self, name: str, value: Value) -> None:
        self.names.setdefault(name, {}).update(value)

    def _group(self, place: ast.AST, items: Value) -> Value:
        group = self.groups.setdefault(id(place), Group())
        group.items.update(items)
        return one(group)

    # --- statements ------------------------------------------------------------------------------

    def _follow(self, node: ast.AST) -> None:
        """A statement, or what has statements and expressions inside."""
        if isinstance(node, ast.expr):
            self.value(node)
        elif isinstance(node, ast.FunctionDef):
            self._bind(node.name, self._inner(node))
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            self._assign(node.target, elements(self.value(node.iter)), _makes_pairs(node.iter))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, self.value(node.value))
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, self.value(node.value))
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self._assign(node.optional_vars, self.value(node.context_expr))
        elif isinstance(node, ast.Return) and node.value is not None:
            self.result.update(self.value(node.value))
        if not isinstance(node, (ast.expr, ast.FunctionDef)):
            for child in ast.iter_child_nodes(node):
                self._follow(child)

    def _inner(self, tree: Function) -> Value:
        """A function inside, whose variables are taken for those of the function around."""
        self.inner[id(tree)] = tree
        self._body(tree)
        return one(tree)

    def _assign(self, target: ast.AST, value: Value, pairs: bool = False) -> None:
        """pairs: the value may already be what is in a pair."""
        if isinstance(target, ast.Name):
            self._bind(target.id, value)
        elif isinstance(target, ast.Attribute):
            self.uses.stored.setdefault(target.attr, {}).update(relevant(value))
        elif isinstance(target, ast.Subscript):
            self._put(self.value(target.value), relevant(value))
        elif isinstance(target, ast.Starred):
            self._assign(target.value, self._group(target, value))
        elif isinstance(target, (ast.Tuple, ast.List)):
            inside = {k: item for k, item in value.items() if not (pairs and isinstance(item.thing, nn.Module))}
            for each in target.elts:
                self._assign(each, {**(value if pairs else {}), **elements(inside)}, pairs)

    def _put(self, into: Value, value: Value) -> None:
        """Values go into a container; into one that is not known: anything may be done with them."""
        groups = [item.thing for item in into.values() if isinstance(item.thing, Group)]
        for group in groups:
            group.items.update(value)
        if not groups:
            self.uses.use(value)

    # --- expressions -----------------------------------------------------------------------------

    def value(self, node: ast.AST | None) -> Value:
        """What an expression may be."""
        find = getattr(self, f"_{type(node).__name__.lower()}", None)
        if find is not None:
            found: Value = find(node)
            return found
        inside = [self._part(child) for child in ast.iter_child_nodes(node)] if node is not None else []
        return union(inside)

    def _part(self, node: ast.AST) -> Value:
        if isinstance(node, ast.expr):
            return self.value(node)
        self._follow(node)
        return {}

    def _name(self, node: ast.Name) -> Value:
        if node.id in self.names:
            return self.names[node.id]
        return one(self.around[node.id]) if node.id in self.around else {}

    def _lambda(self, node: ast.Lambda) -> Value:
        return self._inner(node)

    def _namedexpr(self, node: ast.NamedExpr) -> Value:
        self._assign(node.target, self.value(node.value))
        return self.value(node.value)

    def _tuple(self, node: ast.Tuple | ast.List | ast.Set | ast.Dict) -> Value:
        return self._group(node, union(map(self._part, ast.iter_child_nodes(node))))

    _list = _set = _dict = _tuple

    def _listcomp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Value:
        for generator in node.generators:
            self._follow(generator)
        made = [self.value(getattr(node, name)) for name in ("elt", "key", "value") if hasattr(node, name)]
        return self._group(node, union(made))

    _setcomp = _generatorexp = _dictcomp = _listcomp

    def _binop(self, node: ast.BinOp | ast.UnaryOp) -> Value:
        """Arithmetic: with lists it makes lists, with tensors it reads numbers."""
        found = union(map(self._part, ast.iter_child_nodes(node)))
        self.uses.use({key: item for key, item in found.items() if isinstance(item.thing, Tensor)})
        return {key: item for key, item in found.items() if not isinstance(item.thing, Part)}

    _unaryop = _binop

    def _compare(self, node: ast.Compare) -> Value:
        found = union(map(self._part, ast.iter_child_nodes(node)))
        if not all(isinstance(op, SAME_THING) for op in node.ops):
            self.uses.use({key: item for key, item in found.items() if isinstance(item.thing, Tensor)})
        return {}

    def _subscript(self, node: ast.Subscript) -> Value:
        self.value(node.slice)
        key = node.slice.value if isinstance(node.slice, ast.Constant) else node.slice
        return union(self._at(item, key) for item in list(self.value(node.value).values()))

    def _at(self, item: Item, key: object) -> Value:
        if isinstance(key, ast.Slice) and isinstance(item.thing, (nn.ModuleList, list, tuple, Group)):
            # What has some of its elements; a part of a Sequential is called, and so are they, one by one.
            return one(item.thing, item.listed)
        children = item.thing._modules if isinstance(item.thing, nn.Module) else {}
        if str(key) in children:
            return one(children[str(key)], item.listed)
        return elements({(0, ""): item})

    def _attribute(self, node: ast.Attribute) -> Value:
        found = [self._get(item, node.attr) for item in list(self.value(node.value).values())]
        return union([*found, self.uses.stored.get(node.attr, {})])

    def _get(self, item: Item, name: str) -> Value:
        thing = item.thing
        if isinstance(thing, nn.Module):
            return self._of_module(thing, name, item.listed)
        if isinstance(thing, Tensor):
            if name not in NOT_NUMBERS:
                self.uses.note(thing, item.listed)
            return {}
        if isinstance(thing, Super):
            return self._of_super(thing, name)
        if isinstance(thing, (Group, list, tuple, set, dict)):
            return self.uses.same(Bound(name, thing))
        if isinstance(thing, (ModuleType, type)):
            return one(getattr(thing, name, None))
        return self._of_object(thing, name, item.listed)

    def _of_super(self, thing: Super, name: str) -> Value:
        mro = type(thing.owner).__mro__
        later = mro[mro.index(thing.cls) + 1 :] if thing.cls in mro else ()
        found = next((vars(cls)[name] for cls in later if name in vars(cls)), None)
        return self.uses.same(Bound(found, thing.owner))

    def _of_module(self, module: nn.Module, name: str, listed: str) -> Value:
        for table in (module._modules, module._parameters, module._buffers):
            if name in table:
                return self._member(module, table[name], listed)
        if name in ("forward", "__call__"):
            return one(module, listed)
        if name in CHILDREN | OWN and name.startswith("_"):
            return self._listed(module, name)
        return self._of_object(module, name, listed)

    def _member(self, module: nn.Module, found: Part | None, listed: str) -> Value:
        if isinstance(found, Tensor):
            # It may be looked at for its size, which a merge may change as well.
            self.uses.note(found, listed)
            self.uses.note(module, listed)
        return one(found, listed)

    def _of_object(self, thing: object, name: str, listed: str) -> Value:
        found = inspect.getattr_static(type(thing), name, None)
        if isinstance(found, property) and found.fget is not None and not is_torchs(found.fget):
            return self.uses.run(found.fget, [one(thing, listed)], {})
        if isinstance(found, property) or name == "__dict__":
            self.uses.use(one(thing, listed))
        if inspect.isfunction(found):
            return self.uses.same(Bound(found, thing))
        if isinstance(found, (staticmethod, classmethod)):
            return one(found.__func__)
        if isinstance(thing, nn.Module):
            self.uses.note(thing, listed)
        held = getattr(thing, "__dict__", {}).get(name)
        if isinstance(held, MethodType):
            return self.uses.same(Bound(held.__func__, held.__self__))
        return one(held, listed)

    def _listed(self, module: nn.Module, name: str) -> Value:
        """What a method or table of torch lists."""
        if name in CHILDREN:
            found = all_of(module.children())
        elif name in OWN:
            found = all_of([t for t in vars(module)[name].values() if t is not None], name)
        else:
            found = all_of(module.modules() if name in MODULES else tensors_of(module), name)
        return self.uses.list_of(module, name, found)

    # --- calls -----------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> Value:
        callees = self.value(node.func)
        args = [self.value(arg) for arg in node.args if not isinstance(arg, ast.Starred)]
        kwargs = {each.arg: self.value(each.value) for each in node.keywords if each.arg is not None}
        starred = [arg.value for arg in node.args if isinstance(arg, ast.Starred)]
        starred += [each.value for each in node.keywords if each.arg is None]
        if starred:
            kwargs[UNKNOWN] = elements(union(map(self.value, starred)))
        args = [relevant(value) for value in args]
        kwargs = {name: relevant(value) for name, value in kwargs.items()}
        if not callees:
            self.uses.use(union([*args, *kwargs.values()]))
        return union(self._called(node, item, args, kwargs) for item in list(callees.values()))

    def _called(self, node: ast.Call, item: Item, args: list[Value], kwargs: dict[str, Value]) -> Value:
        thing, given = item.thing, union([*args, *kwargs.values()])
        if isinstance(thing, nn.Module):
            self.uses.called[thing] = None
            self.uses.use(given)
            return {}
        if isinstance(thing, (ast.FunctionDef, ast.Lambda)):
            self._bind_arguments(thing.args, args, kwargs)
            return dict(self.result)
        if isinstance(thing, Group):
            self.uses.use({**given, **one(thing)})
            return {}
        if isinstance(thing, Bound):
            return self._method(node, thing, args, kwargs)
        if inspect.isfunction(thing) and not is_torchs(thing):
            return self.uses.run(thing, args, kwargs) if given else {}
        return self._foreign(node, thing, args, given)

    def _method(self, node: ast.Call, bound: Bound, args: list[Value], kwargs: dict[str, Value]) -> Value:
        owner, function, given = bound.owner, bound.function, union([*args, *kwargs.values()])
        if isinstance(owner, nn.Module):
            name = str(getattr(function, "__name__", ""))
            if not is_torchs(function):
                self.uses.methods.add((owner, name))
                return self.uses.run(function, [one(owner), *args], kwargs)
            self.uses.use(given if name != "apply" else {**given, **one(owner)})
            if name in CHILDREN | TENSORS | MODULES:
                return self._listed(owner, name)
            return one(owner) if name in KEEPING else {**all_of(owner.modules()), **all_of(tensors_of(owner))}
        if isinstance(function, str):
            # A container: what it gets it has, and may give again.
            if isinstance(owner, Group):
                owner.items.update(given)
            return self._group(node, elements(one(owner)))
        if is_torchs(function):
            self.uses.use({**given, **one(owner)})
            return {}
        return self.uses.run(function, [one(owner), *args], kwargs) if reached({**given, **one(owner)}) else {}

    def _foreign(self, node: ast.Call, thing: object, args: list[Value], given: Value) -> Value:
        name = str(getattr(thing, "__name__", ""))
        if thing is super:
            return union(self._super(item.thing) for item in list(self.own.values()))
        if name == "getattr" and args:
            return self._getattr(node, args[0])
        if name in PASSING:
            return self._group(node, elements(given)) if name != "next" else elements(given)
        if name == "checkpoint" and args:
            self.uses.use(union(args[1:]))
            return union(self._called(node, item, args[1:], {}) for item in list(args[0].values()))
        if name in ASKING:
            for item in given.values():
                if isinstance(item.thing, nn.Module):
                    self.uses.note(item.thing, item.listed)
                    if name != "isinstance" or self._may_change(item.thing, node.args[-1]):
                        self.uses.asked.setdefault(item.thing, set()).add(item.listed)
        elif name != "len":
            self.uses.use(given)
        return {}

    def _may_change(self, module: nn.Module, kinds: ast.expr) -> bool:
        """Whether it may be of some classes before a merge and not behind it, or the other way round."""
        nodes = kinds.elts if isinstance(kinds, ast.Tuple) else [kinds]
        found = [[item.thing for item in self.value(each).values()] for each in nodes]
        classes = tuple(things[0] for things in found if len(things) == 1 and isinstance(things[0], type))
        known = len(classes) == len(nodes)
        return not known or any(issubclass(cls, classes) != isinstance(module, classes) for cls in WRITTEN)

    def _getattr(self, node: ast.Call, owner: Value) -> Value:
        name = node.args[1] if len(node.args) > 1 else None
        default = self.value(node.args[2]) if len(node.args) > 2 else {}
        if isinstance(name, ast.Constant):
            return {**default, **union(self._get(item, str(name.value)) for item in list(owner.values()))}
        return {**default, **elements(owner)}

    def _super(self, owner: object) -> Value:
        name = self.function.__name__
        mro = type(owner).__mro__
        cls = next((cls for cls in mro if inspect.unwrap(vars(cls).get(name, super)) is self.function), mro[0])
        return self.uses.same(Super(cls, owner))
