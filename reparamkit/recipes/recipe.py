"""A recipe: how the tensors of a fused model are computed from those of the original, as data.

    {"schema": "reparamkit.recipe", "version": 1, "model": "Net",
     "inputs":  {"conv.weight": {"shape": [8, 3, 3, 3], "dtype": "float32", "order": [0, 1, 2, 3], "tied": ""}, ...},
     "outputs": {"conv.weight": {"shape": [8, 3, 3, 3], "dtype": "float32", "program": {...}}, ...},
     "tests":   [{"program": {...}, "expected": 1.0}, ...]}

A program is a row of calls; `made` numbers their results, and {"tensor": 3} is the third of them:

    {"steps": [["input", ["bn.weight"], {}, [0]], ["mul.Tensor", [{"tensor": 0}, 2.0], {}, [1]]], "result": 1}
"""

from __future__ import annotations

import base64
import ctypes
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import RecipeError
from .operations import OPERATIONS

SCHEMA, VERSION = "reparamkit.recipe", 1
"""Name and version of the JSON form. The version rises when a field changes its meaning or goes."""
INPUT, CONSTANT = "input", "constant"
"""Steps that bring numbers in: a tensor of the checkpoint by name, or a tensor that is part of the recipe."""


class Step(NamedTuple):
    """One call. op: a name in `OPERATIONS`, or `INPUT` or `CONSTANT`. args, kwargs: as in JSON. made: its results."""

    op: str
    args: Any
    kwargs: Mapping[str, Any]
    made: tuple[int, ...]

    @property
    def reads(self) -> frozenset[int]:
        """The numbers of the tensors among its arguments."""
        return frozenset(_references([*self.args, *self.kwargs.values()]))


@dataclass(frozen=True)
class Program:
    """A row of calls without branches. result: the number of the value it is for.

    Raises `RecipeError` if it uses an operation that is not in the table, or a value before it is made.
    """

    steps: tuple[Step, ...]
    result: int

    def __post_init__(self) -> None:
        known: set[int] = set()
        for step in self.steps:
            if step.op not in OPERATIONS and step.op not in (INPUT, CONSTANT):
                raise RecipeError(f"a weight is computed with {step.op}, which recipes do not have")
            if step.op == INPUT and not (len(step.args) == 1 and isinstance(step.args[0], str)):
                raise RecipeError(f"the recipe names no tensor: {step.args!r:.60}")
            if not known.issuperset(step.reads):
                raise RecipeError("the recipe uses a tensor that it has not computed")
            known.update(step.made)
        if self.result not in known:
            raise RecipeError("the recipe does not compute its result")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors of the checkpoint that are read."""
        return tuple(dict.fromkeys(step.args[0] for step in self.steps if step.op == INPUT))


def _references(value: Any) -> Iterator[int]:
    if isinstance(value, Mapping) and "tensor" in value:
        yield value["tensor"]
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def name_of(value: Any) -> str:
    """A dtype, memory format or layout without its "torch."; every device is the CPU."""
    return "cpu" if isinstance(value, torch.device) else str(value).removeprefix("torch.")


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not a copy of them: they are there as long as it is."""
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr()))


def packed(tensor: Tensor) -> list[Any]:
    """A tensor as JSON data: dtype, shape, numbers."""
    plain = tensor.detach().cpu().contiguous()
    return [name_of(plain.dtype), list(plain.shape), base64.b64encode(raw(plain)).decode()]


def unpacked(dtype: str, shape: list[int], data: str) -> Tensor:
    """The tensor that `packed` made data of."""
    numbers = torch.frombuffer(bytearray(base64.b64decode(data)), dtype=dtype_of(dtype)) if data else torch.empty(0)
    return numbers.to(dtype_of(dtype)).reshape(shape)


def dtype_of(name: Any) -> torch.dtype:
    """The dtype of a name. Raises `RecipeError` if there is none."""
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise RecipeError(f"there is no dtype {name!r}")
    return found


@dataclass(frozen=True)
class Original:
    """A tensor of the original's state dict.

    order: its dimensions from the slowest in memory to the fastest. tied: another name of the same tensor, or "".
    """

    shape: tuple[int, ...]
    dtype: str
    order: tuple[int, ...]
    tied: str = ""


