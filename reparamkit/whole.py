"""The proof of the whole: the fused model beside the original, on the example inputs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from .compare import AMPLIFIED, compare, compare_wide, sensitivity, undisturbed
from .errors import EquivalenceError, InvalidInputError
from .inputs import Example
from .localize import first_difference
from .request import Request


def check_whole(fused: nn.Module, original: nn.Module, request: Request) -> float | None:
    """Compare the whole model on the example inputs. Raises `EquivalenceError` if it differs by more than rounding."""
    if request.example is None or not request.verify:
        return None
    inputs = request.example.inputs
    try:
        output = undisturbed(fused, inputs, request.example.runs)
    except Exception as error:
        if request.as_graph and not all(isinstance(each, Tensor) for each in (*inputs.args, *inputs.kwargs.values())):
            raise InvalidInputError(
                "as_graph=True makes a graph that takes tensors, one after the other, and the example inputs have"
                " others, or tensors in containers: fuse without it"
            ) from error
        raise EquivalenceError(
            f"the fused model fails on the example inputs ({type(error).__name__}: {error}); if a copy.deepcopy of the"
            " model does so too, pass inplace=True; otherwise please report it"
        ) from error
    found = compare(output, request.example.output, through(fused, request.example))
    if not found.passed and found.error > AMPLIFIED * (allowed := sensitivity(original, inputs)):
        if original is not fused:
            _check_copies(original, request.example, allowed)
            widened = compare_wide(fused, original, inputs, request.example.runs)
            if widened is not None and widened.passed:
                return widened.error
            found = replace(found, first=first_difference(fused, original, inputs))
        raise EquivalenceError(
            f"the fused model as a whole is {found}; every single merge was proved, please report it"
        )
    return found.error


def _check_copies(model: nn.Module, example: Example, allowed: float) -> None:
    """Raises `InvalidInputError` if a copy computes something else, as of a model that finds its parts by identity."""
    output = undisturbed(copy.deepcopy(model), example.inputs, example.runs)
    found = compare(output, example.output, model.parameters())
    if not found.passed and found.error > AMPLIFIED * allowed:
        raise InvalidInputError(
            f"a copy.deepcopy of the model computes something else than the model ({found}): pass inplace=True to fuse"
            " it in place"
        )


def through(model: nn.Module, example: Example) -> Iterator[Tensor]:
    """Every tensor whose dtype takes part in a run."""
    return itertools.chain(model.parameters(), model.buffers(), example.inputs.tensors)
