"""Every structure merges to what the table of the zoo says, exactly; every near miss is left, with words."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from structures import (
    NEAR_MISSES,
    STRUCTURES,
    FlatMap,
    Model,
    NearMiss,
    Shape,
    Structure,
    TokenMixer,
    both_ways,
    build,
    error,
    fused_once,
    operations,
    repmlp_block,
    run,
    sample,
    wide,
)
from torch import Tensor, nn

import reparamkit
from reparamkit import GuardError

TOLERANCES = {torch.float32: 5e-7, torch.float64: 1e-13}


# --- structures -------------------------------------------------------------------------------------


@both_ways(STRUCTURES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_outputs_are_those_of_the_original_in_float64(case: Structure, way: str, dtype: torch.dtype):
    """The fused model equals the float64 original at every size, odd ones and a batch of one included."""
    model, fused, *_ = fused_once(case, way, dtype)
    for shape in case.shapes:
        x = sample(shape, dtype)
        wanted = run(wide(model), x.double())
        assert error(run(fused, x), wanted) <= max(TOLERANCES[dtype], 4 * error(run(model, x), wanted))


@both_ways(STRUCTURES)
def test_what_is_left(case: Structure, way: str):
    """Only the operations that the table names run in the fused model."""
    fused = fused_once(case, way).fused
    assert operations(fused, sample(case.shapes[0], torch.float32)) == case.left


@both_ways(STRUCTURES)
def test_the_model_is_left_as_it_is(case: Structure, way: str):
    """`fuse` changes neither the weights nor the outputs of its argument."""
    model, _, weights, output, _ = fused_once(case, way)
    assert torch.equal(run(model, sample(case.shapes[0], torch.float32)), output)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@both_ways(STRUCTURES)
def test_fusing_twice_changes_nothing(case: Structure, way: str):
    """A fused model has nothing left to merge."""
    fused = fused_once(case, way).fused
    x = sample(case.shapes[0], torch.float32)
    again = reparamkit.fuse(fused, x if way == "with inputs" else None, objective=case.objective)
    assert reparamkit.report(again).merges == ()
    assert torch.equal(run(again, x), run(fused, x))


@both_ways(STRUCTURES)
def test_the_report_counts_what_is_there(case: Structure, way: str):
    """Stored numbers, parameters and operations of the report are those of the models; none of them rises, but for
    operations that save FLOPs worth it.
    """
    model, fused, *_ = fused_once(case, way)
    report = reparamkit.report(fused)
    for module, totals in ((model, report.before), (fused, report.after)):
        assert totals.parameters == sum(p.numel() for p in module.parameters())
    assert report.merges
    assert report.after.ops - report.before.ops <= (report.before.flops - report.after.flops) // 40_000
    assert report.after.flops <= report.before.flops
    assert report.largest_error < 1e-6


def test_a_near_miss_beside_a_structure_is_in_the_table():
    """What a structure names as its near miss is tested too."""
    assert {case.near for case in STRUCTURES} - {""} <= {miss.name for miss in NEAR_MISSES}


# --- near misses ------------------------------------------------------------------------------------


@both_ways(NEAR_MISSES)
def test_near_misses_are_left(case: NearMiss, way: str):
    """What only looks mergeable runs as before and gives, bit for bit, what it gave; inputs written into included."""
    model, fused, *_ = fused_once(case, way)
    for shape in case.shapes:
        mine, theirs = sample(shape, torch.float32), sample(shape, torch.float32)
        with torch.no_grad():
            torch.testing.assert_close(fused(mine), model(theirs), rtol=1e-6, atol=1e-6)
        assert torch.equal(mine, theirs)
    assert operations(fused, sample(case.shapes[0], torch.float32)) == case.left


@both_ways(NEAR_MISSES)
def test_near_misses_are_explained(case: NearMiss, way: str):
    """The report says why a near miss was left."""
    fused = fused_once(case, way).fused
    reasons = [refusal.reason for refusal in reparamkit.report(fused).refusals]
    assert any(re.search(case.reason, reason) for reason in reasons), reasons


# --- sizes ------------------------------------------------------------------------------------------


def test_partitions_may_be_more_than_at_the_example():
    """A locality injection found on one partition also holds for maps of several."""
    model = build(lambda: repmlp_block(4, 4))
    fused = reparamkit.fuse(model, sample((1, 8, 4, 4), torch.float32))
    x = sample((2, 8, 8, 12), torch.float32)
    assert error(run(fused, x), run(wide(model), x.double())) <= 1e-6


@pytest.mark.parametrize(
    ("model", "example", "other"),
    [
        pytest.param(lambda: TokenMixer(3, 4), (2, 12, 5), (2, 16, 5), id="tokens"),
        pytest.param(lambda: FlatMap(4, 4, 6), (2, 4, 4, 6), (2, 4, 6, 4), id="map of another shape, as many pixels"),
        pytest.param(lambda: nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)), None, (2, 5, 5), id="rank"),
    ],
)
def test_other_sizes_than_the_proved_ones_are_refused_with_words(
    model: Callable[[], nn.Module], example: Shape | None, other: Shape
):
    """A merge that holds for some sizes only says so when it is called with others; it never gives other numbers."""
    model = build(model)
    fused = reparamkit.fuse(model, None if example is None else sample(example, torch.float32))
    x = sample(other, torch.float32)
    with suppress(GuardError, RuntimeError):
        assert error(run(fused, x), run(model, x)) <= 1e-6


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (2, 5, 12, 1), (2, 5, 12)], ids=str)
def test_dimensions_that_are_read_as_one_have_the_sizes_that_they_had(shape: Shape):
    """A matrix over two dimensions at once would take others of as many numbers: a guard refuses them."""
    product = Model(
        lambda m, x: m.fc(torch.tensordot(x, m.w, 2)), fc=nn.Linear(6, 3), w=nn.Parameter(torch.rand(3, 4, 6))
    )
    fused = reparamkit.fuse(build(lambda: product), torch.rand(2, 5, 3, 4))
    assert operations(fused, torch.rand(1, 7, 3, 4)) == "linear"
    with pytest.raises(GuardError):
        fused(torch.rand(shape))


def _trend(m: nn.Module, x: Tensor) -> Tensor:
    ends = torch.cat([x[:, :1].repeat(1, 1, 1), x, x[:, -1:].repeat(1, 1, 1)], 1)
    trend = m.average(ends.permute(0, 2, 1)).permute(0, 2, 1)
    return (m.a((x - trend).permute(0, 2, 1)) + m.b(trend.permute(0, 2, 1))).permute(0, 2, 1)


def test_a_merge_that_leaves_a_view_which_is_there_ends():
    """The value of the merge is what it was: it was looked for in the place of itself, for ever (DLinear)."""
    parts = {"a": nn.Linear(6, 4), "b": nn.Linear(6, 4), "average": nn.AvgPool1d(3, 1)}
    model = build(lambda: Model(_trend, **parts))
    x = torch.rand(2, 6, 8)
    assert error(run(reparamkit.fuse(model, x), x), run(model, x)) <= 1e-6


class Average(nn.Module):
    """One average of branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Conv3d(3, 64, 1), nn.ReLU()) for _ in range(4))
        self.pool = nn.AvgPool3d((2, 7, 7), stride=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(torch.cat([branch(x) for branch in self.branches], 1))


def test_an_operation_on_a_concatenation_becomes_no_more_of_them_to_save_work() -> None:
    fused = reparamkit.fuse(build(Average), sample((1, 3, 2, 7, 7), torch.float32))
    assert reparamkit.report(fused).after.ops == reparamkit.report(fused).before.ops


def test_parts_of_a_channel_that_never_agree_are_refused_and_not_split_for_ever() -> None:
    """Without inputs: halves of a concatenation of a value and of its norm, added to the value."""

    def halves(m: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([x, m.norm(x)], 1).unflatten(1, (2, -1)).sum(1) + x

    model, x = build(lambda: Model(halves, norm=nn.BatchNorm2d(8))), torch.rand(2, 8, 5, 4)
    assert error(run(reparamkit.fuse(model), x), run(model, x)) <= 1e-6


def _reinterpreted(m: nn.Module, x: Tensor) -> Tensor:
    return m.a(x).view(torch.int32) + m.b(x).view(torch.int32)


def _written(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.a(x)
    out = y.view(x.shape[0], -1, 3)
    out += m.b(x).view(x.shape[0], -1, 3)
    return out, y


@pytest.mark.parametrize("body", [_reinterpreted, _written])
@pytest.mark.parametrize("with_inputs", [True, False])
def test_views_of_other_numbers_or_that_are_read_elsewhere_are_summed_where_they_are(body: Any, with_inputs: bool):
    model = build(lambda: Model(body, a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1)))
    x = torch.rand(2, 4, 6, 3)
    fused = reparamkit.fuse(model, *([x] if with_inputs else []))
    for found, wanted in zip(fused(x), model(x), strict=True):
        assert torch.equal(found, wanted)
    assert not reparamkit.report(fused).merges
