"""Turn a checkpoint of the model that was fused into one of the fused model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from .evaluate import run
from .files import Source, source, write
from .recipe import Original, Recipe, dtype_of


def convert(
    recipe: Recipe, checkpoint: Mapping[str, Any] | str | Path, target: str | Path | None
) -> dict[str, Tensor] | None:
    """See `reparamkit.convert_state_dict`."""
    conversion = _Conversion(recipe, source(checkpoint))
    conversion.check()
    if target is None:
        return {name: conversion.output(name) for name in recipe.outputs}
    if not isinstance(target, (str, Path)):
        raise RecipeError(f"the target is a path, found {type(target).__name__}")
    write(Path(target), recipe.outputs, conversion.part, conversion.output)
    return None


class RefuseOriginal:
    """A hook before a state dict is loaded into a fused model, or a part of it. gone: names that only the original
    has. path: of the part.
    """

    def __init__(self, gone: frozenset[str], path: str = "") -> None:
        self.gone, self.path = gone, path

    def __call__(self, module: nn.Module, given: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        found = {name for name in self.gone if f"{prefix}{name}" in given}
        # What the user has put in a place since may have such names again.
        if found and (gone := sorted(found - module.state_dict().keys())):
            of_all = f", of those of all parts: '{self.path}' is one" if self.path else ""
            raise RecipeError(
                f"these are weights of the model as it was before it was fused: it has no '{gone[0]}' any more;"
                f" reparamkit.convert_state_dict(fused, weights) makes the weights of the fused model of them{of_all}"
            )


def refuse_original(fused: nn.Module, original: Iterable[str]) -> None:
    """Loading the state dict of the original into the fused model, or that of a part of it, fails before anything is
    loaded, and says what to do. original: the names in that state dict.
    """
    inside: dict[str, set[str]] = {"": set()}
    for name in set(original) - fused.state_dict().keys():
        parts = name.split(".")
        for end in range(len(parts)):
            inside.setdefault(".".join(parts[:end]), set()).add(".".join(parts[end:]))
    for path, module in fused.named_modules(remove_duplicate=False):
        if path in inside and (not path or any(True for _ in module.children())):
            module.register_load_state_dict_pre_hook(RefuseOriginal(frozenset(inside[path]), path))


@dataclass(frozen=True)
class _Conversion:
    recipe: Recipe
    source: Source

    # --- what the checkpoint must have -----------------------------------------------------------

    def check(self) -> None:
        """Raises `RecipeError` if the recipe does not hold for the checkpoint."""
        needed = {name for output in self.recipe.outputs.values() for name in output.program.inputs}
        unknown, missing = self.source.names() - self.recipe.inputs.keys(), needed - {*self._present()}
        if unknown or missing:
            raise RecipeError(self._misfit(unknown, missing))
        for name, original in self.recipe.inputs.items():
            if original.tied and {name, original.tied} <= self.source.names():
                self._check_tied(name, original.tied)
        for test in self.recipe.tests:
            found = run(test.program, self.input)
            if not _same(found, test.expected):
                raise RecipeError(
                    f"what was merged depends on numbers in {_listed(test.program.inputs)}, and this checkpoint has"
                    f" others there ({found!r:.60}, not {test.expected!r:.60}): load it into the model, and fuse that"
                )

    def _present(self) -> Iterable[str]:
        """The inputs that the checkpoint has, under whichever of their names."""
        held = self.source.names()
        for name, original in self.recipe.inputs.items():
            if name in held:
                yield from {name, original.tied or name}

    def _misfit(self, unknown: Iterable[str], missing: Iterable[str]) -> str:
        found = [f"lacks {_listed(missing)}"] if missing else []
        found += [f"has {_listed(unknown)}, which the model did not have"] if unknown else []
        if self.recipe.outputs.keys() == self.source.names():
            found = ["is one of the fused model already"]
        return f"this is no checkpoint of the {self.recipe.model} that was fused: it {' and '.join(found)}"

    def _check_tied(self, name: str, other: str) -> None:
        if not torch.equal(self.source.tensor(name), self.source.tensor(other)):
            raise RecipeError(f"'{name}' and '{other}' are one tensor in the model, and differ in this checkpoint")

    # --- tensors ---------------------------------------------------------------------------------

    def part(self, name: str) -> str:
        """The part of the checkpoint in which the first input of an output is."""
        inputs = self.recipe.outputs[name].program.inputs
        return self.source.part(self._held(inputs[0])) if inputs else ""

    def input(self, name: str) -> Tensor:
        """A tensor of the checkpoint as the model would have it: of its dtype, in its order in memory; a copy."""
        original = self.recipe.inputs.get(name)
        if original is None:
            raise RecipeError(f"the recipe reads '{name}', which is none of its inputs")
        tensor = self.source.tensor(self._held(name))
        if tuple(tensor.shape) != original.shape:
            raise RecipeError(f"'{name}' has shape {tuple(tensor.shape)}, the model {original.shape}")
        wanted = dtype_of(original.dtype)
        if (tensor.is_floating_point(), tensor.is_complex()) != (wanted.is_floating_point, wanted.is_complex):
            raise RecipeError(f"'{name}' is of {tensor.dtype}, and was of {wanted}: numbers of another kind")
        return _ordered(tensor.to("cpu", wanted), original)

    def _held(self, name: str) -> str:
        """The name under which the checkpoint has an input."""
        held, inputs = self.source.names(), self.recipe.inputs
        return name if name in held else next(n for n, o in inputs.items() if o.tied == name and n in held)

    def output(self, name: str) -> Tensor:
        """A tensor of the fused model."""
        output = self.recipe.outputs[name]
        made = run(output.program, self.input if output.copied else self._finite)
        if not isinstance(made, Tensor) or (tuple(made.shape), made.dtype) != (output.shape, dtype_of(output.dtype)):
            raise RecipeError(f"the recipe does not give what it says for '{name}'")
        if not (output.copied or _is_finite(made)):
            raise RecipeError(f"the merged '{name}' overflows {output.dtype}")
        return made

    def _finite(self, name: str) -> Tensor:
        tensor = self.input(name)
        if not _is_finite(tensor):
            raise RecipeError(f"'{name}' is merged, and has infinite numbers or NaN in this checkpoint")
        return tensor


def _ordered(tensor: Tensor, like: Original) -> Tensor:
    """A copy whose dimensions lie in memory as they did; those of a sparse tensor do not."""
    if tensor.layout is not torch.strided:
        return tensor.clone()
    back = [like.order.index(d) for d in range(len(like.order))]
    return tensor.permute(like.order).clone(memory_format=torch.contiguous_format).permute(back)


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_same, found, expected))
    both_nan = isinstance(found, float) and isinstance(expected, float) and math.isnan(found) and math.isnan(expected)
    return both_nan or bool(found == expected)


def _listed(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    return f"'{first}'" + (f" and {len(rest)} more" if rest else "")
