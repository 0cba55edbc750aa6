"""What a command line gives: a model, inputs for it, and the choices of `fuse`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import InvalidInputError, RuleError
from ..layers.price import OBJECTIVES
from ..request import chosen_paths, chosen_rules
from .failures import Code, Failure
from .spec import example_inputs, is_from_zoo, load_model, load_weights
from .voice import Voice


@dataclass(frozen=True)
class Loaded:
    """A model, and inputs for it (None: none were given)."""

    model: nn.Module
    inputs: tuple[Tensor, ...] | None

    def needed(self, by: str) -> tuple[Tensor, ...]:
        """The inputs, for a command or option that runs the model. Raises `Failure` without them."""
        if self.inputs is None:
            raise Failure(Code.USAGE, f"{by} runs the model", "give its inputs: --input 1,3,224,224")
        return self.inputs


def loaded(voice: Voice, spec: str, weights: Path | None, inputs: Sequence[str] | None) -> Loaded:
    """The model of a command line."""
    with voice.working(f"loading {spec}"):
        model = load_model(spec)
        if weights is not None:
            load_weights(model, weights)
        elif is_from_zoo(spec):
            voice.note("note: random weights; give trained ones with --weights")
        return Loaded(model, example_inputs(inputs or (), spec, model))


def options(
    found: Loaded,
    rules: list[str] | None,
    without: list[str] | None,
    only: list[str] | None,
    skip: list[str] | None,
    objective: str,
) -> dict[str, Any]:
    """The options of `reparamkit.fuse` for this model. Raises `Failure` where one names nothing, or needs inputs."""
    if objective not in OBJECTIVES:
        raise Failure(Code.USAGE, f"--objective {objective}", f"choose one of {', '.join(OBJECTIVES)}")
    try:
        chosen_rules(rules or None, (), without or ())
        for option, patterns in (("--only", only), ("--skip", skip)):
            chosen_paths(found.model, option, patterns or ())
    except (InvalidInputError, RuleError) as error:
        raise Failure(Code.USAGE, str(error), "") from error
    if objective == "measured":
        found.needed("--objective measured")
    return {"rules": rules or None, "without": without or (), "only": only, "skip": skip, "objective": objective}
