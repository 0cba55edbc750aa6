"""The code of one call, followed on all its branches, with what each variable may stand for."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import FunctionType, MethodType

from torch import Tensor, nn

from .attributes import CHILDREN, MODULES, Attributes, methods_of, names_in
from .origins import NOT_USERS
from .parse import ASKING, defaults_in, is_shown, is_torchs, path_of
from .spelled import looped_over, spelling
from .uses import Uses
from .values import (
    OWN,
    TENSORS,
    Bound,
    Function,
    Group,
    Inner,
    Item,
    Part,
    Super,
    Value,
    all_of,
    elements,
    name_list,
    name_list_in,
    one,
    tensors_of,
    text,
    text_in,
    union,
    without_names,
    words_in,
)
from .variables import NAMED, UNKNOWN, Variables

KEEPING = frozenset({"eval", "train", "to", "requires_grad_", "cuda", "cpu", "float", "half", "double", "bfloat16"})
"""Methods of a module that return it."""
PASSING = frozenset({"iter", "list", "tuple", "set", "dict", "enumerate", "zip", "reversed", "sorted", "next"})
"""Functions whose result has the elements of their arguments."""
CALLING = frozenset({"checkpoint", "data_parallel"})
"""Functions of torch that call their first argument, a copy of it on each device, on the others."""
LOOKING = frozenset({"eval", "exec", "locals"})
"""Functions that see all variables."""
WRITTEN = (nn.Identity, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What may stand in the place of a layer after a merge."""
ROWS = (nn.ModuleList, nn.Sequential, nn.ParameterList)
"""Modules that can be joined, as lists are."""
JOINING = (ast.Add, ast.BitOr)
CONTAINERS = (list, set, dict)
"""What objects keep things in, and code fills."""
READING = frozenset({"get", "keys", "values", "items", "copy", "index", "count"})
"""Methods of containers that put nothing into them."""
SAME_THING = (ast.Is, ast.IsNot, ast.In, ast.NotIn)
PAIRS = frozenset({"enumerate", "zip", "items", "named_children", "named_modules", "named_parameters"})


def _asks(function: object) -> bool:
    """Whether a function asks objects what they are, and neither calls nor changes them."""
    name = str(getattr(function, "__name__", ""))
    asked = getattr(function, "__module__", "") == inspect.__name__ and (name == "signature" or name.startswith("is"))
    return asked or name in ASKING


def _makes_pairs(node: ast.AST) -> bool:
    """Whether an expression calls what gives numbers or names with the elements of something."""
    callee = node.func if isinstance(node, ast.Call) else None
    return (callee.id if isinstance(callee, ast.Name) else getattr(callee, "attr", "")) in PAIRS


def _are_plain(nodes: Iterable[ast.expr]) -> bool:
    """Whether each of some variables or arguments stands for one."""
    return not any(isinstance(node, ast.Starred) for node in nodes)


