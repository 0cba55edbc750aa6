"""What fusing takes: nothing is done anew that is known, and what is known at once is what torch finds out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structures import Model, build, sample, seq
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import reparamkit
from reparamkit import merging
from reparamkit.algebra import segments
from reparamkit.capture import aliases, recorded
from reparamkit.engine import placing, reader
from reparamkit.testing import randomize
from reparamkit.tracing import known
from reparamkit.tracing.tracer import Tracer

SIZES = st.integers(1, 9)


def calls_of(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[object]:
    """What the function of a module is called with from now on."""
    calls: list[object] = []
    function = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given: (calls.append(given), function(*given))[1])
    return calls


def row(shortest: int, longest: int, rank: int) -> st.SearchStrategy[tuple[int, ...]]:
    """As many whole numbers as a window has dimensions."""
    return st.tuples(*[st.integers(shortest, longest)] * rank)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution, and a shape that it may take or not."""
    rank, groups, columns = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    how = {"stride": draw(row(1, 3, rank)), "padding": draw(row(0, 3, rank)), "dilation": draw(row(1, 2, rank))}
    mode = draw(st.sampled_from(["zeros", "circular"]))
    conv = cls(groups * columns, 2 * groups, draw(row(1, 4, rank)), groups=groups, padding_mode=mode, **how)
    return conv, (2, groups * columns + draw(st.integers(0, 1)), *draw(row(1, 9, rank)))


