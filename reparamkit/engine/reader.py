"""Read a captured graph, in one pass in program order: for every value, the forms it can be computed by."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor, fx, nn

from ..algebra.form import CONSTANT_FOLD, Form, source_form, with_guarded_rank
from ..algebra.operator import open_sizes, pin
from ..algebra.regroup import told_rank
from ..algebra.size import ONE, Share, Size, Symbol, fixed, is_of_rank, roots
from ..capture.captured import Captured
from ..errors import FreeSize, NotFusable, RuleError
from ..layers.hooks import AFTER, BEFORE
from ..layers.registry import Reader, Readers
from ..layers.wide import computed_module
from ..reasons import Kind, Reason
from ..tracing.torch_calls import FACTORIES
from .arithmetic import evaluated, is_constant, rounded_to, widened
from .choices import Choice, Choices
from .counting import OpenShape, Shape, calculated, checks, computed, is_arithmetic, opaque, reads_shape, shape_read
from .memo import Key, identity
from .parts import SPLITS, number_of_parts, taken_apart
from .ranks import ROWS, counts_rows
from .reading import Candidate, Reading
from .scope import WATCHED, Scope, watched
from .shapes import Shapes, own_shape

WRITTEN = "rules"
"""What the meta of a node has that was written for a merge: its rules."""
Rank = Literal["exact", "least"]
Prune = Callable[[fx.Node, list[Candidate]], list[Candidate]]


def read(captured: Captured, readers: Readers, scope: Scope, prune: Prune, reading: Reading) -> Reading:
    """Fill `reading`; `prune` chooses which forms of a value to keep, cheapest first."""
    for node in captured.graph.nodes:
        _Reader(captured, readers, scope, prune, reading, node).run()
    return reading


@dataclass
class _Reader:
    """Reads one node. rank: what it needs to know of the rank of its inputs, once that was found out."""

    captured: Captured
    readers: Readers
    scope: Scope
    prune: Prune
    out: Reading
    node: fx.Node
    rank: list[Rank | None] = field(default_factory=list)

    def run(self) -> None:
        found: list[Candidate] = []
        if self.node.op == "get_attr":
            self._attribute()
        elif self.node.op == "placeholder":
            self._as_source(own_shape(self.node))
        elif self.node.op.startswith("call"):
            found = self._call()
        kept = self.prune(self.node, found)
        if kept and not self._seen(AFTER):
            self.out.forms[self.node] = [*kept, *self.out.forms.get(self.node, [])]

    def _reads_forms(self) -> bool:
        return any(n in self.out.forms for n in self.node.all_input_nodes)

    def _seen(self, table: str) -> bool:
        """Whether hooks see (and may change) what goes into the node, or comes out of it: forms begin and end there."""
        return watched(self.captured, self.node, table)

    # --- values that are not forms ---------------------------------------------------------------

    def _attribute(self) -> None:
        value = self.captured.attribute(self.node)
        if isinstance(value, Tensor) and self.node not in self.captured.aliases.barriers:
            self._constant(value)
        else:
            self._as_source(own_shape(self.node))

    def _constant(self, value: Any) -> None:
        self.out.constants[self.node] = value
        self.captured.constants.add(self.node)

    def _call(self) -> list[Candidate]:
        if self._size_arithmetic() or self._evaluate_constant() or self._stand_for_constant():
            return []
        if self.node.target is operator.getitem:
            self._meet_parts()
        if self.node in self.captured.aliases.writers:
            self._overwritten()
        reader = self._reader()
        found = self._read(reader) if reader is not None and self._reads_forms() else self._read_spread()
        known = None if self._seen(AFTER) else self._known_shape(reader)
        self._as_source(known or self._shapes.guessed())
        return found

    def _evaluate_constant(self) -> bool:
        """A value of parameters only, computed in float64."""
        constants, sizes = self.out.constants, self.out.sizes
        if self._checks_again() or not is_constant(self.captured, self.node, constants, sizes):
            return False
        if (dtype := rounded_to(self.captured, self.node)) is not None:
            rounded = f"parameters that are rounded to {str(dtype).removeprefix('torch.')} on the way"
            self.out.no(self.node, Reason(rounded, Kind.DTYPE))
            return False
        writes = self.node in self.captured.aliases.writers
        written = self.captured.aliases.written(self.node) if writes else None
        if written is not None:
            # Who read it before keeps what was read.
            constants[written] = widened(constants[written]).clone()
        try:
            value = evaluated(self.captured, self.node, constants, sizes)
        except Exception as error:
            self.out.no(self.node, Reason(f"parameter arithmetic that fails in float64 ({error})", Kind.UNREAD))
            return False
        if written is not None:
            self.out.writes[self.node], value = written, constants[written]
        self._constant(value)
        return True

    def _stand_for_constant(self) -> bool:
        """A constant that gets the shape of a value of any rank, for arithmetic with it, which would spread it too."""
        constant, value = self._expanded_like()
        alone = value is not None and all(is_arithmetic(user, self.node, value) for user in self.node.users)
        if not alone or not isinstance(self.out.constants.get(constant), Tensor):
            return False
        self._constant(self.out.constants[constant])
        return True

    def _expanded_like(self) -> tuple[Any, fx.Node | None]:
        """What a node expands, and the value whose whole shape it gets, if that is of a rank that is not known."""
        constant, shape = self.node.args if len(self.node.args) == 2 else (None, None)
        if self.node.target != "expand" or not isinstance(shape, fx.Node) or not reads_shape(shape):
            return None, None
        is_open = isinstance(self.out.sizes.get(shape), OpenShape)
        return constant, shape.all_input_nodes[0] if is_open else None

    def _checks_again(self) -> bool:
        """Whether a node checks a number that may only follow from what code elsewhere has checked: that may run as it
        is, for other numbers.
        """
        decides = checks(self.node) and self.node in self.captured.decisions
        return decides and self.captured.decided_outside(self.node, self.captured.frame(self.node))

    def _overwritten(self) -> None:
        """Constants that share the memory of a write that cannot be followed are none from here on."""
        for node in self.captured.aliases.of(self.node) & self.out.constants.keys():
            del self.out.constants[node]
            self.captured.constants.discard(node)
            self._as_source(own_shape(node), node)

    def _size_arithmetic(self) -> bool:
        value = _size_value(self.node, self.out)
        if value is None:
            return False
        self.out.sizes[self.node] = value
        self.captured.numbers.add(self.node)
        return True

    # --- shapes ----------------------------------------------------------------------------------

    @property
    def _shapes(self) -> Shapes:
        return Shapes(self.out, self.node)

    def _known_shape(self, reader: Reader | None) -> Shape | None:
        shapes = self._shapes
        told = shapes.of_form() or self._refused_shape(reader) or shapes.kept() or self._given_shape(reader)
        return told or shapes.padded()

    def _given_shape(self, reader: Reader | None) -> Shape | None:
        """The sizes that a view's own arguments give."""
        first, *rest = self.node.args or (None,)
        if reader is None or reader.shape is None or not isinstance(first, fx.Node) or self.node.kwargs:
            return None
        try:
            known = fx.node.map_arg(rest, lambda n: self._known(reader, n))
        except NotFusable:
            return None
        return self._shapes.given(reader.shape, known)

    def _refused_shape(self, reader: Reader | None) -> Shape | None:
        """The shape of a call that may be in no merge, but whose reader knows what it makes of its inputs."""
        if reader is None or self.node in self.out.read or self._seen(BEFORE) or not self._reads_forms():
            return None
        try:
            form = self._read_all(reader, next(iter(self._choices)))[0].form
        except (NotFusable, RuleError, MemoryError):
            return None
        return None if form.guards else (form.sizes, form.open_rank)

    def _as_source(self, shape: Shape, node: fx.Node | None = None) -> None:
        node = node or self.node
        if isinstance(node.meta.get("val"), (tuple, list)):
            # Several values in one: what takes them apart makes tensors.
            return
        self.out.shapes[node] = shape
        key = "value", node, identity(shape)
        made = self.out.memo.ask(key, lambda: Candidate(source_form(node.name, *shape), frozenset()))
        self.out.forms[node] = [made]

    # --- reading ---------------------------------------------------------------------------------

    @property
    def _choices(self) -> Choices:
        return Choices(self.out, self.node, alone=self._seen(BEFORE))

    def _reader(self) -> Reader | None:
        if self.node.op == "call_module":
            module = self.captured.module(self.node)
            return self.readers.of_module(module) or self._row(module)
        return self.readers.of_function(self.node.target)

    def _row(self, module: nn.Module) -> Reader | None:
        """The reader of a row of layers that a merge was written as."""
        if type(module) is not nn.Sequential or WRITTEN not in self.node.meta:
            return None
        layers = [*_layers(module)]
        readers = [reader for layer in layers if (reader := self.readers.of_module(layer)) is not None]

        def read_row(_: nn.Sequential, input: Form) -> Form:
            for reader, layer in zip(readers, layers, strict=True):
                found = reader(layer, input)
                input = found[0] if isinstance(found, tuple) else found
            return input

        return Reader((nn.Sequential,), read_row) if len(readers) == len(layers) else None

    def _read(self, reader: Reader) -> list[Candidate]:
        refusal = self.scope.refusal(self.node, together=True)
        if refusal is not None:
            self.out.no(self.node, refusal)
            return []
        if self._seen(AFTER) or self._seen(BEFORE):
            self.out.no(self.node, WATCHED)
        found = []
        for choice in self._choices:
            try:
                read = self._read_somehow(reader, choice)
            except NotFusable as no:
                self.out.no(self.node, no.reason)
            else:
                found += read
                if not any(c.members for c in choice.values()):
                    self._note_own(read[0].form)
                if reader.moves is not None:
                    rest = self.node.args[1:]
                    self.out.moves[self.node] = reader.moves(*rest) if callable(reader.moves) else reader.moves
        return found

    def _note_own(self, form: Form) -> None:
        """What a node does to its own inputs."""
        if form.times != ONE:
            self.out.sums[self.node] = form
            return
        self.out.read[self.node] = form
        self.out.learn(form)

    def _read_somehow(self, reader: Reader, choice: Choice) -> list[Candidate]:
        """For all sizes and ranks, or else for those that the model meets as numbers further on, and that are told."""
        try:
            read = self._read_ranked(reader, choice)
        except FreeSize:
            ranked = {n: replace(c, form=told_rank(c.form)) for n, c in choice.items()}
            symbols = {s for c in ranked.values() for size in c.form.sizes for s in roots(size)}
            self.out.stuck |= symbols
            told = {symbol: self.out.assumed[symbol] for symbol in symbols if symbol in self.out.assumed}
            if not told:
                raise
            read = self._read_ranked(reader, {n: _guarded(c, told) for n, c in ranked.items()})
        for candidate in read:
            self.out.meet(candidate.form.guards)
        return read

    def _read_ranked(self, reader: Reader, choice: Choice) -> list[Candidate]:
        """For all ranks, or else for those that are told."""
        try:
            return self._read_all(reader, choice)
        except NotFusable:
            told = {n: replace(c, form=told_rank(c.form)) for n, c in choice.items()}
            if all(told[n].form is c.form for n, c in choice.items()):
                raise
        return self._read_all(reader, told)

    def _meet_parts(self) -> None:
        """A dimension of which code takes parts that together are all of it has the size that the code says."""
        whole = self.node.args[0]
        sizes, open_rank = self.out.shapes.get(whole, ((), True))  # type: ignore[arg-type]
        if not open_rank:
            parts = [user.args[1] for user in whole.users if user.target is operator.getitem]  # type: ignore[union-attr]
            for size, end in zip(sizes, taken_apart(parts, len(sizes)), strict=True):
                self.out.meet((symbol, symbol.hint) for symbol in roots(size) if end in (size.hint, math.inf))

    def _read_spread(self) -> list[Candidate]:
        """A constant that is given sizes of a value, whose shape is all that it takes of it."""
        reader, like = self.readers.of_spread(self.node.target), self._sized_like()
        # The dtype of what is made of nothing is that of the process.
        unknown = self.node.target in FACTORIES and "val" not in self.node.meta
        if reader is None or like is None or unknown or self.scope.refusal(self.node) is not None:
            return []
        spread = Reader(reader.targets, partial(reader.read, self._ranked(like)), reader.sizes)
        try:
            found = self._read_all(spread, {like: Candidate(self._ranked(like), frozenset())})
        except NotFusable as no:
            self.out.no(self.node, no.reason)
            return []
        self.out.read[self.node] = found[0].form
        assert isinstance(reader.moves, int)
        self.out.moves[self.node] = reader.moves
        return found

    def _sized_like(self) -> fx.Node | None:
        """The one value that the sizes among the arguments are of; None if there is none, or its rank is open."""
        names = {str(symbol.origin[0]) for size in self._given_sizes() for symbol in roots(size)}
        found = self.captured.named.get(next(iter(names))) if len(names) == 1 else None
        return found if found in self.out.forms and not self.out.shape_of(found)[1] else None

    def _given_sizes(self) -> list[Size]:
        given = [self.out.told(self.out.sizes.get(n)) for n in self.node.all_input_nodes]
        every = [size for each in given for size in (each if isinstance(each, tuple) else (each,))]
        return [size for size in every if isinstance(size, Size)]

    def _ranked(self, like: fx.Node) -> Form:
        """The form of a value. Code that reads only some of its sizes may read others of a value of another rank."""
        told = self.out.shapes[like][1]
        form = source_form(like.name, *self.out.shape_of(like))
        whole = any(isinstance(self.out.sizes.get(n), tuple) for n in self.node.all_input_nodes)
        free = {size for size in self.out.sizes_of(like) if not size.known}
        return form if not told and (whole or free <= {*self._given_sizes()}) else with_guarded_rank(form)

    def _read_all(self, reader: Reader, choice: Choice) -> list[Candidate]:
        """A call may have several forms, which say the same of it in ways that merge differently."""
        if any(c.form.vanishes for c in choice.values()):
            found = self._read_anew(reader, choice)
        else:
            key, told_by = self._question(reader, choice)
            found = self.out.memo.ask(key, lambda: self._read_anew(reader, choice), told_by)
        for candidate in found:
            self.scope.check_rules(candidate.form)
        return found

    def _question(self, reader: Reader, choice: Choice) -> tuple[Key, object]:
        """All that the forms of a call depend on, and the objects in it."""
        node, out = self.node, self.out
        values = [*choice.values(), *(self._known(reader, n) for n in node.all_input_nodes if n not in choice)]
        known = tuple(tuple(out.known(c.form).items()) for c in choice.values())
        shapes = tuple(identity(out.shapes[n]) for n in choice) if self.captured.origin.ranks_vary else ()
        module = self.captured.module(node) if node.op == "call_module" else None
        told_by = module, node.args, node.kwargs, *values
        return ("form", node, known, shapes, bool(out.arithmetic(node)), *map(identity, told_by)), told_by

    def _read_anew(self, reader: Reader, choice: Choice) -> list[Candidate]:
        args, kwargs = self._arguments(reader, choice)
        try:
            forms = reader(*args, **kwargs)
        except (IndexError, ValueError, AssertionError) as error:
            raise NotFusable(
                f"its reader does not know this call ({type(error).__name__}: {error})", Kind.CODE
            ) from error
        except (NotFusable, MemoryError):
            raise
        except Exception as error:
            where = self.captured.path(self.node)
            raise RuleError(
                f"the reader of {reader.name} fails on '{where}' ({type(error).__name__}: {error}): correct it, or"
                " let it raise NotFusable(reason) where it does not hold"
            ) from error
        forms = forms if isinstance(forms, tuple) and forms else (forms,)
        return [self._candidate(reader, choice, form) for form in forms]

    def _candidate(self, reader: Reader, choice: Choice, form: Any) -> Candidate:
        if not isinstance(form, Form):
            raise NotFusable(f"the reader of {reader.name} returned {type(form).__name__}, not a form", Kind.UNREAD)
        self._check_shapes_of(choice, form)
        if (rank := self._rank_needed(reader, choice)) is not None:
            form = with_guarded_rank(form, or_more=rank == "least")
        members = frozenset({self.node}).union(*(c.members for c in choice.values()))
        if self.out.arithmetic(self.node):
            form = form.made_by(CONSTANT_FOLD)
        return Candidate(form.stepped(self.node.name), members)

    def _rank_needed(self, reader: Reader, choice: Mapping[fx.Node, Candidate]) -> Rank | None:
        """Whether the call does something else with values of another rank than the example's, if others may come."""
        if not self.captured.origin.ranks_vary:
            return None
        if not self.rank:
            self.rank.append(self._rank_read(reader, choice))
        return self.rank[0]

    def _rank_read(self, reader: Reader, choice: Mapping[fx.Node, Candidate]) -> Rank | None:
        """What the call does with values of any rank: that is not known if it needs theirs, or it is behind a guard."""
        opened: dict[tuple[Size, ...], Form] = {}
        for node in choice:
            # What has one shape has it at any rank, unless what made it was guarded.
            sizes = self.out.shapes[node][0]
            anew = open_sizes(node.name, tuple(size.hint for size in sizes), max(1, len(sizes)))
            opened.setdefault(sizes, source_form(node.name, anew, open_rank=True))
        others = {node: Candidate(opened[self.out.shapes[node][0]], frozenset()) for node in choice}
        args, kwargs = self._arguments(reader, others)
        try:
            forms = reader(*args, **kwargs)
        except Exception:
            return "exact"
        guards = {guard for form in (forms if isinstance(forms, tuple) else (forms,)) for guard in form.guards}
        exact = any(symbol.stands_for_dims for symbol, _ in guards)
        return "exact" if exact else "least" if any(is_of_rank(*guard) for guard in guards) else None

    def _check_shapes_of(self, choice: Choice, form: Form) -> None:
        """A layer of which only the shape is read checks its input, and would be gone; over its input, a guard does."""
        shapes = {name for c in choice.values() if c.form.vanishes for name in c.form.terms} - form.terms.keys()
        if any(self.captured.named[name] in self.out.read for name in shapes):
            raise NotFusable("zeros of the shape of a layer that is needed for nothing else", Kind.SHAPES)

    def _arguments(self, reader: Reader, choice: Choice) -> tuple[list[Any], dict[str, Any]]:
        vanishing = any(c.form.vanishes and self._takes_layers(c) for c in choice.values())

        def known(node: fx.Node) -> Any:
            if node in choice:
                return choice[node].form if vanishing else self.out.informed(choice[node].form)
            return self._known(reader, node)

        args: list[Any] = list(fx.node.map_arg(self.node.args, known))
        kwargs = dict(fx.node.map_arg(self.node.kwargs, known))
        if self.node.op == "call_module":
            args.insert(0, computed_module(self.captured.module(self.node)))
        return args, kwargs

    def _takes_layers(self, shape: Candidate) -> bool:
        """Whether a constant has the shape of layers: what they check of their input, nothing checks any more."""
        return any(m in self.out.read and not self.out.read[m].vanishes for m in shape.members)

    def _known(self, reader: Reader, node: fx.Node) -> Any:
        """A constant, or a size."""
        return self.out.constants[node] if node in self.out.constants else self._size(reader, node)

    def _size(self, reader: Reader, node: fx.Node) -> Any:
        # A layer that comes after it was read may have fixed the size.
        value = self.out.told(self.out.sizes.get(node))
        if (number := self._calculated(node)) is not None:
            return number
        if reader.sizes and isinstance(value, (Share, Size, tuple)):
            return value
        sizes, _ = self.out.shapes.get(self.node.all_input_nodes[0], ((), True))
        if reader.sizes and sizes and counts_rows(node, self.node, sizes[-1]):
            self.node.meta[ROWS] = node
            return -1
        raise NotFusable(f"an argument that is computed at run time ({node})", Kind.SIZES)

    def _calculated(self, node: fx.Node) -> int | float | None:
        """The number that code computes of sizes, if all of them are known, as in ``(c // heads) ** -0.5``."""
        value = self.out.told(self.out.sizes.get(node))
        if isinstance(value, Size) and value.known:
            return value.factor
        if node.op != "call_function" or node in self.out.shapes:
            # What is made of tensors is none, however long the way to it.
            return None
        return calculated(node, fx.node.map_arg(node.args, self._calculated))