def _written(node: ast.expr) -> object:
    """The number or text that an expression is, such as ``-1``; if it is none, the expression."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return node


@dataclass(eq=False)
class Code(Variables):
    """The code of one call. own: its first argument. words, lists: parameters that are a known name, or a list of
    them. tree: the function.
    """

    own: Value = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tree: Function | None = None

    @cached_property
    def things(self) -> Attributes:
        """What is found of them is noted."""
        return Attributes(self.uses)

    def run(self, tree: Function, args: list[Value], kwargs: Mapping[str, Value]) -> None:
        """Follow the body until no variable can be more than it was."""
        self.own, self.tree = args[0] if args else {}, tree
        self.words, self.lists = words_in(tree, args, text_in), words_in(tree, args, name_list_in)
        args = [without_names(value) for value in args]
        self.bind_arguments(tree.args, args, kwargs)
        before = -1
        while before < (before := self.known()):
            self._body(tree)

    def _body(self, tree: Function) -> None:
        if isinstance(tree, ast.Lambda):
            self.result.update(self.value(tree.body))
        else:
            for statement in tree.body:
                self._follow(statement)

    # --- statements ------------------------------------------------------------------------------

    def _follow(self, node: ast.AST) -> None:
        """A statement, or what has statements and expressions inside."""
        if isinstance(node, ast.expr):
            self.value(node)
        elif isinstance(node, ast.FunctionDef):
            self.bind(node.name, self._inner(node))
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            self._assign_each(node.target, node.iter)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, self.value(node.value))
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, self.value(node.value))
        elif isinstance(node, ast.AugAssign):
            self.things.operated(self.value(node.target), node.op)
            self._assign(node.target, self._joined(node, self.value(node.value)))
        elif isinstance(node, ast.withitem):
            entered = self.value(node.context_expr)
            self._assign(node.optional_vars, {**entered, **self.things.special(entered, "__enter__", "__exit__")})
        elif isinstance(node, ast.Match):
            for case in node.cases:
                self._match(case.pattern, self.value(node.subject))
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            own = () if isinstance(node, ast.Global) else self.function.__code__.co_cellvars
            self.elsewhere.update(set(node.names).difference(own))
        elif isinstance(node, ast.Return) and node.value is not None:
            self.result.update(self.value(node.value))
        if not isinstance(node, (ast.expr, ast.FunctionDef)) and not self._is_idle(node):
            for child in ast.iter_child_nodes(node):
                self._follow(child)

    def _is_idle(self, node: ast.AST) -> bool:
        """Whether it is a loop over a container of an object that is empty, and that nothing is known to fill: as over
        hooks that nobody has set.
        """
        match node:
            case ast.For(iter=ast.Attribute() as kept, orelse=[]):
                pass
            case ast.For(iter=ast.Call(func=ast.Attribute(value=ast.Attribute() as kept), args=[]), orelse=[]):
                pass
            case _:
                return False
        names = {kept.attr, UNKNOWN}
        found = [item.thing for item in self.value(kept).values()]
        kept_empty = len(found) == 1 and isinstance(found[0], CONTAINERS) and not found[0]
        if not kept_empty or not names.isdisjoint(self.uses.changing) or not names.isdisjoint(self.uses.stored):
            return False
        self.uses.relied |= names
        return True

    def _assign_each(self, target: ast.expr, over: ast.expr) -> None:
        """A target gets what is iterated, one by one; of `zip` and `enumerate` each variable its own elements."""
        builtin = over.func.id if isinstance(over, ast.Call) and isinstance(over.func, ast.Name) else ""
        match (builtin not in self.names and builtin), target, over:
            case "zip", ast.Tuple(elts=targets), ast.Call(args=rows) if len(targets) == len(rows) and _are_plain(
                (*targets, *rows)
            ):
                for each, row in zip(targets, rows, strict=True):
                    self._assign_each(each, row)
            case "enumerate", ast.Tuple(elts=[index, inner]), ast.Call(args=[row, *_]) if _are_plain((inner, row)):
                self._assign(index, {})
                self._assign_each(inner, row)
            case _:
                self._assign(target, self.things.elements(self.value(over)), _makes_pairs(over))

    def _inner(self, tree: Function) -> Value:
        """A function inside, whose variables are taken for those of the function around."""
        inner = self.uses.inner(tree)
        if inner not in self.inner:
            self.inner[inner] = None
            inner.around.append(self)
        for each, default in defaults_in(tree.args):
            self.bind(each.arg, self.value(default))
        self._follow_inner(inner)
        return one(inner)

    def _follow_inner(self, inner: Inner) -> None:
        around, self.result = self.result, inner.result
        self._body(inner.tree)
        self.result = around

    def call_inner(self, inner: Inner, args: list[Value], kwargs: Mapping[str, Value]) -> None:
        """A call of a function inside, from anywhere: followed again if its parameters may be more now."""
        before = self.known()
        self.bind_arguments(inner.tree.args, args, kwargs)
        if self.known() > before:
            self.uses.follow_inside(partial(self._follow_inner, inner), union([*args, *kwargs.values()]))

    def _match(self, pattern: ast.pattern, value: Value) -> None:
        """A value, or what is in it, gets the names of a pattern."""
        if isinstance(pattern, (ast.MatchAs, ast.MatchStar)) and pattern.name is not None:
            self.bind(pattern.name, value)
        elif isinstance(pattern, ast.MatchMapping) and pattern.rest is not None:
            self.bind(pattern.rest, value)
        elif isinstance(pattern, ast.MatchClass):
            self.uses.use(value)
        same = isinstance(pattern, (ast.MatchAs, ast.MatchOr))
        for each in ast.iter_child_nodes(pattern):
            if isinstance(each, ast.pattern):
                self._match(each, value if same else self.things.elements(value))

    def _assign(self, target: ast.AST | None, value: Value, pairs: bool = False) -> None:
        """pairs: the value may already be what is in a pair."""
        if isinstance(target, ast.Name):
            self.bind(target.id, value)
            if target.id in self.elsewhere:
                self.uses.use(value)
        elif isinstance(target, ast.Attribute):
            self.uses.stored.setdefault(target.attr, {}).update(self.uses.depths.relevant(value))
            if not self._set_attribute(self.value(target.value), target.attr, value):
                self.uses.use(value)
        elif isinstance(target, ast.Subscript):
            inside = elements(value) if isinstance(target.slice, ast.Slice) else {}
            self._put(target.value, self.uses.depths.relevant({**value, **inside}))
        elif isinstance(target, ast.Starred):
            self._assign(target.value, self.group(target, value))
        elif isinstance(target, (ast.Tuple, ast.List)):
            inside = {k: item for k, item in value.items() if not (pairs and isinstance(item.thing, nn.Module))}
            for each in target.elts:
                self._assign(each, {**(value if pairs else {}), **self.things.elements(inside)}, pairs)

    def _set_attribute(self, owners: Value, name: str, value: Value) -> bool:
        """An attribute is set; False if it is not known of what."""
        for item in owners.values():
            found = inspect.getattr_static(type(item.thing), name, None)
            if isinstance(found, property) and found.fset is not None:
                self.things.method(item, found.fset, [value])
        return bool(owners)

    def _put(self, node: ast.expr, value: Value) -> None:
        """Values go into a container; into one that is not known: anything may be done with them."""
        into = self.value(node)
        groups = [item.thing for item in into.values() if isinstance(item.thing, Group)]
        self._note_filled(node, into)
        for group in groups:
            group.items.update(value)
        if not groups:
            self.uses.use(value)

    def _note_filled(self, node: ast.expr, into: Value) -> None:
        """That something may go into a container of an object. node: the expression that gives it."""
        if any(isinstance(item.thing, CONTAINERS) for item in into.values()):
            self.uses.stored.setdefault(node.attr if isinstance(node, ast.Attribute) else UNKNOWN, {})

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
        return self.group(node, union(map(self._part, ast.iter_child_nodes(node))))

    _list = _set = _dict = _tuple

    def _listcomp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Value:
        for generator in node.generators:
            self._follow(generator)
        made = [self.value(getattr(node, name)) for name in ("elt", "key", "value") if hasattr(node, name)]
        return self.group(node, union(made))

    _setcomp = _generatorexp = _dictcomp = _listcomp

    def _binop(self, node: ast.BinOp | ast.UnaryOp) -> Value:
        """Arithmetic: with lists it makes lists, with tensors it reads numbers."""
        found = union(map(self._part, ast.iter_child_nodes(node)))
        made = self.things.operated(found, node.op)
        self.uses.use({key: item for key, item in found.items() if isinstance(item.thing, Tensor)})
        return {**made, **self._joined(node, found)}

    _unaryop = _binop

    def _joined(self, node: ast.BinOp | ast.UnaryOp | ast.AugAssign, value: Value) -> Value:
        """What arithmetic leaves of its operands: lists, and what is in them; not tensors, which it makes anew."""
        joins = isinstance(node.op, JOINING)
        rows = {key: item for key, item in value.items() if joins and isinstance(item.thing, ROWS)}
        lists = {key: item for key, item in value.items() if not isinstance(item.thing, Part)}
        return {**lists, **(self.group(node, elements(rows)) if rows else {})}

    def _compare(self, node: ast.Compare) -> Value:
        found = union(map(self._part, ast.iter_child_nodes(node)))
        if not all(isinstance(op, SAME_THING) for op in node.ops):
            self.uses.use({key: item for key, item in found.items() if isinstance(item.thing, Tensor)})
        return self.things.operated(found, *node.ops)

    def _yield(self, node: ast.Yield | ast.YieldFrom) -> Value:
        """A generator is taken for a list."""
        value = self.value(node.value)
        self.result.update(self.group(node, value if isinstance(node, ast.Yield) else self.things.elements(value)))
        return {}

    _yieldfrom = _yield

    def _subscript(self, node: ast.Subscript) -> Value:
        if isinstance(node.value, ast.Attribute) and node.value.attr in OWN:
            return self._entry(node, node.value)
        self.value(node.slice)
        key = _written(node.slice)
        found = self.value(node.value)
        made = self.things.special(found, "__getitem__")
        return {**made, **union(self._at(item, key) for item in list(found.values()))}

    def _entry(self, node: ast.Subscript, table: ast.Attribute) -> Value:
        """Of a table of a module's own tensors: one by its name is what an attribute is."""
        self.value(node.slice)
        key, found = _written(node.slice), list[Value]()
        for item in list(self.value(table.value).values()):
            own = getattr(item.thing, table.attr, {}) if isinstance(item.thing, nn.Module) else {}
            names = [key] if isinstance(key, str) and key in own else [*own]
            found += [self.things.get(item, name) for name in names]
        return union(found)

    def _at(self, item: Item, key: object) -> Value:
        if isinstance(key, ast.Slice) and isinstance(item.thing, (nn.ModuleList, list, tuple, Group)):
            # What has some of its elements; a part of a Sequential is called, and so are they, one by one.
            return one(item.thing, item.listed)
        children = item.thing._modules if isinstance(item.thing, nn.Module) else {}
        if isinstance(item.thing, ROWS) and isinstance(key, int) and -len(children) <= key < 0:
            key += len(children)
        if str(key) in children:
            return one(children[str(key)], item.listed)
        return elements({(0, ""): item})

    def _attribute(self, node: ast.Attribute) -> Value:
        items = list(self.value(node.value).values())
        if node.attr == "__class__":
            self._note_class(node, items)
        found = [self.things.get(item, node.attr) for item in items]
        return union([*found, self.uses.stored.get(node.attr, {})])

    def _note_class(self, node: ast.expr, items: Iterable[Item]) -> None:
        """That an expression gives the class of something, and not only what classes made of it have as well."""
        modules = [(item.thing, item.listed) for item in items if isinstance(item.thing, nn.Module)]
        users = self.function.__module__.partition(".")[0] not in NOT_USERS
        if self.tree is not None and modules and users and not is_shown(self.tree, node):
            for module, listed in modules:
                self.uses.exact.setdefault(module, set()).add(listed)

    # --- calls -----------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> Value:
        callees = self.value(node.func)
        args = [self._argument(arg) for arg in node.args if not isinstance(arg, ast.Starred)]
        kwargs = {each.arg: self.value(each.value) for each in node.keywords if each.arg is not None}
        starred = [arg.value for arg in node.args if isinstance(arg, ast.Starred)]
        spread = [each.value for each in node.keywords if each.arg is None]
        if starred or spread:
            found = self.things.elements(union(map(self.value, (*starred, *spread))))
            kwargs[UNKNOWN if starred else NAMED] = found
        kwargs = {name: self.uses.depths.relevant(value) for name, value in kwargs.items()}
        if not callees:
            self.uses.use(union([*args, *kwargs.values()]))
        return union(self._called(node, item, args, kwargs) for item in list(callees.values()))

    def _argument(self, node: ast.expr) -> Value:
        """What may be given to a call, a known name and a list of names that an attribute has among it."""
        kept = self._texts_of(node, True) if isinstance(node, ast.Attribute) else None
        word = self._word(node)
        known = name_list(kept) if kept is not None else text(word) if word is not None else {}
        return {**self.uses.depths.relevant(self.value(node)), **known}

    def _word(self, node: ast.AST | None) -> str | None:
        """The name that an expression is, if it is known."""
        if isinstance(node, ast.Name):
            return self.words.get(node.id)
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None

    def _called(self, node: ast.Call, item: Item, args: list[Value], kwargs: dict[str, Value]) -> Value:
        thing, given = item.thing, self.uses.depths.relevant(union([*args, *kwargs.values()]))
        if isinstance(thing, nn.Module):
            self.uses.called[thing] = None
            self.uses.use(given)
            # A call may have code of its own.
            return self.things.special({(0, ""): item}, "__call__")
        if isinstance(thing, Inner):
            for code in thing.around:
                code.call_inner(thing, args, kwargs)
            return dict(thing.result)
        if isinstance(thing, Group):
            self.uses.use({**given, **one(thing)})
            return {}
        if isinstance(thing, (Bound, MethodType)):
            bound = thing if isinstance(thing, Bound) else Bound(thing.__func__, thing.__self__)
            return self._method(node, bound, args, kwargs)
        if isinstance(thing, partial):
            before = {name: one(each) for name, each in thing.keywords.items()}
            return self._called(node, Item(thing.func), [*map(one, thing.args), *args], {**before, **kwargs})
        if inspect.isfunction(thing) and not is_torchs(thing) and not _asks(thing):
            return self.uses.run(thing, args, kwargs) if given or self.uses.depths.holds({(0, ""): item}) else {}
        if "__call__" in methods_of(type(thing)):
            return self.things.method(item, inspect.getattr_static(type(thing), "__call__"), args, kwargs)
        return self._foreign(node, thing, args, kwargs)

    def _method(self, node: ast.Call, bound: Bound, args: list[Value], kwargs: dict[str, Value]) -> Value:
        owner, function, given = bound.owner, bound.function, union([*args, *kwargs.values()])
        if isinstance(owner, nn.Module):
            name = str(getattr(function, "__name__", ""))
            if not is_torchs(function):
                return self.things.method(Item(owner), function, args, kwargs)
            if name == "__getattr__" and len(node.args) == 1 and (word := self._word(node.args[0])) is not None:
                return self.things.member(owner, word)
            self.uses.use(given if name != "apply" else {**given, **one(owner)})
            if name in CHILDREN | TENSORS | MODULES:
                return self.things.listed(owner, name)
            return one(owner) if name in KEEPING else {**all_of(owner.modules()), **all_of(tensors_of(owner))}
        if isinstance(function, str):
            # A container: what it gets it has, and may give again.
            if isinstance(owner, Group):
                owner.items.update(given)
            elif function not in READING and isinstance(node.func, ast.Attribute):
                self._note_filled(node.func.value, one(owner))
            return self.group(node, elements(one(owner)))
        if is_torchs(function):
            self.uses.use({**given, **one(owner)})
            return {}
        return self.things.method(Item(owner), function, args, kwargs)

    def _foreign(self, node: ast.Call, thing: object, args: list[Value], kwargs: dict[str, Value]) -> Value:
        name, given = str(getattr(thing, "__name__", "")), union([*args, *kwargs.values()])
        if thing is super:
            return union(self._super(item.thing) for item in list(self.own.values()))
        if name == "getattr" and args:
            return self._getattr(node, args[0])
        if name in PASSING:
            made = {**self.things.elements(union(args)), **union(kwargs.values())}
            return made if name == "next" else self.group(node, made)
        if name in LOOKING:
            self.uses.use(union(self.names.values()))
        if name in CALLING and args:
            self.uses.use(union(args[1:]))
            return union(self._called(node, item, args[1:], {}) for item in list(args[0].values()))
        if name == "setattr" and len(node.args) > 1:
            self.uses.stored.setdefault(self._word(node.args[1]) or "", {})
        if name == "type":
            self._note_class(node, given.values())
        if _asks(thing):
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
        found = [self.value(node.args[2]) if len(node.args) > 2 else {}]
        for key, item in list(owner.items()):
            names = self._names_of(name, item.thing)
            found += [elements({key: item})] if names is None else []
            any_of = [each for each in methods_of(type(item.thing)) if not each.startswith("__")]
            found += [self.things.get(item, each) for each in (any_of if names is None else names)]
        return union(found)

    def _names_of(self, node: ast.AST | None, owner: object) -> list[str] | None:
        """The attributes of an object whose name an expression may be; None if that may be any."""
        if (word := self._word(node)) is not None:
            return [word]
        if self.tree is None:
            return None
        listed = self._listed_words(node, self.tree)
        pattern = spelling(node, self.tree, self._kept) if listed is None else None
        return listed if pattern is None else [*filter(pattern.fullmatch, names_in(owner))]

    def _listed_words(self, node: ast.AST | None, tree: Function) -> list[str] | None:
        """What the variable of a loop may be, over names in a list: ``for name in self.names``, or in an argument."""
        over = looped_over(tree, node.id) if isinstance(node, ast.Name) else None
        if isinstance(over, (ast.Tuple, ast.List)):
            names = [each.value for each in over.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            return names if len(names) == len(over.elts) else None
        if isinstance(over, ast.Name):
            return [*self.lists[over.id]] if over.id in self.lists else None
        return self._texts_of(over, True) if over is not None else None

    def _kept(self, node: ast.expr) -> list[str] | None:
        """The texts that an attribute of the object may be whose code this is, or, if it is indexed, have in a list;
        None if that is not known. (There are none if it has no such attribute: the code fails, if it runs.)
        """
        return self._texts_of(node.value, True) if isinstance(node, ast.Subscript) else self._texts_of(node, False)

    def _texts_of(self, whole: ast.expr, indexed: bool) -> list[str] | None:
        name = whole.attr if isinstance(whole, ast.Attribute) and path_of(whole) == whole.attr else ""
        owners = [item.thing for item in self.own.values()]
        first = [each.arg for each in self.tree.args.args[:1]] if self.tree is not None else []
        known = name and first == ["self"] and len(owners) == 1 and isinstance(owners[0], nn.Module)
        if not known or name in self.uses.changing or name in self.uses.stored:
            return None
        self.uses.relied.add(name)
        if name not in names_in(owners[0]):
            return None if "__getattr__" in methods_of(type(owners[0])) else []
        kept = inspect.getattr_static(owners[0], name, None)
        texts = [kept] if not indexed else [*kept] if isinstance(kept, (list, tuple)) else [None]
        words = [each for each in texts if isinstance(each, str)]
        return words if len(words) == len(texts) else None

    def _super(self, owner: object) -> Value:
        name = self.function.__name__
        mro = type(owner).__mro__
        cls = next((cls for cls in mro if inspect.unwrap(vars(cls).get(name, super)) is self.function), mro[0])
        return self.uses.same(Super(cls, owner))


class Following(Uses):
    """Finds it by following all code that it can."""

    def run_code(
        self, function: FunctionType, tree: Function, result: Value, args: list[Value], kwargs: Mapping[str, Value]
    ) -> None:
        """The code of one call."""
        Code(self, function, result).run(tree, args, kwargs)
