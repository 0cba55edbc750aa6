"""A file of torch.export as a module that can be fused."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx

from ..errors import InvalidInputError
from ..exported import graph_of, tensors_in
from .failures import Code, Failure

INPUTS = "inputs"
"""Where the graph keeps the inputs that it was exported with, in `meta`."""


def load_exported(path: Path) -> fx.GraphModule:
    """The program in a ``.pt2`` file as a flat graph of torch functions, in eval mode.

    `torch.export.load` can run code of the file. Raises `Failure`.
    """
    if not path.is_file():
        raise Failure(Code.USAGE, f"there is no file '{path}'", "check the path")
    try:
        program = torch.export.load(path)
    except Exception as error:
        next_step = "write it with torch.export.save"
        raise Failure(Code.MODEL, f"{path} cannot be read ({type(error).__name__}: {error})", next_step) from error
    try:
        made = graph_of(program)
    except InvalidInputError as error:
        what, _, next_step = str(error).partition(": ")
        raise Failure(Code.MODEL, what, next_step) from error
    made.meta[INPUTS] = tensors_in(program.example_inputs)
    return made