@st.composite
def others(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A linear layer or a norm, and a shape that it may take or not."""
    columns = draw(st.integers(1, 4))
    if draw(st.booleans()):
        layer: nn.Module = nn.Linear(columns, draw(SIZES), bias=draw(st.booleans()))
        return layer, (*draw(row(1, 4, 2)), columns + draw(st.integers(0, 1)))
    layer = nn.BatchNorm2d(columns, affine=draw(st.booleans())).train(draw(st.booleans()))
    return layer, (2, columns + draw(st.integers(0, 1)), *draw(row(2, 9, 2)))


@st.composite
def recurrent(draw: st.DrawFn) -> tuple[nn.RNNBase, tuple[int, ...]]:
    """A recurrent layer, and a shape that it may take or not."""
    cls, columns = draw(st.sampled_from([nn.RNN, nn.GRU, nn.LSTM])), draw(st.integers(1, 3))
    how = {"batch_first": draw(st.booleans()), "bidirectional": draw(st.booleans())}
    layer: nn.RNNBase = cls(columns, draw(st.integers(1, 4)), draw(st.integers(1, 2)), **how)
    return layer, (*draw(row(1, 3, draw(st.integers(1, 2)))), columns + draw(st.integers(0, 1)))


@settings(max_examples=60)
@given(recurrent(), st.sampled_from([torch.float32, torch.float64]), st.sampled_from(["", "none", "state", "wide"]))
def test_known_values_of_recurrent_layers_are_those_of_torch(
    case: tuple[nn.RNNBase, tuple[int, ...]], dtype: torch.dtype, first: str
):
    """All steps and the last state have the sizes, strides and dtype that torch finds out step by step."""
    layer, shape = case
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = mode.from_tensor(torch.randn(shape, dtype=dtype), static_shapes=True)
        rows, batch = layer.num_layers * (1 + layer.bidirectional), shape[0 if layer.batch_first else 1]
        state = given.new_zeros(rows, batch + (first == "wide"), layer.hidden_size)
        begin = {"": (), "none": (None,)}.get(first, ((state, state) if isinstance(layer, nn.LSTM) else state,))
        made = known.made_by(layer, [given, *begin], {})
        fits = len(shape) == 3 and shape[2] == layer.input_size and dtype is torch.float32 and first != "wide"
        assert (made is not None) == fits
        if made is not None:
            for found, wanted in zip(flat(made), flat(layer(given, *begin)), strict=True):
                assert (found.shape, found.stride(), found.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("norm", known.NORMING, ids=lambda norm: norm.__name__)
def test_known_values_of_norms_that_are_functions_are_those_of_torch(norm: Any, memory: torch.memory_format):
    """With fixed statistics only, by position or by name."""
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(torch.randn(2, 3, 4, 5).to(memory_format=memory), static_shapes=True)
        mean, var = torch.zeros(3), torch.ones(3)
        found = known.normed_by(norm, (x, mean, var, None, None, False), {})
        assert found is not None
        wanted = norm(x, mean, var, None, None, False)
        assert (found.shape, found.stride(), found.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)
        of_input, _ = known.NORMING[norm]
        names = {"running_mean": mean, "running_var": var, of_input: False}
        assert known.normed_by(norm, (x,), names) is not None
        assert known.normed_by(norm, (x,), {**names, of_input: True}) is None


def flat(made: Any) -> list[Tensor]:
    """The tensors in what a layer gives."""
    return [made] if isinstance(made, Tensor) else [each for part in made for each in flat(part)]


@settings(max_examples=300)
@given(st.one_of(convolutions(), others()), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_known_values_are_those_of_torch(
    case: tuple[nn.Module, tuple[int, ...]], dtype: torch.dtype, channels_last: bool
):
    """What a layer is said to make of a fake tensor has the sizes, strides and dtype of what it makes."""
    layer, shape = case
    x = torch.randn(shape, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = mode.from_tensor(x, static_shapes=True)
        made = _tried(lambda: known.made_by(layer, [given], {}))
        if made is not None:
            wanted = _tried(lambda: layer(given))
            assert wanted is not None
            assert (made.shape, made.stride(), made.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)


def _tried(call: object) -> Tensor | None:
    try:
        return call()  # type: ignore[operator]
    except (RuntimeError, ValueError):
        return None


@pytest.mark.parametrize("training", [False, True])
def test_norms_that_are_called_as_functions(training: bool):
    """Only those with fixed statistics, and as many as there are channels, are known at once."""
    x, statistics = torch.randn(2, 3, 4), [torch.zeros(3), torch.ones(3)]
    found = known.normed_by(F.batch_norm, [x, *statistics, None, None, training], {})
    assert (found is None) is training
    assert known.normed_by(F.batch_norm, [x, torch.zeros(2), torch.ones(2)], {"training": False}) is None
    assert known.normed_by(F.instance_norm, [x, *statistics], {}) is None


def writing(times: int) -> nn.Module:
    """A forward with so many writes that can be followed."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        for _ in range(times):
            y = x.clone()
            y[:, :2] = m.a(x)[:, :2]
            x = torch.relu(y)
        return x

    return build(lambda: Model(forward, a=nn.Conv2d(4, 4, 1)))


def test_a_write_is_followed_without_looking_at_all_others(monkeypatch: pytest.MonkeyPatch):
    """Twice as many writes into other memory ask twice as often what shares memory."""
    asked = calls_of(monkeypatch, aliases, "_memory_of")
    counts = []
    for times in (10, 20):
        asked.clear()
        reparamkit.fuse(writing(times), sample((2, 4, 3, 3), torch.float32), verify=False)
        counts.append(len(asked))
    assert counts[1] < 2.2 * counts[0]


def test_what_fills_a_part_of_a_concatenation_is_not_cut_out_of_it(monkeypatch: pytest.MonkeyPatch):
    """Code that takes no part of a value has none taken while its growing concatenation is planned."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        for layer in (m.a, m.b):
            x = torch.cat([x, layer(torch.relu(x))], 1)
        return m.norm(x)

    cut = calls_of(monkeypatch, segments, "cropped")
    layers = {name: nn.Conv2d(4 * k, 4, 1, bias=False) for k, name in enumerate("ab", start=1)}
    model = build(lambda: Model(forward, norm=nn.BatchNorm2d(12), **layers))
    reparamkit.fuse(model, sample((2, 4, 3, 3), torch.float32), verify=False)
    assert not cut


class Residual(nn.Module):
    """A layer between norms beside a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x)).relu()


def test_what_is_tried_grows_with_the_depth_of_a_residual_net_and_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = [0]
    term = placing._term

    def counted(*given: Any) -> Any:
        tried[0] += 1
        return term(*given)

    monkeypatch.setattr(placing, "_term", counted)

    def tries(depth: int) -> int:
        tried[0] = 0
        net = randomize(nn.Sequential(*(Residual() for _ in range(depth))), 0).eval()
        reparamkit.fuse(net, torch.randn(1, 2, 4, 4))
        return tried[0]

    few, more, most = map(tries, (12, 24, 36))
    assert most - more < 1.1 * (more - few)


