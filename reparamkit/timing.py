"""How long several ways to compute the same take: in turns, so that what slows the machine slows all of them."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .capture.arguments import Inputs
from .compare import compare
from .errors import InvalidInputError
from .running.buffers import other_buffers
from .running.draws import random_state_kept
from .running.state import kept

Run = Callable[[], Any]
Clock = Callable[[Run], float]
"""Milliseconds that one call takes."""
WARM_UP = 3
"""Rounds that are not counted."""
FEWEST = 6
"""Rounds: fewer pairs do not enclose their median with 95% confidence, however far apart they are."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: the median, and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ms ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios within the rounds, and the interval that encloses it with 95% confidence."""

    median: float
    low: float
    high: float

    @property
    def settled(self) -> bool:
        """Whether the interval leaves no doubt which of the two is faster."""
        return not self.low <= 1 <= self.high

    def __str__(self) -> str:
        doubt = "" if self.settled else ": no difference is shown"
        return f"{self.median:.2f} x as fast (95% interval {self.low:.2f} to {self.high:.2f}{doubt})"


@dataclass(frozen=True)
class Benchmark:
    """Two models on one input.

    model, fused: their times. speedup: how many times as fast the fused model is. error: the largest relative error of
    its outputs. rounds: measured calls of each, after the warm-up. threads: of torch. device: where it ran.
    """

    model: Timing
    fused: Timing
    speedup: Ratio
    error: float
    rounds: int
    threads: int
    device: str

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        how = f"median (quartiles) of {self.rounds} rounds in turns, {self.device}, {threads}"
        return f"model  {self.model}\nfused  {self.fused}\n{self.speedup}\n{how}; relative error {self.error:.1e}"


def benchmark(
    model: Callable[..., Any],
    fused: Callable[..., Any],
    inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    rounds: int = 30,
    threads: int | None = None,
) -> Benchmark:
    """Time a model and its fused form in turns, without gradients, after a warm-up.

    On a GPU the time is that between two CUDA events, on a CPU that of `time.perf_counter`. Which of the two goes first
    alternates. Buffers, the random state, the grad mode and the number of threads are left as they were.

    Args:
        model: a module in eval mode, or any callable, so that compiled models can be compared too.
        fused: the same.
        inputs: a tensor of any shape the models take, or the tuple of positional arguments.
        kwargs: keyword arguments that go with `inputs`, as `example_kwargs` of `fuse`.
        rounds: measured calls of each, at least 6.
        threads: of torch, while measuring; default: as it is.

    Raises:
        InvalidInputError: a model is in training mode or rejects the inputs, or there are too few rounds.
    """
    if rounds < FEWEST:
        raise InvalidInputError(f"rounds={rounds}: an interval of 95% needs at least {FEWEST}")
    given = Inputs(inputs if isinstance(inputs, tuple) else (inputs,), dict(kwargs or {}))
    device = _device((model, fused), given)
    with _undisturbed((model, fused)), _threads(threads), torch.inference_mode():
        # Models that write into their inputs write into copies.
        runs = [_bound(each, copy.deepcopy(given)) for each in (model, fused)]
        wanted, found = (_tried(run, name) for run, name in zip(runs, ("model", "fused model"), strict=True))
        error = compare(found, wanted).error
        before, after = in_turns(runs, rounds, clock=clock(device))
        used = torch.get_num_threads()
    ratio = interval([a / b for a, b in zip(before, after, strict=True)])
    return Benchmark(timing(before), timing(after), ratio, error, rounds, used, _named(device))


# --- measuring ----------------------------------------------------------------------------------------


def in_turns(runs: Sequence[Run], rounds: int, seconds: float = 0.0, *, clock: Clock) -> list[list[float]]:
    """Milliseconds of each run, in `rounds` rounds after the warm-up; more as long as fewer `seconds` are over."""
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    done = 0
    while done < WARM_UP + rounds or time.perf_counter() < end:
        # Every second round goes backwards, so that nobody always runs behind the same neighbour.
        for k in range(len(runs))[:: 1 if done % 2 == 0 else -1]:
            times[k].append(clock(runs[k]))
        done += 1
    return [each[WARM_UP:] for each in times]


def clock(device: torch.device) -> Clock:
    """The clock of a device."""
    return _by_events if device.type == "cuda" else _by_counter


def _by_counter(run: Run) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _by_events(run: Run) -> float:
    start, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


# --- statistics ---------------------------------------------------------------------------------------


def timing(times: Sequence[float]) -> Timing:
    """times: at least two, in milliseconds."""
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, low, high)


def interval(ratios: Sequence[float]) -> Ratio:
    """The median, and the order statistics that enclose it with at least 95% confidence. ratios: at least `FEWEST`.

    A value lies below the true median as often as a coin shows heads, whatever the distribution. So the k-th smallest
    and the k-th largest enclose it unless fewer than k of n coins show one side: 2 P(B < k) <= 5%.
    """
    ordered, n = sorted(ratios), len(ratios)
    k, below = 0, 1
    while 40 * below <= 2**n:
        k += 1
        below += math.comb(n, k)
    return Ratio(statistics.median(ordered), ordered[k - 1], ordered[n - k])


# --- surroundings -------------------------------------------------------------------------------------


def _bound(model: Callable[..., Any], given: Inputs) -> Run:
    return lambda: model(*given.args, **given.kwargs)


def _tried(run: Run, name: str) -> Any:
    try:
        return copy.deepcopy(run())
    except Exception as error:
        raise InvalidInputError(
            f"the {name} rejects the inputs ({type(error).__name__}: {error}); pass a tensor, or the tuple of"
            " positional arguments, that it takes"
        ) from error


def _device(models: Sequence[Callable[..., Any]], given: Inputs) -> torch.device:
    """That of the models, or of the inputs of callables that are no modules."""
    modules = [model for model in models if isinstance(model, nn.Module)]
    if any(module.training for module in modules):
        raise InvalidInputError("the model is in training mode: call model.eval()")
    tensors = [*given.tensors, *(t for module in modules for t in (*module.parameters(), *module.buffers()))]
    devices = {t.device for t in tensors}
    accelerators = {device for device in devices if device.type != "cpu"}
    if len(accelerators) > 1 or any(device.type != "cuda" for device in accelerators):
        where = ", ".join(sorted(map(str, devices)))
        raise InvalidInputError(f"models and inputs are on {where}: move all to the CPU or to one CUDA device")
    return next(iter(accelerators), torch.device("cpu"))


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@contextmanager
def _undisturbed(models: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Attributes and buffers of modules and the random state are as before afterwards."""
    with ExitStack() as stack:
        stack.enter_context(random_state_kept())
        for model in models:
            if isinstance(model, nn.Module):
                stack.enter_context(other_buffers(model, Tensor.clone))
                stack.enter_context(kept(model))
        yield


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
