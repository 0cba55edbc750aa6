"""Record how numbers are computed while a model is fused.

Readers, laws and writers are ordinary tensor code, and so are those of a user. A dispatch mode sees every operation
they do. Which value a tensor is, is known by its place in memory: its storage, and where in it its numbers lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import RecipeError
from .operations import OPERATIONS, READS
from .recipe import CONSTANT, INPUT, Fused, Original, Program, Recipe, Step, Test, name_of, packed

Place = tuple[int, torch.dtype, int, tuple[int, ...], tuple[int, ...]]
"""Where a tensor lies: the number of its storage, dtype, offset, sizes, strides."""
NAMES = {function: name for name, function in OPERATIONS.items()}
IN_SHAPE = frozenset({"squeeze_", "unsqueeze_", "t_", "transpose_"})
"""Operations that change the shape of a tensor in place, and no number: recipes take another tensor."""
TO_PYTHON = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__})
"""Methods that hand numbers to Python without an operation."""
UNKNOWN = "numbers of unknown origin"


class _Read(NamedTuple):
    """Numbers that were taken out of a tensor, by a step."""

    step: Step
    value: Any


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside ``with tape:`` operations on tensors are recorded.

    The state dict of `model` is the input of the recipe; its other tensors are constants.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = type(model).__name__
        self.inputs: dict[str, Original] = {}
        self.steps: list[Step] = []
        self.reads: list[_Read] = []
        self._values: dict[Place, int] = {}
        self._storages = WeakIdKeyDictionary()
        self._storage_of: list[int] = []
        self._makers: list[list[int]] = []
        self._numbers = _Numbers(self)
        for name, tensor in state(model).items():
            self._input(name, tensor)
        attributes = (value for module in model.modules() for value in vars(module).values())
        self.know([*model.buffers(), *(value for value in attributes if isinstance(value, Tensor))])

    def __enter__(self) -> Tape:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._numbers.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._numbers.__exit__(*error)  # type: ignore[no-untyped-call]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    # --- recording -------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if types:
            # Tensors of another kind, such as fake ones.
            return func(*args, **kwargs)
        name = NAMES.get(func, str(func).removeprefix("aten."))
        name = name.replace("_.", ".") if name.partition(".")[0] in IN_SHAPE else name
        if name == "lift_fresh.default":
            # Numbers that stand in the code; those read from a tensor are a test of their own.
            self.know([args[0].clone()], args)
        step = Step(name, self._data(args), {key: self._data(value) for key, value in kwargs.items()}, ())
        found = func(*args, **kwargs)
        if name in READS:
            self.reads.append(_Read(step, found))
        else:
            self._made(step, _written(func, args, kwargs), found)
            if torch.Tag.dynamic_output_shape in func.tags:
                self._shaped(found)
        return found

    def _shaped(self, found: Any) -> None:
        """The shape of a result depends on numbers, and Python code sees it."""
        for tensor in [found] if isinstance(found, Tensor) else found:
            self.reads.append(_Read(Step("shape", self._data((tensor,)), {}, ()), list(tensor.shape)))

    def read(self, tensor: Tensor) -> None:
        """All numbers of a tensor go to Python."""
        self.reads.append(_Read(Step("tolist", self._data((tensor,)), {}, ()), tensor.detach().tolist()))

    def know(self, constants: Iterable[Tensor], where: Iterable[Tensor] | None = None) -> None:
        """Tensors that are the same for every checkpoint. where: the tensors that have their numbers, if others do."""
        constants = list(constants)
        for constant, tensor in zip(constants, constants if where is None else where, strict=True):
            if _storage(tensor) not in self._storages:
                place = self._place(tensor)
                self._append(Step(CONSTANT, [constant], {}, (self._value(place),)), {place[0]})

    def _made(self, step: Step, written: list[Tensor], found: Any) -> None:
        results = found if isinstance(found, (tuple, list)) else [found]
        tensors = [result for result in results if isinstance(result, Tensor)]
        places = [self._place(t) for t in tensors]
        if written or not all(place in self._values for place in places):
            made = tuple(self._value(place) for place in places)
            self._append(step._replace(made=made), {p[0] for p in (*places, *map(self._place, written))})

    def _append(self, step: Step, storages: Iterable[int]) -> None:
        for storage in storages:
            self._makers[storage].append(len(self.steps))
        self.steps.append(step)

    def _place(self, tensor: Tensor) -> Place:
        storage = _storage(tensor)
        number = self._storages.get(storage)  # type: ignore[no-untyped-call]
        if number is None:
            number = self._storages[storage] = len(self._makers)
            self._makers.append([])
        offset = int(tensor.storage_offset()) if tensor.layout is torch.strided else 0
        return number, tensor.dtype, offset, tuple(tensor.shape), _strides(tensor)

    def _value(self, place: Place) -> int:
        """The number of the value at a place."""
        if place not in self._values:
            self._values[place] = len(self._storage_of)
            self._storage_of.append(place[0])
        return self._values[place]

    def _input(self, name: str, tensor: Tensor) -> None:
        place = self._place(tensor)
        tied = self.steps[self._values[place]].args[0] if place in self._values else ""
        strides = _strides(tensor) or (0,) * tensor.dim()
        order = tuple(sorted(range(tensor.dim()), key=lambda d: (-strides[d], d)))
        self.inputs[name] = Original(tuple(tensor.shape), name_of(tensor.dtype), order, tied)
        if not tied:
            self._append(Step(INPUT, [name], {}, (self._value(place),)), {place[0]})

    def _argument(self, tensor: Tensor) -> int:
        place = self._place(tensor)
        if place not in self._values:
            # Made where no operation was seen, perhaps from parameters.
            self._append(Step(UNKNOWN, [], {}, (self._value(place),)), {place[0]})
        return self._values[place]

    def _data(self, value: Any) -> Any:
        """An argument as JSON data."""
        if isinstance(value, Tensor):
            return {"tensor": self._argument(value)}
        if isinstance(value, (list, tuple)):
            return [self._data(each) for each in value]
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        return {type(value).__name__: name_of(value)}

    # --- the recipe ------------------------------------------------------------------------------

    def recipe(self, fused: nn.Module) -> Recipe:
        """The recipe for a model made of the tensors that were recorded, which are not used after this.

        Raises `RecipeError` if some tensor has no program.
        """
        outputs: dict[str, Fused] = {}
        for name, tensor in state(fused).items():
            program = self._tried(f"'{name}'", Step("", [{"tensor": self._argument(tensor)}], {}, ()))
            outputs[name] = Fused(tuple(tensor.shape), name_of(tensor.dtype), program)
        tests = [Test(self._tried("what was merged", step), value) for step, value in self.reads]
        return Recipe(self.model, self.inputs, outputs, tuple(test for test in tests if test.program.inputs))

    def _tried(self, what: str, last: Step) -> Program:
        try:
            return self._program(last)
        except RecipeError as error:
            raise RecipeError(f"there is no recipe for {what}: {error}") from None

    def _program(self, last: Step) -> Program:
        """The steps that `last` needs, and `last` itself if it is an operation."""
        needed: set[int] = set()
        stack = [self._storage_of[value] for value in last.reads]
        while stack:
            for number in self._makers[stack.pop()]:
                if number not in needed:
                    needed.add(number)
                    step = self.steps[number]
                    stack += [self._storage_of[value] for value in step.reads]
        steps = [self.steps[number] for number in sorted(needed)]
        if last.op:
            steps.append(last._replace(made=(len(self._storage_of),)))
        result = steps[-1].made[0] if last.op else last.args[0]["tensor"]
        return _renumbered(steps, result)


class _Numbers(TorchFunctionMode):
    """Sees the calls that are no operations."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in TO_PYTHON:
            self.tape.read(args[0])
        return func(*args, **(kwargs or {}))


