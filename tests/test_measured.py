"""objective="measured": the device decides, and the report says what it said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from structures import build, conv, conv_norm, error, repvgg, run, sample, seq
from torch import Tensor, nn

import reparamkit
from reparamkit import InvalidInputError, Match, trial
from reparamkit.timing import Run

X = sample((2, 4, 12, 10), torch.float32)
Clock = Callable[..., list[list[float]]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Times as the test wants them: a piece takes as long as its code says. Receives the pieces."""
    seen: list[tuple[str, str]] = []

    def in_turns(runs: Sequence[Run], rounds: int, seconds: float, *, clock: object) -> list[list[float]]:
        for each in runs:
            each()
        seen.append(tuple(each.func.code for each in runs))
        return [[1.0] * rounds, [SPEED["new"]] * rounds]

    monkeypatch.setattr(trial, "in_turns", in_turns)
    yield seen
    SPEED["new"] = 0.5


SPEED = {"new": 0.5}


def rep() -> nn.Module:
    return build(lambda: seq(repvgg(4), nn.ReLU(), repvgg(4), nn.ReLU(), conv_norm(4, 6)))


def test_faster_merges_are_kept(clock: list[tuple[str, str]]):
    """What is faster stays, with the times in the report; equal pieces are timed once."""
    model = rep()
    fused = reparamkit.fuse(model, X, objective="measured")
    made = reparamkit.report(fused)
    assert error(run(fused, X), run(model, X)) <= 1e-5
    assert len(made.merges) == 3
    assert {(merge.before.milliseconds, merge.after.milliseconds) for merge in made.merges} == {(1.0, 0.5)}
    assert "1 -> 0.5" in str(made)
    assert len(clock) == len(set(clock)) == 2
    assert [code.count("self.m") for code in clock[-1]] == [2, 1]


def test_slower_merges_are_left(clock: list[tuple[str, str]]):
    """What is slower is not merged; the reason has the times, and its prices are fields."""
    SPEED["new"] = 2.0
    model = rep()
    fused = reparamkit.fuse(model, X, objective="measured")
    made = reparamkit.report(fused)
    assert made.merges == ()
    assert (made.before, error(run(fused, X), run(model, X))) == (made.after, 0.0)
    left = next(r for r in made.refusals if r.layer == "BatchNorm2d")
    assert "slower when merged: 1 ms as it is, 2 ms merged, measured on cpu" in left.reason
    assert left.advice.kind == "cost"
    assert left.before is not None
    assert left.after is not None
    assert (left.before.milliseconds, left.after.milliseconds) == (1.0, 2.0)
    assert left.before.launches > left.after.launches


def test_a_smaller_merge_is_tried_when_the_largest_is_slow(monkeypatch: pytest.MonkeyPatch):
    """If the whole block is slower as one, the pieces that are faster are still merged."""

    def in_turns(runs: Sequence[Run], rounds: int, *rest: object, **options: object) -> list[list[float]]:
        whole = runs[0].func.code.count("+") > 0
        return [[1.0] * rounds, [2.0 if whole else 0.5] * rounds]

    monkeypatch.setattr(trial, "in_turns", in_turns)
    model = build(lambda: seq(repvgg(4), nn.ReLU()))
    fused = reparamkit.fuse(model, X, objective="measured")
    assert [merge.rules for merge in reparamkit.report(fused).merges] == [("chain",)] * 2
    assert error(run(fused, X), run(model, X)) <= 1e-5


def test_real_times():
    """Without a double: folding a norm into a convolution is measured, and the outputs stay."""
    model = build(lambda: seq(conv_norm(4, 4), nn.ReLU(), conv(4, 4)))
    fused = reparamkit.fuse(model, X, objective="measured")
    assert error(run(fused, X), run(model, X)) <= 1e-5
    made = reparamkit.report(fused)
    assert all(price.milliseconds for merge in made.merges for price in (merge.before, merge.after))
    assert reparamkit.Report.from_json(made.to_json()) == made


@reparamkit.rule(
    name="same_gelu", equation="gelu = gelu", pattern=reparamkit.call(nn.GELU, reparamkit.value("x")), register=False
)
def gelu(match: Match) -> nn.Module:
    """The same again."""
    return nn.GELU()


def test_rules_of_the_user_are_measured(clock: list[tuple[str, str]]):
    """A graph rule that makes the model slower is not applied."""
    model = build(lambda: seq(conv(4, 4), nn.GELU()))
    for speed, used in ((0.5, 1), (2.0, 0)):
        SPEED["new"] = speed
        made = reparamkit.explain(model, X, objective="measured", extra_rules=[gelu])
        assert len(made.merges) == used
        assert any("slower when merged" in refusal.reason for refusal in made.refusals) == (not used)


def test_sizes_are_needed():
    """Nothing can be measured without inputs."""
    with pytest.raises(InvalidInputError, match="pass example_inputs"):
        reparamkit.fuse(rep(), objective="measured")


class Reading(nn.Module):
    """Sizes are read and used at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = conv_norm(4, 4), nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return self.linear(self.conv(x).reshape(b, c, h * w).transpose(1, 2)).relu()


def test_pieces_that_read_sizes(clock: list[tuple[str, str]]):
    """Sizes inside a piece are those of the example."""
    model = build(Reading)
    fused = reparamkit.fuse(model, X, objective="measured")
    assert error(run(fused, X), run(model, X)) <= 1e-5
    assert len(reparamkit.report(fused).merges) >= 1
