"""What code does with the modules and tensors of a model, found by reading it: for code that no trace has seen.

The code is followed, on all its branches, with what each variable may stand for, into the methods and functions that
it calls. What is handed to code that cannot be read counts as used, with all that is beneath it.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import CellType, FunctionType, MethodType, ModuleType

import torch
from torch import Tensor, nn

from .methods import ASKING, source

Part = nn.Module | Tensor
HELD = (nn.Module, Tensor)
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
NOT_NUMBERS = frozenset({"device", "dtype", "is_cuda", "layout", "requires_grad"})
"""Attributes of a tensor that a merge keeps."""
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""What holds nothing of a model."""
SAME_THING = (ast.Is, ast.IsNot, ast.In, ast.NotIn)
PAIRS = frozenset({"enumerate", "zip", "items", "named_children", "named_modules", "named_parameters"})
UNKNOWN = "*"
"""The name of arguments that come out of a container, for any parameter."""
DEEPEST, MOST, FEW = 30, 3000, 6
"""How many calls inside each other are followed, how many in all, and how many of one function by its containers."""


@dataclass(frozen=True, eq=False)
class _Group:
    """A container that the code makes, or a list of torch's."""

    items: _Value = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Bound:
    """A method, and what it is bound to."""

    function: object
    owner: object


@dataclass(frozen=True, eq=False)
class _Super:
    """``super()`` in a method of the class `cls`."""

    cls: type
    owner: object


@dataclass(frozen=True)
class Item:
    """Something that an expression may be. listed: the method of torch in whose list it was found."""

    thing: object
    listed: str = ""


_Value = dict[tuple[int, str], Item]
"""All that an expression may be, by identity, as not everything can be hashed."""


def _one(thing: object, listed: str = "") -> _Value:
    return {} if isinstance(thing, PLAIN) else {(id(thing), listed): Item(thing, listed)}


def _union(values: Iterable[_Value]) -> _Value:
    found: _Value = {}
    for value in values:
        found.update(value)
    return found


def _parts(parts: Iterable[Part], listed: str = "") -> _Value:
    return _union(_one(part, listed) for part in parts)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _elements(value: _Value) -> _Value:
    """What comes out of a value when it is iterated or indexed: of a module its children, of a tensor the tensor."""
    found: _Value = {}
    for item in list(value.values()):
        thing = item.thing
        if isinstance(thing, _Group):
            found.update(thing.items)
        elif isinstance(thing, nn.Module):
            found.update(_parts(thing.children(), item.listed))
        elif isinstance(thing, (list, tuple, set, frozenset, dict)):
            inner = thing.values() if isinstance(thing, dict) else thing
            found.update(_union(_one(each, item.listed) for each in inner))
        elif isinstance(thing, Tensor):
            found.update(_one(thing, item.listed))
    return found


def _reached(value: _Value) -> _Value:
    """The modules, tensors and methods that are in a value, however deep."""
    found: _Value = {}
    waiting, seen = list(value.items()), set(value)
    while waiting:
        key, item = waiting.pop()
        if isinstance(item.thing, (*HELD, _Bound, _Super, ast.AST)):
            found[key] = item
            continue
        inside = _elements({key: item})
        if not isinstance(item.thing, (_Group, type, ModuleType, FunctionType)):
            inside |= _union(_one(each, item.listed) for each in getattr(item.thing, "__dict__", {}).values())
        waiting += [(k, i) for k, i in inside.items() if k not in seen]
        seen.update(inside)
    return found


def _relevant(value: _Value) -> _Value:
    """Without what has nothing of a model in it: data."""
    return {key: item for key, item in value.items() if _reached({key: item})}


def _print(value: _Value) -> Iterator[object]:
    """What tells a value from others, and from itself when a container in it had less."""
    for key, item in value.items():
        yield key, len(item.thing.items) if isinstance(item.thing, _Group) else 0