def _layers(row: nn.Sequential) -> Iterator[nn.Module]:
    """The layers of a row, also of a row in it, in the order of their calls."""
    for layer in row:
        yield from _layers(layer) if type(layer) is nn.Sequential else (layer,)


def _guarded(candidate: Candidate, told: Mapping[Symbol, int]) -> Candidate:
    """A candidate for some sizes only."""
    return replace(candidate, form=candidate.form.mapped(lambda op: pin(op, told, guard=True)))


def _size_value(node: fx.Node, known: Reading) -> Any:
    """The value of a node that is a size or a tuple of sizes, else None."""
    if checks(node) or node.target in FACTORIES:
        return None
    first = node.args[0] if node.args else None
    if isinstance(first, fx.Node) and isinstance(known.constants.get(first), Tensor):
        return shape_read(node, (tuple(map(fixed, known.constants[first].shape)), False))
    splits = isinstance(first, fx.Node) and first.target in SPLITS and first not in known.constants
    if node.target is len and splits:
        # Of the parts, and not of what they are parts of.
        count = number_of_parts(first, known.sizes_of)
        return opaque(node) if count is None else fixed(count)
    if isinstance(first, fx.Node) and first in known.shapes:
        open_rank = known.shape_of(first)[1]
        sizes = known.told(known.shapes[first][0]) if open_rank else known.sizes_of(first)
        return shape_read(node, (sizes, open_rank))
    inputs = node.all_input_nodes
    if any(n in known.shapes for n in inputs):
        # A number of sizes on the left of a tensor.
        return None
    if node.op != "call_function" or not any(n in known.sizes for n in inputs):
        number = isinstance(node.meta.get("val"), (int, float)) and not any(n in known.constants for n in inputs)
        return opaque(node) if number else None
    return computed(node, list(fx.node.map_arg(node.args, lambda n: known.sizes.get(n, n))))
