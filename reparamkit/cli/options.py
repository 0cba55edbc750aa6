"""The arguments and options that several commands have, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import rules as registered
from ..layers.price import OBJECTIVES
from .spec import FORMS


def _objectives() -> list[str]:
    return [*OBJECTIVES]


def _rule_names() -> list[str]:
    return [rule.name for rule in registered]


Model = Annotated[str, typer.Argument(help=FORMS, metavar="MODEL")]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="State dict to load: .safetensors, or of torch.save."),
]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="SIZES", help="Sizes of an input, as 1,3,224,224 or 1,16:int64; once per input."),
]
Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--rules", metavar="RULE", help="Use this rule and no others; repeatable.", autocompletion=_rule_names
    ),
]
Without = Annotated[
    list[str] | None,
    typer.Option("--without", metavar="RULE", help="Do without this rule; repeatable.", autocompletion=_rule_names),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="PATH", help="Merge in these module paths only; repeatable."),
]
Skip = Annotated[
    list[str] | None, typer.Option("--skip", metavar="PATH", help="Leave these module paths alone; repeatable.")
]
Objective = Annotated[
    str, typer.Option(metavar="NAME", help=f"One of {', '.join(OBJECTIVES)}.", autocompletion=_objectives)
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write the report, as .html or .json.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]