class Deciding(nn.Module):
    """A branch on data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_how_a_model_has_to_be_traced_is_found_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many modules in it cannot be traced."""
    traced: list[bool] = []
    call = Tracer.traced_call

    def counted(tracer: Tracer, *given: Any) -> Any:
        traced.append(tracer.manner.factories)
        return call(tracer, *given)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        out = torch.zeros(2, 12)
        out[:, :4] = x
        return m.b(m.first(m.second(m.a(torch.relu(out)))))

    monkeypatch.setattr(Tracer, "traced_call", counted)
    layers = {"a": nn.Linear(12, 12), "b": nn.Linear(12, 4)}
    model = build(lambda: Model(forward, first=Deciding(), second=Deciding(), **layers))
    reparamkit.fuse(model, sample((2, 4), torch.float32))
    assert traced[0] is False
    assert len(traced) > 3
    assert all(traced[1:])


def test_modules_that_are_called_several_times_are_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model runs as often for many of them as for one."""
    runs = calls_of(monkeypatch, recorded, "run")

    def count(modules: int) -> int:
        def forward(m: nn.Module, x: Tensor) -> Tensor:
            for block in m.blocks:
                x = block(torch.relu(block(x)))
            return x

        runs.clear()
        blocks = nn.ModuleList(seq(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(modules))
        reparamkit.fuse(build(lambda: Model(forward, blocks=blocks)), sample((2, 4), torch.float32), verify=False)
        return len(runs)

    assert count(5) == count(1)


def test_what_no_merge_changes_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all choices, however many, and for the counts before and after."""
    asked: list[str] = []
    read = reader._Reader._read_anew

    def counted(one: Any, *given: Any) -> Any:
        asked.append(one.node.name)
        return read(one, *given)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        q, k = m.a(x).chunk(2, -1)
        return m.far(torch.relu(x)) + m.b(torch.sigmoid(2.0 * q) + k.tanh())

    monkeypatch.setattr(reader._Reader, "_read_anew", counted)
    rounds = calls_of(monkeypatch, merging, "choose")
    far = seq(*(each for _ in range(4) for each in (nn.Linear(12, 12), nn.ReLU())))
    model = build(lambda: Model(forward, a=nn.Linear(12, 24), b=seq(nn.Linear(12, 12), nn.Linear(12, 12)), far=far))
    reparamkit.fuse(model, sample((2, 12), torch.float32), verify=False)
    assert len(rounds) > 2
    assert {asked.count(name) for name in asked if name.startswith("far")} == {3}


def test_branches_that_are_one_layer_are_not_taken_apart_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm behind their sum takes no choice of its own: one finds all, and one finds that no more is left."""
    made = calls_of(monkeypatch, merging, "choose")
    layers = {"a": nn.Conv2d(4, 4, 3, padding=1, groups=4), "b": nn.Conv2d(4, 4, 1, groups=4)}
    model = build(lambda: Model(lambda m, x: m.n(m.a(x) + m.b(x) + x), n=nn.BatchNorm2d(4), **layers))
    fused = reparamkit.fuse(model, sample((2, 4, 5, 5), torch.float32), verify=False)
    assert len(reparamkit.report(fused).merges) == 1
    assert len(made) == 2


def test_many_scaled_parts_of_a_layer_are_chosen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scales of two parts and those of six take as many choices."""
    made = calls_of(monkeypatch, merging, "choose")

    def choices(parts: int) -> int:
        def forward(m: nn.Module, x: Tensor) -> Tensor:
            scaled = [part * (k + 2) for k, part in enumerate(m.a(x).chunk(parts, -1))]
            return sum(map(torch.sigmoid, scaled), torch.zeros(()))

        made.clear()
        model = build(lambda: Model(forward, a=nn.Linear(12, 12)))
        fused = reparamkit.fuse(model, sample((2, 12), torch.float32))
        assert len(reparamkit.report(fused).merges) == 1
        return len(made)

    assert choices(6) == choices(2)