@dataclass(frozen=True)
class Fused:
    """A tensor of the fused model's state dict."""

    shape: tuple[int, ...]
    dtype: str
    program: Program

    @property
    def copied(self) -> bool:
        """Whether it is a tensor of the original as it is."""
        return len(self.program.steps) == 1


@dataclass(frozen=True)
class Test:
    """A number that was looked at when the model was fused; what was merged may depend on it."""

    program: Program
    expected: Any


@dataclass(frozen=True)
class Recipe:
    """How every tensor of a fused model is computed from those of the original; made by `reparamkit.recipe`.

    model: the name of its class. inputs: the state dict of the original, by name. outputs: that of the fused model.
    tests: what must hold of a checkpoint.
    """

    model: str
    inputs: Mapping[str, Original]
    outputs: Mapping[str, Fused]
    tests: tuple[Test, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Recipe:
        return self

    def __str__(self) -> str:
        computed = sum(not each.copied for each in self.outputs.values())
        counts = f"{len(self.inputs)} tensors -> {len(self.outputs)}, {computed} of them computed"
        return f"recipe for {self.model}: {counts}" + (f", {len(self.tests)} tests" if self.tests else "")

    def to_json(self, path: str | Path | None = None) -> str:
        """The recipe as JSON, with the name and version of the schema; written to `path` too if it is given."""
        data = {"schema": SCHEMA, "version": VERSION, "model": self.model}
        data |= {"inputs": {name: vars(each) for name, each in self.inputs.items()}}
        data |= {"outputs": {name: {**vars(o), "program": _data(o.program)} for name, o in self.outputs.items()}}
        data |= {"tests": [{"program": _data(t.program), "expected": _test_data(t.expected)} for t in self.tests]}
        text = json.dumps(data, allow_nan=False, separators=(",", ":"))
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that `to_json` wrote. text: JSON.

        Raises `RecipeError` if the text is something else, of a newer version, or uses an unknown operation.
        """
        try:
            data = json.loads(text)
            schema, version = data["schema"], data["version"]
            if (schema, version) != (SCHEMA, VERSION):
                raise RecipeError(f"schema {schema!r} version {version!r} is not {SCHEMA!r} version {VERSION}")
            return cls(
                _typed(data["model"], str),
                {name: _original(each) for name, each in data["inputs"].items()},
                {name: _fused(each) for name, each in data["outputs"].items()},
                tuple(Test(_program(t["program"]), _test_value(t["expected"])) for t in data["tests"]),
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            if isinstance(error, RecipeError):
                raise
            raise RecipeError(f"this is no recipe ({error}): pass what Recipe.to_json wrote") from error


def _data(program: Program) -> dict[str, Any]:
    return {"steps": [list(step) for step in program.steps], "result": program.result}


def _test_data(value: Any) -> Any:
    """Floats as text, so that infinity and NaN are JSON."""
    if isinstance(value, float):
        return {"float": repr(value)}
    return [_test_data(each) for each in value] if isinstance(value, list) else value


def _test_value(data: Any) -> Any:
    if isinstance(data, Mapping):
        return float(data["float"])
    return [_test_value(each) for each in data] if isinstance(data, list) else data


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise RecipeError(f"this is no recipe: expected {kind.__name__}, found {value!r:.60}")
    return value


def _numbers(data: Any) -> tuple[int, ...]:
    return tuple(_typed(each, int) for each in _typed(data, list))


def _original(data: Any) -> Original:
    shape, order = _numbers(data["shape"]), _numbers(data["order"])
    if sorted(order) != list(range(len(shape))):
        raise RecipeError(f"this is no recipe: {order} is no order of {len(shape)} dimensions")
    return Original(shape, _typed(data["dtype"], str), order, _typed(data["tied"], str))


def _fused(data: Any) -> Fused:
    return Fused(_numbers(data["shape"]), _typed(data["dtype"], str), _program(data["program"]))


def _program(data: Any) -> Program:
    steps = tuple(Step(_typed(o, str), _typed(a, list), _typed(k, dict), _numbers(m)) for o, a, k, m in data["steps"])
    return Program(steps, _typed(data["result"], int))
