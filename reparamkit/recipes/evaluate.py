"""Run the programs of a recipe: a fixed table of operations on the CPU, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import RecipeError
from .operations import OPERATIONS, READS
from .recipe import CONSTANT, INPUT, Program, Step, dtype_of, unpacked

Load = Callable[[str], Tensor]
"""Gives a fresh tensor of the checkpoint by its name."""
FORMATS = {
    str(each).removeprefix("torch."): each
    for each in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}
KINDS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "dtype": dtype_of,
    "device": lambda name: torch.device("cpu"),
    "layout": lambda name: torch.strided,
    "memory_format": lambda name: FORMATS[name],
}


def run(program: Program, load: Load) -> Any:
    """The result of a program, a tensor or a number.

    Raises `RecipeError` if an operation does not take what it gets.
    """
    values: dict[int, Any] = {}
    last = {number: place for place, step in enumerate(program.steps) for number in _touched(step)}
    last[program.result] = len(program.steps)
    with torch.no_grad():
        for place, step in enumerate(program.steps):
            made = _called(step, values, load)
            several = isinstance(made, (tuple, list)) and step.op not in READS
            values.update(zip(step.made, made if several else [made], strict=False))
            for number in _touched(step):
                if last[number] == place:
                    del values[number]
    return values[program.result]


def _touched(step: Step) -> set[int]:
    return {*step.made, *step.reads}


def _called(step: Step, values: Mapping[int, Any], load: Load) -> Any:
    try:
        if step.op == INPUT:
            return load(*step.args)
        if step.op == CONSTANT:
            return unpacked(*step.args)
        kwargs = {name: _real(value, values) for name, value in step.kwargs.items()}
        return OPERATIONS[step.op](*_real(step.args, values), **kwargs)
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"step {step.op} of the recipe fails: {error}") from error


def _real(data: Any, values: Mapping[int, Any]) -> Any:
    """What JSON data stands for."""
    if isinstance(data, list):
        return [_real(each, values) for each in data]
    if isinstance(data, Mapping):
        ((kind, value),) = data.items()
        return values[value] if kind == "tensor" else KINDS[kind](value)
    return data
