"""Times are taken in turns, and the interval says what they show."""

from __future__ import annotations

import random
import statistics

import pytest
import torch
from structures import Net, build, sample
from torch import Tensor, nn

import reparamkit
from reparamkit import InvalidInputError
from reparamkit.timing import FEWEST, WARM_UP, Ratio, in_turns, interval

X = sample((2, 3, 12, 10), torch.float32)


def test_turns_alternate():
    """Every run is called once a round, the first of a round last in the next, and the warm-up is not counted."""
    calls: list[str] = []
    runs = [lambda: calls.append("a"), lambda: calls.append("b")]

    def counting(run: object) -> float:
        run()
        return len(calls)

    times = in_turns(runs, 4, clock=counting)
    assert calls == (["a", "b", "b", "a"] * 4)[: 2 * (WARM_UP + 4)]
    assert [len(each) for each in times] == [4, 4]
    assert min(map(min, times)) > 2 * WARM_UP


def test_time_adds_rounds():
    """A number of seconds is a least time, beside the least number of rounds."""
    times = in_turns([lambda: None], 2, 0.02, clock=lambda run: 1.0)
    assert len(times[0]) > 100


@pytest.mark.parametrize(("n", "k"), [(6, 1), (8, 1), (9, 2), (20, 6), (30, 10), (100, 40)])
def test_interval_is_that_of_the_tables(n: int, k: int):
    """The k-th smallest and largest, as tables of the sign test have it."""
    values = random.Random(0).sample(range(1, n + 1), n)
    assert interval(values) == Ratio((n + 1) / 2, k, n + 1 - k)


def test_interval_covers():
    """Of many samples at least 95% have an interval around the true median, also if they are skewed."""
    draw = random.Random(0)
    covered = [
        found.low <= 1.0 <= found.high
        for found in (interval([draw.lognormvariate(0, 1) for _ in range(15)]) for _ in range(2000))
    ]
    assert 0.95 <= statistics.mean(covered) < 0.99


def test_benchmark_prints_what_it_knows():
    """Each printed number is a field; the surroundings are stated."""
    net = build(Net)
    threads = torch.get_num_threads()
    found = reparamkit.benchmark(net, reparamkit.fuse(net, X), X, kwargs={"scale": 2.0}, rounds=FEWEST, threads=1)
    assert (found.rounds, found.threads, found.device) == (FEWEST, 1, "cpu")
    assert found.speedup.low <= found.speedup.median <= found.speedup.high
    assert 0 < found.model.low <= found.model.median <= found.model.high
    assert 0 <= found.error < 1e-5
    text = str(found)
    for each in (found.model, found.fused, found.speedup, "cpu", "1 thread;", f"{found.error:.1e}"):
        assert str(each) in text
    assert torch.get_num_threads() == threads


def test_benchmark_sees_a_slower_model():
    """A model that does the work twenty times is slower beyond doubt."""
    once = nn.Linear(64, 64).eval()
    often = nn.Sequential(*[nn.Linear(64, 64) for _ in range(20)]).eval()
    found = reparamkit.benchmark(often, once, torch.randn(64, 64), rounds=20)
    assert found.speedup.settled
    assert found.speedup.low > 1
    assert "no difference" not in str(found.speedup)
    assert "no difference is shown" in str(Ratio(1.01, 0.9, 1.1))


class Busy(nn.Module):
    """Writes into its input and a buffer, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x.mul_(0.5) + torch.rand(1)


def test_benchmark_leaves_no_trace():
    """Inputs, buffers, the random state and the grad mode are as before."""
    model, x = Busy().eval(), torch.ones(3)
    state = torch.get_rng_state()
    reparamkit.benchmark(model, model, x, rounds=FEWEST)
    assert torch.equal(x, torch.ones(3))
    assert model.count == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_benchmark_takes_any_callable():
    """A compiled model, or a function, is timed as well."""
    net = build(Net)
    found = reparamkit.benchmark(net, torch.compile(net, backend="eager"), X, rounds=FEWEST)
    assert found.error == 0.0


def test_benchmark_refuses():
    """Models in training mode, inputs that do not fit, and too few rounds, each with words."""
    net = build(Net)
    with pytest.raises(InvalidInputError, match="rounds=3"):
        reparamkit.benchmark(net, net, X, rounds=3)
    with pytest.raises(InvalidInputError, match=r"fused model rejects .*pass a tensor"):
        reparamkit.benchmark(net, nn.Linear(5, 5).eval(), X)
    with pytest.raises(InvalidInputError, match="training mode"):
        reparamkit.benchmark(net, nn.Linear(5, 5), X)
