"""What a fused model carries along: its report, and the recipe of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

from .errors import InvalidInputError, RecipeError
from .recipes.convert import convert
from .recipes.recipe import Recipe
from .recipes.tape import Tape
from .reporting import Report
from .running.state import TABLES

REPORT, RECIPE = "_reparamkit_report", "_reparamkit_recipe"


def carry(fused: nn.Module, found: Report, how: Recipe | RecipeError) -> None:
    """Give a fused model its report, and its recipe or why there is none."""
    vars(fused).update({REPORT: found, RECIPE: how})


def report(fused: nn.Module) -> Report:
    """The report of a model that `fuse` returned.

    Raises:
        InvalidInputError: the model was not fused.
    """
    found = vars(fused).get(REPORT) if isinstance(fused, nn.Module) else None
    if not isinstance(found, Report):
        raise InvalidInputError(f"{type(fused).__name__} has no report: pass what reparamkit.fuse returned")
    return found


def recipe(fused: nn.Module) -> Recipe:
    """How the tensors of a fused model are computed from those of the original, for `convert_state_dict`.

    Args:
        fused: a model that `fuse` returned.

    Raises:
        InvalidInputError: the model was not fused.
        RecipeError: there is no recipe; the message has the reason.
    """
    found = vars(fused).get(RECIPE) if isinstance(fused, nn.Module) else None
    if found is None:
        raise InvalidInputError(f"{type(fused).__name__} has no recipe: pass what reparamkit.fuse returned")
    if isinstance(found, RecipeError):
        raise RecipeError(str(found))
    assert isinstance(found, Recipe)
    return found


@overload
def convert_state_dict(
    recipe_or_fused: Recipe | nn.Module, source: Mapping[str, Any] | str | Path, target: None = None
) -> dict[str, Tensor]: ...


@overload
def convert_state_dict(
    recipe_or_fused: Recipe | nn.Module, source: Mapping[str, Any] | str | Path, target: str | Path
) -> None: ...


def convert_state_dict(
    recipe_or_fused: Recipe | nn.Module,
    source: Mapping[str, Any] | str | Path,
    target: str | Path | None = None,
) -> dict[str, Tensor] | None:
    """The state dict of the fused model for other weights of the original; the model is neither run nor traced.

    Args:
        recipe_or_fused: what `recipe` returned, or a model that `fuse` returned.
        source: a checkpoint of the original: a dict of tensors, a ``.safetensors`` file, or the ``.json`` index of
            several. Nothing is unpickled.
        target: a file to write to, tensor by tensor, in place of returning a dict: ``.safetensors``, or ``.json`` for
            an index and as many files as the source has.

    Raises:
        RecipeError: there is no recipe, the checkpoint is of another model or damaged, or what was merged depends on
            numbers that are others in this checkpoint.
        InvalidInputError: the model was not fused.
    """
    found = recipe_or_fused if isinstance(recipe_or_fused, Recipe) else recipe(recipe_or_fused)
    return convert(found, source, target)


def recorded(tape: Tape, fused: nn.Module) -> Recipe | RecipeError:
    """The recipe of a fused model, or why there is none."""
    if (where := _filed(fused)) is not None:
        return RecipeError(
            f"'{where}' keeps tensors in a dictionary, which may follow from parameters, and the fused code has one as"
            " a constant: load the other weights into the original and fuse that"
        )
    try:
        return tape.recipe(fused)
    except RecipeError as error:
        return error.with_traceback(None)


def _filed(model: nn.Module) -> str | None:
    """The path of a module whose forward has a constant that a dictionary of the model's holds."""
    held = [value for m in model.modules() for n, value in vars(m).items() if type(value) is dict and n not in TABLES]
    filed = {id(each) for values in held for each in values.values() if isinstance(each, Tensor)}
    made = {name: tensor for name, tensor in model.named_buffers() if name.rpartition(".")[2].startswith("_constant")}
    return next((name.rpartition(".")[0] for name, tensor in made.items() if id(tensor) in filed), None)
