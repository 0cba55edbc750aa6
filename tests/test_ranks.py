"""Tensors of another rank than the example's: a fused model computes what the model did, or refuses them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from structures import Model, Shape, build, conv, error, norm, run, sample
from structures.blocks import parameter
from torch import Tensor, nn

import reparamkit
from reparamkit import GuardError

MAPS = (2, 4, 4, 4)
ROWS = (2, 4, 4)


def model(forward: Callable[..., Tensor], **parts: object) -> nn.Module:
    return build(lambda: Model(forward, **parts))


RANKS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "a scale per channel": (lambda: model(lambda m, x: m.c(x) * m.p, c=conv(4, 4), p=parameter(1, 4, 1, 1)), MAPS),
    "a scale of rows": (lambda: model(lambda m, x: m.c(x) * m.p, c=nn.Linear(4, 4), p=parameter(1, 1, 4)), ROWS),
    "a bias of rows": (lambda: model(lambda m, x: m.c(x) + m.p, c=nn.Linear(4, 4), p=parameter(1, 1, 4)), ROWS),
    "a raised scale": (
        lambda: model(
            lambda m, x: m.d((m.c(x) * m.p.abs()).relu()), c=conv(4, 4), d=conv(4, 4), p=parameter(1, 4, 1, 1)
        ),
        MAPS,
    ),
    "flip": (lambda: model(lambda m, x: m.d(m.c(x).flip([1])), c=conv(4, 4), d=conv(4, 4, 1)), MAPS),
    "an index": (lambda: model(lambda m, x: m.d(m.c(x)[:, [1, 0, 3, 2]]), c=conv(4, 4), d=conv(4, 4, 1)), MAPS),
    "cat": (lambda: model(lambda m, x: torch.cat([m.c(x), m.d(x)], 1), c=conv(4, 4, 1), d=conv(4, 4, 1)), MAPS),
    "a swap": (lambda: model(lambda m, x: m.d(m.c(x).transpose(1, -1)), c=conv(4, 4, 1), d=nn.Linear(4, 4)), MAPS),
    "a group norm": (lambda: model(lambda m, x: m.c(m.n(x)), n=nn.GroupNorm(2, 4), c=conv(4, 4, 1)), MAPS),
}
"""Blocks that a merge of one rank changes, at another rank that they take as well."""


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("name", RANKS)
def test_another_rank_gives_the_same_or_is_refused(name: str, with_inputs: bool):
    """A sample without its batch, which convolutions and linear layers take, is another rank."""
    make, shape = RANKS[name]
    own = make()
    fused = reparamkit.fuse(own, sample(shape, torch.float32) if with_inputs else None)
    assert error(run(fused, sample(shape, torch.float32)), run(own, sample(shape, torch.float32))) <= 1e-5
    for other in (shape[1:], (2, *shape)):
        x = sample(other, torch.float32)
        try:
            wanted = run(own, x)
        except (RuntimeError, IndexError):
            continue
        try:
            found = run(fused, x)
        except GuardError:
            continue
        assert found.shape == wanted.shape
        assert error(found, wanted) <= 1e-5


def test_more_dimensions_need_no_guard_where_a_constant_is_spread_over_them():
    """What a constant with ones before it is spread over may have more dimensions, and not fewer."""
    own = RANKS["a scale of rows"][0]()
    for given in (sample(ROWS, torch.float32), None):
        fused = reparamkit.fuse(own, given)
        x = sample((3, *ROWS), torch.float32)
        assert error(run(fused, x), run(own, x)) <= 1e-5
        with pytest.raises(GuardError, match="of rank 3 or more, found rank 2"):
            fused(sample(ROWS[1:], torch.float32))


def test_a_rank_that_the_model_does_not_take_is_not_checked():
    """A batch norm takes batches only: what is written has no guard."""
    own = model(lambda m, x: m.n(m.c(x)) * m.p, c=conv(4, 4), n=norm(4), p=parameter(1, 4, 1, 1))
    fused = reparamkit.fuse(own, sample(MAPS, torch.float32))
    assert "expect" not in str(vars(type(fused)).get("merged_changes"))
