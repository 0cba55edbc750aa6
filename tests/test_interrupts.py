"""Whatever happens while a model is fused, and whoever else is at work: the user's model is intact."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from structures import Net, build, conv_norm, error, repvgg, run, sample, seq
from torch import fx, nn
from torch.nn.modules import module as torch_module

import reparamkit
from reparamkit import ReparamkitError, inputs, merging, pieces, pipeline, whole
from reparamkit.capture import parts
from reparamkit.running import state
from reparamkit.tracing import tracer
from reparamkit.tracing.listing import lists_noted
from reparamkit.write import finish, places, write

X = sample((2, 3, 12, 10), torch.float32)


def surroundings() -> list[Any]:
    """What a process shares: random states, modes, and what fx and hooks patch."""
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        nn.Module.__call__,
        nn.Module.__getattr__,
        dict(torch_module._global_forward_hooks),
        dict(torch_module._global_forward_hooks_with_kwargs),
    ]


def belongings(model: nn.Module) -> list[Any]:
    """Every module with its class, mode, hooks and tensors, bit for bit."""
    return [
        (
            path,
            id(module),
            type(module),
            module.training,
            list(module._forward_hooks),
            [(n, id(t), t.requires_grad, t.tolist()) for n, t in module.named_parameters(recurse=False)],
            [(n, id(t), t.tolist()) for n, t in module.named_buffers(recurse=False)],
        )
        for path, module in model.named_modules(remove_duplicate=False)
    ]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Afterwards the model and the process are as before, and the model computes the same numbers."""
    wanted = run(model, X)
    before = belongings(model), surroundings()
    yield
    assert belongings(model) == before[0]
    assert surroundings() == before[1]
    assert torch.equal(run(model, X), wanted)


@contextmanager
def equal(model: nn.Module) -> Iterator[None]:
    """Afterwards the process is as before, and the model computes the same: merges that were finished may stay."""
    wanted, before = run(model, X), surroundings()
    yield
    assert surroundings() == before
    assert error(run(model, X), wanted) <= 1e-6


# --- interrupts -----------------------------------------------------------------------------------------

STAGES: list[tuple[Any, str]] = [
    (inputs, "outputs"),
    (pipeline, "capture_parts"),
    (parts, "capture"),
    (tracer, "evaluate_node"),
    (fx.Graph, "create_node"),
    (state.State, "restore"),
    (merging, "join_borders"),
    (merging, "drop_identities"),
    (merging, "drop_dead"),
    (merging, "read_early"),
    (merging, "choose"),
    (pieces, "check"),
    (write, "settle"),
    (merging, "pictures"),
    (finish, "method"),
    (finish, "change"),
    (places.Places, "_fill"),
    (places, "_with_new"),
    (pipeline, "owning"),
    (whole, "compare"),
    (pipeline, "measured"),
    (pipeline, "summarize"),
]


WAYS = [(KeyboardInterrupt, False), (KeyboardInterrupt, True), (MemoryError, True)]
"""What is raised, and whether the model is fused in place."""
CASES = [
    pytest.param(*stage, *way, id=f"{stage[1]}, {way[0].__name__}{', in place' * way[1]}")
    for stage in STAGES
    for way in WAYS
    if not (stage[1] == "owning" and way[1])
]


@pytest.mark.parametrize(("owner", "name", "kind", "inplace"), CASES)
def test_an_interrupt_leaves_the_model(
    owner: Any, name: str, kind: type[BaseException], inplace: bool, monkeypatch: pytest.MonkeyPatch
):
    """At each stage, after its work in the last of its calls."""
    original: Callable[..., Any] = getattr(owner, name)
    left = calls_of(owner, name, inplace)
    assert left > 0

    def raising(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        result = original(*args, **kwargs)
        if left == 0:
            raise kind(name)
        return result

    monkeypatch.setattr(owner, name, raising)
    model = build(small)
    with equal(model) if inplace else untouched(model), pytest.raises((kind, ReparamkitError)):
        reparamkit.fuse(model, X, inplace=inplace)


@cache
def calls_of(owner: Any, name: str, inplace: bool = False) -> int:
    """How often a function is called when the model is fused."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counting)
        reparamkit.fuse(build(small), X, inplace=inplace)
    return len(calls)


def small() -> nn.Module:
    """A row of modules, which are swapped, and branches, for which a method is written again."""
    return seq(conv_norm(3, 4), nn.ReLU(), repvgg(4), nn.ReLU())


# --- threads --------------------------------------------------------------------------------------------


def together(works: list[Callable[[], Any]]) -> list[Any]:
    """The results of functions that run at the same time, each in a thread of its own."""
    results: list[Any] = [None] * len(works)
    start = threading.Barrier(len(works))

    def work(number: int) -> None:
        start.wait()
        try:
            results[number] = works[number]()
        except BaseException as failed:
            results[number] = failed

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_four_threads_fuse_one_model():
    """Each gets the model that one alone would get, and the original is as it was."""
    model = build(Net)
    alone = reparamkit.fuse(model, X)
    with untouched(model):
        fused = together([lambda: reparamkit.fuse(model, X)] * 4)
    for each in fused:
        assert isinstance(each, nn.Module), each
        assert reparamkit.report(each).merges == reparamkit.report(alone).merges
        assert torch.equal(run(each, X), run(alone, X))
    assert len({id(t) for each in fused for t in each.parameters()}) == 4 * len(list(alone.parameters()))


def test_what_another_thread_asks_for_is_not_noted():
    """What the forward of the traced model asks torch for counts, and not what a server does meanwhile."""
    noted: set[str] = set()
    with lists_noted(noted):
        together([lambda: list(nn.Linear(1, 1).parameters())])
        assert noted == set()
        assert len(list(nn.Linear(1, 1).parameters())) == 2
    assert noted == {"parameters"}


def test_models_run_while_others_are_fused():
    """A thread that serves the model, or another one, sees neither the trace nor its patches."""
    model, other = build(Net), build(lambda: seq(conv_norm(3, 4), nn.ReLU()))
    wanted = [run(each, X) for each in (model, other)]
    done = threading.Event()

    def serve() -> int:
        served = 0
        while not done.is_set():
            for each, output in zip((model, other), wanted, strict=True):
                assert torch.equal(each(X).detach(), output)
            served += 1
        return served

    def fuse() -> nn.Module:
        try:
            return reparamkit.fuse(model, X)
        finally:
            done.set()

    fused, served = together([fuse, serve])
    assert isinstance(served, int), served
    assert served > 0
    assert isinstance(fused, nn.Module), fused
    assert error(run(fused, X), wanted[0]) <= 1e-6
    assert len(reparamkit.report(fused).merges) == len(reparamkit.explain(model, X).merges)
