"""What `fuse` makes of the structures: once for all tests that ask."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import reparamkit

from .measure import build, run, sample
from .table import NearMiss, Structure

WAYS = ("with inputs", "without inputs")


class Pair(NamedTuple):
    """A model before and after. weights, output: of the model before it was fused. fused_weights: of the fused model
    before it ran.
    """

    model: nn.Module
    fused: nn.Module
    weights: Mapping[str, Tensor]
    output: Tensor
    fused_weights: Mapping[str, Tensor]


@cache
def fused_once(case: Structure | NearMiss, way: str = WAYS[0], dtype: torch.dtype = torch.float32) -> Pair:
    """A model and what `fuse` made of it. Both are everybody's: who changes one takes a copy."""
    model, x = build(case.make, dtype), sample(case.shapes[0], dtype)
    weights, output = copy.deepcopy(model.state_dict()), run(copy.deepcopy(model), x)
    fused = reparamkit.fuse(model, x if way == "with inputs" else None, objective=case.objective)
    return Pair(model, fused, weights, output, copy.deepcopy(fused.state_dict()))


def in_one_process(case: Structure | NearMiss) -> pytest.MarkDecorator:
    """What `fused_once` keeps is of one process: with `pytest -n`, all tests of a structure run in it."""
    return pytest.mark.xdist_group(case.name)


def each(*cases: Structure | NearMiss) -> pytest.MarkDecorator:
    """Each case, by its name."""
    table = [pytest.param(case, id=case.name, marks=in_one_process(case)) for case in cases]
    return pytest.mark.parametrize("case", table)


def both_ways(cases: tuple[Structure | NearMiss, ...]) -> pytest.MarkDecorator:
    """Each case with example inputs, and without where it does not need them."""
    table = [
        pytest.param(case, way, id=f"{case.name}, {way}", marks=in_one_process(case))
        for case in cases
        for way in WAYS
        if way == "with inputs" or not case.needs_inputs
    ]
    return pytest.mark.parametrize(("case", "way"), table)
