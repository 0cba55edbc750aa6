"""A short run of the differential fuzzer, the small models it found, and whether it would find anything."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from structures import Model, build, conv, conv_norm, error, norm, run, sample, seq, wide
from torch import Tensor, nn
from torch.nn import functional as F

import reparamkit
from reparamkit import GuardError
from reparamkit.layers.norm import read_batch_norm_layer
from reparamkit.layers.registry import READERS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fuzz.check import Skip, _decided_by_rounding, check
from benchmarks.fuzz.draw import program
from benchmarks.fuzz.parts import Counting as Counted
from benchmarks.fuzz.program import Program, Step, inputs, source
from benchmarks.fuzz.program import build as build_program
from benchmarks.fuzz.shrink import shrink

SEEDS = range(100_000, 100_048)
WITH_BLOCKS = range(1_500_000, 1_500_024)
WITH_SPELLINGS = range(80_000_000, 80_000_016)


@pytest.mark.parametrize("start", [*SEEDS[::8], *WITH_BLOCKS[::8], *WITH_SPELLINGS[::8]])
def test_random_models(start: int):
    """Models drawn at random keep every promise that the fuzzer checks."""
    tried = 0
    for seed in range(start, start + 8):
        try:
            found = check(program(seed))
        except Skip:
            continue
        tried += 1
        assert found is None, f"{found[1]}\n{found[0]}\n{source(program(seed))}"
    assert tried >= 6


def test_the_fuzzer_draws_much():
    """The seeds of this run reach most kinds of steps, several modules, in-place writes and shared layers."""
    drawn = [program(seed) for seed in SEEDS]
    kinds = {kind for each in drawn for kind in each.kinds}
    assert len(kinds) >= 45
    assert {"conv", "join", "again", "in_place", "hook", "view", "sum", "nonlinear"} <= kinds
    assert any(each.groups for each in drawn)
    assert {kind for seed in WITH_BLOCKS for kind in program(seed).kinds} - kinds >= {
        "low_rank",
        "per_channel",
        "masked",
    }
    assert {kind for seed in WITH_SPELLINGS for kind in program(seed).kinds} - kinds >= {"looped", "contracted"}
    assert program(SEEDS[0]) == drawn[0]


# --- would it find anything? --------------------------------------------------------------------------


class Sabotaged(nn.BatchNorm2d):
    """A norm whose reader is wrong in one way."""


@pytest.mark.parametrize("wrong", ["scale", "shift", "channel"])
def test_a_wrong_reader_is_found_and_made_small(wrong: str, monkeypatch: pytest.MonkeyPatch):
    """A reader that is off by 1%, without proofs: the fuzzer says so, and leaves of the model the layers at fault."""
    factor = {"scale": torch.tensor(1.01), "shift": torch.tensor(1.0), "channel": torch.tensor([1.0, 1, 1, 1.01])}[
        wrong
    ]
    steps = (
        Step(1, "view", (0,), "{out} = {0} * torch.sigmoid({0})"),
        Step(2, "conv", (1,), "{out} = {m}({0})", "nn.Conv2d(4, 4, 3)"),
        Step(3, "norm", (2,), "{out} = {m}({0})", "Sabotaged(4)"),
        Step(4, "nonlinear", (3,), "{out} = F.gelu({0})"),
    )
    monkeypatch.setattr("benchmarks.fuzz.check.trials", _without_proofs)
    monkeypatch.setitem(vars(sys.modules["benchmarks.fuzz.program"])["PARTS"], "Sabotaged", Sabotaged)
    given = Program(1, ((2, 4, 6, 5),), steps, (4,))
    assert check(given) is None
    with READERS.restored():

        @reparamkit.reader(Sabotaged)
        def _wrong(layer: nn.Module, input: Any) -> Any:
            offset = None if wrong != "shift" else torch.full((4,), 0.01, dtype=torch.float64)
            return reparamkit.scale(read_batch_norm_layer(layer, input), factor.double().expand(4), 1, offset)

        found = check(given)
        assert found is not None
        assert found[0].kind.startswith("wrong")
        small, failure, _ = shrink(given, *found)
    assert failure.kind == found[0].kind
    assert {step.number for step in small.steps} == {2, 3}


def _without_proofs(drawn: Program) -> Any:
    from benchmarks.fuzz.check import Trial

    yield Trial(True, {"verify": False})


def test_a_branch_that_rounding_decides_says_nothing():
    """The sum of normalised numbers is 0 but for rounding: the model itself goes another way beside its inputs."""
    norm_and_branch = (
        Step(1, "conv", (0,), "{out} = {m}({0})", "nn.Conv2d(4, 4, 3, padding=1)"),
        Step(2, "norm", (1,), "{out} = {m}({0})", "nn.BatchNorm2d(4)"),
        Step(3, "norm_layer", (2,), "{out} = F.layer_norm({0}, (6, 5))"),
        Step(4, "deciding", (3,), "{out} = {m}({0})", "Deciding(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))"),
    )
    given = Program(1, ((2, 4, 6, 5),), norm_and_branch, (4,))
    model, x = build_program(given), inputs(given)
    with torch.no_grad():
        assert _decided_by_rounding(model, x, [model(*x)], 1e-9)
    plain = Program(1, ((2, 4, 6, 5),), norm_and_branch[:3], (3,))
    model = build_program(plain)
    with torch.no_grad():
        assert not _decided_by_rounding(model, x, [model(*x)], 1e-9)


# --- what it found ------------------------------------------------------------------------------------


def test_a_norm_in_training_mode_counts_no_batch_of_ours():
    """Fusing leaves `num_batches_tracked` of a norm that is in training mode."""
    model = build(lambda: seq(conv(4, 4), norm(4)))
    model[1].train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reparamkit.fuse(model, sample((2, 4, 5, 6), torch.float32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Deciding(nn.Module):
    """Cannot be traced, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(4, 4), conv_norm(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.a(x) if x.sum() > 0 else self.b(x)


def _writes_its_input(m: Any, x: Tensor) -> Tensor:
    x += 1
    return m.d(x)


def test_a_recorded_run_writes_nothing_of_the_users():
    """A module that cannot be traced is run to record its inputs: on copies of inputs and buffers."""
    model = build(lambda: Model(_writes_its_input, d=Deciding()))
    x = sample((2, 4, 5, 6), torch.float32)
    given = x.clone()
    fused = reparamkit.fuse(model, given)
    assert torch.equal(given, x)
    assert model.d.calls == 0
    assert error(run(fused, x), run(wide(model), x.double())) <= 1e-6


def _averaged(c: int) -> nn.Module:
    return seq(conv(c, c), nn.AvgPool2d(3, 1, 1))


def _total(m: Any, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) + m.c(x) + x


def _overwritten(m: Any, x: Tensor) -> Tensor:
    first, second = x.split([1, 3], 1)
    z = torch.cat((first, second * 2), 1)
    z[:, :1] = F.gelu(z[:, :1])
    return z


def _channels_last(m: Any, x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    return m.counted((m.fc(y) + y).permute(0, 3, 1, 2))


def _split_up(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).flatten(2).transpose(1, 2)
    y = F.layer_norm(y, (4,)).mT.unflatten(-1, (5, 6))
    first, second = y.split([2, 2], 1)
    z = torch.zeros_like(y)
    z[:, :2], z[:, 2:] = m.b(first), m.c(second) + second
    return z


ONCE: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "a sum that is read once a norm is gone": (
        lambda: Model(_total, a=_averaged(4), b=conv_norm(4, 4), c=conv_norm(4, 4)),
        False,
    ),
    "a size that a later layer tells": (
        lambda: Model(
            lambda m, x: m.shift + m.n(m.a(x[..., :3, :3])),
            a=nn.Conv2d(4, 4, 3, dilation=2, padding=2),
            n=norm(4),
            shift=nn.Parameter(torch.ones(3)),
        ),
        False,
    ),
    "a map of one position": (
        lambda: Model(
            lambda m, x: _total(m, x.mean((2, 3), True)),
            a=seq(conv(4, 4, 1), conv(4, 4)),
            b=conv_norm(4, 4),
            c=conv_norm(4, 4),
        ),
        True,
    ),
    "a slice of what was overwritten": (lambda: Model(_overwritten), True),
    "a row of layers behind code that goes": (
        lambda: Model(_channels_last, fc=nn.Linear(4, 4), counted=Counted(conv_norm(4, 4, 1))),
        True,
    ),
    "a dimension that is split up": (
        lambda: Model(_split_up, a=conv_norm(4, 4), b=conv(2, 2), c=conv(2, 2)),
        False,
    ),
}


@pytest.mark.parametrize(("make", "given"), ONCE.values(), ids=ONCE)
def test_nothing_is_left_for_a_second_time(make: Callable[[], nn.Module], given: bool):
    """What was fused has no further merge in it, and computes the same."""
    model, x = build(make).double(), sample((2, 4, 5, 6))
    fused = reparamkit.fuse(model, x if given else None)
    assert reparamkit.report(fused).merges
    assert not reparamkit.report(reparamkit.fuse(fused, x if given else None)).merges
    assert error(run(fused, x), run(model, x)) <= 1e-12


def test_a_row_of_a_merge_is_counted_layer_by_layer():
    """A convolution, and a bias with borders behind it: all that runs is in the report."""
    model, x = build(lambda: seq(conv(4, 32, 1), norm(32), conv(32, 4))), sample((2, 4, 9, 8), torch.float32)
    report = reparamkit.report(reparamkit.fuse(model, x))
    (merge,) = report.merges
    assert report.after.ops == merge.after.launches == 4
    assert report.after.flops == merge.after.flops > 0


def _pooled(m: Any, x: Tensor) -> Tensor:
    y = m.n(x.mean((2, 3), True))
    return m.a(y) + m.b(y) + y


def test_a_mean_that_is_read_and_merged():
    """A value is computed on the way to another or read, in one merge: proofs draw what is read."""
    shape = {"groups": 4, "padding": 2}
    model = build(lambda: Model(_pooled, n=norm(4), a=nn.Conv2d(4, 4, 5, **shape), b=nn.Conv2d(4, 4, 1, groups=2)))
    x = sample((2, 4, 5, 6), torch.float32)
    assert error(run(reparamkit.fuse(model, x), x), run(wide(model), x.double())) <= 1e-6


def test_a_layer_that_nothing_reads_is_not_stacked():
    """Beside one that reads the same value."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        x + y
        return m.g(y.add_(x, alpha=2))

    model = build(lambda: Model(body, a=nn.Linear(8, 8), g=nn.GroupNorm(1, 8)))
    x = sample((2, 8), torch.float32)
    fused = reparamkit.fuse(model, objective="launches")
    assert error(run(fused, x), run(wide(model), x.double())) <= 1e-6


def test_a_size_that_the_layer_checks_needs_no_guard():
    """Without inputs too: a scale goes into the linear layer of a block that does not see what is scaled."""
    block = Model(lambda m, x: m.a(x), a=nn.Linear(3, 4))
    model = build(lambda: Model(lambda m, x: m.block(x * m.s), s=nn.Parameter(torch.ones(3)), block=block))
    report = reparamkit.explain(model)
    assert report.after.ops == 1


class Emptied(nn.Module):
    """A block whose convolution is not needed, and whose norm is in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = conv(8, 8), norm(4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.a(y)
        return self.n(x)


def test_a_norm_stays_in_training_mode():
    """Where the block around it becomes a container, since its code went into that of its caller."""
    model = build(
        lambda: Model(lambda m, x: m.block(x, m.b(x)) + m.c(x).relu(), b=conv(4, 8), block=Emptied(), c=conv(4, 4))
    )
    model.block.n.train()
    fused, x = reparamkit.fuse(model), sample((2, 4, 5, 6), torch.float32)
    assert fused.block.n.training
    assert not fused.block.training
    assert error(fused(x), model(x)) <= 1e-6


WEIGHTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "low rank": lambda m, x: m.n(F.conv2d(x, m.a.weight + m.b.weight * 0.5, m.a.bias)),
    "side by side": lambda m, x: F.conv2d(x, torch.cat([m.a.weight, m.b.weight.flip(0)])),
    "scaled by a norm": lambda m, x: F.conv2d(x, m.a.weight * m.n.weight.reshape(-1, 1, 1, 1)),
    "one of them is called": lambda m, x: m.n(F.conv2d(x, m.a.weight + m.b.weight)) * m.a(x),
}


@pytest.mark.parametrize("body", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
def test_layers_of_which_only_weights_are_read(body: Any, inplace: bool):
    """What is computed of their weights is stored once: they go, unless something calls them."""
    make = lambda: Model(body, a=nn.Conv2d(4, 4, 3), b=nn.Conv2d(4, 4, 3), n=norm(4))  # noqa: E731
    x, wanted = sample((2, 4, 5, 6), torch.float32), build(make)
    fused = reparamkit.fuse(build(make), x, inplace=inplace)
    report = reparamkit.report(fused)
    assert report.merges
    assert report.after.stored <= report.before.stored
    assert error(run(fused, x), run(wide(wanted), x.double())) <= 1e-6
    loaded = copy.deepcopy(fused)
    loaded.load_state_dict(reparamkit.convert_state_dict(fused, wanted.state_dict()))
    assert error(run(loaded, x), run(wide(wanted), x.double())) <= 1e-6


def test_what_is_saved_is_counted_for_known_sizes():
    """Without inputs: a merge that learns its sizes from its layers is compared with them, not with a guess."""
    body = lambda m, x: (lambda y: m.b(m.a(y)) + y)(m.n(torch.cat([torch.relu(x)], 1)))  # noqa: E731
    parts = {"a": nn.Conv1d(32, 32, 1, bias=False), "b": nn.BatchNorm1d(32), "n": nn.BatchNorm1d(32)}
    report = reparamkit.explain(build(lambda: Model(body, **parts)))
    assert report.merges
    assert report.after.flops <= report.before.flops


class Ignoring(nn.Module):
    """Takes a value that it does nothing with, and computes one that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> None:
        self.a(x)


def _ignored(m: Any, x: Tensor) -> Tensor:
    y = m.b(x) + x
    m.ignoring(m.m(x), y)
    return y + m.n(y)


def test_an_argument_that_is_not_read_is_computed_for_its_call():
    """No merge computes it a second time: neither FLOPs nor stored numbers rise."""
    model = build(lambda: Model(_ignored, b=conv(4, 4), n=norm(4), m=norm(4), ignoring=Ignoring()))
    report = reparamkit.explain(model, sample((2, 4, 9, 8), torch.float32))
    assert report.after.flops <= report.before.flops
    assert report.after.stored <= report.before.stored


def test_a_sum_of_sizes_that_may_differ_is_counted():
    """As one operation, of its size."""
    model = build(lambda: Model(lambda m, x: m.a(x.squeeze(1)) + x.squeeze(1), a=nn.Conv1d(4, 4, 3, padding=1)))
    report = reparamkit.explain(model, sample((2, 1, 4, 6), torch.float32))
    assert report.before.flops == 2 * 48 * 12 + 48


class Branching(nn.Module):
    """Takes another path for wide inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(4, 4), conv(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.shape[-1] > 6 else self.b(x)


def _norm_then_branch(m: Any, x: Tensor) -> Tensor:
    return m.c(m.n(x))


def _divided_by_its_width(m: Any, x: Tensor) -> Any:
    y = -x
    return y / float(y.shape[-1]), m.n(y)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Model(_norm_then_branch, n=norm(4), c=Branching()),
        lambda: Model(lambda m, x: _divided_by_its_width(m, x)[0] + m.n(-x), n=conv_norm(4, 4)),
    ],
    ids=["a branch on a size", "a number made of a size"],
)
def test_another_size_is_right_or_refused(make: Callable[[], nn.Module]):
    """What was decided by a size in tracing holds at another size, or the model says that it was fused for one size."""
    model = build(make)
    fused = reparamkit.fuse(model, sample((2, 4, 5, 6), torch.float32))
    for width in (6, 9):
        x = sample((2, 4, 5, width), torch.float32)
        try:
            found = run(fused, x)
        except GuardError:
            assert width != 6
            continue
        assert error(found, run(wide(model), x.double())) <= 1e-6


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.relu(x)


def test_a_module_with_two_names_keeps_its_buffer():
    """A module that is registered twice, and writes a buffer, has the buffer it had."""
    counting = Counting()
    model = build(lambda: Model(lambda m, x: m.b(m.c(m.a(x))), a=counting, b=counting, c=conv_norm(4, 4)))
    buffer = counting.calls
    fused = reparamkit.fuse(model, sample((2, 4, 5, 6), torch.float32))
    assert counting.calls is buffer
    assert buffer == fused.a.calls == 0
    run(fused, sample((2, 4, 5, 6), torch.float32))
    assert fused.a.calls == 2


def test_a_norm_without_momentum_reads_its_count():
    """In training mode it divides by the number of batches, which tracing must know."""
    model = build(lambda: seq(conv_norm(4, 4), nn.BatchNorm2d(4, momentum=None)))
    model[1].train()
    reparamkit.fuse(model, sample((2, 4, 5, 6), torch.float32))
    assert model[1].num_batches_tracked == 0


def _adds_to_a_part(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :1] += m.a(x[:, :1])
    return F.conv2d(y, m.b.weight * m.n.weight.view(-1, 1, 1, 1))


def test_what_is_added_to_a_part_is_assigned_once_more():
    """As Python and torch do it, so the copy counts before a merge as it does after it."""
    parts = {"a": nn.Conv2d(1, 1, 1), "b": nn.Conv2d(2, 2, 3), "n": nn.BatchNorm2d(2)}
    report = reparamkit.explain(build(lambda: Model(_adds_to_a_part, **parts)), sample((2, 2, 6, 6), torch.float32))
    assert report.merges
    assert report.after.flops <= report.before.flops
    assert report.after.ops <= report.before.ops


def test_a_position_behind_an_ellipsis_leaves_a_rank():
    """Without inputs: what is left of a map has three dimensions, of which code may ask for each."""

    def body(m: Any, x: Tensor) -> Tensor:
        column = torch.sigmoid(m.c(x))[..., 0]
        return column.reshape(column.size(0), -1)

    model, x = build(lambda: Model(body, c=conv_norm(4, 4))), sample((2, 4, 5, 6), torch.float32)
    fused = reparamkit.fuse(model)
    assert reparamkit.report(fused).merges
    assert error(run(fused, x), run(wide(model), x.double())) <= 1e-6


def test_a_proof_draws_inputs_that_go_together():
    """What a broadcast parameter and a layer fix of one value are the sizes of the others made of it."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = x - m.shift
        return F.pad(m.fc(y.reshape(-1, 4)).reshape(y.shape), [-1, 1])

    model = build(lambda: Model(body, shift=nn.Parameter(torch.rand(4, 1)), fc=nn.Linear(4, 4)))
    x = sample((2, 4, 4), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert reparamkit.report(fused).merges
    assert error(run(fused, x), run(wide(model), x.double())) <= 1e-6


def test_a_proof_draws_inputs_of_as_many_dimensions_as_go_together():
    """Without inputs: what a norm reads has a batch, so what has the shape of the same tensor has one."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        z = m.n(F.gelu(m.b(y)))
        total = torch.zeros_like(y)
        total[:] = z
        total += y
        return z

    model = build(lambda: Model(body, a=conv(4, 4), b=conv_norm(4, 4), n=norm(4)))
    fused, x = reparamkit.fuse(model), sample((2, 4, 5, 6), torch.float32)
    assert reparamkit.report(fused).merges
    assert error(run(fused, x), run(wide(model), x.double())) <= 1e-6


def test_a_scale_that_two_merges_take_is_counted_for_the_sizes_that_they_fix():
    """Without inputs: each saves its part of it, of the same sizes as the rest."""

    def body(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 3.0
        return m.n(y) - y, m.fc(y)

    report = reparamkit.explain(build(lambda: Model(body, n=nn.BatchNorm1d(2), fc=nn.Linear(2, 2))))
    assert len(report.merges) == 2
    assert report.after.flops <= report.before.flops


def test_a_scale_before_more_zeros_stays_before_them():
    """Zeros at one end are a pass of their own, of all that it gives: a layer behind them has more to do."""

    def body(m: Any, x: Tensor) -> Tensor:
        scale = m.n.weight / (m.n.running_var + 0.1).sqrt()
        return F.pad(x * scale[:, None, None], [1, 0, 1, 2])

    report = reparamkit.explain(build(lambda: Model(body, n=norm(4))), sample((2, 4, 8, 8), torch.float32))
    assert report.after.flops <= report.before.flops


def test_norms_around_a_flip_of_channels_are_no_matrix():
    """Three multiplications for each number, where two norms take one each."""
    model = build(lambda: Model(lambda m, x: m.b(m.a(x).flip(1)), a=norm(3), b=norm(3)))
    report = reparamkit.explain(model, sample((2, 3, 4, 4), torch.float32))
    assert not report.merges


def test_what_does_nothing_is_no_layer():
    """A part of a concatenation is what was concatenated."""

    def body(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.fc(x)
        return F.gelu(torch.cat((x, y), 1)[:, :4]), y

    model, x = build(lambda: Model(body, fc=nn.Linear(8, 8))), sample((2, 4, 8), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert reparamkit.report(fused).after.ops < reparamkit.report(fused).before.ops
    assert [name for name, _ in fused.named_children()] == ["fc"]
    for a, b in zip(run(fused, x), run(wide(model), x.double()), strict=True):
        assert error(a, b) <= 1e-6


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = nn.BatchNorm1d(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.n(x.flatten(1))


def test_other_names_of_what_is_inside_a_merged_module_go():
    """A norm that a block and the model around it both have, and call."""

    def make() -> nn.Module:
        block = Flat()
        return Model(lambda m, x: m.n(m.block(m.first(torch.relu(x)))), first=norm(4), block=block, n=block.n)

    model, x = build(make), sample((2, 4, 2, 3), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert sum(p.numel() for p in fused.state_dict().values()) == 48
    assert error(run(fused, x), run(wide(model), x.double())) <= 1e-6


def test_a_size_is_read_of_what_stays():
    """Of two values with the height of what is read, the one beside it merges into what comes then."""

    def body(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.a(x)
        first, second = m.side(y).chunk(2, 1)
        z = m.n(m.up(m.fc(y)))
        return z.mean(1, True).expand_as(z), first + second

    layers = {"a": conv(8, 8), "side": nn.Conv2d(8, 8, 2), "fc": nn.Linear(8, 16)}
    model = build(lambda: Model(body, **layers, up=nn.ConvTranspose2d(8, 2, 2, padding=1), n=norm(2)))
    report = reparamkit.explain(model)
    assert report.merges
    assert report.after.stored <= report.before.stored