def _held(value: _Value) -> Iterator[object]:
    """What tells a value from others that hold other parts of a model."""
    return iter(sorted(_reached(value)))


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
    that may run. asked: modules whose class is asked for, with the same. stored: what attributes may have got.
    """

    called: dict[nn.Module, None] = field(default_factory=dict)
    read: dict[Part, set[str]] = field(default_factory=dict)
    methods: set[tuple[nn.Module, str]] = field(default_factory=set)
    asked: dict[nn.Module, set[str]] = field(default_factory=dict)
    stored: dict[str, _Value] = field(default_factory=dict)
    _trees: dict[object, Function | None] = field(default_factory=dict)
    _results: dict[object, _Value] = field(default_factory=dict)
    _made: dict[object, _Group | _Bound | _Super] = field(default_factory=dict)
    _times: Counter[object] = field(default_factory=Counter)
    _depth: int = 0
    _runs: int = 0

    def follow(self, module: nn.Module) -> None:
        """The forward of a module."""
        forward = vars(module).get("forward", type(module).forward)
        for again in (False, True):
            # What is stored in an attribute may be read by what ran before.
            if not again or self.stored:
                self._runs, self._results = 0, {} if again else self._results
                self._times.clear()
                self.run(getattr(forward, "__func__", forward), [_one(module)], {})

    def run(self, function: object, args: list[_Value], kwargs: Mapping[str, _Value]) -> _Value:
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
                self.use(_union(value for _, value in given))
            else:
                self._depth, self._runs = self._depth + 1, self._runs + 1
                _Code(self, inner, result).run(tree, args, kwargs)  # type: ignore[arg-type]
                self._depth -= 1
        return self._results[key]

    def _key(self, function: object, given: list[tuple[str, _Value]]) -> object:
        """What tells a call from others: containers that the code makes, each time anew, tell it only a few times."""
        tell = _print if self._times[function] < FEW else _held
        return function, tuple((name, *tell(value)) for name, value in given)

    def _tree(self, function: object) -> Function | None:
        if function not in self._trees:
            found = source(function)
            nodes = ast.walk(found) if found is not None else iter([_lambda(function)])
            self._trees[function] = next((n for n in nodes if isinstance(n, (ast.FunctionDef, ast.Lambda))), None)
        return self._trees[function]

    def same(self, made: _Bound | _Super) -> _Value:
        """Such an object, the same one each time that it is asked for."""
        first = made.function if isinstance(made, _Bound) else made.cls
        return _one(self._made.setdefault((first if isinstance(first, str) else id(first), id(made.owner)), made))

    def list_of(self, module: nn.Module, name: str, parts: _Value) -> _Value:
        """A list that torch made, the same one each time."""
        return _one(self._made.setdefault(("list", name, id(module)), _Group(parts)))

    def note(self, part: Part, listed: str) -> None:
        """A module or tensor is used otherwise than by a call."""
        self.read.setdefault(part, set()).add(listed)

    def use(self, value: _Value) -> None:
        """Hand values to code that cannot be read."""
        for item in _reached(value).values():
            thing = item.thing
            if isinstance(thing, nn.Module):
                for inner in thing.modules():
                    self.note(inner, item.listed)
                for tensor in _tensors(thing):
                    self.note(tensor, item.listed)
            elif isinstance(thing, Tensor):
                self.note(thing, item.listed)
            elif isinstance(thing, _Bound) and not is_torchs(thing.function):
                self.run(thing.function, [_one(thing.owner)], {})


@dataclass(eq=False)
class _Code:
    """The code of one call. result: what it may return. names: what its variables may be."""

    uses: Uses
    function: FunctionType
    result: _Value
    names: dict[str, _Value] = field(default_factory=dict)
    own: _Value = field(default_factory=dict)
    groups: dict[int, _Group] = field(default_factory=dict)
    inner: dict[int, Function] = field(default_factory=dict)

    @cached_property
    def around(self) -> Mapping[str, object]:
        """The variables that the function sees and does not set."""
        cells = zip(self.function.__code__.co_freevars, self.function.__closure__ or (), strict=False)
        held = {name: cell.cell_contents for name, cell in cells if cell != CellType()}
        return ChainMap(held, self.function.__globals__, vars(builtins))

    def run(self, tree: Function, args: list[_Value], kwargs: Mapping[str, _Value]) -> None:
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

    def _bind_arguments(self, spec: ast.arguments, args: list[_Value], kwargs: Mapping[str, _Value]) -> None:
        names = [each.arg for each in (*spec.posonlyargs, *spec.args)]
        for name, value in zip(names, args, strict=False):
            self._bind(name, value)
        rest = _union(args[len(names) :])
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

    def _bind(self, name: str, value: _Value) -> None:
        self.names.setdefault(name, {}).update(value)

    def _group(self, place: ast.AST, items: _Value) -> _Value:
        group = self.groups.setdefault(id(place), _Group())
        group.items.update(items)
        return _one(group)

    # --- statements ------------------------------------------------------------------------------

    def _follow(self, node: ast.AST) -> None:
        """A statement, or what has statements and expressions inside."""
        if isinstance(node, ast.expr):
            self.value(node)
        elif isinstance(node, ast.FunctionDef):
            self._bind(node.name, self._inner(node))
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            self._assign(node.target, _elements(self.value(node.iter)), _makes_pairs(node.iter))
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

    def _inner(self, tree: Function) -> _Value:
        """A function inside, whose variables are taken for those of the function around."""
        self.inner[id(tree)] = tree
        self._body(tree)
        return _one(tree)

    def _assign(self, target: ast.AST, value: _Value, pairs: bool = False) -> None:
        """pairs: the value may already be what is in a pair."""
        if isinstance(target, ast.Name):
            self._bind(target.id, value)
        elif isinstance(target, ast.Attribute):
            self.uses.stored.setdefault(target.attr, {}).update(_relevant(value))
        elif isinstance(target, ast.Subscript):
            self._put(self.value(target.value), _relevant(value))
        elif isinstance(target, ast.Starred):
            self._assign(target.value, self._group(target, value))
        elif isinstance(target, (ast.Tuple, ast.List)):
            inside = {k: item for k, item in value.items() if not (pairs and isinstance(item.thing, nn.Module))}
            for each in target.elts:
                self._assign(each, {**(value if pairs else {}), **_elements(inside)}, pairs)

    def _put(self, into: _Value, value: _Value) -> None:
        """Values go into a container; into one that is not known: anything may be done with them."""
        groups = [item.thing for item in into.values() if isinstance(item.thing, _Group)]
        for group in groups:
            group.items.update(value)
        if not groups:
            self.uses.use(value)

    # --- expressions -----------------------------------------------------------------------------

    def value(self, node: ast.AST | None) -> _Value:
        """What an expression may be."""
        find = getattr(self, f"_{type(node).__name__.lower()}", None)
        if find is not None:
            found: _Value = find(node)
            return found
        inside = [self._part(child) for child in ast.iter_child_nodes(node)] if node is not None else []
        return _union(inside)

    def _part(self, node: ast.AST) -> _Value:
        if isinstance(node, ast.expr):
            return self.value(node)
        self._follow(node)
        return {}

    def _name(self, node: ast.Name) -> _Value:
        if node.id in self.names:
            return self.names[node.id]
        return _one(self.around[node.id]) if node.id in self.around else {}

    def _lambda(self, node: ast.Lambda) -> _Value:
        return self._inner(node)

    def _namedexpr(self, node: ast.NamedExpr) -> _Value:
        self._assign(node.target, self.value(node.value))
        return self.value(node.value)

    def _tuple(self, node: ast.Tuple | ast.List | ast.Set | ast.Dict) -> _Value:
        return self._group(node, _union(map(self._part, ast.iter_child_nodes(node))))

    _list = _set = _dict = _tuple

    def _listcomp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> _Value:
        for generator in node.generators:
            self._follow(generator)
        made = [self.value(getattr(node, name)) for name in ("elt", "key", "value") if hasattr(node, name)]
        return self._group(node, _union(made))

    _setcomp = _generatorexp = _dictcomp = _listcomp

    def _binop(self, node: ast.BinOp | ast.UnaryOp) -> _Value:
        """Arithmetic: with lists it makes lists, with tensors it reads numbers."""
        found = _union(map(self._part, ast.iter_child_nodes(node)))
        self.uses.use({key: item for key, item in found.items() if isinstance(item.thing, Tensor)})
        return {key: item for key, item in found.items() if not isinstance(item.thing, Part)}

    _unaryop = _binop

    def _compare(self, node: ast.Compare) -> _Value:
        found = _union(map(self._part, ast.iter_child_nodes(node)))
        if not all(isinstance(op, SAME_THING) for op in node.ops):
            self.uses.use({key: item for key, item in found.items() if isinstance(item.thing, Tensor)})
        return {}

    def _subscript(self, node: ast.Subscript) -> _Value:
        self.value(node.slice)
        key = node.slice.value if isinstance(node.slice, ast.Constant) else node.slice
        return _union(self._at(item, key) for item in list(self.value(node.value).values()))

    def _at(self, item: Item, key: object) -> _Value:
        if isinstance(key, ast.Slice) and isinstance(item.thing, (nn.ModuleList, list, tuple, _Group)):
            # What has some of its elements; a part of a Sequential is called, and so are they, one by one.
            return _one(item.thing, item.listed)
        children = item.thing._modules if isinstance(item.thing, nn.Module) else {}
        if str(key) in children:
            return _one(children[str(key)], item.listed)
        return _elements({(0, ""): item})

    def _attribute(self, node: ast.Attribute) -> _Value:
        found = [self._get(item, node.attr) for item in list(self.value(node.value).values())]
        return _union([*found, self.uses.stored.get(node.attr, {})])

    def _get(self, item: Item, name: str) -> _Value:
        thing = item.thing
        if isinstance(thing, nn.Module):
            return self._of_module(thing, name, item.listed)
        if isinstance(thing, Tensor):
            if name not in NOT_NUMBERS:
                self.uses.note(thing, item.listed)
            return {}
        if isinstance(thing, _Super):
            return self._of_super(thing, name)
        if isinstance(thing, (_Group, list, tuple, set, dict)):
            return self.uses.same(_Bound(name, thing))
        if isinstance(thing, (ModuleType, type)):
            return _one(getattr(thing, name, None))
        return self._of_object(thing, name, item.listed)

    def _of_super(self, thing: _Super, name: str) -> _Value:
        mro = type(thing.owner).__mro__
        later = mro[mro.index(thing.cls) + 1 :] if thing.cls in mro else ()
        found = next((vars(cls)[name] for cls in later if name in vars(cls)), None)
        return self.uses.same(_Bound(found, thing.owner))

    def _of_module(self, module: nn.Module, name: str, listed: str) -> _Value:
        for table in (module._modules, module._parameters, module._buffers):
            if name in table:
                return self._member(module, table[name], listed)
        if name in ("forward", "__call__"):
            return _one(module, listed)
        if name in CHILDREN | OWN and name.startswith("_"):
            return self._listed(module, name)
        return self._of_object(module, name, listed)

    def _member(self, module: nn.Module, found: Part | None, listed: str) -> _Value:
        if isinstance(found, Tensor):
            # It may be looked at for its size, which a merge may change as well.
            self.uses.note(found, listed)
            self.uses.note(module, listed)
        return _one(found, listed)

    def _of_object(self, thing: object, name: str, listed: str) -> _Value:
        found = inspect.getattr_static(type(thing), name, None)
        if isinstance(found, property) and found.fget is not None and not is_torchs(found.fget):
            return self.uses.run(found.fget, [_one(thing, listed)], {})
        if isinstance(found, property) or name == "__dict__":
            self.uses.use(_one(thing, listed))
        if inspect.isfunction(found):
            return self.uses.same(_Bound(found, thing))
        if isinstance(found, (staticmethod, classmethod)):
            return _one(found.__func__)
        if isinstance(thing, nn.Module):
            self.uses.note(thing, listed)
        held = getattr(thing, "__dict__", {}).get(name)
        if isinstance(held, MethodType):
            return self.uses.same(_Bound(held.__func__, held.__self__))
        return _one(held, listed)

    def _listed(self, module: nn.Module, name: str) -> _Value:
        """What a method or table of torch lists."""
        if name in CHILDREN:
            found = _parts(module.children())
        elif name in OWN:
            found = _parts([t for t in vars(module)[name].values() if t is not None], name)
        else:
            found = _parts(module.modules() if name in MODULES else _tensors(module), name)
        return self.uses.list_of(module, name, found)

    # --- calls -----------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> _Value:
        callees = self.value(node.func)
        args = [self.value(arg) for arg in node.args if not isinstance(arg, ast.Starred)]
        kwargs = {each.arg: self.value(each.value) for each in node.keywords if each.arg is not None}
        starred = [arg.value for arg in node.args if isinstance(arg, ast.Starred)]
        starred += [each.value for each in node.keywords if each.arg is None]
        if starred:
            kwargs[UNKNOWN] = _elements(_union(map(self.value, starred)))
        args = [_relevant(value) for value in args]
        kwargs = {name: _relevant(value) for name, value in kwargs.items()}
        if not callees:
            self.uses.use(_union([*args, *kwargs.values()]))
        return _union(self._called(node, item, args, kwargs) for item in list(callees.values()))

    def _called(self, node: ast.Call, item: Item, args: list[_Value], kwargs: dict[str, _Value]) -> _Value:
        thing, given = item.thing, _union([*args, *kwargs.values()])
        if isinstance(thing, nn.Module):
            self.uses.called[thing] = None
            self.uses.use(given)
            return {}
        if isinstance(thing, (ast.FunctionDef, ast.Lambda)):
            self._bind_arguments(thing.args, args, kwargs)
            return dict(self.result)
        if isinstance(thing, _Group):
            self.uses.use({**given, **_one(thing)})
            return {}
        if isinstance(thing, _Bound):
            return self._method(node, thing, args, kwargs)
        if inspect.isfunction(thing) and not is_torchs(thing):
            return self.uses.run(thing, args, kwargs) if given else {}
        return self._foreign(node, thing, args, given)

    def _method(self, node: ast.Call, bound: _Bound, args: list[_Value], kwargs: dict[str, _Value]) -> _Value:
        owner, function, given = bound.owner, bound.function, _union([*args, *kwargs.values()])
        if isinstance(owner, nn.Module):
            name = str(getattr(function, "__name__", ""))
            if not is_torchs(function):
                self.uses.methods.add((owner, name))
                return self.uses.run(function, [_one(owner), *args], kwargs)
            self.uses.use(given if name != "apply" else {**given, **_one(owner)})
            if name in CHILDREN | TENSORS | MODULES:
                return self._listed(owner, name)
            return _one(owner) if name in KEEPING else {**_parts(owner.modules()), **_parts(_tensors(owner))}
        if isinstance(function, str):
            # A container: what it gets it has, and may give again.
            if isinstance(owner, _Group):
                owner.items.update(given)
            return self._group(node, _elements(_one(owner)))
        if is_torchs(function):
            self.uses.use({**given, **_one(owner)})
            return {}
        return self.uses.run(function, [_one(owner), *args], kwargs) if _reached({**given, **_one(owner)}) else {}

    def _foreign(self, node: ast.Call, thing: object, args: list[_Value], given: _Value) -> _Value:
        name = str(getattr(thing, "__name__", ""))
        if thing is super:
            return _union(self._super(item.thing) for item in list(self.own.values()))
        if name == "getattr" and args:
            return self._getattr(node, args[0])
        if name in PASSING:
            return self._group(node, _elements(given)) if name != "next" else _elements(given)
        if name == "checkpoint" and args:
            self.uses.use(_union(args[1:]))
            return _union(self._called(node, item, args[1:], {}) for item in list(args[0].values()))
        if name in ASKING:
            for item in given.values():
                if isinstance(item.thing, nn.Module):
                    self.uses.note(item.thing, item.listed)
                    self.uses.asked.setdefault(item.thing, set()).add(item.listed)
        elif name != "len":
            self.uses.use(given)
        return {}

    def _getattr(self, node: ast.Call, owner: _Value) -> _Value:
        name = node.args[1] if len(node.args) > 1 else None
        default = self.value(node.args[2]) if len(node.args) > 2 else {}
        if isinstance(name, ast.Constant):
            return {**default, **_union(self._get(item, str(name.value)) for item in list(owner.values()))}
        return {**default, **_elements(owner)}

    def _super(self, owner: object) -> _Value:
        name = self.function.__name__
        mro = type(owner).__mro__
        cls = next((cls for cls in mro if inspect.unwrap(vars(cls).get(name, super)) is self.function), mro[0])
        return self.uses.same(_Super(cls, owner))