def state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state dict, not copies of them."""
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}


def _storage(tensor: Tensor) -> Any:
    """The memory of a tensor; of a sparse one, which has none of this kind, the tensor."""
    return tensor.untyped_storage() if tensor.layout is torch.strided else tensor


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """How far apart neighbours are in memory, per dimension; nothing of a sparse tensor."""
    return tuple(tensor.stride()) if tensor.layout is torch.strided else ()


def _written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes into."""
    schema = func._schema.arguments
    given = [*zip(schema, args, strict=False), *((a, kwargs[a.name]) for a in schema if a.name in kwargs)]
    return [v for a, v in given if a.alias_info is not None and a.alias_info.is_write and isinstance(v, Tensor)]


def _renumbered(steps: list[Step], result: int) -> Program:
    """A program whose values are numbered from 0, with its constants packed."""
    numbers: dict[int, int] = {}
    made = [step._replace(made=tuple(numbers.setdefault(n, len(numbers)) for n in step.made)) for step in steps]

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {"tensor": numbers.get(value["tensor"], -1)} if "tensor" in value else value
        return [moved(each) for each in value] if isinstance(value, list) else value

    def renumbered(step: Step) -> Step:
        args = packed(step.args[0]) if step.op == CONSTANT else moved(step.args)
        return step._replace(args=args, kwargs={name: moved(value) for name, value in step.kwargs.items()})

    return Program(tuple(map(renumbered, made)), numbers[result])
